#include "native/cuda/explain.h"

#include "native/cuda/backend.h"
#include "native/cuda/plans/cards.h"

namespace lowrank {
namespace cuda {
namespace {

template <typename Op>
Status Add(const Op& op, const DeviceLimits& limits, Explanation* explanation) {
  constexpr size_t kSomeBytes = size_t{1} << 40;  // its address alone is used
  Workspace workspace(UnreadAddress(kSomeBytes));
  Plan plan;
  LOWRANK_RETURN_IF_ERROR(MakePlan(op, limits, &workspace, &plan));
  PlannedOp planned;
  planned.op = Op::kName;
  planned.workspace_bytes = static_cast<int64_t>(workspace.bytes());
  for (const LaunchStep& step : plan.steps) {
    planned.launches.push_back({step.kernel,
                                {step.grid.x, step.grid.y, step.grid.z},
                                step.threads,
                                step.cluster,
                                step.shared_bytes,
                                step.tile_rows,
                                step.tile_cols});
  }
  explanation->plans.push_back(std::move(planned));
  return Status();
}

}  // namespace

Status Explain(const DeviceLimits& limits, const std::string& card, const CallShape& shape,
               Explanation* explanation) {
  const OpsOfShape ops(shape);
  LOWRANK_RETURN_IF_ERROR(ops.Check());
  if (shape.compute == Compute::kInt8 && !shape.rowwise) {
    return Refuse(Code::kUnsupported, "explain", "w",
                  "rowwise int8 on a CUDA device (compute is 'int8')", shape.format->name);
  }
  explanation->sm = limits.sm;
  explanation->card = card;
  explanation->multiprocessors = limits.sm_count;
  LOWRANK_RETURN_IF_ERROR(Add(ops.matmul, limits, explanation));
  if (ops.adapter()) LOWRANK_RETURN_IF_ERROR(Add(ops.lora_forward, limits, explanation));
  LOWRANK_RETURN_IF_ERROR(Add(ops.input_grad, limits, explanation));
  if (ops.adapter()) LOWRANK_RETURN_IF_ERROR(Add(ops.lora_backward, limits, explanation));
  return Status();
}

Status CudaBackend::Explain(const CallShape& shape, Explanation* explanation) const {
  LOWRANK_RETURN_IF_ERROR(Ready());
  LOWRANK_RETURN_IF_ERROR(Probe());
  return cuda::Explain(gpu_.limits, gpu_.card, shape, explanation);
}

}  // namespace cuda

Status ExplainOnArchitecture(const std::string& architecture, const CallShape& shape,
                             Explanation* explanation) {
  std::string known;
  for (const cuda::Card& card : cuda::kCards) {
    const std::string name = "sm_" + std::to_string(card.sm);
    if (architecture == name) {
      return cuda::Explain(cuda::LimitsOf(card), card.name, shape, explanation);
    }
    known += (known.empty() ? "" : ", ") + name;
  }
  return Refuse(Code::kValue, "explain", "device", "one of " + known, "'" + architecture + "'");
}

}  // namespace lowrank
