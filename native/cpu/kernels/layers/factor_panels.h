/// d_lora_b from the rows of dy that are packed for the input gradient:
///
///   d_lora_b [N, r] (+)= scaling · dyᵀ · h
///
/// Operands    dy: the A panels of a chunk (gemm.h) in the natural order; h [M, r] f32
/// Tasks       kFactorTaskUnits units of dy's columns
/// Numerics    f32, in the order of rows; sums over kKC rows of the batch are added in order: the
///             bits of gemm.h's tiles over separate rows (SumTile). bf16 pairs are widened here
/// Budget      an element of dy is one broadcast for one or kNV multiply-adds, a pair takes two
///             more shifts. Packing dy again, as B panels, took as long as the sums at r = 16
#pragma once

#include "native/cpu/kernels/dot/thin_dot.h"
#include "native/cpu/kernels/layers/shrink_rows.h"

namespace lowrank::cpu::LOWRANK_ISA {

// Units of columns whose sums are in registers: 16 sums hide the latency of a multiply-add. Half of
// that with 16 registers.
template <typename Policy>
constexpr int kFactorUnits = kVL == 16 && !Policy::kPairs ? 16 : 8;
// Row panels per visit: their part of a task's columns stays in L1 while tiles pass over it.
constexpr int64_t kFactorPanels = 4;
constexpr int64_t kFactorTaskUnits = 32;

/// What the chunks of one pass over dy add up to.
struct FactorPanels {
  const TensorView& h;    // [M, r] f32
  const TensorView& out;  // d_lora_b
  float scaling;
  bool accumulate;
  float* sums = nullptr;  // [N][panels() · kVL]; null if not computed here

  int64_t panels() const { return CeilDiv(h.cols, kVL); }
  int64_t pitch() const { return panels() * kVL; }
};

/// Rows of a chunk of dy from which the sums can be computed, if a chunk has `step` rows without
/// them. 0 if there are so few rows that it does not pay; a chunk must not cut sums over kKC rows.
LOWRANK_INLINE int64_t FactorStep(const TensorView& dy, int64_t step) {
  if (dy.rows <= kThinRows || dy.cols == 0) return 0;
  if (step >= dy.rows) return step;
  const int64_t up = CeilDiv(step, kKC) * kKC;
  return up <= kChunkRows ? up : step / kKC * kKC;
}

/// Allocates the sums if they can be computed from chunks of dy, which then have `step` rows.
LOWRANK_INLINE bool MakeFactorPanels(Run& run, const TensorView& dy, FactorPanels& grad,
                                     int64_t* step) {
  const int64_t rows = FactorStep(dy, *step);
  if (rows == 0) return false;
  grad.sums = run.Get<float>(kFactorSlot, dy.cols * grad.pitch());
  *step = rows;
  return grad.sums != nullptr;
}

/// Rows of dy's panels and the same rows of h.
struct FactorRows {
  const PackedChunk& chunk;
  int64_t k0;      // the block of dy's columns
  int64_t m0, m1;  // rows of the chunk
  const float* h;  // row 0 of the chunk
  int64_t h_pitch;
};

/// sums [kUnits columns or pairs][kVectors · kVL] += columns from unit u on, times those of h.
template <typename Policy, int kUnits, int kVectors>
static void FactorTile(const FactorRows& rows, int64_t panel0, int64_t panel1, int64_t u,
                       float* sums) {
  constexpr int kCols = kUnits * (Policy::kPairs ? 2 : 1);
  VecF acc[kCols][kVectors];
#pragma GCC unroll 32
  for (int i = 0; i < kCols * kVectors; ++i) {
    acc[i / kVectors][i % kVectors] = Load(sums + i * kVL);
  }
  for (int64_t panel = panel0; panel < panel1; ++panel) {
    const int64_t start = rows.chunk.panels.Start(panel);
    const int64_t mr = rows.chunk.panels.Start(panel + 1) - start;
    const Unit* a = rows.chunk.At<Policy>(rows.k0, start, mr) + u * mr;
    const int64_t end = Min(start + mr, rows.m1);
    for (int64_t m = Max(start, rows.m0); m < end; ++m) {
      VecF h[kVectors];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) h[v] = Load(rows.h + m * rows.h_pitch + v * kVL);
      const Unit* unit = a + m - start;
#pragma GCC unroll 16
      for (int i = 0; i < kCols; ++i) {
        const Unit* at = unit + (Policy::kPairs ? i / 2 : i) * mr;
        const VecF value = i % 2 == 0 ? SplatElement<Policy, 0>(at) : SplatElement<Policy, 1>(at);
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) acc[i][v] = Fma(value, h[v], acc[i][v]);
      }
    }
  }
#pragma GCC unroll 32
  for (int i = 0; i < kCols * kVectors; ++i) {
    Store(sums + i * kVL, acc[i / kVectors][i % kVectors]);
  }
}

/// sums [units' columns][kVectors · kVL] = columns of units [u0, u1) of a block, times those of h.
template <typename Policy, int kVectors>
LOWRANK_INLINE void FactorBlock(const FactorRows& rows, int64_t u0, int64_t u1, float* sums) {
  constexpr int kUnits = kFactorUnits<Policy> / kVectors;
  constexpr int64_t kUnitSums = (Policy::kPairs ? 2 : 1) * kVectors * kVL;
  std::memset(sums, 0, static_cast<size_t>((u1 - u0) * kUnitSums) * sizeof(float));
  const RowPanels& panels = rows.chunk.panels;
  for (int64_t panel = 0; panel < panels.count; panel += kFactorPanels) {
    const int64_t end = Min(panel + kFactorPanels, panels.count);
    if (panels.Start(end) <= rows.m0 || panels.Start(panel) >= rows.m1) continue;
    int64_t u = u0;
    for (; u + kUnits <= u1; u += kUnits) {
      FactorTile<Policy, kUnits, kVectors>(rows, panel, end, u, sums + (u - u0) * kUnitSums);
    }
    for (; u < u1; ++u) {
      FactorTile<Policy, 1, kVectors>(rows, panel, end, u, sums + (u - u0) * kUnitSums);
    }
  }
}

/// Columns of units [u0, u1) of the block at k0 times kVectors vectors of h's columns from vector v
/// on, over all rows of a chunk that starts at row m0 of the batch, a multiple of kKC. The last
/// chunk stores the gradient.
template <typename Policy, int kVectors>
LOWRANK_INLINE void FactorColumns(const FactorPanels& grad, FactorRows rows, int64_t m0, bool last,
                                  int64_t u0, int64_t u1, int64_t v0) {
  constexpr int64_t kUnitCols = Policy::kPairs ? 2 : 1;
  alignas(64) float sums[kFactorTaskUnits * kUnitCols * kVectors * kVL];
  const int64_t n0 = rows.k0 + u0 * kUnitCols;
  const int64_t n1 = Min(rows.k0 + u1 * kUnitCols, rows.chunk.order.depth);
  const int64_t r = grad.h.cols;
  rows.h += v0 * kVL;
  for (rows.m0 = 0; rows.m0 < rows.chunk.rows; rows.m0 += kKC) {
    rows.m1 = Min(rows.m0 + kKC, rows.chunk.rows);
    FactorBlock<Policy, kVectors>(rows, u0, u1, sums);
    const bool first = m0 + rows.m0 == 0;
    const bool store = last && rows.m1 == rows.chunk.rows;
    for (int64_t i = 0; i < (n1 - n0) * kVectors; ++i) {
      const int64_t n = n0 + i / kVectors;
      const int64_t rank = (v0 + i % kVectors) * kVL;
      float* total = grad.sums + n * grad.pitch() + rank;
      const VecF here = Load(sums + i * kVL);
      const VecF sum = first ? here : Load(total) + here;
      if (store) {
        StoreGrads(grad.out, n * r + rank, Min(kVL, r - rank), sum * grad.scaling, grad.accumulate);
      } else {
        Store(total, sum);
      }
    }
  }
}

/// The same for all columns of h.
template <typename Policy>
LOWRANK_INLINE void FactorTask(const FactorPanels& grad, const FactorRows& rows, int64_t m0,
                               bool last, int64_t u0, int64_t u1) {
  for (int64_t v = 0; v < grad.panels(); v += kNV) {
    if (v + 1 < grad.panels()) {
      FactorColumns<Policy, kNV>(grad, rows, m0, last, u0, u1, v);
    } else {
      FactorColumns<Policy, 1>(grad, rows, m0, last, u0, u1, v);
    }
  }
}

/// Adds a chunk that starts at row m0 of the batch.
template <typename Policy>
LOWRANK_INLINE void AddFactorPanels(Run& run, const PackedChunk& chunk, int64_t m0, bool last,
                                    const FactorPanels& grad) {
  const int64_t r = grad.h.cols;
  const int64_t pitch = grad.pitch();
  const float* h = static_cast<const float*>(grad.h.data) + m0 * r;
  if (r != pitch) {
    // Whole vectors are loaded, so the rows are copied.
    float* padded = run.Get<float>(kShrinkSlot, chunk.rows * pitch);
    if (padded == nullptr) return;
    for (int64_t m = 0; m < chunk.rows; ++m) {
      std::memset(padded + m * pitch, 0, static_cast<size_t>(pitch) * sizeof(float));
      std::memcpy(padded + m * pitch, h + m * r, static_cast<size_t>(r) * sizeof(float));
    }
    h = padded;
  }
  const int64_t depth = chunk.order.depth;
  const int64_t tasks_a_block = CeilDiv(Policy::Units(kKC), kFactorTaskUnits);
  run.ForEach(CeilDiv(depth, kKC) * tasks_a_block, chunk.rows * depth * r, [&](int64_t task) {
    if (run.Stopped()) return;
    const int64_t k0 = task / tasks_a_block * kKC;
    const int64_t u0 = task % tasks_a_block * kFactorTaskUnits;
    const int64_t u1 = Min(u0 + kFactorTaskUnits, Policy::Units(Min(kKC, depth - k0)));
    if (u0 >= u1) return;
    FactorTask<Policy>(grad, {chunk, k0, 0, 0, h, pitch}, m0, last, u0, u1);
  });
}

}  // namespace lowrank::cpu::LOWRANK_ISA
