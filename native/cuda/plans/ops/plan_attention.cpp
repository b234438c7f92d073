/// Plans of attention (cuda/attention/*.cu).
#include <string>

#include "native/core/ops/op_checks.h"
#include "native/cuda/plans/plan.h"
#include "native/cuda/plans/plan_streaming.h"
#include "native/host_device/params/attention.h"

namespace lowrank::cuda {
namespace {

static_assert(static_cast<int>(DType::kF32) == gpu::kAttentionF32 &&
              static_cast<int>(DType::kBF16) == gpu::kAttentionBF16 &&
              static_cast<int>(DType::kF16) == gpu::kAttentionF16);

constexpr float kLog2E = 1.44269504f;

/// A kernel and how it cuts its work.
struct Kernel {
  const char* name;
  int32_t threads;
  int32_t own_rows;
  int32_t walked_rows;
  size_t shared_bytes;
};
/// Those for heads of up to `dim` columns.
struct AttentionKernel {
  DType dtype;
  int64_t dim;
  Kernel forward;
  Kernel queries;
  Kernel keys;
};

template <typename Tile, typename Shared>
constexpr Kernel KernelOf(const char* name) {
  return {name, Tile::kThreads, Tile::kOwnRows, Tile::kWalkedRows, sizeof(Shared)};
}
constexpr DType kDType_f32 = DType::kF32;
constexpr DType kDType_bf16 = DType::kBF16;
constexpr DType kDType_f16 = DType::kF16;

/// In ascending order of dim.
constexpr AttentionKernel kAttentionKernels[] = {
#define LOWRANK_ATTENTION_ROW(dtype, Heads, bytes, dim, forward, queries, keys)             \
  {kDType_##dtype, dim,                                                                     \
   KernelOf<gpu::LOWRANK_ATTENTION_TILE forward,                                            \
            gpu::AttentionForwardShared<gpu::LOWRANK_ATTENTION_TILE forward, dim * bytes>>( \
       "attention_" #dtype "_" #dim "_kernel"),                                             \
   KernelOf<gpu::LOWRANK_ATTENTION_TILE queries,                                            \
            gpu::AttentionQueriesShared<gpu::LOWRANK_ATTENTION_TILE queries, dim * bytes>>( \
       "attention_dq_" #dtype "_" #dim "_kernel"),                                          \
   KernelOf<gpu::LOWRANK_ATTENTION_TILE keys,                                               \
            gpu::AttentionKeysShared<gpu::LOWRANK_ATTENTION_TILE keys, dim * bytes>>(       \
       "attention_dkv_" #dtype "_" #dim "_kernel")},
    LOWRANK_ATTENTION_KERNELS(LOWRANK_ATTENTION_ROW)
#undef LOWRANK_ATTENTION_ROW
};

constexpr bool AllFit(size_t bytes) {
  for (const AttentionKernel& row : kAttentionKernels) {
    for (const Kernel& kernel : {row.forward, row.queries, row.keys}) {
      if (kernel.shared_bytes > bytes) return false;
    }
  }
  return true;
}
static_assert(AllFit(99 * 1024), "what a block has on 8.6 and 8.9");

const AttentionKernel& RowFor(DType dtype, int64_t head_dim) {
  for (const AttentionKernel& row : kAttentionKernels) {
    if (row.dtype == dtype && row.dim >= head_dim) return row;
  }
  return kAttentionKernels[0];  // Check() bounds head_dim
}

int32_t PieceElems(DType dtype) { return 16 / static_cast<int32_t>(DTypeBytes(dtype)); }

/// @param first the column of head 0, and rows those of a sequence
gpu::AttentionHeads Heads(const TensorView& matrix, int64_t first, int64_t rows, int64_t head_dim) {
  gpu::AttentionHeads heads;
  const auto bytes = static_cast<int64_t>(DTypeBytes(matrix.dtype));
  heads.data = static_cast<unsigned char*>(matrix.data) + first * bytes;
  heads.row_elems = matrix.cols;
  heads.sequence_rows = rows;
  heads.head_elems = static_cast<int32_t>(head_dim);
  heads.element = static_cast<int32_t>(matrix.dtype);
  const int64_t piece = PieceElems(matrix.dtype);
  heads.vector =
      IsAligned(heads.data, 16) && matrix.cols % piece == 0 && head_dim % piece == 0 ? 1 : 0;
  return heads;
}

gpu::AttentionRope RopeOf(const AttentionShape& shape) {
  gpu::AttentionRope rope;
  if (!shape.rope.present) return rope;
  rope.table = static_cast<const float*>(shape.rope.data);
  rope.rot = static_cast<int32_t>(shape.rope.cols);
  rope.vector = IsAligned(rope.table, 16) && rope.rot % 8 == 0 ? 1 : 0;
  return rope;
}

const int32_t* DocumentsOf(const AttentionShape& shape) {
  return shape.documents.present ? shape.documents.data : nullptr;
}

/// Heads that have been placed, and the launch that does it.
class Places {
 public:
  Places(const AttentionShape& shape, DType dtype, int64_t past)
      : shape_(shape), dtype_(dtype), piece_(PieceElems(dtype)) {
    params_.rope = RopeOf(shape);
    params_.documents = DocumentsOf(shape);
    params_.past = static_cast<int32_t>(past);
    params_.head_dim = static_cast<int32_t>(shape.head_dim);
  }

  bool turns() const { return params_.rope.rot != 0; }

  /// Copies `rows` rows of each sequence to row `first` of dst.
  void Add(const gpu::AttentionHeads& src, const gpu::AttentionHeads& dst, int64_t heads,
           int64_t rows, int64_t first, bool turned) {
    gpu::AttentionPlaceJob& job = params_.jobs[count_++];
    job.src = src;
    if (src.element != static_cast<int32_t>(dtype_)) job.src.vector = 0;
    job.dst = dst;
    job.dst_first = first;
    job.rows = static_cast<int32_t>(rows);
    job.heads = static_cast<int32_t>(heads);
    job.pieces = static_cast<int32_t>(CeilDiv(shape_.head_dim, piece_));
    job.tasks = shape_.sequences * rows * heads * job.pieces;
    job.turned = turned ? 1 : 0;
    most_tasks_ = std::max(most_tasks_, job.tasks);
  }

  /// Heads that can be read by pieces: those given, or a copy in the workspace.
  gpu::AttentionHeads Readable(const gpu::AttentionHeads& given, int64_t heads, int64_t rows,
                               bool turned, Workspace* workspace) {
    turned = turned && turns();
    if (!turned && given.vector != 0 && given.element == static_cast<int32_t>(dtype_)) {
      return given;
    }
    gpu::AttentionHeads copy;
    copy.head_elems = static_cast<int32_t>(CeilDiv(shape_.head_dim, piece_) * piece_);
    copy.row_elems = heads * copy.head_elems;
    copy.sequence_rows = rows;
    copy.element = static_cast<int32_t>(dtype_);
    copy.vector = 1;
    copy.data = workspace->Take<unsigned char>(shape_.sequences * rows * copy.row_elems *
                                               static_cast<int64_t>(DTypeBytes(dtype_)));
    Add(given, copy, heads, rows, 0, turned);
    return copy;
  }

  Status Launch(const char* op, Plan* plan) {
    if (count_ == 0) return Status();
    LaunchStep step;
    step.kernel = dtype_ == DType::kF32    ? "attention_place_f32_kernel"
                  : dtype_ == DType::kBF16 ? "attention_place_bf16_kernel"
                                           : "attention_place_f16_kernel";
    step.threads = gpu::kAttentionPlaceThreads;
    LOWRANK_RETURN_IF_ERROR(SetGrid(op, most_tasks_, gpu::kAttentionPlaceThreads, &step));
    step.grid.y = static_cast<uint32_t>(count_);
    step.SetParams(params_);
    plan->steps.push_back(std::move(step));
    count_ = 0;
    most_tasks_ = 0;
    return Status();
  }

 private:
  const AttentionShape& shape_;
  DType dtype_;
  int32_t piece_;
  gpu::AttentionPlaceParams params_;
  int count_ = 0;
  int64_t most_tasks_ = 0;
};

/// Kernels count rows of walks and keys in int32.
Status CheckRows(const char* op, const AttentionShape& shape, int64_t rows, int64_t keys) {
  constexpr int64_t kMost = int64_t{1} << 30;
  if (rows * shape.group() <= kMost && keys <= kMost) return Status();
  return Refuse(Code::kUnsupported, op, "q",
                "of at most 2^30 rows of a sequence times heads of a group on this device",
                std::to_string(rows) + " · " + std::to_string(shape.group()));
}

Status TestDocuments(const char* op, const AttentionShape& shape, int64_t M, Workspace* workspace,
                     Plan* plan) {
  if (!shape.documents.present) return Status();
  gpu::AttentionDocumentsParams params;
  params.documents = DocumentsOf(shape);
  params.first_bad = plan->first_non_finite = workspace->Take<int64_t>(1);
  params.M = M;
  params.rows = static_cast<int32_t>(M / shape.sequences);
  plan->documents_op = op;
  plan->document_rows = params.rows;
  LaunchStep step;
  step.kernel = "attention_documents_kernel";
  step.threads = gpu::kAttentionDocumentsThreads;
  LOWRANK_RETURN_IF_ERROR(SetGrid(op, M, gpu::kAttentionDocumentsThreads, &step));
  step.SetParams(params);
  plan->steps.push_back(std::move(step));
  return Status();
}

gpu::AttentionParams ParamsOf(const AttentionShape& shape, DType dtype, int64_t M, int64_t past) {
  gpu::AttentionParams params;
  params.rope = RopeOf(shape);
  params.documents = DocumentsOf(shape);
  params.M = M;
  const int64_t rows = M / shape.sequences;
  params.rows = static_cast<int32_t>(rows);
  params.past = static_cast<int32_t>(past);
  params.kv_heads = static_cast<int32_t>(shape.kv_heads);
  params.group = static_cast<int32_t>(shape.group());
  params.head_dim = static_cast<int32_t>(shape.head_dim);
  params.pieces = static_cast<int32_t>(CeilDiv(shape.head_dim, PieceElems(dtype)));
  // One that reaches every key is none.
  params.window = shape.window >= past + rows ? 0 : static_cast<int32_t>(shape.window);
  const bool capped = shape.softcap != 0;
  params.factor = capped ? shape.scale / shape.softcap : shape.scale * kLog2E;
  params.cap = capped ? shape.softcap * kLog2E : 0;
  params.cap_inverse = capped ? 1 / params.cap : 0;
  params.scale = shape.scale;
  return params;
}

/// Panels of `rows` rows for each key head of each sequence.
Status LaunchTiles(const char* op, const AttentionShape& shape, const Kernel& kernel, int64_t rows,
                   gpu::AttentionParams params, Plan* plan) {
  params.panels = static_cast<int32_t>(CeilDiv(rows, kernel.own_rows));
  LaunchStep step;
  step.kernel = kernel.name;
  step.threads = static_cast<uint32_t>(kernel.threads);
  step.shared_bytes = static_cast<uint32_t>(kernel.shared_bytes);
  step.SetTile(kernel.own_rows, kernel.walked_rows);
  LOWRANK_RETURN_IF_ERROR(SetGrid(op, params.panels * shape.sequences * shape.kv_heads, 1, &step));
  step.SetParams(params);
  plan->steps.push_back(std::move(step));
  return Status();
}

}  // namespace

Status MakePlan(const AttentionOp& op, const DeviceLimits&, Workspace* workspace, Plan* plan) {
  const AttentionShape& shape = op.shape;
  const int64_t M = op.q.matrix.rows;
  const DType dtype = op.q.matrix.dtype;
  const int64_t D = shape.head_dim;
  const int64_t rows = op.rows();
  if (M == 0) return Status();
  LOWRANK_RETURN_IF_ERROR(CheckRows(op.kName, shape, rows, op.past + rows));
  LOWRANK_RETURN_IF_ERROR(TestDocuments(op.kName, shape, M, workspace, plan));

  gpu::AttentionParams params = ParamsOf(shape, dtype, M, op.past);
  gpu::AttentionHeads k = Heads(op.k.matrix, op.k.first, rows, D);
  gpu::AttentionHeads v = Heads(op.v.matrix, op.v.first, rows, D);
  Places places(shape, dtype, op.past);
  const bool cached = op.k_cache.present;
  if (cached) {
    const gpu::AttentionHeads k_cache = Heads(op.k_cache, 0, op.capacity(), D);
    const gpu::AttentionHeads v_cache = Heads(op.v_cache, 0, op.capacity(), D);
    places.Add(k, k_cache, shape.kv_heads, rows, op.past, true);
    places.Add(v, v_cache, shape.kv_heads, rows, op.past, false);
    LOWRANK_RETURN_IF_ERROR(places.Launch(op.kName, plan));
    k = k_cache;
    v = v_cache;
  }
  params.q = Heads(op.q.matrix, op.q.first, rows, D);
  params.k = places.Readable(k, shape.kv_heads, op.past + rows, !cached, workspace);
  params.v = places.Readable(v, shape.kv_heads, op.past + rows, false, workspace);
  params.o = Heads(op.o, 0, rows, D);
  params.lse = op.lse.present ? static_cast<float*>(op.lse.data) : nullptr;
  params.sinks = op.sinks.present ? static_cast<const float*>(op.sinks.data) : nullptr;
  LOWRANK_RETURN_IF_ERROR(places.Launch(op.kName, plan));
  return LaunchTiles(op.kName, shape, RowFor(dtype, D).forward, rows * shape.group(), params, plan);
}

Status MakePlan(const AttentionBackwardOp& op, const DeviceLimits&, Workspace* workspace,
                Plan* plan) {
  const AttentionShape& shape = op.shape;
  const int64_t M = op.q.matrix.rows;
  const DType dtype = op.q.matrix.dtype;
  const int64_t D = shape.head_dim;
  const int64_t rows = op.rows();
  if (M == 0) return Status();
  LOWRANK_RETURN_IF_ERROR(CheckRows(op.kName, shape, rows, rows));
  LOWRANK_RETURN_IF_ERROR(TestDocuments(op.kName, shape, M, workspace, plan));

  gpu::AttentionParams params = ParamsOf(shape, dtype, M, 0);
  const auto heads = [&](const HeadsView& view) { return Heads(view.matrix, view.first, rows, D); };
  Places places(shape, dtype, 0);
  const gpu::AttentionHeads d_o = Heads(op.d_o, 0, rows, D);
  params.q = places.Readable(heads(op.q), shape.heads, rows, true, workspace);
  params.k = places.Readable(heads(op.k), shape.kv_heads, rows, true, workspace);
  params.v = places.Readable(heads(op.v), shape.kv_heads, rows, false, workspace);
  params.d_o = places.Readable(d_o, shape.heads, rows, false, workspace);
  params.d_q = heads(op.dq);
  params.d_k = heads(op.dk);
  params.d_v = heads(op.dv);
  LOWRANK_RETURN_IF_ERROR(places.Launch(op.kName, plan));

  gpu::AttentionRowsParams rows_params;
  rows_params.o = Heads(op.o, 0, rows, D);
  rows_params.d_o = d_o;
  rows_params.documents = params.documents;
  rows_params.lse = static_cast<const float*>(op.lse.data);
  rows_params.walk = workspace->Take<gpu::AttentionRow>(M * shape.heads);
  rows_params.M = M;
  rows_params.rows = params.rows;
  rows_params.kv_heads = params.kv_heads;
  rows_params.group = params.group;
  rows_params.head_dim = params.head_dim;
  rows_params.window = params.window;
  params.walk = rows_params.walk;
  LaunchStep step;
  step.kernel = "attention_rows_kernel";
  step.threads = gpu::kAttentionRowsThreads;
  LOWRANK_RETURN_IF_ERROR(
      SetGrid(op.kName, M * shape.heads, gpu::kAttentionRowsThreads / 32, &step));
  step.SetParams(rows_params);
  plan->steps.push_back(std::move(step));

  const AttentionKernel& kernels = RowFor(dtype, D);
  LOWRANK_RETURN_IF_ERROR(LaunchTiles(op.kName, shape, kernels.keys, rows, params, plan));
  if (kernels.dim > gpu::kAttentionWidestTogether) plan->steps.back().grid.y = 2;
  return LaunchTiles(op.kName, shape, kernels.queries, rows * shape.group(), params, plan);
}

}  // namespace lowrank::cuda
