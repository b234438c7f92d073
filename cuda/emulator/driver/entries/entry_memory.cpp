/// Driver calls on memory: allocations, pools, copies, what a pointer points to.
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#include "cuda/emulator/driver/entries/exports.h"
#include "cuda/emulator/driver/host_memory.h"
#include "cuda/emulator/driver/launch.h"
#include "cuda/emulator/driver/state.h"

namespace lowrank::cuda {

using namespace emu::driver;

namespace {

bool Capturing(const StreamPtr& stream) {
  const std::lock_guard<std::mutex> lock(Capture::Mutex());
  return stream->capture != nullptr;
}

/// An allocation that a captured graph made: its address is the graph's as long as that lives.
class GraphAllocation {
 public:
  GraphAllocation(std::shared_ptr<Memory> memory, AllocationPtr allocation)
      : memory_(std::move(memory)), allocation_(std::move(allocation)) {}
  ~GraphAllocation() { memory_->Finish(allocation_); }
  GraphAllocation(const GraphAllocation&) = delete;
  GraphAllocation& operator=(const GraphAllocation&) = delete;

  int Begin() const {
    memory_->Begin(allocation_);
    return CUDA_SUCCESS;
  }

 private:
  std::shared_ptr<Memory> memory_;
  AllocationPtr allocation_;
};

/// One side of a copy: device memory that must be there when its turn comes, or host memory.
struct Side {
  unsigned char* data = nullptr;
  AllocationPtr allocation;  // null: host
};

/// False where the bytes are in no allocation.
bool DeviceSide(const ContextPtr& context, CUdeviceptr pointer, size_t bytes, Side* side) {
  side->data = reinterpret_cast<unsigned char*>(pointer);
  if (IsPinned(side->data, bytes)) return true;
  side->allocation = context->memory->FindHolding(pointer, bytes);
  return side->allocation != nullptr;
}

int CheckLive(const ContextPtr& context, const Side& side, const char* what) {
  if (side.allocation == nullptr || context->memory->IsLive(side.allocation)) return CUDA_SUCCESS;
  return ReportCopyFault(std::string(what) + ": " +
                         context->memory->Describe(reinterpret_cast<uint64_t>(side.data)));
}

/// The work of a copy; `held` is whatever keeps a side alive.
Work CopyWork(const ContextPtr& context, Side target, Side source, size_t bytes, const char* what,
              std::shared_ptr<void> held = nullptr) {
  return [=, hold = std::move(held)] {
    if (const int result = CheckLive(context, target, what); result != 0) return result;
    if (const int result = CheckLive(context, source, what); result != 0) return result;
    emu::CopyMemory(target.data, source.data, bytes);
    return CUDA_SUCCESS;
  };
}

CUresult CopyAsync(CUstream stream, Side target, Side source, size_t bytes, const char* what) {
  ContextPtr context;
  StreamPtr found;
  if (const CUresult result = EnterStream(stream, &context, &found); result != 0) return result;
  if (bytes == 0) return CUDA_SUCCESS;
  const auto address = [](const Side& side) { return reinterpret_cast<CUdeviceptr>(side.data); };
  Side to = target;
  Side from = source;
  const bool from_host = std::strcmp(what, "cuMemcpyHtoDAsync") == 0;
  const bool to_host = std::strcmp(what, "cuMemcpyDtoHAsync") == 0;
  if (!to_host && !DeviceSide(context, address(target), bytes, &to)) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  if (!from_host && !DeviceSide(context, address(source), bytes, &from)) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  if (to.data == nullptr || from.data == nullptr) return CUDA_ERROR_INVALID_VALUE;
  std::shared_ptr<unsigned char> staged;
  const bool pageable_source = from_host && !IsPinned(from.data, bytes);
  if (pageable_source && !Capturing(found)) {
    // The driver stages pageable memory before it returns: the caller may change it at once.
    staged.reset(static_cast<unsigned char*>(std::malloc(bytes)), std::free);
    if (staged == nullptr) return CUDA_ERROR_OUT_OF_MEMORY;
    std::memcpy(staged.get(), from.data, bytes);
    from.data = staged.get();
  }
  const int result = Submit(context, found, NodeKind::kCopy,
                            CopyWork(context, to, from, bytes, what, std::move(staged)));
  if (result != 0 || !to_host || IsPinned(to.data, bytes) || Capturing(found)) return result;
  // And it returns from a copy to pageable memory once that is done.
  context->streams->Wait(context->streams->Last(found));
  return context->streams->fault();
}

/// A copy on the null stream that is done when the call returns.
CUresult CopyNow(Side target, Side source, size_t bytes, const char* what) {
  if (const int result = RefuseDuringCapture(); result != 0) return result;
  if (const CUresult result = CopyAsync(nullptr, target, source, bytes, what); result != 0) {
    return result;
  }
  return cuStreamSynchronize(nullptr);
}

Side Host(const void* pointer) {
  return {static_cast<unsigned char*>(const_cast<void*>(pointer)), nullptr};
}
Side DevicePointer(CUdeviceptr pointer) {
  return {reinterpret_cast<unsigned char*>(pointer), nullptr};
}

}  // namespace

CUresult cuMemGetInfo_v2(size_t* free_bytes, size_t* total_bytes) {
  ContextPtr context;
  if (const int result = EnterContext(&context); result != 0) return result;
  if (free_bytes == nullptr || total_bytes == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *free_bytes = context->memory->free_bytes();
  *total_bytes = context->memory->limit();
  return CUDA_SUCCESS;
}

CUresult cuMemPoolCreate(CUmemoryPool* pool, const CUmemPoolProps* props) {
  ContextPtr context;
  if (const int result = EnterContext(&context); result != 0) return result;
  if (pool == nullptr || props == nullptr || props->allocType != CU_MEM_ALLOCATION_TYPE_PINNED ||
      props->location.type != CU_MEM_LOCATION_TYPE_DEVICE) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  if (props->location.id != context->device) return CUDA_ERROR_INVALID_DEVICE;
  if (props->handleTypes != 0) return CUDA_ERROR_NOT_SUPPORTED;
  auto object = std::make_shared<PoolObject>();
  object->context = context;
  object->pool = std::make_shared<Pool>();
  object->pool->max_bytes = props->maxSize;
  context->memory->AddPool(object->pool);
  *pool = State::Get().pools.Add(object);
  return CUDA_SUCCESS;
}

CUresult cuMemPoolDestroy(CUmemoryPool pool) {
  ContextPtr context;
  const int entered = EnterContext(&context);
  if (context == nullptr) return entered;
  const auto object = State::Get().pools.Remove(pool);
  if (object == nullptr) return CUDA_ERROR_INVALID_VALUE;
  object->context->memory->RemovePool(object->pool);
  return entered;
}

CUresult cuMemPoolSetAttribute(CUmemoryPool pool, CUmemPool_attribute attribute, void* value) {
  ContextPtr context;
  if (const int result = EnterContext(&context); result != 0) return result;
  const auto object = State::Get().pools.Find(pool);
  if (object == nullptr || value == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (attribute >= 1 && attribute <= 3) return CUDA_SUCCESS;  // how freed memory may be used again
  if (attribute != CU_MEMPOOL_ATTR_RELEASE_THRESHOLD) return CUDA_ERROR_INVALID_VALUE;
  object->context->memory->SetThreshold(object->pool, *static_cast<uint64_t*>(value));
  return CUDA_SUCCESS;
}

CUresult cuMemPoolGetAttribute(CUmemoryPool pool, CUmemPool_attribute attribute, void* value) {
  ContextPtr context;
  if (const int result = EnterContext(&context); result != 0) return result;
  const auto object = State::Get().pools.Find(pool);
  if (object == nullptr || value == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const Pool state = object->context->memory->ReadPool(object->pool);
  constexpr CUmemPool_attribute kReservedHigh = 6, kUsedHigh = 8;
  switch (attribute) {
    case 1:
    case 2:
    case 3:
      *static_cast<int*>(value) = 1;
      return CUDA_SUCCESS;
    case CU_MEMPOOL_ATTR_RELEASE_THRESHOLD:
      *static_cast<uint64_t*>(value) = state.threshold;
      return CUDA_SUCCESS;
    case CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT:
      *static_cast<uint64_t*>(value) = state.reserved;
      return CUDA_SUCCESS;
    case kReservedHigh:
      *static_cast<uint64_t*>(value) = state.reserved_high;
      return CUDA_SUCCESS;
    case CU_MEMPOOL_ATTR_USED_MEM_CURRENT:
      *static_cast<uint64_t*>(value) = state.used;
      return CUDA_SUCCESS;
    case kUsedHigh:
      *static_cast<uint64_t*>(value) = state.used_high;
      return CUDA_SUCCESS;
    default:
      return CUDA_ERROR_INVALID_VALUE;
  }
}

CUresult cuMemPoolTrimTo(CUmemoryPool pool, size_t min_bytes_to_keep) {
  ContextPtr context;
  if (const int result = EnterContext(&context); result != 0) return result;
  const auto object = State::Get().pools.Find(pool);
  if (object == nullptr) return CUDA_ERROR_INVALID_VALUE;
  object->context->memory->TrimPool(object->pool, min_bytes_to_keep);
  return CUDA_SUCCESS;
}

CUresult cuMemAllocFromPoolAsync(CUdeviceptr* pointer, size_t bytes, CUmemoryPool pool,
                                 CUstream stream) {
  ContextPtr context;
  StreamPtr found;
  if (const CUresult result = EnterStream(stream, &context, &found); result != 0) return result;
  const auto object = State::Get().pools.Find(pool);
  if (pointer == nullptr || object == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (object->context != context) return CUDA_ERROR_INVALID_CONTEXT;
  AllocationPtr allocation;
  if (const int result = context->memory->Allocate(bytes, object->pool, &allocation); result != 0) {
    return result;
  }
  Work work;
  if (Capturing(found)) {
    auto owner = std::make_shared<GraphAllocation>(context->memory, allocation);
    work = [owner] { return owner->Begin(); };
  } else {
    work = [memory = context->memory, allocation] {
      memory->Begin(allocation);
      return CUDA_SUCCESS;
    };
  }
  const int result = Submit(context, found, NodeKind::kAllocate, std::move(work));
  if (result != 0) {
    context->memory->Finish(allocation);
    return result;
  }
  *pointer = reinterpret_cast<CUdeviceptr>(allocation->data);
  return CUDA_SUCCESS;
}

CUresult cuMemAllocAsync(CUdeviceptr* pointer, size_t bytes, CUstream stream) {
  ContextPtr context;
  if (const int result = EnterContext(&context); result != 0) return result;
  CUmemoryPool pool = nullptr;
  if (const CUresult result = cuDeviceGetDefaultMemPool(&pool, context->device); result != 0) {
    return result;
  }
  return cuMemAllocFromPoolAsync(pointer, bytes, pool, stream);
}

CUresult cuMemFreeAsync(CUdeviceptr pointer, CUstream stream) {
  ContextPtr context;
  const int entered = EnterContext(&context);
  if (context == nullptr) return entered;
  StreamPtr found;
  if (const CUresult result = FindStream(stream, context, &found); result != 0) return result;
  const AllocationPtr allocation = context->memory->FindStart(pointer);
  if (allocation == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (Capturing(found)) {
    return Submit(context, found, NodeKind::kFree, [memory = context->memory, allocation] {
      memory->Suspend(allocation);
      return CUDA_SUCCESS;
    });
  }
  if (!context->memory->AcceptFree(allocation)) return CUDA_ERROR_INVALID_VALUE;
  // A context that has failed runs nothing any more, but gives its memory back.
  if (entered != 0) {
    context->memory->Finish(allocation);
    return entered;
  }
  return Submit(context, found, NodeKind::kFree, [memory = context->memory, allocation] {
    memory->Finish(allocation);
    return CUDA_SUCCESS;
  });
}

CUresult cuMemAlloc_v2(CUdeviceptr* pointer, size_t bytes) {
  ContextPtr context;
  if (const int result = EnterContext(&context); result != 0) return result;
  if (pointer == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (const int result = RefuseDuringCapture(); result != 0) return result;
  AllocationPtr allocation;
  if (const int result = context->memory->Allocate(bytes, nullptr, &allocation); result != 0) {
    return result;
  }
  *pointer = reinterpret_cast<CUdeviceptr>(allocation->data);
  return CUDA_SUCCESS;
}

CUresult cuMemFree_v2(CUdeviceptr pointer) {
  ContextPtr context;
  const int entered = EnterContext(&context);
  if (context == nullptr) return entered;
  if (pointer == 0) return entered;
  if (const int result = RefuseDuringCapture(); result != 0) return result;
  const AllocationPtr allocation = context->memory->FindStart(pointer);
  if (allocation == nullptr || !context->memory->AcceptFree(allocation)) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  // Kernels may still use memory of cuMemAlloc: the call waits for the device.
  context->streams->WaitAll();
  context->memory->Finish(allocation);
  return context->streams->fault();
}

CUresult cuMemHostAlloc(void** pointer, size_t bytes, unsigned flags) {
  ContextPtr context;
  if (const int result = EnterContext(&context); result != 0) return result;
  constexpr unsigned kAllFlags = 7;
  if (pointer == nullptr || bytes == 0 || flags > kAllFlags) return CUDA_ERROR_INVALID_VALUE;
  if (const int result = RefuseDuringCapture(); result != 0) return result;
  *pointer = AllocatePinned(bytes);
  return *pointer == nullptr ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_SUCCESS;
}

CUresult cuMemFreeHost(void* pointer) {
  ContextPtr context;
  const int entered = EnterContext(&context);
  if (context == nullptr) return entered;
  if (const int result = RefuseDuringCapture(); result != 0) return result;
  if (!IsPinned(pointer, 1)) return CUDA_ERROR_INVALID_VALUE;
  context->streams->WaitAll();
  return FreePinned(pointer) ? entered : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuMemHostRegister_v2(void* pointer, size_t bytes, unsigned flags) {
  ContextPtr context;
  if (const int result = EnterContext(&context); result != 0) return result;
  constexpr unsigned kAllFlags = 15;
  if (pointer == nullptr || bytes == 0 || flags > kAllFlags) return CUDA_ERROR_INVALID_VALUE;
  if (const int result = RefuseDuringCapture(); result != 0) return result;
  return PinExisting(pointer, bytes) ? CUDA_SUCCESS : CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
}

CUresult cuMemHostUnregister(void* pointer) {
  ContextPtr context;
  const int entered = EnterContext(&context);
  if (context == nullptr) return entered;
  if (const int result = RefuseDuringCapture(); result != 0) return result;
  context->streams->WaitAll();
  return UnpinExisting(pointer) ? entered : CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED;
}

CUresult cuMemHostGetDevicePointer_v2(CUdeviceptr* device, void* host, unsigned flags) {
  ContextPtr context;
  if (const int result = EnterContext(&context); result != 0) return result;
  if (device == nullptr || flags != 0 || !IsPinned(host, 1)) return CUDA_ERROR_INVALID_VALUE;
  *device = reinterpret_cast<uintptr_t>(host);
  return CUDA_SUCCESS;
}

CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr target, const void* source, size_t bytes,
                              CUstream stream) {
  return CopyAsync(stream, DevicePointer(target), Host(source), bytes, "cuMemcpyHtoDAsync");
}

CUresult cuMemcpyDtoHAsync_v2(void* target, CUdeviceptr source, size_t bytes, CUstream stream) {
  return CopyAsync(stream, Host(target), DevicePointer(source), bytes, "cuMemcpyDtoHAsync");
}

CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr target, CUdeviceptr source, size_t bytes,
                              CUstream stream) {
  return CopyAsync(stream, DevicePointer(target), DevicePointer(source), bytes,
                   "cuMemcpyDtoDAsync");
}

CUresult cuMemcpyHtoD_v2(CUdeviceptr target, const void* source, size_t bytes) {
  return CopyNow(DevicePointer(target), Host(source), bytes, "cuMemcpyHtoDAsync");
}

CUresult cuMemcpyDtoH_v2(void* target, CUdeviceptr source, size_t bytes) {
  return CopyNow(Host(target), DevicePointer(source), bytes, "cuMemcpyDtoHAsync");
}

CUresult cuMemcpyDtoD_v2(CUdeviceptr target, CUdeviceptr source, size_t bytes) {
  return CopyNow(DevicePointer(target), DevicePointer(source), bytes, "cuMemcpyDtoDAsync");
}

CUresult cuMemsetD8Async(CUdeviceptr target, unsigned char value, size_t count, CUstream stream) {
  ContextPtr context;
  StreamPtr found;
  if (const CUresult result = EnterStream(stream, &context, &found); result != 0) return result;
  if (count == 0) return CUDA_SUCCESS;
  Side side;
  if (!DeviceSide(context, target, count, &side)) return CUDA_ERROR_INVALID_VALUE;
  return Submit(context, found, NodeKind::kSet, [=] {
    if (const int result = CheckLive(context, side, "cuMemsetD8Async"); result != 0) return result;
    emu::SetMemory(side.data, value, count);
    return CUDA_SUCCESS;
  });
}

CUresult cuMemsetD8_v2(CUdeviceptr target, unsigned char value, size_t count) {
  if (const int result = RefuseDuringCapture(); result != 0) return result;
  return cuMemsetD8Async(target, value, count, nullptr);
}

CUresult cuPointerGetAttribute(void* value, CUpointer_attribute attribute, CUdeviceptr pointer) {
  ContextPtr context;
  if (const int result = EnterContext(&context); result != 0) return result;
  if (value == nullptr) return CUDA_ERROR_INVALID_VALUE;
  // The pointer may belong to any device.
  AllocationPtr allocation;
  int ordinal = context->device;
  CUcontext owner = nullptr;
  for (int i = 0; i < State::Get().device_count() && allocation == nullptr; ++i) {
    Device* device = State::Get().FindDevice(i);
    const std::lock_guard<std::mutex> lock(device->mutex);
    if (device->primary == nullptr) continue;
    allocation = device->primary->memory->FindHolding(pointer, 1);
    if (allocation != nullptr) {
      ordinal = i;
      owner = device->handle;
    }
  }
  const bool host = allocation == nullptr;
  if (host && !IsPinned(reinterpret_cast<void*>(pointer), 1)) return CUDA_ERROR_INVALID_VALUE;
  constexpr CUpointer_attribute kContext = 1, kDevicePointer = 3, kHostPointer = 4, kManaged = 8,
                                kRangeStart = 11, kRangeSize = 12;
  constexpr unsigned kMemoryTypeHost = 1;
  switch (attribute) {
    case kContext:
      *static_cast<CUcontext*>(value) = owner;
      return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
      *static_cast<unsigned*>(value) = host ? kMemoryTypeHost : CU_MEMORYTYPE_DEVICE;
      return CUDA_SUCCESS;
    case kDevicePointer:
      *static_cast<CUdeviceptr*>(value) = pointer;
      return CUDA_SUCCESS;
    case kHostPointer:
      if (!host) return CUDA_ERROR_INVALID_VALUE;
      *static_cast<void**>(value) = reinterpret_cast<void*>(pointer);
      return CUDA_SUCCESS;
    case kManaged:
      *static_cast<unsigned*>(value) = 0;
      return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
      *static_cast<int*>(value) = ordinal;
      return CUDA_SUCCESS;
    case kRangeStart:
      if (host) return CUDA_ERROR_INVALID_VALUE;
      *static_cast<CUdeviceptr*>(value) = reinterpret_cast<CUdeviceptr>(allocation->data);
      return CUDA_SUCCESS;
    case kRangeSize:
      if (host) return CUDA_ERROR_INVALID_VALUE;
      *static_cast<size_t*>(value) = allocation->bytes;
      return CUDA_SUCCESS;
    default:
      return CUDA_ERROR_INVALID_VALUE;
  }
}

}  // namespace lowrank::cuda
