/// matmul, matmulInputGrad, loraForward, loraForwardMany, loraForwardSwiglu, loraBackward.
///
///   y  = x · dequant(w)ᵀ + bias + scaling · ((gate ⊙ x) · lora_aᵀ · lora_bᵀ + lora_bias)
///   dx = dy · dequant(w) + gate ⊙ (dh · lora_a),   dh = scaling · dy · lora_b
///
/// Operands   x, y, dy, dx [M, ·] T row-major · w [N, K] packed or dense · lora_a [r, K] ·
///            lora_b [N, r] · h [M, r] f32
/// Numerics   base products in T (or f32 where an operand is f32), sums in f32; everything of the
///            adapter in f32; one rounding to T at the store
///
/// A chunk of rows is packed once; while its panels are hot the r columns of the adapter's shrink
/// are taken from them, and the expand is r more steps of the sum in the same C tile, so the
/// adapter reads neither x nor y again.
#pragma once

#include "native/cpu/kernels/dense_dot.h"
#include "native/cpu/kernels/dense_panels.h"
#include "native/cpu/kernels/direct_dot.h"
#include "native/cpu/kernels/elementwise.h"
#include "native/cpu/kernels/factor_panels.h"
#include "native/cpu/kernels/gemm_lanes.h"
#include "native/cpu/kernels/gemm_row_codes.h"
#include "native/cpu/kernels/gemm_tiles.h"
#include "native/cpu/kernels/product_int8.h"
#include "native/cpu/kernels/shrink_panels.h"
#include "native/cpu/kernels/thin_dot.h"

namespace lowrank::cpu::LOWRANK_ISA {

/// Are a chunk's panels such that the adapter's sums can be taken from them? Those for row_dot.h
/// and for a matrix unit are not, and codes are not the rows.
template <typename Policy>
LOWRANK_INLINE bool CanShrinkPanels(const PackedChunk& chunk) {
  return chunk.data != nullptr && !chunk.dots && !Policy::kTiles && !Policy::kCodes;
}

/// out [rows, r] (+)= factor · (gate ⊙ a) · b with f32 arithmetic, over a chunk of rows of `a`, and
/// packs the chunk for the base product on the way, or else has it packed already. `factor_rows` is
/// b (kTransposed: its transpose) as it lies in memory: few rows take it so. Null without an
/// adapter.
template <typename Policy, bool kTransposed, typename PackBFn>
LOWRANK_INLINE void PackAndShrink(Run& run, const RowSource& a, const Gate* gate, int64_t m0,
                                  const PackedChunk& chunk, bool pack, int64_t r, float factor,
                                  const PackBFn& pack_b, const TensorView* factor_rows, float* out,
                                  bool accumulate = false) {
  const RowPanels panels = CanShrinkPanels<Policy>(chunk) ? chunk.panels : SplitRows(chunk.rows);
  const int64_t blocks = Min(pack ? Max(panels.count, chunk.panels.count) : panels.count,
                             run.context.pool->threads() * kTasksPerThread);
  const Grid grid = {panels, r, CeilDiv(r, kNR), blocks, 1};
  const bool thin = factor_rows != nullptr && chunk.rows <= kThinRows && a.cols != 0;
  const bool from_panels =
      r != 0 && a.cols != 0 && gate == nullptr && !thin && CanShrinkPanels<Policy>(chunk);
  ShrinkColumns columns;
  if (from_panels) columns = PackShrinkColumns(run, a.cols, r, pack_b);
  if (from_panels && columns.data == nullptr) return;
  RowSource gated = a;
  gated.gate = gate;
  run.ForEach(blocks, chunk.rows * a.cols * (r + 4), [&](int64_t task) {
    if (run.Stopped()) return;
    Block block = BlockOf(grid, task);
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
    if (block.m0 == block.m1) return;
    const auto store = [&](const float* c, int64_t ldc, int64_t n0, int64_t n1) {
      for (int64_t m = block.m0; m < block.m1; ++m) {
        const float* row = c + (m - block.m0) * ldc;
        float* target = out + (m0 + m) * r + n0;
        for (int64_t n = 0; n < n1 - n0; ++n) {
          target[n] = accumulate ? target[n] + factor * row[n] : factor * row[n];
        }
      }
    };
    if constexpr (!Policy::kTiles && !Policy::kCodes) {
      if (from_panels) {
        const int64_t ldc = columns.panels() * kVL;
        float* c = run.Get<float>(kCSlot, (block.m1 - block.m0) * ldc);
        if (c == nullptr) return;
        ShrinkPanels<Policy>(chunk, block, columns, c, ldc);
        store(c, ldc, 0, r);
        return;
      }
    }
    // Columns in blocks of kNC.
    for (int64_t n0 = 0; n0 < r; n0 += kNC) {
      block.n0 = n0;
      block.n1 = Min(n0 + kNC, r);
      float* c = run.Get<float>(kCSlot, block.c_elems());
      if (c == nullptr) return;
      if (thin) {
        AccumulateThin<kTransposed>(
            run, gated, m0 + block.m0, block.m1 - block.m0, *factor_rows, n0, block.n1,
            [&](int64_t m) { return c + m * block.ldc(); }, true);
      } else {
        Accumulate<F32Policy>(run, grid, block, a.cols,
                              RowsOf<F32Policy>{run, grid, block, gated, m0}, pack_b, c, true);
      }
      if (run.Stopped()) return;
      store(c, block.ldc(), n0, block.n1);
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

/// Do they take the factors as they lie in memory?
LOWRANK_INLINE bool FewRows(const Grid& grid) { return grid.rows.rows <= kThinRows; }

LOWRANK_INLINE RowSource ScaledRows(const TensorView& view, float factor) {
  RowSource rows = DenseRows(view);
  rows.factor = factor;
  return rows;
}

/// The bias of a block of columns: bias + scaling · lora_bias.
LOWRANK_INLINE bool BiasRow(const TensorView& bias, const TensorView& lora_bias, float scaling,
                            int64_t n0, int64_t n1, float* out) {
  if (!bias.present && !lora_bias.present) return false;
  for (int64_t n = n0; n < n1; ++n) {
    float sum = bias.present ? ScalarWiden(bias.data, bias.dtype, n) : 0.0f;
    if (lora_bias.present) sum += scaling * ScalarWiden(lora_bias.data, lora_bias.dtype, n);
    out[n - n0] = sum;
  }
  return true;
}

/// A forward product; without an adapter `h` is not present.
struct ForwardParts {
  const TensorView& x;
  const WeightView& w;
  const TensorView& bias;
  const TensorView* lora_a;
  const TensorView* lora_b;
  const TensorView& lora_bias;
  const TensorView* h;
  const TensorView& y;
  float scaling;
  const Gate* gate;
  bool h_given = false;  // else it is filled here
};

/// The last steps of a block: rows from m0 on of `a` and columns by pack_b. False where there is no
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

/// c = x · wᵀ of one block and the last steps, x packed in the chunk.
template <typename Policy>
LOWRANK_INLINE void AccumulateBase(Run& run, const Grid& grid, const Block& block,
                                   const PackedChunk& chunk, const RowSource& w,
                                   const Int8Weight& int8, const LastSteps& last, float* c) {
  const int64_t depth = chunk.order.depth;
  if constexpr (Policy::kTiles) {
    AccumulateByTiles<TileSession>(run, chunk, w, block, c);
    AddLastSteps(grid, block, last, c);
  } else if constexpr (kIsInt8<Policy>) {
    AccumulateInt8(run, grid, block, chunk, w, int8, last, c);
  } else if constexpr (kIsRowCodes<Policy>) {
    AccumulateRowCodes(run, grid, block, chunk, w, last, c);
  } else if (chunk.dots) {
    AccumulateDots<Policy>(run, chunk, w, block, c);
    AddLastSteps(grid, block, last, c);
  } else if (chunk.order.by_lanes) {
    AccumulateStrips<Policy>(run, grid, block, depth, LaneStrips<Policy>{chunk, w}, last, c);
  } else if (chunk.dense_dots) {
    AccumulateDenseDots<Policy>(run, chunk, w, block, c);
    AddLastSteps(grid, block, last, c);
  } else {
    if constexpr (kTurnsBeside) {
      if (TakesDenseStrips<Policy>(chunk, w, block)) {
        AccumulateStrips<Policy>(run, grid, block, depth, DenseStrips<Policy>{chunk, w}, last, c);
        return;
      }
    }
    Accumulate<Policy>(run, grid, block, depth, ChunkOf<Policy>{chunk, block},
                       TransposedB<Policy>{w}, c, true, last);
  }
}

/// One of the products that share x, whose weights have one order of sums.
struct ForwardTarget {
  const WeightView* w;
  const TensorView* y;
};
struct TargetTasks {
  RowSource w;
  Int8Weight int8;
  Grid grid;
  int64_t first_task;
};

/// y = x · wᵀ for each target, chunk by chunk of rows, the tasks of all of them side by side.
/// pack(x, m0, chunk) packs a chunk and may go over its rows on the way; last(target, grid, block,
/// m0, steps) says which steps end the sums of a block, and add(target, grid, block, m0, c) adds to
/// them. `r` counts for the work alone. With `swiglu` the last target is its up, whose y holds gate
/// or is to hold it by the target before; then a task takes a block of each in turn.
template <typename Policy, typename PackFn, typename LastFn, typename AddFn>
LOWRANK_INLINE void ForwardManyChunks(Run& run, const TensorView& x_view,
                                      const ForwardTarget* targets, int count, int64_t r,
                                      const PackFn& pack, const LastFn& last_of, const AddFn& add,
                                      bool swiglu = false) {
  const int64_t depth = x_view.cols;
  const RowSource x = DenseRows(x_view);
  TargetTasks all[LoraForwardManyOp::kMost];
  int64_t cols = 0;
  bool columns = Policy::kTiles || kIsInt8<Policy>;
  for (int i = 0; i < count; ++i) {
    all[i].w = WeightRows(*targets[i].w, x_view.dtype);
    if (kIsInt8<Policy>) all[i].int8 = MakeInt8Weight(targets[i].w->quant);
    if (kIsInt8<Policy>) columns = columns && TakesCodeTiles(x_view.rows, all[i].w);
    cols += targets[i].y->cols;
  }
  const SumOrder order =
      Policy::kCodes ? NaturalOrder(depth) : ForwardOrder(all[0].w, Policy::kTiles);
  const int64_t step = ChunkRows<Policy>(x_view.rows, depth);
  for (int64_t m0 = 0; m0 < x_view.rows; m0 += step) {
    PackedChunk chunk;
    chunk.rows = Min(step, x_view.rows - m0);
    chunk.order = order;
    chunk.columns = columns;
    if constexpr (kIsRowCodes<Policy>) {
      chunk.dots = TakesCodeDots(all[0].w, chunk.rows);
      chunk.panels = chunk.dots ? CodeDotPasses(chunk.rows) : SplitRows(chunk.rows);
    } else if constexpr (kIsInt8<Policy>) {
      PlanInt8Chunk(all, count, &chunk);
    } else {
      chunk.dots = !chunk.columns && TakesDots<Policy>(chunk.rows, order);
      chunk.dense_dots = TakesDenseDots<Policy>(chunk.rows, all[0].w);
      for (int i = 1; i < count; ++i) {
        chunk.dense_dots = chunk.dense_dots && TakesDenseDots<Policy>(chunk.rows, all[i].w);
      }
      chunk.panels = chunk.columns      ? TilePanels(chunk.rows)
                     : chunk.dots       ? DotPasses(chunk.rows)
                     : chunk.dense_dots ? DenseDotPasses(chunk.rows)
                                        : SplitRows(chunk.rows);
    }
    chunk.data =
        run.Get<Unit>(kPackedSlot, kIsRowCodes<Policy> ? CodeChunkUnits(chunk.rows, depth)
                                   : Policy::kTiles    ? chunk.panels.rows * TileRowUnits(depth)
                                   : columns           ? chunk.panels.rows * Policy::Units(depth)
                                                       : chunk.rows * Policy::Units(depth));
    if (chunk.data == nullptr) return;
    pack(x, m0, chunk);
    if (run.Stopped()) return;
    int64_t tasks = 0;
    for (int i = 0; i < count; ++i) {
      all[i].grid = PlanGrid(chunk.rows, targets[i].y->cols, run.context.pool->threads());
      if (chunk.dots || chunk.dense_dots)
        all[i].grid.row_blocks = 1;  // passes share the rows of w that they read
      all[i].first_task = swiglu ? 0 : tasks;
      tasks = all[i].first_task + all[i].grid.tasks();
    }
    run.ForEach(tasks, chunk.rows * cols * (depth + r), [&](int64_t task) {
      int end = count;
      while (task < all[end - 1].first_task) --end;
      for (int i = swiglu ? 0 : end - 1; i < end; ++i) {
        const Grid& grid = all[i].grid;
        const Block block = BlockOf(grid, task - all[i].first_task);
        if (block.m0 == block.m1 || run.Stopped()) return;
        float* c = run.Get<float>(kCSlot, block.c_elems());
        if (c == nullptr) return;
        LastSteps last;
        if (!last_of(i, grid, block, m0, &last)) return;
        AccumulateBase<Policy>(run, grid, block, chunk, all[i].w, all[i].int8, last, c);
        add(i, grid, block, m0, c);
        if (run.Stopped()) return;
        if (swiglu && i == count - 1) {
          StoreSwiglu(block, c, *targets[i].y, m0);
        } else {
          StoreTile(block, c, *targets[i].y, m0, false);
        }
      }
    });
    if (run.Stopped()) return;
  }
}

/// The same of one weight, without last steps.
template <typename Policy, typename PackFn, typename AddFn>
LOWRANK_INLINE void ForwardChunks(Run& run, const TensorView& x, const WeightView& w,
                                  const TensorView& y, int64_t r, const PackFn& pack,
                                  const AddFn& add) {
  const ForwardTarget target = {&w, &y};
  ForwardManyChunks<Policy>(run, x, &target, 1, r, pack, NoLastSteps(),
                            [&](int, const Grid& grid, const Block& block, int64_t m0, float* c) {
                              add(grid, block, m0, c);
                            });
}

/// A row of values, one a column, added to rows [m0, m1) of a block's sums.
LOWRANK_INLINE void AddRow(const Block& block, int64_t m0, int64_t m1, const float* values,
                           float* c) {
  for (int64_t m = m0; m < m1; ++m) {
    float* row = c + (m - block.m0) * block.ldc();
    for (int64_t n = 0; n < block.n1 - block.n0; ++n) row[n] += values[n];
  }
}

/// `count` products that share x and the order of their sums; part(i) is one of them. With
/// `swiglu` the last of them is its up.
template <typename Policy, typename PartAt>
LOWRANK_INLINE Outcome ForwardMany(int count, const PartAt& part, const RunContext& context,
                                   bool swiglu) {
  Run run(context);
  ForwardTarget targets[LoraForwardManyOp::kMost];
  int64_t most_r = 0;
  for (int i = 0; i < count; ++i) {
    const ForwardParts op = part(i);
    targets[i] = {&op.w, &op.y};
    if (op.h != nullptr) most_r = Max(most_r, op.h->cols);
  }
  const auto pack = [&](const RowSource& x, int64_t m0, const PackedChunk& chunk) {
    for (int i = 0; i < count; ++i) {
      const ForwardParts op = part(i);
      const int64_t r = op.h == nullptr || op.h_given ? 0 : op.h->cols;
      if (i != 0 && r == 0) continue;
      PackAndShrink<Policy, true>(
          run, x, op.gate, m0, chunk, i == 0, r, 1.0f,
          TransposedB<F32Policy>{op.lora_a == nullptr ? x : DenseRows(*op.lora_a)}, op.lora_a,
          r == 0 ? nullptr : static_cast<float*>(op.h->data));
      if (run.Stopped()) return;
    }
  };
  ForwardManyChunks<Policy>(
      run, part(0).x, targets, count, most_r, pack,
      [&](int i, const Grid& grid, const Block& block, int64_t m0, LastSteps* last) {
        const ForwardParts op = part(i);
        if (op.h == nullptr || op.h->cols == 0 || FewRows(grid)) return true;
        const RowSource scaled_h = ScaledRows(*op.h, op.scaling);
        return PackLastSteps(run, grid, block, scaled_h, m0,
                             TransposedB<F32Policy>{DenseRows(*op.lora_b)}, last);
      },
      [&](int i, const Grid& grid, const Block& block, int64_t m0, float* c) {
        const ForwardParts op = part(i);
        if (op.h != nullptr && op.h->cols != 0 && FewRows(grid)) {
          const RowSource scaled_h = ScaledRows(*op.h, op.scaling);
          AccumulateThin<true>(
              run, scaled_h, m0 + block.m0, block.m1 - block.m0, *op.lora_b, block.n0, block.n1,
              [&](int64_t m) { return c + m * block.ldc(); }, false);
        }
        float bias[kNC];
        if (run.Stopped()) return;
        if (BiasRow(op.bias, op.lora_bias, op.scaling, block.n0, block.n1, bias)) {
          AddRow(block, block.m0, block.m1, bias, c);
        }
      },
      swiglu);
  return run.Result();
}

/// WithPolicy, or that of the codes of this weight.
template <typename Body>
LOWRANK_INLINE void WithComputePolicy(Compute compute, DType activations, const WeightView& w,
                                      const Body& body) {
  if (compute == Compute::kExact) {
    WithPolicy(activations, w, body);
  } else if (w.quant.rowwise) {
    body(RowCodePolicy{});
  } else {
    body(Int8Policy{});
  }
}

/// The products in the precision that was asked for, by the policy of the first.
template <typename PartAt>
LOWRANK_INLINE Outcome ForwardAs(Compute compute, int count, const PartAt& part,
                                 const RunContext& context, bool swiglu = false) {
  Outcome outcome;
  const ForwardParts first = part(0);
  WithComputePolicy(compute, first.x.dtype, first.w, [&](auto policy) {
    outcome = ForwardMany<decltype(policy)>(count, part, context, swiglu);
  });
  return outcome;
}
LOWRANK_INLINE Outcome ForwardAs(Compute compute, const ForwardParts& op,
                                 const RunContext& context) {
  return ForwardAs(compute, 1, [&](int) { return op; }, context);
}

LOWRANK_OP Outcome Matmul(const MatmulOp& op, const RunContext& context) {
  const TensorView none;
  const ForwardParts parts = {op.x, op.w,    op.bias, nullptr, nullptr,
                              none, nullptr, op.y,    0,       nullptr};
  return ForwardAs(op.compute, parts, context);
}

/// Operands of a part; its gate is the caller's.
LOWRANK_INLINE ForwardParts PartsOf(const LoraForwardOp& op, const Gate& gate) {
  const bool adapter = op.lora_a.present;
  return {op.x,
          op.w,
          op.bias,
          adapter ? &op.lora_a : nullptr,
          adapter ? &op.lora_b : nullptr,
          op.lora_bias,
          adapter ? &op.h : nullptr,
          op.y,
          op.scaling,
          gate.active ? &gate : nullptr};
}

LOWRANK_OP Outcome LoraForward(const LoraForwardOp& op, const RunContext& context) {
  const Gate gate = MakeGate(op.dropout, op.x.cols);
  return ForwardAs(op.compute, PartsOf(op, gate), context);
}

/// Do both take the same packed rows of x?
LOWRANK_INLINE bool SharePackedRows(const LoraForwardOp& a, const LoraForwardOp& b) {
  const auto order = [](const LoraForwardOp& op) {
    return ForwardOrder(WeightRows(op.w, op.x.dtype), kHasTiles && op.x.dtype == DType::kBF16);
  };
  return a.compute == b.compute && a.w.dense.present == b.w.dense.present &&
         (a.compute == Compute::kExact || a.w.quant.rowwise == b.w.quant.rowwise) &&
         (!a.w.dense.present || a.w.dense.dtype == b.w.dense.dtype) &&
         order(a).by_lanes == order(b).by_lanes;
}

/// Runs of parts that share the packed rows of x at once. With `swiglu` the last part is its up.
static Outcome ForwardRuns(const LoraForwardOp* parts, int64_t count, bool swiglu,
                           const RunContext& context) {
  Gate gates[LoraForwardManyOp::kMost];
  for (int64_t i = 0; i < count; ++i) gates[i] = MakeGate(parts[i].dropout, parts[i].x.cols);
  Outcome outcome;
  for (int64_t first = 0, end = 0; first < count && outcome.code == Code::kOk; first = end) {
    while (end < count && SharePackedRows(parts[first], parts[end])) ++end;
    outcome = ForwardAs(
        parts[first].compute, static_cast<int>(end - first),
        [&](int i) { return PartsOf(parts[first + i], gates[first + i]); }, context,
        swiglu && end == count);
  }
  return outcome;
}

LOWRANK_OP Outcome LoraForwardMany(const LoraForwardManyOp& op, const RunContext& context) {
  return ForwardRuns(op.parts, op.count, false, context);
}

/// What is not kept meets block by block, gate in y. Blocks that are stored in any case are no
/// faster so (docs/performance-log.md).
LOWRANK_OP Outcome LoraForwardSwiglu(const LoraForwardSwigluOp& op, const RunContext& context) {
  LoraForwardOp parts[] = {op.gate, op.up};
  const bool kept = op.gate.y.present;
  if (!kept) parts[0].y = parts[1].y = op.y;
  const Outcome outcome = ForwardRuns(parts, 2, !kept, context);
  if (!kept || outcome.code != Code::kOk) return outcome;
  return Swiglu({op.gate.y, op.up.y, op.y}, context);
}

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
  FactorPanels* d_lora_b = nullptr;  // taken from dy's panels where that can be: then it has sums
};

/// dx (+)= dy · w, chunk by chunk of `step` rows; pack, last and add as in ForwardManyChunks. Where
/// `spread`, last's columns are to be in the order of lanes (SpreadPanels); for add they are in
/// place again.
template <typename Policy, typename PackFn, typename LastFn, typename AddFn>
LOWRANK_INLINE void InputGradChunks(Run& run, const TensorView& dy_view, const WeightView* w_view,
                                    const TensorView* dx, bool accumulate, int64_t r, int64_t step,
                                    const PackFn& pack, const LastFn& last_of, const AddFn& add) {
  const int64_t depth = dy_view.cols;
  const bool with_dx = w_view != nullptr;
  const RowSource dy = DenseRows(dy_view);
  const RowSource w = with_dx ? WeightRows(*w_view, dy_view.dtype) : dy;
  const bool with_granules = with_dx && WholeGranules(w);
  const int64_t cols = with_dx ? dx->cols : 0;
  for (int64_t m0 = 0; m0 < dy_view.rows; m0 += step) {
    PackedChunk chunk;
    chunk.rows = Min(step, dy_view.rows - m0);
    chunk.order = NaturalOrder(depth);
    const bool dots = with_dx && TakesDirectDots<Policy>(chunk.rows, w);
    chunk.panels = SplitRows(chunk.rows);
    if (with_dx) {
      chunk.data = run.Get<Unit>(kPackedSlot, chunk.rows * Policy::Units(depth));
      if (chunk.data == nullptr) return;
    }
    pack(dy, m0, chunk);
    if (run.Stopped()) return;
    if (!with_dx) continue;
    const int threads = run.context.pool->threads();
    const bool by_rows = dots && SharesRows(chunk.rows, w, threads);
    BlockSums sums;
    if (by_rows) sums = SumBlocks<Policy>(run, chunk, w);
    if (by_rows && (sums.data == nullptr || run.Stopped())) return;
    const bool wide = dots && !by_rows;
    const Grid grid =
        PlanGrid(chunk.rows, cols, threads, with_granules || dots ? kGranule : kNR,
                 wide ? DirectDotColumns(chunk.rows) : kNC, wide ? 1 : kTasksPerThread);
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
      } else if (dots) {
        AccumulateDirectDots<Policy>(run, chunk, w, block, c);
        AddLastSteps(grid, block, last, c);
      } else {
        const ChunkOf<Policy> pack_a = {chunk, block};
        if (TakesCopiedPanels<Policy>(w, depth)) {
          Accumulate<Policy>(run, grid, block, depth, pack_a, CopiedB<Policy>{{w}}, c, true, last);
        } else {
          Accumulate<Policy>(run, grid, block, depth, pack_a, DirectB<Policy>{w}, c, true, last);
        }
      }
      if (with_granules) {
        UnspreadColumns(block.m1 - block.m0, block.n1 - block.n0, c, block.ldc());
      }
      add(grid, block, m0, c);
      if (run.Stopped()) return;
      StoreTile(block, c, *dx, m0, accumulate);
    });
    if (run.Stopped()) return;
  }
}

template <typename Policy>
static void InputGrad(Run& run, const InputGradParts& op) {
  const int64_t r = op.dh == nullptr ? 0 : op.dh->cols;
  const RowSource none = DenseRows(op.dy);
  const bool fills_dh = r != 0 && op.lora_b != nullptr;
  const RowSource lora_a = r == 0 || op.lora_a == nullptr ? none : DenseRows(*op.lora_a);
  const RowSource lora_b = fills_dh ? DenseRows(*op.lora_b) : none;
  RowSource dh = r == 0 ? none : DenseRows(*op.dh);
  dh.factor = op.dh_factor;
  int64_t step = ChunkRows<Policy>(op.dy.rows, op.dy.cols);
  bool factor = false;
  if (!Policy::kTiles && op.d_lora_b != nullptr && op.w != nullptr) {
    factor = MakeFactorPanels(run, op.dy, *op.d_lora_b, &step);
    if (run.Stopped()) return;
  }
  const auto pack = [&](const RowSource& dy, int64_t m0, const PackedChunk& chunk) {
    PackAndShrink<Policy, false>(run, dy, nullptr, m0, chunk, op.w != nullptr, fills_dh ? r : 0,
                                 op.scaling, DirectB<F32Policy>{lora_b}, op.lora_b,
                                 fills_dh ? static_cast<float*>(op.dh->data) : nullptr,
                                 op.accumulate_dh);
    if constexpr (!Policy::kTiles) {
      if (!factor || run.Stopped()) return;
      AddFactorPanels<Policy>(run, chunk, m0, m0 + chunk.rows == dy.rows, *op.d_lora_b);
    }
  };
  InputGradChunks<Policy>(
      run, op.dy, op.w, op.dx, op.accumulate, r, step, pack,
      [&](const Grid& grid, const Block& block, int64_t m0, bool spread, LastSteps* last) {
        if (r == 0 || op.gate != nullptr || FewRows(grid)) return true;
        return PackLastSteps(
            run, grid, block, dh, m0,
            [&](int64_t k0, int64_t kc, int64_t n0, int64_t n1, Unit* out) {
              PackBDirect<F32Policy>(lora_a, k0, kc, n0, n1, out);
              if (spread) SpreadPanels(kc, n1 - n0, out);
            },
            last);
      },
      [&](const Grid& grid, const Block& block, int64_t m0, float* c) {
        if (r == 0 || (op.gate == nullptr && !FewRows(grid))) return;
        float* sum = c;
        if (op.gate != nullptr) sum = run.Get<float>(kAdapterSlot, block.c_elems());
        if (sum == nullptr) return;
        if (FewRows(grid)) {
          AccumulateThin<false>(
              run, dh, m0 + block.m0, block.m1 - block.m0, *op.lora_a, block.n0, block.n1,
              [&](int64_t m) { return sum + m * block.ldc(); }, sum != c);
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

/// c = one block of left [M, i] · right [M, n], summed over M; row left.cols is that of ones.
LOWRANK_INLINE void SumTile(Run& run, const Grid& grid, const Block& block, const TensorView& left,
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
/// where `ones`. finish(block, c) takes each tile.
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

/// out[n][i] = factor · c[i][n] for rows i < rows of the block, after adding what `out` holds where
/// asked: kVL columns by kVL rows are turned at a time.
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
        // A row of c has whole vectors; rows past the last are not used.
        turned[j] = Load(c + (i + Min(j, height - 1) - block.m0) * block.ldc() + n - block.n0);
      }
      Transpose(turned);
      for (int64_t j = 0; j < width; ++j) {
        StoreGrads(out, (n + j) * out.cols + i, height, turned[j] * factor, accumulate);
      }
    }
  }
}

/// d_lora_a [r, K] (+)= factor · dhᵀ · (gate ⊙ x)
LOWRANK_INLINE void FactorAGrad(Run& run, const TensorView& dh, const TensorView& x_view,
                                const Gate* gate, float factor, const TensorView& out,
                                bool accumulate) {
  RowSource x = DenseRows(x_view);
  x.gate = gate;
  SumOverRows(run, dh, false, x, [&](const Block& block, float* c) {
    if (factor != 1) {
      for (int64_t i = 0; i < block.c_elems(); ++i) c[i] *= factor;
    }
    StoreTile(block, c, out, 0, accumulate);
  });
}

/// What is summed over the rows of dy beside h: those outputs that are present.
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

/// A tile of the sums over dy's rows, beside the columns of h and a row of ones.
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

LOWRANK_OP Outcome LoraBackward(const LoraBackwardOp& op, const RunContext& context) {
  Run run(context);
  const int64_t r = op.lora_a.rows;
  const Gate gate_value = MakeGate(op.dropout, op.lora_a.cols);
  const Gate* gate = gate_value.active ? &gate_value : nullptr;
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
    InputGrad<F32Policy>(run, parts);
  }
  if (run.Stopped()) return run.Result();

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
