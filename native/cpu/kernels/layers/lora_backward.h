/// matmulInputGrad, loraBackward.
///
///   dx = dy · dequant(w) + gate ⊙ (dh · lora_a),   dh = scaling · dy · lora_b
///   d_lora_a = dhᵀ · (gate ⊙ x),   d_lora_b = scaling · dyᵀ · h,   d_bias = Σₘ dy
///
/// Operands   dy, dx, x [M, ·] T row-major · w [N, K] packed or dense · lora_a [r, K] ·
///            lora_b [N, r] · h [M, r] f32
/// Numerics   base products in T (or f32 if an operand is f32), sums in f32; everything of the
///            adapter in f32; rounded once to T at the store
///
/// A chunk of dy is packed once. dh is computed from the same rows, and, if possible, d_lora_b from
/// their panels, while they are in cache. dh · lora_a is r more steps of the sum in the same C
/// tile, or, for few rows, is added when the sums are complete.
#pragma once

#include "native/cpu/kernels/layers/factor_panels.h"
#include "native/cpu/kernels/layers/factor_rows.h"
#include "native/cpu/kernels/layers/lora_shared.h"
#include "native/cpu/kernels/layers/plan_route.h"

namespace lowrank::cpu::LOWRANK_ISA {

/// dx (+)= dy · w + gate ⊙ (dh_factor · dh · lora_a); also fills dh = scaling · dy · lora_b.
struct InputGradParts {
  const TensorView& dy;
  const WeightView* w;  // null: only dh
  const TensorView* lora_a;
  const TensorView* lora_b;  // null: dh is given
  const TensorView* dh;      // [M, r] f32; null without an adapter
  const TensorView* dx;
  bool accumulate;
  float scaling;
  const Gate* gate;
  bool accumulate_dh = false;
  float dh_factor = 1;
  FactorPanels* d_lora_b = nullptr;  // computed from dy's panels if possible: then it has sums
};

/// c = dy · w of one block and the last steps by tiles, with dy packed in the chunk.
template <typename Policy>
static void AccumulateInputGrad(Run& run, const Grid& grid, const Block& block,
                                const PackedChunk& chunk, const RowSource& w, const LastSteps& last,
                                float* c) {
  const int64_t depth = chunk.order.depth;
  const ChunkOf<Policy> pack_a = {chunk, block};
  if (chunk.route == Route::kCopiedPanels) {
    Accumulate<Policy>(run, grid, block, depth, pack_a, CopiedB<Policy>{{w}}, c, true, last);
  } else {
    Accumulate<Policy>(run, grid, block, depth, pack_a, DirectB<Policy>{w}, c, true, last);
  }
}

/// dx (+)= dy · w, chunk by chunk of rows.
struct InputGradPass {
  const TensorView& dy;
  const WeightView* w;  // null: no dx
  const TensorView* dx;
  bool accumulate;
  int64_t r;                // only counts for the work
  int64_t step;             // rows of a chunk
  int64_t most_cols = kNC;  // of a block: more if there are no last steps
};

/// pack, last and add as in ForwardManyChunks. With `spread`, last's columns must be in the order
/// of lanes (SpreadPanels); for add they are in their original order again.
template <typename Policy, typename PackFn, typename LastFn, typename AddFn>
LOWRANK_INLINE void InputGradChunks(Run& run, const InputGradPass& pass, const PackFn& pack,
                                    const LastFn& last_of, const AddFn& add) {
  const int64_t depth = pass.dy.cols;
  const int64_t step = pass.step;
  const int64_t r = pass.r;
  const bool with_dx = pass.w != nullptr;
  const RowSource dy = DenseRows(pass.dy);
  const RowSource w = with_dx ? WeightRows(*pass.w, pass.dy.dtype) : dy;
  const bool with_granules = with_dx && SpreadsColumns(w);
  const int64_t cols = with_dx ? pass.dx->cols : 0;
  for (int64_t m0 = 0; m0 < pass.dy.rows; m0 += step) {
    PackedChunk chunk;
    chunk.rows = Min(step, pass.dy.rows - m0);
    chunk.order = NaturalOrder(depth);
    const int threads = run.context.pool->threads();
    chunk.route = PlanInputGrad<Policy>(chunk.rows, with_dx ? &w : nullptr, threads);
    chunk.panels = SplitRows(chunk.rows);
    if (with_dx) {
      chunk.data = run.Get<Unit>(kPackedSlot, chunk.rows * Policy::Units(depth));
      if (chunk.data == nullptr) return;
    }
    pack(dy, m0, chunk);
    if (run.Stopped()) return;
    if (!with_dx) continue;
    const bool by_rows = chunk.route == Route::kDirectRowSums;
    BlockSums sums;
    if (by_rows) sums = SumBlocks<Policy>(run, chunk, w);
    if (by_rows && (sums.data == nullptr || run.Stopped())) return;
    const bool wide = chunk.route == Route::kDirectDots;
    const Grid grid =
        PlanGrid(chunk.rows, cols, threads, with_granules || by_rows || wide ? kGranule : kNR,
                 wide ? DirectDotColumns(chunk.rows) : pass.most_cols, wide ? 1 : kTasksPerThread);
    const int64_t terms = (by_rows ? sums.blocks : depth) + r;
    run.ForEach(grid.tasks(), chunk.rows * cols * terms, [&](int64_t task) {
      const Block block = BlockOf(grid, task);
      if (block.m0 == block.m1 || run.Stopped()) return;
      float* c = run.Get<float>(kCSlot, block.c_elems());
      if (c == nullptr) return;
      LastSteps last;
      if (!last_of(grid, block, m0, with_granules, &last)) return;
      if (by_rows) {
        sums.AddTo(block, c);
        AddLastSteps(grid, block, last, c);
      } else if (wide) {
        AccumulateDirectDots<Policy>(run, chunk, w, block, c);
        AddLastSteps(grid, block, last, c);
      } else {
        EachPart(block, c, [&](const Block& part, float* part_c) {
          AccumulateInputGrad<Policy>(run, grid, part, chunk, w, last, part_c);
        });
      }
      if (with_granules) {
        UnspreadColumns(block.m1 - block.m0, block.n1 - block.n0, c, block.ldc());
      }
      add(grid, block, m0, c);
      if (run.Stopped()) return;
      StoreTile(block, c, *pass.dx, m0, pass.accumulate);
    });
    if (run.Stopped()) return;
  }
}

// Up to this many rows of dx, a panel of lora_a does not pay: packing it, in the order of w's
// columns, costs the same for a block of columns, whatever the number of rows.
constexpr int64_t kExpandRows = 64;

/// Is dh · lora_a of this block computed from lora_a's rows as stored?
LOWRANK_INLINE bool ExpandsRows(const Grid& grid, const Block& block, const TensorView& lora_a) {
  return grid.rows.rows <= kExpandRows && lora_a.dtype == DType::kF32 &&
         (block.n1 - block.n0) % kNR == 0;
}

/// sum (+)= dh · lora_a of a block, with the bits of its last steps.
LOWRANK_INLINE void ExpandRows(Run& run, const Grid& grid, const Block& block, const RowSource& dh,
                               int64_t m0, const TensorView& lora_a, float* sum, bool add) {
  const RowsOf<F32Policy> rows = {run, grid, block, dh, m0};
  const int64_t row_bytes = lora_a.cols * 4;
  const char* columns = static_cast<const char*>(lora_a.data) + block.n0 * 4;
  for (int64_t k0 = 0; k0 < lora_a.rows; k0 += kKC) {
    const int64_t kc = Min(kKC, lora_a.rows - k0);
    const Unit* a = rows(k0, kc);
    if (a == nullptr) return;
    for (int64_t n = 0; n < block.n1 - block.n0; n += kNR) {
      grid.rows.Each(block.panel0, block.panel1, [&](int64_t, int64_t m, int mr) {
        FindFactorRows(false, mr)(
            {columns + k0 * row_bytes + n * 4, row_bytes, a + (m - block.m0) * kc, mr, kc},
            sum + (m - block.m0) * block.ldc() + n, block.ldc(),
            add || k0 != 0 ? Sums::kAdd : Sums::kStart);
      });
    }
  }
}

template <typename Policy>
static void InputGrad(Run& run, const InputGradParts& op) {
  const int64_t r = op.dh == nullptr ? 0 : op.dh->cols;
  const RowSource none = DenseRows(op.dy);
  const bool fills_dh = r != 0 && op.lora_b != nullptr;
  const RowSource lora_a = r == 0 || op.lora_a == nullptr ? none : DenseRows(*op.lora_a);
  Shrink shrink;
  if (fills_dh) {
    shrink = {op.lora_b, r,          static_cast<float*>(op.dh->data),
              nullptr,   op.scaling, op.accumulate_dh};
  }
  RowSource dh = r == 0 ? none : DenseRows(*op.dh);
  dh.factor = op.dh_factor;
  int64_t step = ChunkRows<Policy>(op.dy.rows, op.dy.cols);
  bool factor = false;
  if (!Policy::kTiles && op.d_lora_b != nullptr && op.w != nullptr) {
    factor = MakeFactorPanels(run, op.dy, *op.d_lora_b, &step);
    if (run.Stopped()) return;
  }
  const auto pack = [&](const RowSource& dy, int64_t m0, const PackedChunk& chunk) {
    PackAndShrink<Policy, false>(run, dy, m0, chunk, op.w != nullptr, shrink);
    if constexpr (!Policy::kTiles) {
      if (!factor || run.Stopped()) return;
      AddFactorPanels<Policy>(run, chunk, m0, m0 + chunk.rows == dy.rows, *op.d_lora_b);
    }
  };
  InputGradChunks<Policy>(
      run, {op.dy, op.w, op.dx, op.accumulate, r, step}, pack,
      [&](const Grid& grid, const Block& block, int64_t m0, bool spread, LastSteps* last) {
        if (r == 0 || op.gate != nullptr || FewRows(grid)) return true;
        if (ExpandsRows(grid, block, *op.lora_a)) return true;
        return PackLastSteps(
            run, grid, block, dh, m0,
            [&](int64_t k0, int64_t kc, int64_t n0, int64_t n1, Unit* out) {
              PackBDirect<F32Policy>(lora_a, k0, kc, n0, n1, out);
              if (spread) SpreadPanels(kc, n1 - n0, out);
            },
            last);
      },
      [&](const Grid& grid, const Block& block, int64_t m0, float* c) {
        if (r == 0) return;
        const bool from_rows = ExpandsRows(grid, block, *op.lora_a);
        if (op.gate == nullptr && !FewRows(grid) && !from_rows) return;
        float* sum = c;
        if (op.gate != nullptr) sum = run.Get<float>(kAdapterSlot, block.c_elems());
        if (sum == nullptr) return;
        if (FewRows(grid)) {
          AccumulateThin<false>(
              run, dh, m0 + block.m0, block.m1 - block.m0, *op.lora_a, block.n0, block.n1,
              [&](int64_t m) { return sum + m * block.ldc(); }, sum != c);
        } else if (from_rows) {
          ExpandRows(run, grid, block, dh, m0, *op.lora_a, sum, sum == c);
        } else {
          Accumulate<F32Policy>(run, grid, block, r, RowsOf<F32Policy>{run, grid, block, dh, m0},
                                DirectB<F32Policy>{lora_a}, sum, true);
        }
        if (run.Stopped() || sum == c) return;
        for (int64_t m = block.m0; m < block.m1; ++m) {
          const int64_t row = (m - block.m0) * block.ldc();
          ApplyGate(*op.gate, m0 + m, block.n0, block.n1 - block.n0, sum + row);
          for (int64_t n = 0; n < block.n1 - block.n0; ++n) c[row + n] += sum[row + n];
        }
      });
}

LOWRANK_OP Outcome MatmulInputGrad(const MatmulInputGradOp& op, const RunContext& context) {
  Run run(context);
  const InputGradParts parts = {op.dy, &op.w, nullptr, nullptr, nullptr, &op.dx, false, 0, nullptr};
  WithPolicy(op.dy.dtype, op.w, [&](auto policy) { InputGrad<decltype(policy)>(run, parts); });
  return run.Result();
}

/// c = one block of left [M, i] · right [M, n], summed over M. Row left.cols is a row of ones.
static void SumTile(Run& run, const Grid& grid, const Block& block, const TensorView& left,
                    const RowSource& right, float* c) {
  Accumulate<F32Policy>(
      run, grid, block, right.rows,
      [&](int64_t k0, int64_t kc) {
        return PackHere(run, grid, block, kc, [&](int64_t m, int mr, Unit* out) {
          PackTransposedA(left, m, mr, k0, kc, out);
        });
      },
      DirectB<F32Policy>{right}, c, true);
}

/// left [M, i] · right [M, n], summed over M: sums[i][n], with a row of ones below left's columns
/// if `ones`. Calls finish(block, c) for each tile.
template <typename Finish>
LOWRANK_INLINE void SumOverRows(Run& run, const TensorView& left, bool ones, const RowSource& right,
                                const Finish& finish) {
  const int64_t rows = left.cols + (ones ? 1 : 0);
  if (rows == 0 || right.cols == 0) return;
  const Grid grid = PlanGrid(rows, right.cols, run.context.pool->threads());
  run.ForEach(grid.tasks(), rows * right.cols * right.rows, [&](int64_t task) {
    const Block block = BlockOf(grid, task);
    if (block.m0 == block.m1 || run.Stopped()) return;
    float* c = run.Get<float>(kCSlot, block.c_elems());
    if (c == nullptr) return;
    SumTile(run, grid, block, left, right, c);
    if (run.Stopped()) return;
    finish(block, c);
  });
}

/// out[n][i] = factor · c[i][n] for rows i < rows of the block, plus what `out` holds if requested.
/// kVL columns by kVL rows are transposed at a time.
LOWRANK_INLINE void StoreTransposed(const Block& block, const float* c, int64_t rows, float factor,
                                    const TensorView& out, bool accumulate) {
  const int64_t i1 = Min(block.m1, rows);
  for (int64_t i = block.m0; i < i1; i += kVL) {
    for (int64_t n = block.n0; n < block.n1; n += kVL) {
      const int64_t height = Min(kVL, i1 - i);
      const int64_t width = Min(kVL, block.n1 - n);
      VecF turned[kVL];
#pragma GCC unroll 16
      for (int64_t j = 0; j < kVL; ++j) {
        // A row of c has whole vectors. Rows past the last are not used.
        turned[j] = Load(c + (i + Min(j, height - 1) - block.m0) * block.ldc() + n - block.n0);
      }
      Transpose(turned);
      for (int64_t j = 0; j < width; ++j) {
        StoreGrads(out, (n + j) * out.cols + i, height, turned[j] * factor, accumulate);
      }
    }
  }
}

/// The outputs that are summed over the rows of dy with h, if present.
struct FactorBParts {
  const TensorView& dy;
  const TensorView& h;
  const TensorView& d_lora_b;
  const TensorView& d_bias;
  const TensorView& d_lora_bias;
  bool accumulate_d_lora_b;
  bool accumulate_d_bias;
  bool accumulate_d_lora_bias;
  float scaling;
};

/// A tile of the sums over dy's rows, for the columns of h and a row of ones.
LOWRANK_INLINE void StoreFactorB(const FactorBParts& op, int64_t h_cols, const Block& block,
                                 const float* c) {
  if (op.d_lora_b.present) {
    StoreTransposed(block, c, h_cols, op.scaling, op.d_lora_b, op.accumulate_d_lora_b);
  }
  if (block.m1 <= h_cols) return;  // no row of ones in this block
  const float* row = c + (h_cols - block.m0) * block.ldc();
  for (int64_t n = block.n0; n < block.n1; ++n) {
    const float sum = row[n - block.n0];
    if (op.d_bias.present) StoreGrad(op.d_bias, n, sum, op.accumulate_d_bias);
    if (op.d_lora_bias.present) {
      StoreGrad(op.d_lora_bias, n, op.scaling * sum, op.accumulate_d_lora_bias);
    }
  }
}

LOWRANK_INLINE void FactorBGrad(Run& run, const FactorBParts& op) {
  const bool bias = op.d_bias.present || op.d_lora_bias.present;
  if (!op.d_lora_b.present && !bias) return;
  TensorView h = op.h;
  if (!op.d_lora_b.present) h = FloatView(nullptr, op.dy.rows, 0);
  SumOverRows(run, h, bias, DenseRows(op.dy),
              [&](const Block& block, float* c) { StoreFactorB(op, h.cols, block, c); });
}

// Maximum bytes of a gate's bits: 8 M elements per MiB.
constexpr int64_t kMostGateBytes = 8 << 20;

LOWRANK_OP Outcome LoraBackward(const LoraBackwardOp& op, const RunContext& context) {
  Run run(context);
  const int64_t r = op.lora_a.rows;
  Gate gate_value = MakeGate(op.dropout, op.lora_a.cols);
  const Gate* gate = gate_value.active ? &gate_value : nullptr;
  // dx and d_lora_b both need the gate, and drawing it is most of the work.
  const int64_t gate_bytes = op.x.rows * op.lora_a.cols / 8;
  if (op.dx.present && op.d_lora_a.present && r != 0 && gate_value.CanNote() &&
      gate_bytes <= kMostGateBytes) {
    gate_value.bits = run.Get<uint8_t>(kGateSlot, gate_bytes);
    if (gate_value.bits == nullptr) return run.Result();
  }
  TensorView dh;
  if ((op.dx.present || op.d_lora_a.present) && r != 0) {
    float* data = run.Get<float>(kDhSlot, op.dy.rows * r);
    if (data == nullptr) return run.Result();
    dh = FloatView(data, op.dy.rows, r);
  }
  FactorPanels d_lora_b = {op.h, op.d_lora_b, op.scaling, op.accumulate_d_lora_b};
  const InputGradParts parts = {op.dy,
                                op.dx.present ? &op.w : nullptr,
                                &op.lora_a,
                                &op.lora_b,
                                dh.present ? &dh : nullptr,
                                op.dx.present ? &op.dx : nullptr,
                                op.accumulate_dx,
                                op.scaling,
                                gate,
                                false,
                                1,
                                op.d_lora_b.present && r != 0 ? &d_lora_b : nullptr};
  if (op.dx.present) {
    WithPolicy(op.dy.dtype, op.w, [&](auto policy) { InputGrad<decltype(policy)>(run, parts); });
  } else if (dh.present) {
    if constexpr (!kHasBase) InputGrad<F32Policy>(run, parts);  // otherwise the op is the base's
  }
  if (run.Stopped()) return run.Result();

  gate_value.drawn = gate_value.bits != nullptr;
  if (op.d_lora_a.present) {
    FactorAGrad(run, dh, op.x, gate, 1, op.d_lora_a, op.accumulate_d_lora_a);
  }
  const TensorView none;
  FactorBGrad(
      run, {op.dy, op.h, d_lora_b.sums != nullptr ? none : op.d_lora_b, op.d_bias, op.d_lora_bias,
            op.accumulate_d_lora_b, op.accumulate_d_bias, op.accumulate_d_lora_bias, op.scaling});
  return run.Result();
}

}  // namespace lowrank::cpu::LOWRANK_ISA
