/// Norms of a weight: sum_rows over its rows, which are dequantised tile by tile if it is packed.
/// Norms of an adapted weight: the shrink of lora_a by itself; the product of lora_a with w, which
/// on sm_90 overlaps it if it need not wait for lora_a to be rounded; and
/// cuda/simt/factored_norm_sm80.cu.
#include <algorithm>

#include "native/cuda/plans/factors/plan_lora_grad.h"
#include "native/cuda/plans/factors/plan_lora_shrink.h"
#include "native/cuda/plans/plan_streaming.h"
#include "native/cuda/plans/products/plan_gemm_mma.h"
#include "native/host_device/params/factored_norm.h"

namespace lowrank::cuda {
namespace {

/// Elements of a tile: 1 MB of f32, which stays in the second-level cache.
constexpr int64_t kTileElems = int64_t{1} << 18;

/// Planes of the product that factored_norm adds as it reads them, which costs loads of one latency
/// instead of a launch of 1.2 us. Each element belongs to one thread, so more planes are better
/// added before.
constexpr int64_t kProductPlanes = 4;
/// Planes of lora_a by itself that it adds: every block reads all of them, of r² elements, from L2.
/// 16 planes of r = 16 are 2 MB in 128 blocks, but of r = 64 they would be 33.
constexpr int64_t kGramElems = 16 * 16 * 16;

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

/// lora_a · lora_aᵀ and lora_a · wᵀ, and where their planes are.
Status PlanFactoredSums(const FactoredNormOp& op, const DeviceLimits& device, Workspace* workspace,
                        Plan* plan, gpu::FactoredNormParams* params) {
  const int64_t r = op.lora_a.rows;
  GemmMmaOperands operands;
  operands.x = op.lora_a;
  operands.x.dtype = op.product;
  operands.x_made = op.product != op.lora_a.dtype;
  operands.w = op.w;
  // An f32 lora_a is rounded by the shrink, which reads it anyway; other dtypes by a launch.
  TensorView rounded;
  if (operands.x_made) {
    operands.x.data = workspace->Take<unsigned char>(static_cast<int64_t>(operands.x.bytes()));
    if (op.lora_a.dtype == DType::kF32) {
      rounded = operands.x;
    } else {
      LOWRANK_RETURN_IF_ERROR(MakePlan(CastOp{op.lora_a, operands.x}, device, workspace, plan));
    }
  }
  LoraShrinkPlanes gram = PlanLoraSquare(op.lora_a, rounded, device, workspace, plan);
  if (gram.count > 1 && gram.count * r * r > kGramElems) {
    float* sums = workspace->Take<float>(r * r);
    LoraReduction reduction;
    reduction.AddF32(gram.planes, gram.plane_elems, gram.count, sums, r * r, 1, false);
    reduction.AppendTo(plan);
    gram = {sums, 0, 1};
  }
  params->gram = gram.planes;
  params->gram_plane_elems = gram.plane_elems;
  params->gram_planes = static_cast<int32_t>(gram.count);

  float* sums = workspace->Take<float>(r * op.w.rows());
  ProductPlanes product;
  LOWRANK_RETURN_IF_ERROR(PlanProductPlanes(operands, sums, device, workspace, plan, &product));
  if (product.count > kProductPlanes) {
    AppendPlaneSum(product.planes, product.count, r * op.w.rows(), sums, plan);
    product = {sums, 1};
  }
  params->product = product.planes;
  params->product_planes = static_cast<int32_t>(product.count);
  return Status();
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
    LOWRANK_RETURN_IF_ERROR(PlanFactoredSums(op, device, workspace, plan, &params));
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
