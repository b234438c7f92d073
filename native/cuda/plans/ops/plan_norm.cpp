/// Plans of norms: there is no kernel yet, and calls are rejected.
#include "native/cuda/plans/plan.h"

namespace lowrank::cuda {

Status MakePlan(const RmsNormOp& op, const DeviceLimits&, Workspace*, Plan*) {
  return Refuse(Code::kUnsupported, op.kName, "device", "cpu or reference", "a CUDA device");
}
Status MakePlan(const RmsNormBackwardOp& op, const DeviceLimits&, Workspace*, Plan*) {
  return Refuse(Code::kUnsupported, op.kName, "device", "cpu or reference", "a CUDA device");
}

}  // namespace lowrank::cuda
