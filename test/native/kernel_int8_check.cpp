// compute: 'int8' against the loops that define it, bit for bit: so that every instruction set,
// number of threads and batch has the same bits.
#include <deque>

#include "test/native/kernel_operands.h"

namespace lowrank::cpu {
namespace {

constexpr int64_t kBlock = 64;

/// Stops the compiler from fusing what the definition rounds.
float Rounded(float value) {
  volatile float out = value;
  return out;
}

struct Codes {
  float scale = 0;
  std::vector<int> codes;
};

Codes QuantizeBlock(const Dense& x, int64_t m, int64_t k0, int64_t count) {
  Codes out;
  out.codes.assign(static_cast<size_t>(count), 0);
  float largest = 0;
  bool finite = true;
  for (int64_t k = 0; k < count; ++k) {
    const float value = static_cast<float>(x.At(m, k0 + k));
    finite = finite && std::isfinite(value);
    largest = std::max(largest, std::fabs(value));
  }
  out.scale = finite ? largest / 127.0f : NAN;
  if (!finite || out.scale == 0) return out;
  for (int64_t k = 0; k < count; ++k) {
    const float quotient = Rounded(static_cast<float>(x.At(m, k0 + k)) / out.scale);
    out.codes[static_cast<size_t>(k)] =
        static_cast<int>(std::nearbyint(std::clamp(quotient, -127.0f, 127.0f)));
  }
  return out;
}

/// y before its rounding to the output's dtype, [M · N].
std::vector<float> Expected(const Dense& x, const QuantView& w) {
  float largest = 0;
  for (int i = 0; i < 16; ++i) largest = std::max(largest, std::fabs(w.codebook[i]));
  int table[16];
  for (int i = 0; i < 16; ++i) {
    table[i] = static_cast<int>(std::nearbyint(Rounded(127.0f * w.codebook[i]) / largest));
  }
  const float unit = largest / 127.0f;
  std::vector<int8_t> codes(static_cast<size_t>(w.rows * w.cols));
  for (size_t i = 0; i < codes.size(); ++i) {
    codes[i] = static_cast<int8_t>(table[w.Code(static_cast<int64_t>(i))]);
  }
  std::vector<float> y(static_cast<size_t>(x.view.rows * w.rows));
  for (int64_t m = 0; m < x.view.rows; ++m) {
    for (int64_t k0 = 0; k0 < w.cols; k0 += kBlock) {
      const int64_t k1 = std::min(k0 + kBlock, w.cols);
      const Codes block = QuantizeBlock(x, m, k0, k1 - k0);
      for (int64_t n = 0; n < w.rows; ++n) {
        float& sum = y[static_cast<size_t>(m * w.rows + n)];
        const int8_t* row = codes.data() + n * w.cols;
        for (int64_t k = k0; k < k1;) {
          const int64_t scale_index = (n * w.cols + k) / w.blocksize;
          const int64_t stop = std::min(k1, (scale_index + 1) * w.blocksize - n * w.cols);
          int32_t dot = 0;  // 64 products of at most 127 · 127
          for (; k < stop; ++k) dot += block.codes[static_cast<size_t>(k - k0)] * row[k];
          const float scale = Rounded(block.scale * Rounded(w.Scale(scale_index) * unit));
          sum = Rounded(sum + Rounded(static_cast<float>(dot) * scale));
        }
      }
    }
  }
  return y;
}

/// The same of a rowwise weight: one scale for a row of each, and one sum.
std::vector<float> ExpectedOfRows(const Dense& x, const QuantView& w) {
  std::vector<float> y(static_cast<size_t>(x.view.rows * w.rows));
  for (int64_t m = 0; m < x.view.rows; ++m) {
    const Codes row = QuantizeBlock(x, m, 0, w.cols);
    for (int64_t n = 0; n < w.rows; ++n) {
      int64_t dot = 0;
      for (int64_t k = 0; k < w.cols; ++k) {
        dot += row.codes[static_cast<size_t>(k)] * (w.Code(n * w.cols + k) - 128);
      }
      const float w_scale = Rounded(w.Scale(n * w.cols / w.blocksize) / 127.0f);
      const float scale = Rounded(row.scale * w_scale);
      y[static_cast<size_t>(m * w.rows + n)] = Rounded(static_cast<float>(dot) * scale);
    }
  }
  return y;
}

/// Rows of every kind that the definition sets apart.
void FillRows(Dense* x) {
  x->Fill();
  const DType dtype = x->view.dtype;
  const int64_t K = x->view.cols;
  for (int64_t m = 0; m < x->view.rows; ++m) {
    for (int64_t k = 0; k < K; ++k) {
      const int64_t i = m * K + k;
      if (m % 9 == 1 && k / kBlock % 2 == 0) StoreElement(x->view.data, dtype, i, 0);
      if (m % 9 == 2) StoreElement(x->view.data, dtype, i, Uniform() * 0x1p-142);
      if (m % 9 == 3) StoreElement(x->view.data, dtype, i, Uniform() * 60000);
      // Ties: with 127 as the largest the scale is 1.
      if (m % 9 == 4) StoreElement(x->view.data, dtype, i, k % kBlock == 5 ? 127 : k % 40 - 19.5);
      if (m % 9 == 5) StoreElement(x->view.data, dtype, i, k % 2 == 0 ? 1 : -1);
    }
    if (m % 9 == 6) StoreElement(x->view.data, dtype, m * K + K / 2, m % 2 == 0 ? NAN : -INFINITY);
  }
}

void CheckProduct(const KernelTable& table, const RunContext& context, const Weight& w,
                  const Dense& x, const std::vector<float>& expected, const std::string& what) {
  const DType dtype = x.view.dtype;
  const int64_t N = w.view.quant.rows;
  Dense y(x.view.rows, N, dtype);
  MatmulOp op;
  op.x = x.view;
  op.w = w.view;
  op.y = y.view;
  op.compute = Compute::kInt8;
  Report(op.Check().ok() && table.matmul(op, context).ok(), what + " status");
  int64_t wrong = -1;
  for (int64_t i = x.view.rows * N - 1; i >= 0; --i) {
    const double exact = RoundTo(dtype, static_cast<double>(expected[static_cast<size_t>(i)]));
    const double got = y.At(i);
    if (!(got == exact || (std::isnan(got) && std::isnan(exact)))) wrong = i;
  }
  Report(wrong < 0, what + " element " + std::to_string(wrong) + " got " +
                        std::to_string(wrong < 0 ? 0 : y.At(wrong)) + " expected " +
                        std::to_string(wrong < 0 ? 0 : expected[static_cast<size_t>(wrong)]));
}

std::string NameOf(const KernelTable& table, const std::string& kind, DType dtype, const Shape& s,
                   int threads) {
  return std::string(table.isa) + " int8 " + kind + " " + DTypeName(dtype) + " [" +
         std::to_string(s.M) + ", " + std::to_string(s.N) + ", " + std::to_string(s.K) +
         "] threads " + std::to_string(threads);
}

void CheckProducts(const KernelTable& table, const CancelToken* cancel) {
  const Shape shapes[] = {
      {1, 1, 1, 0},     {2, 3, 7, 0},      {9, 17, 31, 0},   {15, 33, 63, 0},   {20, 40, 64, 0},
      {5, 66, 65, 0},   {3, 31, 128, 0},   {30, 70, 172, 0}, {16, 64, 256, 0},  {83, 300, 320, 0},
      {7, 37, 1000, 0}, {40, 29, 4160, 0}, {8, 33, 832, 0},  {70, 530, 640, 0}, {600, 40, 64, 0},
      {4, 0, 64, 0},    {6, 37, 302, 0},   {9, 40, 508, 0},  {20, 35, 1014, 0}, {0, 5, 64, 0},
      {3, 5, 0, 0},     {3, 37, 4224, 0},  {11, 7, 384, 0},  {14, 50, 128, 0},  {28, 64, 4224, 0}};
  for (const char* kind : {"nf4/64", "fp4/64d", "nf4/32", "nf4/128d", "fp4/4096", "nf4/256"}) {
    for (DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
      for (const Shape& s : shapes) {
        for (int threads : {1, 3}) {
          ThreadPool pool(threads);
          const RunContext context = {&pool, cancel};
          const Weight w = MakeWeight(table, context, kind, s.N, s.K, dtype);
          // Scales that lift what x of denormals gives above zero.
          float* absmax = threads == 3 ? w.view.quant.absmax : nullptr;
          for (int64_t i = 0; absmax != nullptr && i < w.view.quant.blocks(); ++i) {
            absmax[i] *= 0x1p60f;
          }
          Dense x(s.M, s.K, dtype);
          FillRows(&x);
          CheckProduct(table, context, w, x, Expected(x, w.view.quant),
                       NameOf(table, kind, dtype, s, threads));
        }
      }
    }
  }
}

/// Few rows and many, a step and a block of the summation index, with less than one at the end;
/// more columns than a task's.
void CheckRowwise(const KernelTable& table, const CancelToken* cancel) {
  const Shape shapes[] = {
      {1, 1, 32, 0},      {2, 3, 64, 0},      {6, 5, 96, 0},     {7, 33, 160, 0},
      {13, 9, 4128, 0},   {48, 37, 544, 0},   {49, 300, 544, 0}, {50, 31, 32, 0},
      {83, 64, 1056, 0},  {19, 70, 2048, 0},  {18, 9, 1024, 0},  {60, 66, 5120, 0},
      {600, 35, 2080, 0}, {70, 530, 1024, 0}, {4, 0, 64, 0},     {0, 5, 64, 0}};
  for (DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    for (const Shape& s : shapes) {
      for (int threads : {1, 3}) {
        ThreadPool pool(threads);
        const RunContext context = {&pool, cancel};
        const Weight w = MakeWeight(table, context, "rowwise/32", s.N, s.K, dtype);
        Dense x(s.M, s.K, dtype);
        FillRows(&x);
        CheckProduct(table, context, w, x, ExpectedOfRows(x, w.view.quant),
                     NameOf(table, "rowwise", dtype, s, threads));
      }
    }
  }
}

/// Codes and scales of rows by their definition; pieces of a row and rows of tasks, rows of zeros,
/// of ties, of numbers that f16 has as denormals, and what is not finite in it.
void CheckQuantizeRowwise(const KernelTable& table, const CancelToken* cancel) {
  const Shape shapes[] = {{0, 1, 32, 0}, {0, 9, 96, 0}, {0, 40, 4128, 0}, {0, 3, 8192, 0}};
  for (DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    for (const Shape& s : shapes) {
      ThreadPool pool(s.N % 2 == 0 ? 3 : 1);
      const RunContext context = {&pool, cancel};
      Dense source(s.N, s.K, dtype);
      source.Fill();
      const auto set = [&](int64_t n, int64_t k, double value) {
        StoreElement(source.view.data, dtype, n * s.K + k, value);
      };
      for (int64_t n = 0; n < s.N; ++n) {
        for (int64_t k = 0; k < s.K; ++k) {
          if (n % 5 == 1) set(n, k, 0);
          if (n % 5 == 2) set(n, k, Uniform() * 0x1p-20);
          if (n % 5 == 3) set(n, k, k == s.K - 1 ? 127 : static_cast<double>(k % 80) - 39.5);
          if (n % 5 == 4) set(n, k, Uniform() * 60000);
        }
      }
      Packed out("int8", s.N, s.K, 32, false);
      out.view.rowwise = true;
      QuantizeOp op;
      op.w = source.view;
      op.out = out.view;
      const std::string what = NameOf(table, "rowwise codes", dtype, s, 1);
      Report(op.Check().ok() && table.quantize(op, context).ok(), what + " status");
      int64_t wrong = -1;
      for (int64_t n = 0; n < s.N; ++n) {
        float absmax = 0;
        const auto value = [&](int64_t k) {
          return static_cast<float>(RoundTo(DType::kF16, source.At(n, k)));
        };
        for (int64_t k = 0; k < s.K; ++k) absmax = std::max(absmax, std::fabs(value(k)));
        const float scale = absmax == 0 ? 0 : Rounded(127 / absmax);
        for (int64_t k = 0; k < s.K; ++k) {
          const int code = static_cast<int>(std::nearbyint(Rounded(value(k) * scale))) + 128;
          const int64_t i = n * s.K + k;
          if (out.view.codes[i] != code || out.view.absmax[i / 32] != absmax) wrong = i;
        }
      }
      Report(wrong < 0, what + " element " + std::to_string(wrong));
      if (dtype == DType::kF16) continue;
      set(s.N - 1, s.K - 1, 65520);  // the least that f16 rounds to infinity
      set(s.N / 2, s.K / 2, 1e5);
      const Status status = table.quantize(op, context);
      const std::string place = "element " + std::to_string(s.N / 2 * s.K + s.K / 2);
      Report(status.code() == Code::kNonFinite && status.message().find(place) != std::string::npos,
             what + ": " + status.message());
    }
  }
}

/// The largest sums that there are, of the longest rows, by either kernel.
void CheckLongRows(const KernelTable& table, const RunContext& context) {
  for (const int64_t M : {1, 50}) {
    const Shape s = {M, 2, kMostInt8RowDepth, 0};
    const Weight w = MakeWeight(table, context, "rowwise/4096", s.N, s.K, DType::kF32);
    std::fill_n(w.view.quant.codes, s.K, static_cast<uint8_t>(255));
    std::fill_n(w.view.quant.codes + s.K, s.K, static_cast<uint8_t>(0));
    Dense x(s.M, s.K, DType::kF32);
    for (int64_t i = 0; i < s.M * s.K; ++i) StoreElement(x.view.data, DType::kF32, i, 1);
    CheckProduct(table, context, w, x, ExpectedOfRows(x, w.view.quant),
                 NameOf(table, "rowwise", DType::kF32, s, 2));
  }
}

/// The adapter and both biases are added to the int8 product as they are to the exact one.
void CheckAdapter(const KernelTable& table, const RunContext& context) {
  // Rows of w that are whole granules, of few rows of x and of more, and rows that are not.
  const Shape shapes[] = {{19, 70, 200, 5}, {5, 70, 256, 5}, {19, 70, 256, 5}, {59, 70, 224, 5}};
  for (const Shape& s : shapes) {
    for (DType dtype : {DType::kF32, DType::kBF16}) {
      const int64_t M = s.M, N = s.N, K = s.K, r = s.r;
      const bool rowwise = K == 224;
      const Weight w = MakeWeight(table, context, rowwise ? "rowwise/32" : "nf4/64", N, K, dtype);
      Dense x(M, K, dtype), a(r, K, DType::kF32), b(N, r, DType::kF32), h(M, r, DType::kF32),
          y(M, N, dtype), bias(1, N, DType::kF32), lora_bias(1, N, DType::kF32);
      for (Dense* operand : {&x, &a, &b, &bias, &lora_bias}) operand->Fill();
      LoraForwardOp op;
      op.x = x.view;
      op.w = w.view;
      op.bias = bias.view;
      op.lora_a = a.view;
      op.lora_b = b.view;
      op.lora_bias = lora_bias.view;
      op.h = h.view;
      op.y = y.view;
      op.scaling = 0.5f;
      op.dropout.p = 0.25;
      op.dropout.seed = 9;
      op.compute = Compute::kInt8;
      Report(op.Check().ok() && table.lora_forward(op, context).ok(), "int8 loraForward status");
      const std::vector<float> base =
          rowwise ? ExpectedOfRows(x, w.view.quant) : Expected(x, w.view.quant);
      for (int64_t m = 0; m < M; ++m) {
        for (int64_t n = 0; n < N; ++n) {
          const size_t i = static_cast<size_t>(m * N + n);
          double exact = static_cast<double>(base[i]) + bias.At(n) + 0.5 * lora_bias.At(n);
          double sum = std::fabs(static_cast<double>(base[i])) + std::fabs(bias.At(n)) +
                       std::fabs(0.5 * lora_bias.At(n));
          for (int64_t j = 0; j < r; ++j) {
            for (int64_t k = 0; k < K; ++k) {
              const double term =
                  0.5 * GateAt(op.dropout, m, k, K) * x.At(m, k) * a.At(j, k) * b.At(n, j);
              exact += term;
              sum += std::fabs(term);
            }
          }
          Expect(std::string(table.isa) + " int8 loraForward", y.At(m, n), exact, sum, dtype);
        }
      }
    }
  }
}

/// Projections that share x give the bits of each alone, also where one has fewer rows than others
/// are taken by.
void CheckMany(const KernelTable& table, const RunContext& context) {
  const int64_t M = 3, K = 4224;
  Dense x(M, K, DType::kF32);
  x.Fill();
  std::deque<Weight> weights;
  std::deque<Dense> y, y_alone;
  std::vector<LoraForwardOp> parts;
  for (const int64_t N : {40, 7}) {
    weights.push_back(MakeWeight(table, context, "nf4/64", N, K, DType::kF32));
    y.emplace_back(M, N, DType::kF32);
    y_alone.emplace_back(M, N, DType::kF32);
    LoraForwardOp op;
    op.x = x.view;
    op.w = weights.back().view;
    op.y = y.back().view;
    op.compute = Compute::kInt8;
    parts.push_back(op);
  }
  Report(table.lora_forward_many({parts.data(), 2}, context).ok(), "int8 many status");
  for (size_t i = 0; i < parts.size(); ++i) {
    LoraForwardOp alone = parts[i];
    alone.y = y_alone[i].view;
    Report(table.matmul(BaseOf(alone), context).ok() && y[i].buffer.Same(y_alone[i].buffer),
           std::string(table.isa) + " int8 many part " + std::to_string(i));
  }
}

/// What has no int8 product is refused by the descriptor itself.
void CheckRefusals(const KernelTable& table, const RunContext& context) {
  for (const char* kind : {"int8/64", "f32", "same", "nf4/64", "rowwise/64"}) {
    const Weight w = MakeWeight(table, context, kind, 4, 64, DType::kBF16);
    Dense x(2, 64, DType::kBF16), y(2, 4, DType::kBF16), a(1, 64, DType::kF32),
        b(4, 1, DType::kF32), h(2, 1, DType::kF32);
    MatmulOp op;
    op.x = x.view;
    op.w = w.view;
    op.y = y.view;
    op.compute = Compute::kInt8;
    LoraForwardOp lora;
    lora.x = x.view;
    lora.w = w.view;
    lora.lora_a = a.view;
    lora.lora_b = b.view;
    lora.h = h.view;
    lora.y = y.view;
    lora.compute = Compute::kInt8;
    const bool taken = std::strcmp(kind, "nf4/64") == 0 || std::strcmp(kind, "rowwise/64") == 0;
    const Code code = taken ? Code::kOk : Code::kUnsupported;
    Report(op.Check().code() == code && lora.Check().code() == code,
           std::string("int8 with ") + kind + ": " + op.Check().message());
    if (w.view.quant.rowwise) {
      MatmulOp longer = op;
      longer.w.quant.cols = longer.x.cols = kMostInt8RowDepth + 64;
      Report(longer.Check().code() == Code::kUnsupported, "rows too long for 32 bits");
      longer = op;
      longer.w.quant.blocksize = 128;
      Report(longer.Check().code() == Code::kFormat, "rowwise without whole blocks");
    }
    op.compute = static_cast<Compute>(7);
    Report(op.Check().code() == Code::kValue, "an unknown precision");
  }
}

}  // namespace

void CheckInt8(const KernelTable& table, const CancelToken* cancel) {
  ThreadPool pool(2);
  const RunContext context = {&pool, cancel};
  CheckProducts(table, cancel);
  CheckRowwise(table, cancel);
  CheckQuantizeRowwise(table, cancel);
  CheckLongRows(table, context);
  CheckAdapter(table, context);
  CheckMany(table, context);
  CheckRefusals(table, context);
}

}  // namespace lowrank::cpu
