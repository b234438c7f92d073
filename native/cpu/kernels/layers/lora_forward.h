/// matmul, loraForward, loraForwardMany, loraForwardSwiglu.
///
///   y  = x · dequant(w)ᵀ + bias + scaling · ((gate ⊙ x) · lora_aᵀ · lora_bᵀ + lora_bias)
///
/// Operands   x, y [M, ·] T row-major · w [N, K] packed or dense · lora_a [r, K] · lora_b [N, r] ·
///            h [M, r] f32
/// Numerics   base products in T (or f32 if an operand is f32), sums in f32; everything of the
///            adapter in f32; rounded once to T at the store
///
/// A chunk of rows is packed once. The adapter's shrink reads the same rows while they are in
/// cache, and its expand is r more steps of the sum in the same C tile, so y is not read again.
#pragma once

#include "native/cpu/kernels/layers/elementwise.h"
#include "native/cpu/kernels/layers/lora_shared.h"
#include "native/cpu/kernels/layers/plan_route.h"

namespace lowrank::cpu::LOWRANK_ISA {

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

/// Rows that follow those of x in a product, in x's dtype, with a given h and their own result.
/// What is added to each row of y is not added to theirs.
struct MoreRows {
  const TensorView& x;
  const TensorView& h;
  const TensorView& y;
};

/// A forward product. Without an adapter `h` is absent.
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
  bool h_given = false;            // otherwise it is filled here
  const MoreRows* more = nullptr;  // only for a product by itself, with a given h
};

/// c = x · wᵀ of one block and the last steps, with x packed in the chunk. Called once per task, so
/// one compiled copy serves all ops with such products.
template <typename Policy>
static void AccumulateBase(Run& run, const Grid& grid, const Block& block, const PackedChunk& chunk,
                           Route route, const RowSource& w, const Int8Weight& int8,
                           const LastSteps& last, float* c) {
  if constexpr (Policy::kTiles) {
    AccumulateByTiles<TileSession>(run, chunk, w, block, c);
    AddLastSteps(grid, block, last, c);
  } else if constexpr (kIsInt8<Policy>) {
    AccumulateInt8(run, grid, block, chunk, route, w, int8, last, c);
  } else if constexpr (kIsRowCodes<Policy>) {
    AccumulateRowCodes(run, grid, block, chunk, route, w, last, c);
  } else {
    switch (route) {
      case Route::kLaneDots:
        AccumulateDots<Policy>(run, chunk, w, block, c);
        AddLastSteps(grid, block, last, c);
        return;
      case Route::kLaneStrips:
        AccumulateStrips<Policy>(run, grid, block, chunk.order.depth, LaneStrips<Policy>{chunk, w},
                                 last, c);
        return;
      case Route::kDenseDots:
        AccumulateDenseDots<Policy>(run, chunk, w, block, c);
        AddLastSteps(grid, block, last, c);
        return;
      default:
        AccumulateDenseRows<Policy>(run, grid, block, chunk, w, TransposedB<Policy>{w},
                                    route == Route::kDenseStrips, last, c);
    }
  }
}

// Up to this many rows that follow those of x are added to its last chunk: a chunk of their own, or
// one more for all, would decode the weight again.
constexpr int64_t kMoreRows = 64;

/// One of the products that share x, whose weights have the same order of sums.
struct ForwardTarget {
  const WeightView* w;
  const TensorView* y;
  const MoreRows* more = nullptr;
};
struct TargetTasks {
  RowSource w;
  Route route;
  Int8Weight int8;
  Grid grid;
  int64_t first_task;
};

/// Stores rows of a block to y, and those after y's last row to the result of the extra rows.
LOWRANK_INLINE void StoreRows(const Block& block, float* c, const ForwardTarget& target,
                              int64_t m0) {
  Block own = block;
  own.m1 = Max(Min(block.m1, target.y->rows - m0), block.m0);
  StoreTile(own, c, *target.y, m0, false);
  if (own.m1 == block.m1) return;
  Block more = block;
  more.m0 = own.m1;
  StoreTile(more, c + (more.m0 - block.m0) * block.ldc(), target.more->y, m0 - target.y->rows,
            false);
}

/// A function of the caller, valid during the call. Long code that takes one is compiled once for
/// all of them.
template <typename Signature>
struct Reference;
template <typename Result, typename... Args>
struct Reference<Result(Args...)> {
  const void* function;
  Result (*call)(const void*, Args...);

  template <typename Function>
  explicit LOWRANK_MEMBER_INLINE Reference(const Function& of)
      : function(&of), call([](const void* self, Args... args) -> Result {
          return (*static_cast<const Function*>(self))(args...);
        }) {}
  LOWRANK_MEMBER_INLINE Result operator()(Args... args) const { return call(function, args...); }
};
using PackChunk = Reference<void(const RowSource& x, int64_t m0, const PackedChunk& chunk)>;
using LastOfBlock =
    Reference<bool(int target, const Grid& grid, const Block& block, int64_t m0, LastSteps* last)>;
using AddToBlock =
    Reference<void(int target, const Grid& grid, const Block& block, int64_t m0, float* c)>;

/// y = x · wᵀ for each target, chunk by chunk of rows, with the tasks of all targets in parallel.
/// `more` rows of the first target follow where x ends.
struct ForwardPass {
  const TensorView& x;
  const ForwardTarget* targets;
  int count;
  int64_t r;  // only counts for the work
  /// The last target is the up of a gate, whose y holds gate or will hold it from the target
  /// before; then a task takes a block of each in turn.
  bool swiglu = false;
  int64_t most_cols = kNC;  // of a block: more if there are no last steps
};

/// pack(x, m0, chunk) packs a chunk and may also read its rows; last(target, grid, block, m0,
/// steps) sets the steps that end the sums of a block, and add(target, grid, block, m0, c) adds to
/// them.
template <typename Policy>
static void ForwardManyChunks(Run& run, const ForwardPass& pass, const PackChunk& pack,
                              const LastOfBlock& last_of, const AddToBlock& add) {
  const TensorView& x_view = pass.x;
  const ForwardTarget* const targets = pass.targets;
  const int count = pass.count;
  const bool swiglu = pass.swiglu;
  const int64_t depth = x_view.cols;
  RowSource x = DenseRows(x_view);
  if (targets[0].more != nullptr) Append(targets[0].more->x, &x);
  const bool added = x.rows - x_view.rows <= kMoreRows;
  TargetTasks all[LoraForwardManyOp::kMost];
  int64_t cols = 0;
  for (int i = 0; i < count; ++i) {
    all[i].w = WeightRows(*targets[i].w, x_view.dtype);
    if (kIsInt8<Policy>) all[i].int8 = MakeInt8Weight(targets[i].w->quant);
    cols += targets[i].y->cols;
  }
  const SumOrder order = OrderOf<Policy>(all[0].w);
  const int64_t step = ChunkRows<Policy>(added ? x_view.rows : x.rows, depth);
  for (int64_t m0 = 0, m1 = 0; m0 < x.rows; m0 = m1) {
    PackedChunk chunk;
    m1 = added && m0 + step >= x_view.rows ? x.rows : Min(m0 + step, x.rows);
    chunk.rows = m1 - m0;
    chunk.order = order;
    PlanRoutes<Policy>(x.rows, chunk.rows, order, all, count);
    chunk.route = all[0].route;
    chunk.panels = PanelsOf(chunk.route, chunk.rows);
    const bool columns = ByColumns(chunk.route);
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
      all[i].grid = PlanGrid(chunk.rows, targets[i].y->cols, run.context.pool->threads(), kNR,
                             pass.most_cols);
      if (ForDots(chunk.route)) all[i].grid.row_blocks = 1;  // passes share the rows of w
      all[i].first_task = swiglu ? 0 : tasks;
      tasks = all[i].first_task + all[i].grid.tasks();
    }
    run.ForEach(tasks, chunk.rows * cols * (depth + pass.r), [&](int64_t task) {
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
        EachPart(block, c, [&](const Block& part, float* part_c) {
          AccumulateBase<Policy>(run, grid, part, chunk, all[i].route, all[i].w, all[i].int8, last,
                                 part_c);
        });
        add(i, grid, block, m0, c);
        if (run.Stopped()) return;
        if (swiglu && i == count - 1) {
          StoreSwiglu(block, c, *targets[i].y, m0);
        } else {
          StoreRows(block, c, targets[i], m0);
        }
      }
    });
    if (run.Stopped()) return;
  }
}

/// The same for one weight, without last steps.
template <typename Policy, typename PackFn, typename AddFn>
LOWRANK_INLINE void ForwardChunks(Run& run, const TensorView& x, const WeightView& w,
                                  const TensorView& y, int64_t most_cols, const PackFn& pack,
                                  const AddFn& add) {
  const ForwardTarget target = {&w, &y};
  const auto no_last = [](int, const Grid&, const Block&, int64_t, LastSteps*) { return true; };
  const auto add_to = [&](int, const Grid& grid, const Block& block, int64_t m0, float* c) {
    add(grid, block, m0, c);
  };
  ForwardManyChunks<Policy>(run, {x, &target, 1, 0, false, most_cols}, PackChunk(pack),
                            LastOfBlock(no_last), AddToBlock(add_to));
}

/// Adds a row of values, one per column, to rows [m0, m1) of a block's sums.
LOWRANK_INLINE void AddRow(const Block& block, int64_t m0, int64_t m1, const float* values,
                           float* c) {
  for (int64_t m = m0; m < m1; ++m) {
    float* row = c + (m - block.m0) * block.ldc();
    for (int64_t n = 0; n < block.n1 - block.n0; ++n) row[n] += values[n];
  }
}

/// scaling · h, and that of the rows that follow.
LOWRANK_INLINE RowSource ScaledHidden(const ForwardParts& op) {
  RowSource rows = ScaledRows(*op.h, op.scaling);
  if (op.more != nullptr) Append(op.more->h, &rows);
  return rows;
}

/// Operands of a part. Its gate belongs to the caller.
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

/// Products that share x and the order of their sums: one product, or those of several ops.
struct Products {
  int count;
  const ForwardParts* one;  // null: ops
  const LoraForwardOp* ops = nullptr;
  const Gate* gates = nullptr;

  ForwardParts At(int i) const { return one != nullptr ? *one : PartsOf(ops[i], gates[i]); }
};

/// With `swiglu` the last of them is its up.
template <typename Policy>
static Outcome ForwardMany(const Products& products, const RunContext& context, bool swiglu) {
  const int count = products.count;
  Run run(context);
  ForwardTarget targets[LoraForwardManyOp::kMost];
  int64_t most_r = 0;
  for (int i = 0; i < count; ++i) {
    const ForwardParts op = products.At(i);
    targets[i] = {&op.w, &op.y, op.more};
    if (op.h != nullptr) most_r = Max(most_r, op.h->cols);
  }
  const auto pack = [&](const RowSource& x, int64_t m0, const PackedChunk& chunk) {
    for (int i = 0; i < count; ++i) {
      const ForwardParts op = products.At(i);
      const int64_t r = op.h == nullptr || op.h_given ? 0 : op.h->cols;
      if (i != 0 && r == 0) continue;
      Shrink shrink;
      if (r != 0) shrink = {op.lora_a, r, static_cast<float*>(op.h->data), op.gate};
      PackAndShrink<Policy, true>(run, x, m0, chunk, i == 0, shrink);
      if (run.Stopped()) return;
    }
  };
  const auto last_of = [&](int i, const Grid& grid, const Block& block, int64_t m0,
                           LastSteps* last) {
    const ForwardParts op = products.At(i);
    if (op.h == nullptr || op.h->cols == 0 || FewRows(grid)) return true;
    const RowSource scaled_h = ScaledHidden(op);
    return PackLastSteps(run, grid, block, scaled_h, m0,
                         TransposedB<F32Policy>{DenseRows(*op.lora_b)}, last);
  };
  const auto add = [&](int i, const Grid& grid, const Block& block, int64_t m0, float* c) {
    const ForwardParts op = products.At(i);
    if (op.h != nullptr && op.h->cols != 0 && FewRows(grid)) {
      const RowSource scaled_h = ScaledHidden(op);
      AccumulateThin<true>(
          run, scaled_h, m0 + block.m0, block.m1 - block.m0, *op.lora_b, block.n0, block.n1,
          [&](int64_t m) { return c + m * block.ldc(); }, false);
    }
    float bias[kNC];
    if (run.Stopped()) return;
    if (BiasRow(op.bias, op.lora_bias, op.scaling, block.n0, block.n1, bias)) {
      AddRow(block, block.m0, Min(block.m1, op.x.rows - m0), bias, c);
    }
  };
  ForwardManyChunks<Policy>(run, {products.At(0).x, targets, count, most_r, swiglu},
                            PackChunk(pack), LastOfBlock(last_of), AddToBlock(add));
  return run.Result();
}

/// WithPolicy, or the policy of this weight's codes.
template <typename Body>
LOWRANK_INLINE void WithComputePolicy(Compute compute, DType activations, const WeightView& w,
                                      const Body& body) {
  if (compute == Compute::kExact) {
    WithPolicy(activations, w, body);
    return;
  }
  if constexpr (!kOwnsCodes) {
    __builtin_trap();  // the op is the base's
  } else if (w.quant.rowwise) {
    body(RowCodePolicy{});
  } else {
    body(Int8Policy{});
  }
}

/// The products in the requested precision, by the policy of the first.
static Outcome ForwardAs(Compute compute, const Products& products, const RunContext& context,
                         bool swiglu = false) {
  Outcome outcome;
  const ForwardParts first = products.At(0);
  WithComputePolicy(compute, first.x.dtype, first.w, [&](auto policy) {
    outcome = ForwardMany<decltype(policy)>(products, context, swiglu);
  });
  return outcome;
}
LOWRANK_INLINE Outcome ForwardAs(Compute compute, const ForwardParts& op,
                                 const RunContext& context) {
  return ForwardAs(compute, Products{1, &op}, context);
}

LOWRANK_OP Outcome Matmul(const MatmulOp& op, const RunContext& context) {
  const TensorView none;
  const ForwardParts parts = {op.x, op.w,    op.bias, nullptr, nullptr,
                              none, nullptr, op.y,    0,       nullptr};
  return ForwardAs(op.compute, parts, context);
}

LOWRANK_OP Outcome LoraForward(const LoraForwardOp& op, const RunContext& context) {
  const Gate gate = MakeGate(op.dropout, op.x.cols);
  return ForwardAs(op.compute, PartsOf(op, gate), context);
}

/// Do both use the same packed rows of x?
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
    const bool meets = swiglu && end == count;
    if (!OwnsForward(parts[first])) {
      outcome = Base().forward_parts(parts + first, end - first, meets, context);
      continue;
    }
    const int length = static_cast<int>(end - first);
    outcome = ForwardAs(parts[first].compute, {length, nullptr, parts + first, gates + first},
                        context, meets);
  }
  return outcome;
}

LOWRANK_OP Outcome LoraForwardMany(const LoraForwardManyOp& op, const RunContext& context) {
  return ForwardRuns(op.parts, op.count, false, context);
}

/// If gate and up are not kept, they are combined block by block, with gate in y. Blocks that are
/// stored anyway are no faster this way (docs/performance/dora-and-layers.md).
LOWRANK_OP Outcome LoraForwardSwiglu(const LoraForwardSwigluOp& op, const RunContext& context) {
  LoraForwardOp parts[] = {op.gate, op.up};
  const bool kept = op.gate.y.present;
  if (!kept) parts[0].y = parts[1].y = op.y;
  const Outcome outcome = ForwardRuns(parts, 2, !kept, context);
  if (!kept || outcome.code != Code::kOk) return outcome;
  return kKernels.gated_activation({op.gate.y, op.up.y, op.y}, context);
}

}  // namespace lowrank::cpu::LOWRANK_ISA
