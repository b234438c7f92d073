/// Elements of the emulated tensor cores: 16 bits to double, one or eight at a time, and sums of
/// products in vectors of the host. The emulator is built for x86-64-v3: AVX2, FMA and F16C.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace lowrank::emu {

using Doubles = double __attribute__((vector_size(32)));

/// Products of two 16-bit or tf32 values are exact in double, so fused or not is the same.
inline Doubles MultiplyAdd(Doubles a, Doubles b, Doubles c) {
  return static_cast<Doubles>(
      _mm256_fmadd_pd(static_cast<__m256d>(a), static_cast<__m256d>(b), static_cast<__m256d>(c)));
}

inline float FromBF16(uint32_t bits) {
  const uint32_t word = bits << 16;
  float value;
  std::memcpy(&value, &word, sizeof(value));
  return value;
}

/// The compiler would call a function of its own for half to double.
inline float FromF16(uint32_t bits) { return _cvtsh_ss(static_cast<uint16_t>(bits)); }

/// Eight neighbours of 16 bits as two vectors.
inline void EightToDoubles(__m128i bits, bool bf16, Doubles out[2]) {
  const __m256 values =
      bf16 ? _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16))
           : _mm256_cvtph_ps(bits);
  out[0] = static_cast<Doubles>(_mm256_cvtps_pd(_mm256_castps256_ps128(values)));
  out[1] = static_cast<Doubles>(_mm256_cvtps_pd(_mm256_extractf128_ps(values, 1)));
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
