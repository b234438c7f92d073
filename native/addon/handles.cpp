#include "native/addon/handles.h"

#include <cmath>
#include <memory>

#include "native/core/runtime/registry.h"

namespace lowrank::addon {
namespace {

// Random constants; it only matters that nobody else uses them.
constexpr napi_type_tag kTensorTag = {0x8f21b6d4c0e74a11ULL, 0x9d3c5a7be1f04262ULL};
constexpr napi_type_tag kWeightTag = {0x51c7e09a3b684df2ULL, 0xb7a6f1d28c954e03ULL};

constexpr napi_type_tag kFeatureMapTag = {0x2e9d4c81f5a07b36ULL, 0xc41873ea96d2504fULL};
constexpr napi_type_tag kIndicesTag = {0x71c0b8d3e64f29a5ULL, 0x9a37f10c5be8d264ULL};

constexpr double kMaxSafeInteger = 9007199254740991.0;
/// More dimensions are a mistake.
constexpr uint32_t kMaxRank = 32;

const char* KindOf(const Napi::Value& value) {
  if (value.IsUndefined()) return "undefined";
  if (value.IsNull()) return "null";
  if (value.IsString()) return "a string";
  if (value.IsNumber()) return "a number";
  if (value.IsExternal()) return "a handle of another kind";
  return "another value";
}

template <typename Handle>
void ReleaseAccounting(Napi::BasicEnv env, Handle* handle) {
  if (handle->accounted_bytes == 0) return;
  Napi::MemoryManagement::AdjustExternalMemory(env, -handle->accounted_bytes);
  handle->accounted_bytes = 0;
}

/// Calls `visit` with each reference of a handle to memory; some may be null.
template <typename Visit>
void EachStorage(TensorHandle& handle, const Visit& visit) {
  visit(handle.storage);
}
template <typename Visit>
void EachStorage(WeightHandle& handle, const Visit& visit) {
  for (StoragePtr& part : handle.parts) visit(part);
}
template <typename Visit>
void EachStorage(FeatureMapHandle& handle, const Visit& visit) {
  visit(handle.begin);
  visit(handle.index);
}
template <typename Visit>
void EachStorage(IndexHandle& handle, const Visit& visit) {
  visit(handle.data);
}

template <typename Handle>
void ReleaseStorage(Handle* handle) {
  EachStorage(*handle, [](StoragePtr& storage) {
    if (!storage) return;
    storage->DropHandle();
    storage.reset();
  });
}

/// Garbage collection is only a safety net: it drops the reference that dispose() would have
/// dropped.
template <typename Handle>
Napi::Value Wrap(Napi::Env env, Handle handle, const napi_type_tag& tag, int64_t bytes) {
  auto owned = std::make_unique<Handle>(std::move(handle));
  Napi::External<Handle> external =
      Napi::External<Handle>::New(env, owned.get(), [](Napi::BasicEnv basic_env, Handle* data) {
        ReleaseAccounting(basic_env, data);
        ReleaseStorage(data);
        delete data;
      });
  Handle* raw = owned.release();
  EachStorage(*raw, [](StoragePtr& storage) {
    if (storage) storage->AddHandle();
  });
  external.TypeTag(&tag);
  raw->accounted_bytes = bytes;
  Napi::MemoryManagement::AdjustExternalMemory(env, bytes);
  return external;
}

template <typename Handle>
Handle* Unwrap(const Napi::Value& value, const napi_type_tag& tag) {
  if (!value.IsExternal()) return nullptr;
  const Napi::External<Handle> external = value.As<Napi::External<Handle>>();
  if (!external.CheckTypeTag(&tag)) return nullptr;
  return external.Data();
}

}  // namespace

void Throw(Napi::Env env, Code code, const std::string& message) {
  Napi::Error error =
      code == Code::kType ? Napi::TypeError::New(env, message) : Napi::Error::New(env, message);
  error.Set("code", Napi::String::New(env, CodeName(code)));
  throw error;
}

void ThrowIfError(Napi::Env env, const Status& status) {
  if (!status.ok()) Throw(env, status.code(), status.message());
}

int64_t TensorHandle::elems() const {
  int64_t count = 1;
  for (const int64_t dim : shape) count *= dim;
  return count;
}

TensorView TensorHandle::View() const {
  TensorView view;
  view.data = storage->data();
  view.dtype = dtype;
  view.present = true;
  view.cols = shape.empty() ? 1 : shape.back();
  view.rows = 1;
  for (size_t i = 0; i + 1 < shape.size(); ++i) view.rows *= shape[i];
  return view;
}

const char* WeightHandle::PartName(int part) {
  constexpr const char* kNames[kPartCount] = {
      "codes",        "codebook",     "absmax",   "absmax8bit", "absmaxCodebook",
      "nestedAbsmax", "absmaxOffset", "scale",    "scaleTable", "scaleOuter",
      "min",          "minTable",     "minOuter", "zero",       "group"};
  return kNames[part];
}

void WeightHandle::SetShape(const Napi::Value& N, const Napi::Value& K, const char* op) {
  Napi::Array shape = Napi::Array::New(N.Env(), 2);
  shape.Set(0u, N);
  shape.Set(1u, K);
  const std::vector<int64_t> dims = ShapeArg(shape, op);
  rows = dims[0];
  cols = dims[1];
}

QuantView WeightHandle::View() const {
  auto data = [this](Part part) { return parts[part] ? parts[part]->data() : nullptr; };
  QuantView view;
  view.format = format;
  view.rows = rows;
  view.cols = cols;
  view.blocksize = blocksize;
  view.codes = static_cast<uint8_t*>(data(kCodes));
  view.codebook = static_cast<const float*>(data(kCodebook));
  view.absmax = static_cast<float*>(data(kAbsmax));
  view.absmax_8bit = static_cast<uint8_t*>(data(kAbsmax8bit));
  view.absmax_codebook = static_cast<const float*>(data(kAbsmaxCodebook));
  view.nested_absmax = static_cast<float*>(data(kNestedAbsmax));
  view.absmax_offset = static_cast<float*>(data(kAbsmaxOffset));
  view.nested_blocksize = nested_blocksize;
  view.rowwise = rowwise;
  view.planes = planes;
  view.planes.scale.data = data(kScale);
  view.planes.scale.table = static_cast<const float*>(data(kScaleTable));
  view.planes.scale.outer = data(kScaleOuter);
  view.planes.min.data = data(kMin);
  view.planes.min.table = static_cast<const float*>(data(kMinTable));
  view.planes.min.outer = data(kMinOuter);
  view.planes.zero = data(kZero);
  view.planes.group = static_cast<const int32_t*>(data(kGroup));
  return view;
}

Napi::Value WrapTensor(Napi::Env env, TensorHandle handle) {
  const int64_t bytes = static_cast<int64_t>(handle.storage->bytes());
  return Wrap(env, std::move(handle), kTensorTag, bytes);
}

Napi::Value WrapTensors(Napi::Env env, std::initializer_list<TensorHandle*> handles) {
  Napi::Array result = Napi::Array::New(env, handles.size());
  uint32_t i = 0;
  for (TensorHandle* handle : handles) {
    result.Set(i++, handle->storage ? WrapTensor(env, std::move(*handle)) : env.Null());
  }
  return result;
}

Napi::Value WrapWeight(Napi::Env env, WeightHandle handle) {
  int64_t bytes = 0;
  for (const StoragePtr& part : handle.parts) {
    if (part) bytes += static_cast<int64_t>(part->bytes());
  }
  return Wrap(env, std::move(handle), kWeightTag, bytes);
}

FeatureMapView FeatureMapHandle::View() const {
  FeatureMapView view;
  view.begin = begin ? static_cast<const int32_t*>(begin->data()) : nullptr;
  view.index = static_cast<const int32_t*>(index->data());
  view.inputs = inputs;
  view.outputs = outputs;
  view.entries = entries;
  return view;
}

Napi::Value WrapFeatureMap(Napi::Env env, FeatureMapHandle handle) {
  size_t bytes = handle.index->bytes();
  if (handle.begin) bytes += handle.begin->bytes();
  return Wrap(env, std::move(handle), kFeatureMapTag, static_cast<int64_t>(bytes));
}

StoragePtr FilledPart(Napi::Env env, Backend* backend, const void* data, size_t bytes) {
  StoragePtr part;
  ThrowIfError(env, backend->Allocate(bytes, &part));
  ThrowIfError(env, FillFresh(env, part, [&](void* target) {
                 if (bytes != 0) std::memcpy(target, data, bytes);
                 return Status();
               }));
  return part;
}

StoragePtr IntegersPart(Napi::Env env, Backend* backend, const std::vector<int32_t>& values) {
  return FilledPart(env, backend, values.data(), values.size() * sizeof(int32_t));
}

IndexView IndexHandle::View() const {
  IndexView view;
  view.data = static_cast<const int32_t*>(data->data());
  view.count = count;
  view.limit = limit;
  view.present = true;
  return view;
}

Napi::Value WrapIndices(Napi::Env env, IndexHandle handle) {
  const auto bytes = static_cast<int64_t>(handle.data->bytes());
  return Wrap(env, std::move(handle), kIndicesTag, bytes);
}

IndexHandle& IndicesOf(const Napi::Value& value, const char* op, const char* operand) {
  IndexHandle* handle = Unwrap<IndexHandle>(value, kIndicesTag);
  if (handle == nullptr) {
    ThrowIfError(value.Env(), Refuse(Code::kType, op, operand, "indices", KindOf(value)));
  }
  if (!handle->data) {
    ThrowIfError(value.Env(),
                 Refuse(Code::kDisposed, op, operand, "live indices", "disposed ones"));
  }
  return *handle;
}

FeatureMapHandle& FeatureMapOf(const Napi::Value& value, const char* op, const char* operand) {
  FeatureMapHandle* handle = Unwrap<FeatureMapHandle>(value, kFeatureMapTag);
  if (handle == nullptr) {
    ThrowIfError(value.Env(), Refuse(Code::kType, op, operand, "a feature map", KindOf(value)));
  }
  if (!handle->index) {
    ThrowIfError(value.Env(), Refuse(Code::kDisposed, op, operand, "a live map", "a disposed one"));
  }
  return *handle;
}

TensorHandle& TensorOf(const Napi::Value& value, const char* op, const char* operand) {
  TensorHandle* handle = Unwrap<TensorHandle>(value, kTensorTag);
  if (handle == nullptr) {
    ThrowIfError(value.Env(), Refuse(Code::kType, op, operand, "a tensor", KindOf(value)));
  }
  if (!handle->storage) {
    ThrowIfError(value.Env(),
                 Refuse(Code::kDisposed, op, operand, "a live tensor", "a disposed one"));
  }
  return *handle;
}

WeightHandle& WeightOf(const Napi::Value& value, const char* op, const char* operand) {
  WeightHandle* handle = Unwrap<WeightHandle>(value, kWeightTag);
  if (handle == nullptr) {
    ThrowIfError(value.Env(),
                 Refuse(Code::kType, op, operand, "a quantised weight", KindOf(value)));
  }
  if (!handle->parts[WeightHandle::kCodes]) {
    ThrowIfError(value.Env(),
                 Refuse(Code::kDisposed, op, operand, "a live weight", "a disposed one"));
  }
  return *handle;
}

bool IsWeight(const Napi::Value& value) {
  return Unwrap<WeightHandle>(value, kWeightTag) != nullptr;
}

void Dispose(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  if (TensorHandle* tensor = Unwrap<TensorHandle>(info[0], kTensorTag)) {
    ReleaseStorage(tensor);
    ReleaseAccounting(env, tensor);
  } else if (WeightHandle* weight = Unwrap<WeightHandle>(info[0], kWeightTag)) {
    ReleaseStorage(weight);
    ReleaseAccounting(env, weight);
  } else if (FeatureMapHandle* map = Unwrap<FeatureMapHandle>(info[0], kFeatureMapTag)) {
    ReleaseStorage(map);
    ReleaseAccounting(env, map);
  } else if (IndexHandle* indices = Unwrap<IndexHandle>(info[0], kIndicesTag)) {
    ReleaseStorage(indices);
    ReleaseAccounting(env, indices);
  } else {
    ThrowIfError(env,
                 Refuse(Code::kType, "dispose", "handle",
                        "a tensor, a quantised weight, a feature map or indices", KindOf(info[0])));
  }
  EnvState::Of(env).graveyard()->DeleteBuried(env);
}

std::string StringArg(const Napi::Value& value, const char* op, const char* operand) {
  if (!value.IsString()) {
    ThrowIfError(value.Env(), Refuse(Code::kType, op, operand, "a string", KindOf(value)));
  }
  return value.As<Napi::String>().Utf8Value();
}

double NumberArg(const Napi::Value& value, const char* op, const char* operand) {
  if (!value.IsNumber()) {
    ThrowIfError(value.Env(), Refuse(Code::kType, op, operand, "a number", KindOf(value)));
  }
  return value.As<Napi::Number>().DoubleValue();
}

int64_t IntegerArg(const Napi::Value& value, const char* op, const char* operand, Code code,
                   int64_t most) {
  const double number = NumberArg(value, op, operand);
  if (!(number >= 0 && number <= static_cast<double>(most) && number == std::floor(number))) {
    ThrowIfError(value.Env(),
                 Refuse(code, op, operand, "an integer from 0 to " + std::to_string(most),
                        std::to_string(number)));
  }
  return static_cast<int64_t>(number);
}

bool BoolArg(const Napi::Value& value) {
  return value.IsBoolean() && value.As<Napi::Boolean>().Value();
}

DType DTypeArg(const Napi::Value& value, const char* op) {
  const std::string name = StringArg(value, op, "dtype");
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    if (name == DTypeName(dtype)) return dtype;
  }
  ThrowIfError(value.Env(),
               Refuse(Code::kDtype, op, "dtype", "f32, bf16 or f16", "\"" + name + "\""));
  return DType::kF32;
}

Backend* BackendArg(const Napi::Value& value) {
  Backend* backend = nullptr;
  ThrowIfError(value.Env(), FindBackend(StringArg(value, "device", "device"), &backend));
  return backend;
}

std::vector<int64_t> ShapeArg(const Napi::Value& value, const char* op) {
  const Napi::Env env = value.Env();
  if (!value.IsArray()) {
    ThrowIfError(env, Refuse(Code::kType, op, "shape", "an array", KindOf(value)));
  }
  const Napi::Array array = value.As<Napi::Array>();
  std::vector<int64_t> shape;
  int64_t count = 1;
  bool overflow = false;
  const uint32_t rank = array.Length();
  if (rank > kMaxRank) {
    ThrowIfError(env, Refuse(Code::kShape, op, "shape",
                             "of at most " + std::to_string(kMaxRank) + " dimensions",
                             std::to_string(rank)));
  }
  for (uint32_t i = 0; i < rank; ++i) {
    const double dim = NumberArg(array.Get(i), op, "shape");
    if (!(dim >= 0 && dim <= kMaxSafeInteger && dim == std::floor(dim))) {
      ThrowIfError(
          env, Refuse(Code::kShape, op, "shape", "of non-negative integers", std::to_string(dim)));
    }
    shape.push_back(static_cast<int64_t>(dim));
    overflow = __builtin_mul_overflow(count, shape.back(), &count) || overflow;
  }
  // Even a product with a zero must not overflow on the way, because kernels fold dimensions.
  if (overflow || count > kMaxElements) {
    ThrowIfError(env, Refuse(Code::kShape, op, "shape", "of at most 2^56 elements", "more"));
  }
  return shape;
}

bool IsPresent(const Napi::Value& value) { return !value.IsUndefined() && !value.IsNull(); }

uint64_t SeedArg(const Napi::Value& low, const Napi::Value& high, const char* op) {
  const auto word = [op](const Napi::Value& value) {
    const double number = NumberArg(value, op, "seed");
    if (!(number >= 0 && number <= 4294967295.0 && number == std::floor(number))) {
      ThrowIfError(value.Env(),
                   Refuse(Code::kValue, op, "seed", "two 32-bit words", std::to_string(number)));
    }
    return static_cast<uint64_t>(number);
  };
  return word(high) << 32 | word(low);
}

TensorHandle NewTensor(Napi::Env env, Backend* backend, DType dtype, std::vector<int64_t> shape) {
  TensorHandle handle;
  handle.dtype = dtype;
  handle.shape = std::move(shape);
  // The shape of a result consists of its operands' dimensions: each fits, but their product may
  // not. Wrapped to a small number it would pass as an allocation, and a kernel would write past
  // it.
  int64_t count = 1;
  for (const int64_t dim : handle.shape) {
    if (__builtin_mul_overflow(count, dim, &count) || count > kMaxElements) {
      ThrowIfError(env,
                   Refuse(Code::kShape, "tensor", "shape", "of at most 2^56 elements", "more"));
    }
  }
  const size_t bytes = static_cast<size_t>(count) * DTypeBytes(dtype);
  ThrowIfError(env, backend->Allocate(bytes, &handle.storage));
  return handle;
}

}  // namespace lowrank::addon
