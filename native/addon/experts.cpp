/// A layer of experts.
#include <limits>
#include <utility>
#include <vector>

#include "native/addon/bindings.h"
#include "native/addon/operands.h"

namespace lowrank::addon {
namespace {

constexpr int64_t kMostCount = std::numeric_limits<int32_t>::max();

/// Fresh indices in [0, limit).
IndexOut OutIndices(Operands* operands, IndexHandle* handle, int64_t count, int64_t limit) {
  handle->count = count;
  handle->limit = limit;
  handle->data = operands->OutPart(static_cast<size_t>(count) * sizeof(int32_t));
  return {static_cast<int32_t*>(handle->data->data()), count};
}

/// Indices that kernels read at, so there is no -1 among them.
IndexView WholeIndices(const Napi::Value& value, const char* operand, Operands* operands) {
  if (IndicesOf(value, operands->op(), operand).holes) {
    ThrowIfError(operands->env(), Refuse(Code::kValue, operands->op(), operand, "without holes",
                                         "indices that may be -1"));
  }
  return operands->Indices(value, operand);
}

/// order, inverse, offsets, k from argument `first` on; what follows from their sizes is checked
/// later.
RouteView RouteArgs(const Napi::CallbackInfo& info, size_t first, Operands* operands) {
  RouteView route;
  route.order = WholeIndices(info[first], "route.order", operands);
  route.inverse = WholeIndices(info[first + 1], "route.inverse", operands);
  route.offsets = WholeIndices(info[first + 2], "route.offsets", operands);
  route.k = IntegerArg(info[first + 3], operands->op(), "k", Code::kValue, kMostCount);
  route.experts = route.offsets.count - 1;
  route.rows = route.k == 0 ? 0 : route.order.count / route.k;
  return route;
}

// routeRows(experts, k, E) -> [order, inverse, offsets]
Napi::Value RouteRows(const Napi::CallbackInfo& info) {
  constexpr const char* kOp = RouteRowsOp::kName;
  const Napi::Env env = info.Env();
  const IndexHandle& experts = IndicesOf(info[0], kOp, "experts");
  Operands operands(env, kOp, experts.data->backend());
  RouteRowsOp op;
  op.chosen = operands.Indices(info[0], "experts");
  op.k = IntegerArg(info[1], kOp, "k", Code::kValue, kMostCount);
  op.experts = IntegerArg(info[2], kOp, "experts", Code::kValue, kMostExperts);
  const int64_t slots = op.chosen.count;
  IndexHandle order;
  IndexHandle inverse;
  IndexHandle offsets;
  op.order = OutIndices(&operands, &order, slots, slots);
  op.inverse = OutIndices(&operands, &inverse, slots, slots);
  op.offsets = OutIndices(&operands, &offsets, op.experts + 1, slots + 1);
  ThrowIfError(env, operands.backend()->Enqueue(op, operands.Take()));
  Napi::Array result = Napi::Array::New(env, 3);
  result.Set(0u, WrapIndices(env, std::move(order)));
  result.Set(1u, WrapIndices(env, std::move(inverse)));
  result.Set(2u, WrapIndices(env, std::move(offsets)));
  return result;
}

// selectExperts(logits, k, chosenOnly) -> [experts, gates]
Napi::Value SelectExperts(const Napi::CallbackInfo& info) {
  constexpr const char* kOp = SelectExpertsOp::kName;
  const Napi::Env env = info.Env();
  const TensorHandle& logits = TensorOf(info[0], kOp, "logits");
  Operands operands(env, kOp, logits.storage->backend());
  SelectExpertsOp op;
  op.logits = operands.In(info[0], "logits");
  const int64_t k = IntegerArg(info[1], kOp, "k", Code::kValue, kMostExperts);
  op.chosen_only = BoolArg(info[2]);
  IndexHandle chosen;
  TensorHandle gates;
  op.chosen = OutIndices(&operands, &chosen, op.logits.rows * k, op.logits.cols);
  op.gates = operands.Out(&gates, DType::kF32, WithLast(logits.shape, k));
  ThrowIfError(env, operands.backend()->Enqueue(op, operands.Take()));
  Napi::Array result = Napi::Array::New(env, 2);
  result.Set(0u, WrapIndices(env, std::move(chosen)));
  result.Set(1u, WrapTensor(env, std::move(gates)));
  return result;
}

// selectExpertsBackward(dGates, logits, experts, gates, chosenOnly) -> dLogits
Napi::Value SelectExpertsBackward(const Napi::CallbackInfo& info) {
  constexpr const char* kOp = SelectExpertsBackwardOp::kName;
  const Napi::Env env = info.Env();
  const TensorHandle& logits = TensorOf(info[1], kOp, "logits");
  Operands operands(env, kOp, logits.storage->backend());
  SelectExpertsBackwardOp op;
  op.d_gates = operands.In(info[0], "dGates");
  op.logits = operands.In(info[1], "logits");
  op.chosen = WholeIndices(info[2], "experts", &operands);
  op.gates = operands.In(info[3], "gates");
  op.chosen_only = BoolArg(info[4]);
  TensorHandle d_logits;
  op.d_logits = operands.Out(&d_logits, logits.dtype, logits.shape);
  ThrowIfError(env, operands.backend()->Enqueue(op, operands.Take()));
  return WrapTensor(env, std::move(d_logits));
}

// expertsMatmul(x, w, bias | null, order, inverse, offsets, k, gather, loraA | null, loraB | null,
//               scaling) -> [y, h | null]
Napi::Value ExpertsForward(const Napi::CallbackInfo& info) {
  constexpr const char* kOp = ExpertsForwardOp::kName;
  const Napi::Env env = info.Env();
  const TensorHandle& x = TensorOf(info[0], kOp, "x");
  Operands operands(env, kOp, x.storage->backend());
  ExpertsForwardOp op;
  op.x = operands.In(info[0], "x");
  op.w = operands.Weight(info[1], "w");
  op.bias = operands.OptionalIn(info[2], "bias");
  op.route = RouteArgs(info, 3, &operands);
  op.gather = BoolArg(info[7]);
  op.lora_a = operands.OptionalIn(info[8], "loraA");
  op.lora_b = operands.OptionalIn(info[9], "loraB");
  op.scaling = static_cast<float>(NumberArg(info[10], kOp, "scaling"));
  const int64_t experts = op.route.experts < 1 ? 1 : op.route.experts;
  TensorHandle y;
  TensorHandle h;
  op.y = operands.Out(&y, x.dtype, {op.route.slots(), op.w.rows() / experts});
  if (op.lora_a.present && op.lora_b.present) {
    op.h = operands.Out(&h, DType::kF32, {op.route.slots(), op.lora_b.cols});
  }
  ThrowIfError(env, operands.backend()->Enqueue(op, operands.Take()));
  return WrapTensors(env, {&y, &h});
}

// expertsMatmulBackward(dy, w, x | null, order, inverse, offsets, k, gather, loraA | null,
//                       loraB | null, scaling, h | null, wanted)
//   -> [dx | null, dLoraA | null, dLoraB | null]
// wanted: an array of a dtype or null for each
Napi::Value ExpertsBackward(const Napi::CallbackInfo& info) {
  constexpr const char* kOp = ExpertsBackwardOp::kName;
  const Napi::Env env = info.Env();
  const TensorHandle& dy = TensorOf(info[0], kOp, "dy");
  Operands operands(env, kOp, dy.storage->backend());
  ExpertsBackwardOp op;
  op.dy = operands.In(info[0], "dy");
  op.w = operands.Weight(info[1], "w");
  op.x = operands.OptionalIn(info[2], "x");
  op.route = RouteArgs(info, 3, &operands);
  op.gather = BoolArg(info[7]);
  op.lora_a = operands.OptionalIn(info[8], "loraA");
  op.lora_b = operands.OptionalIn(info[9], "loraB");
  op.scaling = static_cast<float>(NumberArg(info[10], kOp, "scaling"));
  op.h = operands.OptionalIn(info[11], "h");
  const auto shape_of = [&](size_t at, const char* operand) {
    return IsPresent(info[at]) ? TensorOf(info[at], kOp, operand).shape
                               : std::vector<int64_t>{0, 0};
  };
  bool never = false;  // gradients are not added to
  WantedOutputs outputs(info[12],
                        {{"dx", &op.dx, &never, {op.route.slots(), op.w.cols()}},
                         {"dLoraA", &op.d_lora_a, &never, shape_of(8, "loraA")},
                         {"dLoraB", &op.d_lora_b, &never, shape_of(9, "loraB")}},
                        &operands);
  if (never) {
    ThrowIfError(env, Refuse(Code::kType, kOp, "wanted", "dtypes", "a tensor to add to"));
  }
  ThrowIfError(env, operands.backend()->Enqueue(op, operands.Take()));
  return outputs.Wrap(env);
}

// combineRows(y, gates | null, order, inverse, offsets, k) -> out
Napi::Value CombineRows(const Napi::CallbackInfo& info) {
  constexpr const char* kOp = CombineRowsOp::kName;
  const Napi::Env env = info.Env();
  const TensorHandle& y = TensorOf(info[0], kOp, "y");
  Operands operands(env, kOp, y.storage->backend());
  CombineRowsOp op;
  op.y = operands.In(info[0], "y");
  op.gates = operands.OptionalIn(info[1], "gates");
  op.route = RouteArgs(info, 2, &operands);
  TensorHandle out;
  op.out = operands.Out(&out, y.dtype, {op.route.rows, op.y.cols});
  ThrowIfError(env, operands.backend()->Enqueue(op, operands.Take()));
  return WrapTensor(env, std::move(out));
}

// combineRowsBackward(dOut, y | null, gates | null, order, inverse, offsets, k, dtype | null,
//                     wantsDGates) -> [dy | null, dGates | null]
Napi::Value CombineRowsBackward(const Napi::CallbackInfo& info) {
  constexpr const char* kOp = CombineRowsBackwardOp::kName;
  const Napi::Env env = info.Env();
  const TensorHandle& d_out = TensorOf(info[0], kOp, "dOut");
  Operands operands(env, kOp, d_out.storage->backend());
  CombineRowsBackwardOp op;
  op.d_out = operands.In(info[0], "dOut");
  op.y = operands.OptionalIn(info[1], "y");
  op.gates = operands.OptionalIn(info[2], "gates");
  op.route = RouteArgs(info, 3, &operands);
  TensorHandle dy;
  TensorHandle d_gates;
  if (IsPresent(info[7])) {
    op.dy = operands.Out(&dy, DTypeArg(info[7], kOp), {op.route.slots(), op.d_out.cols});
  }
  if (BoolArg(info[8])) {
    op.d_gates = operands.Out(&d_gates, DType::kF32, {op.route.rows, op.route.k});
  }
  ThrowIfError(env, operands.backend()->Enqueue(op, operands.Take()));
  return WrapTensors(env, {&dy, &d_gates});
}

}  // namespace

void RegisterExperts(Napi::Env env, Napi::Object exports) {
  Export<RouteRows>(env, exports, "routeRows");
  Export<SelectExperts>(env, exports, "selectExperts");
  Export<SelectExpertsBackward>(env, exports, "selectExpertsBackward");
  Export<ExpertsForward>(env, exports, "expertsMatmul");
  Export<ExpertsBackward>(env, exports, "expertsMatmulBackward");
  Export<CombineRows>(env, exports, "combineRows");
  Export<CombineRowsBackward>(env, exports, "combineRowsBackward");
}

}  // namespace lowrank::addon
