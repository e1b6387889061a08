#include "runtime/native/src/sampling/token_selection.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>

#include "runtime/native/src/sampling/log64.h"

namespace precast {
namespace {

// Fp32 numbers in their order as integers: the bits of a positive one, and those of a negative one counted down.
std::int32_t to_key(float x) {
  const auto bits = std::bit_cast<std::int32_t>(x);
  return bits < 0 ? std::numeric_limits<std::int32_t>::min() - bits : bits;
}

float from_key(std::int32_t key) {
  return std::bit_cast<float>(key < 0 ? std::numeric_limits<std::int32_t>::min() - key : key);
}

/// Behind all tokens of at least this logit.
Place end_of_logit(float logit) { return {logit, std::numeric_limits<std::int32_t>::max()}; }

}  // namespace

std::span<Place> TokenSelection::most_likely(const Row& row, std::size_t count) {
  count = std::min(count, row.num_tokens);
  places_.resize(std::max(places_.size(), row.num_tokens));
  const std::size_t num_found = kernels_.collect(row, find_bound(row, count), places_.data());
  const auto begin = places_.begin();
  std::nth_element(begin, begin + static_cast<std::ptrdiff_t>(count - 1),
                   begin + static_cast<std::ptrdiff_t>(num_found), comes_before);
  return std::span(places_).first(count);
}

/// A logit that at least `count` tokens reach, and not many more.
float TokenSelection::find_bound(const Row& row, std::size_t count) {
  if (count <= row.num_largest) return row.largest[count - 1];
  const std::size_t num_blocks = num_row_blocks(row.num_tokens);
  if (count <= num_blocks) {  // the tokens that are the largest of their block are so many already
    block_max_.assign(row.block_max, row.block_max + num_blocks);
    const auto nth = block_max_.begin() + static_cast<std::ptrdiff_t>(count - 1);
    std::nth_element(block_max_.begin(), nth, block_max_.end(), std::greater<>());
    return *nth;
  }
  // Halve what may be the answer until few are too many. Invariant: at least `count` tokens reach `low`.
  std::int64_t low = to_key(-std::numeric_limits<float>::infinity());
  std::int64_t high = to_key(row.max) + std::int64_t{1};
  for (std::size_t num_found = row.num_tokens; high - low > 1 && num_found > count + count / 4 + 64;) {
    const std::int64_t middle = low + (high - low) / 2;
    const std::size_t found = kernels_.count_before(row, end_of_logit(from_key(static_cast<std::int32_t>(middle))));
    if (found >= count) {
      low = middle;
      num_found = found;
    } else {
      high = middle;
    }
  }
  return from_key(static_cast<std::int32_t>(low));
}

Place end_of_min_p(const Row& row, float temperature, float min_p) {
  const double bound = static_cast<double>(row.max) + static_cast<double>(temperature) * log64(static_cast<double>(min_p));
  // The bound may be no fp32: the smallest above it then separates the same tokens. Below all fp32 it keeps everything.
  if (bound < -static_cast<double>(std::numeric_limits<float>::max())) return end_of_row;
  auto rounded = static_cast<float>(bound);
  if (static_cast<double>(rounded) < bound) rounded = std::nextafter(rounded, std::numeric_limits<float>::infinity());
  return end_of_logit(rounded);
}

std::int32_t find_most_likely(const Row& row) {
  const float* const block = std::find(row.block_max, row.block_max + num_row_blocks(row.num_tokens), row.max);
  const std::size_t first = static_cast<std::size_t>(block - row.block_max) * tokens_per_row_block;
  return static_cast<std::int32_t>(std::find(row.logits + first, row.logits + row.num_tokens, row.max) - row.logits);
}

}  // namespace precast
