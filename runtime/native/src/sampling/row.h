#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>

// Functions are static for the reason given in plugins/cpu/bf16.h: row_kernels_*.cpp are compiled for one level each.
namespace precast {

/// Tokens of a row are looked at in blocks of so many neighbours; the last block may be shorter. The largest logit of each
/// block tells which blocks a search may pass over.
inline constexpr std::size_t tokens_per_row_block = 256;

[[maybe_unused]] static constexpr std::size_t num_row_blocks(std::size_t num_tokens) noexcept {
  return (num_tokens + tokens_per_row_block - 1) / tokens_per_row_block;
}

/// A place in the order of likelihood: larger logits first, smaller ids first among equals.
///
/// What min_p, top_k and top_p keep is always a beginning of that order: the tokens that come before one place, its end.
struct Place {
  float logit = 0.0F;
  std::int32_t id = 0;
};

/// Behind every token.
inline constexpr Place end_of_row{-std::numeric_limits<float>::infinity(), std::numeric_limits<std::int32_t>::max()};

[[maybe_unused]] static constexpr bool comes_before(const Place& a, const Place& b) noexcept {
  return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
}

/// The logits that a token is chosen from. No NaN; the largest is finite.
struct Row {
  const float* logits = nullptr;
  std::size_t num_tokens = 0;
  const float* block_max = nullptr;  ///< num_row_blocks of them
  float max = 0.0F;                  ///< the largest logit
  const float* largest = nullptr;    ///< the num_largest largest logits in descending order, where they are known
  std::size_t num_largest = 0;
};

}  // namespace precast
