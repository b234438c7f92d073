/// The adapter's gradients:
///
///   d_lora_a [r, K] = dhᵀ · (gate ⊙ x)      one pass over x
///   d_lora_b [N, r] = scaling · dyᵀ · h      one pass over dy
///   dh [M, r] = scaling · dy · lora_b        the same pass, where d_lora_b is asked for
///   d_bias [N] = Σₘ dy, d_lora_bias = scaling · d_bias: column sums out of the same pass
///
/// The body, its numerics and its budget are in lora_contract.cuh; a column sum is one more product
/// per fragment, with ones.
///
/// Grid         one block for each block of the gradient, ceil(cols / 64) · rank tiles for a split
///              of M, and of the shrink beside it, which over x has none: in groups, one a split
///              (LoraGradParams)
/// Partials     one f32 plane a split, added by lora_reduce in ascending order: no atomics, the
///              same bits in every run
///
/// Why dh and d_lora_b are two contractions in one launch and do not share tiles of dy:
/// dh sums over n and d_lora_b over m, so a block that does both on a region of RB rows and CB
/// columns leaves partial sums of 8 r (1 / RB + 1 / CB) bytes an element of dy (written and read),
/// and wants its d_lora_b sums in registers for every column of the region. At RB = 256 that is
/// 25 % of dy's bytes at r = 16 and 100 % at r = 64, and the split h is read from shared memory by
/// every warp for every tile: 3 wavefronts for each of dy. Blocks in groups that share rows of dy
/// cost L2 reads instead, of which there are plenty (A100: 3 times the DRAM rate): DRAM gives each
/// row of dy once, the second reader finds it in L2 as long as the groups in flight fit there, and
/// the partial planes are M / (rows of a group).
///
/// Bytes, M = 8,192, N = K = 4,096, r = 16, bf16, A100: 7 groups of 1,280 rows (10.5 MB of dy, 144
/// blocks; 216 are resident). dy 67.1 MB from DRAM and as much again from L2, planes of d_lora_b
/// 7 · 0.26 MB and of dh 4 · 0.5 MB, both ways 8 MB: 48 us, H100 25 us. x 67.1 MB and planes 4 MB:
/// 46 us, 24 us. Together 94 us beside a product of 1,050 (A100: 9 %; 137 us and 13 % if dy were
/// read twice) and 49 us of 345 (H100: 14 %). Goal G10's 8 % on H100 asks for the overlap with dx's
/// product on top, which leaves four fifths of the memory's time idle.
#include "cuda/lora/lora_contract.cuh"
#include "native/host_device/params/lora_grad.h"

namespace lowrank::gpu {
namespace {

/// Blocks of group s: those of the shrink over the rows of split s, then those of the gradient's
/// split s.
template <typename T, int kRankTile>
LOWRANK_DEVICE void LoraGrad(const LoraGradParams& p) {
  const uint32_t shrink_tiles = p.shrink_rows * p.shrink.rank_tiles;
  const uint32_t shrink_blocks = shrink_tiles * p.shrink_splits;
  const uint32_t grad_blocks = p.grad_cols * p.grad.rank_tiles;
  const uint32_t group = blockIdx.x / (shrink_blocks + grad_blocks);
  const uint32_t block = blockIdx.x % (shrink_blocks + grad_blocks);
  if (block < shrink_blocks) {
    const uint32_t o_tile = group * shrink_tiles + block % shrink_tiles;
    // The last group may have fewer rows.
    if (static_cast<int64_t>(o_tile / p.shrink.rank_tiles) * kLoraTileO >= p.shrink.rows) return;
    LoraContract<T, kRankTile, false>::Run(p.shrink, o_tile, block / shrink_tiles);
  } else {
    LoraContract<T, kRankTile, true>::Run(p.grad, block - shrink_blocks, group);
  }
}

/// Rounds to nearest, ties to even.
LOWRANK_DEVICE uint32_t RoundTo16(float value, int32_t element) {
  return element == kLoraBF16 ? __bfloat16_as_ushort(__float2bfloat16_rn(value))
                              : __half_as_ushort(__float2half_rn(value));
}

/// out[first + i] = values[i] (+ out[first + i]), i < 4, as whole words.
LOWRANK_DEVICE void StoreVector(const LoraReduceSegment& segment, int64_t first,
                                float (&values)[4]) {
  if (segment.out_element == kLoraF32) {
    float4* g_out = reinterpret_cast<float4*>(static_cast<float*>(segment.out) + first);
    if (segment.accumulate != 0) {
      const float4 old = *g_out;
      values[0] += old.x;
      values[1] += old.y;
      values[2] += old.z;
      values[3] += old.w;
    }
    *g_out = make_float4(values[0], values[1], values[2], values[3]);
    return;
  }
  const int32_t element = segment.out_element;
  uint2* g_out = reinterpret_cast<uint2*>(static_cast<uint16_t*>(segment.out) + first);
  if (segment.accumulate != 0) {
    const uint2 old = *g_out;
    values[0] += BitsToFloat(old.x & 0xffffu, element);
    values[1] += BitsToFloat(old.x >> 16, element);
    values[2] += BitsToFloat(old.y & 0xffffu, element);
    values[3] += BitsToFloat(old.y >> 16, element);
  }
  *g_out = make_uint2(RoundTo16(values[0], element) | RoundTo16(values[1], element) << 16,
                      RoundTo16(values[2], element) | RoundTo16(values[3], element) << 16);
}

LOWRANK_DEVICE void StoreElement(const LoraReduceSegment& segment, int64_t index, float value) {
  if (segment.out_element == kLoraF32) {
    float* g_out = static_cast<float*>(segment.out) + index;
    *g_out = segment.accumulate != 0 ? value + *g_out : value;
    return;
  }
  uint16_t* g_out = static_cast<uint16_t*>(segment.out) + index;
  if (segment.accumulate != 0) value += BitsToFloat(*g_out, segment.out_element);
  *g_out = static_cast<uint16_t>(RoundTo16(value, segment.out_element));
}

/// Four elements a thread: planes are 16-byte aligned, so the whole fours are loaded as such.
LOWRANK_DEVICE void LoraReduce(const LoraReduceSegment& segment) {
  const int64_t first =
      (static_cast<int64_t>(blockIdx.x) * kLoraThreads + static_cast<int64_t>(threadIdx.x)) * 4;
  if (first >= segment.count) return;
  const int valid = segment.count - first < 4 ? static_cast<int>(segment.count - first) : 4;
  float sum[4] = {0, 0, 0, 0};
#pragma unroll 4
  for (int split = 0; split < segment.splits; ++split) {
    const float* g_plane = segment.planes + split * segment.plane_elems + first;
    if (valid == 4) {
      const float4 next = *reinterpret_cast<const float4*>(g_plane);
      sum[0] += next.x;
      sum[1] += next.y;
      sum[2] += next.z;
      sum[3] += next.w;
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (i < valid) sum[i] += g_plane[i];
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) sum[i] *= segment.scale;
  if (valid == 4 && segment.out_vector != 0) {
    StoreVector(segment, first, sum);
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (i < valid) StoreElement(segment, first + i, sum[i]);
  }
}

}  // namespace

#define LOWRANK_LORA_GRAD_KERNEL(name, Tag, kRanks, kMinBlocks)                       \
  LOWRANK_KERNEL(lora_grad_##name##_r##kRanks##_kernel, LoraGradParams, kLoraThreads, \
                 kMinBlocks) {                                                        \
    LoraGrad<Tag, kRanks>(p);                                                         \
  }
LOWRANK_LORA_TILES(LOWRANK_LORA_GRAD_KERNEL)

LOWRANK_KERNEL(lora_reduce_kernel, LoraReduceParams, kLoraThreads, 4) {
  LoraReduce(p.segments[blockIdx.y]);
}

}  // namespace lowrank::gpu
