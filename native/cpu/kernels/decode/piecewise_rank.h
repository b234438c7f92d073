/// Ranks among thresholds on a few straight lines, as the midpoints of the dynamic 8-bit map are
/// (each decade of it is evenly spaced). The octave of |v| and one comparison select the line, and
/// arithmetic gives the rank. The tables are much shorter than the thresholds and fit in registers.
///
///   code = zero ± floor(min(scale[line] · |v| + offset[line], top[line])),   at least 0
///
/// Exactness   Every threshold of rank i is within kSlack / 2 of i on its line: FitLines checks
///             each. The sum grows with |v|, so a result further than kSlack from an integer has
///             the right rank. Other values (about one in 8,000) are reported to the caller, who
///             ranks that run in another way. The codes equal those by thresholds.
/// Budget 16 values: 5 look-ups, about 20 other instructions, 13 cycles of two pipes
#pragma once

#include "native/cpu/kernels/isa/simd.h"

namespace lowrank::cpu::LOWRANK_ISA {

// The functions of core are inline, and the linker would keep an arbitrary set's copy of them.
LOWRANK_INLINE float FloatOf(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

LOWRANK_INLINE uint32_t BitsOf(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

// Tables of 32 entries fit two AVX-512 registers; elsewhere they cost what they save.
#if defined(__AVX512F__)
constexpr bool kRanksByLines = true;
#else
constexpr bool kRanksByLines = false;
#endif

struct PiecewiseRank {
  // Far above the rounding error of a rank below 2^7 in f32, 2^-17 per step.
  static constexpr float kSlack = 1.0f / 16384;
  static constexpr int kOctaves = 32;
  static constexpr int kMostLines = 16;

  bool fits = false;          // if false, nothing below is set
  int32_t low;                // the exponent of octave 1; smaller values are in octave 0
  int32_t zero;               // the code of ranks below the first threshold
  uint32_t entry[kOctaves];   // bits of the threshold in this octave that starts a line
  uint32_t before[kOctaves];  // the line at or below it; the next one above
  float scale[kMostLines];
  float offset[kMostLines];
  float top[kMostLines];
};

/// Fits a line to ascending positive thresholds; rank i is above i of them.
static inline bool FitLine(const float* positive, int first, int last, float* scale,
                           float* offset) {
  // positive[first - 1] starts the line, positive[first .. last - 1] are on it: ranks up to `last`.
  const float from = positive[first];
  *scale = last - 1 == first ? 0.5f / (from - positive[first - 1])
                             : static_cast<float>(last - 1 - first) / (positive[last - 1] - from);
  *offset = static_cast<float>(first + 1) - *scale * from;
  const auto at = [&](int i) { return __builtin_fmaf(*scale, positive[i], *offset); };
  if (!(at(first - 1) >= static_cast<float>(first) - PiecewiseRank::kSlack / 2)) return false;
  for (int i = first; i < last; ++i) {
    if (!(__builtin_fabsf(at(i) - static_cast<float>(i + 1)) <= PiecewiseRank::kSlack / 2)) {
      return false;
    }
  }
  return true;
}

/// Fits lines to `count` ascending thresholds whose codes are their ranks, if possible: those below
/// zero must be the negated first ones above it, and no octave may have the starts of two lines.
static inline void FitLines(const float* thresholds, int count, const uint8_t* rank_to_code,
                            PiecewiseRank* out) {
  out->fits = false;
  int negative = 0;
  while (negative < count && thresholds[negative] < 0) ++negative;
  const float* positive = thresholds + negative;
  const int above = count - negative;
  if (above < 1 || above > 128 || negative > above || !(positive[0] > 0x1p-30f)) return;
  for (int i = 0; i <= count; ++i) {
    if (rank_to_code[i] != i) return;
  }
  for (int i = 0; i < negative; ++i) {
    if (thresholds[negative - 1 - i] != -positive[i]) return;
  }
  if (!(positive[above - 1] < 2)) return;

  out->zero = negative;
  out->low = static_cast<int32_t>(BitsOf(positive[0]) >> 23) - 1;
  for (int i = 0; i < PiecewiseRank::kMostLines; ++i) {
    out->scale[i] = out->offset[i] = out->top[i] = 0;
  }
  for (int i = 0; i < PiecewiseRank::kOctaves; ++i) out->entry[i] = 0;
  out->top[0] = out->offset[0] = 0.5f;
  int line = 0;
  for (int begin = 0; begin < above;) {
    if (++line == PiecewiseRank::kMostLines) return;
    // As many thresholds as fit: rank begin + 1 only, or up to `end`.
    int end = begin + 1;
    out->scale[line] = 0;
    out->offset[line] = static_cast<float>(end) + 0.5f;
    float scale, offset;
    for (int last = begin + 2; last <= above; ++last) {
      if (!FitLine(positive, begin + 1, last, &scale, &offset)) break;
      end = last;
      out->scale[line] = scale;
      out->offset[line] = offset;
    }
    out->top[line] = static_cast<float>(end) + 0.5f;
    const uint32_t bits = BitsOf(positive[begin]);
    const int32_t octave = static_cast<int32_t>(bits >> 23) - out->low;
    if (octave >= PiecewiseRank::kOctaves || out->entry[octave] != 0) return;
    out->entry[octave] = bits;
    begin = end;
  }
  uint32_t below = 0;
  for (int i = 0; i < PiecewiseRank::kOctaves; ++i) {
    out->before[i] = below;
    if (out->entry[i] != 0)
      ++below;
    else
      out->entry[i] = 0x7fffffffu;  // above all numbers
  }
  out->fits = true;
}

#if defined(__AVX512F__)
/// The tables in registers.
struct LineTables {
  __m512i entry[2], before[2];
  __m512 scale, offset, top;
  __m512i low, zero;

  explicit LineTables(const PiecewiseRank& lines)
      : entry{_mm512_loadu_si512(lines.entry), _mm512_loadu_si512(lines.entry + 16)},
        before{_mm512_loadu_si512(lines.before), _mm512_loadu_si512(lines.before + 16)},
        scale(_mm512_loadu_ps(lines.scale)),
        offset(_mm512_loadu_ps(lines.offset)),
        top(_mm512_loadu_ps(lines.top)),
        low(_mm512_set1_epi32(lines.low)),
        zero(_mm512_set1_epi32(lines.zero)) {}

  /// Codes of 16 normalised values. Sets lanes of `unsure` whose code must be found in another way.
  LOWRANK_MEMBER_INLINE __m512i Codes(__m512 values, __mmask16* unsure) const {
    const __m512i bits = _mm512_castps_si512(values);
    const __m512i magnitude = _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff));
    const __m512i octave = _mm512_max_epi32(_mm512_sub_epi32(_mm512_srli_epi32(magnitude, 23), low),
                                            _mm512_setzero_si512());
    // A threshold equal to v does not count as below it: v < 0 has passed the thresholds whose
    // magnitude is at most |v|, v > 0 those whose magnitude is less.
    const __m512i compared = _mm512_add_epi32(magnitude, _mm512_srli_epi32(bits, 31));
    const __mmask16 over =
        _mm512_cmpgt_epi32_mask(compared, _mm512_permutex2var_epi32(entry[0], octave, entry[1]));
    const __m512i first = _mm512_permutex2var_epi32(before[0], octave, before[1]);
    const __m512i line = _mm512_mask_add_epi32(first, over, first, _mm512_set1_epi32(1));
    const __m512 rank = _mm512_min_ps(
        _mm512_fmadd_ps(_mm512_permutexvar_ps(line, scale), _mm512_castsi512_ps(magnitude),
                        _mm512_permutexvar_ps(line, offset)),
        _mm512_permutexvar_ps(line, top));
    // The distance from an integer.
    const __m512 rest = _mm512_abs_ps(_mm512_reduce_ps(rank, 0));
    *unsure = static_cast<__mmask16>(
        *unsure | _mm512_cmp_ps_mask(rest, _mm512_set1_ps(PiecewiseRank::kSlack), _CMP_LT_OQ));
    const __m512i sign = _mm512_and_si512(bits, _mm512_set1_epi32(static_cast<int>(0x80000000u)));
    const __m512i step =
        _mm512_cvttps_epi32(_mm512_castsi512_ps(_mm512_or_si512(_mm512_castps_si512(rank), sign)));
    return _mm512_max_epi32(_mm512_add_epi32(zero, step), _mm512_setzero_si512());
  }
};
#endif

}  // namespace lowrank::cpu::LOWRANK_ISA
