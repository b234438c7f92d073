/// Elements of the emulated tensor cores: 16 bits to float, one or eight at a time. The emulator is
/// built for x86-64-v3: AVX2, FMA and F16C.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace lowrank::emu {

inline float FloatOf(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline float FromBF16(uint32_t bits) { return FloatOf(bits << 16); }

/// The compiler would call a function of its own for half to double.
inline float FromF16(uint32_t bits) { return _cvtsh_ss(static_cast<uint16_t>(bits)); }

/// Eight neighbours of 16 bits.
inline __m256 EightToFloats(__m128i bits, bool bf16) {
  return bf16 ? _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16))
              : _mm256_cvtph_ps(bits);
}

/// Rows of eight 16-bit elements become columns: their 64 elements shuffled perfectly three times.
inline void TransposeEight(__m128i rows[8]) {
  for (int round = 0; round < 3; ++round) {
    __m128i shuffled[8];
    for (int i = 0; i < 4; ++i) {
      shuffled[2 * i] = _mm_unpacklo_epi16(rows[i], rows[i + 4]);
      shuffled[2 * i + 1] = _mm_unpackhi_epi16(rows[i], rows[i + 4]);
    }
    std::memcpy(rows, shuffled, sizeof(shuffled));
  }
}

}  // namespace lowrank::emu
