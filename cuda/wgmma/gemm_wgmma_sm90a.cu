/// Products of large M with the base weight on Hopper (TMA, mbarrier, wgmma), in both directions,
/// with the LoRA term in the same accumulators; r = 0: without.
///
///   y  = x · dequant(w)ᵀ + bias + scaling · (h · lora_bᵀ + lora_bias)
///   dx = dy · dequant(w) + gate ⊙ (scaling · dh · lora_a) (+ dx)
///
/// Operands     x [M, K] T · w codes as QuantView, or dense · h [M, r] f32 · lora_b [N, r] any ·
///              bias, lora_bias [1, N] any · y [M, N] T. An input gradient is the same product: y
///              is dx, x dy, w wᵀ [K, N], h dh and lora_b lora_aᵀ; N and K below are the product's.
///              Its panels are columns of w, turned as they are decoded (panel_fill.cuh)
/// Launches     prepare: the first panel of w in T, h and lora_b as bf16 parts, the summed biases,
///              lora_b turned, the bits of the gate, zeros in the counters of h. Then one launch a
///              panel of at most ~2,048 rows of w: it multiplies panel p while three spare warps of
///              each block decode panel p + 1 into the other buffer. Where h is not given, they
///              compute it first, in the launch of the first panel (lora_row_shrink.cuh), with the
///              bits of its rows, and the copy of h's slab, which comes last of a tile, waits for
///              its row tile. What time is left they spend on the factors' gradients
///              (lora_row_grad.cuh). A gated slab is multiplied by mma.sync into sums of its own,
///              eight columns at a time, and what is kept of them is added
/// Grid         prepare (any). Products: min(SMs, tiles) blocks in clusters of 2 that share a
///              column tile; each walks its tiles in a fixed order
/// Block        384 threads: warp 0 copies, warps 1..3 compute h and gradients and decode the next
///              panel, two warpgroups multiply, 64 rows each
/// Registers    384 · 168 at the launch, then 256 · 184 + 128 · 136, the same sum: 128 of the 184
///              are accumulators, the 136 a gradient's 32 sums, a chunk of x and the next, its
///              factor's parts; at 192 and 120 they spill
/// Shared       kStages · (kTileM + kTileN) · 64 · 2 bytes + 8 · 16 · 72 · 2 + 1,024 + 3,088 +
///              barriers: 4 · 48 KB + 23 KB = 215 KB (128 x 256), 6 · 32 KB + 23 KB (128 x 128)
/// Numerics     w rounded once to T; products exact, sums in f32 in the order of k; h · lora_bᵀ in
///              the same accumulators (a gated one: added to them) from bf16 parts of the f32
///              values (params/lora_pairs.h; what is left out is 2^-24 of a product at most); what
///              dx holds is added in f32; one rounding to T. Same bits from run to run, and for a
///              row in any batch
/// Needs        sm_90a, x, h and panel rows 16-byte aligned (the plan copies what is not)
///
/// Budget of a 128 x 256 tile, for each 64 of K (H100: 2,048 multiply-adds/clk/SM)
///   wgmma      2 warpgroups · 4 · m64n256k16 = 8 · 128 clk = 1,024 clk
///   shared     read (2 KB of x + 8 KB of w) a wgmma = 80 B/clk; filled 48 KB = 48 B/clk; 128 is
///              the limit, so the copies must not come in bursts: four stages smooth them
///   L2         48 KB a block would be 48 B/clk/SM, beyond what the L2 gives (about 30 B/clk/SM).
///              The pair shares w: each block fetches half of the rows of w and multicasts them, so
///              it is 16 + 16 KB = 32 B/clk at full rate, 26 B/clk at the 80 % of peak (798 of
///              990 TFLOP/s) that the power limit leaves: multicast is what makes the goal
///              reachable, and a larger cluster would buy 8 KB more at the price of a longer chain
///   issue      8 wgmma, 2 waits, 2 copies: nothing. Decode: 5 issue slots a weight; a panel of
///              2,048 x 4,096 over 132 SMs is 64 k weights an SM = 10 k warp instructions, in the
///              shadow of at least one tile (65 k clk) in which 4 x 65 k slots are free
///   epilogue   64 KB: 512 clk of stmatrix, 512 clk of 16-byte loads, both without bank conflicts,
///              stores of whole 128-byte lines; the copies of the next tile run meanwhile. 2 % of a
///              tile of K = 4,096
///
/// Why panels in pairs of launches, not tile types in one persistent kernel: kernel boundaries
/// replace flags, spinning and a proxy fence between blocks, and cost one launch latency (about
/// 1 us, overlapped by programmatic launch) a panel. Exposed is the first panel only: 4.7 MB of
/// codes read, 16.8 MB written to L2, about 4 us; the others hide. 4096 x 4096, NF4, r = 0, in us
/// (goal), by whole waves of tiles of 44.4 us at 798 TFLOP/s and 1.4 for their ends, a launch a
/// panel (docs/gpu-design.md has the terms):
///   M = 2,048  2 · 45.8 + 4 + 2 = 98 (92)          M = 4,096  4 · 45.8 + 4 + 2 = 189 (180)
///   M = 8,192  8 · 45.8 + 4 + 2 = 373 (357)        512 pairs of tiles on 66 pairs of SMs: 97 %
/// M = 1,024 belongs to a kernel that decodes in registers: one wave of tiles leaves nothing to
/// hide the only panel behind.
///
/// r = 16 adds to K = 4,096 three steps of 16 (3 · 16) with a bf16 lora_b, six (6 · 16) with f32:
/// 1.2 % and 2.3 %, 4.0 and 8.1 us at M = 8,192. Its h takes mma.sync from the tensor cores, 0.8 k
/// clk of each multiprocessor for sixteen rows (f32: 2.5 k), four times: 2 (6) us. Everything else
/// of h lies in the shadow: sixteen rows are done in 25 to 46 k of the 65 k clk of a tile, and the
/// walk wants that many rows a tile and block: 350 + 4 + 2 = 356 with a bf16 adapter, 364 with f32
/// (goal 362). A launch of its own before this one reads x once more, 67 MB = 22 us. Dropout adds
/// integer instructions of warps that have the time (goal 369). What it fills to the brim is the
/// L2: 26 + 4 (f32: 6) of about 30 B/clk/SM during the launch of the first panel; of f32 that may
/// be 9 us more.
///
/// dx costs what y does (its slab 4.0 or 8.1 us), dh in it what h does. Turning a panel takes the
/// same five issue slots a weight and whole sectors both ways. Of M = 8,192, K = N = 4,096, r = 16,
/// beside what the tiles take:
///   gradients  200 k of the 260 k clk of the second launch (lora_row_grad.cuh); the tensor cores
///              give 2 · 5.5 us. One reduce after them, 3 us
///   bits       8.4 M Philox calls of 70 instructions, beside the products of the first launch:
///              92 k clk of each warp, with dh and the decode 200 k of 260 k (f32 lora_b: 290 k)
///   gated slab 768 mma.sync a tile (48 of K) at about 6.5 clk of four tensor cores, 1.25 k clk,
///              where wgmma takes 0.77 k; 1.6 k wavefronts of ldmatrix; 64 rows a warpgroup of bits
///              and adds, 1.3 k issue slots. They overlap: 2.0 k clk a tile, 1.2 k more than a slab
///              without a gate, 6.5 us
/// 350 + 4 + 2 (dh) + 11 + 3 = 370 us with a bf16 adapter for the whole backward (goal 371), 377
/// with dropout (378): without margin. In the second launch the L2 gives 26 + 5 B/clk/SM. mma.sync
/// and passes of their own took 516.
#include "cuda/wgmma/lora_row_grad.cuh"
#include "cuda/wgmma/lora_row_shrink.cuh"
#include "cuda/wgmma/panel_fill.cuh"
#include "cuda/wgmma/wgmma_tile.cuh"

namespace lowrank::gpu {
namespace {

constexpr uint32_t kTileM = kWgmmaTileM;
constexpr uint32_t kTileK = kWgmmaTileK;
static_assert(kTileK * 2 == kStageRow && kWgmmaCluster == kClusterBlocks);
constexpr uint32_t kFillWarps = 3;
static_assert(kFillWarps == kShrinkWarps);

template <uint32_t kTileN_, uint32_t kStages_>
struct WgmmaTile {
  static constexpr uint32_t kTileN = kTileN_;
  static constexpr uint32_t kStages = kStages_;
};
using Wide = WgmmaTile<256, 4>;
using Narrow = WgmmaTile<128, 6>;

template <typename Tile>
struct Storage {
  alignas(1024) unsigned char x[Tile::kStages][kTileM * kStageRow];
  alignas(1024) unsigned char w[Tile::kStages][Tile::kTileN * kStageRow];
  alignas(16) uint16_t out[kConsumerWarps][16 * kOutStride];
  alignas(16) float codebook[kPanelCodebookBytes / 4];
  RowShrinkStorage shrink;
  StageRing<Tile::kStages> ring;
};
static_assert(sizeof(Storage<Wide>) == WgmmaSharedBytes(256, 4));
static_assert(sizeof(Storage<Narrow>) == WgmmaSharedBytes(128, 6));
static_assert(WgmmaSharedBytes(256, 4) <= 232448 && WgmmaSharedBytes(128, 6) <= 232448);

struct PrepareStorage {
  alignas(16) float codebook[kPanelCodebookBytes / 4];
};

/// T of the activations and of the panel of w, and its products.
struct TileBF16 : PanelBF16 {
  using Tag = LoraBF16Tag;
  template <size_t kSums>
  LOWRANK_DEVICE void Multiply(float (&acc)[kSums], uint64_t a, uint64_t b, uint32_t accumulate) {
    WgmmaBF16(acc, a, b, accumulate);
  }
};
struct TileF16 : PanelF16 {
  using Tag = LoraF16Tag;
  template <size_t kSums>
  LOWRANK_DEVICE void Multiply(float (&acc)[kSums], uint64_t a, uint64_t b, uint32_t accumulate) {
    WgmmaF16(acc, a, b, accumulate);
  }
};

/// A cluster's tiles are pairs of row tiles; columns go fastest, so that the blocks that run at one
/// time share few rows of x while the panel stays in L2.
struct TileWalk {
  uint32_t first;
  uint32_t step;
  uint32_t count;
};
LOWRANK_DEVICE TileWalk WalkTiles(const GemmWgmmaParams& p) {
  return {blockIdx.x / kClusterBlocks, gridDim.x / kClusterBlocks, p.tiles_m * p.tiles_n};
}

/// The one thread that copies.
template <typename Tile>
LOWRANK_DEVICE void ProduceStages(const GemmWgmmaParams& p, Storage<Tile>& s, uint32_t rank) {
  const TileWalk walk = WalkTiles(p);
  RingPosition<Tile::kStages> at;
  for (uint32_t tile = walk.first; tile < walk.count; tile += walk.step) {
    const int32_t m = static_cast<int32_t>((tile / p.tiles_n * kClusterBlocks + rank) * kTileM);
    const int32_t n = static_cast<int32_t>(tile % p.tiles_n * Tile::kTileN);
    for (uint32_t block = 0; block < p.k_blocks + p.slab_blocks; ++block) {
      const bool slab = block >= p.k_blocks;
      const int32_t k = static_cast<int32_t>((slab ? block - p.k_blocks : block) * kTileK);
      if (block == p.k_blocks && p.shrink.x != nullptr) WaitForShrunkTile(p.shrink, m);
      FillStage(s, at, rank, slab ? p.h_map : p.x_map, slab ? p.lora_b_map : p.w_map, k, m, n);
    }
  }
}

/// MultiplyStage of the slab, whose last stage may have fewer steps: each costs what one of K does.
template <typename Tile>
LOWRANK_DEVICE void MultiplySlabStage(float (&acc)[Tile::kTileN / 2], const Storage<Tile>& s,
                                      uint32_t stage, uint32_t group, uint32_t steps,
                                      uint32_t accumulate) {
  const uint64_t h = WgmmaDescriptor(s.x[stage] + group * 64 * kStageRow);
  const uint64_t lora_b = WgmmaDescriptor(s.w[stage]);
#pragma unroll 1
  for (uint32_t step = 0; step < kTileK / 16 && step < steps; ++step) {
    WgmmaFence();  // in the loop: the accumulators come from the turn before
    TileBF16::Multiply(acc, h + step * 2, lora_b + step * 2, step == 0 ? accumulate : 1);
  }
  WgmmaCommit();
}

/// A stage of a gated slab, by mma.sync: eight columns at a time into sums of their own, since what
/// the gate drops must not reach the tile's, whatever it is. The sums of mma and wgmma lie alike in
/// a warp's registers. Plain loads of the bits: they may be of this launch.
template <typename Tile>
LOWRANK_DEVICE void AddGatedSlabStage(const GemmWgmmaParams& p, const Storage<Tile>& s,
                                      uint32_t stage, uint32_t row0, uint32_t steps, int64_t m0,
                                      int64_t n0, float (&acc)[Tile::kTileN / 2]) {
  const uint32_t lane = threadIdx.x % 32;
  const int64_t m = m0 + lane / 4;
  const uint32_t* g_kept = p.kept + n0 / 32;
  uint32_t h[kTileK / 16][4];
#pragma unroll
  for (uint32_t step = 0; step < kTileK / 16; ++step) {
    if (step < steps) LoadSwizzled(s.x[stage], row0, step, h[step]);
  }
#pragma unroll
  for (uint32_t quad = 0; quad < Tile::kTileN / 32; ++quad) {  // a word of bits
    const bool inside = n0 + quad * 32 < p.panel_n;
    const uint32_t upper = inside && m < p.M ? g_kept[m * p.kept_words + quad] : 0;
    const uint32_t lower = inside && m + 8 < p.M ? g_kept[(m + 8) * p.kept_words + quad] : 0;
#pragma unroll
    for (uint32_t pair = 0; pair < 2; ++pair) {
      float part[2][4] = {{0, 0, 0, 0}, {0, 0, 0, 0}};
#pragma unroll
      for (uint32_t step = 0; step < kTileK / 16; ++step) {
        if (step >= steps) continue;
        uint32_t lora_b[4];
        LoadSwizzled(s.w[stage], quad * 32 + pair * 16, step, lora_b);
        MmaBF16(part[0], h[step], lora_b[0], lora_b[2]);
        MmaBF16(part[1], h[step], lora_b[1], lora_b[3]);
      }
#pragma unroll
      for (uint32_t half = 0; half < 2; ++half) {
        const uint32_t shift = pair * 16 + half * 8 + lane % 4 * 2;
        float* sums = acc + (quad * 4 + pair * 2 + half) * 4;
        if ((upper >> shift & 1) != 0) sums[0] += part[half][0];
        if ((upper >> shift & 2) != 0) sums[1] += part[half][1];
        if ((lower >> shift & 1) != 0) sums[2] += part[half][2];
        if ((lower >> shift & 2) != 0) sums[3] += part[half][3];
      }
    }
  }
}

/// What y holds in columns n and n + 1 of row m; zero outside.
template <typename T>
LOWRANK_DEVICE void LoadOutPair(const GemmWgmmaParams& p, int64_t m, int64_t n, float& low,
                                float& high) {
  low = 0;
  high = 0;
  if (m >= p.M || n >= p.panel_n) return;
  const uint16_t* g_y = static_cast<const uint16_t*>(p.y) + m * p.N + p.first_n + n;
  low = T::Unpack(g_y[0]);
  if (n + 1 < p.panel_n) high = T::Unpack(g_y[1]);
}

/// The warp's 16 rows of the tile, by way of shared memory.
template <typename T, typename Tile>
LOWRANK_DEVICE void StoreSums(const GemmWgmmaParams& p, uint16_t* s_out,
                              const float (&acc)[Tile::kTileN / 2], int64_t m0, int64_t n0) {
  const int64_t m = m0 + threadIdx.x % 32 / 4;
  const OutColumns out = {static_cast<uint16_t*>(p.y) + p.first_n, p.N, p.M, p.panel_n,
                          p.y_vector != 0};
  StoreTile<Tile::kTileN>(out, s_out, m0, n0, [&](uint32_t octet, int64_t n) {
    float low = 0;
    float high = 0;
    if (p.addend != nullptr && n < p.panel_n) {
      // Of the launch before, so by plain loads. Kept, or its address takes a register of the
      // products.
      const float* g_addend = Keep(p.addend) + p.first_n + n;
      low = g_addend[0];
      if (n + 1 < p.panel_n) high = g_addend[1];
    }
    uint32_t packed[2];
#pragma unroll
    for (uint32_t below = 0; below < 2; ++below) {
      float first = acc[octet * 4 + 2 * below] + low;
      float second = acc[octet * 4 + 2 * below + 1] + high;
      if (p.accumulate != 0) {
        float first_held, second_held;
        LoadOutPair<T>(p, m + 8 * below, n, first_held, second_held);
        first += first_held;
        second += second_held;
      }
      packed[below] = T::Pack(first, second);
    }
    return make_uint2(packed[0], packed[1]);
  });
}

/// A warpgroup that multiplies: rows 64 · group .. of each tile of the block.
template <typename T, typename Tile>
LOWRANK_DEVICE void ConsumeStages(const GemmWgmmaParams& p, Storage<Tile>& s, uint32_t rank,
                                  uint32_t group) {
  const uint32_t warp = threadIdx.x / 32 % 4;  // of the warpgroup
  const TileWalk walk = WalkTiles(p);
  RingPosition<Tile::kStages> at;
  for (uint32_t tile = walk.first; tile < walk.count; tile += walk.step) {
    const int64_t m0 = static_cast<int64_t>(tile / p.tiles_n * kClusterBlocks + rank) * kTileM +
                       group * 64 + warp * 16;
    const int64_t n0 = static_cast<int64_t>(tile % p.tiles_n) * Tile::kTileN;
    float acc[Tile::kTileN / 2];
    uint32_t accumulate = 0;
    bool in_flight = false;
    uint32_t previous = 0;
    const auto after_issue = [&] {
      PassStage(s.ring, at, previous, in_flight);
      in_flight = true;
      accumulate = 1;
    };
    const auto finish = [&] {
      WgmmaWait<0>();
      ReleaseStage(s.ring, previous);
      in_flight = false;
    };
    for (uint32_t block = 0; block < p.k_blocks; ++block) {
      BarrierWait(&s.ring.full[at.stage], at.parity);
      MultiplyStage(s, at.stage, group, [&](uint64_t x, uint64_t w, uint32_t step) {
        T::Multiply(acc, x, w, step == 0 ? accumulate : 1);
      });
      after_issue();
    }
    const auto slab_steps = [&](uint32_t block) { return p.slab_steps - block * (kTileK / 16); };
    if (p.kept == nullptr) {
      for (uint32_t block = 0; block < p.slab_blocks; ++block) {
        BarrierWait(&s.ring.full[at.stage], at.parity);
        MultiplySlabStage(acc, s, at.stage, group, slab_steps(block), accumulate);
        after_issue();
      }
      finish();
    } else {
      finish();
      for (uint32_t block = 0; block < p.slab_blocks; ++block) {
        BarrierWait(&s.ring.full[at.stage], at.parity);
        AddGatedSlabStage(p, s, at.stage, group * 64 + warp * 16, slab_steps(block), m0, n0, acc);
        __syncwarp();  // every lane has read the stage
        ReleaseStage(s.ring, at.stage);
        at.Advance();
      }
    }
    StoreSums<T, Tile>(p, s.out[group * 4 + warp], acc, m0, n0);
  }
}

template <typename T, typename Tile>
LOWRANK_DEVICE void Multiply(const GemmWgmmaParams& p) {
  Storage<Tile>& s = DynamicShared<Storage<Tile>>();
  const uint32_t warp = threadIdx.x / 32;
  const uint32_t rank = ClusterRank();
  if (threadIdx.x == 0) {
    InitRing(s.ring);
    FenceBarrierInit();
    PrefetchTensorMap(&p.x_map);
    PrefetchTensorMap(&p.w_map);
  }
  LoadCodebook(p.next_panel, s.codebook);
  ClusterSync();  // barriers of both blocks stand, and the codebook
  GridDependencyWait();
  if (warp < 4) {
    RegistersDownTo<136>();
    if (warp == 0) {
      if (threadIdx.x == 0) ProduceStages(p, s, rank);
    } else {
      if (p.shrink.x != nullptr) ShrinkRows<typename T::Tag>(p.shrink, s.shrink, warp - 1);
      const uint32_t unit = blockIdx.x * kFillWarps + warp - 1;
      const uint32_t units = gridDim.x * kFillWarps;
      FillPanel<T>(p.next_panel, s.codebook, unit, units);
      FillKept(p.next_kept, 0, p.next_kept.rows, unit, units);
      uint32_t place = unit;
#pragma unroll 1
      for (uint32_t i = 0; i < kRowGrads; ++i) {
        place = SumRowGrads<typename T::Tag>(p.grads[i], place, units);
      }
    }
  } else {
    RegistersUpTo<184>();
    ConsumeStages<T>(p, s, rank, warp / 4 - 1);
  }
  // A block that left would take its barriers from under the peer's arrivals.
  ClusterSync();
}

template <typename T>
LOWRANK_DEVICE void Prepare(const GemmWgmmaPrepareParams& p) {
  float* s_codebook = DynamicShared<PrepareStorage>().codebook;
  LoadCodebook(p.panel, s_codebook);
  __syncthreads();
  constexpr uint32_t kWarps = kWgmmaPrepareThreads / 32;
  const uint32_t unit = blockIdx.x * kWarps + threadIdx.x / 32;
  const uint32_t units = gridDim.x * kWarps;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kWgmmaPrepareThreads + threadIdx.x;
  const int64_t count = static_cast<int64_t>(gridDim.x) * kWgmmaPrepareThreads;
  FillPanel<T>(p.panel, s_codebook, unit, units);
  FillCopy<T>(p.x, unit, units);
#pragma unroll 1
  for (int i = 0; i < 3; ++i) {
    FillSplit(i == 0 ? p.factor : i == 1 ? p.h : p.lora_b, index, count);
  }
  FillAddend(p.addend, index, count);
  FillKept(p.kept, 0, p.kept.rows, unit, units);
  for (int64_t i = index; i < p.counter_count; i += count) p.counters[i] = 0;
}

}  // namespace
}  // namespace lowrank::gpu

using namespace lowrank::gpu;

// X(dtype, T)
#define LOWRANK_TYPES(X) \
  X(bf16, TileBF16)      \
  X(f16, TileF16)

#define LOWRANK_KERNELS(dtype, T)                                                                \
  LOWRANK_KERNEL(gemm_wgmma_prepare_##dtype##_kernel, GemmWgmmaPrepareParams,                    \
                 kWgmmaPrepareThreads, 4) {                                                      \
    Prepare<T>(p);                                                                               \
  }                                                                                              \
  LOWRANK_EARLY_KERNEL(gemm_wgmma_128x256_##dtype##_kernel, GemmWgmmaParams, kWgmmaThreads, 1) { \
    Multiply<T, Wide>(p);                                                                        \
  }                                                                                              \
  LOWRANK_EARLY_KERNEL(gemm_wgmma_128x128_##dtype##_kernel, GemmWgmmaParams, kWgmmaThreads, 1) { \
    Multiply<T, Narrow>(p);                                                                      \
  }
LOWRANK_TYPES(LOWRANK_KERNELS)
#undef LOWRANK_KERNELS
#undef LOWRANK_TYPES
