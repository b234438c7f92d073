/// Causal attention of grouped heads.
#include "native/core/ops/attention_ops.h"

#include "native/core/ops/op_checks.h"

namespace lowrank {
namespace {

Status CheckHeads(const char* op, const char* operand, const HeadsView& heads, int64_t rows,
                  int64_t cols, DType dtype) {
  const TensorView& matrix = heads.matrix;
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(op, operand, matrix, rows, matrix.cols));
  LOWRANK_RETURN_IF_ERROR(CheckDType(op, operand, matrix, dtype));
  if (heads.first < 0 || heads.first > matrix.cols - cols) {
    return Refuse(Code::kShape, op, operand,
                  "of at least " + std::to_string(cols) + " columns from column " +
                      std::to_string(heads.first),
                  std::to_string(matrix.cols) + " columns");
  }
  return Status();
}

/// @param seen rows of a sequence with those in a cache
Status CheckAttentionShape(const char* op, const AttentionShape& shape, int64_t M, int64_t past) {
  const auto at_least_1 = [&](const char* operand, int64_t value) {
    if (value >= 1) return Status();
    return Refuse(Code::kValue, op, operand, "at least 1", std::to_string(value));
  };
  LOWRANK_RETURN_IF_ERROR(at_least_1("sequences", shape.sequences));
  LOWRANK_RETURN_IF_ERROR(at_least_1("heads", shape.heads));
  LOWRANK_RETURN_IF_ERROR(at_least_1("kvHeads", shape.kv_heads));
  if (M % shape.sequences != 0) {
    return Refuse(Code::kShape, op, "q",
                  "of rows that " + std::to_string(shape.sequences) + " sequences divide",
                  std::to_string(M) + " rows");
  }
  if (shape.heads % shape.kv_heads != 0) {
    return Refuse(Code::kValue, op, "heads",
                  "a multiple of kvHeads = " + std::to_string(shape.kv_heads),
                  std::to_string(shape.heads));
  }
  if (shape.head_dim < 2 || shape.head_dim > kMostHeadDim || shape.head_dim % 2 != 0) {
    return Refuse(Code::kShape, op, "headDim", "even and from 2 to " + std::to_string(kMostHeadDim),
                  std::to_string(shape.head_dim));
  }
  LOWRANK_RETURN_IF_ERROR(CheckFactor(op, "scale", shape.scale));
  LOWRANK_RETURN_IF_ERROR(CheckFactor(op, "softcap", shape.softcap));
  if (shape.softcap < 0) {
    return Refuse(Code::kValue, op, "softcap", "not negative", std::to_string(shape.softcap));
  }
  if (shape.window < 0) {
    return Refuse(Code::kValue, op, "window", "not negative", std::to_string(shape.window));
  }
  const int64_t T = M / shape.sequences;
  if (shape.rope.present) {
    const TensorView& rope = shape.rope;
    LOWRANK_RETURN_IF_ERROR(CheckMatrix(op, "rope", rope, rope.rows, rope.cols));
    LOWRANK_RETURN_IF_ERROR(CheckDType(op, "rope", rope, DType::kF32));
    if (rope.cols % 2 != 0 || rope.cols > shape.head_dim) {
      return Refuse(
          Code::kShape, op, "rope",
          "of an even number of columns up to headDim = " + std::to_string(shape.head_dim),
          rope.Describe());
    }
    if (rope.rows < past + T) {
      return Refuse(Code::kShape, op, "rope",
                    "of at least " + std::to_string(past + T) + " positions", rope.Describe());
    }
  }
  if (shape.documents.present && shape.documents.count != M) {
    return Refuse(Code::kShape, op, "documents", "of " + std::to_string(M) + " rows",
                  std::to_string(shape.documents.count));
  }
  return Status();
}

Status CheckInputs(const char* op, const AttentionShape& shape, const HeadsView& q,
                   const HeadsView& k, const HeadsView& v, int64_t past) {
  const int64_t M = q.matrix.rows;
  const DType dtype = q.matrix.dtype;
  LOWRANK_RETURN_IF_ERROR(CheckAttentionShape(op, shape, M, past));
  const int64_t kv_cols = shape.kv_heads * shape.head_dim;
  LOWRANK_RETURN_IF_ERROR(CheckHeads(op, "q", q, M, shape.heads * shape.head_dim, dtype));
  LOWRANK_RETURN_IF_ERROR(CheckHeads(op, "k", k, M, kv_cols, dtype));
  return CheckHeads(op, "v", v, M, kv_cols, dtype);
}

std::string DescribeShape(const AttentionShape& shape) {
  std::string text = " sequences " + std::to_string(shape.sequences) + " heads " +
                     std::to_string(shape.heads) + "/" + std::to_string(shape.kv_heads) +
                     " headDim " + std::to_string(shape.head_dim);
  if (shape.window != 0) text += " window " + std::to_string(shape.window);
  if (shape.softcap != 0) text += " softcap " + std::to_string(shape.softcap);
  if (shape.rope.present) text += " rope " + shape.rope.Describe();
  if (shape.documents.present) text += " documents";
  return text;
}

bool SameMatrix(const TensorView& a, const TensorView& b) {
  return a.data == b.data && a.rows == b.rows && a.cols == b.cols;
}

bool Overlap(int64_t first_a, int64_t cols_a, int64_t first_b, int64_t cols_b) {
  return first_a < first_b + cols_b && first_b < first_a + cols_a;
}

}  // namespace

Status AttentionOp::Check() const {
  LOWRANK_RETURN_IF_ERROR(CheckInputs(kName, shape, q, k, v, past));
  const int64_t M = q.matrix.rows;
  const DType dtype = q.matrix.dtype;
  if (past < 0) return Refuse(Code::kValue, kName, "past", "not negative", std::to_string(past));
  if (k_cache.present != v_cache.present) {
    return Refuse(Code::kValue, kName, "cache", "of keys and of values", "one of them");
  }
  if (k_cache.present) {
    const int64_t cols = shape.kv_heads * shape.head_dim;
    LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "cache.k", k_cache, k_cache.rows, cols));
    LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "cache.v", v_cache, k_cache.rows, cols));
    LOWRANK_RETURN_IF_ERROR(CheckDType(kName, "cache.k", k_cache, dtype));
    LOWRANK_RETURN_IF_ERROR(CheckDType(kName, "cache.v", v_cache, dtype));
    if (k_cache.rows % shape.sequences != 0) {
      return Refuse(Code::kShape, kName, "cache.k",
                    "of rows that " + std::to_string(shape.sequences) + " sequences divide",
                    k_cache.Describe());
    }
    if (past + rows() > capacity()) {
      return Refuse(Code::kShape, kName, "cache",
                    "of at least " + std::to_string(past + rows()) +
                        " rows a sequence (past = " + std::to_string(past) + ")",
                    std::to_string(capacity()));
    }
    if (shape.documents.present) {
      return Refuse(Code::kValue, kName, "documents", "absent with a cache", "present");
    }
  } else if (past != 0) {
    return Refuse(Code::kValue, kName, "past", "0 without a cache", std::to_string(past));
  }
  LOWRANK_RETURN_IF_ERROR(CheckOptional(kName, "sinks", sinks, 1, shape.heads));
  if (sinks.present) LOWRANK_RETURN_IF_ERROR(CheckDType(kName, "sinks", sinks, DType::kF32));
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "o", o, M, shape.heads * shape.head_dim));
  LOWRANK_RETURN_IF_ERROR(CheckDType(kName, "o", o, dtype));
  LOWRANK_RETURN_IF_ERROR(CheckOptional(kName, "lse", lse, shape.heads, M));
  if (lse.present) LOWRANK_RETURN_IF_ERROR(CheckDType(kName, "lse", lse, DType::kF32));
  return Ranges()
      .Out("o", o)
      .Out("lse", lse)
      .Out("cache.k", k_cache)
      .Out("cache.v", v_cache)
      .In("q", q.matrix)
      .In("k", k.matrix)
      .In("v", v.matrix)
      .In("rope", shape.rope)
      .In("sinks", sinks)
      .CheckApart(kName);
}
std::string AttentionOp::Describe() const {
  std::string text = std::string(kName) + " q " + q.matrix.Describe() + DescribeShape(shape);
  if (sinks.present) text += " sinks";
  if (k_cache.present) {
    text += " cache " + k_cache.Describe() + " past " + std::to_string(past);
  }
  return text;
}

Status AttentionBackwardOp::Check() const {
  LOWRANK_RETURN_IF_ERROR(CheckInputs(kName, shape, q, k, v, 0));
  const int64_t M = q.matrix.rows;
  const DType dtype = q.matrix.dtype;
  const int64_t cols = shape.heads * shape.head_dim;
  const int64_t kv_cols = shape.kv_heads * shape.head_dim;
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "o", o, M, cols));
  LOWRANK_RETURN_IF_ERROR(CheckDType(kName, "o", o, dtype));
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "lse", lse, shape.heads, M));
  LOWRANK_RETURN_IF_ERROR(CheckDType(kName, "lse", lse, DType::kF32));
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "dO", d_o, M, cols));
  LOWRANK_RETURN_IF_ERROR(CheckHeads(kName, "dq", dq, M, cols, dtype));
  LOWRANK_RETURN_IF_ERROR(CheckHeads(kName, "dk", dk, M, kv_cols, dtype));
  LOWRANK_RETURN_IF_ERROR(CheckHeads(kName, "dv", dv, M, kv_cols, dtype));
  Ranges ranges;
  ranges.In("q", q.matrix).In("k", k.matrix).In("v", v.matrix).In("rope", shape.rope);
  ranges.In("o", o).In("lse", lse).In("dO", d_o).Out("dq", dq.matrix);
  if (SameMatrix(dq.matrix, dk.matrix) && SameMatrix(dq.matrix, dv.matrix)) {
    if (Overlap(dq.first, cols, dk.first, kv_cols) || Overlap(dq.first, cols, dv.first, kv_cols) ||
        Overlap(dk.first, kv_cols, dv.first, kv_cols)) {
      return Refuse(Code::kValue, kName, "dq, dk and dv", "columns of their own", "common ones");
    }
  } else {
    ranges.Out("dk", dk.matrix).Out("dv", dv.matrix);
  }
  return ranges.CheckApart(kName);
}
std::string AttentionBackwardOp::Describe() const {
  return std::string(kName) + " q " + q.matrix.Describe() + DescribeShape(shape);
}

int64_t FirstBadDocument(const IndexView& documents, int64_t sequences, int64_t rows) {
  if (!documents.present) return -1;
  for (int64_t b = 0; b < sequences; ++b) {
    const int32_t* begin = documents.data + b * rows;
    for (int64_t t = 0; t < rows; ++t) {
      if (begin[t] != t && (t == 0 || begin[t] != begin[t - 1])) return b * rows + t;
    }
  }
  return -1;
}

Status RefuseDocument(const char* op, const AttentionShape& shape, int64_t entry) {
  const int32_t* begin = shape.documents.data;
  const int64_t row = entry % (shape.documents.count / shape.sequences);
  const std::string own = std::to_string(row);
  const std::string before =
      row == 0 ? "" : " or " + std::to_string(begin[entry - 1]) + ", where its document began";
  return Refuse(Code::kValue, op, ("documents[" + std::to_string(entry) + "]").c_str(),
                own + before, std::to_string(begin[entry]));
}

}  // namespace lowrank
