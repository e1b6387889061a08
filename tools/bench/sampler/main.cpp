// Times the sampler on one step of many rows.
//
//   cmake -S . -B build/bench -G Ninja -DPRECAST_BUILD_BENCH=ON
//   cmake --build build/bench --target precast_bench_sampler
//   build/bench/tools/bench/sampler/precast_bench_sampler
//       [--level portable|avx2|avx512] [--rows 32] [--vocab 150000] [--runs 9] [--spread 3] [--peak 0]
//
// Logits are normal with the given standard deviation. Alone that is the hardest case, for nearly every token can be drawn;
// with --peak 0.6, one token of each row has so much probability, as models mostly have it. Every run reads other logits,
// which lie in memory and in no cache. One thread, its own time; printed: median, least and greatest of the milliseconds for
// all rows. The first line reads the logits and does nothing else: the floor of everything below.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <optional>
#include <random>
#include <string_view>
#include <vector>

#include "runtime/native/src/sampling/sampler.h"
#include "tools/bench/arguments.h"
#include "tools/bench/stopwatch.h"

namespace precast::bench {
namespace {

struct Options {
  KernelLevel level = best_kernel_level();
  std::size_t rows = 32;
  std::size_t vocab_size = 150'000;
  std::size_t runs = 9;
  float spread = 3.0F;
  float peak = 0.0F;
};

Options parse(int argc, char** argv) {
  Options options;
  parse_arguments(argc, argv, [&options](std::string_view name, const char* value) {
    if (name == "--rows") return parse_number(value, options.rows);
    if (name == "--vocab") return parse_number(value, options.vocab_size);
    if (name == "--runs") return parse_number(value, options.runs);
    if (name == "--spread") options.spread = std::strtof(value, nullptr);
    else if (name == "--peak") options.peak = std::strtof(value, nullptr);
    else if (const auto level = parse_usable_level(value); name == "--level" && level) options.level = *level;
    else return false;
    return true;
  });
  return options;
}

class SamplerBench {
 public:
  explicit SamplerBench(const Options& options) : options_(options), sampler_(options.level) {
    std::mt19937 random(1);
    std::normal_distribution<float> normal(0.0F, options.spread);
    // Copies of one step, shifted: enough of them that none is in a cache when its turn comes again.
    const std::size_t step_size = options.rows * options.vocab_size;
    std::vector<float> step(step_size);
    for (float& logit : step) logit = normal(random);
    if (options.peak > 0.0F) {
      // The others hold about vocab_size * exp(spread^2 / 2).
      const float others = std::log(static_cast<float>(options.vocab_size)) + options.spread * options.spread / 2.0F;
      const float peak = others + std::log(options.peak / (1.0F - options.peak));
      for (std::size_t r = 0; r < options.rows; ++r) step[r * options.vocab_size + random() % options.vocab_size] = peak;
    }
    logits_.reserve(num_steps * step_size);
    for (std::size_t s = 0; s < num_steps; ++s) {
      std::rotate(step.begin(), step.begin() + static_cast<std::ptrdiff_t>(options.vocab_size), step.end());  // by a row
      logits_.insert(logits_.end(), step.begin(), step.end());
    }
    token_ids_.resize(1000);
    for (std::int32_t& id : token_ids_) id = static_cast<std::int32_t>(random() % options.vocab_size);
  }

  void run(const char* name, const std::function<void(SamplingParams&)>& change) {
    std::vector<SamplingParams> params(options_.rows);
    for (std::size_t r = 0; r < params.size(); ++r) {
      params[r].seed = r;
      change(params[r]);
    }
    time(name, [&](const float* step) {
      std::vector<SamplingRow> rows;
      for (std::size_t r = 0; r < options_.rows; ++r) {
        rows.push_back({.logits = {step + r * options_.vocab_size, options_.vocab_size},
                        .params = &params[r],
                        .token_ids = token_ids_,
                        .num_prompt_tokens = 500});
      }
      for (const SampledToken& token : sampler_.sample(rows)) sum_ += static_cast<double>(token.token_id);
    });
  }

  void run_floor() {
    time("read the logits", [&](const float* step) {
      constexpr std::size_t width = 64;
      float sums[width] = {};
      for (std::size_t i = 0; i + width <= options_.rows * options_.vocab_size; i += width) {
        for (std::size_t j = 0; j < width; ++j) sums[j] += step[i + j];
      }
      for (const float sum : sums) sum_ += static_cast<double>(sum);
    });
  }

  double sum() const { return sum_; }

 private:
  static constexpr std::size_t num_steps = 6;

  template <typename Work>
  void time(const char* name, const Work& work) {
    std::vector<double> times;
    for (std::size_t i = 0; i <= options_.runs; ++i) {
      const float* const step = logits_.data() + next_step_++ % num_steps * options_.rows * options_.vocab_size;
      const Stopwatch stopwatch(true);
      work(step);
      if (i > 0) times.push_back(stopwatch.seconds() * 1e3);  // the first warms up
    }
    std::sort(times.begin(), times.end());
    std::printf("%-44s %6.2f ms (%.2f - %.2f)\n", name, times[times.size() / 2], times.front(), times.back());
    std::fflush(stdout);
  }

  Options options_;
  Sampler sampler_;
  std::vector<float> logits_;
  std::vector<std::int32_t> token_ids_;
  std::size_t next_step_ = 0;
  double sum_ = 0.0;  // keeps the compiler from dropping the work
};

double run_all(const Options& options) {
  SamplerBench bench(options);
  bench.run_floor();
  bench.run("greedy", [](SamplingParams& p) { p.temperature = 0.0F; });
  bench.run("temperature 1", [](SamplingParams&) {});
  bench.run("top_k 50", [](SamplingParams& p) { p.top_k = 50; });
  bench.run("top_k 5000", [](SamplingParams& p) { p.top_k = 5000; });
  bench.run("top_p 0.9", [](SamplingParams& p) { p.top_p = 0.9F; });
  bench.run("top_p 0.5", [](SamplingParams& p) { p.top_p = 0.5F; });
  bench.run("temperature 0.7, top_k 50, top_p 0.9", [](SamplingParams& p) {
    p.temperature = 0.7F;
    p.top_k = 50;
    p.top_p = 0.9F;
  });
  bench.run("min_p 0.05", [](SamplingParams& p) { p.min_p = 0.05F; });
  bench.run("three penalties over 1000 tokens", [](SamplingParams& p) {
    p.repetition_penalty = 1.1F;
    p.presence_penalty = 0.5F;
    p.frequency_penalty = 0.5F;
  });
  bench.run("greedy, 5 logprobs", [](SamplingParams& p) {
    p.temperature = 0.0F;
    p.num_logprobs = 5;
  });
  bench.run("temperature 1, 5 logprobs", [](SamplingParams& p) { p.num_logprobs = 5; });
  bench.run("penalties, top_p 0.9, 5 logprobs", [](SamplingParams& p) {
    p.repetition_penalty = 1.1F;
    p.top_p = 0.9F;
    p.num_logprobs = 5;
  });
  return bench.sum();
}

}  // namespace
}  // namespace precast::bench

int main(int argc, char** argv) {
  const double sum = precast::bench::run_all(precast::bench::parse(argc, argv));
  return sum == sum ? 0 : 1;
}
