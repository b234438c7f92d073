#include "native/cuda/plans/plan.h"
#include "native/cuda/plans/plan_streaming.h"
#include "native/host_device/params/cast.h"

namespace lowrank::cuda {
namespace {

/// By source and destination, in DType's order.
constexpr const char* kCastKernels[3][3] = {
    {"cast_copy_kernel", "cast_f32_bf16_kernel", "cast_f32_f16_kernel"},
    {"cast_bf16_f32_kernel", "cast_copy_kernel", "cast_bf16_f16_kernel"},
    {"cast_f16_f32_kernel", "cast_f16_bf16_kernel", "cast_copy_kernel"},
};

}  // namespace

Status MakePlan(const CastOp& op, const DeviceLimits&, Workspace*, Plan* plan) {
  if (op.dst.elems() == 0) return Status();
  const bool copy = op.src.dtype == op.dst.dtype;
  const int64_t bytes = static_cast<int64_t>(op.dst.bytes());
  const int64_t src_bytes = static_cast<int64_t>(op.src.bytes());
  gpu::CastParams params{};
  params.src = op.src.data;
  params.dst = op.dst.data;
  params.elems = copy ? bytes : op.dst.elems();
  params.vector = IsAligned(op.src.data, 16) && IsAligned(op.dst.data, 16);

  LaunchStep step;
  step.kernel = kCastKernels[static_cast<int>(op.src.dtype)][static_cast<int>(op.dst.dtype)];
  step.threads = gpu::kCastThreads;
  const int64_t runs = CeilDiv(bytes > src_bytes ? bytes : src_bytes, 16);
  LOWRANK_RETURN_IF_ERROR(
      SetGrid(CastOp::kName, runs, gpu::kCastThreads * gpu::kCastUnroll, &step));
  step.SetParams(params);
  plan->steps.push_back(step);
  return Status();
}

}  // namespace lowrank::cuda
