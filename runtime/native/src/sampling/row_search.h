// Passes that look for what comes before a place, or is large enough.
// Compiled for each kernel level: see row_passes.h.
#pragma once

#include "runtime/native/src/sampling/row_mass.h"

namespace precast {
namespace {

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

  // Where depends_on_ids is false: the tokens with a logit above this, and no others.
  float bound() const noexcept { return bound_; }

  // All bits set where one of the tokens from number `i` of the block on comes before the place.
  I32 mask(F32 logits, std::size_t i) const noexcept {
    const I32 ids = lane_numbers() + (first_id_ + static_cast<std::int32_t>(i));
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

F32 keep(F32 x, I32 where) noexcept { return reinterpret_cast<F32>(reinterpret_cast<I32>(x) & where); }

void add_mass_by_ids(const BlockLogits& block, float max_logit, float scale, const BeforeInBlock& before,
                     MassSum& sum) noexcept {
  for (std::size_t i = 0; i < tokens_per_row_block; i += lanes) {
    const F32 logits = block.from(i);
    sum.add(keep(exp2((logits - max_logit) * scale), before.mask(logits, i)), i % num_columns);
  }
  sum.end_block();
}

// Much of the probability often lies in few tokens: first find the vectors that hold one, then look at no others.
void add_mass_above(const BlockLogits& block, float bound, float max_logit, float scale, MassSum& sum) noexcept {
  std::uint64_t hits = 0;
  for (std::size_t i = 0; i < tokens_per_row_block / lanes; ++i) {
    hits |= std::uint64_t{which_greater(block.from(i * lanes), all(bound)) != 0} << i;
  }
  for (; hits != 0; hits &= hits - 1) {
    const std::size_t i = static_cast<std::size_t>(__builtin_ctzll(hits)) * lanes;
    const F32 logits = block.from(i);
    sum.add(keep(exp2((logits - max_logit) * scale), logits > bound), i % num_columns);
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
      add_mass_by_ids(block, row.max, scale, before, sum);
    } else {
      add_mass_above(block, before.bound(), row.max, scale, sum);
    }
  }
  return sum.total();
}

template <bool by_ids>
std::size_t count_in_block(const BlockLogits& block, const BeforeInBlock& before) noexcept {
  I32 counts = {};
  for (std::size_t i = 0; i < tokens_per_row_block; i += lanes) {
    const F32 logits = block.from(i);
    counts -= by_ids ? before.mask(logits, i) : logits > before.bound();
  }
  std::int32_t count = 0;
  for (std::size_t i = 0; i < lanes; ++i) count += counts[i];
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

constexpr std::uint32_t all_lanes = (std::uint32_t{1} << lanes) - 1;

std::size_t collect_from_row(const Row& row, float logit, Place* places) noexcept {
  std::size_t count = 0;
  for (std::size_t b = 0; b < num_row_blocks(row.num_tokens); ++b) {
    if (row.block_max[b] < logit) continue;
    const std::size_t first = b * tokens_per_row_block;
    const std::size_t end = first + tokens_per_row_block < row.num_tokens ? first + tokens_per_row_block : row.num_tokens;
    const BlockLogits block(row, b);
    for (std::size_t i = first; i < end; i += lanes) {
      if (which_greater(all(logit), block.from(i - first)) == all_lanes) continue;
      for (std::size_t j = i; j < end && j < i + lanes; ++j) {
        places[count] = {row.logits[j], static_cast<std::int32_t>(j)};  // stays only if counted: no branch to mispredict
        count += row.logits[j] >= logit ? 1 : 0;
      }
    }
  }
  return count;
}

}  // namespace
}  // namespace precast
