#include "plugins/rms_norm/cpu/rms_norm.h"

#include <algorithm>
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

struct Rows {
  std::vector<float> y;
  std::vector<float> sum;
};

Rows run(KernelLevel level, const std::vector<float>& x, const std::vector<float>* residual,
         const std::vector<float>& weight, std::size_t num_tokens, const ParallelFor& parallel_for) {
  const std::size_t count = num_tokens * weight.size();
  Rows rows{std::vector<float>(count), std::vector<float>(residual == nullptr ? 0 : count)};
  rms_norm(level,
           {.num_tokens = num_tokens,
            .hidden_size = weight.size(),
            .epsilon = 1e-6f,
            .x = x.data(),
            .weight = weight.data(),
            .residual = residual == nullptr ? nullptr : residual->data(),
            .y = rows.y.data(),
            .sum = residual == nullptr ? nullptr : rows.sum.data()},
           parallel_for);
  return rows;
}

TEST("rms norm: close to fp64, with and without a residual, for any width") {
  for (const KernelLevel level : levels_of_this_machine()) {
    for (const std::size_t hidden : {1u, 2u, 15u, 16u, 17u, 63u, 64u, 65u, 100u, 576u, 2048u}) {
      const auto x = random_values(hidden, 1);
      const auto residual = random_values(hidden, 2);
      const auto weight = random_values(hidden, 3);
      for (const std::vector<float>* r : {static_cast<const std::vector<float>*>(nullptr), &residual}) {
        const Rows rows = run(level, x, r, weight, 1, ParallelFor::serial());
        double squares = 0.0;
        const auto input = [&](std::size_t i) { return r == nullptr ? x[i] : x[i] + residual[i]; };
        for (std::size_t i = 0; i < hidden; ++i) squares += std::pow(static_cast<double>(input(i)), 2.0);
        const double scale = 1.0 / std::sqrt(squares / static_cast<double>(hidden) + 1e-6);
        for (std::size_t i = 0; i < hidden; ++i) {
          const double exact = static_cast<double>(input(i)) * scale * static_cast<double>(weight[i]);
          CHECK(std::fabs(static_cast<double>(rows.y[i]) - exact) <= 1e-6 * std::fabs(exact));
          if (r != nullptr) CHECK_EQ(rows.sum[i], x[i] + residual[i]);
        }
      }
    }
  }
}

TEST("rms norm: a row's bits depend neither on the number of rows nor on threads") {
  constexpr std::size_t max_rows = 257;
  for (const std::size_t hidden : {72u, 576u}) {
    const auto x = random_values(max_rows * hidden, 4);
    const auto residual = random_values(max_rows * hidden, 5);
    const auto weight = random_values(hidden, 6);
    std::vector<std::size_t> row_counts{255, 256, 257};
    for (std::size_t rows = 1; rows <= 64; ++rows) row_counts.push_back(rows);
    for (const KernelLevel level : levels_of_this_machine()) {
      const Rows all = run(level, x, &residual, weight, max_rows, ParallelFor::serial());
      for (std::size_t threads = 1; threads <= 3; ++threads) {
        test::ThreadsForTests pool(threads);
        for (const std::size_t num_rows : row_counts) {
          const Rows some = run(level, x, &residual, weight, num_rows, pool.parallel_for());
          CHECK(same_bits(some.y.data(), all.y.data(), num_rows * hidden));
          CHECK(same_bits(some.sum.data(), all.sum.data(), num_rows * hidden));
        }
      }
    }
  }
}

TEST("rms norm: a row's bits do not depend on its neighbours, even if they are not numbers") {
  constexpr std::size_t hidden = 576;
  const auto weight = random_values(hidden, 7);
  auto x = random_values(3 * hidden, 8);
  for (const KernelLevel level : levels_of_this_machine()) {
    auto poisoned = x;
    std::fill_n(poisoned.begin(), hidden, std::numeric_limits<float>::quiet_NaN());
    std::fill_n(poisoned.begin() + 2 * hidden, hidden, std::numeric_limits<float>::infinity());
    const Rows clean = run(level, x, nullptr, weight, 3, ParallelFor::serial());
    const Rows beside = run(level, poisoned, nullptr, weight, 3, ParallelFor::serial());
    CHECK(same_bits(clean.y.data() + hidden, beside.y.data() + hidden, hidden));
    CHECK(std::isnan(beside.y[0]));
  }
}

TEST("rms norm: no rows, or empty ones, are no work") {
  for (const KernelLevel level : levels_of_this_machine()) {
    CHECK(run(level, {}, nullptr, random_values(64, 9), 0, ParallelFor::serial()).y.empty());
    CHECK(run(level, {}, nullptr, {}, 3, ParallelFor::serial()).y.empty());
  }
}

}  // namespace
}  // namespace precast
