/// Helpers that the op functions share: operands in, outputs fresh or added to.
#pragma once

#include "native/addon/handles.h"

namespace lowrank::addon {

/// Collects what an op reads and writes, and rejects operands of another device.
class Operands {
 public:
  Operands(Napi::Env env, const char* op, Backend* backend);

  Backend* backend() const { return backend_; }
  Napi::Env env() const { return env_; }
  const char* op() const { return op_; }

  TensorView In(const Napi::Value& value, const char* operand);
  TensorView OptionalIn(const Napi::Value& value, const char* operand);
  /// A vector of N values is the row [1, N], whatever its rank.
  TensorView OptionalRow(const Napi::Value& value, const char* operand);
  WeightView Weight(const Napi::Value& value, const char* operand);

  FeatureMapView FeatureMap(const Napi::Value& value, const char* operand);
  IndexView Indices(const Napi::Value& value, const char* operand);
  IndexView OptionalIndices(const Napi::Value& value, const char* operand);

  /// A fresh output.
  TensorView Out(TensorHandle* handle, DType dtype, std::vector<int64_t> shape);
  /// Fresh memory that the op writes.
  StoragePtr OutPart(size_t bytes);
  /// An existing output, to which the op adds.
  TensorView InOut(const Napi::Value& value, const char* operand);

  /// Host memory that the descriptor points into.
  void Keep(std::shared_ptr<const void> tables) { refs_.tables = std::move(tables); }
  OpRefs Take();

 private:
  void Hold(const StoragePtr& storage, const char* operand);

  Napi::Env env_;
  const char* op_;
  Backend* backend_;
  OpRefs refs_;
};

/// `shape` with another last dimension; a scalar becomes a vector.
std::vector<int64_t> WithLast(std::vector<int64_t> shape, int64_t last);

/// dropout, seedLow, seedHigh, dropoutMask | null, from argument `first` on.
DropoutSpec DropoutArgs(const Napi::CallbackInfo& info, size_t first, Operands* operands);
DropoutSpec DropoutArgs(const Napi::Value& p, const Napi::Value& seed_low,
                        const Napi::Value& seed_high, const Napi::Value& mask, Operands* operands);

/// 'exact' or 'int8'.
Compute ComputeArg(const Napi::Value& value, const char* op);

/// One output of several.
struct WantedOutput {
  const char* name;
  TensorView* view;
  bool* accumulate;
  std::vector<int64_t> shape;
  bool row = false;  // a vector, which is the row [1, N]
};

/// The outputs of an op, each requested by its position in an array: null (not wanted), a dtype
/// (fresh), or a tensor (added to). Wrap() returns the fresh ones, and null for the others.
class WantedOutputs {
 public:
  WantedOutputs(const Napi::Value& wanted, std::vector<WantedOutput> outputs, Operands* operands);
  Napi::Value Wrap(Napi::Env env);

 private:
  std::vector<TensorHandle> fresh_;
};

}  // namespace lowrank::addon
