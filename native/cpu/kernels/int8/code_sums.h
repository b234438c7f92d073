/// The operations that a product of int8 codes needs from an instruction set: sums of products in
/// int32, which are exact, and a table of 16 bytes.
///
///   VNNI     a unit is four codes: weights plus 128 as unsigned bytes, x as signed ones. The sum
///            is then 128 times the sum of x too large, which the initial accumulators subtract
///   others   a unit is two codes as 16-bit numbers; 2 · 127² is far below the limits of 32 bits
#pragma once

#include "native/cpu/kernels/isa/simd.h"

#if defined(__SSE2__) && !defined(__AVX2__)
#include <emmintrin.h>
#endif

namespace lowrank::cpu::LOWRANK_ISA {

#if defined(__AVX512VNNI__)
using UnitCode = int8_t;
constexpr int kWeightOffset = 128;
#else
using UnitCode = int16_t;
constexpr int kWeightOffset = 0;
#endif
constexpr int kCodesPerUnit = 4 / static_cast<int>(sizeof(UnitCode));

/// acc + the products of a unit of weights in every lane with one unit of x.
LOWRANK_INLINE VecI DotCodes(VecI acc, VecI w, VecI x) {
#if defined(__AVX512VNNI__)
  return reinterpret_cast<VecI>(_mm512_dpbusd_epi32(
      reinterpret_cast<__m512i>(acc), reinterpret_cast<__m512i>(w), reinterpret_cast<__m512i>(x)));
#elif defined(__AVX512BW__)
  return acc + reinterpret_cast<VecI>(
                   _mm512_madd_epi16(reinterpret_cast<__m512i>(w), reinterpret_cast<__m512i>(x)));
#elif defined(__AVX2__)
  return acc + reinterpret_cast<VecI>(
                   _mm256_madd_epi16(reinterpret_cast<__m256i>(w), reinterpret_cast<__m256i>(x)));
#elif defined(__SSE2__)
  return acc + reinterpret_cast<VecI>(
                   _mm_madd_epi16(reinterpret_cast<__m128i>(w), reinterpret_cast<__m128i>(x)));
#else
  // Each half with its sign. Those of w are the same for all rows of a tile.
  acc += ((w << 16) >> 16) * ((x << 16) >> 16);
  return acc + (w >> 16) * (x >> 16);
#endif
}

/// Stores kVL codes, which are in range. GCC 12 converts vectors to bytes lane by lane.
LOWRANK_INLINE void StoreCodes(UnitCode* out, VecI codes) {
#if defined(__AVX512VNNI__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out),
                   _mm512_cvtepi32_epi8(reinterpret_cast<__m512i>(codes)));
#elif defined(__AVX512BW__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out),
                      _mm512_cvtepi32_epi16(reinterpret_cast<__m512i>(codes)));
#else
  const VecH narrow = Narrow(reinterpret_cast<VecU>(codes));
  std::memcpy(out, &narrow, sizeof(narrow));
#endif
}

template <int kStep>
LOWRANK_INLINE VecI AddStep(VecI v) {
  return v + reinterpret_cast<VecI>(ExchangeLanes<kStep>(reinterpret_cast<VecU>(v), Lanes()));
}

LOWRANK_INLINE int32_t SumLanes(VecI v) {
  if constexpr (kVL > 8) v = AddStep<8>(v);
  if constexpr (kVL > 4) v = AddStep<4>(v);
  return AddStep<1>(AddStep<2>(v))[0];
}

/// 16 bytes, repeated in every 128 bits of a vector.
LOWRANK_INLINE VecU ByteTable(const uint8_t (&bytes)[16]) {
  VecU table = {};
  for (int i = 0; i < kVL; i += 4) {
    std::memcpy(reinterpret_cast<char*>(&table) + i * 4, bytes, sizeof(bytes));
  }
  return table;
}

/// table[index] in every byte, index < 16.
LOWRANK_INLINE VecU LookupBytes(VecU table, VecU index) {
#if defined(__AVX512BW__)
  return reinterpret_cast<VecU>(
      _mm512_shuffle_epi8(reinterpret_cast<__m512i>(table), reinterpret_cast<__m512i>(index)));
#elif defined(__AVX2__)
  return reinterpret_cast<VecU>(
      _mm256_shuffle_epi8(reinterpret_cast<__m256i>(table), reinterpret_cast<__m256i>(index)));
#elif defined(__aarch64__)
  return vreinterpretq_u32_u8(vqtbl1q_u8(vreinterpretq_u8_u32(table), vreinterpretq_u8_u32(index)));
#else
  // By way of memory: vector elements at variable positions cost GCC 12 seven times as much.
  uint8_t entries[kVL * 4], places[kVL * 4];
  std::memcpy(entries, &table, sizeof(entries));
  std::memcpy(places, &index, sizeof(places));
  for (int i = 0; i < kVL * 4; ++i) places[i] = entries[places[i]];
  VecU out;
  std::memcpy(&out, places, sizeof(out));
  return out;
#endif
}

/// table[low four bits of the index] in every byte. VBMI's look-up uses six bits, of which two
/// select one of four equal tables, so no mask is needed.
LOWRANK_INLINE VecU LookupNibbles(VecU table, VecU index) {
#if defined(__AVX512VBMI__)
  return reinterpret_cast<VecU>(
      _mm512_permutexvar_epi8(reinterpret_cast<__m512i>(index), reinterpret_cast<__m512i>(table)));
#else
  return LookupBytes(table, index & 0x0f0f0f0fu);
#endif
}

}  // namespace lowrank::cpu::LOWRANK_ISA
