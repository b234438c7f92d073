/// Norms of a weight: sum_rows over its rows, which are dequantised tile by tile where it is
/// packed. Norms of an adapted one: the shrink of lora_a by itself, the product of lora_a with w,
/// which on sm_90 runs beside it, and cuda/factored_norm_sm80.cu.
#include <algorithm>

#include "cuda/params/factored_norm.h"
#include "native/cuda/plan_gemm_mma.h"
#include "native/cuda/plan_lora_shrink.h"
#include "native/cuda/plan_streaming.h"

namespace lowrank::cuda {
namespace {

/// Elements of a tile: 1 MB of f32, which stays in the second-level cache.
constexpr int64_t kTileElems = int64_t{1} << 18;

/// norms[first, first + rows.rows) of `rows`.
Status PlanSums(const TensorView& rows, const TensorView& norms, int64_t first,
                const DeviceLimits& device, Workspace* workspace, Plan* plan) {
  SumProductOp sum;
  sum.a = rows;
  sum.b = rows;
  sum.out = norms;
  sum.out.data = static_cast<float*>(norms.data) + first;
  sum.out.cols = rows.rows;
  sum.axis = 1;
  return MakePlan(sum, device, workspace, plan);
}

}  // namespace

Status MakePlan(const WeightNormsOp& op, const DeviceLimits& device, Workspace* workspace,
                Plan* plan) {
  if (op.norms.elems() == 0) return Status();
  if (!op.w.quantised()) return PlanSums(op.w.dense, op.norms, 0, device, workspace, plan);
  const QuantView& w = op.w.quant;
  if (w.cols == 0) {
    TensorView none;
    none.present = true;
    none.rows = w.rows;
    return PlanSums(none, op.norms, 0, device, workspace, plan);
  }
  const int64_t step = w.RowStep();
  const int64_t tile_rows =
      std::min(std::max<int64_t>(kTileElems / (step * w.cols), 1) * step, w.rows);
  TensorView tile;
  tile.present = true;
  tile.cols = w.cols;
  tile.data = workspace->Take<float>(tile_rows * w.cols);
  for (int64_t first = 0; first < w.rows; first += tile_rows) {
    tile.rows = std::min(tile_rows, w.rows - first);
    LOWRANK_RETURN_IF_ERROR(
        MakePlan(DequantizeOp{w.Rows(first, tile.rows), tile}, device, workspace, plan));
    LOWRANK_RETURN_IF_ERROR(PlanSums(tile, op.norms, first, device, workspace, plan));
  }
  return Status();
}

Status MakePlan(const FactoredNormOp& op, const DeviceLimits& device, Workspace* workspace,
                Plan* plan) {
  const int64_t N = op.w.rows();
  const int64_t r = op.lora_a.rows;
  if (N == 0) return Status();
  gpu::FactoredNormParams params;
  params.lora_b = op.lora_b.data;
  params.squares = static_cast<const float*>(op.squares.data);
  params.norms = static_cast<float*>(op.norms.data);
  params.N = N;
  params.r = r;
  params.scaling = op.scaling;
  params.lora_b_element = static_cast<int32_t>(op.lora_b.dtype);
  if (r > 0) {
    float* gram = workspace->Take<float>(r * r);
    float* product = workspace->Take<float>(r * N);
    params.gram = gram;
    params.product = product;
    LOWRANK_RETURN_IF_ERROR(PlanLoraShrink(op.lora_a, op.lora_a, ShrinkFactor::kRankMajor,
                                           DropoutSpec(), 1, gram, false, device, workspace, plan));
    GemmMmaOperands operands;
    operands.x = op.x;
    operands.w = op.w;
    LOWRANK_RETURN_IF_ERROR(PlanProductSums(operands, product, device, workspace, plan));
  }
  LaunchStep step;
  step.kernel = "factored_norm_kernel";
  step.threads = gpu::kFactoredNormThreads;
  step.shared_bytes = gpu::kFactoredNormSharedBytes;
  LOWRANK_RETURN_IF_ERROR(SetGrid(op.kName, N, gpu::kFactoredNormRows, &step));
  step.SetParams(params);
  plan->steps.push_back(std::move(step));
  return Status();
}

}  // namespace lowrank::cuda
