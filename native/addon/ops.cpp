/// One function an op: handles in, descriptor out to the device, fresh handles back. Leading
/// dimensions of x and dy pass through to the results.
#include "native/addon/bindings.h"
#include "native/addon/handles.h"

namespace lowrank::addon {
namespace {

/// Collects what an op reads and writes, and refuses operands of another device.
class Operands {
 public:
  Operands(Napi::Env env, const char* op, Backend* backend)
      : env_(env), op_(op), backend_(backend) {
    refs_.inputs.reserve(16);
    refs_.outputs.reserve(5);
  }

  Backend* backend() const { return backend_; }

  TensorView In(const Napi::Value& value, const char* operand) {
    const TensorHandle& tensor = TensorOf(value, op_, operand);
    Hold(tensor.storage, operand);
    return tensor.View();
  }

  TensorView OptionalIn(const Napi::Value& value, const char* operand) {
    return IsPresent(value) ? In(value, operand) : TensorView();
  }

  /// A vector of N values is the row [1, N], whatever its rank.
  TensorView OptionalRow(const Napi::Value& value, const char* operand) {
    TensorView view = OptionalIn(value, operand);
    if (view.present && view.rows != 1 && view.cols == 1) std::swap(view.rows, view.cols);
    return view;
  }

  WeightView Weight(const Napi::Value& value, const char* operand) {
    WeightView view;
    if (!IsWeight(value)) {
      view.dense = In(value, operand);
      return view;
    }
    const WeightHandle& weight = WeightOf(value, op_, operand);
    for (const StoragePtr& part : weight.parts) {
      if (part) Hold(part, operand);
    }
    view.quant = weight.View();
    return view;
  }

  /// A fresh output.
  TensorView Out(TensorHandle* handle, DType dtype, std::vector<int64_t> shape) {
    *handle = NewTensor(env_, backend_, dtype, std::move(shape));
    refs_.outputs.push_back(handle->storage);
    return handle->View();
  }

  /// An output that exists and is added to.
  TensorView InOut(const Napi::Value& value, const char* operand) {
    const TensorView view = In(value, operand);
    refs_.outputs.push_back(refs_.inputs.back());
    return view;
  }

  OpRefs Take() {
    refs_.cancel = EnvState::Of(env_).cancel();
    return std::move(refs_);
  }

 private:
  void Hold(const StoragePtr& storage, const char* operand) {
    if (storage->backend() != backend_) {
      ThrowIfError(
          env_, Refuse(Code::kDevice, op_, operand, "on device '" + backend_->Info().device + "'",
                       "'" + storage->backend()->Info().device + "'"));
    }
    refs_.inputs.push_back(storage);
  }

  Napi::Env env_;
  const char* op_;
  Backend* backend_;
  OpRefs refs_;
};

std::vector<int64_t> WithLast(std::vector<int64_t> shape, int64_t last) {
  if (shape.empty()) shape.push_back(1);
  shape.back() = last;
  return shape;
}

DropoutSpec DropoutArgs(const Napi::CallbackInfo& info, size_t first, const char* op,
                        Operands* operands) {
  DropoutSpec dropout;
  dropout.p = NumberArg(info[first], op, "dropout");
  dropout.seed = SeedArg(info[first + 1], info[first + 2], op);
  dropout.mask = operands->OptionalIn(info[first + 3], "dropoutMask");
  return dropout;
}

Compute ComputeArg(const Napi::Value& value, const char* op) {
  const std::string name = StringArg(value, op, "compute");
  if (name == "exact") return Compute::kExact;
  if (name == "int8") return Compute::kInt8;
  ThrowIfError(value.Env(),
               Refuse(Code::kValue, op, "compute", "'exact' or 'int8'", "'" + name + "'"));
  return Compute::kExact;
}

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
  op.dropout = DropoutArgs(info, 7, kOp, &operands);
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

/// The five gradients of loraBackward, in the order of the result.
struct GradientSlot {
  const char* name;
  TensorView LoraBackwardOp::* view;
  bool LoraBackwardOp::* accumulate;
};
constexpr GradientSlot kGradients[] = {
    {"dx", &LoraBackwardOp::dx, &LoraBackwardOp::accumulate_dx},
    {"dLoraA", &LoraBackwardOp::d_lora_a, &LoraBackwardOp::accumulate_d_lora_a},
    {"dLoraB", &LoraBackwardOp::d_lora_b, &LoraBackwardOp::accumulate_d_lora_b},
    {"dBias", &LoraBackwardOp::d_bias, &LoraBackwardOp::accumulate_d_bias},
    {"dLoraBias", &LoraBackwardOp::d_lora_bias, &LoraBackwardOp::accumulate_d_lora_bias},
};

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
  op.dropout = DropoutArgs(info, 7, kOp, &operands);
  if (!info[11].IsArray()) {
    ThrowIfError(env, Refuse(Code::kType, kOp, "wanted", "an array of five", "another value"));
  }
  const Napi::Array wanted = info[11].As<Napi::Array>();
  const std::vector<int64_t> shapes[] = {
      WithLast(dy.shape, op.lora_a.cols),
      {op.lora_a.rows, op.lora_a.cols},
      {op.lora_b.rows, op.lora_b.cols},
      {dy.View().cols},
      {dy.View().cols},
  };
  TensorHandle fresh[std::size(kGradients)];
  for (uint32_t i = 0; i < std::size(kGradients); ++i) {
    const GradientSlot& slot = kGradients[i];
    const Napi::Value want = wanted.Get(i);
    if (!IsPresent(want)) continue;
    if (want.IsString()) {
      op.*slot.view = operands.Out(&fresh[i], DTypeArg(want, kOp), shapes[i]);
    } else {
      op.*slot.view = operands.InOut(want, slot.name);
      op.*slot.accumulate = true;
      TensorView& view = op.*slot.view;
      if (i >= 3 && view.rows != 1 && view.cols == 1) std::swap(view.rows, view.cols);
    }
  }
  ThrowIfError(env, operands.backend()->Enqueue(op, operands.Take()));
  Napi::Array result = Napi::Array::New(env, std::size(kGradients));
  for (uint32_t i = 0; i < std::size(kGradients); ++i) {
    if (fresh[i].storage) {
      result.Set(i, WrapTensor(env, std::move(fresh[i])));
    } else {
      result.Set(i, env.Null());
    }
  }
  return result;
}

}  // namespace

void RegisterOps(Napi::Env env, Napi::Object exports) {
  Export<Matmul>(env, exports, "matmul");
  Export<MatmulInputGrad>(env, exports, "matmulInputGrad");
  Export<LoraForward>(env, exports, "loraForward");
  Export<LoraBackward>(env, exports, "loraBackward");
}

}  // namespace lowrank::addon
