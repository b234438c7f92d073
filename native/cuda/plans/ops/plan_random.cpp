#include "native/cuda/plans/plan.h"
#include "native/cuda/plans/plan_streaming.h"
#include "native/host_device/params/random.h"
#include "native/host_device/philox.h"

namespace lowrank::cuda {
namespace {

/// In DType's order.
constexpr const char* kRandomKernels[3] = {"random_f32_kernel", "random_bf16_kernel",
                                           "random_f16_kernel"};

}  // namespace

Status MakePlan(const RandomOp& op, const DeviceLimits&, Workspace*, Plan* plan) {
  if (op.y.elems() == 0) return Status();
  gpu::RandomParams params{};
  params.y = op.y.data;
  params.elems = op.y.elems();
  params.seed = op.seed;
  params.mean = op.mean;
  params.scale = op.scale;
  params.seed_at = static_cast<const uint64_t*>(op.seed_at.data);
  params.draw = static_cast<gpu::RandomDraw>(op.kind);
  if (op.kind == RandomOp::Kind::kKeep) params.threshold = DropoutThreshold(op.mean);
  params.vector = IsAligned(op.y.data, 4 * DTypeBytes(op.y.dtype));

  LaunchStep step;
  step.kernel = kRandomKernels[static_cast<int>(op.y.dtype)];
  step.threads = gpu::kRandomThreads;
  LOWRANK_RETURN_IF_ERROR(SetGrid(RandomOp::kName, op.y.elems(), 4 * gpu::kRandomThreads, &step));
  step.SetParams(params);
  plan->steps.push_back(step);
  return Status();
}

}  // namespace lowrank::cuda
