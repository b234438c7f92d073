#include "native/cuda/streams/staging.h"

#include <algorithm>
#include <cstdlib>
#include <new>

namespace lowrank::cuda {
namespace {

constexpr size_t kSmallestBlock = 4096;
constexpr uintptr_t kPage = 4096;

/// Powers of two: few sizes, so that kept blocks fit later requests.
size_t BlockBytes(size_t bytes) {
  size_t rounded = kSmallestBlock;
  while (rounded < bytes) rounded *= 2;
  return rounded;
}

}  // namespace

Status Staging::Acquire(size_t bytes, StagingBlock* block) {
  if (bytes > kPinnedLimit) {
    block->data = std::malloc(bytes);
    block->bytes = bytes;
    block->pinned = false;
    if (block->data != nullptr) return Status();
    return Status(Code::kOom, context_.device() + ": no host memory for a copy of " +
                                  std::to_string(bytes) + " bytes");
  }
  const size_t rounded = BlockBytes(bytes);
  std::unique_lock<std::mutex> lock(mutex_);
  returned_.wait(lock, [&] {
    return on_loan_bytes_ == 0 || on_loan_bytes_ + rounded <= kLoanLimit || !context_.lost().ok();
  });
  block->bytes = rounded;
  block->pinned = true;
  const auto found = kept_.find(rounded);
  if (found != kept_.end()) {
    block->data = found->second;
    kept_.erase(found);
    kept_bytes_ -= rounded;
  } else {
    LOWRANK_RETURN_IF_ERROR(context_.Check(
        context_.driver().cuMemHostAlloc(&block->data, rounded, CU_MEMHOSTALLOC_PORTABLE),
        "cuMemHostAlloc"));
  }
  on_loan_bytes_ += rounded;
  return Status();
}

void Staging::Release(StagingBlock block) {
  if (block.data == nullptr) return;
  if (!block.pinned) {
    std::free(block.data);
    return;
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  on_loan_bytes_ -= block.bytes;
  returned_.notify_all();
  bool kept = kept_bytes_ + block.bytes <= kKeepLimit;
  if (kept) {
    try {
      kept_.emplace(block.bytes, block.data);
      kept_bytes_ += block.bytes;
    } catch (const std::bad_alloc&) {
      kept = false;
    }
  }
  if (!kept) context_.driver().cuMemFreeHost(block.data);
}

void Staging::Retire(StagingBlock block, CUstream stream) {
  if (block.data == nullptr) return;
  if (context_.lost().ok() && context_.driver().cuStreamSynchronize(stream) == CUDA_SUCCESS) {
    Release(block);
    return;
  }
  if (!block.pinned) return;
  const std::lock_guard<std::mutex> lock(mutex_);
  on_loan_bytes_ -= block.bytes;
  returned_.notify_all();
}

bool HostPages::Holds(const void* data) const {
  if (count_.load(std::memory_order_acquire) == 0) return false;
  const auto address = reinterpret_cast<uintptr_t>(data);
  const std::lock_guard<std::mutex> lock(mutex_);
  auto after = runs_.upper_bound(address);
  if (after == runs_.begin()) return false;
  const Run& run = std::prev(after)->second;
  return run.users > 0 && address < run.end;
}

Status HostPages::Register(uintptr_t begin, uintptr_t end) {
  const Driver& driver = context_.driver();
  LOWRANK_RETURN_IF_ERROR(context_.Check(
      driver.cuMemHostRegister_v2(reinterpret_cast<void*>(begin), end - begin,
                                  CU_MEMHOSTREGISTER_PORTABLE | CU_MEMHOSTREGISTER_DEVICEMAP),
      "cuMemHostRegister_v2"));
  try {
    runs_[begin] = Run{end, 1};
  } catch (const std::bad_alloc&) {
    driver.cuMemHostUnregister(reinterpret_cast<void*>(begin));
    throw;
  }
  count_.store(runs_.size(), std::memory_order_release);
  return Status();
}

Status HostPages::Unregister(std::map<uintptr_t, Run>::iterator run) {
  const CUresult result =
      context_.driver().cuMemHostUnregister(reinterpret_cast<void*>(run->first));
  if (result != CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED) {
    LOWRANK_RETURN_IF_ERROR(context_.Check(result, "cuMemHostUnregister"));
  }
  runs_.erase(run);
  count_.store(runs_.size(), std::memory_order_release);
  return Status();
}

Status HostPages::Map(void* data, size_t bytes, CUdeviceptr* device) {
  const auto address = reinterpret_cast<uintptr_t>(data);
  const uintptr_t first = address / kPage * kPage;
  const uintptr_t last = (address + bytes + kPage - 1) / kPage * kPage;
  const std::lock_guard<std::mutex> lock(mutex_);
  uintptr_t at = first;
  while (at < last) {
    // The run that contains `at`, or the gap up to the next one.
    auto next = runs_.upper_bound(at);
    if (next != runs_.begin() && at < std::prev(next)->second.end) {
      const auto run = std::prev(next);
      if (run->second.users == 0) {
        const Status status = Unregister(run);
        if (!status.ok()) {
          Leave(first, at);
          return status;
        }
        continue;
      }
      ++run->second.users;
      at = run->second.end;
      continue;
    }
    const uintptr_t end = next == runs_.end() ? last : std::min(last, next->first);
    const Status status = Register(at, end);
    if (!status.ok()) {
      Leave(first, at);
      return status;
    }
    at = end;
  }
  Status status = context_.Check(context_.driver().cuMemHostGetDevicePointer_v2(device, data, 0),
                                 "cuMemHostGetDevicePointer_v2");
  if (status.ok() && *device != address) {
    status = Status(Code::kUnsupported, context_.device() +
                                            ": host memory has another address on this device, "
                                            "so it cannot be wrapped: copy it (Tensor.from)");
  }
  if (!status.ok()) Leave(first, last);
  return status;
}

void HostPages::Leave(uintptr_t begin, uintptr_t end) {
  uintptr_t at = begin;
  while (at < end) {
    auto next = runs_.upper_bound(at);
    if (next == runs_.begin()) return;
    const auto run = std::prev(next);
    at = run->second.end;
    if (--run->second.users > 0) continue;
    // A run that stays registered is kept without users: Map tries again.
    if (context_.lost().ok()) {
      static_cast<void>(Unregister(run));
    } else {
      runs_.erase(run);
    }
  }
  count_.store(runs_.size(), std::memory_order_release);
}

void HostPages::Unmap(void* data, size_t bytes) {
  const auto address = reinterpret_cast<uintptr_t>(data);
  const std::lock_guard<std::mutex> lock(mutex_);
  Leave(address / kPage * kPage, (address + bytes + kPage - 1) / kPage * kPage);
}

}  // namespace lowrank::cuda
