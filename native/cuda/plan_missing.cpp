/// Ops that no kernel takes on this build's CUDA devices yet. A family's own plan file replaces its
/// line here.
#include "native/cuda/plan.h"

namespace lowrank::cuda {

#define LOWRANK_NO_PLAN(Type)                                                        \
  Status MakePlan(const Type& op, const DeviceLimits&, Workspace*, Plan*) {          \
    return Refuse(Code::kUnsupported, Type::kName, "device", "'cpu' or 'reference'", \
                  "a CUDA device, which has no kernel for " + op.Describe());        \
  }
LOWRANK_NO_PLAN(MatmulOp)
LOWRANK_NO_PLAN(MatmulInputGradOp)
LOWRANK_NO_PLAN(LoraForwardOp)
LOWRANK_NO_PLAN(LoraBackwardOp)
#undef LOWRANK_NO_PLAN

}  // namespace lowrank::cuda
