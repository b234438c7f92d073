/// Steps of optimisers.
#include "native/core/ops/optimizer_ops.h"

#include <cmath>

#include "native/core/ops/op_checks.h"

namespace lowrank {
namespace {

constexpr int64_t kMostSteps = int64_t{1} << 24;

Status CheckSome(const char* op, const char* operand, int64_t count) {
  if (count > 0) return Status();
  return Refuse(Code::kShape, op, operand, "at least one tensor", "none");
}

/// One f32.
Status CheckScalar(const char* op, const char* operand, const TensorView& view) {
  LOWRANK_RETURN_IF_ERROR(CheckOptional(op, operand, view, 1, 1));
  return CheckDType(op, operand, view, DType::kF32);
}

int64_t StatesOf(Optimizer kind) {
  switch (kind) {
#define LOWRANK_STATES(id, name) \
  case Optimizer::id:            \
    return OptimizerRule<Optimizer::id>::kStates;
    LOWRANK_FOR_EACH_OPTIMIZER(LOWRANK_STATES)
#undef LOWRANK_STATES
  }
  return 0;
}

Status CheckPart(const char* op, const ParameterPart& part, int64_t states) {
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(op, "parameters", part.p, part.p.rows, part.p.cols));
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(op, "gradients", part.g, part.p.rows, part.p.cols));
  for (int64_t i = 0; i < states; ++i) {
    const TensorView& state = part.states[i];
    LOWRANK_RETURN_IF_ERROR(CheckMatrix(op, "states", state, part.p.rows, part.p.cols));
    LOWRANK_RETURN_IF_ERROR(CheckDType(op, "states", state, DType::kF32));
  }
  LOWRANK_RETURN_IF_ERROR(CheckFactor(op, "lrScale", part.lr_scale));
  LOWRANK_RETURN_IF_ERROR(CheckFactor(op, "weightDecay", part.weight_decay));
  if (part.lr_scale < 0 || part.weight_decay < 0) {
    return Refuse(Code::kValue, op, "lrScale and weightDecay", "not negative",
                  std::to_string(part.lr_scale) + " and " + std::to_string(part.weight_decay));
  }
  return Status();
}

Status CheckSettings(const char* op, const OptimizerSettings& settings) {
  for (const double beta : {settings.beta1, settings.beta2}) {
    if (beta >= 0 && beta < 1) continue;
    return Refuse(Code::kValue, op, "betas", "in [0, 1)", std::to_string(beta));
  }
  LOWRANK_RETURN_IF_ERROR(CheckFactor(op, "eps", settings.eps));
  if (settings.eps < 0) {
    return Refuse(Code::kValue, op, "eps", "not negative", std::to_string(settings.eps));
  }
  if (settings.max_norm > 0) return Status();
  return Refuse(Code::kValue, op, "maxNorm", "positive", std::to_string(settings.max_norm));
}

}  // namespace

Status GlobalNormOp::Check() const {
  LOWRANK_RETURN_IF_ERROR(CheckSome(kName, "tensors", count));
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "norm", norm, 1, 1));
  LOWRANK_RETURN_IF_ERROR(CheckDType(kName, "norm", norm, DType::kF32));
  Ranges ranges;
  ranges.Out("norm", norm);
  int64_t next = 0;
  for (int64_t i = 0; i < count; ++i) {
    const TensorView& g = parts[i].g;
    LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "tensors", g, g.rows, g.cols));
    if (parts[i].first_piece != next) {
      return Refuse(Code::kValue, kName, "tensors", "of consecutive pieces", "others");
    }
    next += OptimizerPieces(g.elems());
    ranges.In("tensors", g);
  }
  if (pieces != next) return Refuse(Code::kValue, kName, "tensors", "all of the pieces", "some");
  return ranges.CheckApart(kName);
}
std::string GlobalNormOp::Describe() const {
  return std::string(kName) + " " + std::to_string(count) + " tensors";
}

Status OptimizerStepOp::Check() const {
  LOWRANK_RETURN_IF_ERROR(CheckSome(kName, "parameters", count));
  LOWRANK_RETURN_IF_ERROR(CheckSettings(kName, settings));
  LOWRANK_RETURN_IF_ERROR(CheckScalar(kName, "lr", lr_at));
  if (!lr_at.present && !(lr >= 0 && std::isfinite(lr))) {
    return Refuse(Code::kValue, kName, "lr", "finite and not negative", std::to_string(lr));
  }
  LOWRANK_RETURN_IF_ERROR(CheckScalar(kName, "step", steps_done));
  if (!steps_done.present && (step < 1 || step > kMostSteps)) {
    return Refuse(Code::kValue, kName, "step", "an integer from 1 to 2^24", std::to_string(step));
  }
  LOWRANK_RETURN_IF_ERROR(CheckScalar(kName, "norm", norm));
  if (!norm.present && std::isfinite(settings.max_norm)) {
    return Refuse(Code::kValue, kName, "maxNorm", "given with norm", "given without");
  }
  const int64_t states = StatesOf(kind);
  Ranges ranges;
  ranges.In("lr", lr_at).In("norm", norm).Out("step", steps_done);
  int64_t next = 0;
  for (int64_t i = 0; i < count; ++i) {
    const ParameterPart& part = parts[i];
    LOWRANK_RETURN_IF_ERROR(CheckPart(kName, part, states));
    if (part.first_piece != next) {
      return Refuse(Code::kValue, kName, "parameters", "of consecutive pieces", "others");
    }
    next += OptimizerPieces(part.p.elems());
    ranges.Out("parameters", part.p).In("gradients", part.g);
    for (int64_t s = 0; s < states; ++s) ranges.Out("states", part.states[s]);
  }
  if (pieces != next) return Refuse(Code::kValue, kName, "parameters", "all of the pieces", "some");
  return ranges.CheckApart(kName);
}
std::string OptimizerStepOp::Describe() const {
  static constexpr const char* kNames[] = {
#define LOWRANK_OPTIMIZER_NAME(id, name) name,
      LOWRANK_FOR_EACH_OPTIMIZER(LOWRANK_OPTIMIZER_NAME)
#undef LOWRANK_OPTIMIZER_NAME
  };
  return std::string(kName) + " " + kNames[static_cast<size_t>(kind)] + " " +
         std::to_string(count) + " parameters";
}

}  // namespace lowrank
