/// norms[n] = Σₖ w[n, k]², and the scales of a weight to 8 bits.
///
/// Operands   w [N, K] packed or dense · norms [N] f32 · absmax [blocks] f32
/// Numerics   a packed weight decoded in f32; sums in double, where a product of f32 is exact, in
/// the
///            lanes of sumProduct: the same on every instruction set
/// Tasks      rows
#pragma once

#include "native/cpu/kernels/elementwise.h"
#include "native/cpu/kernels/quantize.h"

namespace lowrank::cpu::LOWRANK_ISA {

static Outcome WeightNorms(const WeightNormsOp& op, const RunContext& context) {
  Run run(context);
  const RowSource w = WeightRows(op.w, DType::kF32);
  float* norms = static_cast<float*>(op.norms.data);
  const int64_t rows_per_task = Max(kTaskSpanElems / Max(w.cols, 1), 1);
  run.ForEach(CeilDiv(w.rows, rows_per_task), w.rows * w.cols, [&](int64_t task) {
    if (run.Stopped()) return;
    alignas(64) float value[kStripElems];
    for (int64_t n = task * rows_per_task; n < Min((task + 1) * rows_per_task, w.rows); ++n) {
      double lanes[kSumLanes] = {};
      for (int64_t k = 0; k < w.cols; k += kStripElems) {
        const int64_t count = Min(kStripElems, w.cols - k);
        const int64_t padded = CeilDiv(count, kSumLanes) * kSumLanes;
        RowAsFloat(w, n, k, count, value);
        for (int64_t i = count; i < padded; ++i) value[i] = 0.0f;
        for (int64_t i = 0; i < padded; i += kSumLanes) {
          for (int64_t l = 0; l < kSumLanes; ++l) {
            const double one = static_cast<double>(value[i + l]);
            lanes[l] += one * one;
          }
        }
      }
      double sum = 0;
      for (int64_t l = 0; l < kSumLanes; ++l) sum += lanes[l];
      norms[n] = static_cast<float>(sum);
    }
  });
  return run.Result();
}

static Outcome QuantizeScales(const QuantizeScalesOp& op, const RunContext& context) {
  Run run(context);
  QuantizeAbsmax(run, static_cast<const float*>(op.absmax.data), op.out);
  return run.Result();
}

}  // namespace lowrank::cpu::LOWRANK_ISA
