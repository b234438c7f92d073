/// Attention.
#include <limits>
#include <utility>

#include "native/addon/bindings.h"
#include "native/addon/operands.h"

namespace lowrank::addon {
namespace {

constexpr int64_t kMostRows = std::numeric_limits<int32_t>::max();
constexpr int64_t kMostHeads = 65536;

// q, k, v, qFirst, kFirst, vFirst, sequences, heads, kvHeads, headDim, window, scale, softcap, rope
// | null, documents | null: the first arguments of both calls.
constexpr size_t kShared = 15;

template <typename Op>
void ReadShared(const Napi::CallbackInfo& info, Operands* operands, Op* op) {
  const auto integer = [&](size_t at, const char* operand, int64_t most) {
    return IntegerArg(info[at], Op::kName, operand, Code::kValue, most);
  };
  HeadsView* const inputs[] = {&op->q, &op->k, &op->v};
  const char* const names[] = {"q", "k", "v"};
  for (size_t i = 0; i < 3; ++i) {
    inputs[i]->matrix = operands->In(info[i], names[i]);
    inputs[i]->first = integer(3 + i, names[i], kMostRows);
  }
  AttentionShape& shape = op->shape;
  shape.sequences = integer(6, "sequences", kMostRows);
  shape.heads = integer(7, "heads", kMostHeads);
  shape.kv_heads = integer(8, "kvHeads", kMostHeads);
  shape.head_dim = integer(9, "headDim", kMostHeadDim);
  shape.window = integer(10, "window", kMostRows);
  shape.scale = static_cast<float>(NumberArg(info[11], Op::kName, "scale"));
  shape.softcap = static_cast<float>(NumberArg(info[12], Op::kName, "softcap"));
  shape.rope = operands->OptionalIn(info[13], "rope");
  shape.documents = operands->OptionalIndices(info[14], "documents");
}

// attention(..., kCache | null, vCache | null, past, keep, sinks | null) -> [o, lse | null]
Napi::Value Attention(const Napi::CallbackInfo& info) {
  constexpr const char* kOp = AttentionOp::kName;
  const Napi::Env env = info.Env();
  const TensorHandle& q = TensorOf(info[0], kOp, "q");
  Operands operands(env, kOp, q.storage->backend());
  AttentionOp op;
  ReadShared(info, &operands, &op);
  if (IsPresent(info[kShared])) op.k_cache = operands.InOut(info[kShared], "cache.k");
  if (IsPresent(info[kShared + 1])) op.v_cache = operands.InOut(info[kShared + 1], "cache.v");
  op.past = IntegerArg(info[kShared + 2], kOp, "past", Code::kValue, kMostRows);
  op.sinks = operands.OptionalRow(info[kShared + 4], "sinks");
  TensorHandle o;
  TensorHandle lse;
  const int64_t heads = op.shape.heads;
  op.o = operands.Out(&o, q.dtype, WithLast(q.shape, heads * op.shape.head_dim));
  if (BoolArg(info[kShared + 3])) {
    op.lse = operands.Out(&lse, DType::kF32, {heads, op.q.matrix.rows});
  }
  ThrowIfError(env, operands.backend()->Enqueue(op, operands.Take()));
  return WrapTensors(env, {&o, &lse});
}

// attentionBackward(..., o, lse, dO, fused) -> [dqkv], or [dq, dk, dv]
Napi::Value AttentionBackward(const Napi::CallbackInfo& info) {
  constexpr const char* kOp = AttentionBackwardOp::kName;
  const Napi::Env env = info.Env();
  const TensorHandle& q = TensorOf(info[0], kOp, "q");
  Operands operands(env, kOp, q.storage->backend());
  AttentionBackwardOp op;
  ReadShared(info, &operands, &op);
  op.o = operands.In(info[kShared], "o");
  op.lse = operands.In(info[kShared + 1], "lse");
  op.d_o = operands.In(info[kShared + 2], "dO");
  const int64_t cols = op.shape.heads * op.shape.head_dim;
  const int64_t kv_cols = op.shape.kv_heads * op.shape.head_dim;
  TensorHandle made[3];
  const bool fused = BoolArg(info[kShared + 3]);
  if (fused) {
    op.dq.matrix = operands.Out(&made[0], q.dtype, WithLast(q.shape, cols + 2 * kv_cols));
    op.dk = {op.dq.matrix, cols};
    op.dv = {op.dq.matrix, cols + kv_cols};
  } else {
    const TensorHandle& k = TensorOf(info[1], kOp, "k");
    const TensorHandle& v = TensorOf(info[2], kOp, "v");
    op.dq.matrix = operands.Out(&made[0], q.dtype, WithLast(q.shape, cols));
    op.dk.matrix = operands.Out(&made[1], q.dtype, WithLast(k.shape, kv_cols));
    op.dv.matrix = operands.Out(&made[2], q.dtype, WithLast(v.shape, kv_cols));
  }
  ThrowIfError(env, operands.backend()->Enqueue(op, operands.Take()));
  if (fused) return WrapTensors(env, {&made[0]});
  return WrapTensors(env, {&made[0], &made[1], &made[2]});
}

}  // namespace

void RegisterAttention(Napi::Env env, Napi::Object exports) {
  Export<Attention>(env, exports, "attention");
  Export<AttentionBackward>(env, exports, "attentionBackward");
}

}  // namespace lowrank::addon
