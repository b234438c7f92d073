/// Plans of the products of a layer of experts (cuda/mma/experts_mma_sm80.cu; with f32 operands
/// cuda/simt/gemm_f32_sm80.cu).
///
///   forward     with LoRA: the tables, h; the product
///   backward    with LoRA: the tables, dh and the sum of its slices; dx, d_lora_a, d_lora_b
///
/// To the kernels of many adapters an expert is an adapter whose rows are its slots
/// (cuda/experts/expert_table_sm80.cu). How many slots an expert has is known on the device alone:
/// the grids are for as many tiles as there may be, and no launch is of one expert.
#include "native/cuda/plans/factors/plan_lora_grad.h"
#include "native/cuda/plans/ops/plan_grouped.h"
#include "native/cuda/plans/products/plan_gemm_mma.h"

namespace lowrank::cuda {
namespace {

/// A factor, or its gradient, of expert 0, and the bytes to that of the next one.
struct ExpertFactor {
  TensorView first;
  int64_t next = 0;
  bool shared = false;

  /// @param rows of one expert
  ExpertFactor(const TensorView& view, int64_t rows) {
    if (!view.present) return;
    shared = view.rows == rows;
    first = view.Rows(0, rows);
    next = shared ? 0 : static_cast<int64_t>(first.bytes());
  }
};

/// What the launches over adapters share: the tables are made by the first launch.
class ExpertAdapters {
 public:
  template <typename Op>
  ExpertAdapters(const Op& op, int64_t N, float* h, Workspace* workspace)
      : r_(op.lora_b.cols),
        experts_(op.route.experts),
        lora_a_(op.lora_a, r_),
        lora_b_(op.lora_b, N) {
    table_.slots = ExpertSlotsOf(op.route, op.gather);
    const int64_t slots = op.route.slots();
    sizes_ = {gpu::MostExpertTiles(slots, experts_, gpu::kGroupedTile), r_,
              std::min<int64_t>(slots, gpu::kGroupedTile)};
    table_.tile_count = static_cast<int32_t>(sizes_.tiles);
    table_.adapters = workspace->Take<gpu::GroupedAdapter>(experts_ + 1);
    table_.tiles = workspace->Take<gpu::GroupedRowTile>(sizes_.tiles);
    table_.rows = workspace->Take<int32_t>(slots);
    table_.own = workspace->Take<int32_t>(slots);
    table_.h = h;
    adapter_.lora_a = lora_a_.first;
    adapter_.lora_b = lora_b_.first;
    adapter_.scaling = op.scaling;
    params_.adapters = table_.adapters;
    params_.tiles = table_.tiles;
    params_.rows = table_.own;
    params_.N = N;
    params_.K = op.w.cols();
  }

  void SetGradients(const ExpertFactor& d_lora_a, const ExpertFactor& d_lora_b) {
    adapter_.d_lora_a = d_lora_a.first;
    adapter_.d_lora_b = d_lora_b.first;
    table_.next_d_a = d_lora_a.next;
    table_.next_d_b = d_lora_b.next;
  }

  void AddTable(Plan* plan) {
    table_.first = GroupedAdapterOf(adapter_, false);
    table_.next_a = lora_a_.next;
    table_.next_b = lora_b_.next;
    LaunchStep step;
    step.kernel = "expert_table_kernel";
    step.threads = gpu::kExpertTableThreads;
    step.grid.x = static_cast<uint32_t>(std::max<int64_t>(sizes_.tiles, experts_ + 1));
    step.SetParams(table_);
    plan->steps.push_back(std::move(step));
  }

  /// Parameters of a launch whose rows are the slots.
  const gpu::GroupedParams& OfSlots() const { return params_; }
  /// And of one whose rows are those of x.
  gpu::GroupedParams OfRows(const TensorView& x) const {
    gpu::GroupedParams params = params_;
    params.x = x.data;
    params.x_element = LoraElementOf(x.dtype);
    params.rows = table_.rows;
    return params;
  }
  /// The gradient of a factor: of each expert, or of all at once.
  Status AddGradient(const char* op, const char* kernel, bool shared, int64_t rows, int64_t cols,
                     gpu::GroupedParams params, Plan* plan) const {
    if (shared && params.adapters != nullptr) params.adapters += experts_;
    return AddGroupedStep(op, kernel, shared ? 1 : experts_, rows, cols, params, plan);
  }

  const GroupedSizes& sizes() const { return sizes_; }
  int64_t r() const { return r_; }
  bool shares_a() const { return lora_a_.shared; }
  bool shares_b() const { return lora_b_.shared; }

 private:
  int64_t r_;
  int64_t experts_;
  ExpertFactor lora_a_;
  ExpertFactor lora_b_;
  GroupedSizes sizes_;
  AdapterRows adapter_;
  gpu::ExpertTableParams table_{};
  gpu::GroupedParams params_{};
};

}  // namespace

Status MakePlan(const ExpertsForwardOp& op, const DeviceLimits& device, Workspace* workspace,
                Plan* plan) {
  ExpertsOfProduct experts{op.route, op.gather, false};
  GemmMmaOperands product;
  product.x = op.x;
  product.w = op.w;
  product.bias = op.bias;
  product.y = op.y;
  product.experts = &experts;
  if (op.route.slots() == 0) return Status();
  if (op.lora_a.present && op.lora_b.cols > 0) {
    float* h = static_cast<float*>(op.h.data);
    ExpertAdapters adapters(op, op.y.cols, h, workspace);
    adapters.AddTable(plan);
    gpu::GroupedParams shrink = adapters.OfRows(op.x);
    shrink.h = h;
    LOWRANK_RETURN_IF_ERROR(AddGroupedShrink(op.kName, adapters.sizes(), device, shrink, plan));
    experts.shared_factor = adapters.shares_b();
    product.h = h;
    product.lora_factor = op.lora_b;
    product.scaling = op.scaling;
  }
  return PlanProduct(product, device, workspace, plan);
}

Status MakePlan(const ExpertsBackwardOp& op, const DeviceLimits& device, Workspace* workspace,
                Plan* plan) {
  const bool lora = op.lora_a.present && op.lora_b.cols > 0;
  const bool needs_a = lora && op.d_lora_a.elems() > 0;
  const bool needs_b = lora && op.d_lora_b.elems() > 0;
  const bool needs_dx = op.dx.elems() > 0;
  ExpertsOfProduct experts{op.route, false, false};
  GemmMmaOperands product;
  product.x = op.dy;
  product.w = op.w;
  product.w_transposed = true;
  product.y = op.dx;
  product.experts = &experts;
  if (!lora) return needs_dx ? PlanProduct(product, device, workspace, plan) : Status();
  if (!needs_a && !needs_b && !needs_dx) return Status();
  ExpertAdapters adapters(op, op.dy.cols, nullptr, workspace);
  const int64_t r = adapters.r();
  const ExpertFactor d_lora_a(op.d_lora_a, r);
  const ExpertFactor d_lora_b(op.d_lora_b, op.dy.cols);
  adapters.SetGradients(d_lora_a, d_lora_b);
  adapters.AddTable(plan);
  gpu::GroupedParams of_slots = adapters.OfSlots();
  of_slots.dy = op.dy.data;
  of_slots.x_element = LoraElementOf(op.dy.dtype);
  of_slots.h = static_cast<float*>(op.h.data);
  float* dh = nullptr;
  if (needs_a || needs_dx) {
    const int64_t h_elems = op.route.slots() * r;
    dh = workspace->Take<float>(h_elems);
    of_slots.dh = dh;
    LOWRANK_RETURN_IF_ERROR(
        AddGroupedDh(op.kName, adapters.sizes(), h_elems, of_slots, workspace, plan));
  }
  if (needs_dx) {
    experts.shared_factor = adapters.shares_a();
    product.h = dh;
    product.lora_factor = op.lora_a;
    LOWRANK_RETURN_IF_ERROR(PlanProduct(product, device, workspace, plan));
  }
  if (needs_a) {
    gpu::GroupedParams of_rows = adapters.OfRows(op.x);
    of_rows.dh = dh;
    LOWRANK_RETURN_IF_ERROR(adapters.AddGradient(op.kName, "grouped_da_kernel", d_lora_a.shared, r,
                                                 op.w.cols(), of_rows, plan));
  }
  if (!needs_b) return Status();
  return adapters.AddGradient(op.kName, "grouped_db_kernel", d_lora_b.shared, op.dy.cols, r,
                              of_slots, plan);
}

}  // namespace lowrank::cuda
