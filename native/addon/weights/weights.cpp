/// Quantised weights: quantise, dequantise, and making one from its parts.
#include <algorithm>
#include <cstring>

#include "native/addon/bindings.h"
#include "native/addon/handles.h"
#include "native/addon/host_array.h"
#include "native/addon/operands.h"
#include "native/core/ops/op_checks.h"

namespace lowrank::addon {
namespace {

const FormatRow* FormatArg(const Napi::Value& value, const char* op) {
  const std::string name = StringArg(value, op, "format");
  const FormatRow* format = FindFormat(name);
  if (format == nullptr) {
    std::string known;
    for (const std::string& each : FormatNames()) {
      known += (known.empty() ? "" : ", ") + each;
    }
    ThrowIfError(value.Env(),
                 Refuse(Code::kFormat, op, "format", "one of " + known, "\"" + name + "\""));
  }
  return format;
}

/// The format's own check decides which of them it supports.
int64_t BlocksizeArg(const Napi::Value& value, const char* op, const char* operand) {
  const int64_t blocksize = IntegerArg(value, op, operand, Code::kFormat, INT32_MAX);
  if (blocksize == 0) {
    ThrowIfError(value.Env(), Refuse(Code::kFormat, op, operand, "a positive power of two", "0"));
  }
  return blocksize;
}

StoragePtr NewPart(Napi::Env env, Backend* backend, int64_t count, size_t element_bytes) {
  StoragePtr part;
  ThrowIfError(env, backend->Allocate(static_cast<size_t>(count) * element_bytes, &part));
  return part;
}

/// The given codebook, or the weight's own.
StoragePtr CodebookPart(Napi::Env env, Backend* backend, const WeightHandle& weight,
                        const Napi::Value& value, const char* op) {
  const FormatRow& format = *weight.format;
  const size_t bytes = static_cast<size_t>(format.levels) * sizeof(float);
  const float* own = weight.rowwise ? RowwiseLevels() : format.codebook;
  if (!IsPresent(value)) return FilledPart(env, backend, own, bytes);
  const HostArray codebook = HostArrayOf(value, op, "codebook");
  if (codebook.type != napi_float32_array ||
      codebook.length != static_cast<size_t>(format.levels)) {
    ThrowIfError(env, Refuse(Code::kFormat, op, "codebook",
                             "a Float32Array of length " + std::to_string(format.levels),
                             "length " + std::to_string(codebook.length)));
  }
  return FilledPart(env, backend, codebook.data, bytes);
}

OpRefs RefsOf(Napi::Env env, std::vector<StoragePtr> inputs, std::vector<StoragePtr> outputs) {
  return OpRefs{std::move(inputs), std::move(outputs), EnvState::Of(env).cancel()};
}

std::vector<StoragePtr> PartsOf(const WeightHandle& weight) {
  std::vector<StoragePtr> parts;
  for (const StoragePtr& part : weight.parts) {
    if (part) parts.push_back(part);
  }
  return parts;
}

/// Makes the parts of a weight whose format, blocksize and shape are set. Only its tables are
/// filled.
void MakeParts(Napi::Env env, Backend* backend, bool double_quant, WeightHandle* weight) {
  auto& parts = weight->parts;
  const QuantView sizes = weight->View();
  parts[WeightHandle::kCodes] = NewPart(env, backend, static_cast<int64_t>(sizes.code_bytes()), 1);
  parts[WeightHandle::kCodebook] =
      CodebookPart(env, backend, *weight, env.Null(), QuantizeOp::kName);
  if (double_quant) {
    parts[WeightHandle::kAbsmax8bit] = NewPart(env, backend, sizes.blocks(), 1);
    parts[WeightHandle::kAbsmaxCodebook] =
        FilledPart(env, backend, DynamicMap8bit(), 256 * sizeof(float));
    parts[WeightHandle::kNestedAbsmax] =
        NewPart(env, backend, sizes.nested_blocks(), sizeof(float));
    parts[WeightHandle::kAbsmaxOffset] = NewPart(env, backend, 1, sizeof(float));
  } else {
    parts[WeightHandle::kAbsmax] = NewPart(env, backend, sizes.blocks(), sizeof(float));
  }
}

// quantize(w, format, blocksize, doubleQuant, rowwise)
Napi::Value Quantize(const Napi::CallbackInfo& info) {
  constexpr const char* kOp = QuantizeOp::kName;
  const Napi::Env env = info.Env();
  const TensorHandle& w = TensorOf(info[0], kOp, "w");
  Backend* backend = w.storage->backend();
  WeightHandle weight;
  weight.format = FormatArg(info[1], kOp);
  weight.rows = w.View().rows;
  weight.cols = w.View().cols;
  weight.blocksize = BlocksizeArg(info[2], kOp, "blocksize");
  weight.rowwise = BoolArg(info[4]);
  MakeParts(env, backend, BoolArg(info[3]), &weight);
  QuantizeOp op;
  op.w = w.View();
  op.out = weight.View();
  ThrowIfError(env, backend->Enqueue(op, RefsOf(env, {w.storage}, PartsOf(weight))));
  return WrapWeight(env, std::move(weight));
}

// weightFromParts(device, format, N, K, blocksize, nestedBlocksize, parts, rowwise): parts by name
Napi::Value WeightFromParts(const Napi::CallbackInfo& info) {
  constexpr const char* kOp = "fromBitsandbytes";
  const Napi::Env env = info.Env();
  Backend* backend = BackendArg(info[0]);
  WeightHandle weight;
  weight.format = FormatArg(info[1], kOp);
  weight.SetShape(info[2], info[3], kOp);
  weight.blocksize = BlocksizeArg(info[4], kOp, "blocksize");
  weight.nested_blocksize = BlocksizeArg(info[5], kOp, "nestedBlocksize");
  weight.rowwise = BoolArg(info[7]);
  const QuantView sizes = weight.View();
  const size_t expected_bytes[WeightHandle::kBlockwiseParts] = {
      sizes.code_bytes(),
      static_cast<size_t>(weight.format->levels) * sizeof(float),
      static_cast<size_t>(sizes.blocks()) * sizeof(float),
      static_cast<size_t>(sizes.blocks()),
      256 * sizeof(float),
      static_cast<size_t>(sizes.nested_blocks()) * sizeof(float),
      sizeof(float)};
  if (!info[6].IsObject()) {
    ThrowIfError(env, Refuse(Code::kType, kOp, "parts", "an object", "another value"));
  }
  const Napi::Object parts = info[6].As<Napi::Object>();
  for (int p = 0; p < WeightHandle::kBlockwiseParts; ++p) {
    const char* name = WeightHandle::PartName(p);
    const Napi::Value value = parts.Get(name);
    if (!IsPresent(value)) continue;
    const HostArray array = HostArrayOf(value, kOp, name);
    const size_t bytes = array.length * array.element_bytes();
    if (bytes != expected_bytes[p]) {
      ThrowIfError(env,
                   Refuse(Code::kFormat, kOp, name, std::to_string(expected_bytes[p]) + " bytes",
                          std::to_string(bytes)));
    }
    weight.parts[p] = FilledPart(env, backend, array.data, bytes);
  }
  if (!weight.parts[WeightHandle::kCodebook]) {
    weight.parts[WeightHandle::kCodebook] = CodebookPart(env, backend, weight, env.Null(), kOp);
  }
  if (!weight.parts[WeightHandle::kCodes]) {
    ThrowIfError(env, Refuse(Code::kFormat, kOp, "codes", "given", "none"));
  }
  // Checks which parts belong together, and the blocksize.
  ThrowIfError(env, CheckQuant(kOp, "w", weight.View()));
  return WrapWeight(env, std::move(weight));
}

// dequantize(weight, dtype)
Napi::Value Dequantize(const Napi::CallbackInfo& info) {
  constexpr const char* kOp = DequantizeOp::kName;
  const Napi::Env env = info.Env();
  const WeightHandle& weight = WeightOf(info[0], kOp, "w");
  TensorHandle y =
      NewTensor(env, weight.backend(), DTypeArg(info[1], kOp), {weight.rows, weight.cols});
  const DequantizeOp op{weight.View(), y.View()};
  ThrowIfError(env, weight.backend()->Enqueue(op, RefsOf(env, PartsOf(weight), {y.storage})));
  return WrapTensor(env, std::move(y));
}

/// Rows [first, first + count) of a tensor.
TensorView RowsOf(Napi::Env env, const TensorView& whole, double first, int64_t count,
                  const char* op) {
  const bool inside = first >= 0 && first <= static_cast<double>(whole.rows - count);
  const auto row = inside ? static_cast<int64_t>(first) : 0;
  if (count < 0 || !inside || static_cast<double>(row) != first) {
    ThrowIfError(env, Refuse(Code::kShape, op, "first", "a row of " + whole.Describe(),
                             std::to_string(first)));
  }
  return whole.Rows(row, count);
}

/// Rows [first, first + count) of a weight, which start at a block boundary.
QuantView RowsArg(const Napi::CallbackInfo& info, size_t first_arg, const QuantView& whole,
                  int64_t count, const char* op) {
  const double first = NumberArg(info[first_arg], op, "first");
  const bool inside = first >= 0 && first <= static_cast<double>(whole.rows - count);
  const auto row = inside ? static_cast<int64_t>(first) : 0;
  if (count < 0 || !inside || static_cast<double>(row) != first || whole.cols == 0 ||
      row % whole.RowStep() != 0) {
    ThrowIfError(info.Env(),
                 Refuse(Code::kShape, op, "first", "a row of the weight that begins with a block",
                        std::to_string(first)));
  }
  return whole.Rows(row, count);
}

// emptyLike(weight): its format, blocksize and shape, on its device, the contents to be written
Napi::Value EmptyLike(const Napi::CallbackInfo& info) {
  constexpr const char* kOp = QuantizeOp::kName;
  const Napi::Env env = info.Env();
  const WeightHandle& model = WeightOf(info[0], kOp, "w");
  if (model.View().planar()) {
    ThrowIfError(
        env, Refuse(Code::kUnsupported, kOp, "w", "a blockwise format", model.View().Describe()));
  }
  WeightHandle weight;
  weight.format = model.format;
  weight.rows = model.rows;
  weight.cols = model.cols;
  weight.blocksize = model.blocksize;
  weight.nested_blocksize = model.nested_blocksize;
  weight.rowwise = model.rowwise;
  MakeParts(env, model.backend(), static_cast<bool>(model.parts[WeightHandle::kAbsmax8bit]),
            &weight);
  return WrapWeight(env, std::move(weight));
}

// quantizeRows(tile, weight, first, absmax | null): for a weight with double quantisation the
// scales go to `absmax` [blocks], until quantizeScales()
Napi::Value QuantizeRows(const Napi::CallbackInfo& info) {
  constexpr const char* kOp = QuantizeOp::kName;
  const Napi::Env env = info.Env();
  const TensorHandle& tile = TensorOf(info[0], kOp, "w");
  const WeightHandle& weight = WeightOf(info[1], kOp, "out");
  Backend* backend = weight.backend();
  if (tile.storage->backend() != backend) {
    ThrowIfError(env, Refuse(Code::kDevice, kOp, "w", "on the weight's device", "another"));
  }
  QuantizeOp op;
  op.w = tile.View();
  QuantView whole = weight.View();
  // Parts that an earlier failure poisoned stay so: they are operands too.
  std::vector<StoragePtr> inputs = {tile.storage, weight.parts[WeightHandle::kCodes]};
  std::vector<StoragePtr> outputs = {weight.parts[WeightHandle::kCodes]};
  if (whole.double_quant()) {
    const TensorHandle& absmax = TensorOf(info[3], kOp, "absmax");
    if (absmax.storage->backend() != backend || absmax.dtype != DType::kF32 ||
        absmax.elems() != whole.blocks()) {
      ThrowIfError(env,
                   Refuse(Code::kShape, kOp, "absmax",
                          "f32 [" + std::to_string(whole.blocks()) + "] on the weight's device",
                          "another tensor"));
    }
    whole.absmax_8bit = nullptr;
    whole.absmax = static_cast<float*>(absmax.storage->data());
    inputs.push_back(absmax.storage);
    outputs.push_back(absmax.storage);
  } else {
    inputs.push_back(weight.parts[WeightHandle::kAbsmax]);
    outputs.push_back(weight.parts[WeightHandle::kAbsmax]);
  }
  op.out = RowsArg(info, 2, whole, op.w.rows, kOp);
  ThrowIfError(env, backend->Enqueue(op, RefsOf(env, std::move(inputs), std::move(outputs))));
  return env.Undefined();
}

// quantizeScales(absmax, weight)
Napi::Value QuantizeScales(const Napi::CallbackInfo& info) {
  constexpr const char* kOp = QuantizeScalesOp::kName;
  const Napi::Env env = info.Env();
  const TensorHandle& absmax = TensorOf(info[0], kOp, "absmax");
  const WeightHandle& weight = WeightOf(info[1], kOp, "out");
  Backend* backend = weight.backend();
  if (absmax.storage->backend() != backend) {
    ThrowIfError(env, Refuse(Code::kDevice, kOp, "absmax", "on the weight's device", "another"));
  }
  QuantizeScalesOp op;
  op.absmax = absmax.View();
  op.out = weight.View();
  std::vector<StoragePtr> outputs;
  for (const int part :
       {WeightHandle::kAbsmax8bit, WeightHandle::kNestedAbsmax, WeightHandle::kAbsmaxOffset}) {
    if (weight.parts[part]) outputs.push_back(weight.parts[part]);
  }
  std::vector<StoragePtr> inputs = {absmax.storage};
  if (weight.parts[WeightHandle::kAbsmaxCodebook]) {
    inputs.push_back(weight.parts[WeightHandle::kAbsmaxCodebook]);
  }
  ThrowIfError(env, backend->Enqueue(op, RefsOf(env, std::move(inputs), std::move(outputs))));
  return env.Undefined();
}

// weightNorms(w) -> [N]
Napi::Value WeightNorms(const Napi::CallbackInfo& info) {
  constexpr const char* kOp = WeightNormsOp::kName;
  const Napi::Env env = info.Env();
  Backend* backend = IsWeight(info[0]) ? WeightOf(info[0], kOp, "w").backend()
                                       : TensorOf(info[0], kOp, "w").storage->backend();
  Operands operands(env, kOp, backend);
  WeightNormsOp op;
  op.w = operands.Weight(info[0], "w");
  TensorHandle norms;
  op.norms = operands.Out(&norms, DType::kF32, {op.w.rows()});
  ThrowIfError(env, backend->Enqueue(op, operands.Take()));
  return WrapTensor(env, std::move(norms));
}

// factoredNorm(loraA, w, loraB, squares, dtype, scaling) -> [N]; dtype is that of the product with
// w
Napi::Value FactoredNorm(const Napi::CallbackInfo& info) {
  constexpr const char* kOp = FactoredNormOp::kName;
  const Napi::Env env = info.Env();
  Operands operands(env, kOp, TensorOf(info[0], kOp, "loraA").storage->backend());
  FactoredNormOp op;
  op.lora_a = operands.In(info[0], "loraA");
  op.w = operands.Weight(info[1], "w");
  op.lora_b = operands.In(info[2], "loraB");
  op.squares = operands.OptionalRow(info[3], "weightNorms");
  op.product = DTypeArg(info[4], kOp);
  op.scaling = static_cast<float>(NumberArg(info[5], kOp, "scaling"));
  TensorHandle norms;
  op.norms = operands.Out(&norms, DType::kF32, {op.w.rows()});
  ThrowIfError(env, operands.backend()->Enqueue(op, operands.Take()));
  return WrapTensor(env, std::move(norms));
}

// takeRows(weight or tensor, dtype, first, rows): those rows as a dense tensor of their own
Napi::Value TakeRows(const Napi::CallbackInfo& info) {
  constexpr const char* kOp = "denseRows";
  const Napi::Env env = info.Env();
  const DType dtype = DTypeArg(info[1], kOp);
  const int64_t count = IntegerArg(info[3], kOp, "rows", Code::kShape, kMaxElements);
  if (IsWeight(info[0])) {
    const WeightHandle& weight = WeightOf(info[0], kOp, "w");
    const QuantView part = RowsArg(info, 2, weight.View(), count, kOp);
    TensorHandle y = NewTensor(env, weight.backend(), dtype, {count, weight.cols});
    const DequantizeOp op{part, y.View()};
    ThrowIfError(env, weight.backend()->Enqueue(op, RefsOf(env, PartsOf(weight), {y.storage})));
    return WrapTensor(env, std::move(y));
  }
  const TensorHandle& tensor = TensorOf(info[0], kOp, "w");
  const TensorView part = RowsOf(env, tensor.View(), NumberArg(info[2], kOp, "first"), count, kOp);
  Backend* backend = tensor.storage->backend();
  TensorHandle y = NewTensor(env, backend, dtype, {count, part.cols});
  const CastOp op{part, y.View()};
  ThrowIfError(env, backend->Enqueue(op, RefsOf(env, {tensor.storage}, {y.storage})));
  return WrapTensor(env, std::move(y));
}

// putRows(tensor, source, first): the source's rows into the tensor, from that row on
Napi::Value PutRows(const Napi::CallbackInfo& info) {
  constexpr const char* kOp = "putRows";
  const Napi::Env env = info.Env();
  const TensorHandle& tensor = TensorOf(info[0], kOp, "y");
  const TensorHandle& source = TensorOf(info[1], kOp, "source");
  Backend* backend = tensor.storage->backend();
  if (source.storage->backend() != backend) {
    ThrowIfError(env, Refuse(Code::kDevice, kOp, "source", "on the device of y", "another"));
  }
  const TensorView rows = source.View();
  // Checks all of y, whatever the rows: a call must not be valid only because of its `begin`.
  ThrowIfError(env, Ranges().Out("y", tensor.View()).In("source", rows).CheckApart(kOp));
  const TensorView part =
      RowsOf(env, tensor.View(), NumberArg(info[2], kOp, "first"), rows.rows, kOp);
  // Its Check() compares the columns.
  const CastOp op{rows, part};
  ThrowIfError(env, backend->Enqueue(op, RefsOf(env, {source.storage}, {tensor.storage})));
  return env.Undefined();
}

// formats(): the native table. Each format's levels, and the values that the test compares with
// lib/core/formats.ts
Napi::Value Formats(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Napi::Array rows = Napi::Array::New(env);
  for (int i = 0; i < FormatCount(); ++i) {
    const FormatRow& format = FormatAt(i);
    Napi::Object row = Napi::Object::New(env);
    row.Set("name", format.name);
    row.Set("bits", format.bits);
    row.Set("levels", format.levels);
    row.Set("signMagnitude", format.sign_magnitude);
    row.Set("minBlocksize", static_cast<double>(format.min_blocksize));
    row.Set("maxBlocksize", static_cast<double>(format.max_blocksize));
    row.Set("defaultBlocksize", static_cast<double>(format.default_blocksize));
    Napi::Float32Array codebook = Napi::Float32Array::New(env, static_cast<size_t>(format.levels));
    std::copy_n(format.codebook, format.levels, codebook.Data());
    row.Set("codebook", codebook);
    rows.Set(static_cast<uint32_t>(i), row);
  }
  return rows;
}

}  // namespace

void RegisterWeights(Napi::Env env, Napi::Object exports) {
  Export<Quantize>(env, exports, "quantize");
  Export<WeightFromParts>(env, exports, "weightFromParts");
  Export<Dequantize>(env, exports, "dequantize");
  Export<EmptyLike>(env, exports, "emptyLike");
  Export<QuantizeRows>(env, exports, "quantizeRows");
  Export<QuantizeScales>(env, exports, "quantizeScales");
  Export<WeightNorms>(env, exports, "weightNorms");
  Export<FactoredNorm>(env, exports, "factoredNorm");
  Export<TakeRows>(env, exports, "takeRows");
  Export<PutRows>(env, exports, "putRows");
  Export<Formats>(env, exports, "formats");
}

}  // namespace lowrank::addon
