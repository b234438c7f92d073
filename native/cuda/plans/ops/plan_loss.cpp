/// Plans of the two ends of a decoder: rows of the embedding (cuda/model/embedding_sm80.cu), and
/// the loss behind the head (cuda/model/cross_entropy_sm80.cu) around the kernels of products.
#include <algorithm>

#include "native/cuda/plans/ops/plan_elementwise.h"
#include "native/cuda/plans/plan_rows.h"
#include "native/cuda/plans/products/plan_gemm_mma.h"
#include "native/cuda/plans/weight_params.h"
#include "native/host_device/params/cross_entropy.h"
#include "native/host_device/params/embedding.h"

namespace lowrank::cuda {
namespace {

/// Logits of a block of the vocabulary: 64 MB in f32 and 32 MB of what they become, for any batch
/// and vocabulary. Fewer tokens, and the head is read more often; fewer columns, and adding each
/// block's part to the sums costs more than the softmax.
constexpr int64_t kLossRows = 2048;
constexpr int64_t kVocabBlock = 8192;
/// Runs of a lane before a row gets more lanes.
constexpr int64_t kRunsOfLossLane = 4;

/// May eight neighbours at a multiple of eight be read at once?
bool WholeOctets(const gpu::GemmMmaWeight& w, int64_t cols) {
  return cols % 8 == 0 && IsAligned(w.data, 16) && (w.bits == 0 || w.blocksize_log2 >= 3);
}

/// A chunk of tokens, and the workspace of its blocks.
class LossChunk {
 public:
  LossChunk(const LinearCrossEntropyOp& op, int64_t first_row, int64_t rows, int64_t block)
      : op_(op), first_row_(first_row), rows_(rows), block_(block) {}

  Status Add(const DeviceLimits& device, Workspace* workspace, Plan* plan) {
    const int64_t V = op_.head.rows();
    TakeWorkspace(workspace);
    const size_t mark = workspace->Mark();
    for (int64_t first = 0; first < V; first += block_) {
      const int64_t count = std::min(block_, V - first);
      LOWRANK_RETURN_IF_ERROR(AddBlock(first, count, device, workspace, plan));
      workspace->Rewind(mark);
    }
    return wants_dx() ? AddGrad(plan) : Status();
  }

 private:
  bool wants_dx() const { return op_.dx.present && op_.dx.elems() > 0; }

  void TakeWorkspace(Workspace* workspace) {
    logits_ = workspace->Take<float>(rows_ * block_);
    states_ = workspace->Take<gpu::CrossEntropyState>(rows_);
    if (!wants_dx()) return;
    p_ = op_.x;
    p_.rows = rows_;
    p_.cols = block_;
    p_.data = workspace->Take<unsigned char>(static_cast<int64_t>(p_.bytes()));
    sums_ = workspace->Take<float>(rows_ * op_.x.cols);
    part_ = workspace->Take<float>(rows_ * op_.x.cols);
  }

  const int32_t* targets() const { return op_.targets.data + first_row_; }

  Status AddBlock(int64_t first, int64_t count, const DeviceLimits& device, Workspace* workspace,
                  Plan* plan) {
    GemmMmaOperands product;
    product.x = op_.x.Rows(first_row_, rows_);
    if (op_.head.quantised()) {
      product.w.quant = op_.head.quant.Rows(first, count);
    } else {
      product.w.dense = op_.head.dense.Rows(first, count);
    }
    ProductPlanes logits;
    LOWRANK_RETURN_IF_ERROR(PlanProductPlanes(product, logits_, device, workspace, plan, &logits));
    LOWRANK_RETURN_IF_ERROR(AddSoftmax(first, count, logits, plan));
    if (!wants_dx()) return Status();
    p_.cols = count;
    product.x = p_;
    product.x_made = true;
    product.w_transposed = true;
    ProductPlanes part;
    LOWRANK_RETURN_IF_ERROR(PlanProductPlanes(product, part_, device, workspace, plan, &part));
    return AddPart(first == 0, part, plan);
  }

  Status AddSoftmax(int64_t first, int64_t count, const ProductPlanes& logits, Plan* plan) {
    gpu::CrossEntropyBlockParams params;
    params.planes = const_cast<float*>(logits.planes);
    params.plane_count = static_cast<int32_t>(logits.count);
    if (wants_dx()) {
      params.p.data = p_.data;
      params.p.element = static_cast<int32_t>(p_.dtype);
      params.p.row_elems = count;
      params.p.vector = count % 4 == 0;
    }
    params.states = states_;
    params.targets = targets();
    if (first + count == op_.head.rows()) {
      params.losses = static_cast<float*>(op_.losses.data) + first_row_;
    }
    params.rows = rows_;
    params.cols = count;
    params.row_runs = CeilDiv(count, 4);
    params.first_id = first;
    params.row_lanes = static_cast<int32_t>(gpu::kRowThreads);
    params.first = first == 0;
    params.vector = count % 4 == 0;
    params.softcap = op_.softcap;
    return AddRowLaunch(op_.kName, "cross_entropy_block_kernel", params,
                        sizeof(gpu::CrossEntropyBlockShared), plan);
  }

  Status AddPart(bool first, const ProductPlanes& part, Plan* plan) {
    gpu::CrossEntropyAddParams params;
    params.planes = part.planes;
    params.plane_count = static_cast<int32_t>(part.count);
    params.sums = sums_;
    params.states = states_;
    params.rows = rows_;
    params.cols = op_.x.cols;
    params.row_runs = CeilDiv(params.cols, 4);
    params.row_lanes = RowLanes(params.row_runs, kRunsOfLossLane);
    params.first = first;
    params.vector = params.cols % 4 == 0;
    return AddRowLaunch(op_.kName, "cross_entropy_add_kernel", params, 0, plan);
  }

  Status AddGrad(Plan* plan) {
    gpu::CrossEntropyGradParams params;
    params.sums = sums_;
    params.dx = SmallOperandOf(op_.dx.Rows(first_row_, rows_), op_.x.cols);
    params.head = WeightParams(op_.head);
    params.states = states_;
    params.targets = targets();
    if (op_.weights.present) {
      params.weights = static_cast<const float*>(op_.weights.data) + first_row_;
    }
    params.rows = rows_;
    params.cols = op_.x.cols;
    params.row_runs = CeilDiv(params.cols, 8);
    params.row_lanes = RowLanes(params.row_runs, kRunsOfLossLane);
    params.vector = WholeOctets(params.head, params.cols);
    params.scale = op_.scale;
    params.softcap = op_.softcap;
    return AddRowLaunch(op_.kName, "cross_entropy_grad_kernel", params,
                        sizeof(gpu::CrossEntropyGradShared), plan);
  }

  const LinearCrossEntropyOp& op_;
  const int64_t first_row_;
  const int64_t rows_;
  const int64_t block_;
  float* logits_ = nullptr;
  gpu::CrossEntropyState* states_ = nullptr;
  TensorView p_;
  float* sums_ = nullptr;
  float* part_ = nullptr;
};

}  // namespace

Status MakePlan(const EmbeddingOp& op, const DeviceLimits&, Workspace*, Plan* plan) {
  if (op.y.elems() == 0) return Status();
  gpu::EmbeddingParams params;
  params.table = WeightParams(op.table);
  params.ids = op.ids.data;
  params.y = SmallOperandOf(op.y, op.y.cols);
  params.rows = op.y.rows;
  params.cols = op.y.cols;
  params.row_runs = CeilDiv(params.cols, 8);
  params.row_lanes = RowLanes(params.row_runs, kRunsOfLossLane);
  params.vector = WholeOctets(params.table, params.cols);
  params.scale = op.scale;
  return AddRowLaunch(op.kName, "embedding_kernel", params, sizeof(gpu::EmbeddingShared), plan);
}

Status MakePlan(const LinearCrossEntropyOp& op, const DeviceLimits& device, Workspace* workspace,
                Plan* plan) {
  const int64_t V = op.head.rows();
  const int64_t step = op.head.quantised() && op.head.cols() > 0 ? op.head.quant.RowStep() : 1;
  const int64_t block = std::min(CeilDiv(kVocabBlock, step) * step, V);
  // Where blocks of scales make a block long, fewer tokens keep the workspace as small.
  const int64_t most_rows = std::clamp<int64_t>(kLossRows * kVocabBlock / block, 1, kLossRows);
  const size_t mark = workspace->Mark();
  for (int64_t first = 0; first < op.x.rows; first += most_rows) {
    LossChunk chunk(op, first, std::min(most_rows, op.x.rows - first), block);
    LOWRANK_RETURN_IF_ERROR(chunk.Add(device, workspace, plan));
    workspace->Rewind(mark);
  }
  return Status();
}

}  // namespace lowrank::cuda
