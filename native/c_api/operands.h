/// The tensors of the caller as operands of a descriptor.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "native/c_api/call.h"
#include "native/core/runtime/backend.h"

namespace lowrank::c_api {

/// "float32", "bfloat16", "uint8", or "code 7, 64 bits" for a type without a name.
std::string DLTypeName(DLDataType type);
/// False if the ops do not take that type.
bool DTypeOf(DLDataType type, DType* dtype);
DLDataType DLTypeOf(DType dtype);

/// The backend of the library's memory on a device, or what computes there with LOWRANK_DEVICE_*.
Status BackendOf(const char* op, DLDevice memory, uint32_t device, Backend** backend);
/// Does the host address it?
bool IsHost(DLDevice device);
/// Checks a device for being one of those that the interface has.
Status CheckDevice(const char* op, const char* operand, DLDevice device);

/// Checks that `tensor` can be read in one piece: its shape, strides, and address. `count` receives
/// its elements.
Status CheckTensor(const char* op, const char* operand, const DLTensor* tensor, int64_t* count);
/// The address of the first element.
void* DataOf(const DLTensor& tensor);
/// The operand as a matrix: the last dimension is cols, a scalar is [1, 1].
Status ViewOf(const char* op, const char* operand, const DLTensor* tensor, TensorView* view);

/// What one call uses. A refused operand leaves an empty view and the first refusal, so that a body
/// reads its whole struct and Run() refuses.
class Operands {
 public:
  /// `device`, `flags` and `stream` as the struct has them; `known` are the flags of the op.
  Operands(const char* op, uint32_t device, uint32_t flags, uint32_t known, void* stream);

  TensorView In(const DLTensor* tensor, const char* operand);
  TensorView OptionalIn(const DLTensor* tensor, const char* operand);
  /// A vector of N values is the row [1, N], also as [N, 1].
  TensorView Row(const DLTensor* tensor, const char* operand);
  TensorView OptionalRow(const DLTensor* tensor, const char* operand);
  WeightView Weight(lowrank_weight* weight, const char* operand);
  /// int32 on the host, each from 0 to limit - 1, or -1 with `holes`: kernels read where they
  /// point.
  IndexView Indices(const DLTensor* tensor, const char* operand, int64_t limit, bool holes);
  /// The same, of an op whose other operands may lie on any device.
  IndexView HostIndices(const DLTensor* tensor, const char* operand, int64_t limit, bool holes);
  /// int32 on the host, to be written.
  IndexOut OutIndices(const DLTensor* tensor, const char* operand);
  WeightView OptionalWeight(lowrank_weight* weight, const char* operand);

  bool Flag(uint32_t flag) const { return (flags_ & flag) != 0; }
  /// Keeps the first refusal.
  void Check(const Status& status);
  void CheckReserved(uint32_t reserved);
  Status status() const { return status_; }
  const char* op() const { return op_; }
  /// What computes, once all operands are known.
  Status FindBackend(Backend** backend) const;

  template <typename Op>
  Status Run(const Op& op) const {
    LOWRANK_RETURN_IF_ERROR(status_);
    Backend* backend = nullptr;
    LOWRANK_RETURN_IF_ERROR(FindBackend(&backend));
    return backend->RunNow(op, stream_);
  }

 private:
  void TakeDevice(DLDevice device, const char* operand);
  /// Checks for a tensor of int32 on the host, and counts its elements.
  Status CheckIndices(const DLTensor* tensor, const char* operand, int64_t* count) const;

  const char* op_;
  uint32_t device_;
  uint32_t flags_;
  void* stream_;
  Status status_;
  bool placed_ = false;
  DLDevice memory_{kDLCPU, 0};
  const char* placed_by_ = "";
  std::vector<std::shared_ptr<const lowrank_weight>> weights_;
};

}  // namespace lowrank::c_api
