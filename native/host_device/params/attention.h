/// Parameters of attention (cuda/attention/*.cu).
#pragma once

#include <cstdint>

namespace lowrank::gpu {

/// In DType's order.
enum AttentionElement : int32_t { kAttentionF32 = 0, kAttentionBF16 = 1, kAttentionF16 = 2 };

/// Heads of the rows of sequences: element i of head h of row t of sequence b is at
/// (b · sequence_rows + t) · row_elems + h · head_elems + i.
struct AttentionHeads {
  void* data = nullptr;
  int64_t row_elems = 0;
  int64_t sequence_rows = 0;
  int32_t head_elems = 0;
  int32_t element = kAttentionF32;
  int32_t vector = 0;  // heads of rows are whole 16-byte pieces, 16-byte aligned
};

/// Turns by the positions of rows.
struct AttentionRope {
  const float* table = nullptr;  // [P, rot]: rot / 2 cosines, then as many sines
  int32_t rot = 0;               // 0: rows stay as they are
  int32_t vector = 0;            // 16-byte aligned, and rot / 2 a multiple of 4
};

/// A walk is the queries of one key head of one sequence in the order t · group + h, h the head
/// within the group: rows of one matrix, which the tiles of queries are cut from.
struct AttentionParams {
  AttentionHeads q;  // forward: as given, else turned
  AttentionHeads k;  // turned, vector
  AttentionHeads v;  // vector
  AttentionHeads o;
  AttentionHeads d_o;  // vector
  AttentionHeads d_q;
  AttentionHeads d_k;
  AttentionHeads d_v;
  AttentionRope rope;
  const int32_t* documents = nullptr;         // [B · T], or null
  float* lse = nullptr;                       // [heads, B · T], out of the forward pass, or null
  const float* sinks = nullptr;               // [heads], or null
  const struct AttentionRow* walk = nullptr;  // [B, kv_heads, T · group], backward
  int64_t M = 0;                              // B · T
  int32_t rows = 0;                           // T
  int32_t past = 0;                           // keys before row 0
  int32_t kv_heads = 0;
  int32_t group = 0;
  int32_t head_dim = 0;
  int32_t pieces = 0;  // 16-byte pieces of a head of vectors, the last one perhaps with zeros
  int32_t window = 0;  // 0: none
  int32_t panels = 0;  // tiles of a walk, or of the keys
  float factor = 1;    // scale · log2 e, or scale / softcap
  float cap = 0;       // softcap · log2 e; 0: none
  float cap_inverse = 0;
  float scale = 1;
};

/// What the backward pass needs to know of a row of a walk.
struct AttentionRow {
  float lse;      // in units of log2
  float delta;    // D = Σ o · d_o
  int32_t first;  // it sees keys [first, last]
  int32_t last;
};

/// delta and what else a walk has, a warp a row.
struct AttentionRowsParams {
  AttentionHeads o;
  AttentionHeads d_o;
  const int32_t* documents = nullptr;
  const float* lse = nullptr;  // [heads, B · T]
  AttentionRow* walk = nullptr;
  int64_t M = 0;
  int32_t rows = 0;
  int32_t kv_heads = 0;
  int32_t group = 0;
  int32_t head_dim = 0;
  int32_t window = 0;
};
constexpr uint32_t kAttentionRowsThreads = 256;

/// Heads to be copied to where a kernel reads or keeps them.
struct AttentionPlaceJob {
  AttentionHeads src;
  AttentionHeads dst;     // its head_elems from head_dim on are zeros where they are `filled`
  int64_t dst_first = 0;  // row of a sequence in dst that row 0 goes to
  int64_t tasks = 0;      // rows of all sequences · heads · pieces
  int32_t rows = 0;       // of a sequence
  int32_t heads = 0;
  int32_t pieces = 0;  // of a head, 16 bytes of dst
  int32_t turned = 0;
};
constexpr int kAttentionPlaceJobs = 4;
struct AttentionPlaceParams {
  AttentionPlaceJob jobs[kAttentionPlaceJobs];  // of blockIdx.y
  AttentionRope rope;
  const int32_t* documents = nullptr;  // [B · rows], or null
  int32_t past = 0;
  int32_t head_dim = 0;
};
constexpr uint32_t kAttentionPlaceThreads = 256;

/// Finds the first entry of documents that is neither its own row nor the entry before it.
struct AttentionDocumentsParams {
  const int32_t* documents = nullptr;
  int64_t* first_bad = nullptr;  // [1], lowered to entry · 2^32 + what it holds
  int64_t M = 0;
  int32_t rows = 0;
};
constexpr uint32_t kAttentionDocumentsThreads = 256;

/// How a kernel cuts attention. A warp has 16 · mi rows of the tile that a block owns; the tiles
/// that it walks over have 8 · ni rows.
template <int kWarps_, int kMi_, int kNi_, int kStages_>
struct AttentionTile {
  static constexpr int kWarps = kWarps_;
  static constexpr int kMi = kMi_;
  static constexpr int kNi = kNi_;
  static constexpr int kStages = kStages_;  // of what is walked over
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kWarpRows = 16 * kMi;
  static constexpr int kOwnRows = kWarps * kWarpRows;
  static constexpr int kWalkedRows = 8 * kNi;
};

/// Shared memory of a block: kOwn matrices of the tile that it owns, two of the tiles that it walks
/// over, and kRows rows of a walk.
template <typename Tile, int kRowBytes, int kOwn, int kRows>
struct AttentionShared {
  alignas(128) unsigned char own[kOwn * Tile::kOwnRows * kRowBytes];
  unsigned char walked[2 * Tile::kStages * Tile::kWalkedRows * kRowBytes];
  AttentionRow rows[kRows];
};
template <typename Tile, int kRowBytes>
using AttentionForwardShared = AttentionShared<Tile, kRowBytes, 1, Tile::kOwnRows>;
template <typename Tile, int kRowBytes>
using AttentionQueriesShared = AttentionShared<Tile, kRowBytes, 2, Tile::kOwnRows>;
template <typename Tile, int kRowBytes>
using AttentionKeysShared = AttentionShared<Tile, kRowBytes, 2, Tile::kStages * Tile::kWalkedRows>;

/// Beyond it dk and dv come from blocks of their own (blockIdx.y 0 and 1).
constexpr int kAttentionWidestTogether = 128;

// clang-format off

/// X(dtype, Heads, bytes, dim, tile of the forward pass, of dq, of dk and dv): the kernels
/// attention_<dtype>_<dim>_kernel, attention_dq_... and attention_dkv_..., for heads of up to dim
/// columns. The tiles are arguments of AttentionTile. All fit 99 KB, what a block has on 8.6 and
/// 8.9.
#define LOWRANK_ATTENTION_KERNELS(X)                                               \
  X(bf16, BF16Heads, 2, 64, (4, 2, 8, 2), (4, 2, 4, 2), (4, 1, 8, 2))              \
  X(bf16, BF16Heads, 2, 128, (4, 2, 4, 2), (4, 2, 2, 2), (4, 1, 4, 2))             \
  X(bf16, BF16Heads, 2, 256, (4, 1, 4, 2), (4, 1, 2, 2), (4, 1, 2, 2))             \
  X(f16, F16Heads, 2, 64, (4, 2, 8, 2), (4, 2, 4, 2), (4, 1, 8, 2))                \
  X(f16, F16Heads, 2, 128, (4, 2, 4, 2), (4, 2, 2, 2), (4, 1, 4, 2))               \
  X(f16, F16Heads, 2, 256, (4, 1, 4, 2), (4, 1, 2, 2), (4, 1, 2, 2))               \
  X(f32, F32Heads, 4, 64, (4, 1, 4, 2), (4, 1, 4, 2), (4, 1, 4, 2))                \
  X(f32, F32Heads, 4, 128, (4, 1, 4, 2), (2, 1, 4, 2), (2, 1, 2, 2))               \
  X(f32, F32Heads, 4, 256, (2, 1, 2, 2), (2, 1, 2, 1), (2, 1, 1, 2))
#define LOWRANK_ATTENTION_TILE(...) AttentionTile<__VA_ARGS__>

// clang-format on

}  // namespace lowrank::gpu
