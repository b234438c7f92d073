/// h = scale · (gate ⊙ x) · lora_aᵀ by the warps that a large product has to spare: what the
/// products' copies of h wait for is computed in the same launch, sixteen rows at a time.
///
///   h [rows, r] f32 · its parts [rows, pairs · r_padded] bf16 · x [rows, cols] T ·
///   lora_a [r <= 16, cols] any, rows of both 16-byte aligned
///
///   unit       16 rows and all of r, by three warps: warp w takes chunks w, w + 3, .. of 64 of K,
///              and their sums are added in the order of the warps. Units are handed out by a
///              counter, in the order of the rows, which is that of the products' walk
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
/// Budget of a unit, bf16, K = 4,096, r = 16. The walk wants one a tile and block: 8 columns of
/// tiles of 256 share the 8 units of a row tile. A 128 x 256 tile takes 65 k clk:
///   a warp     21 chunks, each 8 loads of 16 bytes a lane, 8 mma and about 300 instructions; the
///              x of the next chunk is in flight meanwhile: 21 · about 1,200 clk (one L2 latency
///              under load) = 25 k clk. An f32 lora_a: 12 loads, 24 mma, 1,100 instructions with
///              its parts: 21 · at most 2,200 = 46 k clk
///   dropout    8 Philox calls a lane and chunk, 20 wide products and 20 logic operations each and
///              about 30 more: 560 instructions a chunk at 2 clk, of which the loads hide a part:
///              21 · at most 2,000 = 42 k clk
///   tensor     512 mma.m16n8k16 (f32: 1,536) at about 6.5 clk of one of four tensor cores (62 % of
///              the rate of wgmma): 0.8 k clk (2.5 k)
///   L2         131 KB of x, 131 KB of lora_a (f32: 262 KB): 4 (6) B/clk over the 65 k clk of a
///              tile
#pragma once

#include "cuda/gpu.cuh"
#include "cuda/lora_gate.cuh"
#include "cuda/lora_parts.cuh"
#include "cuda/panel_fill.cuh"
#include "cuda/params/gemm_wgmma.h"
#include "cuda/ptx.cuh"

namespace lowrank::gpu {

struct RowShrinkStorage {
  float4 sums[kShrinkWarps][kShrinkTilesJ][32];
  uint32_t unit;
};
static_assert(sizeof(RowShrinkStorage) == kShrinkSharedBytes);

/// The 64 of K of one chunk: a lane's eight elements of rows g and g + 8, of each half chunk.
using ShrinkChunk = uint4[2][2];

/// Rows row0 + g and row0 + g + 8 of a 16-bit matrix; zero outside.
LOWRANK_DEVICE void LoadShrinkChunk(const void* matrix, int64_t row0, int64_t rows, int64_t col,
                                    int64_t cols, ShrinkChunk& chunk) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int64_t row = row0 + threadIdx.x % 32 / 4 + 8 * i;
      const int64_t at = col + 32 * half + threadIdx.x % 4 * 8;
      chunk[half][i] = row < rows && at < cols
                           ? __ldg(reinterpret_cast<const uint4*>(
                                 static_cast<const uint16_t*>(matrix) + row * cols + at))
                           : uint4{0, 0, 0, 0};
    }
  }
}

/// Zeroes what is dropped, whatever it held. A loop over the four parts, which go round in their
/// registers: two Philox calls a turn fill the time that the loads take.
LOWRANK_DEVICE void GateShrinkChunk(const RowShrink& p, int64_t row0, int64_t col,
                                    ShrinkChunk& chunk) {
#pragma unroll 1
  for (int part = 0; part < 4; ++part) {
    const int64_t row = row0 + threadIdx.x % 32 / 4 + 8 * (part % 2);
    const int64_t at = col + 32 * (part / 2) + threadIdx.x % 4 * 8;
    uint4 words = chunk[0][0];
    if (row < p.rows && at < p.cols) {
      words = KeepOnly<LoraBF16Tag>(words, KeptBits<8>(p.gate, row * p.cols + at, 8));
    }
    chunk[0][0] = chunk[0][1];
    chunk[0][1] = chunk[1][0];
    chunk[1][0] = chunk[1][1];
    chunk[1][1] = words;
  }
}

/// Words 2 s and 2 s + 1 of a lane are its k of step s, for both operands alike.
LOWRANK_DEVICE void FragmentOf(const ShrinkChunk& x, int half, int step, uint32_t (&a)[4]) {
  a[0] = WordOf(x[half][0], 2 * step);
  a[1] = WordOf(x[half][1], 2 * step);
  a[2] = WordOf(x[half][0], 2 * step + 1);
  a[3] = WordOf(x[half][1], 2 * step + 1);
}

/// bf16 by bf16.
LOWRANK_DEVICE void MultiplyChunk(const ShrinkChunk& x, const ShrinkChunk& lora_a, uint32_t r,
                                  float (&acc)[kShrinkTilesJ][4]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int step = 0; step < 2; ++step) {
      uint32_t a[4];
      FragmentOf(x, half, step, a);
#pragma unroll
      for (uint32_t ji = 0; ji < kShrinkTilesJ; ++ji) {
        if (8 * ji >= r) continue;
        MmaBF16(acc[ji], a, WordOf(lora_a[half][ji], 2 * step),
                WordOf(lora_a[half][ji], 2 * step + 1));
      }
    }
  }
}

/// Eight elements of lora_a as f32; zero outside.
LOWRANK_DEVICE void LoadFactor(const RowShrink& p, uint32_t j, int64_t col, float (&factor)[8]) {
  if (j >= p.split.r || col >= p.cols) {
#pragma unroll
    for (int i = 0; i < 8; ++i) factor[i] = 0;
  } else if (p.lora_a_element == kLoraF32) {
    const float4* g_factor =
        reinterpret_cast<const float4*>(static_cast<const float*>(p.lora_a) + j * p.cols + col);
    const float4 first = __ldg(g_factor);
    const float4 second = __ldg(g_factor + 1);
    factor[0] = first.x;
    factor[1] = first.y;
    factor[2] = first.z;
    factor[3] = first.w;
    factor[4] = second.x;
    factor[5] = second.y;
    factor[6] = second.z;
    factor[7] = second.w;
  } else {
    const uint4 words = __ldg(
        reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(p.lora_a) + j * p.cols + col));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      factor[2 * i] = BitsToFloat(WordOf(words, i) & 0xffffu, p.lora_a_element);
      factor[2 * i + 1] = BitsToFloat(WordOf(words, i) >> 16, p.lora_a_element);
    }
  }
}

/// Any two dtypes, as parts.
template <typename Tag>
LOWRANK_DEVICE void MultiplyChunkParts(const RowShrink& p, const ShrinkChunk& x, int64_t col,
                                       float (&acc)[kShrinkTilesJ][4]) {
  const int factor_parts = PartsOf(p.lora_a_element);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float factor[kShrinkTilesJ][8];
    uint32_t factor_non_finite = 0;
#pragma unroll
    for (uint32_t ji = 0; ji < kShrinkTilesJ; ++ji) {
      LoadFactor(p, 8 * ji + threadIdx.x % 32 / 4, col + 32 * half + threadIdx.x % 4 * 8,
                 factor[ji]);
#pragma unroll
      for (int i = 0; i < 8; ++i) factor_non_finite |= NonFinite(factor[ji][i]);
    }
#pragma unroll
    for (int step = 0; step < 2; ++step) {
      uint32_t raw[4];
      FragmentOf(x, half, step, raw);
      uint32_t a[1][Tag::kParts][4];
      uint32_t non_finite = factor_non_finite;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        uint32_t parts[Tag::kParts];
        SplitWord(raw[i], parts);
#pragma unroll
        for (int part = 0; part < Tag::kParts; ++part) a[0][part][i] = parts[part];
        non_finite |= NonFinitePair(a[0][0][i]);
      }
      const bool all_finite = __any_sync(0xffffffffu, non_finite != 0 ? 1 : 0) == 0;
#pragma unroll
      for (uint32_t ji = 0; ji < kShrinkTilesJ; ++ji) {
        if (8 * ji >= p.split.r) continue;
        const float of_step[4] = {factor[ji][4 * step], factor[ji][4 * step + 1],
                                  factor[ji][4 * step + 2], factor[ji][4 * step + 3]};
        const auto acc_of = [&](int) -> float(&)[4] { return acc[ji]; };
        if (all_finite) {
          MultiplyParts<true>(a, of_step, factor_parts, acc_of);
        } else {
          MultiplyParts<false>(a, of_step, factor_parts, acc_of);
        }
      }
    }
  }
}

/// This warp's share of 16 rows.
template <typename Tag>
LOWRANK_DEVICE void SumShrinkRows(const RowShrink& p, int64_t row0, uint32_t warp,
                                  float (&acc)[kShrinkTilesJ][4]) {
#pragma unroll
  for (uint32_t ji = 0; ji < kShrinkTilesJ; ++ji) {
#pragma unroll
    for (int i = 0; i < 4; ++i) acc[ji][i] = 0;
  }
  constexpr int64_t kStep = kShrinkWarps * kShrinkChunkK;
  const bool plain = Tag::kParts == 1 && p.lora_a_element == kLoraBF16;
  int64_t col = warp * kShrinkChunkK;
  ShrinkChunk next;
  LoadShrinkChunk(p.x, row0, p.rows, col, p.cols, next);
  for (; col < p.cols; col += kStep) {
    ShrinkChunk x;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < 2; ++i) x[half][i] = next[half][i];
    }
    ShrinkChunk lora_a;
    if (plain) LoadShrinkChunk(p.lora_a, 0, p.split.r, col, p.cols, lora_a);
    LoadShrinkChunk(p.x, row0, p.rows, col + kStep, p.cols, next);
    if (p.gate.kind != kLoraGateNone) GateShrinkChunk(p, row0, col, x);
    if (plain) {
      MultiplyChunk(x, lora_a, p.split.r, acc);
    } else {
      MultiplyChunkParts<Tag>(p, x, col, acc);
    }
  }
}

/// Elements (row, j) and (row, j + 1), j even, of h and of its split.
LOWRANK_DEVICE void StoreShrinkPair(const RowShrink& p, int64_t row, uint32_t j, float first,
                                    float second) {
  const SplitFill& split = p.split;
  if (row >= p.rows || j >= split.r_padded) return;
  // What pads r may be infinity times zero.
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

/// Units until none is left, by warps 0 .. kShrinkWarps - 1 of `warp`.
template <typename Tag>
LOWRANK_DEVICE void ShrinkRows(const RowShrink& p, RowShrinkStorage& s, uint32_t warp) {
  const uint32_t lane = threadIdx.x % 32;
  const bool leader = warp == 0 && lane == 0;
  const uint32_t units = static_cast<uint32_t>((p.rows + kShrinkRows - 1) / kShrinkRows);
  for (;;) {
    if (leader) s.unit = AtomicAddAcqRel(p.next_unit, 1);
    NamedBarrier(kShrinkBarrier, kShrinkWarps * 32);  // the unit stands, the sums have been read
    const uint32_t unit = s.unit;
    if (unit >= units) return;
    const int64_t row0 = static_cast<int64_t>(unit) * kShrinkRows;
    float acc[kShrinkTilesJ][4];
    SumShrinkRows<Tag>(p, row0, warp, acc);
#pragma unroll
    for (uint32_t ji = 0; ji < kShrinkTilesJ; ++ji) {
      s.sums[warp][ji][lane] = make_float4(acc[ji][0], acc[ji][1], acc[ji][2], acc[ji][3]);
    }
    NamedBarrier(kShrinkBarrier, kShrinkWarps * 32);  // every warp's sums stand
    if (warp < kShrinkTilesJ) {
      float4 sum = s.sums[0][warp][lane];
#pragma unroll
      for (uint32_t other = 1; other < kShrinkWarps; ++other) {
        const float4 more = s.sums[other][warp][lane];
        sum.x += more.x;
        sum.y += more.y;
        sum.z += more.z;
        sum.w += more.w;
      }
      const uint32_t j = 8 * warp + 2 * (lane % 4);
      StoreShrinkPair(p, row0 + lane / 4, j, sum.x, sum.y);
      StoreShrinkPair(p, row0 + lane / 4 + 8, j, sum.z, sum.w);
    }
    const int64_t row_end = row0 + kShrinkRows < p.rows ? row0 + kShrinkRows : p.rows;
    FillKept(p.kept, row0, row_end, warp, kShrinkWarps);
    NamedBarrier(kShrinkBarrier, kShrinkWarps * 32);  // h and the bits of the unit are written
    if (leader) AtomicAddAcqRel(p.done_units + unit / kShrinkUnitsPerTile, 1);
  }
}

/// Until h of the row tile that starts at `row` can be copied by this thread.
LOWRANK_DEVICE void WaitForShrunkTile(const RowShrink& p, int64_t row) {
  if (row >= p.rows) return;
  const int64_t units = (p.rows - row + kShrinkRows - 1) / kShrinkRows;
  const uint32_t all =
      units < kShrinkUnitsPerTile ? static_cast<uint32_t>(units) : kShrinkUnitsPerTile;
  while (LoadAcquire(p.done_units + row / kWgmmaTileM) < all) {
  }
  FenceProxyAsyncGlobal();
}

}  // namespace lowrank::gpu
