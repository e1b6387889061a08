// How fast this machine reads memory at this moment: the floor that decoding is held against.
//
//   bandwidth [--threads N] [--mebibytes N] [--runs N]     prints GB/s, one run a line
//
// Threads read disjoint parts of one buffer that is larger than any cache, with vector loads; every second run prefetches.
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include <sys/mman.h>

namespace {

std::uint64_t option(int argc, char** argv, const char* name, std::uint64_t fallback) {
  for (int i = 1; i + 1 < argc; ++i) {
    if (std::strcmp(argv[i], name) == 0) return std::strtoull(argv[i + 1], nullptr, 10);
  }
  return fallback;
}

// 64 bytes, a cache line: one register or several, as the compiler finds.
using Line = std::uint64_t __attribute__((vector_size(64)));

// Prefetch: in lines ahead; 0 leaves it to the hardware. Which is faster differs between processors, so both are tried.
template <std::size_t Prefetch>
std::uint64_t sum(const Line* lines, std::size_t count) {
  Line sums[8] = {};  // several, or the latency of an addition would be what is measured
  for (std::size_t i = 0; i + 8 <= count; i += 8) {
    for (std::size_t j = 0; j < 8; ++j) {
      if constexpr (Prefetch > 0) __builtin_prefetch(lines + i + j + Prefetch);
      sums[j] += lines[i + j];
    }
  }
  for (std::size_t j = 1; j < 8; ++j) sums[0] += sums[j];
  return sums[0][0] + sums[0][7];
}

}  // namespace

int main(int argc, char** argv) {
  const std::uint64_t num_threads = option(argc, argv, "--threads", 2);
  const std::uint64_t bytes = option(argc, argv, "--mebibytes", 1024) << 20;
  const std::uint64_t runs = option(argc, argv, "--runs", 5);
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    std::perror("mmap");
    return 1;
  }
  madvise(memory, bytes, MADV_HUGEPAGE);
  std::memset(memory, 1, bytes);
  const auto* lines = static_cast<const Line*>(memory);
  const std::size_t part = bytes / sizeof(Line) / num_threads;
  for (std::uint64_t run = 0; run < runs; ++run) {
    std::vector<std::uint64_t> sums(num_threads);
    std::vector<std::thread> threads;
    const auto start = std::chrono::steady_clock::now();
    for (std::uint64_t i = 0; i < num_threads; ++i) {
      const auto read = run % 2 == 0 ? sum<64> : sum<0>;
      threads.emplace_back([&, read, i] { sums[i] = read(lines + i * part, part); });
    }
    for (std::thread& thread : threads) thread.join();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    volatile std::uint64_t kept = sums[0];  // the sums are used, so they are computed
    static_cast<void>(kept);
    std::printf("%.2f\n", static_cast<double>(bytes) / seconds.count() / 1e9);
  }
  return 0;
}
