/// A layer of experts.
#include <limits>

#include "native/c_api/op_fields.h"
#include "native/c_api/operands.h"

using namespace lowrank;
using namespace lowrank::c_api;

namespace {

/// The slots of the caller's route. A tensor that is missing is refused where it is read.
struct GivenRoute {
  lowrank_route own;
  int64_t slots = 0;
  int64_t experts = 0;
};

Result ReadRoute(const lowrank_route* given, Operands* operands, GivenRoute* route) {
  const Result read = ReadArgs(operands->op(), given, &route->own);
  if (read.code != LOWRANK_OK) return read;
  int64_t offsets = 0;
  LOWRANK_RETURN_IF_ERROR(
      CheckTensor(operands->op(), "route.order", route->own.order, &route->slots));
  LOWRANK_RETURN_IF_ERROR(
      CheckTensor(operands->op(), "route.offsets", route->own.offsets, &offsets));
  if (offsets < 2 || offsets > kMostExperts + 1) {
    return Refuse(Code::kShape, operands->op(), "route.offsets",
                  "of 1 to " + std::to_string(kMostExperts) + " experts and one more",
                  std::to_string(offsets));
  }
  route->experts = offsets - 1;
  if (route->own.k < 1 || route->own.k > route->experts) {
    return Refuse(Code::kValue, operands->op(), "route.k",
                  "from 1 to the " + std::to_string(route->experts) + " experts",
                  std::to_string(route->own.k));
  }
  if (route->slots % route->own.k != 0 || route->slots > std::numeric_limits<int32_t>::max()) {
    return Refuse(Code::kShape, operands->op(), "route.order",
                  "of fewer than 2^31 indices, a multiple of k = " + std::to_string(route->own.k),
                  std::to_string(route->slots));
  }
  return Status();
}

/// A kernel writes where these point, two slots to one place if they did not fit each other.
Status CheckRoute(const char* op, const RouteView& route) {
  int32_t last = 0;
  for (int64_t e = 0; e <= route.experts; ++e) {
    const int32_t offset = route.offsets.data[e];
    if (offset < last || (e == 0 && offset != 0)) {
      return Refuse(Code::kValue, op, "route.offsets[" + std::to_string(e) + "]",
                    e == 0 ? "0" : "at least the one before, " + std::to_string(last),
                    std::to_string(offset));
    }
    last = offset;
  }
  for (int64_t s = 0; s < route.slots(); ++s) {
    const int32_t slot = route.inverse.data[route.order.data[s]];
    if (slot == s) continue;
    return Refuse(Code::kValue, op, "route.inverse[" + std::to_string(route.order.data[s]) + "]",
                  std::to_string(s) + ", the slot that order says", std::to_string(slot));
  }
  return Status();
}

Result RouteOf(const lowrank_route* given, Operands* operands, RouteView* view) {
  GivenRoute route;
  const Result read = ReadRoute(given, operands, &route);
  if (read.code != LOWRANK_OK) return read;
  view->order = operands->Indices(route.own.order, "route.order", route.slots, false);
  view->inverse = operands->Indices(route.own.inverse, "route.inverse", route.slots, false);
  view->offsets = operands->Indices(route.own.offsets, "route.offsets", route.slots + 1, false);
  view->k = route.own.k;
  view->rows = route.slots / route.own.k;
  view->experts = route.experts;
  LOWRANK_RETURN_IF_ERROR(operands->status());
  if (view->inverse.count != route.slots) {
    return Refuse(Code::kShape, operands->op(), "route.inverse",
                  std::to_string(route.slots) + " indices", std::to_string(view->inverse.count));
  }
  return CheckRoute(operands->op(), *view);
}

/// What follows from the sizes of both passes' route is checked by the op.
template <typename Args, typename Op>
Result ReadProduct(const Args& given, Operands* operands, Op* op) {
  operands->CheckReserved(given.reserved);
  const Result route = RouteOf(given.route, operands, &op->route);
  if (route.code != LOWRANK_OK) return route;
  op->w = operands->Weight(given.w, "w");
  op->lora_a = operands->OptionalIn(given.lora_a, "loraA");
  op->lora_b = operands->OptionalIn(given.lora_b, "loraB");
  op->h = operands->OptionalIn(given.h, "h");
  op->gather = !operands->Flag(LOWRANK_X_BY_SLOT);
  op->scaling = given.scaling;
  return Status();
}

}  // namespace

int32_t lowrank_select_experts(const lowrank_select_experts_args* args) {
  constexpr const char* kOp = SelectExpertsOp::kName;
  return Call(kOp, args, [&](const lowrank_select_experts_args& given) -> Result {
    Operands operands(kOp, given.device, given.flags, LOWRANK_SOFTMAX_OF_ALL, given.stream);
    SelectExpertsOp op;
    op.logits = operands.In(given.logits, "logits");
    op.chosen = operands.OutIndices(given.experts, "experts");
    op.gates = operands.In(given.gates, "gates");
    op.chosen_only = !operands.Flag(LOWRANK_SOFTMAX_OF_ALL);
    return operands.Run(op);
  });
}

int32_t lowrank_select_experts_backward(const lowrank_select_experts_backward_args* args) {
  constexpr const char* kOp = SelectExpertsBackwardOp::kName;
  return Call(kOp, args, [&](const lowrank_select_experts_backward_args& given) -> Result {
    Operands operands(kOp, given.device, given.flags, LOWRANK_SOFTMAX_OF_ALL, given.stream);
    SelectExpertsBackwardOp op;
    op.d_gates = operands.In(given.d_gates, "dGates");
    op.logits = operands.In(given.logits, "logits");
    op.chosen = operands.Indices(given.experts, "experts", op.logits.cols, false);
    op.gates = operands.In(given.gates, "gates");
    op.d_logits = operands.In(given.d_logits, "dLogits");
    op.chosen_only = !operands.Flag(LOWRANK_SOFTMAX_OF_ALL);
    return operands.Run(op);
  });
}

int32_t lowrank_route_rows(const lowrank_route_rows_args* args) {
  constexpr const char* kOp = RouteRowsOp::kName;
  return Call(kOp, args, [&](const lowrank_route_rows_args& given) -> Result {
    Operands operands(kOp, given.device, given.flags, 0, given.stream);
    GivenRoute route;
    const Result read = ReadRoute(given.route, &operands, &route);
    if (read.code != LOWRANK_OK) return read;
    RouteRowsOp op;
    op.chosen = operands.Indices(given.experts, "experts", route.experts, true);
    op.order = operands.OutIndices(route.own.order, "route.order");
    op.inverse = operands.OutIndices(route.own.inverse, "route.inverse");
    op.offsets = operands.OutIndices(route.own.offsets, "route.offsets");
    op.k = route.own.k;
    op.experts = route.experts;
    return operands.Run(op);
  });
}

int32_t lowrank_experts_matmul(const lowrank_experts_matmul_args* args) {
  constexpr const char* kOp = ExpertsForwardOp::kName;
  return Call(kOp, args, [&](const lowrank_experts_matmul_args& given) -> Result {
    Operands operands(kOp, given.device, given.flags, LOWRANK_X_BY_SLOT, given.stream);
    ExpertsForwardOp op;
    op.x = operands.In(given.x, "x");
    const Result read = ReadProduct(given, &operands, &op);
    if (read.code != LOWRANK_OK) return read;
    op.bias = operands.OptionalIn(given.bias, "bias");
    op.y = operands.In(given.y, "y");
    return operands.Run(op);
  });
}

int32_t lowrank_experts_matmul_backward(const lowrank_experts_matmul_backward_args* args) {
  constexpr const char* kOp = ExpertsBackwardOp::kName;
  return Call(kOp, args, [&](const lowrank_experts_matmul_backward_args& given) -> Result {
    Operands operands(kOp, given.device, given.flags, LOWRANK_X_BY_SLOT, given.stream);
    ExpertsBackwardOp op;
    op.dy = operands.In(given.dy, "dy");
    op.x = operands.OptionalIn(given.x, "x");
    const Result read = ReadProduct(given, &operands, &op);
    if (read.code != LOWRANK_OK) return read;
    op.dx = operands.OptionalIn(given.dx, "dx");
    op.d_lora_a = operands.OptionalIn(given.d_lora_a, "dLoraA");
    op.d_lora_b = operands.OptionalIn(given.d_lora_b, "dLoraB");
    return operands.Run(op);
  });
}

int32_t lowrank_combine_rows(const lowrank_combine_rows_args* args) {
  constexpr const char* kOp = CombineRowsOp::kName;
  return Call(kOp, args, [&](const lowrank_combine_rows_args& given) -> Result {
    Operands operands(kOp, given.device, given.flags, 0, given.stream);
    CombineRowsOp op;
    op.y = operands.In(given.y, "y");
    const Result route = RouteOf(given.route, &operands, &op.route);
    if (route.code != LOWRANK_OK) return route;
    op.gates = operands.OptionalIn(given.gates, "gates");
    op.out = operands.In(given.out, "out");
    return operands.Run(op);
  });
}

int32_t lowrank_combine_rows_backward(const lowrank_combine_rows_backward_args* args) {
  constexpr const char* kOp = CombineRowsBackwardOp::kName;
  return Call(kOp, args, [&](const lowrank_combine_rows_backward_args& given) -> Result {
    Operands operands(kOp, given.device, given.flags, 0, given.stream);
    CombineRowsBackwardOp op;
    op.d_out = operands.In(given.d_out, "dOut");
    op.y = operands.OptionalIn(given.y, "y");
    const Result route = RouteOf(given.route, &operands, &op.route);
    if (route.code != LOWRANK_OK) return route;
    op.gates = operands.OptionalIn(given.gates, "gates");
    op.dy = operands.OptionalIn(given.dy, "dy");
    op.d_gates = operands.OptionalIn(given.d_gates, "dGates");
    return operands.Run(op);
  });
}
