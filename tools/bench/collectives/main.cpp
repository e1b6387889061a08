// Times all-reduce between processes of one host.
//
//   cmake -S . -B build/bench -G Ninja -DPRECAST_BUILD_BENCH=ON
//   cmake --build build/bench --target precast_bench_collectives
//   build/bench/tools/bench/collectives/precast_bench_collectives
//       [--ranks 2] [--runs 9] [--spins 2000] [--shared-from 65536] [--buffer-kib 1024]
//   mpiexec -n 2 build/bench/tools/bench/collectives/precast_bench_collectives --mpi LIBRARY     what build-mpi has made
//
// Each rank is a process with one thread. For every size the ranks add up 200 times in a row; a run's figure is the mean of
// these, and printed are the median, the least and the greatest of the runs, in microseconds. "copy" is what no algorithm can
// do without: the same process copies as many bytes twice, once in and once out. --shared-from is from how many numbers on
// the ranks share a sum.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string_view>
#include <vector>

#include "plugins/collectives/cpu/message_communicator.h"
#include "plugins/collectives/cpu/shared_memory_communicator.h"
#include "runtime/native/src/ranks/messages/mpi_job.h"
#include "tools/bench/arguments.h"
#include "tools/bench/stopwatch.h"

namespace precast::bench {
namespace {

constexpr std::array<std::size_t, 8> sizes_kib = {8, 32, 64, 128, 256, 512, 1024, 16 * 1024};
constexpr int sums_per_run = 200;

struct Options {
  std::size_t ranks = 2;
  std::size_t runs = 9;
  std::size_t spins = WaitOptions{}.spins;
  std::size_t shared_from = 0;  // 0: the communicator's own
  std::size_t buffer_kib = 1024;
  const char* mpi = nullptr;
};

Options parse(int argc, char** argv) {
  Options options;
  parse_arguments(argc, argv, [&options](std::string_view name, const char* value) {
    if (name == "--ranks") return parse_number(value, options.ranks);
    if (name == "--mpi") return (options.mpi = value) != nullptr;
    if (name == "--runs") return parse_number(value, options.runs);
    if (name == "--spins") return parse_number(value, options.spins);
    if (name == "--shared-from") return parse_number(value, options.shared_from);
    if (name == "--buffer-kib") return parse_number(value, options.buffer_kib);
    return false;
  });
  return options;
}

int iterations(std::size_t kib) { return kib > 1024 ? sums_per_run / 20 : sums_per_run; }

double copy_microseconds(std::size_t kib) {
  std::vector<char> from(kib << 10), middle(kib << 10), to(kib << 10);
  const auto copy = [&] {
    std::memcpy(middle.data(), from.data(), from.size());
    asm volatile("" : : "r"(middle.data()) : "memory");
    std::memcpy(to.data(), middle.data(), middle.size());
    asm volatile("" : : "r"(to.data()) : "memory");
  };
  copy();
  const Stopwatch watch(false);
  for (int i = 0; i < iterations(kib); ++i) copy();
  return watch.seconds() * 1e6 / iterations(kib);
}

// What one rank does; rank 0 prints.
template <typename AnyCommunicator>
void run_rank(AnyCommunicator& communicator, std::size_t rank, const Options& options) {
  if (options.shared_from != 0) communicator.set_shared_sum_floats(options.shared_from);
  for (const std::size_t kib : sizes_kib) {
    std::vector<float> x(kib * 256, 1.0f);
    std::vector<float> y(x.size());
    std::vector<double> runs;
    for (std::size_t run = 0; run < options.runs + 1; ++run) {
      const Stopwatch watch(false);
      for (int i = 0; i < iterations(kib); ++i) communicator.all_reduce(x, y, ParallelFor::serial());
      if (run > 0) runs.push_back(watch.seconds() * 1e6 / iterations(kib));  // the first one warms up
    }
    if (y[0] != static_cast<float>(communicator.num_tensor_ranks())) std::abort();
    if (rank != 0) continue;
    std::ranges::sort(runs);
    std::printf("%6zu KiB: %8.1f us (%.1f - %.1f), copy %.1f us\n", kib, runs[runs.size() / 2], runs.front(), runs.back(),
                copy_microseconds(kib));
    std::fflush(stdout);
  }
}

void run_shared_memory(const std::shared_ptr<RankMemory>& memory, std::size_t rank, const Options& options) {
  SharedMemoryCommunicator communicator(memory, rank, {.spins = static_cast<unsigned>(options.spins)});
  run_rank(communicator, rank, options);
}

int run_mpi(const Options& options) {
  MpiMessages messages(options.mpi);
  {
    MessageRanks ranks(messages, 1, {.spins = static_cast<unsigned>(options.spins)});
    MessageCommunicator communicator(ranks, messages.num_ranks());
    run_rank(communicator, messages.rank(), options);
  }
  messages.finalize();
  return 0;
}

int run(const Options& options) {
  if (options.mpi != nullptr) return run_mpi(options);
  const auto memory =
      RankMemory::create({.tensor_parallel_size = options.ranks, .buffer_bytes = options.buffer_kib << 10});
  std::vector<pid_t> children;
  for (std::size_t rank = 1; rank < options.ranks; ++rank) {
    const pid_t child = fork();
    if (child == 0) {
      run_shared_memory(memory, rank, options);
      _exit(0);
    }
    children.push_back(child);
  }
  run_shared_memory(memory, 0, options);
  int failures = 0;
  for (const pid_t child : children) {
    int status = 0;
    if (waitpid(child, &status, 0) != child || status != 0) ++failures;
  }
  return failures;
}

}  // namespace
}  // namespace precast::bench

int main(int argc, char** argv) { return precast::bench::run(precast::bench::parse(argc, argv)); }
