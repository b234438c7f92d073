#include <cmath>
#include <functional>
#include <random>
#include <set>

#include "native/host_device/philox.h"
#include "test/gpu/ops_check.h"

namespace lowrank::cuda {
namespace {

constexpr double kUnit = 1.0 / (1 << 24);
/// In units of 2^-24 · Σ|a·b|; tighter than what is promised of CUDA (docs/gpu-testing.md).
constexpr double kPromise = 16;

using Row = std::vector<double>;

/// Parts of a matrix on the host.
class Host {
 public:
  Host(Operands* operands, const TensorView& view) : operands_(*operands), view_(view) {}

  /// `cols` elements from `at` on; element offsets are 64-bit here, whatever the kernel does.
  Row Elements(int64_t at, int64_t count) const {
    const size_t size = DTypeBytes(view_.dtype);
    std::vector<unsigned char> bytes(static_cast<size_t>(count) * size);
    operands_.memory().Read(
        static_cast<const unsigned char*>(view_.data) + static_cast<size_t>(at) * size,
        bytes.data(), bytes.size());
    Row row(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; ++i) {
      row[static_cast<size_t>(i)] = static_cast<double>(LoadElement(bytes.data(), view_.dtype, i));
    }
    return row;
  }
  Row RowAt(int64_t row) const { return Elements(row * view_.cols, view_.cols); }
  Row All() const { return Elements(0, view_.elems()); }

  /// Columns, each as a row; the matrix passes through the host in pieces.
  std::vector<Row> Columns(const std::vector<int64_t>& cols) const {
    std::vector<Row> columns(cols.size(), Row(static_cast<size_t>(view_.rows)));
    const int64_t rows_at_once = std::max<int64_t>(1, (int64_t{1} << 25) / view_.cols);
    const size_t size = DTypeBytes(view_.dtype);
    std::vector<unsigned char> bytes;
    for (int64_t row = 0; row < view_.rows; row += rows_at_once) {
      const int64_t count = std::min(rows_at_once, view_.rows - row);
      bytes.resize(static_cast<size_t>(count * view_.cols) * size);
      operands_.memory().Read(static_cast<const unsigned char*>(view_.data) +
                                  static_cast<size_t>(row * view_.cols) * size,
                              bytes.data(), bytes.size());
      for (size_t c = 0; c < cols.size(); ++c) {
        for (int64_t i = 0; i < count; ++i) {
          columns[c][static_cast<size_t>(row + i)] =
              static_cast<double>(LoadElement(bytes.data(), view_.dtype, i * view_.cols + cols[c]));
        }
      }
    }
    return columns;
  }

 private:
  Operands& operands_;
  TensorView view_;
};

/// The first and the last, and others between, ascending.
std::vector<int64_t> Sample(int64_t count, size_t wanted) {
  std::mt19937_64 rng(static_cast<uint64_t>(count));
  std::set<int64_t> chosen = {0, count - 1, count / 2};
  while (chosen.size() < std::min(wanted, static_cast<size_t>(count))) {
    chosen.insert(static_cast<int64_t>(rng() % static_cast<uint64_t>(count)));
  }
  return {chosen.begin(), chosen.end()};
}

/// A sum and the sum of the absolute values of its products.
struct Sum {
  double value = 0;
  double magnitude = 0;
  void Add(double a, double b) {
    value += a * b;
    magnitude += std::fabs(a * b);
  }
  void Add(const Sum& other, double factor) {
    value += other.value * factor;
    magnitude += other.magnitude * std::fabs(factor);
  }
};

Sum Dot(const Row& a, const Row& b) {
  Sum sum;
  for (size_t i = 0; i < a.size(); ++i) sum.Add(a[i], b[i]);
  return sum;
}

/// Compares sampled elements of one result.
class Judge {
 public:
  Judge(OpsCheck* check, std::string name, DType dtype)
      : check_(*check), name_(std::move(name)), dtype_(dtype) {}

  void Add(double actual, const Sum& expected) {
    if (check_.plant && samples_ == 7) actual = actual * 1.02 + 0.01;
    ++samples_;
    // What the store rounds away is no error of the sum.
    const double rounding = dtype_ == DType::kF32   ? std::ldexp(1.0, -24)
                            : dtype_ == DType::kF16 ? std::ldexp(1.0, -11)
                                                    : std::ldexp(1.0, -8);
    const double apart = std::fabs(actual - expected.value) - rounding * std::fabs(expected.value);
    const double units = apart / (kUnit * expected.magnitude);
    // Not by max(), which drops a NaN.
    if (!(units <= worst_)) worst_ = std::isnan(units) ? HUGE_VAL : units;
    nonzero_ = nonzero_ || actual != 0;
  }
  void Done(const Status& status) {
    if (!status.ok()) return check_.Report(name_, status);
    char facts[120];
    std::snprintf(facts, sizeof(facts), ",\"samples\":%d,\"worst\":%.3f,\"limit\":%.0f", samples_,
                  std::isfinite(worst_) ? worst_ : 1e30, kPromise);
    check_.Report(name_, samples_ > 0 && nonzero_ && worst_ <= kPromise, facts);
  }

 private:
  OpsCheck& check_;
  std::string name_;
  DType dtype_;
  int samples_ = 0;
  double worst_ = 0;
  bool nonzero_ = false;
};

struct LargeCase {
  const char* format = "nf4";
  bool double_quant = true;
  DType dtype = DType::kBF16;
  int64_t M = 0, N = 0, K = 0, r = 16;
  double dropout = 0;
  size_t samples = 48;
  bool backward = true;

  std::string Name() const {
    return std::string(DTypeName(dtype)) + " " + (*format == 0 ? "dense" : format) +
           (double_quant && *format != 0 ? " doubly" : "") + " M " + std::to_string(M) + " N " +
           std::to_string(N) + " K " + std::to_string(K) + " r " + std::to_string(r) +
           (dropout > 0 ? " dropout" : "");
  }
  /// Of everything that is alive at once.
  int64_t Bytes() const {
    const int64_t size = static_cast<int64_t>(DTypeBytes(dtype));
    return (2 * M * K + 2 * M * N + 3 * N * K) * size + (int64_t{1} << 30);
  }
};

double Gate(const LargeCase& c, int64_t m, int64_t k) {
  if (c.dropout == 0) return 1;
  const uint64_t index =
      static_cast<uint64_t>(m) * static_cast<uint64_t>(c.K) + static_cast<uint64_t>(k);
  return DropoutKeeps(7, index, DropoutThreshold(c.dropout)) ? 1 / (1 - c.dropout) : 0;
}

struct Layer {
  TensorView x, dy, lora_a, lora_b, h;
  WeightView w;
  TensorView decoded;  // w as the product uses it
  DropoutSpec dropout;
  double scaling = 2;
};

void CheckForward(OpsCheck* check, Operands* operands, const LargeCase& c, const Layer& layer) {
  LoraForwardOp op;
  op.x = layer.x;
  op.w = layer.w;
  op.lora_a = layer.lora_a;
  op.lora_b = layer.lora_b;
  op.h = layer.h;
  op.y = operands->Tensor(c.M, c.N, c.dtype);
  op.scaling = static_cast<float>(layer.scaling);
  op.dropout = layer.dropout;
  operands->Run(op);

  Judge judge(check, "loraForward " + c.Name(), c.dtype);
  Judge h_judge(check, "loraForward h " + c.Name(), DType::kF32);
  const Host lora_a(operands, layer.lora_a), lora_b(operands, layer.lora_b);
  const std::vector<int64_t> rows = Sample(c.M, c.samples), cols = Sample(c.N, c.samples);
  std::vector<Row> w, a, b;
  for (const int64_t n : cols) w.push_back(Host(operands, layer.decoded).RowAt(n));
  for (const int64_t n : cols) b.push_back(lora_b.RowAt(n));
  for (int64_t r = 0; r < c.r; ++r) a.push_back(lora_a.RowAt(r));
  for (const int64_t m : rows) {
    const Row x = Host(operands, layer.x).RowAt(m);
    const Row y = Host(operands, op.y).RowAt(m);
    const Row h_actual = Host(operands, layer.h).RowAt(m);
    Row gated = x;
    for (int64_t k = 0; k < c.K; ++k) gated[static_cast<size_t>(k)] *= Gate(c, m, k);
    std::vector<Sum> h;
    for (size_t r = 0; r < a.size(); ++r) {
      h.push_back(Dot(gated, a[r]));
      h_judge.Add(h_actual[r], h[r]);
    }
    for (size_t n = 0; n < cols.size(); ++n) {
      Sum sum = Dot(x, w[n]);
      for (size_t r = 0; r < h.size(); ++r) sum.Add(h[r], layer.scaling * b[n][r]);
      judge.Add(y[static_cast<size_t>(cols[n])], sum);
    }
  }
  judge.Done(operands->status());
  h_judge.Done(operands->status());
  operands->memory().Free(op.y.data);
}

/// dh [M][r] of the rows of dy.
std::vector<std::vector<Sum>> HiddenGradients(Operands* operands, const LargeCase& c,
                                              const Layer& layer, const Row& lora_b) {
  std::vector<std::vector<Sum>> dh(static_cast<size_t>(c.M));
  const Host dy(operands, layer.dy);
  const int64_t rows_at_once = std::max<int64_t>(1, (int64_t{1} << 23) / c.N);
  for (int64_t first = 0; first < c.M; first += rows_at_once) {
    const int64_t count = std::min(rows_at_once, c.M - first);
    const Row rows = dy.Elements(first * c.N, count * c.N);
    for (int64_t i = 0; i < count; ++i) {
      std::vector<Sum>& sums = dh[static_cast<size_t>(first + i)];
      sums.resize(static_cast<size_t>(c.r));
      for (int64_t n = 0; n < c.N; ++n) {
        const double value = layer.scaling * rows[static_cast<size_t>(i * c.N + n)];
        for (int64_t r = 0; r < c.r; ++r) {
          sums[static_cast<size_t>(r)].Add(value, lora_b[static_cast<size_t>(n * c.r + r)]);
        }
      }
    }
  }
  return dh;
}

void CheckBackward(OpsCheck* check, Operands* operands, const LargeCase& c, const Layer& layer) {
  LoraBackwardOp op;
  op.dy = layer.dy;
  op.x = layer.x;
  op.w = layer.w;
  op.lora_a = layer.lora_a;
  op.lora_b = layer.lora_b;
  op.h = layer.h;  // as the forward pass left it
  op.dx = operands->Tensor(c.M, c.K, c.dtype);
  op.d_lora_a = operands->Tensor(c.r, c.K, DType::kF32);
  op.d_lora_b = operands->Tensor(c.N, c.r, DType::kF32);
  op.scaling = static_cast<float>(layer.scaling);
  op.dropout = layer.dropout;
  operands->Run(op);

  const Row lora_a = Host(operands, layer.lora_a).All();
  const Row lora_b = Host(operands, layer.lora_b).All();
  const auto dh = HiddenGradients(operands, c, layer, lora_b);
  const std::vector<int64_t> cols = Sample(c.K, c.samples / 3);

  Judge dx_judge(check, "loraBackward dx " + c.Name(), c.dtype);
  const std::vector<Row> w = Host(operands, layer.decoded).Columns(cols);
  for (const int64_t m : Sample(c.M, c.samples)) {
    const Row dy = Host(operands, layer.dy).RowAt(m);
    const Row dx = Host(operands, op.dx).RowAt(m);
    for (size_t i = 0; i < cols.size(); ++i) {
      Sum sum = Dot(dy, w[i]);
      for (int64_t r = 0; r < c.r; ++r) {
        sum.Add(dh[static_cast<size_t>(m)][static_cast<size_t>(r)],
                Gate(c, m, cols[i]) * lora_a[static_cast<size_t>(r * c.K + cols[i])]);
      }
      dx_judge.Add(dx[static_cast<size_t>(cols[i])], sum);
    }
  }
  dx_judge.Done(operands->status());

  Judge a_judge(check, "loraBackward d_lora_a " + c.Name(), DType::kF32);
  const std::vector<Row> x = Host(operands, layer.x).Columns(cols);
  const Row d_lora_a = Host(operands, op.d_lora_a).All();
  for (size_t i = 0; i < cols.size(); ++i) {
    for (int64_t r = 0; r < c.r; ++r) {
      Sum sum;
      for (int64_t m = 0; m < c.M; ++m) {
        sum.Add(dh[static_cast<size_t>(m)][static_cast<size_t>(r)],
                Gate(c, m, cols[i]) * x[i][static_cast<size_t>(m)]);
      }
      a_judge.Add(d_lora_a[static_cast<size_t>(r * c.K + cols[i])], sum);
    }
  }
  a_judge.Done(operands->status());

  Judge b_judge(check, "loraBackward d_lora_b " + c.Name(), DType::kF32);
  const std::vector<int64_t> outputs = Sample(c.N, c.samples / 3);
  const std::vector<Row> dy = Host(operands, layer.dy).Columns(outputs);
  const Row h = Host(operands, layer.h).All();
  for (size_t i = 0; i < outputs.size(); ++i) {
    const Row actual = Host(operands, op.d_lora_b).RowAt(outputs[i]);
    for (int64_t r = 0; r < c.r; ++r) {
      Sum sum;
      for (int64_t m = 0; m < c.M; ++m) {
        sum.Add(layer.scaling * dy[i][static_cast<size_t>(m)], h[static_cast<size_t>(m * c.r + r)]);
      }
      b_judge.Add(actual[static_cast<size_t>(r)], sum);
    }
  }
  b_judge.Done(operands->status());
}

/// A codebook's steps are coarse, but no decoded value is another block's.
void CheckDecoded(OpsCheck* check, Operands* operands, const LargeCase& c, const TensorView& dense,
                  const TensorView& decoded) {
  double worst = 0;
  for (const int64_t n : Sample(c.N, c.samples)) {
    const Row source = Host(operands, dense).RowAt(n);
    const Row result = Host(operands, decoded).RowAt(n);
    double largest = 0;
    for (const double value : source) largest = std::max(largest, std::fabs(value));
    for (size_t k = 0; k < source.size(); ++k) {
      const double apart = std::fabs(source[k] - result[k]) / largest;
      if (!(apart <= worst)) worst = std::isnan(apart) ? HUGE_VAL : apart;
    }
  }
  if (check->plant) worst += 1;
  check->Report("quantize and dequantize " + c.Name(), operands->status().ok() && worst < 0.2,
                ",\"worst_of_the_largest\":" + std::to_string(worst));
}

void CheckCase(OpsCheck* check, const LargeCase& c) {
  size_t free_bytes = 0, total_bytes = 0;
  check->machine->driver().cuMemGetInfo_v2(&free_bytes, &total_bytes);
  if (static_cast<int64_t>(free_bytes) < c.Bytes()) {
    return check->Skip(c.Name(), std::to_string(c.Bytes() >> 20) + " MiB are needed, " +
                                     std::to_string(free_bytes >> 20) + " are free");
  }
  Operands operands(check->machine);
  Layer layer;
  const double scale = 1 / std::sqrt(static_cast<double>(c.K));
  const TensorView dense = operands.Normal(c.N, c.K, c.dtype, scale);
  if (*c.format == 0) {
    layer.w.dense = layer.decoded = dense;
  } else {
    QuantizeOp quantize;
    quantize.w = dense;
    quantize.out = layer.w.quant = operands.Quantised(c.format, c.N, c.K, c.double_quant);
    operands.Run(quantize);
    DequantizeOp dequantize;
    dequantize.w = layer.w.quant;
    dequantize.y = layer.decoded = operands.Tensor(c.N, c.K, c.dtype);
    operands.Run(dequantize);
    CheckDecoded(check, &operands, c, dense, layer.decoded);
    operands.memory().Free(dense.data);
  }
  layer.x = operands.Normal(c.M, c.K, c.dtype);
  layer.lora_a = operands.Normal(c.r, c.K, DType::kF32, scale);
  layer.lora_b = operands.Normal(c.N, c.r, DType::kF32, 0.5);
  layer.h = operands.Tensor(c.M, c.r, DType::kF32);
  layer.dropout.p = c.dropout;
  layer.dropout.seed = 7;
  CheckForward(check, &operands, c, layer);
  if (!c.backward) return;
  layer.dy = operands.Normal(c.M, c.N, c.dtype);
  CheckBackward(check, &operands, c, layer);
}

/// More rows than 2^31 elements have, at K = 4096.
constexpr int64_t kManyRows = (int64_t{1} << 19) + 512;

std::vector<LargeCase> Cases(bool tiny) {
  LargeCase base;
  if (tiny) {
    base.M = 70;
    base.N = 96;
    base.K = 160;
    base.samples = 12;
  } else {
    base.M = 8192;
    base.N = 4096;
    base.K = 4096;
  }
  std::vector<LargeCase> cases;
  const auto add = [&](const std::function<void(LargeCase*)>& change) {
    LargeCase one = base;
    change(&one);
    cases.push_back(one);
  };
  add([](LargeCase*) {});
  add([](LargeCase* c) { c->dropout = 0.1; });
  add([&](LargeCase* c) {
    c->dtype = DType::kF16;
    c->format = "int8";
    c->N = tiny ? 136 : 14336;
    c->M = tiny ? 33 : 4096;
  });
  add([&](LargeCase* c) {
    c->format = "";
    c->M = tiny ? 40 : 3000;
    c->K = tiny ? 200 : 14336;
  });
  add([&](LargeCase* c) {
    c->dtype = DType::kF32;
    c->M = tiny ? 40 : 2048;
  });
  add([&](LargeCase* c) {
    c->M = tiny ? 3 : 16;
    c->N = tiny ? 100 : 14336;
  });
  if (tiny) return cases;
  // Beyond 2^31 elements: x and dx; then w; then y.
  add([](LargeCase* c) {
    c->M = kManyRows;
    c->N = 64;
    c->samples = 24;
    c->dropout = 0.1;
  });
  add([](LargeCase* c) {
    c->N = kManyRows;
    c->M = 16;
    c->samples = 24;
    c->backward = false;
  });
  add([](LargeCase* c) {
    c->format = "";
    c->M = kManyRows;
    c->N = 4096;
    c->K = 64;
    c->samples = 24;
    c->backward = false;
  });
  return cases;
}

}  // namespace

void CheckLarge(OpsCheck* check) {
  for (const LargeCase& c : Cases(check->tiny)) CheckCase(check, c);
}

}  // namespace lowrank::cuda
