/// Plans of what is around the products of experts: routes, gates and weighted sums
/// (cuda/experts/).
#include <algorithm>

#include "native/cuda/plans/ops/plan_elementwise.h"
#include "native/cuda/plans/plan_rows.h"
#include "native/host_device/params/experts.h"

namespace lowrank::cuda {
namespace {

static_assert(gpu::kMostExpertsOfRoute == kMostExperts);

/// Of eight elements, that a lane takes of a row before more lanes share it.
constexpr int64_t kRunsOfExpertLane = 4;

LaunchStep Step(const char* kernel, int threads, size_t shared_bytes) {
  LaunchStep step;
  step.kernel = kernel;
  step.threads = static_cast<uint32_t>(threads);
  step.shared_bytes = static_cast<uint32_t>(shared_bytes);
  return step;
}

template <typename Op>
Status PlanSelect(const Op& op, const char* kernel, size_t shared_bytes,
                  gpu::SelectExpertsParams params, Plan* plan) {
  if (op.logits.rows == 0) return Status();
  params.logits = op.logits.data;
  params.gates = static_cast<float*>(op.gates.data);
  params.rows = op.logits.rows;
  params.experts = static_cast<int32_t>(op.logits.cols);
  params.k = static_cast<int32_t>(op.gates.cols);
  params.element = static_cast<int32_t>(op.logits.dtype);
  params.chosen_only = op.chosen_only ? 1 : 0;
  LaunchStep step = Step(kernel, gpu::kSelectThreads, shared_bytes);
  LOWRANK_RETURN_IF_ERROR(SetGrid(op.kName, params.rows, gpu::kSelectRows, &step));
  step.SetParams(params);
  plan->steps.push_back(std::move(step));
  return Status();
}

template <typename Op>
gpu::CombineRowsParams CombineOf(const Op& op, int64_t rows, int64_t cols) {
  gpu::CombineRowsParams params;
  params.y = SmallOperandOf(op.y, cols);
  params.gates = static_cast<const float*>(op.gates.data);
  params.inverse = op.route.inverse.data;
  if (op.route.offsets.data != nullptr) params.kept = op.route.offsets.data + op.route.experts;
  params.rows = rows;
  params.cols = cols;
  params.row_runs = CeilDiv(cols, 8);
  params.k = static_cast<int32_t>(op.route.k);
  params.row_lanes = RowLanes(params.row_runs, kRunsOfExpertLane);
  return params;
}

}  // namespace

Status MakePlan(const RouteRowsOp& op, const DeviceLimits&, Workspace* workspace, Plan* plan) {
  gpu::RouteRowsParams params;
  params.chosen = op.chosen.data;
  params.order = op.order.data;
  params.inverse = op.inverse.data;
  params.offsets = op.offsets.data;
  params.pairs = op.chosen.count;
  params.experts = static_cast<int32_t>(op.experts);
  const int64_t turns = CeilDiv(params.pairs, gpu::kRouteThreads);
  params.block_pairs = CeilDiv(turns, gpu::kRouteBlocks) * gpu::kRouteThreads;
  params.blocks = turns == 0 ? 0 : static_cast<int32_t>(CeilDiv(params.pairs, params.block_pairs));
  params.counts = workspace->Take<int32_t>((op.experts + 1) * params.blocks);
  LaunchStep count = Step("route_count_kernel", gpu::kRouteThreads, sizeof(gpu::RouteShared));
  count.grid.x = static_cast<uint32_t>(params.blocks);
  count.SetParams(params);
  LaunchStep place = count;
  place.kernel = "route_place_kernel";
  LaunchStep scan = Step("route_scan_kernel", gpu::kRouteScanThreads, sizeof(gpu::RouteScanShared));
  scan.SetParams(params);
  if (params.blocks != 0) plan->steps.push_back(std::move(count));
  plan->steps.push_back(std::move(scan));
  if (params.blocks != 0) plan->steps.push_back(std::move(place));
  return Status();
}

Status MakePlan(const SelectExpertsOp& op, const DeviceLimits&, Workspace*, Plan* plan) {
  gpu::SelectExpertsParams params;
  params.chosen = op.chosen.data;
  return PlanSelect(op, "select_experts_kernel", sizeof(gpu::SelectExpertsShared), params, plan);
}

Status MakePlan(const SelectExpertsBackwardOp& op, const DeviceLimits&, Workspace*, Plan* plan) {
  gpu::SelectExpertsParams params;
  params.chosen = const_cast<int32_t*>(op.chosen.data);  // which it reads
  params.d_gates = static_cast<const float*>(op.d_gates.data);
  params.d_logits = op.d_logits.data;
  return PlanSelect(op, "select_experts_backward_kernel", sizeof(gpu::SelectExpertsBackwardShared),
                    params, plan);
}

Status MakePlan(const CombineRowsOp& op, const DeviceLimits&, Workspace*, Plan* plan) {
  if (op.out.elems() == 0) return Status();
  gpu::CombineRowsParams params = CombineOf(op, op.out.rows, op.out.cols);
  params.out = SmallOperandOf(op.out, params.cols);
  return AddRowLaunch(op.kName, "combine_rows_kernel", params, 0, plan);
}

Status MakePlan(const CombineRowsBackwardOp& op, const DeviceLimits&, Workspace*, Plan* plan) {
  if (op.route.slots() == 0 || (op.dy.elems() == 0 && !op.d_gates.present)) return Status();
  gpu::CombineRowsParams params = CombineOf(op, op.route.slots(), op.d_out.cols);
  params.out = SmallOperandOf(op.d_out, params.cols);
  params.dy = SmallOperandOf(op.dy, params.cols);
  params.d_gates = static_cast<float*>(op.d_gates.data);
  return AddRowLaunch(op.kName, "combine_rows_backward_kernel", params, sizeof(gpu::RowSumShared),
                      plan);
}

}  // namespace lowrank::cuda
