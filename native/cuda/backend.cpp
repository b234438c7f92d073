#include "native/cuda/backend.h"

#include <unistd.h>

#include <new>
#include <utility>

#include "native/core/quant_format.h"

namespace lowrank::cuda {
namespace {

constexpr const char* kImageFile = "lowrank.fatbin";

int64_t HostMemoryBytes() {
  const int64_t pages = sysconf(_SC_PHYS_PAGES);
  const int64_t page_bytes = sysconf(_SC_PAGESIZE);
  return pages > 0 && page_bytes > 0 ? pages * page_bytes : 0;
}

/// One thread waits for an answer from another.
class Answer {
 public:
  void Give(const Status& status) {
    const std::lock_guard<std::mutex> lock(mutex_);
    status_ = status;
    given_ = true;
    ready_.notify_all();
  }
  Status Await() {
    std::unique_lock<std::mutex> lock(mutex_);
    ready_.wait(lock, [this] { return given_; });
    return status_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable ready_;
  bool given_ = false;
  Status status_;
};

}  // namespace

CudaBackend::Engine::Engine(const std::string& device, const Library& library)
    : context(device, library),
      staging(&context),
      pages(&context),
      streams(&context),
      completions(&context, &staging),
      queue(context.device().c_str()) {}

CudaBackend::CudaBackend(std::string device, const Source& source)
    : device_(std::move(device)), source_(source) {}

Status CudaBackend::Probe() const {
  const std::lock_guard<std::mutex> lock(probe_mutex_);
  if (probed_) return probe_status_;
  const auto probe = [this]() -> Status {
    LOWRANK_RETURN_IF_ERROR(source_.open(&library_));
    LOWRANK_RETURN_IF_ERROR(ProbeGpu(*library_, source_.ordinal, &gpu_));
    if (source_.own_kernels) return Status();
    const std::string path = BesideThis(kImageFile);
    if (access(path.c_str(), R_OK) != 0) {
      return Status(Code::kDevice, gpu_.card +
                                       " is there, but this addon was built without nvcc: "
                                       "no kernels at " +
                                       path +
                                       " (run npm run build on a machine with the CUDA toolkit)");
    }
    LOWRANK_RETURN_IF_ERROR(KernelImage::Open(path, &image_));
    return CheckImage(image_, gpu_, *library_);
  };
  probe_status_ = probe();
  probed_ = probe_status_.code() != Code::kOom;
  return probe_status_;
}

DeviceInfo CudaBackend::Info() const {
  DeviceInfo info;
  info.device = device_;
  Status status = source_.look == nullptr ? Probe() : source_.look();
  if (status.ok()) {
    // What is known since then: a failed start, or a fault.
    const std::lock_guard<std::mutex> lock(start_mutex_);
    status = start_status_;
  }
  if (status.ok()) status = CheckAlive();
  info.available = status.ok();
  info.reason = status.message();
  const std::lock_guard<std::mutex> lock(probe_mutex_);
  info.name = source_.own_kernels ? "the CUDA kernels on an emulated GPU, for tests" : "NVIDIA GPU";
  info.memory_bytes = source_.own_kernels ? HostMemoryBytes() : gpu_.memory_bytes;
  {
    const std::lock_guard<std::mutex> usage(usage_mutex_);
    info.memory_bytes = WithinBudget(info.memory_bytes, budget_);
  }
  if (!gpu_.card.empty()) {
    if (!source_.own_kernels) info.name = gpu_.card;
    info.sm = gpu_.limits.sm;
  }
  if (library_ != nullptr && library_->version > 0) {
    info.driver = "CUDA " + VersionText(library_->version);
  }
  info.features = FormatNames();
  info.features.insert(info.features.end(),
                       {"doubleQuant", "f32", "bf16", "f16", "rowInt8Compute"});
  return info;
}

Status CudaBackend::CheckAlive() const {
  const Engine* engine = engine_.load(std::memory_order_acquire);
  if (engine == nullptr) return Status();
  LOWRANK_RETURN_IF_ERROR(engine->queue.home().Check(device_.c_str()));
  return engine->context.lost();
}

Status CudaBackend::Ready() const {
  LOWRANK_RETURN_IF_ERROR(CheckAlive());
  if (engine_.load(std::memory_order_acquire) != nullptr) return Status();
  const Status status = source_.look == nullptr ? Probe() : source_.look();
  if (status.ok()) return status;
  return Status(status.code(), "device: \"" + device_ + "\" is not available: " + status.message());
}

Status CudaBackend::EnsureStarted() {
  if (engine_.load(std::memory_order_acquire) != nullptr) return CheckAlive();
  const std::lock_guard<std::mutex> lock(start_mutex_);
  if (engine_.load(std::memory_order_relaxed) != nullptr) return CheckAlive();
  LOWRANK_RETURN_IF_ERROR(start_status_);
  const Status status = StartEngine();
  if (status.ok()) return status;
  // Memory may be free later, so kOom is retried; every other failed start is final.
  const bool again = status.code() == Code::kOom;
  const Status told(again ? Code::kOom : Code::kDevice,
                    "device: \"" + device_ + "\" does not start" +
                        (again ? " because its memory is in use: " : ": ") + status.message());
  if (!again) start_status_ = told;
  return told;
}

Status CudaBackend::StartEngine() {
  LOWRANK_RETURN_IF_ERROR(Probe());
  // A driver does not survive fork() either.
  LOWRANK_RETURN_IF_ERROR(library_->opened_in.Check(device_.c_str()));
  if (engine_made_ == nullptr) engine_made_ = std::make_unique<Engine>(device_, *library_);
  Engine* const engine = engine_made_.get();
  // On the issuing thread: the context stays current there.
  const auto answer = std::make_shared<Answer>();
  Task task;
  task.run = [this, engine](const OpRefs&) -> Status {
    LOWRANK_RETURN_IF_ERROR(engine->context.Start(gpu_, source_.own_kernels ? nullptr : &image_));
    Status status = engine->streams.Start();
    if (status.ok()) status = engine->completions.Start();
    if (status.ok()) return status;
    engine->streams.Stop();
    engine->context.Stop();
    return status;
  };
  task.done = [answer](const Status& status) { answer->Give(status); };
  LOWRANK_RETURN_IF_ERROR(engine->queue.Push(std::move(task)));
  LOWRANK_RETURN_IF_ERROR(answer->Await());
  engine_.store(engine, std::memory_order_release);
  return Status();
}

MemoryUsage CudaBackend::Memory() const {
  const std::lock_guard<std::mutex> lock(usage_mutex_);
  return usage_;
}

void CudaBackend::ResetPeak() {
  const std::lock_guard<std::mutex> lock(usage_mutex_);
  usage_.peak_bytes = usage_.live_bytes;
}

void CudaBackend::SetMemoryBudget(int64_t bytes) {
  const std::lock_guard<std::mutex> lock(usage_mutex_);
  budget_ = bytes;
}

Status CudaBackend::Count(size_t bytes) {
  const std::lock_guard<std::mutex> lock(usage_mutex_);
  LOWRANK_RETURN_IF_ERROR(CheckMemoryBudget(device_, usage_.live_bytes, bytes, budget_));
  usage_.live_bytes += static_cast<int64_t>(bytes);
  usage_.live_tensors += 1;
  return Status();
}

void CudaBackend::Uncount(size_t bytes) {
  const std::lock_guard<std::mutex> lock(usage_mutex_);
  usage_.live_bytes -= static_cast<int64_t>(bytes);
  usage_.live_tensors -= 1;
}

Status CudaBackend::Allocate(size_t bytes, StoragePtr* storage) {
  LOWRANK_RETURN_IF_ERROR(EnsureStarted());
  const auto recording = RecordingHere();
  return recording == nullptr ? AllocateFromPool(bytes, storage)
                              : recording->Allocate(bytes, storage);
}

Status CudaBackend::AllocateFromPool(size_t bytes, StoragePtr* storage) {
  Streams& streams = engine_.load(std::memory_order_acquire)->streams;
  CUdeviceptr pointer = 0;
  LOWRANK_RETURN_IF_ERROR(Count(bytes));
  const Status status = streams.Allocate(bytes, &pointer);
  if (!status.ok()) Uncount(bytes);
  if (status.code() == Code::kOom) {
    return Status(Code::kOom, status.message() + ": no memory for " + std::to_string(bytes) +
                                  " more bytes (" + std::to_string(Memory().live_bytes) +
                                  " bytes are live)");
  }
  LOWRANK_RETURN_IF_ERROR(status);
  try {
    *storage = std::make_shared<Storage>(
        this, reinterpret_cast<void*>(static_cast<uintptr_t>(pointer)), bytes);
  } catch (const std::bad_alloc&) {
    streams.Free(pointer);
    Uncount(bytes);
    return Status(Code::kOom, device_ + ": no memory for a tensor's handle");
  }
  const std::lock_guard<std::mutex> lock(usage_mutex_);
  if (usage_.live_bytes > usage_.peak_bytes) usage_.peak_bytes = usage_.live_bytes;
  return Status();
}

void CudaBackend::Free(void* data, size_t bytes) {
  Engine* const engine = engine_.load(std::memory_order_acquire);
  if (engine->queue.home().orphaned()) return;
  engine->streams.Free(reinterpret_cast<uintptr_t>(data));
  Uncount(bytes);
}

Status CudaBackend::Wrap(void* data, size_t bytes, bool host_memory, std::function<void()> release,
                         StoragePtr* storage) {
  LOWRANK_RETURN_IF_ERROR(EnsureStarted());
  Engine* const engine = engine_.load(std::memory_order_acquire);
  Context& context = engine->context;
  if (bytes == 0) {
    *storage = Storage::Foreign(this, data, bytes, std::move(release));
    return Status();
  }
  const Visit visit(&context);
  LOWRANK_RETURN_IF_ERROR(visit.status());
  if (!host_memory) {
    const auto pointer = static_cast<CUdeviceptr>(reinterpret_cast<uintptr_t>(data));
    unsigned type = 0;
    int ordinal = -1;
    CUresult result =
        context.driver().cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, pointer);
    if (result == CUDA_SUCCESS) {
      result = context.driver().cuPointerGetAttribute(&ordinal, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL,
                                                      pointer);
    }
    if (result != CUDA_ERROR_INVALID_VALUE) {
      LOWRANK_RETURN_IF_ERROR(context.Check(result, "cuPointerGetAttribute"));
    }
    if (result != CUDA_SUCCESS || type != CU_MEMORYTYPE_DEVICE || ordinal != source_.ordinal) {
      return Refuse(Code::kValue, "Tensor.wrap", "pointer", "memory of device " + device_,
                    result == CUDA_SUCCESS ? "memory of another device or of the host"
                                           : "an address that the driver does not know");
    }
    *storage = Storage::Foreign(this, data, bytes, std::move(release));
    return Status();
  }
  CUdeviceptr mapped = 0;
  LOWRANK_RETURN_IF_ERROR(engine->pages.Map(data, bytes, &mapped));
  const auto unmap = [engine, data, bytes, release = std::move(release)] {
    // Called when the last reference is dropped; work that touches the memory holds a reference
    // until it is over.
    if (!engine->queue.home().orphaned()) {
      const Visit leaving(&engine->context);
      if (leaving.status().ok()) engine->pages.Unmap(data, bytes);
    }
    if (release) release();
  };
  *storage =
      Storage::Foreign(this, reinterpret_cast<void*>(static_cast<uintptr_t>(mapped)), bytes, unmap);
  return Status();
}

void CudaBackend::DropQueued(const CancelToken* cancel) {
  Engine* const engine = engine_.load(std::memory_order_acquire);
  if (engine == nullptr || engine->queue.home().orphaned()) return;
  engine->queue.DropQueued(cancel);
  engine->completions.DropQueued(cancel);
}

int64_t CudaBackend::WorkspaceBytes() const {
  const Engine* engine = engine_.load(std::memory_order_acquire);
  return engine == nullptr ? 0 : engine->streams.workspace_bytes();
}

}  // namespace lowrank::cuda
