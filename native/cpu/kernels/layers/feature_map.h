/// mapFeatures: y[m, j] = alpha · Σ x[m, t] over t of list j + beta · c[m, j].
///
/// Operands   x [M, K], c and y [M, J], any dtype each · the map's lists as FeatureMapView says
/// Numerics   the sum of a list in double, in ascending order, rounded once to f32; then alpha,
///            beta and c in f32 and in that order, rounded once at the store. The same on every
///            instruction set.
/// Tasks      pieces of rows and lists whose bounds depend only on M and the map
#pragma once

#include "native/cpu/kernels/layers/elementwise.h"

namespace lowrank::cpu::LOWRANK_ISA {

// f32 as bits, whatever type wrote them.
typedef uint32_t Word __attribute__((may_alias));

/// out[i] = x[m][index[i]], 0 where index[i] is -1; count <= kStripElems.
LOWRANK_INLINE void Gather(const TensorView& x, int64_t m, const int32_t* index, int64_t count,
                           float* out) {
  const int64_t first = m * x.cols;
  if (x.cols == 0) {
    for (int64_t i = 0; i < count; ++i) out[i] = 0.0f;
    return;
  }
  if (x.dtype == DType::kF32) {
    // Without a branch, so that it may become a gather: for -1 the first element is read and
    // dropped.
    const Word* row = static_cast<const Word*>(x.data) + first;
    Word* words = reinterpret_cast<Word*>(out);
    for (int64_t i = 0; i < count; ++i) {
      const int32_t none = index[i] >> 31;
      words[i] = row[index[i] & ~none] & static_cast<uint32_t>(~none);
    }
    return;
  }
  const uint16_t* row = static_cast<const uint16_t*>(x.data) + first;
  alignas(64) uint16_t bits[kStripElems];
  for (int64_t i = 0; i < count; ++i) bits[i] = index[i] < 0 ? uint16_t{0} : row[index[i]];
  WidenRun(bits, x.dtype, 0, count, out);
}

/// The sums of lists [j, j + count) over row m.
LOWRANK_INLINE void SumLists(const MapFeaturesOp& op, int64_t m, int64_t j, int64_t count,
                             float* out) {
  const int32_t* begin = op.map.begin + j;
  alignas(64) float strip[kStripElems];
  int64_t p = begin[0];
  int64_t strip0 = p;
  int64_t strip1 = p;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t end = begin[i + 1];
    // Starts from -0, the only value that changes no sum.
    double sum = p == end ? 0.0 : -0.0;
    while (p < end) {
      if (p == strip1) {
        strip0 = p;
        strip1 = Min(p + kStripElems, begin[count]);
        Gather(op.x, m, op.map.index + p, strip1 - p, strip);
      }
      for (const int64_t stop = Min(end, strip1); p < stop; ++p) {
        sum += static_cast<double>(strip[p - strip0]);
      }
    }
    out[i] = static_cast<float>(sum);
  }
}

LOWRANK_OP Outcome MapFeatures(const MapFeaturesOp& op, const RunContext& context) {
  Run run(context);
  const int64_t rows = op.x.rows;
  const int64_t lists = op.map.outputs;
  if (rows == 0 || lists == 0) return run.Result();
  const int64_t row_work = Max(lists, op.map.entries);
  const int64_t rows_per_task = Max(kTaskSpanElems / row_work, 1);
  const int64_t pieces = Min(CeilDiv(row_work, kTaskSpanElems), lists);
  const int64_t piece_lists = CeilDiv(lists, pieces);
  run.ForEach(CeilDiv(rows, rows_per_task) * pieces, rows * row_work, [&](int64_t task) {
    if (run.Stopped()) return;
    const int64_t m0 = task / pieces * rows_per_task;
    const int64_t j0 = Min(task % pieces * piece_lists, lists);
    const int64_t j1 = Min(j0 + piece_lists, lists);
    alignas(64) float value[kStripElems];
    alignas(64) float other[kStripElems];
    for (int64_t m = m0; m < Min(m0 + rows_per_task, rows); ++m) {
      for (int64_t j = j0; j < j1; j += kStripElems) {
        const int64_t count = Min(kStripElems, j1 - j);
        const int64_t at = m * lists + j;
        if (op.map.begin == nullptr) {
          Gather(op.x, m, op.map.index + j, count, value);
        } else {
          SumLists(op, m, j, count, value);
        }
        for (int64_t i = 0; i < count; ++i) value[i] *= op.alpha;
        if (op.c.present) {
          WidenRun(op.c.data, op.c.dtype, at, count, other);
          for (int64_t i = 0; i < count; ++i) value[i] += op.beta * other[i];
        }
        NarrowRun(op.y.data, op.y.dtype, at, count, value);
      }
    }
  });
  return run.Result();
}

}  // namespace lowrank::cpu::LOWRANK_ISA
