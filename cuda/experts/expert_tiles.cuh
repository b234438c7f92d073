/// The slots of a layer of experts in tiles. A block finds its own from the offsets: nobody makes a
/// table, and the host need not know how many slots an expert has.
#pragma once

#include "cuda/gpu.cuh"
#include "native/host_device/params/gemm_mma.h"
#include "native/host_device/params/parts/expert_slots.h"

namespace lowrank::gpu {

/// Slots [first, first + count) of one expert. Expert `experts` stands for slots without one.
struct ExpertTile {
  int32_t expert;
  int32_t first;
  int32_t count;  // 0: no such tile
};

/// The sum over the lanes up to this one.
LOWRANK_DEVICE int32_t SumUpToLane(int32_t value) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const int32_t other = __shfl_up_sync(0xffffffffu, value, distance);
    if (lane >= distance) value += other;
  }
  return value;
}

/// Tile `tile` of those of all experts in order, each of up to `rows` slots. Every warp looks for
/// itself, 32 experts at a time.
LOWRANK_DEVICE ExpertTile FindExpertTile(const ExpertSlots& slots, int rows, int64_t tile) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int64_t before = 0;  // tiles of the experts below
  for (int base = 0; base <= slots.experts; base += 32) {
    const int expert = base + lane;
    const int32_t begin = expert <= slots.experts ? slots.offsets[expert] : slots.slots;
    const int32_t end = expert < slots.experts ? slots.offsets[expert + 1] : slots.slots;
    const int32_t own = end > begin ? (end - begin + rows - 1) / rows : 0;
    const int32_t up_to = SumUpToLane(own);
    const unsigned beyond = __ballot_sync(0xffffffffu, before + up_to > tile);
    if (beyond != 0) {
      const int owner = __ffs(static_cast<int>(beyond)) - 1;
      const int64_t index = tile - before - __shfl_sync(0xffffffffu, up_to - own, owner);
      const int32_t first =
          __shfl_sync(0xffffffffu, begin, owner) + static_cast<int32_t>(index) * rows;
      const int32_t left = __shfl_sync(0xffffffffu, end, owner) - first;
      return {base + owner, first, left < rows ? left : rows};
    }
    before += __shfl_sync(0xffffffffu, up_to, 31);
  }
  return {slots.experts, 0, 0};
}

/// The row of x of a slot.
LOWRANK_DEVICE int32_t RowOfSlot(const ExpertSlots& slots, int32_t slot) {
  return slots.order == nullptr ? slot : slots.order[slot] / slots.k;
}

/// The elements from `first` on, at which a block of scales begins.
LOWRANK_DEVICE GemmMmaWeight WeightFrom(const GemmMmaWeight& w, int64_t first) {
  GemmMmaWeight part = w;
  const unsigned char* g_data = static_cast<const unsigned char*>(w.data);
  if (w.bits == 0) {
    part.data = g_data + first * (w.dense_dtype == kElementF32 ? 4 : 2);
    return part;
  }
  part.data = g_data + (w.bits == 4 ? first / 2 : first);
  const int64_t block = first >> w.blocksize_log2;
  if (w.absmax_8bit == nullptr) {
    part.absmax = w.absmax + block;
  } else {
    part.absmax_8bit = w.absmax_8bit + block;
    part.nested_absmax = w.nested_absmax + block / w.nested_blocksize;
  }
  return part;
}

/// Element `first` of a tensor of any type.
LOWRANK_DEVICE const void* ElementsFrom(const void* g_data, uint8_t dtype, int64_t first) {
  if (g_data == nullptr) return nullptr;
  return static_cast<const unsigned char*>(g_data) + first * (dtype == kElementF32 ? 4 : 2);
}

}  // namespace lowrank::gpu
