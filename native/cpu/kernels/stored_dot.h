/// row_dot.h for more rows of x: the first pass over x stores the vectors of w that it decodes, and
/// the others read them back.
///
/// Scratch    some rows of w as units [granule][place][row][lane], 32 KiB of bf16, 64 KiB of f32;
///            sums of kVL rows of w with all rows of x
/// Numerics   sum_order.h; the same bits as row_dot.h
/// Budget     bf16, a granule of one row of w on one core of 2 x 256-bit multiply-adds: 11.5 cycles
///            for the first pass (4 rows of x, decoding beside the products), then 2.1 for each row
///            of x, of which 2 are products; 0.054 a row and span of 64 granules to add up lanes
#pragma once

#include "native/cpu/kernels/row_dot.h"

namespace lowrank::cpu::LOWRANK_ISA {

// Rows of x of the first pass: four rows of w beside them leave registers for their decoders.
constexpr int kFirstRows = 4;
// Rows of w that are decoded together and share each vector of x.
constexpr int kStoredWeights = DotWeights<kFirstRows>();
// Rows of x of the other passes.
constexpr int kStoredRows = 6;

// Rows of x from here on are worth storing w, which is whenever one pass does not hold them.
constexpr int64_t kLeastStoredRows = kDotRows + 1;
// Panels win where x, which each group of rows of w reads, does not leave L2 room for them, and
// where sums are short: adding up lanes costs as much as products over 400 columns in bf16.
constexpr int64_t kMostDotUnits = 128 << 10;  // 512 KiB of x
constexpr int64_t kMostDotRows = kRegisters == 32 ? 64 : 8;
constexpr int64_t kDotDepthPerRow = 32;

template <typename Policy, int kRows, int kWeights>
static void StoredDot(const Unit* w, const Unit* x, int64_t units, VecF* sums) {
  VecF acc[kWeights][kRows] = {};
  for (int64_t u = 0; u < units; ++u) {
    VecF columns[kWeights];
#pragma GCC unroll 8
    for (int r = 0; r < kWeights; ++r) columns[r] = Load(w + r * kVL);
    w += kWeights * kVL;
    x = AddProducts<Policy>(columns, x, acc);
  }
  StoreSums(acc, sums);
}

using StoredDotFn = void (*)(const Unit* w, const Unit* x, int64_t units, VecF* sums);

template <typename Policy, int kWeights, int kRows = kStoredRows>
LOWRANK_INLINE StoredDotFn PickStoredDot(int64_t rows) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return PickStoredDot<Policy, kWeights, kRows - 1>(rows);
  }
  return StoredDot<Policy, kRows, kWeights>;
}

template <typename Policy, DType kRound, int kWeights, int kRows = kFirstRows>
LOWRANK_INLINE RowDotFn PickFirstDot(int64_t rows) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return PickFirstDot<Policy, kRound, kWeights, kRows - 1>(rows);
  }
  return RowDot<Policy, kRound, kRows, kWeights, true>;
}

template <typename Policy, int kWeights>
LOWRANK_INLINE RowDotFn PickFirstDot(int64_t rows, DType round_to) {
  return WithRounding<Policy::kPairs>(
      round_to, [&](auto round) { return PickFirstDot<Policy, round(), kWeights>(rows); });
}

/// Does AccumulateDots take this product?
template <typename Policy>
LOWRANK_INLINE bool TakesDots(int64_t rows, const SumOrder& order) {
  if (!order.by_lanes) return false;
  if (rows < kLeastStoredRows) return true;
  return rows <= Min(kMostDotRows, order.depth / kDotDepthPerRow) &&
         rows * Policy::Units(order.depth) <= kMostDotUnits;
}

/// Rows of x in as few passes as hold them.
LOWRANK_INLINE RowPanels DotPasses(int64_t rows) {
  if (rows < kLeastStoredRows) return {rows, 1};
  return {rows, 1 + CeilDiv(rows - kFirstRows, kStoredRows), kFirstRows};
}

template <typename Policy>
LOWRANK_INLINE void AccumulateStoredDots(Run& run, const PackedChunk& chunk,
                                         const RowSource& source, const Block& block, float* c) {
  const QuantView& w = *source.quant;
  constexpr int64_t kUnits = Policy::Units(kPlaces);
  constexpr int64_t kStored = kStoredWeights * Policy::Units(kSpan);
  Unit* stored = run.Get<Unit>(kBSlot, kStored + kVL * chunk.rows * kVL);
  if (stored == nullptr) return;
  VecF* sums = reinterpret_cast<VecF*>(stored + kStored);  // of each pass [n][m]
  alignas(64) float scales[kVL * (kSpan / kGranule)];
  for (int64_t n = block.n0; n < block.n1 && !run.Stopped(); n += kVL) {
    const int64_t strip = Min(kVL, block.n1 - n);
    for (int64_t k0 = 0; k0 < w.cols; k0 += kSpan) {
      DotBlock dots;
      const int64_t span = Min(kSpan, w.cols - k0);
      dots.scales = ScalesOf(w, n, strip, k0, span, scales);
      const float* strip_scales = dots.scales.data;
      dots.code_pitch = w.cols / 2;
      dots.granules = span / kGranule;
      for (int64_t i = 0; i < strip;) {
        const bool several = i + kStoredWeights <= strip;
        dots.codes = w.codes + ((n + i) * w.cols + k0) / 2;
        dots.scales.data = strip_scales + i * dots.scales.pitch;
        dots.stored = stored;
        for (int64_t pass = 0; pass < chunk.panels.count; ++pass) {
          const int64_t m = chunk.panels.Start(pass);
          const int64_t rows = chunk.panels.Start(pass + 1) - m;
          const Unit* x =
              chunk.data + m * Policy::Units(w.cols) + k0 / kGranule * (kUnits * rows * kVL);
          if (pass == 0) {
            dots.x = x;
            dots.sums = sums + i * rows;
            const RowDotFn dot = several
                                     ? PickFirstDot<Policy, kStoredWeights>(rows, source.round_to)
                                     : PickFirstDot<Policy, 1>(rows, source.round_to);
            dot(source.table, dots);
            continue;
          }
          const StoredDotFn dot = several ? PickStoredDot<Policy, kStoredWeights>(rows)
                                          : PickStoredDot<Policy, 1>(rows);
          dot(stored, x, dots.granules * kUnits, sums + m * kVL + i * rows);
        }
        i += several ? kStoredWeights : 1;
      }
      for (int64_t pass = 0; pass < chunk.panels.count; ++pass) {
        const int64_t m = chunk.panels.Start(pass);
        AddLanes(sums + m * kVL, strip, chunk.panels.Start(pass + 1) - m, k0 == 0,
                 c + m * block.ldc() + n - block.n0, block.ldc());
      }
    }
  }
}

/// c [m1 - m0, n1 - n0] = x · wᵀ over all of the summation index, where TakesDots() holds and the
/// chunk, packed for dots, is all of the block's rows.
template <typename Policy>
LOWRANK_INLINE void AccumulateDots(Run& run, const PackedChunk& chunk, const RowSource& w,
                                   const Block& block, float* c) {
  if (chunk.rows >= kLeastStoredRows) {
    AccumulateStoredDots<Policy>(run, chunk, w, block, c);
  } else {
    AccumulateRowDots<Policy>(run, chunk, w, block, c);
  }
}

}  // namespace lowrank::cpu::LOWRANK_ISA
