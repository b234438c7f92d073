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
/// A warp has about 550 instructions outside its loop of 4 steps. So a call takes the memory's time
/// and 1 us for the launch and the first bytes, or 0.5 for the launch and the time of all
/// instructions, which fill the wait for the first bytes. 4096 x 4096, M = 1, 128 blocks: 2.9 + 1 =
/// 3.9 us, or 0.5 + 2.9 (goal 5.0; G1). 14336 x 4096, M = 1, at most 4 blocks a multiprocessor:
/// 10.1 + 1, or 0.5 + 11.5 = 12.0 (12.0; G2). 4096 x 4096, M = 16: 3.0 + 1, or 0.5 + 3.4, and 1.2
/// for the planes of two splits: 5.2 (5.3; G3). On sm_90 matmul_small_m_wgmma_sm90a.cu takes 4-bit
/// codes and M > 32.
#include "cuda/small_m_block.cuh"

namespace lowrank::gpu {
namespace {

/// Where 16-byte piece `piece` of a token's kPieces lies in the chunk of x that a warp takes. A
/// quarter warp reads the pieces kPieces / 4 · t + u of two neighbouring tokens, a copy writes
/// eight neighbouring pieces of one token (of two chunks, where a chunk has four); both meet each
/// of the eight 16-byte columns once.
template <int kPieces>
LOWRANK_DEVICE int PlaceOfPiece([[maybe_unused]] int chunk, int token, int piece) {
  if constexpr (kPieces == 16) {
    return token * kPieces + ((piece ^ ((piece >> 2) & 3)) ^ ((token & 1) << 2));
  } else if constexpr (kPieces == 8) {
    return token * kPieces + (piece ^ (token & 1));
  } else {
    static_assert(kPieces == 4);
    return (token ^ (chunk & 1)) * kPieces + piece;
  }
}

template <SmallMFormat kFormat, typename Element, typename Tile>
class MmaBlock : SmallMBlock<kFormat, Element, Tile, SmallMShared<kFormat, Tile>> {
  using Base = SmallMBlock<kFormat, Element, Tile, SmallMShared<kFormat, Tile>>;
  using Base::first_k_, Base::slice_;
  using Base::kPieces, Base::kStepK, Base::kThreads;
  using Base::p_, Base::s_, Base::decoder_, Base::lane_, Base::warp_k_, Base::first_n_;
  using typename Base::Codes;
  using typename Base::Decoder;

 public:
  __device__ __forceinline__ explicit MmaBlock(const SmallMParams& params)
      : Base(params, blockIdx.x, blockIdx.y) {
    // The last token stands in for those past M: its columns of the product are not stored.
#pragma unroll
    for (int j = 0; j < Tile::kTilesM; ++j) {
      const int token = min(j * 8 + lane_ / 4, static_cast<int>(p_.M) - 1);
      const int place = PlaceOfPiece<kPieces>(warp_k_, token, lane_ % 4 * (kPieces / 4));
      x_place_[j] = Keep((warp_k_ * Tile::kTokens * kPieces + place) * 16);
    }
  }

  __device__ __forceinline__ void Run() {
    Codes next, after;
    this->LoadCodes(0, &next);
    this->LoadCodes(1, &after);
    if (p_.x_made) GridDependencyWait();
    IssueX(0);
    decoder_.Fill();
    if constexpr (Base::kQuantised) this->FillScales();
    const int whole = slice_ / kStepK;
#pragma unroll 1
    for (int step = 0; step < whole; ++step) Step<false>(step, &next, &after);
    if (whole * kStepK < slice_) Step<true>(whole, &next, &after);
    __syncthreads();  // nobody reads x or the tables any more
    this->StorePlanes(
        0, [this](int i, int eighth) { return this->LocalRow(i, eighth); },
        [this](int i, int j, int e) { return sum_[i][j][e]; });
    __syncthreads();
    GridDependencyWait();
    Finish();
  }

 private:
  /// kTail: the step that the slice ends in, if that is not a whole one.
  template <bool kTail>
  __device__ __forceinline__ void Step(int step, Codes* next, Codes* after) {
    CpAsyncWait<0>();
    __syncthreads();  // x and the tables are there, and nobody reads the other buffer any more
    Codes now = *next;
    if constexpr (!kTail) {
      if ((step + 1) * kStepK < slice_) IssueX(step + 1);
      *next = *after;
      this->LoadCodes(step + 2, after);
    }
    Multiply<kTail>(step, now);
  }

  /// A step of x, all warps' chunks, zero past the slice. Tokens past M are not there. A thread
  /// has one piece of every kTokensApart-th token: all it needs of a copy but its row is the same.
  __device__ __forceinline__ void IssueX(int step) {
    constexpr int kRowPieces = kStepK / 8;
    constexpr int kTokensApart = kThreads / kRowPieces;
    static_assert(kTokensApart % 2 == 0 && Tile::kTokens % kTokensApart == 0,
                  "PlaceOfPiece of neighbouring copies differs by whole rows");
    const int first = static_cast<int>(threadIdx.x) / kRowPieces;
    const int piece = static_cast<int>(threadIdx.x) % kRowPieces;
    const int chunk = piece / kPieces;
    const int place = PlaceOfPiece<kPieces>(chunk, first, piece % kPieces);
    const int k = step * kStepK + piece * 8;
    const uint32_t bytes = k < slice_ ? 16 : 0;
    // x has at most 2^32 elements.
    const auto cols = static_cast<uint32_t>(p_.K);
    const uint32_t at = static_cast<uint32_t>(first_k_) + first * cols + min(k, slice_ - 8);
    unsigned char* s_x = s_.main.x[step % 2] + (chunk * Tile::kTokens * kPieces + place) * 16;
#pragma unroll
    for (int i = 0; i < Tile::kTokens / kTokensApart; ++i) {
      // One or two tokens: the rest of the copies is branched over.
      if (Tile::kTilesM == 1 && i * kTokensApart >= static_cast<int>(p_.M)) break;
      if (first + i * kTokensApart < static_cast<int>(p_.M)) {
        CpAsync16(s_x + i * kTokensApart * kPieces * 16,
                  static_cast<const uint16_t*>(p_.x) + (at + i * kTokensApart * cols), bytes);
      }
    }
    CpAsyncCommit();
  }

  template <bool kTail>
  __device__ __forceinline__ void Multiply(int step, Codes codes) {
    typename Decoder::Prepared prepared[Tile::kTilesN];
#pragma unroll
    for (int i = 0; i < Tile::kTilesN; ++i) {
      prepared[i] = this->template Prepare<kTail>(i, step, &codes);
    }
    const unsigned char* s_x = s_.main.x[step % 2];
#pragma unroll
    for (int u = 0; u < kPieces / 4; ++u) {
      uint4 x[Tile::kTilesM];
#pragma unroll
      for (int j = 0; j < Tile::kTilesM; ++j) {
        // Pieces beside each other differ in bits that no other part of a place touches.
        x[j] = *reinterpret_cast<const uint4*>(s_x + (x_place_[j] ^ (u * 16)));
      }
#pragma unroll
      for (int i = 0; i < Tile::kTilesN; ++i) {
        uint32_t a[2][4];
        decoder_.Fragments(i, prepared[i], codes.raw[i], u, a);
#pragma unroll
        for (int j = 0; j < Tile::kTilesM; ++j) {
          Element::Mma(sum_[i][j], a[0], x[j].x, x[j].y);
          Element::Mma(sum_[i][j], a[1], x[j].z, x[j].w);
        }
      }
    }
  }

  /// The planes of the kWarpsK warps added in order; a thread keeps its output n.
  __device__ __forceinline__ void Finish() {
    constexpr int kStep = kThreads / Tile::kRows;  // tokens between two of a thread
    constexpr int kCount = Tile::kTokens / kStep;
    const int row = static_cast<int>(threadIdx.x) % Tile::kRows;
    const int first = static_cast<int>(threadIdx.x) / Tile::kRows;
    const int64_t n = first_n_ + row;
    if (n >= p_.N) return;
    float sum[kCount][1];
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      sum[i][0] = 0.0f;
      const int token = first + i * kStep;
      if (token >= p_.M) continue;
      const float* s_value = s_.planes + token * Tile::kPlaneStride + row;
      sum[i][0] = s_value[0];
#pragma unroll
      for (int plane = 1; plane < Tile::kWarpsK; ++plane) {
        sum[i][0] += s_value[plane * (Tile::kTokens * Tile::kPlaneStride)];
      }
    }
    if (p_.splits == 1) {
      FinishOutputs<Element>(p_, OutputBias<1>(p_, n), n, first, kStep, sum);
      return;
    }
    float* g_plane = p_.partial + static_cast<int64_t>(blockIdx.y) * p_.M * p_.N;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int64_t token = first + i * kStep;
      if (token < p_.M) g_plane[token * p_.N + n] = sum[i][0];
    }
  }

  uint32_t x_place_[Tile::kTilesM];  // of the lane's first piece of each token, in bytes
  float sum_[Tile::kTilesN][Tile::kTilesM][4] = {};
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

#define LOWRANK_SMALL_M_TILES(X, format, dtype, kFormat, Element) \
  X(format##_##dtype##_m8, kFormat, Element, SmallMTile8, 2)      \
  X(format##_##dtype##_m16, kFormat, Element, SmallMTile16, 1)    \
  X(format##_##dtype##_m32, kFormat, Element, SmallMTile32, 1)    \
  X(format##_##dtype##_m64, kFormat, Element, SmallMTile64, 1)
#define LOWRANK_SMALL_M_KERNELS(X)                                          \
  LOWRANK_SMALL_M_TILES(X, 4bit, bf16, SmallMFormat::kCode4, ElementBF16T)  \
  LOWRANK_SMALL_M_TILES(X, 4bit, f16, SmallMFormat::kCode4, ElementF16T)    \
  LOWRANK_SMALL_M_TILES(X, 8bit, bf16, SmallMFormat::kCode8, ElementBF16T)  \
  LOWRANK_SMALL_M_TILES(X, 8bit, f16, SmallMFormat::kCode8, ElementF16T)    \
  LOWRANK_SMALL_M_TILES(X, dense, bf16, SmallMFormat::kDense, ElementBF16T) \
  LOWRANK_SMALL_M_TILES(X, dense, f16, SmallMFormat::kDense, ElementF16T)

#define LOWRANK_DEFINE(name, kFormat, Element, Tile, kMinBlocks)                                   \
  LOWRANK_EARLY_KERNEL(matmul_small_m_##name##_kernel, SmallMParams, kSmallMThreads, kMinBlocks) { \
    MmaBlock<kFormat, Element, Tile>(p).Run();                                                     \
  }
LOWRANK_SMALL_M_KERNELS(LOWRANK_DEFINE)
#undef LOWRANK_DEFINE

LOWRANK_KERNEL(matmul_small_m_finish_bf16_kernel, SmallMParams, kSmallMFinishThreads, 4) {
  SmallMFinishBody<ElementBF16T>(p);
}
LOWRANK_KERNEL(matmul_small_m_finish_f16_kernel, SmallMParams, kSmallMFinishThreads, 4) {
  SmallMFinishBody<ElementF16T>(p);
}

}  // namespace lowrank::gpu
