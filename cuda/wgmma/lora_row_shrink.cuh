/// h = scale · (gate ⊙ x) · lora_aᵀ on the spare warps of a large product: the h that the products'
/// copies wait for is computed in the same launch, some rows at a time.
///
///   h [rows, r] f32 · its parts [rows, pairs · r_padded] bf16 · x [rows, cols] T ·
///   lora_a [r <= 64, parts, cols] bf16, rows of both 16-byte aligned: one of bf16 as it lies, any
///   other, and one that is turned, as the launch before has written it
///
///   unit       32 rows, or the first ones 16, and r <= 16 or 32 of more ranks, by three warps:
///              warp w takes chunks w, w + 3, .. of 32 of K, and their sums are added in the order
///              of the warps.
///              Units are handed out by a counter, in the order of the rows, which is that of the
///              products' walk
///   operands   from global memory straight into fragments: mma's k is permuted alike in both, so
///              that the eight elements of a lane follow each other, one load of 16 bytes. No
///              shared memory, of which the products leave 12 KB: three for the sums
///   numerics   as lora_contract.cuh: bf16 parts, products exact, sums in f32; one order for each
///              element, so the same bits whoever computes it, and in any batch
///   gate       on the fragment in registers, eight elements at a time, by lora_gate.cuh. Of an
///              input gradient it is the product's: then a unit writes the bits of its rows
///   order      stores of h, its parts and the bits, the barrier of the three warps, the leader's
///              release on the tile's counter; the copying thread's acquire of all units of its
///              tile, its fence.proxy.async, its copies. The launch before has zeroed the counters
///   progress   a unit belongs to a block that runs, and its three warps wait for nothing but one
///              another until none is left; only the copying thread waits for units. So every unit
///              that is handed out ends, and the blocks that run, be it one pair of many, hand out
///              all: no block waits for one that has not begun
///
/// Budget of a unit, K = 4,096. A 128 x 256 tile takes 65 k clk, and the first wave of tiles waits
/// for the first units, of which each block has one: they must be done by then. At M = 8,192 a
/// block has two units in four tiles, for more than 32 ranks four:
///   a warp     43 chunks, each 4 loads of 16 bytes a lane of x and one for each part of eight
///              ranks; some 200 instructions. All loads of a chunk are in flight at once, so it
///              takes one L2 latency under load: 43 · about 1,200 clk = 52 k clk
///   dropout    8 Philox calls a lane for each 32 rows and chunk, 560 instructions at 2 clk: 32
///              rows take 86 k clk at most, so the units that the first wave waits for have 16
///   tensor     rows / 16 · K / 16 · r / 8 · parts mma.m16n8k16 at about 6.5 clk of one of four
///              tensor cores (62 % of the rate of wgmma): of 32 rows 1.7 k clk for r = 16, of bf16,
///              10 k for r = 32 in three parts
///   L2         262 KB of x and 131 KB of lora_a for each 16 ranks and part: beside 2.16 MB of a
///              tile, for each of its 16 rows, 197 KB at r = 16 (f32: 328), 262 at 32 (f32: 524),
///              524 at 64. L2 gives 36 B/clk, 2.5 MB in the 70 k clk of a tile and its end. That
///              is why f32 factors stop at r = 32, and bf16 ones at 64
#pragma once

#include "cuda/gpu.cuh"
#include "cuda/lora/lora_gate.cuh"
#include "cuda/lora/lora_parts.cuh"
#include "cuda/ptx.cuh"
#include "cuda/wgmma/panel_fill.cuh"
#include "native/host_device/params/gemm_wgmma.h"

namespace lowrank::gpu {

struct RowShrinkStorage {
  float4 sums[kShrinkWarps][kShrinkSumTiles][32];
  uint32_t unit;
};
static_assert(sizeof(RowShrinkStorage) == kShrinkSharedBytes);

/// The 32 of K of one chunk: a lane's eight elements of rows g and g + 8 of each fragment.
using ShrinkChunk = uint4[kShrinkFragments][2];

/// Where a lane is. The pointers advance row by row, so that no multiples of a row's length stay in
/// registers.
struct ShrinkPlace {
  const uint16_t* g_x;       // its eight columns of the row to load next
  const uint16_t* g_factor;  // likewise
  int32_t rows;              // from its first row of the unit to the last of x
  int32_t ranks;             // from its first rank of the unit to r
};

/// The chunk of x at this place, which moves to this warp's next one.
LOWRANK_DEVICE void LoadShrinkChunk(const RowShrink& p, bool inside, ShrinkPlace& at,
                                    ShrinkChunk& chunk) {
#pragma unroll
  for (int part = 0; part < static_cast<int>(2 * kShrinkFragments); ++part) {
    chunk[part / 2][part % 2] = inside && 8 * part < at.rows
                                    ? __ldg(reinterpret_cast<const uint4*>(at.g_x))
                                    : uint4{0, 0, 0, 0};
    at.g_x += 8 * p.cols;
  }
  at.g_x += kShrinkWarps * kShrinkChunkK - kShrinkRows * p.cols;
}

/// The same columns of a part of the unit's ranks: a lane's eight elements of rank g of each eight.
/// The place moves to the next part, or from the last one to the next chunk.
template <uint32_t kTilesJ, uint32_t kParts>
LOWRANK_DEVICE void LoadShrinkFactor(const RowShrink& p, bool inside, bool last, ShrinkPlace& at,
                                     uint4 (&factor)[kTilesJ]) {
#pragma unroll
  for (int ji = 0; ji < static_cast<int>(kTilesJ); ++ji) {
    // Not by __ldg: the launch before may have written it, and this launch overlaps that one.
    factor[ji] = inside && 8 * ji < at.ranks ? *reinterpret_cast<const uint4*>(at.g_factor)
                                             : uint4{0, 0, 0, 0};
    at.g_factor += 8 * kParts * p.cols;
  }
  at.g_factor -= 8 * kTilesJ * kParts * p.cols;
  at.g_factor += last ? kShrinkWarps * kShrinkChunkK - (kParts - 1) * p.cols : p.cols;
}

/// Zeroes what is dropped, whatever it held. A loop over the four pieces, which go round in their
/// registers: two Philox calls a turn fill the time that the loads take.
LOWRANK_DEVICE void GateShrinkChunk(const RowShrink& p, int64_t row0, int64_t col, int32_t rows,
                                    ShrinkChunk& chunk) {
  static_assert(kShrinkFragments == 2);
#pragma unroll 1
  for (int part = 0; part < 4; ++part) {
    const int64_t row = row0 + threadIdx.x % 32 / 4 + 8 * part;
    uint4 words = chunk[0][0];
    if (8 * part < rows && col < p.cols) {
      words = KeepOnly<LoraBF16Tag>(words, KeptBits<8>(p.gate, row * p.cols + col, 8));
    }
    chunk[0][0] = chunk[0][1];
    chunk[0][1] = chunk[1][0];
    chunk[1][0] = chunk[1][1];
    chunk[1][1] = words;
  }
}

/// Adds x · factorᵀ to acc, for `present` fragments and `ranks` ranks.
template <typename Tag, uint32_t kTilesJ, uint32_t kParts>
LOWRANK_DEVICE void MultiplyShrinkChunk(const ShrinkChunk& x,
                                        const uint4 (&factor)[kParts][kTilesJ], uint32_t present,
                                        uint32_t ranks,
                                        float (&acc)[kShrinkFragments][kTilesJ][4]) {
#pragma unroll
  for (uint32_t i = 0; i < 2 * kShrinkFragments; ++i) {
    const uint32_t fragment = i / 2;
    if (fragment >= present) continue;
    const int step = static_cast<int>(i % 2);
    // Words 2 s and 2 s + 1 of a lane are its k of step s, for both operands alike.
    uint32_t a[Tag::kParts][4];
#pragma unroll
    for (int word = 0; word < 4; ++word) {
      uint32_t parts[Tag::kParts];
      SplitWord(WordOf(x[fragment][word % 2], 2 * step + word / 2), parts);
#pragma unroll
      for (int own = 0; own < Tag::kParts; ++own) a[own][word] = parts[own];
    }
#pragma unroll
    for (uint32_t part = 0; part < kParts; ++part) {
      if (part == 1) {
        // After the product of first parts no infinity or NaN is left: only first parts can be one.
#pragma unroll
        for (int word = 0; word < 4; ++word) a[0][word] = FinitePair(a[0][word]);
      }
#pragma unroll
      for (uint32_t ji = 0; ji < kTilesJ; ++ji) {
        if (8 * ji >= ranks) continue;
        const uint32_t low = WordOf(factor[part][ji], 2 * step);
        const uint32_t high = WordOf(factor[part][ji], 2 * step + 1);
        MmaBF16(acc[fragment][ji], a[0], low, high);
        if constexpr (Tag::kParts > 1) {
          MmaBF16(acc[fragment][ji], a[1], FinitePair(low), FinitePair(high));
        }
      }
    }
  }
}

/// This warp's share of a unit.
template <typename Tag, uint32_t kTilesJ, uint32_t kParts>
LOWRANK_DEVICE void SumShrinkRows(const RowShrink& p, int64_t row0, uint32_t first_j, uint32_t warp,
                                  uint32_t fragments, float (&acc)[kShrinkFragments][kTilesJ][4]) {
#pragma unroll
  for (uint32_t i = 0; i < kShrinkFragments * kTilesJ * 4; ++i) {
    acc[i / (4 * kTilesJ)][i / 4 % kTilesJ][i % 4] = 0;
  }
  constexpr int64_t kStep = kShrinkWarps * kShrinkChunkK;
  // Three parts of a factor leave no registers for the next x, which is then loaded with them, nor
  // for two of them while a gate is computed.
  constexpr bool kAhead = kParts == 1;
  const uint32_t lane = threadIdx.x % 32;
  const int64_t first_col = warp * kShrinkChunkK + lane % 4 * 8;
  const int64_t row = row0 + lane / 4;
  const uint32_t j = first_j + lane / 4;
  ShrinkPlace at;
  at.g_x = static_cast<const uint16_t*>(p.x) + row * p.cols + first_col;
  at.g_factor = static_cast<const uint16_t*>(p.lora_a) + static_cast<int64_t>(j) * kParts * p.cols +
                first_col;
  const int64_t unit_rows = 16 * fragments - lane / 4;
  at.rows = static_cast<int32_t>(p.rows - row < unit_rows ? p.rows - row : unit_rows);
  at.ranks = static_cast<int32_t>(p.split.r) - static_cast<int32_t>(j);
  ShrinkChunk next;
  if (kAhead) LoadShrinkChunk(p, first_col < p.cols, at, next);
  for (int64_t col = first_col; col - lane % 4 * 8 < p.cols; col += kStep) {
    const bool inside = col < p.cols;
    ShrinkChunk x;
    uint4 factor[kParts][kTilesJ];
    if (kAhead) {
#pragma unroll
      for (uint32_t i = 0; i < 2 * kShrinkFragments; ++i) x[i / 2][i % 2] = next[i / 2][i % 2];
    } else {
      LoadShrinkChunk(p, inside, at, x);
    }
    LoadShrinkFactor<kTilesJ, kParts>(p, inside, kParts == 1, at, factor[0]);
    if (kAhead) LoadShrinkChunk(p, col + kStep < p.cols, at, next);
    if (p.gate.kind != kLoraGateNone) GateShrinkChunk(p, row0, col, at.rows, x);
#pragma unroll
    for (uint32_t part = 1; part < kParts; ++part) {
      LoadShrinkFactor<kTilesJ, kParts>(p, inside, part + 1 == kParts, at, factor[part]);
    }
    MultiplyShrinkChunk<Tag>(x, factor, fragments, p.split.r - first_j, acc);
  }
}

/// Elements (row, j) and (row, j + 1), j even, of h and of its split.
LOWRANK_DEVICE void StoreShrinkPair(const RowShrink& p, int64_t row, uint32_t j, float first,
                                    float second) {
  const SplitFill& split = p.split;
  if (row >= p.rows || j >= split.r_padded) return;
  // The padding of r may be infinity times zero.
  first = j < split.r ? first * p.scale : 0.0f;
  second = j + 1 < split.r ? second * p.scale : 0.0f;
  float* g_h = p.h + row * split.r + j;
  if (j < split.r) g_h[0] = first;
  if (j + 1 < split.r) g_h[1] = second;
  const float first_scaled = split.scale * first;
  const float second_scaled = split.scale * second;
  uint16_t* g_parts = static_cast<uint16_t*>(split.target) + row * split.pairs * split.r_padded + j;
  for (uint32_t pair = 0; pair < split.pairs; ++pair) {
    const uint32_t low = PairPart(first_scaled, split.parts, static_cast<int>(pair));
    const uint32_t high = PairPart(second_scaled, split.parts, static_cast<int>(pair));
    *reinterpret_cast<uint32_t*>(g_parts + pair * split.r_padded) = low | high << 16;
  }
}

/// One unit: its sums, added in the order of the warps, sixteen ranks of sixteen rows at a time.
template <typename Tag, uint32_t kTilesJ, uint32_t kParts>
LOWRANK_DEVICE void ShrinkUnit(const RowShrink& p, RowShrinkStorage& s, int64_t row0,
                               uint32_t fragments, uint32_t first_j, uint32_t warp) {
  const uint32_t lane = threadIdx.x % 32;
  float acc[kShrinkFragments][kTilesJ][4];
  SumShrinkRows<Tag, kTilesJ, kParts>(p, row0, first_j, warp, fragments, acc);
#pragma unroll
  for (uint32_t round = 0; round < kShrinkFragments * kTilesJ / kShrinkSumTiles; ++round) {
    const uint32_t fragment = round % kShrinkFragments;
    const uint32_t tile0 = round / kShrinkFragments * kShrinkSumTiles;
    if (fragment >= fragments) continue;
    if (round > 0) NamedBarrier(kShrinkBarrier, kShrinkWarps * 32);  // sums have been read
#pragma unroll
    for (uint32_t tile = 0; tile < kShrinkSumTiles; ++tile) {
      const float(&sums)[4] = acc[fragment][tile0 + tile];
      s.sums[warp][tile][lane] = make_float4(sums[0], sums[1], sums[2], sums[3]);
    }
    NamedBarrier(kShrinkBarrier, kShrinkWarps * 32);  // every warp's sums stand
    if (warp >= kShrinkSumTiles) continue;
    float4 sum = s.sums[0][warp][lane];
#pragma unroll
    for (uint32_t other = 1; other < kShrinkWarps; ++other) {
      const float4 more = s.sums[other][warp][lane];
      sum.x += more.x;
      sum.y += more.y;
      sum.z += more.z;
      sum.w += more.w;
    }
    const int64_t row = row0 + 16 * fragment + lane / 4;
    const uint32_t j = first_j + 8 * (tile0 + warp) + 2 * (lane % 4);
    StoreShrinkPair(p, row, j, sum.x, sum.y);
    StoreShrinkPair(p, row + 8, j, sum.z, sum.w);
  }
}

/// Units until none is left, by warps 0 .. kShrinkWarps - 1 of `warp`.
template <typename Tag>
LOWRANK_DEVICE void ShrinkRows(const RowShrink& p, RowShrinkStorage& s, uint32_t warp) {
  constexpr uint32_t kNarrow = kShrinkNarrowRanks / 8;
  constexpr uint32_t kWide = kShrinkWideRanks / 8;
  const bool leader = warp == 0 && threadIdx.x % 32 == 0;
  const bool wide = p.split.r > kShrinkNarrowRanks;
  const int64_t small_rows = int64_t{16} * p.small_blocks;
  const uint32_t large_blocks =
      static_cast<uint32_t>((p.rows - small_rows + kShrinkRows - 1) / kShrinkRows);
  const uint32_t units = (p.small_blocks + large_blocks) * p.groups;
  for (;;) {
    if (leader) s.unit = AtomicAddAcqRel(p.next_unit, 1);
    NamedBarrier(kShrinkBarrier, kShrinkWarps * 32);  // the unit stands, the sums have been read
    const uint32_t unit = s.unit;
    if (unit >= units) return;
    const uint32_t block = unit / p.groups;
    const uint32_t group = unit - block * p.groups;
    const bool small = block < p.small_blocks;
    const uint32_t fragments = small ? 1 : kShrinkFragments;
    const int64_t row0 =
        small ? int64_t{16} * block : small_rows + int64_t{kShrinkRows} * (block - p.small_blocks);
    const uint32_t first_j = group * kShrinkWideRanks;
    if (p.parts == 1) {
      if (wide) {
        ShrinkUnit<Tag, kWide, 1>(p, s, row0, fragments, first_j, warp);
      } else {
        ShrinkUnit<Tag, kNarrow, 1>(p, s, row0, fragments, first_j, warp);
      }
    } else {
      if (wide) {
        ShrinkUnit<Tag, kWide, kShrinkFactorParts>(p, s, row0, fragments, first_j, warp);
      } else {
        ShrinkUnit<Tag, kNarrow, kShrinkFactorParts>(p, s, row0, fragments, first_j, warp);
      }
    }
    const int64_t unit_end = row0 + 16 * fragments;
    const int64_t row_end = unit_end < p.rows ? unit_end : p.rows;
    if (group == 0) FillKept(p.kept, row0, row_end, warp, kShrinkWarps);
    NamedBarrier(kShrinkBarrier, kShrinkWarps * 32);  // h and the bits of the unit are written
    // Counted in existing fragments.
    const uint32_t done = static_cast<uint32_t>(row_end - row0 + 15) / 16;
    if (leader) AtomicAddAcqRel(p.done_units + row0 / kWgmmaTileM, done);
  }
}

/// Waits until this thread can copy h of the row tile that starts at `row`.
LOWRANK_DEVICE void WaitForShrunkTile(const RowShrink& p, int64_t row) {
  if (row >= p.rows) return;
  const int64_t rows = p.rows - row < kWgmmaTileM ? p.rows - row : kWgmmaTileM;
  const uint32_t all = (static_cast<uint32_t>(rows) + 15) / 16 * p.groups;
  while (LoadAcquire(p.done_units + row / kWgmmaTileM) < all) {
  }
  FenceProxyAsyncGlobal();
}

}  // namespace lowrank::gpu
