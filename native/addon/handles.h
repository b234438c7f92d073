/// JavaScript handles of native memory: type-tagged externals, so that a foreign object or a handle
/// of the wrong kind is rejected and never cast.
#pragma once

#include <napi.h>

#include <cstring>
#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

#include "native/addon/env_state.h"
#include "native/core/runtime/backend.h"

namespace lowrank::addon {

/// Throws a JavaScript error with the stable `code` of a failed status.
void ThrowIfError(Napi::Env env, const Status& status);
[[noreturn]] void Throw(Napi::Env env, Code code, const std::string& message);

/// A dense tensor. `storage` is null once disposed.
struct TensorHandle {
  StoragePtr storage;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  int64_t accounted_bytes = 0;

  int64_t elems() const;
  /// Folded to a matrix: the last dimension is cols; a scalar is [1, 1].
  TensorView View() const;
};

/// A quantised weight: its parts, and how to read them.
struct WeightHandle {
  enum Part {
    kCodes,
    kCodebook,
    kAbsmax,
    kAbsmax8bit,
    kAbsmaxCodebook,
    kNestedAbsmax,
    kAbsmaxOffset,
    kBlockwiseParts,
    // Of planar weights, beside codes and codebook.
    kScale = kBlockwiseParts,
    kScaleTable,
    kScaleOuter,
    kMin,
    kMinTable,
    kMinOuter,
    kZero,
    kGroup,
    kPartCount
  };
  static const char* PartName(int part);

  StoragePtr parts[kPartCount];  // null if the weight has no such part, or is disposed
  const FormatRow* format = nullptr;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t blocksize = 0;
  int64_t nested_blocksize = 256;
  bool rowwise = false;
  Planes planes{};  // of a planar weight, without its pointers
  int64_t accounted_bytes = 0;

  Backend* backend() const { return parts[kCodes]->backend(); }
  /// rows and cols from two arguments, checked as a tensor's shape is.
  void SetShape(const Napi::Value& N, const Napi::Value& K, const char* op);
  QuantView View() const;
};

/// A map of features. Its indices have been checked, and nobody can write to them.
struct FeatureMapHandle {
  StoragePtr begin;  // null if each output has one input
  StoragePtr index;  // null once disposed
  int64_t inputs = 0;
  int64_t outputs = 0;
  int64_t entries = 0;
  int64_t accounted_bytes = 0;

  FeatureMapView View() const;
};

/// Indices on a device: each is in [0, limit), or -1.
struct IndexHandle {
  StoragePtr data;  // null once disposed
  int64_t count = 0;
  int64_t limit = 0;
  bool holes = false;  // may be -1
  int64_t accounted_bytes = 0;

  IndexView View() const;
};

Napi::Value WrapTensor(Napi::Env env, TensorHandle handle);
/// An array of tensors, with null for those that have no storage.
Napi::Value WrapTensors(Napi::Env env, std::initializer_list<TensorHandle*> handles);
Napi::Value WrapWeight(Napi::Env env, WeightHandle handle);
Napi::Value WrapFeatureMap(Napi::Env env, FeatureMapHandle handle);
Napi::Value WrapIndices(Napi::Env env, IndexHandle handle);

/// The live handle behind a value. Throws ERR_TYPE for anything else and ERR_DISPOSED for a dead
/// one.
TensorHandle& TensorOf(const Napi::Value& value, const char* op, const char* operand);
WeightHandle& WeightOf(const Napi::Value& value, const char* op, const char* operand);
FeatureMapHandle& FeatureMapOf(const Napi::Value& value, const char* op, const char* operand);
IndexHandle& IndicesOf(const Napi::Value& value, const char* op, const char* operand);
bool IsWeight(const Napi::Value& value);

/// Frees the memory as soon as no queued op holds it. A second call does nothing.
void Dispose(const Napi::CallbackInfo& info);

/// Maximum elements of a tensor: far beyond any memory, far below an overflow of 64 bits.
constexpr int64_t kMaxElements = int64_t{1} << 56;

/// Parses arguments, with typed errors. Reading an array element may run a getter of the caller:
/// afterwards the array can have another length, an operand can be disposed, and no pointer into
/// JavaScript's memory is valid (HostArray). So lengths are read once, and memory last.
std::string StringArg(const Napi::Value& value, const char* op, const char* operand);
double NumberArg(const Napi::Value& value, const char* op, const char* operand);
/// An integer from 0 to `most`; anything else throws `code`.
int64_t IntegerArg(const Napi::Value& value, const char* op, const char* operand, Code code,
                   int64_t most);
bool BoolArg(const Napi::Value& value);
DType DTypeArg(const Napi::Value& value, const char* op);
Backend* BackendArg(const Napi::Value& value);
/// Checks each dimension and that bytes fit int64.
std::vector<int64_t> ShapeArg(const Napi::Value& value, const char* op);
bool IsPresent(const Napi::Value& value);
/// A 64-bit seed, which JavaScript passes as two 32-bit words.
uint64_t SeedArg(const Napi::Value& low, const Napi::Value& high, const char* op);

/// Fills memory that nobody else knows yet: fill(void* bytes) -> Status, called once and at once.
/// In place if the host can address the memory, otherwise into a copy that is queued.
template <typename Fill>
Status FillFresh(Napi::Env env, const StoragePtr& storage, const Fill& fill) {
  Backend* backend = storage->backend();
  if (backend->HostAddressable()) return fill(storage->data());
  const size_t bytes = storage->bytes();
  const std::shared_ptr<uint8_t> copy(new uint8_t[bytes == 0 ? 1 : bytes],
                                      std::default_delete<uint8_t[]>());
  LOWRANK_RETURN_IF_ERROR(fill(copy.get()));
  return backend->Write(
      storage,
      [copy, bytes](void* target) -> Status {
        if (bytes != 0) std::memcpy(target, copy.get(), bytes);
        return Status();
      },
      EnvState::Of(env).cancel());
}

/// New memory on `backend` with those bytes.
StoragePtr FilledPart(Napi::Env env, Backend* backend, const void* data, size_t bytes);
/// Integers in new memory on `backend`.
StoragePtr IntegersPart(Napi::Env env, Backend* backend, const std::vector<int32_t>& values);

/// A new tensor on `backend`.
TensorHandle NewTensor(Napi::Env env, Backend* backend, DType dtype, std::vector<int64_t> shape);

}  // namespace lowrank::addon
