/// The contraction behind the adapter's shrink and its gradients: a large operand, read once, times
/// a thin one.
///
///   out(o, j) = scale · Σ_q (gate ⊙ x)(o, q) · factor(q, j),   j < r
///
///   kTransposed = false   x lies [o, q]: h = x · lora_aᵀ (o = m, q = k), dh = dy · lora_b (q = n)
///   kTransposed = true    x lies [q, o]: d_lora_aᵀ = xᵀ · dh (o = k, q = m), d_lora_b = dyᵀ · h
///
/// Operands     x [rows, cols] T · factor f32, bf16 or f16 by strides · out f32 by strides
/// Block        256 threads own 64 values of o, kRankTile of j and one split of q, and walk over q
///              in tiles of 128. Warp w owns q in [16 w, 16 w + 16) of every tile, for all of o and
///              j: so each element of the factor is loaded and split once a block, from L1 and L2
///              into registers, and x is read from shared memory once. The warps' sums meet in
///              shared memory at the end, added in the order of the warps.
/// Grid         blockIdx.x = o block · rank tiles + rank tile, blockIdx.y = split
/// Shared       LoraContractShared<T>: kStages tiles of x (16-byte chunks, XOR-swizzled so that
///              cp.async, ldmatrix plain and transposed, and the f32 loads are free of conflicts)
///              and 2 KB for the column sums; the warps' sums reuse the tiles
/// Numerics     bf16 parts (lora_parts.cuh): products exact, accumulation in f32. x of 16 bits: in
///              the tensor cores' sums alone. x of f32: 16 products from zero, their sum rounded to
///              nearest as it is added; scale and 1 / (1 - p) are applied once to the sum
/// Gate         on the tile in shared memory, each thread on the chunks that it copied itself: no
///              barrier more, and one Philox call for four elements, the fewest there can be
/// Rounded      where it is asked for, x of f32 is stored in 16 bits too, by the same threads as
///              the gate has, by the blocks of the first rank tile: a product that reads it
///              follows
/// Needs        nothing: rows that are not 16-byte aligned are loaded element by element
///
/// Budget, bf16 x, f32 factor, r = 16, a tile of 64 x 128 = 16 KB. What memory allows it: 1,660
/// clocks on A100 (1,555 GB/s, 108 multiprocessors, 1.41 GHz: 9.9 bytes a clock), 1,220 on H100
/// (3.0 TB/s, 132, 1.70 GHz: 13.4).
///   tensor     8 warps · 4 (o) · 2 (j) · 3 parts = 192 mma.m16n8k16, 2 clocks each: 384 clocks
///   shared     16 KB in, 16 KB out by ldmatrix: 256 wavefronts
///   issue      a warp: 4 ldmatrix, 24 mma, 48 for the finiteness test, 8 loads and about 60 for
///              the split of the factor, 30 for the copies: under 180; 8 warps over 4 schedulers:
///              360 slots
///   L2         8 KB of factor beside 16 KB of x
///   counters   every access of the loop costs its ideal, but for factors of 16 bits: a request of
///              theirs uses half of each sector, and the next request, an L1 hit, the other half
///   f32 x      32 KB a tile, 3,320 and 2,440 clocks of memory: 512 mma are 1,024 clocks; issue
///              about 400 a warp, 32 of them the additions of sums from zero: 800 slots
/// so memory decides, with two blocks (96 KB in flight) on a multiprocessor against the 16 KB that
/// 700 ns of latency ask for. A second rank tile is a neighbour in the grid and reads the same x
/// out of L2 (which has some 3 times the rate of memory), so x comes from memory once for any r;
/// from r = 64 on the tensor part, 384 clocks for each 16 ranks, is what takes the time (A100).
///   dropout    Philox4x32-10: 20 wide multiplications and 20 three-input logic operations for four
///              elements; 8,192 elements are 2,048 calls, 41 k of each, over 64 (A100: 32 wide)
///              lanes a clock about 1,280 + 640 clocks on two pipes: hidden on A100, 5 % over
///              memory on H100
#pragma once

#include "cuda/common/element.cuh"
#include "cuda/gpu.cuh"
#include "cuda/lora/lora_gate.cuh"
#include "cuda/lora/lora_parts.cuh"
#include "cuda/ptx.cuh"
#include "native/host_device/params/lora_shrink.h"

#define LOWRANK_MEMBER __device__ __forceinline__

namespace lowrank::gpu {

/// The widest rank tile: 64 accumulators a thread stay in registers beside everything else (128 do
/// not), and the sums of 8 warps, 64 · 32 floats each, fit in the space of four 16-bit tiles.
constexpr int kLoraMaxRankTile = 32;

template <typename T>
struct LoraContractShared {
  static constexpr int kTileBytes = kLoraTileO * kLoraTileQ * T::kBytes;
  static constexpr int kStages = LoraStages(T::kBytes);

  unsigned char tiles[kStages * kTileBytes];
  float sums[kLoraWarps][kLoraTileO];
};

/// Where the 16-byte chunks of a tile are. Used by all code that accesses a tile.
template <typename T, bool kTransposed>
struct LoraTile {
  static constexpr int kRows = kTransposed ? kLoraTileQ : kLoraTileO;
  static constexpr int kCols = kTransposed ? kLoraTileO : kLoraTileQ;
  static constexpr int kChunkElems = 16 / T::kBytes;
  static constexpr int kRowChunks = kCols / kChunkElems;
  static constexpr int kChunksPerThread = kRows * kRowChunks / kLoraThreads;
  static constexpr int kRowsPerStep = kLoraThreads / kRowChunks;

  /// 16-bit tiles are read by ldmatrix, eight rows of one chunk: the row's low bits select the bank
  /// group. f32 tiles are read as four rows of a chunk pair, the rows adjacent (8-byte loads) or
  /// every other one (transposed): both sets of four must differ.
  static LOWRANK_MEMBER int ChunkBytes(int row, int chunk) {
    const int swizzle = T::kBytes == 2 ? row & 7 : ((row ^ (row >> 2)) & 3) << 1;
    return (row * kRowChunks + (chunk ^ swizzle)) * 16;
  }
};

/// One block of the contraction. kRounds: p.rounded may be present.
template <typename T, int kRankTile, bool kTransposed, bool kRounds = false>
class LoraContract {
 public:
  using Shared = LoraContractShared<T>;
  using Tile = LoraTile<T, kTransposed>;

  static_assert(kRankTile % 16 == 0 && kRankTile <= kLoraMaxRankTile, "ranks are padded to 16");
  static_assert(Tile::kRows % Tile::kRowsPerStep == 0, "whole rows a step");
  static_assert(sizeof(Shared) == LoraSharedBytes(T::kBytes), "what the plan asks for");

  /// `o_tile` numbers the rank tiles of each o block.
  static LOWRANK_MEMBER void Run(const LoraContractParams& p, uint32_t o_tile, uint32_t split) {
    LoraContract block(p, o_tile, split);
    if (kRounds && p.rounded != nullptr) GridDependencyWait();  // the walk stores
    block.Walk();
    GridDependencyWait();
    block.Meet([&](int fragment, const float4& sum) { block.Store(fragment, sum); });
  }

 protected:
  static constexpr int kStages = Shared::kStages;
  static constexpr int kTilesO = kLoraTileO / 16;
  static constexpr int kTilesJ = kRankTile / 8;
  static constexpr int kParts = T::kParts;
  /// Fragments of x held at a time: as many as leave the accumulators out of local memory.
  static constexpr int kHeldO = kParts > 1 ? 1 : kTransposed ? 2 : 4;

  LOWRANK_MEMBER LoraContract(const LoraContractParams& p, uint32_t o_tile, uint32_t split)
      : p_(p),
        shared_(DynamicShared<Shared>()),
        thread_(static_cast<int>(threadIdx.x)),
        warp_(thread_ / 32),
        g_(thread_ % 32 / 4),
        t_(thread_ % 4),
        o0_(static_cast<int64_t>(o_tile / p.rank_tiles) * kLoraTileO),
        split_(split),
        rank0_(static_cast<int64_t>(o_tile % p.rank_tiles) * kRankTile),
        with_sums_(kTransposed && p.sums != nullptr && rank0_ == 0) {
    const int64_t q_count = kTransposed ? p.rows : p.cols;
    q_begin_ = split_ * p.q_per_split;
    q_end_ = q_begin_ + p.q_per_split < q_count ? q_begin_ + p.q_per_split : q_count;
    const int64_t ranks = p.r - rank0_;
    ranks_ = ranks < kRankTile ? static_cast<int>(ranks) : kRankTile;
    parts_ = PartsOf(p.factor_element);
#pragma unroll
    for (int oi = 0; oi < kTilesO; ++oi) {
#pragma unroll
      for (int ji = 0; ji < kTilesJ; ++ji) {
#pragma unroll
        for (int i = 0; i < 4; ++i) acc_[oi][ji][i] = 0;
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) sums_[oi][i] = 0;
    }
  }

  LOWRANK_MEMBER void Walk() {
    const int tiles = static_cast<int>((q_end_ - q_begin_ + kLoraTileQ - 1) / kLoraTileQ);
#pragma unroll 1
    for (int stage = 0; stage < kStages - 1; ++stage) {
      if (stage < tiles) LoadTile(stage);
      CpAsyncCommit();
    }
    for (int tile = 0; tile < tiles; ++tile) {
      LoadFactor(tile);
      CpAsyncWait<kStages - 2>();
      if (p_.gate.kind != kLoraGateNone) GateTile(tile);
      if constexpr (kRounds) {
        if (p_.rounded != nullptr && rank0_ == 0) RoundTile(tile);
      }
      __syncthreads();  // the tile is whole, and every warp has left the one before
      if (tile + kStages - 1 < tiles) LoadTile(tile + kStages - 1);
      CpAsyncCommit();
      MultiplyTile(tile);
    }
  }

  LOWRANK_MEMBER unsigned char* StageOf(int tile) const {
    return shared_.tiles + tile % kStages * Shared::kTileBytes;
  }
  LOWRANK_MEMBER int64_t Row0(int tile) const {
    return kTransposed ? q_begin_ + static_cast<int64_t>(tile) * kLoraTileQ : o0_;
  }
  LOWRANK_MEMBER int64_t Col0(int tile) const {
    return kTransposed ? o0_ : q_begin_ + static_cast<int64_t>(tile) * kLoraTileQ;
  }
  LOWRANK_MEMBER int64_t RowEnd() const { return kTransposed ? q_end_ : p_.rows; }
  LOWRANK_MEMBER int64_t ColEnd() const { return kTransposed ? p_.cols : q_end_; }

  /// Calls body(offset in the stage, element index in x, elements inside x, at most a chunk's) for
  /// this thread's chunks of a tile. Long bodies are not unrolled.
  template <int kUnroll, typename Body>
  LOWRANK_MEMBER void ForEachChunk(int tile, const Body& body) const {
    const int chunk = thread_ % Tile::kRowChunks;
    const int row = thread_ / Tile::kRowChunks;
    const int64_t col = Col0(tile) + chunk * Tile::kChunkElems;
    const int64_t rows = RowEnd() - Row0(tile);
    const int64_t cols = ColEnd() - col;
    const int inside = cols < Tile::kChunkElems ? static_cast<int>(cols) : Tile::kChunkElems;
    const int64_t index = Row0(tile) * p_.cols + col;
#pragma unroll kUnroll
    for (int step = 0; step < Tile::kChunksPerThread; ++step) {
      const int step_row = row + step * Tile::kRowsPerStep;
      body(Tile::ChunkBytes(step_row, chunk), index + step_row * p_.cols,
           step_row < rows ? inside : 0);
    }
  }

  LOWRANK_MEMBER void LoadTile(int tile) {
    unsigned char* s_tile = StageOf(tile);
    SlotFilled(s_tile, static_cast<uint32_t>(tile));
    const unsigned char* g_x = static_cast<const unsigned char*>(p_.x);
    if (p_.x_aligned != 0) {
      ForEachChunk<Tile::kChunksPerThread>(tile, [&](int offset_bytes, int64_t index, int inside) {
        CpAsync16(s_tile + offset_bytes, inside > 0 ? g_x + index * T::kBytes : g_x,
                  inside > 0 ? 16u : 0u);
      });
      return;
    }
    ForEachChunk<1>(tile, [&](int offset_bytes, int64_t index, int inside) {
      *reinterpret_cast<uint4*>(s_tile + offset_bytes) = LoadChunk(g_x + index * T::kBytes, inside);
    });
  }

  /// Loads 16 bytes element by element; zero from element `inside` on.
  static LOWRANK_MEMBER uint4 LoadChunk(const unsigned char* g_src, int inside) {
    uint32_t words[4];
#pragma unroll
    for (int word = 0; word < 4; ++word) {
      words[word] = 0;
      if constexpr (T::kBytes == 4) {
        if (word < inside) words[word] = reinterpret_cast<const uint32_t*>(g_src)[word];
      } else {
        const uint16_t* g_elems = reinterpret_cast<const uint16_t*>(g_src) + 2 * word;
        if (2 * word < inside) words[word] = g_elems[0];
        if (2 * word + 1 < inside) words[word] |= static_cast<uint32_t>(g_elems[1]) << 16;
      }
    }
    return make_uint4(words[0], words[1], words[2], words[3]);
  }

  /// Zeroes the dropped elements, whatever they held, in the chunks that this thread copied.
  LOWRANK_MEMBER void GateTile(int tile) {
    unsigned char* s_tile = StageOf(tile);
    ForEachChunk<1>(tile, [&](int offset_bytes, int64_t index, int inside) {
      if (inside <= 0) return;
      uint4* s_chunk = reinterpret_cast<uint4*>(s_tile + offset_bytes);
      *s_chunk = KeepOnly<T>(*s_chunk, KeptBits<Tile::kChunkElems>(p_.gate, index, inside));
    });
  }

  /// Stores the chunks that this thread copied as elements of p.rounded.
  LOWRANK_MEMBER void RoundTile(int tile) const {
    if (p_.rounded_element == kLoraBF16) {
      RoundTileTo(ElementBF16(), tile);
    } else {
      RoundTileTo(ElementF16(), tile);
    }
  }
  template <typename Element>
  LOWRANK_MEMBER void RoundTileTo(Element element, int tile) const {
    const unsigned char* s_tile = StageOf(tile);
    uint16_t* g_rounded = static_cast<uint16_t*>(p_.rounded);
    ForEachChunk<1>(tile, [&](int offset_bytes, int64_t index, int inside) {
      if (inside <= 0) return;
      const float4 chunk = *reinterpret_cast<const float4*>(s_tile + offset_bytes);
      const uint32_t bits[4] = {BitsFrom(element, chunk.x), BitsFrom(element, chunk.y),
                                BitsFrom(element, chunk.z), BitsFrom(element, chunk.w)};
      if (p_.x_aligned != 0) {  // rows of whole chunks
        const uint64_t low = bits[0] | bits[1] << 16;
        const uint64_t high = bits[2] | bits[3] << 16;
        *reinterpret_cast<uint64_t*>(g_rounded + index) = low | high << 32;
        return;
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (i < inside) g_rounded[index + i] = static_cast<uint16_t>(bits[i]);
      }
    });
  }

  /// The factor that this thread's fragments need for a tile, as f32: rows q = 2 t, 2 t + 1, 2 t +
  /// 8 and 2 t + 9 of the warp's sixteen, columns j = 8 ji + g. Loaded before the wait for x and
  /// used after it.
  LOWRANK_MEMBER void LoadFactor(int tile) {
    const int64_t q = q_begin_ + static_cast<int64_t>(tile) * kLoraTileQ + warp_ * 16 + 2 * t_;
    if (p_.factor_element != kLoraF32) {
      LoadFactorAs<uint16_t>(q);
    } else {
      LoadFactorAs<uint32_t>(q);
    }
  }

  template <typename Bits>
  LOWRANK_MEMBER void LoadFactorAs(int64_t q) {
    const Bits* g_factor = static_cast<const Bits*>(p_.factor);
#pragma unroll
    for (int ji = 0; ji < kTilesJ; ++ji) {
      const int j = ji * 8 + g_;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int64_t q_pair = q + 8 * half;
        const Bits* g_pair =
            g_factor + q_pair * p_.factor_q_elems + (rank0_ + j) * p_.factor_j_elems;
        uint32_t bits[2] = {0, 0};
        if (p_.factor_paired != 0) {
          if (j < ranks_ && q_pair < q_end_) LoadPair(g_pair, bits);
        } else {
          if (j < ranks_ && q_pair < q_end_) bits[0] = g_pair[0];
          if (j < ranks_ && q_pair + 1 < q_end_) bits[1] = g_pair[p_.factor_q_elems];
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          if constexpr (sizeof(Bits) == 4) {
            factor_[ji][2 * half + i] = __uint_as_float(bits[i]);
          } else {
            factor_[ji][2 * half + i] = BitsToFloat(bits[i], p_.factor_element);
          }
        }
      }
    }
  }
  static LOWRANK_MEMBER void LoadPair(const uint32_t* g_pair, uint32_t (&bits)[2]) {
    const uint2 pair = *reinterpret_cast<const uint2*>(g_pair);
    bits[0] = pair.x;
    bits[1] = pair.y;
  }
  static LOWRANK_MEMBER void LoadPair(const uint16_t* g_pair, uint32_t (&bits)[2]) {
    const uint32_t pair = *reinterpret_cast<const uint32_t*>(g_pair);
    bits[0] = pair & 0xffffu;
    bits[1] = pair >> 16;
  }

  /// The warp's 16 x 16 fragment `oi` of x in mma's A layout, as parts.
  LOWRANK_MEMBER void LoadFragment(const unsigned char* s_tile, int oi,
                                   uint32_t (&a)[kParts][4]) const {
    if constexpr (T::kBytes == 2) {
      const int lane = thread_ % 32;
      uint32_t raw[4];
      if constexpr (kTransposed) {
        const int row = warp_ * 16 + lane / 16 * 8 + lane % 8;
        LdMatrixX4Trans(raw, s_tile + Tile::ChunkBytes(row, oi * 2 + lane / 8 % 2));
      } else {
        const int row = oi * 16 + lane % 16;
        LdMatrixX4(raw, s_tile + Tile::ChunkBytes(row, warp_ * 2 + lane / 16));
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        uint32_t parts[kParts];
        SplitWord(raw[i], parts);
#pragma unroll
        for (int part = 0; part < kParts; ++part) a[part][i] = parts[part];
      }
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int o = oi * 16 + g_ + i % 2 * 8;
        const int q = warp_ * 16 + 2 * t_ + i / 2 * 8;
        float2 pair;
        if constexpr (kTransposed) {
          pair.x = *Element(s_tile, q, o);
          pair.y = *Element(s_tile, q + 1, o);
        } else {
          pair = *reinterpret_cast<const float2*>(Element(s_tile, o, q));
        }
        uint32_t parts[kParts];
        SplitPair(pair.x, pair.y, parts);
#pragma unroll
        for (int part = 0; part < kParts; ++part) a[part][i] = parts[part];
      }
    }
  }
  static LOWRANK_MEMBER const float* Element(const unsigned char* s_tile, int row, int col) {
    return reinterpret_cast<const float*>(s_tile + Tile::ChunkBytes(row, col / 4)) + col % 4;
  }

  LOWRANK_MEMBER void MultiplyTile(int tile) {
    const unsigned char* s_tile = StageOf(tile);
    SlotRead(s_tile, static_cast<uint32_t>(tile));
    uint32_t factor_non_finite = 0;
#pragma unroll
    for (int ji = 0; ji < kTilesJ; ++ji) {
#pragma unroll
      for (int i = 0; i < 4; ++i) factor_non_finite |= NonFinite(factor_[ji][i]);
    }
#pragma unroll
    for (int oi = 0; oi < kTilesO; oi += kHeldO) {
      uint32_t a[kHeldO][kParts][4];
      uint32_t non_finite = factor_non_finite;
#pragma unroll
      for (int held = 0; held < kHeldO; ++held) {
        LoadFragment(s_tile, oi + held, a[held]);
#pragma unroll
        for (int i = 0; i < 4; ++i) non_finite |= NonFinitePair(a[held][0][i]);
      }
      if (__any_sync(0xffffffffu, non_finite != 0 ? 1 : 0) == 0) {
        MultiplyFragments<true>(oi, a);
      } else {
        MultiplyFragments<false>(oi, a);
      }
      if constexpr (kTransposed) {
        if (!with_sums_) continue;
        constexpr uint32_t kOnes = 0x3f803f80u;
#pragma unroll
        for (int held = 0; held < kHeldO; ++held) {
          float sums[4] = {};
          float(&target)[4] = kSumsFromZero<kParts> ? sums : sums_[oi + held];
#pragma unroll
          for (int part = kParts - 1; part >= 0; --part) {
            MmaBF16(target, a[held][part], kOnes, kOnes);
          }
          if constexpr (kSumsFromZero<kParts>) {
#pragma unroll
            for (int i = 0; i < 4; ++i) sums_[oi + held][i] += sums[i];
          }
        }
      }
    }
  }

  template <bool kAllFinite>
  LOWRANK_MEMBER void MultiplyFragments(int oi, const uint32_t (&a)[kHeldO][kParts][4]) {
#pragma unroll
    for (int ji = 0; ji < kTilesJ; ++ji) {
      if (ji * 8 >= ranks_) continue;  // the same for the whole block
      MultiplyParts<kAllFinite>(a, factor_[ji], parts_,
                                [&](int held) -> float(&)[4] { return acc_[oi + held][ji]; });
    }
  }

  /// Adds the warps' sums, in their order. Calls take(fragment, sum) with a lane's four sums of
  /// each fragment; SumOf(fragment) is where the first warp's are.
  template <typename Take>
  LOWRANK_MEMBER void Meet(const Take& take) {
    static_assert(
        kLoraWarps * kTilesO * kTilesJ * 32 * 16 <= static_cast<int>(sizeof(Shared::tiles)),
        "the sums reuse the tiles");
    __syncthreads();  // the tiles are no longer read
#pragma unroll
    for (int oi = 0; oi < kTilesO; ++oi) {
#pragma unroll
      for (int ji = 0; ji < kTilesJ; ++ji) {
        const float(&r_acc)[4] = acc_[oi][ji];
        *SumOf((warp_ * kTilesO + oi) * kTilesJ + ji) =
            make_float4(r_acc[0], r_acc[1], r_acc[2], r_acc[3]);
      }
      if (with_sums_ && t_ == 0) {
        shared_.sums[warp_][oi * 16 + g_] = sums_[oi][0];
        shared_.sums[warp_][oi * 16 + g_ + 8] = sums_[oi][2];
      }
    }
    __syncthreads();
    for (int fragment = warp_; fragment < kTilesO * kTilesJ; fragment += kLoraWarps) {
      float4 sum = *SumOf(fragment);
#pragma unroll
      for (int warp = 1; warp < kLoraWarps; ++warp) {
        const float4 next = *SumOf(warp * kTilesO * kTilesJ + fragment);
        sum.x += next.x;
        sum.y += next.y;
        sum.z += next.z;
        sum.w += next.w;
      }
      take(fragment, sum);
    }
    if (with_sums_ && thread_ < kLoraTileO && o0_ + thread_ < p_.cols) {
      float sum = shared_.sums[0][thread_];
#pragma unroll
      for (int warp = 1; warp < kLoraWarps; ++warp) sum += shared_.sums[warp][thread_];
      p_.sums[split_ * p_.sums_plane_elems + o0_ + thread_] = sum;
    }
  }

  LOWRANK_MEMBER float4* SumOf(int fragment) const {
    return reinterpret_cast<float4*>(shared_.tiles) + fragment * 32 + thread_ % 32;
  }
  LOWRANK_MEMBER int64_t RowOf(int fragment) const { return o0_ + fragment / kTilesJ * 16 + g_; }

  LOWRANK_MEMBER void Store(int fragment, const float4& sum) const {
    const int64_t o = RowOf(fragment);
    const int j = fragment % kTilesJ * 8 + 2 * t_;
    Store(o, j, sum.x, sum.y);
    Store(o + 8, j, sum.z, sum.w);
  }
  LOWRANK_MEMBER void Store(int64_t o, int j, float first, float second) const {
    if (o >= (kTransposed ? p_.cols : p_.rows) || j >= ranks_) return;
    float* g_out =
        p_.out + split_ * p_.out_plane_elems + o * p_.out_o_elems + (rank0_ + j) * p_.out_j_elems;
    if (p_.out_paired != 0) {
      *reinterpret_cast<float2*>(g_out) = make_float2(first * p_.scale, second * p_.scale);
      return;
    }
    g_out[0] = first * p_.scale;
    if (j + 1 < ranks_) g_out[p_.out_j_elems] = second * p_.scale;
  }

  const LoraContractParams& p_;
  Shared& shared_;
  const int thread_;
  const int warp_;
  const int g_;
  const int t_;
  const int64_t o0_;
  const int64_t split_;
  const int64_t rank0_;
  const bool with_sums_;
  int64_t q_begin_;
  int64_t q_end_;
  int ranks_;
  int parts_;
  float factor_[kTilesJ][4];
  float acc_[kTilesO][kTilesJ][4];
  float sums_[kTilesO][4];
};

}  // namespace lowrank::gpu
