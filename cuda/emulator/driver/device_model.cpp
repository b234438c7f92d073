#include "cuda/emulator/driver/device_model.h"

namespace lowrank::emu::driver {
DeviceModel ModelOf(int sm) {
  DeviceModel found = cuda::kCards[0];
  for (const DeviceModel& model : cuda::kCards) {
    if (model.sm <= sm) found = model;
  }
  found.sm = sm;
  return found;
}

bool DeviceAttribute(const DeviceModel& model, int attribute, int* value) {
  // Numbers of CUdevice_attribute; those without a line are features that are not there.
  constexpr int kLastAttribute = 147;
  if (attribute < 1 || attribute > kLastAttribute) return false;
  switch (attribute) {
    case 1:  // MAX_THREADS_PER_BLOCK
    case 2:  // MAX_BLOCK_DIM_X
    case 3:  // _Y
      *value = kMaxThreads;
      break;
    case 4:  // MAX_BLOCK_DIM_Z
      *value = 64;
      break;
    case 5:  // MAX_GRID_DIM_X
      *value = 0x7fffffff;
      break;
    case 6:  // _Y
    case 7:  // _Z
      *value = 65535;
      break;
    case 8:  // MAX_SHARED_MEMORY_PER_BLOCK
      *value = kDefaultSharedBytes;
      break;
    case 9:  // TOTAL_CONSTANT_MEMORY
      *value = 64 << 10;
      break;
    case 10:  // WARP_SIZE
      *value = 32;
      break;
    case 12:  // MAX_REGISTERS_PER_BLOCK
    case 82:  // MAX_REGISTERS_PER_MULTIPROCESSOR
      *value = kRegistersPerSm;
      break;
    case 13:
      *value = model.clock_khz;
      break;
    case 16:  // MULTIPROCESSOR_COUNT
      *value = model.sm_count;
      break;
    case 15:   // GPU_OVERLAP
    case 19:   // CAN_MAP_HOST_MEMORY
    case 31:   // CONCURRENT_KERNELS
    case 40:   // ASYNC_ENGINE_COUNT
    case 41:   // UNIFIED_ADDRESSING
    case 78:   // STREAM_PRIORITIES_SUPPORTED
    case 79:   // GLOBAL_L1_CACHE_SUPPORTED
    case 80:   // LOCAL_L1_CACHE_SUPPORTED
    case 115:  // MEMORY_POOLS_SUPPORTED
      *value = 1;
      break;
    case 36:
      *value = model.memory_clock_khz;
      break;
    case 37:
      *value = model.memory_bus_bits;
      break;
    case 38:
      *value = model.l2_bytes;
      break;
    case 39:
      *value = model.threads_per_sm;
      break;
    case 75:
      *value = model.sm / 10;
      break;
    case 76:
      *value = model.sm % 10;
      break;
    case 81:
      *value = model.shared_bytes_per_sm;
      break;
    case 97:
      *value = model.shared_bytes_per_block;
      break;
    case 106:
      *value = model.blocks_per_sm;
      break;
    case 111:
      *value = kReservedSharedBytes;
      break;
    case 120:  // CLUSTER_LAUNCH
    case 127:  // TENSOR_MAP_ACCESS_SUPPORTED
      *value = model.sm >= 90 ? 1 : 0;
      break;
    default:
      *value = 0;
  }
  return true;
}

}  // namespace lowrank::emu::driver
