#include "cuda/emulator/driver/device_model.h"

namespace lowrank::emu::driver {
namespace {

constexpr int KiB(int n) { return n << 10; }
constexpr int MiB(int n) { return n << 20; }

// clang-format off
constexpr DeviceModel kModels[] = {
  // sm  card                SMs  block     SM        L2       threads blocks  clock    memory    bus
  { 80, "A100 SXM 80 GB",    108, KiB(163), KiB(164), MiB(40),  2048,  32,   1410000,  1593000, 5120},
  { 86, "GeForce RTX 3090",   82, KiB(99),  KiB(100), MiB(6),   1536,  16,   1695000,  9751000,  384},
  { 89, "GeForce RTX 4090",  128, KiB(99),  KiB(100), MiB(72),  1536,  24,   2520000, 10501000,  384},
  { 90, "H100 SXM 80 GB",    132, KiB(227), KiB(228), MiB(50),  2048,  32,   1980000,  2619000, 5120},
  {100, "B200",              148, KiB(227), KiB(228), MiB(126), 2048,  32,   1965000,  3996000, 8192},
  {120, "GeForce RTX 5090",  170, KiB(99),  KiB(100), MiB(96),  1536,  24,   2407000, 14001000,  512},
};
// clang-format on

}  // namespace

DeviceModel ModelOf(int sm) {
  DeviceModel found = kModels[0];
  for (const DeviceModel& model : kModels) {
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
