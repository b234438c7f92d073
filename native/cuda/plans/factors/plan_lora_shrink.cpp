/// Plans of cuda/lora/lora_shrink_sm80.cu and its cluster kernels on Hopper, and the parts that the
/// gradients' plans share.
#include "native/cuda/plans/factors/plan_lora_shrink.h"

#include <algorithm>

#include "native/cuda/plans/factors/plan_lora_grad.h"
#include "native/cuda/plans/plan_cluster.h"
#include "native/host_device/philox.h"

namespace lowrank::cuda {
namespace {

constexpr LoraTile kLoraTiles[] = {
    {80,
     16,
     16,
     2,
     {"lora_shrink_f32_r16_kernel", "lora_shrink_bf16_r16_kernel", "lora_shrink_f16_r16_kernel"},
     {"lora_shrink_cluster_f32_r16_kernel", "lora_shrink_cluster_bf16_r16_kernel",
      "lora_shrink_cluster_f16_r16_kernel"},
     {"lora_grad_f32_r16_kernel", "lora_grad_bf16_r16_kernel", "lora_grad_f16_r16_kernel"},
     "untuned: tensor cores a quarter busy (lora_contract.cuh), two blocks by registers"},
    {80,
     INT64_MAX,
     32,
     1,
     {"lora_shrink_f32_r32_kernel", "lora_shrink_bf16_r32_kernel", "lora_shrink_f16_r32_kernel"},
     {"lora_shrink_cluster_f32_r32_kernel", "lora_shrink_cluster_bf16_r32_kernel",
      "lora_shrink_cluster_f16_r32_kernel"},
     {"lora_grad_f32_r32_kernel", "lora_grad_bf16_r32_kernel", "lora_grad_f16_r32_kernel"},
     "untuned: further ranks find x in L2 and are bound by the tensor cores"},
};

/// How K is split in the shrink of x by r ranks.
LoraSplit ShrinkSplit(const TensorView& x, int64_t r, const LoraTile& tile,
                      const DeviceLimits& device) {
  if (device.batch_invariant) return BatchInvariantShrinkSplit(x.cols, r, x.dtype);
  const int64_t o_blocks = CeilDiv(x.rows, gpu::kLoraTileO) * CeilDiv(r, tile.rank_tile);
  return SelectLoraSplit(o_blocks, x.cols, LoraSlots(tile, x.dtype, device),
                         static_cast<int64_t>(x.bytes()), x.rows * r);
}

/// `split` as the blocks of a cluster, or none if it does not suit one. A split of more than eight
/// becomes eight if the longer loops and the cluster's sums take fewer clocks than planes and their
/// launch: up to K = 5,120 for few rows, whose planes are splits of two tiles.
LoraSplit ClusterSplit(const LoraSplit& split, const TensorView& x, int64_t r, const LoraTile& tile,
                       const DeviceLimits& device) {
  if (!device.has_clusters() || split.splits < 2) return {};
  if (split.splits <= gpu::kLoraClusterMax) return split;
  if (device.batch_invariant) return {};
  const int64_t tiles = CeilDiv(x.cols, gpu::kLoraTileQ);
  const int64_t tiles_per_split = CeilDiv(tiles, int64_t{gpu::kLoraClusterMax});
  const LoraSplit cluster = {CeilDiv(tiles, tiles_per_split), tiles_per_split * gpu::kLoraTileQ};
  const int64_t o_blocks = CeilDiv(x.rows, gpu::kLoraTileO) * CeilDiv(r, tile.rank_tile);
  // Clocks of one more tile in a loop, by its instructions (lora_contract.cuh); f32 has twice the
  // products.
  const int64_t tile_clocks = x.dtype == DType::kF32 ? 800 : 400;
  auto clocks = [&](const LoraSplit& cut) {
    const int64_t waves = CeilDiv(o_blocks * cut.splits, LoraSlots(tile, x.dtype, device));
    return waves * cut.q_per_split / gpu::kLoraTileQ * tile_clocks;
  };
  const int64_t rows = std::min<int64_t>(gpu::kLoraTileO, CeilDiv(x.rows, 16) * 16);
  const int64_t sum_bytes = rows * tile.rank_tile * int64_t{sizeof(float)};
  const bool better = clocks(cluster) + ClusterSumClocks(sum_bytes, cluster.splits) <=
                      clocks(split) + PlaneSumClocks(split.splits, x.rows * r, device.sm_count);
  return better ? cluster : LoraSplit();
}

/// The launch of a shrink over x; `params` lack only the split.
void AddShrink(const TensorView& x, const LoraSplit& split, bool cluster, const LoraTile& tile,
               gpu::LoraContractParams params, Plan* plan) {
  params.q_per_split = split.q_per_split;
  const int64_t o_blocks = CeilDiv(x.rows, gpu::kLoraTileO) * params.rank_tiles;
  if (cluster) {
    params.cluster = static_cast<uint32_t>(split.splits);
    plan->steps.push_back(LoraStep(tile.shrink_cluster[LoraElementOf(x.dtype)],
                                   o_blocks * split.splits, 1, x.dtype, params));
    plan->steps.back().cluster = params.cluster;
    return;
  }
  plan->steps.push_back(
      LoraStep(tile.shrink[LoraElementOf(x.dtype)], o_blocks, split.splits, x.dtype, params));
}

/// The same into workspace planes, unscaled.
LoraShrinkPlanes AddShrinkPlanes(const TensorView& x, const LoraSplit& split, const LoraTile& tile,
                                 gpu::LoraContractParams params, Workspace* workspace, Plan* plan) {
  params.scale = 1;
  params.out_plane_elems = LoraPlaneElems(x.rows * params.r);
  params.out = workspace->Take<float>(params.out_plane_elems * split.splits);
  AddShrink(x, split, false, tile, params, plan);
  return {params.out, params.out_plane_elems, split.splits};
}

}  // namespace

gpu::LoraGate LoraGateOf(const TensorView& x, const DropoutSpec& dropout) {
  gpu::LoraGate gate;
  if (!dropout.active()) return gate;
  if (!dropout.mask.present) {
    gate.kind = gpu::kLoraGatePhilox;
    gate.seed = dropout.seed;
    gate.threshold = DropoutThreshold(dropout.p);
    return gate;
  }
  gate.kind = gpu::kLoraGateMask;
  gate.mask = dropout.mask.data;
  gate.mask_element = LoraElementOf(dropout.mask.dtype);
  const int64_t chunk = 16 / static_cast<int64_t>(DTypeBytes(x.dtype));
  const int64_t chunk_bytes = chunk * static_cast<int64_t>(DTypeBytes(dropout.mask.dtype));
  gate.mask_aligned =
      x.cols % chunk == 0 && IsAligned(dropout.mask.data, std::min<int64_t>(chunk_bytes, 16));
  return gate;
}

const LoraTile& SelectLoraTile(int64_t r, const DeviceLimits& device) {
  for (const LoraTile& tile : kLoraTiles) {
    if (device.sm >= tile.min_sm && r <= tile.r_max) return tile;
  }
  return kLoraTiles[1];
}

LoraSplit SelectLoraSplit(int64_t o_blocks, int64_t q_count, int64_t slots, int64_t x_bytes,
                          int64_t plane_elems) {
  const int64_t tiles = CeilDiv(q_count, gpu::kLoraTileQ);
  if (tiles == 0 || o_blocks == 0) return {};
  const int64_t first_wave = CeilDiv(slots, o_blocks);
  const int64_t affordable = plane_elems == 0 ? tiles : x_bytes / 4 / (8 * plane_elems);
  int64_t splits = std::min(CeilDiv(2 * slots, o_blocks), std::max(first_wave, affordable));
  splits = std::clamp<int64_t>(splits, 1, std::max<int64_t>(1, tiles / 2));
  const int64_t tiles_per_split = CeilDiv(tiles, splits);
  return {CeilDiv(tiles, tiles_per_split), tiles_per_split * gpu::kLoraTileQ};
}

LoraSplit BatchInvariantShrinkSplit(int64_t q_count, int64_t r, DType x) {
  const int64_t tiles = CeilDiv(q_count, gpu::kLoraTileQ);
  if (tiles == 0 || r == 0) return {};
  // Bytes per row: in x, and 8 for the element of each plane.
  const int64_t row_bytes = q_count * static_cast<int64_t>(DTypeBytes(x));
  const int64_t splits =
      std::clamp<int64_t>(row_bytes / 8 / (8 * r), 1, std::max<int64_t>(1, tiles / 2));
  const int64_t tiles_per_split = CeilDiv(tiles, splits);
  return {CeilDiv(tiles, tiles_per_split), tiles_per_split * gpu::kLoraTileQ};
}

int32_t LoraElementOf(DType dtype) {
  return dtype == DType::kF32    ? gpu::kLoraF32
         : dtype == DType::kBF16 ? gpu::kLoraBF16
                                 : gpu::kLoraF16;
}

float LoraKeptScale(const DropoutSpec& dropout) {
  return dropout.active() ? static_cast<float>(1.0 / (1.0 - dropout.p)) : 1.0f;
}

int64_t LoraPlaneElems(int64_t count) { return CeilDiv(count, 64) * 64; }

int64_t LoraSlots(const LoraTile& tile, DType x, const DeviceLimits& device) {
  return device.sm_count * (x == DType::kF32 ? 1 : tile.blocks_per_sm);
}

gpu::LoraContractParams LoraContractOver(const TensorView& x, const DropoutSpec& dropout, int64_t r,
                                         const LoraTile& tile) {
  gpu::LoraContractParams params;
  params.x = x.data;
  params.rows = x.rows;
  params.cols = x.cols;
  params.r = r;
  params.rank_tiles = static_cast<uint32_t>(std::max<int64_t>(1, CeilDiv(r, tile.rank_tile)));
  params.x_aligned =
      IsAligned(x.data, 16) && x.cols * static_cast<int64_t>(DTypeBytes(x.dtype)) % 16 == 0;
  params.gate = LoraGateOf(x, dropout);
  return params;
}

gpu::LoraContractParams LoraShrinkOver(const TensorView& x, const TensorView& factor,
                                       bool contraction_major, const DropoutSpec& dropout,
                                       const LoraTile& tile) {
  const int64_t r = contraction_major ? factor.cols : factor.rows;
  gpu::LoraContractParams params = LoraContractOver(x, dropout, r, tile);
  const int64_t pair_bytes = 2 * static_cast<int64_t>(DTypeBytes(factor.dtype));
  params.factor = factor.data;
  params.factor_element = LoraElementOf(factor.dtype);
  params.factor_q_elems = contraction_major ? r : 1;
  params.factor_j_elems = contraction_major ? 1 : x.cols;
  params.factor_paired =
      !contraction_major && x.cols % 2 == 0 && IsAligned(factor.data, pair_bytes);
  params.out_o_elems = r;
  params.out_j_elems = 1;
  params.out_paired = r % 2 == 0;
  return params;
}

void LoraReduction::Add(const float* planes, int64_t plane_elems, int64_t splits,
                        const TensorView& out, float scale, bool accumulate) {
  if (out.elems() == 0) return;
  gpu::LoraReduceSegment& segment = params_.segments[segments_++];
  segment.planes = planes;
  segment.out = out.data;
  segment.plane_elems = plane_elems;
  segment.count = out.elems();
  segment.splits = static_cast<int32_t>(splits);
  segment.scale = scale;
  segment.out_element = LoraElementOf(out.dtype);
  segment.accumulate = accumulate;
  segment.out_vector = IsAligned(out.data, 4 * static_cast<int64_t>(DTypeBytes(out.dtype)));
  largest_ = std::max(largest_, segment.count);
}

void LoraReduction::AddF32(const float* planes, int64_t plane_elems, int64_t splits, float* out,
                           int64_t count, float scale, bool accumulate) {
  Add(planes, plane_elems, splits, TensorView{out, DType::kF32, 1, count, true}, scale, accumulate);
}

void LoraReduction::AppendTo(Plan* plan) {
  if (segments_ == 0) return;
  LaunchStep step;
  step.kernel = "lora_reduce_kernel";
  step.grid = {static_cast<uint32_t>(CeilDiv(largest_, 4 * gpu::kLoraThreads)),
               static_cast<uint32_t>(segments_), 1};
  step.threads = gpu::kLoraThreads;
  step.SetParams(params_);
  plan->steps.push_back(std::move(step));
}

void AppendPlaneSum(const float* planes, int64_t splits, int64_t count, float* sums, Plan* plan) {
  LoraReduction reduction;
  reduction.AddF32(planes, count, splits, sums, count, 1, false);
  reduction.AppendTo(plan);
}

Status PlanLoraShrink(const TensorView& x, const TensorView& factor, ShrinkFactor layout,
                      const DropoutSpec& dropout, float scaling, float* out, bool accumulate,
                      const DeviceLimits& device, Workspace* workspace, Plan* plan) {
  const bool contraction_major = layout == ShrinkFactor::kContractionMajor;
  const int64_t r = contraction_major ? factor.cols : factor.rows;
  const int64_t count = x.rows * r;
  if (count == 0) return Status();
  const float scale = scaling * LoraKeptScale(dropout);
  LoraShrinkPlanes planes;
  if (x.cols > 0) {
    const LoraTile& tile = SelectLoraTile(r, device);
    const LoraSplit split = ShrinkSplit(x, r, tile, device);
    gpu::LoraContractParams params = LoraShrinkOver(x, factor, contraction_major, dropout, tile);
    const LoraSplit cluster = ClusterSplit(split, x, r, tile, device);
    if ((split.splits == 1 || cluster.splits > 1) && !accumulate) {
      params.out = out;
      params.out_paired &= IsAligned(out, 8);
      params.scale = scale;
      AddShrink(x, cluster.splits > 1 ? cluster : split, cluster.splits > 1, tile, params, plan);
      return Status();
    }
    planes = AddShrinkPlanes(x, split, tile, params, workspace, plan);
  }
  LoraReduction reduction;
  reduction.AddF32(planes.planes, planes.plane_elems, planes.count, out, count, scale, accumulate);
  reduction.AppendTo(plan);
  return Status();
}

LoraShrinkPlanes PlanLoraSquare(const TensorView& x, const TensorView& rounded,
                                const DeviceLimits& device, Workspace* workspace, Plan* plan) {
  if (x.elems() == 0) return {};
  const LoraTile& tile = SelectLoraTile(x.rows, device);
  gpu::LoraContractParams params = LoraShrinkOver(x, x, false, DropoutSpec(), tile);
  if (rounded.present) {
    params.rounded = rounded.data;
    params.rounded_element = LoraElementOf(rounded.dtype);
  }
  return AddShrinkPlanes(x, ShrinkSplit(x, x.rows, tile, device), tile, params, workspace, plan);
}

}  // namespace lowrank::cuda
