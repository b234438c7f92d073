/// Element-wise ops over small tensors.
#include "native/core/ops/op_checks.h"

namespace lowrank {
namespace {

/// Checks for [M, N], where either dimension may be 1.
Status CheckBroadcast(const char* op, const char* operand, const TensorView& view,
                      const TensorView& a) {
  if (!view.present) return Status();
  if ((view.rows != a.rows && view.rows != 1) || (view.cols != a.cols && view.cols != 1)) {
    return Refuse(Code::kShape, op, operand,
                  "[" + std::to_string(a.rows) + " or 1, " + std::to_string(a.cols) + " or 1]",
                  Shape(view.rows, view.cols));
  }
  return CheckMatrix(op, operand, view, view.rows, view.cols);
}

}  // namespace

Status MultiplyAddOp::Check() const {
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "a", a, a.rows, a.cols));
  LOWRANK_RETURN_IF_ERROR(CheckBroadcast(kName, "b", b, a));
  LOWRANK_RETURN_IF_ERROR(CheckBroadcast(kName, "c", c, a));
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "y", y, a.rows, a.cols));
  LOWRANK_RETURN_IF_ERROR(Ranges().Out("y", y).In("a", a).In("b", b).In("c", c).CheckApart(kName));
  LOWRANK_RETURN_IF_ERROR(CheckFactor(kName, "alpha", alpha));
  return CheckFactor(kName, "beta", beta);
}
std::string MultiplyAddOp::Describe() const {
  return std::string(kName) + " a " + a.Describe() + " b " + b.Describe() + " c " + c.Describe() +
         " alpha " + std::to_string(alpha) + " beta " + std::to_string(beta);
}

Status MapOp::Check() const {
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "a", a, a.rows, a.cols));
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "y", y, a.rows, a.cols));
  return Ranges().Out("y", y).In("a", a).CheckApart(kName);
}
std::string MapOp::Describe() const {
  constexpr const char* kNames[] = {
#define LOWRANK_MAP_NAME(id, name) name,
      LOWRANK_FOR_EACH_MAP_FUNCTION(LOWRANK_MAP_NAME)
#undef LOWRANK_MAP_NAME
  };
  return std::string(kName) + " " + kNames[static_cast<int>(function)] + " " + a.Describe();
}

Status GatedActivationOp::Check() const {
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "gate", gate, gate.rows, gate.cols));
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "up", up, gate.rows, gate.cols));
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "y", y, gate.rows, gate.cols));
  return Ranges().Out("y", y).In("gate", gate).In("up", up).CheckApart(kName);
}
std::string GatedActivationOp::Describe() const {
  return std::string(kName) + " gate " + gate.Describe();
}

Status GatedActivationBackwardOp::Check() const {
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "gate", gate, gate.rows, gate.cols));
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "up", up, gate.rows, gate.cols));
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "dy", dy, gate.rows, gate.cols));
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "dGate", d_gate, gate.rows, gate.cols));
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "dUp", d_up, gate.rows, gate.cols));
  return Ranges()
      .Out("dGate", d_gate)
      .Out("dUp", d_up)
      .In("dy", dy)
      .In("gate", gate)
      .In("up", up)
      .CheckApart(kName);
}
std::string GatedActivationBackwardOp::Describe() const {
  return std::string(kName) + " dy " + dy.Describe() + " gate " + gate.Describe();
}

Status SumProductOp::Check() const {
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "a", a, a.rows, a.cols));
  LOWRANK_RETURN_IF_ERROR(CheckBroadcast(kName, "b", b, a));
  if (axis != 0 && axis != 1) {
    return Refuse(Code::kValue, kName, "axis", "0 or 1", std::to_string(axis));
  }
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "out", out, 1, axis == 0 ? a.cols : a.rows));
  LOWRANK_RETURN_IF_ERROR(CheckDType(kName, "out", out, DType::kF32));
  return Ranges().Out("out", out).In("a", a).In("b", b).CheckApart(kName);
}
std::string SumProductOp::Describe() const {
  return std::string(kName) + " axis " + std::to_string(axis) + " a " + a.Describe() + " b " +
         b.Describe();
}

}  // namespace lowrank
