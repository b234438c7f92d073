#include "native/addon/operands.h"

#include <utility>

namespace lowrank::addon {

Operands::Operands(Napi::Env env, const char* op, Backend* backend)
    : env_(env), op_(op), backend_(backend) {
  refs_.inputs.reserve(16);
  refs_.outputs.reserve(5);
}

TensorView Operands::In(const Napi::Value& value, const char* operand) {
  const TensorHandle& tensor = TensorOf(value, op_, operand);
  Hold(tensor.storage, operand);
  return tensor.View();
}

TensorView Operands::OptionalIn(const Napi::Value& value, const char* operand) {
  return IsPresent(value) ? In(value, operand) : TensorView();
}

TensorView Operands::OptionalRow(const Napi::Value& value, const char* operand) {
  TensorView view = OptionalIn(value, operand);
  if (view.present && view.rows != 1 && view.cols == 1) std::swap(view.rows, view.cols);
  return view;
}

WeightView Operands::Weight(const Napi::Value& value, const char* operand) {
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

FeatureMapView Operands::FeatureMap(const Napi::Value& value, const char* operand) {
  const FeatureMapHandle& map = FeatureMapOf(value, op_, operand);
  if (map.begin) Hold(map.begin, operand);
  Hold(map.index, operand);
  return map.View();
}

IndexView Operands::Indices(const Napi::Value& value, const char* operand) {
  const IndexHandle& indices = IndicesOf(value, op_, operand);
  Hold(indices.data, operand);
  return indices.View();
}

IndexView Operands::OptionalIndices(const Napi::Value& value, const char* operand) {
  return IsPresent(value) ? Indices(value, operand) : IndexView();
}

TensorView Operands::Out(TensorHandle* handle, DType dtype, std::vector<int64_t> shape) {
  *handle = NewTensor(env_, backend_, dtype, std::move(shape));
  refs_.outputs.push_back(handle->storage);
  return handle->View();
}

StoragePtr Operands::OutPart(size_t bytes) {
  StoragePtr part;
  ThrowIfError(env_, backend_->Allocate(bytes, &part));
  refs_.outputs.push_back(part);
  return part;
}

TensorView Operands::InOut(const Napi::Value& value, const char* operand) {
  const TensorView view = In(value, operand);
  refs_.outputs.push_back(refs_.inputs.back());
  return view;
}

OpRefs Operands::Take() {
  refs_.cancel = EnvState::Of(env_).cancel();
  return std::move(refs_);
}

void Operands::Hold(const StoragePtr& storage, const char* operand) {
  if (storage->backend() != backend_) {
    ThrowIfError(env_, Refuse(Code::kDevice, op_, operand, "on device " + backend_->Info().device,
                              storage->backend()->Info().device));
  }
  refs_.inputs.push_back(storage);
}

std::vector<int64_t> WithLast(std::vector<int64_t> shape, int64_t last) {
  if (shape.empty()) shape.push_back(1);
  shape.back() = last;
  return shape;
}

DropoutSpec DropoutArgs(const Napi::CallbackInfo& info, size_t first, Operands* operands) {
  return DropoutArgs(info[first], info[first + 1], info[first + 2], info[first + 3], operands);
}
DropoutSpec DropoutArgs(const Napi::Value& p, const Napi::Value& seed_low,
                        const Napi::Value& seed_high, const Napi::Value& mask, Operands* operands) {
  DropoutSpec dropout;
  dropout.p = NumberArg(p, operands->op(), "dropout");
  dropout.seed = SeedArg(seed_low, seed_high, operands->op());
  dropout.mask = operands->OptionalIn(mask, "dropoutMask");
  return dropout;
}

Compute ComputeArg(const Napi::Value& value, const char* op) {
  const std::string name = StringArg(value, op, "compute");
  if (name == "exact") return Compute::kExact;
  if (name == "int8") return Compute::kInt8;
  ThrowIfError(value.Env(),
               Refuse(Code::kValue, op, "compute", "exact or int8", "\"" + name + "\""));
  return Compute::kExact;
}

WantedOutputs::WantedOutputs(const Napi::Value& wanted, std::vector<WantedOutput> outputs,
                             Operands* operands)
    : fresh_(outputs.size()) {
  if (!wanted.IsArray()) {
    ThrowIfError(operands->env(),
                 Refuse(Code::kType, operands->op(), "wanted",
                        "an array of " + std::to_string(outputs.size()), "another value"));
  }
  const Napi::Array list = wanted.As<Napi::Array>();
  for (uint32_t i = 0; i < outputs.size(); ++i) {
    WantedOutput& output = outputs[i];
    const Napi::Value want = list.Get(i);
    if (!IsPresent(want)) continue;
    if (want.IsString()) {
      const DType dtype = DTypeArg(want, operands->op());
      *output.view = operands->Out(&fresh_[i], dtype, std::move(output.shape));
      continue;
    }
    TensorView view = operands->InOut(want, output.name);
    if (output.row && view.rows != 1 && view.cols == 1) std::swap(view.rows, view.cols);
    *output.view = view;
    *output.accumulate = true;
  }
}

Napi::Value WantedOutputs::Wrap(Napi::Env env) {
  Napi::Array result = Napi::Array::New(env, fresh_.size());
  for (uint32_t i = 0; i < fresh_.size(); ++i) {
    if (fresh_[i].storage) {
      result.Set(i, WrapTensor(env, std::move(fresh_[i])));
    } else {
      result.Set(i, env.Null());
    }
  }
  return result;
}

}  // namespace lowrank::addon
