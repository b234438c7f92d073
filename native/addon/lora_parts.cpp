/// The halves of a LoRA layer on either side of h, and the gradient of a dense weight. Leading
/// dimensions pass through.
#include "native/addon/bindings.h"
#include "native/addon/operands.h"

namespace lowrank::addon {
namespace {

// loraShrink(x, loraA, scaling, dropout, seedLow, seedHigh, dropoutMask | null) -> h
Napi::Value LoraShrink(const Napi::CallbackInfo& info) {
  constexpr const char* kOp = LoraShrinkOp::kName;
  const Napi::Env env = info.Env();
  const TensorHandle& x = TensorOf(info[0], kOp, "x");
  Operands operands(env, kOp, x.storage->backend());
  LoraShrinkOp op;
  op.x = operands.In(info[0], "x");
  op.lora_a = operands.In(info[1], "loraA");
  op.scaling = static_cast<float>(NumberArg(info[2], kOp, "scaling"));
  op.dropout = DropoutArgs(info, 3, &operands);
  TensorHandle h;
  op.h = operands.Out(&h, DType::kF32, WithLast(x.shape, op.lora_a.rows));
  ThrowIfError(env, operands.backend()->Enqueue(op, operands.Take()));
  return WrapTensor(env, std::move(h));
}

// (x, w, bias | null, h, loraB, scaling, compute), y new
LoraExpandOp ExpandArgs(const Napi::CallbackInfo& info, const char* op_name, Operands* operands,
                        TensorHandle* y) {
  const TensorHandle& x = TensorOf(info[0], op_name, "x");
  LoraExpandOp op;
  op.x = operands->In(info[0], "x");
  op.w = operands->Weight(info[1], "w");
  op.bias = operands->OptionalRow(info[2], "bias");
  op.h = operands->In(info[3], "h");
  op.lora_b = operands->In(info[4], "loraB");
  op.scaling = static_cast<float>(NumberArg(info[5], op_name, "scaling"));
  op.compute = ComputeArg(info[6], op_name);
  op.y = operands->Out(y, x.dtype, WithLast(x.shape, op.w.rows()));
  return op;
}

// loraExpand(those) -> y
Napi::Value LoraExpand(const Napi::CallbackInfo& info) {
  constexpr const char* kOp = LoraExpandOp::kName;
  const Napi::Env env = info.Env();
  Operands operands(env, kOp, TensorOf(info[0], kOp, "x").storage->backend());
  TensorHandle y;
  const LoraExpandOp op = ExpandArgs(info, kOp, &operands, &y);
  ThrowIfError(env, operands.backend()->Enqueue(op, operands.Take()));
  return WrapTensor(env, std::move(y));
}

// loraExpandWithNorms(those, loraA, weightNorms) -> [y, norms]
Napi::Value LoraExpandWithNorms(const Napi::CallbackInfo& info) {
  constexpr const char* kOp = "loraExpandWithNorms";
  const Napi::Env env = info.Env();
  Operands operands(env, kOp, TensorOf(info[0], kOp, "x").storage->backend());
  TensorHandle y, norms;
  LoraExpandOp op = ExpandArgs(info, kOp, &operands, &y);
  op.lora_a = operands.In(info[7], "loraA");
  op.squares = operands.OptionalRow(info[8], "weightNorms");
  op.norms = operands.Out(&norms, DType::kF32, {op.w.rows()});
  ThrowIfError(env, operands.backend()->Enqueue(op, operands.Take()));
  Napi::Array result = Napi::Array::New(env, 2);
  result.Set(0u, WrapTensor(env, std::move(y)));
  result.Set(1u, WrapTensor(env, std::move(norms)));
  return result;
}

// loraExpandBackward(dy, h | null, loraB, scaling, wanted) -> [dh, dLoraB, dBias]
Napi::Value LoraExpandBackward(const Napi::CallbackInfo& info) {
  constexpr const char* kOp = LoraExpandBackwardOp::kName;
  const Napi::Env env = info.Env();
  const TensorHandle& dy = TensorOf(info[0], kOp, "dy");
  Operands operands(env, kOp, dy.storage->backend());
  LoraExpandBackwardOp op;
  op.dy = operands.In(info[0], "dy");
  op.h = operands.OptionalIn(info[1], "h");
  op.lora_b = operands.In(info[2], "loraB");
  op.scaling = static_cast<float>(NumberArg(info[3], kOp, "scaling"));
  WantedOutputs outputs(
      info[4],
      {{"dh", &op.dh, &op.accumulate_dh, WithLast(dy.shape, op.lora_b.cols)},
       {"dLoraB", &op.d_lora_b, &op.accumulate_d_lora_b, {op.lora_b.rows, op.lora_b.cols}},
       {"dBias", &op.d_bias, &op.accumulate_d_bias, {op.dy.cols}, true}},
      &operands);
  ThrowIfError(env, operands.backend()->Enqueue(op, operands.Take()));
  return outputs.Wrap(env);
}

// loraShrinkBackward(dy | null, w | null, dh, loraA, x | null, scaling,
//                    dropout, seedLow, seedHigh, dropoutMask | null, wanted) -> [dx, dLoraA]
Napi::Value LoraShrinkBackward(const Napi::CallbackInfo& info) {
  constexpr const char* kOp = LoraShrinkBackwardOp::kName;
  const Napi::Env env = info.Env();
  const TensorHandle& dh = TensorOf(info[2], kOp, "dh");
  Operands operands(env, kOp, dh.storage->backend());
  LoraShrinkBackwardOp op;
  op.dy = operands.OptionalIn(info[0], "dy");
  if (IsPresent(info[1])) op.w = operands.Weight(info[1], "w");
  op.dh = operands.In(info[2], "dh");
  op.lora_a = operands.In(info[3], "loraA");
  op.x = operands.OptionalIn(info[4], "x");
  op.scaling = static_cast<float>(NumberArg(info[5], kOp, "scaling"));
  op.dropout = DropoutArgs(info, 6, &operands);
  WantedOutputs outputs(
      info[10],
      {{"dx", &op.dx, &op.accumulate_dx, WithLast(dh.shape, op.lora_a.cols)},
       {"dLoraA", &op.d_lora_a, &op.accumulate_d_lora_a, {op.lora_a.rows, op.lora_a.cols}}},
      &operands);
  ThrowIfError(env, operands.backend()->Enqueue(op, operands.Take()));
  return outputs.Wrap(env);
}

// weightGrad(dy, x, wanted) -> [dW]
Napi::Value WeightGrad(const Napi::CallbackInfo& info) {
  constexpr const char* kOp = WeightGradOp::kName;
  const Napi::Env env = info.Env();
  const TensorHandle& dy = TensorOf(info[0], kOp, "dy");
  Operands operands(env, kOp, dy.storage->backend());
  WeightGradOp op;
  op.dy = operands.In(info[0], "dy");
  op.x = operands.In(info[1], "x");
  WantedOutputs outputs(info[2], {{"dW", &op.dw, &op.accumulate, {op.dy.cols, op.x.cols}}},
                        &operands);
  ThrowIfError(env, operands.backend()->Enqueue(op, operands.Take()));
  return outputs.Wrap(env);
}

}  // namespace

void RegisterLoraParts(Napi::Env env, Napi::Object exports) {
  Export<LoraShrink>(env, exports, "loraShrink");
  Export<LoraExpand>(env, exports, "loraExpand");
  Export<LoraExpandWithNorms>(env, exports, "loraExpandWithNorms");
  Export<LoraExpandBackward>(env, exports, "loraExpandBackward");
  Export<LoraShrinkBackward>(env, exports, "loraShrinkBackward");
  Export<WeightGrad>(env, exports, "weightGrad");
}

}  // namespace lowrank::addon
