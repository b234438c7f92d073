/// Parameters of the adapter's thin products: shrink and gradients are one contraction.
#pragma once

#include <cstdint>

namespace lowrank::gpu {

constexpr int kLoraThreads = 256;
constexpr int kLoraWarps = kLoraThreads / 32;
/// Outputs and contraction of a tile of x: 64 values of o, 128 of q.
constexpr int kLoraTileO = 64;
constexpr int kLoraTileQ = 16 * kLoraWarps;
/// Tiles in flight or in use.
constexpr int LoraStages(int element_bytes) { return element_bytes == 2 ? 4 : 3; }
constexpr int LoraSharedBytes(int element_bytes) {
  return LoraStages(element_bytes) * kLoraTileO * kLoraTileQ * element_bytes +
         kLoraWarps * kLoraTileO * 4;
}

/// Element types as the kernels number them.
enum LoraElement : int32_t { kLoraF32 = 0, kLoraBF16 = 1, kLoraF16 = 2 };

/// The gate of the large operand.
enum LoraGateKind : int32_t { kLoraGateNone = 0, kLoraGatePhilox = 1, kLoraGateMask = 2 };

struct LoraGate {
  const void* mask = nullptr;  // [rows, cols], with kLoraGateMask
  uint64_t seed = 0;
  uint32_t threshold = 0;  // DropoutThreshold(p)
  int32_t kind = kLoraGateNone;
  int32_t mask_element = kLoraF32;
  int32_t mask_aligned = 0;  // a tile's row starts at a vector of the mask
};

/// out(o, j) = scale · Σ_q x(o, q) · factor(q, j), j < r, over q of one split.
///
///   shrink     o = m, q = k: x is stored as [o, q]
///   gradients  o = k, q = m: x is stored as [q, o], and the same pass gives sums Σ_q x(o, q)
struct LoraContractParams {
  const void* x = nullptr;       // [rows, cols] row-major
  const void* factor = nullptr;  // element (q, j) at q · factor_q_elems + j · factor_j_elems
  float* out = nullptr;   // element (o, j) of split s at s · plane + o · o_elems + j · j_elems
  float* sums = nullptr;  // gradients only, optional: element o of split s at s · plane + o
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t factor_q_elems = 0;
  int64_t factor_j_elems = 0;
  int64_t out_o_elems = 0;
  int64_t out_j_elems = 0;
  int64_t out_plane_elems = 0;
  int64_t sums_plane_elems = 0;
  int64_t q_per_split = 0;  // a multiple of the tile
  int64_t r = 0;
  float scale = 1;
  int32_t factor_element = kLoraF32;
  int32_t factor_paired = 0;  // elements (q, j) and (q + 1, j), q even, are one aligned word
  int32_t out_paired = 0;     // elements (o, j) and (o, j + 1), j even, are one aligned word
  uint32_t rank_tiles = 1;    // ceil(r / kRankTile), at least 1
  int32_t x_aligned = 0;      // every row starts 16-byte aligned
  void* rounded = nullptr;    // [rows, cols], shrink of f32 alone, optional: x rounded to 16 bits
  int32_t rounded_element = kLoraBF16;
  uint32_t cluster = 1;  // splits, where they are the blocks of a cluster
  LoraGate gate;
};
constexpr uint32_t kLoraClusterMax = 8;

}  // namespace lowrank::gpu
