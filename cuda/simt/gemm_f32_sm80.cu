/// Products of f32 activations in f32 arithmetic (FFMA), in both directions of the base weight.
///
///   y  = x · dequant(w)ᵀ + bias + scaling · (h · lora_bᵀ + lora_bias)
///   dx = dy · dequant(w) + gate ⊙ (dh · lora_a)
///
/// Operands     x [M, C] f32 row-major · w [P, C], or [C, P] where transposed: dense of any dtype
///              or bitsandbytes' codes, read in place in both directions · y [M, P] f32, or
///              16-bit (f32 weights under 16-bit activations, which the plan widens
///              first)
/// Grid         one block a tile, blockIdx.x = tile_m · tiles_p + tile_p, so that blocks in flight
///              together share the weight's columns in L2
/// Shared       kStages · kTileM · 64 + 2 · kTileP · 64 + 1,024 bytes
/// Numerics     f32 products by fmaf, c ascending, summed in chunks of 256 and the chunks in order:
///              rounding grows with 256 + C / 256 terms, not with C. A row's bits depend on
///              its own values alone. Both tiles give the same bits.
/// Needs        nothing: unaligned rows, odd K and blocks that run across rows take the
///              element-wise loads.
///
/// experts_f32 is the same for a layer of experts, each with its own slots, in one launch: a block
/// finds its expert and rows from the offsets (cuda/mma/experts_mma_sm80.cu has the formula).
///
/// The adapter enters as a first pass over r of the same loop: its factor is one more dense weight.
/// It comes first so that the dropout gate of dx can be applied to the accumulators themselves,
/// before the base product is added: no second set of 64 registers.
///
/// Why not tensor cores: three tf32 products reach 2.5 times the FFMA rate, but split an infinity
/// into NaN parts and round at 2^-22; f32 activations are the path for who wants IEEE f32.
///
/// Budget of a slab (128 x 128 x 16, 256 threads), a multiprocessor of sm_80 and sm_90:
///   FFMA      262,144 at 128 / clk (sm_90; 64 / clk on sm_80)        2,048 (4,096) clk
///   shared    per warp 4 · (8 + 8) LDS.128 at 1 to 4 wavefronts, x broadcast over 8 lanes:
///             8 warps · 4 · (8 · 1 + 8 · 4) = 1,280 wavefronts         1,280 clk, beside the FFMAs
///   weight    8 codes a thread: 1 load, 1 scale, 8 table reads, 8 FMUL, stores, about 60 issue
///             slots
///             of 1,024 + 64 a thread                                   6 %
///   x, w      8 KB and 1 KB (4-bit) from L2 for 2,048 clk: 4.5 bytes / clk
/// So it is bound by FFMA issue: 85 to 90 % of the f32 peak, 60 TFLOP/s on H100.
///
/// Accesses of the main loop above 1.10 of the ideal, and why they stay: a lane reads the octet of
/// its own row (8 sectors for 1 of 4-bit codes, 4 of 8-bit, 2 for each half of dense f32), so that
/// what it decodes goes to shared memory without conflicts; the rest of a sector is what the next
/// slabs ask for, from L1, where 128 rows take 4 KB: 8 KB of L1 traffic a slab, 4 bytes / clk. The
/// 256 entries of the 8-bit codebook meet by chance in one of 32 banks (1.5).
#include "cuda/common/weight_octets.cuh"
#include "cuda/experts/expert_tiles.cuh"
#include "native/host_device/params/gemm_f32.h"
#include "native/host_device/philox.h"

namespace lowrank::gpu {
namespace {

constexpr int kTileC = 16;         // contraction elements a slab: one 64-byte row of shared memory
constexpr int kStages = 3;         // slabs of x in flight: L2 latency is below one slab's FFMA time
constexpr int kChunkSlabs = 16;    // 256 elements a first-level sum
constexpr int kCodebookMax = 256;  // entries

/// A warp is 4 x 8 lanes; lane (ty, tx) owns rows ty + 4 · mi and columns tx + 8 · pi of its warp's
/// part, so that the rows and columns that a load touches are neighbours (see SlabIndex).
template <int kWarpsMValue, int kWarpsPValue, int kMIValue, int kPIValue>
struct TileOf {
  static constexpr int kWarpsM = kWarpsMValue, kWarpsP = kWarpsPValue;
  static constexpr int kMI = kMIValue, kPI = kPIValue;
  static constexpr int kTileM = kWarpsM * kMI * 4;
  static constexpr int kTileP = kWarpsP * kPI * 8;
  static constexpr int kThreads = kWarpsM * kWarpsP * 32;
  static_assert(kTileP * 2 == kThreads, "one octet of the weight a thread");
  static_assert(kTileM * 4 % kThreads == 0, "whole pieces of x a thread");
};
using LargeTile = TileOf<4, 2, 8, 8>;  // 128 x 128
using SmallTile = TileOf<2, 2, 4, 4>;  // 32 x 64

template <typename Tile>
struct SharedOf {
  float x[kStages][Tile::kTileM * kTileC];
  float w[2][Tile::kTileP * kTileC];
  float codebook[kCodebookMax];
};

/// Word of (row, c) in a slab of 64-byte rows. The 16-byte pieces of a row are swapped by the
/// row's pair number: two rows fill the 32 banks, so eight consecutive rows at one piece, and two
/// whole rows, each meet every bank once.
LOWRANK_DEVICE int SlabIndex(int row, int c) {
  return row * kTileC + ((((c >> 2) ^ (row >> 1)) & 3) << 2) + (c & 3);
}

/// A block of one product: rows of x as they lie.
struct WholeF32 {
  const GemmF32Params& p;

  __device__ __forceinline__ const GemmF32Pass& PassOf(int index) const { return p.passes[index]; }
  /// Row m, the thread's piece i, in the x of pass `index`.
  __device__ __forceinline__ int64_t RowOf(int, int, int64_t m) const { return m; }
};

/// A block of the products of experts: slots of one of them, from 0 on.
template <typename Tile>
class SlotsF32 {
  static constexpr int kPieces = Tile::kTileM * 4 / Tile::kThreads;

 public:
  __device__ __forceinline__ SlotsF32(const ExpertsF32Params& p, const ExpertTile& tile)
      : p_(p), tile_(tile) {
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const int row = (static_cast<int>(threadIdx.x) + i * Tile::kThreads) / 4;
      rows_[i] = row < tile.count ? RowOfSlot(p.slots, tile.first + row) : 0;
    }
  }

  __device__ __forceinline__ GemmF32Pass PassOf(int index) const {
    GemmF32Pass pass = p_.product.passes[index];
    const int64_t expert = tile_.expert;
    if (expert == p_.slots.experts) {
      pass.C = 0;
    } else if (index == 1 || !p_.shared_factor) {
      pass.w = WeightFrom(pass.w, expert * p_.product.P * pass.C);
    }
    if (index == 0) pass.x += tile_.first * pass.C;
    return pass;
  }
  __device__ __forceinline__ int64_t RowOf(int index, int i, int64_t m) const {
    return index == 0 ? m : rows_[i];
  }

 private:
  const ExpertsF32Params& p_;
  const ExpertTile tile_;
  int32_t rows_[kPieces];
};

template <typename Tile, bool kTransposed>
struct GemmF32 {
  static constexpr int kMI = Tile::kMI, kPI = Tile::kPI;
  using Shared = SharedOf<Tile>;

  static __device__ void Run(const GemmF32Params& p) {
    RunBlock(p, blockIdx.x / p.tiles_p * Tile::kTileM, WholeF32{p});
  }

  static __device__ void RunExperts(const ExpertsF32Params& p) {
    const GemmF32Params& all = p.product;
    const ExpertTile tile = FindExpertTile(p.slots, Tile::kTileM, blockIdx.x / all.tiles_p);
    if (tile.count == 0) return;
    GemmF32Params own = all;
    own.M = tile.count;
    own.y = const_cast<void*>(ElementsFrom(all.y, all.y_dtype, tile.first * all.P));
    own.bias = tile.expert == p.slots.experts
                   ? nullptr
                   : ElementsFrom(all.bias, all.bias_dtype, tile.expert * all.P);
    RunBlock(own, 0, SlotsF32<Tile>(p, tile));
  }

  /// The tile of y from row tile_m on. `block` has the operands of its passes.
  template <typename Block>
  static __device__ __forceinline__ void RunBlock(const GemmF32Params& p, int64_t tile_m,
                                                  const Block& block) {
    Shared& s = DynamicShared<Shared>();
    const int thread = static_cast<int>(threadIdx.x);
    const int lane = thread % 32;
    const int warp = thread / 32;
    const int tx = lane % 8;
    const int ty = lane / 8;
    const int warp_m = warp % Tile::kWarpsM * kMI * 4;
    const int warp_p = warp / Tile::kWarpsM * kPI * 8;
    const int64_t tile_p = blockIdx.x % p.tiles_p * Tile::kTileP;

    const auto& base = block.PassOf(1);
    if (base.w.bits != 0) {
      for (int entry = thread; entry < (1 << base.w.bits); entry += Tile::kThreads) {
        s.codebook[entry] = base.w.codebook[entry];
      }
    }
    __syncthreads();

    float total[kMI][kPI] = {};
#pragma unroll 1
    for (int pass_index = 0; pass_index < 2; ++pass_index) {
      const auto& pass = block.PassOf(pass_index);
      if (pass.C == 0) continue;
      const int slabs = static_cast<int>((pass.C + kTileC - 1) / kTileC);

      // This thread's octet of the weight's slab, consecutive in memory: along c from octet_c of
      // column octet_p, or where transposed along p.
      const int octet_p = kTransposed ? thread / kTileC * 8 : thread % Tile::kTileP;
      const int octet_c = kTransposed ? thread % kTileC : thread / Tile::kTileP * 8;

      auto load_x = [&](int slab) {
        if (slab < slabs) {
          float* s_x = s.x[slab % kStages];
          SlotFilled(s_x, static_cast<uint32_t>(slab));
          const int64_t first_c = static_cast<int64_t>(slab) * kTileC;
#pragma unroll
          for (int i = 0; i < Tile::kTileM * 4 / Tile::kThreads; ++i) {
            const int piece = thread + i * Tile::kThreads;
            const int row = piece / 4;
            const int c = piece % 4 * 4;
            const int64_t m = tile_m + row;
            const int64_t left = m < p.M ? pass.C - first_c - c : 0;
            const float* g_row = pass.x + (m < p.M ? block.RowOf(pass_index, i, m) * pass.C : 0);
            const int64_t at = left > 0 ? first_c + c : 0;
            float* s_piece = s_x + SlabIndex(row, c);
            if (pass.vector_x) {
              CpAsync16(s_piece, g_row + at, left > 0 ? 16 : 0);
            } else {
#pragma unroll
              for (int q = 0; q < 4; ++q) {
                CpAsync4(s_piece + q, g_row + (q < left ? at + q : 0), q < left ? 4 : 0);
              }
            }
          }
        }
        CpAsyncCommit();
      };

      // Loads of the next slab are issued before the products of this one, decoded after them.
      auto octet_left = [&](int slab) {
        const int64_t c = static_cast<int64_t>(slab) * kTileC + octet_c;
        const int64_t left_c = pass.C - c;
        const int64_t left_p = p.P - tile_p - octet_p;
        if (kTransposed) return left_c > 0 ? left_p : 0;
        return left_p > 0 ? left_c : 0;
      };
      auto octet_index = [&](int slab) {
        const int64_t c = static_cast<int64_t>(slab) * kTileC + octet_c;
        return kTransposed ? c * p.P + tile_p + octet_p : (tile_p + octet_p) * pass.C + c;
      };
      auto load_w = [&](int slab) {
        // With vector_w a row is whole octets, so an octet is inside or outside.
        if (pass.vector_w && octet_left(slab) > 0) return LoadOctet(pass.w, octet_index(slab));
        return RawOctet{};
      };
      auto store_w = [&](int slab, const RawOctet& raw) {
        if (slab >= slabs) return;
        const int64_t left = octet_left(slab);
        float* s_w = s.w[slab % 2];
        if (!pass.vector_w || left <= 0) {
          const int64_t index = left > 0 ? octet_index(slab) : 0;
#pragma unroll 1
          for (int q = 0; q < 8; ++q) {
            const int at =
                kTransposed ? SlabIndex(octet_p + q, octet_c) : SlabIndex(octet_p, octet_c + q);
            s_w[at] = q < left ? LoadWeight(pass.w, s.codebook, index + q) * pass.scale : 0.0f;
          }
          return;
        }
        float r_value[8];
        DecodeOctet(r_value, pass.w, s.codebook, raw);
#pragma unroll
        for (int q = 0; q < 8; ++q) r_value[q] *= pass.scale;
        if (kTransposed) {
          // The two halves of a warp are eight columns apart, the same banks; the second takes its
          // columns in swapped pairs.
          const int swap = (lane >> 4) & 1;
#pragma unroll
          for (int q = 0; q < 8; ++q) {
            s_w[SlabIndex(octet_p + (q ^ swap), octet_c)] = swap ? r_value[q ^ 1] : r_value[q];
          }
        } else {
          float4* s_low = reinterpret_cast<float4*>(s_w + SlabIndex(octet_p, octet_c));
          float4* s_high = reinterpret_cast<float4*>(s_w + SlabIndex(octet_p, octet_c + 4));
          *s_low = make_float4(r_value[0], r_value[1], r_value[2], r_value[3]);
          *s_high = make_float4(r_value[4], r_value[5], r_value[6], r_value[7]);
        }
      };

      float chunk[kMI][kPI] = {};
      auto multiply = [&](int slab) {
        const float* s_x = s.x[slab % kStages];
        SlotRead(s_x, static_cast<uint32_t>(slab));
        const float* s_w = s.w[slab % 2];
// Rolled: 128 registers hold the sums, and the pieces of a second step would be spilled.
#pragma unroll 1
        for (int c = 0; c < kTileC; c += 4) {
          float4 r_w[kPI];
#pragma unroll
          for (int pi = 0; pi < kPI; ++pi) {
            r_w[pi] = *reinterpret_cast<const float4*>(s_w + SlabIndex(warp_p + tx + 8 * pi, c));
          }
#pragma unroll
          for (int mi = 0; mi < kMI; ++mi) {
            const float4 r_x =
                *reinterpret_cast<const float4*>(s_x + SlabIndex(warp_m + ty + 4 * mi, c));
#pragma unroll
            for (int pi = 0; pi < kPI; ++pi) {
              float sum = chunk[mi][pi];
              sum = fmaf(r_x.x, r_w[pi].x, sum);
              sum = fmaf(r_x.y, r_w[pi].y, sum);
              sum = fmaf(r_x.z, r_w[pi].z, sum);
              chunk[mi][pi] = fmaf(r_x.w, r_w[pi].w, sum);
            }
          }
        }
      };
      auto fold = [&] {
#pragma unroll
        for (int mi = 0; mi < kMI; ++mi) {
#pragma unroll
          for (int pi = 0; pi < kPI; ++pi) {
            total[mi][pi] += chunk[mi][pi];
            chunk[mi][pi] = 0.0f;
          }
        }
      };

      load_x(0);
      load_x(1);
      store_w(0, load_w(0));
#pragma unroll 1
      for (int slab = 0; slab < slabs; ++slab) {
        CpAsyncWait<1>();
        __syncthreads();  // slab is here, and slab - 1 is done with
        load_x(slab + 2);
        const RawOctet raw = load_w(slab + 1);
        multiply(slab);
        store_w(slab + 1, raw);
        if ((slab + 1) % kChunkSlabs == 0) fold();
      }
      fold();
      CpAsyncWait<0>();
      __syncthreads();  // the next pass writes the first stages

      if constexpr (kTransposed) {
        if (pass_index == 0 && p.gated) {
          Gate(p, total, tile_m + warp_m + ty, tile_p + warp_p + tx);
        }
      }
    }
    Store(p, total, tile_m + warp_m + ty, tile_p + warp_p + tx);
  }

  /// total = gate ⊙ total; a dropped element is 0 whatever it holds.
  static __device__ __forceinline__ void Gate(const GemmF32Params& p, float (&total)[kMI][kPI],
                                              int64_t first_m, int64_t first_p) {
    // The draws in a loop that stays rolled: a generator is a hundred instructions.
    uint64_t kept = 0;
#pragma unroll 1
    for (int element = 0; element < kMI * kPI; ++element) {
      const int64_t m = first_m + 4 * (element / kPI);
      const int64_t column = first_p + 8 * (element % kPI);
      if (m >= p.M || column >= p.P) continue;
      const int64_t index = m * p.P + column;
      const bool keeps = p.mask != nullptr
                             ? LoadAny(p.mask, p.mask_dtype, index) != 0.0f
                             : DropoutKeeps(p.seed, static_cast<uint64_t>(index), p.threshold);
      kept |= static_cast<uint64_t>(keeps) << element;
    }
#pragma unroll
    for (int mi = 0; mi < kMI; ++mi) {
#pragma unroll
      for (int pi = 0; pi < kPI; ++pi) {
        const bool keeps = ((kept >> (mi * kPI + pi)) & 1u) != 0;
        total[mi][pi] = keeps ? total[mi][pi] * p.kept_scale : 0.0f;
      }
    }
  }

  /// Eight lanes store 32 consecutive bytes: whole sectors.
  static __device__ __forceinline__ void Store(const GemmF32Params& p,
                                               const float (&total)[kMI][kPI], int64_t first_m,
                                               int64_t first_p) {
#pragma unroll
    for (int pi = 0; pi < kPI; ++pi) {
      const int64_t column = first_p + 8 * pi;
      if (column >= p.P) continue;
      float addend = 0.0f;
      if (p.bias != nullptr) addend = LoadAny(p.bias, p.bias_dtype, column);
      if (p.lora_bias != nullptr) {
        addend = fmaf(p.scaling, LoadAny(p.lora_bias, p.lora_bias_dtype, column), addend);
      }
#pragma unroll
      for (int mi = 0; mi < kMI; ++mi) {
        const int64_t m = first_m + 4 * mi;
        if (m >= p.M) continue;
        const int64_t index = m * p.P + column;
        float sum = total[mi][pi] + addend;
        if (p.accumulate) sum = LoadAny(p.y, p.y_dtype, index) + sum;
        if (p.y_dtype == kElementF32) {
          static_cast<float*>(p.y)[index] = sum;
        } else {
          const uint32_t bits = p.y_dtype == kElementBF16 ? ElementBF16T::Pack(sum, 0.0f)
                                                          : ElementF16T::Pack(sum, 0.0f);
          static_cast<uint16_t*>(p.y)[index] = static_cast<uint16_t>(bits);
        }
      }
    }
  }
};

}  // namespace
}  // namespace lowrank::gpu

/// X(name, tile, transposed, kMinBlocks): a multiprocessor holds one large block, whose two sets of
/// 64 sums take 128 registers.
#define LOWRANK_GEMM_F32_KERNELS(X)                         \
  X(gemm_f32_128x128_kernel, LargeTile, false, 1)           \
  X(gemm_f32_32x64_kernel, SmallTile, false, 4)             \
  X(gemm_f32_transposed_128x128_kernel, LargeTile, true, 1) \
  X(gemm_f32_transposed_32x64_kernel, SmallTile, true, 4)

#define LOWRANK_GEMM_F32_KERNEL(name, Tile, kTransposed, kMinBlocks)                            \
  LOWRANK_KERNEL(name, lowrank::gpu::GemmF32Params, lowrank::gpu::Tile::kThreads, kMinBlocks) { \
    lowrank::gpu::GemmF32<lowrank::gpu::Tile, kTransposed>::Run(p);                             \
  }
LOWRANK_GEMM_F32_KERNELS(LOWRANK_GEMM_F32_KERNEL)

#define LOWRANK_EXPERTS_F32_KERNELS(X)                         \
  X(experts_f32_128x128_kernel, LargeTile, false, 1)           \
  X(experts_f32_32x64_kernel, SmallTile, false, 4)             \
  X(experts_f32_transposed_128x128_kernel, LargeTile, true, 1) \
  X(experts_f32_transposed_32x64_kernel, SmallTile, true, 4)

#define LOWRANK_EXPERTS_F32_KERNEL(name, Tile, kTransposed, kMinBlocks)                            \
  LOWRANK_KERNEL(name, lowrank::gpu::ExpertsF32Params, lowrank::gpu::Tile::kThreads, kMinBlocks) { \
    lowrank::gpu::GemmF32<lowrank::gpu::Tile, kTransposed>::RunExperts(p);                         \
  }
LOWRANK_EXPERTS_F32_KERNELS(LOWRANK_EXPERTS_F32_KERNEL)
