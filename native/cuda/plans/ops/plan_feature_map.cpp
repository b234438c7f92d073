/// Plan of cuda/elementwise/feature_map_sm80.cu.
#include <algorithm>

#include "native/cuda/plans/plan.h"
#include "native/cuda/plans/plan_streaming.h"
#include "native/host_device/params/feature_map.h"

namespace lowrank::cuda {
namespace {

/// Blocks that fill the device twice; with more rows, a block takes several and keeps its lists.
constexpr int64_t kBlocksPerSm = 16;
constexpr int32_t kThreadsLog2 = 8;

}  // namespace

Status MakePlan(const MapFeaturesOp& op, const DeviceLimits& device, Workspace*, Plan* plan) {
  if (op.y.elems() == 0) return Status();
  gpu::MapFeaturesParams params;
  params.x = op.x.data;
  params.c = op.c.present ? op.c.data : nullptr;
  params.y = op.y.data;
  params.begin = op.map.begin;
  params.index = op.map.index;
  params.rows = op.x.rows;
  params.inputs = op.map.inputs;
  params.outputs = op.map.outputs;
  params.alpha = op.alpha;
  params.beta = op.beta;
  params.x_element = static_cast<int32_t>(op.x.dtype);
  params.c_element = static_cast<int32_t>(op.c.dtype);
  params.y_element = static_cast<int32_t>(op.y.dtype);
  params.cols_log2 = std::min(static_cast<int32_t>(Log2(params.outputs)), kThreadsLog2);
  LaunchStep step;
  step.kernel = "map_features_kernel";
  step.threads = gpu::kFeatureMapThreads;
  LOWRANK_RETURN_IF_ERROR(SetGrid(op.kName, params.outputs, int64_t{1} << params.cols_log2, &step));
  const int64_t turns = CeilDiv(params.rows, int64_t{1} << (kThreadsLog2 - params.cols_log2));
  const int64_t wanted = CeilDiv(kBlocksPerSm * device.sm_count, static_cast<int64_t>(step.grid.x));
  step.grid.y = static_cast<uint32_t>(std::min({turns, wanted, kMostGridRows}));
  step.SetParams(params);
  plan->steps.push_back(std::move(step));
  return Status();
}

}  // namespace lowrank::cuda
