/// The device "reference": the ops over small tensors.
#include <cmath>

#include "native/cpu/reference/reference_ops.h"

namespace lowrank::cpu::reference {
namespace {

/// view[m, n], with dimensions of size 1 broadcast; `none` if it is absent.
double Spread(const TensorView& view, int64_t m, int64_t n, double none) {
  if (!view.present) return none;
  const int64_t row = view.rows == 1 ? 0 : m;
  const int64_t col = view.cols == 1 ? 0 : n;
  return LoadElement(view.data, view.dtype, row * view.cols + col);
}

double Apply(MapFunction function, double x) {
  switch (function) {
    case MapFunction::kReciprocal:
      return 1 / x;
    case MapFunction::kSqrt:
      return std::sqrt(x);
    case MapFunction::kRsqrt:
      return 1 / std::sqrt(x);
    case MapFunction::kExp:
      return std::exp(x);
    case MapFunction::kLog:
      return std::log(x);
    case MapFunction::kTanh:
      return std::tanh(x);
    case MapFunction::kSigmoid:
      return 1 / (1 + std::exp(-x));
    case MapFunction::kRelu:
      return x <= 0 ? 0 : x;
    case MapFunction::kAbs:
      return std::fabs(x);
    case MapFunction::kSign:
      return x > 0 ? 1 : x < 0 ? -1 : x;
    case MapFunction::kSquare:
      return x * x;
    case MapFunction::kSin:
      return std::sin(x);
    case MapFunction::kCos:
      return std::cos(x);
  }
  return x;
}

}  // namespace

Status MultiplyAdd(const MultiplyAddOp& op, const RunContext& context) {
  const int64_t n_count = op.a.cols;
  ForEach(context, op.y.elems(), [&](int64_t i) {
    const int64_t m = i / n_count;
    const int64_t n = i % n_count;
    const double a = LoadElement(op.a.data, op.a.dtype, i);
    double value = op.alpha * (a * Spread(op.b, m, n, 1));
    if (op.c.present) value += op.beta * Spread(op.c, m, n, 0);
    Store(op.y, i, value, false);
  });
  return Status();
}

Status Map(const MapOp& op, const RunContext& context) {
  ForEach(context, op.y.elems(), [&](int64_t i) {
    Store(op.y, i, Apply(op.function, LoadElement(op.a.data, op.a.dtype, i)), false);
  });
  return Status();
}

namespace {

/// f(g) / g, and f'(g).
struct GateTerms {
  double share;
  double slope;
};

GateTerms GateAt(GateFunction function, double g) {
  switch (function) {
    case GateFunction::kGelu: {
      const double share = std::erfc(-g / std::sqrt(2.0)) / 2;
      return {share, share + g * (std::exp(-g * g / 2) / std::sqrt(2 * std::acos(-1.0)))};
    }
    case GateFunction::kGeluTanh: {
      const double root = std::sqrt(2 / std::acos(-1.0));
      const double sigma = 1 / (1 + std::exp(-2 * root * (g + 0.044715 * g * g * g)));
      return {sigma, sigma * (1 + g * (1 - sigma) * 2 * root * (1 + 3 * 0.044715 * g * g))};
    }
    case GateFunction::kSiluClamped: {
      const double sigma = 1 / (1 + std::exp(-1.702 * g));
      return {sigma, sigma * (1 + 1.702 * g * (1 - sigma))};
    }
    default: {
      const double sigma = 1 / (1 + std::exp(-g));
      return {sigma, sigma * (1 + g * (1 - sigma))};
    }
  }
}

/// What the functions take of an element: gate and up as they are, or clamped, and 1 where they
/// have a slope.
struct GateInputs {
  double gate;
  double up;
  double gate_slope = 1;
  double up_slope = 1;
};

GateInputs InputsAt(GateFunction function, const TensorView& gate, const TensorView& up,
                    int64_t i) {
  const double g = LoadElement(gate.data, gate.dtype, i);
  const double u = LoadElement(up.data, up.dtype, i);
  if (function != GateFunction::kSiluClamped) return {g, u};
  const double held = u > 7 ? 7 : (u < -7 ? -7 : u);
  return {g > 7 ? 7 : g, held + 1, g > 7 ? 0.0 : 1.0, u > 7 || u < -7 ? 0.0 : 1.0};
}

}  // namespace

Status GatedActivation(const GatedActivationOp& op, const RunContext& context) {
  ForEach(context, op.y.elems(), [&](int64_t i) {
    const GateInputs in = InputsAt(op.function, op.gate, op.up, i);
    Store(op.y, i, in.gate * GateAt(op.function, in.gate).share * in.up, false);
  });
  return Status();
}

Status GatedActivationBackward(const GatedActivationBackwardOp& op, const RunContext& context) {
  ForEach(context, op.dy.elems(), [&](int64_t i) {
    const double dy = LoadElement(op.dy.data, op.dy.dtype, i);
    const GateInputs in = InputsAt(op.function, op.gate, op.up, i);
    const GateTerms at = GateAt(op.function, in.gate);
    Store(op.d_gate, i, dy * in.up * at.slope * in.gate_slope, false);
    Store(op.d_up, i, dy * in.gate * at.share * in.up_slope, false);
  });
  return Status();
}

Status SumProduct(const SumProductOp& op, const RunContext& context) {
  const int64_t n_count = op.a.cols;
  std::vector<double> sums(static_cast<size_t>(op.out.elems()), 0);
  ForEach(context, op.a.elems(), [&](int64_t i) {
    const int64_t m = i / n_count;
    const int64_t n = i % n_count;
    const double a = LoadElement(op.a.data, op.a.dtype, i);
    sums[static_cast<size_t>(op.axis == 0 ? n : m)] += a * Spread(op.b, m, n, 1);
  });
  ForEach(context, op.out.elems(),
          [&](int64_t i) { Store(op.out, i, sums[static_cast<size_t>(i)], false); });
  return Status();
}

}  // namespace lowrank::cpu::reference
