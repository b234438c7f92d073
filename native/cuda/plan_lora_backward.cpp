/// The plan of loraBackward: any subset of the outputs, and no pass for one that is not wanted.
///
///   1. dy      dh (for dx and d_lora_a) and the planes of d_lora_b, d_bias, d_lora_bias: one
///   launch
///              for both, or the one that is wanted
///   2. reduce  dh where it has planes, d_lora_b, d_bias, d_lora_bias: one launch
///   3. x       the planes of d_lora_a, and their reduce
///   4. dx      one product, dh · lora_a in its accumulators
#include "native/cuda/plan_lora_parts.h"

namespace lowrank::cuda {

Status MakePlan(const LoraBackwardOp& op, const DeviceLimits& device, Workspace* workspace,
                Plan* plan) {
  const int64_t M = op.dy.rows;
  const int64_t r = op.lora_a.rows;
  TensorView dh{nullptr, DType::kF32, M, r, false};
  if ((op.dx.present || op.d_lora_a.present) && M * r > 0) {
    dh.data = workspace->Take<float>(M * r);
    dh.present = true;
  }

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
  LOWRANK_RETURN_IF_ERROR(PlanExpandBackward(over_dy, op.d_lora_bias, op.accumulate_d_lora_bias,
                                             device, workspace, plan));

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
  return MakePlan(over_x, device, workspace, plan);
}

}  // namespace lowrank::cuda
