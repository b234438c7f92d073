#include "native/cuda/driver/context.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace lowrank::cuda {
namespace {

/// From this capability on a kernel can wait for the launches before it (cuda/ptx.cuh), and a graph
/// can capture such launches.
constexpr int kSmOfGridWait = 90;
constexpr int kVersionOfGridWait = 12030;

/// The context that Attach() made current on this thread.
thread_local const Context* t_attached = nullptr;

/// Read from the environment when a device starts; an empty variable counts as unset.
bool Asked(const char* variable, bool otherwise) {
  const char* value = std::getenv(variable);
  if (value == nullptr || value[0] == '\0') return otherwise;
  return std::strcmp(value, "0") != 0;
}

std::string CapabilityText(int sm) {
  return std::to_string(sm / 10) + "." + std::to_string(sm % 10);
}

std::string Join(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : ", ") + word;
  return text;
}

CUtensorMapDataType MapType(const TensorMapRequest& request) {
  if (request.bytes) return CU_TENSOR_MAP_DATA_TYPE_UINT8;
  switch (request.dtype) {
    case DType::kBF16:
      return CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    case DType::kF16:
      return CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
    case DType::kF32:
      break;
  }
  return CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
}

CUtensorMapSwizzle MapSwizzle(uint32_t bytes) {
  if (bytes == 32) return CU_TENSOR_MAP_SWIZZLE_32B;
  if (bytes == 64) return CU_TENSOR_MAP_SWIZZLE_64B;
  return bytes == 128 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_NONE;
}

}  // namespace

Status ProbeGpu(const Library& library, int ordinal, Gpu* gpu) {
  const Driver& driver = library.driver;
  const auto check = [&](CUresult result, const char* call) {
    if (result == CUDA_SUCCESS) return Status();
    return Status(result == CUDA_ERROR_OUT_OF_MEMORY ? Code::kOom : Code::kDevice,
                  std::string(call) + ": " + ErrorText(driver, result));
  };
  LOWRANK_RETURN_IF_ERROR(check(driver.cuDeviceGet(&gpu->device, ordinal), "cuDeviceGet"));
  char name[256] = "";
  LOWRANK_RETURN_IF_ERROR(
      check(driver.cuDeviceGetName(name, sizeof(name), gpu->device), "cuDeviceGetName"));
  gpu->card = name;
  size_t bytes = 0;
  LOWRANK_RETURN_IF_ERROR(
      check(driver.cuDeviceTotalMem_v2(&bytes, gpu->device), "cuDeviceTotalMem_v2"));
  gpu->memory_bytes = static_cast<int64_t>(bytes);

  int major = 0;
  int minor = 0;
  int shared_block = 0;
  int shared_sm = 0;
  int l2 = 0;
  int pools = 0;
  const struct {
    CUdevice_attribute attribute;
    int* value;
  } wanted[] = {
      {CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, &major},
      {CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, &minor},
      {CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, &gpu->limits.sm_count},
      {CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, &shared_block},
      {CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR, &shared_sm},
      {CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE, &l2},
      {CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED, &pools},
  };
  for (const auto& row : wanted) {
    LOWRANK_RETURN_IF_ERROR(
        check(driver.cuDeviceGetAttribute(row.value, row.attribute, gpu->device),
              "cuDeviceGetAttribute"));
  }
  gpu->limits.sm = major * 10 + minor;
  gpu->limits.shared_bytes_per_block = shared_block;
  gpu->limits.shared_bytes_per_sm = shared_sm;
  gpu->limits.l2_bytes = l2;
  gpu->limits.batch_invariant = Asked("LOWRANK_CUDA_BATCH_INVARIANT", false);
  if (gpu->limits.sm < kNeededSm) {
    return Status(Code::kDevice, gpu->card + " is too old: it has compute capability " +
                                     CapabilityText(gpu->limits.sm) + ", " +
                                     CapabilityText(kNeededSm) + " (Ampere) or later is needed");
  }
  if (pools == 0) {
    return Status(Code::kDevice,
                  gpu->card +
                      " has no stream-ordered memory pools here (a vGPU without unified "
                      "memory, or an old driver); they are needed");
  }
  return Status();
}

Status CheckImage(const KernelImage& image, const Gpu& gpu, const Library& library) {
  for (const KernelModule& module : image.modules()) {
    if (module.RunsOn(gpu.limits.sm)) return image.CheckDriver(library.version, gpu.limits.sm);
  }
  return Status(Code::kDevice, "the kernels were built for " + Join(image.Targets()) + ", " +
                                   gpu.card + " is sm_" + std::to_string(gpu.limits.sm) +
                                   ": build them for this GPU");
}

Visit::Visit(Context* context) : context_(*context) {
  if (t_attached == context) return;
  status_ = context_.Check(context_.driver().cuCtxPushCurrent_v2(context_.handle()),
                           "cuCtxPushCurrent_v2");
  pushed_ = status_.ok();
  if (!pushed_) return;
  status_ = context_.Check(context_.driver().cuThreadExchangeStreamCaptureMode(&mode_),
                           "cuThreadExchangeStreamCaptureMode");
  relaxed_ = status_.ok();
}

Visit::~Visit() {
  CUcontext ours = nullptr;
  if (relaxed_) context_.driver().cuThreadExchangeStreamCaptureMode(&mode_);
  if (pushed_) context_.driver().cuCtxPopCurrent_v2(&ours);
}

Status Context::Attach() {
  t_attached = nullptr;
  LOWRANK_RETURN_IF_ERROR(Check(driver().cuCtxSetCurrent(context_), "cuCtxSetCurrent"));
  CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_RELAXED;
  LOWRANK_RETURN_IF_ERROR(Check(driver().cuThreadExchangeStreamCaptureMode(&mode),
                                "cuThreadExchangeStreamCaptureMode"));
  t_attached = this;
  return Status();
}

Status Context::Check(CUresult result, const char* call) {
  if (result == CUDA_SUCCESS) return Status();
  if (IsFatal(result)) return Lose(result, call);
  const Code code = result == CUDA_ERROR_OUT_OF_MEMORY ? Code::kOom : Code::kCompute;
  return Status(code, device_ + ": " + call + ": " + ErrorText(driver(), result));
}

Status Context::lost() const {
  if (!is_lost_.load(std::memory_order_acquire)) return Status();
  const std::lock_guard<std::mutex> lock(mutex_);
  return lost_;
}

Status Context::Lose(CUresult result, const char* call) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!lost_.ok()) return lost_;
  std::string text = device_ + ": the device failed " + ops_.InFlight() + ": " +
                     ErrorText(driver(), result) + ", reported by " + call;
  if (library_.last_report != nullptr) {
    const char* report = library_.last_report();
    if (report != nullptr && report[0] != '\0') text += ". " + std::string(report);
  }
  lost_ = Status(Code::kCompute, text + ". It cannot be used any more in this process");
  is_lost_.store(true, std::memory_order_release);
  return lost_;
}

Status Context::Start(const Gpu& gpu, const KernelImage* image) {
  const Status status = StartParts(gpu, image);
  if (!status.ok()) Stop();
  return status;
}

Status Context::StartParts(const Gpu& gpu, const KernelImage* image) {
  gpu_ = gpu.device;
  limits_ = gpu.limits;
  LOWRANK_RETURN_IF_ERROR(
      Check(driver().cuDevicePrimaryCtxRetain(&context_, gpu_), "cuDevicePrimaryCtxRetain"));
  LOWRANK_RETURN_IF_ERROR(Attach());
  // Not ordered with the legacy stream, so that another library's work there does not wait for
  // ours.
  LOWRANK_RETURN_IF_ERROR(
      Check(driver().cuStreamCreate(&home_, CU_STREAM_NON_BLOCKING), "cuStreamCreate"));
  // A pool of our own: the settings of the device's default pool are other libraries' too.
  CUmemPoolProps props = {};
  props.allocType = CU_MEM_ALLOCATION_TYPE_PINNED;
  props.location = {CU_MEM_LOCATION_TYPE_DEVICE, gpu_};
  LOWRANK_RETURN_IF_ERROR(Check(driver().cuMemPoolCreate(&pool_, &props), "cuMemPoolCreate"));
  // Keeps freed memory: getting it back from the system costs more than most ops.
  uint64_t keep_bytes = UINT64_MAX;
  LOWRANK_RETURN_IF_ERROR(
      Check(driver().cuMemPoolSetAttribute(pool_, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, &keep_bytes),
            "cuMemPoolSetAttribute"));
  return LoadKernels(gpu, image);
}

Status Context::LoadKernels(const Gpu& gpu, const KernelImage* image) {
  if (image == nullptr) {
    modules_.push_back(nullptr);
    return LoadModule("", "the emulator's kernels", &modules_.back());
  }
  std::string loaded;
  for (const KernelModule& module : image->modules()) {
    if (!module.RunsOn(gpu.limits.sm) || module.name == loaded) continue;
    loaded = module.name;
    modules_.push_back(nullptr);
    LOWRANK_RETURN_IF_ERROR(LoadModule(module.image, module.name, &modules_.back()));
    for (const std::string& kernel : module.kernels) module_of_[kernel] = modules_.back();
  }
  return Status();
}

Status Context::LoadModule(const void* bytes, const std::string& name, CUmodule* module) {
  const CUresult result = driver().cuModuleLoadData(module, bytes);
  if (result == CUDA_ERROR_UNSUPPORTED_PTX_VERSION || result == CUDA_ERROR_INVALID_IMAGE ||
      result == CUDA_ERROR_NO_BINARY_FOR_GPU) {
    return Status(Code::kDevice, "kernels " + name +
                                     " were built by a newer toolkit than the "
                                     "driver (CUDA " +
                                     VersionText(library_.version) +
                                     ") reads, or for another GPU: " + ErrorText(driver(), result));
  }
  return Check(result, "cuModuleLoadData");
}

// Also after a fault, when these calls fail too: the driver then frees everything when the process
// ends.
void Context::Stop() {
  kernels_.clear();
  module_of_.clear();
  for (const CUmodule module : modules_) {
    if (module != nullptr) driver().cuModuleUnload(module);
  }
  modules_.clear();
  if (pool_ != nullptr) driver().cuMemPoolDestroy(pool_);
  if (home_ != nullptr) driver().cuStreamDestroy_v2(home_);
  if (context_ != nullptr) {
    driver().cuCtxSetCurrent(nullptr);
    t_attached = nullptr;
    driver().cuDevicePrimaryCtxRelease_v2(gpu_);
  }
  pool_ = nullptr;
  home_ = nullptr;
  context_ = nullptr;
}

Status Context::FindKernel(const char* name, Kernel** kernel) {
  const auto known = kernels_.find(name);
  if (known != kernels_.end()) {
    *kernel = &known->second;
    return Status();
  }
  CUmodule module = modules_.front();
  if (!module_of_.empty()) {
    const auto found = module_of_.find(name);
    if (found == module_of_.end()) {
      return Status(Code::kUnsupported, device_ + ": kernel " + name +
                                            " is not among those built for sm_" +
                                            std::to_string(limits_.sm));
    }
    module = found->second;
  }
  Kernel fresh;
  const CUresult result = driver().cuModuleGetFunction(&fresh.function, module, name);
  if (result == CUDA_ERROR_NOT_FOUND) {
    return Status(Code::kUnsupported, device_ + ": there is no kernel " + name);
  }
  LOWRANK_RETURN_IF_ERROR(Check(result, "cuModuleGetFunction"));
  if (limits_.sm >= kSmOfGridWait && library_.version >= kVersionOfGridWait &&
      Asked("LOWRANK_CUDA_OVERLAP", true)) {
    // Not the device's: it may have compiled PTX for an older one.
    int ptx_version = 0;
    LOWRANK_RETURN_IF_ERROR(Check(
        driver().cuFuncGetAttribute(&ptx_version, CU_FUNC_ATTRIBUTE_PTX_VERSION, fresh.function),
        "cuFuncGetAttribute"));
    fresh.waits = ptx_version >= kSmOfGridWait;
  }
  *kernel = &kernels_.emplace(name, fresh).first->second;
  return Status();
}

Status Context::AllowShared(Kernel* kernel, uint32_t bytes) {
  if (bytes <= kernel->shared_bytes) return Status();
  LOWRANK_RETURN_IF_ERROR(Check(
      driver().cuFuncSetAttribute(kernel->function, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                                  static_cast<int>(bytes)),
      "cuFuncSetAttribute"));
  kernel->shared_bytes = bytes;
  return Status();
}

Status Context::EncodeMaps(const LaunchStep& step, unsigned char* params) {
  for (const TensorMapRequest& request : step.tensor_maps) {
    CUtensorMap map;
    const uint32_t ones[5] = {1, 1, 1, 1, 1};
    const CUresult result = driver().cuTensorMapEncodeTiled(
        &map, MapType(request), request.rank, const_cast<void*>(request.base),
        request.size_elems.data(), request.stride_bytes.data() + 1, request.box_elems.data(), ones,
        CU_TENSOR_MAP_INTERLEAVE_NONE, MapSwizzle(request.swizzle_bytes),
        request.evict_first ? CU_TENSOR_MAP_L2_PROMOTION_NONE : CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
        CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    LOWRANK_RETURN_IF_ERROR(Check(result, "cuTensorMapEncodeTiled"));
    std::memcpy(params + request.param_offset_bytes, &map, sizeof(map));
  }
  return Status();
}

Status Context::Launch(const std::vector<LaunchStep>& steps, CUstream stream) {
  for (const LaunchStep& step : steps) {
    LOWRANK_RETURN_IF_ERROR(LaunchOne(step, &step != &steps.front() && step.overlaps, stream));
  }
  return Status();
}

Status Context::LaunchGraph(CUgraphExec graph, CUstream stream) {
  launches_.fetch_add(1, std::memory_order_relaxed);
  return Check(driver().cuGraphLaunch(graph, stream), "cuGraphLaunch");
}

Status Context::LaunchOne(const LaunchStep& step, bool overlap, CUstream stream) {
  Kernel* kernel = nullptr;
  LOWRANK_RETURN_IF_ERROR(FindKernel(step.kernel, &kernel));
  LOWRANK_RETURN_IF_ERROR(AllowShared(kernel, step.shared_bytes));
  alignas(128) unsigned char with_maps[LaunchStep::kMaxParamBytes];
  const unsigned char* params = step.params.data();
  if (!step.tensor_maps.empty()) {
    std::memcpy(with_maps, params, step.param_bytes);
    LOWRANK_RETURN_IF_ERROR(EncodeMaps(step, with_maps));
    params = with_maps;
  }

  CUlaunchAttribute attributes[2] = {};
  CUlaunchConfig config = {};
  config.gridDimX = step.grid.x;
  config.gridDimY = step.grid.y;
  config.gridDimZ = step.grid.z;
  config.blockDimX = step.threads;
  config.blockDimY = 1;
  config.blockDimZ = 1;
  config.sharedMemBytes = step.shared_bytes;
  config.hStream = stream;
  config.attrs = attributes;
  if (step.cluster > 1) {
    CUlaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
    attribute.value.clusterDim = {step.cluster, 1, 1};
  }
  if (overlap && kernel->waits) {
    CUlaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
    attribute.value.programmaticStreamSerializationAllowed = 1;
  }
  launches_.fetch_add(1, std::memory_order_relaxed);
  void* arguments[] = {const_cast<unsigned char*>(params)};
  const CUresult result = driver().cuLaunchKernelEx(&config, kernel->function, arguments, nullptr);
  if (result == CUDA_SUCCESS) return Status();
  return Check(result, (std::string("launch of ") + step.kernel).c_str());
}

}  // namespace lowrank::cuda
