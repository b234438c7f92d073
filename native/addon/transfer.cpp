/// Moves bytes between JavaScript, tensors and devices, each in the order of the device's queue.
#include <cstring>
#include <memory>

#include "native/addon/bindings.h"
#include "native/addon/handles.h"
#include "native/addon/host_array.h"
#include "native/addon/waiting.h"

namespace lowrank::addon {
namespace {

/// The source of read(): a tensor, or one part of a weight.
struct Source {
  StoragePtr storage;
  DType dtype = DType::kF32;
  size_t count = 0;
  bool raw = false;  // a weight's part: bytes, no conversion
};

Source SourceOf(const Napi::Value& handle, const Napi::Value& part) {
  constexpr const char* kOp = "read";
  Source source;
  if (!IsPresent(part)) {
    const TensorHandle& tensor = TensorOf(handle, kOp, "tensor");
    source.storage = tensor.storage;
    source.dtype = tensor.dtype;
    source.count = static_cast<size_t>(tensor.elems());
    return source;
  }
  const WeightHandle& weight = WeightOf(handle, kOp, "weight");
  const std::string name = StringArg(part, kOp, "part");
  for (int p = 0; p < WeightHandle::kPartCount; ++p) {
    if (name == WeightHandle::PartName(p) && weight.parts[p]) source.storage = weight.parts[p];
  }
  if (!source.storage) {
    ThrowIfError(handle.Env(),
                 Refuse(Code::kValue, kOp, "part", "one that the weight has", "\"" + name + "\""));
  }
  source.raw = true;
  source.count = source.storage->bytes();
  return source;
}

/// The sink that converts into `data`, the memory of `source.count` elements of that type.
std::function<Status(const void*)> SinkInto(Napi::Env env, const Source& source, void* data,
                                            napi_typedarray_type type) {
  const bool fits = source.raw || type == napi_float32_array ||
                    (type == napi_uint16_array && source.dtype != DType::kF32);
  if (!fits) {
    ThrowIfError(env, Refuse(Code::kDtype, "read", "target",
                             source.dtype == DType::kF32 ? "a Float32Array"
                                                         : "a Float32Array or a Uint16Array",
                             "an array of another type"));
  }
  return [data, type, source_info = std::make_tuple(source.dtype, source.count, source.raw)](
             const void* bytes) -> Status {
    const auto& [dtype, elements, raw] = source_info;
    if (!raw) return ConvertOut(bytes, dtype, elements, type, data);
    if (elements != 0) std::memcpy(data, bytes, elements);
    return Status();
  };
}

/// The elements of a result: f32 values, or the bits of a 16-bit dtype.
napi_typedarray_type ElementsArg(const Napi::Value& value) {
  const std::string name = StringArg(value, "read", "elements");
  if (name == "f32") return napi_float32_array;
  if (name == "bits") return napi_uint16_array;
  ThrowIfError(value.Env(),
               Refuse(Code::kValue, "read", "elements", "f32 or bits", "\"" + name + "\""));
  return napi_float32_array;
}

// read(handle, part | null, 'f32' | 'bits', callback(code | null, message, ArrayBuffer)): a part of
// a weight is read as raw bytes. The buffer is made here, because JavaScript goes on while the
// queue writes, and could detach or shrink its own buffer.
Napi::Value Read(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const Source source = SourceOf(info[0], info[1]);
  const napi_typedarray_type type = ElementsArg(info[2]);
  size_t element_bytes = 1;
  if (!source.raw) element_bytes = type == napi_float32_array ? sizeof(float) : sizeof(uint16_t);
  Napi::ArrayBuffer target = EnvState::Of(env).NewBuffer(env, source.count * element_bytes);
  auto sink = SinkInto(env, source, target.Data(), type);
  QueueWithCallback(env, info[3], target, [&](DoneFn done) {
    return source.storage->backend()->Read(source.storage, std::move(sink), std::move(done),
                                           EnvState::Of(env).cancel());
  });
  return env.Undefined();
}

// readSync(handle, part | null, target): false if the environment went away in the meantime,
// because no error can be thrown into one that is closing. The array belongs to the caller, who
// waits.
Napi::Value ReadSync(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  EnvState& state = EnvState::Of(env);
  const Source source = SourceOf(info[0], info[1]);
  const HostArray target = HostArrayOf(info[2], "read", "target");
  const size_t count = source.raw ? target.length * target.element_bytes() : target.length;
  if (count != source.count) {
    ThrowIfError(env, Refuse(Code::kShape, "read", "target",
                             "of length " + std::to_string(source.count), std::to_string(count)));
  }
  auto sink = SinkInto(env, source, target.data, target.type);
  const auto arrival = std::make_shared<Parcel>(0);
  ThrowIfError(env,
               source.storage->backend()->Read(
                   source.storage, std::move(sink),
                   [arrival](const Status& outcome) { arrival->Seal(outcome); }, state.cancel()));
  return AwaitParcel(env, arrival.get());
}

// writeTensor(tensor, data)
Napi::Value WriteTensor(const Napi::CallbackInfo& info) {
  constexpr const char* kOp = "write";
  const Napi::Env env = info.Env();
  const TensorHandle& tensor = TensorOf(info[0], kOp, "tensor");
  const HostArray data = HostArrayOf(info[1], kOp, "data");
  const size_t bytes = tensor.storage->bytes();
  const auto parcel = std::make_shared<Parcel>(bytes);
  ThrowIfError(
      env, ConvertIn(data, tensor.dtype, static_cast<size_t>(tensor.elems()), kOp, parcel->data()));
  ThrowIfError(env, tensor.storage->backend()->Write(
                        tensor.storage,
                        [parcel, bytes](void* target) -> Status {
                          if (bytes != 0) std::memcpy(target, parcel->data(), bytes);
                          return Status();
                        },
                        EnvState::Of(env).cancel()));
  return env.Undefined();
}

/// A copy of `source` on another device, ordered with both queues.
Status CopyStorage(const StoragePtr& source, Backend* backend, const CancelPtr& cancel,
                   StoragePtr* target) {
  const size_t bytes = source->bytes();
  LOWRANK_RETURN_IF_ERROR(backend->Allocate(bytes, target));
  const auto parcel = std::make_shared<Parcel>(bytes);
  LOWRANK_RETURN_IF_ERROR(source->backend()->Read(
      source,
      [parcel, bytes](const void* data) -> Status {
        if (bytes != 0) std::memcpy(parcel->data(), data, bytes);
        return Status();
      },
      [parcel](const Status& outcome) { parcel->Seal(outcome); }, cancel));
  return backend->Write(
      *target,
      [parcel, bytes](void* data) -> Status {
        LOWRANK_RETURN_IF_ERROR(parcel->Await());
        if (bytes != 0) std::memcpy(data, parcel->data(), bytes);
        return Status();
      },
      cancel);
}

// toDevice(tensor | weight, device)
Napi::Value ToDevice(const Napi::CallbackInfo& info) {
  constexpr const char* kOp = "to";
  const Napi::Env env = info.Env();
  Backend* backend = BackendArg(info[1]);
  const CancelPtr& cancel = EnvState::Of(env).cancel();
  if (IsWeight(info[0])) {
    WeightHandle copy = WeightOf(info[0], kOp, "weight");
    copy.accounted_bytes = 0;
    for (StoragePtr& part : copy.parts) {
      const StoragePtr source = part;
      if (source) ThrowIfError(env, CopyStorage(source, backend, cancel, &part));
    }
    return WrapWeight(env, std::move(copy));
  }
  TensorHandle copy = TensorOf(info[0], kOp, "tensor");
  copy.accounted_bytes = 0;
  const StoragePtr source = copy.storage;
  ThrowIfError(env, CopyStorage(source, backend, cancel, &copy.storage));
  return WrapTensor(env, std::move(copy));
}

// synchronize(device, callback)
Napi::Value Synchronize(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Backend* backend = BackendArg(info[0]);
  QueueWithCallback(env, info[1], Napi::Value(), [&](DoneFn done) {
    return backend->Synchronize(std::move(done), EnvState::Of(env).cancel());
  });
  return env.Undefined();
}

}  // namespace

void RegisterTransfer(Napi::Env env, Napi::Object exports) {
  Export<Read>(env, exports, "read");
  Export<ReadSync>(env, exports, "readSync");
  Export<WriteTensor>(env, exports, "writeTensor");
  Export<ToDevice>(env, exports, "toDevice");
  Export<Synchronize>(env, exports, "synchronize");
}

}  // namespace lowrank::addon
