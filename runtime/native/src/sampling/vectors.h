// Vectors of 64 bytes for the passes over a row. The compiler turns each into whatever registers the level of the including
// source has: one of AVX-512, two of AVX2, four of SSE2.
//
// Only row_passes.h includes this. The inner namespace has no name for the reason given in plugins/cpu/bf16.h: nothing that
// is compiled for one level may serve another.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#ifdef PRECAST_X86
#include "plugins/cpu/avx512.h"  // the intrinsics of every level
#endif

namespace precast {
namespace {

using F32x8 = float __attribute__((vector_size(32)));
using F32x16 = float __attribute__((vector_size(64)));
using I32x16 = std::int32_t __attribute__((vector_size(64)));
using U64x8 = std::uint64_t __attribute__((vector_size(64)));
using F64x8 = double __attribute__((vector_size(64)));

inline F32x16 all(float x) noexcept { return F32x16{x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }

inline F32x16 load(const float* from) noexcept {
  F32x16 vector;
  std::memcpy(&vector, from, sizeof vector);
  return vector;
}

inline void store(F32x16 vector, float* to) noexcept { std::memcpy(to, &vector, sizeof vector); }

// x where it is larger, else y: y also where either is NaN.
inline F32x16 max(F32x16 x, F32x16 y) noexcept {
#ifdef __AVX512F__
  return _mm512_max_ps(x, y);
#else
  return x > y ? x : y;
#endif
}

// Whether any lane of `mask` is set; all bits of a lane are equal.
inline bool any(I32x16 mask) noexcept {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask(reinterpret_cast<__m512i>(mask)) != 0;
#elif defined(__SSE2__)
  __m128 parts[4];
  std::memcpy(parts, &mask, sizeof parts);
  return _mm_movemask_ps(_mm_or_ps(_mm_or_ps(parts[0], parts[1]), _mm_or_ps(parts[2], parts[3]))) != 0;
#else
  std::int32_t bits = 0;
  for (std::size_t i = 0; i < 16; ++i) bits |= mask[i];
  return bits != 0;
#endif
}

// x - y * z; where the level has fused multiply-adds, rounded once. Only for bounds, which do not decide a bit of a result.
inline F32x16 subtract_product(F32x16 x, F32x16 y, F32x16 z) noexcept {
#if defined(__AVX512F__)
  return _mm512_fnmadd_ps(y, z, x);
#else
  return x - y * z;
#endif
}

// The products of the low halves of 64-bit lanes with `factor`, all 64 bits of them.
inline U64x8 multiply_low_halves(U64x8 x, std::uint32_t factor) noexcept {
#if defined(__AVX512F__)
  return reinterpret_cast<U64x8>(
      _mm512_mul_epu32(reinterpret_cast<__m512i>(x), _mm512_set1_epi64(static_cast<std::int64_t>(factor))));
#elif defined(__AVX2__)
  __m256i parts[2];
  std::memcpy(parts, &x, sizeof parts);
  for (__m256i& part : parts) part = _mm256_mul_epu32(part, _mm256_set1_epi64x(static_cast<std::int64_t>(factor)));
  std::memcpy(&x, parts, sizeof parts);
  return x;
#elif defined(__SSE2__)
  __m128i parts[4];
  std::memcpy(parts, &x, sizeof parts);
  for (__m128i& part : parts) part = _mm_mul_epu32(part, _mm_set1_epi64x(static_cast<std::int64_t>(factor)));
  std::memcpy(&x, parts, sizeof parts);
  return x;
#else
  return (x & 0xFFFFFFFFU) * factor;
#endif
}

// Of the low half of each 64-bit lane, the lower 16 bits to the even and the upper 16 bits to the odd 32-bit lane.
inline I32x16 spread_low_halves(U64x8 x) noexcept {
#ifdef __AVX512BW__
  constexpr auto even = static_cast<long long>(0x8080'0302'8080'0100);  // indices of bytes; 80: a zero
  constexpr auto odd = static_cast<long long>(0x8080'0B0A'8080'0908);
  return reinterpret_cast<I32x16>(_mm512_shuffle_epi8(
      reinterpret_cast<__m512i>(x), _mm512_set_epi64(odd, even, odd, even, odd, even, odd, even)));
#else
  return reinterpret_cast<I32x16>((x & 0xFFFFU) | (x & 0xFFFF0000U) << 16);
#endif
}

inline F32x16 to_float(I32x16 x) noexcept { return __builtin_convertvector(x, F32x16); }

}  // namespace
}  // namespace precast
