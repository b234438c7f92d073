/// Shared by the products with wgmma of the small-M family: the products of a step, and the sums of
/// a cluster. matmul_small_m_wgmma_sm90a.cu has the layout, matmul_wide_m_wgmma_sm90a.cu the same
/// for 128 tokens.
#pragma once

#include "cuda/ptx_sm90.cuh"
#include "cuda/small_m/small_m_block.cuh"

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

/// Which slice of which outputs and tokens this block has. Neighbouring blocks form a cluster.
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
  using Base::p_, Base::s_, Base::decoder_, Base::first_n_, Base::slice_, Base::lane_;
  using typename Base::Codes;
  static constexpr int kHalfBytes = Tile::kTokens * 128;  // x of four products
  static_assert(Tile::kWarpsK == 1 && kStepK == 128 && Shared::kStageBytes == 2 * kHalfBytes);

  __device__ __forceinline__ WgmmaRows(const SmallMParams& params, const SmallMPlace& place)
      : Base(params, place.row_block, place.split), place_(place) {}

  /// Returns when all products of a step but the last two are done. Calls `after_first` when the
  /// step before is done, and `after_half` when fragment 0 is, if there are two.
  template <bool kTail, typename AfterFirst, typename AfterHalf>
  __device__ __forceinline__ void Multiply(const unsigned char* s_x, int step, Codes codes,
                                           AfterFirst after_first, AfterHalf after_half) {
    SlotRead(s_x, static_cast<uint32_t>(step));
#pragma unroll
    for (int i = 0; i < Tile::kTilesN; ++i) {
      const auto prepared = this->template Prepare<kTail>(i, step, &codes);
#pragma unroll
      for (int u = 0; u < 4; ++u) {
        uint32_t(&a)[2][4] = fragments_[u % 2];
        decoder_.Fragments(i, prepared, codes.raw[i], u, a);
        const uint64_t x = WgmmaDescriptor(s_x + u / 2 * kHalfBytes) + u % 2 * 4;
        WgmmaFence();
        Element::Multiply(sum_[i], a[0], x);
        Element::Multiply(sum_[i], a[1], x + 2);
        WgmmaCommit();
        WgmmaWait<1>();
        if (i == 0 && u == 0) after_first();
        if (i == 1 && u == 0) after_half();
      }
    }
  }

  /// Fragment 0's sums to the block's plane in global memory, while products of fragment 1 run: the
  /// peers read half of the sums from L2 and half from this block's shared memory, two ways at
  /// once. A launch before this one may have the same workspace, so its end comes first. Few wait
  /// long: it began before all products but these.
  __device__ __forceinline__ void StoreHalf() {
    if (!Halves()) return;
    GridDependencyWait();
    const int first = lane_ % 4 * 2;
    const int tokens = Tokens();
    float* g_plane = HalfPlane(place_.split) + first * HalfStride() + HalfColumn(0);
#pragma unroll
    for (int j = 0; j < Tile::kTilesM; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if (first + j * 8 + e % 2 >= tokens) continue;
        g_plane[(j * 8 + e % 2) * HalfStride() + e / 2 * 8] = sum_[0][j * 4 + e];
      }
    }
  }

  /// Stores what StoreHalf() has not stored, to shared memory.
  __device__ __forceinline__ void StoreSums() {
    auto sum = [this](int i, int j, int e) { return sum_[i][j * 4 + e]; };
    if (Halves()) {
      this->StorePlanes(1, [this](int, int eighth) { return HalfColumn(eighth); }, sum);
    } else {
      this->StorePlanes(0, [this](int i, int eighth) { return this->LocalRow(i, eighth); }, sum);
    }
  }

  /// The blocks' sums in the order of k; a block finishes its share of the rows, a thread four of
  /// them of each of its tokens.
  __device__ __forceinline__ void Finish() {
    GridDependencyWait();
    constexpr int kCount = 4;  // tokens a thread at a time
    // With two halves, half of the threads take the second one and what went through L2.
    const bool halves = Halves();
    const int threads = halves ? kThreads / 2 : kThreads;
    // Computed again: its results would otherwise be computed before the products, and spill.
    const auto index = static_cast<int>(Keep(threadIdx.x));
    const int thread = index % threads;
    const bool by_l2 = index >= threads;
    const int quads = Tile::kRows / 4 / static_cast<int>(p_.splits) / (halves ? 2 : 1);
    const int column = (static_cast<int>(place_.split) * quads + thread % quads) * 4;
    const int row = !halves ? column : column / 16 * 32 + column % 16 + (by_l2 ? 0 : 16);
    const int step = threads / quads;
    const int64_t n = first_n_ + row;
    const int tokens = Tokens();
    if (n >= p_.N) return;
    const OutputBias<4> bias(p_, n);
#pragma unroll 1
    for (int first = thread / quads; first < tokens; first += kCount * step) {
      float sum[kCount][4] = {};
#pragma unroll 1
      for (uint32_t peer = 0; peer < p_.splits; ++peer) {
        float4 part[kCount];
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
          const int token = min(first + i * step, tokens - 1);
          if (by_l2) {
            part[i] = __ldcg(
                reinterpret_cast<const float4*>(HalfPlane(peer) + token * HalfStride() + column));
            continue;
          }
          const auto* s_part =
              reinterpret_cast<const float4*>(s_.planes + token * Tile::kPlaneStride + column);
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

 private:
  /// Tokens of the block.
  __device__ __forceinline__ int Tokens() const {
    return static_cast<int>(min(p_.M - place_.first_m, int64_t{Tile::kTokens}));
  }

  /// Are the sums exchanged in two ways?
  __device__ __forceinline__ bool Halves() const { return Shared::kHalfByL2 && p_.splits > 1; }

  /// The half of fragment 0 is [split][M][row block][kRows / 2] in global memory, that of fragment
  /// 1 [token][kRows / 2] in shared memory: a warp's rows lie beside those of the next.
  __device__ __forceinline__ int64_t HalfStride() const {
    return static_cast<int64_t>(gridDim.x / p_.splits) * (Tile::kRows / 2);
  }
  __device__ __forceinline__ float* HalfPlane(uint32_t split) const {
    return p_.partial + (split * p_.M + place_.first_m) * HalfStride() +
           place_.row_block * (Tile::kRows / 2);
  }
  __device__ __forceinline__ int HalfColumn(int eighth) const {
    return this->warp_n_ * 16 + eighth * 8 + lane_ / 4;
  }

  float sum_[Tile::kTilesN][Tile::kTokens / 2] = {};
  uint32_t fragments_[2][2][4];  // of the products in flight, and of the next ones
};

}  // namespace lowrank::gpu
