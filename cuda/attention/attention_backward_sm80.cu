/// Attention backward, with the scores computed again. AttentionBackwardOp
/// (native/core/ops/attention_ops.h) has the formulas.
///
///   attention_dkv   dv += pᵀ · d_o, dk += dsᵀ · q: a block owns a tile of keys and walks over the
///                   queries of all heads of the group that see it, in the order of the walk
///   attention_dq    dq += ds · k: a block owns a tile of the walk and walks over its keys
///
/// Operands   q and k turned, v and d_o, all T of whole 16-byte pieces (attention_place_sm80.cu) ·
///            of each row of the walk lse, D and what it sees (attention_rows) · dq, dk, dv T
/// Grid       as forward; tiles of keys from the first, which most rows see. Heads of more than 128
///            columns have blocks of their own for dk and for dv (blockIdx.y)
/// Shared     AttentionQueriesShared, AttentionKeysShared: two matrices of the own tile, each
///            warp's rows together, and stages of two of what is walked over. Sums are staged over
///            the warp's own rows at the end, and turned back from there
/// Numerics   f32; p and ds are rounded to T before their products. Every sum is of one warp, in
///            ascending order: no atomics, the same bits in each run and in any batch
///
/// Budget of bf16, D = 128, four warps
///   dk and dv, 64 keys by 32 rows of the walk
///     tensor   128 mma a warp: 832 clocks
///     shared   ldmatrix 80 of 4 wavefronts a warp, copies 132 a block: 1,412, at 0.9 1,569
///     issue    a warp: mma 128, ldmatrix 80, 16 scores of 9, copies 112, loop 40: 504, at 0.7 720
///   dq, 128 rows by 16 keys
///     tensor   96 mma a warp: 624
///     shared   ldmatrix 56 of 4 wavefronts a warp, copies 64 a block: 960, at 0.9 1,067
/// At 8,192 tokens, 32 heads and 8 key heads on an H100 528,384 and 526,336 of them: 4.3 and 2.9
/// ms. Shared memory decides: a warp of 16 keys reads each fragment of q and d_o for 16 rows alone,
/// since the sums of dk and dv for 32 are 256 registers.
#include "cuda/attention/attention_tiles.cuh"

namespace lowrank::gpu {
namespace {

/// What a soft cap does to ds.
struct NoCap {
  __device__ __forceinline__ float Slope(float ds, float) const { return ds; }
};
struct SoftCap {
  float inverse;
  __device__ __forceinline__ float Slope(float ds, float x) const {
    const float u = x * inverse;
    return ds * (1.0f - u * u);
  }
};
/// Calls body with one of them: the choice is made once for many scores.
template <typename Body>
LOWRANK_DEVICE void WithCap(const AttentionParams& p, const Body& body) {
  if (p.cap == 0.0f) {
    body(NoCap());
  } else {
    body(SoftCap{p.cap_inverse});
  }
}

/// p and ds of one score.
struct Weights {
  float p;
  float ds;
};
/// @param x the exponent, and dp the product of d_o and v
template <typename Cap>
LOWRANK_DEVICE Weights WeightsOf(const Cap& cap, const AttentionRow& row, bool hidden, float x,
                                 float dp) {
  const float weight = hidden ? 0.0f : Exp2(x - row.lse);
  return {weight, cap.Slope(weight * (dp - row.delta), x)};
}

/// Stores 16 rows of gradients, turned back by the positions of their rows: elem_of(row) is where
/// in `heads` a row is, and its row t of the sequence, or t < 0 for none.
struct RowPlace {
  int64_t elem;
  int t;
};
template <typename Heads, bool kTurned, typename PlaceOf>
LOWRANK_DEVICE void StoreGradients(const AttentionParams& p, const AttentionHeads& heads,
                                   const float (&sums)[Heads::kDim / 8][4], float factor,
                                   int64_t m0, unsigned char* s_rows, const PlaceOf& place_of) {
  using T = typename Heads::Type;
  constexpr int kElems = Group<T>::kElems;
  StoreStaged<Heads::kDim, kElems>(
      sums, factor, factor, s_rows, p.head_dim,
      [&](int row, int col, const StagedRows<Heads::kDim>& source) {
        const RowPlace place = place_of(row);
        if (place.t < 0) return;
        float value[kElems];
        if constexpr (kTurned) {
          const int begin = SightOf(p.documents, m0 + place.t, place.t, 0).begin;
          LoadTurned(source, TurnOf(p.rope, place.t - begin), -1.0f, col, value);
        } else {
          source.Piece(col, value);
        }
        StorePiece<T>(heads, place.elem, col, p.head_dim, value);
      });
}

/// Rows [r0, r0 + kRows) of a walk, zeros from `end` on.
template <int kThreads, int kRows>
LOWRANK_DEVICE void CopyWalk(const AttentionRow* g_walk, int r0, int end, AttentionRow* s_rows) {
  for (int row = static_cast<int>(threadIdx.x); row < kRows; row += kThreads) {
    const bool inside = r0 + row < end;
    const AttentionRow* g_from = g_walk;
    if (inside) g_from += r0 + row;
    CpAsync16(s_rows + row, g_from, inside ? 16 : 0);
  }
}

/// Of the group whose first query head is `head`.
LOWRANK_DEVICE const AttentionRow* WalkOf(const AttentionParams& p, int sequence, int head) {
  const int64_t heads = static_cast<int64_t>(sequence) * p.kv_heads * p.group + head;
  return p.walk + heads * p.rows;
}

/// dq of a tile of queries, over the keys that it sees.
template <typename Heads, typename Tile>
LOWRANK_DEVICE void QueriesBody(const AttentionParams& p) {
  using Shared = AttentionQueriesShared<Tile, Heads::kRowBytes>;
  constexpr int kDim = Heads::kDim;
  constexpr int kKeys = Tile::kWalkedRows;
  constexpr int kTileBytes = kKeys * Heads::kRowBytes;
  constexpr int kWarpBytes = 2 * Tile::kWarpRows * Heads::kRowBytes;
  static_assert(16 * kDim * 4 <= kWarpBytes);
  Shared& s = DynamicShared<Shared>();
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int g = lane / 4;
  const int t = lane % 4;
  const uint32_t pairs = gridDim.x / static_cast<uint32_t>(p.panels);
  const int panel = p.panels - 1 - static_cast<int>(blockIdx.x / pairs);
  const int sequence = static_cast<int>(blockIdx.x % pairs) / p.kv_heads;
  const int head = static_cast<int>(blockIdx.x % pairs) % p.kv_heads;
  const int r0 = panel * Tile::kOwnRows;
  const int walk_end = p.rows * p.group;
  const unsigned char* g_k = FirstRow<Heads>(p.k, sequence, head);
  const unsigned char* g_v = FirstRow<Heads>(p.v, sequence, head);

  // Of each warp its queries, then their d_o.
  CopyRows<Heads, Tile::kThreads, Tile::kOwnRows, Tile::kWarpRows, true>(
      p.q, FirstRow<Heads>(p.q, sequence, head * p.group), r0, walk_end, p.group, p.pieces, s.own,
      kWarpBytes);
  CopyRows<Heads, Tile::kThreads, Tile::kOwnRows, Tile::kWarpRows, true>(
      p.d_o, FirstRow<Heads>(p.d_o, sequence, head * p.group), r0, walk_end, p.group, p.pieces,
      s.own + kWarpBytes / 2, kWarpBytes);
  CopyWalk<Tile::kThreads, Tile::kOwnRows>(WalkOf(p, sequence, head * p.group), r0, walk_end,
                                           s.rows);
  CpAsyncCommit();
  CpAsyncWait<0>();
  __syncthreads();
  const int count = min(Tile::kOwnRows, walk_end - r0);
  const int key_end = s.rows[count - 1].last + 1;
  const int tiles = (key_end + kKeys - 1) / kKeys;
  const int first_tile = s.rows[0].first / kKeys;
  const int w0 = warp * Tile::kWarpRows;
  const int last_row = min(count, w0 + Tile::kWarpRows) - 1;
  unsigned char* s_q = s.own + warp * kWarpBytes;
  const unsigned char* s_d_o = s_q + kWarpBytes / 2;

  auto load = [&](int i) {
    if (i >= tiles) return;
    unsigned char* s_k = s.walked + i % Tile::kStages * 2 * kTileBytes;
    SlotFilled(s_k, static_cast<uint32_t>(i));
    CopyRows<Heads, Tile::kThreads, kKeys, kKeys, false>(p.k, g_k, i * kKeys, key_end, 1, p.pieces,
                                                         s_k, 0);
    CopyRows<Heads, Tile::kThreads, kKeys, kKeys, false>(p.v, g_v, i * kKeys, key_end, 1, p.pieces,
                                                         s_k + kTileBytes, 0);
    CpAsyncCommit();
  };

  const ScoreMap map = {p.factor, p.cap};
  float d_q[Tile::kMi][kDim / 8][4];
  Clear(d_q);
  auto multiply = [&](int i) {
    const int k0 = i * kKeys;
    if (last_row < w0 || k0 > s.rows[last_row].last || k0 + kKeys <= s.rows[w0].first) return;
    const unsigned char* s_k = s.walked + i % Tile::kStages * 2 * kTileBytes;
    SlotRead(s_k, static_cast<uint32_t>(i));
    float w[Tile::kMi][Tile::kNi][4];
    float dp[Tile::kMi][Tile::kNi][4];
    Heads::Scores(w, s_q, s_k);
    Heads::Scores(dp, s_d_o, s_k + kTileBytes);
    map.Apply(w);
    const bool hides = k0 < s.rows[last_row].first || k0 + kKeys > s.rows[w0].last + 1;
    WithCap(p, [&](auto cap) {
#pragma unroll
      for (int mi = 0; mi < Tile::kMi; ++mi) {
#pragma unroll
        for (int part = 0; part < 2; ++part) {
          const AttentionRow row = s.rows[w0 + mi * 16 + g + 8 * part];
#pragma unroll
          for (int ni = 0; ni < Tile::kNi; ++ni) {
#pragma unroll
            for (int j = 0; j < 2; ++j) {
              const int key = k0 + ni * 8 + 2 * t + j;
              const bool hidden = hides && (key < row.first || key > row.last);
              float& score = w[mi][ni][2 * part + j];
              score = WeightsOf(cap, row, hidden, score, dp[mi][ni][2 * part + j]).ds;
            }
          }
        }
      }
    });
    Heads::Accumulate(d_q, w, s_k);
  };
  load(first_tile);
#pragma unroll 1
  for (int i = first_tile; i < tiles; ++i) {
    CpAsyncWait<0>();
    __syncthreads();  // the tile is whole, and of two stages every warp has left the other
    if constexpr (Tile::kStages == 2) load(i + 1);
    multiply(i);
    if constexpr (Tile::kStages == 1) {
      __syncthreads();
      load(i + 1);
    }
  }
  if (last_row < w0) return;

  const int64_t first = FirstElement(p.d_q, sequence, head * p.group);
#pragma unroll
  for (int mi = 0; mi < Tile::kMi; ++mi) {
    StoreGradients<Heads, true>(
        p, p.d_q, d_q[mi], p.scale, static_cast<int64_t>(sequence) * p.rows, s_q, [&](int row) {
          const int r = r0 + w0 + mi * 16 + row;
          if (r >= walk_end) return RowPlace{0, -1};
          const int64_t elem =
              first + r / p.group * p.d_q.row_elems + r % p.group * p.d_q.head_elems;
          return RowPlace{elem, r / p.group};
        });
  }
}

/// One past the last row that sees a key before key_end.
LOWRANK_DEVICE int SeersEnd(const AttentionParams& p, int sequence, int key_end) {
  int end = p.rows;
  if (p.window != 0) end = min(end, key_end - 1 + p.window);
  if (p.documents == nullptr) return end;
  // The first row from key_end on whose document begins there or later.
  const int32_t* g_begins = p.documents + static_cast<int64_t>(sequence) * p.rows;
  int low = key_end;
  while (low < end) {
    const int middle = low + (end - low) / 2;
    if (g_begins[middle] >= key_end) {
      end = middle;
    } else {
      low = middle + 1;
    }
  }
  return end;
}

/// dk, dv or both of a tile of keys, over the queries of all heads of the group that see it.
template <typename Heads, typename Tile, bool kDk, bool kDv>
LOWRANK_DEVICE void KeysBody(const AttentionParams& p) {
  using Shared = AttentionKeysShared<Tile, Heads::kRowBytes>;
  constexpr int kDim = Heads::kDim;
  constexpr int kRows = Tile::kWalkedRows;
  constexpr int kTileBytes = kRows * Heads::kRowBytes;
  constexpr int kWarpBytes = 2 * Tile::kWarpRows * Heads::kRowBytes;
  static_assert(16 * kDim * 4 <= kWarpBytes);
  Shared& s = DynamicShared<Shared>();
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int g = lane / 4;
  const int t = lane % 4;
  const uint32_t pairs = gridDim.x / static_cast<uint32_t>(p.panels);
  const int panel = static_cast<int>(blockIdx.x / pairs);
  const int sequence = static_cast<int>(blockIdx.x % pairs) / p.kv_heads;
  const int head = static_cast<int>(blockIdx.x % pairs) % p.kv_heads;
  const int k0 = panel * Tile::kOwnRows;
  const int walk_end = p.rows * p.group;

  // Of each warp its keys, then their values.
  CopyRows<Heads, Tile::kThreads, Tile::kOwnRows, Tile::kWarpRows, false>(
      p.k, FirstRow<Heads>(p.k, sequence, head), k0, p.rows, 1, p.pieces, s.own, kWarpBytes);
  if constexpr (kDk) {
    CopyRows<Heads, Tile::kThreads, Tile::kOwnRows, Tile::kWarpRows, false>(
        p.v, FirstRow<Heads>(p.v, sequence, head), k0, p.rows, 1, p.pieces, s.own + kWarpBytes / 2,
        kWarpBytes);
  }
  const int seers_end = SeersEnd(p, sequence, min(k0 + Tile::kOwnRows, p.rows));
  const int first_tile = k0 * p.group / kRows;
  const int tiles = (seers_end * p.group + kRows - 1) / kRows;
  const int w0 = k0 + warp * Tile::kWarpRows;
  const int last_key = min(p.rows, w0 + Tile::kWarpRows) - 1;
  unsigned char* s_k = s.own + warp * kWarpBytes;
  const unsigned char* s_v = s_k + kWarpBytes / 2;

  auto load = [&](int i) {
    if (i >= tiles) return;
    // Computed again for each tile: their registers are needed between.
    const int b = static_cast<int>(Keep(static_cast<uint32_t>(sequence)));
    const int first_head = static_cast<int>(Keep(static_cast<uint32_t>(head))) * p.group;
    const unsigned char* g_q = FirstRow<Heads>(p.q, b, first_head);
    const unsigned char* g_d_o = FirstRow<Heads>(p.d_o, b, first_head);
    unsigned char* s_q = s.walked + i % Tile::kStages * 2 * kTileBytes;
    SlotFilled(s_q, static_cast<uint32_t>(i));
    CopyRows<Heads, Tile::kThreads, kRows, kRows, true>(p.q, g_q, i * kRows, walk_end, p.group,
                                                        p.pieces, s_q, 0);
    CopyRows<Heads, Tile::kThreads, kRows, kRows, true>(p.d_o, g_d_o, i * kRows, walk_end, p.group,
                                                        p.pieces, s_q + kTileBytes, 0);
    CopyWalk<Tile::kThreads, kRows>(WalkOf(p, b, first_head), i * kRows, walk_end,
                                    s.rows + i % Tile::kStages * kRows);
    CpAsyncCommit();
  };

  const ScoreMap map = {p.factor, p.cap};
  float d_k[Tile::kMi][kDk ? kDim / 8 : 1][4];
  float d_v[Tile::kMi][kDv ? kDim / 8 : 1][4];
  Clear(d_k);
  Clear(d_v);
  auto multiply = [&](int i) {
    const AttentionRow* s_rows = s.rows + i % Tile::kStages * kRows;
    const int last_row = min(kRows, walk_end - i * kRows) - 1;
    if (s_rows[last_row].last < w0 || s_rows[0].first > last_key) return;
    const bool hides = s_rows[0].last < w0 + Tile::kWarpRows - 1 || s_rows[last_row].first > w0;
    const unsigned char* s_q = s.walked + i % Tile::kStages * 2 * kTileBytes;
    SlotRead(s_q, static_cast<uint32_t>(i));
    float w[Tile::kMi][Tile::kNi][4];
    float dp[Tile::kMi][Tile::kNi][4];
    Heads::Scores(w, s_k, s_q);
    map.Apply(w);
    if constexpr (kDk) {
      Heads::Scores(dp, s_v, s_q + kTileBytes);
    } else {
      Clear(dp);
    }
    WithCap(p, [&](auto cap) {
#pragma unroll
      for (int ni = 0; ni < Tile::kNi; ++ni) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const AttentionRow row = s_rows[ni * 8 + 2 * t + j];
#pragma unroll
          for (int mi = 0; mi < Tile::kMi; ++mi) {
#pragma unroll
            for (int part = 0; part < 2; ++part) {
              const int key = w0 + mi * 16 + g + 8 * part;
              const bool hidden = hides && (key < row.first || key > row.last);
              float& score = w[mi][ni][2 * part + j];
              float& ds = dp[mi][ni][2 * part + j];
              const Weights weights = WeightsOf(cap, row, hidden, score, ds);
              score = weights.p;
              ds = weights.ds;
            }
          }
        }
      }
    });
    if constexpr (kDv) Heads::Accumulate(d_v, w, s_q + kTileBytes);
    if constexpr (kDk) Heads::Accumulate(d_k, dp, s_q);
  };
  static_assert(Tile::kStages == 2);
  load(first_tile);
#pragma unroll 1
  for (int i = first_tile; i < tiles; ++i) {
    CpAsyncWait<0>();
    __syncthreads();  // the tile is whole, and every warp has left the other
    load(i + 1);
    multiply(i);
  }
  if (last_key < w0) return;

  const int64_t m0 = static_cast<int64_t>(sequence) * p.rows;
#pragma unroll
  for (int mi = 0; mi < Tile::kMi; ++mi) {
    const auto place_in = [&](const AttentionHeads& heads) {
      return [&, first = FirstElement(heads, sequence, head)](int row) {
        const int key = w0 + mi * 16 + row;
        return RowPlace{first + key * heads.row_elems, key <= last_key ? key : -1};
      };
    };
    if constexpr (kDv) {
      StoreGradients<Heads, false>(p, p.d_v, d_v[mi], 1.0f, m0, s_k, place_in(p.d_v));
    }
    if constexpr (kDk) {
      StoreGradients<Heads, true>(p, p.d_k, d_k[mi], p.scale, m0, s_k, place_in(p.d_k));
    }
  }
}

/// Sums of dk and of dv for heads of 256 columns do not fit the registers of a thread together:
/// blocks of their own compute them.
template <typename Heads, typename Tile>
LOWRANK_DEVICE void KeysBodies(const AttentionParams& p) {
  if constexpr (Heads::kDim <= kAttentionWidestTogether) {
    KeysBody<Heads, Tile, true, true>(p);
  } else if (blockIdx.y == 0) {
    KeysBody<Heads, Tile, true, false>(p);
  } else {
    KeysBody<Heads, Tile, false, true>(p);
  }
}

}  // namespace

#define LOWRANK_ATTENTION_BACKWARD_KERNELS(dtype, Heads, bytes, dim, forward, queries, keys) \
  using QueryTile_##dtype##_##dim = LOWRANK_ATTENTION_TILE queries;                          \
  LOWRANK_KERNEL(attention_dq_##dtype##_##dim##_kernel, AttentionParams,                     \
                 QueryTile_##dtype##_##dim::kThreads, 2) {                                   \
    QueriesBody<Heads<dim>, QueryTile_##dtype##_##dim>(p);                                   \
  }                                                                                          \
  using KeyTile_##dtype##_##dim = LOWRANK_ATTENTION_TILE keys;                               \
  LOWRANK_KERNEL(attention_dkv_##dtype##_##dim##_kernel, AttentionParams,                    \
                 KeyTile_##dtype##_##dim::kThreads, 2) {                                     \
    KeysBodies<Heads<dim>, KeyTile_##dtype##_##dim>(p);                                      \
  }
LOWRANK_ATTENTION_KERNELS(LOWRANK_ATTENTION_BACKWARD_KERNELS)

}  // namespace lowrank::gpu
