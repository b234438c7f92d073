/// The launches over the tables of many adapters (cuda/grouped/lora_grouped_sm80.cu).
#include <algorithm>

#include "native/cuda/plans/factors/plan_lora_grad.h"
#include "native/cuda/plans/ops/plan_grouped.h"
#include "native/cuda/plans/plan_streaming.h"
#include "native/host_device/philox.h"

namespace lowrank::cuda {

gpu::GroupedAdapter GroupedAdapterOf(const AdapterRows& adapter, bool masked) {
  gpu::GroupedAdapter e{};
  const auto set = [](const TensorView& view, auto* data, int32_t* element) {
    *data = view.present ? view.data : nullptr;
    *element = LoraElementOf(view.dtype);
  };
  set(adapter.lora_a, &e.lora_a, &e.a_element);
  set(adapter.lora_b, &e.lora_b, &e.b_element);
  set(adapter.lora_bias, &e.lora_bias, &e.bias_element);
  set(adapter.d_lora_a, &e.d_lora_a, &e.d_a_element);
  set(adapter.d_lora_b, &e.d_lora_b, &e.d_b_element);
  set(adapter.d_lora_bias, &e.d_lora_bias, &e.d_bias_element);
  e.r = adapter.r();
  e.first = adapter.first;
  e.count = adapter.count;
  e.h_begin = adapter.h_begin;
  e.scaling = adapter.scaling;
  e.threshold = DropoutThreshold(adapter.dropout);
  e.kept_scale = static_cast<float>(1.0 / (1.0 - adapter.dropout));
  e.gate_kind = masked                ? gpu::kLoraGateMask
                : adapter.dropout > 0 ? gpu::kLoraGatePhilox
                                      : gpu::kLoraGateNone;
  e.accumulate_a = adapter.accumulate_d_lora_a ? 1 : 0;
  e.accumulate_b = adapter.accumulate_d_lora_b ? 1 : 0;
  e.accumulate_bias = adapter.accumulate_d_lora_bias ? 1 : 0;
  return e;
}

Status AddGroupedStep(const char* op, const char* kernel, int64_t blocks, int64_t rows,
                      int64_t cols, gpu::GroupedParams params, Plan* plan) {
  params.i_tiles = static_cast<uint32_t>(CeilDiv(rows, gpu::kGroupedTile));
  params.j_tiles = static_cast<uint32_t>(CeilDiv(cols, gpu::kGroupedTile));
  const int64_t all = blocks * params.i_tiles * params.j_tiles;
  if (all == 0) return Status();
  LaunchStep step;
  step.kernel = kernel;
  step.threads = gpu::kGroupedThreads;
  step.shared_bytes = gpu::kGroupedSharedBytes;
  LOWRANK_RETURN_IF_ERROR(SetGrid(op, all, 1, &step));
  step.SetParams(params);
  plan->steps.push_back(std::move(step));
  return Status();
}

Status AddGroupedShrink(const char* op, const GroupedSizes& sizes, const DeviceLimits& device,
                        gpu::GroupedParams params, Plan* plan) {
  const int64_t row_groups = CeilDiv(sizes.largest_tile, gpu::kGroupedShrinkRows);
  const int64_t rank_groups = CeilDiv(sizes.largest_r, gpu::kGroupedShrinkRanks);
  const int64_t tiles = sizes.tiles;
  const int64_t all = tiles * row_groups * rank_groups;
  if (all == 0) return Status();
  const int64_t groups = std::clamp<int64_t>(all / (2 * device.sm_count), 1, rank_groups);
  params.block_ranks = groups * gpu::kGroupedShrinkRanks;
  params.j_tiles = static_cast<uint32_t>(CeilDiv(rank_groups, groups));
  LaunchStep step;
  step.kernel = "grouped_shrink_kernel";
  step.threads = gpu::kGroupedShrinkThreads;
  step.shared_bytes = sizeof(gpu::GroupedShrinkShared);
  LOWRANK_RETURN_IF_ERROR(SetGrid(op, tiles * params.j_tiles, 1, &step));
  step.grid.y = static_cast<uint32_t>(row_groups);
  step.SetParams(params);
  plan->steps.push_back(std::move(step));
  return Status();
}

Status AddGroupedDh(const char* op, const GroupedSizes& sizes, int64_t h_elems,
                    gpu::GroupedParams params, Workspace* workspace, Plan* plan) {
  const int64_t spans = CeilDiv(params.N, gpu::kGroupedSpan);
  params.slice = std::max<int64_t>(CeilDiv(spans, gpu::kGroupedMostSlices), 1) * gpu::kGroupedSpan;
  params.plane_elems = h_elems;
  const int64_t slices = std::max<int64_t>(CeilDiv(params.N, params.slice), 1);
  if (slices > 1) params.planes = workspace->Take<float>(slices * h_elems);
  const size_t steps = plan->steps.size();
  LOWRANK_RETURN_IF_ERROR(
      AddGroupedStep(op, "grouped_dh_kernel", sizes.tiles, 1, sizes.largest_r, params, plan));
  if (slices == 1 || plan->steps.size() == steps) return Status();
  plan->steps.back().grid.y = static_cast<uint32_t>(slices);
  LOWRANK_RETURN_IF_ERROR(
      AddGroupedStep(op, "grouped_dh_sum_kernel", sizes.tiles, 1, sizes.largest_r, params, plan));
  plan->steps.back().shared_bytes = 0;  // its sums stay in registers
  return Status();
}

}  // namespace lowrank::cuda
