// Checks the CPU kernel tables against plain double loops, without JavaScript: every instruction
// set that runs here, dtypes, formats, ragged shapes, thread counts, a row alone and in a batch.
//
//   kernels_check [isa]                               all checks; status 1 if one fails
//   kernels_check --bench [isa [threads [seconds [case]]]]   GFLOP/s beside the measured peak
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <string>
#include <vector>

#include "native/core/ops.h"
#include "native/core/philox.h"
#include "native/cpu/kernel_table.h"

namespace lowrank::cpu {
namespace {

int g_failures = 0;
int g_checks = 0;

void Report(bool ok, const std::string& what) {
  ++g_checks;
  if (ok) return;
  ++g_failures;
  if (g_failures < 60) std::printf("FAIL %s\n", what.c_str());
}

/// An exactly sized heap copy, so that a sanitizer sees an over-read of one byte.
class Buffer {
 public:
  explicit Buffer(size_t bytes) : bytes_(bytes), data_(std::malloc(std::max<size_t>(bytes, 1))) {
    std::memset(data_, 0x5a, bytes);
  }
  Buffer(Buffer&& other) noexcept : bytes_(other.bytes_), data_(other.data_) {
    other.data_ = nullptr;
  }
  Buffer(const Buffer&) = delete;
  ~Buffer() { std::free(data_); }
  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  bool Same(const Buffer& other) const {
    return bytes_ == other.bytes_ && std::memcmp(data_, other.data_, bytes_) == 0;
  }

 private:
  size_t bytes_;
  void* data_;
};

uint64_t g_state = 1;
double Uniform() {
  g_state = g_state * 6364136223846793005ull + 1442695040888963407ull;
  return static_cast<double>(g_state >> 11) / 9007199254740992.0 * 2.0 - 1.0;
}

struct Dense {
  Buffer buffer;
  TensorView view;
  Dense(int64_t rows, int64_t cols, DType dtype)
      : buffer(static_cast<size_t>(rows * cols) * DTypeBytes(dtype)) {
    view.data = buffer.data();
    view.dtype = dtype;
    view.rows = rows;
    view.cols = cols;
    view.present = true;
  }
  Dense& Fill(double scale = 1) {
    for (int64_t i = 0; i < view.elems(); ++i) {
      StoreElement(view.data, view.dtype, i, Uniform() * scale);
    }
    return *this;
  }
  double At(int64_t i) const {
    return static_cast<double>(LoadElement(view.data, view.dtype, i));
  }
  double At(int64_t row, int64_t col) const { return At(row * view.cols + col); }
};

struct Packed {
  QuantView view;
  std::vector<Buffer> parts;
  Packed(const char* format, int64_t rows, int64_t cols, int64_t blocksize, bool nested) {
    view.format = FindFormat(format);
    view.rows = rows;
    view.cols = cols;
    view.blocksize = blocksize;
    view.codebook = view.format->codebook;
    const size_t blocks = static_cast<size_t>(view.blocks());
    auto part = [&](size_t bytes) {
      parts.emplace_back(bytes);
      return parts.back().data();
    };
    view.codes = static_cast<uint8_t*>(part(view.code_bytes()));
    if (nested) {
      view.absmax_8bit = static_cast<uint8_t*>(part(blocks));
      view.absmax_codebook = DynamicMap8bit();
      view.nested_absmax = static_cast<float*>(part(static_cast<size_t>(view.nested_blocks()) * 4));
      view.absmax_offset = static_cast<float*>(part(4));
    } else {
      view.absmax = static_cast<float*>(part(blocks * 4));
    }
  }
};

double RoundTo(DType dtype, double value) {
  float out;
  StoreElement(&out, dtype, 0, value);
  return static_cast<double>(LoadElement(&out, dtype, 0));
}

struct Weight {
  std::string name;
  std::vector<Dense> dense;
  std::vector<Packed> packed;
  WeightView view;
  DType activations = DType::kF32;

  double At(int64_t n, int64_t k) const {
    const int64_t i = n * view.cols() + k;
    if (view.dense.present) return dense[0].At(i);
    return RoundTo(activations, static_cast<double>(view.quant.Value(i)));
  }
};

Weight MakeWeight(const KernelTable& table, const RunContext& context, const std::string& kind,
                  int64_t N, int64_t K, DType activations) {
  Weight w;
  w.name = kind;
  w.activations = activations;
  if (kind == "f32" || kind == "same") {
    w.dense.emplace_back(N, K, kind == "f32" ? DType::kF32 : activations);
    w.dense[0].Fill();
    w.view.dense = w.dense[0].view;
    return w;
  }
  const bool nested = kind.back() == 'd';
  const size_t slash = kind.find('/');
  w.packed.emplace_back(kind.substr(0, slash).c_str(), N, K,
                        std::atoll(kind.c_str() + slash + 1), nested);
  w.view.quant = w.packed[0].view;
  Dense source(N, K, DType::kF32);
  source.Fill();
  QuantizeOp op;
  op.w = source.view;
  op.out = w.view.quant;
  const Status status = table.quantize(op, context);
  Report(status.ok(), "quantize " + kind + " " + status.message());
  return w;
}

double OutputUnit(DType dtype) {
  return dtype == DType::kF32 ? 0x1p-24 : dtype == DType::kBF16 ? 0x1p-8 : 0x1p-11;
}

/// |y - y64| <= 16 · 2^-24 · sum|ab| + one rounding of the output.
void Expect(const std::string& what, double actual, double exact, double sum, DType dtype) {
  const double limit = 16 * 0x1p-24 * sum + OutputUnit(dtype) * std::fabs(exact) * 1.01 +
                       (dtype == DType::kF16 ? 0x1p-25 : 0x1p-149);
  if (!(std::fabs(actual - exact) <= limit)) {
    char text[200];
    std::snprintf(text, sizeof(text), " got %.9g, exact %.9g, limit %.3g", actual, exact, limit);
    Report(false, what + text);
  } else {
    ++g_checks;
  }
}

double GateAt(const DropoutSpec& dropout, int64_t m, int64_t k, int64_t K) {
  if (!dropout.active()) return 1;
  const int64_t i = m * K + k;
  const bool keep = dropout.mask.present
                        ? LoadElement(dropout.mask.data, dropout.mask.dtype, i) != 0
                        : DropoutKeeps(dropout.seed, static_cast<uint64_t>(i),
                                       DropoutThreshold(dropout.p));
  return keep ? static_cast<double>(static_cast<float>(1.0 / (1.0 - dropout.p))) : 0;
}

struct Shape {
  int64_t M, N, K, r;
};

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

void CheckLayers(const KernelTable& table, const RunContext& context) {
  const Shape shapes[] = {
      {1, 1, 1, 1},      {0, 5, 7, 2},     {3, 0, 5, 2},      {3, 5, 0, 2},     {2, 3, 5, 0},
      {3, 17, 33, 3},    {17, 65, 172, 8}, {15, 31, 64, 16},  {64, 64, 96, 1},  {65, 33, 257, 5},
      {29, 100, 513, 7}, {5, 3, 1000, 40}, {300, 40, 48, 64}, {14, 32, 256, 8}, {13, 129, 300, 257},
      {600, 5, 40, 3},  // more than one chunk of rows
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

/// Same bits for every number of threads, and for rows alone and in a batch.
void CheckInvariance(const KernelTable& table, const CancelToken* cancel) {
  for (DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    for (const char* kind : {"nf4/64", "same"}) {
      const int64_t M = 83, N = 300, K = 520, r = 12;
      ThreadPool one(1);
      const RunContext single = {&one, cancel};
      const Weight w = MakeWeight(table, single, kind, N, K, dtype);
      Dense x(M, K, dtype), dy(M, N, dtype), a(r, K, DType::kF32), b(N, r, DType::kF32);
      x.Fill();
      dy.Fill();
      a.Fill();
      b.Fill();
      auto run = [&](int threads, int64_t m0, int64_t rows, std::vector<Dense>* outs) {
        ThreadPool pool(threads);
        const RunContext context = {&pool, cancel};
        outs->clear();
        outs->emplace_back(rows, r, DType::kF32);
        outs->emplace_back(rows, N, dtype);
        outs->emplace_back(rows, K, dtype);
        outs->emplace_back(r, K, DType::kF32);
        outs->emplace_back(N, r, DType::kF32);
        LoraForwardOp f;
        f.x = x.view;
        f.x.data = static_cast<char*>(x.view.data) + static_cast<size_t>(m0 * K) * DTypeBytes(dtype);
        f.x.rows = rows;
        f.w = w.view;
        f.lora_a = a.view;
        f.lora_b = b.view;
        f.h = (*outs)[0].view;
        f.y = (*outs)[1].view;
        f.scaling = 0.5f;
        Report(table.lora_forward(f, context).ok(), "invariance forward");
        LoraBackwardOp g;
        g.dy = dy.view;
        g.dy.data =
            static_cast<char*>(dy.view.data) + static_cast<size_t>(m0 * N) * DTypeBytes(dtype);
        g.dy.rows = rows;
        g.x = f.x;
        g.w = w.view;
        g.lora_a = a.view;
        g.lora_b = b.view;
        g.h = f.h;
        g.dx = (*outs)[2].view;
        g.d_lora_a = (*outs)[3].view;
        g.d_lora_b = (*outs)[4].view;
        g.scaling = 0.5f;
        Report(table.lora_backward(g, context).ok(), "invariance backward");
      };
      std::vector<Dense> base, other;
      run(1, 0, M, &base);
      const std::string what = std::string(table.isa) + " " + DTypeName(dtype) + " " + kind;
      for (int threads : {2, 3, 8}) {
        run(threads, 0, M, &other);
        for (size_t i = 0; i < base.size(); ++i) {
          Report(base[i].buffer.Same(other[i].buffer),
                 what + " threads " + std::to_string(threads) + " output " + std::to_string(i));
        }
      }
      for (int64_t m0 : {int64_t{0}, int64_t{41}, int64_t{82}}) {
        for (int64_t rows : {int64_t{1}, int64_t{17}}) {
          if (m0 + rows > M) continue;
          run(2, m0, rows, &other);
          for (size_t i = 0; i < 3; ++i) {
            const size_t row_bytes =
                static_cast<size_t>(base[i].view.cols) * DTypeBytes(base[i].view.dtype);
            const char* from = static_cast<const char*>(base[i].view.data) +
                               static_cast<size_t>(m0) * row_bytes;
            Report(std::memcmp(from, other[i].view.data, row_bytes * static_cast<size_t>(rows)) == 0,
                   what + " rows alone, output " + std::to_string(i));
          }
        }
      }
    }
  }
}

/// NaN and Inf reach every output that they take part in, and no other.
void CheckNonFinite(const KernelTable& table, const RunContext& context) {
  for (DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    for (const char* kind : {"nf4/64", "same"}) {
      const int64_t M = 20, N = 70, K = 300, r = 4;
      const std::string what = std::string(table.isa) + " " + DTypeName(dtype) + " " + kind;
      const Weight w = MakeWeight(table, context, kind, N, K, dtype);
      Dense x(M, K, dtype), a(r, K, dtype), b(N, r, dtype), h(M, r, DType::kF32), y(M, N, dtype);
      x.Fill();
      a.Fill();
      b.Fill();
      StoreElement(x.view.data, dtype, 3 * K + 77, NAN);
      StoreElement(x.view.data, dtype, 5 * K + 299, INFINITY);
      LoraForwardOp op;
      op.x = x.view;
      op.w = w.view;
      op.lora_a = a.view;
      op.lora_b = b.view;
      op.h = h.view;
      op.y = y.view;
      op.scaling = 1;
      Report(table.lora_forward(op, context).ok(), what + " status");
      bool right = true;
      for (int64_t i = 0; i < M * N; ++i) {
        const int64_t m = i / N;
        const bool is_nan = std::isnan(y.At(i)), finite = std::isfinite(y.At(i));
        right = right && (m == 3 ? is_nan : m == 5 ? !finite : finite);
      }
      Report(right, what + " NaN and Inf");
    }
  }
}

void CheckQuantizer(const KernelTable& table, const RunContext& context) {
  for (const char* name : {"nf4", "fp4", "int8"}) {
    for (int64_t blocksize : {32, 64, 256, 4096}) {
      for (int64_t elems : {1, 31, 64, 65, 1000, 4097, 20001}) {
        for (DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
          const std::string what = std::string(table.isa) + " quantize " + name + "/" +
                                   std::to_string(blocksize) + " " + DTypeName(dtype) + " " +
                                   std::to_string(elems);
          Dense w(1, elems, dtype), y(1, elems, dtype);
          w.Fill(3);
          for (int64_t i = 0; i < elems && i < 40; ++i) StoreElement(w.view.data, dtype, i, 0);
          if (elems > 500) {  // a block of denormals where the blocks are short enough
            for (int64_t i = 256; i < 320; ++i) StoreElement(w.view.data, dtype, i, Uniform() * 1e-40);
          }
          Packed q(name, 1, elems, blocksize, false);
          QuantizeOp op;
          op.w = w.view;
          op.out = q.view;
          Report(op.Check().ok() && table.quantize(op, context).ok(), what);
          const FormatRow& format = *q.view.format;
          bool codes = true, scales = true;
          for (int64_t b = 0; b < q.view.blocks(); ++b) {
            float absmax = 0;
            const int64_t end = std::min(elems, (b + 1) * blocksize);
            for (int64_t i = b * blocksize; i < end; ++i) {
              absmax = std::max(absmax, std::fabs(static_cast<float>(w.At(i))));
            }
            scales = scales && BitsOf(absmax) == BitsOf(q.view.absmax[b]);
            const float inverse = 1.0f / absmax;
            for (int64_t i = b * blocksize; i < end; ++i) {
              const float v = static_cast<float>(w.At(i));
              codes = codes && q.view.Code(i) == (std::isinf(inverse) ? format.zero_code
                                                                      : format.Encode(v * inverse));
            }
          }
          Report(scales, what + " absmax");
          Report(codes, what + " codes");
          if (format.bits == 4 && (elems & 1) != 0) {
            Report((q.view.codes[elems / 2] & 15) == format.zero_code, what + " tail nibble");
          }
          DequantizeOp back;
          back.w = q.view;
          back.y = y.view;
          Report(table.dequantize(back, context).ok(), what + " dequantize");
          bool exact = true;
          for (int64_t i = 0; i < elems; ++i) {
            exact = exact && y.At(i) == RoundTo(dtype, static_cast<double>(q.view.Value(i)));
          }
          Report(exact, what + " dequantised values");
          // Where an element is not finite, the first one is named.
          const int64_t bad = elems * 2 / 3;
          StoreElement(w.view.data, dtype, bad, NAN);
          StoreElement(w.view.data, dtype, elems - 1, INFINITY);
          const Status refused = table.quantize(op, context);
          const int64_t first = bad == elems - 1 ? elems - 1 : bad;
          Report(refused.code() == Code::kNonFinite &&
                     refused.message().find("element " + std::to_string(first)) != std::string::npos,
                 what + " non-finite " + refused.message());
        }
      }
    }
  }
}

void CheckCast(const KernelTable& table, const RunContext& context) {
  for (DType from : {DType::kF32, DType::kBF16, DType::kF16}) {
    for (DType to : {DType::kF32, DType::kBF16, DType::kF16}) {
      const int64_t elems = 65536 * 2 + 7;
      Dense src(1, elems, from), dst(1, elems, to);
      for (int64_t i = 0; i < elems; ++i) {
        if (from == DType::kF32) {
          static_cast<float*>(src.view.data)[i] =
              FloatOf(static_cast<uint32_t>(i) * 32771u + static_cast<uint32_t>(i >> 3));
        } else {
          static_cast<uint16_t*>(src.view.data)[i] = static_cast<uint16_t>(i);
        }
      }
      CastOp op;
      op.src = src.view;
      op.dst = dst.view;
      Report(table.cast(op, context).ok(), "cast status");
      bool same = true;
      for (int64_t i = 0; i < elems; ++i) {
        const float value = LoadElement(src.view.data, from, i);
        uint32_t expected = BitsOf(value), actual = 0;
        if (to == DType::kBF16) expected = FromFloat<BF16>(value).bits;
        if (to == DType::kF16) expected = FromFloat<F16>(value).bits;
        std::memcpy(&actual, static_cast<char*>(dst.view.data) + static_cast<size_t>(i) * DTypeBytes(to),
                    DTypeBytes(to));
        const uint32_t quiet = to == DType::kF32 ? 0x400000u : to == DType::kBF16 ? 0x40u : 0x200u;
        if (std::isnan(value)) expected |= quiet, actual |= quiet;
        if (expected != actual && same) {
          std::printf("cast %s to %s of %08x: %x, expected %x\n", DTypeName(from), DTypeName(to),
                      BitsOf(value), actual, expected);
        }
        same = same && expected == actual;
      }
      Report(same, std::string(table.isa) + " cast " + DTypeName(from) + " to " + DTypeName(to));
    }
  }
}

void CheckRandom(const KernelTable& table, const RunContext& context) {
  const int64_t elems = 200003;
  Dense normal(1, elems, DType::kF32), uniform(1, elems, DType::kF32);
  RandomOp op;
  op.seed = 77;
  op.mean = 0.5;
  op.scale = 2;
  op.y = normal.view;
  Report(table.random(op, context).ok(), "normal status");
  op.kind = RandomOp::Kind::kUniform;
  op.y = uniform.view;
  Report(table.random(op, context).ok(), "uniform status");
  double worst = 0, sum = 0, squares = 0;
  for (int64_t i = 0; i < elems; ++i) {
    const Philox4 draw = PhiloxGroup(77, static_cast<uint64_t>(i) / 4, kNormalStream);
    const size_t pair = static_cast<size_t>(i & 2);
    const double radius = std::sqrt(-2 * std::log((draw.lane[pair] + 1.0) * 0x1p-32));
    const double angle = 2 * M_PI * draw.lane[pair + 1] * 0x1p-32;
    const double exact = 0.5 + 2 * radius * ((i & 1) == 0 ? std::cos(angle) : std::sin(angle));
    worst = std::max(worst, std::fabs(normal.At(i) - exact) - 0x1p-24 * std::fabs(exact));
    sum += normal.At(i);
    squares += normal.At(i) * normal.At(i);
    const Philox4 flat = PhiloxGroup(77, static_cast<uint64_t>(i) / 4, kUniformStream);
    const double u = (2.0 * flat.lane[i & 3] + 1) * 0x1p-32 - 1;
    worst = std::max(worst, std::fabs(uniform.At(i) - (0.5 + 2 * u)) - 0x1p-24 * 2.5);
  }
  const double mean = sum / static_cast<double>(elems);
  Report(worst < 1e-13, "random numbers: error " + std::to_string(worst));
  Report(std::fabs(mean - 0.5) < 0.02 &&
             std::fabs(squares / static_cast<double>(elems) - mean * mean - 4) < 0.05,
         "random numbers: moments");
}

/// Wall time, or with one thread its processor time: on a machine that others use, that is the one
/// that repeats.
bool g_cpu_time = false;
double Seconds() {
  timespec t;
  clock_gettime(g_cpu_time ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

/// Best of several runs, in seconds.
double Best(const std::function<void()>& body, double budget) {
  double best = 1e30;
  const double start = Seconds();
  for (int i = 0; i < 3 || (i < 500 && Seconds() - start < budget); ++i) {
    const double t = Seconds();
    body();
    best = std::min(best, Seconds() - t);
  }
  return best;
}

#if defined(__x86_64__)
/// GFLOP/s of one thread on independent fused multiply-adds: the ceiling of the f32 kernels.
__attribute__((target("avx512f"))) double FmaPeak() {
  typedef float V __attribute__((vector_size(64)));
  double best = 0;
  for (int repeat = 0; repeat < 20; ++repeat) {
    V acc[16];
    for (V& v : acc) v = V{} + 1.0f;
    V x = V{} + 0.999f, y = V{} + 0.001f;
    const double start = Seconds();
    for (int i = 0; i < 500000; ++i) {
      for (V& v : acc) __asm__ volatile("vfmadd213ps %2, %1, %0" : "+v"(v) : "v"(x), "v"(y));
    }
    best = std::max(best, 500000.0 * 16 * 32 / (Seconds() - start) * 1e-9);
  }
  return best;
}
#else
double FmaPeak() { return 0; }
#endif

void Bench(const KernelTable& table, const RunContext& context, double budget, int64_t only) {
  struct Case {
    Shape shape;
    DType dtype;
    const char* kind;
  };
  const Case cases[] = {
      {{1024, 4096, 4096, 16}, DType::kF32, "nf4/64"},  {{1024, 4096, 4096, 16}, DType::kBF16, "nf4/64"},
      {{1024, 4096, 4096, 16}, DType::kF32, "f32"},     {{1024, 256, 256, 8}, DType::kF32, "nf4/64"},
      {{512, 512, 192, 8}, DType::kF32, "nf4/64"},      {{2048, 192, 512, 8}, DType::kF32, "nf4/64"},
      {{1024, 1024, 172, 8}, DType::kF32, "nf4/64"},    {{1, 4096, 4096, 16}, DType::kF32, "nf4/64"},
      {{4, 4096, 4096, 16}, DType::kF32, "nf4/64"},     {{16, 4096, 4096, 16}, DType::kF32, "nf4/64"},
      {{16, 4096, 4096, 16}, DType::kBF16, "nf4/64"},   {{256, 4096, 4096, 16}, DType::kBF16, "nf4/64"},
  };
  if (__builtin_cpu_supports("avx512f")) {
    std::printf("measured f32 multiply-add peak: %.1f GFLOP/s a thread\n", FmaPeak());
  }
  for (const Case& c : cases) {
    if (only >= 0 && only != &c - cases) continue;
    const Shape& s = c.shape;
    const Weight w = MakeWeight(table, context, c.kind, s.N, s.K, c.dtype);
    Dense x(s.M, s.K, c.dtype), dy(s.M, s.N, c.dtype), a(s.r, s.K, DType::kF32),
        b(s.N, s.r, DType::kF32), h(s.M, s.r, DType::kF32), y(s.M, s.N, c.dtype),
        dx(s.M, s.K, c.dtype), da(s.r, s.K, DType::kF32), db(s.N, s.r, DType::kF32);
    x.Fill();
    dy.Fill();
    a.Fill();
    b.Fill();
    MatmulOp base;
    base.x = x.view;
    base.w = w.view;
    base.y = y.view;
    LoraForwardOp f;
    f.x = x.view;
    f.w = w.view;
    f.lora_a = a.view;
    f.lora_b = b.view;
    f.h = h.view;
    f.y = y.view;
    f.scaling = 1;
    LoraBackwardOp g;
    g.dy = dy.view;
    g.x = x.view;
    g.w = w.view;
    g.lora_a = a.view;
    g.lora_b = b.view;
    g.h = h.view;
    g.dx = dx.view;
    g.d_lora_a = da.view;
    g.d_lora_b = db.view;
    g.scaling = 1;
    const double flops = 2.0 * static_cast<double>(s.M) * static_cast<double>(s.N) *
                         static_cast<double>(s.K);
    const double t0 = Best([&] { table.matmul(base, context); }, budget);
    const double t1 = Best([&] { table.lora_forward(f, context); }, budget);
    const double t2 = Best([&] { table.lora_backward(g, context); }, budget);
    std::printf("%-12s %s %-7s %5lld x %lld x %lld r%lld  base %8.3f ms %6.1f  fwd %8.3f ms %6.1f  "
                "bwd %8.3f ms %6.1f GFLOP/s\n",
                table.isa, DTypeName(c.dtype), c.kind, static_cast<long long>(s.M),
                static_cast<long long>(s.N), static_cast<long long>(s.K),
                static_cast<long long>(s.r), t0 * 1e3, flops / t0 * 1e-9, t1 * 1e3,
                flops / t1 * 1e-9, t2 * 1e3, flops / t2 * 1e-9);
    std::fflush(stdout);
  }
  if (only >= 0) return;
  for (const char* name : {"nf4", "fp4", "int8"}) {
    Dense w(4096, 4096, DType::kF32), y(4096, 4096, DType::kF32);
    w.Fill();
    Packed q(name, 4096, 4096, 64, false);
    QuantizeOp op;
    op.w = w.view;
    op.out = q.view;
    DequantizeOp back;
    back.w = q.view;
    back.y = y.view;
    const double t = Best([&] { table.quantize(op, context); }, budget);
    const double u = Best([&] { table.dequantize(back, context); }, budget);
    std::printf("%-12s %s 4096 x 4096 f32: quantize %.2f ms, dequantize %.2f ms\n", table.isa, name,
                t * 1e3, u * 1e3);
  }
  Dense y(4096, 1024, DType::kF32);
  RandomOp op;
  op.y = y.view;
  const double t = Best([&] { table.random(op, context); }, budget);
  std::printf("random normal: %.1f ns an element\n", t * 1e9 / static_cast<double>(y.view.elems()));
}

int Main(int argc, char** argv) {
  const bool bench = argc > 1 && std::strcmp(argv[1], "--bench") == 0;
  const char* only = bench ? (argc > 2 ? argv[2] : nullptr) : (argc > 1 ? argv[1] : nullptr);
  const char* names[] = {"portable", "avx2", "avx512", "avx512-bf16", "neon"};
  CancelToken cancel;
  ThreadPool pool(2);
  const RunContext context = {&pool, &cancel};
  if (bench) {
    std::string reason;
    const KernelTable* table = SelectKernels(only, &reason);
    if (table == nullptr) {
      std::printf("%s\n", reason.c_str());
      return 1;
    }
    const int threads = argc > 3 ? std::atoi(argv[3]) : 2;
    g_cpu_time = threads == 1;
    ThreadPool bench_pool(threads);
    Bench(*table, {&bench_pool, &cancel}, argc > 4 ? std::atof(argv[4]) : 1.0,
          argc > 5 ? std::atoll(argv[5]) : -1);
    return 0;
  }
  std::string reason;
  Report(SelectKernels("mmx", &reason) == nullptr && reason.find("portable") != std::string::npos,
         "an unknown instruction set is refused: " + reason);
  for (const char* name : names) {
    if (only != nullptr && std::strcmp(only, name) != 0) continue;
    const KernelTable* table = SelectKernels(name, &reason);
    if (table == nullptr) {
      std::printf("%s: %s\n", name, reason.c_str());
      continue;
    }
    const int before = g_failures;
    CheckLayers(*table, context);
    CheckInvariance(*table, &cancel);
    CheckNonFinite(*table, context);
    CheckQuantizer(*table, context);
    CheckCast(*table, context);
    CheckRandom(*table, context);
    CancelToken cancelled;
    cancelled.Cancel();
    Dense x(4, 8, DType::kF32), y(4, 8, DType::kF32);
    CastOp op;
    op.src = x.Fill().view;
    op.dst = y.view;
    Report(table->cast(op, {&pool, &cancelled}).code() == Code::kCancelled, "cancelled");
    std::printf("%s: %d failures\n", name, g_failures - before);
  }
  std::printf("%d checks, %d failures\n", g_checks, g_failures);
  return g_failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace lowrank::cpu

int main(int argc, char** argv) { return lowrank::cpu::Main(argc, argv); }
