/// What the products with wgmma of the small-M family share: the products of a step, and the sums
/// of a cluster. matmul_small_m_wgmma_sm90a.cu has the layout, matmul_wide_m_wgmma_sm90a.cu the
/// same for 128 tokens.
#pragma once

#include "cuda/ptx_sm90.cuh"
#include "cuda/small_m_block.cuh"

namespace lowrank::gpu {

struct WgmmaElementBF16 : ElementBF16T {
  template <typename Sums>
  LOWRANK_DEVICE void Multiply(Sums& d, const uint32_t (&a)[4], uint64_t b) {
    WgmmaBF16(d, a, b);
  }
};
struct WgmmaElementF16 : ElementF16T {
  template <typename Sums>
  LOWRANK_DEVICE void Multiply(Sums& d, const uint32_t (&a)[4], uint64_t b) {
    WgmmaF16(d, a, b);
  }
};

/// Which slice of which outputs and tokens this block has. Blocks beside each other are a cluster.
struct SmallMPlace {
  uint32_t row_block;
  uint32_t split;
  int64_t first_m;
};
template <typename Tile>
LOWRANK_DEVICE SmallMPlace PlaceOfBlock(const SmallMParams& p) {
  return {blockIdx.x / p.splits, blockIdx.x % p.splits, int64_t{blockIdx.y} * Tile::kTokens};
}

/// Two warpgroups of 128 outputs each, for all tokens of the block.
template <typename Element, typename Tile, typename Shared>
class WgmmaRows : protected SmallMBlock<SmallMFormat::kCode4, Element, Tile, Shared> {
  using Base = SmallMBlock<SmallMFormat::kCode4, Element, Tile, Shared>;

 protected:
  using Base::kStepK, Base::kThreads;
  using Base::p_, Base::s_, Base::decoder_, Base::first_n_, Base::slice_;
  using typename Base::Codes;
  static constexpr int kHalfBytes = Tile::kTokens * 128;  // x of four products
  static_assert(Tile::kWarpsK == 1 && kStepK == 128 && Shared::kStageBytes == 2 * kHalfBytes);

  __device__ __forceinline__ WgmmaRows(const SmallMParams& params, const SmallMPlace& place)
      : Base(params, place.row_block, place.split), place_(place) {}

  /// The products of a step but the last two are done when this returns. `after_first` runs where
  /// those of the step before are.
  template <bool kTail, typename AfterFirst>
  __device__ __forceinline__ void Multiply(const unsigned char* s_x, int step, Codes codes,
                                           AfterFirst after_first) {
#pragma unroll
    for (int i = 0; i < Tile::kTilesN; ++i) {
      const auto prepared = this->template Prepare<kTail>(i, step, &codes);
#pragma unroll
      for (int u = 0; u < 4; ++u) {
        uint32_t a[2][4];
        decoder_.Fragments(i, prepared, codes.raw[i], u, a);
        const uint64_t x = WgmmaDescriptor(s_x + u / 2 * kHalfBytes) + u % 2 * 4;
        WgmmaFence();
        Element::Multiply(sum_[i], a[0], x);
        Element::Multiply(sum_[i], a[1], x + 2);
        WgmmaCommit();
        WgmmaWait<1>();
        if (i == 0 && u == 0) after_first();
      }
    }
  }

  __device__ __forceinline__ void StoreSums() {
    this->StorePlanes([this](int i, int j, int e) { return sum_[i][j * 4 + e]; });
  }

  /// The blocks' sums in the order of k; a block finishes its share of the rows, a thread four of
  /// them of each of its tokens.
  __device__ __forceinline__ void Finish() {
    GridDependencyWait();
    constexpr int kCount = 4;  // tokens a thread at a time
    const int rows = Tile::kRows / static_cast<int>(p_.splits);
    const int thread = static_cast<int>(threadIdx.x);
    const int row = static_cast<int>(place_.split) * rows + thread % (rows / 4) * 4;
    const int step = kThreads / (rows / 4);
    const int64_t n = first_n_ + row;
    const int tokens = static_cast<int>(min(p_.M - place_.first_m, int64_t{Tile::kTokens}));
    if (n >= p_.N) return;
    const OutputBias<4> bias(p_, n);
#pragma unroll 1
    for (int first = thread / (rows / 4); first < tokens; first += kCount * step) {
      float sum[kCount][4] = {};
#pragma unroll 1
      for (uint32_t peer = 0; peer < p_.splits; ++peer) {
        float4 part[kCount];
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
          const int token = min(first + i * step, Tile::kTokens - 1);
          const auto* s_part =
              reinterpret_cast<const float4*>(s_.planes + token * Tile::kPlaneStride + row);
          part[i] = peer == place_.split ? *s_part : LoadFromPeer(s_part, peer);
        }
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
          sum[i][0] = peer == 0 ? part[i].x : sum[i][0] + part[i].x;
          sum[i][1] = peer == 0 ? part[i].y : sum[i][1] + part[i].y;
          sum[i][2] = peer == 0 ? part[i].z : sum[i][2] + part[i].z;
          sum[i][3] = peer == 0 ? part[i].w : sum[i][3] + part[i].w;
        }
      }
      FinishOutputs<Element>(p_, bias, n, place_.first_m + first, step, sum);
    }
  }

  const SmallMPlace place_;
  float sum_[Tile::kTilesN][Tile::kTokens / 2] = {};
};

}  // namespace lowrank::gpu
