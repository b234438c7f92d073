/// Root-mean-square norms.
#include "native/core/ops/norm_ops.h"

#include "native/core/ops/op_checks.h"

namespace lowrank {

Status RmsNormOp::Check() const {
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "x", x, x.rows, x.cols));
  LOWRANK_RETURN_IF_ERROR(CheckOptional(kName, "residual", residual, x.rows, x.cols));
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "g", g, 1, x.cols));
  if (residual.present != sum.present) {
    return Refuse(Code::kValue, kName, "sum", "present with residual, and only with it",
                  sum.present ? "present" : "absent");
  }
  LOWRANK_RETURN_IF_ERROR(CheckOptional(kName, "sum", sum, x.rows, x.cols));
  if (sum.present) LOWRANK_RETURN_IF_ERROR(CheckDType(kName, "sum", sum, x.dtype));
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "y", y, x.rows, x.cols));
  LOWRANK_RETURN_IF_ERROR(CheckDType(kName, "y", y, x.dtype));
  LOWRANK_RETURN_IF_ERROR(CheckOptional(kName, "invRms", inv_rms, 1, x.rows));
  if (inv_rms.present) LOWRANK_RETURN_IF_ERROR(CheckDType(kName, "invRms", inv_rms, DType::kF32));
  LOWRANK_RETURN_IF_ERROR(CheckFactor(kName, "eps", eps));
  if (eps < 0) return Refuse(Code::kValue, kName, "eps", "not negative", std::to_string(eps));
  return Ranges()
      .Out("sum", sum)
      .Out("y", y)
      .Out("invRms", inv_rms)
      .In("x", x)
      .In("residual", residual)
      .In("g", g)
      .CheckApart(kName);
}
std::string RmsNormOp::Describe() const {
  return std::string(kName) + " x " + x.Describe() + " residual " + residual.Describe() + " eps " +
         std::to_string(eps);
}

Status RmsNormBackwardOp::Check() const {
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "x", s, s.rows, s.cols));
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "dy", dy, s.rows, s.cols));
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "g", g, 1, s.cols));
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "invRms", inv_rms, 1, s.rows));
  LOWRANK_RETURN_IF_ERROR(CheckDType(kName, "invRms", inv_rms, DType::kF32));
  LOWRANK_RETURN_IF_ERROR(CheckOptional(kName, "dSum", d_sum, s.rows, s.cols));
  LOWRANK_RETURN_IF_ERROR(CheckOptional(kName, "dx", dx, s.rows, s.cols));
  if (dx.present) LOWRANK_RETURN_IF_ERROR(CheckDType(kName, "dx", dx, s.dtype));
  LOWRANK_RETURN_IF_ERROR(CheckOptional(kName, "dg", dg, 1, s.cols));
  if (dg.present) LOWRANK_RETURN_IF_ERROR(CheckDType(kName, "dg", dg, DType::kF32));
  return Ranges()
      .Out("dx", dx)
      .Out("dg", dg)
      .In("dy", dy)
      .In("x", s)
      .In("g", g)
      .In("invRms", inv_rms)
      .In("dSum", d_sum)
      .CheckApart(kName);
}
std::string RmsNormBackwardOp::Describe() const {
  return std::string(kName) + " dy " + dy.Describe() + " x " + s.Describe();
}

}  // namespace lowrank
