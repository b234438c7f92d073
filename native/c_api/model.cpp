/// What a decoder has around its linear layers.
#include <limits>

#include "native/c_api/operands.h"

using namespace lowrank;
using namespace lowrank::c_api;

namespace {

constexpr int64_t kMostRows = std::numeric_limits<int32_t>::max();
constexpr int64_t kMostHeads = 65536;

/// Checks a number that other sizes are computed from.
void CheckCount(const char* name, int64_t value, int64_t least, int64_t most, Operands* operands) {
  if (value >= least && value <= most) return;
  operands->Check(Refuse(Code::kValue, operands->op(), name,
                         "from " + std::to_string(least) + " to " + std::to_string(most),
                         std::to_string(value)));
}

/// The fields that both passes of attention have.
template <typename Args, typename Op>
void ReadAttention(const Args& given, Operands* operands, Op* op) {
  AttentionShape& shape = op->shape;
  CheckCount("sequences", given.sequences, 1, kMostRows, operands);
  CheckCount("heads", given.heads, 1, kMostHeads, operands);
  CheckCount("kvHeads", given.kv_heads, 1, kMostHeads, operands);
  CheckCount("headDim", given.head_dim, 2, kMostHeadDim, operands);
  CheckCount("window", given.window, 0, kMostRows, operands);
  shape.sequences = given.sequences;
  shape.heads = given.heads;
  shape.kv_heads = given.kv_heads;
  shape.head_dim = given.head_dim;
  shape.window = given.window;
  shape.scale = given.scale;
  shape.softcap = given.softcap;
  shape.rope = operands->OptionalIn(given.rope, "rope");
  op->q.matrix = operands->In(given.q, "q");
  op->k.matrix = operands->In(given.k, "k");
  op->v.matrix = operands->In(given.v, "v");
}

}  // namespace

int32_t lowrank_embedding(const lowrank_embedding_args* args) {
  constexpr const char* kOp = EmbeddingOp::kName;
  return Call(kOp, args, [&](const lowrank_embedding_args& given) -> Result {
    Operands operands(kOp, given.device, given.flags, 0, given.stream);
    operands.CheckReserved(given.reserved);
    EmbeddingOp op;
    op.table = operands.Weight(given.table, "table");
    op.ids = operands.Indices(given.ids, "ids", op.table.rows(), true);
    op.y = operands.In(given.y, "y");
    op.scale = given.scale;
    return operands.Run(op);
  });
}

int32_t lowrank_rms_norm(const lowrank_rms_norm_args* args) {
  constexpr const char* kOp = RmsNormOp::kName;
  return Call(kOp, args, [&](const lowrank_rms_norm_args& given) -> Result {
    Operands operands(kOp, given.device, given.flags, LOWRANK_GAIN_PLUS_ONE, given.stream);
    operands.CheckReserved(given.reserved);
    RmsNormOp op;
    op.x = operands.In(given.x, "x");
    op.residual = operands.OptionalIn(given.residual, "residual");
    op.g = operands.Row(given.g, "g");
    op.sum = operands.OptionalIn(given.sum, "sum");
    op.y = operands.In(given.y, "y");
    op.inv_rms = operands.OptionalRow(given.inv_rms, "invRms");
    op.eps = given.eps;
    op.plus_one = operands.Flag(LOWRANK_GAIN_PLUS_ONE);
    return operands.Run(op);
  });
}

int32_t lowrank_rms_norm_backward(const lowrank_rms_norm_backward_args* args) {
  constexpr const char* kOp = RmsNormBackwardOp::kName;
  return Call(kOp, args, [&](const lowrank_rms_norm_backward_args& given) -> Result {
    Operands operands(kOp, given.device, given.flags, LOWRANK_GAIN_PLUS_ONE, given.stream);
    RmsNormBackwardOp op;
    op.dy = operands.In(given.dy, "dy");
    op.s = operands.In(given.s, "s");
    op.g = operands.Row(given.g, "g");
    op.inv_rms = operands.Row(given.inv_rms, "invRms");
    op.d_sum = operands.OptionalIn(given.d_sum, "dSum");
    op.dx = operands.OptionalIn(given.dx, "dx");
    op.dg = operands.OptionalRow(given.dg, "dg");
    op.plus_one = operands.Flag(LOWRANK_GAIN_PLUS_ONE);
    return operands.Run(op);
  });
}

int32_t lowrank_linear_cross_entropy(const lowrank_linear_cross_entropy_args* args) {
  constexpr const char* kOp = LinearCrossEntropyOp::kName;
  return Call(kOp, args, [&](const lowrank_linear_cross_entropy_args& given) -> Result {
    Operands operands(kOp, given.device, given.flags, 0, given.stream);
    LinearCrossEntropyOp op;
    op.x = operands.In(given.x, "x");
    op.head = operands.Weight(given.head, "head");
    op.targets = operands.Indices(given.targets, "targets", op.head.rows(), true);
    op.weights = operands.OptionalRow(given.weights, "weights");
    op.losses = operands.Row(given.losses, "losses");
    op.dx = operands.OptionalIn(given.dx, "dx");
    op.scale = given.scale;
    op.softcap = given.softcap;
    return operands.Run(op);
  });
}

int32_t lowrank_attention(const lowrank_attention_args* args) {
  constexpr const char* kOp = AttentionOp::kName;
  return Call(kOp, args, [&](const lowrank_attention_args& given) -> Result {
    Operands operands(kOp, given.device, given.flags, 0, given.stream);
    AttentionOp op;
    ReadAttention(given, &operands, &op);
    op.sinks = operands.OptionalRow(given.sinks, "sinks");
    op.o = operands.In(given.o, "o");
    op.lse = operands.OptionalIn(given.lse, "lse");
    return operands.Run(op);
  });
}

int32_t lowrank_attention_backward(const lowrank_attention_backward_args* args) {
  constexpr const char* kOp = AttentionBackwardOp::kName;
  return Call(kOp, args, [&](const lowrank_attention_backward_args& given) -> Result {
    Operands operands(kOp, given.device, given.flags, 0, given.stream);
    AttentionBackwardOp op;
    ReadAttention(given, &operands, &op);
    op.o = operands.In(given.o, "o");
    op.lse = operands.In(given.lse, "lse");
    op.d_o = operands.In(given.d_o, "dO");
    op.dq.matrix = operands.In(given.dq, "dq");
    op.dk.matrix = operands.In(given.dk, "dk");
    op.dv.matrix = operands.In(given.dv, "dv");
    return operands.Run(op);
  });
}
