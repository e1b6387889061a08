// The Gumbel-max draw.
// Compiled for each kernel level: see row_passes.h.
#pragma once

#include "runtime/native/src/sampling/row_block.h"

namespace precast {
namespace {

// High noise, for a vector of neighbouring counters at a time.
//
// Word j of counter k has the noise of tokens 64 * (k / 8) + 16 * j + 2 * (k % 8) and the next: so word j of a vector of
// counters from k on has that of `lanes` neighbouring tokens.
constexpr std::size_t counters_per_vector = lanes / 2;

constexpr std::size_t first_token(std::size_t counter, std::size_t word) noexcept {
  return 64 * (counter / 8) + 16 * word + 2 * (counter % 8);
}

class HighNoise {
 public:
  explicit HighNoise(const NoiseKey& key) noexcept : position_(U64{} + key.position), sequence_(U64{} + key.sequence) {
    auto key_0 = static_cast<std::uint32_t>(key.seed);
    auto key_1 = static_cast<std::uint32_t>(key.seed >> 32);
    for (int round = 0; round < philox_rounds; ++round) {
      keys_0_[round] = U64{} + key_0;
      keys_1_[round] = U64{} + key_1;
      key_0 += philox_weyl_0;
      key_1 += philox_weyl_1;
    }
  }

  // The words of a vector of counters, in the low halves of lanes; the upper halves hold what nobody reads.
  struct Words {
    U64 c0, c1, c2, c3;
  };

  // Of the counters from `counter` on to `a`, and of the vector after them to `b`. Side by side because each round waits for
  // the one before.
  void of_two_vectors(std::uint64_t counter, Words& a, Words& b) const noexcept {
    a = {counter + lane_numbers_64(), position_, sequence_, U64{} + high_noise_domain};
    b = {counter + counters_per_vector + lane_numbers_64(), position_, sequence_, U64{} + high_noise_domain};
    for (int round = 0; round < philox_rounds; ++round) {
      const U64 a_0 = multiply_low_halves(a.c0, philox_multiplier_0);
      const U64 b_0 = multiply_low_halves(b.c0, philox_multiplier_0);
      const U64 a_1 = multiply_low_halves(a.c2, philox_multiplier_1);
      const U64 b_1 = multiply_low_halves(b.c2, philox_multiplier_1);
      a = {(a_1 >> 32) ^ a.c1 ^ keys_0_[round], a_1, (a_0 >> 32) ^ a.c3 ^ keys_1_[round], a_0};
      b = {(b_1 >> 32) ^ b.c1 ^ keys_0_[round], b_1, (b_0 >> 32) ^ b.c3 ^ keys_1_[round], b_0};
    }
  }

 private:
  U64 position_;
  U64 sequence_;
  U64 keys_0_[philox_rounds];
  U64 keys_1_[philox_rounds];
};

// The best token so far, and what another one needs to beat it.
//
// Scores are bounded in units of log 2 relative to the row's largest logit: with h the high noise of a token,
// E > v >= h / 2^16, so -log2(E) < 16 - log2(h); and the bits of fp32 h, read as a number, are at most
// (log2(h) + 127) * 2^23.
class BestToken {
 public:
  BestToken(const Row& row, std::int32_t first, const Place& end, float temperature, const NoiseKey& key) noexcept
      : row_(row), end_(end), temperature_(static_cast<double>(temperature)), key_(key) {
    set(first, score(first));
  }

  DrawnToken token() const noexcept { return {id_, score_}; }

  // A token with (logit - max) * log2(e) / temperature - bits / 2^23 not above this does not win.
  float needed() const noexcept { return needed_; }

  // Whether a token of the largest possible noise, 2^49, could win.
  bool may_be_beaten_by(float exponent) const noexcept { return exponent + 49.0F - 143.0F > needed_; }

  void offer(std::int32_t id) noexcept {
    if (!comes_before({row_.logits[id], id}, end_)) return;
    const double candidate = score(id);
    if (candidate > score_ || (candidate == score_ && id < id_)) set(id, candidate);
  }

 private:
  double score(std::int32_t id) const noexcept {
    const double difference = static_cast<double>(row_.logits[id]) - static_cast<double>(row_.max);
    return difference / temperature_ + gumbel_noise(key_, static_cast<std::uint32_t>(id));
  }

  void set(std::int32_t id, double candidate) noexcept {
    id_ = id;
    score_ = candidate;
    // 1/64 is far more than the rounding of a bound that matters: those are within some 100 of 0.
    needed_ = static_cast<float>(candidate * log2_e - 143.0 - 1.0 / 64);
  }

  const Row& row_;
  const Place end_;
  const double temperature_;
  const NoiseKey key_;
  std::int32_t id_ = -1;
  double score_ = 0.0;
  float needed_ = 0.0F;
};

// For one vector of tokens: what BestToken::needed is compared with.
F32 bound_scores(F32 logits, U64 high_words, float max_logit, float scale) noexcept {
  const F32 h = to_float(spread_low_halves(high_words));
  const F32 exponent = (logits - max_logit) * scale;
  return subtract_product(exponent, to_float(reinterpret_cast<I32>(h)), all(0x1p-23F));
}

// The tokens of two vectors of counters, the first of which is `counter` of this block.
void draw_from_two_vectors(const Row& row, const BlockLogits& block, std::size_t block_number, std::size_t counter,
                           float scale, const HighNoise& noise, BestToken& best) noexcept {
  HighNoise::Words words[2];
  noise.of_two_vectors(block_number * (tokens_per_row_block / 8) + counter, words[0], words[1]);
  F32 bounds[2][4];
  for (std::size_t v = 0; v < 2; ++v) {
    const std::size_t k = counter + v * counters_per_vector;
    bounds[v][0] = bound_scores(block.from(first_token(k, 0)), words[v].c0, row.max, scale);
    bounds[v][1] = bound_scores(block.from(first_token(k, 1)), words[v].c1, row.max, scale);
    bounds[v][2] = bound_scores(block.from(first_token(k, 2)), words[v].c2, row.max, scale);
    bounds[v][3] = bound_scores(block.from(first_token(k, 3)), words[v].c3, row.max, scale);
  }
  const F32 largest = max(max(max(bounds[0][0], bounds[0][1]), max(bounds[0][2], bounds[0][3])),
                          max(max(bounds[1][0], bounds[1][1]), max(bounds[1][2], bounds[1][3])));
  if (which_greater(largest, all(best.needed())) == 0) return;
  for (std::size_t v = 0; v < 2; ++v) {
    for (std::size_t word = 0; word < 4; ++word) {
      const std::size_t first = first_token(counter + v * counters_per_vector, word);
      float each[lanes];
      store(bounds[v][word], each);
      for (std::size_t i = 0; i < lanes; ++i) {
        if (each[i] <= best.needed()) continue;
        best.offer(static_cast<std::int32_t>(block_number * tokens_per_row_block + first + i));
      }
    }
  }
}

DrawnToken draw_from_row(const Row& row, std::int32_t first, const Place& end, float temperature,
                         const NoiseKey& key) noexcept {
  const float scale = to_scale(temperature);
  const HighNoise noise(key);
  BestToken best(row, first, end, temperature, key);
  for (std::size_t b = 0; b < num_row_blocks(row.num_tokens); ++b) {
    if (row.block_max[b] < end.logit || !best.may_be_beaten_by((row.block_max[b] - row.max) * scale)) continue;
    const BlockLogits block(row, b);
    for (std::size_t counter = 0; counter < tokens_per_row_block / 8; counter += 2 * counters_per_vector) {
      draw_from_two_vectors(row, block, b, counter, scale, noise, best);
    }
  }
  return best.token();
}

}  // namespace
}  // namespace precast
