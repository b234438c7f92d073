/// Several layers of one x, the halves of an adapter, gradients and norms of weights.
#include <vector>

#include "native/c_api/op_fields.h"
#include "native/c_api/operands.h"

using namespace lowrank;
using namespace lowrank::c_api;

namespace {

/// A projection of the caller as a part of LoraForwardManyOp.
Result PartOf(const lowrank_projection* given, const TensorView& x, bool needs_y,
              Operands* operands, LoraForwardOp* part) {
  lowrank_projection own;
  const Result read = ReadArgs(operands->op(), given, &own);
  if (read.code != LOWRANK_OK) return read;
  if ((own.flags & ~uint32_t{LOWRANK_COMPUTE_INT8}) != 0) {
    return Refuse(Code::kValue, operands->op(), "projection.flags", "0 or LOWRANK_COMPUTE_INT8",
                  std::to_string(own.flags));
  }
  part->x = x;
  part->w = operands->Weight(own.w, "w");
  part->bias = operands->OptionalRow(own.bias, "bias");
  part->compute = (own.flags & LOWRANK_COMPUTE_INT8) != 0 ? Compute::kInt8 : Compute::kExact;
  part->y = needs_y ? operands->In(own.y, "y") : operands->OptionalIn(own.y, "y");
  if (own.lora_a == nullptr) {
    const bool alone = own.lora_b == nullptr && own.lora_bias == nullptr && own.h == nullptr &&
                       own.dropout_mask == nullptr && own.dropout == 0;
    if (alone) return Status();
    return Refuse(Code::kValue, operands->op(), "loraB, loraBias, h and dropout",
                  "left out without loraA", "some of them");
  }
  part->lora_a = operands->In(own.lora_a, "loraA");
  part->lora_b = operands->In(own.lora_b, "loraB");
  part->lora_bias = operands->OptionalRow(own.lora_bias, "loraBias");
  part->dropout = DropoutOf(own, operands);
  part->scaling = own.scaling;
  part->h = operands->In(own.h, "h");
  return Status();
}

}  // namespace

int32_t lowrank_lora_forward_many(const lowrank_lora_forward_many_args* args) {
  constexpr const char* kOp = LoraForwardManyOp::kName;
  return Call(kOp, args, [&](const lowrank_lora_forward_many_args& given) -> Result {
    Operands operands(kOp, given.device, given.flags, 0, given.stream);
    if (given.count < 1 || given.count > LoraForwardManyOp::kMost) {
      return Refuse(Code::kValue, kOp, "count", "1 to " + std::to_string(LoraForwardManyOp::kMost),
                    std::to_string(given.count));
    }
    if (given.projections == nullptr) return RefuseNull(kOp, "projections", "pointers");
    const TensorView x = operands.In(given.x, "x");
    std::vector<LoraForwardOp> parts(static_cast<size_t>(given.count));
    for (size_t i = 0; i < parts.size(); ++i) {
      const Result part = PartOf(given.projections[i], x, true, &operands, &parts[i]);
      if (part.code != LOWRANK_OK) return part;
    }
    LoraForwardManyOp op;
    op.parts = parts.data();
    op.count = given.count;
    return operands.Run(op);
  });
}

int32_t lowrank_lora_forward_swiglu(const lowrank_lora_forward_swiglu_args* args) {
  constexpr const char* kOp = LoraForwardSwigluOp::kName;
  return Call(kOp, args, [&](const lowrank_lora_forward_swiglu_args& given) -> Result {
    Operands operands(kOp, given.device, given.flags, 0, given.stream);
    LoraForwardSwigluOp op;
    const TensorView x = operands.In(given.x, "x");
    const Result gate = PartOf(given.gate, x, false, &operands, &op.gate);
    if (gate.code != LOWRANK_OK) return gate;
    const Result up = PartOf(given.up, x, false, &operands, &op.up);
    if (up.code != LOWRANK_OK) return up;
    op.y = operands.In(given.y, "y");
    return operands.Run(op);
  });
}

int32_t lowrank_lora_shrink(const lowrank_lora_shrink_args* args) {
  constexpr const char* kOp = LoraShrinkOp::kName;
  return Call(kOp, args, [&](const lowrank_lora_shrink_args& given) -> Result {
    Operands operands(kOp, given.device, given.flags, 0, given.stream);
    operands.CheckReserved(given.reserved);
    LoraShrinkOp op;
    op.x = operands.In(given.x, "x");
    op.lora_a = operands.In(given.lora_a, "loraA");
    op.h = operands.In(given.h, "h");
    op.scaling = given.scaling;
    op.dropout = DropoutOf(given, &operands);
    return operands.Run(op);
  });
}

int32_t lowrank_lora_shrink_backward(const lowrank_lora_shrink_backward_args* args) {
  constexpr const char* kOp = LoraShrinkBackwardOp::kName;
  constexpr uint32_t kFlags = LOWRANK_ADD_TO_DX | LOWRANK_ADD_TO_D_LORA_A;
  return Call(kOp, args, [&](const lowrank_lora_shrink_backward_args& given) -> Result {
    Operands operands(kOp, given.device, given.flags, kFlags, given.stream);
    operands.CheckReserved(given.reserved);
    LoraShrinkBackwardOp op;
    op.dy = operands.OptionalIn(given.dy, "dy");
    op.w = operands.OptionalWeight(given.w, "w");
    op.dh = operands.In(given.dh, "dh");
    op.x = operands.OptionalIn(given.x, "x");
    op.lora_a = operands.In(given.lora_a, "loraA");
    op.dx = operands.OptionalIn(given.dx, "dx");
    op.d_lora_a = operands.OptionalIn(given.d_lora_a, "dLoraA");
    op.accumulate_dx = operands.Flag(LOWRANK_ADD_TO_DX);
    op.accumulate_d_lora_a = operands.Flag(LOWRANK_ADD_TO_D_LORA_A);
    op.scaling = given.scaling;
    op.dropout = DropoutOf(given, &operands);
    return operands.Run(op);
  });
}

int32_t lowrank_lora_expand(const lowrank_lora_expand_args* args) {
  constexpr const char* kOp = LoraExpandOp::kName;
  return Call(kOp, args, [&](const lowrank_lora_expand_args& given) -> Result {
    Operands operands(kOp, given.device, given.flags, LOWRANK_COMPUTE_INT8, given.stream);
    operands.CheckReserved(given.reserved);
    LoraExpandOp op;
    op.x = operands.In(given.x, "x");
    op.w = operands.Weight(given.w, "w");
    op.bias = operands.OptionalRow(given.bias, "bias");
    op.h = operands.In(given.h, "h");
    op.lora_b = operands.In(given.lora_b, "loraB");
    op.y = operands.In(given.y, "y");
    op.scaling = given.scaling;
    op.compute = ComputeOf(operands);
    return operands.Run(op);
  });
}

int32_t lowrank_lora_expand_backward(const lowrank_lora_expand_backward_args* args) {
  constexpr const char* kOp = LoraExpandBackwardOp::kName;
  constexpr uint32_t kFlags = LOWRANK_ADD_TO_DH | LOWRANK_ADD_TO_D_LORA_B | LOWRANK_ADD_TO_D_BIAS;
  return Call(kOp, args, [&](const lowrank_lora_expand_backward_args& given) -> Result {
    Operands operands(kOp, given.device, given.flags, kFlags, given.stream);
    operands.CheckReserved(given.reserved);
    LoraExpandBackwardOp op;
    op.dy = operands.In(given.dy, "dy");
    op.h = operands.OptionalIn(given.h, "h");
    op.lora_b = operands.In(given.lora_b, "loraB");
    op.dh = operands.OptionalIn(given.dh, "dh");
    op.d_lora_b = operands.OptionalIn(given.d_lora_b, "dLoraB");
    op.d_bias = operands.OptionalRow(given.d_bias, "dBias");
    op.accumulate_dh = operands.Flag(LOWRANK_ADD_TO_DH);
    op.accumulate_d_lora_b = operands.Flag(LOWRANK_ADD_TO_D_LORA_B);
    op.accumulate_d_bias = operands.Flag(LOWRANK_ADD_TO_D_BIAS);
    op.scaling = given.scaling;
    return operands.Run(op);
  });
}

int32_t lowrank_weight_grad(const lowrank_weight_grad_args* args) {
  constexpr const char* kOp = WeightGradOp::kName;
  return Call(kOp, args, [&](const lowrank_weight_grad_args& given) -> Result {
    Operands operands(kOp, given.device, given.flags, LOWRANK_ADD_TO_DW, given.stream);
    WeightGradOp op;
    op.dy = operands.In(given.dy, "dy");
    op.x = operands.In(given.x, "x");
    op.dw = operands.In(given.dw, "dw");
    op.accumulate = operands.Flag(LOWRANK_ADD_TO_DW);
    return operands.Run(op);
  });
}

int32_t lowrank_weight_norms(const lowrank_weight_norms_args* args) {
  constexpr const char* kOp = WeightNormsOp::kName;
  return Call(kOp, args, [&](const lowrank_weight_norms_args& given) -> Result {
    Operands operands(kOp, given.device, given.flags, 0, given.stream);
    WeightNormsOp op;
    op.w = operands.Weight(given.w, "w");
    op.norms = operands.Row(given.norms, "norms");
    return operands.Run(op);
  });
}

int32_t lowrank_factored_norm(const lowrank_factored_norm_args* args) {
  constexpr const char* kOp = FactoredNormOp::kName;
  return Call(kOp, args, [&](const lowrank_factored_norm_args& given) -> Result {
    Operands operands(kOp, given.device, given.flags, 0, given.stream);
    operands.CheckReserved(given.reserved);
    FactoredNormOp op;
    op.w = operands.Weight(given.w, "w");
    op.lora_a = operands.In(given.lora_a, "loraA");
    op.lora_b = operands.In(given.lora_b, "loraB");
    op.squares = operands.Row(given.squares, "squares");
    op.norms = operands.Row(given.norms, "norms");
    op.scaling = given.scaling;
    return operands.Run(op);
  });
}
