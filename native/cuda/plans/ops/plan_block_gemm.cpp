/// Plans of cuda/simt/block_gemm_sm80.cu.
#include <algorithm>

#include "native/cuda/plans/plan.h"
#include "native/cuda/plans/plan_streaming.h"
#include "native/host_device/params/block_gemm.h"
#include "native/host_device/params/elementwise.h"

namespace lowrank::cuda {
namespace {

/// Rows per plane of the weight gradient: the split depends only on the number of rows.
constexpr int64_t kRowsPerSplit = 1024;

/// An operand as (row, depth) of block g.
struct Strides {
  int64_t block;
  int64_t row;
  int64_t depth;
};

void SetOperands(const TensorView& a, const Strides& a_strides, const TensorView& b,
                 const Strides& b_strides, gpu::BlockGemmParams* params) {
  params->a = a.data;
  params->a_block = a_strides.block;
  params->a_row = a_strides.row;
  params->a_depth = a_strides.depth;
  params->a_element = static_cast<int32_t>(a.dtype);
  params->b = b.data;
  params->b_block = b_strides.block;
  params->b_row = b_strides.row;
  params->b_depth = b_strides.depth;
  params->b_element = static_cast<int32_t>(b.dtype);
}

Status Launch(const char* op, int64_t splits, gpu::BlockGemmParams params, Plan* plan) {
  const bool narrow = params.cols <= gpu::kNarrowCols;
  const int64_t tile_rows = narrow ? gpu::kNarrowRows : gpu::kWideRows;
  const int64_t tile_cols = narrow ? gpu::kNarrowCols : gpu::kWideCols;
  params.row_tiles = CeilDiv(params.rows, tile_rows);
  LaunchStep step;
  step.kernel = narrow ? "block_gemm_narrow_kernel" : "block_gemm_wide_kernel";
  step.threads = gpu::kBlockGemmThreads;
  step.shared_bytes = narrow ? sizeof(gpu::BlockGemmShared<gpu::kNarrowRows, gpu::kNarrowCols>)
                             : sizeof(gpu::BlockGemmShared<gpu::kWideRows, gpu::kWideCols>);
  LOWRANK_RETURN_IF_ERROR(
      SetGrid(op, params.row_tiles * CeilDiv(params.cols, tile_cols), 1, &step));
  step.grid.y = static_cast<uint32_t>(std::min(params.blocks, kMostGridRows));
  step.grid.z = static_cast<uint32_t>(splits);
  step.SetParams(params);
  plan->steps.push_back(std::move(step));
  return Status();
}

/// The products of activations with w: one row of c per row of `in`.
Status PlanProducts(const char* op, const TensorView& in, const TensorView& w,
                    const Strides& w_strides, const TensorView& out, int64_t blocks, Plan* plan) {
  if (out.elems() == 0) return Status();
  gpu::BlockGemmParams params;
  SetOperands(in, {in.cols, blocks * in.cols, 1}, w, w_strides, &params);
  params.c = out.data;
  params.c_block = out.cols;
  params.c_row = blocks * out.cols;
  params.c_element = static_cast<int32_t>(out.dtype);
  params.blocks = blocks;
  params.rows = in.rows / blocks;
  params.cols = out.cols;
  params.depth = in.cols;
  params.depth_per_split = params.depth;
  return Launch(op, 1, params, plan);
}

}  // namespace

Status MakePlan(const BlockMatmulOp& op, const DeviceLimits&, Workspace*, Plan* plan) {
  const Strides w = {op.y.cols * op.w.cols, op.w.cols, 1};
  return PlanProducts(op.kName, op.x, op.w, w, op.y, op.blocks, plan);
}

Status MakePlan(const BlockMatmulInputGradOp& op, const DeviceLimits&, Workspace*, Plan* plan) {
  const Strides w = {op.dy.cols * op.w.cols, 1, op.w.cols};
  return PlanProducts(op.kName, op.dy, op.w, w, op.dx, op.blocks, plan);
}

/// One launch, and a second one for the planes if there are enough rows for several.
Status MakePlan(const BlockWeightGradOp& op, const DeviceLimits&, Workspace* workspace,
                Plan* plan) {
  if (op.dw.elems() == 0) return Status();
  gpu::BlockGemmParams params;
  const int64_t blocks = op.blocks;
  SetOperands(op.dy, {op.dy.cols, 1, blocks * op.dy.cols}, op.x, {op.x.cols, 1, blocks * op.x.cols},
              &params);
  params.c = op.dw.data;
  params.c_block = op.dy.cols * op.x.cols;
  params.c_row = op.x.cols;
  params.blocks = blocks;
  params.rows = op.dy.cols;
  params.cols = op.x.cols;
  params.depth = op.dy.rows / blocks;
  const int64_t most = CeilDiv(params.depth, kRowsPerSplit);
  params.depth_per_split =
      most > kMostGridRows ? CeilDiv(params.depth, kMostGridRows) : kRowsPerSplit;
  const int64_t splits = std::max<int64_t>(CeilDiv(params.depth, params.depth_per_split), 1);
  if (splits > 1) params.planes = workspace->Take<double>(splits * op.dw.elems());
  LOWRANK_RETURN_IF_ERROR(Launch(op.kName, splits, params, plan));
  if (splits == 1) return Status();

  gpu::SumPlanesParams sum;
  sum.planes = params.planes;
  sum.out = static_cast<float*>(op.dw.data);
  sum.cols = op.dw.elems();
  sum.splits = static_cast<int32_t>(splits);
  LaunchStep last;
  last.kernel = "sum_planes_kernel";
  last.threads = gpu::kElementwiseThreads;
  LOWRANK_RETURN_IF_ERROR(SetGrid(op.kName, sum.cols, gpu::kElementwiseThreads, &last));
  last.SetParams(sum);
  plan->steps.push_back(std::move(last));
  return Status();
}

}  // namespace lowrank::cuda
