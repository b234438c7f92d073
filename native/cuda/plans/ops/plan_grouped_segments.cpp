/// Plans of a batch in which each adapter has many rows (training, long prompts): the rows of each
/// adapter get their own product with the adapter in its accumulators, by the kernels of
/// loraForward and loraBackward, and the rows without an adapter get one more. Scattered rows are
/// gathered before, and the results are scattered back.
///
///   forward    gather x, loraForward of each segment, scatter y
///   backward   d_bias, gather dy and x, loraBackward of each segment, scatter dx
///
/// In plan_grouped.cpp one product serves all rows, and other launches add the adapters to its f32
/// sums. Here the sums stay in registers, the adapters use tensor cores too, and on Hopper the
/// products use wgmma. Segments lose where they leave multiprocessors idle, so Costs chooses the
/// cheaper plan. This one takes 16-bit activations, one adapter per row without weights, and no
/// dropout, whose bits depend on a row's place in the batch. A row has the same bits at any place.
#include <algorithm>

#include "native/cuda/plans/ops/plan_grouped.h"
#include "native/cuda/plans/plan_cluster.h"
#include "native/cuda/plans/plan_streaming.h"
#include "native/cuda/plans/products/plan_gemm_mma.h"
#include "native/host_device/params/copy_rows.h"

namespace lowrank::cuda {

std::vector<int32_t> WithOthers(const int32_t* list, int64_t count, int64_t all) {
  std::vector<int32_t> whole(list, list + count);
  std::vector<bool> taken(static_cast<size_t>(all), false);
  for (const int32_t i : whole) taken[static_cast<size_t>(i)] = true;
  for (int64_t i = 0; i < all; ++i) {
    if (!taken[static_cast<size_t>(i)]) whole.push_back(static_cast<int32_t>(i));
  }
  return whole;
}

namespace {

/// What both plans cost, in clocks of a whole device: docs/gpu-design.md, "What the budgets count
/// with". Untuned.
struct Costs {
  const DeviceLimits& device;
  int64_t rows, cols, depth;  // of the product: y [rows, cols], contracted over depth
  int64_t largest_r;
  bool packed;  // the weight has 4 bits, and few tokens use wgmma

  bool hopper() const { return device.has_wgmma(); }
  int64_t bytes_a_clock() const { return (hopper() ? 13 : 10) * device.sm_count; }

  /// Tiles of 128 x 128, one wave of them after another.
  int64_t ProductClocks(int64_t of_rows, int64_t multiply_adds_a_clock) const {
    const int64_t tiles = CeilDiv(of_rows, 128) * CeilDiv(cols, 128);
    return CeilDiv(tiles, device.sm_count) * (128 * 128 * depth / multiply_adds_a_clock);
  }
  /// One product for all rows by mma.sync, whose f32 sums are written and read; and `passes` of the
  /// adapters over x, or y, by FFMA at half its rate.
  int64_t Together(int64_t passes, int64_t launches, bool product) const {
    int64_t clocks = launches * kSecondLaunchClocks +
                     passes * rows * (cols + depth) / 2 * largest_r / (64 * device.sm_count);
    if (product) {
      clocks += ProductClocks(rows, hopper() ? 1270 : 1024) + rows * cols * 8 / bytes_a_clock();
    }
    return clocks;
  }
  /// A segment: its product and `launches` further launches.
  int64_t Segment(int64_t of_rows, int64_t launches, bool product) const {
    // wgmma reaches 80 % of its peak.
    const bool wgmma = hopper() && of_rows >= (packed ? 33 : 385);
    const int64_t rate = wgmma ? 1640 : hopper() ? 1270 : 1024;
    return (product ? ProductClocks(of_rows, rate) : 0) + launches * kSecondLaunchClocks;
  }
};

/// Launches and passes of the adapters.
struct Shape {
  int64_t together_launches;
  int64_t together_passes;
  int64_t segment_launches;
  bool product;
  int64_t moved_elems;  // copied by segments, besides the products' operands
};

template <typename Op>
bool SegmentsPay(const Op& op, const Costs& costs, const Shape& shape) {
  if (costs.rows == 0 || costs.cols == 0) return false;
  int64_t clocks = shape.moved_elems * 2 / costs.bytes_a_clock();
  int64_t left = costs.rows;
  for (int64_t e = 0; e < op.table.count; ++e) {
    const int64_t count = op.table.adapters[e].count;
    if (count > 0) clocks += costs.Segment(count, shape.segment_launches, shape.product);
    left -= count;
  }
  if (left > 0 && shape.product) clocks += costs.Segment(left, 1, true);
  return clocks < costs.Together(shape.together_passes, shape.together_launches, shape.product);
}

/// Can segments express this batch?
bool Expressible(const AdapterTable& table, const TensorView& row_scale, const TensorView& mask,
                 DType dtype, const DeviceLimits& device) {
  if (device.batch_invariant || dtype == DType::kF32 || table.slots != 1) return false;
  if (row_scale.present || mask.present) return false;
  return std::all_of(table.adapters, table.adapters + table.count,
                     [](const AdapterRows& e) { return e.count == 0 || e.dropout == 0; });
}

int64_t LargestRank(const AdapterTable& table) {
  int64_t largest = 0;
  for (int64_t e = 0; e < table.count; ++e) largest = std::max(largest, table.adapters[e].r());
  return largest;
}

/// The rows of a batch in the order of its segments.
class InOrder {
 public:
  InOrder(const AdapterTable& table, int64_t rows, Workspace* workspace, Plan* plan)
      : workspace_(workspace), plan_(plan) {
    const std::vector<int32_t> order = WithOthers(table.rows, table.row_count, rows);
    for (size_t i = 0; i < order.size(); ++i)
      moves_ = moves_ || order[i] != static_cast<int32_t>(i);
    if (!moves_) return;
    rows_ = workspace->Take<int32_t>(rows);
    plan->upload.resize(order.size() * sizeof(int32_t));
    std::memcpy(plan->upload.data(), order.data(), plan->upload.size());
    plan->upload_to = rows_;
  }

  bool moves() const { return moves_; }

  /// A matrix of the batch in that order, or space for it.
  Status Gather(const char* op, TensorView* view) {
    if (!moves_ || !view->present) return Status();
    const TensorView from = *view;
    MakeRoom(view);
    return Copy(op, from, *view, false);
  }
  void MakeRoom(TensorView* view) {
    if (!moves_ || !view->present) return;
    view->data = workspace_->Take<unsigned char>(static_cast<int64_t>(view->bytes()));
  }
  /// Back to the original rows.
  Status Scatter(const char* op, const TensorView& from, const TensorView& to) {
    if (!moves_ || !from.present) return Status();
    return Copy(op, from, to, true);
  }

 private:
  Status Copy(const char* op, const TensorView& from, const TensorView& to, bool scatter) {
    if (from.elems() == 0) return Status();
    gpu::CopyRowsParams params;
    params.src = from.data;
    params.dst = to.data;
    params.rows = rows_;
    params.row_bytes = static_cast<int64_t>(from.bytes()) / from.rows;
    params.pieces = static_cast<uint32_t>(CeilDiv(params.row_bytes, gpu::kCopyRowsPieceBytes));
    params.scatter = scatter ? 1 : 0;
    const bool aligned = IsAligned(from.data, 16) && IsAligned(to.data, 16);
    params.vector = aligned && params.row_bytes % 16 == 0 ? 1 : 0;
    LaunchStep step;
    step.kernel = "copy_rows_kernel";
    step.threads = gpu::kCopyRowsThreads;
    LOWRANK_RETURN_IF_ERROR(SetGrid(op, from.rows * params.pieces, 1, &step));
    step.SetParams(params);
    plan_->steps.push_back(std::move(step));
    return Status();
  }

  Workspace* workspace_;
  Plan* plan_;
  bool moves_ = false;
  int32_t* rows_ = nullptr;
};

/// Calls add(adapter, first, count) for each segment, the last without an adapter. Launches run one
/// after another, so all segments share the same workspace. With `gathered`, the first of them
/// starts only when the gathered rows are there, because kernels that start early read the op's
/// operands before they wait.
template <typename AddFn>
Status AddSegments(const AdapterTable& table, int64_t rows, bool gathered, Workspace* workspace,
                   Plan* plan, const AddFn& add) {
  const size_t begin = plan->steps.size();
  const size_t mark = workspace->Mark();
  for (int64_t e = 0; e < table.count; ++e) {
    LOWRANK_RETURN_IF_ERROR(
        add(&table.adapters[e], table.adapters[e].first, table.adapters[e].count));
    workspace->Rewind(mark);
  }
  LOWRANK_RETURN_IF_ERROR(add(nullptr, table.row_count, rows - table.row_count));
  if (gathered && begin < plan->steps.size()) plan->steps[begin].overlaps = false;
  return Status();
}

}  // namespace

bool TakesSegments(const GroupedForwardOp& op, const DeviceLimits& device) {
  if (!Expressible(op.table, op.row_scale, op.mask, op.x.dtype, device)) return false;
  const Costs costs{device,
                    op.x.rows,
                    op.y.cols,
                    op.x.cols,
                    LargestRank(op.table),
                    op.w.quantised() && op.w.quant.format->bits == 4};
  // h by a pass over x; x is gathered, and y is scattered.
  const int64_t moved = op.x.elems() + 2 * (op.x.elems() + op.y.elems());
  return SegmentsPay(op, costs, {3, 2, 2, true, moved});
}

bool TakesSegments(const GroupedBackwardOp& op, const DeviceLimits& device) {
  if (!Expressible(op.table, op.row_scale, op.mask, op.dy.dtype, device)) return false;
  const int64_t of_x = op.dy.rows * op.in_features;
  const Costs costs{device, op.dy.rows, op.in_features, op.dy.cols, LargestRank(op.table), false};
  const int64_t moved = op.dy.elems() + of_x + 2 * (op.dy.elems() + 2 * of_x);
  return SegmentsPay(op, costs, {6, 4, 5, op.dx.present, moved});
}

Status PlanSegments(const GroupedForwardOp& op, const DeviceLimits& device, Workspace* workspace,
                    Plan* plan) {
  InOrder order(op.table, op.x.rows, workspace, plan);
  TensorView x = op.x;
  TensorView y = op.y;
  LOWRANK_RETURN_IF_ERROR(order.Gather(op.kName, &x));
  order.MakeRoom(&y);
  const auto add = [&](const AdapterRows* adapter, int64_t first, int64_t count) {
    if (count == 0) return Status();
    LoraForwardOp part;
    part.x = x.Rows(first, count);
    part.w = op.w;
    part.bias = op.bias;
    part.y = y.Rows(first, count);
    part.compute = op.compute;
    if (adapter == nullptr) return MakePlan(BaseOf(part), device, workspace, plan);
    part.lora_a = adapter->lora_a;
    part.lora_b = adapter->lora_b;
    part.lora_bias = adapter->lora_bias;
    part.scaling = adapter->scaling;
    part.h = adapter->HOf(op.h);
    return MakePlan(part, device, workspace, plan);
  };
  LOWRANK_RETURN_IF_ERROR(AddSegments(op.table, op.x.rows, order.moves(), workspace, plan, add));
  return order.Scatter(op.kName, y, op.y);
}

Status PlanSegments(const GroupedBackwardOp& op, const DeviceLimits& device, Workspace* workspace,
                    Plan* plan) {
  InOrder order(op.table, op.dy.rows, workspace, plan);
  TensorView dy = op.dy;
  TensorView x = op.x;
  TensorView dx = op.dx;
  LOWRANK_RETURN_IF_ERROR(order.Gather(op.kName, &dy));
  LOWRANK_RETURN_IF_ERROR(order.Gather(op.kName, &x));
  if (op.accumulate_dx) {
    LOWRANK_RETURN_IF_ERROR(order.Gather(op.kName, &dx));
  } else {
    order.MakeRoom(&dx);
  }
  const auto add = [&](const AdapterRows* adapter, int64_t first, int64_t count) {
    if (adapter == nullptr) {
      if (count == 0 || !dx.present) return Status();
      GemmMmaOperands rest;
      rest.x = dy.Rows(first, count);
      rest.w = op.w;
      rest.w_transposed = true;
      rest.accumulate = op.accumulate_dx;
      rest.y = dx.Rows(first, count);
      return PlanProduct(rest, device, workspace, plan);
    }
    LoraBackwardOp part;
    part.dy = dy.Rows(first, count);
    part.x = x.Rows(first, count);
    part.w = op.w;
    part.lora_a = adapter->lora_a;
    part.lora_b = adapter->lora_b;
    part.h = adapter->HOf(op.h);
    part.dx = dx.Rows(first, count);
    part.d_lora_a = adapter->d_lora_a;
    part.d_lora_b = adapter->d_lora_b;
    part.d_lora_bias = adapter->d_lora_bias;
    part.accumulate_dx = op.accumulate_dx;
    part.accumulate_d_lora_a = adapter->accumulate_d_lora_a;
    part.accumulate_d_lora_b = adapter->accumulate_d_lora_b;
    part.accumulate_d_lora_bias = adapter->accumulate_d_lora_bias;
    part.scaling = adapter->scaling;
    return MakePlan(part, device, workspace, plan);
  };
  LOWRANK_RETURN_IF_ERROR(AddSegments(op.table, op.dy.rows, order.moves(), workspace, plan, add));
  return order.Scatter(op.kName, dx, op.dx);
}

}  // namespace lowrank::cuda
