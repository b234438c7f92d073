/// The parts of the adapter that both passes of a LoRA layer (lora_forward.h, lora_backward.h) run
/// together with the base product: the sums of its shrink, from rows just packed for it, and its
/// expand as the last steps of a block.
///
/// Numerics   everything of the adapter in f32
#pragma once

#include "native/cpu/kernels/dot/thin_dot.h"
#include "native/cpu/kernels/int8/int8_panels.h"
#include "native/cpu/kernels/int8/row_codes.h"
#include "native/cpu/kernels/layers/shrink_rows.h"

namespace lowrank::cpu::LOWRANK_ISA {

/// out [M, r] (+)= scaling · (gate ⊙ a) · b, of which PackAndShrink() computes a chunk of rows.
struct Shrink {
  const TensorView* factor = nullptr;  // b [·, r], or its transpose [r, ·]; null if r is 0
  int64_t r = 0;
  float* out = nullptr;
  const Gate* gate = nullptr;
  float scaling = 1;
  bool accumulate = false;
};

/// The panels of a shrink's factor, which is the transpose of b where kTransposed.
template <bool kTransposed>
LOWRANK_INLINE ShrinkColumns ColumnsOf(Run& run, const Shrink& shrink, int64_t depth) {
  const RowSource factor = DenseRows(*shrink.factor);
  if constexpr (kTransposed) {
    return PackShrinkColumns(run, depth, shrink.r, TransposedB<F32Policy>{factor});
  } else {
    return PackShrinkColumns(run, depth, shrink.r, DirectB<F32Policy>{factor});
  }
}

/// A shrink with f32 arithmetic, over a chunk of rows of `a` from m0 on. It also packs the chunk
/// for the base product, unless that is packed already. Few rows use the factor as stored in
/// memory.
template <typename Policy, bool kTransposed>
LOWRANK_INLINE void PackAndShrink(Run& run, const RowSource& a, int64_t m0,
                                  const PackedChunk& chunk, bool pack, const Shrink& shrink) {
  const int64_t r = shrink.r;
  const RowPanels panels = SplitRows(chunk.rows);
  const int64_t blocks = Min(pack ? Max(panels.count, chunk.panels.count) : panels.count,
                             run.context.pool->threads() * kTasksPerThread);
  const Grid grid = {panels, r, CeilDiv(r, kNR), blocks, 1};
  const bool thin = chunk.rows <= kThinRows;
  ShrinkColumns columns;
  if (r != 0 && !thin) {
    columns = ColumnsOf<kTransposed>(run, shrink, a.cols);
    if (columns.data == nullptr) return;
  }
  RowSource gated = a;
  gated.gate = shrink.gate;
  run.ForEach(blocks, chunk.rows * a.cols * (r + 4), [&](int64_t task) {
    if (run.Stopped()) return;
    const Block block = BlockOf(grid, task);
    if (pack) {
      const int64_t panel0 = task * chunk.panels.count / blocks;
      const int64_t panel1 = (task + 1) * chunk.panels.count / blocks;
      if constexpr (kIsInt8<Policy>) {
        PackInt8Panels(a, m0, panel0, panel1, chunk);
      } else if constexpr (kIsRowCodes<Policy>) {
        PackRowCodes(run, a, m0, panel0, panel1, chunk);
      } else {
        PackChunkPanels<Policy>(run, a, m0, panel0, panel1, chunk);
      }
    }
    const int64_t rows = block.m1 - block.m0;
    if (r == 0 || rows == 0) return;
    const int64_t ldc = CeilDiv(r, kVL) * kVL;
    float* c = run.Get<float>(kCSlot, rows * ldc);
    if (c == nullptr) return;
    if (a.cols == 0) {
      std::memset(c, 0, static_cast<size_t>(rows * ldc) * sizeof(float));
    } else if (thin) {
      AccumulateThin<kTransposed>(
          run, gated, m0 + block.m0, rows, *shrink.factor, 0, r,
          [&](int64_t m) { return c + m * ldc; }, true);
      if (run.Stopped()) return;
    } else {
      ShrinkRows(gated, m0, panels, block, columns, c, ldc);
    }
    for (int64_t m = 0; m < rows; ++m) {
      const float* row = c + m * ldc;
      float* target = shrink.out + (m0 + block.m0 + m) * r;
      for (int64_t n = 0; n < r; ++n) {
        const float value = shrink.scaling * row[n];
        target[n] = shrink.accumulate ? target[n] + value : value;
      }
    }
  });
}

LOWRANK_INLINE TensorView FloatView(float* data, int64_t rows, int64_t cols) {
  TensorView view;
  view.data = data;
  view.dtype = DType::kF32;
  view.rows = rows;
  view.cols = cols;
  view.present = true;
  return view;
}

/// Do they use the factors as stored in memory?
LOWRANK_INLINE bool FewRows(const Grid& grid) { return grid.rows.rows <= kThinRows; }

LOWRANK_INLINE RowSource ScaledRows(const TensorView& view, float factor) {
  RowSource rows = DenseRows(view);
  rows.factor = factor;
  return rows;
}

/// The last steps of a block: rows from m0 on of `a` and columns by pack_b. False if there is no
/// memory for them.
template <typename PackBFn>
LOWRANK_INLINE bool PackLastSteps(Run& run, const Grid& grid, const Block& block,
                                  const RowSource& a, int64_t m0, const PackBFn& pack_b,
                                  LastSteps* last) {
  last->row_count = block.m1 - block.m0;
  last->col_panels = CeilDiv(block.n1 - block.n0, kNR);
  last->rows = run.Get<Unit>(kASlot, last->row_count * a.cols);
  last->columns = run.Get<Unit>(kAdapterSlot, LastSteps::ColumnUnits(a.cols, last->col_panels));
  if (last->rows == nullptr || last->columns == nullptr) return false;
  last->depth = a.cols;
  for (int64_t k0 = 0; k0 < a.cols; k0 += kKC) {
    const int64_t kc = Min(kKC, a.cols - k0);
    grid.rows.Each(block.panel0, block.panel1, [&](int64_t, int64_t m, int mr) {
      PackA<F32Policy>(a, m0 + m, mr, k0, kc, last->RowsAt(k0, m - block.m0));
    });
    pack_b(k0, kc, block.n0, block.n1, last->ColumnsAt(k0, 0));
  }
  return true;
}

}  // namespace lowrank::cpu::LOWRANK_ISA
