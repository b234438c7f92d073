/// Indices, and the ops of a model around its linear layers.
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "native/addon/bindings.h"
#include "native/addon/host_array.h"
#include "native/addon/operands.h"

namespace lowrank::addon {
namespace {

constexpr int64_t kMostIndices = std::numeric_limits<int32_t>::max();

/// Each is one that a kernel may read at; a negative one is stored as -1 where there may be none.
Status CheckIndices(const char* op, int64_t limit, bool holes, std::vector<int32_t>* values) {
  for (size_t i = 0; i < values->size(); ++i) {
    int32_t& value = (*values)[i];
    if (holes && value < 0) {
      value = -1;
    } else if (value < 0 || value >= limit) {
      return Refuse(Code::kValue, op, ("values[" + std::to_string(i) + "]").c_str(),
                    (holes ? "negative, or from 0 to " : "from 0 to ") + std::to_string(limit - 1),
                    std::to_string(value));
    }
  }
  return Status();
}

// indices(device, values: Int32Array, limit, holes) -> indices
Napi::Value MakeIndices(const Napi::CallbackInfo& info) {
  constexpr const char* kOp = "Indices";
  const Napi::Env env = info.Env();
  Backend* backend = BackendArg(info[0]);
  IndexHandle indices;
  indices.limit = IntegerArg(info[2], kOp, "limit", Code::kValue, kMostIndices);
  indices.holes = BoolArg(info[3]);
  std::vector<int32_t> values = IntegersArg(info[1], kOp, "values");
  if (static_cast<int64_t>(values.size()) > kMostIndices) {
    ThrowIfError(env, Refuse(Code::kShape, kOp, "values", "fewer than 2^31 entries", "more"));
  }
  ThrowIfError(env, CheckIndices(kOp, indices.limit, indices.holes, &values));
  indices.count = static_cast<int64_t>(values.size());
  indices.data = IntegersPart(env, backend, values);
  return WrapIndices(env, std::move(indices));
}

// writeIndices(indices, values: Int32Array)
Napi::Value WriteIndices(const Napi::CallbackInfo& info) {
  constexpr const char* kOp = "Indices.write";
  const Napi::Env env = info.Env();
  const IndexHandle& indices = IndicesOf(info[0], kOp, "indices");
  const auto values = std::make_shared<std::vector<int32_t>>(IntegersArg(info[1], kOp, "values"));
  if (static_cast<int64_t>(values->size()) != indices.count) {
    ThrowIfError(env,
                 Refuse(Code::kShape, kOp, "values", std::to_string(indices.count) + " elements",
                        std::to_string(values->size())));
  }
  ThrowIfError(env, CheckIndices(kOp, indices.limit, indices.holes, values.get()));
  ThrowIfError(env, indices.data->backend()->Write(
                        indices.data,
                        [values](void* target) -> Status {
                          const size_t bytes = values->size() * sizeof(int32_t);
                          if (bytes != 0) std::memcpy(target, values->data(), bytes);
                          return Status();
                        },
                        EnvState::Of(env).cancel()));
  return env.Undefined();
}

// rmsNorm(x, residual | null, g, eps, plusOne, keep) -> [y, sum | null, invRms | null]
Napi::Value RmsNorm(const Napi::CallbackInfo& info) {
  constexpr const char* kOp = RmsNormOp::kName;
  const Napi::Env env = info.Env();
  const TensorHandle& x = TensorOf(info[0], kOp, "x");
  Operands operands(env, kOp, x.storage->backend());
  RmsNormOp op;
  op.x = operands.In(info[0], "x");
  op.residual = operands.OptionalIn(info[1], "residual");
  op.g = operands.OptionalRow(info[2], "g");
  op.eps = static_cast<float>(NumberArg(info[3], kOp, "eps"));
  op.plus_one = BoolArg(info[4]);
  TensorHandle y;
  TensorHandle sum;
  TensorHandle inv_rms;
  op.y = operands.Out(&y, x.dtype, x.shape);
  if (op.residual.present) op.sum = operands.Out(&sum, x.dtype, x.shape);
  if (BoolArg(info[5])) op.inv_rms = operands.Out(&inv_rms, DType::kF32, {op.x.rows});
  ThrowIfError(env, operands.backend()->Enqueue(op, operands.Take()));
  return WrapTensors(env, {&y, &sum, &inv_rms});
}

// rmsNormBackward(dy, x, g, invRms, dSum | null, plusOne, wantsDx, wantsDg) -> [dx | null, dg |
// null]
Napi::Value RmsNormBackward(const Napi::CallbackInfo& info) {
  constexpr const char* kOp = RmsNormBackwardOp::kName;
  const Napi::Env env = info.Env();
  const TensorHandle& x = TensorOf(info[1], kOp, "x");
  Operands operands(env, kOp, x.storage->backend());
  RmsNormBackwardOp op;
  op.dy = operands.In(info[0], "dy");
  op.s = operands.In(info[1], "x");
  op.g = operands.OptionalRow(info[2], "g");
  op.inv_rms = operands.OptionalRow(info[3], "invRms");
  op.d_sum = operands.OptionalIn(info[4], "dSum");
  op.plus_one = BoolArg(info[5]);
  TensorHandle dx;
  TensorHandle dg;
  if (BoolArg(info[6])) op.dx = operands.Out(&dx, x.dtype, x.shape);
  if (BoolArg(info[7])) op.dg = operands.Out(&dg, DType::kF32, {op.s.cols});
  ThrowIfError(env, operands.backend()->Enqueue(op, operands.Take()));
  return WrapTensors(env, {&dx, &dg});
}

// embedding(ids, table, scale, dtype) -> y [ids, D]
Napi::Value Embedding(const Napi::CallbackInfo& info) {
  constexpr const char* kOp = EmbeddingOp::kName;
  const Napi::Env env = info.Env();
  const IndexHandle& ids = IndicesOf(info[0], kOp, "ids");
  Operands operands(env, kOp, ids.data->backend());
  EmbeddingOp op;
  op.ids = operands.Indices(info[0], "ids");
  op.table = operands.Weight(info[1], "table");
  op.scale = static_cast<float>(NumberArg(info[2], kOp, "scale"));
  TensorHandle y;
  op.y = operands.Out(&y, DTypeArg(info[3], kOp), {op.ids.count, op.table.cols()});
  ThrowIfError(env, operands.backend()->Enqueue(op, operands.Take()));
  return WrapTensor(env, std::move(y));
}

// linearCrossEntropy(x, head, targets, weights | null, scale, softcap, wantsDx) -> [losses, dx |
// null]
Napi::Value LinearCrossEntropy(const Napi::CallbackInfo& info) {
  constexpr const char* kOp = LinearCrossEntropyOp::kName;
  const Napi::Env env = info.Env();
  const TensorHandle& x = TensorOf(info[0], kOp, "x");
  Operands operands(env, kOp, x.storage->backend());
  LinearCrossEntropyOp op;
  op.x = operands.In(info[0], "x");
  op.head = operands.Weight(info[1], "head");
  op.targets = operands.Indices(info[2], "targets");
  op.weights = operands.OptionalRow(info[3], "weights");
  op.scale = static_cast<float>(NumberArg(info[4], kOp, "scale"));
  op.softcap = static_cast<float>(NumberArg(info[5], kOp, "softcap"));
  TensorHandle losses;
  TensorHandle dx;
  op.losses = operands.Out(&losses, DType::kF32, {op.x.rows});
  if (BoolArg(info[6])) op.dx = operands.Out(&dx, x.dtype, x.shape);
  ThrowIfError(env, operands.backend()->Enqueue(op, operands.Take()));
  return WrapTensors(env, {&losses, &dx});
}

}  // namespace

void RegisterModelOps(Napi::Env env, Napi::Object exports) {
  Export<MakeIndices>(env, exports, "indices");
  Export<WriteIndices>(env, exports, "writeIndices");
  Export<Embedding>(env, exports, "embedding");
  Export<LinearCrossEntropy>(env, exports, "linearCrossEntropy");
  Export<RmsNorm>(env, exports, "rmsNormForward");
  Export<RmsNormBackward>(env, exports, "rmsNormBackward");
}

}  // namespace lowrank::addon
