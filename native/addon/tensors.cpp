/// Makes tensors: from data, zero-copy over memory of the caller, random, cast.
#include <cstring>
#include <functional>
#include <memory>
#include <utility>

#include "native/addon/bindings.h"
#include "native/addon/handles.h"
#include "native/addon/host_array.h"
#include "native/addon/operands.h"
#include "native/core/ops/op_checks.h"

namespace lowrank::addon {
namespace {

// createTensor(device, dtype, shape, data | null): data is copied; null means zeros.
Napi::Value CreateTensor(const Napi::CallbackInfo& info) {
  constexpr const char* kOp = "Tensor.from";
  const Napi::Env env = info.Env();
  Backend* backend = BackendArg(info[0]);
  const DType dtype = DTypeArg(info[1], kOp);
  TensorHandle handle = NewTensor(env, backend, dtype, ShapeArg(info[2], kOp));
  const size_t count = static_cast<size_t>(handle.elems());
  if (IsPresent(info[3])) {
    const HostArray data = HostArrayOf(info[3], kOp, "data");
    ThrowIfError(env, FillFresh(env, handle.storage, [&](void* target) {
                   return ConvertIn(data, dtype, count, kOp, target);
                 }));
  } else if (count != 0 && !backend->HostAddressable()) {
    // Zeros that the device writes: no bytes cross the bus, and a step that is recorded has them.
    RandomOp op;
    op.kind = RandomOp::Kind::kUniform;
    op.scale = 0;
    op.y = handle.View();
    ThrowIfError(env,
                 backend->Enqueue(op, OpRefs{{}, {handle.storage}, EnvState::Of(env).cancel()}));
  } else if (count != 0) {
    ThrowIfError(env, FillFresh(env, handle.storage, [&](void* target) {
                   std::memset(target, 0, handle.storage->bytes());
                   return Status();
                 }));
  }
  return WrapTensor(env, std::move(handle));
}

/// A function that releases `value`, from any thread; it need not be called.
std::function<void()> KeepAlive(Napi::Env env, const Napi::Value& value) {
  /// Buries the reference when the last copy of the function is destroyed.
  struct Hold {
    std::shared_ptr<Graveyard> graveyard;
    std::unique_ptr<Graveyard::Grave> grave;
    ~Hold() {
      if (grave && grave->reference != nullptr) graveyard->Bury(std::move(grave));
    }
  };
  const auto hold = std::make_shared<Hold>();
  hold->grave = std::make_unique<Graveyard::Grave>();
  hold->graveyard = EnvState::Of(env).graveyard();
  std::function<void()> release = [hold] {};
  if (napi_create_reference(env, value, 1, &hold->grave->reference) != napi_ok) {
    Throw(env, Code::kOom, "Tensor.wrap: no memory for a reference");
  }
  return release;
}

// wrapTensor(device, dtype, shape, typedArray | bigint): no copy. A typed array is kept alive until
// the last op that uses it is done; the caller must keep a pointer valid.
Napi::Value WrapMemory(const Napi::CallbackInfo& info) {
  constexpr const char* kOp = "Tensor.wrap";
  const Napi::Env env = info.Env();
  Backend* backend = BackendArg(info[0]);
  TensorHandle handle;
  handle.dtype = DTypeArg(info[1], kOp);
  handle.shape = ShapeArg(info[2], kOp);
  const size_t bytes = static_cast<size_t>(handle.elems()) * DTypeBytes(handle.dtype);
  void* data = nullptr;
  std::function<void()> release = [] {};
  if (info[3].IsBigInt()) {
    bool lossless = false;
    const uint64_t address = info[3].As<Napi::BigInt>().Uint64Value(&lossless);
    if (!lossless || (address == 0 && bytes != 0) || address % DTypeBytes(handle.dtype) != 0) {
      ThrowIfError(env, Refuse(Code::kValue, kOp, "pointer", "a non-null aligned 64-bit address",
                               std::to_string(address)));
    }
    data = reinterpret_cast<void*>(static_cast<uintptr_t>(address));
  } else {
    const HostArray array = HostArrayOf(info[3], kOp, "data");
    if (array.length * array.element_bytes() != bytes) {
      ThrowIfError(env, Refuse(Code::kShape, kOp, "data", std::to_string(bytes) + " bytes long",
                               std::to_string(array.length * array.element_bytes())));
    }
    if (!array.shared) {
      ThrowIfError(env, Refuse(Code::kType, kOp, "data.buffer", "a SharedArrayBuffer",
                               "an ArrayBuffer, which can be detached while a kernel reads it"));
    }
    data = array.data;
    release = KeepAlive(env, info[3]);
  }
  ThrowIfError(
      env, backend->Wrap(data, bytes, !info[3].IsBigInt(), std::move(release), &handle.storage));
  return WrapTensor(env, std::move(handle));
}

RandomOp::Kind KindArg(const Napi::Value& value) {
  const std::string name = StringArg(value, RandomOp::kName, "kind");
  if (name == "keep") return RandomOp::Kind::kKeep;
  return name == "uniform" ? RandomOp::Kind::kUniform : RandomOp::Kind::kNormal;
}

// randomTensor(device, dtype, shape, kind, seedLow, seedHigh, mean, scale, seedAt | null)
Napi::Value RandomTensor(const Napi::CallbackInfo& info) {
  constexpr const char* kOp = RandomOp::kName;
  const Napi::Env env = info.Env();
  Backend* backend = BackendArg(info[0]);
  TensorHandle handle = NewTensor(env, backend, DTypeArg(info[1], kOp), ShapeArg(info[2], kOp));
  RandomOp op;
  op.kind = KindArg(info[3]);
  op.seed = SeedArg(info[4], info[5], kOp);
  op.mean = NumberArg(info[6], kOp, "mean");
  op.scale = NumberArg(info[7], kOp, "std");
  Operands operands(env, kOp, backend);
  op.seed_at = operands.OptionalRow(info[8], "seed");
  op.y = handle.View();
  OpRefs refs = operands.Take();
  refs.outputs.push_back(handle.storage);
  ThrowIfError(env, backend->Enqueue(op, std::move(refs)));
  return WrapTensor(env, std::move(handle));
}

// castTensor(tensor, dtype)
Napi::Value CastTensor(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const TensorHandle& source = TensorOf(info[0], CastOp::kName, "src");
  Backend* backend = source.storage->backend();
  TensorHandle target = NewTensor(env, backend, DTypeArg(info[1], CastOp::kName), source.shape);
  const CastOp op{source.View(), target.View()};
  ThrowIfError(
      env,
      backend->Enqueue(op, OpRefs{{source.storage}, {target.storage}, EnvState::Of(env).cancel()}));
  return WrapTensor(env, std::move(target));
}

// share(tensor): another handle of the same memory, which stays alive when the first is disposed
Napi::Value Share(const Napi::CallbackInfo& info) {
  TensorHandle copy = TensorOf(info[0], "share", "tensor");
  copy.accounted_bytes = 0;
  return WrapTensor(info.Env(), std::move(copy));
}

// reshape(tensor, shape): the same with another shape of equally many elements
Napi::Value Reshape(const Napi::CallbackInfo& info) {
  constexpr const char* kOp = "reshape";
  const Napi::Env env = info.Env();
  std::vector<int64_t> shape = ShapeArg(info[1], kOp);
  TensorHandle copy = TensorOf(info[0], kOp, "tensor");
  const int64_t elems = copy.elems();
  copy.shape = std::move(shape);
  copy.accounted_bytes = 0;
  if (copy.elems() != elems) {
    ThrowIfError(env,
                 Refuse(Code::kShape, kOp, "shape", "of " + std::to_string(elems) + " elements",
                        std::to_string(copy.elems())));
  }
  return WrapTensor(env, std::move(copy));
}

// overlap(a, b): do two tensors overlap in memory, even in part?
Napi::Value Overlap(const Napi::CallbackInfo& info) {
  constexpr const char* kOp = "overlap";
  const TensorHandle& a = TensorOf(info[0], kOp, "a");
  const TensorHandle& b = TensorOf(info[1], kOp, "b");
  const bool apart = a.storage->backend() != b.storage->backend() ||
                     Ranges().Out("a", a.View()).In("b", b.View()).CheckApart(kOp).ok();
  return Napi::Boolean::New(info.Env(), !apart);
}

Napi::Value DisposeHandle(const Napi::CallbackInfo& info) {
  Dispose(info);
  return info.Env().Undefined();
}

}  // namespace

void RegisterTensors(Napi::Env env, Napi::Object exports) {
  Export<CreateTensor>(env, exports, "createTensor");
  Export<WrapMemory>(env, exports, "wrapTensor");
  Export<RandomTensor>(env, exports, "randomTensor");
  Export<CastTensor>(env, exports, "castTensor");
  Export<Share>(env, exports, "share");
  Export<Reshape>(env, exports, "reshape");
  Export<Overlap>(env, exports, "overlap");
  Export<DisposeHandle>(env, exports, "dispose");
}

}  // namespace lowrank::addon
