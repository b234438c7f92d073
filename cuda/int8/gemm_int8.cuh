/// The bodies of the products of int8 codes. matmul_int8_sm80.cu has the formula and the budget.
#pragma once

#include "cuda/common/element.cuh"
#include "cuda/common/row_chunks.cuh"
#include "cuda/mma/gemm_mma.cuh"
#include "native/host_device/params/gemm_int8.h"

namespace lowrank::gpu {

/// What one block computes with warps of kWarpM x kWarpP; a slab is 128 codes of K.
template <int kM, int kP, int kOfWarpM, int kOfWarpP, int kStageCount>
struct Int8Tile {
  static constexpr int kTileM = kM;
  static constexpr int kTileP = kP;
  static constexpr int kTileR = 64;  // of the LoRA slabs: as many bytes of bf16 parts
  static constexpr int kSlab = 128;
  static constexpr int kStages = kStageCount;
  static constexpr bool kTransposed = false;
  static constexpr int kWarpM = kOfWarpM;
  static constexpr int kWarpP = kOfWarpP;
  static constexpr int kWarpsP = kP / kWarpP;
  static constexpr int kThreads = kM / kWarpM * kWarpsP * 32;
  static_assert(kM % kWarpM == 0 && kP % kWarpP == 0 && kWarpP % 16 == 0);
};

template <typename Tile>
struct GemmInt8Shared {
  struct MainLoop {
    alignas(128) unsigned char x[Tile::kStages][Tile::kTileM * Tile::kSlab];
    unsigned char w[Tile::kStages][Tile::kTileP * Tile::kSlab];
  };
  union {
    MainLoop loop;
    float out[Tile::kTileM * kStagedRow<Tile>];
  };
  float x_scale[Tile::kTileM];
  int32_t x_sum[Tile::kTileM];
  float w_scale[Tile::kTileP];
};

/// Codes of x against the bytes of w.
struct CodeBytes {
  LOWRANK_DEVICE void Mma(int32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    MmaS8U8(d, a, b0, b1);
  }
};

/// Stores eight neighbours of a row of y, of any type.
LOWRANK_DEVICE void StoreEightOf(const GemmInt8Params& p, float (&r_value)[8], int64_t m,
                                 int64_t col) {
  const int64_t N = p.gemm.N;
  if (p.y_dtype == kElementBF16) return StoreEight<ElementBF16T>(p.gemm, r_value, m, col, N);
  if (p.y_dtype == kElementF16) return StoreEight<ElementF16T>(p.gemm, r_value, m, col, N);
  float* g_y = static_cast<float*>(p.gemm.y) + m * N + col;
  if (p.gemm.vector_store) {
    float4* g_pair = reinterpret_cast<float4*>(g_y);
    g_pair[0] = make_float4(r_value[0], r_value[1], r_value[2], r_value[3]);
    g_pair[1] = make_float4(r_value[4], r_value[5], r_value[6], r_value[7]);
    return;
  }
#pragma unroll
  for (int q = 0; q < 8; ++q) {
    if (col + q < N) g_y[q] = r_value[q];
  }
}

template <typename Tile>
LOWRANK_DEVICE void GemmInt8Body(const GemmInt8Params& p) {
  using Shared = GemmInt8Shared<Tile>;
  using Sums = WarpProduct<int32_t, Tile>;
  using Product = WarpProduct<float, Tile>;
  constexpr int kStages = Tile::kStages;

  Shared& shared = DynamicShared<Shared>();
  typename Shared::MainLoop& s = shared.loop;
  const int64_t M = p.gemm.M;
  const int64_t N = p.gemm.N;
  const int64_t K = p.gemm.K;
  // Tiles are numbered down a group of rows of tiles, then to the right.
  const int64_t group = blockIdx.x / (kGemmInt8GroupM * p.gemm.tiles_p);
  const int64_t in_group = blockIdx.x % (kGemmInt8GroupM * p.gemm.tiles_p);
  const int64_t left = p.tiles_m - group * kGemmInt8GroupM;
  const int64_t high = left < kGemmInt8GroupM ? left : kGemmInt8GroupM;
  const int64_t m0 = (group * kGemmInt8GroupM + in_group % high) * Tile::kTileM;
  const int64_t p0 = in_group / high * Tile::kTileP;
  const int slabs = static_cast<int>((K + Tile::kSlab - 1) / Tile::kSlab);
  Sums sums;
  sums.Clear();

  // Beyond K and the last row both operands are zeros.
  auto load_w = [&](int slab) {
    const int64_t k0 = static_cast<int64_t>(slab) * Tile::kSlab;
    CopyTile<Tile::kTileP, Tile::kSlab, Tile::kThreads>(
        static_cast<const unsigned char*>(p.gemm.w.data) + p0 * K + k0, K, N - p0, K - k0,
        s.w[slab % kStages]);
    SlotFilled(s.w[slab % kStages], static_cast<uint32_t>(slab));
  };
  auto load_x = [&](int slab) {
    const int64_t k0 = static_cast<int64_t>(slab) * Tile::kSlab;
    CopyTile<Tile::kTileM, Tile::kSlab, Tile::kThreads>(p.codes + m0 * K + k0, K, M - m0, K - k0,
                                                        s.x[slab % kStages]);
    SlotFilled(s.x[slab % kStages], static_cast<uint32_t>(slab));
  };

  // Scales are read where no thread waits for them, and are visible after the first barrier.
  auto load_w_scales = [&] {
    for (int at = static_cast<int>(threadIdx.x); at < Tile::kTileP; at += Tile::kThreads) {
      const int64_t n = p0 + at;
      shared.w_scale[at] = n < N ? p.gemm.w.absmax[n * p.blocks_per_row] / 127.0f : 0.0f;
    }
  };
  auto load_x_scales = [&] {
    for (int at = static_cast<int>(threadIdx.x); at < Tile::kTileM; at += Tile::kThreads) {
      const int64_t m = m0 + at;
      shared.x_scale[at] = m < M ? p.scales[m] : 0.0f;
      shared.x_sum[at] = m < M ? p.sums[m] : 0;
    }
  };

  // A byte of w is its code + 128.
  auto scale_sums = [&](Product* product) {
#pragma unroll
    for (int mi = 0; mi < Sums::kMi; ++mi) {
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        const int row = sums.row + mi * 16 + part * 8;
        const float x_scale = shared.x_scale[row];
        const uint32_t offset = static_cast<uint32_t>(shared.x_sum[row]) * 128u;
#pragma unroll
        for (int pi = 0; pi < Sums::kPi; ++pi) {
          const float2 w_scale =
              *reinterpret_cast<const float2*>(shared.w_scale + sums.col + pi * 8);
          const int32_t(&acc)[4] = sums.acc[mi][pi];
          auto value = [&](int q) {
            return static_cast<float>(
                static_cast<int32_t>(static_cast<uint32_t>(acc[2 * part + q]) - offset));
          };
          product->acc[mi][pi][2 * part] = value(0) * (x_scale * w_scale.x);
          product->acc[mi][pi][2 * part + 1] = value(1) * (x_scale * w_scale.y);
        }
      }
    }
  };

  // w is an operand of the op; x's codes are written by the launch before.
#pragma unroll
  for (int stage = 0; stage < kStages - 1; ++stage) {
    if (stage < slabs) load_w(stage);
  }
  load_w_scales();
  GridDependencyWait();
#pragma unroll
  for (int stage = 0; stage < kStages - 1; ++stage) {
    if (stage < slabs) load_x(stage);
    CpAsyncCommit();
  }
  load_x_scales();
#pragma unroll 1
  for (int slab = 0; slab < slabs; ++slab) {
    // The oldest stage is complete for every thread, and every thread is done with the slab before.
    CpAsyncWait<kStages - 2>();
    __syncthreads();
    const int next = slab + kStages - 1;
    if (next < slabs) {
      load_w(next);
      load_x(next);
    }
    CpAsyncCommit();
    SlotRead(s.x[slab % kStages], static_cast<uint32_t>(slab));
    SlotRead(s.w[slab % kStages], static_cast<uint32_t>(slab));
#pragma unroll
    for (int step = 0; step < Tile::kSlab / 32; ++step) {
      sums.template Step<CodeBytes>(s.x[slab % kStages], s.w[slab % kStages], step);
    }
  }
  Product product;
  scale_sums(&product);
  if (p.gemm.split_pairs > 0) {
    __syncthreads();  // all products have read the stages
    AddLora(p.gemm, m0, p0, s.x[0], s.w[0], &product);
  }
  StoreProduct(p.gemm, product, shared.out, m0, p0, true,
               [&](float(&value)[8], int64_t m, int64_t col) { StoreEightOf(p, value, m, col); });
}

struct RowCodesShared {
  uint32_t largest[kRowCodesThreads / 32];
  int32_t sum[kRowCodesThreads / 32];
};

template <typename T>
LOWRANK_DEVICE void RowCodesBody(const RowCodesParams& p) {
  constexpr int kThreads = kRowCodesThreads;
  using Row = RowChunks<T, kRowCodesUnroll>;
  constexpr int kElems = Row::kElems;

  RowCodesShared& shared = DynamicShared<RowCodesShared>();
  const int64_t row = static_cast<int64_t>(blockIdx.x);
  const int tid = static_cast<int>(threadIdx.x);
  constexpr int kChunk = kThreads * static_cast<int>(kRowCodesUnroll) * kElems;
  Row chunks{p.x, row * p.K, p.K, kThreads, (p.K - 1) / kChunk, p.whole != 0};

  const uint32_t largest = LargestOfBlock(chunks.Largest(), shared.largest, kThreads);
  const bool finite = largest < 0x7f800000u;
  const float scale = finite ? __uint_as_float(largest) / 127.0f : __uint_as_float(0x7fc00000u);

  int32_t sum = 0;
  chunks.Back([&](int64_t k, const float(&value)[kElems]) {
    uint32_t words[2] = {};
#pragma unroll
    for (int i = 0; i < kElems; ++i) {
      int32_t code = 0;
      if (scale > 0.0f) {
        // Exceeds ±127 only if the scale is a denormal, with few bits.
        code = __float2int_rn(fmaxf(-127.0f, fminf(127.0f, value[i] / scale)));
      }
      sum += code;
      words[i / 4] |= (static_cast<uint32_t>(code) & 0xffu) << (i % 4 * 8);
    }
    StoreGroupBytes<kElems>(p.codes + row * p.K + k, words);
  });
  sum = static_cast<int32_t>(__reduce_add_sync(0xffffffffu, static_cast<uint32_t>(sum)));
  if (tid % 32 == 0) shared.sum[tid / 32] = sum;
  __syncthreads();
  if (tid != 0) return;
#pragma unroll
  for (int warp = 1; warp < kThreads / 32; ++warp) sum += shared.sum[warp];
  p.scales[row] = scale;
  p.sums[row] = sum;
}

}  // namespace lowrank::gpu
