/// Making weights: dense ones of the caller, quantised ones, and ones from parts that exist.
#include "native/c_api/weights.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "native/c_api/exports.h"
#include "native/c_api/operands.h"
#include "native/core/ops/op_checks.h"
#include "native/core/runtime/registry.h"

namespace lowrank::c_api {
namespace {

constexpr DLDataType kUint8{kDLUInt, 8, 1};
constexpr DLDataType kFloat32{kDLFloat, 32, 1};

Status FormatOf(const char* op, const char* name, const FormatRow** format) {
  std::string known;
  for (const std::string& each : FormatNames()) known += (known.empty() ? "" : ", ") + each;
  if (name == nullptr) return Refuse(Code::kType, op, "format", "one of " + known, "NULL");
  *format = FindFormat(name);
  if (*format != nullptr) return Status();
  return Refuse(Code::kFormat, op, "format", "one of " + known,
                "\"" + std::string(name).substr(0, 40) + "\"");
}

/// The format and the sizes of an own weight, still without parts.
Status Describe(const char* op, const char* format, int64_t rows, int64_t cols, int64_t blocksize,
                bool rowwise, QuantView* view) {
  LOWRANK_RETURN_IF_ERROR(FormatOf(op, format, &view->format));
  view->rows = rows;
  view->cols = cols;
  view->rowwise = rowwise;
  view->blocksize = blocksize;
  if (rowwise) {
    if (view->format->bits != 8) {
      return Refuse(Code::kFormat, op, "format", "int8 (for LOWRANK_ROWWISE)", view->format->name);
    }
    // The longest blocks that end with the rows.
    if (blocksize == 0) view->blocksize = std::min(cols & -cols, view->format->max_blocksize);
  } else if (blocksize == 0) {
    view->blocksize = view->format->default_blocksize;
  }
  if (view->blocksize > 0) return Status();
  return Refuse(Code::kFormat, op, "blocksize", "a positive power of two",
                std::to_string(view->blocksize));
}

/// Memory of the weight with those bytes, or with any where `bytes` is null.
Status NewBytes(Backend* backend, size_t size, const void* bytes, lowrank_weight* weight,
                void** data) {
  StoragePtr part;
  LOWRANK_RETURN_IF_ERROR(backend->Allocate(size, &part));
  *data = part->data();
  if (bytes != nullptr && size != 0) {
    if (backend->HostAddressable()) {
      std::memcpy(part->data(), bytes, size);
    } else {
      const std::string copy(static_cast<const char*>(bytes), size);
      LOWRANK_RETURN_IF_ERROR(backend->Write(
          part,
          [copy](void* target) -> Status {
            std::memcpy(target, copy.data(), copy.size());
            return Status();
          },
          nullptr));
    }
  }
  weight->parts.push_back(std::move(part));
  return Status();
}

template <typename T>
Status NewPart(Backend* backend, int64_t count, const void* bytes, lowrank_weight* weight,
               T** data) {
  void* made = nullptr;
  LOWRANK_RETURN_IF_ERROR(
      NewBytes(backend, static_cast<size_t>(count) * sizeof(T), bytes, weight, &made));
  *data = static_cast<T*>(made);
  return Status();
}

Status NewTable(Backend* backend, int64_t count, const float* values, lowrank_weight* weight,
                const float** data) {
  float* made = nullptr;
  LOWRANK_RETURN_IF_ERROR(NewPart(backend, count, values, weight, &made));
  *data = made;
  return Status();
}

Status Quantize(const char* op, const lowrank_quantize_args& args, lowrank_weight** handle) {
  if (handle == nullptr) return RefuseNull(op, "weight", "where to write it");
  Operands operands(op, args.device, args.flags, LOWRANK_DOUBLE_QUANT | LOWRANK_ROWWISE,
                    args.stream);
  QuantizeOp quantize;
  quantize.w = operands.In(args.w, "w");
  LOWRANK_RETURN_IF_ERROR(operands.status());
  if (args.w->ndim != 2) {
    return Refuse(Code::kShape, op, "w", "[N, K]", std::to_string(args.w->ndim) + " dimensions");
  }
  const bool rowwise = operands.Flag(LOWRANK_ROWWISE);
  const bool nested = operands.Flag(LOWRANK_DOUBLE_QUANT);
  if (rowwise && (nested || args.blocksize != 0)) {
    return Refuse(
        Code::kValue, op, "flags and blocksize", "LOWRANK_ROWWISE alone",
        nested ? "LOWRANK_DOUBLE_QUANT too" : "blocksize " + std::to_string(args.blocksize));
  }
  const auto weight = std::make_shared<lowrank_weight>();
  weight->device = IsHost(args.w->device) ? DLDevice{kDLCPU, 0} : args.w->device;
  QuantView& view = weight->view.quant;
  LOWRANK_RETURN_IF_ERROR(
      Describe(op, args.format, quantize.w.rows, quantize.w.cols, args.blocksize, rowwise, &view));
  Backend* backend = nullptr;
  LOWRANK_RETURN_IF_ERROR(operands.FindBackend(&backend));
  LOWRANK_RETURN_IF_ERROR(backend->ReadyNow());
  lowrank_weight* w = weight.get();
  LOWRANK_RETURN_IF_ERROR(
      NewPart(backend, static_cast<int64_t>(view.code_bytes()), nullptr, w, &view.codes));
  LOWRANK_RETURN_IF_ERROR(NewTable(backend, view.format->levels,
                                   rowwise ? RowwiseLevels() : view.format->codebook, w,
                                   &view.codebook));
  if (nested) {
    LOWRANK_RETURN_IF_ERROR(NewPart(backend, view.blocks(), nullptr, w, &view.absmax_8bit));
    LOWRANK_RETURN_IF_ERROR(NewTable(backend, 256, DynamicMap8bit(), w, &view.absmax_codebook));
    LOWRANK_RETURN_IF_ERROR(
        NewPart(backend, view.nested_blocks(), nullptr, w, &view.nested_absmax));
    LOWRANK_RETURN_IF_ERROR(NewPart(backend, 1, nullptr, w, &view.absmax_offset));
  } else {
    LOWRANK_RETURN_IF_ERROR(NewPart(backend, view.blocks(), nullptr, w, &view.absmax));
  }
  quantize.out = view;
  LOWRANK_RETURN_IF_ERROR(operands.Run(quantize));
  *handle = AddWeight(weight);
  return Status();
}

/// A part of the caller, copied if it is given.
template <typename T>
Status CopyPart(const char* op, const char* name, const DLTensor* given, int64_t count,
                Backend* backend, lowrank_weight* weight, T** data) {
  if (given == nullptr) return Status();
  const DLDataType type = sizeof(T) == 1 ? kUint8 : kFloat32;
  if (given->dtype.code != type.code || given->dtype.bits != type.bits || given->dtype.lanes != 1) {
    return Refuse(Code::kDtype, op, name, DLTypeName(type), DLTypeName(given->dtype));
  }
  int64_t elements = 0;
  LOWRANK_RETURN_IF_ERROR(CheckTensor(op, name, given, &elements));
  if (!IsHost(given->device)) {
    return Refuse(Code::kDevice, op, name, "on the host", "a tensor on a CUDA device");
  }
  if (elements != count) {
    return Refuse(Code::kFormat, op, name, std::to_string(count) + " elements",
                  std::to_string(elements));
  }
  return NewPart(backend, count, DataOf(*given), weight, data);
}

Status FromParts(const char* op, const lowrank_weight_parts& parts, lowrank_weight** handle) {
  if (handle == nullptr) return RefuseNull(op, "weight", "where to write it");
  const Operands operands(op, parts.device, parts.flags, LOWRANK_ROWWISE, nullptr);
  LOWRANK_RETURN_IF_ERROR(operands.status());
  if (parts.device != LOWRANK_DEVICE_OF_OPERANDS) {
    return Refuse(Code::kValue, op, "device", "0", std::to_string(parts.device));
  }
  int64_t elements = 0;
  if (parts.rows < 0 || parts.cols < 0 ||
      __builtin_mul_overflow(parts.rows, parts.cols, &elements) || elements > (int64_t{1} << 56)) {
    return Refuse(Code::kShape, op, "rows and cols", "of a size from 0 to 2^56 elements",
                  Shape(parts.rows, parts.cols));
  }
  const auto weight = std::make_shared<lowrank_weight>();
  lowrank_weight* w = weight.get();
  QuantView& view = w->view.quant;
  const bool rowwise = operands.Flag(LOWRANK_ROWWISE);
  LOWRANK_RETURN_IF_ERROR(
      Describe(op, parts.format, parts.rows, parts.cols, parts.blocksize, rowwise, &view));
  if (parts.nested_blocksize < 0) {
    return Refuse(Code::kFormat, op, "nested_blocksize", "positive, or 0 for 256",
                  std::to_string(parts.nested_blocksize));
  }
  if (parts.nested_blocksize > 0) view.nested_blocksize = parts.nested_blocksize;
  if (parts.codes == nullptr) return Refuse(Code::kFormat, op, "codes", "given", "NULL");
  Backend* cpu = nullptr;
  LOWRANK_RETURN_IF_ERROR(FindKnownBackend("cpu", &cpu));
  LOWRANK_RETURN_IF_ERROR(CopyPart(op, "codes", parts.codes,
                                   static_cast<int64_t>(view.code_bytes()), cpu, w, &view.codes));
  const int64_t levels = view.format->levels;
  float* table = nullptr;
  LOWRANK_RETURN_IF_ERROR(CopyPart(op, "codebook", parts.codebook, levels, cpu, w, &table));
  view.codebook = table;
  if (table == nullptr) {
    LOWRANK_RETURN_IF_ERROR(NewTable(cpu, levels, rowwise ? RowwiseLevels() : view.format->codebook,
                                     w, &view.codebook));
  }
  LOWRANK_RETURN_IF_ERROR(
      CopyPart(op, "absmax", parts.absmax, view.blocks(), cpu, w, &view.absmax));
  LOWRANK_RETURN_IF_ERROR(
      CopyPart(op, "absmax_8bit", parts.absmax_8bit, view.blocks(), cpu, w, &view.absmax_8bit));
  table = nullptr;
  LOWRANK_RETURN_IF_ERROR(
      CopyPart(op, "absmax_codebook", parts.absmax_codebook, 256, cpu, w, &table));
  view.absmax_codebook = table;
  LOWRANK_RETURN_IF_ERROR(CopyPart(op, "nested_absmax", parts.nested_absmax, view.nested_blocks(),
                                   cpu, w, &view.nested_absmax));
  LOWRANK_RETURN_IF_ERROR(
      CopyPart(op, "absmax_offset", parts.absmax_offset, 1, cpu, w, &view.absmax_offset));
  // Which parts belong together, and the blocksize.
  LOWRANK_RETURN_IF_ERROR(CheckQuant(op, "the weight", view));
  *handle = AddWeight(weight);
  return Status();
}

/// A part as the caller sees it; no data if the weight has no such part.
struct Part {
  const char* name;
  const void* data;
  DLDataType dtype;
  std::vector<int64_t> shape;
};

std::vector<Part> PartsOf(const lowrank_weight& weight) {
  if (!weight.view.quantised()) {
    const TensorView& dense = weight.view.dense;
    return {{"dense", dense.data, DLTypeOf(dense.dtype), {dense.rows, dense.cols}}};
  }
  const QuantView& view = weight.view.quant;
  return {{"codes", view.codes, kUint8, {static_cast<int64_t>(view.code_bytes())}},
          {"codebook", view.codebook, kFloat32, {view.format->levels}},
          {"absmax", view.absmax, kFloat32, {view.blocks()}},
          {"absmax_8bit", view.absmax_8bit, kUint8, {view.blocks()}},
          {"absmax_codebook", view.absmax_codebook, kFloat32, {256}},
          {"nested_absmax", view.nested_absmax, kFloat32, {view.nested_blocks()}},
          {"absmax_offset", view.absmax_offset, kFloat32, {1}}};
}

int64_t BytesOf(const lowrank_weight& weight) {
  int64_t bytes = 0;
  for (const Part& part : PartsOf(weight)) {
    if (part.data == nullptr) continue;
    int64_t size = part.dtype.bits / 8;
    for (const int64_t each : part.shape) size *= each;
    bytes += size;
  }
  return bytes;
}

}  // namespace
}  // namespace lowrank::c_api

using namespace lowrank;
using namespace lowrank::c_api;

int32_t lowrank_weight_wrap(const DLTensor* w, void (*release)(void* context), void* context,
                            lowrank_weight** weight) {
  constexpr const char* kOp = "weight_wrap";
  return Guard(kOp, [&]() -> Status {
    if (weight == nullptr) return RefuseNull(kOp, "weight", "where to write it");
    const auto made = std::make_shared<lowrank_weight>();
    LOWRANK_RETURN_IF_ERROR(ViewOf(kOp, "w", w, &made->view.dense));
    if (w->ndim != 2) {
      return Refuse(Code::kShape, kOp, "w", "[N, K]", std::to_string(w->ndim) + " dimensions");
    }
    made->device = IsHost(w->device) ? DLDevice{kDLCPU, 0} : w->device;
    *weight = AddWeight(made);
    // From here on nothing can fail, and the memory is the weight's.
    made->context = context;
    made->release = release;
    return Status();
  });
}

int32_t lowrank_weight_quantize(const lowrank_quantize_args* args, lowrank_weight** weight) {
  constexpr const char* kOp = "quantize";
  return Call(kOp, args, [&](const lowrank_quantize_args& given) -> Result {
    return Quantize(kOp, given, weight);
  });
}

int32_t lowrank_weight_from_parts(const lowrank_weight_parts* parts, lowrank_weight** weight) {
  constexpr const char* kOp = "weight_from_parts";
  return Call(kOp, parts, [&](const lowrank_weight_parts& given) -> Result {
    return FromParts(kOp, given, weight);
  });
}

int32_t lowrank_weight_retain(lowrank_weight* weight) {
  constexpr const char* kOp = "weight_retain";
  return Guard(kOp, [&] { return RetainWeight(kOp, weight); });
}

int32_t lowrank_weight_release(lowrank_weight* weight) {
  constexpr const char* kOp = "weight_release";
  return Guard(kOp, [&] { return ReleaseWeight(kOp, weight); });
}

int32_t lowrank_weight_describe(lowrank_weight* weight, lowrank_weight_info* info) {
  constexpr const char* kOp = "weight_describe";
  return Guard(kOp, [&]() -> Result {
    std::shared_ptr<const lowrank_weight> held;
    LOWRANK_RETURN_IF_ERROR(FindWeight(kOp, "weight", weight, &held));
    const WeightView& view = held->view;
    lowrank_weight_info answer{};
    answer.rows = view.rows();
    answer.cols = view.cols();
    answer.bytes = BytesOf(*held);
    answer.blocksize = view.quantised() ? view.quant.blocksize : 0;
    CopyText(view.quantised() ? view.quant.format->name : DTypeName(view.dense.dtype),
             answer.format);
    answer.device = held->device;
    return WriteInfo(kOp, answer, info);
  });
}

int32_t lowrank_weight_part(lowrank_weight* weight, const char* name,
                            DLManagedTensorVersioned** part) {
  constexpr const char* kOp = "weight_part";
  return Guard(kOp, [&]() -> Status {
    if (name == nullptr) return RefuseNull(kOp, "name", "the name of a part");
    if (part == nullptr) return RefuseNull(kOp, "part", "where to write it");
    std::shared_ptr<const lowrank_weight> held;
    LOWRANK_RETURN_IF_ERROR(FindWeight(kOp, "weight", weight, &held));
    std::string known;
    for (const Part& each : PartsOf(*held)) {
      if (each.data == nullptr) continue;
      if (std::strcmp(each.name, name) == 0) {
        *part = NewExport(const_cast<void*>(each.data), held->device, each.dtype, each.shape, true,
                          held);
        return Status();
      }
      known += (known.empty() ? "" : ", ") + std::string(each.name);
    }
    return Refuse(Code::kFormat, kOp, "name", "one of " + known,
                  "\"" + std::string(name).substr(0, 40) + "\"");
  });
}

int32_t lowrank_dequantize(const lowrank_dequantize_args* args) {
  constexpr const char* kOp = DequantizeOp::kName;
  return Call(kOp, args, [&](const lowrank_dequantize_args& given) -> Result {
    Operands operands(kOp, given.device, given.flags, 0, given.stream);
    const WeightView w = operands.Weight(given.w, "w");
    DequantizeOp op;
    op.w = w.quant;
    op.y = operands.In(given.y, "y");
    if (w.dense.present) {
      operands.Check(Refuse(Code::kFormat, kOp, "w", "quantised", "dense " + w.dense.Describe()));
    }
    return operands.Run(op);
  });
}
