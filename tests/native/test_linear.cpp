// plugins/linear: the bits of a row, whatever it is computed beside, and the formula of the schema.
#include "plugins/linear/cpu/linear.h"

#include <algorithm>
#include <bit>
#include <cfenv>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "plugins/cpu/bf16.h"
#include "tests/native/check.h"
#include "tests/native/kernel_inputs.h"
#include "tests/native/packed_matrix.h"
#include "tests/native/parallel.h"

namespace precast {
namespace {

using test::levels_of_this_machine;
using test::random_values;
using test::same_bits;

constexpr WeightLayout layouts[] = {WeightLayout::x16k1_f32, WeightLayout::x16k2_bf16};

// A Linear and rows to put through it.
struct World {
  LinearShape shape;
  std::size_t num_rows;
  std::vector<float> x;
  std::vector<float> w;
  std::vector<float> bias;
  test::PackedMatrix weight;

  World(WeightLayout layout, std::size_t in_features, std::size_t out_features, std::size_t rows)
      : shape{in_features, out_features, layout},
        num_rows(rows),
        x(random_values(rows * in_features, 1)),
        w(random_values(out_features * in_features, 2)),
        bias(random_values(out_features, 3)),
        weight(test::packed(layout, out_features, in_features, w)) {}

  LinearArgs args(std::size_t first_row, std::size_t rows, float* y) const {
    return {.shape = shape,
            .num_rows = rows,
            .x = x.data() + first_row * shape.in_features,
            .weight = weight.data(),
            .weight_size_bytes = weight.size(),
            .bias = bias.data(),
            .y = y};
  }

  std::vector<float> run(KernelLevel level, std::size_t first_row, std::size_t rows,
                         const ParallelFor& parallel_for = ParallelFor::serial()) const {
    // A vector of exactly this size: address sanitizer sees a write behind it.
    std::vector<float> y(rows * shape.out_features, std::numeric_limits<float>::quiet_NaN());
    Scratch scratch;
    linear(level, args(first_row, rows, y.data()), parallel_for, scratch);
    return y;
  }

  // Every row computed alone.
  std::vector<float> rows_alone(KernelLevel level) const {
    std::vector<float> y;
    for (std::size_t row = 0; row < num_rows; ++row) {
      const std::vector<float> alone = run(level, row, 1);
      y.insert(y.end(), alone.begin(), alone.end());
    }
    return y;
  }

  float as_stored(float value) const {
    return shape.layout == WeightLayout::x16k1_f32 ? value : to_float(round_to_bf16(value));
  }

  // One output as the schema writes it.
  float formula(KernelLevel level, std::size_t row, std::size_t n) const {
    const bool pairs = shape.layout == WeightLayout::x16k2_bf16;
    float sum = bias[n];
    for (std::size_t step = 0; step < shape.in_features + shape.in_features % 2; ++step) {
      const std::size_t k = pairs ? step ^ 1 : step;  // 1 0 3 2 5 4 ...
      if (k >= shape.in_features) continue;
      const float x_k = as_stored(x[row * shape.in_features + k]);
      const float w_k = as_stored(w[n * shape.in_features + k]);
      sum = level == KernelLevel::portable ? sum + x_k * w_k : std::fma(x_k, w_k, sum);
    }
    return sum;
  }
};

std::string describe(const World& world, KernelLevel level, std::size_t rows) {
  return std::string(id(world.shape.layout)) + " " + std::string(name(level)) + " K=" +
         std::to_string(world.shape.in_features) + " N=" + std::to_string(world.shape.out_features) +
         " rows=" + std::to_string(rows);
}

void check_rows_in_batches(const World& world, const std::vector<std::size_t>& batches) {
  test::ThreadsForTests two(2);
  test::ThreadsForTests three(3);
  test::BackwardsForTests backwards(5);
  for (const KernelLevel level : levels_of_this_machine()) {
    const std::vector<float> alone = world.rows_alone(level);
    for (const std::size_t rows : batches) {
      const std::vector<float> expected(alone.begin(),
                                        alone.begin() + static_cast<std::ptrdiff_t>(rows * world.shape.out_features));
      for (const ParallelFor& parallel_for :
           {ParallelFor::serial(), two.parallel_for(), three.parallel_for(), backwards.parallel_for()}) {
        if (same_bits(world.run(level, 0, rows, parallel_for), expected)) continue;
        test::fail(__FILE__, __LINE__, describe(world, level, rows) + ": a row's bits depend on its batch");
      }
    }
  }
}

TEST("linear: a row's bits are the same alone and in every batch of 1 to 64 and 255 to 257 rows") {
  std::vector<std::size_t> batches = {255, 256, 257};
  for (std::size_t rows = 1; rows <= 64; ++rows) batches.push_back(rows);
  for (const WeightLayout layout : layouts) {
    check_rows_in_batches(World(layout, 67, 83, 257), batches);
  }
}

TEST("linear: so they are for odd sizes, and where few outputs and many rows are shared by threads") {
  for (const WeightLayout layout : layouts) {
    for (const std::size_t out_features : {1u, 15u, 16u, 17u, 33u, 100u}) {
      for (const std::size_t in_features : {1u, 2u, 31u, 129u}) {
        check_rows_in_batches(World(layout, in_features, out_features, 40), {1, 2, 5, 9, 14, 15, 23, 40});
      }
    }
    check_rows_in_batches(World(layout, 1500, 5, 100), {3, 100});
  }
}

TEST("linear: so they are where the inputs are worked off in several blocks") {
  for (const WeightLayout layout : layouts) {
    check_rows_in_batches(World(layout, 9001, 50, 17), {2, 15, 17});
  }
}

TEST("linear: every level computes the formula of the schema, bit for bit") {
  for (const WeightLayout layout : layouts) {
    for (const std::size_t in_features : {1u, 2u, 63u, 64u, 257u}) {
      const World world(layout, in_features, 35, 3);
      for (const KernelLevel level : levels_of_this_machine()) {
        const std::vector<float> y = world.run(level, 0, world.num_rows);
        for (std::size_t i = 0; i < y.size(); ++i) {
          const float expected = world.formula(level, i / world.shape.out_features, i % world.shape.out_features);
          if (y[i] == expected) continue;
          test::fail(__FILE__, __LINE__, describe(world, level, 3) + ": output " + std::to_string(i) + " is " +
                                             test::show(y[i]) + ", the formula gives " + test::show(expected));
        }
      }
    }
  }
}

TEST("linear: the error against fp64 is that of fp32 sums") {
  for (const WeightLayout layout : layouts) {
    const World world(layout, 4096, 48, 20);
    for (const KernelLevel level : levels_of_this_machine()) {
      const std::vector<float> y = world.run(level, 0, world.num_rows);
      double largest = 0.0;
      double largest_error = 0.0;
      for (std::size_t i = 0; i < y.size(); ++i) {
        const std::size_t row = i / world.shape.out_features;
        const std::size_t n = i % world.shape.out_features;
        double exact = world.bias[n];
        for (std::size_t k = 0; k < 4096; ++k) {
          const double x_k = world.as_stored(world.x[row * 4096 + k]);
          exact += x_k * static_cast<double>(world.as_stored(world.w[n * 4096 + k]));
        }
        largest = std::max(largest, std::abs(exact));
        largest_error = std::max(largest_error, std::abs(exact - static_cast<double>(y[i])));
      }
      // 4096 roundings of 2^-24 each that add up as a random walk, about 4e-6 of the sum they happen to.
      CHECK(largest_error / largest < 5e-6);
    }
  }
}

TEST("linear: without a bias sums start at zero") {
  for (const WeightLayout layout : layouts) {
    World world(layout, 20, 18, 3);
    world.bias.assign(18, 0.0f);
    for (const KernelLevel level : levels_of_this_machine()) {
      std::vector<float> y(3 * 18);
      LinearArgs args = world.args(0, 3, y.data());
      args.bias = nullptr;
      Scratch scratch;
      linear(level, args, ParallelFor::serial(), scratch);
      CHECK(same_bits(y, world.run(level, 0, 3)));
    }
  }
}

TEST("linear: a NaN or an infinity stays in its row") {
  for (const WeightLayout layout : layouts) {
    World world(layout, 33, 40, 12);
    for (const KernelLevel level : levels_of_this_machine()) {
      const std::vector<float> clean = world.run(level, 0, 12);
      World sick = world;
      sick.x[5 * 33 + 32] = std::numeric_limits<float>::quiet_NaN();
      sick.x[6 * 33] = std::numeric_limits<float>::infinity();
      const std::vector<float> y = sick.run(level, 0, 12);
      for (std::size_t i = 0; i < y.size(); ++i) {
        const std::size_t row = i / 40;
        if (row == 5) {
          CHECK(std::isnan(y[i]));
        } else if (row == 6) {
          CHECK(std::isinf(y[i]));
        } else {
          CHECK_EQ(std::bit_cast<std::uint32_t>(y[i]), std::bit_cast<std::uint32_t>(clean[i]));
        }
      }
    }
  }
}

TEST("linear: bf16 weights round their inputs to bf16, ties to even, at every level and row count") {
  World world(WeightLayout::x16k2_bf16, 1, 1, 16);
  world.bias = {0.0f};
  world.weight = test::packed(world.shape.layout, 1, 1, {1.0f});
  world.x.assign(16, std::bit_cast<float>(0x3F808000u));  // halfway between 0x3F80 and 0x3F81
  world.x[1] = std::bit_cast<float>(0x3F818000u);         // halfway between 0x3F81 and 0x3F82
  for (const KernelLevel level : levels_of_this_machine()) {
    for (const std::size_t rows : {2u, 16u}) {
      const std::vector<float> y = world.run(level, 0, rows);
      CHECK_EQ(y[0], std::bit_cast<float>(0x3F800000u));
      CHECK_EQ(y[1], std::bit_cast<float>(0x3F820000u));
    }
  }
}

TEST("linear: the host program's rounding mode changes nothing") {
  for (const WeightLayout layout : layouts) {
    const World world(layout, 50, 20, 3);
    for (const KernelLevel level : levels_of_this_machine()) {
      const std::vector<float> expected = world.run(level, 0, 3);
      std::fesetround(FE_UPWARD);
      const std::vector<float> y = world.run(level, 0, 3);
      std::fesetround(FE_TONEAREST);
      CHECK(same_bits(y, expected));
    }
  }
}

TEST("linear: of subnormal numbers, avx512 takes those of a bf16 layout for zero, and only those") {
  const float subnormal = 0x1p-130f;
  for (const WeightLayout layout : layouts) {
    World world(layout, 1, 1, 1);
    world.bias = {0.0f};
    world.x = {subnormal};
    world.weight = test::packed(layout, 1, 1, {0x1p10f});
    for (const KernelLevel level : levels_of_this_machine()) {
      const bool flushed = level == KernelLevel::avx512 && layout == WeightLayout::x16k2_bf16;
      CHECK_EQ(world.run(level, 0, 1)[0], flushed ? 0.0f : 0x1p-120f);
    }
  }
}

TEST("linear: a weight need not start at a cache line") {
  for (const WeightLayout layout : layouts) {
    World world(layout, 21, 34, 5);
    for (const KernelLevel level : levels_of_this_machine()) {
      const std::vector<float> expected = world.run(level, 0, 5);
      World shifted = world;
      shifted.weight = test::packed(layout, 34, 21, world.w, 4);
      CHECK(same_bits(shifted.run(level, 0, 5), expected));
    }
  }
}

TEST("linear: no rows, no work; scratch memory is not asked for twice") {
  const World world(WeightLayout::x16k2_bf16, 64, 64, 9);
  for (const KernelLevel level : levels_of_this_machine()) {
    Scratch scratch;
    linear(level, world.args(0, 0, nullptr), ParallelFor::serial(), scratch);
    CHECK_EQ(scratch.capacity_bytes(), 0u);
    std::vector<float> y(9 * 64);
    linear(level, world.args(0, 9, y.data()), ParallelFor::serial(), scratch);
    const std::size_t settled = scratch.capacity_bytes();
    const std::size_t bytes_per_input = level == KernelLevel::avx2 ? 4 : 2;  // it keeps rounded inputs as fp32
    CHECK_EQ(settled, 9u * 64u * bytes_per_input);
    linear(level, world.args(0, 4, y.data()), ParallelFor::serial(), scratch);
    CHECK_EQ(scratch.capacity_bytes(), settled);
  }
}

TEST("linear: a weight of another size is an error that says both sizes") {
  const World world(WeightLayout::x16k2_bf16, 33, 17, 1);
  LinearArgs args = world.args(0, 1, nullptr);
  CHECK_EQ(find_error(args), "");
  --args.weight_size_bytes;
  CHECK_EQ(find_error(args),
           "Linear: a weight of out_features 17 and in_features 33 in layout x16k2.bf16/1 has 2176 bytes, not 2175");
  args.shape.in_features = 0;
  CHECK_EQ(find_error(args),
           "Linear: a weight of out_features 17 and in_features 0 in layout x16k2.bf16/1 is no matrix");
}

TEST("weight layout: ids, sizes, and no overflow") {
  for (const WeightLayout layout : layouts) CHECK(parse_weight_layout(id(layout)) == layout);
  CHECK(!parse_weight_layout("x16k1.f32/2").has_value());
  CHECK_EQ(packed_size_bytes(WeightLayout::x16k1_f32, 17, 3).value(), 2u * 3u * 64u);
  CHECK_EQ(packed_size_bytes(WeightLayout::x16k2_bf16, 16, 3).value(), 2u * 64u);
  CHECK(!packed_size_bytes(WeightLayout::x16k2_bf16, 0, 3).has_value());
  CHECK(!packed_size_bytes(WeightLayout::x16k2_bf16, std::size_t{1} << 40, std::size_t{1} << 40).has_value());
}

}  // namespace
}  // namespace precast
