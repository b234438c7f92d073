// Attention of each instruction set: the results of the device "reference", and bits that depend
// neither on the rows beside a row nor on whether the matrix unit or its emulation multiplied.
#include "test/native/kernel_operands.h"

namespace lowrank::cpu {
namespace {

struct Case {
  int64_t sequences, rows, heads, kv_heads, head_dim;
  int64_t window, rot;
  float softcap;
  bool documents;
};

// Panels and tiles that are full, begun and alone; groups of heads; keys that a panel sees from
// inside a tile on; head dimensions that are no multiple of a vector.
constexpr Case kCases[] = {
    {1, 1, 2, 1, 8, 0, 8, 0, false},      {2, 33, 2, 2, 64, 0, 0, 0, false},
    {1, 200, 4, 2, 64, 0, 64, 0, false},  {1, 300, 2, 1, 40, 37, 20, 0, false},
    {2, 150, 2, 1, 96, 0, 96, 30, false}, {2, 131, 3, 3, 32, 0, 32, 0, true},
    {1, 290, 2, 2, 128, 70, 0, 50, true},
};
constexpr DType kTypes[] = {DType::kF32, DType::kBF16, DType::kF16};

/// Operands of a case, and room for all results.
struct Attend {
  Case shape;
  DType dtype;
  Dense qkv, rope, d_o, o, lse, grads;
  std::vector<int32_t> begins;

  Attend(const Case& of, DType type)
      : shape(of),
        dtype(type),
        qkv(Rows(), Columns(), type),
        rope(of.rows, std::max<int64_t>(of.rot, 1), DType::kF32),
        d_o(Rows(), of.heads * of.head_dim, type),
        o(Rows(), of.heads * of.head_dim, type),
        lse(of.heads, Rows(), DType::kF32),
        grads(Rows(), Columns(), type) {
    g_state = 11;
    qkv.Fill(2);
    d_o.Fill();
    for (int64_t p = 0; p < of.rows; ++p) {
      for (int64_t i = 0; i < of.rot / 2; ++i) {
        const double angle =
            static_cast<double>(p) /
            std::pow(100.0, 2.0 * static_cast<double>(i) / static_cast<double>(of.rot));
        StoreElement(rope.view.data, DType::kF32, p * of.rot + i, std::cos(angle));
        StoreElement(rope.view.data, DType::kF32, p * of.rot + of.rot / 2 + i, std::sin(angle));
      }
    }
    // Documents of 50 rows.
    for (int64_t m = 0; m < Rows(); ++m) {
      begins.push_back(static_cast<int32_t>(m % of.rows / 50 * 50));
    }
  }

  int64_t Rows() const { return shape.sequences * shape.rows; }
  int64_t Columns() const { return (shape.heads + 2 * shape.kv_heads) * shape.head_dim; }

  AttentionShape Shape() const {
    AttentionShape made;
    made.sequences = shape.sequences;
    made.heads = shape.heads;
    made.kv_heads = shape.kv_heads;
    made.head_dim = shape.head_dim;
    made.scale = 1 / std::sqrt(static_cast<float>(shape.head_dim));
    made.softcap = shape.softcap;
    made.window = shape.window;
    if (shape.rot > 0) made.rope = rope.view;
    if (shape.documents) {
      made.documents.data = begins.data();
      made.documents.count = Rows();
      made.documents.limit = shape.rows;
      made.documents.present = true;
    }
    return made;
  }
  /// Columns of a fused matrix: q, k, v.
  void Heads(const Dense& matrix, HeadsView* q, HeadsView* k, HeadsView* v) const {
    *q = {matrix.view, 0};
    *k = {matrix.view, shape.heads * shape.head_dim};
    *v = {matrix.view, (shape.heads + shape.kv_heads) * shape.head_dim};
  }
  Status Forward(const KernelTable& table, const RunContext& context) const {
    AttentionOp op;
    op.shape = Shape();
    Heads(qkv, &op.q, &op.k, &op.v);
    op.o = o.view;
    op.lse = lse.view;
    LOWRANK_RETURN_IF_ERROR(op.Check());
    return table.attention(op, context);
  }
  /// With o and lse of `forward`, so that both sides differ by this pass alone.
  Status Backward(const KernelTable& table, const RunContext& context,
                  const Attend& forward) const {
    AttentionBackwardOp op;
    op.shape = Shape();
    Heads(qkv, &op.q, &op.k, &op.v);
    op.o = forward.o.view;
    op.lse = forward.lse.view;
    op.d_o = d_o.view;
    Heads(grads, &op.dq, &op.dk, &op.dv);
    LOWRANK_RETURN_IF_ERROR(op.Check());
    return table.attention_backward(op, context);
  }
  std::string Describe() const {
    return std::string(DTypeName(dtype)) + " B" + std::to_string(shape.sequences) + " T" +
           std::to_string(shape.rows) + " heads " + std::to_string(shape.heads) + "/" +
           std::to_string(shape.kv_heads) + " x " + std::to_string(shape.head_dim) + " window " +
           std::to_string(shape.window) + (shape.documents ? " documents" : "") +
           (shape.softcap > 0 ? " cap" : "");
  }
};

/// Is the error of each element at most `bound` of the largest value?
void Near(const Dense& actual, const Dense& expected, double bound, const std::string& what) {
  double largest = 0, error = 0;
  for (int64_t i = 0; i < expected.view.elems(); ++i) {
    largest = std::max(largest, std::fabs(expected.At(i)));
    const double apart = std::fabs(actual.At(i) - expected.At(i));
    error = apart <= error ? error : apart;  // a NaN stays
  }
  Report(error <= bound * largest,
         what + ": error " + std::to_string(error / largest) + " of the largest value");
}

}  // namespace

void CheckAttention(const KernelTable& table, const RunContext& context) {
  for (const Case& shape : kCases) {
    for (const DType dtype : kTypes) {
      const Attend expected(shape, dtype), actual(shape, dtype);
      const std::string what = std::string(table.isa) + " attention " + actual.Describe();
      Report(expected.Forward(kReferenceKernels, context).ok(), what + ", reference");
      Report(actual.Forward(table, context).ok(), what);
      // Results of 16 bits differ by a place of their own; sets with pairs round p and ds as well.
      const double bound = dtype == DType::kF32 ? 4e-6 : dtype == DType::kF16 ? 2e-3 : 1.2e-2;
      Near(actual.o, expected.o, bound, what + ", o");
      // Rotation in f32 may round a turned q or k of 16 bits to the other neighbour.
      Near(actual.lse, expected.lse, dtype == DType::kF32 ? 1e-6 : 1e-4, what + ", lse");
      Report(expected.Backward(kReferenceKernels, context, expected).ok(), what + ", reference");
      Report(actual.Backward(table, context, expected).ok(), what);
      Near(actual.grads, expected.grads, bound, what + ", gradients");
    }
  }
  // The last row of a batch alone, as the step of a cache.
  for (const DType dtype : kTypes) {
    const Attend all({2, 150, 4, 2, 64, 45, 0, 0, false}, dtype);
    Report(all.Forward(table, context).ok(), "attention");
    const int64_t past = all.shape.rows - 1, width = all.shape.head_dim;
    const int64_t queries = all.shape.heads * width, keys = all.shape.kv_heads * width;
    Dense k_cache(2 * all.shape.rows, keys, dtype), v_cache(2 * all.shape.rows, keys, dtype);
    Dense last(2, all.Columns(), dtype), o(2, queries, dtype);
    for (int64_t m = 0; m < all.Rows(); ++m) {
      for (int64_t c = 0; c < keys; ++c) {
        StoreElement(k_cache.view.data, dtype, m * keys + c, all.qkv.At(m, queries + c));
        StoreElement(v_cache.view.data, dtype, m * keys + c, all.qkv.At(m, queries + keys + c));
      }
    }
    for (int64_t b = 0; b < 2; ++b) {
      for (int64_t c = 0; c < all.Columns(); ++c) {
        StoreElement(last.view.data, dtype, b * all.Columns() + c,
                     all.qkv.At(b * all.shape.rows + past, c));
      }
    }
    AttentionOp op;
    op.shape = all.Shape();
    all.Heads(last, &op.q, &op.k, &op.v);
    op.k_cache = k_cache.view;
    op.v_cache = v_cache.view;
    op.past = past;
    op.o = o.view;
    Report(op.Check().ok() && table.attention(op, context).ok(), "attention over a cache");
    bool same = true;
    for (int64_t b = 0; b < 2; ++b) {
      for (int64_t c = 0; c < queries; ++c) {
        same = same && o.At(b, c) == all.o.At(b * all.shape.rows + past, c);
      }
    }
    Report(same, std::string(table.isa) + " attention " + DTypeName(dtype) +
                     ": the bits of a row of a batch and of a step over a cache");
  }
}

void CheckAttentionTiles(const KernelTable& unit, const KernelTable& emulated,
                         const RunContext& context) {
  for (const Case& shape : kCases) {
    const Attend real(shape, DType::kBF16), made(shape, DType::kBF16);
    Report(real.Forward(unit, context).ok() && made.Forward(emulated, context).ok(), "attention");
    Report(real.Backward(unit, context, real).ok() && made.Backward(emulated, context, real).ok(),
           "attention backward");
    const std::string what = "the unit's bits are the emulated ones: attention " + real.Describe();
    Report(real.o.buffer.Same(made.o.buffer), what + ", o");
    Report(real.grads.buffer.Same(made.grads.buffer), what + ", gradients");
  }
}

}  // namespace lowrank::cpu
