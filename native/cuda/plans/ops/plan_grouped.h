/// Batches whose rows have different adapters: shared by its two plans (plan_grouped.cpp), and with
/// the LoRA of a layer of experts.
#pragma once

#include <vector>

#include "native/cuda/plans/plan.h"
#include "native/host_device/params/lora_grouped.h"

namespace lowrank::cuda {

/// The list, followed by the numbers of [0, all) that are not in it.
std::vector<int32_t> WithOthers(const int32_t* list, int64_t count, int64_t all);

/// Is one product per adapter's rows faster (plan_grouped_segments.cpp)? Depends on how many rows
/// each adapter has, not on where they are.
bool TakesSegments(const GroupedForwardOp& op, const DeviceLimits& device);
bool TakesSegments(const GroupedBackwardOp& op, const DeviceLimits& device);

/// The plan with one product per adapter.
Status PlanSegments(const GroupedForwardOp& op, const DeviceLimits& device, Workspace* workspace,
                    Plan* plan);
Status PlanSegments(const GroupedBackwardOp& op, const DeviceLimits& device, Workspace* workspace,
                    Plan* plan);

/// The adapter in the form the kernels read.
gpu::GroupedAdapter GroupedAdapterOf(const AdapterRows& adapter, bool masked);

/// What the grids of launches over tiles of rows depend on.
struct GroupedSizes {
  int64_t tiles = 0;         // that have an adapter
  int64_t largest_r = 0;     // of an adapter
  int64_t largest_tile = 0;  // rows of the fullest one
};

/// A launch of `blocks` blocks for each tile of [rows, cols].
Status AddGroupedStep(const char* op, const char* kernel, int64_t blocks, int64_t rows,
                      int64_t cols, gpu::GroupedParams params, Plan* plan);

/// h of all rows. A block computes some ranks of eight rows: as many ranks as leave two blocks per
/// multiprocessor, since it reads its rows once for all of them. No sum depends on that number.
Status AddGroupedShrink(const char* op, const GroupedSizes& sizes, const DeviceLimits& device,
                        gpu::GroupedParams params, Plan* plan);

/// dh of all rows: a launch whose reduction over N is split into slices, by its length alone, and
/// the launch that adds them. @param h_elems elements of dh
Status AddGroupedDh(const char* op, const GroupedSizes& sizes, int64_t h_elems,
                    gpu::GroupedParams params, Workspace* workspace, Plan* plan);

}  // namespace lowrank::cuda
