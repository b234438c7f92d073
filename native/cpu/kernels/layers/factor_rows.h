/// d_lora_a from rows of x as stored in memory:
///
///   d_lora_a [r, K] (+)= factor · dhᵀ · (gate ⊙ x),   dh [M, r] f32
///
/// Operands    x: rows in f32 or bf16 as stored; or widened to f32 by some rows and columns if they
///             are gated, in f16 or end inside a tile
/// Tasks       blocks of columns, whose sums stay in L2 or closer during the pass over rows
/// Numerics    f32, in the order of rows; sums over kKC of them are added in order: the bits of
///             gemm.h's tiles over panels
/// Budget      two vectors of columns are loaded, for bf16 by one load, a shift and a mask, for
///             2 · ranks multiply-adds; dh by broadcasts. The panels of x that were copied before
///             took longer than the sums at r = 16 (docs/performance/adapters.md)
#pragma once

#include "native/cpu/kernels/isa/base_set.h"
#include "native/cpu/kernels/tile/gemm.h"

namespace lowrank::cpu::LOWRANK_ISA {

// Rows per visit: their lines of a tile stay in L1 until all ranks have used them.
constexpr int64_t kVisitRows = 32;
static_assert(kKC % kVisitRows == 0);
// Sums of a task: 32 KiB, so that they come from L1 or close to it. If there are few ranks, the
// columns of a task are pieces of rows long enough to be prefetched.
constexpr int64_t kFactorSums = 8192;
constexpr int64_t kMostFactorCols = 512;
// Prefetch distance in bytes of a row: two or four tiles. Without it, it takes twice as long.
constexpr int64_t kColumnsAhead = 256;

/// kNR columns of a row: for bf16 the even ones, then the odd ones.
template <typename Policy>
LOWRANK_INLINE void LoadColumns(const char* x, VecF (&columns)[2]) {
  if constexpr (Policy::kPairs) {
    const VecU pairs = LoadU(x);
    columns[0] = reinterpret_cast<VecF>(pairs << 16);
    columns[1] = reinterpret_cast<VecF>(pairs & 0xffff0000u);
  } else {
    columns[0] = Load(x);
    columns[1] = Load(x + kVL * 4);
  }
}

/// c [kRanks, 2 · kVL] (+)= dhᵀ · x.
template <typename Policy, int kRanks>
static void FactorRowsTile(const VisitedRows& visit, float* c, int64_t ldc, Sums sums) {
  constexpr int64_t kTileBytes = 2 * kVL * (Policy::kPairs ? 2 : 4);
  VecF acc[kRanks][2] = {};
  if (sums == Sums::kGoOn) {
#pragma GCC unroll 16
    for (int i = 0; i < kRanks; ++i) {
      acc[i][0] = Load(c + i * ldc);
      acc[i][1] = Load(c + i * ldc + kVL);
    }
  }
  const char* x = visit.x;
  const float* dh = visit.dh;
  for (int64_t m = 0; m < visit.rows; ++m, x += visit.pitch, dh += visit.dh_pitch) {
    VecF columns[2];
    LoadColumns<Policy>(x, columns);
    for (int64_t at = 0; at < kTileBytes; at += 64) __builtin_prefetch(x + kColumnsAhead + at);
#pragma GCC unroll 16
    for (int i = 0; i < kRanks; ++i) {
      const VecF rank = Splat(dh[i]);
      acc[i][0] = Fma(rank, columns[0], acc[i][0]);
      acc[i][1] = Fma(rank, columns[1], acc[i][1]);
    }
  }
  if (sums == Sums::kAdd) {
#pragma GCC unroll 16
    for (int i = 0; i < kRanks; ++i) {
      acc[i][0] = Load(c + i * ldc) + acc[i][0];
      acc[i][1] = Load(c + i * ldc + kVL) + acc[i][1];
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRanks; ++i) {
    Store(c + i * ldc, acc[i][0]);
    Store(c + i * ldc + kVL, acc[i][1]);
  }
}

template <typename Policy, int kRanks>
LOWRANK_INLINE FactorRowsFn PickFactorRows(int ranks) {
  if constexpr (kRanks > 1) {
    if (ranks < kRanks) return PickFactorRows<Policy, kRanks - 1>(ranks);
  }
  return FactorRowsTile<Policy, kRanks>;
}

/// The function for rows in f32 or in bf16 (`pairs`).
static FactorRowsFn FindFactorRows(bool pairs, int ranks) {
  if constexpr (kHasBase) {
    return Base().tiles.factor_rows(pairs, ranks);
  } else {
    return pairs ? PickFactorRows<BF16Policy, kMR>(ranks) : PickFactorRows<F32Policy, kMR>(ranks);
  }
}

/// Half of a tile's columns, from its even ones and its odd ones.
template <int kFirst, int... kLane>
LOWRANK_INLINE VecF PlaceHalf(VecF even, VecF odd, std::integer_sequence<int, kLane...>) {
  return __builtin_shufflevector(even, odd, (kFirst + kLane / 2 + kLane % 2 * kVL)...);
}

/// Puts the even and odd columns of each tile in their places.
LOWRANK_INLINE void PlaceColumns(float* row, int64_t cols) {
  using Sequence = std::make_integer_sequence<int, kVL>;
  for (int64_t n = 0; n < cols; n += 2 * kVL) {
    const VecF even = Load(row + n);
    const VecF odd = Load(row + n + kVL);
    Store(row + n, PlaceHalf<0>(even, odd, Sequence()));
    Store(row + n + kVL, PlaceHalf<kVL / 2>(even, odd, Sequence()));
  }
}

/// c = a block of dhᵀ · x over all rows. `sums` has as much room. Columns past the block's are not
/// used.
LOWRANK_INLINE void SumFactorRows(Run& run, const Grid& grid, const Block& block,
                                  const TensorView& dh, const RowSource& x, float* sums, float* c) {
  const int64_t ldc = block.ldc();
  const int64_t cols = block.n1 - block.n0;
  const bool stored = x.AsStored() && x.dense->dtype != DType::kF16 && cols % (2 * kVL) == 0;
  const bool pairs = stored && x.dense->dtype == DType::kBF16;
  const int64_t bytes = pairs ? 2 : 4;
  float* widened = nullptr;
  if (!stored) widened = run.Get<float>(kASlot, kVisitRows * kMostFactorCols);
  if (!stored && widened == nullptr) return;
  for (int64_t m0 = 0; m0 < x.rows; m0 += kVisitRows) {
    if (m0 % kKC == 0 && run.Stopped()) return;
    const int64_t rows = Min(kVisitRows, x.rows - m0);
    float* to = m0 < kKC ? c : sums;
    const char* first_row = reinterpret_cast<const char*>(widened);
    if (stored) {
      first_row = x.StoredRow(m0) + block.n0 * bytes;
    } else {
      for (int64_t i = 0; i < rows; ++i) {
        RowAsFloat(x, m0 + i, block.n0, cols, widened + i * kMostFactorCols);
      }
    }
    for (int64_t n = 0; n < cols; n += 2 * kVL) {
      grid.rows.Each(block.panel0, block.panel1, [&](int64_t, int64_t i, int ranks) {
        const FactorRowsFn tile = FindFactorRows(pairs, ranks);
        tile({first_row + n * bytes, stored ? x.cols * bytes : kMostFactorCols * 4,
              static_cast<const float*>(dh.data) + m0 * dh.cols + i, dh.cols, rows},
             to + (i - block.m0) * ldc + n, ldc, m0 % kKC == 0 ? Sums::kStart : Sums::kGoOn);
      });
    }
    if (to == c || (m0 + rows < x.rows && (m0 + rows) % kKC != 0)) continue;
    for (int64_t i = 0; i < block.m1 - block.m0; ++i) {
      for (int64_t n = 0; n < cols; n += kVL) {
        Store(c + i * ldc + n, Load(c + i * ldc + n) + Load(sums + i * ldc + n));
      }
    }
  }
  if (!pairs) return;
  for (int64_t i = 0; i < block.m1 - block.m0; ++i) PlaceColumns(c + i * ldc, cols);
}

/// d_lora_a [r, K] (+)= factor · dhᵀ · (gate ⊙ x)
LOWRANK_INLINE void FactorAGrad(Run& run, const TensorView& dh, const TensorView& x_view,
                                const Gate* gate, float factor, const TensorView& out,
                                bool accumulate) {
  RowSource x = DenseRows(x_view);
  x.gate = gate;
  if (out.rows == 0 || out.cols == 0) return;
  const int64_t most = Max(Min(kFactorSums / out.rows, kMostFactorCols) / kNR, 1) * kNR;
  const Grid grid = PlanGrid(out.rows, out.cols, run.context.pool->threads(), kNR, most);
  run.ForEach(grid.tasks(), out.rows * out.cols * x.rows, [&](int64_t task) {
    const Block block = BlockOf(grid, task);
    if (block.m0 == block.m1 || run.Stopped()) return;
    const int64_t elems = block.c_elems();
    float* c = run.Get<float>(kCSlot, x.rows > kKC ? 2 * elems : elems);
    if (c == nullptr) return;
    if (x.rows == 0) std::memset(c, 0, static_cast<size_t>(elems) * sizeof(float));
    SumFactorRows(run, grid, block, dh, x, c + elems, c);
    if (run.Stopped()) return;
    if (factor != 1) {
      for (int64_t i = 0; i < elems; ++i) c[i] *= factor;
    }
    StoreTile(block, c, out, 0, accumulate);
  });
}

}  // namespace lowrank::cpu::LOWRANK_ISA
