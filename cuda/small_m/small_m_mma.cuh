/// The product of few tokens by mma.sync (m16n8k16): a block's outputs over a slice of K, until the
/// warps' sums lie in shared memory. matmul_small_m_sm80.cu has the layout and the budget, and cuts
/// K over blocks that leave planes; matmul_small_m_cluster_sm90.cu over the blocks of a cluster.
#pragma once

#include "cuda/small_m/small_m_block.cuh"

namespace lowrank::gpu {

/// Where 16-byte piece `piece` of a token's kPieces lies in the chunk of x that a warp takes. A
/// quarter warp reads the pieces kPieces / 4 · t + u of two neighbouring tokens, a copy writes
/// eight neighbouring pieces of one token (of two chunks, where a chunk has four); both meet each
/// of the eight 16-byte columns once.
template <int kPieces>
LOWRANK_DEVICE int PlaceOfPiece([[maybe_unused]] int chunk, int token, int piece) {
  if constexpr (kPieces == 16) {
    return token * kPieces + ((piece ^ ((piece >> 2) & 3)) ^ ((token & 1) << 2));
  } else if constexpr (kPieces == 8) {
    return token * kPieces + (piece ^ (token & 1));
  } else {
    static_assert(kPieces == 4);
    return (token ^ (chunk & 1)) * kPieces + piece;
  }
}

template <SmallMFormat kFormat, typename Element, typename Tile>
class MmaRows : protected SmallMBlock<kFormat, Element, Tile, SmallMShared<kFormat, Tile>> {
  using Base = SmallMBlock<kFormat, Element, Tile, SmallMShared<kFormat, Tile>>;
  using Base::first_k_, Base::slice_, Base::decoder_, Base::lane_, Base::warp_k_;
  using Base::kPieces, Base::kStepK;
  using typename Base::Codes;
  using typename Base::Decoder;

 protected:
  using Base::kThreads, Base::p_, Base::s_;

  __device__ __forceinline__ MmaRows(const SmallMParams& params, uint32_t row_block, uint32_t split)
      : Base(params, row_block, split) {
    // The last token is used for those past M: its columns of the product are not stored.
#pragma unroll
    for (int j = 0; j < Tile::kTilesM; ++j) {
      const int token = min(j * 8 + lane_ / 4, static_cast<int>(p_.M) - 1);
      const int place = PlaceOfPiece<kPieces>(warp_k_, token, lane_ % 4 * (kPieces / 4));
      x_place_[j] = Keep((warp_k_ * Tile::kTokens * kPieces + place) * 16);
    }
  }

  /// When this returns, the warps' sums of the slice are in their planes.
  __device__ __forceinline__ void MultiplySlice() {
    Codes next, after;
    this->LoadCodes(0, &next);
    this->LoadCodes(1, &after);
    if (p_.x_made) GridDependencyWait();
    IssueX(0);
    decoder_.Fill();
    if constexpr (Base::kQuantised) this->FillScales();
    const int whole = slice_ / kStepK;
#pragma unroll 1
    for (int step = 0; step < whole; ++step) Step<false>(step, &next, &after);
    if (whole * kStepK < slice_) Step<true>(whole, &next, &after);
    __syncthreads();  // nobody reads x or the tables any more
    this->StorePlanes(
        0, [this](int i, int eighth) { return this->LocalRow(i, eighth); },
        [this](int i, int j, int e) { return sum_[i][j][e]; });
    __syncthreads();
  }

  /// The sums of the slice of an output, row `row` of the block, and the tokens first, first +
  /// kTokensApart, ...: the planes of the kWarpsK warps added in order. Those of tokens past M are
  /// there too; of a tile for few tokens they are branched over.
  static constexpr int kTokensApart = kThreads / Tile::kRows;
  static constexpr int kCount = Tile::kTokens / kTokensApart;
  __device__ __forceinline__ void AddWarps(int row, int first, float (&sum)[kCount][1]) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      sum[i][0] = 0.0f;
      const int token = first + i * kTokensApart;
      if (kCount <= 2 && token >= p_.M) continue;
      const float* s_value = s_.planes + token * Tile::kPlaneStride + row;
      sum[i][0] = s_value[0];
#pragma unroll
      for (int plane = 1; plane < Tile::kWarpsK; ++plane) {
        sum[i][0] += s_value[plane * (Tile::kTokens * Tile::kPlaneStride)];
      }
    }
  }

 private:
  /// kTail: the step that contains the slice's end, if that is not a whole one.
  template <bool kTail>
  __device__ __forceinline__ void Step(int step, Codes* next, Codes* after) {
    CpAsyncWait<0>();
    __syncthreads();  // x and the tables are there, and nobody reads the other buffer any more
    Codes now = *next;
    if constexpr (!kTail) {
      if ((step + 1) * kStepK < slice_) IssueX(step + 1);
      *next = *after;
      this->LoadCodes(step + 2, after);
    }
    Multiply<kTail>(step, now);
  }

  /// A step of x, all warps' chunks, with zeros past the slice. Tokens past M are not read. A
  /// thread has one piece of every kApart-th token: all of its copies differ only in the row.
  __device__ __forceinline__ void IssueX(int step) {
    constexpr int kRowPieces = kStepK / 8;
    constexpr int kApart = kThreads / kRowPieces;
    static_assert(kApart % 2 == 0 && Tile::kTokens % kApart == 0,
                  "PlaceOfPiece of neighbouring copies differs by whole rows");
    const int first = static_cast<int>(threadIdx.x) / kRowPieces;
    const int piece = static_cast<int>(threadIdx.x) % kRowPieces;
    const int chunk = piece / kPieces;
    const int place = PlaceOfPiece<kPieces>(chunk, first, piece % kPieces);
    const int k = step * kStepK + piece * 8;
    const uint32_t bytes = k < slice_ ? 16 : 0;
    // x has at most 2^32 elements.
    const auto cols = static_cast<uint32_t>(p_.K);
    const uint32_t at = static_cast<uint32_t>(first_k_) + first * cols + min(k, slice_ - 8);
    SlotFilled(s_.main.x[step % 2], static_cast<uint32_t>(step));
    unsigned char* s_x = s_.main.x[step % 2] + (chunk * Tile::kTokens * kPieces + place) * 16;
#pragma unroll
    for (int i = 0; i < Tile::kTokens / kApart; ++i) {
      // One or two tokens: a branch skips the rest of the copies.
      if (Tile::kTilesM == 1 && i * kApart >= static_cast<int>(p_.M)) break;
      if (first + i * kApart < static_cast<int>(p_.M)) {
        CpAsync16(s_x + i * kApart * kPieces * 16,
                  static_cast<const uint16_t*>(p_.x) + (at + i * kApart * cols), bytes);
      }
    }
    CpAsyncCommit();
  }

  template <bool kTail>
  __device__ __forceinline__ void Multiply(int step, Codes codes) {
    typename Decoder::Prepared prepared[Tile::kTilesN];
#pragma unroll
    for (int i = 0; i < Tile::kTilesN; ++i) {
      prepared[i] = this->template Prepare<kTail>(i, step, &codes);
    }
    const unsigned char* s_x = s_.main.x[step % 2];
    SlotRead(s_x, static_cast<uint32_t>(step));
#pragma unroll
    for (int u = 0; u < kPieces / 4; ++u) {
      uint4 x[Tile::kTilesM];
#pragma unroll
      for (int j = 0; j < Tile::kTilesM; ++j) {
        // Neighbouring pieces differ in bits that no other part of a place uses.
        x[j] = *reinterpret_cast<const uint4*>(s_x + (x_place_[j] ^ (u * 16)));
      }
#pragma unroll
      for (int i = 0; i < Tile::kTilesN; ++i) {
        uint32_t a[2][4];
        decoder_.Fragments(i, prepared[i], codes.raw[i], u, a);
#pragma unroll
        for (int j = 0; j < Tile::kTilesM; ++j) {
          Element::Mma(sum_[i][j], a[0], x[j].x, x[j].y);
          Element::Mma(sum_[i][j], a[1], x[j].z, x[j].w);
        }
      }
    }
  }

  uint32_t x_place_[Tile::kTilesM];  // of the lane's first piece of each token, in bytes
  float sum_[Tile::kTilesN][Tile::kTilesM][4] = {};
};

/// Every format and tile, as X(name, format, Element, Tile, blocks a multiprocessor). Beside 32
/// tokens a dense weight, which has nothing to decode, leaves registers for two blocks.
#define LOWRANK_SMALL_M_TILES(X, format, dtype, kFormat, Element) \
  X(format##_##dtype##_m8, kFormat, Element, SmallMTile8, 2)      \
  X(format##_##dtype##_m16, kFormat, Element, SmallMTile16, 1)    \
  X(format##_##dtype##_m32, kFormat, Element, SmallMTile32,       \
    ((kFormat) == SmallMFormat::kDense ? 2 : 1))                  \
  X(format##_##dtype##_m64, kFormat, Element, SmallMTile64, 1)
#define LOWRANK_SMALL_M_KERNELS(X)                                          \
  LOWRANK_SMALL_M_TILES(X, 4bit, bf16, SmallMFormat::kCode4, ElementBF16T)  \
  LOWRANK_SMALL_M_TILES(X, 4bit, f16, SmallMFormat::kCode4, ElementF16T)    \
  LOWRANK_SMALL_M_TILES(X, 8bit, bf16, SmallMFormat::kCode8, ElementBF16T)  \
  LOWRANK_SMALL_M_TILES(X, 8bit, f16, SmallMFormat::kCode8, ElementF16T)    \
  LOWRANK_SMALL_M_TILES(X, dense, bf16, SmallMFormat::kDense, ElementBF16T) \
  LOWRANK_SMALL_M_TILES(X, dense, f16, SmallMFormat::kDense, ElementF16T)

}  // namespace lowrank::gpu
