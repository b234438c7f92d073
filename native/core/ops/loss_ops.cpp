/// The two ends of a decoder.
#include "native/core/ops/loss_ops.h"

#include "native/core/ops/op_checks.h"

namespace lowrank {
namespace {

Status CheckIndexed(const char* op, const char* operand, const IndexView& indices, int64_t count,
                    int64_t rows, const char* table) {
  if (!indices.present) return Refuse(Code::kType, op, operand, "given", "none");
  if (indices.count != count) {
    return Refuse(Code::kShape, op, operand, std::to_string(count) + " indices",
                  std::to_string(indices.count));
  }
  if (indices.limit > rows) {
    return Refuse(Code::kValue, op, operand,
                  "indices below the " + std::to_string(rows) + " rows of " + table,
                  "a limit of " + std::to_string(indices.limit));
  }
  return Status();
}

}  // namespace

Status EmbeddingOp::Check() const {
  if (table.quantised()) {
    LOWRANK_RETURN_IF_ERROR(CheckQuant(kName, "table", table.quant));
  } else {
    LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "table", table.dense, table.rows(), table.cols()));
  }
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "y", y, y.rows, table.cols()));
  LOWRANK_RETURN_IF_ERROR(CheckIndexed(kName, "ids", ids, y.rows, table.rows(), "table"));
  LOWRANK_RETURN_IF_ERROR(CheckFactor(kName, "scale", scale));
  return Ranges().Out("y", y).In("table", table).In("ids", ids).CheckApart(kName);
}
std::string EmbeddingOp::Describe() const {
  return std::string(kName) + " ids " + ids.Describe() + " table " + table.Describe();
}

Status LinearCrossEntropyOp::Check() const {
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "x", x, x.rows, x.cols));
  LOWRANK_RETURN_IF_ERROR(CheckWeight(kName, head, x.dtype, "x"));
  LOWRANK_RETURN_IF_ERROR(
      CheckInner(kName, "x", "inFeatures", head.cols(), x.cols, Shape(x.rows, x.cols)));
  if (head.rows() == 0) return Refuse(Code::kShape, kName, "head", "at least one row", "none");
  LOWRANK_RETURN_IF_ERROR(CheckIndexed(kName, "targets", targets, x.rows, head.rows(), "head"));
  LOWRANK_RETURN_IF_ERROR(CheckOptional(kName, "weights", weights, 1, x.rows));
  if (weights.present) LOWRANK_RETURN_IF_ERROR(CheckDType(kName, "weights", weights, DType::kF32));
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "losses", losses, 1, x.rows));
  LOWRANK_RETURN_IF_ERROR(CheckDType(kName, "losses", losses, DType::kF32));
  LOWRANK_RETURN_IF_ERROR(CheckOptional(kName, "dx", dx, x.rows, x.cols));
  if (dx.present) LOWRANK_RETURN_IF_ERROR(CheckDType(kName, "dx", dx, x.dtype));
  LOWRANK_RETURN_IF_ERROR(CheckFactor(kName, "scale", scale));
  LOWRANK_RETURN_IF_ERROR(CheckFactor(kName, "softcap", softcap));
  if (softcap < 0) {
    return Refuse(Code::kValue, kName, "softcap", "not negative", std::to_string(softcap));
  }
  return Ranges()
      .Out("losses", losses)
      .Out("dx", dx)
      .In("x", x)
      .In("head", head)
      .In("targets", targets)
      .In("weights", weights)
      .CheckApart(kName);
}
std::string LinearCrossEntropyOp::Describe() const {
  return std::string(kName) + " x " + x.Describe() + " head " + head.Describe();
}

}  // namespace lowrank
