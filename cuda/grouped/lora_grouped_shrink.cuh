/// h_e = (gate_e ⊙ x[m]) · lora_a_eᵀ of eight rows and some ranks of an adapter, by a block of 512
/// threads.
///
/// Its 16 warps take chunks of 256 of K in turn; a lane loads eight elements of each by 16 bytes
/// (one by one if K or an address forbids it) and keeps 32 sums, of eight rows and four ranks, in
/// registers. Lanes are added by shuffles, then warps in shared memory, in a fixed order that is
/// the same for every element of h, whatever the rows, the ranks and the loads. The gate's scale is
/// applied once, at the end.
#pragma once

#include "cuda/grouped/lora_grouped.cuh"

namespace lowrank::gpu {

constexpr int kShrinkWarps = kGroupedShrinkThreads / 32;
constexpr int kShrinkSums = kGroupedShrinkRows * kGroupedShrinkRanks;
constexpr int kShrinkChunk = 32 * 8;  // of K, for a warp
static_assert(kShrinkSums == 32);     // one a lane, once they have been added up

/// What a block reads for h: up to kGroupedShrinkRows rows of a tile of Rows.
template <typename Rows>
struct ShrinkBlock : Rows {
  using Rows::tile, Rows::e;
  int row0;   // in the tile
  int count;  // of the tile's rows from there on
  bool x_aligned;
  bool a_aligned;

  __device__ __forceinline__ explicit ShrinkBlock(const GroupedParams& p)
      : Rows(p),
        row0(static_cast<int>(blockIdx.y) * kGroupedShrinkRows),
        count(tile.count - row0),
        x_aligned(IsAligned(p.x, p.x_element, p.K)),
        a_aligned(IsAligned(e.lora_a, e.a_element, p.K)) {}
  static __device__ __forceinline__ bool IsAligned(const void* data, int32_t element, int64_t K) {
    return reinterpret_cast<uintptr_t>(data) % 16 == 0 && K % (element == kSmallF32 ? 4 : 8) == 0;
  }
  /// How many of eight elements from k on are inside.
  static __device__ __forceinline__ int InsideOf(const GroupedParams& p, int64_t k) {
    return p.K - k < 8 ? static_cast<int>(p.K - k) : 8;
  }

  /// Eight elements of lora_a for each of kGroupedShrinkRanks ranks.
  __device__ __forceinline__ void LoadFactors(const GroupedParams& p, int64_t j0, int64_t k,
                                              float (&factors)[kGroupedShrinkRanks][8]) const {
    SmallEight eights[kGroupedShrinkRanks];
#pragma unroll
    for (int j = 0; j < kGroupedShrinkRanks; ++j) {
      const int inside = j0 + j < e.r ? InsideOf(p, k) : 0;
      eights[j] = LoadSmallEight(e.a_element, e.lora_a, (j0 + j) * p.K + k, inside, a_aligned);
    }
#pragma unroll
    for (int j = 0; j < kGroupedShrinkRanks; ++j) {
      EightToFloats(e.a_element, eights[j], factors[j]);
    }
  }

  /// Which of eight elements from k on the gate keeps: one byte per row of the block. The loop is
  /// not unrolled, because a generator takes two hundred instructions.
  __device__ __forceinline__ uint64_t KeptOfRows(const GroupedParams& p, int64_t k) const {
    if (e.gate_kind == kLoraGateNone) return 0;
    LoraGate gate = p.gate;
    gate.kind = e.gate_kind;
    gate.threshold = e.threshold;
    uint64_t kept = 0;
    static_assert(kGroupedShrinkRows <= 8, "bytes of a word");
#pragma unroll 1
    for (int i = 0; i < kGroupedShrinkRows && i < count; ++i) {
      const int64_t index = this->RowOf(p, row0 + i) * p.K + k;
      const uint32_t of_row = KeptBits<8>(gate, index, InsideOf(p, k)) & 255u;
      kept |= static_cast<uint64_t>(of_row) << (8 * i);
    }
    return kept;
  }

  /// Eight elements of gate ⊙ x, not yet scaled; dropped ones are 0 whatever they held.
  __device__ __forceinline__ void LoadX(const GroupedParams& p, int64_t m, int64_t k, uint32_t kept,
                                        float (&x)[8]) const {
    const int64_t index = m * p.K + k;
    EightToFloats(p.x_element, LoadSmallEight(p.x_element, p.x, index, InsideOf(p, k), x_aligned),
                  x);
    if (e.gate_kind == kLoraGateNone) return;
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] = (kept >> i & 1u) != 0 ? x[i] : 0.0f;
  }

  /// The chunks of K of this warp, and the eight elements of this lane in each.
  __device__ __forceinline__ void Sum(const GroupedParams& p, int64_t j0,
                                      float (&sums)[kShrinkSums]) const {
    for (int64_t k = threadIdx.x * 8; k < p.K; k += kShrinkWarps * kShrinkChunk) {
      float factors[kGroupedShrinkRanks][8];
      LoadFactors(p, j0, k, factors);
      const uint64_t kept = KeptOfRows(p, k);
#pragma unroll
      for (int i = 0; i < kGroupedShrinkRows; ++i) {
        if (i >= count) continue;
        float x[8];
        LoadX(p, this->RowOf(p, row0 + i), k, static_cast<uint32_t>(kept >> (8 * i)), x);
#pragma unroll
        for (int j = 0; j < kGroupedShrinkRanks; ++j) {
          float& sum = sums[i * kGroupedShrinkRanks + j];
#pragma unroll
          for (int t = 0; t < 8; ++t) sum = fmaf(x[t], factors[j][t], sum);
        }
      }
    }
  }
};

/// Adds up each of 2 · kDistance values over the lanes that differ in the bits of 2 · kDistance -
/// 1; with 32 values, lane l ends with the sum of value l. A lane keeps half of its values and
/// gives the other half away. Lanes are added in the order of a butterfly, the same for every
/// value.
template <int kDistance>
LOWRANK_DEVICE float SumOverLanes(const float (&values)[2 * kDistance]) {
  const bool upper = (threadIdx.x & static_cast<unsigned>(kDistance)) != 0;
  float kept[kDistance];
#pragma unroll
  for (int i = 0; i < kDistance; ++i) {
    const float give = upper ? values[i] : values[i + kDistance];
    const float keep = upper ? values[i + kDistance] : values[i];
    kept[i] = keep + __shfl_xor_sync(0xffffffffu, give, kDistance);
  }
  if constexpr (kDistance == 1) {
    return kept[0];
  } else {
    return SumOverLanes<kDistance / 2>(kept);
  }
}

/// Ranks [begin, end) of the block's rows, four at a time: the lanes of warp 0 call store(first
/// rank, lane, h) for row lane / 4 and rank first + lane % 4; h is zero for rows and ranks that do
/// not exist.
template <typename Rows, typename StoreFn>
LOWRANK_DEVICE void ShrinkRanks(const GroupedParams& p, const ShrinkBlock<Rows>& op, int64_t begin,
                                int64_t end, GroupedShrinkShared& s, const StoreFn& store) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int64_t j0 = begin; j0 < end; j0 += kGroupedShrinkRanks) {
    float sums[kShrinkSums] = {};
    op.Sum(p, j0, sums);
    const float of_warp = SumOverLanes<kShrinkSums / 2>(sums);
    if (j0 != begin) __syncthreads();  // the sums before these have been read
    s.sums[warp][lane] = of_warp;
    __syncthreads();
    if (warp != 0) continue;
    float total = 0;
#pragma unroll
    for (int other = 0; other < kShrinkWarps; ++other) total += s.sums[other][lane];
    if (op.e.gate_kind != kLoraGateNone) total *= op.e.kept_scale;
    store(j0, lane, total);
  }
}

}  // namespace lowrank::gpu
