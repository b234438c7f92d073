/// The device "reference": root-mean-square norms.
#include <cmath>

#include "native/cpu/reference/reference_ops.h"

namespace lowrank::cpu::reference {
namespace {

double Gain(const TensorView& g, bool plus_one, int64_t n) {
  return LoadElement(g.data, g.dtype, n) + (plus_one ? 1.0 : 0.0);
}

}  // namespace

Status RmsNorm(const RmsNormOp& op, const RunContext& context) {
  const int64_t D = op.x.cols;
  for (int64_t m = 0; m < op.x.rows; ++m) {
    Poll(context);
    std::vector<double> s(static_cast<size_t>(D));
    double squares = 0;
    for (int64_t n = 0; n < D; ++n) {
      double value = LoadElement(op.x.data, op.x.dtype, m * D + n);
      if (op.residual.present) {
        value += LoadElement(op.residual.data, op.residual.dtype, m * D + n);
        Store(op.sum, m * D + n, value, false);
        value = LoadElement(op.sum.data, op.sum.dtype, m * D + n);
      }
      s[static_cast<size_t>(n)] = value;
      squares += value * value;
    }
    const double inv_rms = 1 / std::sqrt(squares / static_cast<double>(D) + op.eps);
    if (op.inv_rms.present) Store(op.inv_rms, m, inv_rms, false);
    for (int64_t n = 0; n < D; ++n) {
      const double y = s[static_cast<size_t>(n)] * inv_rms * Gain(op.g, op.plus_one, n);
      Store(op.y, m * D + n, y, false);
    }
  }
  return Status();
}

Status RmsNormBackward(const RmsNormBackwardOp& op, const RunContext& context) {
  const int64_t D = op.s.cols;
  std::vector<double> dg(static_cast<size_t>(D), 0);
  for (int64_t m = 0; m < op.s.rows; ++m) {
    Poll(context);
    const double inv_rms = LoadElement(op.inv_rms.data, op.inv_rms.dtype, m);
    const auto s = [&](int64_t n) { return LoadElement(op.s.data, op.s.dtype, m * D + n); };
    const auto dy = [&](int64_t n) { return LoadElement(op.dy.data, op.dy.dtype, m * D + n); };
    double products = 0;
    for (int64_t n = 0; n < D; ++n) {
      products += s(n) * dy(n) * Gain(op.g, op.plus_one, n);
      dg[static_cast<size_t>(n)] += dy(n) * s(n) * inv_rms;
    }
    if (!op.dx.present) continue;
    const double factor = inv_rms * inv_rms * inv_rms * products / static_cast<double>(D);
    for (int64_t n = 0; n < D; ++n) {
      double dx = inv_rms * dy(n) * Gain(op.g, op.plus_one, n) - s(n) * factor;
      if (op.d_sum.present) dx += LoadElement(op.d_sum.data, op.d_sum.dtype, m * D + n);
      Store(op.dx, m * D + n, dx, false);
    }
  }
  if (op.dg.present) {
    for (int64_t n = 0; n < D; ++n) Store(op.dg, n, dg[static_cast<size_t>(n)], false);
  }
  return Status();
}

}  // namespace lowrank::cpu::reference
