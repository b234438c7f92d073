/// Root-mean-square norms: RmsNormOp and RmsNormBackwardOp have the formulas.
///
/// Operands   x, residual, sum, y, dy, dx [M, D] any dtype · g [D] any dtype · inv_rms [M] f32
/// Numerics   sums of squares and of s · u in double, in kSumLanes lanes; the rest element by
/// element
///            in f32 without fma: every instruction set gives the same bits, for a row alone too
/// Tasks      rows; of dg columns, its sums over rows ascending in double
/// Traffic    a row is read once from memory: its second pass finds it in L1 or L2
#pragma once

#include "native/cpu/kernels/layers/elementwise.h"

namespace lowrank::cpu::LOWRANK_ISA {

/// Lanes of a sum in double over strips that are multiples of kSumLanes, the last one filled up
/// with zeros.
struct DoubleSum {
  double lanes[kSumLanes] = {};

  LOWRANK_MEMBER_INLINE void AddProducts(const float* a, const float* b, int64_t padded) {
    for (int64_t i = 0; i < padded; i += kSumLanes) {
      for (int64_t l = 0; l < kSumLanes; ++l) {
        lanes[l] += static_cast<double>(a[i + l]) * static_cast<double>(b[i + l]);
      }
    }
  }
  double Total() const {
    double sum = 0;
    for (int64_t l = 0; l < kSumLanes; ++l) sum += lanes[l];
    return sum;
  }
};

LOWRANK_INLINE int64_t PadStrip(float* strip, int64_t count) {
  const int64_t padded = CeilDiv(count, kSumLanes) * kSumLanes;
  for (int64_t i = count; i < padded; ++i) strip[i] = 0.0f;
  return padded;
}

/// gain[i] of columns [n, n + count).
LOWRANK_INLINE void ReadGain(const TensorView& g, bool plus_one, int64_t n, int64_t count,
                             float* gain) {
  WidenRun(g.data, g.dtype, n, count, gain);
  if (plus_one) {
    for (int64_t i = 0; i < count; ++i) gain[i] += 1.0f;
  }
}

/// body(m) for rows in tasks of about kTaskSpanElems elements.
template <typename Body>
LOWRANK_INLINE void ForEachRow(Run& run, int64_t rows, int64_t cols, const Body& body) {
  const int64_t rows_per_task = Max(kTaskSpanElems / Max(cols, 1), 1);
  run.ForEach(CeilDiv(rows, rows_per_task), rows * cols, [&](int64_t task) {
    if (run.Stopped()) return;
    const int64_t end = Min((task + 1) * rows_per_task, rows);
    for (int64_t m = task * rows_per_task; m < end; ++m) body(m);
  });
}

LOWRANK_OP Outcome RmsNorm(const RmsNormOp& op, const RunContext& context) {
  Run run(context);
  const int64_t D = op.x.cols;
  const TensorView& s = op.residual.present ? op.sum : op.x;
  ForEachRow(run, op.x.rows, D, [&](int64_t m) {
    alignas(64) float value[kStripElems];
    alignas(64) float gain[kStripElems];
    DoubleSum squares;
    for (int64_t n = 0; n < D; n += kStripElems) {
      const int64_t count = Min(kStripElems, D - n);
      WidenRun(op.x.data, op.x.dtype, m * D + n, count, value);
      if (op.residual.present) {
        WidenRun(op.residual.data, op.residual.dtype, m * D + n, count, gain);
        for (int64_t i = 0; i < count; ++i) value[i] += gain[i];
        NarrowRun(op.sum.data, op.sum.dtype, m * D + n, count, value);
        WidenRun(op.sum.data, op.sum.dtype, m * D + n, count, value);
      }
      const int64_t padded = PadStrip(value, count);
      squares.AddProducts(value, value, padded);
    }
    const double mean = D == 0 ? 0.0 : squares.Total() / static_cast<double>(D);
    const auto inv_rms =
        static_cast<float>(1.0 / __builtin_sqrt(mean + static_cast<double>(op.eps)));
    if (op.inv_rms.present) static_cast<float*>(op.inv_rms.data)[m] = inv_rms;
    for (int64_t n = 0; n < D; n += kStripElems) {
      const int64_t count = Min(kStripElems, D - n);
      if (D > kStripElems) WidenRun(s.data, s.dtype, m * D + n, count, value);
      ReadGain(op.g, op.plus_one, n, count, gain);
      for (int64_t i = 0; i < count; ++i) value[i] = value[i] * inv_rms * gain[i];
      NarrowRun(op.y.data, op.y.dtype, m * D + n, count, value);
    }
  });
  return run.Result();
}

/// The rows of dx.
LOWRANK_INLINE void RmsNormInputGrad(Run& run, const RmsNormBackwardOp& op) {
  const int64_t D = op.s.cols;
  const float* inv_rms = static_cast<const float*>(op.inv_rms.data);
  ForEachRow(run, op.s.rows, D, [&](int64_t m) {
    alignas(64) float s[kStripElems];
    alignas(64) float u[kStripElems];
    alignas(64) float other[kStripElems];
    const auto read = [&](int64_t n, int64_t count) {
      WidenRun(op.s.data, op.s.dtype, m * D + n, count, s);
      WidenRun(op.dy.data, op.dy.dtype, m * D + n, count, u);
      ReadGain(op.g, op.plus_one, n, count, other);
      for (int64_t i = 0; i < count; ++i) u[i] *= other[i];
    };
    DoubleSum products;
    for (int64_t n = 0; n < D; n += kStripElems) {
      const int64_t count = Min(kStripElems, D - n);
      read(n, count);
      PadStrip(s, count);
      products.AddProducts(s, u, PadStrip(u, count));
    }
    const double inverse = static_cast<double>(inv_rms[m]);
    const auto factor =
        static_cast<float>(inverse * inverse * inverse * products.Total() / static_cast<double>(D));
    for (int64_t n = 0; n < D; n += kStripElems) {
      const int64_t count = Min(kStripElems, D - n);
      if (D > kStripElems) read(n, count);
      for (int64_t i = 0; i < count; ++i) u[i] = u[i] * inv_rms[m] - s[i] * factor;
      if (op.d_sum.present) {
        WidenRun(op.d_sum.data, op.d_sum.dtype, m * D + n, count, other);
        for (int64_t i = 0; i < count; ++i) u[i] += other[i];
      }
      NarrowRun(op.dx.data, op.dx.dtype, m * D + n, count, u);
    }
  });
}

/// The columns of dg.
LOWRANK_INLINE void RmsNormGainGrad(Run& run, const RmsNormBackwardOp& op) {
  const int64_t D = op.s.cols;
  const float* inv_rms = static_cast<const float*>(op.inv_rms.data);
  float* dg = static_cast<float*>(op.dg.data);
  run.ForEach(CeilDiv(D, kSumCols), op.s.elems(), [&](int64_t task) {
    const int64_t n = task * kSumCols;
    const int64_t count = Min(kSumCols, D - n);
    alignas(64) float s[kSumCols];
    alignas(64) float dy[kSumCols];
    double sums[kSumCols] = {};
    for (int64_t m = 0; m < op.s.rows; ++m) {
      if (m % 256 == 0 && run.Stopped()) return;
      WidenRun(op.s.data, op.s.dtype, m * D + n, count, s);
      WidenRun(op.dy.data, op.dy.dtype, m * D + n, count, dy);
      for (int64_t i = 0; i < count; ++i) {
        sums[i] += static_cast<double>(dy[i]) * static_cast<double>(s[i] * inv_rms[m]);
      }
    }
    for (int64_t i = 0; i < count; ++i) dg[n + i] = static_cast<float>(sums[i]);
  });
}

LOWRANK_OP Outcome RmsNormBackward(const RmsNormBackwardOp& op, const RunContext& context) {
  Run run(context);
  if (op.dx.present) RmsNormInputGrad(run, op);
  if (op.dg.present) RmsNormGainGrad(run, op);
  return run.Result();
}

}  // namespace lowrank::cpu::LOWRANK_ISA
