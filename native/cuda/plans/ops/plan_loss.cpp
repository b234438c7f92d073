/// Plans of the embedding and of the loss: there are no kernels yet, and calls are rejected.
#include "native/cuda/plans/plan.h"

namespace lowrank::cuda {

Status MakePlan(const EmbeddingOp& op, const DeviceLimits&, Workspace*, Plan*) {
  return Refuse(Code::kUnsupported, op.kName, "device", "'cpu' or 'reference'", "a CUDA device");
}
Status MakePlan(const LinearCrossEntropyOp& op, const DeviceLimits&, Workspace*, Plan*) {
  return Refuse(Code::kUnsupported, op.kName, "device", "'cpu' or 'reference'", "a CUDA device");
}

}  // namespace lowrank::cuda
