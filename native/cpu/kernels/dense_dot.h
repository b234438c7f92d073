/// y = x · wᵀ of few rows of x over a dense w: kVL rows of w at a time, turned in registers.
///
///   w   [N, K] row-major in f32, bf16 or f16: a row from its begin to its end
///   x   one A panel of all rows in the natural order (pack.h)
///
/// Panels would be written once and read once, and a block of them has kKC columns of many rows:
/// of memory that is read in pieces of 512 bytes half of the bandwidth is left.
///
/// Numerics   those of tile.h, bit for bit: products in the order of k, sums over kKC in order
/// Budget     kVL² units: kVL loads, 4 · kVL shuffles and kVL products a row of x. On cores of 2 x
///            256 bits f32 takes 0.3 cycles a weight, where memory takes 0.7
#pragma once

#include "native/cpu/kernels/gemm.h"
#include "native/cpu/kernels/granule.h"

namespace lowrank::cpu::LOWRANK_ISA {

// Rows of x beside the rows of w that are turned. A second pass over these, which are in L2 by
// then, takes 0.75 of what panels do in f32 and as long in bf16.
constexpr int kDensePass = kRegisters == 32 ? 6 : 3;
template <typename Policy>
constexpr int64_t kDenseDotRows = Policy::kPairs         ? kDensePass
                                  : 2 * kDensePass < kMR ? 2 * kDensePass
                                                         : kMR;
// Bytes of a row of w asked for ahead; past its end, of the row that follows in this place.
constexpr int64_t kDenseAhead = 1024;

/// Units [u, u + kVL) of a row of w.
template <typename Policy, DType kStored>
LOWRANK_INLINE VecF LoadUnits(const char* row, int64_t u) {
  if constexpr (Policy::kPairs) return Load(row + u * 4);
  return LoadWide(row, kStored, u);
}

/// c[m][lane] of kVL rows of w, the last of `rows` standing for those that are not there.
template <typename Policy, DType kStored, int kRows>
static void DenseDot(const TensorView& w, int64_t n, int rows, const Unit* x, int64_t x_rows,
                     float* c, int64_t ldc, bool ask) {
  constexpr int64_t kUnitBytes = Policy::kPairs || kStored == DType::kF32 ? 4 : 2;
  const int64_t units = Policy::Units(w.cols);
  const int64_t row_bytes = units * kUnitBytes;
  const char* first = static_cast<const char*>(w.data) + n * row_bytes;
  const int64_t last = (rows - 1) * row_bytes;
  VecF acc[kRows] = {};
  int64_t left = Policy::Units(kKC);
  bool begun = false;
  const auto end_block = [&] {
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m) {
      Store(c + m * ldc, begun ? Load(c + m * ldc) + acc[m] : acc[m]);
      acc[m] = VecF{};
    }
    begun = true;
    left = Policy::Units(kKC);
  };
  for (int64_t u = 0; u < units; u += kVL, x += kVL * x_rows) {
    if (left == 0) end_block();
    left -= kVL;
    const int64_t at = u * kUnitBytes;
    const int64_t ahead = at + kDenseAhead;
    const int64_t beyond = ahead < row_bytes ? ahead : ahead + (kVL - 1) * row_bytes;
    const int64_t asked = ask ? beyond : at;
    VecF r[kVL];
#pragma GCC unroll 16
    for (int i = 0; i < kVL; ++i) {
      const int64_t row = Min(i * row_bytes, last);
      __builtin_prefetch(first + row + asked, 0, 2);
      r[i] = LoadUnits<Policy, kStored>(first + row, u);
    }
    Transpose(r);
#pragma GCC unroll 16
    for (int i = 0; i < kVL; ++i) {
#pragma GCC unroll 8
      for (int m = 0; m < kRows; ++m) {
        acc[m] = Policy::Step(acc[m], x[i * x_rows + m], r[i]);
      }
    }
  }
  end_block();
}

using DenseDotFn = void (*)(const TensorView& w, int64_t n, int rows, const Unit* x, int64_t x_rows,
                            float* c, int64_t ldc, bool ask);

template <typename Policy, DType kStored, int kRows>
LOWRANK_INLINE DenseDotFn PickDenseDot(int64_t rows) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return PickDenseDot<Policy, kStored, kRows - 1>(rows);
  }
  return DenseDot<Policy, kStored, kRows>;
}

template <typename Policy>
LOWRANK_INLINE DenseDotFn PickDenseDot(int64_t rows, DType stored) {
  if constexpr (Policy::kPairs) {
    return PickDenseDot<Policy, DType::kBF16, kDensePass>(rows);
  } else {
    if (stored == DType::kBF16) return PickDenseDot<Policy, DType::kBF16, kDensePass>(rows);
    if (stored == DType::kF16) return PickDenseDot<Policy, DType::kF16, kDensePass>(rows);
    return PickDenseDot<Policy, DType::kF32, kDensePass>(rows);
  }
}

/// Does AccumulateDenseDots take this product?
template <typename Policy>
LOWRANK_INLINE bool TakesDenseDots(int64_t rows, const RowSource& w) {
  constexpr int64_t kWhole = kVL * (Policy::kPairs ? 2 : 1);
  return !Policy::kTiles && w.dense != nullptr && rows <= kDenseDotRows<Policy> && w.cols > 0 &&
         w.cols % kWhole == 0;
}

/// c [m1 - m0, n1 - n0] = x · wᵀ over all of the summation index, where TakesDenseDots() holds and
/// the chunk is all of the block's rows, one panel.
template <typename Policy>
LOWRANK_INLINE void AccumulateDenseDots(Run& run, const PackedChunk& chunk, const RowSource& w,
                                        const Block& block, float* c) {
  const RowPanels passes = {chunk.rows, CeilDiv(chunk.rows, kDensePass)};
  for (int64_t n = block.n0; n < block.n1 && !run.Stopped(); n += kVL) {
    const int rows = static_cast<int>(Min(kVL, block.n1 - n));
    passes.Each(0, passes.count, [&](int64_t pass, int64_t m, int mr) {
      PickDenseDot<Policy>(mr, w.dense->dtype)(*w.dense, n, rows, chunk.data + m, chunk.rows,
                                               c + m * block.ldc() + n - block.n0, block.ldc(),
                                               pass == 0);
    });
  }
}

}  // namespace lowrank::cpu::LOWRANK_ISA
