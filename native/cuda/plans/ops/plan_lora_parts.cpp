/// Plans of the halves of a LoRA layer on either side of h, and of the gradient of a dense weight.
#include "native/cuda/plans/ops/plan_lora_parts.h"

#include "native/cuda/plans/factors/plan_lora_grad.h"
#include "native/cuda/plans/factors/plan_lora_shrink.h"
#include "native/cuda/plans/products/plan_gemm_wgmma.h"

namespace lowrank::cuda {

Status MakePlan(const LoraShrinkOp& op, const DeviceLimits& device, Workspace* workspace,
                Plan* plan) {
  return PlanLoraShrink(op.x, op.lora_a, ShrinkFactor::kRankMajor, op.dropout, op.scaling,
                        static_cast<float*>(op.h.data), false, device, workspace, plan);
}

Status MakePlan(const LoraExpandOp& op, const DeviceLimits& device, Workspace* workspace,
                Plan* plan) {
  GemmMmaOperands operands;
  operands.x = op.x;
  operands.w = op.w;
  operands.bias = op.bias;
  operands.h = static_cast<float*>(op.h.data);
  operands.lora_factor = op.lora_b;
  operands.scaling = op.scaling;
  operands.y = op.y;
  operands.compute = op.compute;
  LOWRANK_RETURN_IF_ERROR(PlanProduct(operands, device, workspace, plan));
  return op.norms.present ? MakePlan(op.Norm(), device, workspace, plan) : Status();
}

LoraGradOperands LoraBGradOperands(const LoraExpandBackwardOp& op) {
  LoraGradOperands over_dy;
  over_dy.x = op.dy;
  over_dy.factor = op.h.data;
  over_dy.r = op.d_lora_b.present ? op.lora_b.cols : 0;
  return over_dy;
}

/// One launch over dy for the wanted parts of dh and of the sums over m, and one that adds the
/// planes of either.
Status PlanExpandBackward(const LoraExpandBackwardOp& op, const TensorView& d_lora_bias,
                          bool accumulate_d_lora_bias, const DeviceLimits& device,
                          Workspace* workspace, Plan* plan) {
  const bool needs_dh = op.dh.elems() > 0;
  const bool needs_sums = op.d_bias.present || d_lora_bias.present;
  float* const dh = static_cast<float*>(op.dh.data);

  LoraReduction reduction;
  LoraGradPlanes planes;
  LoraGradOperands over_dy = LoraBGradOperands(op);
  over_dy.sums = needs_sums;
  const bool needs_gradients = over_dy.r > 0 || needs_sums;
  if (needs_dh && needs_gradients && op.dy.elems() > 0) {
    planes = PlanLoraDy(over_dy, op.lora_b, op.scaling, dh, op.accumulate_dh, device, workspace,
                        plan, &reduction);
  } else {
    if (needs_dh) {
      LOWRANK_RETURN_IF_ERROR(PlanLoraShrink(op.dy, op.lora_b, ShrinkFactor::kContractionMajor,
                                             DropoutSpec(), op.scaling, dh, op.accumulate_dh,
                                             device, workspace, plan));
    }
    if (needs_gradients) planes = PlanLoraGrad(over_dy, device, workspace, plan);
  }
  if (op.d_lora_b.present) {
    reduction.Add(planes.planes, planes.plane_elems, planes.splits, op.d_lora_b, op.scaling,
                  op.accumulate_d_lora_b);
  }
  if (op.d_bias.present) {
    reduction.Add(planes.sums, planes.sums_plane_elems, planes.splits, op.d_bias, 1,
                  op.accumulate_d_bias);
  }
  if (d_lora_bias.present) {
    reduction.Add(planes.sums, planes.sums_plane_elems, planes.splits, d_lora_bias, op.scaling,
                  accumulate_d_lora_bias);
  }
  reduction.AppendTo(plan);
  return Status();
}

Status MakePlan(const LoraExpandBackwardOp& op, const DeviceLimits& device, Workspace* workspace,
                Plan* plan) {
  return PlanExpandBackward(op, TensorView(), false, device, workspace, plan);
}

GemmMmaOperands InputGradProduct(const LoraShrinkBackwardOp& op) {
  GemmMmaOperands operands;
  operands.x = op.dy;
  operands.w = op.w;
  operands.w_transposed = true;
  operands.h = op.dh.elems() > 0 ? static_cast<float*>(op.dh.data) : nullptr;
  operands.lora_factor = op.lora_a;
  operands.scaling = op.scaling;
  operands.dropout = op.dropout;
  operands.accumulate = op.accumulate_dx;
  operands.y = op.dx;
  return operands;
}

LoraGradOperands LoraAGradOperands(const LoraShrinkBackwardOp& op) {
  LoraGradOperands over_x;
  over_x.x = op.x;
  over_x.factor = op.dh.data;
  over_x.r = op.lora_a.rows;
  over_x.rank_major = true;
  over_x.dropout = op.dropout;
  return over_x;
}

void AddLoraAGrad(const LoraShrinkBackwardOp& op, const LoraGradPlanes& planes,
                  LoraReduction* reduction) {
  reduction->Add(planes.planes, planes.plane_elems, planes.splits, op.d_lora_a,
                 op.scaling * LoraKeptScale(op.dropout), op.accumulate_d_lora_a);
}

/// One product for dx; the planes of d_lora_a in it, or by one pass over x, and their reduce.
Status MakePlan(const LoraShrinkBackwardOp& op, const DeviceLimits& device, Workspace* workspace,
                Plan* plan) {
  const bool with_dh = op.dh.elems() > 0;
  const GemmMmaOperands product = InputGradProduct(op);
  LoraReduction reduction;
  if (op.d_lora_a.present && with_dh && op.dx.present) {
    std::vector<WgmmaGrad> grads = {{LoraAGradOperands(op), {}}};
    if (ProductHidesGrads(product, grads, device)) {
      LOWRANK_RETURN_IF_ERROR(PlanGemmWgmma(product, device, workspace, plan, &grads));
      AddLoraAGrad(op, grads[0].planes, &reduction);
      reduction.AppendTo(plan);
      return Status();
    }
  }
  if (op.d_lora_a.present) {
    const LoraGradPlanes planes =
        with_dh ? PlanLoraGrad(LoraAGradOperands(op), device, workspace, plan) : LoraGradPlanes();
    AddLoraAGrad(op, planes, &reduction);
    reduction.AppendTo(plan);
  }
  return op.dx.present ? PlanProduct(product, device, workspace, plan) : Status();
}

/// d_lora_a's pass, with dy in place of dh: its columns are the ranks, in tiles side by side.
Status MakePlan(const WeightGradOp& op, const DeviceLimits& device, Workspace* workspace,
                Plan* plan) {
  if (op.dw.elems() == 0) return Status();
  LoraGradOperands over_x;
  over_x.x = op.x;
  over_x.factor = op.dy.data;
  over_x.factor_dtype = op.dy.dtype;
  over_x.r = op.dy.cols;
  over_x.rank_major = true;
  const LoraGradPlanes planes = PlanLoraGrad(over_x, device, workspace, plan);
  LoraReduction reduction;
  reduction.Add(planes.planes, planes.plane_elems, planes.splits, op.dw, 1, op.accumulate);
  reduction.AppendTo(plan);
  return Status();
}

}  // namespace lowrank::cuda
