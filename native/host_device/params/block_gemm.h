/// Parameters of the products of blocks.
#pragma once

#include <cstdint>

namespace lowrank::gpu {

constexpr uint32_t kBlockGemmThreads = 256;
constexpr int kBlockGemmDepth = 16;  // of the reduction, a slab
/// Terms of a sum in registers, before it is added to the sum of sums.
constexpr int kBlockGemmSpan = 256;

/// Rows and columns of a block's tile: kWide, and kNarrow for products of few columns.
constexpr int kWideRows = 32;
constexpr int kWideCols = 32;
constexpr int kNarrowRows = 128;
constexpr int kNarrowCols = 8;

/// Padded by two per row, so that the 16 steps of two rows, which a warp stores, are in different
/// banks.
template <int kRows, int kCols>
struct BlockGemmShared {
  float a[kBlockGemmDepth][kRows + 2];
  float b[kBlockGemmDepth][kCols + 2];
};

/// c[g][i, j] = Σ_t a[g](i, t) · b[g](j, t). Strides are in elements.
struct BlockGemmParams {
  const void* a = nullptr;
  const void* b = nullptr;
  void* c = nullptr;
  double* planes = nullptr;  // [splits, blocks, rows, cols], in place of c
  int64_t a_block = 0, a_row = 0, a_depth = 0;
  int64_t b_block = 0, b_row = 0, b_depth = 0;
  int64_t c_block = 0, c_row = 0;
  int64_t blocks = 0;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t depth = 0;
  int64_t depth_per_split = 0;
  int64_t row_tiles = 0;
  int32_t a_element = 0;  // SmallElement
  int32_t b_element = 0;
  int32_t c_element = 0;
};

}  // namespace lowrank::gpu
