// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>

#include "plugins/cpu/bf16.h"
#include "plugins/cpu/math.h"
#include "plugins/paged_attention/cpu/attend_split.h"
#include "plugins/paged_attention/cpu/kv_tile.h"

namespace precast {
namespace {

// kv16.f32/1: K tile [D][16], V tile [16][D].
struct F32Cache {
  using Element = float;
  static constexpr std::size_t numbers_per_element = 1;

  static void score(const float* q, const float* k_tile, std::size_t head_dim, float* scores) noexcept {
    float sums[tokens_per_tile] = {};
    for (std::size_t d = 0; d < head_dim; ++d) {
      const float* const k = k_tile + d * tokens_per_tile;
      for (std::size_t j = 0; j < tokens_per_tile; ++j) sums[j] += q[d] * k[j];
    }
    std::copy(sums, sums + tokens_per_tile, scores);
  }

  // Adds tokens begin .. end - 1 of a tile, weighted.
  static void add_values(const float* e, const float* v_tile, std::size_t begin, std::size_t end, std::size_t head_dim,
                         float* weighted) noexcept {
    for (std::size_t j = begin; j < end; ++j) {
      const float* const v = v_tile + j * head_dim;
      for (std::size_t d = 0; d < head_dim; ++d) weighted[d] += e[j] * v[d];
    }
  }

  static float round(float e) noexcept { return e; }
};

// kv16.bf16/1: K tile [D/2][16][2], V tile [8][D][2]. Of a pair the odd product is added first, as VDPBF16PS does.
struct Bf16Cache {
  // A pair, the even one in the lower half. Not two loads of 16 bits: GCC 12 vectorises those into wrong code.
  using Element [[gnu::may_alias]] = std::uint32_t;
  static constexpr std::size_t numbers_per_element = 2;
  static_assert(std::endian::native == std::endian::little);

  static float even(Element pair) noexcept { return std::bit_cast<float>(pair << 16); }
  static float odd(Element pair) noexcept { return std::bit_cast<float>(pair & 0xFFFF0000u); }

  static void score(const Element* q, const Element* k_tile, std::size_t head_dim, float* scores) noexcept {
    float sums[tokens_per_tile] = {};
    for (std::size_t i = 0; i < head_dim / 2; ++i) {
      const Element* const k = k_tile + i * tokens_per_tile;
      for (std::size_t j = 0; j < tokens_per_tile; ++j) {
        sums[j] = (sums[j] + odd(q[i]) * odd(k[j])) + even(q[i]) * even(k[j]);
      }
    }
    std::copy(sums, sums + tokens_per_tile, scores);
  }

  static void add_values(const float* e, const Element* v_tile, std::size_t begin, std::size_t end,
                         std::size_t head_dim, float* weighted) noexcept {
    for (std::size_t j = begin - begin % 2; j < end; j += 2) {
      const Element* const v = v_tile + j / 2 * head_dim;
      if (j < begin) {  // only the odd one of the pair is seen
        for (std::size_t d = 0; d < head_dim; ++d) weighted[d] += e[j + 1] * odd(v[d]);
      } else if (j + 1 < end) {
        for (std::size_t d = 0; d < head_dim; ++d) {
          weighted[d] = (weighted[d] + e[j + 1] * odd(v[d])) + e[j] * even(v[d]);
        }
      } else {
        for (std::size_t d = 0; d < head_dim; ++d) weighted[d] += e[j] * even(v[d]);
      }
    }
  }

  static float round(float e) noexcept { return to_float(round_to_bf16(e)); }
};

// What one row sees of a split: tokens first .. end - 1.
struct Visible {
  std::size_t first;
  std::size_t end;

  // Where its first tile starts and its last one ends.
  std::size_t first_in_tiles() const noexcept { return first - first % tokens_per_tile; }
  std::size_t end_of_tiles() const noexcept { return (end + tokens_per_tile - 1) / tokens_per_tile * tokens_per_tile; }
};

// scores -> exp(scores - max), rounded as the cache is; lanes that the row does not see become 0.
template <typename Cache>
void softmax(float* scores, const Visible& visible, float& max, float& sum) noexcept {
  constexpr float minus_infinity = -std::numeric_limits<float>::infinity();
  std::fill(scores + visible.first_in_tiles(), scores + visible.first, minus_infinity);
  std::fill(scores + visible.end, scores + visible.end_of_tiles(), minus_infinity);
  max = *std::max_element(scores + visible.first, scores + visible.end);
  float partial[tokens_per_tile] = {};
  for (std::size_t first = visible.first_in_tiles(); first < visible.end; first += tokens_per_tile) {
    float* const e = scores + first;
    for (std::size_t j = 0; j < tokens_per_tile; ++j) {
      const float unrounded = math::exp(e[j] - max);
      partial[j] += unrounded;
      e[j] = Cache::round(unrounded);
    }
  }
  for (std::size_t width = tokens_per_tile / 2; width > 0; width /= 2) {
    for (std::size_t j = 0; j < width; ++j) partial[j] += partial[j + width];
  }
  sum = partial[0];
}

template <typename Cache>
void attend_row(const AttendSplitArgs& args, std::size_t row) noexcept {
  using Element = typename Cache::Element;
  const std::size_t head_dim = args.head_dim;
  const Visible visible{args.first_visible[row], args.end_visible[row]};
  const std::size_t k_elements = head_dim * tokens_per_tile / Cache::numbers_per_element;
  const auto* const q = static_cast<const Element*>(args.q) + row * head_dim / Cache::numbers_per_element;
  float* const scores = args.scores + row * tokens_per_split;
  float* const weighted = args.result.weighted + row * head_dim;
  const auto tile = [&](std::size_t first) {
    return reinterpret_cast<const Element*>(args.tiles[first / tokens_per_tile]);
  };
  for (std::size_t first = visible.first_in_tiles(); first < visible.end; first += tokens_per_tile) {
    Cache::score(q, tile(first), head_dim, scores + first);
  }
  for (std::size_t j = visible.first; j < visible.end; ++j) scores[j] *= args.scale;
  softmax<Cache>(scores, visible, args.result.max[row], args.result.sum[row]);
  std::fill(weighted, weighted + head_dim, 0.0f);
  for (std::size_t first = visible.first_in_tiles(); first < visible.end; first += tokens_per_tile) {
    const std::size_t begin = std::max(first, visible.first) - first;
    const std::size_t end = std::min(tokens_per_tile, visible.end - first);
    Cache::add_values(scores + first, tile(first) + k_elements, begin, end, head_dim, weighted);
  }
}

template <typename Cache>
void attend_rows(const AttendSplitArgs& args) noexcept {
  for (std::size_t row = 0; row < args.num_rows; ++row) attend_row<Cache>(args, row);
}

}  // namespace

void attend_split_f32_portable(const AttendSplitArgs& args) noexcept { attend_rows<F32Cache>(args); }
void attend_split_bf16_portable(const AttendSplitArgs& args) noexcept { attend_rows<Bf16Cache>(args); }

AttendSplit attend_split_kernel([[maybe_unused]] KernelLevel level, KvLayout layout) noexcept {
#ifdef PRECAST_X86
  if (level == KernelLevel::avx512) {
    return layout == KvLayout::f32 ? attend_split_f32_avx512 : attend_split_bf16_avx512;
  }
  if (level == KernelLevel::avx2) return layout == KvLayout::f32 ? attend_split_f32_avx2 : attend_split_bf16_avx2;
#endif
  return layout == KvLayout::f32 ? attend_split_f32_portable : attend_split_bf16_portable;
}

}  // namespace precast
