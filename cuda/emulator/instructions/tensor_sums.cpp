/// Sums of tensor cores, eight columns at a time. What is far out of range of f32 arithmetic, or
/// not finite, goes element by element.
#include "cuda/emulator/instructions/tensor_sums.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "cuda/emulator/instructions/elements.h"

namespace lowrank::emu {
namespace {

/// A zero takes no part in the largest exponent.
constexpr int16_t kExponentOfZero = -4000;
constexpr int kAnyProduct = -1000;  // exponents below are of zeros alone
/// Exponents for which scaled products and their quantum are normal floats.
constexpr int kLowest = -100;
constexpr int kHighest = 125;

__m256i Bits(__m256 values) { return _mm256_castps_si256(values); }
__m256i BiasedExponents(__m256i bits) {
  return _mm256_and_si256(_mm256_srli_epi32(bits, 23), _mm256_set1_epi32(0xff));
}

/// Eight exponents. `largest` is the largest biased one met so far.
__m128i ExponentsOf(const float* values, int min_exponent, __m256i* largest) {
  const __m256i bits = Bits(_mm256_load_ps(values));
  const __m256i biased = BiasedExponents(bits);
  *largest = _mm256_max_epi32(*largest, biased);
  __m256i exponents = _mm256_sub_epi32(biased, _mm256_set1_epi32(127));
  exponents = _mm256_max_epi32(exponents, _mm256_set1_epi32(min_exponent));
  const __m256i zero = _mm256_cmpeq_epi32(_mm256_slli_epi32(bits, 1), _mm256_setzero_si256());
  exponents = _mm256_blendv_epi8(exponents, _mm256_set1_epi32(kExponentOfZero), zero);
  return _mm_packs_epi32(_mm256_castsi256_si128(exponents), _mm256_extracti128_si256(exponents, 1));
}

bool AllFinite(__m256i largest_biased) {
  return _mm256_testz_si256(_mm256_cmpeq_epi32(largest_biased, _mm256_set1_epi32(0xff)),
                            _mm256_set1_epi32(-1)) != 0;
}

/// Toward zero to f32.
float CutToFloat(double value) {
  const double magnitude = std::fabs(value);
  if (magnitude < 0x1p-126) return static_cast<float>(std::trunc(value * 0x1p149) * 0x1p-149);
  uint64_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  bits &= ~uint64_t{0x1fffffff};
  std::memcpy(&value, &bits, sizeof(value));
  return static_cast<float>(value);
}

int ExponentOf(float value) {
  return value == 0 ? kMinExponentF32 : std::max(std::ilogb(value), kMinExponentF32);
}

/// One element by the definition.
float AddOne(const TileOfA& a, const PanelOfB& b, int row, int column, int first, int depth,
             int bits, float c) {
  double whole = static_cast<double>(c);
  int largest = ExponentOf(c);
  for (int k = first; k < first + depth; ++k) {
    whole += static_cast<double>(a.value[row][k]) * static_cast<double>(b.value[k][column]);
    largest = std::max(largest, a.exponent[k][row] + b.exponent[k][column]);
  }
  if (std::isnan(whole)) return FloatOf(0x7fffffff);
  if (std::isinf(whole)) return static_cast<float>(whole);
  const double scale = std::ldexp(1.0, bits - largest);
  double sum = std::trunc(static_cast<double>(c) * scale);
  for (int k = first; k < first + depth; ++k) {
    const double product =
        static_cast<double>(a.value[row][k]) * static_cast<double>(b.value[k][column]);
    sum += std::trunc(product * scale);
  }
  return CutToFloat(sum * std::ldexp(1.0, largest - bits) + 0.0);
}

/// For each row the largest exponent of a product in each column.
void LargestExponents(const TileOfA& a, const PanelOfB& b, int first, int depth,
                      __m128i (&of_row)[kTileRows]) {
  __m256i of_column[kPanelColumns];  // sixteen rows each
  for (int column = 0; column < kPanelColumns; ++column) {
    __m256i most = _mm256_set1_epi16(2 * kExponentOfZero);
    for (int k = first; k < first + depth; ++k) {
      const __m256i rows = _mm256_load_si256(reinterpret_cast<const __m256i*>(a.exponent[k]));
      const __m256i sum = _mm256_add_epi16(rows, _mm256_set1_epi16(b.exponent[k][column]));
      most = _mm256_max_epi16(most, sum);
    }
    of_column[column] = most;
  }
  for (int half = 0; half < 2; ++half) {
    __m128i* rows = of_row + 8 * half;
    for (int column = 0; column < kPanelColumns; ++column) {
      rows[column] = half == 0 ? _mm256_castsi256_si128(of_column[column])
                               : _mm256_extracti128_si256(of_column[column], 1);
    }
    TransposeEight(rows);
  }
}

/// A power of two as floats; exponents are in range.
__m256 PowersOfTwo(__m256i exponents) {
  return _mm256_castsi256_ps(
      _mm256_slli_epi32(_mm256_add_epi32(exponents, _mm256_set1_epi32(127)), 23));
}
__m256d PowersOfTwo(__m128i exponents) {
  const __m256i wide = _mm256_cvtepi32_epi64(exponents);
  return _mm256_castsi256_pd(
      _mm256_slli_epi64(_mm256_add_epi64(wide, _mm256_set1_epi64x(1023)), 52));
}

/// Four sums of quanta to f32, toward zero.
__m128 CutFour(__m128i products, __m128i addend, __m128i quantum_exponents) {
  const __m256d quanta = _mm256_add_pd(_mm256_cvtepi32_pd(products), _mm256_cvtepi32_pd(addend));
  const __m256d upper = _mm256_castsi256_pd(_mm256_set1_epi64x(~int64_t{0x1fffffff}));
  return _mm256_cvtpd_ps(
      _mm256_mul_pd(_mm256_and_pd(quanta, upper), PowersOfTwo(quantum_exponents)));
}

/// One step of finite operands. The magnitude of a product is below 4 · 2^exponent, so that sixteen
/// of them, in quanta of 2^-25 of that, stay below 2^31.
void AddStep(const TileOfA& a, const PanelOfB& b, int first, int depth, int bits,
             float (*c)[kPanelColumns]) {
  __m128i exponents[kTileRows];
  LargestExponents(a, b, first, depth, exponents);
  for (int row = 0; row < kTileRows; ++row) {
    const __m256 addend = _mm256_loadu_ps(c[row]);
    const __m256i biased = BiasedExponents(Bits(addend));
    const __m256i of_addend = _mm256_max_epi32(_mm256_sub_epi32(biased, _mm256_set1_epi32(127)),
                                               _mm256_set1_epi32(kMinExponentF32));
    const __m256i of_products = _mm256_cvtepi16_epi32(exponents[row]);
    const __m256i largest = _mm256_max_epi32(of_products, of_addend);
    const __m256i any = _mm256_cmpgt_epi32(of_products, _mm256_set1_epi32(kAnyProduct));
    const __m256i out_of_range =
        _mm256_or_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32(kLowest), largest),
                        _mm256_cmpgt_epi32(largest, _mm256_set1_epi32(kHighest)));
    if (_mm256_testz_si256(out_of_range, any) == 0) {
      for (int column = 0; column < kPanelColumns; ++column) {
        c[row][column] = AddOne(a, b, row, column, first, depth, bits, c[row][column]);
      }
      continue;
    }
    // Where there is no product the addend stays, whatever is computed.
    const __m256i at = _mm256_min_epi32(_mm256_max_epi32(largest, _mm256_set1_epi32(kLowest)),
                                        _mm256_set1_epi32(kHighest));
    const __m256 scale = PowersOfTwo(_mm256_sub_epi32(_mm256_set1_epi32(bits), at));
    __m256i sum = _mm256_setzero_si256();
    for (int k = first; k < first + depth; ++k) {
      const __m256 products =
          _mm256_mul_ps(_mm256_broadcast_ss(&a.value[row][k]), _mm256_load_ps(b.value[k]));
      sum = _mm256_add_epi32(sum, _mm256_cvttps_epi32(_mm256_mul_ps(products, scale)));
    }
    const __m256i addend_quanta = _mm256_cvttps_epi32(_mm256_mul_ps(addend, scale));
    const __m256i quantum = _mm256_sub_epi32(at, _mm256_set1_epi32(bits));
    const __m128 low = CutFour(_mm256_castsi256_si128(sum), _mm256_castsi256_si128(addend_quanta),
                               _mm256_castsi256_si128(quantum));
    const __m128 high =
        CutFour(_mm256_extracti128_si256(sum, 1), _mm256_extracti128_si256(addend_quanta, 1),
                _mm256_extracti128_si256(quantum, 1));
    const __m256 kept = _mm256_add_ps(addend, _mm256_setzero_ps());  // -0 becomes 0
    const __m256 added = _mm256_insertf128_ps(_mm256_castps128_ps256(low), high, 1);
    _mm256_storeu_ps(c[row], _mm256_blendv_ps(kept, added, _mm256_castsi256_ps(any)));
  }
}

bool AllFinite(const float (*c)[kPanelColumns]) {
  __m256i largest = _mm256_setzero_si256();
  for (int row = 0; row < kTileRows; ++row) {
    largest = _mm256_max_epi32(largest, BiasedExponents(Bits(_mm256_loadu_ps(c[row]))));
  }
  return AllFinite(largest);
}

}  // namespace

void TileOfA::Finish(int k, int min_exponent) {
  __m256i largest = _mm256_setzero_si256();
  for (int first = 0; first < k; first += 8) {
    for (int row = 0; row < kTileRows; row += 8) {
      __m128i rows[8];
      for (int i = 0; i < 8; ++i) {
        rows[i] = ExponentsOf(value[row + i] + first, min_exponent, &largest);
      }
      TransposeEight(rows);
      for (int i = 0; i < 8; ++i) {
        _mm_store_si128(reinterpret_cast<__m128i*>(exponent[first + i] + row), rows[i]);
      }
    }
  }
  finite = AllFinite(largest);
}

void PanelOfB::Finish(int k, int min_exponent) {
  __m256i largest = _mm256_setzero_si256();
  for (int i = 0; i < k; ++i) {
    _mm_store_si128(reinterpret_cast<__m128i*>(exponent[i]),
                    ExponentsOf(value[i], min_exponent, &largest));
  }
  finite = AllFinite(largest);
}

void AddProducts(const TileOfA& a, const PanelOfB& b, int k, int depth, int bits,
                 float (*c)[kPanelColumns]) {
  for (int first = 0; first < k; first += depth) {
    if (a.finite && b.finite && AllFinite(c)) {
      AddStep(a, b, first, depth, bits, c);
      continue;
    }
    for (int row = 0; row < kTileRows; ++row) {
      for (int column = 0; column < kPanelColumns; ++column) {
        c[row][column] = AddOne(a, b, row, column, first, depth, bits, c[row][column]);
      }
    }
  }
}

}  // namespace lowrank::emu
