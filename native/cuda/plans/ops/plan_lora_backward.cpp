/// The plan of loraBackward: any subset of the outputs, without the passes that only others need.
///
///   1. dy      dh (for dx and d_lora_a) and the planes of d_lora_b, d_bias, d_lora_bias: one
///              launch for both, or for the one that is wanted
///   2. reduce  dh if it has planes, d_lora_b, d_bias, d_lora_bias: one launch
///   3. dx      one product, with dh · lora_a in its accumulators; the planes of d_lora_a in the
///              same launches, or by a pass over x before it
///   4. reduce  d_lora_a
///
/// or, if dx's product can compute all of it on its spare warps (a large product on Hopper, r <=
/// 16): the product, which computes dh in its first launch and the planes of both factors in the
/// others, and one reduce. Column sums then have a pass of their own.
#include "native/cuda/plans/ops/plan_lora_parts.h"
#include "native/cuda/plans/products/plan_gemm_wgmma.h"

namespace lowrank::cuda {
namespace {

LoraExpandBackwardOp OverDy(const LoraBackwardOp& op, const TensorView& dh) {
  LoraExpandBackwardOp over_dy;
  over_dy.dy = op.dy;
  over_dy.h = op.h;
  over_dy.lora_b = op.lora_b;
  if (dh.present) over_dy.dh = dh;
  over_dy.d_lora_b = op.d_lora_b;
  over_dy.d_bias = op.d_bias;
  over_dy.accumulate_d_lora_b = op.accumulate_d_lora_b;
  over_dy.accumulate_d_bias = op.accumulate_d_bias;
  over_dy.scaling = op.scaling;
  return over_dy;
}

LoraShrinkBackwardOp OverX(const LoraBackwardOp& op, const TensorView& dh) {
  LoraShrinkBackwardOp over_x;
  over_x.dy = op.dy;
  over_x.w = op.w;
  over_x.dh = dh;
  over_x.x = op.x;
  over_x.lora_a = op.lora_a;
  over_x.dx = op.dx;
  over_x.d_lora_a = op.d_lora_a;
  over_x.accumulate_dx = op.accumulate_dx;
  over_x.accumulate_d_lora_a = op.accumulate_d_lora_a;
  over_x.dropout = op.dropout;
  return over_x;
}

/// dx's product, which computes dh, and the wanted gradients of the factors.
struct BesideProduct {
  GemmMmaOperands product;
  std::vector<WgmmaGrad> grads;

  BesideProduct(const LoraBackwardOp& op, const LoraShrinkBackwardOp& over_x)
      : product(InputGradProduct(over_x)) {
    product.h = static_cast<float*>(over_x.dh.data);
    product.shrink_factor = op.lora_b;
    product.shrink_scaling = op.scaling;
    if (op.d_lora_a.present) grads.push_back({LoraAGradOperands(over_x), {}});
    if (op.d_lora_b.present) grads.push_back({LoraBGradOperands(OverDy(op, over_x.dh)), {}});
  }
};

Status PlanBeside(const LoraBackwardOp& op, const LoraShrinkBackwardOp& over_x,
                  BesideProduct* beside, const DeviceLimits& device, Workspace* workspace,
                  Plan* plan) {
  LoraExpandBackwardOp sums = OverDy(op, TensorView());
  sums.d_lora_b = TensorView();
  LOWRANK_RETURN_IF_ERROR(
      PlanExpandBackward(sums, op.d_lora_bias, op.accumulate_d_lora_bias, device, workspace, plan));
  LOWRANK_RETURN_IF_ERROR(PlanGemmWgmma(beside->product, device, workspace, plan, &beside->grads));
  LoraReduction reduction;
  size_t i = 0;
  if (op.d_lora_a.present) AddLoraAGrad(over_x, beside->grads[i++].planes, &reduction);
  if (op.d_lora_b.present) {
    const LoraGradPlanes& planes = beside->grads[i].planes;
    reduction.Add(planes.planes, planes.plane_elems, planes.splits, op.d_lora_b, op.scaling,
                  op.accumulate_d_lora_b);
  }
  reduction.AppendTo(plan);
  return Status();
}

}  // namespace

Status MakePlan(const LoraBackwardOp& op, const DeviceLimits& device, Workspace* workspace,
                Plan* plan) {
  const int64_t M = op.dy.rows;
  const int64_t r = op.lora_a.rows;
  TensorView dh{nullptr, DType::kF32, M, r, false};
  if ((op.dx.present || op.d_lora_a.present) && M * r > 0) {
    dh.data = workspace->Take<float>(M * r);
    dh.present = true;
  }
  const LoraShrinkBackwardOp over_x = OverX(op, dh);
  if (op.dx.present && dh.present) {
    BesideProduct beside(op, over_x);
    if (ProductHidesGrads(beside.product, beside.grads, device)) {
      return PlanBeside(op, over_x, &beside, device, workspace, plan);
    }
  }
  LOWRANK_RETURN_IF_ERROR(PlanExpandBackward(OverDy(op, dh), op.d_lora_bias,
                                             op.accumulate_d_lora_bias, device, workspace, plan));
  return MakePlan(over_x, device, workspace, plan);
}

}  // namespace lowrank::cuda
