/// The device "reference": attention.
#include <cmath>

#include "native/cpu/reference/reference_ops.h"

namespace lowrank::cpu::reference {
namespace {

/// Rows of one head of one sequence as doubles, [rows][head_dim].
struct HeadRows {
  int64_t dim;
  std::vector<double> values;
  double* Row(int64_t t) { return values.data() + t * dim; }
};

double At(const TensorView& view, int64_t row, int64_t col) {
  return LoadElement(view.data, view.dtype, row * view.cols + col);
}

/// Where row t of sequence b begins to see, and its position.
struct Rows {
  const AttentionShape& shape;
  int64_t T;
  int64_t past;

  int64_t Begin(int64_t b, int64_t t) const {
    return shape.documents.present ? shape.documents.data[b * T + t] : 0;
  }
  int64_t Position(int64_t b, int64_t t) const { return past + t - Begin(b, t); }
  int64_t First(int64_t b, int64_t t) const {
    const int64_t own = past + t;
    const int64_t begin = Begin(b, t);
    return shape.window == 0 ? begin : std::max(begin, own - shape.window + 1);
  }
};

/// Turns a head by the angle of a position; sign -1 turns it back.
void Turn(const TensorView& rope, int64_t position, double sign, double* row) {
  if (!rope.present) return;
  const int64_t half = rope.cols / 2;
  for (int64_t i = 0; i < half; ++i) {
    const double c = At(rope, position, i);
    const double s = sign * At(rope, position, half + i);
    const double a = row[i];
    const double b = row[half + i];
    row[i] = a * c - b * s;
    row[half + i] = b * c + a * s;
  }
}

HeadRows Read(const TensorView& matrix, int64_t first_row, int64_t first_col, int64_t count,
              int64_t dim) {
  HeadRows rows = {dim, std::vector<double>(static_cast<size_t>(count * dim))};
  for (int64_t t = 0; t < count; ++t) {
    for (int64_t d = 0; d < dim; ++d) rows.Row(t)[d] = At(matrix, first_row + t, first_col + d);
  }
  return rows;
}

HeadRows ReadTurned(const Rows& of, int64_t b, const HeadsView& heads, int64_t head) {
  const int64_t D = of.shape.head_dim;
  HeadRows rows = Read(heads.matrix, b * of.T, heads.first + head * D, of.T, D);
  if (!of.shape.rope.present) return rows;
  for (int64_t t = 0; t < of.T; ++t) {
    Turn(of.shape.rope, of.Position(b, t), 1, rows.Row(t));
    for (int64_t d = 0; d < D; ++d) {
      double& value = rows.Row(t)[d];
      value = RoundTo(heads.matrix.dtype, static_cast<float>(value));
    }
  }
  return rows;
}

double HeadDot(const double* a, const double* b, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += a[i] * b[i];
  return sum;
}

double Score(const AttentionShape& shape, const double* q, const double* k) {
  const double score = shape.scale * HeadDot(q, k, shape.head_dim);
  const double cap = shape.softcap;
  return cap == 0 ? score : cap * std::tanh(score / cap);
}

void StoreHead(const TensorView& out, int64_t row, int64_t first_col, const double* values,
               int64_t dim) {
  for (int64_t d = 0; d < dim; ++d) Store(out, row * out.cols + first_col + d, values[d], false);
}

/// New keys, turned, and values go behind those in the cache.
void Append(const AttentionOp& op, const Rows& of, int64_t b) {
  const int64_t D = op.shape.head_dim;
  for (int64_t g = 0; g < op.shape.kv_heads; ++g) {
    HeadRows k = ReadTurned(of, b, op.k, g);
    HeadRows v = Read(op.v.matrix, b * of.T, op.v.first + g * D, of.T, D);
    for (int64_t t = 0; t < of.T; ++t) {
      const int64_t row = b * op.capacity() + op.past + t;
      StoreHead(op.k_cache, row, g * D, k.Row(t), D);
      StoreHead(op.v_cache, row, g * D, v.Row(t), D);
    }
  }
}

void ForwardHead(const AttentionOp& op, const Rows& of, int64_t b, int64_t head) {
  const int64_t D = op.shape.head_dim;
  const int64_t g = head / op.shape.group();
  const int64_t T = of.T;
  HeadRows q = ReadTurned(of, b, op.q, head);
  const bool cached = op.k_cache.present;
  HeadRows k = cached ? Read(op.k_cache, b * op.capacity(), g * D, of.past + T, D)
                      : ReadTurned(of, b, op.k, g);
  HeadRows v = cached ? Read(op.v_cache, b * op.capacity(), g * D, of.past + T, D)
                      : Read(op.v.matrix, b * T, op.v.first + g * D, T, D);
  std::vector<double> scores(static_cast<size_t>(of.past + T));
  std::vector<double> o(static_cast<size_t>(D));
  for (int64_t t = 0; t < T; ++t) {
    const int64_t first = of.First(b, t);
    const int64_t last = of.past + t;
    double most = -INFINITY;
    for (int64_t i = first; i <= last; ++i) {
      double& score = scores[static_cast<size_t>(i)];
      score = Score(op.shape, q.Row(t), k.Row(i));
      if (!(score <= most)) most = score;
    }
    double sum = 0;
    if (op.sinks.present) {
      const double sink = LoadElement(op.sinks.data, DType::kF32, head);
      if (!(sink <= most)) most = sink;
      sum = std::exp(sink - most);
    }
    std::fill(o.begin(), o.end(), 0.0);
    for (int64_t i = first; i <= last; ++i) {
      const double p = std::exp(scores[static_cast<size_t>(i)] - most);
      sum += p;
      for (int64_t d = 0; d < D; ++d) o[static_cast<size_t>(d)] += p * v.Row(i)[d];
    }
    for (double& value : o) value /= sum;
    StoreHead(op.o, b * T + t, head * D, o.data(), D);
    if (op.lse.present) {
      Store(op.lse, head * op.q.matrix.rows + b * T + t, most + std::log(sum), false);
    }
  }
}

void BackwardHead(const AttentionBackwardOp& op, const Rows& of, int64_t b, int64_t head,
                  HeadRows* k, HeadRows* v, HeadRows* dk, HeadRows* dv) {
  const AttentionShape& shape = op.shape;
  const int64_t D = shape.head_dim;
  const int64_t T = of.T;
  HeadRows q = ReadTurned(of, b, op.q, head);
  HeadRows o = Read(op.o, b * T, head * D, T, D);
  HeadRows d_o = Read(op.d_o, b * T, head * D, T, D);
  std::vector<double> dq(static_cast<size_t>(D));
  for (int64_t t = 0; t < T; ++t) {
    std::fill(dq.begin(), dq.end(), 0.0);
    const double delta = HeadDot(o.Row(t), d_o.Row(t), D);
    const double lse = At(op.lse, head, b * T + t);
    for (int64_t i = of.First(b, t); i <= t; ++i) {
      const double score = Score(shape, q.Row(t), k->Row(i));
      const double p = std::exp(score - lse);
      double ds = p * (HeadDot(d_o.Row(t), v->Row(i), D) - delta) * shape.scale;
      if (shape.softcap != 0) ds *= 1 - score / shape.softcap * (score / shape.softcap);
      for (int64_t d = 0; d < D; ++d) {
        dv->Row(i)[d] += p * d_o.Row(t)[d];
        dk->Row(i)[d] += ds * q.Row(t)[d];
        dq[static_cast<size_t>(d)] += ds * k->Row(i)[d];
      }
    }
    Turn(shape.rope, of.Position(b, t), -1, dq.data());
    StoreHead(op.dq.matrix, b * T + t, op.dq.first + head * D, dq.data(), D);
  }
}

}  // namespace

Status Attention(const AttentionOp& op, const RunContext& context) {
  const int64_t bad = FirstBadDocument(op.shape.documents, op.shape.sequences, op.rows());
  if (bad >= 0) return RefuseDocument(op.kName, op.shape, bad);
  const Rows of = {op.shape, op.rows(), op.past};
  for (int64_t b = 0; b < op.shape.sequences; ++b) {
    if (op.k_cache.present) Append(op, of, b);
    for (int64_t head = 0; head < op.shape.heads; ++head) {
      Poll(context);
      ForwardHead(op, of, b, head);
    }
  }
  return Status();
}

Status AttentionBackward(const AttentionBackwardOp& op, const RunContext& context) {
  const int64_t bad = FirstBadDocument(op.shape.documents, op.shape.sequences, op.rows());
  if (bad >= 0) return RefuseDocument(op.kName, op.shape, bad);
  const AttentionShape& shape = op.shape;
  const int64_t D = shape.head_dim;
  const int64_t T = op.rows();
  const Rows of = {shape, T, 0};
  for (int64_t b = 0; b < shape.sequences; ++b) {
    for (int64_t g = 0; g < shape.kv_heads; ++g) {
      HeadRows k = ReadTurned(of, b, op.k, g);
      HeadRows v = Read(op.v.matrix, b * T, op.v.first + g * D, T, D);
      HeadRows dk = {D, std::vector<double>(k.values.size())};
      HeadRows dv = dk;
      for (int64_t h = 0; h < shape.group(); ++h) {
        Poll(context);
        BackwardHead(op, of, b, g * shape.group() + h, &k, &v, &dk, &dv);
      }
      for (int64_t t = 0; t < T; ++t) {
        Turn(shape.rope, of.Position(b, t), -1, dk.Row(t));
        StoreHead(op.dk.matrix, b * T + t, op.dk.first + g * D, dk.Row(t), D);
        StoreHead(op.dv.matrix, b * T + t, op.dv.first + g * D, dv.Row(t), D);
      }
    }
  }
  return Status();
}

}  // namespace lowrank::cpu::reference
