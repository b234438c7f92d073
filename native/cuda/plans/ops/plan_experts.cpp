/// A layer of experts has no kernels yet.
#include "native/cuda/plans/plan.h"

namespace lowrank::cuda {
namespace {

Status NoKernels(const char* op) {
  return Refuse(Code::kUnsupported, op, "device", "cpu or reference", "a CUDA device");
}

}  // namespace

#define LOWRANK_NO_PLAN(Name)                                                   \
  Status MakePlan(const Name##Op& op, const DeviceLimits&, Workspace*, Plan*) { \
    return NoKernels(op.kName);                                                 \
  }
LOWRANK_NO_PLAN(RouteRows)
LOWRANK_NO_PLAN(SelectExperts)
LOWRANK_NO_PLAN(SelectExpertsBackward)
LOWRANK_NO_PLAN(ExpertsForward)
LOWRANK_NO_PLAN(ExpertsBackward)
LOWRANK_NO_PLAN(CombineRows)
LOWRANK_NO_PLAN(CombineRowsBackward)
#undef LOWRANK_NO_PLAN

}  // namespace lowrank::cuda
