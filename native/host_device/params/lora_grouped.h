/// Parameters of the kernels over a batch whose rows have different adapters.
#pragma once

#include <cstdint>

#include "native/host_device/params/lora_shrink.h"
#include "native/host_device/params/parts/expert_slots.h"
#include "native/host_device/philox.h"

namespace lowrank::gpu {

constexpr int kGroupedThreads = 256;
constexpr int kGroupedTile = 32;        // rows and columns of a block's tile
constexpr int kGroupedDepth = 16;       // of the reduction at a time
constexpr int kGroupedSpan = 256;       // terms that are summed before they are added to the total
constexpr int kGroupedMostSlices = 16;  // of the reduction over N
constexpr int kGroupedPitch = kGroupedTile + 2;
constexpr uint32_t kGroupedSharedBytes = 2 * kGroupedDepth * kGroupedPitch * 4;
constexpr int kGroupedShrinkThreads = 512;
constexpr int kGroupedShrinkRows = 8;   // of a block of grouped_shrink
constexpr int kGroupedShrinkRanks = 4;  // that it sums at a time

/// Shared memory of grouped_shrink: the sums of its warps.
struct GroupedShrinkShared {
  float sums[kGroupedShrinkThreads / 32][kGroupedShrinkRows * kGroupedShrinkRanks];
};

/// Of lora_grouped_forward_sm90.cu: ranks of a block of a cluster, and of all.
constexpr int kGroupedForwardBlockRanks = 16;
constexpr int kGroupedForwardClusterMax = 8;
constexpr int kGroupedForwardRanks = kGroupedForwardClusterMax * kGroupedForwardBlockRanks;
constexpr int kGroupedForwardColumnStep = 16;  // of w's rows: their factors begin at 16 bytes

/// Its shared memory, before the rows of lora_b.
struct alignas(16) GroupedForwardShared {
  GroupedShrinkShared shrink;
  /// h of this block's ranks, four of a row at a time: peers read it.
  float own[kGroupedForwardBlockRanks / kGroupedShrinkRanks]
           [kGroupedShrinkRows * kGroupedShrinkRanks];
  /// h of all ranks in the same order.
  float h[kGroupedForwardRanks / kGroupedShrinkRanks][kGroupedShrinkRows * kGroupedShrinkRanks];
};
/// Distance between rows of lora_b, an odd multiple of 16 bytes: eight lanes with one row each then
/// use all banks.
LOWRANK_HOST_DEVICE constexpr int64_t GroupedFactorPitch(int64_t r, int64_t element_bytes) {
  return ((r * element_bytes + 15) / 16 | 1) * 16;
}

/// One adapter in device memory; element types as LoraElement numbers them.
struct GroupedAdapter {
  const void* lora_a;     // [r, K]
  const void* lora_b;     // [N, r]
  const void* lora_bias;  // [N] or null
  void* d_lora_a;         // [r, K] or null
  void* d_lora_b;         // [N, r] or null
  void* d_lora_bias;      // [N] or null
  int64_t r;
  int64_t first;    // its rows are rows[first, first + count)
  int64_t count;    //
  int64_t h_begin;  // its [count, r] in h and dh
  float scaling;
  uint32_t threshold;  // of its gate
  float kept_scale;
  int32_t gate_kind;  // LoraGateKind
  int32_t a_element;
  int32_t b_element;
  int32_t bias_element;
  int32_t d_a_element;
  int32_t d_b_element;
  int32_t d_bias_element;
  int32_t accumulate_a;
  int32_t accumulate_b;
  int32_t accumulate_bias;
  int32_t unused;
};

/// Up to kGroupedTile entries of one adapter, or as many without an adapter.
struct GroupedRowTile {
  int32_t adapter;  // -1: none
  int32_t count;
  int64_t first;  // of rows, of gates, or where there are `places` of those
};

struct GroupedParams {
  const GroupedAdapter* adapters;
  const GroupedRowTile* tiles;
  const int32_t* rows;    // of each entry, adapter by adapter; then those that have none
  const int32_t* gates;   // of each entry: its element of row_scale; then those of empty slots
  const int32_t* places;  // of the tiles' entries; null: they are neighbours
  const void* x;          // [M, K] or null
  const void* dy;         // [M, N] or null
  float* h;               // [Σ count · r]
  float* dh;              // [Σ count · r]
  float* u;               // [Σ count · r]: dh without g · scaling, or null
  float* planes;          // [slices, Σ count · r] of dh; null: one slice, stored at once
  int64_t plane_elems;    // Σ count · r
  int64_t slice;          // terms of a slice, a multiple of kGroupedSpan
  const float* sums;      // [sum_planes, M, N] or [.., M, K]: the product with the base weight
  int64_t sum_plane_elems;
  float* base;            // [M, N] or [M, K]: what is left to further launches; may be `out`
  void* out;              // y [M, N] or dx [M, K]
  const void* bias;       // [N] or null
  const void* row_scale;  // [M, slots] or null
  void* d_row_scale;      // [M, slots] or null
  LoraGate gate;          // mask and seed; kind, threshold and scale are the adapter's
  int64_t N, K;
  int64_t block_ranks;  // of a block of grouped_shrink, a multiple of kGroupedShrinkRanks
  int64_t block_cols;   // of a block of grouped_forward, in steps of kGroupedForwardColumnStep
  int64_t chunk_cols;   // of lora_b's rows that are in shared memory at a time, in the same steps
  uint32_t i_tiles;     // tiles along the rows of a result, where they do not come from `tiles`
  uint32_t j_tiles;     // tiles along its columns
  uint32_t cluster;     // blocks of grouped_forward that share an h
  int32_t sum_planes;
  int32_t x_element;  // of x, dy and out
  int32_t bias_element;
  int32_t row_scale_element;
  int32_t d_row_scale_element;
  int32_t accumulate;  // add to what out holds, or d_row_scale
  int32_t partial;     // more entries of the same rows follow: the sums stay in base
};

/// Makes the tables of a layer of experts, on the device: each expert is an adapter, and its slots
/// are the adapter's rows. A block makes a tile and, up to `experts`, an adapter.
constexpr int kExpertTableThreads = 128;
struct ExpertTableParams {
  ExpertSlots slots;
  GroupedAdapter first;  // that of expert 0, without its slots
  int64_t next_a;        // bytes from one expert's to the next; 0: all share it
  int64_t next_b;
  int64_t next_d_a;
  int64_t next_d_b;
  GroupedAdapter* adapters;  // [experts + 1]: the last has the slots of all
  GroupedRowTile* tiles;     // [tiles]
  int32_t* rows;             // [slots]: of x
  int32_t* own;              // [slots]: the slots themselves
  float* h;                  // [slots, r]: zeros of slots without an expert; or null
  int32_t tile_count;
};

}  // namespace lowrank::gpu
