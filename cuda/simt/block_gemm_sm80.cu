/// A small product for each of G blocks:
///
///   blockMatmul            y[m, g, n]  = Σ_k x[m, g, k] · w[g, n, k]
///   blockMatmulInputGrad   dx[m, g, k] = Σ_n dy[m, g, n] · w[g, n, k]
///   blockWeightGrad        dw[g, n, k] = Σ_m dy[m, g, n] · x[m, g, k]
///
/// all of them c[g][i, j] = Σ_t a[g](i, t) · b[g](j, t) with strides of their own.
///
/// Operands   each of its own type; in shared memory as f32
/// Tile       32 x 32 elements of c a block of threads, 2 x 2 a thread; where c has 8 columns or
///            fewer 128 x 8, 4 x 1 a thread. The reduction goes by slabs of 16.
/// Grid       (tiles of c, blocks in turns, splits of the reduction); splits are planes of doubles,
///            which sum_planes adds in ascending order
/// Shared     the two slabs, 4,352 bytes, or 8,960
/// Numerics   f32 in ascending order of t, 256 terms at a time, then the sum of those; one rounding
/// Needs      nothing: elements go one by one, neighbouring threads along the operand's run
///
/// Budget     SIMT on purpose: a block of 2 to 64 features has less work an element than a tensor
///            core asks for. At G = 64, N = K = 64 and M = 8,192 in bf16 x and y are 134 MB, 45 us
///            at 3.0 TB/s; the products are 2.1 G fma, of 256 · 132 · 1.755 G a second 36 us, with
///            2 loads of shared memory a fma pair (2 x 2) 72 us. A factor of two to four above the
///            memory's time, beside a base product of 2 · 8,192 · 4,096² (350 us at 780 TFLOP/s).
#include "cuda/common/small_operand.cuh"
#include "native/host_device/params/block_gemm.h"

namespace lowrank::gpu {
namespace {

constexpr int kThreads = kBlockGemmThreads;
constexpr int kDepth = kBlockGemmDepth;

/// Rows [first, first + kRows) of an operand and kDepth of the reduction from t on, zeros beyond
/// either.
template <int kRows>
LOWRANK_DEVICE void FillSlab(const void* g_data, int32_t element, int64_t base, int64_t row_elems,
                             int64_t depth_elems, int64_t first, int64_t rows, int64_t t,
                             int64_t end, float (&s_slab)[kDepth][kRows + 2]) {
  static_assert(kRows * kDepth % kThreads == 0 || kRows * kDepth < kThreads);
#pragma unroll 4
  for (int begin = 0; begin < kRows * kDepth; begin += kThreads) {
    const int place = begin + static_cast<int>(threadIdx.x);
    if (kRows * kDepth < kThreads && place >= kRows * kDepth) return;
    const bool along_depth = depth_elems == 1;
    const int row = along_depth ? place / kDepth : place % kRows;
    const int step = along_depth ? place % kDepth : place / kRows;
    const bool inside = first + row < rows && t + step < end;
    s_slab[step][row] = inside
                            ? LoadSmall(element, g_data,
                                        base + (first + row) * row_elems + (t + step) * depth_elems)
                            : 0.0f;
  }
}

template <int kRows, int kCols>
LOWRANK_DEVICE void BlockGemmBody(const BlockGemmParams& p) {
  // A thread's elements: rows thread / kColThreads + i · kRowStep, columns likewise.
  constexpr int kColThreads = kCols < 16 ? kCols : 16;
  constexpr int kRowStep = kThreads / kColThreads;
  constexpr int kMine = kRows / kRowStep;
  constexpr int kMineCols = kCols / kColThreads;
  using Shared = BlockGemmShared<kRows, kCols>;
  Shared& s = DynamicShared<Shared>();
  const int row = static_cast<int>(threadIdx.x) / kColThreads;
  const int col = static_cast<int>(threadIdx.x) % kColThreads;
  const int64_t first_row = blockIdx.x % p.row_tiles * kRows;
  const int64_t first_col = blockIdx.x / p.row_tiles * kCols;
  const int64_t begin = blockIdx.z * p.depth_per_split;
  const int64_t end = begin + p.depth_per_split < p.depth ? begin + p.depth_per_split : p.depth;
  for (int64_t g = blockIdx.y; g < p.blocks; g += gridDim.y) {
    float total[kMine][kMineCols] = {};
    for (int64_t span = begin; span < end; span += kBlockGemmSpan) {
      const int64_t span_end = span + kBlockGemmSpan < end ? span + kBlockGemmSpan : end;
      float sum[kMine][kMineCols] = {};
      for (int64_t t = span; t < span_end; t += kDepth) {
        FillSlab<kRows>(p.a, p.a_element, g * p.a_block, p.a_row, p.a_depth, first_row, p.rows, t,
                        span_end, s.a);
        FillSlab<kCols>(p.b, p.b_element, g * p.b_block, p.b_row, p.b_depth, first_col, p.cols, t,
                        span_end, s.b);
        __syncthreads();
#pragma unroll 4
        for (int d = 0; d < kDepth; ++d) {
#pragma unroll
          for (int i = 0; i < kMine; ++i) {
#pragma unroll
            for (int j = 0; j < kMineCols; ++j) {
              sum[i][j] =
                  fmaf(s.a[d][row + i * kRowStep], s.b[d][col + j * kColThreads], sum[i][j]);
            }
          }
        }
        __syncthreads();
      }
#pragma unroll
      for (int i = 0; i < kMine; ++i) {
#pragma unroll
        for (int j = 0; j < kMineCols; ++j) total[i][j] += sum[i][j];
      }
    }
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
#pragma unroll
      for (int j = 0; j < kMineCols; ++j) {
        const int64_t c_row = first_row + row + i * kRowStep;
        const int64_t c_col = first_col + col + j * kColThreads;
        if (c_row >= p.rows || c_col >= p.cols) continue;
        if (p.planes != nullptr) {
          const int64_t plane = (blockIdx.z * p.blocks + g) * p.rows;
          p.planes[(plane + c_row) * p.cols + c_col] = static_cast<double>(total[i][j]);
        } else {
          StoreSmall(p.c_element, p.c, g * p.c_block + c_row * p.c_row + c_col, total[i][j]);
        }
      }
    }
  }
}

}  // namespace

LOWRANK_KERNEL(block_gemm_wide_kernel, BlockGemmParams, kThreads, 2) {
  BlockGemmBody<kWideRows, kWideCols>(p);
}

LOWRANK_KERNEL(block_gemm_narrow_kernel, BlockGemmParams, kThreads, 2) {
  BlockGemmBody<kNarrowRows, kNarrowCols>(p);
}

}  // namespace lowrank::gpu
