/// Steps of an optimiser over many parameters, and the norm of their gradients.
#include <limits>
#include <vector>

#include "native/c_api/operands.h"

using namespace lowrank;
using namespace lowrank::c_api;

namespace {

// Far beyond any model: a wild count reads no foreign memory.
constexpr int64_t kMostTensors = int64_t{1} << 24;

Status CheckList(const char* op, const char* operand, const void* list, int64_t count) {
  if (count < 1 || count > kMostTensors) {
    return Refuse(Code::kValue, op, "count", "from 1 to " + std::to_string(kMostTensors),
                  std::to_string(count));
  }
  return list == nullptr ? RefuseNull(op, operand, "pointers") : Status();
}

}  // namespace

int32_t lowrank_global_norm(const lowrank_global_norm_args* args) {
  constexpr const char* kOp = GlobalNormOp::kName;
  return Call(kOp, args, [&](const lowrank_global_norm_args& given) -> Result {
    Operands operands(kOp, given.device, given.flags, 0, given.stream);
    LOWRANK_RETURN_IF_ERROR(CheckList(kOp, "tensors", given.tensors, given.count));
    std::vector<GradientPart> parts(static_cast<size_t>(given.count));
    GlobalNormOp op;
    for (size_t i = 0; i < parts.size(); ++i) {
      parts[i].g = operands.In(given.tensors[i], "tensors");
      parts[i].first_piece = op.pieces;
      op.pieces += OptimizerPieces(parts[i].g.elems());
    }
    op.parts = parts.data();
    op.count = given.count;
    op.norm = operands.In(given.norm, "norm");
    return operands.Run(op);
  });
}

int32_t lowrank_adamw_step(const lowrank_adamw_step_args* args) {
  constexpr const char* kOp = "adamwStep";
  return Call(kOp, args, [&](const lowrank_adamw_step_args& given) -> Result {
    Operands operands(kOp, given.device, given.flags, 0, given.stream);
    operands.CheckReserved(given.reserved);
    LOWRANK_RETURN_IF_ERROR(CheckList(kOp, "parameters", given.parameters, given.count));
    std::vector<ParameterPart> parts(static_cast<size_t>(given.count));
    OptimizerStepOp op;
    op.kind = Optimizer::kAdamW;
    for (size_t i = 0; i < parts.size(); ++i) {
      lowrank_parameter own;
      const Result read = ReadArgs(kOp, given.parameters[i], &own);
      if (read.code != LOWRANK_OK) return read;
      ParameterPart& part = parts[i];
      part.p = operands.In(own.p, "p");
      part.g = operands.In(own.g, "g");
      part.states[0] = operands.In(own.m, "m");
      part.states[1] = operands.In(own.v, "v");
      part.lr_scale = own.lr_scale;
      part.weight_decay = own.weight_decay;
      part.first_piece = op.pieces;
      op.pieces += OptimizerPieces(part.p.elems());
    }
    op.parts = parts.data();
    op.count = given.count;
    op.settings.beta1 = given.beta1;
    op.settings.beta2 = given.beta2;
    op.settings.eps = given.eps;
    op.settings.max_norm =
        given.max_norm == 0 ? std::numeric_limits<float>::infinity() : given.max_norm;
    op.lr = given.lr;
    op.step = given.step;
    op.norm = operands.OptionalIn(given.norm, "norm");
    return operands.Run(op);
  });
}
