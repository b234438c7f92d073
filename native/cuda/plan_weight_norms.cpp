/// Norms of a weight: sum_rows over its rows, which are dequantised tile by tile where it is
/// packed.
#include <algorithm>

#include "native/cuda/plan.h"

namespace lowrank::cuda {
namespace {

/// Elements of a tile: 1 MB of f32, which stays in the second-level cache.
constexpr int64_t kTileElems = int64_t{1} << 18;

/// norms[first, first + rows.rows) of `rows`.
Status PlanSums(const TensorView& rows, const TensorView& norms, int64_t first,
                const DeviceLimits& device, Workspace* workspace, Plan* plan) {
  SumProductOp sum;
  sum.a = rows;
  sum.b = rows;
  sum.out = norms;
  sum.out.data = static_cast<float*>(norms.data) + first;
  sum.out.cols = rows.rows;
  sum.axis = 1;
  return MakePlan(sum, device, workspace, plan);
}

}  // namespace

Status MakePlan(const WeightNormsOp& op, const DeviceLimits& device, Workspace* workspace,
                Plan* plan) {
  if (op.norms.elems() == 0) return Status();
  if (!op.w.quantised()) return PlanSums(op.w.dense, op.norms, 0, device, workspace, plan);
  const QuantView& w = op.w.quant;
  if (w.cols == 0) {
    TensorView none;
    none.present = true;
    none.rows = w.rows;
    return PlanSums(none, op.norms, 0, device, workspace, plan);
  }
  const int64_t step = w.RowStep();
  const int64_t tile_rows =
      std::min(std::max<int64_t>(kTileElems / (step * w.cols), 1) * step, w.rows);
  TensorView tile;
  tile.present = true;
  tile.cols = w.cols;
  tile.data = workspace->Take<float>(tile_rows * w.cols);
  for (int64_t first = 0; first < w.rows; first += tile_rows) {
    tile.rows = std::min(tile_rows, w.rows - first);
    LOWRANK_RETURN_IF_ERROR(
        MakePlan(DequantizeOp{w.Rows(first, tile.rows), tile}, device, workspace, plan));
    LOWRANK_RETURN_IF_ERROR(PlanSums(tile, op.norms, first, device, workspace, plan));
  }
  return Status();
}

}  // namespace lowrank::cuda
