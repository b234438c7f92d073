/// Products of few tokens, 1 <= M <= 64, tensor cores (m16n8k16), bound by the weight's bytes.
///
///   y = x · dequant(w)ᵀ + bias + scaling · (h · lora_bᵀ + lora_bias)
///
/// Operands   x [M, K] T row-major · w codes packed as QuantView says, or [N, K] T · h [M, r] f32 ·
///            y [M, N] T, T = bf16 | f16; the others f32 | bf16 | f16
/// Grid       (ceil(N / kRows), splits of K); with splits > 1 the blocks write f32 planes, which
///            matmul_small_m_finish adds in order, or to f32 who asked (PlanProductPlanes)
/// Shared     a table of 32 KiB (none dense, nor for 4-bit codes at M > 32) + two steps of x
///            (kTokens · kStepK · 2 bytes each) + the scales of the block's rows and slice,
///            (kRows + 8) · 4 bytes a block index
/// Numerics   w is codebook[code] · scale rounded once to T; products exact; sums in f32: a warp
///            along its k, then the warps of a block in order, then the splits in order. One
///            rounding to T. The LoRA term is f32 throughout. Equal bits from run to run, and for a
///            token alone or among others under the same tile.
/// Needs      whole 16-byte pieces of w in each row (K a multiple of 32 for 4-bit codes, of 16 for
///            8-bit, of 8 dense), which then lie in one quantisation block; nested blocks of a
///            power of two; 16-byte aligned x and w
///
/// w is the A operand (16 outputs x 16 k), x the B operand (16 k x 8 tokens): tokens are padded
/// to 8. The sum over k may be taken in any order, so the bytes of bitsandbytes are fragments as
/// they are: lane (g, t) = (lane / 4, lane % 4) loads 16 bytes of rows g and g + 8 and takes its
/// elements four at a time, in memory order, for its k-slots {2t, 2t + 1, 2t + 8, 2t + 9} of one
/// product:
///
///   row g     | lane t=0: k 0..31 | t=1: 32..63 | t=2: 64..95 | t=3: 96..127 |   64 bytes of codes
///   product q   k 4q..4q+3          32+4q..       64+4q..       96+4q..
///
/// x's fragment for the same slots is then k 32t + 4q .. + 3 of token g, and 16 bytes of x serve
/// two products. No re-packed copy of w, no ldmatrix, no transpose.
///
/// Budget of a step of a warp (32 rows x 128 k of 4-bit codes: 4,096 weights, 2 KiB of codes), in
/// wavefronts of 128 bytes through L1 and shared memory, from the counters; and in instructions of
/// the machine code for sm_90, without those that M <= 2 branches over:
///
///   M             8     16     32     64
///   lookups      96     64     64      0    three quarters or half of the rows; at M > 32 none
///   x, read      16     32     64    128
///   x, written   16     16     16     32
///   codes        16     16     16     16
///   scales        4      4      4      4
///   weights/clk  27.7   31.0   25.0   22.7
///   integer     182    243    257    468    45, 34, 32, 17.5 weights a clock of 64 lanes
///   all         492    566    637    889    33, 29, 26, 18.4 of 128 issue slots
///
/// At 3.0 TB/s and 1.755 GHz a multiprocessor of 132 has to take 22 to 25 weights a clock. A weight
/// costs 2.5 instructions by lookups and 3.6 by permutes, of which 0.5 and 2.9 are the integer
/// pipe's, but 32 lookups a wavefront: so at M <= 8, where issue slots limit, most rows go by
/// lookups, and where x asks more of shared memory half of them. At M > 32 permutes alone limit.
/// Lookups are of both values of a byte, from 16 copies of the table: a half warp's 8-byte loads
/// are one wavefront whatever the codes.
///   bytes  each lane has two steps of 64 bytes in flight: 32 KiB a block, where
///          3.0 TB/s · 0.7 us / 132 = 16 KiB are needed.
///   x      is read from L2 by each of N / kRows blocks: 2 M / kRows bytes a weight, so kRows grows
///          with M: 0.5 bytes a weight at M = 8, 16 and 32, 1 at M = 64, beside 0.56 of w. L2 gives
///          about twice what the memory gives.
///   int8   1 byte a weight: 12.5 weights a clock; one lookup of 4 bytes each, from 32 copies.
///
/// A warp has about 550 instructions outside its loop of 4 steps, of which those before it fill the
/// wait for the first bytes. These are full rates: two warps a scheduler use 0.7 of the slots, and
/// issue limits then. What calls take of an H100, with launch, waves and tail, docs/gpu-design.md
/// has: 4096 x 4096, M = 1, 5.2 us (goal 5.0; G1); 14336 x 4096 in four blocks a multiprocessor,
/// two at a time, 14.4 (12.0; G2). M = 16 has planes of two splits; on sm_90
/// matmul_small_m_cluster_sm90.cu has none there (G3), and matmul_small_m_wgmma_sm90a.cu takes
/// 4-bit codes and M > 32.
#include "cuda/small_m/small_m_mma.cuh"

namespace lowrank::gpu {
namespace {

/// K over blocks along y, which leave planes where there are several.
template <SmallMFormat kFormat, typename Element, typename Tile>
class PlanesBlock : MmaRows<kFormat, Element, Tile> {
  using Base = MmaRows<kFormat, Element, Tile>;
  using Base::kCount, Base::kTokensApart;
  using Base::p_, Base::first_n_;

 public:
  __device__ __forceinline__ explicit PlanesBlock(const SmallMParams& params)
      : Base(params, blockIdx.x, blockIdx.y) {}

  __device__ __forceinline__ void Run() {
    this->MultiplySlice();
    GridDependencyWait();
    Finish();
  }

 private:
  /// A thread keeps its output n.
  __device__ __forceinline__ void Finish() {
    const int row = static_cast<int>(threadIdx.x) % Tile::kRows;
    const int first = static_cast<int>(threadIdx.x) / Tile::kRows;
    const int64_t n = first_n_ + row;
    if (n >= p_.N) return;
    float sum[kCount][1];
    this->AddWarps(row, first, sum);
    if (p_.splits == 1) {
      FinishOutputs<Element>(p_, OutputBias<1>(p_, n), n, first, kTokensApart, sum);
      return;
    }
    float* g_plane = p_.partial + static_cast<int64_t>(blockIdx.y) * p_.M * p_.N;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int64_t token = first + i * kTokensApart;
      if (token < p_.M) g_plane[token * p_.N + n] = sum[i][0];
    }
  }
};

template <typename Element>
LOWRANK_DEVICE void SmallMFinishBody(const SmallMParams& p) {
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kSmallMFinishThreads + threadIdx.x;
  if (n >= p.N) return;
  constexpr int kCount = kSmallMFinishTokens;
  const int64_t first = static_cast<int64_t>(blockIdx.y) * kCount;
  float sum[kCount][1] = {};
  for (uint32_t split = 0; split < p.splits; ++split) {
    const float* g_plane = p.partial + split * p.M * p.N;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (first + i < p.M) {
        const float value = g_plane[(first + i) * p.N + n];
        sum[i][0] = split == 0 ? value : sum[i][0] + value;
      }
    }
  }
  FinishOutputs<Element>(p, OutputBias<1>(p, n), n, first, 1, sum);
}

}  // namespace

#define LOWRANK_DEFINE(name, kFormat, Element, Tile, kMinBlocks)                                   \
  LOWRANK_EARLY_KERNEL(matmul_small_m_##name##_kernel, SmallMParams, kSmallMThreads, kMinBlocks) { \
    PlanesBlock<kFormat, Element, Tile>(p).Run();                                                  \
  }
LOWRANK_SMALL_M_KERNELS(LOWRANK_DEFINE)
#undef LOWRANK_DEFINE

LOWRANK_KERNEL(matmul_small_m_finish_bf16_kernel, SmallMParams, kSmallMFinishThreads, 7) {
  SmallMFinishBody<ElementBF16T>(p);
}
LOWRANK_KERNEL(matmul_small_m_finish_f16_kernel, SmallMParams, kSmallMFinishThreads, 7) {
  SmallMFinishBody<ElementF16T>(p);
}

}  // namespace lowrank::gpu
