/// multiplyAdd, mapTensor, gatedActivation, sumProduct: small tensors between the products of a
/// layer.
///
///   y[m, n] = alpha · a · b + beta · c      y = f(a)      out[n] = Σₘ a · b, out[m] = Σₙ a · b
///
/// Operands   any dtype each; b and c [M | 1, N | 1]
/// Numerics   multiplyAdd in f32 and in that order, mapTensor as
///            native/host_device/map_function.h, rounded once at the store; sumProduct in double,
///            where a product of f32 is exact, in an order that depends only on M and N. None
///            depends on the instruction set.
/// Tasks      pieces of rows and columns whose bounds depend only on M and N
#pragma once

#include "native/cpu/kernels/layers/map_lanes.h"
#include "native/cpu/kernels/tile/gemm.h"
#include "native/host_device/gated_activation.h"

namespace lowrank::cpu::LOWRANK_ISA {

// Elements in one step: three buffers of this size stay in L1.
constexpr int64_t kStripElems = 1024;
constexpr int64_t kTaskSpanElems = 16384;

/// An operand whose dimensions of size 1 are broadcast.
struct Spread {
  const TensorView& view;
  int64_t row_elems;  // from one row to the next; 0 if all rows are the same
  bool one_col;

  Spread(const TensorView& v, int64_t cols)
      : view(v), row_elems(v.rows == 1 ? 0 : v.cols), one_col(v.cols == 1 && cols != 1) {}

  void Read(int64_t m, int64_t n, int64_t count, float* out) const {
    if (!one_col) {
      WidenRun(view.data, view.dtype, m * row_elems + n, count, out);
      return;
    }
    const float value = ScalarWiden(view.data, view.dtype, m * row_elems);
    for (int64_t i = 0; i < count; ++i) out[i] = value;
  }
};

/// The values of an operand for a strip that starts at row m, column n.
struct SpreadStrip {
  const TensorView& view;
  int64_t begin;
  bool one;
  float value = 0;

  SpreadStrip(const Spread& operand, int64_t m, int64_t n)
      : view(operand.view),
        begin(m * operand.row_elems + (operand.one_col ? 0 : n)),
        one(operand.one_col) {
    if (one) value = ScalarWiden(view.data, view.dtype, begin);
  }
  LOWRANK_MEMBER_INLINE VecF Lanes(int64_t i) const {
    return one ? Splat(value) : LoadWide(view.data, view.dtype, begin + i);
  }
  LOWRANK_MEMBER_INLINE float One(int64_t i) const {
    return one ? value : ScalarWiden(view.data, view.dtype, begin + i);
  }
};

/// Are the rows of `view` contiguous like those of an [M, N] matrix, or is it a single value?
LOWRANK_INLINE bool IsFlat(const TensorView& view, const TensorView& a) {
  return !view.present || (view.rows == a.rows && view.cols == a.cols) ||
         (view.rows == 1 && view.cols == 1);
}

LOWRANK_INLINE TensorView Flattened(TensorView view) {
  view.cols *= view.rows;
  view.rows = view.present ? 1 : 0;
  return view;
}

/// Calls strip(m, n, count) over [rows, cols], count <= kStripElems.
template <typename Strip>
LOWRANK_INLINE void ForEachStrip(Run& run, int64_t rows, int64_t cols, const Strip& strip) {
  if (rows == 0 || cols == 0) return;
  const int64_t rows_per_task = Max(kTaskSpanElems / cols, 1);
  const int64_t pieces = CeilDiv(cols, kTaskSpanElems);
  run.ForEach(CeilDiv(rows, rows_per_task) * pieces, rows * cols, [&](int64_t task) {
    if (run.Stopped()) return;
    const int64_t m0 = task / pieces * rows_per_task;
    const int64_t n0 = task % pieces * kTaskSpanElems;
    const int64_t n1 = Min(n0 + kTaskSpanElems, cols);
    for (int64_t m = m0; m < Min(m0 + rows_per_task, rows); ++m) {
      for (int64_t n = n0; n < n1; n += kStripElems) strip(m, n, Min(kStripElems, n1 - n));
    }
  });
}

LOWRANK_OP Outcome MultiplyAdd(const MultiplyAddOp& op, const RunContext& context) {
  Run run(context);
  MultiplyAddOp flat = op;
  if (IsFlat(op.b, op.a) && IsFlat(op.c, op.a)) {
    for (TensorView* view : {&flat.a, &flat.b, &flat.c, &flat.y}) *view = Flattened(*view);
  }
  const int64_t cols = flat.a.cols;
  const Spread b(flat.b, cols);
  const Spread c(flat.c, cols);
  const float alpha = op.alpha;
  const float beta = op.beta;
  ForEachStrip(run, flat.a.rows, cols, [&](int64_t m, int64_t n, int64_t count) {
    const int64_t begin = m * cols + n;
    int64_t i = 0;
    const SpreadStrip factor(b, m, n);
    const SpreadStrip summand(c, m, n);
    for (; i + kVL <= count; i += kVL) {
      VecF value = LoadWide(flat.a.data, flat.a.dtype, begin + i);
      if (flat.b.present) value *= factor.Lanes(i);
      value *= alpha;
      if (flat.c.present) value += beta * summand.Lanes(i);
      StoreNarrow(flat.y.data, flat.y.dtype, begin + i, value);
    }
    for (; i < count; ++i) {
      float value = ScalarWiden(flat.a.data, flat.a.dtype, begin + i);
      if (flat.b.present) value *= factor.One(i);
      value *= alpha;
      if (flat.c.present) value += beta * summand.One(i);
      ScalarNarrow(flat.y.data, flat.y.dtype, begin + i, value);
    }
  });
  return run.Result();
}

template <MapFunction kFunction>
LOWRANK_INLINE void MapRun(int64_t count, float* values) {
  const auto one = [&](int64_t i) {
    values[i] = static_cast<float>(MapValue<kFunction>(values[i]));
  };
  if constexpr (kFunction == MapFunction::kExp) {
    EachDouble(
        count, [&](int64_t i) { StoreFloats(values + i, ExpOf(LoadDoubles(values + i))); }, one);
  } else if constexpr (kFunction == MapFunction::kSigmoid) {
    EachDouble(
        count, [&](int64_t i) { StoreFloats(values + i, SigmoidOf(LoadDoubles(values + i))); },
        one);
  } else if constexpr (kFunction == MapFunction::kTanh) {
    EachDouble(
        count, [&](int64_t i) { StoreFloats(values + i, TanhOf(LoadDoubles(values + i))); }, one);
  } else {
    for (int64_t i = 0; i < count; ++i) one(i);
  }
}

LOWRANK_OP Outcome Map(const MapOp& op, const RunContext& context) {
  Run run(context);
  ForEachStrip(run, 1, op.a.elems(), [&](int64_t, int64_t begin, int64_t count) {
    alignas(64) float values[kStripElems];
    WidenRun(op.a.data, op.a.dtype, begin, count, values);
    switch (op.function) {
#define LOWRANK_MAP_CASE(id, name)          \
  case MapFunction::id:                     \
    MapRun<MapFunction::id>(count, values); \
    break;
      LOWRANK_FOR_EACH_MAP_FUNCTION(LOWRANK_MAP_CASE)
#undef LOWRANK_MAP_CASE
    }
    NarrowRun(op.y.data, op.y.dtype, begin, count, values);
  });
  return run.Result();
}

/// Elements [begin, begin + count) of y, count <= kStripElems, from gate's elements there and up's
/// values.
template <GateFunction kFunction>
LOWRANK_INLINE void GatedStrip(const TensorView& gate_view, const float* up, const TensorView& y,
                               int64_t begin, int64_t count) {
  alignas(64) float gate[kStripElems];
  WidenRun(gate_view.data, gate_view.dtype, begin, count, gate);
  EachDouble(
      count,
      [&](int64_t i) {
        StoreFloats(gate + i, GatedOf<kFunction>(LoadDoubles(gate + i), LoadDoubles(up + i)));
      },
      [&](int64_t i) { gate[i] = Gated<kFunction>(gate[i], up[i]); });
  NarrowRun(y.data, y.dtype, begin, count, gate);
}

LOWRANK_OP Outcome GatedActivation(const GatedActivationOp& op, const RunContext& context) {
  Run run(context);
  WithGateFunction(op.function, [&](auto function) {
    ForEachStrip(run, 1, op.y.elems(), [&](int64_t, int64_t begin, int64_t count) {
      alignas(64) float up[kStripElems];
      WidenRun(op.up.data, op.up.dtype, begin, count, up);
      GatedStrip<function()>(op.gate, up, op.y, begin, count);
    });
  });
  return run.Result();
}

/// Stores silu(gate) ⊙ up in `y`, which holds gate, for a block of up's sums.
LOWRANK_INLINE void StoreSwiglu(const Block& block, float* c, const TensorView& y, int64_t row0) {
  static_assert(kNC <= kStripElems);
  const int64_t cols = block.n1 - block.n0;
  const RowSource gate = DenseRows(y);
  for (int64_t m = block.m0; m < block.m1; ++m) {
    // A stride that the hardware does not predict; up's panels have evicted gate from L2.
    PrefetchRow(gate, row0 + m + 1, block.n0, cols);
    float* row = c + (m - block.m0) * block.ldc();
    alignas(64) float rounded[kNC];
    NarrowRun(rounded, y.dtype, 0, cols, row);
    WidenRun(rounded, y.dtype, 0, cols, row);
    GatedStrip<GateFunction::kSilu>(y, row, y, (row0 + m) * y.cols + block.n0, cols);
  }
}

LOWRANK_OP Outcome GatedActivationBackward(const GatedActivationBackwardOp& op,
                                           const RunContext& context) {
  Run run(context);
  WithGateFunction(op.function, [&](auto function) {
    ForEachStrip(run, 1, op.dy.elems(), [&](int64_t, int64_t begin, int64_t count) {
      alignas(64) float dy[kStripElems];
      alignas(64) float gate[kStripElems];
      alignas(64) float up[kStripElems];
      WidenRun(op.dy.data, op.dy.dtype, begin, count, dy);
      WidenRun(op.gate.data, op.gate.dtype, begin, count, gate);
      WidenRun(op.up.data, op.up.dtype, begin, count, up);
      EachDouble(
          count,
          [&](int64_t i) {
            const auto grads = GateGradsOf<function()>(LoadDoubles(dy + i), LoadDoubles(gate + i),
                                                       LoadDoubles(up + i));
            StoreFloats(gate + i, grads.gate);
            StoreFloats(up + i, grads.up);
          },
          [&](int64_t i) { GateGradients<function()>(dy[i], gate[i], up[i], &gate[i], &up[i]); });
      NarrowRun(op.d_gate.data, op.d_gate.dtype, begin, count, gate);
      NarrowRun(op.d_up.data, op.d_up.dtype, begin, count, up);
    });
  });
  return run.Result();
}

// Number of parallel sums, the same for every instruction set.
constexpr int64_t kSumLanes = 16;
// Columns per task of sums over rows.
constexpr int64_t kSumCols = 128;

/// out[m] = Σₙ: column n is added to lane n mod kSumLanes, then the lanes are added in ascending
/// order.
LOWRANK_INLINE void SumColumns(Run& run, const SumProductOp& op, const Spread& b) {
  const int64_t cols = op.a.cols;
  const int64_t rows_per_task = Max(kTaskSpanElems / Max(cols, 1), 1);
  float* out = static_cast<float*>(op.out.data);
  run.ForEach(CeilDiv(op.a.rows, rows_per_task), op.a.elems(), [&](int64_t task) {
    if (run.Stopped()) return;
    alignas(64) float value[kStripElems];
    alignas(64) float other[kStripElems];
    for (int64_t m = task * rows_per_task; m < Min((task + 1) * rows_per_task, op.a.rows); ++m) {
      double lanes[kSumLanes] = {};
      for (int64_t n = 0; n < cols; n += kStripElems) {
        const int64_t count = Min(kStripElems, cols - n);
        // Whole lanes: the elements past the end are zeros.
        const int64_t padded = CeilDiv(count, kSumLanes) * kSumLanes;
        WidenRun(op.a.data, op.a.dtype, m * cols + n, count, value);
        if (op.b.present) {
          b.Read(m, n, count, other);
        } else {
          for (int64_t i = 0; i < count; ++i) other[i] = 1.0f;
        }
        for (int64_t i = count; i < padded; ++i) value[i] = other[i] = 0.0f;
        for (int64_t i = 0; i < padded; i += kSumLanes) {
          for (int64_t l = 0; l < kSumLanes; ++l) {
            lanes[l] += static_cast<double>(value[i + l]) * static_cast<double>(other[i + l]);
          }
        }
      }
      double sum = 0;
      for (int64_t l = 0; l < kSumLanes; ++l) sum += lanes[l];
      out[m] = static_cast<float>(sum);
    }
  });
}

/// out[n] = Σₘ in ascending order of m.
LOWRANK_INLINE void SumRows(Run& run, const SumProductOp& op, const Spread& b) {
  const int64_t cols = op.a.cols;
  float* out = static_cast<float*>(op.out.data);
  run.ForEach(CeilDiv(cols, kSumCols), Max(op.a.elems(), cols), [&](int64_t task) {
    const int64_t n = task * kSumCols;
    const int64_t count = Min(kSumCols, cols - n);
    alignas(64) float value[kSumCols];
    alignas(64) float other[kSumCols];
    double sums[kSumCols] = {};
    for (int64_t m = 0; m < op.a.rows; ++m) {
      if (m % 256 == 0 && run.Stopped()) return;
      WidenRun(op.a.data, op.a.dtype, m * cols + n, count, value);
      if (op.b.present) {
        b.Read(m, n, count, other);
        for (int64_t i = 0; i < count; ++i) {
          sums[i] += static_cast<double>(value[i]) * static_cast<double>(other[i]);
        }
      } else {
        for (int64_t i = 0; i < count; ++i) sums[i] += static_cast<double>(value[i]);
      }
    }
    for (int64_t i = 0; i < count; ++i) out[n + i] = static_cast<float>(sums[i]);
  });
}

LOWRANK_OP Outcome SumProduct(const SumProductOp& op, const RunContext& context) {
  Run run(context);
  const Spread b(op.b, op.a.cols);
  if (op.axis == 0) {
    SumRows(run, op, b);
  } else {
    SumColumns(run, op, b);
  }
  return run.Result();
}

}  // namespace lowrank::cpu::LOWRANK_ISA
