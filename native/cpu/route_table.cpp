#include "native/cpu/route_table.h"

#include <iterator>

namespace lowrank::cpu {
namespace {

constexpr RouteRow kRows[] = {
    // y = x · wᵀ
    {Route::kTiles, "kTiles", "amx/gemm_amx.h", "any, bf16 activations on avx512-amx", "all",
     "the unit does 16 times the products of a vector, and one arithmetic for all rows keeps a "
     "row's bits in any batch"},
    {Route::kLaneDots, "kLaneDots", "dot/row_dot.h", "in granules of 64 codes, K ≥ 768",
     "up to 7 (4 without 32 registers); up to 64 where K ≥ 32 · rows and x fits into 512 KiB (8 "
     "without 32 registers)",
     "a vector along k has one scale, so a table of 16 products decodes it; w is read once and no "
     "panel is written"},
    {Route::kLaneStrips, "kLaneStrips", "tile/lane_strips.h", "in granules of 64 codes, K ≥ 768",
     "more than kLaneDots takes",
     "the same order of sums with register tiles; the next panel is decoded beside the tiles of "
     "this one"},
    {Route::kDenseDots, "kDenseDots", "dot/dense_dot.h",
     "dense, N of two vectors or more, K in whole vectors",
     "up to three register tiles (42 with AVX-512, 18 with AVX2, 24 with NEON, 12 portable)",
     "rows of w are turned in registers and multiplied there"},
    {Route::kDenseStrips, "kDenseStrips", "tile/dense_strips.h",
     "dense of the products' dtype, K in whole blocks, AVX-512",
     "more than kDenseDots takes; blocks of fewer than 4 panels go the way of kPanels",
     "the next panel is turned in pieces while the tiles multiply"},
    {Route::kPanels, "kPanels", "tile/gemm.h", "any", "all",
     "panels of both operands, in blocks of 256 of the summation index, stay in cache (BLIS)"},
    // the same with `compute: 'int8'`
    {Route::kCodeTiles, "kCodeTiles", "int8/amx_int8.h",
     "4 bits, one scale for 64 codes, avx512-amx", "from 15 of the whole call",
     "a row costs a sixteenth of a tile there, so that fewer rows waste it"},
    {Route::kCodeDots, "kCodeDots", "int8/int8_dot.h",
     "4 bits, one scale for 64 codes, N of a vector or more",
     "up to 14, one register tile, with VNNI; up to 2 without",
     "codes are turned and looked up in registers"},
    {Route::kCodeStrips, "kCodeStrips", "int8/int8_panels.h", "4 bits, one scale for 64 codes",
     "more than kCodeDots takes",
     "panels of codes with the scale of each block serve many rows of x"},
    {Route::kCodePanels, "kCodePanels", "int8/pack_int8.h", "4 bits, other blocks", "all",
     "panels take any block and any K"},
    {Route::kRowCodeDots, "kRowCodeDots", "int8/row_code_products.h", "rowwise int8",
     "up to 18; up to 48 without VNNI, or where rows of w are not whole blocks",
     "both operands are read as they lie"},
    {Route::kRowCodeStrips, "kRowCodeStrips", "int8/row_code_products.h",
     "rowwise int8, K in whole blocks, VNNI",
     "more than kRowCodeDots takes; blocks of fewer than 2 panels go the way of kRowCodePanels",
     "codes are turned beside the tiles"},
    {Route::kRowCodePanels, "kRowCodePanels", "int8/row_code_products.h", "rowwise int8", "all",
     "panels take any K and any instruction set"},
    // dx = dy · w
    {Route::kInputGradTiles, "kInputGradTiles", "amx/gemm_amx.h",
     "any, bf16 activations on avx512-amx", "all",
     "the unit does 16 times the products of a vector, as forward"},
    {Route::kDirectDots, "kDirectDots", "dot/direct_dot.h",
     "dense, K in whole 64s, or 4 bits, one scale for 64 codes",
     "up to 8, or one register tile where that has fewer; 1 of codes without a look-up "
     "instruction, and of f16 without one that widens it",
     "vectors are columns of dx: nothing is packed or turned"},
    {Route::kDirectRowSums, "kDirectRowSums", "dot/direct_dot.h",
     "as kDirectDots, K in one block of columns (2,048 or more)",
     "as kDirectDots, on several threads of which each gets four tasks of 256 rows of w",
     "columns are too few to share; threads share rows of w and their sums are added in order"},
    {Route::kCopiedPanels, "kCopiedPanels", "pack/dense_panels.h", "dense",
     "more than kDirectDots takes", "a panel is a copy of rows of w, made beside the tiles"},
    {Route::kDirectPanels, "kDirectPanels", "pack/pack.h", "any", "all",
     "panels; a 4-bit weight is decoded in pieces beside the tiles"},
};
static_assert(std::size(kRows) == kRouteCount);

constexpr bool InOrder() {
  for (int i = 0; i < kRouteCount; ++i) {
    if (kRows[i].route != static_cast<Route>(i)) return false;
  }
  return true;
}
static_assert(InOrder());

}  // namespace

const RouteRow& RowOf(Route route) { return kRows[static_cast<int>(route)]; }

}  // namespace lowrank::cpu
