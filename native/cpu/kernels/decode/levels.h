/// Looks up 8-bit codes in a codebook of 256 floats.
///
/// With VBMI this is a look-up of bytes: 64 codes find byte b of their levels by two permutations
/// of the 256 bytes b of all levels, and four such vectors are combined. That takes 22 operations
/// for 64 codes. AVX-512 sets test for VBMI at run time, because not all their processors have it.
/// Elsewhere codes are looked up one by one: a gather is no faster on AMD processors, and several
/// times slower on Intel processors whose microcode stops it from leaking data.
#pragma once

#include "native/cpu/kernels/isa/simd.h"

namespace lowrank::cpu::LOWRANK_ISA {

/// The levels of codes; with kBytes by their bytes.
template <bool kBytes>
class Levels;

#if defined(__AVX512F__)

constexpr bool kMayLookUpBytes = true;

struct Table256 {
  const float* levels = nullptr;
  bool by_bytes = false;              // the processor has VBMI
  alignas(64) uint8_t bytes[4][256];  // byte b of every level
};

LOWRANK_INLINE void LoadTable(const float* levels, Table256* table) {
  table->levels = levels;
  table->by_bytes = __builtin_cpu_supports("avx512vbmi") != 0;
  if (!table->by_bytes) return;
  for (int i = 0; i < 256; i += kVL) {
#pragma GCC unroll 4
    for (int b = 0; b < 4; ++b) StoreBytes(table->bytes[b] + i, LoadU(levels + i) >> (8 * b));
  }
}

/// The table, held in half of the registers.
template <>
class Levels<true> {
 public:
  explicit LOWRANK_MEMBER_INLINE Levels(const Table256& table) {
#pragma GCC unroll 4
    for (int b = 0; b < 4; ++b) {
#pragma GCC unroll 4
      for (int part = 0; part < 4; ++part) {
        bytes_[b][part] = _mm512_load_si512(table.bytes[b] + 64 * part);
      }
    }
  }

  /// out[j], lane l: the level of code 16 j + l.
  LOWRANK_MEMBER_INLINE void Run(const uint8_t* codes, VecF (&out)[4]) const {
    const __m512i turned = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
    Place(_mm512_permutexvar_epi32(turned, _mm512_loadu_si512(codes)), out);
  }
  /// out[j], lane l: the level of byte j of lane l.
  LOWRANK_MEMBER_INLINE void Columns(VecU codes, VecF (&out)[4]) const {
    const __m512i turned = _mm512_set4_epi32(0x0f0b0703, 0x0e0a0602, 0x0d090501, 0x0c080400);
    Place(_mm512_shuffle_epi8(reinterpret_cast<__m512i>(codes), turned), out);
  }

 private:
  /// table[index], for 128 bytes in two vectors: VPERMI2B, which the compiler may not know here.
  static LOWRANK_MEMBER_INLINE __m512i Find(__m512i low, __m512i index, __m512i high) {
    asm("vpermi2b %2, %1, %0" : "+v"(index) : "v"(low), "v"(high));
    return index;
  }
  /// out[j], lane 4 q + i: the level of code 16 q + 4 j + i, the order that interleaving leaves.
  LOWRANK_MEMBER_INLINE void Place(__m512i codes, VecF (&out)[4]) const {
    const __mmask64 upper = _mm512_movepi8_mask(codes);
    __m512i found[4];
#pragma GCC unroll 4
    for (int b = 0; b < 4; ++b) {
      found[b] = _mm512_mask_blend_epi8(upper, Find(bytes_[b][0], codes, bytes_[b][1]),
                                        Find(bytes_[b][2], codes, bytes_[b][3]));
    }
    const __m512i low[2] = {_mm512_unpacklo_epi8(found[0], found[1]),
                            _mm512_unpackhi_epi8(found[0], found[1])};
    const __m512i high[2] = {_mm512_unpacklo_epi8(found[2], found[3]),
                             _mm512_unpackhi_epi8(found[2], found[3])};
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      out[2 * j] = reinterpret_cast<VecF>(_mm512_unpacklo_epi16(low[j], high[j]));
      out[2 * j + 1] = reinterpret_cast<VecF>(_mm512_unpackhi_epi16(low[j], high[j]));
    }
  }

  __m512i bytes_[4][4];
};

#else

constexpr bool kMayLookUpBytes = false;

struct Table256 {
  const float* levels;
  static constexpr bool by_bytes = false;
};

LOWRANK_INLINE void LoadTable(const float* levels, Table256* table) { table->levels = levels; }

#endif

template <>
class Levels<false> {
 public:
  explicit LOWRANK_MEMBER_INLINE Levels(const Table256& table) : levels_(table.levels) {}

  /// out[j], lane l: the level of code kVL j + l. Stored to memory first: reading a vector right
  /// after its lanes were written would stall.
  LOWRANK_MEMBER_INLINE void Run(const uint8_t* codes, VecF (&out)[4]) const {
    alignas(64) float found[4 * kVL];
#pragma GCC unroll 16
    for (int i = 0; i < 4 * kVL; ++i) found[i] = levels_[codes[i]];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) out[j] = Load(found + j * kVL);
  }

  void Columns(VecU codes, VecF (&out)[4]) const;  // only with kBytes

 private:
  const float* levels_;
};

/// Calls body with the kBytes that the processor supports.
template <typename Body>
LOWRANK_INLINE void WithLevels(const Table256& table, const Body& body) {
  if constexpr (kMayLookUpBytes) {
    if (table.by_bytes) {
      body(std::true_type());
      return;
    }
  }
  body(std::false_type());
}

}  // namespace lowrank::cpu::LOWRANK_ISA
