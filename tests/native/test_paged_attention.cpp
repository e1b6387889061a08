// PagedAttention: what it computes, and what it refuses. test_paged_attention_invariance.cpp has the numerics contract.
#include "plugins/paged_attention/cpu/paged_attention.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "plugins/cpu/bf16.h"
#include "plugins/paged_attention/cpu/attention_plan.h"
#include "plugins/rms_norm/cpu/rms_norm.h"
#include "tests/native/attention_world.h"
#include "tests/native/check.h"

namespace precast {
namespace {

using test::AttentionConfig;
using test::AttentionWorld;
using test::attention_shape;
using test::level_and_layout_configs;
using test::random_tokens;

// One head of one token, rotated, in fp64.
std::vector<double> rotated(const float* x, std::size_t position, const PagedAttentionShape& shape,
                            std::size_t num_rope_rows) {
  const auto inv_freq = test::inverse_frequencies(shape.rotary_dim, num_rope_rows);
  const std::size_t half = shape.rotary_dim / 2;
  const std::size_t row = position <= shape.rope_start ? 0 : std::min(position - shape.rope_start, num_rope_rows - 1);
  std::vector<double> y(x, x + shape.head_dim);
  for (std::size_t i = 0; i < half; ++i) {
    const auto angle = static_cast<double>(static_cast<float>(position) * inv_freq[row * half + i]);
    const double c = std::cos(angle) * static_cast<double>(shape.rope_scaling);
    const double s = std::sin(angle) * static_cast<double>(shape.rope_scaling);
    y[i] = static_cast<double>(x[i]) * c - static_cast<double>(x[i + half]) * s;
    y[i + half] = static_cast<double>(x[i + half]) * c + static_cast<double>(x[i]) * s;
  }
  return y;
}

// Plain causal attention, perhaps in a window, of a whole sequence in fp64, without a pool, splits or rounding.
std::vector<double> dense_attention(const std::vector<float>& tokens, const AttentionConfig& config) {
  const PagedAttentionShape& shape = config.shape;
  const std::size_t features = shape.qkv_features();
  const std::size_t head_dim = shape.head_dim;
  const std::size_t num_tokens = tokens.size() / features;
  std::vector<double> output(num_tokens * shape.num_heads * head_dim);
  for (std::size_t h = 0; h < shape.num_heads; ++h) {
    const std::size_t k_column = (shape.num_heads + h / shape.queries_per_kv()) * head_dim;
    const std::size_t v_column = k_column + shape.num_kv_heads * head_dim;
    std::vector<std::vector<double>> keys;
    for (std::size_t t = 0; t < num_tokens; ++t) {
      const float* const row = &tokens[t * features];
      keys.push_back(rotated(row + k_column, t, shape, config.num_rope_rows));
      const auto q = rotated(row + h * head_dim, t, shape, config.num_rope_rows);
      double* const out = &output[(t * shape.num_heads + h) * head_dim];
      double sum = 0.0;
      for (std::size_t j = shape.window > 0 && t >= shape.window ? t - shape.window + 1 : 0; j <= t; ++j) {
        const double score = std::inner_product(q.begin(), q.end(), keys[j].begin(), 0.0);
        const double e = std::exp(score * static_cast<double>(shape.scale));
        sum += e;
        for (std::size_t d = 0; d < head_dim; ++d) {
          out[d] += e * static_cast<double>(tokens[j * features + v_column + d]);
        }
      }
      for (std::size_t d = 0; d < head_dim; ++d) out[d] /= sum;
    }
  }
  return output;
}

// max |a - b| / max |b|
double relative_error(const std::vector<float>& a, const std::vector<double>& b) {
  CHECK_EQ(a.size(), b.size());
  double error = 0.0;
  double size = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    CHECK(std::isfinite(a[i]));
    error = std::max(error, std::fabs(static_cast<double>(a[i]) - b[i]));
    size = std::max(size, std::fabs(b[i]));
  }
  return error / size;
}

void check_close_to_dense(const AttentionConfig& config, std::size_t num_tokens) {
  const auto tokens = random_tokens(config.shape, num_tokens, 1);
  AttentionWorld world(config, {tokens});
  world.step({{0, 0, num_tokens}});
  const double tolerance = config.shape.kv_layout == KvLayout::f32 ? 2e-6 : 2e-2;
  CHECK(relative_error(world.output(0), dense_attention(tokens, config)) < tolerance);
}

TEST("paged attention: close to dense attention in fp64 for any heads, groups and head sizes") {
  for (const std::size_t head_dim : {2u, 8u, 16u, 34u, 64u, 80u, 128u}) {
    for (const std::size_t group : {1u, 2u, 3u, 4u, 8u}) {
      for (const AttentionConfig& config : level_and_layout_configs(2 * group, 2, head_dim)) {
        check_close_to_dense(config, 35);
      }
    }
  }
}

TEST("paged attention: one KV head for more query heads than a block of rows holds") {
  for (const AttentionConfig& config : level_and_layout_configs(37, 1, 8)) check_close_to_dense(config, 20);
}

TEST("paged attention: close to dense attention over several splits") {
  for (const AttentionConfig& config : level_and_layout_configs(2, 1, 16, 32)) check_close_to_dense(config, 1030);
}

TEST("paged attention: partial, scaled and no rotation, and a custom scale") {
  for (AttentionConfig config : level_and_layout_configs(2, 2, 24)) {
    config.shape.scale = 0.7f;
    for (const std::size_t rotary_dim : {0u, 2u, 8u, 24u}) {
      config.shape.rotary_dim = rotary_dim;
      config.shape.rope_scaling = rotary_dim == 8 ? 1.2f : 1.0f;
      check_close_to_dense(config, 40);
    }
  }
}

TEST("paged attention: a window is the row's own position and those before it, over any number of splits") {
  for (const std::size_t window : {1u, 2u, 3u, 15u, 16u, 17u, 40u}) {
    for (const std::size_t group : {1u, 4u}) {
      for (AttentionConfig config : level_and_layout_configs(2 * group, 2, 34)) {
        config.shape.window = window;
        check_close_to_dense(config, 70);
      }
    }
  }
  for (const std::size_t window : {7u, 500u, 512u, 513u, 530u}) {
    for (AttentionConfig config : level_and_layout_configs(2, 1, 16, 32)) {
      config.shape.window = window;
      check_close_to_dense(config, 1100);
    }
  }
}

TEST("paged attention: a window of one token gives the row's own rounded value") {
  for (AttentionConfig config : level_and_layout_configs(4, 2, 16)) {
    config.shape.window = 1;
    const auto tokens = random_tokens(config.shape, 37, 2);
    AttentionWorld world(config, {tokens});
    world.step({{0, 0, 37}});
    for (std::size_t i = 0; i < world.output(0).size(); ++i) {
      const float value = tokens[i / 64 * 128 + 96 + i % 64 / 32 * 16 + i % 16];
      const float stored = config.shape.kv_layout == KvLayout::f32 ? value : to_float(round_to_bf16(value));
      CHECK_EQ(world.output(0)[i], stored);
    }
  }
}

TEST("paged attention: a row in a window costs as much as its window, wherever it is") {
  const auto plan_of = [](std::size_t window, std::int32_t context, Scratch& scratch) {
    PagedAttentionArgs args;
    args.shape = attention_shape(8, 2, 64, KvLayout::bf16);
    args.shape.window = window;
    args.num_tokens = args.num_sequences = 1;
    const std::vector<std::int32_t> starts{0, 1};
    args.query_starts = starts.data();
    args.context_lengths = &context;
    return plan_attention(args, 64, scratch);
  };
  Scratch scratch;
  const std::size_t short_cost = plan_of(0, 600, scratch).total_cost;
  for (const std::int32_t context : {600, 1000, 100'000, 2'000'000'000}) {
    const AttentionPlan plan = plan_of(600, context, scratch);
    CHECK_EQ(plan.total_cost, short_cost);
    CHECK_EQ(plan.num_blocks, std::size_t{2});  // one for each KV head
    for (std::size_t b = 0; b < 2; ++b) CHECK(plan.blocks[b].num_splits <= 3);
  }
  CHECK_EQ(plan_of(0, 100'000, scratch).blocks[0].num_splits, std::size_t{196});
}

TEST("paged attention: positions behind rope_start have frequencies of their own, the last for all that follow") {
  for (AttentionConfig config : level_and_layout_configs(2, 2, 24)) {
    config.num_rope_rows = 9;
    for (const std::size_t rope_start : {0u, 10u, 39u}) {
      config.shape.rope_start = rope_start;
      check_close_to_dense(config, 40);
    }
    config.shape.rotary_dim = 8;
    check_close_to_dense(config, 40);
  }
}

// The tokens with every query and key head replaced by its RmsNorm, as the op of that name gives it.
std::vector<float> normed(std::vector<float> tokens, const AttentionConfig& config) {
  const PagedAttentionShape& shape = config.shape;
  for (std::size_t first = 0; first < tokens.size(); first += shape.qkv_features()) {
    for (std::size_t head = 0; head < shape.num_heads + shape.num_kv_heads; ++head) {
      float* const x = &tokens[first + head * shape.head_dim];
      const std::vector<float> input(x, x + shape.head_dim);
      rms_norm(config.level,
               {.num_tokens = 1,
                .hidden_size = shape.head_dim,
                .epsilon = shape.qk_norm_epsilon,
                .x = input.data(),
                .weight = (head < shape.num_heads ? config.q_norm : config.k_norm).data(),
                .y = x},
               ParallelFor::serial());
    }
  }
  return tokens;
}

TEST("paged attention: queries and keys are normed head by head before they are rotated, bit for bit as RmsNorm does") {
  for (const std::size_t head_dim : {8u, 34u, 80u, 128u}) {
    for (AttentionConfig config : level_and_layout_configs(6, 2, head_dim)) {
      config.shape.qk_norm_epsilon = 0.01f;
      config.q_norm = test::random_values(head_dim, 5);
      config.k_norm = test::random_values(head_dim, 6);
      const auto tokens = random_tokens(config.shape, 40, 7);
      AttentionWorld world(config, {tokens});
      world.feed(0, {1, 2, 19, 40});
      AttentionConfig without = config;
      without.q_norm.clear();
      without.k_norm.clear();
      AttentionWorld expected(without, {normed(tokens, config)});
      expected.step({{0, 0, 40}});
      CHECK(test::same_bits(world.output(0), expected.output(0)));
    }
  }
}

TEST("paged attention: one token attends to itself only, so its output is its rounded value") {
  for (const AttentionConfig& config : level_and_layout_configs(4, 2, 16)) {
    const auto tokens = random_tokens(config.shape, 1, 2);
    AttentionWorld world(config, {tokens});
    world.step({{0, 0, 1}});
    for (std::size_t i = 0; i < world.output(0).size(); ++i) {
      const float value = tokens[6 * 16 + i / 32 * 16 + i % 16];
      const float stored = config.shape.kv_layout == KvLayout::f32 ? value : to_float(round_to_bf16(value));
      CHECK_EQ(world.output(0)[i], stored);
    }
  }
}

TEST("paged attention: the pool's bytes are as the schema draws them, and the rest of a started tile is zero") {
  for (AttentionConfig config : level_and_layout_configs(2, 2, 4, 32)) {
    config.shape.rotary_dim = 0;
    const auto tokens = random_tokens(config.shape, 19, 3);
    AttentionWorld world(config, {tokens});
    world.feed(0, {3, 19});
    const bool is_bf16 = config.shape.kv_layout == KvLayout::bf16;
    const std::byte* const block = world.block(world.table(0)[0]);
    const auto stored = [&](std::size_t index) {
      if (is_bf16) return to_float(reinterpret_cast<const Bf16*>(block)[index]);
      return reinterpret_cast<const float*>(block)[index];
    };
    for (std::size_t head = 0; head < 2; ++head) {
      for (std::size_t position = 0; position < 32; ++position) {
        for (std::size_t d = 0; d < 4; ++d) {
          const std::size_t tile = (head * 2 + position / 16) * 2 * 64;  // K and V tiles have 16 x 4 elements
          const std::size_t lane = position % 16;
          const std::size_t k = tile + (is_bf16 ? d / 2 * 32 + lane * 2 + d % 2 : d * 16 + lane);
          const std::size_t v = tile + 64 + (is_bf16 ? lane / 2 * 8 + d * 2 + lane % 2 : lane * 4 + d);
          const auto expected = [&](std::size_t column) {
            if (position >= 19) return 0.0f;
            const float value = tokens[position * 24 + column * 4 + d];
            return is_bf16 ? to_float(round_to_bf16(value)) : value;
          };
          CHECK_EQ(stored(k), expected(2 + head));
          CHECK_EQ(stored(v), expected(4 + head));
        }
      }
    }
  }
}

TEST("paged attention: sequences may share blocks that one of them writes in the same step") {
  for (const AttentionConfig& config : level_and_layout_configs(4, 2, 16)) {
    const auto tokens = random_tokens(config.shape, 40, 4);
    AttentionWorld alone(config, {tokens});
    alone.step({{0, 0, 40}});
    AttentionWorld sharing(config, {tokens, tokens});
    sharing.table(1)[0] = sharing.table(0)[0];
    sharing.table(1)[1] = sharing.table(0)[1];
    sharing.step({{1, 32, 40}, {0, 0, 40}});
    const std::size_t own = 32 * alone.out_features();
    CHECK(test::same_bits(sharing.output(1).data() + own, alone.output(0).data() + own, 8 * alone.out_features()));
  }
}

TEST("paged attention: scores far apart neither overflow nor vanish") {
  for (AttentionConfig config : level_and_layout_configs(1, 1, 16)) {
    config.shape.rotary_dim = 0;
    config.shape.scale = 1.0f;
    std::vector<float> tokens(600 * 48, 0.0f);
    for (std::size_t t = 0; t < 600; ++t) {
      tokens[t * 48] = 1.0f;                             // q
      tokens[t * 48 + 16] = t == 0 ? 1000.0f : -1000.0f;  // k: all weight on the first token, in another split
      tokens[t * 48 + 32] = t == 0 ? 3.0f : 5.0f;         // v
    }
    AttentionWorld world(config, {tokens});
    world.step({{0, 0, 600}});
    for (std::size_t t = 0; t < 600; ++t) CHECK_EQ(world.output(0)[t * 16], 3.0f);
  }
}

TEST("paged attention: a shape that is none is refused with its numbers") {
  const auto error_of = [](auto change) {
    PagedAttentionShape shape = attention_shape(8, 2, 64, KvLayout::bf16);
    change(shape);
    return find_error(shape);
  };
  CHECK_EQ(error_of([](PagedAttentionShape&) {}), "");
  const auto has = [](const std::string& text, const char* part) { return text.find(part) != std::string::npos; };
  CHECK(has(error_of([](auto& s) { s.num_kv_heads = 3; }), "8 query heads cannot share 3 KV heads"));
  CHECK(has(error_of([](auto& s) { s.num_kv_heads = 0; }), "0 KV heads"));
  CHECK(has(error_of([](auto& s) { s.head_dim = 63; }), "head_dim is 63"));
  CHECK(has(error_of([](auto& s) { s.rotary_dim = 66; }), "rotary_dim is 66"));
  CHECK(has(error_of([](auto& s) { s.rotary_dim = 3; }), "rotary_dim is 3"));
  CHECK(has(error_of([](auto& s) { s.tokens_per_block = 24; }), "tokens_per_block is 24"));
  CHECK(has(error_of([](auto& s) { s.qk_norm_epsilon = -1.0f; }), "qk_norm_epsilon"));
  CHECK(has(error_of([](auto& s) { s.scale = std::numeric_limits<float>::infinity(); }), "finite"));
}

TEST("paged attention: index arrays that lead out of bounds are refused with their numbers") {
  struct Arrays {
    std::vector<std::int32_t> starts{0, 2, 3};
    std::vector<std::int32_t> contexts{17, 1};
    std::vector<std::int32_t> tables{4, 0, 2, -1};
    std::size_t num_tokens = 3;
    std::size_t width = 2;
    std::size_t window = 0;
    const float* k_norm = nullptr;
    std::size_t num_rope_rows = 1;
  };
  const auto error_of = [](auto change) {
    Arrays arrays;
    change(arrays);
    PagedAttentionArgs args;
    args.shape = attention_shape(2, 2, 8, KvLayout::f32);
    args.shape.window = arrays.window;
    args.k_norm = arrays.k_norm;
    args.num_rope_rows = arrays.num_rope_rows;
    args.num_tokens = arrays.num_tokens;
    args.num_sequences = arrays.contexts.size();
    args.block_table_width = arrays.width;
    args.num_blocks = 5;
    args.query_starts = arrays.starts.data();
    args.context_lengths = arrays.contexts.data();
    args.block_tables = arrays.tables.data();
    return find_error(args);
  };
  const auto has = [](const std::string& text, const char* part) { return text.find(part) != std::string::npos; };
  CHECK_EQ(error_of([](Arrays&) {}), "");
  CHECK(has(error_of([](auto& a) { a.starts[0] = 1; }), "query_starts[0] is 1"));
  CHECK(has(error_of([](auto& a) { a.starts[1] = 0; }), "query_starts[1] is 0"));
  CHECK(has(error_of([](auto& a) { a.starts[1] = 3; }), "query_starts[2] is 3"));
  CHECK(has(error_of([](auto& a) { a.num_tokens = 4; }), "ends with 3, but qkv has 4 rows"));
  CHECK(has(error_of([](auto& a) { a.contexts[0] = 1; }), "context_lengths[0] is 1"));
  CHECK(has(error_of([](auto& a) { a.contexts[1] = -5; }), "context_lengths[1] is -5"));
  CHECK(has(error_of([](auto& a) { a.contexts[0] = 33; }), "33 tokens of context and needs 3 blocks"));
  CHECK(has(error_of([](auto& a) { a.tables[1] = -1; }), "block_tables[0][1] is -1"));
  CHECK(has(error_of([](auto& a) { a.tables[2] = 5; }), "block_tables[1][0] is 5; the pool has 5 blocks"));
  CHECK(has(error_of([](auto& a) { a.contexts.clear(); }), "at least one sequence"));

  CHECK(has(error_of([](auto& a) { a.num_rope_rows = 0; }), "inv_freq has no rows"));
  constexpr float weight = 1.0f;
  CHECK(has(error_of([&](auto& a) { a.k_norm = &weight; }), "q_norm and k_norm must both be given, or neither"));

  // With 17 tokens of context the first of two rows is at position 15: the first block is needed whatever the window.
  CHECK(has(error_of([](auto& a) { a.tables[0] = -1, a.window = 1; }), "block_tables[0][0] is -1"));
  // With 18 it is at 16, and sees the first block unless its window is one token.
  const auto error_at_18 = [&](std::size_t window) {
    return error_of([&](auto& a) { a.contexts[0] = 18, a.tables[0] = -1, a.window = window; });
  };
  CHECK_EQ(error_at_18(1), "");
  CHECK(has(error_at_18(2), "block_tables[0][0] is -1"));
  CHECK(has(error_at_18(0), "block_tables[0][0] is -1"));
}

TEST("paged attention: layout ids") {
  CHECK(parse_kv_layout("kv16.f32/1") == KvLayout::f32);
  CHECK(parse_kv_layout("kv16.bf16/1") == KvLayout::bf16);
  CHECK(!parse_kv_layout("kv16.bf16/2").has_value());
}

}  // namespace
}  // namespace precast
