#include "cuda/emulator/driver/state.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "cuda/emulator/driver/options.h"

namespace lowrank::emu::driver {
size_t MemoryOfDevice() {
  const size_t asked = CurrentDriverOptions().memory_bytes;
  if (asked != 0) return asked;
  const auto host =
      static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return std::min(host, size_t{16} << 30);
}

State& State::Get() {
  static auto* const state = new State;
  return *state;
}

int State::Init() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (initialised()) return cuda::CUDA_SUCCESS;
  std::string error;
  if (!AllOptionsFromEnvironment(&error)) {
    std::fprintf(stderr, "lowrank-emulator: %s\n", error.c_str());
    return cuda::CUDA_ERROR_INVALID_VALUE;
  }
  device_count_ = CurrentDriverOptions().devices;
  for (int i = 0; i < device_count_; ++i) devices_[i].ordinal = i;
  if (device_count_ == 0) return cuda::CUDA_ERROR_NO_DEVICE;
  initialised_.store(true, std::memory_order_release);
  return cuda::CUDA_SUCCESS;
}

Device* State::FindDevice(int ordinal) {
  return ordinal < 0 || ordinal >= device_count_ ? nullptr : &devices_[ordinal];
}

int State::Retain(Device* device, cuda::CUcontext* context) {
  const std::lock_guard<std::mutex> lock(device->mutex);
  if (device->primary == nullptr) {
    auto made = std::make_shared<Context>();
    made->device = device->ordinal;
    made->model = CurrentModel();
    made->memory = std::make_shared<Memory>(MemoryOfDevice());
    made->streams->set_late(CurrentDriverOptions().late_streams);
    device->handle = contexts.Add(made);
    auto pool = std::make_shared<PoolObject>();
    pool->context = made;
    pool->pool = std::make_shared<Pool>();
    made->memory->AddPool(pool->pool);
    device->default_pool = pools.Add(pool);
    device->primary = std::move(made);
  }
  ++device->retained;
  *context = device->handle;
  return device->primary->streams->fault();
}

void State::End(const ContextPtr& context) {
  context->streams->WaitAll();
  context->streams->CloseAll();
  context->destroyed = true;
  const auto ours = [&context](const auto& object) { return object.context == context; };
  graph_execs.RemoveIf(ours);
  graphs.RemoveIf(ours);
  events.RemoveIf(ours);
  functions.RemoveIf(ours);
  modules.RemoveIf(ours);
  streams.RemoveIf(ours);
  pools.RemoveIf(ours);
  context->memory->FreeAll();
}

int State::Release(Device* device, bool all) {
  ContextPtr ended;
  {
    const std::lock_guard<std::mutex> lock(device->mutex);
    if (device->primary == nullptr) {
      return all ? cuda::CUDA_SUCCESS : cuda::CUDA_ERROR_INVALID_CONTEXT;
    }
    device->retained = all ? 0 : device->retained - 1;
    if (device->retained > 0) return cuda::CUDA_SUCCESS;
    contexts.Remove(device->handle);
    device->handle = nullptr;
    ended = std::move(device->primary);
    device->primary = nullptr;
  }
  End(ended);
  return cuda::CUDA_SUCCESS;
}

std::vector<cuda::CUcontext>& ContextStack() {
  static thread_local std::vector<cuda::CUcontext> stack;
  return stack;
}

int EnterDriver() {
  if (!State::Get().initialised()) return cuda::CUDA_ERROR_NOT_INITIALIZED;
  constexpr int kNotPermitted = 800;
  return StreamSet::InHostFunction() ? kNotPermitted : cuda::CUDA_SUCCESS;
}

int EnterContext(ContextPtr* context) {
  if (const int result = EnterDriver(); result != 0) return result;
  const std::vector<cuda::CUcontext>& stack = ContextStack();
  if (stack.empty() || stack.back() == nullptr) return cuda::CUDA_ERROR_INVALID_CONTEXT;
  *context = State::Get().contexts.Find(stack.back());
  if (*context == nullptr) return cuda::CUDA_ERROR_CONTEXT_IS_DESTROYED;
  return (*context)->streams->fault();
}

int FindStream(cuda::CUstream handle, const ContextPtr& context, StreamPtr* stream) {
  const auto number = reinterpret_cast<uintptr_t>(handle);
  if (number <= 1) {
    *stream = context->streams->null_stream();
    return cuda::CUDA_SUCCESS;
  }
  if (number == 2) {
    static thread_local std::unordered_map<const Context*, StreamPtr> own;
    StreamPtr& mine = own[context.get()];
    if (mine == nullptr || mine->set() != context->streams.get()) {
      mine = context->streams->Create(true, 0);
    }
    *stream = mine;
    return cuda::CUDA_SUCCESS;
  }
  const auto object = State::Get().streams.Find(handle);
  if (object == nullptr) return cuda::CUDA_ERROR_INVALID_HANDLE;
  if (object->context != context) return cuda::CUDA_ERROR_INVALID_CONTEXT;
  *stream = object->stream;
  return cuda::CUDA_SUCCESS;
}

int EnterStream(cuda::CUstream handle, ContextPtr* context, StreamPtr* stream) {
  if (const int result = EnterContext(context); result != 0) return result;
  return FindStream(handle, *context, stream);
}

int Submit(const ContextPtr& context, const StreamPtr& stream, NodeKind kind, Work work) {
  // Only a launch right after a launch can overlap it.
  if (kind != NodeKind::kKernel) {
    work = [chain = stream->chain(), work = std::move(work)] {
      {
        const std::lock_guard<std::mutex> lock(chain->mutex);
        chain->unfinished.clear();
      }
      return work();
    };
  }
  {
    const std::lock_guard<std::mutex> lock(Capture::Mutex());
    if (stream->capture != nullptr) {
      if (stream->capture->invalid) return cuda::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
      stream->capture->Add(stream.get(), kind, std::move(work));
      return cuda::CUDA_SUCCESS;
    }
  }
  if (stream == context->streams->null_stream() && NullStreamWouldJoinCapture(context)) {
    return cuda::CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
  }
  context->streams->Push(stream, std::move(work));
  return cuda::CUDA_SUCCESS;
}

int RefuseDuringCapture() {
  const CaptureMode mode = ThreadCaptureMode();
  if (mode == CaptureMode::kRelaxed) return cuda::CUDA_SUCCESS;
  const std::lock_guard<std::mutex> lock(Capture::Mutex());
  bool refused = false;
  for (const CapturePtr& capture : ActiveCaptures()) {
    const bool own = capture->thread() == std::this_thread::get_id();
    if (own ? capture->mode() != CaptureMode::kRelaxed
            : mode == CaptureMode::kGlobal && capture->mode() == CaptureMode::kGlobal) {
      capture->invalid = true;
      refused = true;
    }
  }
  return refused ? cuda::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED : cuda::CUDA_SUCCESS;
}

bool NullStreamWouldJoinCapture(const ContextPtr& context) {
  const std::lock_guard<std::mutex> lock(Capture::Mutex());
  bool joins = false;
  for (const CapturePtr& capture : ActiveCaptures()) {
    const StreamPtr& origin = capture->origin();
    if (origin->set() != context->streams.get() || !origin->blocking()) continue;
    capture->invalid = true;
    joins = true;
  }
  return joins;
}

}  // namespace lowrank::emu::driver
