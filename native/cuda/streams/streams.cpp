#include "native/cuda/streams/streams.h"

#include <algorithm>
#include <new>
#include <utility>

namespace lowrank::cuda {
namespace {

constexpr size_t kArenaUnit = size_t{1} << 20;

/// Powers of two up to 64 units, then multiples of 32: few growths, little waste.
size_t ArenaBytes(size_t bytes) {
  size_t rounded = kArenaUnit;
  while (rounded < bytes && rounded < 64 * kArenaUnit) rounded *= 2;
  if (rounded >= bytes) return rounded;
  return (bytes + 32 * kArenaUnit - 1) / (32 * kArenaUnit) * (32 * kArenaUnit);
}

}  // namespace

Status Streams::Start() {
  const Driver& driver = context_.driver();
  LOWRANK_RETURN_IF_ERROR(
      context_.Check(driver.cuEventCreate(&home_event_, CU_EVENT_DISABLE_TIMING), "cuEventCreate"));
  LOWRANK_RETURN_IF_ERROR(context_.Check(
      driver.cuEventCreate(&current_event_, CU_EVENT_DISABLE_TIMING), "cuEventCreate"));
  current_.store(context_.home());
  return Status();
}

void Streams::Stop() {
  for (CUevent* event : {&home_event_, &current_event_}) {
    if (*event != nullptr) context_.driver().cuEventDestroy_v2(*event);
    *event = nullptr;
  }
}

Status Streams::Follow(CUevent event, CUstream first, CUstream then) {
  LOWRANK_RETURN_IF_ERROR(
      context_.Check(context_.driver().cuEventRecord(event, first), "cuEventRecord"));
  return context_.Check(context_.driver().cuStreamWaitEvent(then, event, 0), "cuStreamWaitEvent");
}

Status Streams::IsCapturing(bool* capturing) {
  CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
  *capturing = false;
  if (current() == context_.home()) return Status();
  LOWRANK_RETURN_IF_ERROR(context_.Check(context_.driver().cuStreamIsCapturing(current(), &status),
                                         "cuStreamIsCapturing"));
  *capturing = status != CU_STREAM_CAPTURE_STATUS_NONE;
  return Status();
}

Status Streams::Use(CUstream stream) {
  // Ops must not go to a wrong stream: until a switch succeeds, none are issued.
  switch_status_ = Switch(stream);
  return switch_status_;
}

Status Streams::Switch(CUstream stream) {
  const CUstream next = stream == nullptr ? context_.home() : stream;
  const std::lock_guard<std::mutex> lock(mutex_);
  if (next == current()) return Status();
  CUstreamCaptureStatus here = CU_STREAM_CAPTURE_STATUS_NONE;
  CUstreamCaptureStatus there = CU_STREAM_CAPTURE_STATUS_NONE;
  LOWRANK_RETURN_IF_ERROR(context_.Check(context_.driver().cuStreamIsCapturing(current(), &here),
                                         "cuStreamIsCapturing"));
  LOWRANK_RETURN_IF_ERROR(
      context_.Check(context_.driver().cuStreamIsCapturing(next, &there), "cuStreamIsCapturing"));
  if (here == CU_STREAM_CAPTURE_STATUS_NONE && there == CU_STREAM_CAPTURE_STATUS_NONE) {
    LOWRANK_RETURN_IF_ERROR(Follow(current_event_, current(), next));
  }
  current_.store(next);
  return Status();
}

Status Streams::PrepareOp() {
  LOWRANK_RETURN_IF_ERROR(switch_status_);
  if (current() == context_.home()) return Status();
  bool capturing = false;
  LOWRANK_RETURN_IF_ERROR(IsCapturing(&capturing));
  if (capturing) return Status();
  const std::lock_guard<std::mutex> lock(mutex_);
  return Follow(home_event_, context_.home(), current());
}

bool Streams::CapturingLocked() {
  CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
  const CUresult asked = context_.driver().cuStreamIsCapturing(current(), &status);
  return asked != CUDA_SUCCESS || status != CU_STREAM_CAPTURE_STATUS_NONE;
}

Status Streams::Allocate(size_t bytes, CUdeviceptr* pointer) {
  const Visit visit(&context_);
  LOWRANK_RETURN_IF_ERROR(visit.status());
  const Driver& driver = context_.driver();
  const auto attempt = [&] {
    return driver.cuMemAllocFromPoolAsync(pointer, std::max<size_t>(bytes, 1), context_.pool(),
                                          context_.home());
  };
  CUresult result = attempt();
  if (result == CUDA_ERROR_OUT_OF_MEMORY) {
    // Pending frees may be enough, and what the pool keeps may be in pieces of other sizes.
    LOWRANK_RETURN_IF_ERROR(
        context_.Check(driver.cuStreamSynchronize(context_.home()), "cuStreamSynchronize"));
    LOWRANK_RETURN_IF_ERROR(
        context_.Check(driver.cuMemPoolTrimTo(context_.pool(), 0), "cuMemPoolTrimTo"));
    result = attempt();
  }
  return context_.Check(result, "cuMemAllocFromPoolAsync");
}

void Streams::FreeLocked(CUdeviceptr pointer) {
  const CUresult result = context_.driver().cuMemFreeAsync(pointer, context_.home());
  if (result == CUDA_SUCCESS) return;
  try {
    // Nobody is notified; but if a fault shows here first, the device is lost all the same.
    static_cast<void>(context_.Check(result, "cuMemFreeAsync"));
    unfreed_.push_back(pointer);
  } catch (const std::bad_alloc&) {  // NOLINT(bugprone-empty-catch)
    // Called from destructors: the memory stays with the pool until the process ends.
  }
}

void Streams::Free(CUdeviceptr pointer) {
  // On a lost device nothing can be freed.
  if (!context_.lost().ok()) return;
  const Visit visit(&context_);
  const std::lock_guard<std::mutex> lock(mutex_);
  bool ordered = visit.status().ok();
  if (ordered && current() != context_.home() && !CapturingLocked()) {
    ordered = Follow(current_event_, current(), context_.home()).ok();
  }
  std::vector<CUdeviceptr> again;
  again.swap(unfreed_);
  if (!ordered) {
    unfreed_.swap(again);
    try {
      unfreed_.push_back(pointer);
    } catch (const std::bad_alloc&) {  // NOLINT(bugprone-empty-catch)
      // As in FreeLocked().
    }
    return;
  }
  FreeLocked(pointer);
  for (const CUdeviceptr older : again) FreeLocked(older);
}

size_t Streams::WorkspaceHere(void** base) const {
  const auto found = arenas_.find(current());
  if (found == arenas_.end()) {
    *base = nullptr;
    return 0;
  }
  *base = reinterpret_cast<void*>(static_cast<uintptr_t>(found->second.base));
  return found->second.bytes;
}

Status Streams::Grow(Arena* arena, size_t bytes) {
  bool capturing = false;
  LOWRANK_RETURN_IF_ERROR(IsCapturing(&capturing));
  if (capturing) {
    return Status(Code::kUnsupported,
                  context_.device() + ": this op needs " + std::to_string(bytes) +
                      " bytes of workspace, and none can be allocated while its stream is being "
                      "captured: reserve it before (reserveWorkspace)");
  }
  const size_t wanted = ArenaBytes(std::max(bytes, reserved_bytes_));
  // The old bytes go first: work that uses them is ordered before their free, and the two need not
  // fit at once.
  if (arena->base != 0) Free(std::exchange(arena->base, 0));
  arena->bytes = 0;
  LOWRANK_RETURN_IF_ERROR(Allocate(wanted, &arena->base));
  arena->bytes = wanted;
  workspace_bytes_.store(static_cast<int64_t>(wanted), std::memory_order_relaxed);
  return Status();
}

Status Streams::Workspace(size_t bytes, void** base) {
  Arena& arena = arenas_[current()];
  if (bytes > arena.bytes) LOWRANK_RETURN_IF_ERROR(Grow(&arena, bytes));
  *base = reinterpret_cast<void*>(static_cast<uintptr_t>(arena.base));
  return Status();
}

Status Streams::Reserve(size_t bytes) {
  const size_t before = std::exchange(reserved_bytes_, std::max(reserved_bytes_, bytes));
  void* base = nullptr;
  const Status status = Workspace(reserved_bytes_, &base);
  // A reservation that failed is not requested again with the next op.
  if (!status.ok()) reserved_bytes_ = before;
  return status;
}

}  // namespace lowrank::cuda
