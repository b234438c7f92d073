/// norms[n] = Σₖ w[n, k]², the norms of an adapted weight (FactoredNormOp has the formula), and the
/// quantisation of a weight's scales to 8 bits.
///
/// Operands   w [N, K] packed or dense · norms, squares [N] f32 · lora_a [r, K] · lora_b [N, r] ·
///            absmax [blocks] f32
/// Numerics   weightNorms: a packed weight is decoded in f32; sums in double, where a product of
///            f32 is exact, in the lanes of sumProduct: the same on every instruction set
///            factoredNorm: P + scaling / 2 · G · lora_bᵀ is the product of a LoRA layer over the
///            rows of lora_a, with G its shrink, in f32 and not rounded to a narrower dtype; the
///            sums with lora_b in double, j ascending; rounded to f32 before the root. If a layer
///            is computed together with its norms, the rows of x come first: the bits of a row do
///            not depend on the other rows
/// Tasks      rows of w
#pragma once

#include "native/cpu/kernels/decode/quantize.h"
#include "native/cpu/kernels/layers/elementwise.h"
#include "native/cpu/kernels/layers/lora_parts.h"

namespace lowrank::cpu::LOWRANK_ISA {

LOWRANK_OP Outcome WeightNorms(const WeightNormsOp& op, const RunContext& context) {
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

/// norms of rows [n0, n1) of w, at most kNormRows; t [r, N].
constexpr int64_t kNormRows = 64;
LOWRANK_INLINE void FinishNorms(const FactoredNormOp& op, const float* t, int64_t n0, int64_t n1) {
  constexpr int64_t kRanks = 16;
  const int64_t r = op.lora_b.cols;
  const RowSource lora_b = DenseRows(op.lora_b);
  double sums[kNormRows] = {};
  for (int64_t j0 = 0; j0 < r; j0 += kRanks) {
    const int64_t ranks = Min(kRanks, r - j0);
    alignas(64) float b[kNormRows * kRanks];
    for (int64_t n = n0; n < n1; ++n) RowAsFloat(lora_b, n, j0, ranks, b + (n - n0) * kRanks);
    for (int64_t j = 0; j < ranks; ++j) {
      const float* row = t + (j0 + j) * op.norms.cols + n0;
      for (int64_t i = 0; i < n1 - n0; ++i) {
        sums[i] += static_cast<double>(b[i * kRanks + j]) * static_cast<double>(row[i]);
      }
    }
  }
  const float* squares = static_cast<const float*>(op.squares.data) + n0;
  float* norms = static_cast<float*>(op.norms.data) + n0;
  const double factor = 2.0 * static_cast<double>(op.scaling);
  for (int64_t i = 0; i < n1 - n0; ++i) {
    const auto square = static_cast<float>(static_cast<double>(squares[i]) + factor * sums[i]);
    norms[i] = __builtin_sqrtf(square < 0.0f ? 0.0f : square);
  }
}

/// The product of `parts`, with a given h, and the norms, from one pass over w.
LOWRANK_INLINE Outcome ForwardWithNorms(ForwardParts parts, const FactoredNormOp& op,
                                        const RunContext& context) {
  Run run(context);
  const int64_t r = op.lora_a.rows;
  const int64_t N = op.norms.cols;
  float* gram = run.Get<float>(kNormSlot, r * r + r * N);
  if (gram == nullptr) return run.Result();
  float* t = gram + r * r;
  LoraShrinkOp shrink;
  shrink.x = op.lora_a;
  shrink.lora_a = op.lora_a;
  shrink.h = FloatView(gram, r, r);
  shrink.scaling = 0.5f;
  const Outcome shrunk = kKernels.lora_shrink(shrink, context);
  if (shrunk.code != Code::kOk) return shrunk;
  TensorView x = op.lora_a;
  if (op.product != op.lora_a.dtype) {
    x.dtype = op.product;
    x.data = run.Get<char>(kRoundedSlot, static_cast<int64_t>(x.bytes()));
    if (x.data == nullptr) return run.Result();
    const Outcome rounded = kKernels.cast({op.lora_a, x}, context);
    if (rounded.code != Code::kOk) return rounded;
  }
  const TensorView products = FloatView(t, r, N);
  const MoreRows more = {x, shrink.h, products};
  parts.more = &more;
  const Outcome outcome = ForwardAs(Compute::kExact, parts, context);
  if (outcome.code != Code::kOk) return outcome;
  run.ForEach(CeilDiv(N, kNormRows), N * r, [&](int64_t task) {
    FinishNorms(op, t, task * kNormRows, Min((task + 1) * kNormRows, N));
  });
  return run.Result();
}

LOWRANK_INLINE bool OwnsNorm(const FactoredNormOp& op) { return IsOfPairs(op.product, op.w); }

LOWRANK_OP Outcome FactoredNorm(const FactoredNormOp& op, const RunContext& context) {
  const TensorView none;
  TensorView x = FloatView(nullptr, 0, op.w.cols());
  x.dtype = op.product;
  TensorView y = FloatView(nullptr, 0, op.w.rows());
  y.dtype = op.product;
  const TensorView h = FloatView(nullptr, 0, op.lora_b.cols);
  const ForwardParts parts = {x,  op.w, none,       nullptr, &op.lora_b, none,
                              &h, y,    op.scaling, nullptr, true};
  return ForwardWithNorms(parts, op, context);
}

LOWRANK_OP Outcome QuantizeScales(const QuantizeScalesOp& op, const RunContext& context) {
  Run run(context);
  QuantizeAbsmax(run, static_cast<const float*>(op.absmax.data), op.out);
  return run.Result();
}

}  // namespace lowrank::cpu::LOWRANK_ISA
