/// One function per op: handles in, descriptor to the device, fresh handles back. Leading
/// dimensions of x and dy pass through to the results.
#include "native/addon/bindings.h"
#include "native/addon/operands.h"

namespace lowrank::addon {
namespace {

// matmul(x, w, bias | null, compute)
Napi::Value Matmul(const Napi::CallbackInfo& info) {
  constexpr const char* kOp = MatmulOp::kName;
  const Napi::Env env = info.Env();
  const TensorHandle& x = TensorOf(info[0], kOp, "x");
  Operands operands(env, kOp, x.storage->backend());
  MatmulOp op;
  op.x = operands.In(info[0], "x");
  op.w = operands.Weight(info[1], "w");
  op.bias = operands.OptionalRow(info[2], "bias");
  op.compute = ComputeArg(info[3], kOp);
  TensorHandle y;
  op.y = operands.Out(&y, x.dtype, WithLast(x.shape, op.w.rows()));
  ThrowIfError(env, operands.backend()->Enqueue(op, operands.Take()));
  return WrapTensor(env, std::move(y));
}

// matmulInputGrad(dy, w)
Napi::Value MatmulInputGrad(const Napi::CallbackInfo& info) {
  constexpr const char* kOp = MatmulInputGradOp::kName;
  const Napi::Env env = info.Env();
  const TensorHandle& dy = TensorOf(info[0], kOp, "dy");
  Operands operands(env, kOp, dy.storage->backend());
  MatmulInputGradOp op;
  op.dy = operands.In(info[0], "dy");
  op.w = operands.Weight(info[1], "w");
  TensorHandle dx;
  op.dx = operands.Out(&dx, dy.dtype, WithLast(dy.shape, op.w.cols()));
  ThrowIfError(env, operands.backend()->Enqueue(op, operands.Take()));
  return WrapTensor(env, std::move(dx));
}

// loraForward(x, w, bias | null, loraA, loraB, loraBias | null, scaling,
//             dropout, seedLow, seedHigh, dropoutMask | null, compute) -> [y, h]
Napi::Value LoraForward(const Napi::CallbackInfo& info) {
  constexpr const char* kOp = LoraForwardOp::kName;
  const Napi::Env env = info.Env();
  const TensorHandle& x = TensorOf(info[0], kOp, "x");
  Operands operands(env, kOp, x.storage->backend());
  LoraForwardOp op;
  op.x = operands.In(info[0], "x");
  op.w = operands.Weight(info[1], "w");
  op.bias = operands.OptionalRow(info[2], "bias");
  op.lora_a = operands.In(info[3], "loraA");
  op.lora_b = operands.In(info[4], "loraB");
  op.lora_bias = operands.OptionalRow(info[5], "loraBias");
  op.scaling = static_cast<float>(NumberArg(info[6], kOp, "scaling"));
  op.dropout = DropoutArgs(info, 7, &operands);
  op.compute = ComputeArg(info[11], kOp);
  TensorHandle y;
  TensorHandle h;
  op.y = operands.Out(&y, x.dtype, WithLast(x.shape, op.w.rows()));
  op.h = operands.Out(&h, DType::kF32, WithLast(x.shape, op.lora_a.rows));
  ThrowIfError(env, operands.backend()->Enqueue(op, operands.Take()));
  Napi::Array result = Napi::Array::New(env, 2);
  result.Set(0u, WrapTensor(env, std::move(y)));
  result.Set(1u, WrapTensor(env, std::move(h)));
  return result;
}

// A projection: the array of loraForward's arguments after x, with null for loraA, loraB and
// loraBias if it has no adapter. Without its y; `h` is where its h is stored.
LoraForwardOp PartOf(const Napi::Value& value, const TensorHandle& x, const TensorView& x_view,
                     Operands* operands, TensorHandle* h) {
  const char* op_name = operands->op();
  if (!value.IsArray()) {
    ThrowIfError(operands->env(),
                 Refuse(Code::kType, op_name, "projections", "arrays", "another value"));
  }
  const Napi::Array given = value.As<Napi::Array>();
  LoraForwardOp op;
  op.x = x_view;
  op.w = operands->Weight(given.Get(0u), "w");
  op.bias = operands->OptionalRow(given.Get(1u), "bias");
  op.compute = ComputeArg(given.Get(10u), op_name);
  if (!IsPresent(given.Get(2u))) return op;
  op.lora_a = operands->In(given.Get(2u), "loraA");
  op.lora_b = operands->In(given.Get(3u), "loraB");
  op.lora_bias = operands->OptionalRow(given.Get(4u), "loraBias");
  op.scaling = static_cast<float>(NumberArg(given.Get(5u), op_name, "scaling"));
  op.dropout = DropoutArgs(given.Get(6u), given.Get(7u), given.Get(8u), given.Get(9u), operands);
  op.h = operands->Out(h, DType::kF32, WithLast(x.shape, op.lora_a.rows));
  return op;
}

// An array of the present outputs, with null for the others.
Napi::Value WrapPresent(Napi::Env env, std::vector<TensorHandle>* outputs) {
  Napi::Array result = Napi::Array::New(env, outputs->size());
  for (uint32_t i = 0; i < outputs->size(); ++i) {
    TensorHandle& output = (*outputs)[i];
    result.Set(i, output.storage ? WrapTensor(env, std::move(output)) : env.Null());
  }
  return result;
}

// loraForwardMany(x, [projection, ...]) -> [y, h | null, ...]
Napi::Value LoraForwardMany(const Napi::CallbackInfo& info) {
  constexpr const char* kOp = LoraForwardManyOp::kName;
  const Napi::Env env = info.Env();
  const TensorHandle& x = TensorOf(info[0], kOp, "x");
  Operands operands(env, kOp, x.storage->backend());
  if (!info[1].IsArray()) {
    ThrowIfError(env, Refuse(Code::kType, kOp, "projections", "an array", "another value"));
  }
  const Napi::Array list = info[1].As<Napi::Array>();
  const uint32_t count = list.Length();
  if (count > LoraForwardManyOp::kMost) {
    ThrowIfError(env,
                 Refuse(Code::kValue, kOp, "projections",
                        "1 to " + std::to_string(LoraForwardManyOp::kMost), std::to_string(count)));
  }
  auto parts = std::make_shared<std::vector<LoraForwardOp>>(count);
  std::vector<TensorHandle> outputs(size_t{2} * parts->size());
  const TensorView x_view = operands.In(info[0], "x");
  for (uint32_t i = 0; i < count; ++i) {
    LoraForwardOp& op = (*parts)[i];
    op = PartOf(list.Get(i), x, x_view, &operands, &outputs[2 * i + 1]);
    op.y = operands.Out(&outputs[2 * i], x.dtype, WithLast(x.shape, op.w.rows()));
  }
  LoraForwardManyOp op;
  op.parts = parts->data();
  op.count = static_cast<int64_t>(parts->size());
  operands.Keep(parts);
  ThrowIfError(env, operands.backend()->Enqueue(op, operands.Take()));
  return WrapPresent(env, &outputs);
}

// loraForwardSwiglu(x, gate, up, keep) -> [y, gate's h | null, up's h | null, gate | null, up |
// null]
Napi::Value LoraForwardSwiglu(const Napi::CallbackInfo& info) {
  constexpr const char* kOp = LoraForwardSwigluOp::kName;
  const Napi::Env env = info.Env();
  const TensorHandle& x = TensorOf(info[0], kOp, "x");
  Operands operands(env, kOp, x.storage->backend());
  std::vector<TensorHandle> outputs(5);
  LoraForwardSwigluOp op;
  const TensorView x_view = operands.In(info[0], "x");
  op.gate = PartOf(info[1], x, x_view, &operands, &outputs[1]);
  op.up = PartOf(info[2], x, x_view, &operands, &outputs[2]);
  const std::vector<int64_t> shape = WithLast(x.shape, op.gate.w.rows());
  op.y = operands.Out(&outputs[0], x.dtype, shape);
  if (info[3].ToBoolean()) {
    op.gate.y = operands.Out(&outputs[3], x.dtype, shape);
    op.up.y = operands.Out(&outputs[4], x.dtype, shape);
  }
  ThrowIfError(env, operands.backend()->Enqueue(op, operands.Take()));
  return WrapPresent(env, &outputs);
}

// loraBackward(dy, x | null, w | null, loraA, loraB, h | null, scaling,
//              dropout, seedLow, seedHigh, dropoutMask | null, wanted)
// wanted: for each gradient null (not wanted), a dtype (fresh), or a tensor (added to)
Napi::Value LoraBackward(const Napi::CallbackInfo& info) {
  constexpr const char* kOp = LoraBackwardOp::kName;
  const Napi::Env env = info.Env();
  const TensorHandle& dy = TensorOf(info[0], kOp, "dy");
  Operands operands(env, kOp, dy.storage->backend());
  LoraBackwardOp op;
  op.dy = operands.In(info[0], "dy");
  op.x = operands.OptionalIn(info[1], "x");
  if (IsPresent(info[2])) op.w = operands.Weight(info[2], "w");
  op.lora_a = operands.In(info[3], "loraA");
  op.lora_b = operands.In(info[4], "loraB");
  op.h = operands.OptionalIn(info[5], "h");
  op.scaling = static_cast<float>(NumberArg(info[6], kOp, "scaling"));
  op.dropout = DropoutArgs(info, 7, &operands);
  const int64_t n = dy.View().cols;
  WantedOutputs outputs(
      info[11],
      {{"dx", &op.dx, &op.accumulate_dx, WithLast(dy.shape, op.lora_a.cols)},
       {"dLoraA", &op.d_lora_a, &op.accumulate_d_lora_a, {op.lora_a.rows, op.lora_a.cols}},
       {"dLoraB", &op.d_lora_b, &op.accumulate_d_lora_b, {op.lora_b.rows, op.lora_b.cols}},
       {"dBias", &op.d_bias, &op.accumulate_d_bias, {n}, true},
       {"dLoraBias", &op.d_lora_bias, &op.accumulate_d_lora_bias, {n}, true}},
      &operands);
  ThrowIfError(env, operands.backend()->Enqueue(op, operands.Take()));
  return outputs.Wrap(env);
}

}  // namespace

void RegisterOps(Napi::Env env, Napi::Object exports) {
  Export<Matmul>(env, exports, "matmul");
  Export<MatmulInputGrad>(env, exports, "matmulInputGrad");
  Export<LoraForward>(env, exports, "loraForward");
  Export<LoraForwardMany>(env, exports, "loraForwardMany");
  Export<LoraForwardSwiglu>(env, exports, "loraForwardSwiglu");
  Export<LoraBackward>(env, exports, "loraBackward");
}

}  // namespace lowrank::addon
