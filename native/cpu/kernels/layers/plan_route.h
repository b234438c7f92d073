/// Selects the kernel that multiplies a chunk of rows by a weight. This is the only place that
/// decides.
///
/// Each condition states what its kernel needs from the operands, and the number of rows up to
/// which it is faster than the next; the constant for that number has its measurement. All routes
/// that rows of one product can take give the same bits (sum_order.h).
#pragma once

#include "native/cpu/kernels/amx/gemm_amx.h"
#include "native/cpu/kernels/dot/dense_dot.h"
#include "native/cpu/kernels/dot/direct_dot.h"
#include "native/cpu/kernels/dot/stored_dot.h"
#include "native/cpu/kernels/int8/amx_int8.h"
#include "native/cpu/kernels/int8/int8_dot.h"
#include "native/cpu/kernels/int8/row_code_products.h"
#include "native/cpu/kernels/pack/dense_panels.h"
#include "native/cpu/kernels/tile/dense_strips.h"
#include "native/cpu/kernels/tile/lane_strips.h"

namespace lowrank::cpu::LOWRANK_ISA {

/// The order of the sums of x · wᵀ.
template <typename Policy>
LOWRANK_INLINE SumOrder OrderOf(const RowSource& w) {
  return Policy::kCodes ? NaturalOrder(w.cols) : ForwardOrder(w, Policy::kTiles);
}

/// Ways to pack x that other products of the same rows can share.
struct Packings {
  bool columns = true;  // for the matrix unit
  bool dots = true;     // for few rows
};

/// The route for y = x · wᵀ, for `rows` of the `all_rows` of x.
template <typename Policy>
LOWRANK_INLINE Route PlanForward(int64_t all_rows, int64_t rows, const RowSource& w,
                                 const SumOrder& order, const Packings& may) {
  const int64_t depth = order.depth;
  if constexpr (Policy::kTiles) {
    return Route::kTiles;
  } else if constexpr (kIsRowCodes<Policy>) {
    const bool turns = TurnsRows<Policy>(w, depth);
    if (rows <= (turns ? kMostCodeDotRows : kMostCodeDotRowsPacked)) return Route::kRowCodeDots;
    return turns ? Route::kRowCodeStrips : Route::kRowCodePanels;
  } else if constexpr (kIsInt8<Policy>) {
    if (!WholeGranules(w)) return Route::kCodePanels;
    if (kHasTiles && may.columns && all_rows >= kLeastCodeColumns) return Route::kCodeTiles;
    if (may.dots && rows <= kInt8DotRows && w.quant->rows >= kVL) return Route::kCodeDots;
    return Route::kCodeStrips;
  } else {
    if (order.by_lanes) {
      const bool stored = rows <= Min(kMostDotRows, depth / kDotDepthPerRow) &&
                          rows * Policy::Units(depth) <= kMostDotUnits;
      return rows < kLeastStoredRows || stored ? Route::kLaneDots : Route::kLaneStrips;
    }
    constexpr int64_t kWhole = kVL * (Policy::kPairs ? 2 : 1);
    if (may.dots && w.dense != nullptr && rows <= kDenseDotRows && depth > 0 &&
        depth % kWhole == 0 && w.dense->rows >= kNR) {
      return Route::kDenseDots;
    }
    return TurnsRows<Policy>(w, depth) ? Route::kDenseStrips : Route::kPanels;
  }
}

/// Is x packed for passes over few rows?
LOWRANK_INLINE bool ForDots(Route route) {
  return route == Route::kLaneDots || route == Route::kDenseDots || route == Route::kCodeDots ||
         route == Route::kRowCodeDots;
}

/// The routes of products that share the packed rows of x. If one of them cannot use a packing,
/// none does.
template <typename Policy, typename Weights>
LOWRANK_INLINE void PlanRoutes(int64_t all_rows, int64_t rows, const SumOrder& order,
                               Weights* weights, int count) {
  Packings may;
  const auto plan = [&] {
    Packings all;
    for (int i = 0; i < count; ++i) {
      weights[i].route = PlanForward<Policy>(all_rows, rows, weights[i].w, order, may);
      all.columns = all.columns && ByColumns(weights[i].route);
      all.dots = all.dots && ForDots(weights[i].route);
    }
    return all;
  };
  if (Policy::kTiles || count == 1) {
    plan();
    return;
  }
  may.columns = plan().columns;
  may.dots = plan().dots;
  plan();
}

/// The route for dx = dy · w, for `rows` of dy; w is null if only dh is wanted.
template <typename Policy>
LOWRANK_INLINE Route PlanInputGrad(int64_t rows, const RowSource* w, int threads) {
  if constexpr (Policy::kTiles) {
    return Route::kInputGradTiles;
  } else {
    if (w == nullptr) return Route::kDirectPanels;
    const bool dense = w->dense != nullptr;
    const int64_t most = !dense                           ? kDirectCodeRows
                         : w->dense->dtype == DType::kF16 ? kDirectHalfRows
                                                          : kDirectRows;
    const bool whole =
        w->cols > 0 && w->cols % kGranule == 0 && (dense || SpreadsColumns(*w) || DecodesRows(*w));
    if (rows <= most && whole && w->rows != 0) {
      const bool shares = threads > 1 && w->cols <= DirectDotColumns(rows) &&
                          CeilDiv(w->rows, kKC) >= threads * kTasksPerThread;
      return shares ? Route::kDirectRowSums : Route::kDirectDots;
    }
    const bool pairs = w->rows % (Policy::kPairs ? 2 : 1) == 0;
    return dense && w->AsStored() && pairs ? Route::kCopiedPanels : Route::kDirectPanels;
  }
}

/// The panels of a chunk's rows, as the kernel of its route needs them.
LOWRANK_INLINE RowPanels PanelsOf(Route route, int64_t rows) {
  switch (route) {
    case Route::kTiles:
    case Route::kCodeTiles:
      return TilePanels(rows);
    case Route::kLaneDots:
      return DotPasses(rows);
    case Route::kDenseDots:
      return DenseDotPasses(rows);
    case Route::kRowCodeDots:
      return CodeDotPasses(rows);
    default:
      return SplitRows(rows);
  }
}

}  // namespace lowrank::cpu::LOWRANK_ISA
