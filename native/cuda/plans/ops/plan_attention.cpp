/// Plans of attention: there is no kernel yet, and calls are rejected.
#include "native/cuda/plans/plan.h"

namespace lowrank::cuda {

Status MakePlan(const AttentionOp& op, const DeviceLimits&, Workspace*, Plan*) {
  return Refuse(Code::kUnsupported, op.kName, "device", "'cpu' or 'reference'", "a CUDA device");
}
Status MakePlan(const AttentionBackwardOp& op, const DeviceLimits&, Workspace*, Plan*) {
  return Refuse(Code::kUnsupported, op.kName, "device", "'cpu' or 'reference'", "a CUDA device");
}

}  // namespace lowrank::cuda
