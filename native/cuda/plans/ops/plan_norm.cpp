/// Plans of root-mean-square norms (cuda/model/rms_norm_sm80.cu).
#include <algorithm>
#include <initializer_list>

#include "native/cuda/plans/ops/plan_elementwise.h"
#include "native/cuda/plans/plan_rows.h"
#include "native/host_device/params/rms_norm.h"

namespace lowrank::cuda {
namespace {

/// Elements per run: 8 if all rows have 16 bits. Without a look at the number of rows, so that a
/// row has the same bits in any batch.
int64_t RunOf(std::initializer_list<const TensorView*> rows) {
  const bool wide = std::any_of(rows.begin(), rows.end(), [](const TensorView* view) {
    return view->present && view->dtype == DType::kF32;
  });
  return wide ? 4 : 8;
}

Status PlanInputGrad(const RmsNormBackwardOp& op, Plan* plan) {
  const int64_t run = RunOf({&op.s, &op.dy, &op.d_sum});
  gpu::RmsNormBackwardParams params;
  params.rows = op.s.rows;
  params.cols = op.s.cols;
  params.row_runs = CeilDiv(params.cols, run);
  params.row_lanes = RowLanes(params.row_runs, gpu::kRmsNormBackwardHeld / run);
  params.dy = SmallOperandOf(op.dy, params.cols);
  params.s = SmallOperandOf(op.s, params.cols);
  params.g = SmallOperandOf(op.g, params.cols);
  params.d_sum = SmallOperandOf(op.d_sum, params.cols);
  params.dx = SmallOperandOf(op.dx, params.cols);
  params.inv_rms = static_cast<const float*>(op.inv_rms.data);
  params.plus_one = op.plus_one;
  return AddRowLaunch(op.kName,
                      run == 4 ? "rms_norm_backward_run4_kernel" : "rms_norm_backward_run8_kernel",
                      params, sizeof(gpu::RowSumShared), plan);
}

}  // namespace

Status MakePlan(const RmsNormOp& op, const DeviceLimits&, Workspace*, Plan* plan) {
  if (op.x.rows == 0) return Status();
  const int64_t run = RunOf({&op.x, &op.residual});
  gpu::RmsNormParams params;
  params.rows = op.x.rows;
  params.cols = op.x.cols;
  params.row_runs = CeilDiv(params.cols, run);
  params.row_lanes = RowLanes(params.row_runs, gpu::kRmsNormHeld / run);
  params.x = SmallOperandOf(op.x, params.cols);
  params.residual = SmallOperandOf(op.residual, params.cols);
  params.g = SmallOperandOf(op.g, params.cols);
  params.sum = SmallOperandOf(op.sum, params.cols);
  params.y = SmallOperandOf(op.y, params.cols);
  params.inv_rms = op.inv_rms.present ? static_cast<float*>(op.inv_rms.data) : nullptr;
  params.eps = op.eps;
  params.plus_one = op.plus_one;
  return AddRowLaunch(op.kName, run == 4 ? "rms_norm_run4_kernel" : "rms_norm_run8_kernel", params,
                      sizeof(gpu::RowSumShared), plan);
}

Status MakePlan(const RmsNormBackwardOp& op, const DeviceLimits& device, Workspace* workspace,
                Plan* plan) {
  if (op.dx.present && op.dx.elems() > 0) LOWRANK_RETURN_IF_ERROR(PlanInputGrad(op, plan));
  if (!op.dg.present) return Status();
  SumProductOp sum;
  sum.a = op.dy;
  sum.b = op.s;
  sum.out = op.dg;
  return PlanSumProduct(sum, static_cast<const float*>(op.inv_rms.data), device, workspace, plan);
}

}  // namespace lowrank::cuda
