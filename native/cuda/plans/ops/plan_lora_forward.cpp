/// The fused LoRA forward: the base product with h · lora_bᵀ in its accumulators. h = (gate ⊙ x) ·
/// lora_aᵀ is computed in the same launch if the product's kernel can (plan_gemm_wgmma.h), else by
/// a launch before it, which reads x once more (2 · M · K bytes against the product's 2 · M · N · K
/// operations) and leaves it in L2 if it fits.
#include "native/cuda/plans/products/plan_gemm_mma.h"

namespace lowrank::cuda {

Status MakePlan(const LoraForwardOp& op, const DeviceLimits& device, Workspace* workspace,
                Plan* plan) {
  GemmMmaOperands operands;
  operands.x = op.x;
  operands.w = op.w;
  operands.bias = op.bias;
  operands.h = static_cast<float*>(op.h.data);
  operands.shrink_factor = op.lora_a;
  operands.dropout = op.dropout;
  operands.lora_factor = op.lora_b;
  operands.lora_bias = op.lora_bias;
  operands.scaling = op.scaling;
  operands.y = op.y;
  operands.compute = op.compute;
  return PlanProduct(operands, device, workspace, plan);
}

namespace {

Status PlanPart(const LoraForwardOp& part, const DeviceLimits& device, Workspace* workspace,
                Plan* plan) {
  return part.lora_a.present ? MakePlan(part, device, workspace, plan)
                             : MakePlan(BaseOf(part), device, workspace, plan);
}

}  // namespace

/// One part after the other.
Status MakePlan(const LoraForwardManyOp& op, const DeviceLimits& device, Workspace* workspace,
                Plan* plan) {
  for (int64_t i = 0; i < op.count; ++i) {
    LOWRANK_RETURN_IF_ERROR(PlanPart(op.parts[i], device, workspace, plan));
  }
  return Status();
}

/// Both products and the gate's launch. Values that are not kept go to the workspace and not to y,
/// because that launch loads by ld.global.nc, which must not read memory that it also writes.
Status MakePlan(const LoraForwardSwigluOp& op, const DeviceLimits& device, Workspace* workspace,
                Plan* plan) {
  LoraForwardOp parts[] = {op.gate, op.up};
  for (LoraForwardOp& part : parts) {
    if (!part.y.present) {
      part.y = op.y;
      part.y.data = workspace->Take<uint8_t>(static_cast<int64_t>(op.y.bytes()));
    }
    LOWRANK_RETURN_IF_ERROR(PlanPart(part, device, workspace, plan));
  }
  return MakePlan(GatedActivationOp{parts[0].y, parts[1].y, op.y}, device, workspace, plan);
}

}  // namespace lowrank::cuda
