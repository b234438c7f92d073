#pragma once

#include <cstddef>
#include <cstdint>

#include "native/host_device/params/gemm_mma.h"

namespace lowrank::gpu {

constexpr uint32_t kSmallMThreads = 256;
constexpr int kSmallMWarps = 8;
constexpr uint32_t kSmallMFinishThreads = 128;  // outputs n a block of the finishing kernel
constexpr uint32_t kSmallMFinishTokens = 8;     // tokens m of each

enum class SmallMFormat { kCode4, kCode8, kDense };

/// Elements of w in 16 bytes: what a lane loads from one row at once.
constexpr int LaneElems(SmallMFormat format) {
  return format == SmallMFormat::kCode4 ? 32 : format == SmallMFormat::kCode8 ? 16 : 8;
}

/// How 4-bit codes are decoded: rows g of the fragments by look-ups in shared memory and rows g + 8
/// by byte permutes; in every second fragment both by look-ups, or both by permutes; or all by
/// permutes, with the codebook in registers or in shared memory.
enum class SmallMDecode { kHalfLookups, kMostLookups, kFewLookups, kPermutes, kSharedPermutes };

/// The work of a block of threads: kRows outputs n for kTokens tokens m, over a slice of K. A warp
/// has kTilesN fragments of 16 rows. kWarpsK warps share their rows and alternate along K.
template <int kTilesN_, int kTilesM_, int kWarpsN_,
          SmallMDecode kDecode_ = SmallMDecode::kHalfLookups>
struct SmallMTile {
  static constexpr int kTilesN = kTilesN_;  // fragments of 16 outputs a warp
  static constexpr int kTilesM = kTilesM_;  // fragments of 8 tokens
  static constexpr int kWarpsN = kWarpsN_;
  static constexpr SmallMDecode kDecode = kDecode_;
  static constexpr int kWarpsK = kSmallMWarps / kWarpsN;
  static constexpr int kRows = 16 * kTilesN * kWarpsN;
  static constexpr int kTokens = 8 * kTilesM;
  static constexpr int kScaleStride = kRows + 8;  // of the scales of one block index, in floats
  static constexpr int kPlaneStride = kRows + 4;  // of one token of a partial sum, in floats
};
using SmallMTile8 = SmallMTile<2, 1, 1, SmallMDecode::kMostLookups>;
using SmallMTile16 = SmallMTile<2, 2, 2>;
using SmallMTile32 = SmallMTile<2, 4, 4>;
using SmallMTile64 = SmallMTile<2, 8, 4, SmallMDecode::kPermutes>;
/// With wgmma. A warp's two fragments are rows of two products of its warpgroup.
using SmallMTileWgmma = SmallMTile<2, 8, 8, SmallMDecode::kFewLookups>;
/// The same with half the rows: half the sums between the blocks of a cluster, twice the x.
using SmallMTileWgmma128 = SmallMTile<1, 8, 8>;
using SmallMTileWide = SmallMTile<2, 16, 8, SmallMDecode::kSharedPermutes>;

/// The k that all warps of a block process in one step.
template <SmallMFormat kFormat, typename Tile>
constexpr int kSmallMStepK = 4 * LaneElems(kFormat) * Tile::kWarpsK;

/// 4-bit: the values of both codes of a byte, [256][16] float2. 8-bit: of a code, [256][32] float.
constexpr int SmallMTableBytes(SmallMFormat format, SmallMDecode decode) {
  if (format == SmallMFormat::kCode8) return 32768;
  const bool lookups = format == SmallMFormat::kCode4 && decode != SmallMDecode::kPermutes &&
                       decode != SmallMDecode::kSharedPermutes;
  return lookups ? 32768 : 128;
}

/// Shared memory. The decoded scales, [block of the slice][row], follow it: kScaleSlots of them in
/// rotation, or all if that is 0.
template <SmallMFormat kFormat, typename Tile>
struct SmallMShared {
  static constexpr int kScaleSlots = 0;
  struct Main {
    alignas(128) unsigned char table[SmallMTableBytes(kFormat, Tile::kDecode)];
    alignas(128) unsigned char x[2][Tile::kTokens * kSmallMStepK<kFormat, Tile> * 2];
  };
  union {
    Main main;
    float planes[Tile::kWarpsK * Tile::kTokens * Tile::kPlaneStride];
  };
};

/// For the kernels with wgmma: 4-bit codes, and x in a ring of stages.
template <typename Tile, int kStages_, int kScaleSlots_>
struct SmallMWgmmaShared {
  static constexpr int kScaleSlots = kScaleSlots_;
  static constexpr int kStages = kStages_;
  /// With two fragments per warp, the sums of one go to the cluster's peers through L2.
  static constexpr bool kHalfByL2 = Tile::kTilesN == 2;
  static constexpr int kStageBytes = Tile::kTokens * kSmallMStepK<SmallMFormat::kCode4, Tile> * 2;
  struct Main {
    alignas(1024) unsigned char x[kStages][kStageBytes];
    alignas(128) unsigned char table[SmallMTableBytes(SmallMFormat::kCode4, Tile::kDecode)];
  };
  union {
    Main main;
    float planes[Tile::kTokens * Tile::kPlaneStride];
  };
};
constexpr int kSmallMWgmmaStages = 3;      // of x, where it goes through registers
constexpr uint32_t kSmallMClusterMax = 8;  // slices of K, the blocks of a cluster

/// For the kernel of 128 tokens, whose third warpgroup loads x and the scales. It is at most four
/// steps ahead of the readers: five steps of four blocks of 32, and one started earlier.
constexpr uint32_t kSmallMWideThreads = kSmallMThreads + 128;
struct SmallMWideShared : SmallMWgmmaShared<SmallMTileWide, 4, 32> {
  uint64_t full[kStages];   // a stage of x is complete
  uint64_t empty[kStages];  // nobody reads it any more
};

struct SmallMParams {
  GemmMmaWeight w;        // [N, K] quantised, or dense of T
  const void* x;          // [M, K] T
  const void* bias;       // [1, N], or null
  const void* lora_b;     // [N, r]
  const void* lora_bias;  // [1, N], or null
  const float* h;         // [M, r] f32, or null without the LoRA term
  void* y;                // [M, N] T
  float* partial;         // [splits, M, N], where K is split between blocks of no cluster; of a
                          // cluster by wgmma [splits, M, row blocks, kRows / 2]
                          // (small_m_wgmma.cuh), by mma.sync none
  int64_t M;
  int64_t N;
  int64_t K;
  int64_t slice_k;  // of a block: whole steps
  int64_t r;
  float scaling;
  uint32_t splits;
  uint8_t bias_dtype;  // ElementCode
  uint8_t lora_b_dtype;
  uint8_t lora_bias_dtype;
  bool x_made;  // a launch of the op writes x: none of it is read before that has ended
};

}  // namespace lowrank::gpu
