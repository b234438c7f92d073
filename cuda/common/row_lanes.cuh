/// Rows that a part of a warp, a warp, or several warps of a block share.
#pragma once

#include "cuda/gpu.cuh"
#include "native/host_device/params/parts/row_lanes.h"

namespace lowrank::gpu {

/// A lane's place in its block's rows.
struct RowLane {
  int64_t row;
  int64_t lane;  // of the row

  __device__ __forceinline__ explicit RowLane(int row_lanes)
      : row(static_cast<int64_t>(blockIdx.x) * (static_cast<int>(kRowThreads) / row_lanes) +
            static_cast<int>(threadIdx.x) / row_lanes),
        lane(static_cast<int>(threadIdx.x) % row_lanes) {}
};

/// The sum over the lanes of a row, in each of them: the lanes of a warp as a tree, then the warps
/// in ascending order.
LOWRANK_DEVICE double SumOfRow(double sum, int row_lanes, RowSumShared& s) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    const double other = __shfl_xor_sync(0xffffffffu, sum, distance);
    if (distance < row_lanes) sum += other;
  }
  if (row_lanes <= 32) return sum;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int row_warps = row_lanes / 32;
  if (threadIdx.x % 32 == 0) s.warps[warp] = sum;
  __syncthreads();
  double total = 0;
  for (int i = 0; i < row_warps; ++i) total += s.warps[warp / row_warps * row_warps + i];
  return total;
}

}  // namespace lowrank::gpu
