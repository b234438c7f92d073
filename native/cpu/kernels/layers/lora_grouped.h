/// A batch whose rows have different adapters: the code of lora_forward.h and lora_backward.h, with
/// the adapter's part split by adapter. The base product does not depend on the adapters.
///
///   y[m]  = x[m] · dequant(w)ᵀ + bias + Σ_e g · scaling_e · (h_e · lora_b_eᵀ + lora_bias_e)
///   dx[m] = dy[m] · dequant(w) + Σ_e gate_e ⊙ (dh_e · lora_a_e)
///   dh_e  = g · scaling_e · u_e,  u_e = dy · lora_b_e
///   dg    = scaling_e · (u_e · h_e + dy · lora_bias_e)
///
/// over the adapters e of row m, in the order of the table.
///
/// Operands   AdapterTable (native/core/ops/grouped_ops.h); h and dh packed, [count, r] per adapter
/// Tasks      shrink: an adapter's rows, kPieceRows at a time. expand: inside the tasks of the base
///            product, whose sums of the rows of an adapter are gathered (they are in L2), so that
///            a column block of each lora_b is read once. gradients: tiles of all adapters
/// Numerics   those of one adapter, sum by sum: a row has the bits of loraForward, and an adapter's
///            gradients are those of loraBackward over its rows alone
#pragma once

#include "native/cpu/kernels/layers/lora_backward.h"
#include "native/cpu/kernels/layers/lora_forward.h"

namespace lowrank::cpu::LOWRANK_ISA {

// Columns of a block to which adapters of few rows are added, if L2 has room for the sums of so
// many rows. A row of lora_a then has 4 KiB in a block, one page. With kNC the row would end just
// after the processor has started to prefetch it (lora_a from memory 0.6 to 0.7 of the time, lora_b
// 0.95).
constexpr int64_t kGroupColumns = 1024;
constexpr int64_t kGroupRows = 64;

/// Columns of a block of the batch's product.
LOWRANK_INLINE int64_t GroupColumns(const AdapterTable& table, int64_t rows) {
  const bool few = rows <= kGroupRows && table.row_count <= table.count * kThinRows;
  return few ? kGroupColumns : kNC;
}

// Rows that share the packing of a factor. For fewer rows, packing would cost as much as the
// products.
constexpr int64_t kPieceRows = 64;

/// The gate of an adapter; inactive if it drops nothing.
LOWRANK_INLINE Gate AdapterGate(const AdapterRows& adapter, uint64_t seed, const TensorView& mask,
                                int64_t cols) {
  DropoutSpec dropout;
  dropout.p = adapter.dropout;
  dropout.seed = seed;
  dropout.mask = mask;
  return MakeGate(dropout, cols);
}

/// What the tasks of one op know about its adapters.
struct Grouped {
  const AdapterTable& table;
  uint64_t seed;
  const TensorView& mask;
  int64_t in_features;
  const float* factors = nullptr;  // g by entry of the table; null means 1

  const AdapterRows& At(int64_t e) const { return table.adapters[e]; }
  /// The same factor of the adapter after e if it has the shape of e's, so that it can be
  /// prefetched while e's is used; null if there is none.
  const TensorView* Next(int64_t e, int64_t after, TensorView AdapterRows::* factor) const {
    if (after >= table.count) return nullptr;
    const TensorView& mine = At(e).*factor;
    const TensorView& next = At(after).*factor;
    const bool alike = next.rows >= mine.rows && next.cols == mine.cols && next.dtype == mine.dtype;
    return alike ? &next : nullptr;
  }
  const float* FactorsOf(const AdapterRows& adapter) const {
    return factors == nullptr ? nullptr : factors + adapter.first;
  }
  /// The rows of an adapter in a matrix of the batch, one after another.
  RowSource RowsIn(const TensorView& view, const AdapterRows& adapter) const {
    RowSource source = DenseRows(view);
    source.rows = adapter.count;
    source.index = table.rows + adapter.first;
    return source;
  }
};

/// The number of tasks before each adapter's, and the adapter of each task.
struct TaskTable {
  int64_t* begins = nullptr;  // [count + 1]
  int64_t count = 0;

  int64_t total() const { return count == 0 ? 0 : begins[count]; }
  int64_t OwnerOf(int64_t task) const {
    int64_t low = 0;
    int64_t high = count;
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      (begins[middle] <= task ? low : high) = middle;
    }
    return low;
  }
};

/// tasks_of(owner) tasks for each owner. begins is null if memory ran out.
template <typename TasksFn>
LOWRANK_INLINE TaskTable CountTasks(Run& run, int64_t owners, const TasksFn& tasks_of) {
  TaskTable tasks;
  tasks.begins = run.Get<int64_t>(kGroupSlot, owners + 1);
  if (tasks.begins == nullptr) return tasks;
  tasks.count = owners;
  tasks.begins[0] = 0;
  for (int64_t i = 0; i < owners; ++i) tasks.begins[i + 1] = tasks.begins[i] + tasks_of(i);
  return tasks;
}

/// A block of all of `rows` and columns [n0, n1).
LOWRANK_INLINE Block WholeRows(const Grid& grid, int64_t rows, int64_t n0, int64_t n1) {
  return {0, grid.rows.count, 0, rows, n0, n1};
}

/// a[row] · b over the n columns of a, in spans of kKC as everywhere; b is a row.
static float DotRow(const TensorView& a, int64_t row, const TensorView& b) {
  const int64_t begin = row * a.cols;
  float total = 0;
  for (int64_t n0 = 0; n0 < a.cols; n0 += kKC) {
    const int64_t n1 = Min(n0 + kKC, a.cols);
    VecF lanes = {};
    int64_t n = n0;
    for (; n + kVL <= n1; n += kVL) {
      lanes = Fma(LoadWide(a.data, a.dtype, begin + n), LoadWide(b.data, b.dtype, n), lanes);
    }
    float sum = 0;
    for (int l = 0; l < kVL; ++l) sum += lanes[l];
    for (; n < n1; ++n) {
      sum += ScalarWiden(a.data, a.dtype, begin + n) * ScalarWiden(b.data, b.dtype, n);
    }
    total += sum;
  }
  return total;
}

LOWRANK_INLINE void StoreGateGrads(const GroupedBackwardOp& op, const AdapterRows& adapter,
                                   int64_t row0, int64_t rows, const float* dots) {
  for (int64_t m = 0; m < rows; ++m) {
    const int64_t entry = adapter.first + row0 + m;
    float sum = dots[m];
    if (adapter.lora_bias.present) {
      sum += DotRow(op.dy, op.table.rows[entry], adapter.lora_bias);
    }
    StoreGrad(op.d_row_scale, op.table.gates[entry], adapter.scaling * sum,
              op.accumulate_d_row_scale);
  }
}

/// out_e [count, r] = factor_e · g · (gate_e ⊙ a) · b_e over the rows of each adapter.
///
///   forward: a = x, b = lora_aᵀ, factor 1        backward: a = dy, b = lora_b, factor scaling
///
/// The gradients of g are computed on the way if the backward op `gates` wants them; otherwise
/// null.
template <bool kBackward>
LOWRANK_INLINE void GroupedShrink(Run& run, const Grouped& group, const TensorView& a, float* out,
                                  const GroupedBackwardOp* gates = nullptr) {
  const TaskTable tasks = CountTasks(run, group.table.count, [&](int64_t e) {
    if (group.At(e).r() == 0 && gates == nullptr) return int64_t{0};
    return CeilDiv(group.At(e).count, kPieceRows);
  });
  if (tasks.begins == nullptr) return;
  constexpr TensorView AdapterRows::* kFactor =
      kBackward ? &AdapterRows::lora_b : &AdapterRows::lora_a;
  run.ForEach(tasks.total(), group.table.h_elems * a.cols, [&](int64_t task) {
    if (run.Stopped()) return;
    const int64_t e = tasks.OwnerOf(task);
    const AdapterRows& adapter = group.At(e);
    const int64_t r = adapter.r();
    const int64_t row0 = (task - tasks.begins[e]) * kPieceRows;
    const int64_t rows = Min(kPieceRows, adapter.count - row0);
    RowSource source = group.RowsIn(a, adapter);
    const Gate gate = AdapterGate(adapter, group.seed, group.mask, group.in_features);
    if (!kBackward && gate.active) source.gate = &gate;
    const RowSource factor_rows = DenseRows(adapter.*kFactor);
    // For the task that this thread is likely to get next.
    const int64_t later = Min(task + run.context.pool->threads(), tasks.total() - 1);
    const TensorView* next = group.Next(e, tasks.OwnerOf(later), kFactor);
    const Grid grid = {SplitRows(rows), r, CeilDiv(r, kNR), 1, 1};
    const float* row_factors = kBackward ? group.FactorsOf(adapter) : nullptr;
    float dots[kPieceRows] = {};  // u · h
    for (int64_t n0 = 0; n0 < r; n0 += kNC) {
      const Block block = WholeRows(grid, rows, n0, Min(n0 + kNC, r));
      float* c = run.Get<float>(kCSlot, block.c_elems());
      if (c == nullptr) return;
      const RowsOf<F32Policy> pack_a = {run, grid, block, source, row0};
      if (rows <= kThinRows && a.cols > 0) {
        AccumulateThin<!kBackward>(
            run, source, row0, rows, adapter.*kFactor, n0, block.n1,
            [&](int64_t m) { return c + m * block.ldc(); }, true, next);
      } else if constexpr (kBackward) {
        Accumulate<F32Policy>(run, grid, block, a.cols, pack_a, DirectB<F32Policy>{factor_rows}, c,
                              true);
      } else {
        Accumulate<F32Policy>(run, grid, block, a.cols, pack_a, TransposedB<F32Policy>{factor_rows},
                              c, true);
      }
      if (run.Stopped()) return;
      for (int64_t m = 0; m < rows; ++m) {
        float factor = kBackward ? adapter.scaling : 1.0f;
        if (row_factors != nullptr) factor *= row_factors[row0 + m];
        const float* row = c + m * block.ldc();
        const int64_t begin = adapter.h_begin + (row0 + m) * r + n0;
        float* target = out + begin;
        for (int64_t n = 0; n < block.n1 - n0; ++n) target[n] = factor * row[n];
        if (!kBackward || gates == nullptr) continue;
        const float* h = static_cast<const float*>(gates->h.data) + begin;
        float sum = 0;
        for (int64_t n = 0; n < block.n1 - n0; ++n) sum += row[n] * h[n];
        dots[m] += sum;
      }
    }
    if (kBackward && gates != nullptr) StoreGateGrads(*gates, adapter, row0, rows, dots);
  });
}

/// The first of `count` ascending rows that is not before `row`.
LOWRANK_INLINE int64_t FirstFrom(const int32_t* rows, int64_t count, int64_t row) {
  int64_t low = 0;
  while (low < count) {
    const int64_t middle = (low + count) / 2;
    if (rows[middle] < row) {
      low = middle + 1;
    } else {
      count = middle;
    }
  }
  return low;
}

/// dst row = src row, both of `cols` floats with room for whole vectors.
LOWRANK_INLINE void CopyRow(const float* src, int64_t cols, float* dst) {
  for (int64_t n = 0; n < cols; n += kVL) Store(dst + n, Load(src + n));
}

/// An adapter's rows among those of a block: positions [begin, end) of its list.
struct Part {
  int64_t begin;
  int64_t end;
  const int32_t* index;  // the rows of the adapter
  int64_t first_row;     // the row of the batch that is row 0 of c

  int64_t rows() const { return end - begin; }
  float* RowOf(const Block& block, int64_t i, float* c) const {
    return c + (index[begin + i] - first_row) * block.ldc();
  }
};

LOWRANK_INLINE Part PartOf(const Grouped& group, const AdapterRows& adapter, const Block& block,
                           int64_t m0) {
  const int32_t* index = group.table.rows + adapter.first;
  return {FirstFrom(index, adapter.count, m0 + block.m0),
          FirstFrom(index, adapter.count, m0 + block.m1), index, m0 + block.m0};
}

/// (gate ⊙) left · b of an adapter.
struct AdapterTerm {
  const RowSource& left;     // packed by adapter
  const TensorView& factor;  // b, or its transpose
  const TensorView* next;    // the factor after this one, or null
  const Gate* gate;
};

/// c[row] += the term for an adapter's rows in the block; its factor is the transpose of b where
/// kTransposed. Few rows are added in place.
template <bool kTransposed>
LOWRANK_INLINE void AddPart(Run& run, const Block& block, const Part& part, const AdapterTerm& term,
                            float* c) {
  const auto& [left, factor, next, gate] = term;
  const int64_t r = left.cols;
  const int64_t rows = part.rows();
  const int64_t cols = block.n1 - block.n0;
  const bool few = rows <= kThinRows;
  const Grid grid = {SplitRows(rows), cols, CeilDiv(cols, kNR), 1, 1};
  const Block here = WholeRows(grid, rows, block.n0, block.n1);
  if (few && gate == nullptr) {
    AccumulateThin<kTransposed>(
        run, left, part.begin, rows, factor, block.n0, block.n1,
        [&](int64_t i) { return part.RowOf(block, i, c); }, false, next);
    return;
  }
  const RowsOf<F32Policy> pack_a = {run, grid, here, left, part.begin};
  const bool together = part.index[part.end - 1] - part.index[part.begin] == rows - 1;
  float* sum = part.RowOf(block, 0, c);
  if (gate != nullptr || !together) {
    sum = run.Get<float>(kAdapterSlot, here.c_elems());
    if (sum == nullptr) return;
  }
  const bool gathered = gate == nullptr && !together;
  for (int64_t i = 0; gathered && i < rows; ++i) {
    CopyRow(part.RowOf(block, i, c), cols, sum + i * here.ldc());
  }
  const RowSource b = DenseRows(factor);
  if (few) {
    AccumulateThin<kTransposed>(
        run, left, part.begin, rows, factor, block.n0, block.n1,
        [&](int64_t i) { return sum + i * here.ldc(); }, true, next);
  } else if constexpr (kTransposed) {
    Accumulate<F32Policy>(run, grid, here, r, pack_a, TransposedB<F32Policy>{b}, sum,
                          gate != nullptr);
  } else {
    Accumulate<F32Policy>(run, grid, here, r, pack_a, DirectB<F32Policy>{b}, sum, gate != nullptr);
  }
  if (run.Stopped()) return;
  for (int64_t i = 0; i < rows; ++i) {
    float* from = sum + i * here.ldc();
    float* row = part.RowOf(block, i, c);
    if (gathered) CopyRow(from, cols, row);
    if (gate == nullptr) continue;
    ApplyGate(*gate, part.index[part.begin + i], block.n0, cols, from);
    for (int64_t n = 0; n < cols; ++n) row[n] += from[n];
  }
}

/// Adds the bias to every row of a block of up to kNC columns, and g · scaling · lora_bias if a
/// row's adapter has one: one addition for a row of one adapter, as in lora_forward.h.
LOWRANK_INLINE void AddBiases(const GroupedForwardOp& op, const Grouped& group, const Block& block,
                              int64_t m0, float* c) {
  static_assert(4 * kMR <= kChunkRows);  // so a chunk has at most this many rows
  const TensorView none;
  bool own[kChunkRows] = {};  // does the row have a bias from its adapter?
  float bias[kNC];
  for (int64_t e = 0; e < op.table.count; ++e) {
    const AdapterRows& adapter = group.At(e);
    if (!adapter.lora_bias.present) continue;
    const Part part = PartOf(group, adapter, block, m0);
    for (int64_t i = part.begin; i < part.end; ++i) {
      const int64_t m = part.index[i] - m0;
      const float* factors = group.FactorsOf(adapter);
      const float scaling = factors == nullptr ? adapter.scaling : adapter.scaling * factors[i];
      BiasRow(own[m - block.m0] ? none : op.bias, adapter.lora_bias, scaling, block.n0, block.n1,
              bias);
      AddRow(block, m, m + 1, bias, c);
      own[m - block.m0] = true;
    }
  }
  if (!BiasRow(op.bias, none, 0, block.n0, block.n1, bias)) return;
  for (int64_t m = block.m0; m < block.m1; ++m) {
    if (!own[m - block.m0]) AddRow(block, m, m + 1, bias, c);
  }
}

/// g in f32 by entry of the table; null if it is not given, or memory ran out.
LOWRANK_INLINE const float* RowFactors(Run& run, const AdapterTable& table,
                                       const TensorView& row_scale, float* room) {
  if (!row_scale.present || room == nullptr) return nullptr;
  for (int64_t i = 0; i < table.row_count; ++i) {
    room[i] = ScalarWiden(row_scale.data, row_scale.dtype, table.gates[i]);
  }
  return run.Stopped() ? nullptr : room;
}

template <typename Policy>
static void GroupedProduct(Run& run, const GroupedForwardOp& op, const Grouped& group) {
  const RowSource x = DenseRows(op.x);
  ForwardChunks<Policy>(
      run, op.x, op.w, op.y, GroupColumns(op.table, op.x.rows),
      [&](const RowSource&, int64_t m0, const PackedChunk& chunk) {
        PackAndShrink<Policy, true>(run, x, m0, chunk, true, Shrink());
      },
      [&](const Grid&, const Block& block, int64_t m0, float* c) {
        for (int64_t e = 0; e < op.table.count; ++e) {
          const AdapterRows& adapter = op.table.adapters[e];
          const Part part = PartOf(group, adapter, block, m0);
          if (part.rows() == 0 || adapter.r() == 0) continue;
          const TensorView h_view = adapter.HOf(op.h);
          RowSource h = DenseRows(h_view);
          h.factor = adapter.scaling;
          h.row_factors = group.FactorsOf(adapter);
          AddPart<true>(run, block, part,
                        {h, adapter.lora_b, group.Next(e, e + 1, &AdapterRows::lora_b), nullptr},
                        c);
          if (run.Stopped()) return;
        }
        EachPart(block, c,
                 [&](const Block& part, float* part_c) { AddBiases(op, group, part, m0, part_c); });
      });
}

LOWRANK_OP Outcome GroupedForward(const GroupedForwardOp& op, const RunContext& context) {
  Run run(context);
  Grouped group = {op.table, op.seed, op.mask, op.x.cols};
  float* room = nullptr;
  if (op.row_scale.present) room = run.Get<float>(kDhSlot, op.table.row_count);
  group.factors = RowFactors(run, op.table, op.row_scale, room);
  if (run.Stopped()) return run.Result();
  GroupedShrink<false>(run, group, op.x, static_cast<float*>(op.h.data));
  if (run.Stopped()) return run.Result();
  WithComputePolicy(op.compute, op.x.dtype, op.w,
                    [&](auto policy) { GroupedProduct<decltype(policy)>(run, op, group); });
  return run.Result();
}

template <typename Policy>
static void GroupedInputGrad(Run& run, const GroupedBackwardOp& op, const Grouped& group,
                             float* dh) {
  const RowSource dy = DenseRows(op.dy);
  InputGradChunks<Policy>(
      run,
      {op.dy, &op.w, &op.dx, op.accumulate_dx, 0, ChunkRows<Policy>(op.dy.rows, op.dy.cols),
       GroupColumns(op.table, op.dy.rows)},
      [&](const RowSource&, int64_t m0, const PackedChunk& chunk) {
        PackAndShrink<Policy, false>(run, dy, m0, chunk, true, Shrink());
      },
      NoLastSteps(),
      [&](const Grid&, const Block& block, int64_t m0, float* c) {
        for (int64_t e = 0; e < op.table.count; ++e) {
          const AdapterRows& adapter = op.table.adapters[e];
          const Part part = PartOf(group, adapter, block, m0);
          if (part.rows() == 0 || adapter.r() == 0) continue;
          const TensorView dh_view = FloatView(dh + adapter.h_begin, adapter.count, adapter.r());
          const RowSource left = DenseRows(dh_view);
          const Gate gate = AdapterGate(adapter, op.seed, op.mask, op.in_features);
          AddPart<false>(run, block, part,
                         {left, adapter.lora_a, group.Next(e, e + 1, &AdapterRows::lora_a),
                          gate.active ? &gate : nullptr},
                         c);
          if (run.Stopped()) return;
        }
      });
}

/// The gradients of one adapter's factors as two sums over its rows: left [count, i] · right.
struct FactorSums {
  TensorView left;
  RowSource right;
  bool ones = false;

  int64_t rows() const { return left.cols + (ones ? 1 : 0); }
  Grid Tiles() const { return PlanGrid(rows(), right.cols, 1); }
};

LOWRANK_INLINE FactorSums SumsA(const GroupedBackwardOp& op, const Grouped& group,
                                const AdapterRows& adapter, float* dh, const Gate* gate) {
  FactorSums sums;
  if (!adapter.d_lora_a.present) return sums;
  sums.left = FloatView(dh + adapter.h_begin, adapter.count, adapter.r());
  sums.right = group.RowsIn(op.x, adapter);
  if (gate != nullptr && gate->active) sums.right.gate = gate;
  return sums;
}

LOWRANK_INLINE FactorSums SumsB(const GroupedBackwardOp& op, const Grouped& group,
                                const AdapterRows& adapter) {
  FactorSums sums;
  float* h = adapter.d_lora_b.present ? static_cast<float*>(op.h.data) + adapter.h_begin : nullptr;
  // An empty batch has no h, and its gradients are 0.
  sums.left = FloatView(h, adapter.count, adapter.d_lora_b.present ? adapter.r() : 0);
  sums.ones = adapter.d_lora_bias.present;
  sums.right = group.RowsIn(op.dy, adapter);
  sums.right.row_factors = group.FactorsOf(adapter);
  return sums;
}

/// Every adapter's d_lora_a, then d_lora_b and d_lora_bias: owners 2e and 2e + 1 of the tasks.
LOWRANK_INLINE void GroupedFactorGrads(Run& run, const GroupedBackwardOp& op, const Grouped& group,
                                       float* dh) {
  const auto sums_of = [&](int64_t owner, const Gate* gate) {
    const AdapterRows& adapter = group.At(owner / 2);
    return owner % 2 == 0 ? SumsA(op, group, adapter, dh, gate) : SumsB(op, group, adapter);
  };
  int64_t work = 0;
  const TaskTable tasks = CountTasks(run, 2 * op.table.count, [&](int64_t owner) -> int64_t {
    const FactorSums sums = sums_of(owner, nullptr);
    if (sums.rows() == 0 || sums.right.cols == 0) return 0;
    work += sums.rows() * sums.right.cols * (sums.right.rows + 1);
    return sums.Tiles().tasks();
  });
  if (tasks.begins == nullptr) return;
  const TensorView none;
  run.ForEach(tasks.total(), work, [&](int64_t task) {
    if (run.Stopped()) return;
    const int64_t owner = tasks.OwnerOf(task);
    const AdapterRows& adapter = group.At(owner / 2);
    const Gate gate = AdapterGate(adapter, op.seed, op.mask, op.in_features);
    const FactorSums sums = sums_of(owner, &gate);
    const Grid grid = sums.Tiles();
    const Block block = BlockOf(grid, task - tasks.begins[owner]);
    if (block.m0 == block.m1) return;
    float* c = run.Get<float>(kCSlot, block.c_elems());
    if (c == nullptr) return;
    SumTile(run, grid, block, sums.left, sums.right, c);
    if (run.Stopped()) return;
    if (owner % 2 == 0) {
      StoreTile(block, c, adapter.d_lora_a, 0, adapter.accumulate_d_lora_a);
      return;
    }
    StoreFactorB(
        {op.dy, op.h, adapter.d_lora_b, none, adapter.d_lora_bias, adapter.accumulate_d_lora_b,
         false, adapter.accumulate_d_lora_bias, adapter.scaling},
        sums.left.cols, block, c);
  });
}

LOWRANK_OP Outcome GroupedBackward(const GroupedBackwardOp& op, const RunContext& context) {
  Run run(context);
  Grouped group = {op.table, op.seed, op.mask, op.in_features};
  const bool needs_gates = op.d_row_scale.present;
  bool needs_dh = op.dx.present || needs_gates;
  for (int64_t e = 0; e < op.table.count; ++e) {
    needs_dh = needs_dh || op.table.adapters[e].d_lora_a.present;
  }
  // dh, followed by g.
  const int64_t dh_elems = needs_dh ? op.table.h_elems : 0;
  float* dh = run.Get<float>(kDhSlot, dh_elems + op.table.row_count);
  if (dh == nullptr) return run.Result();
  group.factors = RowFactors(run, op.table, op.row_scale, dh + dh_elems);
  if (run.Stopped()) return run.Result();
  if (needs_gates && !op.accumulate_d_row_scale) {
    // For the empty slots.
    for (int64_t i = 0; i < op.d_row_scale.elems(); ++i) {
      StoreGrad(op.d_row_scale, i, 0, false);
    }
  }
  if (needs_dh) GroupedShrink<true>(run, group, op.dy, dh, needs_gates ? &op : nullptr);
  if (run.Stopped()) return run.Result();
  if (op.dx.present) {
    WithPolicy(op.dy.dtype, op.w,
               [&](auto policy) { GroupedInputGrad<decltype(policy)>(run, op, group, dh); });
  }
  if (run.Stopped()) return run.Result();
  GroupedFactorGrads(run, op, group, dh);
  if (run.Stopped()) return run.Result();
  const TensorView none;
  FactorBGrad(run, {op.dy, none, none, op.d_bias, none, false, op.accumulate_d_bias, false, 1});
  return run.Result();
}

}  // namespace lowrank::cpu::LOWRANK_ISA
