/// The device "reference": steps of optimisers, and the norm of gradients.
#include <cmath>

#include "native/cpu/reference/reference_ops.h"
#include "native/host_device/optimizer_step.h"

namespace lowrank::cpu::reference {
namespace {

float ReadScalar(const TensorView& view, float otherwise) {
  return view.present ? *static_cast<const float*>(view.data) : otherwise;
}

/// The operations of the formula one by one, each rounded to f32.
void AdamW(const OptimizerStepOp& op, const OptimizerMoment& now, const ParameterPart& part,
           const RunContext& context) {
  using Rule = OptimizerRule<Optimizer::kAdamW>;
  const Rule rule = Rule::Of(op.settings, now, part.lr_scale, part.weight_decay);
  ForEach(context, part.p.elems(), [&](int64_t i) {
    float& m = static_cast<float*>(part.states[0].data)[i];
    float& v = static_cast<float*>(part.states[1].data)[i];
    const auto p = static_cast<float>(LoadElement(part.p.data, part.p.dtype, i));
    const auto raw = static_cast<float>(LoadElement(part.g.data, part.g.dtype, i));
    const float g = raw * rule.factor;
    const float old_m = m * rule.beta1;
    const float new_m = g * rule.rest1;
    m = old_m + new_m;
    const float old_v = v * rule.beta2;
    const float square = g * g;
    const float new_v = square * rule.rest2;
    v = old_v + new_v;
    const float root = std::sqrt(v) * rule.inv_root;
    const float size = root + rule.eps;
    const float quotient = m / size;
    const float moved = quotient * rule.step_size;
    const float kept = p * rule.decay;
    Store(part.p, i, static_cast<double>(kept - moved), false);
  });
}

}  // namespace

Status GlobalNorm(const GlobalNormOp& op, const RunContext& context) {
  double sum = 0;
  for (int64_t e = 0; e < op.count; ++e) {
    const TensorView& g = op.parts[e].g;
    for (int64_t begin = 0; begin < g.elems(); begin += kOptimizerPiece) {
      Poll(context);
      double lanes[GlobalNormOp::kLanes] = {};
      for (int64_t i = begin; i < std::min(begin + kOptimizerPiece, g.elems()); ++i) {
        const double value = LoadElement(g.data, g.dtype, i);
        lanes[i % GlobalNormOp::kLanes] += value * value;
      }
      double piece = 0;
      for (const double lane : lanes) piece += lane;
      sum += piece;
    }
  }
  Store(op.norm, 0, std::sqrt(sum), false);
  return Status();
}

Status OptimizerStep(const OptimizerStepOp& op, const RunContext& context) {
  OptimizerMoment now;
  now.lr = ReadScalar(op.lr_at, op.lr);
  now.norm = ReadScalar(op.norm, 0);
  now.step =
      op.steps_done.present ? NextStep(ReadScalar(op.steps_done, 0)) : static_cast<float>(op.step);
  if (!StepApplies(now)) return Status();
  for (int64_t e = 0; e < op.count; ++e) {
    switch (op.kind) {
      case Optimizer::kAdamW:
        AdamW(op, now, op.parts[e], context);
        break;
    }
  }
  if (op.steps_done.present) *static_cast<float*>(op.steps_done.data) = now.step;
  return Status();
}

}  // namespace lowrank::cpu::reference
