// Products and adapters against plain double loops, over dtypes, formats and ragged shapes.
#include "test/native/exact_matrix.h"

namespace lowrank::cpu {
namespace {

enum class Drop { kNone, kSeed, kMask };

void CheckLayer(const KernelTable& table, const RunContext& context, const Shape& s, DType dtype,
                DType adapter, const std::string& kind, Drop drop, bool accumulate) {
  const int64_t M = s.M, N = s.N, K = s.K, r = s.r;
  const std::string what = std::string(table.isa) + " " + DTypeName(dtype) + "/" +
                           DTypeName(adapter) + " " + kind + " M" + std::to_string(M) + " N" +
                           std::to_string(N) + " K" + std::to_string(K) + " r" + std::to_string(r) +
                           " drop" + std::to_string(static_cast<int>(drop));
  Dense x(M, K, dtype), dy(M, N, dtype), a(r, K, adapter), b(N, r, adapter), bias(1, N, dtype),
      lora_bias(1, N, DType::kF32), mask(M, K, dtype);
  x.Fill();
  dy.Fill();
  a.Fill();
  b.Fill();
  bias.Fill();
  lora_bias.Fill();
  for (int64_t i = 0; i < M * K; ++i) {
    StoreElement(mask.view.data, dtype, i, Uniform() > 0 ? 1.0 : 0.0);
  }
  const Weight w = MakeWeight(table, context, kind, N, K, dtype);
  DropoutSpec dropout;
  if (drop != Drop::kNone) dropout.p = 0.3;
  dropout.seed = 0x123456789abcdefull;
  if (drop == Drop::kMask) dropout.mask = mask.view;
  const float scaling = 1.75f;

  const Exact x64 = Exact::Of(x), dy64 = Exact::Of(dy), a64 = Exact::Of(a), b64 = Exact::Of(b);
  const Exact w64 = Exact::Of(w), wt64 = w64.Transposed(), bias64 = Exact::Of(bias);
  const Exact gates = Gates(dropout, M, K);
  const Exact product = Exact(M, N).Add(bias64).Add(x64, wt64);
  const Exact input_grad = Exact(M, K).Add(dy64, w64);

  {  // matmul and its gradient
    Dense y(M, N, dtype), dx(M, K, dtype);
    MatmulOp op;
    op.x = x.view;
    op.w = w.view;
    op.bias = bias.view;
    op.y = y.view;
    Report(op.Check().ok() && table.matmul(op, context).ok(), what + " matmul status");
    MatmulInputGradOp grad;
    grad.dy = dy.view;
    grad.w = w.view;
    grad.dx = dx.view;
    Report(grad.Check().ok() && table.matmul_input_grad(grad, context).ok(), what + " grad status");
    ExpectAll(what + " matmul", y, product);
    ExpectAll(what + " inputGrad", dx, input_grad);
  }

  Dense h(M, r, DType::kF32), y(M, N, dtype);
  LoraForwardOp forward;
  forward.x = x.view;
  forward.w = w.view;
  forward.bias = bias.view;
  forward.lora_a = a.view;
  forward.lora_b = b.view;
  forward.lora_bias = lora_bias.view;
  forward.h = h.view;
  forward.y = y.view;
  forward.scaling = scaling;
  forward.dropout = dropout;
  Status status = forward.Check();
  if (status.ok()) status = table.lora_forward(forward, context);
  Report(status.ok(), what + " forward " + status.message());
  const double scale = static_cast<double>(scaling);
  const Exact gated = Exact(x64).Gate(gates);
  const Exact h64 = Exact(M, r).Add(gated, a64.Transposed());
  ExpectAll(what + " h", h, h64);
  ExpectAll(what + " y", y,
            Exact(product).Add(Exact::Of(lora_bias), scale).Add(h64, b64.Transposed(), scale));

  Dense dx(M, K, dtype), da(r, K, adapter), db(N, r, adapter), dbias(1, N, DType::kF32),
      dlb(1, N, dtype);
  Dense* outs[] = {&dx, &da, &db, &dbias, &dlb};
  std::vector<Exact> before;
  for (Dense* out : outs) {
    if (accumulate) out->Fill();
    before.push_back(accumulate ? Exact::Of(*out) : Exact(out->view.rows, out->view.cols));
  }
  LoraBackwardOp back;
  back.dy = dy.view;
  back.x = x.view;
  back.w = w.view;
  back.lora_a = a.view;
  back.lora_b = b.view;
  back.h = h.view;
  back.dx = dx.view;
  back.d_lora_a = da.view;
  back.d_lora_b = db.view;
  back.d_bias = dbias.view;
  back.d_lora_bias = dlb.view;
  back.accumulate_dx = back.accumulate_d_lora_a = back.accumulate_d_lora_b =
      back.accumulate_d_bias = back.accumulate_d_lora_bias = accumulate;
  back.scaling = scaling;
  back.dropout = dropout;
  status = back.Check();
  if (status.ok()) status = table.lora_backward(back, context);
  Report(status.ok(), what + " backward " + status.message());
  const Exact dh = Exact(M, r).Add(dy64, b64, scale);
  const Exact dyt64 = dy64.Transposed();
  const Exact ones = Exact::Of(1, M, [](int64_t, int64_t) { return 1.0; });
  ExpectAll(what + " dx", dx,
            Exact(before[0]).Add(input_grad).Add(Exact(M, K).Add(dh, a64).Gate(gates)));
  ExpectAll(what + " dLoraA", da, Exact(before[1]).Add(dh.Transposed(), gated));
  ExpectAll(what + " dLoraB", db, Exact(before[2]).Add(dyt64, h64, scale));
  ExpectAll(what + " dBias", dbias, Exact(before[3]).Add(ones, dy64));
  ExpectAll(what + " dLoraBias", dlb, Exact(before[4]).Add(ones, dy64, scale));
}

}  // namespace

void CheckLayers(const KernelTable& table, const RunContext& context) {
  const Shape shapes[] = {
      {1, 1, 1, 1},
      {0, 5, 7, 2},
      {3, 0, 5, 2},
      {3, 5, 0, 2},
      {2, 3, 5, 0},
      {3, 17, 33, 3},
      {17, 65, 172, 8},
      {15, 31, 64, 16},
      {64, 64, 96, 1},
      {65, 33, 257, 5},
      {29, 100, 513, 7},
      {5, 3, 1000, 40},
      {300, 40, 48, 64},
      {14, 32, 256, 8},
      {13, 129, 300, 257},
      {600, 5, 40, 3},  // more than one chunk of rows
      {4, 40, 510, 2},  // blocks of the sum and of the scales end within groups of eight codes
      // Sums by lanes: in passes of few rows, in panels, of more than a span, of a part of one.
      {7, 53, 832, 4},
      {31, 40, 768, 3},
      {37, 101, 896, 5},
      {9, 20, 4096, 2},
      {40, 33, 4224, 1},
      {6, 21, 4160, 1},  // dx of few rows in blocks of columns (direct_dot.h), an odd row of w last
      {45, 70, 2304, 1},  // a dense w turned beside tiles, by two spans, the last columns apart
      {66, 515, 64, 2},  // pairs of rows of w, of which the last has no other, decoded beside tiles
  };
  const char* kinds[] = {"f32",     "same",     "nf4/64",   "fp4/32",
                         "nf4/64d", "int8/128", "nf4/4096", "fp4/128d"};
  int turn = 0;
  for (const Shape& s : shapes) {
    for (const char* kind : kinds) {
      for (DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
        const Drop drop = static_cast<Drop>(turn % 3);
        const DType adapter = turn % 2 == 0 ? DType::kF32 : dtype;
        CheckLayer(table, context, s, dtype, adapter, kind, drop, turn % 5 == 0);
        ++turn;
      }
    }
  }
}

/// Check() refuses an output over another output, or over an operand, of any op that has them: no
/// backend sees one.
void CheckAliases() {
  const Shape s = {4, 8, 16, 4};
  Dense w(s.N, s.K, DType::kF32), bias(1, s.N, DType::kF32), other(s.M, s.N, DType::kF32);
  WeightView weight;
  weight.dense = w.view;
  const auto refused = [](const Status& status, const char* what) {
    Report(status.code() == Code::kAlias, std::string("overlapping: ") + what);
  };
  const auto over = [](TensorView view, const TensorView& target) {
    view.data = target.data;
    return view;
  };
  LoraLayer layer(s, DType::kF32, weight), second(s, DType::kF32, weight);
  Report(layer.forward.Check().ok(), "apart: " + layer.forward.Check().message());
  LoraForwardOp forward = layer.forward;
  forward.y = over(forward.y, forward.h);
  refused(forward.Check(), "y over h");
  for (const TensorView* operand :
       {&layer.forward.x, &layer.forward.lora_a, &layer.forward.lora_b, &weight.dense}) {
    forward = layer.forward;
    forward.h = over(forward.h, *operand);
    refused(forward.Check(), "h over an operand");
  }
  MatmulOp product = BaseOf(layer.forward);
  product.bias = bias.view;
  product.y = over(product.y, bias.view);
  refused(product.Check(), "y over the bias");
  product.y = over(product.y, w.view);
  refused(product.Check(), "y over w");
  LoraForwardOp parts[] = {layer.forward, second.forward};
  LoraForwardManyOp many;
  many.parts = parts;
  many.count = 2;
  parts[1].x = parts[0].x;
  Report(many.Check().ok(), "parts apart: " + many.Check().message());
  parts[1].y = parts[0].y;
  refused(many.Check(), "y of two parts");
  parts[1].y = over(parts[1].y, parts[0].h);
  refused(many.Check(), "y of a part over h of another");
  LoraForwardSwigluOp gated;
  gated.gate = layer.forward;
  gated.up = second.forward;
  gated.up.x = gated.gate.x;
  gated.y = other.view;
  Report(gated.Check().ok(), "gate and up apart: " + gated.Check().message());
  gated.up.h = over(gated.up.h, gated.gate.y);
  refused(gated.Check(), "h of up over gate");
  CastOp cast;
  cast.src = other.view;
  cast.dst = other.view;
  refused(cast.Check(), "a cast onto itself");
}

}  // namespace lowrank::cpu
