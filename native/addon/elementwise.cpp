/// Element-wise ops over small tensors.
#include "native/addon/bindings.h"
#include "native/addon/operands.h"

namespace lowrank::addon {
namespace {

MapFunction FunctionArg(const Napi::Value& value, const char* op) {
  struct Row {
    const char* name;
    MapFunction function;
  };
  constexpr Row kRows[] = {
#define LOWRANK_MAP_ROW(id, name) {name, MapFunction::id},
      LOWRANK_FOR_EACH_MAP_FUNCTION(LOWRANK_MAP_ROW)
#undef LOWRANK_MAP_ROW
  };
  const std::string name = StringArg(value, op, "kind");
  for (const Row& row : kRows) {
    if (name == row.name) return row.function;
  }
  ThrowIfError(value.Env(), Refuse(Code::kValue, op, "kind", "a known function", name));
  return MapFunction::kReciprocal;
}

// multiplyAdd(a, b | null, c | null, alpha, beta, dtype) -> y
Napi::Value MultiplyAdd(const Napi::CallbackInfo& info) {
  constexpr const char* kOp = MultiplyAddOp::kName;
  const Napi::Env env = info.Env();
  const TensorHandle& a = TensorOf(info[0], kOp, "a");
  Operands operands(env, kOp, a.storage->backend());
  MultiplyAddOp op;
  op.a = operands.In(info[0], "a");
  op.b = operands.OptionalIn(info[1], "b");
  op.c = operands.OptionalIn(info[2], "c");
  op.alpha = static_cast<float>(NumberArg(info[3], kOp, "alpha"));
  op.beta = static_cast<float>(NumberArg(info[4], kOp, "beta"));
  TensorHandle y;
  op.y = operands.Out(&y, DTypeArg(info[5], kOp), a.shape);
  ThrowIfError(env, operands.backend()->Enqueue(op, operands.Take()));
  return WrapTensor(env, std::move(y));
}

// mapTensor(a, kind, dtype) -> y
Napi::Value Map(const Napi::CallbackInfo& info) {
  constexpr const char* kOp = MapOp::kName;
  const Napi::Env env = info.Env();
  const TensorHandle& a = TensorOf(info[0], kOp, "a");
  Operands operands(env, kOp, a.storage->backend());
  MapOp op;
  op.a = operands.In(info[0], "a");
  op.function = FunctionArg(info[1], kOp);
  TensorHandle y;
  op.y = operands.Out(&y, DTypeArg(info[2], kOp), a.shape);
  ThrowIfError(env, operands.backend()->Enqueue(op, operands.Take()));
  return WrapTensor(env, std::move(y));
}

GateFunction GateArg(const Napi::Value& value, const char* op) {
  struct Row {
    const char* name;
    GateFunction function;
  };
  constexpr Row kRows[] = {
#define LOWRANK_GATE_ROW(id, name) {name, GateFunction::id},
      LOWRANK_FOR_EACH_GATE_FUNCTION(LOWRANK_GATE_ROW)
#undef LOWRANK_GATE_ROW
  };
  const std::string name = StringArg(value, op, "kind");
  for (const Row& row : kRows) {
    if (name == row.name) return row.function;
  }
  ThrowIfError(value.Env(), Refuse(Code::kValue, op, "kind",
                                   "silu, gelu, gelu-tanh or silu-clamped", "\"" + name + "\""));
  return GateFunction::kSilu;
}

// gatedActivation(gate, up, kind) -> y
Napi::Value GatedActivation(const Napi::CallbackInfo& info) {
  constexpr const char* kOp = GatedActivationOp::kName;
  const Napi::Env env = info.Env();
  const TensorHandle& gate = TensorOf(info[0], kOp, "gate");
  Operands operands(env, kOp, gate.storage->backend());
  GatedActivationOp op;
  op.gate = operands.In(info[0], "gate");
  op.up = operands.In(info[1], "up");
  op.function = GateArg(info[2], kOp);
  TensorHandle y;
  op.y = operands.Out(&y, gate.dtype, gate.shape);
  ThrowIfError(env, operands.backend()->Enqueue(op, operands.Take()));
  return WrapTensor(env, std::move(y));
}

// gatedActivationBackward(dy, gate, up, kind) -> [dGate, dUp]
Napi::Value GatedActivationBackward(const Napi::CallbackInfo& info) {
  constexpr const char* kOp = GatedActivationBackwardOp::kName;
  const Napi::Env env = info.Env();
  const TensorHandle& gate = TensorOf(info[1], kOp, "gate");
  Operands operands(env, kOp, gate.storage->backend());
  GatedActivationBackwardOp op;
  op.dy = operands.In(info[0], "dy");
  op.gate = operands.In(info[1], "gate");
  op.up = operands.In(info[2], "up");
  op.function = GateArg(info[3], kOp);
  TensorHandle d_gate;
  TensorHandle d_up;
  op.d_gate = operands.Out(&d_gate, gate.dtype, gate.shape);
  op.d_up = operands.Out(&d_up, op.up.dtype, gate.shape);
  ThrowIfError(env, operands.backend()->Enqueue(op, operands.Take()));
  return WrapTensors(env, {&d_gate, &d_up});
}

// sumProduct(a, b | null, axis) -> out, a vector
Napi::Value SumProduct(const Napi::CallbackInfo& info) {
  constexpr const char* kOp = SumProductOp::kName;
  const Napi::Env env = info.Env();
  const TensorHandle& a = TensorOf(info[0], kOp, "a");
  Operands operands(env, kOp, a.storage->backend());
  SumProductOp op;
  op.a = operands.In(info[0], "a");
  op.b = operands.OptionalIn(info[1], "b");
  op.axis = NumberArg(info[2], kOp, "axis") == 0 ? 0 : 1;
  TensorHandle out;
  op.out = operands.Out(&out, DType::kF32, {op.axis == 0 ? op.a.cols : op.a.rows});
  ThrowIfError(env, operands.backend()->Enqueue(op, operands.Take()));
  return WrapTensor(env, std::move(out));
}

}  // namespace

void RegisterElementwise(Napi::Env env, Napi::Object exports) {
  Export<MultiplyAdd>(env, exports, "multiplyAdd");
  Export<Map>(env, exports, "mapTensor");
  Export<GatedActivation>(env, exports, "gatedActivation");
  Export<GatedActivationBackward>(env, exports, "gatedActivationBackward");
  Export<SumProduct>(env, exports, "sumProduct");
}

}  // namespace lowrank::addon
