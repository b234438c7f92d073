/// Products with `compute: 'int8'` of rowwise weights, as in LLM.int8() (Dettmers et al., 2022,
/// arXiv:2208.07339): one scale per row of x, one per row of w, and exact sums of codes in between.
///
///   y[m, n] = float(Σₖ q[m, k] · c[n, k]) · (sx[m] · sw[n])
///
///   x    sx = max|x| / 127 of the row, q = x / sx, nearest, ties to even, within ±127. A row
///        that is not finite has the scale NaN, and so have all its outputs
///   w    bytes c + 128, as they are stored; sw = absmax / 127
///
/// Sums are in int32, so their order is arbitrary: blocks of kDepth along k, whose sums are added
/// in C, and C becomes f32 at the end (ScaleSums).
///
///   chunk     [block of k]( A panels [unit][mr] ) · scale [rows] · correction [rows]; or, for
///             row_code_products.h, rows of codes one after another instead of the panels
///   B panel   [unit][nr]; with VNNI units are four bytes of w as stored (code_sums.h)
#pragma once

#include "native/cpu/kernels/tile/gemm.h"

namespace lowrank::cpu::LOWRANK_ISA {

/// Sums of codes in int32, whose bits tiles handle like those of f32. Rows are whole blocks of w,
/// and so whole units.
struct RowCodePolicy {
  static constexpr bool kCodes = true;
  static constexpr bool kPairs = false;
  static constexpr bool kTiles = false;
  static constexpr int64_t Units(int64_t kc) { return kc / kCodesPerUnit; }
  LOWRANK_INLINE VecF Step(VecF acc, float a, VecF b) {
    return reinterpret_cast<VecF>(
        DotCodes(reinterpret_cast<VecI>(acc), reinterpret_cast<VecI>(b), SplatCodes(&a)));
  }
  LOWRANK_INLINE VecF Add(VecF sum, VecF more) {
    return reinterpret_cast<VecF>(reinterpret_cast<VecI>(sum) + reinterpret_cast<VecI>(more));
  }
};

template <typename Policy>
constexpr bool kIsRowCodes = false;
template <>
constexpr bool kIsRowCodes<RowCodePolicy> = true;

// As many units as blocks of f32 have.
template <>
constexpr int64_t kDepth<RowCodePolicy> = kKC * kCodesPerUnit;

// Number of codes in a vector of units.
constexpr int64_t kStepCodes = kVL * kCodesPerUnit;

/// A vector of units of w from its bytes, minus 128 if codes are signed.
LOWRANK_INLINE VecI LoadCodes(const uint8_t* bytes) {
#if defined(__AVX512VNNI__)
  return reinterpret_cast<VecI>(LoadU(bytes));
#elif defined(__AVX512BW__)
  const __m256i narrow = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes));
  return reinterpret_cast<VecI>(
      _mm512_sub_epi16(_mm512_cvtepu8_epi16(narrow), _mm512_set1_epi16(128)));
#elif defined(__AVX2__)
  const __m128i narrow = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes));
  return reinterpret_cast<VecI>(
      _mm256_sub_epi16(_mm256_cvtepu8_epi16(narrow), _mm256_set1_epi16(128)));
#elif defined(__SSE2__)
  const __m128i narrow = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes));
  return reinterpret_cast<VecI>(
      _mm_sub_epi16(_mm_unpacklo_epi8(narrow, _mm_setzero_si128()), _mm_set1_epi16(128)));
#else
  typedef uint8_t Bytes __attribute__((vector_size(kVL * 2), aligned(1), may_alias));
  typedef int16_t Codes __attribute__((vector_size(kVL * 4)));
  return reinterpret_cast<VecI>(
      __builtin_convertvector(*reinterpret_cast<const Bytes*>(bytes), Codes) - 128);
#endif
}

/// Codes of a row in a chunk for row_code_products.h: whole steps, zero-padded.
LOWRANK_INLINE int64_t CodePitch(int64_t depth) { return CeilDiv(depth, kStepCodes) * kStepCodes; }

/// Units of a chunk, including scales and corrections.
LOWRANK_INLINE int64_t CodeChunkUnits(int64_t rows, int64_t depth) {
  return rows * (CodePitch(depth) / kCodesPerUnit + 2);
}
LOWRANK_INLINE float* ChunkScales(const PackedChunk& chunk) {
  return chunk.data + chunk.rows * (CodePitch(chunk.order.depth) / kCodesPerUnit);
}

/// Quantises row m of x to codes [CodePitch]. Returns its scale.
LOWRANK_INLINE float QuantizeRow(const RowSource& x, int64_t m, UnitCode* codes, int32_t* sum) {
  alignas(64) float part[kKC];
  uint32_t largest = 0;
  for (int64_t k = 0; k < x.cols; k += kKC) {
    const int64_t kc = Min(kKC, x.cols - k);
    RowAsFloat(x, m, k, kc, part);
    const uint32_t bits = LargestBits(part, kc);
    largest = bits > largest ? bits : largest;
  }
  const float scale = CodeScale(largest);
  const int64_t filled = scale == scale ? x.cols : 0;
  VecI total = {};
  for (int64_t k = 0; k < filled; k += kKC) {
    const int64_t kc = Min(kKC, x.cols - k);
    if (x.cols > kKC) RowAsFloat(x, m, k, kc, part);
    total += ToCodes(part, kc, scale, codes + k);
  }
  std::memset(codes + filled, 0,
              static_cast<size_t>(CodePitch(x.cols) - filled) * sizeof(UnitCode));
  *sum = SumLanes(total);
  return scale;
}

/// Quantises and packs panels [panel0, panel1) of rows that start at m0 of `x`.
LOWRANK_INLINE void PackRowCodes(Run& run, const RowSource& x, int64_t m0, int64_t panel0,
                                 int64_t panel1, const PackedChunk& chunk) {
  const int64_t pitch = CodePitch(x.cols);
  UnitCode* stage = nullptr;
  const bool dots = chunk.route == Route::kRowCodeDots;
  if (!dots) {
    stage = run.Get<UnitCode>(kStageSlot, kMR * pitch);
    if (stage == nullptr) return;
  }
  float* scales = ChunkScales(chunk);
  float* corrections = scales + chunk.rows;
  chunk.panels.Each(panel0, panel1, [&](int64_t, int64_t m, int mr) {
    UnitCode* codes = dots ? reinterpret_cast<UnitCode*>(chunk.data) + m * pitch : stage;
    for (int i = 0; i < mr; ++i) {
      int32_t sum;
      scales[m + i] = QuantizeRow(x, m0 + m + i, codes + i * pitch, &sum);
      const int32_t correction = -kWeightOffset * sum;
      std::memcpy(corrections + m + i, &correction, 4);
    }
    if (dots) return;
    for (int64_t k0 = 0; k0 < x.cols; k0 += kDepth<RowCodePolicy>) {
      const int64_t units = RowCodePolicy::Units(Min(kDepth<RowCodePolicy>, x.cols - k0));
      float* out = chunk.At<RowCodePolicy>(k0, m, mr);
      TransposeRows<RowCodePolicy>(reinterpret_cast<const char*>(codes + k0),
                                   pitch * static_cast<int64_t>(sizeof(UnitCode)), mr, units, out,
                                   mr, out + units * mr);
    }
  });
}

/// Rows of w as B panels.
struct RowCodeColumns {
  const RowSource& source;

  using Decoder = NoDecoder;
  static constexpr bool kByPanels = true;

  /// Prefetched while they are packed.
  void Ask(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t) const {}
  void operator()(int64_t k0, int64_t kc, int64_t n0, int64_t n1, float* out) const {
    const int64_t units = RowCodePolicy::Units(kc);
    for (int64_t n = n0; n < n1; n += kNR, out += PanelStride(units)) {
      const int64_t nr = PanelWidth(n, n1);
      for (int64_t v = 0; v < nr; v += kVL) {
        const int rows = static_cast<int>(Max(Min(kVL, n1 - n - v), 1));
        const int64_t row = Min(n + v, n1 - 1);
        for (int i = 0; i < kVL; ++i) PrefetchRow(source, row + kVL + i, k0, kc);
        const uint8_t* bytes = source.quant->codes + row * source.cols + k0;
        const char* src = reinterpret_cast<const char*>(bytes);
        int64_t pitch = source.cols;
        alignas(64) UnitCode wide[kWeightOffset != 0 ? 1 : kVL][kDepth<RowCodePolicy>];
        if constexpr (kWeightOffset == 0) {
          for (int i = 0; i < rows; ++i) {
            for (int64_t k = 0; k < kc; k += kStepCodes) {
              StoreU(wide[i] + k, reinterpret_cast<VecU>(LoadCodes(bytes + i * source.cols + k)));
            }
          }
          src = reinterpret_cast<const char*>(wide);
          pitch = sizeof(wide[0]);
        }
        TransposeRows<RowCodePolicy>(src, pitch, rows, units, out + v, nr,
                                     out + v + (units - 1) * nr + kVL);
        FillColumns(rows, units, nr, out + v);
      }
    }
  }
};

/// Converts C of a block, its complete sums of codes, to f32.
LOWRANK_INLINE void ScaleSums(const PackedChunk& chunk, const RowSource& w, const Block& block,
                              float* c) {
  const QuantView& quant = *w.quant;
  const int64_t blocks = quant.cols / quant.blocksize;
  const int64_t cols = block.n1 - block.n0;
  alignas(64) float w_scales[kNC] = {};
  for (int64_t n = 0; n < cols; ++n) w_scales[n] = quant.absmax[(block.n0 + n) * blocks] / 127.0f;
  const float* scales = ChunkScales(chunk);
  const float* corrections = scales + chunk.rows;
  for (int64_t m = block.m0; m < block.m1; ++m) {
    float* row = c + (m - block.m0) * block.ldc();
    const VecI correction = SplatCodes(corrections + m);
    const VecF scale = Splat(scales[m]);
    for (int64_t n = 0; n < cols; n += kVL) {
      const VecI sum = reinterpret_cast<VecI>(LoadU(row + n)) + correction;
      Store(row + n, __builtin_convertvector(sum, VecF) * (scale * Load(w_scales + n)));
    }
  }
}

}  // namespace lowrank::cpu::LOWRANK_ISA
