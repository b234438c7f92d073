/// row_dot.h for more rows of x: the first pass over x stores the vectors of w that it decodes, and
/// the other passes read them back.
///
/// Scratch    a part of some rows of w as units [granule][place][row][lane]; sums of kVL rows of w
///            with all rows of x
/// Numerics   sum_order.h; the same bits as row_dot.h
/// Budget     bf16, a granule of a row of w on one core of 2 x 256-bit multiply-adds: 11.5 cycles
///            for the first pass (4 rows of x, decoding beside the products), then 2.1 for
///            each row of x, of which 2 are products; 0.054 per row and span of 64 granules to
///            reduce lanes
#pragma once

#include "native/cpu/kernels/dot/row_dot.h"

namespace lowrank::cpu::LOWRANK_ISA {

// Rows of x in the first pass: four rows of w leave registers for their decoders.
constexpr int kFirstRows = 4;
// Rows of w that are decoded together and share each vector of x.
constexpr int kStoredWeights = DotWeights<kFirstRows>();
// Rows of x in the other passes.
constexpr int kStoredRows = 6;
// Or in the only one: codes that are no nibbles have no first pass.
constexpr int kMostStoredRows = kDotRows > kStoredRows ? kDotRows : kStoredRows;

// From this many rows of x on, storing w pays, that is, whenever one pass cannot hold them.
constexpr int64_t kLeastStoredRows = kDotRows + 1;
// Panels are faster if x, which each group of rows of w reads, leaves no room in L2 for them, and
// if sums are short: reducing lanes costs as much as products over 400 columns in bf16.
constexpr int64_t kMostDotUnits = 128 << 10;  // 512 KiB of x
constexpr int64_t kMostDotRows = kRegisters == 32 ? 64 : 8;
constexpr int64_t kDotDepthPerRow = 32;
// A span is processed in parts whose decoded rows take this many bytes: up to kPartRows rows of x
// are in L1 with them. More rows come from L2, and the cost of a part, its sums read and written,
// is shared by more products, so for pairs parts of twice the length are faster. For yet more rows
// sums come from L2 too, and f32 gains nothing above kPartRows (Zen 5; longer parts of 16 rows lost
// an eighth on Cascade Lake).
constexpr int64_t kPartBytes = 8 << 10;
constexpr int64_t kPartRows = 16;
template <typename Policy>
constexpr int64_t kLongPartRows = Policy::kPairs ? 48 : kPartRows;

/// Granules in such a part. On Zen 4, where L2 delivers a vector in the time of a product, parts
/// only cost: as a single part 8 to 48 rows of pairs take 0.90 to 0.96 of the time, 12 and 16 of
/// f32 0.94 to 0.97.
template <typename Policy>
LOWRANK_INLINE int64_t PartGranules(int64_t rows) {
  constexpr int64_t kBytes = kStoredWeights * Policy::Units(kGranule) * 4;
  if (rows > kLongPartRows<Policy> || IsZen4()) return kSpan / kGranule;
  return Min(kSpan / kGranule, (rows <= kPartRows ? kPartBytes : 2 * kPartBytes) / kBytes);
}

template <typename Policy, int kRows, int kWeights>
static void StoredDot(const Unit* w, const Unit* x, int64_t units, VecF* sums, bool first) {
  VecF acc[kWeights][kRows];
  ReadSums(first, sums, acc);
  for (int64_t u = 0; u < units; ++u) {
    VecF columns[kWeights];
#pragma GCC unroll 8
    for (int r = 0; r < kWeights; ++r) columns[r] = Load(w + r * kVL);
    w += kWeights * kVL;
    x = AddProducts<Policy>(columns, x, acc);
  }
  StoreSums(acc, sums);
}

using StoredDotFn = void (*)(const Unit* w, const Unit* x, int64_t units, VecF* sums, bool first);

template <typename Policy, int kWeights, int kRows = kMostStoredRows>
LOWRANK_INLINE StoredDotFn PickStoredDot(int64_t rows) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return PickStoredDot<Policy, kWeights, kRows - 1>(rows);
  }
  return StoredDot<Policy, kRows, kWeights>;
}

template <typename Policy, Granules kKind, typename Rounding, int kWeights, int kRows = kFirstRows>
LOWRANK_INLINE RowDotFn PickFirstDot(int64_t rows) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return PickFirstDot<Policy, kKind, Rounding, kWeights, kRows - 1>(rows);
  }
  return RowDot<Policy, GranuleDecoder<Policy::kPairs, kKind>, Rounding, kRows, kWeights, true>;
}

template <typename Policy, Granules kKind, int kWeights>
LOWRANK_INLINE RowDotFn PickFirstDot(int64_t rows, DType round_to) {
  if constexpr (kWeights == 1) return PickFirstDot<Policy, kKind, ToldRounding, 1>(rows);
  return WithTableRounding<Policy::kPairs, kKind>(round_to, [&](auto rounding) {
    return PickFirstDot<Policy, kKind, decltype(rounding), kWeights>(rows);
  });
}

/// Splits rows of x into as few passes as can hold them.
LOWRANK_INLINE RowPanels DotPasses(int64_t rows) {
  if (rows < kLeastStoredRows) return {rows, 1};
  return {rows, 1 + CeilDiv(rows - kFirstRows, kStoredRows), kFirstRows};
}

/// Rows [i, i + kWeights) of a strip with all rows of x, over the granules of `dots` from granule
/// g0 of w on. `sums` are the strip's. The fields of `dots` for x and sums are set here (one object
/// for all calls: a copy would wait for the stores that have just filled it).
template <typename Policy, Granules kKind, int kWeights>
LOWRANK_INLINE void StoreAndDot(const PackedChunk& chunk, const RowSource& w, int64_t n, int64_t g0,
                                int64_t i, VecF* sums, DotBlock& dots) {
  constexpr int64_t kUnits = Policy::Units(kPlaces);
  for (int64_t r = 0; kKind == Granules::kCodes && r < kWeights; ++r) {
    DecodeCodeGranules<kUnitOrder<Policy::kPairs>>(
        *w.quant, w.tables, n + i + r, g0 * kGranule, dots.granules, dots.scales, r, kWeights,
        w.round_to, {dots.stored + r * kVL, kWeights * kVL});
  }
  for (int64_t pass = 0; pass < chunk.panels.count; ++pass) {
    const int64_t m = chunk.panels.Start(pass);
    const int64_t rows = chunk.panels.Start(pass + 1) - m;
    dots.x = chunk.data + m * Policy::Units(w.cols) + g0 * (kUnits * rows * kVL);
    dots.sums = sums + m * kVL + i * rows;
    if constexpr (kKind != Granules::kCodes) {
      if (pass == 0) {
        PickFirstDot<Policy, kKind, kWeights>(rows, w.round_to)(w.tables.nibbles, dots);
        continue;
      }
    }
    PickStoredDot<Policy, kWeights>(rows)(dots.stored, dots.x, dots.granules * kUnits, dots.sums,
                                          dots.first);
  }
}

template <typename Policy, Granules kKind>
LOWRANK_INLINE void AccumulateStoredDots(Run& run, const PackedChunk& chunk,
                                         const RowSource& source, const Block& block, float* c) {
  const QuantView& w = *source.quant;
  const int64_t part = PartGranules<Policy>(chunk.rows);
  const int64_t stored_units = kStoredWeights * Policy::Units(part * kGranule);
  Unit* stored = run.Get<Unit>(kBSlot, stored_units + kVL * chunk.rows * kVL);
  if (stored == nullptr) return;
  VecF* sums = reinterpret_cast<VecF*>(stored + stored_units);  // of each pass [n][m]
  constexpr bool kOne = kKind == Granules::kOne;
  alignas(64) float scratch[kOne ? kVL * (kSpan / kGranule) : FactorScratch(kVL, kSpan / kGranule)];
  for (int64_t n = block.n0; n < block.n1 && !run.Stopped(); n += kVL) {
    const int64_t strip = Min(kVL, block.n1 - n);
    for (int64_t k0 = 0; k0 < w.cols; k0 += kSpan) {
      const int64_t span = Min(kSpan, w.cols - k0);
      const ScaleRows scales = ScalesOf(kKind, w, n, strip, k0, span, scratch);
      DotBlock dots;
      dots.round_to = source.round_to;
      dots.code_pitch = w.cols / 2;
      dots.scales = scales;
      dots.stored = stored;
      for (int64_t g0 = 0; g0 < span / kGranule; g0 += part) {
        const int64_t k = k0 + g0 * kGranule;
        dots.scales.first = scales.first + g0;
        dots.granules = Min(part, span / kGranule - g0);
        dots.first = g0 == 0;
        for (int64_t i = 0; i < strip;) {
          const bool several = i + kStoredWeights <= strip;
          const int64_t rows = several ? kStoredWeights : 1;
          if (kOne && dots.first) AskScales(w, n + i, rows, kVL, kVL, k0, span);
          dots.codes = w.codes + ((n + i) * w.cols + k) / 2;
          dots.scales.data = scales.data + i * scales.pitch;
          if (several) {
            StoreAndDot<Policy, kKind, kStoredWeights>(chunk, source, n, k / kGranule, i, sums,
                                                       dots);
          } else {
            StoreAndDot<Policy, kKind, 1>(chunk, source, n, k / kGranule, i, sums, dots);
          }
          i += rows;
        }
      }
      for (int64_t pass = 0; pass < chunk.panels.count; ++pass) {
        const int64_t m = chunk.panels.Start(pass);
        AddLanes(sums + m * kVL, strip, chunk.panels.Start(pass + 1) - m, k0 == 0,
                 c + m * block.ldc() + n - block.n0, block.ldc());
      }
    }
  }
}

/// c [m1 - m0, n1 - n0] = x · wᵀ over the whole summation index, for Route::kLaneDots, whose chunk,
/// packed for dots, has all the block's rows.
template <typename Policy>
LOWRANK_INLINE void AccumulateDots(Run& run, const PackedChunk& chunk, const RowSource& w,
                                   const Block& block, float* c) {
  const Granules kind = GranulesOf(w);
  if (kind == Granules::kCodes) {
    if constexpr (kVL >= 8) {
      if (DotsBytes(*w.quant, chunk.rows)) {
        AccumulateRowDots<Policy, Granules::kCodes>(run, chunk, w, block, c);
        return;
      }
    }
    AccumulateStoredDots<Policy, Granules::kCodes>(run, chunk, w, block, c);
    return;
  }
  WithGranules(kind, [&](auto known) {
    if (chunk.rows >= kLeastStoredRows) {
      AccumulateStoredDots<Policy, known()>(run, chunk, w, block, c);
    } else {
      AccumulateRowDots<Policy, known()>(run, chunk, w, block, c);
    }
  });
}

}  // namespace lowrank::cpu::LOWRANK_ISA
