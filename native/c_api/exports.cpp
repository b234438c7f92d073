#include "native/c_api/exports.h"

#include <utility>

#include "native/c_api/operands.h"
#include "native/core/runtime/queue.h"

namespace lowrank::c_api {
namespace {

/// The tensor and what it points to, in one allocation.
struct Export {
  DLManagedTensorVersioned managed;
  std::vector<int64_t> shape;
  std::vector<int64_t> strides;
  std::shared_ptr<const void> keep;
};

struct Legacy {
  DLManagedTensor managed;
  DLManagedTensorVersioned* whole;
};

}  // namespace

DLManagedTensorVersioned* NewExport(void* data, DLDevice device, DLDataType dtype,
                                    std::vector<int64_t> shape, bool read_only,
                                    std::shared_ptr<const void> keep) {
  auto made = std::make_unique<Export>();
  made->shape = std::move(shape);
  made->strides.resize(made->shape.size(), 1);
  for (size_t i = made->shape.size(); i > 1; --i) {
    made->strides[i - 2] = made->strides[i - 1] * made->shape[i - 1];
  }
  made->keep = std::move(keep);
  DLManagedTensorVersioned& managed = made->managed;
  managed.version = DLPackVersion{DLPACK_MAJOR_VERSION, DLPACK_MINOR_VERSION};
  managed.manager_ctx = made.get();
  managed.deleter = [](DLManagedTensorVersioned* self) {
    if (self != nullptr) delete static_cast<Export*>(self->manager_ctx);
  };
  managed.flags = read_only ? DLPACK_FLAG_BITMASK_READ_ONLY : 0;
  DLTensor& tensor = managed.dl_tensor;
  tensor.data = data;
  tensor.device = device;
  tensor.ndim = static_cast<int32_t>(made->shape.size());
  tensor.dtype = dtype;
  tensor.shape = made->shape.data();
  tensor.strides = made->strides.data();
  tensor.byte_offset = 0;
  return &made.release()->managed;
}

}  // namespace lowrank::c_api

using namespace lowrank;
using namespace lowrank::c_api;

int32_t lowrank_tensor_new(DLDevice device, DLDataType dtype, int32_t ndim, const int64_t* shape,
                           DLManagedTensorVersioned** tensor) {
  constexpr const char* kOp = "tensor_new";
  return Guard(kOp, [&]() -> Status {
    if (tensor == nullptr) return RefuseNull(kOp, "tensor", "where to write it");
    DType ignored = DType::kF32;
    const bool bytes = dtype.code == kDLUInt && dtype.bits == 8 && dtype.lanes == 1;
    if (!bytes && !DTypeOf(dtype, &ignored)) {
      return Refuse(Code::kDtype, kOp, "dtype", "float32, bfloat16, float16 or uint8",
                    DLTypeName(dtype));
    }
    DLTensor wanted{};
    int64_t unaligned = 0;  // stands for the memory that there is not yet
    wanted.data = &unaligned;
    wanted.device = device;
    wanted.dtype = dtype;
    wanted.ndim = ndim;
    wanted.shape = const_cast<int64_t*>(shape);
    int64_t count = 0;
    LOWRANK_RETURN_IF_ERROR(CheckTensor(kOp, "tensor", &wanted, &count));
    Backend* backend = nullptr;
    LOWRANK_RETURN_IF_ERROR(BackendOf(kOp, device, LOWRANK_DEVICE_OF_OPERANDS, &backend));
    StoragePtr storage;
    LOWRANK_RETURN_IF_ERROR(
        backend->Allocate(static_cast<size_t>(count) * (dtype.bits / 8), &storage));
    if (!backend->HostAddressable()) {
      // A stream of the caller does not follow the one on which the memory comes into being.
      Outcome there;
      LOWRANK_RETURN_IF_ERROR(backend->Synchronize(there.Done(), nullptr));
      LOWRANK_RETURN_IF_ERROR(there.Get());
    }
    if (IsHost(device)) device = DLDevice{kDLCPU, 0};
    *tensor = NewExport(storage->data(), device, dtype, std::vector<int64_t>(shape, shape + ndim),
                        false, storage);
    return Status();
  });
}

int32_t lowrank_to_dlpack_legacy(DLManagedTensorVersioned* tensor, DLManagedTensor** legacy) {
  constexpr const char* kOp = "to_dlpack_legacy";
  return Guard(kOp, [&]() -> Status {
    if (tensor == nullptr) return RefuseNull(kOp, "tensor", "a tensor");
    if (legacy == nullptr) return RefuseNull(kOp, "legacy", "where to write it");
    auto made = std::make_unique<Legacy>();
    made->whole = tensor;
    made->managed.dl_tensor = tensor->dl_tensor;
    made->managed.manager_ctx = made.get();
    made->managed.deleter = [](DLManagedTensor* self) {
      if (self == nullptr) return;
      const std::unique_ptr<Legacy> all(static_cast<Legacy*>(self->manager_ctx));
      if (all->whole->deleter != nullptr) all->whole->deleter(all->whole);
    };
    *legacy = &made.release()->managed;
    return Status();
  });
}
