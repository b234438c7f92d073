/// y = xᵀ through shared memory, twice: with rows of 32 words, whose columns lie in one bank, and
/// with rows of 33.
///
/// README.md has the commands.
///
/// Operands  x [rows, cols] f32 row-major · y [cols, rows] f32
/// Grid      (cols / 32, rows / 32); 256 threads, each 4 elements of the 32 x 32 tile
/// Shared    32 · kPitch · 4 bytes: 4,096 or 4,224
#include "cuda/gpu.cuh"

struct TransposeParams {
  const float* x;
  float* y;
  uint32_t rows;  // multiples of 32
  uint32_t cols;
};

namespace {

constexpr uint32_t kTile = 32;
constexpr uint32_t kRowsPerStep = 8;  // 256 threads

template <uint32_t kPitch>
struct Tile {
  float values[kTile][kPitch];
};

template <uint32_t kPitch>
__device__ __forceinline__ void TransposeBody(const TransposeParams& p) {
  Tile<kPitch>& s_tile = lowrank::gpu::DynamicShared<Tile<kPitch>>();
  const uint32_t column = threadIdx.x % kTile;
  const uint32_t first_row = threadIdx.x / kTile;
  const uint32_t tile_col = blockIdx.x * kTile;
  const uint32_t tile_row = blockIdx.y * kTile;
  for (uint32_t row = first_row; row < kTile; row += kRowsPerStep) {
    s_tile.values[row][column] = p.x[(tile_row + row) * p.cols + tile_col + column];
  }
  __syncthreads();
  for (uint32_t row = first_row; row < kTile; row += kRowsPerStep) {
    p.y[(tile_col + row) * p.rows + tile_row + column] = s_tile.values[column][row];
  }
}

}  // namespace

LOWRANK_KERNEL(transpose_kernel, TransposeParams, 256, 1) { TransposeBody<kTile>(p); }
LOWRANK_KERNEL(transpose_padded_kernel, TransposeParams, 256, 1) { TransposeBody<kTile + 1>(p); }
