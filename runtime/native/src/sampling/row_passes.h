// The passes that row_kernels.h declares, written once and compiled for each level: row_kernels_<level>.cpp includes this
// with the level's compiler options. So nothing here calls inline functions of the standard library, and the inner namespace
// has no name (plugins/cpu/bf16.h says why).
#pragma once

#include "runtime/native/src/sampling/row_kernels.h"
#include "runtime/native/src/sampling/vectors.h"

namespace precast {
namespace {

constexpr float minus_infinity = -std::numeric_limits<float>::infinity();
constexpr double log2_e = 1.44269504088896340736;

// What a difference of logits is multiplied by to become the exponent of a power of two.
float to_scale(float temperature) noexcept { return static_cast<float>(log2_e / static_cast<double>(temperature)); }

// The logits of one block, padded to a whole one where the row ends within it.
class BlockLogits {
 public:
  BlockLogits(const float* logits, std::size_t num_tokens, std::size_t block) noexcept {
    const std::size_t first = block * tokens_per_row_block;
    const std::size_t count = num_tokens - first;
    if (count >= tokens_per_row_block) {
      data_ = logits + first;
      return;
    }
    pad(logits + first, count);
    data_ = padded_;
  }
  BlockLogits(const Row& row, std::size_t block) noexcept : BlockLogits(row.logits, row.num_tokens, block) {}
  BlockLogits(const BlockLogits&) = delete;
  BlockLogits& operator=(const BlockLogits&) = delete;

  // Logits 16 * i .. 16 * i + 15 of the block.
  F32x16 operator[](std::size_t i) const noexcept { return load(data_ + 16 * i); }

 private:
  [[gnu::noinline]] void pad(const float* logits, std::size_t count) noexcept {
    for (std::size_t i = 0; i < tokens_per_row_block; ++i) padded_[i] = i < count ? logits[i] : minus_infinity;
  }

  const float* data_;
  float padded_[tokens_per_row_block];
};

constexpr std::size_t vectors_per_block = tokens_per_row_block / 16;
constexpr I32x16 lane_numbers = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

// ---------------------------------------------------------------------------------------------------------------- mass

// 2^x for x <= 0, to 3e-7; below -126 it is 2^-126. The polynomial is a minimax fit of 2^f on [-1/2, 1/2], exact at 0.
inline F32x16 exp2(F32x16 x) noexcept {
  constexpr float rounder = 12582912.0F;  // adding 1.5 * 2^23 rounds to the nearest integer, into the low bits of the sum
  x = max(x, all(-126.0F));
  const F32x16 shifted = x + rounder;
  const F32x16 f = x - (shifted - rounder);
  F32x16 q = f * 0.00132647285F + 0.00967151299F;
  q = q * f + 0.0555073358F;
  q = q * f + 0.240222424F;
  q = q * f + 0.693147004F;
  q = q * f + 1.0F;
  return reinterpret_cast<F32x16>(reinterpret_cast<I32x16>(q) + (reinterpret_cast<I32x16>(shifted) << 23));
}

// A sum of many vectors: fp32 within a block, fp64 across blocks.
class MassSum {
 public:
  void add(F32x16 mass) noexcept { block_ += mass; }
  void end_block() noexcept {
    F32x8 halves[2];
    std::memcpy(halves, &block_, sizeof halves);
    for (std::size_t i = 0; i < 2; ++i) sums_[i] += __builtin_convertvector(halves[i], F64x8);
    block_ = F32x16{};
  }
  void multiply(double factor) noexcept {
    for (F64x8& sum : sums_) sum *= factor;
  }
  double total() const noexcept {
    const F64x8 both = sums_[0] + sums_[1];
    double total = 0.0;
    for (std::size_t i = 0; i < 8; ++i) total += both[i];
    return total;
  }

 private:
  F32x16 block_ = {};
  F64x8 sums_[2] = {};
};

// ---------------------------------------------------------------------------------------------------------------- scan

float largest_lane(F32x16 x) noexcept {
  float largest = minus_infinity;
  for (std::size_t i = 0; i < 16; ++i) largest = x[i] > largest ? x[i] : largest;
  return largest;
}

// Adds up masses relative to the largest logit so far, while that grows.
class GrowingMass {
 public:
  explicit GrowingMass(float scale) noexcept : scale_(scale) {}

  void add(const BlockLogits& block, float block_max) noexcept {
    if (block_max == minus_infinity) return;
    if (block_max > max_) {
      const F32x16 factor = exp2((all(max_) - block_max) * scale_);
      sum_.multiply(static_cast<double>(factor[0]));
      max_ = block_max;
    }
    for (std::size_t i = 0; i < vectors_per_block; ++i) sum_.add(exp2((block[i] - max_) * scale_));
    sum_.end_block();
  }

  double total() const noexcept { return sum_.total(); }

 private:
  float scale_;
  float max_ = minus_infinity;
  MassSum sum_;
};

template <bool with_mass>
RowScan scan_blocks(const float* logits, std::size_t num_tokens, float* block_max, float* copy, float scale) noexcept {
  RowScan scan{minus_infinity, false, 0.0};
  I32x16 largest_bits = {};  // of magnitudes; those of NaN are above infinity's
  GrowingMass mass(scale);
  for (std::size_t b = 0; b < num_row_blocks(num_tokens); ++b) {
    const BlockLogits block(logits, num_tokens, b);
    F32x16 largest = block[0];
    for (std::size_t i = 0; i < vectors_per_block; ++i) {
      const F32x16 logit = block[i];
      const I32x16 bits = reinterpret_cast<I32x16>(logit) & 0x7FFFFFFF;
      largest_bits = bits > largest_bits ? bits : largest_bits;
      largest = max(logit, largest);
    }
    block_max[b] = largest_lane(largest);
    scan.max = block_max[b] > scan.max ? block_max[b] : scan.max;
    if constexpr (with_mass) mass.add(block, block_max[b]);
    if (copy != nullptr) {
      const std::size_t first = b * tokens_per_row_block;
      const std::size_t count = num_tokens - first < tokens_per_row_block ? num_tokens - first : tokens_per_row_block;
      std::memcpy(copy + first, logits + first, count * sizeof(float));
    }
  }
  for (std::size_t i = 0; i < 16; ++i) scan.has_nan |= largest_bits[i] > 0x7F800000;
  scan.mass = mass.total();
  return scan;
}

RowScan scan_row(const float* logits, std::size_t num_tokens, float* block_max, float* copy,
                 float mass_temperature) noexcept {
  if (mass_temperature == 0.0F) return scan_blocks<false>(logits, num_tokens, block_max, copy, 0.0F);
  return scan_blocks<true>(logits, num_tokens, block_max, copy, to_scale(mass_temperature));
}

// ---------------------------------------------------------------------------------------------------------------- draw

// High noise of 64 neighbouring tokens at a time.
class HighNoise {
 public:
  explicit HighNoise(const NoiseKey& key) noexcept : position_(U64x8{} + key.position), sequence_(U64x8{} + key.sequence) {
    auto key_0 = static_cast<std::uint32_t>(key.seed);
    auto key_1 = static_cast<std::uint32_t>(key.seed >> 32);
    for (int round = 0; round < philox_rounds; ++round) {
      keys_0_[round] = U64x8{} + key_0;
      keys_1_[round] = U64x8{} + key_1;
      key_0 += philox_weyl_0;
      key_1 += philox_weyl_1;
    }
  }

  // The words of 64 neighbouring tokens, in the low halves of lanes; the upper halves hold what nobody reads.
  struct Words {
    U64x8 c0, c1, c2, c3;
  };

  // Of tokens first_id .. first_id + 63, a multiple of 64, to `a`, and of the next 64 to `b`. Side by side because each round
  // waits for the one before.
  void of_128(std::uint64_t first_id, Words& a, Words& b) const noexcept {
    constexpr U64x8 lanes = {0, 1, 2, 3, 4, 5, 6, 7};
    a = {first_id / 8 + lanes, position_, sequence_, U64x8{} + high_noise_domain};
    b = {first_id / 8 + 8 + lanes, position_, sequence_, U64x8{} + high_noise_domain};
    for (int round = 0; round < philox_rounds; ++round) {
      const U64x8 a_0 = multiply_low_halves(a.c0, philox_multiplier_0);
      const U64x8 b_0 = multiply_low_halves(b.c0, philox_multiplier_0);
      const U64x8 a_1 = multiply_low_halves(a.c2, philox_multiplier_1);
      const U64x8 b_1 = multiply_low_halves(b.c2, philox_multiplier_1);
      a = {(a_1 >> 32) ^ a.c1 ^ keys_0_[round], a_1, (a_0 >> 32) ^ a.c3 ^ keys_1_[round], a_0};
      b = {(b_1 >> 32) ^ b.c1 ^ keys_0_[round], b_1, (b_0 >> 32) ^ b.c3 ^ keys_1_[round], b_0};
    }
  }

 private:
  U64x8 position_;
  U64x8 sequence_;
  U64x8 keys_0_[philox_rounds];
  U64x8 keys_1_[philox_rounds];
};

// The best token so far, and what another one needs to beat it.
//
// Scores are bounded in units of log 2 relative to the row's largest logit: with h the high noise of a token, E > v >= h / 2^16,
// so -log2(E) < 16 - log2(h), and the bits of fp32 h, read as a number, are at most (log2(h) + 127) * 2^23.
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
F32x16 bound_scores(F32x16 logits, U64x8 high_words, float max_logit, float scale) noexcept {
  const F32x16 h = to_float(spread_low_halves(high_words));
  const F32x16 exponent = (logits - max_logit) * scale;
  return subtract_product(exponent, to_float(reinterpret_cast<I32x16>(h)), all(0x1p-23F));
}

void draw_from_128(const BlockLogits& block, std::size_t first_vector, std::size_t first_id, float max_logit,
                   float scale, const HighNoise& noise, BestToken& best) noexcept {
  HighNoise::Words words[2];
  noise.of_128(first_id, words[0], words[1]);
  F32x16 bounds[8];
  for (std::size_t g = 0; g < 2; ++g) {
    const std::size_t v = first_vector + 4 * g;
    bounds[4 * g] = bound_scores(block[v], words[g].c0, max_logit, scale);
    bounds[4 * g + 1] = bound_scores(block[v + 1], words[g].c1, max_logit, scale);
    bounds[4 * g + 2] = bound_scores(block[v + 2], words[g].c2, max_logit, scale);
    bounds[4 * g + 3] = bound_scores(block[v + 3], words[g].c3, max_logit, scale);
  }
  const F32x16 largest = max(max(max(bounds[0], bounds[1]), max(bounds[2], bounds[3])),
                             max(max(bounds[4], bounds[5]), max(bounds[6], bounds[7])));
  if (!any(largest > best.needed())) return;
  float each[128];
  for (std::size_t i = 0; i < 8; ++i) store(bounds[i], each + 16 * i);
  for (std::size_t i = 0; i < 128; ++i) {
    if (each[i] > best.needed()) best.offer(static_cast<std::int32_t>(first_id + i));
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
    for (std::size_t i = 0; i < vectors_per_block; i += 8) {
      draw_from_128(block, i, b * tokens_per_row_block + 16 * i, row.max, scale, noise, best);
    }
  }
  return best.token();
}

// Which tokens of one block come before a place. Mostly those above a bound, without a look at their ids.
class BeforeInBlock {
 public:
  BeforeInBlock(const Place& pivot, std::size_t block) noexcept
      : pivot_(pivot), first_id_(static_cast<std::int32_t>(block * tokens_per_row_block)) {
    constexpr auto size = static_cast<std::int32_t>(tokens_per_row_block);
    depends_on_ids_ = pivot.logit == minus_infinity || (pivot.id >= first_id_ && pivot.id < first_id_ + size);
    bound_ = pivot.id >= first_id_ ? next_below(pivot.logit) : pivot.logit;
  }

  bool depends_on_ids() const noexcept { return depends_on_ids_; }

  // All bits set where one of the tokens 16 * i .. 16 * i + 15 of the block comes before the place.
  template <bool by_ids>
  I32x16 mask(F32x16 logits, std::size_t i) const noexcept {
    if constexpr (!by_ids) return logits > bound_;
    const I32x16 ids = lane_numbers + (first_id_ + static_cast<std::int32_t>(16 * i));
    return (logits > pivot_.logit) | ((logits == pivot_.logit) & (ids < pivot_.id));
  }

 private:
  // The largest fp32 below a finite x.
  static float next_below(float x) noexcept {
    std::int32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    bits = x == 0.0F ? std::int32_t{-0x7FFFFFFF} : bits + (bits < 0 ? 1 : -1);
    std::memcpy(&x, &bits, sizeof bits);
    return x;
  }

  Place pivot_;
  std::int32_t first_id_;
  bool depends_on_ids_;
  float bound_;
};

F32x16 keep(F32x16 x, I32x16 where) noexcept {
  return reinterpret_cast<F32x16>(reinterpret_cast<I32x16>(x) & where);
}

template <bool by_ids>
void add_block_mass(const BlockLogits& block, float max_logit, float scale, const BeforeInBlock& before,
                    MassSum& sum) noexcept {
  for (std::size_t i = 0; i < vectors_per_block; ++i) {
    sum.add(keep(exp2((block[i] - max_logit) * scale), before.mask<by_ids>(block[i], i)));
  }
  sum.end_block();
}

double mass_before_place(const Row& row, const Place& pivot, float temperature) noexcept {
  const float scale = to_scale(temperature);
  MassSum sum;
  for (std::size_t b = 0; b < num_row_blocks(row.num_tokens); ++b) {
    if (row.block_max[b] < pivot.logit) continue;
    const BlockLogits block(row, b);
    const BeforeInBlock before(pivot, b);
    if (before.depends_on_ids()) {
      add_block_mass<true>(block, row.max, scale, before, sum);
    } else {
      add_block_mass<false>(block, row.max, scale, before, sum);
    }
  }
  return sum.total();
}

// -------------------------------------------------------------------------------------------------------------- search

template <bool by_ids>
std::size_t count_in_block(const BlockLogits& block, const BeforeInBlock& before) noexcept {
  I32x16 counts = {};
  for (std::size_t i = 0; i < vectors_per_block; ++i) counts -= before.mask<by_ids>(block[i], i);
  std::int32_t count = 0;
  for (std::size_t i = 0; i < 16; ++i) count += counts[i];
  return static_cast<std::size_t>(count);
}

std::size_t count_before_place(const Row& row, const Place& pivot) noexcept {
  std::size_t count = 0;
  for (std::size_t b = 0; b < num_row_blocks(row.num_tokens); ++b) {
    if (row.block_max[b] < pivot.logit) continue;
    const BlockLogits block(row, b);
    const BeforeInBlock before(pivot, b);
    count += before.depends_on_ids() ? count_in_block<true>(block, before) : count_in_block<false>(block, before);
  }
  return count;
}

std::size_t collect_from_row(const Row& row, float logit, Place* places) noexcept {
  std::size_t count = 0;
  for (std::size_t b = 0; b < num_row_blocks(row.num_tokens); ++b) {
    if (row.block_max[b] < logit) continue;
    const std::size_t first = b * tokens_per_row_block;
    const std::size_t end = first + tokens_per_row_block < row.num_tokens ? first + tokens_per_row_block : row.num_tokens;
    const BlockLogits block(row, b);
    for (std::size_t i = first; i < end; i += 16) {
      if (!any(block[(i - first) / 16] >= logit)) continue;
      for (std::size_t j = i; j < end && j < i + 16; ++j) {
        places[count] = {row.logits[j], static_cast<std::int32_t>(j)};  // stays only if counted: no branch to mispredict
        count += row.logits[j] >= logit ? 1 : 0;
      }
    }
  }
  return count;
}

}  // namespace
}  // namespace precast
