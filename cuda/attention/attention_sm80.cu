/// Attention forward, in tiles with a running maximum (FlashAttention-2, arXiv:2307.08691).
/// AttentionOp (native/core/ops/attention_ops.h) has the formula.
///
/// Operands   q as given, turned on its way to shared memory · k turned already, and v, both of
///            whole 16-byte pieces (attention_place_sm80.cu) · o [M, heads · D] · lse [heads, M]
///            f32
/// Block      a tile of the walk of a key head (params/attention.h): the heads of a group share
///            their keys, in a step behind a cache too. A warp has 16 or 32 of its rows, and their
///            sums of o in registers. Tiles of keys begin at multiples of their size. Those that no
///            row of the block sees (causal, window, documents) are not loaded, those that no row
///            of a warp sees are not multiplied
/// Grid       tiles of the walk from the last, which is the longest, x key heads of sequences
/// Shared     AttentionForwardShared: q, two stages of k and v, what each row sees. o is staged
///            over the stages at the end
/// Numerics   scores, softmax and sums in f32; p is rounded to T before its product, not in the
///            sum. o is made relative to the new maximum only where one has grown, which does not
///            change a bit. A tile that is all hidden adds zeros: a row has the same bits in any
///            tile, batch, and step of a cache. Documents begin inside of tiles, so their bits are
///            not those of sequences of their own
/// Sinks      one more term of a row's sum, added at its end in double
/// Needs      heads of 2 to 256 columns, filled up with zeros to 64, 128 or 256
///
/// Budget of a tile of bf16, D = 128: 128 rows by 32 keys, four warps
///   tensor     S and o: 128 mma.m16n8k16 a warp, 6.5 clocks on one of four cores: 832 clocks
///   shared     ldmatrix 128 + 64 wavefronts a warp, copies 128 a block: 896 clocks, at 0.9 of the
///              rate 996
///   issue      a warp: mma 128, ldmatrix 48, 32 scores of 5.5, shuffles 16, copies 48, loop 30:
///              450 slots, at 0.7 643. 128 more where a maximum has grown, which is rare after a
///              row's first tiles
///   ex2        4,096, 16 a clock: 256
///   L2         16 KB for 996 clocks: 16 of 30 bytes a clock
/// At 8,192 tokens, 32 heads and 8 key heads on an H100: 2,048 blocks in 264 places, the longest
/// first, and 263,168 tiles: 1.35 ms (1.12 ms of them are the tensor cores' own). Each block reads
/// and turns q, and stages and stores o, in 3,000 clocks: 0.03 ms.
#include "cuda/attention/attention_tiles.cuh"
#include "native/host_device/attention_sink.h"

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
          for (int j = 0; j < 2; ++j) {
            float& weight = s[mi][ni][2 * part + j];
            weight = Exp2(weight - now);
            added += weight;
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
      const bool stores = p.lse != nullptr && t == 0;
      if ((p.sinks == nullptr && !stores) || r >= tile.end) continue;
      const int64_t m = static_cast<int64_t>(tile.sequence) * p.rows + r / p.group;
      const int64_t head = static_cast<int64_t>(tile.head) * p.group + r % p.group;
      double lse = static_cast<double>(softmax.most[mi][part]) * 0.6931471805599453 +
                   LogOf(static_cast<double>(sum));
      if (p.sinks != nullptr) {
        const double alone = lse;
        lse = SumWithSink(alone, static_cast<double>(p.sinks[head]));
        inverse[part] = static_cast<float>(ExpOf(alone - lse) / static_cast<double>(sum));
      }
      if (stores) p.lse[head * p.M + m] = static_cast<float>(lse);
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
