/// Launches of kernels whose lanes share rows (cuda/common/row_lanes.cuh).
#pragma once

#include <algorithm>

#include "native/cuda/plans/plan_streaming.h"
#include "native/host_device/params/parts/row_lanes.h"

namespace lowrank::cuda {

/// Lanes that share a row of `runs` runs. Up to a warp, one run each; from there on as many as have
/// no more than `held` runs each, up to a block. A power of two.
inline int32_t RowLanes(int64_t runs, int64_t held) {
  const int64_t wanted = std::max(std::min<int64_t>(runs, 32), CeilDiv(runs, held));
  int32_t lanes = 1;
  while (lanes < wanted && lanes < static_cast<int32_t>(gpu::kRowThreads)) lanes *= 2;
  return lanes;
}

/// Of `params` with rows and row_lanes.
template <typename Params>
Status AddRowLaunch(const char* op, const char* kernel, const Params& params, size_t shared_bytes,
                    Plan* plan) {
  LaunchStep step;
  step.kernel = kernel;
  step.threads = gpu::kRowThreads;
  step.shared_bytes = static_cast<uint32_t>(shared_bytes);
  LOWRANK_RETURN_IF_ERROR(SetGrid(op, params.rows, gpu::kRowThreads / params.row_lanes, &step));
  step.SetParams(params);
  plan->steps.push_back(std::move(step));
  return Status();
}

}  // namespace lowrank::cuda
