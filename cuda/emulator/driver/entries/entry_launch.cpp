/// Driver calls on modules, kernels and launches, and the tensor maps they take.
#include <algorithm>
#include <cstring>
#include <memory>
#include <utility>

#include "cuda/emulator/driver/entries/exports.h"
#include "cuda/emulator/driver/launch.h"
#include "cuda/emulator/driver/state.h"
#include "cuda/emulator/hopper/hopper.h"

namespace lowrank::cuda {

using namespace emu::driver;

namespace {

constexpr unsigned kMaxGridX = 0x7fffffff;
constexpr unsigned kMaxGridYZ = 65535;
constexpr unsigned kMaxBlockZ = 64;
constexpr unsigned kMaxCluster = 8;  // what is portable
constexpr CUfunction_attribute kConstSize = 2, kPtxVersion = 5, kBinaryVersion = 6, kCacheMode = 7,
                               kCarveout = 9, kClusterMustBeSet = 10, kClusterWidth = 11,
                               kClusterHeight = 12, kClusterDepth = 13, kNonPortable = 14,
                               kClusterPolicy = 15;

CUresult EnterFunction(CUfunction handle, ContextPtr* context, FunctionPtr* function) {
  if (const int result = EnterContext(context); result != 0) return result;
  *function = State::Get().functions.Find(handle);
  if (*function == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  return (*function)->context == *context ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
}

/// The registers that the kernel's launch bounds leave a thread: the emulator compiles none, so
/// this is what the kernel promises to stay below.
int RegisterBound(const emu::Kernel& kernel) {
  const auto threads = static_cast<int>(std::max(1u, kernel.max_threads * kernel.min_blocks));
  constexpr int kMaxRegisters = 255;
  return std::min(kMaxRegisters, kRegistersPerSm / threads / 8 * 8);
}

/// wgmma is an instruction of sm_90a alone: no image for another device holds such a kernel.
bool RunsOn(const char* name, int sm) {
  return std::strstr(name, "_wgmma_") == nullptr || sm == 90;
}

struct Shape {
  emu::Dim3 grid;
  emu::Dim3 block;
  unsigned cluster = 1;
  unsigned shared_bytes = 0;
  bool overlaps_previous = false;
};

/// What the driver checks before anything is queued.
CUresult CheckShape(const Function& function, const DeviceModel& model, const Shape& shape) {
  const emu::Dim3& grid = shape.grid;
  const emu::Dim3& block = shape.block;
  const unsigned cluster = shape.cluster;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > kMaxGridX || grid.y > kMaxGridYZ ||
      grid.z > kMaxGridYZ) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  constexpr unsigned kMax = kMaxThreads;
  if (block.x == 0 || block.y == 0 || block.z == 0 || block.x > kMax || block.y > kMax ||
      block.z > kMaxBlockZ || uint64_t{block.x} * block.y * block.z > kMax) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  if (block.x * block.y * block.z > function.kernel->max_threads) {
    return CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES;
  }
  if (shape.shared_bytes > static_cast<unsigned>(function.max_dynamic_shared.load())) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  if (cluster == 0 || cluster > kMaxCluster || (cluster > 1 && model.sm < 90)) {
    return CUDA_ERROR_INVALID_CLUSTER_SIZE;
  }
  return grid.x % cluster == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CLUSTER_SIZE;
}

/// The parameters: one pointer, or a packed buffer by `extra`.
const void* FindParams(void** params, void** extra, size_t bytes, CUresult* result) {
  *result = CUDA_ERROR_INVALID_VALUE;
  if (params != nullptr && extra != nullptr) return nullptr;
  if (params != nullptr) {
    *result = params[0] == nullptr && bytes > 0 ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
    return params[0];
  }
  if (extra == nullptr) {
    *result = bytes == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    return nullptr;
  }
  const void* buffer = nullptr;
  size_t size = 0;
  const auto tag = [](void* entry) { return reinterpret_cast<uintptr_t>(entry); };
  constexpr uintptr_t kEnd = 0, kPointer = 1, kSize = 2;
  for (void** entry = extra; tag(*entry) != kEnd; entry += 2) {
    if (tag(*entry) == kPointer) buffer = entry[1];
    if (tag(*entry) == kSize) size = *static_cast<size_t*>(entry[1]);
  }
  if (size == bytes && (buffer != nullptr || bytes == 0)) *result = CUDA_SUCCESS;
  return buffer;
}

CUresult LaunchShape(CUfunction handle, CUstream stream, const Shape& shape, void** params,
                     void** extra) {
  ContextPtr context;
  FunctionPtr function;
  StreamPtr found;
  if (const CUresult r = EnterFunction(handle, &context, &function); r != 0) return r;
  if (const CUresult r = FindStream(stream, context, &found); r != 0) return r;
  if (const CUresult r = CheckShape(*function, context->model, shape); r != 0) return r;
  CUresult result = CUDA_SUCCESS;
  emu::Launch launch;
  launch.kernel = function->kernel;
  launch.grid = shape.grid;
  launch.block = shape.block;
  launch.cluster = shape.cluster;
  launch.shared_bytes = shape.shared_bytes;
  launch.overlaps_previous = shape.overlaps_previous;
  launch.params = FindParams(params, extra, function->kernel->param_bytes, &result);
  if (result != 0) return result;
  auto owned = std::make_shared<OwnedLaunch>(launch, found->chain(), context->memory);
  return Submit(context, found, NodeKind::kKernel, [owned] { return owned->Run(); });
}

uint32_t ElemBytes(CUtensorMapDataType type) {
  switch (type) {
    case 0:  // UINT8
      return 1;
    case 1:  // UINT16
    case 6:  // FLOAT16
    case 9:  // BFLOAT16
      return 2;
    case 2:   // UINT32
    case 3:   // INT32
    case 7:   // FLOAT32
    case 10:  // FLOAT32_FTZ
    case 11:  // TFLOAT32
    case 12:  // TFLOAT32_FTZ
      return 4;
    case 4:  // UINT64
    case 5:  // INT64
    case 8:  // FLOAT64
      return 8;
    default:
      return 0;
  }
}

}  // namespace

CUresult cuModuleLoadData(CUmodule* module, const void* image) {
  ContextPtr context;
  if (const int result = EnterContext(&context); result != 0) return result;
  // The image is not read: the kernels are in this library.
  if (module == nullptr || image == nullptr) return CUDA_ERROR_INVALID_VALUE;
  auto object = std::make_shared<Module>();
  object->context = context;
  *module = State::Get().modules.Add(object);
  return CUDA_SUCCESS;
}

CUresult cuModuleUnload(CUmodule module) {
  ContextPtr context;
  const int entered = EnterContext(&context);
  if (context == nullptr) return entered;
  const ModulePtr object = State::Get().modules.Remove(module);
  if (object == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  const std::lock_guard<std::mutex> lock(object->mutex);
  for (const auto& [name, function] : object->functions) State::Get().functions.Remove(function);
  return entered;
}

CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
  ContextPtr context;
  if (const int result = EnterContext(&context); result != 0) return result;
  if (function == nullptr || name == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const ModulePtr object = State::Get().modules.Find(module);
  if (object == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  const std::lock_guard<std::mutex> lock(object->mutex);
  if (const auto known = object->functions.find(name); known != object->functions.end()) {
    *function = known->second;
    return CUDA_SUCCESS;
  }
  const emu::Kernel* kernel = emu::FindKernel(name);
  if (kernel == nullptr || !RunsOn(name, object->context->model.sm)) return CUDA_ERROR_NOT_FOUND;
  auto made = std::make_shared<Function>();
  made->kernel = kernel;
  made->module = object;
  made->context = object->context;
  made->max_dynamic_shared =
      std::max(0, kDefaultSharedBytes - static_cast<int>(kernel->static_shared_bytes));
  *function = State::Get().functions.Add(std::move(made));
  object->functions[name] = *function;
  return CUDA_SUCCESS;
}

CUresult cuFuncGetAttribute(int* value, CUfunction_attribute attribute, CUfunction function) {
  ContextPtr context;
  FunctionPtr found;
  if (const CUresult r = EnterFunction(function, &context, &found); r != 0) return r;
  if (value == nullptr) return CUDA_ERROR_INVALID_VALUE;
  switch (attribute) {
    case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
      *value = static_cast<int>(found->kernel->max_threads);
      return CUDA_SUCCESS;
    case CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES:
      *value = static_cast<int>(found->kernel->static_shared_bytes);
      return CUDA_SUCCESS;
    case CU_FUNC_ATTRIBUTE_NUM_REGS:
      *value = RegisterBound(*found->kernel);
      return CUDA_SUCCESS;
    case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES:
      *value = found->max_dynamic_shared;
      return CUDA_SUCCESS;
    case kPtxVersion:
      *value = found->kernel->ptx_version != 0 ? found->kernel->ptx_version : context->model.sm;
      return CUDA_SUCCESS;
    case kBinaryVersion:
      *value = context->model.sm;
      return CUDA_SUCCESS;
    case CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES:
    case kConstSize:
    case kCacheMode:
    case kClusterMustBeSet:
    case kClusterWidth:
    case kClusterHeight:
    case kClusterDepth:
    case kNonPortable:
    case kClusterPolicy:
      *value = 0;
      return CUDA_SUCCESS;
    case kCarveout:
      *value = -1;
      return CUDA_SUCCESS;
    default:
      return CUDA_ERROR_INVALID_VALUE;
  }
}

CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) {
  ContextPtr context;
  FunctionPtr found;
  if (const CUresult r = EnterFunction(function, &context, &found); r != 0) return r;
  if (attribute == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) {
    const int most = context->model.shared_bytes_per_block -
                     static_cast<int>(found->kernel->static_shared_bytes);
    if (value < 0 || value > most) return CUDA_ERROR_INVALID_VALUE;
    found->max_dynamic_shared = value;
    return CUDA_SUCCESS;
  }
  if (attribute == kCarveout) {
    return value >= -1 && value <= 100 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
  }
  return CUDA_ERROR_INVALID_VALUE;
}

CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, CUfunction function, int threads,
                                                     size_t dynamic_shared_bytes) {
  ContextPtr context;
  FunctionPtr found;
  if (const CUresult r = EnterFunction(function, &context, &found); r != 0) return r;
  if (blocks == nullptr || threads < 1) return CUDA_ERROR_INVALID_VALUE;
  const DeviceModel& model = context->model;
  const emu::Kernel& kernel = *found->kernel;
  *blocks = 0;
  if (threads > static_cast<int>(kernel.max_threads)) return CUDA_SUCCESS;
  const int whole_warps = (threads + 31) / 32 * 32;
  const size_t shared = dynamic_shared_bytes + kernel.static_shared_bytes;
  if (shared > static_cast<size_t>(model.shared_bytes_per_block)) return CUDA_SUCCESS;
  const int by_threads = model.threads_per_sm / whole_warps;
  const int by_registers = kRegistersPerSm / (whole_warps * RegisterBound(kernel));
  const auto by_shared = static_cast<int>(static_cast<size_t>(model.shared_bytes_per_sm) /
                                          (shared + kReservedSharedBytes));
  *blocks = std::min({by_threads, by_registers, by_shared, model.blocks_per_sm});
  return CUDA_SUCCESS;
}

CUresult cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction function, void** params,
                          void** extra) {
  if (config == nullptr || (config->numAttrs > 0 && config->attrs == nullptr)) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  Shape shape;
  shape.grid = {config->gridDimX, config->gridDimY, config->gridDimZ};
  shape.block = {config->blockDimX, config->blockDimY, config->blockDimZ};
  shape.shared_bytes = config->sharedMemBytes;
  for (unsigned i = 0; i < config->numAttrs; ++i) {
    const CUlaunchAttribute& attribute = config->attrs[i];
    constexpr CUlaunchAttributeID kCooperative = 2;
    if (attribute.id == CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION) {
      const auto& dim = attribute.value.clusterDim;
      if (dim.y != 1 || dim.z != 1) return CUDA_ERROR_NOT_SUPPORTED;
      shape.cluster = dim.x;
    }
    if (attribute.id == CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION) {
      shape.overlaps_previous = attribute.value.programmaticStreamSerializationAllowed != 0;
    }
    if (attribute.id == kCooperative) return CUDA_ERROR_NOT_SUPPORTED;
  }
  return LaunchShape(function, config->hStream, shape, params, extra);
}

CUresult cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                        unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared_bytes,
                        CUstream stream, void** params, void** extra) {
  Shape shape;
  shape.grid = {grid_x, grid_y, grid_z};
  shape.block = {block_x, block_y, block_z};
  shape.shared_bytes = shared_bytes;
  return LaunchShape(function, stream, shape, params, extra);
}

CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType type, uint32_t rank,
                                void* base, const uint64_t* size_elems,
                                const uint64_t* stride_bytes, const uint32_t* box_elems,
                                const uint32_t* element_strides, CUtensorMapInterleave interleave,
                                CUtensorMapSwizzle swizzle, CUtensorMapL2promotion l2_promotion,
                                CUtensorMapFloatOOBfill out_of_bounds) {
  ContextPtr context;
  if (const int result = EnterContext(&context); result != 0) return result;
  if (context->model.sm < 90) return CUDA_ERROR_NOT_SUPPORTED;
  const uint32_t elem_bytes = ElemBytes(type);
  if (map == nullptr || reinterpret_cast<uintptr_t>(map) % 64 != 0 || base == nullptr ||
      size_elems == nullptr || box_elems == nullptr || element_strides == nullptr ||
      (rank > 1 && stride_bytes == nullptr) || rank < 1 || rank > 5 || elem_bytes == 0) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  if (swizzle < CU_TENSOR_MAP_SWIZZLE_NONE || l2_promotion < CU_TENSOR_MAP_L2_PROMOTION_NONE ||
      l2_promotion > CU_TENSOR_MAP_L2_PROMOTION_L2_256B) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  // Of the rest, the models of this emulator have no interleave, no atoms and no NaN fill.
  if (interleave != CU_TENSOR_MAP_INTERLEAVE_NONE || swizzle > CU_TENSOR_MAP_SWIZZLE_128B ||
      out_of_bounds != CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) {
    return CUDA_ERROR_NOT_SUPPORTED;
  }
  emu::TensorMapSpec spec;
  spec.base = reinterpret_cast<uint64_t>(base);
  spec.rank = rank;
  spec.elem_bytes = elem_bytes;
  for (uint32_t i = 0; i < rank; ++i) {
    spec.size_elems[i] = size_elems[i];
    spec.stride_bytes[i] = i == 0 ? 0 : stride_bytes[i - 1];
    spec.box_elems[i] = box_elems[i];
    spec.elem_stride[i] = element_strides[i];
  }
  spec.swizzle_bytes = swizzle == CU_TENSOR_MAP_SWIZZLE_NONE ? 0 : 16u << swizzle;
  return emu::EncodeTensorMap(spec, map) == nullptr ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

}  // namespace lowrank::cuda
