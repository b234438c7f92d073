/// The fused LoRA forward: the adapter's view of x first, h = (gate ⊙ x) · lora_aᵀ, then the base
/// product with h · lora_bᵀ in its accumulators. Two launches, of which the first reads x once
/// (2 · M · K bytes against the product's 2 · M · N · K operations) and leaves it in L2 where it
/// fits.
#include "native/cuda/plan_gemm_mma.h"
#include "native/cuda/plan_lora_shrink.h"

namespace lowrank::cuda {

Status MakePlan(const LoraForwardOp& op, const DeviceLimits& device, Workspace* workspace,
                Plan* plan) {
  float* h = static_cast<float*>(op.h.data);
  LOWRANK_RETURN_IF_ERROR(PlanLoraShrink(op.x, op.lora_a, ShrinkFactor::kRankMajor, op.dropout,
                                         1.0f, h, device, workspace, plan));
  GemmMmaOperands operands;
  operands.x = op.x;
  operands.w = op.w;
  operands.bias = op.bias;
  operands.h = h;
  operands.lora_factor = op.lora_b;
  operands.lora_bias = op.lora_bias;
  operands.scaling = op.scaling;
  operands.y = op.y;
  return PlanProduct(operands, device, workspace, plan);
}

}  // namespace lowrank::cuda
