// Maps of features, products of blocks, norms and scales of weights, on one instruction set.
#include "test/native/kernel_operands.h"

namespace lowrank::cpu {
namespace {

constexpr DType kDTypes[] = {DType::kF32, DType::kBF16, DType::kF16};

/// Has the bits of the formula: sums in double, the rest in f32.
void CheckMapFeatures(const KernelTable& table, const RunContext& context, int64_t M, int64_t K,
                      int64_t J, int64_t most, int turn) {
  const DType type = kDTypes[turn % 3], other = kDTypes[(turn + 1) % 3];
  const std::string what = std::string(table.isa) + " mapFeatures [" + std::to_string(M) + ", " +
                           std::to_string(K) + " -> " + std::to_string(J) + "] " + DTypeName(type);
  // Heap copies of the exact size, so that a sanitizer sees a read too far.
  std::vector<std::vector<int32_t>> lists(static_cast<size_t>(J));
  for (auto& list : lists) {
    for (int64_t t = 0; t < K; ++t) {
      const bool room = static_cast<int64_t>(list.size()) < most;
      if (room && Uniform() * static_cast<double>(K) < static_cast<double>(most)) {
        list.push_back(static_cast<int32_t>(t));
      }
    }
  }
  std::vector<int32_t> begin = {0}, index;
  for (const auto& list : lists) {
    index.insert(index.end(), list.begin(), list.end());
    begin.push_back(static_cast<int32_t>(index.size()));
  }
  const bool gather = most == 1;
  if (gather) {
    index.clear();
    for (const auto& list : lists) index.push_back(list.empty() ? -1 : list[0]);
  }
  index.shrink_to_fit();
  Dense x(M, K, type), c(M, J, other), y(M, J, type);
  x.Fill();
  c.Fill();
  for (const bool with_c : {false, true}) {
    MapFeaturesOp op;
    op.x = x.view;
    op.map.begin = gather ? nullptr : begin.data();
    op.map.index = index.data();
    op.map.inputs = K;
    op.map.outputs = J;
    op.map.entries = static_cast<int64_t>(index.size());
    if (with_c) op.c = c.view;
    op.y = y.view;
    op.alpha = 1.25f;
    op.beta = -0.75f;
    Report(op.Check().ok() && table.map_features(op, context).ok(), what);
    for (int64_t i = 0; i < M * J; ++i) {
      double sum = 0;
      for (const int32_t t : lists[static_cast<size_t>(i % J)]) sum += x.At(i / J, t);
      volatile float value = 1.25f * static_cast<float>(sum);
      volatile float summand = -0.75f * static_cast<float>(c.At(i));
      if (with_c) value = value + summand;
      const double expected = RoundTo(type, static_cast<double>(value));
      if (y.At(i) != expected) {
        Report(false, what + " element " + std::to_string(i));
        return;
      }
    }
  }
}

/// Element (m, g, k) of [M · G, K].
double BlockAt(const Dense& a, int64_t G, int64_t m, int64_t g, int64_t k) {
  return a.At(m * G + g, k);
}

void CheckBlocks(const KernelTable& table, const RunContext& context, int64_t M, int64_t G,
                 int64_t N, int64_t K, DType type, DType w_type) {
  const std::string what = std::string(table.isa) + " blocks [" + std::to_string(M) + ", " +
                           std::to_string(G) + ", " + std::to_string(N) + ", " + std::to_string(K) +
                           "] " + DTypeName(type) + " " + DTypeName(w_type);
  Dense x(M * G, K, type), dy(M * G, N, type), w(G * N, K, w_type);
  for (Dense* operand : {&x, &dy, &w}) operand->Fill();
  Dense y(M * G, N, type), dx(M * G, K, type), dw(G * N, K, DType::kF32);
  BlockMatmulOp forward;
  forward.x = x.view;
  forward.w = w.view;
  forward.y = y.view;
  forward.blocks = G;
  Report(forward.Check().ok() && table.block_matmul(forward, context).ok(), what);
  BlockMatmulInputGradOp backward;
  backward.dy = dy.view;
  backward.w = w.view;
  backward.dx = dx.view;
  backward.blocks = G;
  Report(backward.Check().ok() && table.block_input_grad(backward, context).ok(), what);
  BlockWeightGradOp grad;
  grad.dy = dy.view;
  grad.x = x.view;
  grad.dw = dw.view;
  grad.blocks = G;
  Report(grad.Check().ok() && table.block_weight_grad(grad, context).ok(), what);
  for (int64_t g = 0; g < G; ++g) {
    for (int64_t m = 0; m < M; ++m) {
      for (int64_t n = 0; n < N; ++n) {
        double sum = 0, size = 0;
        for (int64_t k = 0; k < K; ++k) {
          const double product = BlockAt(x, G, m, g, k) * w.At(g * N + n, k);
          sum += product;
          size += std::fabs(product);
        }
        Expect(what + " y", BlockAt(y, G, m, g, n), sum, size, type);
      }
      for (int64_t k = 0; k < K; ++k) {
        double sum = 0, size = 0;
        for (int64_t n = 0; n < N; ++n) {
          const double product = BlockAt(dy, G, m, g, n) * w.At(g * N + n, k);
          sum += product;
          size += std::fabs(product);
        }
        Expect(what + " dx", BlockAt(dx, G, m, g, k), sum, size, type);
      }
    }
    for (int64_t i = 0; i < N * K; ++i) {
      double sum = 0, size = 0;
      for (int64_t m = 0; m < M; ++m) {
        const double product = BlockAt(dy, G, m, g, i / K) * BlockAt(x, G, m, g, i % K);
        sum += product;
        size += std::fabs(product);
      }
      Expect(what + " dw", dw.At(g * N * K + i), sum, size, DType::kF32);
    }
  }
}

void CheckNorms(const KernelTable& table, const RunContext& context, const char* kind, int64_t N,
                int64_t K) {
  const Weight w = MakeWeight(table, context, kind, N, K, DType::kF32);
  const std::string what = std::string(table.isa) + " weightNorms " + kind;
  Dense norms(1, N, DType::kF32);
  WeightNormsOp op;
  op.w = w.view;
  op.norms = norms.view;
  Report(op.Check().ok() && table.weight_norms(op, context).ok(), what);
  for (int64_t n = 0; n < N; ++n) {
    double sum = 0;
    for (int64_t k = 0; k < K; ++k) sum += w.At(n, k) * w.At(n, k);
    Expect(what, norms.At(n), sum, 0, DType::kF32);
  }
}

/// Squares against those of the whole matrix, in double; a row that is cancelled has the norm 0 or
/// nearly, never NaN.
void CheckFactoredNorm(const KernelTable& table, const RunContext& context, const char* kind,
                       int64_t N, int64_t K, int64_t r, DType factors, DType product) {
  const Weight w = MakeWeight(table, context, kind, N, K, product);
  const std::string what = std::string(table.isa) + " factoredNorm " + kind + " " +
                           DTypeName(factors) + " by " + DTypeName(product) + " r " +
                           std::to_string(r);
  // Values of so few bits that the product's dtype has them.
  Dense a(r, K, factors), b(N, r, factors);
  for (int64_t i = 0; i < r * K; ++i) {
    StoreElement(a.view.data, factors, i, std::floor(16 * Uniform() - 8) / 8);
  }
  b.Fill();
  Dense squares(1, N, DType::kF32), norms(1, N, DType::kF32);
  for (int64_t n = 0; n < N; ++n) {
    double sum = 0;
    for (int64_t k = 0; k < K; ++k) sum += w.At(n, k) * w.At(n, k);
    StoreElement(squares.view.data, DType::kF32, n, sum);
  }
  FactoredNormOp op;
  op.w = w.view;
  op.lora_a = a.view;
  op.lora_b = b.view;
  op.squares = squares.view;
  op.norms = norms.view;
  op.product = product;
  op.scaling = -0.75f;
  Report(op.Check().ok() && table.factored_norm(op, context).ok(), what);
  for (int64_t n = 0; n < N; ++n) {
    double exact = 0, size = squares.At(n);
    for (int64_t k = 0; k < K; ++k) {
      double delta = 0, magnitude = 0;
      for (int64_t j = 0; j < r; ++j) {
        delta += b.At(n, j) * a.At(j, k);
        magnitude += std::fabs(b.At(n, j) * a.At(j, k));
      }
      const double value = w.At(n, k) - 0.75 * delta;
      exact += value * value;
      size += 1.5 * std::fabs(w.At(n, k)) * magnitude + 0.5625 * magnitude * magnitude;
    }
    Expect(what, norms.At(n) * norms.At(n), exact, 2 * size, DType::kF32);
  }
}

/// A layer with its norms has the bits of both by themselves.
void CheckExpandWithNorms(const KernelTable& table, const RunContext& context, const char* kind,
                          int64_t M, int64_t N, int64_t K, int64_t r, DType factors, DType type,
                          Compute compute) {
  const Weight w = MakeWeight(table, context, kind, N, K, type);
  Dense x(M, K, type), h(M, r, DType::kF32), bias(1, N, DType::kF32);
  Dense a(r, K, factors), b(N, r, factors), squares(1, N, DType::kF32);
  for (Dense* one : {&x, &h, &bias, &a, &b, &squares}) one->Fill();
  LoraExpandOp op;
  op.x = x.view;
  op.w = w.view;
  op.bias = bias.view;
  op.h = h.view;
  op.lora_b = b.view;
  op.scaling = -0.75f;
  op.compute = compute;
  const std::string what = std::string(table.isa) + " loraExpandWithNorms " + kind + " " +
                           op.Describe() + " loraA " + DTypeName(factors);
  Dense y(M, N, type), expected(M, N, type);
  Dense norms(1, N, DType::kF32), expected_norms(1, N, DType::kF32);
  op.y = expected.view;
  bool ok = op.Check().ok() && table.lora_expand(op, context).ok();
  op.lora_a = a.view;
  op.squares = squares.view;
  op.norms = expected_norms.view;
  ok = ok && table.factored_norm(op.Norm(), context).ok();
  op.y = y.view;
  op.norms = norms.view;
  Report(ok && op.Check().ok() && table.lora_expand(op, context).ok(), what);
  Report(std::memcmp(y.view.data, expected.view.data, y.view.bytes()) == 0, what + ": y");
  Report(std::memcmp(norms.view.data, expected_norms.view.data, norms.view.bytes()) == 0,
         what + ": norms");
}

/// A weight quantised by tiles of rows, and its scales after that, has the bytes of one that was
/// quantised at once.
void CheckScales(const KernelTable& table, const RunContext& context, const char* format, int64_t N,
                 int64_t K, int64_t blocksize) {
  const std::string what = std::string(table.isa) + " quantizeScales " + format;
  Dense source(N, K, DType::kF32);
  source.Fill();
  Packed whole(format, N, K, blocksize, true), parts(format, N, K, blocksize, true);
  QuantizeOp op;
  op.w = source.view;
  op.out = whole.view;
  Report(table.quantize(op, context).ok(), what);
  Dense absmax(1, whole.view.blocks(), DType::kF32);
  QuantView single = parts.view;
  single.absmax_8bit = nullptr;
  single.absmax = static_cast<float*>(absmax.view.data);
  const int64_t step = single.RowStep();
  for (int64_t first = 0; first < N; first += step) {
    const int64_t count = std::min(step, N - first);
    op.w = source.view;
    op.w.data = static_cast<float*>(source.view.data) + first * K;
    op.w.rows = count;
    op.out = single.Rows(first, count);
    Report(op.Check().ok() && table.quantize(op, context).ok(), what);
  }
  QuantizeScalesOp scales;
  scales.absmax = absmax.view;
  scales.out = parts.view;
  Report(scales.Check().ok() && table.quantize_scales(scales, context).ok(), what);
  for (size_t i = 0; i < whole.parts.size(); ++i) {
    Report(whole.parts[i].Same(parts.parts[i]), what + " part " + std::to_string(i));
  }
  // And its rows decode as those of the whole.
  const int64_t nested_step = parts.view.RowStep();
  for (int64_t first = 0; first < N; first += nested_step) {
    const QuantView rows = parts.view.Rows(first, std::min(nested_step, N - first));
    bool same = true;
    for (int64_t i = 0; i < rows.elems(); ++i) {
      same = same && rows.Value(i) == whole.view.Value(first * K + i);
    }
    Report(same, what + " rows from " + std::to_string(first));
  }
}

}  // namespace

void CheckFeatures(const KernelTable& table, const RunContext& context) {
  const Shape maps[] = {{0, 5, 7, 3},    {3, 1, 1, 1},     {1, 260, 300, 1},   {7, 40, 33, 4},
                        {65, 5, 64, 40}, {300, 16, 16, 1}, {2, 3, 4099, 4000}, {2, 2500, 130, 3},
                        {4, 3000, 2, 1}, {600, 70, 40, 20}};
  int turn = 0;
  for (const Shape& s : maps) {
    for (int i = 0; i < 3; ++i) CheckMapFeatures(table, context, s.M, s.K, s.N, s.r, turn++);
  }
  // M, G, N, K as M, r, N, K.
  const Shape blocks[] = {{0, 3, 4, 2},   {3, 0, 4, 2},     {3, 4, 0, 2},    {1, 1, 1, 1},
                          {1, 2, 2, 5},   {17, 4, 4, 12},   {33, 8, 9, 3},   {65, 33, 32, 2},
                          {14, 7, 70, 3}, {5, 300, 290, 1}, {2, 3, 1030, 2}, {1100, 3, 5, 2},
                          {3, 2, 3, 700}};
  for (const Shape& s : blocks) {
    for (const DType type : kDTypes) {
      CheckBlocks(table, context, s.M, s.r, s.N, s.K, type, type);
      CheckBlocks(table, context, s.M, s.r, s.N, s.K, type, DType::kF32);
      CheckBlocks(table, context, s.M, s.r, s.N, s.K, DType::kF32, type);
    }
  }
  for (const char* kind : {"f32", "same", "nf4/64", "nf4/64d", "fp4/32", "int8/128", "int8/256d"}) {
    CheckNorms(table, context, kind, 7, 333);
    CheckNorms(table, context, kind, 40, 1024);
    CheckNorms(table, context, kind, 3, 1);
    // N, K, r: one task and several, one tile of ranks and several.
    const int64_t shapes[][3] = {
        {1, 1, 1}, {70, 333, 5}, {40, 1024, 40}, {130, 64, 16}, {9, 70, 0}};
    for (const auto& [N, K, r] : shapes) {
      for (const DType product : kDTypes) {
        CheckFactoredNorm(table, context, kind, N, K, r, DType::kF32, product);
        CheckFactoredNorm(table, context, kind, N, K, r, product, product);
      }
    }
  }
  // M, N, K, r: no rows of x, few and many, tiles that hold rows of both, several chunks, and more
  // rows than a last chunk takes along.
  const Shape layers[] = {{0, 40, 128, 5},   {1, 70, 333, 16},  {3, 40, 1024, 1},
                          {7, 200, 512, 40}, {30, 90, 256, 16}, {100, 300, 320, 13},
                          {505, 36, 64, 17}, {60, 64, 4096, 6}, {505, 36, 64, 70},
                          {900, 20, 32, 64}, {10, 36, 64, 300}};
  for (const char* kind : {"f32", "same", "nf4/64", "nf4/64d", "int8/128", "rowwise/64"}) {
    for (const Shape& s : layers) {
      for (const DType type : kDTypes) {
        const bool rowwise = std::strncmp(kind, "rowwise", 7) == 0;
        const bool codes = std::strncmp(kind, "nf4", 3) == 0 || rowwise;
        if (rowwise && s.K % 64 != 0) continue;  // whole blocks in a row
        for (const Compute compute : {Compute::kExact, Compute::kInt8}) {
          if (compute == Compute::kInt8 && (!codes || s.K % 64 != 0)) continue;
          CheckExpandWithNorms(table, context, kind, s.M, s.N, s.K, s.r, type, type, compute);
          CheckExpandWithNorms(table, context, kind, s.M, s.N, s.K, s.r, DType::kF32, type,
                               compute);
        }
      }
    }
  }
  CheckScales(table, context, "nf4", 40, 1024, 64);
  CheckScales(table, context, "nf4", 70, 100, 32);
  CheckScales(table, context, "int8", 50, 999, 64);
}

}  // namespace lowrank::cpu
