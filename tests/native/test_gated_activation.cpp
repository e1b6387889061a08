#include "plugins/gated_activation/cpu/gated_activation.h"

#include <cmath>
#include <limits>
#include <vector>

#include "tests/native/check.h"
#include "tests/native/kernel_inputs.h"
#include "tests/native/parallel.h"

namespace precast {
namespace {

using test::levels_of_this_machine;
using test::random_values;
using test::same_bits;

std::vector<float> run(KernelLevel level, const std::vector<float>& gate_up, std::size_t num_tokens,
                       std::size_t intermediate_size, const ParallelFor& parallel_for) {
  std::vector<float> output(num_tokens * intermediate_size);
  gated_activation(level,
                   {.num_tokens = num_tokens,
                    .intermediate_size = intermediate_size,
                    .activation = Activation::silu,
                    .gate_up = gate_up.data(),
                    .output = output.data()},
                   parallel_for);
  return output;
}

TEST("gated activation: names") {
  CHECK(parse_activation("silu") == Activation::silu);
  CHECK(!parse_activation("gelu").has_value());
  CHECK(!parse_activation("").has_value());
}

TEST("gated activation: close to fp64, gate columns first, for any width") {
  for (const KernelLevel level : levels_of_this_machine()) {
    for (const std::size_t width : {1u, 15u, 16u, 17u, 100u, 1536u}) {
      const auto gate_up = random_values(2 * 2 * width, 1, 4.0f);
      const auto output = run(level, gate_up, 2, width, ParallelFor::serial());
      for (std::size_t i = 0; i < output.size(); ++i) {
        const double gate = static_cast<double>(gate_up[i / width * 2 * width + i % width]);
        const double up = static_cast<double>(gate_up[i / width * 2 * width + width + i % width]);
        const double exact = gate / (1.0 + std::exp(-gate)) * up;
        CHECK(std::fabs(static_cast<double>(output[i]) - exact) <= 1e-6 * std::fabs(exact));
      }
    }
  }
}

TEST("gated activation: extreme gates") {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  std::vector<float> gate_up{-infinity, -200.0f, -1e-30f, 0.0f, 200.0f, infinity};
  gate_up.insert(gate_up.end(), 6, 2.0f);
  for (const KernelLevel level : levels_of_this_machine()) {
    const auto output = run(level, gate_up, 1, 6, ParallelFor::serial());
    CHECK(std::isnan(output[0]));
    CHECK_EQ(output[1], 0.0f);
    CHECK_EQ(output[2], -1e-30f);
    CHECK_EQ(output[3], 0.0f);
    CHECK_EQ(output[4], 400.0f);
    CHECK_EQ(output[5], infinity);
  }
}

TEST("gated activation: a row's bits depend neither on the number of rows nor on threads") {
  constexpr std::size_t max_rows = 257;
  constexpr std::size_t width = 328;  // tasks of 16384 elements start within rows
  const auto gate_up = random_values(max_rows * 2 * width, 2, 4.0f);
  std::vector<std::size_t> row_counts{255, 256, 257};
  for (std::size_t rows = 1; rows <= 64; ++rows) row_counts.push_back(rows);
  for (const KernelLevel level : levels_of_this_machine()) {
    const auto all = run(level, gate_up, max_rows, width, ParallelFor::serial());
    for (std::size_t threads = 1; threads <= 3; ++threads) {
      test::ThreadsForTests pool(threads);
      for (const std::size_t num_rows : row_counts) {
        const auto some = run(level, gate_up, num_rows, width, pool.parallel_for());
        CHECK(same_bits(some.data(), all.data(), some.size()));
      }
    }
  }
}

}  // namespace
}  // namespace precast
