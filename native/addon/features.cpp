/// Maps of features, and the products of blocks.
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "native/addon/bindings.h"
#include "native/addon/host_array.h"
#include "native/addon/operands.h"
#include "native/core/ops/op_checks.h"

namespace lowrank::addon {
namespace {

constexpr int64_t kMostFeatures = std::numeric_limits<int32_t>::max();

// featureMap(device, inputs, outputs, begin | null, index)
Napi::Value MakeFeatureMap(const Napi::CallbackInfo& info) {
  constexpr const char* kOp = "FeatureMap";
  const Napi::Env env = info.Env();
  Backend* backend = BackendArg(info[0]);
  FeatureMapHandle map;
  map.inputs = IntegerArg(info[1], kOp, "inFeatures", Code::kShape, kMostFeatures);
  map.outputs = IntegerArg(info[2], kOp, "outFeatures", Code::kShape, kMostFeatures);
  const bool lists = IsPresent(info[3]);
  std::vector<int32_t> begin;
  if (lists) begin = IntegersArg(info[3], kOp, "begin");
  const std::vector<int32_t> index = IntegersArg(info[4], kOp, "index");
  const std::vector<int32_t>& by_output = lists ? begin : index;
  const int64_t expected = map.outputs + (lists ? 1 : 0);
  if (static_cast<int64_t>(by_output.size()) != expected) {
    ThrowIfError(env,
                 Refuse(Code::kShape, kOp, lists ? "begin" : "index",
                        "of length " + std::to_string(expected), std::to_string(by_output.size())));
  }
  if (static_cast<int64_t>(index.size()) > kMostFeatures) {
    ThrowIfError(env, Refuse(Code::kShape, kOp, "index", "of fewer than 2^31 entries", "more"));
  }
  map.entries = static_cast<int64_t>(index.size());
  FeatureMapView view;
  view.begin = lists ? begin.data() : nullptr;
  view.index = index.data();
  view.inputs = map.inputs;
  view.outputs = map.outputs;
  view.entries = map.entries;
  ThrowIfError(env, CheckFeatureMap(kOp, view));
  if (lists) map.begin = IntegersPart(env, backend, begin);
  map.index = IntegersPart(env, backend, index);
  return WrapFeatureMap(env, std::move(map));
}

// mapFeatures(x, map, c | null, alpha, beta, dtype) -> y
Napi::Value MapFeatures(const Napi::CallbackInfo& info) {
  constexpr const char* kOp = MapFeaturesOp::kName;
  const Napi::Env env = info.Env();
  const TensorHandle& x = TensorOf(info[0], kOp, "x");
  Operands operands(env, kOp, x.storage->backend());
  MapFeaturesOp op;
  op.x = operands.In(info[0], "x");
  op.map = operands.FeatureMap(info[1], "map");
  op.c = operands.OptionalIn(info[2], "c");
  op.alpha = static_cast<float>(NumberArg(info[3], kOp, "alpha"));
  op.beta = static_cast<float>(NumberArg(info[4], kOp, "beta"));
  TensorHandle y;
  op.y = operands.Out(&y, DTypeArg(info[5], kOp), WithLast(x.shape, op.map.outputs));
  ThrowIfError(env, operands.backend()->Enqueue(op, operands.Take()));
  return WrapTensor(env, std::move(y));
}

/// G of w [G, ·, ·]; 0 for any other rank, which Check() rejects whenever there is a row.
int64_t BlocksOf(const TensorHandle& w) { return w.shape.size() == 3 ? w.shape[0] : 0; }
int64_t RowsOfBlock(const TensorHandle& w) { return w.shape.size() == 3 ? w.shape[1] : 0; }

// blockMatmul(x, w) -> y
Napi::Value BlockMatmul(const Napi::CallbackInfo& info) {
  constexpr const char* kOp = BlockMatmulOp::kName;
  const Napi::Env env = info.Env();
  const TensorHandle& x = TensorOf(info[0], kOp, "x");
  const TensorHandle& w = TensorOf(info[1], kOp, "w");
  Operands operands(env, kOp, x.storage->backend());
  BlockMatmulOp op;
  op.x = operands.In(info[0], "x");
  op.w = operands.In(info[1], "w");
  op.blocks = BlocksOf(w);
  TensorHandle y;
  op.y = operands.Out(&y, x.dtype, WithLast(x.shape, RowsOfBlock(w)));
  ThrowIfError(env, operands.backend()->Enqueue(op, operands.Take()));
  return WrapTensor(env, std::move(y));
}

// blockMatmulInputGrad(dy, w) -> dx
Napi::Value BlockMatmulInputGrad(const Napi::CallbackInfo& info) {
  constexpr const char* kOp = BlockMatmulInputGradOp::kName;
  const Napi::Env env = info.Env();
  const TensorHandle& dy = TensorOf(info[0], kOp, "dy");
  const TensorHandle& w = TensorOf(info[1], kOp, "w");
  Operands operands(env, kOp, dy.storage->backend());
  BlockMatmulInputGradOp op;
  op.dy = operands.In(info[0], "dy");
  op.w = operands.In(info[1], "w");
  op.blocks = BlocksOf(w);
  TensorHandle dx;
  op.dx = operands.Out(&dx, dy.dtype, WithLast(dy.shape, op.w.cols));
  ThrowIfError(env, operands.backend()->Enqueue(op, operands.Take()));
  return WrapTensor(env, std::move(dx));
}

// blockWeightGrad(dy, x) -> dw
Napi::Value BlockWeightGrad(const Napi::CallbackInfo& info) {
  constexpr const char* kOp = BlockWeightGradOp::kName;
  const Napi::Env env = info.Env();
  const TensorHandle& dy = TensorOf(info[0], kOp, "dy");
  Operands operands(env, kOp, dy.storage->backend());
  BlockWeightGradOp op;
  op.dy = operands.In(info[0], "dy");
  op.x = operands.In(info[1], "x");
  op.blocks = dy.shape.size() < 2 ? 0 : dy.shape[dy.shape.size() - 2];
  TensorHandle dw;
  op.dw = operands.Out(&dw, DType::kF32, {op.blocks, op.dy.cols, op.x.cols});
  ThrowIfError(env, operands.backend()->Enqueue(op, operands.Take()));
  return WrapTensor(env, std::move(dw));
}

}  // namespace

void RegisterFeatures(Napi::Env env, Napi::Object exports) {
  Export<MakeFeatureMap>(env, exports, "featureMap");
  Export<MapFeatures>(env, exports, "mapFeatures");
  Export<BlockMatmul>(env, exports, "blockMatmul");
  Export<BlockMatmulInputGrad>(env, exports, "blockMatmulInputGrad");
  Export<BlockWeightGrad>(env, exports, "blockWeightGrad");
}

}  // namespace lowrank::addon
