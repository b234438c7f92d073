// Products and adapters against plain double loops, over dtypes, formats and ragged shapes.
#include "test/native/kernel_operands.h"

namespace lowrank::cpu {
namespace {

enum class Drop { kNone, kSeed, kMask };

void CheckLayer(const KernelTable& table, const RunContext& context, const Shape& s, DType dtype,
                DType adapter, const std::string& kind, Drop drop, bool accumulate) {
  const int64_t M = s.M, N = s.N, K = s.K, r = s.r;
  const std::string what = std::string(table.isa) + " " + DTypeName(dtype) + "/" +
                           DTypeName(adapter) + " " + kind + " M" + std::to_string(M) + " N" +
                           std::to_string(N) + " K" + std::to_string(K) + " r" +
                           std::to_string(r) + " drop" + std::to_string(static_cast<int>(drop));
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

  auto W = [&](int64_t n, int64_t k) { return w.At(n, k); };
  std::vector<double> wd(static_cast<size_t>(N * K));
  for (int64_t n = 0; n < N; ++n) {
    for (int64_t k = 0; k < K; ++k) wd[static_cast<size_t>(n * K + k)] = W(n, k);
  }

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
    for (int64_t m = 0; m < M; ++m) {
      for (int64_t n = 0; n < N; ++n) {
        double sum = bias.At(n), size = std::fabs(sum);
        for (int64_t k = 0; k < K; ++k) {
          const double p = x.At(m, k) * wd[static_cast<size_t>(n * K + k)];
          sum += p;
          size += std::fabs(p);
        }
        Expect(what + " matmul", y.At(m, n), sum, size, dtype);
      }
      for (int64_t k = 0; k < K; ++k) {
        double sum = 0, size = 0;
        for (int64_t n = 0; n < N; ++n) {
          const double p = dy.At(m, n) * wd[static_cast<size_t>(n * K + k)];
          sum += p;
          size += std::fabs(p);
        }
        Expect(what + " inputGrad", dx.At(m, k), sum, size, dtype);
      }
    }
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
  std::vector<double> h64(static_cast<size_t>(M * r)), habs(static_cast<size_t>(M * r));
  for (int64_t m = 0; m < M; ++m) {
    for (int64_t j = 0; j < r; ++j) {
      double sum = 0, size = 0;
      for (int64_t k = 0; k < K; ++k) {
        const double p = x.At(m, k) * GateAt(dropout, m, k, K) * a.At(j, k);
        sum += p;
        size += std::fabs(p);
      }
      Expect(what + " h", h.At(m, j), sum, size, DType::kF32);
      h64[static_cast<size_t>(m * r + j)] = sum;
      habs[static_cast<size_t>(m * r + j)] = size;
    }
    for (int64_t n = 0; n < N; ++n) {
      double sum = bias.At(n) + static_cast<double>(scaling) * lora_bias.At(n);
      double size = std::fabs(bias.At(n)) + std::fabs(static_cast<double>(scaling) * lora_bias.At(n));
      for (int64_t k = 0; k < K; ++k) {
        const double p = x.At(m, k) * wd[static_cast<size_t>(n * K + k)];
        sum += p;
        size += std::fabs(p);
      }
      for (int64_t j = 0; j < r; ++j) {
        const double p = static_cast<double>(scaling) * b.At(n, j);
        sum += p * h64[static_cast<size_t>(m * r + j)];
        size += std::fabs(p) * habs[static_cast<size_t>(m * r + j)];
      }
      Expect(what + " y", y.At(m, n), sum, size, dtype);
    }
  }

  Dense dx(M, K, dtype), da(r, K, adapter), db(N, r, adapter), dbias(1, N, DType::kF32),
      dlb(1, N, dtype);
  Dense* outs[] = {&dx, &da, &db, &dbias, &dlb};
  std::vector<std::vector<double>> before;
  for (Dense* out : outs) {
    if (accumulate) out->Fill();
    std::vector<double> values(static_cast<size_t>(out->view.elems()));
    for (size_t i = 0; accumulate && i < values.size(); ++i) {
      values[i] = out->At(static_cast<int64_t>(i));
    }
    before.push_back(values);
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
  std::vector<double> dh(static_cast<size_t>(M * r)), dhabs(static_cast<size_t>(M * r));
  for (int64_t m = 0; m < M; ++m) {
    for (int64_t j = 0; j < r; ++j) {
      for (int64_t n = 0; n < N; ++n) {
        const double p = static_cast<double>(scaling) * dy.At(m, n) * b.At(n, j);
        dh[static_cast<size_t>(m * r + j)] += p;
        dhabs[static_cast<size_t>(m * r + j)] += std::fabs(p);
      }
    }
  }
  for (int64_t m = 0; m < M; ++m) {
    for (int64_t k = 0; k < K; ++k) {
      double sum = before[0][static_cast<size_t>(m * K + k)], size = std::fabs(sum);
      for (int64_t n = 0; n < N; ++n) {
        const double p = dy.At(m, n) * wd[static_cast<size_t>(n * K + k)];
        sum += p;
        size += std::fabs(p);
      }
      const double gate = GateAt(dropout, m, k, K);
      for (int64_t j = 0; j < r; ++j) {
        sum += gate * a.At(j, k) * dh[static_cast<size_t>(m * r + j)];
        size += std::fabs(gate * a.At(j, k)) * dhabs[static_cast<size_t>(m * r + j)];
      }
      Expect(what + " dx", dx.At(m, k), sum, size, dtype);
    }
  }
  for (int64_t j = 0; j < r; ++j) {
    for (int64_t k = 0; k < K; ++k) {
      double sum = before[1][static_cast<size_t>(j * K + k)], size = std::fabs(sum);
      for (int64_t m = 0; m < M; ++m) {
        const double gated = GateAt(dropout, m, k, K) * x.At(m, k);
        sum += dh[static_cast<size_t>(m * r + j)] * gated;
        size += dhabs[static_cast<size_t>(m * r + j)] * std::fabs(gated);
      }
      Expect(what + " dLoraA", da.At(j, k), sum, size, adapter);
    }
    for (int64_t n = 0; n < N; ++n) {
      double sum = before[2][static_cast<size_t>(n * r + j)], size = std::fabs(sum);
      for (int64_t m = 0; m < M; ++m) {
        const double p = static_cast<double>(scaling) * dy.At(m, n);
        sum += p * h64[static_cast<size_t>(m * r + j)];
        size += std::fabs(p) * habs[static_cast<size_t>(m * r + j)];
      }
      Expect(what + " dLoraB", db.At(n, j), sum, size, adapter);
    }
  }
  for (int64_t n = 0; n < N; ++n) {
    double sum = 0, size = 0;
    for (int64_t m = 0; m < M; ++m) {
      sum += dy.At(m, n);
      size += std::fabs(dy.At(m, n));
    }
    const size_t i = static_cast<size_t>(n);
    Expect(what + " dBias", dbias.At(n), before[3][i] + sum, size + std::fabs(before[3][i]),
           DType::kF32);
    const double scaled = static_cast<double>(scaling) * sum;
    Expect(what + " dLoraBias", dlb.At(n), before[4][i] + scaled,
           static_cast<double>(scaling) * size + std::fabs(before[4][i]), dtype);
  }
}

}  // namespace

void CheckLayers(const KernelTable& table, const RunContext& context) {
  const Shape shapes[] = {
      {1, 1, 1, 1},      {0, 5, 7, 2},     {3, 0, 5, 2},      {3, 5, 0, 2},     {2, 3, 5, 0},
      {3, 17, 33, 3},    {17, 65, 172, 8}, {15, 31, 64, 16},  {64, 64, 96, 1},  {65, 33, 257, 5},
      {29, 100, 513, 7}, {5, 3, 1000, 40}, {300, 40, 48, 64}, {14, 32, 256, 8}, {13, 129, 300, 257},
      {600, 5, 40, 3},  // more than one chunk of rows
      {4, 40, 510, 2},  // blocks of the sum and of the scales end within groups of eight codes
      // Sums by lanes: in passes of few rows, in panels, of more than a span, of a part of one.
      {7, 53, 832, 4}, {31, 40, 768, 3}, {37, 101, 896, 5}, {9, 20, 4096, 2}, {40, 33, 4224, 1},
  };
  const char* kinds[] = {"f32", "same", "nf4/64", "fp4/32", "nf4/64d", "int8/128", "nf4/4096",
                         "fp4/128d"};
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

}  // namespace lowrank::cpu
