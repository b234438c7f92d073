// The halves of a LoRA layer against the whole, and the ops over small tensors against double
// loops.
#include <memory>

#include "native/host_device/gated_activation.h"
#include "native/host_device/map_function.h"
#include "test/native/kernel_operands.h"

namespace lowrank::cpu {
namespace {

/// Both halves in turn give the bits of the whole, forward and back.
void CheckHalves(const KernelTable& table, const RunContext& context, const Shape& s, DType dtype,
                 const std::string& kind, bool drop) {
  const int64_t M = s.M, N = s.N, K = s.K, r = s.r;
  const std::string what = std::string(table.isa) + " halves " + DTypeName(dtype) + " " + kind +
                           " M" + std::to_string(M) + " N" + std::to_string(N) + " K" +
                           std::to_string(K) + " r" + std::to_string(r);
  Dense x(M, K, dtype), dy(M, N, dtype), a(r, K, DType::kF32), b(N, r, dtype), bias(1, N, dtype);
  for (Dense* operand : {&x, &dy, &a, &b, &bias}) operand->Fill();
  const Weight w = MakeWeight(table, context, kind, N, K, dtype);
  DropoutSpec dropout;
  if (drop) dropout.p = 0.3;
  dropout.seed = 0x123456789abcdefull;
  struct Outs {
    Dense h, y, dh, dx, da, db, dbias;
    Outs(int64_t M, int64_t N, int64_t K, int64_t r, DType dtype)
        : h(M, r, DType::kF32),
          y(M, N, dtype),
          dh(M, r, DType::kF32),
          dx(M, K, dtype),
          da(r, K, DType::kF32),
          db(N, r, dtype),
          dbias(1, N, dtype) {}
  };
  Outs whole(M, N, K, r, dtype), half(M, N, K, r, dtype);
  const float scaling = 1.75f;
  auto run = [&](const Status& check, const Status& status) {
    Report(check.ok() && status.ok(), what + " " + check.message() + status.message());
  };

  LoraForwardOp forward;
  forward.x = x.view;
  forward.w = w.view;
  forward.bias = bias.view;
  forward.lora_a = a.view;
  forward.lora_b = b.view;
  forward.h = whole.h.view;
  forward.y = whole.y.view;
  forward.scaling = scaling;
  forward.dropout = dropout;
  run(forward.Check(), table.lora_forward(forward, context));
  LoraBackwardOp backward;
  backward.dy = dy.view;
  backward.x = x.view;
  backward.w = w.view;
  backward.lora_a = a.view;
  backward.lora_b = b.view;
  backward.h = whole.h.view;
  backward.dx = whole.dx.view;
  backward.d_lora_a = whole.da.view;
  backward.d_lora_b = whole.db.view;
  backward.d_bias = whole.dbias.view;
  backward.scaling = scaling;
  backward.dropout = dropout;
  run(backward.Check(), table.lora_backward(backward, context));

  LoraShrinkOp shrink;
  shrink.x = x.view;
  shrink.lora_a = a.view;
  shrink.h = half.h.view;
  shrink.dropout = dropout;
  run(shrink.Check(), table.lora_shrink(shrink, context));
  LoraExpandOp expand;
  expand.x = x.view;
  expand.w = w.view;
  expand.bias = bias.view;
  expand.h = half.h.view;
  expand.lora_b = b.view;
  expand.y = half.y.view;
  expand.scaling = scaling;
  run(expand.Check(), table.lora_expand(expand, context));
  LoraExpandBackwardOp over;
  over.dy = dy.view;
  over.h = half.h.view;
  over.lora_b = b.view;
  over.dh = half.dh.view;
  over.d_lora_b = half.db.view;
  over.d_bias = half.dbias.view;
  over.scaling = scaling;
  run(over.Check(), table.lora_expand_backward(over, context));
  LoraShrinkBackwardOp under;
  under.dy = dy.view;
  under.w = w.view;
  under.dh = half.dh.view;
  under.x = x.view;
  under.lora_a = a.view;
  under.dx = half.dx.view;
  under.d_lora_a = half.da.view;
  under.dropout = dropout;
  run(under.Check(), table.lora_shrink_backward(under, context));

  Report(whole.h.buffer.Same(half.h.buffer), what + " h");
  Report(whole.y.buffer.Same(half.y.buffer), what + " y");
  Report(whole.dx.buffer.Same(half.dx.buffer), what + " dx");
  Report(whole.da.buffer.Same(half.da.buffer), what + " dLoraA");
  Report(whole.db.buffer.Same(half.db.buffer), what + " dLoraB");
  Report(whole.dbias.buffer.Same(half.dbias.buffer), what + " dBias");
}

/// Projections side by side give the bits of each alone, with and without an adapter.
void CheckMany(const KernelTable& table, const RunContext& context, const Shape& s, DType dtype,
               const std::string& kind) {
  const int64_t M = s.M, K = s.K, r = s.r;
  const std::string what = std::string(table.isa) + " many " + DTypeName(dtype) + " " + kind +
                           " M" + std::to_string(M) + " K" + std::to_string(K);
  Dense x(M, K, dtype), a(r, K, DType::kF32);
  x.Fill();
  a.Fill();
  struct Projection {
    Dense b, bias, h, y, h_alone, y_alone;
    Weight w;
    Projection(const KernelTable& table, const RunContext& context, const std::string& kind,
               int64_t M, int64_t N, int64_t K, int64_t r, DType dtype)
        : b(N, r, dtype),
          bias(1, N, dtype),
          h(M, r, DType::kF32),
          y(M, N, dtype),
          h_alone(M, r, DType::kF32),
          y_alone(M, N, dtype),
          w(MakeWeight(table, context, kind, N, K, dtype)) {
      b.Fill();
      bias.Fill();
    }
  };
  std::vector<std::unique_ptr<Projection>> projections;
  std::vector<LoraForwardOp> parts;
  for (const int64_t N : {s.N, int64_t{3}, 2 * s.N + 1}) {
    projections.push_back(std::make_unique<Projection>(table, context, kind, M, N, K, r, dtype));
    Projection& one = *projections.back();
    LoraForwardOp op;
    op.x = x.view;
    op.w = one.w.view;
    op.bias = one.bias.view;
    op.y = one.y.view;
    if (parts.size() != 1) {
      op.lora_a = a.view;
      op.lora_b = one.b.view;
      op.h = one.h.view;
      op.scaling = 1.75f;
      op.dropout.p = parts.empty() ? 0 : 0.3;
      op.dropout.seed = 5;
    }
    parts.push_back(op);
  }
  LoraForwardManyOp many;
  many.parts = parts.data();
  many.count = static_cast<int64_t>(parts.size());
  Report(many.Check().ok() && table.lora_forward_many(many, context).ok(), what);
  for (size_t i = 0; i < parts.size(); ++i) {
    Projection& one = *projections[i];
    LoraForwardOp alone = parts[i];
    alone.y = one.y_alone.view;
    alone.h = one.h_alone.view;
    const Status status = alone.lora_a.present ? table.lora_forward(alone, context)
                                               : table.matmul(BaseOf(alone), context);
    const std::string part = what + " part " + std::to_string(i);
    Report(status.ok() && one.y.buffer.Same(one.y_alone.buffer), part + " y");
    if (alone.lora_a.present) Report(one.h.buffer.Same(one.h_alone.buffer), part + " h");
  }
}

/// Gate and up in one op give the bits of both projections and of swiglu, kept or not. Weights of
/// two kinds do not share the packed rows of x.
void CheckForwardSwiglu(const KernelTable& table, const RunContext& context, const Shape& s,
                        DType dtype, const std::string& kind, const std::string& up_kind) {
  const int64_t M = s.M, N = s.N, K = s.K, r = s.r;
  const std::string what = std::string(table.isa) + " forward swiglu " + DTypeName(dtype) + " " +
                           kind + " " + up_kind + " M" + std::to_string(M) + " N" +
                           std::to_string(N) + " K" + std::to_string(K);
  Dense x(M, K, dtype), a(r, K, DType::kF32), b(N, r, dtype), bias(1, N, dtype);
  Dense h(M, r, DType::kF32), h_apart(M, r, DType::kF32);
  for (Dense* operand : {&x, &a, &b, &bias}) operand->Fill();
  const Weight w = MakeWeight(table, context, kind, N, K, dtype);
  const Weight up_w = MakeWeight(table, context, up_kind, N, K, dtype);
  Dense gate(M, N, dtype), up(M, N, dtype), y(M, N, dtype), y_alone(M, N, dtype);
  Dense gate_apart(M, N, dtype), up_apart(M, N, dtype), y_apart(M, N, dtype);

  LoraForwardSwigluOp op;
  op.gate.x = op.up.x = x.view;
  op.gate.w = w.view;
  op.gate.lora_a = a.view;
  op.gate.lora_b = b.view;
  op.gate.h = h.view;
  op.gate.scaling = 1.75f;
  op.gate.dropout.p = 0.3;
  op.gate.dropout.seed = 5;
  op.up.w = up_w.view;
  op.up.bias = bias.view;
  op.y = y_alone.view;
  Report(op.Check().ok() && table.lora_forward_swiglu(op, context).ok(), what);
  op.gate.y = gate.view;
  op.up.y = up.view;
  op.y = y.view;
  Report(op.Check().ok() && table.lora_forward_swiglu(op, context).ok(), what + " kept");

  LoraForwardOp parts[] = {op.gate, op.up};
  parts[0].y = gate_apart.view;
  parts[0].h = h_apart.view;
  parts[1].y = up_apart.view;
  Report(table.lora_forward_many({parts, 2}, context).ok() &&
             table.gated_activation({gate_apart.view, up_apart.view, y_apart.view}, context).ok(),
         what + " apart");
  Report(h.buffer.Same(h_apart.buffer), what + " h");
  Report(gate.buffer.Same(gate_apart.buffer), what + " gate");
  Report(up.buffer.Same(up_apart.buffer), what + " up");
  Report(y.buffer.Same(y_apart.buffer), what + " y");
  Report(y_alone.buffer.Same(y_apart.buffer), what + " y, nothing kept");
}

/// What does not fit is refused, and with what.
void CheckForwardSwigluRefusals() {
  Dense x(3, 8, DType::kF32), w(4, 8, DType::kF32), wide(5, 8, DType::kF32);
  Dense y(3, 4, DType::kF32), gate(3, 4, DType::kF32), up(3, 4, DType::kF32);
  LoraForwardSwigluOp good;
  good.gate.x = good.up.x = x.view;
  good.gate.w.dense = good.up.w.dense = w.view;
  good.y = y.view;
  Report(good.Check().ok(), "forward swiglu, nothing kept");
  const auto refused = [](const LoraForwardSwigluOp& op, Code code, const char* operand) {
    const Status status = op.Check();
    Report(status.code() == code && status.message().find(operand) != std::string::npos,
           "forward swiglu refuses " + std::string(operand) + ": " + status.message());
  };
  LoraForwardSwigluOp op = good;
  op.up.w.dense = wide.view;
  refused(op, Code::kShape, "up.w");
  op = good;
  op.gate.y = gate.view;
  refused(op, Code::kValue, "up.y");
  op.up.y = gate.view;
  refused(op, Code::kAlias, "up.y");
  op.up.y = y.view;
  refused(op, Code::kAlias, "up.y");
  op.up.y = up.view;
  Report(op.Check().ok(), "forward swiglu, both kept");
  op.y = TensorView();
  refused(op, Code::kShape, "y");
}

void CheckWeightGrad(const KernelTable& table, const RunContext& context, const Shape& s,
                     DType left, DType right, DType result) {
  const std::string what = std::string(table.isa) + " weightGrad " + DTypeName(left) + " " +
                           DTypeName(right) + " M" + std::to_string(s.M);
  Dense dy(s.M, s.N, left), x(s.M, s.K, right), dw(s.N, s.K, result);
  dy.Fill();
  x.Fill();
  WeightGradOp op;
  op.dy = dy.view;
  op.x = x.view;
  op.dw = dw.view;
  Report(op.Check().ok() && table.weight_grad(op, context).ok(), what);
  for (int64_t n = 0; n < s.N; ++n) {
    for (int64_t k = 0; k < s.K; ++k) {
      double sum = 0, size = 0;
      for (int64_t m = 0; m < s.M; ++m) {
        sum += dy.At(m, n) * x.At(m, k);
        size += std::fabs(dy.At(m, n) * x.At(m, k));
      }
      Expect(what, dw.At(n, k), sum, size, result);
    }
  }
}

/// One element of an operand that goes with every row or column where a dimension is 1.
double At(const Dense* operand, int64_t m, int64_t n) {
  if (operand == nullptr) return 1;
  return operand->At(operand->view.rows == 1 ? 0 : m, operand->view.cols == 1 ? 0 : n);
}

void CheckElementwise(const KernelTable& table, const RunContext& context, int64_t M, int64_t N,
                      int turn) {
  const DType dtypes[] = {DType::kF32, DType::kBF16, DType::kF16};
  const DType type = dtypes[turn % 3], other = dtypes[(turn + 1) % 3];
  const std::string what = std::string(table.isa) + " elementwise [" + std::to_string(M) + ", " +
                           std::to_string(N) + "] " + DTypeName(type);
  Dense a(M, N, type), full(M, N, other), row(1, N, other), column(M, 1, DType::kF32),
      one(1, 1, other);
  for (Dense* operand : {&a, &full, &row, &column, &one}) operand->Fill();
  const Dense* forms[] = {nullptr, &full, &row, &column, &one};
  for (const Dense* b : forms) {
    for (const Dense* c : forms) {
      Dense y(M, N, type);
      MultiplyAddOp op;
      op.a = a.view;
      if (b != nullptr) op.b = b->view;
      if (c != nullptr) op.c = c->view;
      op.y = y.view;
      op.alpha = 1.25f;
      op.beta = -0.75f;
      Report(op.Check().ok() && table.multiply_add(op, context).ok(), what + " multiplyAdd");
      for (int64_t i = 0; i < M * N; ++i) {
        const double product = 1.25 * a.At(i) * At(b, i / N, i % N);
        const double summand = c == nullptr ? 0 : -0.75 * At(c, i / N, i % N);
        Expect(what + " multiplyAdd", y.At(i), product + summand,
               std::fabs(product) + std::fabs(summand), type);
      }
    }
    for (int axis : {0, 1}) {
      Dense out(1, axis == 0 ? N : M, DType::kF32);
      SumProductOp op;
      op.a = a.view;
      if (b != nullptr) op.b = b->view;
      op.out = out.view;
      op.axis = axis;
      Report(op.Check().ok() && table.sum_product(op, context).ok(), what + " sumProduct");
      for (int64_t i = 0; i < out.view.cols; ++i) {
        double sum = 0, size = 0;
        for (int64_t j = 0; j < (axis == 0 ? M : N); ++j) {
          const int64_t m = axis == 0 ? j : i, n = axis == 0 ? i : j;
          sum += a.At(m, n) * At(b, m, n);
          size += std::fabs(a.At(m, n) * At(b, m, n));
        }
        Expect(what + " sumProduct", out.At(i), sum, size, DType::kF32);
      }
    }
  }
}

/// Every function has the bits of its definition, whatever the compiler made of the loop around it.
template <MapFunction kFunction>
void CheckMap(const KernelTable& table, const RunContext& context, const char* name) {
  const int64_t count = 5003;
  Dense a(1, count, DType::kF32), y(1, count, DType::kF32);
  a.Fill(90);
  float* values = static_cast<float*>(a.view.data);
  const float special[] = {0,          -0.0f,     INFINITY, -INFINITY, NAN,      0x1p-149f,
                           -0x1p-149f, 0x1p-126f, 1,        -1,        0x1p127f, 1e-3f};
  for (size_t i = 0; i < std::size(special); ++i) values[i * 7] = special[i];
  for (int64_t i = 1000; i < 2000; ++i) values[i] *= 0x1p-20f;
  for (int64_t i = 2000; i < 3000; ++i) values[i] *= 0x1p-135f;
  for (int64_t i = 3000; i < 4000; ++i) values[i] *= 0x1p+110f;
  MapOp op;
  op.function = kFunction;
  op.a = a.view;
  op.y = y.view;
  Report(op.Check().ok() && table.map(op, context).ok(), std::string(table.isa) + " " + name);
  const float* got = static_cast<const float*>(y.view.data);
  for (int64_t i = 0; i < count; ++i) {
    const float expected = static_cast<float>(MapValue<kFunction>(values[i]));
    const bool same =
        std::isnan(expected) ? std::isnan(got[i]) : BitsOf(expected) == BitsOf(got[i]);
    if (!same) {
      Report(false, std::string(table.isa) + " " + name + "(" + std::to_string(values[i]) + ")");
      return;
    }
  }
  Report(true, name);
}

/// The bits of the definition.
template <GateFunction kFunction>
void CheckGate(const KernelTable& table, const RunContext& context, const char* name) {
  const int64_t count = 5003;
  Dense gate(1, count, DType::kF32), up(1, count, DType::kF32), dy(1, count, DType::kF32);
  Dense y(1, count, DType::kF32), d_gate(1, count, DType::kF32), d_up(1, count, DType::kF32);
  gate.Fill(kFunction == GateFunction::kSilu ? 90 : 12);
  up.Fill();
  dy.Fill();
  GatedActivationOp op;
  op.function = kFunction;
  op.gate = gate.view;
  op.up = up.view;
  op.y = y.view;
  GatedActivationBackwardOp backward;
  backward.function = kFunction;
  backward.dy = dy.view;
  backward.gate = gate.view;
  backward.up = up.view;
  backward.d_gate = d_gate.view;
  backward.d_up = d_up.view;
  const std::string what = std::string(table.isa) + " gate " + name;
  Report(op.Check().ok() && table.gated_activation(op, context).ok() && backward.Check().ok() &&
             table.gated_activation_backward(backward, context).ok(),
         what);
  const auto values = [](const Dense& of) { return static_cast<const float*>(of.view.data); };
  for (int64_t i = 0; i < count; ++i) {
    float expected_gate = 0;
    float expected_up = 0;
    GateGradients<kFunction>(values(dy)[i], values(gate)[i], values(up)[i], &expected_gate,
                             &expected_up);
    const bool same =
        BitsOf(values(y)[i]) == BitsOf(Gated<kFunction>(values(gate)[i], values(up)[i])) &&
        BitsOf(values(d_gate)[i]) == BitsOf(expected_gate) &&
        BitsOf(values(d_up)[i]) == BitsOf(expected_up);
    if (!same) return Report(false, what + "(" + std::to_string(values(gate)[i]) + ")");
  }
  Report(true, what);
}

}  // namespace

void CheckParts(const KernelTable& table, const RunContext& context) {
  const Shape shapes[] = {{0, 5, 7, 2},      {1, 1, 1, 1},      {3, 5, 0, 2},
                          {2, 3, 5, 0},      {17, 65, 172, 8},  {65, 33, 257, 5},
                          {300, 40, 48, 64}, {37, 101, 896, 5}, {600, 5, 40, 3}};
  bool drop = false;
  for (const Shape& s : shapes) {
    for (const char* kind : {"f32", "same", "nf4/64", "int8/128"}) {
      for (DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
        CheckHalves(table, context, s, dtype, kind, drop);
        CheckMany(table, context, s, dtype, kind);
        CheckForwardSwiglu(table, context, s, dtype, kind, kind);
        if (s.M <= 37) CheckForwardSwiglu(table, context, s, dtype, kind, "nf4/128");
        drop = !drop;
      }
    }
    for (DType left : {DType::kF32, DType::kBF16, DType::kF16}) {
      CheckWeightGrad(table, context, s, left, DType::kF32, DType::kF32);
      CheckWeightGrad(table, context, s, DType::kBF16, left, left);
    }
  }
  int turn = 0;
  const std::pair<int64_t, int64_t> sizes[] = {{0, 5},   {5, 0},    {1, 1},    {1, 172}, {3, 1},
                                               {17, 64}, {65, 129}, {300, 16}, {2, 4099}};
  for (const auto& [M, N] : sizes) {
    for (int i = 0; i < 3; ++i) CheckElementwise(table, context, M, N, turn++);
  }
#define LOWRANK_CHECK_MAP(id, name) CheckMap<MapFunction::id>(table, context, name);
  LOWRANK_FOR_EACH_MAP_FUNCTION(LOWRANK_CHECK_MAP)
#undef LOWRANK_CHECK_MAP
#define LOWRANK_CHECK_GATE(id, name) CheckGate<GateFunction::id>(table, context, name);
  LOWRANK_FOR_EACH_GATE_FUNCTION(LOWRANK_CHECK_GATE)
#undef LOWRANK_CHECK_GATE
  CheckForwardSwigluRefusals();
}

}  // namespace lowrank::cpu
