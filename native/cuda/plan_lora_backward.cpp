/// The plan of loraBackward: any subset of the outputs, and no pass for one that is not wanted.
///
///   1. dy      dh (for dx and d_lora_a) and the planes of d_lora_b, d_bias, d_lora_bias: one
///   launch
///              for both, or the one that is wanted
///   2. reduce  dh where it has planes, d_lora_b, d_bias, d_lora_bias: one launch
///   3. x       the planes of d_lora_a, and their reduce
///   4. dx      one product, dh · lora_a in its accumulators
#include "native/cuda/plan_gemm_mma.h"
#include "native/cuda/plan_lora_grad.h"
#include "native/cuda/plan_lora_shrink.h"

namespace lowrank::cuda {

Status MakePlan(const LoraBackwardOp& op, const DeviceLimits& device, Workspace* workspace,
                Plan* plan) {
  const int64_t M = op.dy.rows;
  const int64_t r = op.lora_a.rows;
  const bool needs_dh = (op.dx.present || op.d_lora_a.present) && M * r > 0;
  const bool needs_sums = op.d_bias.present || op.d_lora_bias.present;
  float* dh = needs_dh ? workspace->Take<float>(M * r) : nullptr;

  LoraReduction reduction;
  LoraGradPlanes planes;
  const LoraGradOperands over_dy{op.dy,
                                 static_cast<const float*>(op.h.data),
                                 op.d_lora_b.present ? r : 0,
                                 false,
                                 needs_sums,
                                 DropoutSpec()};
  const bool needs_gradients = over_dy.r > 0 || needs_sums;
  if (needs_dh && needs_gradients && op.dy.elems() > 0) {
    planes = PlanLoraDy(over_dy, op.lora_b, op.scaling, dh, device, workspace, plan, &reduction);
  } else {
    if (needs_dh) {
      LOWRANK_RETURN_IF_ERROR(PlanLoraShrink(op.dy, op.lora_b, ShrinkFactor::kContractionMajor,
                                             DropoutSpec(), op.scaling, dh, device, workspace,
                                             plan));
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
  if (op.d_lora_bias.present) {
    reduction.Add(planes.sums, planes.sums_plane_elems, planes.splits, op.d_lora_bias, op.scaling,
                  op.accumulate_d_lora_bias);
  }
  reduction.AppendTo(plan);

  if (op.d_lora_a.present) {
    const LoraGradOperands over_x{op.x, dh, r, true, false, op.dropout};
    const LoraGradPlanes x_planes =
        needs_dh ? PlanLoraGrad(over_x, device, workspace, plan) : LoraGradPlanes();
    LoraReduction x_reduction;
    x_reduction.Add(x_planes.planes, x_planes.plane_elems, x_planes.splits, op.d_lora_a,
                    LoraKeptScale(op.dropout), op.accumulate_d_lora_a);
    x_reduction.AppendTo(plan);
  }
  if (!op.dx.present) return Status();
  return PlanLoraInputGrad(op, dh, device, workspace, plan);
}

}  // namespace lowrank::cuda
