/// cuda/wgmma/gemm_wgmma_sm90a.cu on the emulator against the formula in float64: formats, ragged
/// shapes, LoRA in every dtype, alignments, panels, both directions; under every schedule, and with
/// findings taken as failures.
///
///   hopper_kernel_check [seeds] [filter] [counters]
///
/// So many random schedules follow the four fixed ones; a negative number leaves out as many of
/// these. With `counters` (instrumented kernels) the cost of each source line follows.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <memory>

#include "native/core/tensor_view.h"
#include "native/cuda/plans/products/plan_gemm_wgmma.h"
#include "native/host_device/philox.h"
#include "test/native/hopper_grads.h"
#include "test/native/hopper_kernel_cases.h"
#include "test/native/hopper_matrix.h"

namespace lowrank::test {
namespace {

int g_failures = 0;

/// A quantised weight with random codes and scales.
struct Quantised {
  std::vector<std::unique_ptr<DeviceArray<unsigned char>>> parts;
  QuantView view;

  template <typename T>
  T* Part(const std::vector<T>& values, size_t misalign = 0) {
    std::vector<unsigned char> bytes(values.size() * sizeof(T));
    std::memcpy(bytes.data(), values.data(), bytes.size());
    parts.push_back(std::make_unique<DeviceArray<unsigned char>>(bytes, misalign));
    return reinterpret_cast<T*>(parts.back()->data());
  }

  Quantised(const Case& c, std::mt19937_64* rng) {
    view.format = FindFormat(c.format);
    view.rows = c.transposed() ? c.K : c.N;
    view.cols = c.transposed() ? c.N : c.K;
    view.blocksize = c.blocksize;
    std::uniform_int_distribution<int> byte(0, 255);
    std::uniform_real_distribution<float> positive(0.05f, 0.3f);
    std::vector<uint8_t> codes(view.code_bytes());
    for (uint8_t& code : codes) code = static_cast<uint8_t>(byte(*rng));
    view.codes = Part(codes, c.misalign);
    view.codebook = Part(
        std::vector<float>(view.format->codebook, view.format->codebook + view.format->levels));
    const size_t blocks = static_cast<size_t>(view.blocks());
    if (!c.nested) {
      std::vector<float> absmax(blocks);
      for (float& scale : absmax) scale = positive(*rng);
      view.absmax = Part(absmax);
      return;
    }
    std::vector<uint8_t> absmax(blocks);
    for (uint8_t& code : absmax) code = static_cast<uint8_t>(byte(*rng));
    view.absmax_8bit = Part(absmax);
    view.absmax_codebook = Part(std::vector<float>(DynamicMap8bit(), DynamicMap8bit() + 256));
    std::vector<float> nested(static_cast<size_t>(view.nested_blocks()));
    for (float& scale : nested) scale = positive(*rng) * 0.3f;
    view.nested_absmax = Part(nested);
    view.absmax_offset = Part(std::vector<float>{0.17f});
  }
};

struct Problem {
  explicit Problem(const Case& c) : spec(c) {
    std::mt19937_64 rng(7);
    operands.x = Add(c.M, c.K, c.dtype, &rng, 1, c.misalign);
    if (c.format != nullptr) {
      quantised = std::make_unique<Quantised>(c, &rng);
      operands.w.quant = quantised->view;
      w.resize(static_cast<size_t>(c.N * c.K));
      for (size_t i = 0; i < w.size(); ++i) {
        w[i] =
            static_cast<double>(RoundTo(c.dtype, quantised->view.Value(static_cast<int64_t>(i))));
      }
    } else {
      operands.w.dense = AddFactor(c.K, c.dense, &rng, 0.1, c.misalign);
      w = matrices.back()->values;
      for (double& value : w)
        value = static_cast<double>(RoundTo(c.dtype, static_cast<float>(value)));
    }
    if (c.bias) operands.bias = Add(1, c.N, DType::kF32, &rng, 1);
    if (c.bias) bias = matrices.back()->values;
    if (c.r > 0) {
      const TensorView view = Add(c.M, c.r, DType::kF32, &rng, 1);
      operands.h = static_cast<float*>(view.data);
      h_matrix = matrices.back().get();
      h = h_matrix->values;
      operands.lora_factor = AddFactor(c.r, c.lora, &rng, 0.3);
      b_matrix = matrices.back().get();
      lora_b = b_matrix->values;
      operands.scaling = 1.7f;
      if (c.lora_bias) operands.lora_bias = Add(1, c.N, c.lora, &rng, 1);
      if (c.lora_bias) lora_bias = matrices.back()->values;
      AddShrink(&rng);
    }
    if (c.has_grads()) {
      grads =
          std::make_unique<GradProblem>(TransposedProduct(), *matrices.front(), operands.h, &rng);
    }
    if (std::strstr(c.name, "special") != nullptr) Poke();
    operands.w_transposed = c.transposed();
    operands.accumulate = c.direction == Direction::kAddedInputGrad;
    operands.y = Add(c.M, c.N, c.dtype, operands.accumulate ? &rng : nullptr, 1, c.misalign);
    held = matrices.back()->device->Read();
  }

  /// [N, cols], or [cols, N] of an input gradient.
  TensorView AddFactor(int64_t cols, DType dtype, std::mt19937_64* rng, double scale,
                       size_t misalign = 0) {
    return spec.transposed() ? Add(cols, spec.N, dtype, rng, scale, misalign)
                             : Add(spec.N, cols, dtype, rng, scale, misalign);
  }

  cuda::GemmMmaOperands TransposedProduct() const {
    cuda::GemmMmaOperands product = operands;
    product.w_transposed = true;
    return product;
  }

  void AddShrink(std::mt19937_64* rng) {
    if (spec.computes_h()) {
      operands.shrink_factor = spec.transposed() ? Add(spec.K, spec.r, spec.lora_a, rng, 1)
                                                 : Add(spec.r, spec.K, spec.lora_a, rng, 1);
      operands.shrink_scaling = spec.transposed() ? 1.3f : 1.0f;
      a_matrix = matrices.back().get();
    }
    if (spec.shrink == Shrink::kGiven || spec.shrink == Shrink::kPlain) return;
    operands.dropout.p = 0.3;
    operands.dropout.seed = 0x123456789abcdefu;
    if (spec.shrink == Shrink::kPhilox) return;
    const int64_t cols = spec.transposed() ? spec.N : spec.K;
    operands.dropout.mask = Add(spec.M, cols, spec.dtype, rng, 1);
    mask = matrices.back().get();
    for (int64_t i = 0; i < spec.M * cols; i += 3) mask->Set(0, i, i % 2 == 0 ? 0.0f : -0.0f);
  }

  bool Kept(int64_t i) const {
    if (mask != nullptr) return mask->values[static_cast<size_t>(i)] != 0;
    return spec.shrink != Shrink::kPhilox ||
           DropoutKeeps(operands.dropout.seed, static_cast<uint64_t>(i),
                        DropoutThreshold(operands.dropout.p));
  }

  /// What the kernel has made of x: h as it stands now, held to the formula.
  void CheckH() {
    const std::vector<double>& x = matrices.front()->values;
    const std::vector<double>& a = a_matrix->values;
    const bool gated = operands.dropout.active() && !spec.transposed();
    const double scale =
        static_cast<double>(operands.shrink_scaling) / (gated ? 1 - operands.dropout.p : 1);
    // Of sums of K products on tensor cores (docs/gpu-design.md).
    const double promised = (16 + 1.25 * static_cast<double>(spec.K)) * 0x1p-24;
    std::vector<float> computed(h.size());
    std::memcpy(computed.data(), h_matrix->device->data(), h.size() * 4);
    size_t bad = 0;
    for (int64_t m = 0; m < spec.M; ++m) {
      for (int64_t j = 0; j < spec.r; ++j) {
        double sum = 0;
        double magnitude = 0;
        for (int64_t k = 0; k < spec.K; ++k) {
          if (gated && !Kept(m * spec.K + k)) continue;
          const double term =
              scale * x[static_cast<size_t>(m * spec.K + k)] *
              a[static_cast<size_t>(spec.transposed() ? k * spec.r + j : j * spec.K + k)];
          sum += term;
          magnitude += std::fabs(term);
        }
        const auto i = static_cast<size_t>(m * spec.r + j);
        h[i] = static_cast<double>(computed[i]);
        if (!std::isfinite(sum)) {
          bad += std::isnan(sum) ? !std::isnan(h[i]) : h[i] != sum;
        } else if (!(std::fabs(h[i] - sum) <= promised * magnitude + 0x1p-126)) {
          ++bad;
        }
      }
    }
    if (bad == 0) return;
    ++g_failures;
    std::printf("FAIL %s: %zu of %zu elements of h out of bounds\n", spec.name, bad, h.size());
  }

  /// Infinities, NaN, zeros and values of few bits, in x and where the pieces of h and lora_b must
  /// not make a NaN of an infinity.
  void Poke() {
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
    Matrix& x = *matrices.front();
    x.Set(1, 0, kInfinity);
    x.Set(2, spec.K - 1, kNaN);
    x.Set(3, 5, -kInfinity);
    if (grads != nullptr) grads->Poke();
    if (a_matrix != nullptr) {
      a_matrix->Set(0, 0, 0.0f);  // with x(1, 0): NaN
      a_matrix->Set(1, 7, kInfinity);
      a_matrix->Set(1, 40, -2.0f);
      x.Set(30, 40, kInfinity);
      x.Set(31, 41, 0.0f);
      return;
    }
    const float rows[8] = {kInfinity, -kInfinity, kNaN, 0.0f, 1.0f, -3.0f, 1e-30f, -0.0f};
    for (int64_t i = 0; i < 8; ++i) h_matrix->Set(20 + i, 0, rows[i]);
    const float columns[6] = {kInfinity, -kInfinity, kNaN, 0.0f, 1.0f, -2.0f};
    for (int64_t i = 0; i < 6; ++i) {
      if (spec.transposed()) {
        b_matrix->Set(0, 30 + i, columns[i]);
      } else {
        b_matrix->Set(30 + i, 0, columns[i]);
      }
    }
    // A NaN whose payload is in the low bits alone.
    const uint32_t low_nan = 0x7f800001u;
    std::memcpy(h_matrix->device->data() + 4 * static_cast<size_t>(40 * spec.r), &low_nan, 4);
    h_matrix->values[static_cast<size_t>(40 * spec.r)] = static_cast<double>(kNaN);
    h = h_matrix->values;
    lora_b = b_matrix->values;
  }

  TensorView Add(int64_t rows, int64_t cols, DType dtype, std::mt19937_64* rng, double scale,
                 size_t misalign = 0) {
    matrices.push_back(std::make_unique<Matrix>(rows, cols, dtype, rng, scale, misalign));
    return matrices.back()->view;
  }

  /// y and Σ|a · b| by the formula.
  void Expect() {
    const std::vector<double>& x = matrices.front()->values;
    const auto scaling = static_cast<double>(operands.scaling);
    for (int64_t m = 0; m < spec.M; ++m) {
      for (int64_t n = 0; n < spec.N; ++n) {
        double sum = 0;
        double magnitude = 0;
        const auto add = [&](double term) {
          sum += term;
          magnitude += std::fabs(term);
        };
        for (int64_t k = 0; k < spec.K; ++k) {
          add(x[static_cast<size_t>(m * spec.K + k)] * w[spec.Index(n, k, spec.K)]);
        }
        const bool gated = spec.transposed() && operands.dropout.active();
        const double factor = gated ? scaling / (1 - operands.dropout.p) : scaling;
        const int64_t r = gated && !Kept(m * spec.N + n) ? 0 : spec.r;
        for (int64_t i = 0; i < r; ++i) {
          add(factor * h[static_cast<size_t>(m * spec.r + i)] * lora_b[spec.Index(n, i, spec.r)]);
        }
        if (operands.accumulate) {
          add(matrices.back()->values[static_cast<size_t>(m * spec.N + n)]);
        }
        if (spec.bias) add(bias[static_cast<size_t>(n)]);
        if (spec.lora_bias && spec.r > 0) add(scaling * lora_bias[static_cast<size_t>(n)]);
        expected.push_back(sum);
        magnitudes.push_back(magnitude);
      }
    }
  }

  /// Runs the plan; the bits of y, and of h where it is computed.
  std::vector<unsigned char> Run(std::string* error) {
    cuda::DeviceLimits device;
    device.sm = 90;
    device.sm_count = spec.sm_count;
    device.shared_bytes_per_block = 232448;
    device.l2_bytes = spec.l2_bytes;
    std::vector<cuda::WgmmaGrad>* const beside = grads == nullptr ? nullptr : grads->grads();
    cuda::Workspace measure;
    cuda::Plan ignored;
    Status status = cuda::PlanGemmWgmma(operands, device, &measure, &ignored, beside);
    DeviceArray<unsigned char> memory(measure.bytes());
    cuda::Workspace workspace(memory.data());
    cuda::Plan plan;
    if (status.ok()) status = cuda::PlanGemmWgmma(operands, device, &workspace, &plan, beside);
    if (!status.ok()) {
      *error = status.message();
      return {};
    }
    launches = plan.steps.size();
    if (operands.accumulate) {
      emu::CopyMemory(operands.y.data, held.data(), held.size());
    } else {
      emu::SetMemory(operands.y.data, 0xff, operands.y.bytes());
    }
    if (a_matrix != nullptr) emu::SetMemory(operands.h, 0xff, h.size() * 4);
    for (const cuda::LaunchStep& step : plan.steps) {
      if (!RunStep(step, error)) return {};
    }
    std::vector<unsigned char> results = matrices.back()->device->Read();
    if (a_matrix != nullptr) {
      const std::vector<unsigned char> of_h = h_matrix->device->Read();
      results.insert(results.end(), of_h.begin(), of_h.end());
    }
    if (grads != nullptr) {
      const std::vector<unsigned char> of_grads = grads->Read();
      results.insert(results.end(), of_grads.begin(), of_grads.end());
    }
    return results;
  }

  void CheckGrads() {
    const size_t bad = grads->Check(h, [&](int64_t i) { return Kept(i); });
    if (bad == 0) return;
    ++g_failures;
    std::printf("FAIL %s: %zu elements of the gradients out of bounds\n", spec.name, bad);
  }

  void Check(const std::vector<unsigned char>& y, const std::string& name) {
    double worst = 0;
    size_t bad = 0;
    for (size_t i = 0; i < expected.size(); ++i) {
      const auto value = static_cast<double>(ToFloatAs(spec.dtype, y.data(), i));
      // One rounding to T, and of f16's denormals.
      const double unit = spec.dtype == DType::kBF16 ? 0x1p-8 : 0x1p-11;
      const double tolerance =
          std::fabs(expected[i]) * unit * 1.001 + 16 * 0x1p-24 * magnitudes[i] + 0x1p-25;
      if (!std::isfinite(expected[i])) {
        const bool same = std::isnan(expected[i]) ? std::isnan(value) : value == expected[i];
        if (!same) {
          ++bad;
          worst = std::numeric_limits<double>::infinity();
        }
        continue;
      }
      const double error = std::fabs(value - expected[i]);
      if (!(error <= tolerance)) ++bad;
      worst = std::max(worst, error / tolerance);
    }
    if (bad == 0) return;
    ++g_failures;
    std::printf("FAIL %s: %zu of %zu elements out of bounds, worst %.3g times the bound\n",
                name.c_str(), bad, expected.size(), worst);
  }

  const Case& spec;
  cuda::GemmMmaOperands operands;
  std::vector<std::unique_ptr<Matrix>> matrices;
  std::unique_ptr<Quantised> quantised;
  Matrix* h_matrix = nullptr;
  Matrix* b_matrix = nullptr;
  Matrix* a_matrix = nullptr;  // null: h is given
  Matrix* mask = nullptr;
  std::unique_ptr<GradProblem> grads;
  std::vector<unsigned char> held;  // of y, before
  std::vector<double> w, bias, h, lora_b, lora_bias, expected, magnitudes;
  size_t launches = 0;
};

const Schedule kSchedules[] = {
    {emu::Order::kForward, 1, emu::Copies::kLate, "forward late"},
    {emu::Order::kForward, 1, emu::Copies::kEarly, "forward early"},
    {emu::Order::kReverse, 1, emu::Copies::kLate, "reverse late"},
    {emu::Order::kReverse, 1, emu::Copies::kEarly, "reverse early"},
};

void RunCase(const Case& spec, int seeds) {
  Problem problem(spec);
  const Schedule* const last = std::end(kSchedules) + std::min(seeds, 0);
  std::vector<Schedule> schedules(std::begin(kSchedules), last);
  for (int seed = 1; seed <= seeds; ++seed) {
    schedules.push_back({emu::Order::kRandom, static_cast<uint64_t>(seed),
                         seed % 2 == 0 ? emu::Copies::kEarly : emu::Copies::kLate, "random"});
  }
  std::vector<unsigned char> first;
  for (const Schedule& schedule : schedules) {
    const std::string name =
        std::string(spec.name) + ", " + schedule.name + " " + std::to_string(schedule.seed);
    emu::Options options = emu::CurrentOptions();
    options.order = schedule.order;
    options.seed = schedule.seed;
    options.copies = schedule.copies;
    emu::SetOptions(options);
    emu::ClearFindings();
    std::string error;
    const std::vector<unsigned char> y = problem.Run(&error);
    if (!error.empty() || emu::FindingCount() != 0) {
      ++g_failures;
      std::printf("FAIL %s: %s, %zu findings\n", name.c_str(), error.c_str(), emu::FindingCount());
      continue;
    }
    if (first.empty()) {
      first = y;
      if (problem.a_matrix != nullptr) problem.CheckH();
      if (problem.grads != nullptr) problem.CheckGrads();
      problem.Expect();
    }
    problem.Check(y, name);
    if (y != first) {
      ++g_failures;
      std::printf("FAIL %s: other bits than in the first schedule\n", name.c_str());
    }
  }
  uint64_t hash = 1469598103934665603u;
  for (const unsigned char byte : first) hash = (hash ^ byte) * 1099511628211u;
  std::printf("%-18s %zu launches, %zu schedules, y %016llx\n", spec.name, problem.launches,
              schedules.size(), static_cast<unsigned long long>(hash));
}

void PrintCounters() {
  std::printf("%-34s %-16s %4s %9s %9s %9s %6s\n", "line", "access", "B", "requests", "cost",
              "ideal", "ratio");
  for (const emu::LineCount& line : emu::LineCounts()) {
    const size_t slash = line.where.file.rfind('/');
    const std::string where =
        line.where.file.substr(slash + 1) + ":" + std::to_string(line.where.line);
    std::printf(
        "%-34s %-16s %4u %9llu %9llu %9llu %6.2f\n", where.c_str(), emu::ToString(line.kind),
        line.bytes_per_lane, static_cast<unsigned long long>(line.requests),
        static_cast<unsigned long long>(line.cost), static_cast<unsigned long long>(line.ideal),
        static_cast<double>(line.cost) / static_cast<double>(std::max<uint64_t>(line.ideal, 1)));
  }
  for (const emu::NamedCount& count : emu::NamedCounts()) {
    std::printf("%-40s %-28s %12llu\n", count.kernel.c_str(), count.name.c_str(),
                static_cast<unsigned long long>(count.value));
  }
}

}  // namespace
}  // namespace lowrank::test

int main(int argc, char** argv) {
  using namespace lowrank;
  std::string error;
  if (!emu::OptionsFromEnvironment(&error)) {
    std::printf("%s\n", error.c_str());
    return 2;
  }
  if (argc > 3) {
    emu::Options options = emu::CurrentOptions();
    options.counters = true;
    emu::SetOptions(options);
  }
  const int seeds = argc > 1 ? std::max(std::atoi(argv[1]), -3) : 4;
  for (const test::Case& spec : test::kCases) {
    if (argc > 2 && std::strstr(spec.name, argv[2]) == nullptr) continue;
    test::RunCase(spec, seeds);
  }
  for (const test::Case& spec : test::kShrinkCases) {
    if (argc > 2 && std::strstr(spec.name, argv[2]) == nullptr) continue;
    test::RunCase(spec, seeds);
  }
  for (const test::Case& spec : test::kWideCases) {
    if (argc > 2 && std::strstr(spec.name, argv[2]) == nullptr) continue;
    test::RunCase(spec, seeds);
  }
  for (const test::Case& spec : test::kGradCases) {
    if (argc > 2 && std::strstr(spec.name, argv[2]) == nullptr) continue;
    test::RunCase(spec, seeds);
  }
  for (const test::Case& spec : test::kBesideCases) {
    if (argc > 2 && std::strstr(spec.name, argv[2]) == nullptr) continue;
    test::RunCase(spec, seeds);
  }
  for (const test::Case& spec : test::kSpecialCases) {
    if (argc > 2 && std::strstr(spec.name, argv[2]) == nullptr) continue;
    test::RunCase(spec, std::min(seeds, 1));
  }
  if (argc > 3) test::PrintCounters();
  std::printf(test::g_failures == 0 ? "PASS\n" : "FAIL: %d\n", test::g_failures);
  return test::g_failures == 0 ? 0 : 1;
}
