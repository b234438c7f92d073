/// The tables by which the kernels of many adapters (cuda/grouped/lora_grouped_sm80.cu) compute the
/// LoRA of a layer of experts: each expert is an adapter, its slots are the adapter's rows. Nobody
/// but the device knows which they are.
///
///   adapters[e]          the factors of expert e, its first slot and how many it has
///   adapters[experts]    the factors of expert 0 and all slots that have an expert, for the
///   gradient
///                        of a factor that all share
///   tiles                up to 32 slots of one expert each; empty behind the last
///   rows, own            of each slot its row of x, and its own number
///
/// h of slots without an expert is zeroed beside them.
///
/// Operands   offsets [E + 1], order [slots] i32
/// Grid       a block a tile, at least E + 1
/// Shared     none
/// Numerics   integers and pointers
///
/// Budget     65,536 slots of 128 experts: 2,177 blocks, which write 0.6 MB. A block reads the
///            offsets, then the order, and ends: two latencies of L2, and 16 blocks a
///            multiprocessor at once: 3 us with the launch.
#include "cuda/experts/expert_tiles.cuh"
#include "native/host_device/params/lora_grouped.h"

namespace lowrank::gpu {
namespace {

constexpr int kThreads = kExpertTableThreads;

template <typename T>
LOWRANK_DEVICE T* BytesFrom(T* g_data, int64_t bytes) {
  if (g_data == nullptr) return nullptr;
  return reinterpret_cast<unsigned char*>(const_cast<void*>(static_cast<const void*>(g_data))) +
         bytes;
}

LOWRANK_DEVICE void MakeAdapter(const ExpertTableParams& p, int expert) {
  GroupedAdapter adapter = p.first;
  const int64_t turn = expert == p.slots.experts ? 0 : expert;
  adapter.lora_a = BytesFrom(p.first.lora_a, turn * p.next_a);
  adapter.lora_b = BytesFrom(p.first.lora_b, turn * p.next_b);
  adapter.d_lora_a = BytesFrom(p.first.d_lora_a, turn * p.next_d_a);
  adapter.d_lora_b = BytesFrom(p.first.d_lora_b, turn * p.next_d_b);
  const int32_t begin = expert == p.slots.experts ? 0 : p.slots.offsets[expert];
  const int32_t end = p.slots.offsets[expert == p.slots.experts ? expert : expert + 1];
  adapter.first = begin;
  adapter.count = end > begin ? end - begin : 0;
  adapter.h_begin = begin * adapter.r;
  p.adapters[expert] = adapter;
}

LOWRANK_DEVICE void TableBody(const ExpertTableParams& p) {
  const int block = static_cast<int>(blockIdx.x);
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0 && block <= p.slots.experts) MakeAdapter(p, block);
  if (block >= p.tile_count) return;
  const ExpertTile tile = FindExpertTile(p.slots, kGroupedTile, block);
  const bool dropped = tile.expert == p.slots.experts;
  if (thread == 0) {
    GroupedRowTile entry = {0, 0, 0};
    if (!dropped) entry = {tile.expert, tile.count, tile.first};
    p.tiles[block] = entry;
  }
  for (int i = thread; i < tile.count; i += kThreads) {
    const int32_t slot = tile.first + i;
    p.rows[slot] = RowOfSlot(p.slots, slot);
    p.own[slot] = slot;
  }
  if (!dropped || p.h == nullptr) return;
  float* g_h = p.h + tile.first * p.first.r;
  for (int64_t i = thread; i < tile.count * p.first.r; i += kThreads) g_h[i] = 0.0f;
}

}  // namespace

LOWRANK_KERNEL(expert_table_kernel, ExpertTableParams, kThreads, 8) { TableBody(p); }

}  // namespace lowrank::gpu
