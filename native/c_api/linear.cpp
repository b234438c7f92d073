/// One function an op: a struct of the caller to a descriptor.
#include "native/c_api/op_fields.h"
#include "native/c_api/operands.h"

using namespace lowrank;
using namespace lowrank::c_api;

int32_t lowrank_matmul(const lowrank_matmul_args* args) {
  constexpr const char* kOp = MatmulOp::kName;
  return Call(kOp, args, [&](const lowrank_matmul_args& given) -> Result {
    Operands operands(kOp, given.device, given.flags, LOWRANK_COMPUTE_INT8, given.stream);
    MatmulOp op;
    op.x = operands.In(given.x, "x");
    op.w = operands.Weight(given.w, "w");
    op.bias = operands.OptionalRow(given.bias, "bias");
    op.y = operands.In(given.y, "y");
    op.compute = ComputeOf(operands);
    return operands.Run(op);
  });
}

int32_t lowrank_matmul_input_grad(const lowrank_matmul_input_grad_args* args) {
  constexpr const char* kOp = MatmulInputGradOp::kName;
  return Call(kOp, args, [&](const lowrank_matmul_input_grad_args& given) -> Result {
    Operands operands(kOp, given.device, given.flags, 0, given.stream);
    MatmulInputGradOp op;
    op.dy = operands.In(given.dy, "dy");
    op.w = operands.Weight(given.w, "w");
    op.dx = operands.In(given.dx, "dx");
    return operands.Run(op);
  });
}

int32_t lowrank_lora_forward(const lowrank_lora_forward_args* args) {
  constexpr const char* kOp = LoraForwardOp::kName;
  return Call(kOp, args, [&](const lowrank_lora_forward_args& given) -> Result {
    Operands operands(kOp, given.device, given.flags, LOWRANK_COMPUTE_INT8, given.stream);
    operands.CheckReserved(given.reserved);
    LoraForwardOp op;
    op.x = operands.In(given.x, "x");
    op.w = operands.Weight(given.w, "w");
    op.bias = operands.OptionalRow(given.bias, "bias");
    op.lora_a = operands.In(given.lora_a, "loraA");
    op.lora_b = operands.In(given.lora_b, "loraB");
    op.lora_bias = operands.OptionalRow(given.lora_bias, "loraBias");
    op.dropout = DropoutOf(given, &operands);
    op.scaling = given.scaling;
    op.h = operands.In(given.h, "h");
    op.y = operands.In(given.y, "y");
    op.compute = ComputeOf(operands);
    return operands.Run(op);
  });
}

int32_t lowrank_lora_backward(const lowrank_lora_backward_args* args) {
  constexpr const char* kOp = LoraBackwardOp::kName;
  constexpr uint32_t kFlags = LOWRANK_ADD_TO_DX | LOWRANK_ADD_TO_D_LORA_A |
                              LOWRANK_ADD_TO_D_LORA_B | LOWRANK_ADD_TO_D_BIAS |
                              LOWRANK_ADD_TO_D_LORA_BIAS;
  return Call(kOp, args, [&](const lowrank_lora_backward_args& given) -> Result {
    Operands operands(kOp, given.device, given.flags, kFlags, given.stream);
    operands.CheckReserved(given.reserved);
    LoraBackwardOp op;
    op.dy = operands.In(given.dy, "dy");
    op.x = operands.OptionalIn(given.x, "x");
    op.w = operands.OptionalWeight(given.w, "w");
    op.lora_a = operands.In(given.lora_a, "loraA");
    op.lora_b = operands.In(given.lora_b, "loraB");
    op.h = operands.OptionalIn(given.h, "h");
    op.dropout = DropoutOf(given, &operands);
    op.scaling = given.scaling;
    op.dx = operands.OptionalIn(given.dx, "dx");
    op.d_lora_a = operands.OptionalIn(given.d_lora_a, "dLoraA");
    op.d_lora_b = operands.OptionalIn(given.d_lora_b, "dLoraB");
    op.d_bias = operands.OptionalRow(given.d_bias, "dBias");
    op.d_lora_bias = operands.OptionalRow(given.d_lora_bias, "dLoraBias");
    op.accumulate_dx = operands.Flag(LOWRANK_ADD_TO_DX);
    op.accumulate_d_lora_a = operands.Flag(LOWRANK_ADD_TO_D_LORA_A);
    op.accumulate_d_lora_b = operands.Flag(LOWRANK_ADD_TO_D_LORA_B);
    op.accumulate_d_bias = operands.Flag(LOWRANK_ADD_TO_D_BIAS);
    op.accumulate_d_lora_bias = operands.Flag(LOWRANK_ADD_TO_D_LORA_BIAS);
    return operands.Run(op);
  });
}
