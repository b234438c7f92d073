/// Compares native/cuda/driver/driver.h with the toolkit's cuda.h, at compile time: the binary
/// interface of each call (number of parameters; pointer, integer or struct, and its size), each
/// constant, the layout of each struct. Running it only says that it was compiled.
#include <cstdio>
#include <type_traits>

#include "native/cuda/driver/driver.h"

// Macros there, so they are taken before.
constexpr unsigned kOurPortable = lowrank::cuda::CU_MEMHOSTALLOC_PORTABLE;
constexpr unsigned kOurRegistration[] = {lowrank::cuda::CU_MEMHOSTREGISTER_PORTABLE,
                                         lowrank::cuda::CU_MEMHOSTREGISTER_DEVICEMAP};

// Makes cuda.h declare the versioned symbols under their own names.
#define __CUDA_API_VERSION_INTERNAL
#include <cuda.h>

namespace ours = lowrank::cuda;

namespace {

/// Passed alike: both pointers, or both integers or enumerations of one size.
template <typename A, typename B>
constexpr bool kSameParameter =
    (std::is_pointer_v<A> && std::is_pointer_v<B>) ||
    (!std::is_pointer_v<A> && !std::is_pointer_v<B> && !std::is_class_v<A> && !std::is_class_v<B> &&
     std::is_floating_point_v<A> == std::is_floating_point_v<B> && sizeof(A) == sizeof(B));

/// What a pointer leads to: handles and plain values are compared one level deep.
template <typename A, typename B>
constexpr bool SamePointee() {
  if constexpr (std::is_pointer_v<A> && std::is_pointer_v<B>) {
    using PA = std::remove_pointer_t<A>;
    using PB = std::remove_pointer_t<B>;
    if constexpr (std::is_void_v<PA> || std::is_void_v<PB>) {
      return std::is_void_v<PA> && std::is_void_v<PB> && std::is_const_v<PA> == std::is_const_v<PB>;
    } else if constexpr (std::is_pointer_v<PA> || std::is_pointer_v<PB>) {
      return std::is_pointer_v<PA> && std::is_pointer_v<PB>;
    } else if constexpr (std::is_arithmetic_v<PA> || std::is_enum_v<PA>) {
      return sizeof(PA) == sizeof(PB) && std::is_const_v<PA> == std::is_const_v<PB>;
    }
  }
  return true;
}

template <typename A, typename B>
struct SameCall : std::false_type {};
template <typename RA, typename... PA, typename RB, typename... PB>
struct SameCall<RA (*)(PA...), RB (*)(PB...)> {
  static constexpr bool Compare() {
    if constexpr (sizeof...(PA) != sizeof...(PB)) {
      return false;
    } else {
      return kSameParameter<RA, RB> && (kSameParameter<PA, PB> && ...) &&
             (SamePointee<PA, PB>() && ...);
    }
  }
  static constexpr bool value = Compare();
};

#define CHECK_CALL(symbol, parameters)                                                \
  static_assert(SameCall<decltype(ours::Driver::symbol), decltype(&::symbol)>::value, \
                #symbol " differs from cuda.h");
LOWRANK_FOR_EACH_CUDA_CALL(CHECK_CALL)

#define CHECK_CONSTANT(name) \
  static_assert(static_cast<long>(ours::name) == static_cast<long>(::name), #name " differs");
CHECK_CONSTANT(CUDA_SUCCESS)
CHECK_CONSTANT(CUDA_ERROR_INVALID_VALUE)
CHECK_CONSTANT(CUDA_ERROR_OUT_OF_MEMORY)
CHECK_CONSTANT(CUDA_ERROR_NOT_INITIALIZED)
CHECK_CONSTANT(CUDA_ERROR_DEINITIALIZED)
CHECK_CONSTANT(CUDA_ERROR_STUB_LIBRARY)
CHECK_CONSTANT(CUDA_ERROR_CALL_REQUIRES_NEWER_DRIVER)
CHECK_CONSTANT(CUDA_ERROR_DEVICE_UNAVAILABLE)
CHECK_CONSTANT(CUDA_ERROR_NO_DEVICE)
CHECK_CONSTANT(CUDA_ERROR_INVALID_DEVICE)
CHECK_CONSTANT(CUDA_ERROR_INVALID_IMAGE)
CHECK_CONSTANT(CUDA_ERROR_INVALID_CONTEXT)
CHECK_CONSTANT(CUDA_ERROR_NO_BINARY_FOR_GPU)
CHECK_CONSTANT(CUDA_ERROR_ECC_UNCORRECTABLE)
CHECK_CONSTANT(CUDA_ERROR_INVALID_PTX)
CHECK_CONSTANT(CUDA_ERROR_JIT_COMPILER_NOT_FOUND)
CHECK_CONSTANT(CUDA_ERROR_UNSUPPORTED_PTX_VERSION)
CHECK_CONSTANT(CUDA_ERROR_INVALID_HANDLE)
CHECK_CONSTANT(CUDA_ERROR_NOT_FOUND)
CHECK_CONSTANT(CUDA_ERROR_NOT_READY)
CHECK_CONSTANT(CUDA_ERROR_ILLEGAL_ADDRESS)
CHECK_CONSTANT(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES)
CHECK_CONSTANT(CUDA_ERROR_LAUNCH_TIMEOUT)
CHECK_CONSTANT(CUDA_ERROR_CONTEXT_IS_DESTROYED)
CHECK_CONSTANT(CUDA_ERROR_ASSERT)
CHECK_CONSTANT(CUDA_ERROR_HARDWARE_STACK_ERROR)
CHECK_CONSTANT(CUDA_ERROR_ILLEGAL_INSTRUCTION)
CHECK_CONSTANT(CUDA_ERROR_MISALIGNED_ADDRESS)
CHECK_CONSTANT(CUDA_ERROR_INVALID_ADDRESS_SPACE)
CHECK_CONSTANT(CUDA_ERROR_INVALID_PC)
CHECK_CONSTANT(CUDA_ERROR_LAUNCH_FAILED)
CHECK_CONSTANT(CUDA_ERROR_NOT_SUPPORTED)
CHECK_CONSTANT(CUDA_ERROR_SYSTEM_NOT_READY)
CHECK_CONSTANT(CUDA_ERROR_SYSTEM_DRIVER_MISMATCH)
CHECK_CONSTANT(CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE)
CHECK_CONSTANT(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED)
CHECK_CONSTANT(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED)
CHECK_CONSTANT(CUDA_ERROR_STREAM_CAPTURE_ISOLATION)
CHECK_CONSTANT(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT)
CHECK_CONSTANT(CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD)
CHECK_CONSTANT(CUDA_ERROR_INVALID_CLUSTER_SIZE)
CHECK_CONSTANT(CUDA_ERROR_UNKNOWN)
CHECK_CONSTANT(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)
CHECK_CONSTANT(CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)
CHECK_CONSTANT(CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH)
CHECK_CONSTANT(CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)
CHECK_CONSTANT(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)
CHECK_CONSTANT(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)
CHECK_CONSTANT(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR)
CHECK_CONSTANT(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)
CHECK_CONSTANT(CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED)
CHECK_CONSTANT(CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)
CHECK_CONSTANT(CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)
CHECK_CONSTANT(CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES)
CHECK_CONSTANT(CU_FUNC_ATTRIBUTE_NUM_REGS)
CHECK_CONSTANT(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES)
CHECK_CONSTANT(CU_POINTER_ATTRIBUTE_MEMORY_TYPE)
CHECK_CONSTANT(CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL)
CHECK_CONSTANT(CU_MEMORYTYPE_DEVICE)
CHECK_CONSTANT(CU_MEMPOOL_ATTR_RELEASE_THRESHOLD)
CHECK_CONSTANT(CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)
CHECK_CONSTANT(CU_MEMPOOL_ATTR_USED_MEM_CURRENT)
CHECK_CONSTANT(CU_STREAM_NON_BLOCKING)
CHECK_CONSTANT(CU_EVENT_DEFAULT)
CHECK_CONSTANT(CU_EVENT_BLOCKING_SYNC)
CHECK_CONSTANT(CU_EVENT_DISABLE_TIMING)
static_assert(kOurRegistration[0] == CU_MEMHOSTREGISTER_PORTABLE &&
                  kOurRegistration[1] == CU_MEMHOSTREGISTER_DEVICEMAP,
              "CU_MEMHOSTREGISTER_* differ");
CHECK_CONSTANT(CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED)
static_assert(kOurPortable == CU_MEMHOSTALLOC_PORTABLE, "CU_MEMHOSTALLOC_PORTABLE differs");
CHECK_CONSTANT(CU_STREAM_CAPTURE_MODE_GLOBAL)
CHECK_CONSTANT(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
CHECK_CONSTANT(CU_STREAM_CAPTURE_MODE_RELAXED)
CHECK_CONSTANT(CU_STREAM_CAPTURE_STATUS_NONE)
CHECK_CONSTANT(CU_STREAM_CAPTURE_STATUS_ACTIVE)
CHECK_CONSTANT(CU_STREAM_CAPTURE_STATUS_INVALIDATED)
CHECK_CONSTANT(CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION)
CHECK_CONSTANT(CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION)
CHECK_CONSTANT(CU_TENSOR_MAP_DATA_TYPE_UINT8)
CHECK_CONSTANT(CU_TENSOR_MAP_DATA_TYPE_FLOAT16)
CHECK_CONSTANT(CU_TENSOR_MAP_DATA_TYPE_FLOAT32)
CHECK_CONSTANT(CU_TENSOR_MAP_DATA_TYPE_BFLOAT16)
CHECK_CONSTANT(CU_TENSOR_MAP_INTERLEAVE_NONE)
CHECK_CONSTANT(CU_TENSOR_MAP_SWIZZLE_NONE)
CHECK_CONSTANT(CU_TENSOR_MAP_SWIZZLE_32B)
CHECK_CONSTANT(CU_TENSOR_MAP_SWIZZLE_64B)
CHECK_CONSTANT(CU_TENSOR_MAP_SWIZZLE_128B)
CHECK_CONSTANT(CU_TENSOR_MAP_L2_PROMOTION_NONE)
CHECK_CONSTANT(CU_TENSOR_MAP_L2_PROMOTION_L2_128B)
CHECK_CONSTANT(CU_TENSOR_MAP_L2_PROMOTION_L2_256B)
CHECK_CONSTANT(CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE)
CHECK_CONSTANT(CU_MEM_ALLOCATION_TYPE_PINNED)
CHECK_CONSTANT(CU_MEM_LOCATION_TYPE_DEVICE)

#define CHECK_TYPE(name)                                                                        \
  static_assert(sizeof(ours::name) == sizeof(::name) && alignof(ours::name) == alignof(::name), \
                #name " differs in size");
#define CHECK_FIELD(type, field)                                          \
  static_assert(offsetof(ours::type, field) == offsetof(::type, field) && \
                    sizeof(ours::type::field) == sizeof(::type::field),   \
                #type "." #field " lies elsewhere");
CHECK_TYPE(CUdeviceptr)
CHECK_TYPE(CUtensorMap)
CHECK_TYPE(CUlaunchAttributeValue)
CHECK_FIELD(CUlaunchAttributeValue, clusterDim)
CHECK_FIELD(CUlaunchAttributeValue, programmaticStreamSerializationAllowed)
CHECK_TYPE(CUlaunchAttribute)
CHECK_FIELD(CUlaunchAttribute, value)
CHECK_TYPE(CUlaunchConfig)
CHECK_FIELD(CUlaunchConfig, gridDimX)
CHECK_FIELD(CUlaunchConfig, gridDimZ)
CHECK_FIELD(CUlaunchConfig, blockDimX)
CHECK_FIELD(CUlaunchConfig, blockDimZ)
CHECK_FIELD(CUlaunchConfig, sharedMemBytes)
CHECK_FIELD(CUlaunchConfig, hStream)
CHECK_FIELD(CUlaunchConfig, attrs)
CHECK_FIELD(CUlaunchConfig, numAttrs)
CHECK_TYPE(CUmemPoolProps)
CHECK_FIELD(CUmemPoolProps, allocType)
CHECK_FIELD(CUmemPoolProps, handleTypes)
CHECK_FIELD(CUmemPoolProps, location)
CHECK_FIELD(CUmemPoolProps, maxSize)
CHECK_FIELD(CUmemPoolProps, usage)

}  // namespace

int main() {
  std::puts("native/cuda/driver/driver.h agrees with cuda.h");
  return 0;
}
