/// blockMatmul, blockMatmulInputGrad, blockWeightGrad: a small product for each of G blocks.
///
///   y[m, g, :] = x[m, g, :] · w[g]ᵀ     dx[m, g, :] = dy[m, g, :] · w[g]     dw[g] = Σₘ dyᵀ · x
///
/// Operands   x, dx [M, G, K] · dy, y [M, G, N] · w, dw [G, N, K]. A block of the activations is a
///            run of columns of [M, G · K], so the panels of gemm.h can read it in place.
/// Numerics   those of the dense products of one block
/// Tasks      some blocks each, and some of the rows
#pragma once

#include "native/cpu/kernels/layers/lora_backward.h"

namespace lowrank::cpu::LOWRANK_ISA {

// Multiply-adds of a task that justify its overhead.
constexpr int64_t kBlockTaskWork = 1 << 17;
constexpr int64_t kBlockTaskRows = 256;

/// The products of all blocks are cut in the same way.
struct BlockTasks {
  Grid grid;
  int64_t blocks;
  int64_t per_task;  // blocks

  int64_t runs() const { return CeilDiv(blocks, per_task); }
  int64_t tasks() const { return grid.tasks() * runs(); }
};

LOWRANK_INLINE BlockTasks PlanBlocks(int64_t blocks, int64_t rows, int64_t cols, int64_t depth,
                                     int threads) {
  BlockTasks plan = {{SplitRows(rows), cols, CeilDiv(cols, kNR), 1, 1}, blocks, 1};
  Grid& grid = plan.grid;
  grid.col_blocks = CeilDiv(cols, kNC);
  grid.row_blocks = Min(CeilDiv(rows, kBlockTaskRows), grid.rows.count);
  const int64_t wanted = threads == 1 ? 1 : threads * kTasksPerThread;
  if (blocks * grid.tasks() < wanted) {
    // Few blocks: as in PlanGrid().
    grid.col_blocks = Min(Max(CeilDiv(wanted, blocks), grid.col_blocks), grid.col_panels);
    const int64_t row_blocks = CeilDiv(wanted, blocks * grid.col_blocks);
    grid.row_blocks = Max(Min(row_blocks, grid.rows.count / 4), grid.row_blocks);
  }
  const int64_t work = Max(rows * cols * Max(depth, 1) / grid.tasks(), 1);
  plan.per_task = Max(Min(kBlockTaskWork / work, CeilDiv(blocks * grid.tasks(), wanted)), 1);
  return plan;
}

/// product(g, block, c) fills c of one block of the grid, then store(g, block, c).
template <typename Product, typename StoreFn>
LOWRANK_INLINE void ForEachBlock(Run& run, int64_t blocks, int64_t rows, int64_t cols,
                                 int64_t depth, const Product& product, const StoreFn& store) {
  if (blocks == 0 || rows == 0 || cols == 0) return;
  const BlockTasks plan = PlanBlocks(blocks, rows, cols, depth, run.context.pool->threads());
  run.ForEach(plan.tasks(), blocks * rows * cols * Max(depth, 1), [&](int64_t task) {
    const Block block = BlockOf(plan.grid, task / plan.runs());
    if (block.m0 == block.m1 || block.n0 == block.n1) return;
    const int64_t g0 = task % plan.runs() * plan.per_task;
    for (int64_t g = g0; g < Min(g0 + plan.per_task, blocks) && !run.Stopped(); ++g) {
      float* c = run.Get<float>(kCSlot, block.c_elems());
      if (c == nullptr) return;
      product(g, plan.grid, block, c);
      if (run.Stopped()) return;
      store(g, block, c);
    }
  });
}

/// [M · G, cols] as [M, G · cols].
LOWRANK_INLINE TensorView SideBySide(const TensorView& view, int64_t blocks) {
  TensorView wide = view;
  if (blocks == 0) return wide;
  wide.rows = view.rows / blocks;
  wide.cols = view.cols * blocks;
  return wide;
}

/// Block g of [G · rows, cols].
LOWRANK_INLINE TensorView BlockView(const TensorView& w, int64_t g, int64_t rows) {
  TensorView block = w;
  const int64_t element_bytes = w.dtype == DType::kF32 ? 4 : 2;
  block.data = static_cast<char*>(w.data) + g * rows * w.cols * element_bytes;
  block.rows = rows;
  return block;
}

/// Stores c as columns of block g.
LOWRANK_INLINE void StoreBlock(const Block& block, int64_t g, int64_t cols, float* c,
                               const TensorView& out) {
  Block shifted = block;
  shifted.n0 += g * cols;
  shifted.n1 += g * cols;
  StoreTile(shifted, c, out, 0, false);
}

/// out[m, g, :] = in[m, g, :] · wᵀ, or · w if kTransposed is false.
template <typename Policy, bool kTransposed>
LOWRANK_INLINE void BlockProducts(Run& run, const TensorView& in_view, const TensorView& w,
                                  const TensorView& out_view, int64_t blocks) {
  const int64_t depth = in_view.cols;
  const int64_t cols = out_view.cols;
  const TensorView in = SideBySide(in_view, blocks);
  const TensorView out = SideBySide(out_view, blocks);
  const RowSource rows = DenseRows(in);
  ForEachBlock(
      run, blocks, in.rows, cols, depth,
      [&](int64_t g, const Grid& grid, const Block& block, float* c) {
        const TensorView w_block = BlockView(w, g, kTransposed ? cols : depth);
        const RowSource w_rows = DenseRows(w_block);
        const auto pack_a = [&](int64_t k0, int64_t kc) {
          return PackHere(run, grid, block, Policy::Units(kc), [&](int64_t m, int mr, Unit* to) {
            PackA<Policy>(rows, m, mr, g * depth + k0, kc, to);
          });
        };
        if constexpr (kTransposed) {
          Accumulate<Policy>(run, grid, block, depth, pack_a, TransposedB<Policy>{w_rows}, c, true);
        } else {
          Accumulate<Policy>(run, grid, block, depth, pack_a, DirectB<Policy>{w_rows}, c, true);
        }
      },
      [&](int64_t g, const Block& block, float* c) { StoreBlock(block, g, cols, c, out); });
}

LOWRANK_INLINE WeightView DenseWeight(const TensorView& w) {
  WeightView view;
  view.dense = w;
  return view;
}

LOWRANK_INLINE bool OwnsBlocks(const BlockMatmulOp& op) {
  return IsOfPairs(op.x.dtype, DenseWeight(op.w));
}
LOWRANK_INLINE bool OwnsBlocksBackward(const BlockMatmulInputGradOp& op) {
  return IsOfPairs(op.dy.dtype, DenseWeight(op.w));
}

LOWRANK_OP Outcome BlockMatmul(const BlockMatmulOp& op, const RunContext& context) {
  Run run(context);
  WithPolicy(op.x.dtype, DenseWeight(op.w), [&](auto policy) {
    BlockProducts<decltype(policy), true>(run, op.x, op.w, op.y, op.blocks);
  });
  return run.Result();
}

LOWRANK_OP Outcome BlockMatmulInputGrad(const BlockMatmulInputGradOp& op,
                                        const RunContext& context) {
  Run run(context);
  WithPolicy(op.dy.dtype, DenseWeight(op.w), [&](auto policy) {
    BlockProducts<decltype(policy), false>(run, op.dy, op.w, op.dx, op.blocks);
  });
  return run.Result();
}

LOWRANK_OP Outcome BlockWeightGrad(const BlockWeightGradOp& op, const RunContext& context) {
  Run run(context);
  const int64_t n_count = op.dy.cols;
  const int64_t k_count = op.x.cols;
  const TensorView dy = SideBySide(op.dy, op.blocks);
  const TensorView x_view = SideBySide(op.x, op.blocks);
  const RowSource x = DenseRows(x_view);
  ForEachBlock(
      run, op.blocks, n_count, k_count, dy.rows,
      [&](int64_t g, const Grid& grid, const Block& block, float* c) {
        // The columns of this block of x: B is packed by columns of the whole.
        Block wide = block;
        wide.n0 += g * k_count;
        wide.n1 += g * k_count;
        Accumulate<F32Policy>(
            run, grid, wide, dy.rows,
            [&](int64_t m0, int64_t mc) {
              return PackHere(run, grid, block, mc, [&](int64_t n, int rows, Unit* to) {
                PackTransposedA(dy, g * n_count + n, rows, m0, mc, to);
              });
            },
            DirectB<F32Policy>{x}, c, true);
      },
      [&](int64_t g, const Block& block, float* c) {
        StoreTile(block, c, BlockView(op.dw, g, n_count), 0, false);
      });
  return run.Result();
}

}  // namespace lowrank::cpu::LOWRANK_ISA
