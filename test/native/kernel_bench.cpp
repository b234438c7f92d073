// GFLOP/s of the products and milliseconds of the formats.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <deque>
#include <functional>
#include <initializer_list>
#include <vector>

#include <unistd.h>

#include "test/native/kernel_operands.h"

namespace lowrank::cpu {
namespace {

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

double Median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

/// The bodies in turns, so that what slows the machine slows all of them; seconds of each call.
std::vector<std::vector<double>> InTurns(const std::vector<std::function<void()>>& bodies,
                                         double budget) {
  std::vector<std::vector<double>> seconds(bodies.size());
  const double start = Seconds();
  for (int i = 0; i < 4 || (i < 1000 && Seconds() - start < budget); ++i) {
    for (size_t body = 0; body < bodies.size(); ++body) {
      const double t = Seconds();
      bodies[body]();
      if (i != 0) seconds[body].push_back(Seconds() - t);
    }
  }
  return seconds;
}

/// By how much b takes longer than a, in percent: the median over the turns.
double MoreThan(const std::vector<double>& a, const std::vector<double>& b) {
  std::vector<double> ratios;
  for (size_t i = 0; i < a.size(); ++i) ratios.push_back(100 * (b[i] / a[i] - 1));
  return Median(ratios);
}

#if defined(__x86_64__)
// The ceilings: by GCC at -O3, whatever the rest is compiled with, so that the sums stay in
// registers. Clang knows no such attribute.
#if defined(__clang__)
#define CEILING(isa) __attribute__((target(isa)))
#else
#define CEILING(isa) __attribute__((target(isa), optimize("O3")))
#endif

/// GFLOP/s of one thread on independent fused multiply-adds: the ceiling of the f32 kernels.
CEILING("avx512f") double FmaPeak() {
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

/// GOP/s of one thread on independent dot products of bytes: the ceiling of int8 codes with VNNI.
CEILING("avx512f,avx512vnni") double DotPeak() {
  typedef int V __attribute__((vector_size(64)));
  double best = 0;
  for (int repeat = 0; repeat < 20; ++repeat) {
    V acc[16];
    for (V& v : acc) v = V{};
    V x = V{} + 0x01010101;
    const double start = Seconds();
    for (int i = 0; i < 500000; ++i) {
      for (V& v : acc) __asm__ volatile("vpdpbusd %1, %1, %0" : "+v"(v) : "v"(x));
    }
    best = std::max(best, 500000.0 * 16 * 128 / (Seconds() - start) * 1e-9);
  }
  return best;
}
#else
double FmaPeak() { return 0; }
double DotPeak() { return 0; }
#endif

/// Percent that a batch of 32 rows of 32 adapters takes longer than its base product or gradient.
struct GroupedBench {
  static constexpr int64_t kRows = 32, kRank = 16, kWidth = 4096;

  GroupedBench(const KernelTable& table, const RunContext& context, DType dtype, DType factors)
      : w(MakeWeight(table, context, "nf4/64", kWidth, kWidth, dtype)),
        x(kRows, kWidth, dtype),
        dy(kRows, kWidth, dtype),
        y(kRows, kWidth, dtype),
        dx(kRows, kWidth, dtype),
        h(1, kRows * kRank, DType::kF32) {
    x.Fill();
    dy.Fill();
    for (int32_t e = 0; e < kRows; ++e) {
      lora_a.emplace_back(kRank, kWidth, factors);
      lora_b.emplace_back(kWidth, kRank, factors);
      lora_a.back().Fill();
      lora_b.back().Fill();
      AdapterRows one;
      one.lora_a = lora_a.back().view;
      one.lora_b = lora_b.back().view;
      one.first = e;
      one.count = 1;
      one.h_begin = e * kRank;
      adapters.push_back(one);
      rows.push_back(e);
    }
    forward.table = {adapters.data(), kRows, rows.data(), rows.data(), kRows, 1, kRows * kRank};
    forward.x = x.view;
    forward.w = w.view;
    forward.h = h.view;
    forward.y = y.view;
    backward.table = forward.table;
    backward.dy = dy.view;
    backward.w = w.view;
    backward.dx = dx.view;
    backward.in_features = kWidth;
    base.x = x.view;
    base.w = w.view;
    base.y = y.view;
    input.dy = dy.view;
    input.w = w.view;
    input.dx = dx.view;
  }

  Weight w;
  Dense x, dy, y, dx, h;
  std::vector<Dense> lora_a, lora_b;
  std::vector<AdapterRows> adapters;
  std::vector<int32_t> rows;
  GroupedForwardOp forward;
  GroupedBackwardOp backward;
  MatmulOp base;
  MatmulInputGradOp input;
};

bool CanMeasurePeak() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512f") != 0;
#else
  return false;
#endif
}

bool CanMeasureDotPeak() {
#if defined(__x86_64__)
  return CanMeasurePeak() && __builtin_cpu_supports("avx512vnni") != 0;
#else
  return false;
#endif
}

/// How many weights of a layer calls go round: with few tokens twice the last cache, as the layers
/// of a model do.
size_t CopiesOf(const WeightView& w, int64_t tokens) {
  if (tokens > 64) return 1;
  const long cache_bytes = sysconf(_SC_LEVEL3_CACHE_SIZE);
  const double wanted_bytes = 2.0 * static_cast<double>(cache_bytes > 0 ? cache_bytes : 32 << 20);
  const size_t bytes = w.dense.present
                           ? static_cast<size_t>(w.dense.elems()) * DTypeBytes(w.dense.dtype)
                           : w.quant.code_bytes();
  return static_cast<size_t>(std::min(256.0, 1 + wanted_bytes / static_cast<double>(bytes)));
}

}  // namespace

void Bench(const KernelTable& table, int threads, double budget, const char* which) {
  g_cpu_time = threads == 1;
  ThreadPool pool(threads);
  const RunContext context = {&pool, nullptr};
  struct Case {
    Shape shape;
    DType dtype;
    const char* kind;
  };
  std::vector<Case> cases = {
      {{1024, 4096, 4096, 16}, DType::kF32, "nf4/64"},
      {{1024, 4096, 4096, 16}, DType::kBF16, "nf4/64"},
      {{1024, 4096, 4096, 16}, DType::kF32, "f32"},
      {{1024, 256, 256, 8}, DType::kF32, "nf4/64"},
      {{512, 512, 192, 8}, DType::kF32, "nf4/64"},
      {{2048, 192, 512, 8}, DType::kF32, "nf4/64"},
      {{1024, 1024, 172, 8}, DType::kF32, "nf4/64"},
      {{1, 4096, 4096, 16}, DType::kF32, "nf4/64"},
      {{4, 4096, 4096, 16}, DType::kF32, "nf4/64"},
      {{16, 4096, 4096, 16}, DType::kF32, "nf4/64"},
      {{1, 4096, 4096, 16}, DType::kBF16, "nf4/64"},
      {{2, 4096, 4096, 16}, DType::kBF16, "nf4/64"},
      {{3, 4096, 4096, 16}, DType::kBF16, "nf4/64"},
      {{4, 4096, 4096, 16}, DType::kBF16, "nf4/64"},
      {{16, 4096, 4096, 16}, DType::kBF16, "nf4/64"},
      {{256, 4096, 4096, 16}, DType::kBF16, "nf4/64"},
      {{64, 4096, 4096, 16}, DType::kF32, "nf4/64"},
      {{64, 4096, 4096, 16}, DType::kBF16, "nf4/64"},
      {{256, 4096, 4096, 16}, DType::kF32, "nf4/64"},
      {{256, 4096, 4096, 16}, DType::kF32, "f32"},
      {{256, 4096, 4096, 16}, DType::kBF16, "same"},
      {{1024, 4096, 4096, 16}, DType::kBF16, "same"},
  };
  const size_t listed = cases.size();
  int64_t only = which == nullptr ? -1 : std::atoll(which);
  double dropout = 0;
  long long rows, n, k;
  if (which != nullptr && std::sscanf(which, "%lldx%lldx%lld", &rows, &n, &k) == 3) {
    // 16x4096x4096,bf16,w=int8/256: also what x is, and w. With ,p=0.1 before w= the adapter too,
    // with dropout beside without.
    const bool bf16 = std::strstr(which, ",bf16") != nullptr;
    const bool f16 = std::strstr(which, ",f16") != nullptr;
    const char* kind = std::strstr(which, ",w=");
    const char* p = std::strstr(which, ",p=");
    if (p != nullptr) dropout = std::atof(p + 3);
    cases.push_back({{rows, n, k, 16},
                     bf16  ? DType::kBF16
                     : f16 ? DType::kF16
                           : DType::kF32,
                     kind != nullptr ? kind + 3 : "nf4/64"});
    only = static_cast<int64_t>(listed);
  }
  if (CanMeasurePeak()) {
    std::printf("measured f32 multiply-add peak: %.1f GFLOP/s a thread\n", FmaPeak());
  }
  if (CanMeasureDotPeak()) {
    std::printf("measured int8 dot product peak: %.1f GOP/s a thread\n", DotPeak());
  }
  for (const Case& c : cases) {
    if (only >= 0 && only != &c - cases.data()) continue;
    const Shape& s = c.shape;
    std::deque<Weight> weights;
    do {
      weights.push_back(MakeWeight(table, context, c.kind, s.N, s.K, c.dtype));
    } while (weights.size() < CopiesOf(weights[0].view, s.M));
    size_t turn = 0;
    const auto next = [&] { return weights[++turn % weights.size()].view; };
    LoraLayer layer(s, c.dtype, next());
    LoraForwardOp& f = layer.forward;
    LoraBackwardOp& g = layer.backward;
    MatmulOp base;
    base.x = f.x;
    base.w = f.w;
    base.y = f.y;
    const double flops =
        2.0 * static_cast<double>(s.M) * static_cast<double>(s.N) * static_cast<double>(s.K);
    MatmulInputGradOp input;
    input.dy = g.dy;
    input.w = g.w;
    input.dx = g.dx;
    const auto print = [&](const char* what, const std::vector<std::vector<double>>& seconds,
                           std::initializer_list<const char*> names) {
      std::printf("%-12s %s %s %lld x %lld x %lld r%lld:", table.isa, DTypeName(c.dtype), what,
                  static_cast<long long>(s.M), static_cast<long long>(s.N),
                  static_cast<long long>(s.K), static_cast<long long>(s.r));
      const char* const* name = names.begin();
      for (size_t i = 0; i < seconds.size(); ++i) {
        const double t = Median(seconds[i]);
        std::printf("  %s %.3f ms %.1f", name[i], t * 1e3, flops / t * 1e-9);
        if (i % 2 == 1) std::printf(" (%+.1f %%)", MoreThan(seconds[i - 1], seconds[i]));
      }
      std::printf("  G/s\n");
    };
    const std::vector<std::function<void()>> bodies = {
        [&] { base.w = next(), table.matmul(base, context); },
        [&] { f.w = next(), table.lora_forward(f, context); },
        [&] { input.w = next(), table.matmul_input_grad(input, context); },
        [&] { g.w = next(), table.lora_backward(g, context); }};
    print(c.kind, InTurns(bodies, budget), {"product", "forward", "dx", "backward"});
    if (dropout > 0) {
      const auto with = [&](double p, const std::function<void()>& body) {
        return [&, p, body] { f.dropout.p = g.dropout.p = p, body(); };
      };
      print("with dropout",
            InTurns({with(0, bodies[1]), with(dropout, bodies[1]), with(0, bodies[3]),
                     with(dropout, bodies[3])},
                    budget),
            {"forward", "dropped", "backward", "dropped"});
      f.dropout.p = g.dropout.p = 0;
    }
    base.compute = Compute::kInt8;
    f.compute = Compute::kInt8;
    if (base.Check().ok()) {
      print("int8 codes", InTurns({bodies[0], bodies[1]}, budget), {"product", "forward"});
    }
    std::fflush(stdout);
  }
  if (cases.size() != listed) return;
  constexpr DType kTypes[] = {DType::kF32, DType::kBF16};
  int64_t grouped = static_cast<int64_t>(listed);
  for (const DType dtype : kTypes) {
    for (const DType factors : kTypes) {
      if (only >= 0 && only != grouped++) continue;
      GroupedBench b(table, context, dtype, factors);
      const std::vector<std::vector<double>> seconds =
          InTurns({[&] { table.matmul(b.base, context); },
                   [&] { table.grouped_forward(b.forward, context); },
                   [&] { table.matmul_input_grad(b.input, context); },
                   [&] { table.grouped_backward(b.backward, context); }},
                  budget);
      std::printf(
          "%-12s %s 32 rows of 32 adapters in %s: product %.3f ms, with them %+.1f %%; "
          "dx %.3f ms, with them %+.1f %%\n",
          table.isa, DTypeName(dtype), DTypeName(factors), Median(seconds[0]) * 1e3,
          MoreThan(seconds[0], seconds[1]), Median(seconds[2]) * 1e3,
          MoreThan(seconds[2], seconds[3]));
    }
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

}  // namespace lowrank::cpu
