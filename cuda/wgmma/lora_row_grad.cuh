/// The factors' gradients on the spare warps of a large product: d_lora_a = dhᵀ · (gate ⊙ x) and
/// d_lora_b = dyᵀ · h are sums over the rows, so each warp takes 64 columns and a range of rows,
/// and nothing waits for it before the launch that adds the planes.
///
///   planes[s] [C, r] or [r, C] f32 · x [rows, C] T · factor [rows, r <= 16] f32
///
///   unit       64 columns and the rows of a split, by one warp; units go round the warps, columns
///              first, so that those that run at one time read whole rows of x. The launch decides
///              which columns are its own (RowGrad)
///   operands   from global memory straight into fragments: lane (g, t) loads columns 8 g .. + 7
///              of rows 4 t .. 4 t + 3, 16 bytes each, and turns pairs of rows into pairs of k by a
///              byte permutation a register. mma's k is permuted alike in both operands, its rows
///              are columns 8 g + 2 f and 8 g + 2 f + 1 in fragment f. No shared memory
///   numerics   as lora_contract.cuh: bf16 parts, products exact, sums in f32; one order for each
///              element of a plane, planes added in their order by lora_reduce: the same bits in
///              every run
///   gate       the bits that the products gate their own sums by (KeptFill): a byte a load
///
/// Budget of 16 rows, bf16, f32 factor, r = 16: 4 loads of 16 bytes a lane and 8 of the factor, 16
/// permutations, 24 mma, about 250 instructions with the parts; the next 16 rows are in flight
/// meanwhile. One L2 latency under load, about 1,200 clk, hides them.
///   M = 8,192, C = 4,096    32,768 steps over 3 · 132 warps: 83 · 1,200 = 99 k clk for each of the
///              two gradients; the launch they share has 260 k clk, of which the decode of a panel,
///              if there is one, takes 10 k
///   tensor     24 · 248 mma.m16n8k16 a multiprocessor at about 6.5 clk of one of four tensor
///              cores: 9.7 k clk each, 5.5 us
///   L2         x once, the factor and the bits once for the block's three warps, whose columns are
///              neighbours: 5 B/clk beside the 26 of the products; memory 134 MB in 175 us
#pragma once

#include "cuda/gpu.cuh"
#include "cuda/lora/lora_gate.cuh"
#include "cuda/lora/lora_parts.cuh"
#include "native/host_device/params/gemm_wgmma.h"

namespace lowrank::gpu {

constexpr int kRowGradFragments = kRowGradCols / 16;

/// Rows 4 t + i of a step: eight columns of x.
using RowGradChunk = uint4[4];

/// Where a lane is. The pointers advance row by row, so that no multiples of a row's length stay in
/// registers.
struct RowGradPlace {
  const uint16_t* g_x;    // its eight columns of the row to load next
  const float* g_factor;  // rank g of its first row of the step
  const uint8_t* g_kept;  // the bits of its first row of the step
  int32_t rows;           // from its first row of the step to the end of the split
  bool inside;            // are there such columns?
};

/// A lane's rows `first` .. first + 3 after its first of the step; zero outside.
LOWRANK_DEVICE void LoadRowGradChunk(const RowGrad& p, int32_t first, RowGradPlace& at,
                                     RowGradChunk& x) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    x[i] = at.inside && first + i < at.rows ? __ldg(reinterpret_cast<const uint4*>(at.g_x))
                                            : uint4{0, 0, 0, 0};
    at.g_x += p.cols;
  }
  at.g_x += (kRowGradRows - 4) * p.cols;
}

/// Fragment f of xᵀ as mma's A: registers 0, 1 are k = 2 t, 2 t + 1 of rows g, g + 8, registers 2,
/// 3 k = 2 t + 8, 2 t + 9.
using RowGradFragments = uint32_t[kRowGradFragments][4];

/// Transposes a chunk; its dropped elements become zero, whatever they held.
template <typename Tag>
LOWRANK_DEVICE void TurnRowGradChunk(const RowGrad& p, RowGradPlace& at, RowGradChunk& x,
                                     RowGradFragments& turned) {
  if (p.kept != nullptr) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      x[i] = KeepOnly<Tag>(x[i], at.inside && i < at.rows ? *at.g_kept : 0u);
      at.g_kept += p.kept_words * 4;
    }
    at.g_kept += (kRowGradRows - 4) * p.kept_words * 4;
  }
#pragma unroll
  for (int fragment = 0; fragment < kRowGradFragments; ++fragment) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      turned[fragment][i] =
          __byte_perm(WordOf(x[i / 2 * 2], fragment), WordOf(x[i / 2 * 2 + 1], fragment),
                      i % 2 == 0 ? 0x5410 : 0x7632);
    }
  }
}

/// Adds xᵀ · factor over the 16 rows of a chunk to acc.
template <typename Tag>
LOWRANK_DEVICE void MultiplyRowGradChunk(const RowGrad& p, RowGradPlace& at,
                                         const RowGradFragments& turned,
                                         float (&acc)[kRowGradFragments][kRowGradTilesJ][4]) {
  constexpr int kParts = Tag::kParts;
  constexpr int kHeld = kParts > 1 ? 1 : 2;  // fragments at once: more do not stay in registers
  float factor[kRowGradTilesJ][4];
  uint32_t factor_non_finite = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (uint32_t ji = 0; ji < kRowGradTilesJ; ++ji) {
      const bool inside = i < at.rows && 8 * ji + threadIdx.x % 32 / 4 < p.r;
      factor[ji][i] = inside ? at.g_factor[8 * ji] : 0.0f;
      factor_non_finite |= NonFinite(factor[ji][i]);
    }
    at.g_factor += p.r;
  }
  at.g_factor += (kRowGradRows - 4) * p.r;
#pragma unroll
  for (int first = 0; first < kRowGradFragments; first += kHeld) {
    uint32_t a[kHeld][kParts][4];
    uint32_t non_finite = factor_non_finite;
#pragma unroll
    for (int held = 0; held < kHeld; ++held) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        uint32_t parts[kParts];
        SplitWord(turned[first + held][i], parts);
#pragma unroll
        for (int part = 0; part < kParts; ++part) a[held][part][i] = parts[part];
        non_finite |= NonFinitePair(parts[0]);
      }
    }
    const bool all_finite = __any_sync(0xffffffffu, non_finite != 0 ? 1 : 0) == 0;
#pragma unroll
    for (uint32_t ji = 0; ji < kRowGradTilesJ; ++ji) {
      if (8 * ji >= p.r) continue;
      const auto acc_of = [&](int held) -> float(&)[4] { return acc[first + held][ji]; };
      if (all_finite) {
        MultiplyParts<true>(a, factor[ji], PartsOf(kLoraF32), acc_of);
      } else {
        MultiplyParts<false>(a, factor[ji], PartsOf(kLoraF32), acc_of);
      }
    }
  }
}

/// A lane's sums: columns col .. col + 7 of ranks 2 t, 2 t + 1, 2 t + 8 and 2 t + 9.
LOWRANK_DEVICE void StoreRowGrad(const RowGrad& p, uint32_t split, int64_t col,
                                 const float (&acc)[kRowGradFragments][kRowGradTilesJ][4]) {
  if (col >= p.cols) return;
  float* g_plane = p.planes + split * p.plane_elems + col * p.c_elems;
#pragma unroll
  for (uint32_t ji = 0; ji < kRowGradTilesJ; ++ji) {
    const uint32_t j = 8 * ji + threadIdx.x % 4 * 2;
    if (j >= p.r) continue;
    if (p.c_elems == 1) {  // [r, C]: eight neighbours, a sector
#pragma unroll
      for (uint32_t i = 0; i < 2; ++i) {
        if (j + i >= p.r) continue;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float(&first)[4] = acc[2 * half][ji];
          const float(&second)[4] = acc[2 * half + 1][ji];
          *reinterpret_cast<float4*>(g_plane + (j + i) * p.j_elems + 4 * half) =
              make_float4(first[i], first[2 + i], second[i], second[2 + i]);
        }
      }
      continue;
    }
#pragma unroll
    for (int c = 0; c < 2 * kRowGradFragments; ++c) {  // [C, r]: four lanes side by side, a sector
      float* g_pair = g_plane + c * p.c_elems + j;
      const float first = acc[c / 2][ji][c % 2 * 2];
      const float second = acc[c / 2][ji][c % 2 * 2 + 1];
      if (p.r % 2 == 0) {
        *reinterpret_cast<float2*>(g_pair) = make_float2(first, second);
      } else {
        g_pair[0] = first;
        if (j + 1 < p.r) g_pair[1] = second;
      }
    }
  }
}

/// The share of warp `unit` of `units`. Returns the warp's place for the work that follows, so that
/// warps with less of this get more of that.
template <typename Tag>
LOWRANK_DEVICE uint32_t SumRowGrads(const RowGrad& p, uint32_t unit, uint32_t units) {
  if (p.x == nullptr) return unit;
  const uint32_t count = p.blocks * p.splits;
  for (uint32_t at = unit; at < count; at += units) {
    const uint32_t split = at / p.blocks;
    const int64_t col = static_cast<int64_t>(p.first_block + at % p.blocks) * kRowGradCols +
                        threadIdx.x % 32 / 4 * 8;
    const int64_t first_row = split * p.rows_per_split;
    const int64_t rest = p.rows - first_row;
    const int32_t rows = static_cast<int32_t>(rest < p.rows_per_split ? rest : p.rows_per_split);
    const int32_t lane_row = threadIdx.x % 4 * 4;
    const int64_t row0 = first_row + lane_row;
    RowGradPlace place;
    place.g_x = static_cast<const uint16_t*>(p.x) + row0 * p.cols + col;
    place.g_factor = p.factor + row0 * p.r + threadIdx.x % 32 / 4;
    place.g_kept = reinterpret_cast<const uint8_t*>(p.kept) + row0 * p.kept_words * 4 + col / 8;
    place.inside = col < p.cols;
    float acc[kRowGradFragments][kRowGradTilesJ][4];
#pragma unroll
    for (int fragment = 0; fragment < kRowGradFragments; ++fragment) {
#pragma unroll
      for (uint32_t ji = 0; ji < kRowGradTilesJ; ++ji) {
#pragma unroll
        for (int i = 0; i < 4; ++i) acc[fragment][ji][i] = 0;
      }
    }
    RowGradChunk x;
    place.rows = rows - lane_row;
    LoadRowGradChunk(p, 0, place, x);
    for (int32_t row = 0; row < rows; row += kRowGradRows) {
      RowGradFragments turned;
      TurnRowGradChunk<Tag>(p, place, x, turned);
      LoadRowGradChunk(p, kRowGradRows, place, x);  // in flight beside the products
      MultiplyRowGradChunk<Tag>(p, place, turned, acc);
      place.rows -= kRowGradRows;
    }
    StoreRowGrad(p, split, col, acc);
  }
  return (unit + units - count % units) % units;
}

}  // namespace lowrank::gpu
