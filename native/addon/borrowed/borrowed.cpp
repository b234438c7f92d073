/// Ops on memory that stays the caller's: Float32Arrays of any buffer, the heap of a WebAssembly
/// module too. A call computes on the JavaScript thread and is finished when it returns, so no
/// JavaScript runs meanwhile that could detach or shrink a buffer. Nothing is copied, and no handle
/// is made. All arguments are plain values by position: reading them runs no code of the caller
/// either.
#include <string>
#include <vector>

#include "native/addon/bindings.h"
#include "native/addon/host_array.h"
#include "native/addon/operands.h"
#include "native/core/ops/op_checks.h"

namespace lowrank::addon {
namespace {

constexpr int64_t kMostDim = int64_t{1} << 31;

class Borrowed {
 public:
  Borrowed(Napi::Env env, const char* op, const Napi::Value& device)
      : env_(env), op_(op), backend_(BackendArg(device)) {
    if (backend_->HostAddressable()) return;
    Throw(Refuse(Code::kDevice, op, "device", "one that computes in host memory, cpu or reference",
                 backend_->Info().device));
  }

  const char* op() const { return op_; }
  int64_t Dim(const Napi::Value& value, const char* name) const {
    return IntegerArg(value, op_, name, Code::kShape, kMostDim);
  }

  /// The other dimension of an adapter's factor.
  int64_t PerRank(const Napi::Value& factor, const char* operand, int64_t r) const {
    const size_t length = Floats(factor, operand).length;
    if (r > 0 && length % static_cast<size_t>(r) == 0) return static_cast<int64_t>(length) / r;
    Throw(Refuse(Code::kShape, op_, operand,
                 "of a length that r = " + std::to_string(r) + " divides", std::to_string(length)));
    return 0;
  }

  /// The elements of a Float32Array.
  HostArray Floats(const Napi::Value& value, const char* operand) const {
    const HostArray array = HostArrayOf(value, op_, operand);
    if (array.type != napi_float32_array) {
      Throw(Refuse(Code::kType, op_, operand, "a Float32Array", "a typed array of another type"));
    }
    if (array.length == 0) RequireAttached(value, operand);
    return array;
  }

  TensorView View(const Napi::Value& value, const char* operand, int64_t rows, int64_t cols) const {
    const HostArray array = Floats(value, operand);
    if (array.length != static_cast<uint64_t>(rows) * static_cast<uint64_t>(cols)) {
      Throw(Refuse(Code::kShape, op_, operand, "of length " + std::to_string(rows * cols),
                   std::to_string(array.length)));
    }
    return Of(array.data, rows, cols);
  }
  TensorView OptionalView(const Napi::Value& value, const char* operand, int64_t rows,
                          int64_t cols) const {
    return IsPresent(value) ? View(value, operand, rows, cols) : TensorView();
  }
  static TensorView Of(void* data, int64_t rows, int64_t cols) {
    return TensorView{rows * cols == 0 ? nullptr : data, DType::kF32, rows, cols, true};
  }

  /// A handle of a dense or quantised weight, or the values of a dense one.
  WeightView Weight(const Napi::Value& value, const char* operand, int64_t rows, int64_t cols) {
    WeightView view;
    if (value.IsTypedArray()) {
      view.dense = View(value, operand, rows, cols);
      return view;
    }
    if (!IsWeight(value)) {
      const TensorHandle& tensor = TensorOf(value, op_, operand);
      Hold(tensor.storage, operand);
      view.dense = tensor.View();
      return view;
    }
    const WeightHandle& weight = WeightOf(value, op_, operand);
    for (const StoragePtr& part : weight.parts) {
      if (part) Hold(part, operand);
    }
    view.quant = weight.View();
    return view;
  }

  template <typename Op>
  void Run(const Op& op) const {
    Throw(backend_->RunNow(op, nullptr));
    // A failure of the queued op that made a weight is known by now.
    for (const StoragePtr& storage : held_) Throw(storage->poison());
  }

  void Throw(const Status& status) const { ThrowIfError(env_, status); }

 private:
  void Hold(const StoragePtr& storage, const char* operand) {
    if (storage->backend() != backend_) {
      Throw(Refuse(Code::kDevice, op_, operand, "on device " + backend_->Info().device,
                   storage->backend()->Info().device));
    }
    held_.push_back(storage);
  }

  void RequireAttached(const Napi::Value& value, const char* operand) const {
    bool detached = false;
    const Napi::Value buffer = value.As<Napi::TypedArray>().ArrayBuffer();
    if (napi_is_detached_arraybuffer(env_, buffer, &detached) == napi_ok && detached) {
      Throw(Refuse(Code::kDisposed, op_, operand, "an array with memory", "a detached array"));
    }
  }

  Napi::Env env_;
  const char* op_;
  Backend* backend_;
  std::vector<StoragePtr> held_;
};

enum Form : int64_t { kRowsByRows, kRowsByColumns, kColumnsByColumns, kForms };

/// One product, from views of its operands.
void Multiply(const Borrowed& borrowed, int64_t form, const TensorView& a, const WeightView& b,
              const TensorView& bias, const TensorView& out) {
  if (form == kRowsByRows) {
    MatmulOp op;
    op.x = a;
    op.w = b;
    op.bias = bias;
    op.y = out;
    borrowed.Run(op);
  } else if (form == kRowsByColumns) {
    MatmulInputGradOp op;
    op.dy = a;
    op.w = b;
    op.dx = out;
    borrowed.Run(op);
  } else {
    WeightGradOp op;
    op.dy = a;
    op.x = b.dense;
    op.dw = out;
    borrowed.Run(op);
  }
}

// multiplyBorrowed(device, form, a, b, out, M, N, K, bias | null, pairs | null)
//   form 0  out [M, N] = a [M, K] · (b [N, K])ᵀ + bias [N]; b may be the handle of a weight
//   form 1  out [M, N] = a [M, K] · b [K, N];              b may be the handle of a weight
//   form 2  out [M, N] = (a [K, M])ᵀ · b [K, N]
// pairs, an Int32Array: for each matrix of out, the matrices of a and of b that it multiplies.
Napi::Value MultiplyBorrowed(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Borrowed borrowed(env, "multiply", info[0]);
  const int64_t form = IntegerArg(info[1], borrowed.op(), "form", Code::kValue, kForms - 1);
  const int64_t M = borrowed.Dim(info[5], "M");
  const int64_t N = borrowed.Dim(info[6], "N");
  const int64_t K = borrowed.Dim(info[7], "K");
  const bool turned = form == kColumnsByColumns;
  const int64_t a_rows = turned ? K : M;
  const int64_t a_cols = turned ? M : K;
  const int64_t b_rows = form == kRowsByRows ? N : K;
  const int64_t b_cols = form == kRowsByRows ? K : N;
  const TensorView bias = borrowed.OptionalView(info[8], "bias", 1, N);
  if (bias.present && form != kRowsByRows) {
    borrowed.Throw(Refuse(Code::kUnsupported, borrowed.op(), "bias", "absent in this form", "one"));
  }
  if (!IsPresent(info[9])) {
    const TensorView a = borrowed.View(info[2], "a", a_rows, a_cols);
    if (turned) borrowed.Floats(info[3], "b");
    const WeightView b = borrowed.Weight(info[3], "b", b_rows, b_cols);
    Multiply(borrowed, form, a, b, bias, borrowed.View(info[4], "out", M, N));
    return env.Undefined();
  }
  const std::vector<int32_t> pairs = IntegersArg(info[9], borrowed.op(), "pairs");
  const HostArray a = borrowed.Floats(info[2], "a");
  const HostArray b = borrowed.Floats(info[3], "b");
  const int64_t count = static_cast<int64_t>(pairs.size() / 2);
  if (pairs.size() % 2 != 0) {
    borrowed.Throw(Refuse(Code::kShape, borrowed.op(), "pairs", "of even length",
                          std::to_string(pairs.size())));
  }
  const TensorView out = borrowed.View(info[4], "out", count * M, N);
  const int64_t a_elems = a_rows * a_cols;
  const int64_t b_elems = b_rows * b_cols;
  const int64_t a_count = a_elems == 0 ? kMostDim : static_cast<int64_t>(a.length) / a_elems;
  const int64_t b_count = b_elems == 0 ? kMostDim : static_cast<int64_t>(b.length) / b_elems;
  // Before the first product, so that a refusal leaves all of `out` as it was.
  for (size_t i = 0; i < pairs.size(); ++i) {
    const int64_t most = (i % 2 == 0 ? a_count : b_count) - 1;
    if (pairs[i] >= 0 && pairs[i] <= most) continue;
    borrowed.Throw(Refuse(Code::kValue, borrowed.op(), "pairs[" + std::to_string(i) + "]",
                          "from 0 to " + std::to_string(most), std::to_string(pairs[i])));
  }
  const TensorView whole_a = Borrowed::Of(a.data, 1, static_cast<int64_t>(a.length));
  const TensorView whole_b = Borrowed::Of(b.data, 1, static_cast<int64_t>(b.length));
  borrowed.Throw(
      Ranges().Out("out", out).In("a", whole_a).In("b", whole_b).CheckApart(borrowed.op()));
  for (int64_t i = 0; i < count; ++i) {
    WeightView right;
    right.dense =
        Borrowed::Of(static_cast<float*>(b.data) + pairs[2 * i + 1] * b_elems, b_rows, b_cols);
    const TensorView left =
        Borrowed::Of(static_cast<float*>(a.data) + pairs[2 * i] * a_elems, a_rows, a_cols);
    Multiply(borrowed, form, left, right, bias, out.Rows(i * M, M));
  }
  return env.Undefined();
}

DropoutSpec DropoutOf(const Borrowed& borrowed, const Napi::CallbackInfo& info, size_t first) {
  DropoutSpec dropout;
  dropout.p = NumberArg(info[first], borrowed.op(), "dropout");
  dropout.seed = SeedArg(info[first + 1], info[first + 2], borrowed.op());
  return dropout;
}

// loraForwardBorrowed(device, w, M, r, x, bias | null, loraA, loraB, scaling,
//                     dropout, seedLow, seedHigh, h, y)
// w [N, K]: the handle of a weight, or a Float32Array; h [M, r] and y [M, N] are written
Napi::Value LoraForwardBorrowed(const Napi::CallbackInfo& info) {
  Borrowed borrowed(info.Env(), LoraForwardOp::kName, info[0]);
  LoraForwardOp op;
  const int64_t M = borrowed.Dim(info[2], "M");
  const int64_t r = borrowed.Dim(info[3], "r");
  const int64_t K = borrowed.PerRank(info[6], "loraA", r);
  const int64_t N = borrowed.PerRank(info[7], "loraB", r);
  op.w = borrowed.Weight(info[1], "w", N, K);
  op.scaling = static_cast<float>(NumberArg(info[8], borrowed.op(), "scaling"));
  op.dropout = DropoutOf(borrowed, info, 9);
  op.x = borrowed.View(info[4], "x", M, K);
  op.bias = borrowed.OptionalView(info[5], "bias", 1, N);
  op.lora_a = borrowed.View(info[6], "loraA", r, K);
  op.lora_b = borrowed.View(info[7], "loraB", N, r);
  op.h = borrowed.View(info[12], "h", M, r);
  op.y = borrowed.View(info[13], "y", M, N);
  borrowed.Run(op);
  return info.Env().Undefined();
}

// loraBackwardBorrowed(device, w, M, r, dy, x | null, loraA, loraB, h | null, scaling,
//                      dropout, seedLow, seedHigh, dx | null, dLoraA | null, dLoraB | null,
//                      dBias | null)
// The gradients are written, not added to.
Napi::Value LoraBackwardBorrowed(const Napi::CallbackInfo& info) {
  Borrowed borrowed(info.Env(), LoraBackwardOp::kName, info[0]);
  LoraBackwardOp op;
  const int64_t M = borrowed.Dim(info[2], "M");
  const int64_t r = borrowed.Dim(info[3], "r");
  const int64_t K = borrowed.PerRank(info[6], "loraA", r);
  const int64_t N = borrowed.PerRank(info[7], "loraB", r);
  op.w = borrowed.Weight(info[1], "w", N, K);
  op.scaling = static_cast<float>(NumberArg(info[9], borrowed.op(), "scaling"));
  op.dropout = DropoutOf(borrowed, info, 10);
  op.dy = borrowed.View(info[4], "dy", M, N);
  op.x = borrowed.OptionalView(info[5], "x", M, K);
  op.lora_a = borrowed.View(info[6], "loraA", r, K);
  op.lora_b = borrowed.View(info[7], "loraB", N, r);
  op.h = borrowed.OptionalView(info[8], "h", M, r);
  op.dx = borrowed.OptionalView(info[13], "dx", M, K);
  op.d_lora_a = borrowed.OptionalView(info[14], "dLoraA", r, K);
  op.d_lora_b = borrowed.OptionalView(info[15], "dLoraB", N, r);
  op.d_bias = borrowed.OptionalView(info[16], "dBias", 1, N);
  borrowed.Run(op);
  return info.Env().Undefined();
}

}  // namespace

void RegisterBorrowed(Napi::Env env, Napi::Object exports) {
  Export<MultiplyBorrowed>(env, exports, "multiplyBorrowed");
  Export<LoraForwardBorrowed>(env, exports, "loraForwardBorrowed");
  Export<LoraBackwardBorrowed>(env, exports, "loraBackwardBorrowed");
}

}  // namespace lowrank::addon
