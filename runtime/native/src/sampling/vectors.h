// Vectors as wide as the registers of the level that the including source is compiled for, for the passes over a row.
//
// Compiled for each kernel level: see row_passes.h. The inner namespace has no name for the reason given in
// plugins/cpu/bf16.h: nothing that is compiled for one level may serve another.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#ifdef PRECAST_X86
#include "plugins/cpu/avx512.h"  // the intrinsics of every level
#endif

namespace precast {
namespace {

#if defined(__AVX512F__)
constexpr std::size_t lanes = 16;  // of 32 bits
#elif defined(__AVX2__)
constexpr std::size_t lanes = 8;
#else
constexpr std::size_t lanes = 4;  // SSE2, NEON
#endif

using F32 = float __attribute__((vector_size(4 * lanes)));
using I32 = std::int32_t __attribute__((vector_size(4 * lanes)));
using U64 = std::uint64_t __attribute__((vector_size(4 * lanes)));
using F64 = double __attribute__((vector_size(4 * lanes)));
using HalfF32 = float __attribute__((vector_size(2 * lanes)));

inline F32 load(const float* from) noexcept {
  F32 vector;
  std::memcpy(&vector, from, sizeof vector);
  return vector;
}

inline void store(F32 vector, float* to) noexcept { std::memcpy(to, &vector, sizeof vector); }

inline F32 all(float x) noexcept { return x - F32{}; }

// 0, 1, 2, ...
inline I32 lane_numbers() noexcept {
  constexpr std::int32_t numbers[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  I32 vector;
  std::memcpy(&vector, numbers, sizeof vector);
  return vector;
}

inline U64 lane_numbers_64() noexcept {
  constexpr std::uint64_t numbers[8] = {0, 1, 2, 3, 4, 5, 6, 7};
  U64 vector;
  std::memcpy(&vector, numbers, sizeof vector);
  return vector;
}

// x where it is larger, else y: y also where either is NaN.
inline F32 max(F32 x, F32 y) noexcept {
#if defined(__AVX512F__)
  return _mm512_max_ps(x, y);
#elif defined(__AVX2__)
  return _mm256_max_ps(x, y);
#elif defined(__SSE2__)
  return _mm_max_ps(x, y);
#else
  return x > y ? x : y;
#endif
}

// Bit i says whether lane i of x is larger than y's.
inline std::uint32_t which_greater(F32 x, F32 y) noexcept {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(x, y, _CMP_GT_OQ);
#elif defined(__AVX2__)
  return static_cast<std::uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(x, y, _CMP_GT_OQ)));
#elif defined(__SSE2__)
  return static_cast<std::uint32_t>(_mm_movemask_ps(_mm_cmpgt_ps(x, y)));
#else
  std::uint32_t bits = 0;
  for (std::size_t i = 0; i < lanes; ++i) bits |= x[i] > y[i] ? std::uint32_t{1} << i : 0;
  return bits;
#endif
}

// x - y * z; where the level has fused multiply-adds, rounded once. Only for bounds, which do not decide a bit of a result.
inline F32 subtract_product(F32 x, F32 y, F32 z) noexcept {
#if defined(__AVX512F__)
  return _mm512_fnmadd_ps(y, z, x);
#elif defined(__AVX2__)
  return _mm256_fnmadd_ps(y, z, x);
#else
  return x - y * z;
#endif
}

// The products of the low halves of 64-bit lanes with `factor`, all 64 bits of them.
inline U64 multiply_low_halves(U64 x, std::uint32_t factor) noexcept {
#if defined(__AVX512F__)
  return reinterpret_cast<U64>(_mm512_mul_epu32(reinterpret_cast<__m512i>(x), _mm512_set1_epi64(factor)));
#elif defined(__AVX2__)
  return reinterpret_cast<U64>(_mm256_mul_epu32(reinterpret_cast<__m256i>(x), _mm256_set1_epi64x(factor)));
#elif defined(__SSE2__)
  return reinterpret_cast<U64>(_mm_mul_epu32(reinterpret_cast<__m128i>(x), _mm_set1_epi64x(factor)));
#else
  return (x & 0xFFFFFFFFU) * factor;
#endif
}

// Of the low half of each 64-bit lane, the lower 16 bits to the even and the upper 16 bits to the odd 32-bit lane.
inline I32 spread_low_halves(U64 x) noexcept {
#if defined(__AVX512BW__) || (defined(__AVX2__) && !defined(__AVX512F__))
  constexpr auto even = static_cast<long long>(0x8080'0302'8080'0100);  // indices of bytes; 80: a zero
  constexpr auto odd = static_cast<long long>(0x8080'0B0A'8080'0908);
#endif
#if defined(__AVX512BW__)
  return reinterpret_cast<I32>(_mm512_shuffle_epi8(reinterpret_cast<__m512i>(x),
                                                   _mm512_set_epi64(odd, even, odd, even, odd, even, odd, even)));
#elif defined(__AVX2__) && !defined(__AVX512F__)
  return reinterpret_cast<I32>(
      _mm256_shuffle_epi8(reinterpret_cast<__m256i>(x), _mm256_set_epi64x(odd, even, odd, even)));
#else
  return reinterpret_cast<I32>((x & 0xFFFFU) | (x & 0xFFFF0000U) << 16);
#endif
}

inline F32 to_float(I32 x) noexcept { return __builtin_convertvector(x, F32); }

}  // namespace
}  // namespace precast
