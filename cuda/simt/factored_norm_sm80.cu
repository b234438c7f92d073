/// The norms of the rows of w + scaling · lora_b · lora_a, from what the products left:
///
///   norms[n] = √(squares[n] + 2 · scaling · Σⱼ b[n, j] · (P[j, n] + scaling / 2 · s[n, j])),
///   s[n, j]  = Σᵢ G[j, i] · b[n, i]
///
/// Operands   P = lora_a · wᵀ [r, N], G = lora_a · lora_aᵀ [r, r], both in planes, squares, norms
///            [N] f32 · b = lora_b [N, r] f32, bf16 or f16
/// Grid       ceil(N / 32): a lane has one n, a warp two j of each tile of 16
/// Shared     a tile of G, 16 x 16, and one of b turned, 16 x 32 in rows of 34: a warp stores two
///            rows n of 16, which meet banks 2 i and 2 i + 1, and reads 32 neighbours; sums, 2 KB
/// Numerics   planes of P and of G in order, as lora_reduce adds them; Σᵢ in f32, i ascending; the
///            sums with b in double: a thread over its j, then the warps in order; the square is
///            rounded to f32 and counts as 0 below 0
/// Needs      nothing
///
/// Budget     4096 x 4096, r = 16, 128 blocks: two planes of 256 KB of P, 256 KB of b, 16 KB of G a
///            block from L2, where the launches before have left P and G. All loads of a tile are
///            asked for before the first barrier, so that it takes the time of one latency and of
///            the barriers, 0.7 us after the launch before, beside the 2.9 that reading w takes; 16
///            planes of G are 2 MB in all blocks, 0.3 us of what L2 gives. Σᵢ is r² multiplications
///            an n, 16.8 million at r = 64: 0.6 us.
#include "cuda/common/planes.cuh"
#include "cuda/common/small_operand.cuh"
#include "native/host_device/params/factored_norm.h"

namespace lowrank::gpu {
namespace {

constexpr int kRanks = 16;  // of a tile, on both sides
constexpr int kRows = kFactoredNormRows;
constexpr int kWarps = kFactoredNormThreads / 32;
constexpr int kOwn = kRanks / kWarps;  // j of a warp in a tile
constexpr int kGramAtOnce = 16;
constexpr int kProductAtOnce = 4;

struct FactoredNormShared {
  float gram[kRanks][kRanks];
  float b[kRanks][kRows + 2];
  double sums[kWarps][kRows];
};

/// The tile of G from (j0, i0) on, and of b's columns from i0 on; zero outside.
LOWRANK_DEVICE void FillTiles(const FactoredNormParams& p, int64_t n0, int64_t j0, int64_t i0,
                              FactoredNormShared& s) {
  const int row = static_cast<int>(threadIdx.x) / kRanks;
  const int col = static_cast<int>(threadIdx.x) % kRanks;
  const bool inside = i0 + col < p.r;
  s.gram[row][col] = inside && j0 + row < p.r
                         ? SumPlanes<kGramAtOnce>(p.gram + (j0 + row) * p.r + i0 + col,
                                                  p.gram_plane_elems, p.gram_planes)
                         : 0.0f;
#pragma unroll
  for (int i = 0; i < kRows; i += kRanks) {
    const int64_t n = n0 + row + i;
    s.b[col][row + i] =
        inside && n < p.N ? LoadSmall(p.lora_b_element, p.lora_b, n * p.r + i0 + col) : 0.0f;
  }
}

LOWRANK_DEVICE void FactoredNormBody(const FactoredNormParams& p) {
  static_assert(sizeof(FactoredNormShared) == kFactoredNormSharedBytes, "what the plan asks for");
  static_assert(kFactoredNormThreads == kRanks * kRanks && kOwn * kWarps == kRanks);
  FactoredNormShared& s = DynamicShared<FactoredNormShared>();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t n0 = static_cast<int64_t>(blockIdx.x) * kRows;
  const int64_t n = n0 + lane;
  const float square = warp == 0 && n < p.N ? p.squares[n] : 0.0f;
  double sum = 0;
  for (int64_t j0 = 0; j0 < p.r; j0 += kRanks) {
    float half[kOwn] = {};
    float own[kOwn] = {};
    float product[kOwn];
#pragma unroll
    for (int q = 0; q < kOwn; ++q) {
      const int64_t j = j0 + warp * kOwn + q;
      product[q] = j < p.r && n < p.N ? SumPlanes<kProductAtOnce>(p.product + j * p.N + n,
                                                                  p.r * p.N, p.product_planes)
                                      : 0.0f;
    }
    for (int64_t i0 = 0; i0 < p.r; i0 += kRanks) {
      FillTiles(p, n0, j0, i0, s);
      __syncthreads();
#pragma unroll
      for (int i = 0; i < kRanks; ++i) {
        const float b = s.b[i][lane];
#pragma unroll
        for (int q = 0; q < kOwn; ++q) half[q] = fmaf(s.gram[warp * kOwn + q][i], b, half[q]);
      }
      if (i0 == j0) {
#pragma unroll
        for (int q = 0; q < kOwn; ++q) own[q] = s.b[warp * kOwn + q][lane];
      }
      __syncthreads();
    }
#pragma unroll
    for (int q = 0; q < kOwn; ++q) {
      if (j0 + warp * kOwn + q >= p.r) continue;
      const float t = product[q] + 0.5f * p.scaling * half[q];
      sum += static_cast<double>(own[q]) * static_cast<double>(t);
    }
  }
  s.sums[warp][lane] = sum;
  __syncthreads();
  if (warp != 0 || n >= p.N) return;
  sum = 0;
#pragma unroll
  for (int i = 0; i < kWarps; ++i) sum += s.sums[i][lane];
  const double factor = 2.0 * static_cast<double>(p.scaling);
  const auto value = static_cast<float>(static_cast<double>(square) + factor * sum);
  p.norms[n] = sqrtf(value < 0.0f ? 0.0f : value);
}

}  // namespace

LOWRANK_KERNEL(factored_norm_kernel, FactoredNormParams, kFactoredNormThreads, 4) {
  FactoredNormBody(p);
}

}  // namespace lowrank::gpu
