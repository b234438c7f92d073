/// Attention forward: AttentionOp (native/core/ops/attention_ops.h) has the formula.
#include "cuda/attention/attention_tiles.cuh"
#include "native/host_device/map_function.h"

namespace lowrank::gpu {
namespace {

// Below every score: with it as the largest so far, what is hidden (-infinity) counts for 0.
constexpr float kNoScore = -3.0e38f;

/// The largest exponent and the sum so far of a lane's rows g and g + 8 of each 16. The sum is of
/// the lane's own columns.
template <int kMi>
struct OnlineSoftmax {
  float most[kMi][2];
  float sum[kMi][2];

  __device__ __forceinline__ void Init() {
#pragma unroll
    for (int mi = 0; mi < kMi; ++mi) {
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        most[mi][part] = kNoScore;
        sum[mi][part] = 0.0f;
      }
    }
  }

  /// Exponents to weights, in place; what `o` holds is made relative to the new maximum. A tile
  /// that is all hidden changes nothing.
  template <int kNi, int kN>
  __device__ __forceinline__ void Weigh(float (&s)[kMi][kNi][4], float (&o)[kMi][kN][4]) {
    float factor[kMi][2];
    bool grown = false;
#pragma unroll
    for (int mi = 0; mi < kMi; ++mi) {
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        const float before = most[mi][part];
        float now = before;
#pragma unroll
        for (int ni = 0; ni < kNi; ++ni) {
          now = fmaxf(now, fmaxf(s[mi][ni][2 * part], s[mi][ni][2 * part + 1]));
        }
        now = fmaxf(now, __shfl_xor_sync(kLanes, now, 1));
        now = fmaxf(now, __shfl_xor_sync(kLanes, now, 2));
        float added = 0.0f;
#pragma unroll
        for (int ni = 0; ni < kNi; ++ni) {
#pragma unroll
          for (int q = 2 * part; q < 2 * part + 2; ++q) {
            s[mi][ni][q] = Exp2(s[mi][ni][q] - now);
            added += s[mi][ni][q];
          }
        }
        factor[mi][part] = Exp2(before - now);
        grown = grown || now != before;
        sum[mi][part] = fmaf(sum[mi][part], factor[mi][part], added);
        most[mi][part] = now;
      }
    }
    if (__any_sync(kLanes, grown) == 0) return;
#pragma unroll
    for (int mi = 0; mi < kMi; ++mi) {
#pragma unroll
      for (int n = 0; n < kN; ++n) {
#pragma unroll
        for (int q = 0; q < 4; ++q) o[mi][n][q] *= factor[mi][q / 2];
      }
    }
  }
};

/// What a block computes: a tile of the walk of a key head of a sequence. The longest come first.
struct WalkTile {
  int sequence;
  int head;  // of keys
  int r0;
  int end;  // of the walk
};
LOWRANK_DEVICE WalkTile WalkTileOf(const AttentionParams& p, int own_rows) {
  const uint32_t heads = gridDim.x / static_cast<uint32_t>(p.panels);
  const int panel = p.panels - 1 - static_cast<int>(blockIdx.x / heads);
  const int head = static_cast<int>(blockIdx.x % heads);
  return {head / p.kv_heads, head % p.kv_heads, panel * own_rows, p.rows * p.group};
}

/// Queries, turned and rounded to T, and what each of their rows sees.
template <typename Heads, typename Tile>
LOWRANK_DEVICE void LoadQueries(const AttentionParams& p, const WalkTile& tile, unsigned char* s_q,
                                AttentionRow* s_rows) {
  using T = typename Heads::Type;
  constexpr int kElems = Group<T>::kElems;
  constexpr int kPieces = Heads::kRowBytes / 16;
  const int64_t m0 = static_cast<int64_t>(tile.sequence) * p.rows;
#pragma unroll 1
  for (int row = static_cast<int>(threadIdx.x); row < Tile::kOwnRows; row += Tile::kThreads) {
    AttentionRow sees = {0.0f, 0.0f, 0, -1};
    if (tile.r0 + row < tile.end) {
      const int t = (tile.r0 + row) / p.group;
      sees.first = SightOf(p.documents, m0 + t, p.past + t, p.window).first;
      sees.last = p.past + t;
    }
    s_rows[row] = sees;
  }
  const int64_t first = FirstElement(p.q, tile.sequence, tile.head * p.group);
#pragma unroll 1
  for (int at = static_cast<int>(threadIdx.x); at < Tile::kOwnRows * kPieces;
       at += Tile::kThreads) {
    const int row = at / kPieces;
    const int col = at % kPieces * kElems;
    const int r = tile.r0 + row;
    float value[kElems] = {};
    if (r < tile.end && col < p.head_dim) {
      const int t = r / p.group;
      const int64_t elem = first + t * p.q.row_elems + (r - t * p.group) * p.q.head_elems;
      const int begin = SightOf(p.documents, m0 + t, p.past + t, 0).begin;
      LoadTurned(GlobalRow<T>{p.q, elem, p.head_dim}, TurnOf(p.rope, p.past + t - begin), 1.0f, col,
                 value);
    }
    *reinterpret_cast<uint4*>(s_q + Heads::Offset(row, at % kPieces)) = Pack(T(), value);
  }
}

template <typename Heads, typename Tile>
LOWRANK_DEVICE void AttentionBody(const AttentionParams& p) {
  using T = typename Heads::Type;
  using Shared = AttentionForwardShared<Tile, Heads::kRowBytes>;
  constexpr int kDim = Heads::kDim;
  constexpr int kElems = Group<T>::kElems;
  constexpr int kKeys = Tile::kWalkedRows;
  constexpr int kTileBytes = kKeys * Heads::kRowBytes;
  static_assert(Tile::kWarps * 16 * kDim * 4 <= static_cast<int>(sizeof(Shared::walked)));
  Shared& s = DynamicShared<Shared>();
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int g = lane / 4;
  const int t = lane % 4;
  const WalkTile tile = WalkTileOf(p, Tile::kOwnRows);
  const unsigned char* g_k = FirstRow<Heads>(p.k, tile.sequence, tile.head);
  const unsigned char* g_v = FirstRow<Heads>(p.v, tile.sequence, tile.head);

  LoadQueries<Heads, Tile>(p, tile, s.own, s.rows);
  __syncthreads();
  const int count = min(Tile::kOwnRows, tile.end - tile.r0);
  const int key_end = s.rows[count - 1].last + 1;
  const int tiles = (key_end + kKeys - 1) / kKeys;
  const int first_tile = s.rows[0].first / kKeys;
  const int w0 = warp * Tile::kWarpRows;
  const int last_row = min(count, w0 + Tile::kWarpRows) - 1;

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
  OnlineSoftmax<Tile::kMi> softmax;
  softmax.Init();
  float o[Tile::kMi][kDim / 8][4];
  Clear(o);
  static_assert(Tile::kStages == 2);
  load(first_tile);
#pragma unroll 1
  for (int i = first_tile; i < tiles; ++i) {
    CpAsyncWait<0>();
    __syncthreads();  // the tile is whole, and every warp has left the one before
    load(i + 1);
    const int k0 = i * kKeys;
    // Of the warp's rows the first and the last see least.
    if (last_row < w0 || k0 > s.rows[last_row].last || k0 + kKeys <= s.rows[w0].first) continue;
    const unsigned char* s_k = s.walked + i % Tile::kStages * 2 * kTileBytes;
    SlotRead(s_k, static_cast<uint32_t>(i));
    float w[Tile::kMi][Tile::kNi][4];
    Heads::Scores(w, s.own + w0 * Heads::kRowBytes, s_k);
    map.Apply(w);
    if (k0 < s.rows[last_row].first || k0 + kKeys > s.rows[w0].last + 1) {
#pragma unroll
      for (int mi = 0; mi < Tile::kMi; ++mi) {
#pragma unroll
        for (int part = 0; part < 2; ++part) {
          const AttentionRow& row = s.rows[w0 + mi * 16 + g + 8 * part];
          const int first = row.first - k0 - 2 * t;
          const int last = row.last - k0 - 2 * t;
#pragma unroll
          for (int ni = 0; ni < Tile::kNi; ++ni) {
#pragma unroll
            for (int j = 0; j < 2; ++j) {
              const int key = ni * 8 + j;
              if (key < first || key > last) w[mi][ni][2 * part + j] = __int_as_float(0xff800000);
            }
          }
        }
      }
    }
    softmax.Weigh(w, o);
    Heads::Accumulate(o, w, s_k + kTileBytes);
  }
  __syncthreads();  // the stages are free
  if (last_row < w0) return;

#pragma unroll
  for (int mi = 0; mi < Tile::kMi; ++mi) {
    float inverse[2];
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      float sum = softmax.sum[mi][part];
      sum += __shfl_xor_sync(kLanes, sum, 1);
      sum += __shfl_xor_sync(kLanes, sum, 2);
      inverse[part] = 1.0f / sum;
      const int r = tile.r0 + w0 + mi * 16 + g + 8 * part;
      if (p.lse == nullptr || t != 0 || r >= tile.end) continue;
      const int64_t m = static_cast<int64_t>(tile.sequence) * p.rows + r / p.group;
      const int64_t head = static_cast<int64_t>(tile.head) * p.group + r % p.group;
      p.lse[head * p.M + m] =
          static_cast<float>(static_cast<double>(softmax.most[mi][part]) * 0.6931471805599453 +
                             LogOf(static_cast<double>(sum)));
    }
    const int64_t first = FirstElement(p.o, tile.sequence, tile.head * p.group);
    StoreStaged<kDim, kElems>(o[mi], inverse[0], inverse[1], s.walked + warp * 16 * kDim * 4,
                              p.head_dim, [&](int row, int col, const StagedRows<kDim>& source) {
                                const int r = tile.r0 + w0 + mi * 16 + row;
                                if (r >= tile.end) return;
                                float value[kElems];
                                source.Piece(col, value);
                                const int64_t elem = first + r / p.group * p.o.row_elems +
                                                     r % p.group * p.o.head_elems;
                                StorePiece<T>(p.o, elem, col, p.head_dim, value);
                              });
  }
}

}  // namespace

#define LOWRANK_ATTENTION_KERNEL(dtype, Heads, bytes, dim, forward, queries, keys) \
  using Tile_##dtype##_##dim = LOWRANK_ATTENTION_TILE forward;                     \
  LOWRANK_KERNEL(attention_##dtype##_##dim##_kernel, AttentionParams,              \
                 Tile_##dtype##_##dim::kThreads, 2) {                              \
    AttentionBody<Heads<dim>, Tile_##dtype##_##dim>(p);                            \
  }
LOWRANK_ATTENTION_KERNELS(LOWRANK_ATTENTION_KERNEL)

}  // namespace lowrank::gpu
