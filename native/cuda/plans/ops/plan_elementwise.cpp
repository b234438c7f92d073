/// Plans of cuda/elementwise/elementwise_sm80.cu.
#include "native/cuda/plans/ops/plan_elementwise.h"

#include <algorithm>

#include "native/cuda/plans/plan_streaming.h"

namespace lowrank::cuda {
namespace {

/// Rows of this length get a whole block; shorter ones are a few iterations of one warp. Chosen by
/// the length alone, so that a row has the same bits in any batch.
constexpr int64_t kLongRow = 8192;
/// The least rows per split that pay for a block and the sum of the planes.
constexpr int64_t kMinRowsPerSplit = 64;

bool HalfWide(const TensorView& view) { return view.dtype != DType::kF32; }

/// Elements per run: 8 if every operand as large as a has 16 bits.
int64_t RunOf(const TensorView& a, std::initializer_list<const TensorView*> others) {
  if (!HalfWide(a)) return 4;
  for (const TensorView* view : others) {
    if (view->present && view->elems() == a.elems() && !HalfWide(*view)) return 4;
  }
  return 8;
}

/// Does `view` have the shape of a, or hold one value for all, or is it absent? Then all rows can
/// be treated as one row.
bool IsFlat(const TensorView& view, const TensorView& a) {
  return !view.present || (view.rows == a.rows && view.cols == a.cols) || view.elems() == 1;
}

TensorView Flattened(TensorView view) {
  view.cols *= view.rows;
  view.rows = view.present ? 1 : 0;
  return view;
}

LaunchStep Step(const char* run4, const char* run8, int64_t run) {
  LaunchStep step;
  step.kernel = run == 4 ? run4 : run8;
  step.threads = gpu::kElementwiseThreads;
  return step;
}

}  // namespace

gpu::SmallOperand SmallOperandOf(const TensorView& view, int64_t cols) {
  gpu::SmallOperand operand;
  if (!view.present) return operand;
  operand.data = view.data;
  operand.element = static_cast<int32_t>(view.dtype);
  operand.row_elems = view.rows == 1 ? 0 : view.cols;
  operand.one_col = view.cols == 1 && cols != 1;
  operand.vector = IsAligned(view.data, 16) && (view.rows == 1 || view.cols % 8 == 0);
  return operand;
}

Status MakePlan(const MultiplyAddOp& op, const DeviceLimits&, Workspace*, Plan* plan) {
  if (op.y.elems() == 0) return Status();
  MultiplyAddOp flat = op;
  if (IsFlat(op.b, op.a) && IsFlat(op.c, op.a)) {
    for (TensorView* view : {&flat.a, &flat.b, &flat.c, &flat.y}) *view = Flattened(*view);
  }
  const int64_t run = RunOf(flat.a, {&flat.b, &flat.c, &flat.y});
  gpu::MultiplyAddParams params;
  params.rows = flat.a.rows;
  params.cols = flat.a.cols;
  params.a = SmallOperandOf(flat.a, params.cols);
  params.b = SmallOperandOf(flat.b, params.cols);
  params.c = SmallOperandOf(flat.c, params.cols);
  params.y = SmallOperandOf(flat.y, params.cols);
  params.row_runs = CeilDiv(params.cols, run);
  params.alpha = op.alpha;
  params.beta = op.beta;
  LaunchStep step = Step("multiply_add_run4_kernel", "multiply_add_run8_kernel", run);
  LOWRANK_RETURN_IF_ERROR(SetGrid(op.kName, params.rows * params.row_runs,
                                  gpu::kElementwiseThreads * gpu::kElementwiseUnroll, &step));
  step.SetParams(params);
  plan->steps.push_back(std::move(step));
  return Status();
}

Status MakePlan(const MapOp& op, const DeviceLimits&, Workspace*, Plan* plan) {
  if (op.y.elems() == 0) return Status();
  const TensorView a = Flattened(op.a);
  const TensorView y = Flattened(op.y);
  const int64_t run = RunOf(a, {&y});
  gpu::MapParams params;
  params.elems = a.cols;
  params.a = SmallOperandOf(a, a.cols);
  params.y = SmallOperandOf(y, a.cols);
  params.function = static_cast<int32_t>(op.function);
  LaunchStep step = Step("map_run4_kernel", "map_run8_kernel", run);
  LOWRANK_RETURN_IF_ERROR(SetGrid(op.kName, CeilDiv(params.elems, run),
                                  gpu::kElementwiseThreads * gpu::kElementwiseUnroll, &step));
  step.SetParams(params);
  plan->steps.push_back(std::move(step));
  return Status();
}

namespace {

/// By GateFunction.
constexpr const char* kGateKernels[][2] = {
    {"swiglu_run4_kernel", "swiglu_run8_kernel"},
    {"gelu_run4_kernel", "gelu_run8_kernel"},
    {"gelu_tanh_run4_kernel", "gelu_tanh_run8_kernel"},
    {"silu_clamped_run4_kernel", "silu_clamped_run8_kernel"},
};

/// One launch over the elements of both.
Status PlanGate(const char* op, GateFunction function, const TensorView& gate_view,
                const TensorView& up_view, const gpu::GateParams& outputs, int64_t run,
                Plan* plan) {
  gpu::GateParams params = outputs;
  const TensorView gate = Flattened(gate_view);
  params.elems = gate.cols;
  params.gate = SmallOperandOf(gate, gate.cols);
  params.up = SmallOperandOf(Flattened(up_view), gate.cols);
  const auto& [run4, run8] = kGateKernels[static_cast<size_t>(function)];
  LaunchStep step = Step(run4, run8, run);
  LOWRANK_RETURN_IF_ERROR(SetGrid(op, CeilDiv(params.elems, run),
                                  gpu::kElementwiseThreads * gpu::kElementwiseUnroll, &step));
  step.SetParams(params);
  plan->steps.push_back(std::move(step));
  return Status();
}

}  // namespace

Status MakePlan(const GatedActivationOp& op, const DeviceLimits&, Workspace*, Plan* plan) {
  if (op.y.elems() == 0) return Status();
  gpu::GateParams outputs;
  outputs.y = SmallOperandOf(Flattened(op.y), op.y.elems());
  return PlanGate(op.kName, op.function, op.gate, op.up, outputs, RunOf(op.gate, {&op.up, &op.y}),
                  plan);
}

Status MakePlan(const GatedActivationBackwardOp& op, const DeviceLimits&, Workspace*, Plan* plan) {
  if (op.dy.elems() == 0) return Status();
  gpu::GateParams outputs;
  outputs.dy = SmallOperandOf(Flattened(op.dy), op.dy.elems());
  outputs.d_gate = SmallOperandOf(Flattened(op.d_gate), op.dy.elems());
  outputs.d_up = SmallOperandOf(Flattened(op.d_up), op.dy.elems());
  return PlanGate(op.kName, op.function, op.gate, op.up, outputs,
                  RunOf(op.gate, {&op.up, &op.dy, &op.d_gate, &op.d_up}), plan);
}

/// One launch, and a second one for the planes if rows are summed and split over blocks.
Status MakePlan(const SumProductOp& op, const DeviceLimits& device, Workspace* workspace,
                Plan* plan) {
  return PlanSumProduct(op, nullptr, device, workspace, plan);
}

Status PlanSumProduct(const SumProductOp& op, const float* row_scale, const DeviceLimits& device,
                      Workspace* workspace, Plan* plan) {
  if (op.out.elems() == 0) return Status();
  const int64_t run = RunOf(op.a, {&op.b});
  gpu::SumProductParams params;
  params.rows = op.a.rows;
  params.cols = op.a.cols;
  params.a = SmallOperandOf(op.a, params.cols);
  params.b = SmallOperandOf(op.b, params.cols);
  params.row_scale = row_scale;
  params.row_runs = CeilDiv(params.cols, run);
  params.out = static_cast<float*>(op.out.data);
  if (op.axis == 1) {
    params.row_warps = params.cols >= kLongRow ? static_cast<int32_t>(gpu::kSumWarps) : 1;
    LaunchStep step = Step("sum_rows_run4_kernel", "sum_rows_run8_kernel", run);
    LOWRANK_RETURN_IF_ERROR(
        SetGrid(op.kName, params.rows, gpu::kSumWarps / params.row_warps, &step));
    step.shared_bytes = gpu::kSumWarps * sizeof(double);
    step.SetParams(params);
    plan->steps.push_back(std::move(step));
    return Status();
  }
  LaunchStep step = Step("sum_cols_run4_kernel", "sum_cols_run8_kernel", run);
  LOWRANK_RETURN_IF_ERROR(SetGrid(op.kName, params.cols, 32 * run, &step));
  const int64_t wanted = CeilDiv(2 * device.sm_count, static_cast<int64_t>(step.grid.x));
  const int64_t most = CeilDiv(params.rows, kMinRowsPerSplit);
  params.rows_per_split =
      CeilDiv(params.rows, std::clamp<int64_t>(wanted, 1, std::max<int64_t>(most, 1)));
  const int64_t splits =
      params.rows == 0 ? 1 : CeilDiv(params.rows, std::max<int64_t>(params.rows_per_split, 1));
  if (splits > 1) params.planes = workspace->Take<double>(splits * params.cols);
  step.grid.y = static_cast<uint32_t>(splits);
  step.shared_bytes = static_cast<uint32_t>(
      gpu::kSumWarps * run * gpu::SumColsStride(static_cast<int>(run)) * sizeof(double));
  step.SetParams(params);
  plan->steps.push_back(std::move(step));
  if (splits == 1) return Status();

  gpu::SumPlanesParams sum;
  sum.planes = params.planes;
  sum.out = params.out;
  sum.cols = params.cols;
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
