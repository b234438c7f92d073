/// Which kernel family takes a product with the base weight.
#include "native/cuda/plans/factors/plan_lora_grad.h"
#include "native/cuda/plans/factors/plan_lora_shrink.h"
#include "native/cuda/plans/plan_streaming.h"
#include "native/cuda/plans/products/plan_gemm_f32.h"
#include "native/cuda/plans/products/plan_gemm_int8.h"
#include "native/cuda/plans/products/plan_gemm_mma.h"
#include "native/cuda/plans/products/plan_gemm_wgmma.h"
#include "native/cuda/plans/products/plan_matmul_small_m.h"

namespace lowrank::cuda {
namespace {

/// From this many bytes of weight on, the family may depend on M. Smaller weights are read by one
/// wave of blocks in less time than a launch takes, so nothing would be gained, and a row keeps the
/// same bits in any batch.
constexpr int64_t kFamilyChoiceBytes = int64_t{1} << 20;

bool MayChooseByM(const GemmMmaOperands& operands, const DeviceLimits& device) {
  const WeightView& w = operands.w;
  const size_t bytes = w.quantised() ? w.quant.code_bytes() : w.dense.bytes();
  return !device.batch_invariant && static_cast<int64_t>(bytes) >= kFamilyChoiceBytes;
}

bool ByWgmma(const GemmMmaOperands& operands, const DeviceLimits& device) {
  return MayChooseByM(operands, device) && !SmallMApplies(operands, device) &&
         WgmmaTakes(operands, device);
}

/// With K = 0 the sums are those of the exact product: the weight has no scale to read.
bool ByInt8(const GemmMmaOperands& operands) {
  return operands.compute == Compute::kInt8 && operands.w.cols() > 0;
}

/// The product alone, with h given.
Status PlanProductOfH(const GemmMmaOperands& operands, const DeviceLimits& device,
                      Workspace* workspace, Plan* plan) {
  if (ByInt8(operands)) return PlanGemmInt8(operands, device, workspace, plan);
  const bool f32_weight = !operands.w.quantised() && operands.w.dense.dtype == DType::kF32;
  if (operands.x.dtype == DType::kF32 || f32_weight) {
    return PlanGemmF32(operands, device, workspace, plan);
  }
  if (operands.experts != nullptr) return PlanGemmMma(operands, device, workspace, plan);
  if (MayChooseByM(operands, device) && SmallMApplies(operands, device)) {
    return PlanMatmulSmallM(operands, device, workspace, plan);
  }
  if (ByWgmma(operands, device)) return PlanGemmWgmma(operands, device, workspace, plan);
  return PlanGemmMma(operands, device, workspace, plan);
}

}  // namespace

bool ProductHidesGrads(const GemmMmaOperands& operands, const std::vector<WgmmaGrad>& grads,
                       const DeviceLimits& device) {
  return ByWgmma(operands, device) &&
         (!operands.shrink_factor.present || WgmmaShrinks(operands, device)) &&
         WgmmaHidesGrads(operands, grads, device);
}

Status PlanProduct(const GemmMmaOperands& operands, const DeviceLimits& device,
                   Workspace* workspace, Plan* plan) {
  GemmMmaOperands product = operands;
  if (operands.shrink_factor.present &&
      (ByInt8(operands) || !(MayChooseByM(operands, device) && WgmmaShrinks(operands, device)))) {
    const bool forward = !operands.w_transposed;
    LOWRANK_RETURN_IF_ERROR(
        PlanLoraShrink(operands.x, operands.shrink_factor,
                       forward ? ShrinkFactor::kRankMajor : ShrinkFactor::kContractionMajor,
                       forward ? operands.dropout : DropoutSpec(), operands.shrink_scaling,
                       operands.h, false, device, workspace, plan));
    product.shrink_factor = TensorView();
    if (forward) product.dropout = DropoutSpec();
  }
  if (operands.y.elems() == 0) return Status();
  return PlanProductOfH(product, device, workspace, plan);
}

Status PlanProductPlanes(const GemmMmaOperands& operands, float* sums, const DeviceLimits& device,
                         Workspace* workspace, Plan* plan, ProductPlanes* planes) {
  GemmMmaOperands product;
  product.x = operands.x;
  product.x_made = operands.x_made;
  product.w = operands.w;
  product.w_transposed = operands.w_transposed;
  product.compute = operands.compute;
  const int64_t cols = product.w_transposed ? product.w.cols() : product.w.rows();
  product.y = {sums, DType::kF32, product.x.rows, cols, true};
  *planes = {sums, 1};
  if (product.y.elems() == 0) return Status();
  if (ByInt8(product)) return PlanGemmInt8(product, device, workspace, plan);
  if (product.x.dtype == DType::kF32 ||
      (!product.w.quantised() && product.w.dense.dtype == DType::kF32)) {
    return PlanGemmF32(product, device, workspace, plan);
  }
  if (MayChooseByM(product, device) && SmallMPlanesApply(product, device)) {
    return PlanMatmulSmallMPlanes(product, sums, device, workspace, plan, planes);
  }
  return PlanGemmMmaPlanes(product, sums, device, workspace, plan, planes);
}

Status MakePlan(const MatmulOp& op, const DeviceLimits& device, Workspace* workspace, Plan* plan) {
  GemmMmaOperands operands;
  operands.x = op.x;
  operands.w = op.w;
  operands.bias = op.bias;
  operands.y = op.y;
  operands.compute = op.compute;
  return PlanProduct(operands, device, workspace, plan);
}

Status MakePlan(const MatmulInputGradOp& op, const DeviceLimits& device, Workspace* workspace,
                Plan* plan) {
  GemmMmaOperands operands;
  operands.x = op.dy;
  operands.w = op.w;
  operands.w_transposed = true;
  operands.y = op.dx;
  return PlanProduct(operands, device, workspace, plan);
}

}  // namespace lowrank::cuda
