// plugins/embedding: rows of a packed matrix come back exactly, and an id outside it is found.
#include "plugins/embedding/cpu/embedding.h"

#include <cstdint>
#include <numeric>
#include <vector>

#include "plugins/cpu/bf16.h"
#include "tests/native/check.h"
#include "tests/native/packed_matrix.h"
#include "tests/native/parallel.h"

namespace precast {
namespace {

constexpr WeightLayout layouts[] = {WeightLayout::x16k1_f32, WeightLayout::x16k2_bf16};

struct World {
  EmbeddingShape shape;
  std::vector<float> values;
  test::PackedMatrix table;
  std::vector<std::int32_t> token_ids;
  std::vector<float> y;

  World(WeightLayout layout, std::size_t rows, std::size_t features, std::vector<std::int32_t> ids)
      : shape{rows, features, layout},
        values(rows * features),
        token_ids(std::move(ids)),
        y(token_ids.size() * features, -1.0f) {
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = 1.0f / static_cast<float>(i + 1);
    table = test::packed(layout, rows, features, values);
  }

  EmbeddingArgs args() {
    return {.shape = shape,
            .num_tokens = token_ids.size(),
            .token_ids = token_ids.data(),
            .table = table.data(),
            .table_size_bytes = table.size(),
            .y = y.data()};
  }

  float expected(std::size_t token, std::size_t feature) const {
    const float value = values[static_cast<std::size_t>(token_ids[token]) * shape.features + feature];
    return shape.layout == WeightLayout::x16k1_f32 ? value : to_float(round_to_bf16(value));
  }
};

TEST("embedding: every row of odd-sized tables comes back exactly, in any order and twice") {
  test::ThreadsForTests threads(3);
  for (const WeightLayout layout : layouts) {
    for (const std::size_t features : {1u, 2u, 7u, 64u, 20'001u}) {
      World world(layout, 35, features, {34, 0, 16, 15, 16, 33, 1});
      CHECK_EQ(find_error(world.args()), "");
      embedding(best_kernel_level(), world.args(), threads.parallel_for());
      for (std::size_t i = 0; i < world.y.size(); ++i) {
        CHECK_EQ(world.y[i], world.expected(i / features, i % features));
      }
    }
  }
}

TEST("embedding: an id outside the table is found before anything is read, the first one named") {
  World world(WeightLayout::x16k2_bf16, 35, 4, {0, 34, 35, 99});
  CHECK_EQ(find_error(world.args()), "Embedding: token_ids[2] is 35, outside the table of 35 rows");
  world.token_ids = {0, -1};
  CHECK_EQ(find_error([&] {
             EmbeddingArgs args = world.args();
             args.num_tokens = 2;
             return args;
           }()),
           "Embedding: token_ids[1] is -1, outside the table of 35 rows");
}

TEST("embedding: a slice of the vocabulary gives its rows, and zeros for every other id") {
  for (const WeightLayout layout : layouts) {
    World world(layout, 20, 5, {100, 119, 99, 120, 0, -1, 107});
    world.shape.row_start = 100;
    world.shape.is_slice = true;
    CHECK_EQ(find_error(world.args()), "");
    test::ThreadsForTests threads(3);
    embedding(best_kernel_level(), world.args(), threads.parallel_for());
    const std::vector<std::int32_t> token_ids = world.token_ids;
    const std::vector<float> y = world.y;
    for (std::size_t token = 0; token < token_ids.size(); ++token) {
      const std::int32_t row = token_ids[token] - 100;
      const bool is_inside = row >= 0 && row < 20;
      world.token_ids[token] = is_inside ? row : 0;
      for (std::size_t h = 0; h < 5; ++h) CHECK_EQ(y[token * 5 + h], is_inside ? world.expected(token, h) : 0.0f);
    }
  }
}

TEST("embedding: a table that starts behind 0 and is no slice has no other ids") {
  World world(WeightLayout::x16k1_f32, 20, 5, {100, 99});
  world.shape.row_start = 100;
  CHECK_EQ(find_error(world.args()), "Embedding: token_ids[1] is 99, outside the table of 20 rows");
}

TEST("embedding: a table of another size is an error that says both sizes") {
  World world(WeightLayout::x16k1_f32, 17, 4, {0});
  EmbeddingArgs args = world.args();
  args.table_size_bytes = 4;
  CHECK_EQ(find_error(args),
           "Embedding: a table of 17 rows and 4 features in layout x16k1.f32/1 has 512 bytes, not 4");
}

}  // namespace
}  // namespace precast
