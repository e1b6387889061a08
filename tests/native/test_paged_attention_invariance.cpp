// PagedAttention under the numerics contract: a row's bits are a function of its own request up to its position, and of
// nothing else. Every comparison here is of bits.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "tests/native/attention_world.h"
#include "tests/native/check.h"
#include "tests/native/parallel.h"

namespace precast {
namespace {

using test::AttentionConfig;
using test::AttentionWorld;
using test::Chunk;
using test::level_and_layout_configs;
using test::random_tokens;
using test::same_bits;

constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();

std::vector<float> whole(const AttentionConfig& config, const std::vector<float>& tokens) {
  AttentionWorld world(config, {tokens});
  world.step({{0, 0, world.length(0)}});
  return world.output(0);
}

std::vector<std::size_t> chunks_of(std::size_t size, std::size_t length) {
  std::vector<std::size_t> ends;
  for (std::size_t end = size; end < length; end += size) ends.push_back(end);
  ends.push_back(length);
  return ends;
}

TEST("paged attention invariance: a prompt in chunks of any size") {
  for (const std::size_t head_dim : {8u, 34u, 80u}) {
    for (const std::size_t group : {1u, 3u, 8u}) {
      for (const AttentionConfig& config : level_and_layout_configs(2 * group, 2, head_dim)) {
        const auto tokens = random_tokens(config.shape, 67, 1);
        const auto expected = whole(config, tokens);
        for (const std::size_t size : {1u, 2u, 5u, 15u, 16u, 17u, 33u, 66u}) {
          AttentionWorld world(config, {tokens});
          world.feed(0, chunks_of(size, 67));
          CHECK(same_bits(world.output(0), expected));
        }
      }
    }
  }
}

TEST("paged attention invariance: one row at a time around every tile and split boundary, beside a whole prompt") {
  for (const std::size_t group : {1u, 4u}) {
    for (const AttentionConfig& config : level_and_layout_configs(group, 1, 16)) {
      const auto tokens = random_tokens(config.shape, 1030, 2);
      const auto expected = whole(config, tokens);
      AttentionWorld world(config, {tokens});
      world.feed(0, {14,  15,  16,  17,  18,  30,  31,  32,   33,   34,   40,   300,  509, 510,
                     511, 512, 513, 514, 515, 700, 767, 1021, 1022, 1023, 1024, 1025, 1026, 1030});
      CHECK(same_bits(world.output(0), expected));
    }
  }
}

TEST("paged attention invariance: 1 to 64 rows and 255 to 257 rows in a call") {
  for (const AttentionConfig& config : level_and_layout_configs(2, 1, 8)) {
    const auto tokens = random_tokens(config.shape, 257, 3);
    const auto expected = whole(config, tokens);
    std::vector<std::size_t> row_counts{255, 256};
    for (std::size_t rows = 1; rows <= 64; ++rows) row_counts.push_back(rows);
    for (const std::size_t rows : row_counts) {
      AttentionWorld world(config, {tokens});
      world.step({{0, 0, rows}});
      CHECK(same_bits(world.output(0).data(), expected.data(), rows * world.out_features()));
    }
  }
}

TEST("paged attention invariance: threads, and the order in which tasks run") {
  for (const AttentionConfig& config : level_and_layout_configs(4, 2, 16)) {
    const auto tokens = random_tokens(config.shape, 1040, 4);
    const auto expected = whole(config, tokens);
    for (std::size_t threads = 1; threads <= 3; ++threads) {
      test::ThreadsForTests pool(threads);
      AttentionWorld world(config, {tokens});
      world.feed(0, {1000, 1038, 1039, 1040}, pool.parallel_for());
      CHECK(same_bits(world.output(0), expected));
    }
    // Many threads and few rows: the context of a row is divided among tasks, which here run backwards.
    test::BackwardsForTests backwards(64);
    AttentionWorld world(config, {tokens});
    world.feed(0, {5, 530, 531, 1030, 1040}, backwards.parallel_for());
    CHECK(same_bits(world.output(0), expected));
  }
}

TEST("paged attention invariance: alone or in a crowd") {
  const std::vector<std::size_t> lengths{1, 16, 17, 530, 100, 33, 47, 600};
  for (const AttentionConfig& config : level_and_layout_configs(3, 1, 16)) {
    std::vector<std::vector<float>> sequences;
    for (std::size_t s = 0; s < lengths.size(); ++s) {
      sequences.push_back(random_tokens(config.shape, lengths[s], 10 + static_cast<unsigned>(s)));
    }
    test::ThreadsForTests pool(2);
    AttentionWorld crowd(config, sequences);
    // Step by step each sequence advances by another number of tokens, so that prompts and single tokens mix.
    std::vector<std::size_t> done(lengths.size(), 0);
    for (bool any = true; any;) {
      std::vector<Chunk> chunks;
      for (std::size_t s = 0; s < lengths.size(); ++s) {
        const std::size_t count = std::min(lengths[s] - done[s], 1 + s * 37);
        if (count > 0) chunks.push_back({s, done[s], done[s] + count});
        done[s] += count;
      }
      any = !chunks.empty();
      if (any) crowd.step(chunks, pool.parallel_for());
    }
    for (std::size_t s = 0; s < lengths.size(); ++s) CHECK(same_bits(crowd.output(s), whole(config, sequences[s])));
  }
}

TEST("paged attention invariance: block ids and tokens per block") {
  for (const std::size_t group : {1u, 2u}) {
    for (const AttentionConfig& config : level_and_layout_configs(group, 1, 32)) {
      const auto tokens = random_tokens(config.shape, 75, 5);
      const auto expected = whole(config, tokens);
      for (unsigned seed = 1; seed <= 3; ++seed) {
        AttentionConfig other = config;
        other.block_seed = seed;
        other.shape.tokens_per_block = 16 * seed;
        CHECK(same_bits(whole(other, tokens), expected));
      }
    }
  }
}

TEST("paged attention invariance: what the pool held before") {
  for (const std::size_t head_dim : {34u, 64u}) {
    for (const AttentionConfig& config : level_and_layout_configs(2, 1, head_dim)) {
      const auto tokens = random_tokens(config.shape, 39, 6);
      for (const std::uint8_t poison : {std::uint8_t{0x00}, std::uint8_t{0x7F}, std::uint8_t{0x3C}}) {
        AttentionConfig other = config;
        other.poison = poison;
        AttentionWorld nans(config, {tokens});
        AttentionWorld others(other, {tokens});
        for (AttentionWorld* world : {&nans, &others}) world->feed(0, {1, 2, 19, 20, 39});
        CHECK(same_bits(nans.output(0), others.output(0)));
        CHECK(std::all_of(nans.output(0).begin(), nans.output(0).end(), [](float x) { return std::isfinite(x); }));
      }
    }
  }
}

TEST("paged attention invariance: a NaN or infinity of a later token, or of another request, changes nothing") {
  for (const std::size_t group : {1u, 4u}) {
    for (const AttentionConfig& config : level_and_layout_configs(group, 1, 16)) {
      const auto tokens = random_tokens(config.shape, 530, 7);
      const auto expected = whole(config, tokens);
      const auto neighbour = random_tokens(config.shape, 20, 8);
      const auto expected_neighbour = whole(config, neighbour);
      const std::size_t features = config.shape.qkv_features();
      for (const std::size_t bad : {1u, 15u, 16u, 41u, 512u}) {
        for (const float value : {not_a_number, std::numeric_limits<float>::infinity()}) {
          auto poisoned = tokens;
          std::fill_n(poisoned.begin() + static_cast<std::ptrdiff_t>(bad * features), features, value);
          AttentionWorld world(config, {poisoned, neighbour});
          world.step({{0, 0, 530}, {1, 0, 20}});
          CHECK(same_bits(world.output(0).data(), expected.data(), bad * world.out_features()));
          CHECK(std::isnan(world.output(0)[bad * world.out_features()]));
          CHECK(same_bits(world.output(1), expected_neighbour));
        }
      }
    }
  }
}

TEST("paged attention invariance: a block's next owner sees nothing of the last one's NaNs") {
  for (const AttentionConfig& config : level_and_layout_configs(2, 2, 16)) {
    const auto tokens = random_tokens(config.shape, 40, 8);
    const auto expected = whole(config, tokens);
    AttentionWorld world(config, {std::vector<float>(tokens.size(), not_a_number), tokens});
    world.step({{0, 0, 40}});
    world.table(1) = world.table(0);
    world.feed(1, {5, 21, 22, 40});
    CHECK(same_bits(world.output(1), expected));
  }
}

TEST("paged attention invariance: computing a position again gives the same bits") {
  for (const AttentionConfig& config : level_and_layout_configs(2, 1, 16)) {
    const auto tokens = random_tokens(config.shape, 50, 9);
    AttentionWorld world(config, {tokens});
    world.step({{0, 0, 50}});
    const auto expected = world.output(0);
    world.step({{0, 16, 50}});  // as after a preemption that kept the first block
    CHECK(same_bits(world.output(0), expected));
    world.step({{0, 0, 50}});
    CHECK(same_bits(world.output(0), expected));
  }
}

TEST("paged attention invariance: a prompt in a window, in chunks of any size, without the blocks below the window") {
  for (const std::size_t window : {1u, 2u, 7u, 16u, 17u, 33u}) {
    for (const std::size_t group : {1u, 3u, 8u}) {
      for (AttentionConfig config : level_and_layout_configs(2 * group, 2, 34)) {
        config.shape.window = window;
        const auto tokens = random_tokens(config.shape, 91, 1);
        const auto expected = whole(config, tokens);
        for (const std::size_t size : {1u, 2u, 5u, 15u, 16u, 17u, 33u, 66u}) {
          AttentionWorld world(config, {tokens});
          world.feed(0, chunks_of(size, 91));
          CHECK(same_bits(world.output(0), expected));
          CHECK_EQ(world.table(0)[0], -1);
        }
      }
    }
  }
}

TEST("paged attention invariance: windows over several splits, with threads and tasks in any order") {
  for (const std::size_t window : {100u, 511u, 512u, 513u, 700u}) {
    for (AttentionConfig config : level_and_layout_configs(4, 2, 16)) {
      config.shape.window = window;
      const auto tokens = random_tokens(config.shape, 1300, 2);
      const auto expected = whole(config, tokens);
      const std::vector<std::size_t> ends{14,   15,   16,   17,   300,  509,  510,  511,  512,  513, 600,
                                          1021, 1022, 1023, 1024, 1025, 1026, 1030, 1230, 1240, 1300};
      test::ThreadsForTests pool(3);
      AttentionWorld threads(config, {tokens});
      threads.feed(0, ends, pool.parallel_for());
      CHECK(same_bits(threads.output(0), expected));
      test::BackwardsForTests backwards(64);
      AttentionWorld divided(config, {tokens});
      divided.feed(0, ends, backwards.parallel_for());
      CHECK(same_bits(divided.output(0), expected));
    }
  }
}

TEST("paged attention invariance: a window that holds the whole context is none") {
  for (AttentionConfig config : level_and_layout_configs(3, 1, 16)) {
    const auto tokens = random_tokens(config.shape, 530, 3);
    const auto expected = whole(config, tokens);
    for (const std::size_t window : {530u, 531u, 2147483647u}) {
      config.shape.window = window;
      CHECK(same_bits(whole(config, tokens), expected));
    }
    config.shape.window = 529;
    CHECK(!same_bits(whole(config, tokens), expected));
  }
}

TEST("paged attention invariance: a NaN or infinity changes the rows whose window holds it, and no other") {
  for (const std::size_t window : {1u, 6u, 17u}) {
    for (AttentionConfig config : level_and_layout_configs(4, 1, 16)) {
      config.shape.window = window;
      const auto tokens = random_tokens(config.shape, 540, 4);
      const auto expected = whole(config, tokens);
      const std::size_t features = config.shape.qkv_features();
      for (const std::size_t bad : {0u, 1u, 15u, 16u, 500u, 511u, 512u}) {
        for (const float value : {not_a_number, std::numeric_limits<float>::infinity()}) {
          auto poisoned = tokens;
          std::fill_n(poisoned.begin() + static_cast<std::ptrdiff_t>(bad * features), features, value);
          const auto output = whole(config, poisoned);
          const std::size_t row = output.size() / 540;
          CHECK(same_bits(output.data(), expected.data(), bad * row));
          for (std::size_t t = bad; t < bad + window; ++t) CHECK(std::isnan(output[t * row]));
          const std::size_t after = (bad + window) * row;
          CHECK(same_bits(output.data() + after, expected.data() + after, output.size() - after));
        }
      }
    }
  }
}

TEST("paged attention invariance: a block that left one request's window serves another in the same step") {
  for (AttentionConfig config : level_and_layout_configs(2, 2, 16)) {
    config.shape.window = 20;
    const auto first = random_tokens(config.shape, 64, 5);
    const auto second = random_tokens(config.shape, 30, 6);
    AttentionWorld world(config, {first, second});
    world.step({{0, 0, 40}});
    world.table(1)[0] = world.table(0)[0];
    world.table(0)[0] = -1;
    world.step({{0, 40, 60}, {1, 0, 29}});
    world.table(1)[1] = world.table(0)[1];  // which the second had filled; it computes its last tokens again
    world.table(0)[1] = -1;
    world.step({{1, 16, 30}, {0, 60, 64}});
    CHECK(same_bits(world.output(0), whole(config, first)));
    CHECK(same_bits(world.output(1), whole(config, second)));
  }
}

TEST("paged attention invariance: a context of 100,000 tokens, divided among any number of tasks") {
  constexpr std::size_t length = 100'003;
  for (AttentionConfig config : level_and_layout_configs(4, 2, 8, 32)) {
    if (config.shape.kv_layout != KvLayout::f32) continue;
    config.shape.rotary_dim = 0;
    const auto tokens = random_tokens(config.shape, length, 11);
    const auto last_rows = [&](const ParallelFor& parallel_for) {
      AttentionWorld world(config, {tokens});
      world.store(0, length - 3);
      world.step({{0, length - 3, length}}, parallel_for);
      return std::vector<float>(world.output(0).end() - static_cast<std::ptrdiff_t>(3 * world.out_features()),
                                world.output(0).end());
    };
    const auto expected = last_rows(ParallelFor::serial());
    for (const std::size_t threads : {2u, 3u, 7u}) {
      test::ThreadsForTests pool(threads);
      CHECK(same_bits(last_rows(pool.parallel_for()), expected));
    }
    test::BackwardsForTests backwards(200);
    CHECK(same_bits(last_rows(backwards.parallel_for()), expected));
    // Values are random around 0, so their mean over so many tokens is close to it.
    CHECK(std::all_of(expected.begin(), expected.end(), [](float x) { return std::fabs(x) < 0.1f; }));
  }
}

}  // namespace
}  // namespace precast
