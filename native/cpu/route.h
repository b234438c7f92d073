/// Which kernel multiplies rows by a weight. PlanForward() and PlanInputGrad()
/// (kernels/layers/plan_route.h) choose it; docs/cpu-design.md has the table with the reason for
/// each row.
#pragma once

#include <cstdint>

namespace lowrank::cpu {

enum class Route : uint8_t {
  // y = x · wᵀ in the weight's values
  kTiles,        // amx/gemm_amx.h: the matrix unit
  kLaneDots,     // dot/row_dot.h, dot/stored_dot.h: 4-bit weights along k, few rows of x
  kLaneStrips,   // tile/lane_strips.h: 4-bit weights, more rows
  kDenseDots,    // dot/dense_dot.h: dense weights turned in registers, few rows
  kDenseStrips,  // tile/dense_strips.h: dense weights as they lie, more rows
  kPanels,       // tile/gemm.h: any weight, packed in panels
  // y = x · wᵀ with `compute: 'int8'` over 4-bit weights
  kCodeTiles,   // int8/amx_int8.h: the matrix unit
  kCodeDots,    // int8/int8_dot.h: few rows of x
  kCodeStrips,  // int8/int8_panels.h: more rows
  kCodePanels,  // int8/pack_int8.h: blocks that have no one scale
  // y = x · wᵀ of rowwise weights by their codes (int8/row_code_products.h)
  kRowCodeDots,    // few rows of x
  kRowCodeStrips,  // rows of w as they lie
  kRowCodePanels,  // packed in panels
  // dx = dy · w
  kInputGradTiles,  // the matrix unit
  kDirectDots,      // dot/direct_dot.h: few rows of dy, a thread has columns of dx
  kDirectRowSums,   // dot/direct_dot.h: few rows of dy, a thread has rows of w
  kCopiedPanels,    // pack/dense_panels.h: dense weights as they lie
  kDirectPanels,    // pack/pack.h: any weight, packed in panels
};

/// The routes of one product. Chunks of rows are multiplied one after another; the last may have
/// fewer rows, and then another route.
struct ProductRoutes {
  const char* isa = nullptr;  // whose kernels: a set may leave a product to another (base_set.h)
  int64_t chunk_rows = 0;
  Route route = Route::kPanels;  // of chunks of chunk_rows rows
  Route last = Route::kPanels;   // of the rows that are left, where there are any
};

}  // namespace lowrank::cpu
