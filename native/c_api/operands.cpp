#include "native/c_api/operands.h"

#include <utility>

#include "native/c_api/weights.h"
#include "native/core/runtime/registry.h"

namespace lowrank::c_api {
namespace {

constexpr int32_t kMostDims = 64;
// Far beyond any memory, far below an overflow of 64 bits.
constexpr int64_t kMostElements = int64_t{1} << 56;

std::string DeviceText(DLDevice device) {
  switch (device.device_type) {
    case kDLCPU:
      return "the host";
    case kDLCUDA:
      return "cuda:" + std::to_string(device.device_id);
    case kDLCUDAHost:
      return "the host (pinned)";
    default:
      return "device type " + std::to_string(static_cast<int>(device.device_type));
  }
}

/// "[3, 64]"
std::string List(const int64_t* values, int32_t count) {
  std::string text = "[";
  for (int32_t i = 0; i < count; ++i) text += (i == 0 ? "" : ", ") + std::to_string(values[i]);
  return text + "]";
}

size_t AlignmentOf(const DLDataType& type) { return type.bits <= 8 ? 1 : type.bits / 8; }

}  // namespace

std::string DLTypeName(DLDataType type) {
  const std::string bits = std::to_string(static_cast<int>(type.bits));
  if (type.lanes != 1) {
    return "a type of " + std::to_string(static_cast<int>(type.lanes)) + " lanes";
  }
  switch (type.code) {
    case kDLInt:
      return "int" + bits;
    case kDLUInt:
      return "uint" + bits;
    case kDLFloat:
      return "float" + bits;
    case kDLBfloat:
      return "bfloat" + bits;
    case kDLBool:
      return "bool" + bits;
    default:
      return "code " + std::to_string(static_cast<int>(type.code)) + ", " + bits + " bits";
  }
}

bool DTypeOf(DLDataType type, DType* dtype) {
  if (type.lanes != 1) return false;
  if (type.code == kDLFloat && type.bits == 32) return *dtype = DType::kF32, true;
  if (type.code == kDLFloat && type.bits == 16) return *dtype = DType::kF16, true;
  if (type.code == kDLBfloat && type.bits == 16) return *dtype = DType::kBF16, true;
  return false;
}

DLDataType DLTypeOf(DType dtype) {
  const auto code = static_cast<uint8_t>(dtype == DType::kBF16 ? kDLBfloat : kDLFloat);
  return DLDataType{code, static_cast<uint8_t>(8 * DTypeBytes(dtype)), 1};
}

bool IsHost(DLDevice device) {
  return device.device_type == kDLCPU || device.device_type == kDLCUDAHost;
}

Status CheckDevice(const char* op, const char* operand, DLDevice device) {
  if (IsHost(device) || (device.device_type == kDLCUDA && device.device_id >= 0)) return Status();
  return Refuse(Code::kDevice, op, operand, "on the host or a CUDA device", DeviceText(device));
}

Status BackendOf(const char* op, DLDevice memory, uint32_t device, Backend** backend) {
  if (device > LOWRANK_DEVICE_REFERENCE) {
    return Refuse(Code::kValue, op, "device", "a LOWRANK_DEVICE_ number, 0 or 1",
                  std::to_string(device));
  }
  if (IsHost(memory)) {
    return FindKnownBackend(device == LOWRANK_DEVICE_REFERENCE ? "reference" : "cpu", backend);
  }
  if (device == LOWRANK_DEVICE_REFERENCE) {
    return Refuse(Code::kDevice, op, "the operands", "on the host (for the reference device)",
                  "tensors on " + DeviceText(memory));
  }
  std::string name = "cuda";
  if (memory.device_id != 0) name += ":" + std::to_string(memory.device_id);
  return FindKnownBackend(name, backend);
}

Status CheckTensor(const char* op, const char* operand, const DLTensor* tensor, int64_t* count) {
  if (tensor == nullptr) return RefuseNull(op, operand, "a tensor");
  LOWRANK_RETURN_IF_ERROR(CheckDevice(op, operand, tensor->device));
  const int32_t ndim = tensor->ndim;
  if (ndim < 0 || ndim > kMostDims) {
    return Refuse(Code::kShape, op, operand, "of 0 to " + std::to_string(kMostDims) + " dimensions",
                  std::to_string(ndim));
  }
  if (ndim > 0 && tensor->shape == nullptr) {
    return Refuse(Code::kType, op, operand, "a tensor with a shape", "a NULL shape");
  }
  int64_t elements = 1;
  bool empty = false;
  for (int32_t i = 0; i < ndim; ++i) {
    const int64_t size = tensor->shape[i];
    if (size == 0) empty = true;
    if (size < 0 || (size > 0 && (__builtin_mul_overflow(elements, size, &elements) ||
                                  elements > kMostElements))) {
      return Refuse(Code::kShape, op, operand, "of a size from 0 to 2^56 elements",
                    List(tensor->shape, ndim));
    }
  }
  *count = empty ? 0 : elements;
  if (empty) return Status();
  if (tensor->strides != nullptr) {
    int64_t expected = 1;
    for (int32_t i = ndim - 1; i >= 0; --i) {
      if (tensor->shape[i] != 1 && tensor->strides[i] != expected) {
        return Refuse(
            Code::kShape, op, operand, "row-major (contiguous, without gaps)",
            "shape " + List(tensor->shape, ndim) + " with strides " + List(tensor->strides, ndim));
      }
      expected *= tensor->shape[i];
    }
  }
  if (tensor->data == nullptr) {
    return Refuse(Code::kDisposed, op, operand, "a tensor with memory",
                  "NULL for " + List(tensor->shape, ndim));
  }
  const auto address = reinterpret_cast<uintptr_t>(tensor->data);
  const auto bytes = static_cast<uint64_t>(elements) * (AlignmentOf(tensor->dtype));
  uint64_t first = 0;
  uint64_t end = 0;
  if (__builtin_add_overflow(address, tensor->byte_offset, &first) ||
      __builtin_add_overflow(first, bytes, &end)) {
    return Refuse(Code::kShape, op, operand, "within the address space",
                  "byte_offset " + std::to_string(tensor->byte_offset));
  }
  if (first % AlignmentOf(tensor->dtype) != 0) {
    return Refuse(
        Code::kValue, op, operand,
        "aligned to its elements of " + std::to_string(AlignmentOf(tensor->dtype)) + " bytes",
        "an address of remainder " + std::to_string(first % AlignmentOf(tensor->dtype)));
  }
  return Status();
}

void* DataOf(const DLTensor& tensor) {
  if (tensor.data == nullptr) return nullptr;
  return static_cast<char*>(tensor.data) + tensor.byte_offset;
}

Status ViewOf(const char* op, const char* operand, const DLTensor* tensor, TensorView* view) {
  if (tensor == nullptr) return RefuseNull(op, operand, "a tensor");
  if (!DTypeOf(tensor->dtype, &view->dtype)) {
    return Refuse(Code::kDtype, op, operand, "float32, bfloat16 or float16",
                  DLTypeName(tensor->dtype));
  }
  int64_t elements = 0;
  LOWRANK_RETURN_IF_ERROR(CheckTensor(op, operand, tensor, &elements));
  view->present = true;
  view->rows = 1;
  view->cols = tensor->ndim == 0 ? 1 : tensor->shape[tensor->ndim - 1];
  for (int32_t i = 0; i + 1 < tensor->ndim; ++i) view->rows *= tensor->shape[i];
  view->data = elements == 0 ? nullptr : DataOf(*tensor);
  return Status();
}

Operands::Operands(const char* op, uint32_t device, uint32_t flags, uint32_t known, void* stream)
    : op_(op), device_(device), flags_(flags), stream_(stream) {
  if ((flags & ~known) != 0) {
    Check(Refuse(Code::kValue, op, "flags", "of the bits " + std::to_string(known),
                 std::to_string(flags)));
  }
}

void Operands::Check(const Status& status) {
  if (status_.ok()) status_ = status;
}

void Operands::CheckReserved(uint32_t reserved) {
  if (reserved == 0) return;
  Check(Refuse(Code::kValue, op_, "reserved", "0", std::to_string(reserved)));
}

void Operands::TakeDevice(DLDevice device, const char* operand) {
  if (IsHost(device)) device = DLDevice{kDLCPU, 0};
  if (!placed_) {
    placed_ = true;
    memory_ = device;
    placed_by_ = operand;
    return;
  }
  if (device.device_type == memory_.device_type && device.device_id == memory_.device_id) return;
  Check(Refuse(Code::kDevice, op_, operand,
               "on " + DeviceText(memory_) + ", where " + placed_by_ + " is", DeviceText(device)));
}

TensorView Operands::In(const DLTensor* tensor, const char* operand) {
  TensorView view;
  const Status status = ViewOf(op_, operand, tensor, &view);
  if (!status.ok()) {
    Check(status);
    return TensorView();
  }
  TakeDevice(tensor->device, operand);
  return view;
}

TensorView Operands::OptionalIn(const DLTensor* tensor, const char* operand) {
  return tensor == nullptr ? TensorView() : In(tensor, operand);
}

TensorView Operands::Row(const DLTensor* tensor, const char* operand) {
  TensorView view = In(tensor, operand);
  if (view.present && view.rows != 1 && view.cols == 1) std::swap(view.rows, view.cols);
  return view;
}

TensorView Operands::OptionalRow(const DLTensor* tensor, const char* operand) {
  return tensor == nullptr ? TensorView() : Row(tensor, operand);
}

WeightView Operands::Weight(lowrank_weight* weight, const char* operand) {
  std::shared_ptr<const lowrank_weight> held;
  const Status status = FindWeight(op_, operand, weight, &held);
  if (!status.ok()) {
    Check(status);
    return WeightView();
  }
  TakeDevice(held->device, operand);
  const WeightView view = held->view;
  weights_.push_back(std::move(held));
  return view;
}

WeightView Operands::OptionalWeight(lowrank_weight* weight, const char* operand) {
  return weight == nullptr ? WeightView() : Weight(weight, operand);
}

Status Operands::CheckIndices(const DLTensor* tensor, const char* operand, int64_t* count) const {
  if (tensor == nullptr) return RefuseNull(op_, operand, "a tensor");
  const DLDataType type = tensor->dtype;
  if (type.code != kDLInt || type.bits != 32 || type.lanes != 1) {
    return Refuse(Code::kDtype, op_, operand, "int32", DLTypeName(type));
  }
  LOWRANK_RETURN_IF_ERROR(CheckTensor(op_, operand, tensor, count));
  if (IsHost(tensor->device)) return Status();
  return Refuse(Code::kUnsupported, op_, operand, "on the host (they are checked there)",
                "a tensor on " + DeviceText(tensor->device));
}

IndexView Operands::HostIndices(const DLTensor* tensor, const char* operand, int64_t limit,
                                bool holes) {
  const auto checked = [&](IndexView* view) -> Status {
    LOWRANK_RETURN_IF_ERROR(CheckIndices(tensor, operand, &view->count));
    view->data = static_cast<const int32_t*>(DataOf(*tensor));
    const int64_t least = holes ? -1 : 0;
    for (int64_t i = 0; i < view->count; ++i) {
      if (view->data[i] >= least && view->data[i] < limit) continue;
      return Refuse(Code::kValue, op_, std::string(operand) + "[" + std::to_string(i) + "]",
                    "from " + std::to_string(least) + " to " + std::to_string(limit - 1),
                    std::to_string(view->data[i]));
    }
    view->limit = limit;
    view->present = true;
    return Status();
  };
  IndexView view;
  const Status status = checked(&view);
  if (status.ok()) return view;
  Check(status);
  return IndexView();
}

IndexView Operands::Indices(const DLTensor* tensor, const char* operand, int64_t limit,
                            bool holes) {
  const IndexView view = HostIndices(tensor, operand, limit, holes);
  if (view.present) TakeDevice(tensor->device, operand);
  return view;
}

IndexOut Operands::OutIndices(const DLTensor* tensor, const char* operand) {
  IndexOut out;
  const Status status = CheckIndices(tensor, operand, &out.count);
  if (!status.ok()) {
    Check(status);
    return IndexOut();
  }
  TakeDevice(tensor->device, operand);
  out.data = static_cast<int32_t*>(DataOf(*tensor));
  return out;
}

Status Operands::FindBackend(Backend** backend) const {
  return BackendOf(op_, memory_, device_, backend);
}

}  // namespace lowrank::c_api
