// Times Linear against what the machine can do in the same second.
//
//   cmake -S . -B build/bench -G Ninja -DPRECAST_BUILD_BENCH=ON
//   cmake --build build/bench --target precast_bench_kernels
//   build/bench/tools/bench/kernels/precast_bench_kernels
//       [--level portable|avx2|avx512] [--threads N] [--runs N] [--rows N] [--k N] [--n N]
//
// Without --level every level that this machine has takes its turn in every run, so that they can be compared.
// Every run of a case reads other weights, so that they come from memory as in a model, and stands between a reading of
// the memory bandwidth and one of the peak of the multiplying instruction. Printed: medians of GB/s (of packed weights)
// and GF/s, and medians of their ratios to the two. On a busy machine --threads 1 is the figure to trust (stopwatch.h).
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "plugins/linear/cpu/linear.h"
#include "tools/bench/arguments.h"
#include "tools/bench/kernels/machine_limits.h"
#include "tools/bench/kernels/spinning_threads.h"
#include "tools/bench/stopwatch.h"

namespace precast::bench {
namespace {

struct Options {
  std::vector<KernelLevel> levels;
  std::size_t threads = 2;
  std::size_t runs = 9;
  std::size_t rows = 0;  // 0: a selection, here and below
  std::size_t in_features = 0;
  std::size_t out_features = 0;
};

Options parse(int argc, char** argv) {
  Options options;
  for (const KernelLevel level : all_kernel_levels) {
    if (supports(level)) options.levels.push_back(level);
  }
  parse_arguments(argc, argv, [&options](std::string_view name, const char* value) {
    if (name == "--threads") return parse_number(value, options.threads);
    if (name == "--runs") return parse_number(value, options.runs);
    if (name == "--rows") return parse_number(value, options.rows);
    if (name == "--k") return parse_number(value, options.in_features);
    if (name == "--n") return parse_number(value, options.out_features);
    const auto level = parse_usable_level(value);
    if (name != "--level" || !level) return false;
    options.levels = {*level};
    return true;
  });
  return options;
}

// Larger than any cache, in huge pages where the system gives them, as an engine's weights are.
struct Memory {
  std::size_t size_bytes = std::size_t{1} << 29;
  std::byte* bytes = nullptr;

  Memory() {
    void* const mapped = mmap(nullptr, size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) {
      std::perror("mmap");
      std::exit(1);
    }
    madvise(mapped, size_bytes, MADV_HUGEPAGE);
    bytes = static_cast<std::byte*>(mapped);
    // 0x3C3C3C3C is an ordinary number as fp32 and as two bf16.
    std::memset(bytes, 0x3C, size_bytes);
  }
};

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

class LinearBench {
 public:
  LinearBench(const Options& options, const Memory& memory)
      : options_(options), memory_(memory), threads_(options.threads), parallel_for_(threads_.parallel_for()) {}

  void run(const LinearShape& shape, std::size_t rows) {
    x_.assign(rows * shape.in_features, 0.5f);
    y_.resize(rows * shape.out_features);
    std::vector<Measured> measured(options_.levels.size());
    for (std::size_t i = 0; i < options_.runs; ++i) {
      for (std::size_t l = 0; l < measured.size(); ++l) measure(options_.levels[l], shape, rows, measured[l]);
    }
    for (std::size_t l = 0; l < measured.size(); ++l) print(options_.levels[l], shape, rows, measured[l]);
  }

 private:
  // One case at one level, an entry for each run.
  struct Measured {
    std::vector<double> seconds;
    std::vector<double> bandwidth_ratios;
    std::vector<double> peak_ratios;
  };

  static std::size_t weight_bytes(const LinearShape& shape) {
    return packed_size_bytes(shape.layout, shape.out_features, shape.in_features).value();
  }

  static double flops(const LinearShape& shape, std::size_t rows) {
    return 2.0 * static_cast<double>(rows * shape.out_features * shape.in_features);
  }

  void measure(KernelLevel level, const LinearShape& shape, std::size_t rows, Measured& measured) {
    const double bandwidth = read_bandwidth(memory_.bytes, memory_.size_bytes / 4, parallel_for_);
    const double seconds = time_once(level, shape, rows);
    const double peak = peak_flops(level, shape.layout, parallel_for_);
    measured.seconds.push_back(seconds);
    measured.bandwidth_ratios.push_back(static_cast<double>(weight_bytes(shape)) / seconds / bandwidth);
    measured.peak_ratios.push_back(peak > 0 ? flops(shape, rows) / seconds / peak : 0);
  }

  static void print(KernelLevel level, const LinearShape& shape, std::size_t rows, const Measured& measured) {
    const double seconds = median(measured.seconds);
    const double peak_ratio = median(measured.peak_ratios);
    std::printf("%-13s %-8s K=%-6zu N=%-6zu rows=%-5zu %10.1f us %7.1f GB/s (%.2f of bandwidth) %8.1f GF/s",
                std::string(id(shape.layout)).c_str(), std::string(name(level)).c_str(), shape.in_features,
                shape.out_features, rows, seconds * 1e6, static_cast<double>(weight_bytes(shape)) / seconds / 1e9,
                median(measured.bandwidth_ratios), flops(shape, rows) / seconds / 1e9);
    if (peak_ratio > 0) std::printf(" (%.2f of peak)", peak_ratio);
    std::printf("\n");
    std::fflush(stdout);
  }

  // Seconds of one call, the mean of as many as fill a few milliseconds.
  double time_once(KernelLevel level, const LinearShape& shape, std::size_t rows) {
    const std::size_t size_bytes = weight_bytes(shape);
    const std::size_t num_matrices = memory_.size_bytes / size_bytes;
    const Stopwatch stopwatch(options_.threads == 1);
    std::size_t calls = 0;
    double seconds = 0;
    while (calls == 0 || (seconds < 0.01 && calls < num_matrices)) {
      linear(level,
             {.shape = shape,
              .num_rows = rows,
              .x = x_.data(),
              .weight = memory_.bytes + next_matrix_++ % num_matrices * size_bytes,
              .weight_size_bytes = size_bytes,
              .y = y_.data()},
             parallel_for_, scratch_);
      ++calls;
      seconds = stopwatch.seconds();
    }
    return seconds / static_cast<double>(calls);
  }

  Options options_;
  const Memory& memory_;
  SpinningThreads threads_;
  ParallelFor parallel_for_;
  Scratch scratch_;
  std::vector<float> x_;
  std::vector<float> y_;
  std::size_t next_matrix_ = 0;
};

std::vector<std::size_t> one_or(std::size_t given, std::vector<std::size_t> selection) {
  return given == 0 ? selection : std::vector<std::size_t>{given};
}

void run_all(const Options& options) {
  const Memory memory;
  LinearBench bench(options, memory);
  for (const WeightLayout layout : {WeightLayout::x16k2_bf16, WeightLayout::x16k1_f32}) {
    for (const std::size_t in_features : one_or(options.in_features, {2048, 5632})) {
      for (const std::size_t out_features : one_or(options.out_features, {2048, 5632, 32000})) {
        for (const std::size_t rows : one_or(options.rows, {1, 2, 4, 8, 16, 32, 64, 256, 512})) {
          if (in_features * out_features > 100'000'000) continue;  // no model of the size that these stand for
          bench.run({in_features, out_features, layout}, rows);
        }
      }
    }
  }
}

}  // namespace
}  // namespace precast::bench

int main(int argc, char** argv) {
  precast::bench::run_all(precast::bench::parse(argc, argv));
  return 0;
}
