/// Element by element, sums, random numbers, and products of blocks.
#include <cstring>
#include <limits>

#include "native/c_api/operands.h"
#include "native/core/ops/op_checks.h"

using namespace lowrank;
using namespace lowrank::c_api;

namespace {

/// The function of that name in a table of {name, function}.
template <typename Function, size_t kCount>
Function NamedFunction(const char* name, const std::pair<const char*, Function> (&table)[kCount],
                       Operands* operands) {
  std::string known;
  for (const auto& [each, function] : table) {
    if (name != nullptr && std::strcmp(name, each) == 0) return function;
    known += (known.empty() ? "" : ", ") + std::string(each);
  }
  const std::string given =
      name == nullptr ? "NULL" : "\"" + std::string(name).substr(0, 40) + "\"";
  operands->Check(Refuse(name == nullptr ? Code::kType : Code::kValue, operands->op(), "function",
                         "one of " + known, given));
  return table[0].second;
}

MapFunction MapNamed(const char* name, Operands* operands) {
  static constexpr std::pair<const char*, MapFunction> kTable[] = {
#define LOWRANK_MAP_ROW(id, name) {name, MapFunction::id},
      LOWRANK_FOR_EACH_MAP_FUNCTION(LOWRANK_MAP_ROW)
#undef LOWRANK_MAP_ROW
  };
  return NamedFunction(name, kTable, operands);
}

GateFunction GateNamed(const char* name, Operands* operands) {
  static constexpr std::pair<const char*, GateFunction> kTable[] = {
#define LOWRANK_GATE_ROW(id, name) {name, GateFunction::id},
      LOWRANK_FOR_EACH_GATE_FUNCTION(LOWRANK_GATE_ROW)
#undef LOWRANK_GATE_ROW
  };
  return NamedFunction(name, kTable, operands);
}

/// A tensor of three dimensions, folded; `blocks` is its dimension number `at`.
TensorView Blocks(const DLTensor* tensor, const char* operand, int at, int64_t* blocks,
                  Operands* operands) {
  const TensorView view = operands->In(tensor, operand);
  if (!view.present) return view;
  if (tensor->ndim != 3) {
    operands->Check(Refuse(Code::kShape, operands->op(), operand, "of 3 dimensions",
                           std::to_string(tensor->ndim)));
    return view;
  }
  const int64_t found = tensor->shape[at];
  if (*blocks >= 0 && *blocks != found) {
    operands->Check(Refuse(Code::kShape, operands->op(), operand,
                           "of G = " + std::to_string(*blocks) + " blocks", std::to_string(found)));
  }
  *blocks = found;
  return view;
}

}  // namespace

int32_t lowrank_cast(const lowrank_cast_args* args) {
  constexpr const char* kOp = CastOp::kName;
  return Call(kOp, args, [&](const lowrank_cast_args& given) -> Result {
    Operands operands(kOp, given.device, given.flags, 0, given.stream);
    CastOp op;
    op.src = operands.In(given.x, "x");
    op.dst = operands.In(given.y, "y");
    return operands.Run(op);
  });
}

int32_t lowrank_multiply_add(const lowrank_multiply_add_args* args) {
  constexpr const char* kOp = MultiplyAddOp::kName;
  return Call(kOp, args, [&](const lowrank_multiply_add_args& given) -> Result {
    Operands operands(kOp, given.device, given.flags, 0, given.stream);
    MultiplyAddOp op;
    op.a = operands.In(given.a, "a");
    op.b = operands.OptionalIn(given.b, "b");
    op.c = operands.OptionalIn(given.c, "c");
    op.y = operands.In(given.y, "y");
    op.alpha = given.alpha;
    op.beta = given.beta;
    return operands.Run(op);
  });
}

int32_t lowrank_map(const lowrank_map_args* args) {
  constexpr const char* kOp = MapOp::kName;
  return Call(kOp, args, [&](const lowrank_map_args& given) -> Result {
    Operands operands(kOp, given.device, given.flags, 0, given.stream);
    MapOp op;
    op.function = MapNamed(given.function, &operands);
    op.a = operands.In(given.x, "x");
    op.y = operands.In(given.y, "y");
    return operands.Run(op);
  });
}

int32_t lowrank_gated_activation(const lowrank_gated_activation_args* args) {
  constexpr const char* kOp = GatedActivationOp::kName;
  return Call(kOp, args, [&](const lowrank_gated_activation_args& given) -> Result {
    Operands operands(kOp, given.device, given.flags, 0, given.stream);
    GatedActivationOp op;
    op.function = GateNamed(given.function, &operands);
    op.gate = operands.In(given.gate, "gate");
    op.up = operands.In(given.up, "up");
    op.y = operands.In(given.y, "y");
    return operands.Run(op);
  });
}

int32_t lowrank_gated_activation_backward(const lowrank_gated_activation_backward_args* args) {
  constexpr const char* kOp = GatedActivationBackwardOp::kName;
  return Call(kOp, args, [&](const lowrank_gated_activation_backward_args& given) -> Result {
    Operands operands(kOp, given.device, given.flags, 0, given.stream);
    GatedActivationBackwardOp op;
    op.function = GateNamed(given.function, &operands);
    op.dy = operands.In(given.dy, "dy");
    op.gate = operands.In(given.gate, "gate");
    op.up = operands.In(given.up, "up");
    op.d_gate = operands.In(given.d_gate, "dGate");
    op.d_up = operands.In(given.d_up, "dUp");
    return operands.Run(op);
  });
}

int32_t lowrank_sum_product(const lowrank_sum_product_args* args) {
  constexpr const char* kOp = SumProductOp::kName;
  return Call(kOp, args, [&](const lowrank_sum_product_args& given) -> Result {
    Operands operands(kOp, given.device, given.flags, 0, given.stream);
    operands.CheckReserved(given.reserved);
    SumProductOp op;
    op.a = operands.In(given.a, "a");
    op.b = operands.OptionalIn(given.b, "b");
    op.out = operands.Row(given.y, "y");
    op.axis = given.axis;
    return operands.Run(op);
  });
}

int32_t lowrank_map_features(const lowrank_map_features_args* args) {
  constexpr const char* kOp = MapFeaturesOp::kName;
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  return Call(kOp, args, [&](const lowrank_map_features_args& given) -> Result {
    Operands operands(kOp, given.device, given.flags, 0, given.stream);
    MapFeaturesOp op;
    op.x = operands.In(given.x, "x");
    const IndexView index = operands.Indices(given.index, "index", op.x.cols, true);
    op.map.index = index.data;
    op.map.entries = index.count;
    op.map.inputs = op.x.cols;
    op.map.outputs = index.count;
    if (given.begin != nullptr) {
      const IndexView begin = operands.Indices(given.begin, "begin", kMost, false);
      if (begin.present && begin.count == 0) {
        return Refuse(Code::kShape, kOp, "begin", "of J + 1 elements", "0");
      }
      op.map.begin = begin.data;
      op.map.outputs = begin.count - 1;
    }
    op.c = operands.OptionalIn(given.c, "c");
    op.y = operands.In(given.y, "y");
    op.alpha = given.alpha;
    op.beta = given.beta;
    LOWRANK_RETURN_IF_ERROR(operands.status());
    LOWRANK_RETURN_IF_ERROR(CheckFeatureMap(kOp, op.map));
    return operands.Run(op);
  });
}

int32_t lowrank_random(const lowrank_random_args* args) {
  constexpr const char* kOp = RandomOp::kName;
  return Call(kOp, args, [&](const lowrank_random_args& given) -> Result {
    Operands operands(kOp, given.device, given.flags, 0, given.stream);
    operands.CheckReserved(given.reserved);
    RandomOp op;
    if (given.kind < LOWRANK_NORMAL || given.kind > LOWRANK_KEEP) {
      return Refuse(Code::kValue, kOp, "kind", "LOWRANK_NORMAL, LOWRANK_UNIFORM or LOWRANK_KEEP",
                    std::to_string(given.kind));
    }
    op.kind = given.kind == LOWRANK_NORMAL    ? RandomOp::Kind::kNormal
              : given.kind == LOWRANK_UNIFORM ? RandomOp::Kind::kUniform
                                              : RandomOp::Kind::kKeep;
    op.seed = given.seed;
    op.mean = given.a;
    op.scale = given.b;
    op.y = operands.In(given.y, "y");
    return operands.Run(op);
  });
}

int32_t lowrank_block_matmul(const lowrank_block_matmul_args* args) {
  constexpr const char* kOp = BlockMatmulOp::kName;
  return Call(kOp, args, [&](const lowrank_block_matmul_args& given) -> Result {
    Operands operands(kOp, given.device, given.flags, LOWRANK_BLOCK_INPUT_GRAD, given.stream);
    int64_t blocks = -1;
    const TensorView w = Blocks(given.w, "w", 0, &blocks, &operands);
    const TensorView x = Blocks(given.x, "x", 1, &blocks, &operands);
    const TensorView y = Blocks(given.y, "y", 1, &blocks, &operands);
    if (operands.Flag(LOWRANK_BLOCK_INPUT_GRAD)) {
      BlockMatmulInputGradOp op;
      op.dy = x;
      op.w = w;
      op.dx = y;
      op.blocks = blocks;
      return operands.Run(op);
    }
    BlockMatmulOp op;
    op.x = x;
    op.w = w;
    op.y = y;
    op.blocks = blocks;
    return operands.Run(op);
  });
}

int32_t lowrank_block_weight_grad(const lowrank_block_weight_grad_args* args) {
  constexpr const char* kOp = BlockWeightGradOp::kName;
  return Call(kOp, args, [&](const lowrank_block_weight_grad_args& given) -> Result {
    Operands operands(kOp, given.device, given.flags, 0, given.stream);
    BlockWeightGradOp op;
    int64_t blocks = -1;
    op.dw = Blocks(given.dw, "dw", 0, &blocks, &operands);
    op.dy = Blocks(given.dy, "dy", 1, &blocks, &operands);
    op.x = Blocks(given.x, "x", 1, &blocks, &operands);
    op.blocks = blocks;
    return operands.Run(op);
  });
}
