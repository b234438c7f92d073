/// The LoRA term of a tiled product: h · factor as slabs of bf16 parts, and the dropout gate.
#pragma once

#include "cuda/lora/lora_pairs.cuh"
#include "cuda/mma/weight_source.cuh"
#include "native/host_device/philox.h"

namespace lowrank::gpu {

/// Part `pair` of eight neighbours, as 16 bytes.
LOWRANK_DEVICE void StoreParts(const float (&value)[8], uint32_t parts, int pair,
                               unsigned char* to) {
  const int part = static_cast<int>(parts >> (2 * pair) & 3u);
  uint32_t packed[4];
#pragma unroll
  for (int q = 0; q < 4; ++q) {
    packed[q] = PackParts(SplitPart(value[2 * q], part, pair != 0),
                          SplitPart(value[2 * q + 1], part, pair != 0));
  }
  *reinterpret_cast<uint4*>(to) = make_uint4(packed[0], packed[1], packed[2], packed[3]);
}

/// The reduction that the term adds: for each pair, r rounded up to 16.
///
/// Its 16-element blocks are numbered through pairs; four of them fill the tiles of one slab.
template <typename Tile>
class LoraSlabs {
 public:
  __device__ __forceinline__ explicit LoraSlabs(const GemmMmaParams& p)
      : p_(p), blocks_per_pair_(static_cast<int>((p.r + 15) / 16)) {}

  __device__ __forceinline__ int blocks() const { return blocks_per_pair_ * p_.split_pairs; }

  /// Writes parts of scaling · h, rows [m0, m0 + kTileM), to a tile of x, and of the factor to a
  /// tile of w: forward lora_b's rows, transposed lora_a's columns. A thread's pieces of both are
  /// one loop: the parts of eight numbers take much code, which is written out once.
  __device__ __forceinline__ void Fill(int slab, int64_t m0, int64_t p0, unsigned char* s_h,
                                       unsigned char* s_factor) const {
    constexpr int kPiecesOfH = Tile::kTileM * 8;
    constexpr int kPieces = kPiecesOfH + Tile::kTileP * 8;
#pragma unroll 1
    for (int at = threadIdx.x; at < kPieces; at += Tile::kThreads) {
      const bool of_h = at < kPiecesOfH;
      const Piece piece = of_h                ? PieceOfRow(slab, at, m0, p_.M)
                          : Tile::kTransposed ? PieceOfColumns(slab, at - kPiecesOfH, p0)
                                              : PieceOfRow(slab, at - kPiecesOfH, p0, p_.N);
      float value[8];
      LoadEight(value, of_h ? p_.h : p_.factor, of_h ? uint8_t{kElementF32} : p_.factor_dtype,
                piece.index, piece.count, p_.vector_factors);
      const float scale = of_h ? p_.scaling : 1.0f;
#pragma unroll
      for (int q = 0; q < 8; ++q) value[q] = value[q] * scale;
      StoreParts(value, of_h ? kPartsOfH : kPartsOfFactor, piece.pair,
                 (of_h ? s_h : s_factor) + piece.offset_bytes);
    }
  }

 private:
  /// Eight neighbours in memory, which become eight of a tile.
  struct Piece {
    int64_t index;
    int64_t count;  // that are there
    int pair;
    int offset_bytes;  // in the tile
  };

  /// Of rows [row0, limit) of a matrix [limit, r] as rows of 64 parts.
  __device__ __forceinline__ Piece PieceOfRow(int slab, int at, int64_t row0, int64_t limit) const {
    const int row = at / 8;
    const int piece = at % 8;
    const int block = slab * 4 + piece / 2;
    const int pair = block / blocks_per_pair_;
    const int64_t j = (block - pair * blocks_per_pair_) * 16 + piece % 2 * 8;
    const bool inside = row0 + row < limit && pair < p_.split_pairs;
    return {(row0 + row) * p_.r + j, inside ? p_.r - j : 0, pair, SwizzledOffset<128>(row, piece)};
  }

  /// Of a row of lora_a [r, K], from column first_k of the tile on.
  __device__ __forceinline__ Piece PieceOfColumns(int slab, int at, int64_t first_k) const {
    constexpr int kRowBytes = Tile::kTileP * 2;
    constexpr int kRowPieces = kRowBytes / 16;
    const int row = at / kRowPieces;
    const int piece = at % kRowPieces;
    const int block = slab * 4 + row / 16;
    const int pair = block / blocks_per_pair_;
    const int64_t j = (block - pair * blocks_per_pair_) * 16 + row % 16;
    const int64_t k = first_k + piece * 8;
    const int64_t count = pair < p_.split_pairs && j < p_.r ? p_.K - k : 0;
    return {j * p_.K + k, count, pair, SwizzledOffset<kRowBytes>(row, piece)};
  }

  const GemmMmaParams& p_;
  const int blocks_per_pair_;
};

/// Which of four neighbours the gate keeps: (m, k), (m, k + 1), (m + 8, k), (m + 8, k + 1), as the
/// bits of a number. All lanes of a warp must call it, for the same fragment.
template <bool kAligned>
class DropoutGate {
 public:
  __device__ __forceinline__ explicit DropoutGate(const GemmMmaParams& p) : p_(p) {}

  __device__ __forceinline__ uint32_t Keeps(int64_t m, int64_t k) const {
    if (p_.mask == nullptr && kAligned) return DrawShared(m, k);
    uint32_t keeps = 0;
#pragma unroll 1
    for (int q = 0; q < 4; ++q) {
      const int64_t mq = m + q / 2 * 8;
      const int64_t kq = k + q % 2;
      if (mq >= p_.M || kq >= p_.K) continue;
      const bool kept = p_.mask != nullptr ? LoadAny(p_.mask, p_.mask_dtype, mq * p_.K + kq) != 0.0f
                                           : DropoutKeeps(p_.seed, Index(mq, kq), p_.threshold);
      keeps |= (kept ? 1u : 0u) << q;
    }
    return keeps;
  }

 private:
  __device__ __forceinline__ uint64_t Index(int64_t m, int64_t k) const {
    return static_cast<uint64_t>(m * p_.K + k);
  }

  /// K is a multiple of 4, so lanes 2i and 2i + 1 hold two elements each of the same two groups of
  /// four: one draws row m's group, the other row m + 8's, and they exchange.
  __device__ __forceinline__ uint32_t DrawShared(int64_t m, int64_t k) const {
    const int odd = static_cast<int>(threadIdx.x & 1);
    const uint64_t group = Index(m + odd * 8, k) >> 2;
    const Philox4 draw = PhiloxGroup(p_.seed, group, kDropoutStream);
    uint32_t mine = 0;
#pragma unroll
    for (int q = 0; q < 4; ++q) mine |= (draw.lane[q] >= p_.threshold ? 1u : 0u) << q;
    const uint32_t other = __shfl_xor_sync(0xffffffffu, mine, 1);
    const uint32_t upper = ((odd == 0 ? mine : other) >> (2 * odd)) & 3u;
    const uint32_t lower = ((odd == 0 ? other : mine) >> (2 * odd)) & 3u;
    return upper | lower << 2;
  }

  const GemmMmaParams& p_;
};

}  // namespace lowrank::gpu
