/// Plans of cuda/lora/lora_grad_sm80.cu.
#include "native/cuda/plans/factors/plan_lora_grad.h"

#include <algorithm>

namespace lowrank::cuda {
namespace {

gpu::LoraContractParams GradParams(const LoraGradOperands& operands, const LoraTile& tile) {
  const int64_t r = operands.r;
  gpu::LoraContractParams params = LoraContractOver(operands.x, operands.dropout, r, tile);
  params.factor = operands.factor;
  params.factor_element = LoraElementOf(operands.factor_dtype);
  params.factor_q_elems = r;
  params.factor_j_elems = 1;
  params.out_o_elems = operands.rank_major ? 1 : r;
  params.out_j_elems = operands.rank_major ? operands.x.cols : 1;
  params.out_paired = !operands.rank_major && r % 2 == 0;
  params.out_plane_elems = LoraPlaneElems(operands.x.cols * r);
  params.sums_plane_elems = LoraPlaneElems(operands.x.cols);
  return params;
}

/// Workspace for `splits` planes.
LoraGradPlanes TakePlanes(const LoraGradOperands& operands, int64_t splits, Workspace* workspace,
                          gpu::LoraContractParams* params) {
  params->out = workspace->Take<float>(params->out_plane_elems * splits);
  if (operands.sums) params->sums = workspace->Take<float>(params->sums_plane_elems * splits);
  return {params->out, params->out_plane_elems, params->sums, params->sums_plane_elems, splits};
}

/// The split of a shrink whose blocks read about as much of dy as the gradient's.
LoraSplit ShrinkSplitBeside(int64_t cols, const LoraSplit& gradient) {
  const int64_t tiles = CeilDiv(cols, gpu::kLoraTileQ);
  const int64_t wanted_tiles = std::clamp<int64_t>(gradient.q_per_split / gpu::kLoraTileQ,
                                                   std::min<int64_t>(2, tiles), tiles);
  const int64_t tiles_per_split = CeilDiv(tiles, CeilDiv(tiles, wanted_tiles));
  return {CeilDiv(tiles, tiles_per_split), tiles_per_split * gpu::kLoraTileQ};
}

}  // namespace

LoraGradPlanes PlanLoraGrad(const LoraGradOperands& operands, const DeviceLimits& device,
                            Workspace* workspace, Plan* plan) {
  const TensorView& x = operands.x;
  if (x.elems() == 0) return {};
  const LoraTile& tile = SelectLoraTile(operands.r, device);
  gpu::LoraGradParams params;
  params.grad = GradParams(operands, tile);
  params.grad_cols = static_cast<uint32_t>(CeilDiv(x.cols, gpu::kLoraTileO));
  const int64_t o_blocks = params.grad_cols * static_cast<int64_t>(params.grad.rank_tiles);
  const LoraSplit split = SelectLoraSplit(o_blocks, x.rows, LoraSlots(tile, x.dtype, device),
                                          static_cast<int64_t>(x.bytes()), x.cols * operands.r);
  params.grad.q_per_split = split.q_per_split;
  const LoraGradPlanes planes = TakePlanes(operands, split.splits, workspace, &params.grad);
  plan->steps.push_back(
      LoraStep(tile.grad[LoraElementOf(x.dtype)], o_blocks * split.splits, 1, x.dtype, params));
  return planes;
}

LoraGradPlanes PlanLoraDy(const LoraGradOperands& operands, const TensorView& lora_b, float scaling,
                          float* dh, bool accumulate_dh, const DeviceLimits& device,
                          Workspace* workspace, Plan* plan, LoraReduction* reduction) {
  const TensorView& dy = operands.x;
  const int64_t r = lora_b.cols;
  // One tile for both halves: the tile of r, the wider one.
  const LoraTile& tile = SelectLoraTile(r, device);
  gpu::LoraGradParams params;
  params.grad = GradParams(operands, tile);
  params.grad_cols = static_cast<uint32_t>(CeilDiv(dy.cols, gpu::kLoraTileO));

  // The gradient's blocks iterate over the rows of a group; several groups must fit in L2.
  const int64_t grad_blocks = params.grad_cols * static_cast<int64_t>(params.grad.rank_tiles);
  LoraSplit split = SelectLoraSplit(grad_blocks, dy.rows, LoraSlots(tile, dy.dtype, device),
                                    static_cast<int64_t>(dy.bytes()), dy.cols * operands.r);
  const int64_t row_bytes = dy.cols * static_cast<int64_t>(DTypeBytes(dy.dtype));
  const int64_t tiles_in_l2 =
      std::max<int64_t>(1, device.l2_bytes / 4 / (row_bytes * gpu::kLoraTileQ));
  split.q_per_split = std::min(split.q_per_split, tiles_in_l2 * gpu::kLoraTileQ);
  split.splits = CeilDiv(dy.rows, split.q_per_split);
  params.grad.q_per_split = split.q_per_split;
  const LoraGradPlanes planes = TakePlanes(operands, split.splits, workspace, &params.grad);

  const LoraSplit shrink_split = device.batch_invariant
                                     ? BatchInvariantShrinkSplit(dy.cols, r, dy.dtype)
                                     : ShrinkSplitBeside(dy.cols, split);
  params.shrink = LoraShrinkOver(dy, lora_b, true, DropoutSpec(), tile);
  params.shrink.q_per_split = shrink_split.q_per_split;
  params.shrink_rows = static_cast<uint32_t>(split.q_per_split / gpu::kLoraTileO);
  params.shrink_splits = static_cast<uint32_t>(shrink_split.splits);
  params.shrink.out = dh;
  params.shrink.scale = scaling;
  if (params.shrink_splits > 1 || accumulate_dh) {
    params.shrink.out_plane_elems = LoraPlaneElems(dy.rows * r);
    params.shrink.out =
        workspace->Take<float>(params.shrink.out_plane_elems * params.shrink_splits);
    params.shrink.scale = 1;
    reduction->AddF32(params.shrink.out, params.shrink.out_plane_elems, params.shrink_splits, dh,
                      dy.rows * r, scaling, accumulate_dh);
  }
  const int64_t group_blocks = grad_blocks + static_cast<int64_t>(params.shrink_rows) *
                                                 params.shrink.rank_tiles * params.shrink_splits;
  plan->steps.push_back(LoraStep(tile.grad[LoraElementOf(dy.dtype)], group_blocks * split.splits, 1,
                                 dy.dtype, params));
  return planes;
}

}  // namespace lowrank::cuda
