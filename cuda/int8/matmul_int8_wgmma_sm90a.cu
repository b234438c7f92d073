/// Products of int8 codes with a rowwise int8 weight (LLM.int8, W8A8) on Hopper with TMA, mbarrier
/// and wgmma of bytes, for many rows; matmul_int8_sm80.cu is for few.
///
///   y = float(Σ q · c) · (sx · sw) + bias + scaling · (h · lora_bᵀ + lora_bias)
///
/// Operands   as matmul_int8_sm80.cu, whose launch row_codes comes before: codes of x [M, K] as
///            signed bytes, sx and Σ q of a row; w [N, K] as unsigned bytes, 128 above its codes,
///            and sw of a row
/// Launches   parts: bf16 parts of h and lora_b (gemm_mma_lora.cuh), rows of 16 elements for each
///            step, where there is an adapter. Then the product
/// Grid       min(SMs, tiles) blocks in clusters of 2 that share a column tile: each fetches one
///            half of it and multicasts that. A cluster walks its tiles in a fixed order: down a
///            group of eight pairs of row tiles, then to the right, so that the 66 clusters of a
///            card read eight panels of x and eight of w at a time: 16 panels for 64 tiles, where
///            a walk along rows has 65
/// Block      384 threads: warp 0 copies, warps 1..3 read scales, sums and biases a tile ahead, two
///            warpgroups multiply, 64 rows each
/// Registers  384 · 168 at the launch, then 256 · 224 + 128 · 56, the same sum: 128 of the 224 are
///            sums, first s32 and then, each in its place, f32
/// Shared     four stages of 48 KB, 18 KB to stage y, two tables of 3 KB, barriers: 217 KB
/// Numerics   The bits of matmul_int8_sm80.cu: the sums are integers and exact, the products with
///            scales, the LoRA term (mma.sync over the same parts in the same order), the bias and
///            the rounding are its operations in its order
/// Needs      sm_90a, K % 32 == 0 and at most 2^17, M and N up to 2^30, w 16-byte aligned
///
/// A slab is 128 codes of K: the bytes, descriptors and clocks of a bf16 stage of 64 elements
/// (gemm_wgmma_sm90a.cu) with twice the products. The zeros that TMA writes beyond M, N and K add
/// nothing.
///
/// Budget of a slab of 128 x 256 (H100: 4,096 multiply-adds of bytes/clk/SM)
///   wgmma      2 warpgroups · 4 · m64n256k32 = 8 · 128 clk = 1,024 clk
///   shared     read 80 B/clk, filled 48 B/clk of 128, as in bf16: four stages smooth that
///   L2         the pair shares w: 16 + 16 KB = 32 B/clk of about 30, but 26 at the 80 % of peak
///              that the power limit leaves to bf16 (taken for bytes too: no card has shown
///              it)
///   issue      8 wgmma, 2 waits, 2 copies: nothing
///   DRAM       8192³: x once, w once for a group of 2,048 rows: 335 MB, 112 of 700 us
///
/// Budget of the end of a tile, while the copies of the next one run
///   scales     128 sums a thread: subtract, convert (a quarter of the rate), two products, the
///              bias: 700 issue slots a warp, two warps a scheduler = 1.4 k clk
///   y          16 bits: 512 clk of stmatrix, 512 of 16-byte loads, 300 issue slots a warp; f32
///              leaves the registers as whole sectors
/// 2.5 k clk of 66 k at K = 8,192, of 33 k at 4,096.
///
/// The LoRA term uses mma.sync, to have the bits of the other kernel: 3 (bf16 factor) to 6 (f32)
/// steps of 32 mma a warp at r = 16, 1.25 to 2.5 k clk a tile. wgmma would take 0.8 to 1.5 k.
///
/// 8192³ in us: 15.5 waves of tiles, so 16: 710 by wgmma at 80 % of peak, 36 the ends of tiles, 67
/// the codes of x, 3 launches and tail: 817, where cuBLAS takes 1,378 in bf16: 1.69 (goal G15:
/// 1.75), missed (docs/gpu-design.md).
#include "cuda/int8/gemm_int8.cuh"
#include "cuda/wgmma/wgmma_tile.cuh"

namespace lowrank::gpu {
namespace {

constexpr uint32_t kTileM = kInt8WgmmaTileM;
constexpr uint32_t kTileP = kInt8WgmmaTileP;
constexpr uint32_t kSlab = kInt8WgmmaSlab;
constexpr uint32_t kStages = kInt8WgmmaStages;
static_assert(kSlab == kStageRow && kInt8WgmmaCluster == kClusterBlocks);
static_assert(kInt8WgmmaWarps == kConsumerWarps && kInt8WgmmaOutCols == kOutCols);
constexpr uint32_t kTableThreads = 96;
constexpr uint32_t kOctets = kTileP / 8;

/// What the end of a tile reads besides the sums.
struct TileTable {
  float w_scale[kTileP];
  float bias[kTileP];
  float x_scale[kTileM];
  uint32_t x_offset[kTileM];  // 128 Σ q: a byte of w is its code and 128
};

struct Storage {
  alignas(1024) unsigned char x[kStages][kTileM * kSlab];
  alignas(1024) unsigned char w[kStages][kTileP * kSlab];
  alignas(16) uint16_t out[kConsumerWarps][16 * kOutStride];
  alignas(16) TileTable tables[2];
  StageRing<kStages> ring;
  uint64_t table_full[2];
  uint64_t table_empty[2];
};
static_assert(sizeof(Storage) == kInt8WgmmaSharedBytes && sizeof(Storage) <= 232448);

/// Calls work(first row, first column) of the block's part for each tile of the cluster.
template <typename Work>
LOWRANK_DEVICE void ForEachTile(const GemmInt8WgmmaParams& p, uint32_t rank, Work work) {
  const uint32_t tiles_m = static_cast<uint32_t>(p.int8.tiles_m);
  const uint32_t tiles_p = static_cast<uint32_t>(p.int8.gemm.tiles_p);
  constexpr uint32_t kGroup = static_cast<uint32_t>(kGemmInt8GroupM);
  for (uint32_t tile = blockIdx.x / kClusterBlocks; tile < tiles_m * tiles_p;
       tile += gridDim.x / kClusterBlocks) {
    const uint32_t group = tile / (kGroup * tiles_p);
    const uint32_t in_group = tile % (kGroup * tiles_p);
    const uint32_t high = min(tiles_m - group * kGroup, kGroup);
    const uint32_t row = (group * kGroup + in_group % high) * kClusterBlocks + rank;
    work(static_cast<int32_t>(row * kTileM), static_cast<int32_t>(in_group / high * kTileP));
  }
}

/// The one thread that issues copies.
LOWRANK_DEVICE void ProduceStages(const GemmInt8WgmmaParams& p, Storage& s, uint32_t rank) {
  RingPosition<kStages> at;
  ForEachTile(p, rank, [&](int32_t m0, int32_t p0) {
    for (uint32_t slab = 0; slab < p.k_slabs + p.lora_slabs; ++slab) {
      const bool lora = slab >= p.k_slabs;
      // 128 codes, or 64 parts
      const int32_t k = static_cast<int32_t>(lora ? (slab - p.k_slabs) * 64 : slab * kSlab);
      FillStage(s, at, rank, lora ? p.h_map : p.x_map, lora ? p.factor_map : p.w_map, k, m0, p0);
    }
  });
}

/// The warps beside it: they fill a tile's table while the tile before is multiplied.
LOWRANK_DEVICE void FillTables(const GemmInt8WgmmaParams& p, Storage& s, uint32_t rank) {
  const GemmMmaParams& gemm = p.int8.gemm;
  RingPosition<2> at;
  ForEachTile(p, rank, [&](int32_t m0, int32_t p0) {
    TileTable& table = s.tables[at.stage];
    BarrierWait(&s.table_empty[at.stage], at.parity ^ 1);
    for (uint32_t i = threadIdx.x - 32; i < kTileP; i += kTableThreads) {
      const int64_t n = p0 + static_cast<int64_t>(i);
      const bool inside = n < gemm.N;
      table.w_scale[i] = inside ? gemm.w.absmax[n * p.int8.blocks_per_row] / 127.0f : 0.0f;
      float bias = 0.0f;
      if (inside && gemm.bias != nullptr) bias = LoadAny(gemm.bias, gemm.bias_dtype, n);
      if (inside && gemm.lora_bias != nullptr) {
        bias += gemm.scaling * LoadAny(gemm.lora_bias, gemm.lora_bias_dtype, n);
      }
      table.bias[i] = bias;
    }
    for (uint32_t i = threadIdx.x - 32; i < kTileM; i += kTableThreads) {
      const int64_t m = m0 + static_cast<int64_t>(i);
      table.x_scale[i] = m < gemm.M ? p.int8.scales[m] : 0.0f;
      table.x_offset[i] = m < gemm.M ? static_cast<uint32_t>(p.int8.sums[m]) * 128u : 0;
    }
    BarrierArrive(&s.table_full[at.stage]);
    at.Advance();
  });
}

/// Up to four steps of the LoRA term. Sums of mma and of wgmma have the same register layout.
LOWRANK_DEVICE void AddLoraStage(float (&values)[kOctets][4], const Storage& s, uint32_t stage,
                                 uint32_t row0, uint32_t steps) {
#pragma unroll 1
  for (uint32_t step = 0; step < 4 && step < steps; ++step) {
    uint32_t h[4];
    LoadSwizzled(s.x[stage], row0, step, h);
#pragma unroll
    for (uint32_t octet = 0; octet < kOctets; octet += 2) {
      uint32_t factor[4];
      LoadSwizzled(s.w[stage], octet * 8, step, factor);
      MmaBF16(values[octet], h, factor[0], factor[2]);
      MmaBF16(values[octet + 1], h, factor[1], factor[3]);
    }
  }
}

/// Two neighbours of a row, 16 bits each.
LOWRANK_DEVICE uint32_t PackAs(uint8_t dtype, float low, float high) {
  return dtype == kElementBF16 ? ElementBF16T::Pack(low, high) : ElementF16T::Pack(low, high);
}

/// f32: straight from the registers; four lanes write a sector.
LOWRANK_DEVICE void StoreFloats(const GemmMmaParams& p, const float (&values)[kOctets][4],
                                int64_t m0, int64_t p0) {
  const uint32_t lane = threadIdx.x % 32;
#pragma unroll
  for (uint32_t octet = 0; octet < kOctets; ++octet) {
    const int64_t n = p0 + octet * 8 + lane % 4 * 2;
#pragma unroll
    for (uint32_t below = 0; below < 2; ++below) {
      const int64_t m = m0 + lane / 4 + 8 * below;
      if (m >= p.M || n >= p.N) continue;
      float* g_y = static_cast<float*>(p.y) + m * p.N + n;
      if (p.vector_store) {
        *reinterpret_cast<float2*>(g_y) =
            make_float2(values[octet][2 * below], values[octet][2 * below + 1]);
      } else {
        g_y[0] = values[octet][2 * below];
        if (n + 1 < p.N) g_y[1] = values[octet][2 * below + 1];
      }
    }
  }
}

/// 16 bits: through shared memory.
LOWRANK_DEVICE void StoreHalves(const GemmMmaParams& p, uint8_t dtype, uint16_t* s_out,
                                const float (&values)[kOctets][4], int64_t m0, int64_t p0) {
  const OutColumns out = {static_cast<uint16_t*>(p.y), p.N, p.M, p.N, p.vector_store};
  StoreTile<kTileP>(out, s_out, m0, p0, [&](uint32_t octet, int64_t) {
    const float(&four)[4] = values[octet];
    return make_uint2(PackAs(dtype, four[0], four[1]), PackAs(dtype, four[2], four[3]));
  });
}

/// A warpgroup that multiplies: rows from 64 · group of each tile of the block.
LOWRANK_DEVICE void ConsumeStages(const GemmInt8WgmmaParams& p, Storage& s, uint32_t rank,
                                  uint32_t group) {
  const uint32_t lane = threadIdx.x % 32;
  const uint32_t warp = threadIdx.x / 32 % 4;  // of the warpgroup
  const uint32_t row0 = group * 64 + warp * 16;
  RingPosition<kStages> at;
  RingPosition<2> table_at;
  ForEachTile(p, rank, [&](int32_t m0, int32_t p0) {
    // Zeros, rather than a first product that does not add: ptxas spills undefined registers.
    int32_t sums[kTileP / 2];
#pragma unroll
    for (int32_t& sum : sums) sum = 0;
    uint32_t previous = 0;
#pragma unroll 1
    for (uint32_t slab = 0; slab < p.k_slabs; ++slab) {
      BarrierWait(&s.ring.full[at.stage], at.parity);
      MultiplyStage(s, at.stage, group,
                    [&](uint64_t x, uint64_t w, uint32_t) { WgmmaS8U8(sums, x, w, 1); });
      PassStage(s.ring, at, previous, slab > 0);
    }
    WgmmaWait<0>();
    ReleaseStage(s.ring, previous);

    const TileTable& table = s.tables[table_at.stage];
    BarrierWait(&s.table_full[table_at.stage], table_at.parity);
    const uint32_t row = row0 + lane / 4;
    const float x_scale[2] = {table.x_scale[row], table.x_scale[row + 8]};
    const uint32_t x_offset[2] = {table.x_offset[row], table.x_offset[row + 8]};
    float values[kOctets][4];
#pragma unroll
    for (uint32_t octet = 0; octet < kOctets; ++octet) {
      const float2 w_scale =
          *reinterpret_cast<const float2*>(table.w_scale + octet * 8 + lane % 4 * 2);
#pragma unroll
      for (uint32_t q = 0; q < 4; ++q) {
        const uint32_t sum = static_cast<uint32_t>(sums[octet * 4 + q]) - x_offset[q / 2];
        values[octet][q] = static_cast<float>(static_cast<int32_t>(sum)) *
                           (x_scale[q / 2] * (q % 2 == 0 ? w_scale.x : w_scale.y));
      }
    }
    for (uint32_t slab = 0; slab < p.lora_slabs; ++slab) {
      BarrierWait(&s.ring.full[at.stage], at.parity);
      AddLoraStage(values, s, at.stage, row0, p.lora_steps - slab * 4);
      __syncwarp();  // every lane has read the stage
      ReleaseStage(s.ring, at.stage);
      at.Advance();
    }
#pragma unroll
    for (uint32_t octet = 0; octet < kOctets; ++octet) {
      const float2 bias = *reinterpret_cast<const float2*>(table.bias + octet * 8 + lane % 4 * 2);
#pragma unroll
      for (uint32_t q = 0; q < 4; ++q) values[octet][q] += q % 2 == 0 ? bias.x : bias.y;
    }
    __syncwarp();  // every lane has read the table
    if (lane == 0) BarrierArrive(&s.table_empty[table_at.stage]);
    table_at.Advance();
    if (p.int8.y_dtype == kElementF32) {
      StoreFloats(p.int8.gemm, values, m0 + row0, p0);
    } else {
      StoreHalves(p.int8.gemm, p.int8.y_dtype, s.out[group * 4 + warp], values, m0 + row0, p0);
    }
  });
}

LOWRANK_DEVICE void Multiply(const GemmInt8WgmmaParams& p) {
  Storage& s = DynamicShared<Storage>();
  const uint32_t warp = threadIdx.x / 32;
  const uint32_t rank = ClusterRank();
  if (threadIdx.x == 0) {
    InitRing(s.ring);
    InitBarriers(s.table_full, kTableThreads);
    InitBarriers(s.table_empty, kConsumerWarps);
    FenceBarrierInit();
    PrefetchTensorMap(&p.x_map);
    PrefetchTensorMap(&p.w_map);
  }
  ClusterSync();  // barriers of both blocks stand
  GridDependencyWait();
  if (warp < 4) {
    RegistersDownTo<56>();
    if (threadIdx.x == 0) ProduceStages(p, s, rank);
    if (warp > 0) FillTables(p, s, rank);
  } else {
    RegistersUpTo<224>();
    ConsumeStages(p, s, rank, warp / 4 - 1);
  }
  // If a block exited, its barriers would be gone while the peer still arrives at them.
  ClusterSync();
}

/// A thread computes eight neighbours of a row of h or of lora_b.
LOWRANK_DEVICE void FillParts(const Int8PartsParams& p) {
  const GemmMmaParams& gemm = p.gemm;
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kInt8PartsThreads + threadIdx.x;
  const int64_t row = at / (2 * p.steps);
  const int piece = static_cast<int>(at % (2 * p.steps));
  if (row >= gemm.M + gemm.N) return;
  const int blocks_per_pair = static_cast<int>((gemm.r + 15) / 16);
  const int pair = piece / 2 / blocks_per_pair;
  const int64_t j = (piece / 2 - pair * blocks_per_pair) * 16 + piece % 2 * 8;
  const bool of_h = row < gemm.M;
  const int64_t own = of_h ? row : row - gemm.M;
  float value[8];
  LoadEight(value, of_h ? gemm.h : gemm.factor, of_h ? uint8_t{kElementF32} : gemm.factor_dtype,
            own * gemm.r + j, gemm.r - j, gemm.vector_factors);
#pragma unroll
  for (int q = 0; q < 8; ++q) value[q] = value[q] * (of_h ? gemm.scaling : 1.0f);
  unsigned char* g_rows = static_cast<unsigned char*>(of_h ? p.h : p.factor);
  StoreParts(value, of_h ? kPartsOfH : kPartsOfFactor, pair,
             g_rows + (own * 2 * p.steps + piece) * 16);
}

}  // namespace

LOWRANK_EARLY_KERNEL(matmul_int8_wgmma_kernel, GemmInt8WgmmaParams, kInt8WgmmaThreads, 1) {
  Multiply(p);
}
LOWRANK_KERNEL(matmul_int8_parts_kernel, Int8PartsParams, kInt8PartsThreads, 4) { FillParts(p); }

}  // namespace lowrank::gpu
