/// y = x · dequant(w)ᵀ for few rows of x and 4-bit codes: vectors along k, in the order of lanes.
///
///   y[m, n] = Σ_lanes Σ_places x[m, k] · T(codebook[code[n, k]] · absmax[n, k / blocksize])
///
/// Operands   x       [granule][place][m][lane] units (lane_pack.h): read once for all rows of w
///                    that share it, so it may come from L2
///            codes   rows of w in bitsandbytes' layout: 32 bytes per granule, read as they are
///            sums    [n][m] vectors of kVL lanes, reduced once per span
///
/// A granule of a row has one scale, so one table of 16 products with the codebook serves all of
/// it, already rounded to T. Decoding a vector of weights is then one shift and one look-up,
/// whatever M: the scale and the rounding cost as much for kVL weights as they would for one.
///
///   bf16   a vector is 32 weights: shift, vpermw, and a dot product for each row of x
///   f32    16 weights: shift, vpermps, and a multiply-add for each row of x
///
/// Numerics   sum_order.h; the same bits as panels in that order
/// Budget     one core of 2 x 256-bit multiply-adds, 4096 x 4096 weights out of cache: 0.40 ms at
///            M = 1 for bf16 (6.1 cycles a granule: 2.5 for the table, 3.6 for two steps) and 0.60
///            for f32 (9.1); from M = 4 on the products take 0.70 to 0.85 of it. Rows of w are
///            prefetched one group ahead into L2, their scales two groups ahead (except on Zen 4);
///            four rows at a time, because more would share sets of L1
#pragma once

#include "native/cpu/kernels/decode/code_granules.h"
#include "native/cpu/kernels/pack/lane_pack.h"
#include "native/cpu/kernels/tile/gemm.h"

namespace lowrank::cpu::LOWRANK_ISA {

// Rows of x that share a decoded vector. More would leave too few registers for other rows of w.
constexpr int kDotRows = kRegisters == 32 ? 7 : 4;
// The same for codes that are no nibbles; for more rows of x the decoded vectors are stored.
constexpr int kByteDotRows = 2;
// Rows of w whose sums are held: a multiple of kVL, and of every result of DotWeights().
constexpr int64_t kDotStrip = 48;

/// Rows of w for kRows of x: each needs its sums, table, codes and decoded vector in registers.
template <int kRows>
constexpr int DotWeights() {
  // Look-ups by loads take the whole time for one row of x.
  if (!kHasLookUps && kRows == 1) return 1;
  for (int weights : {4, 3, 2}) {
    if ((kRows + 3) * weights + 2 <= kRegisters) return weights;
  }
  return 1;
}

/// Operands for the sums of some rows of w with some of x over `granules`, which start (`first`) or
/// continue.
struct DotBlock {
  DType round_to;  // weights
  const uint8_t* codes;
  int64_t code_pitch;
  ScaleRows scales;
  float first_level;  // of codes as bytes
  int64_t granules;
  const Unit* x;
  VecF* sums;
  bool first = true;
  Unit* stored = nullptr;  // out, for kStore: the decoded rows [granule][place][row of w][lane]
};

/// Multiplies a vector of each of some rows of w, from row `first` of acc on, by that of each row
/// of x. Returns the position in x.
template <typename Policy, int kCount, int kRows, int kWeights>
LOWRANK_INLINE const Unit* AddProducts(const VecF (&columns)[kCount], const Unit* x,
                                       VecF (&acc)[kWeights][kRows], int first = 0) {
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m) {
    VecF row = Load(x + m * kVL);
    if constexpr (kCount > 1) Pin(row);
#pragma GCC unroll 8
    for (int r = 0; r < kCount; ++r) {
      acc[first + r][m] = Policy::StepLanes(acc[first + r][m], row, columns[r]);
    }
  }
  return x + kRows * kVL;
}

/// The sums of a tile: [row of w][row of x].
template <int kRows, int kWeights>
LOWRANK_INLINE void ReadSums(bool first, const VecF* sums, VecF (&acc)[kWeights][kRows]) {
#pragma GCC unroll 8
  for (int r = 0; r < kWeights; ++r) {
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m) acc[r][m] = first ? VecF{} : sums[r * kRows + m];
  }
}
template <int kRows, int kWeights>
LOWRANK_INLINE void StoreSums(const VecF (&acc)[kWeights][kRows], VecF* sums) {
#pragma GCC unroll 8
  for (int r = 0; r < kWeights; ++r) {
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m) sums[r * kRows + m] = acc[r][m];
  }
}

template <typename Policy, typename Decoder, typename Rounding, int kRows, int kWeights,
          bool kStore = false>
static void RowDot(const Table16& codebook, const DotBlock& block) {
  const uint8_t* codes = block.codes;
  const ScaleRows scales = block.scales;
  const Unit* x = block.x;
  Unit* stored = block.stored;
  // Pairs, several rows of x: products wait for tables, which take a multiply, a conversion and a
  // permutation in sequence, while the processor looks 60 operations ahead. So the tables are
  // computed one granule ahead if there are registers for it, and some rows of w are decoded in
  // parallel with the products of earlier ones.
  constexpr bool kEarly = Policy::kPairs && kRows > 1 && kRows * kWeights <= kRegisters / 2;
  constexpr int kTogether = kEarly && kRows > 2 && kWeights % 2 == 0 ? 2 : kWeights;
  constexpr int kUnitsAtOnce = kEarly ? Decoder::kUnits : 1;
  VecF acc[kWeights][kRows];
  ReadSums(block.first, block.sums, acc);
  constexpr bool kPacked =
      Decoder::kCodeBytes == kGranule / 2;  // codes come from the weight itself
  Decoder decoder[kWeights];
  if constexpr (!kPacked) {
    for (Decoder& each : decoder) each.first_level = block.first_level;
  }
  const auto set_scales = [&](int first, int count, int64_t g) {
#pragma GCC unroll 8
    for (int r = first; r < first + count; ++r) {
      decoder[r].SetScale(codebook, scales.At(r, g), scales.layout, Rounding::Of(block.round_to));
    }
  };
  // One row of x in f32: prefetches the same row four granules ahead from L2. Left to the
  // processor, Zen 4 takes 1.09 times as long with some orders of these loads, which the compiler
  // chooses.
  constexpr bool kFromL2 = kVL == 16 && !Policy::kPairs && kRows == 1;
  constexpr int64_t kAheadInL2 = 4 * kGranule / 2;
  if constexpr (kEarly) set_scales(0, kWeights, 0);
  for (int64_t g = 0; g < block.granules; ++g) {
    // The same position in the rows after these, into L2: x has L1.
    if (kPacked && (g & 1) == 0) {
#pragma GCC unroll 8
      for (int r = 0; r < kWeights; ++r) {
        __builtin_prefetch(codes + (r + kWeights) * block.code_pitch, 0, 2);
        if constexpr (kFromL2) __builtin_prefetch(codes + r * block.code_pitch + kAheadInL2);
      }
    }
    if constexpr (!kEarly) set_scales(0, kWeights, g);
#pragma GCC unroll 8
    for (int first = 0; first < kWeights; first += kTogether) {
      const Unit* at = x;
#pragma GCC unroll 16
      for (int u = 0; u < Decoder::kUnits; u += kUnitsAtOnce) {
        VecF columns[kUnitsAtOnce][kTogether];
#pragma GCC unroll 8
        for (int i = 0; i < kUnitsAtOnce; ++i) {
#pragma GCC unroll 8
          for (int r = 0; r < kTogether; ++r) {
            const int row = first + r;
            columns[i][r] = decoder[row].At(codes + row * block.code_pitch, u + i);
            if constexpr (kStore) Store(stored + ((u + i) * kWeights + row) * kVL, columns[i][r]);
          }
        }
        if constexpr (kEarly) set_scales(first, kTogether, Min(g + 1, block.granules - 1));
#pragma GCC unroll 8
        for (int i = 0; i < kUnitsAtOnce; ++i) {
          at = AddProducts<Policy>(columns[i], at, acc, first);
        }
      }
    }
    codes += Decoder::kCodeBytes;
    x += Decoder::kUnits * kRows * kVL;
    if constexpr (kStore) stored += Decoder::kUnits * kWeights * kVL;
  }
  StoreSums(acc, block.sums);
}

using RowDotFn = void (*)(const Table16& codebook, const DotBlock& block);

/// The kernel for a number of rows of x, and the number of rows of w that it takes.
struct RowDotChoice {
  RowDotFn several;
  RowDotFn one;
  int weights;
};

template <typename Policy, Granules kKind, int kRows = kDotRows>
LOWRANK_INLINE RowDotChoice PickRowDot(int64_t rows, DType round_to) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return PickRowDot<Policy, kKind, kRows - 1>(rows, round_to);
  }
  using Decoder = GranuleDecoder<Policy::kPairs, kKind>;
  return WithTableRounding<Policy::kPairs, kKind>(round_to, [](auto rounding) -> RowDotChoice {
    constexpr int kWeights = DotWeights<kRows>();
    return {RowDot<Policy, Decoder, decltype(rounding), kRows, kWeights>,
            RowDot<Policy, Decoder, ToldRounding, kRows, 1>, kWeights};
  });
}

/// The same for codes of another width, which are unpacked to bytes first.
template <typename Policy, int kRows = kByteDotRows>
LOWRANK_INLINE RowDotChoice PickByteDot(const QuantView& w, int64_t rows) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return PickByteDot<Policy, kRows - 1>(w, rows);
  }
  const auto choice = [](auto affine, auto levels) -> RowDotChoice {
    using Decoder = CodeDecoder<Policy::kPairs, affine(), levels()>;
    constexpr int kWeights = kRegisters == 32 ? 4 : 2;
    return {RowDot<Policy, Decoder, ToldRounding, kRows, kWeights>,
            RowDot<Policy, Decoder, ToldRounding, kRows, 1>, kWeights};
  };
  const auto by_levels = [&](auto affine) {
    constexpr std::integral_constant<PlaneLevels, PlaneLevels::kTable16> table16;
    constexpr std::integral_constant<PlaneLevels, PlaneLevels::kLinear> linear;
    return w.planes.bits < 4 ? choice(affine, table16) : choice(affine, linear);
  };
  return IsAffine(w.planes) ? by_levels(std::true_type()) : by_levels(std::false_type());
}

/// Are products of these rows of x computed by PickByteDot's kernels? Lanes of narrow vectors have
/// factors of several parts.
LOWRANK_INLINE bool DotsBytes(const QuantView& w, int64_t rows) {
  const bool integers = w.planes.bits < 4 || w.planes.rule != LevelRule::kTable;
  return kVL >= 8 && rows <= kByteDotRows && integers;
}

/// Reduces sums[n][m] to c[m][n], lane after lane, kVL rows of w at a time.
LOWRANK_INLINE void AddLanes(const VecF* sums, int64_t rows_of_w, int64_t rows, bool first,
                             float* c, int64_t ldc) {
  for (int64_t n = 0; n < rows_of_w; n += kVL) {
    for (int64_t m = 0; m < rows; ++m) {
      VecF r[kVL];
      // Columns past the last are spare: copies of it.
#pragma GCC unroll 16
      for (int i = 0; i < kVL; ++i) r[i] = sums[Min(n + i, rows_of_w - 1) * rows + m];
      Transpose(r);
      float* out = c + m * ldc + n;
      VecF total = first ? r[0] : Load(out) + r[0];
#pragma GCC unroll 16
      for (int l = 1; l < kVL; ++l) total = total + r[l];
      Store(out, total);
    }
  }
}

/// Prefetches the scales of later rows of w: those `near` rows on, or, if scales are decoded a
/// strip at a time, those of the next strip. Without it, each row waited for them (one row of x
/// took 1.35 times as long, core of 2 x 512-bit multiply-adds).
LOWRANK_INLINE void AskScales(const QuantView& w, int64_t row, int64_t rows, int64_t near,
                              int64_t strip, int64_t k0, int64_t span) {
  row += w.absmax != nullptr ? near : strip;
  for (const int64_t end = Min(row + rows, w.rows); row < end; ++row) {
    PrefetchScales(w, row * w.cols + k0, span);
  }
}

/// Zen 4 takes two cycles for a product of 512 bits, in which L2 delivers a vector, and prefetches
/// scales by itself. No other processor of the family has AVX-512.
LOWRANK_INLINE bool IsZen4() {
#if defined(__AVX512F__)
  return __builtin_cpu_is("amdfam19h") != 0;
#else
  return false;
#endif
}

/// c [m1 - m0, n1 - n0] = x · wᵀ over the whole summation index. The chunk, packed for dots, has
/// all the block's rows.
template <typename Policy, Granules kKind>
LOWRANK_INLINE void AccumulateRowDots(Run& run, const PackedChunk& chunk, const RowSource& source,
                                      const Block& block, float* c) {
  const QuantView& w = *source.quant;
  constexpr int64_t kUnits = Policy::Units(kPlaces);
  constexpr bool kOne = kKind == Granules::kOne;
  // Those of granules of several parts are decoded for fewer rows at a time: L1.
  constexpr int64_t kStrip = kOne ? kDotStrip : 16;
  alignas(64) VecF sums[kStrip * kDotRows];
  alignas(64) float
      scales[kOne ? kStrip * (kSpan / kGranule) : FactorScratch(kStrip, kSpan / kGranule)];
  constexpr bool kCodes = kKind == Granules::kCodes;
  alignas(64) uint8_t unpacked[kCodes ? 4 * kSpan : 1];
  // Codes in two's complement become a line of levels by one exchange.
  const bool is_signed = kCodes && w.planes.rule == LevelRule::kSigned;
  // Prefetching them costs Zen 4 4 % for 4 rows of pairs, 1 to 3 % for others.
  const bool asks = kOne && (w.absmax == nullptr || !IsZen4());
  for (int64_t n = block.n0; n < block.n1 && !run.Stopped(); n += kStrip) {
    const int64_t strip = Min(kStrip, block.n1 - n);
    for (int64_t k0 = 0; k0 < w.cols; k0 += kSpan) {
      const int64_t span = Min(kSpan, w.cols - k0);
      DotBlock dots;
      dots.round_to = source.round_to;
      dots.scales = ScalesOf(kKind, w, n, strip, k0, span, scales);
      const float* strip_scales = dots.scales.data;
      dots.code_pitch = kCodes ? kSpan : w.cols / 2;
      dots.first_level = is_signed ? -128.0f : w.planes.first_level;
      for (int64_t pass = 0; pass < chunk.panels.count; ++pass) {
        const int64_t m = chunk.panels.Start(pass);
        const int64_t rows = chunk.panels.Start(pass + 1) - m;
        RowDotChoice choice;
        if constexpr (kCodes) {
          choice = PickByteDot<Policy>(w, rows);
        } else {
          choice = PickRowDot<Policy, kKind>(rows, source.round_to);
        }
        dots.granules = span / kGranule;
        dots.x = chunk.data + m * Policy::Units(w.cols) + k0 / kGranule * (kUnits * rows * kVL);
        for (int64_t i = 0; i < strip;) {
          const bool several = i + choice.weights <= strip;
          if constexpr (kCodes) {
            const Planes& planes = w.planes;
            for (int64_t r = 0; r < (several ? choice.weights : 1); ++r) {
              UnpackCodes<kUnitOrder<Policy::kPairs>>(
                  w.codes + (n + i + r) * planes.row_bytes + k0 * planes.bits / 8, planes.bits,
                  dots.granules, choice.weights * planes.row_bytes, unpacked + r * kSpan,
                  is_signed ? 0x80 : 0);
            }
            dots.codes = unpacked;
          } else {
            dots.codes = w.codes + ((n + i) * w.cols + k0) / 2;
          }
          dots.scales.data = strip_scales + i * dots.scales.pitch;
          dots.sums = sums + i * rows;
          if (pass == 0 && asks) {
            AskScales(w, n + i, choice.weights, 2 * choice.weights, kStrip, k0, span);
          }
          (several ? choice.several : choice.one)(source.tables.nibbles, dots);
          i += several ? choice.weights : 1;
        }
        AddLanes(sums, strip, rows, k0 == 0, c + m * block.ldc() + n - block.n0, block.ldc());
      }
    }
  }
}

}  // namespace lowrank::cpu::LOWRANK_ISA
