/// The products of few tokens on the emulator against the formula in float64: formats, token
/// counts, ragged N and K, splits of K, LoRA operands of every type, special values; under every
/// schedule, with equal bits between them, and with those of planes where a cluster adds. Findings
/// of the check mode are failures.
///
///   cuda_small_m_check [random seeds, default 2] [name of the only case]
#include <cinttypes>

#include "native/cuda/plans/products/plan_matmul_small_m.h"
#include "test/native/cuda_device.h"
#include "test/native/exact_matrix.h"

namespace lowrank::cuda {
namespace {

using cpu::Dense;
using cpu::Exact;
using cpu::g_checks;
using cpu::g_failures;
using cpu::Report;
using cpu::Weight;

struct Case {
  const char* name;
  int64_t M, N, K, r;
  DType dtype;
  const char* weight;  // "same" or "<format>/<blocksize>[d]"
  bool bias;
  DType lora;  // of lora_b and lora_bias, where r > 0
  bool lora_bias;
  int sm_count;  // few: K is not split
  int sm =
      80;  // 90: slices in clusters; over 32 tokens and 4 bits by wgmma, where blocks have work
  const char* kernel = nullptr;  // that the plan must launch, without dtype
  uint32_t splits = 1;
};

constexpr DType kF32 = DType::kF32;
constexpr DType kB = DType::kBF16;
constexpr DType kH = DType::kF16;

constexpr char kSmall[] = "matmul_small_m_wgmma_";
constexpr char kSmall128[] = "matmul_small_m_wgmma128_";
constexpr char kWide[] = "matmul_wide_m_wgmma";
constexpr char kCluster[] = "matmul_small_m_cluster_";
constexpr char kPlain[] = "matmul_small_m_4bit";

const Case kCases[] = {
    {"one token", 1, 64, 1024, 0, kB, "nf4/64", false, kF32, false, 1},
    {"one token, split", 1, 64, 4096, 0, kB, "nf4/64", true, kF32, false, 108},
    {"ragged N and K", 1, 37, 1120, 0, kB, "nf4/64", true, kF32, false, 1},
    {"K below a chunk", 3, 5, 32, 0, kH, "fp4/32", false, kF32, false, 1},
    {"K one chunk over a step", 8, 33, 1056, 3, kB, "nf4/64d", true, kF32, true, 1},
    {"nested", 5, 64, 2080, 8, kH, "nf4/64d", false, kH, false, 108},
    {"blocks over row ends", 7, 40, 1120, 16, kB, "nf4/256", true, kB, true, 108},
    {"blocks longer than rows", 2, 24, 96, 1, kB, "fp4/4096", true, kF32, true, 1},
    {"nine tokens", 9, 70, 544, 0, kB, "nf4/64", false, kF32, false, 1},
    {"sixteen", 16, 64, 1024, 16, kH, "nf4/32", true, kH, true, 108},
    {"seventeen", 17, 130, 352, 5, kB, "nf4/64d", true, kF32, true, 1},
    {"thirty-two", 32, 128, 768, 64, kB, "fp4/128", false, kB, false, 108},
    {"thirty-three", 33, 129, 288, 8, kH, "nf4/64", true, kF32, true, 1},
    {"sixty-four", 64, 128, 1056, 16, kB, "nf4/64", true, kB, true, 108},
    {"wgmma", 64, 512, 384, 16, kB, "nf4/64", true, kB, true, 2, 90, kSmall, 1},
    {"wgmma, ragged", 33, 300, 1120, 8, kH, "nf4/64", true, kF32, true, 4, 90},
    {"wgmma, nested", 50, 250, 2080, 3, kB, "nf4/64d", true, kF32, true, 8, 90},
    {"wgmma, clusters of 2", 64, 290, 288, 0, kH, "fp4/32", false, kF32, false, 5, 90},
    {"wgmma, long blocks", 41, 257, 544, 0, kB, "nf4/4096", true, kF32, false, 8, 90},
    {"wgmma, two tiles", 100, 290, 544, 5, kB, "nf4/64d", true, kF32, true, 4, 90, kSmall, 1},
    {"wgmma, tiles of clusters", 130, 250, 2016, 8, kH, "nf4/64", true, kH, true, 6, 90, kSmall, 2},
    {"128 rows", 64, 512, 384, 16, kB, "nf4/64", true, kB, true, 4, 90, kSmall128, 1},
    {"128 rows, clusters of 2", 33, 250, 1120, 8, kH, "nf4/64d", true, kF32, true, 4, 90, kSmall128,
     2},
    {"128 rows, clusters of 4", 50, 197, 2080, 3, kB, "fp4/32", false, kF32, true, 8, 90, kSmall128,
     4},
    {"128 rows, clusters of 8", 64, 100, 1984, 0, kH, "nf4/4096", true, kF32, false, 8, 90,
     kSmall128, 8},
    {"wide", 128, 512, 384, 16, kB, "nf4/64", true, kB, true, 2, 90, kWide, 1},
    {"wide, short blocks", 128, 290, 288, 0, kH, "fp4/32", false, kF32, false, 2, 90, kWide, 1},
    {"wide, two tiles", 193, 300, 1120, 8, kH, "nf4/64", true, kF32, true, 4, 90, kWide, 1},
    {"wide, long blocks", 129, 257, 544, 0, kB, "nf4/4096", true, kF32, false, 4, 90, kWide, 1},
    {"wide, one step", 70, 250, 32, 3, kB, "nf4/64d", false, kF32, true, 1, 90, kWide, 1},
    // Where the scales of a slice do not fit the kernel of 64 tokens.
    {"wide, clusters of 2", 100, 290, 9248, 0, kH, "nf4/64", true, kF32, false, 4, 90, kWide, 2},
    {"wide, clusters of 4", 127, 250, 9248, 16, kB, "nf4/32d", true, kF32, true, 4, 90, kWide, 4},
    {"wide, clusters of 8", 65, 200, 18464, 3, kB, "fp4/32", true, kH, true, 8, 90, kWide, 8},
    // Slices in a cluster, of shares of rows that are not all whole; the last slices end in a step.
    {"cluster of 2", 1, 70, 1056, 0, kB, "nf4/64", true, kF32, false, 8, 90, kCluster, 2},
    {"cluster of 3", 5, 64, 2080, 1, kB, "fp4/4096", false, kF32, true, 4, 90, kCluster, 3},
    {"cluster of 3 on Blackwell", 5, 64, 2080, 1, kB, "fp4/4096", false, kF32, true, 4, 100,
     kCluster, 3},
    {"cluster of 8", 8, 37, 7200, 16, kH, "nf4/64d", true, kF32, true, 8, 90, kCluster, 8},
    {"cluster, bytes", 3, 50, 1552, 3, kH, "int8/64d", true, kH, false, 8, 90, kCluster, 4},
    {"cluster, dense", 1, 40, 2056, 0, kB, "same", true, kF32, false, 5, 90, kCluster, 5},
    {"cluster, sixteen", 16, 130, 1056, 8, kB, "nf4/64", true, kB, true, 6, 90, kCluster, 2},
    {"cluster, nine, bytes", 9, 100, 1808, 0, kB, "int8/128", false, kF32, false, 16, 90, kCluster,
     8},
    {"cluster, dense, thirteen", 13, 72, 520, 7, kH, "same", true, kF32, true, 8, 90, kCluster, 3},
    {"cluster, thirty-two", 32, 250, 992, 16, kH, "nf4/64d", true, kF32, true, 8, 90, kCluster, 4},
    {"cluster, twenty, bytes", 20, 150, 400, 5, kB, "int8/32", true, kB, true, 4, 90, kCluster, 2},
    {"cluster, dense, thirty", 30, 131, 520, 16, kB, "same", true, kF32, false, 16, 90, kCluster,
     5},
    {"cluster, bytes, many", 64, 140, 528, 16, kH, "int8/64", true, kF32, true, 8, 90, kCluster, 3},
    {"cluster, dense, many", 61, 131, 264, 0, kH, "same", true, kF32, false, 4, 90, kCluster, 2},
    {"cluster, many", 33, 100, 288, 5, kB, "fp4/32", true, kH, true, 16, 90, kCluster, 2},
    {"bytes", 1, 48, 1040, 0, kB, "int8/256", true, kF32, false, 1},
    {"bytes, nested", 11, 50, 560, 4, kH, "int8/64d", true, kH, true, 108},
    {"bytes, many", 64, 40, 272, 16, kB, "int8/32", true, kF32, true, 1},
    {"bytes, thirty", 30, 140, 144, 2, kH, "int8/128", true, kF32, false, 1},
    {"dense", 1, 40, 1032, 0, kB, "same", true, kF32, false, 1},
    {"dense, split", 13, 72, 2056, 7, kH, "same", true, kF32, true, 108},
    {"dense, twenty", 20, 150, 200, 16, kB, "same", false, kB, false, 1},
    {"dense, many", 61, 131, 264, 16, kH, "same", true, kH, true, 108},
};

constexpr float kScaling = 0.75f;

struct Problem {
  Case spec;
  Dense x, bias, lora_b, lora_bias, h;
  Weight w;

  explicit Problem(const Case& c)
      : spec(c),
        x(c.M, c.K, c.dtype),
        bias(1, c.N, c.lora),
        lora_b(c.N, c.r, c.lora),
        lora_bias(1, c.N, c.lora),
        h(c.M, c.r, kF32),
        w(cpu::MakeWeight(cpu::kReferenceKernels, cpu::RunContext{nullptr, nullptr}, c.weight, c.N,
                          c.K, c.dtype)) {
    x.Fill();
    bias.Fill();
    lora_b.Fill();
    lora_bias.Fill();
    h.Fill();
  }

  /// y [M, N] from the kernel, into `y`; the message of a failure. `planes`: what the case has in a
  /// cluster is left in planes, by the kernels of any card.
  std::string Run(Dense* y, bool planes = false) const {
    DeviceCopies device;
    GemmMmaOperands operands;
    operands.x = device.Put(x.view);
    if (w.view.quantised()) {
      operands.w.quant = device.Put(w.view.quant);
    } else {
      operands.w.dense = device.Put(w.view.dense);
    }
    if (spec.bias) operands.bias = device.Put(bias.view);
    if (spec.r > 0) {
      operands.h = static_cast<float*>(device.Put(h.view).data);
      operands.lora_factor = device.Put(lora_b.view);
      operands.scaling = kScaling;
      if (spec.lora_bias) operands.lora_bias = device.Put(lora_bias.view);
    }
    operands.y = device.Empty(y->view);
    DeviceLimits limits;
    limits.sm_count = spec.sm_count;
    limits.sm = planes ? 80 : spec.sm;
    if (spec.sm == 90 || spec.sm == 100) limits.shared_bytes_per_block = 227 * 1024;
    if (!SmallMApplies(operands, limits)) return "does not apply";
    std::string error = RunPlan([&](Workspace* workspace, Plan* plan) {
      const Status status = PlanMatmulSmallM(operands, limits, workspace, plan);
      if (spec.kernel == nullptr || !status.ok()) return status;
      const LaunchStep& step = plan->steps[0];
      const std::string planned = step.kernel;
      if (planes) {
        const bool cut = step.grid.y == spec.splits && plan->steps.size() == 2;
        return cut ? status : Status(Code::kUnsupported, "no such planes by " + planned);
      }
      if (plan->steps.size() != 1) return Status(Code::kUnsupported, "more than one launch");
      if (planned.rfind(spec.kernel, 0) != 0 || step.cluster != spec.splits) {
        return Status(Code::kUnsupported, "planned " + planned);
      }
      return status;
    });
    if (error.empty()) std::memcpy(y->view.data, operands.y.data, y->view.bytes());
    return error;
  }

  void Check(const Dense& y, const std::string& name) const {
    Exact exact(spec.M, spec.N);
    exact.Add(Exact::Of(x), Exact::Of(w).Transposed());
    if (spec.bias) exact.Add(Exact::Of(bias));
    if (spec.r > 0)
      exact.Add(Exact::Of(h), Exact::Of(lora_b).Transposed(), static_cast<double>(kScaling));
    if (spec.r > 0 && spec.lora_bias)
      exact.Add(Exact::Of(lora_bias), static_cast<double>(kScaling));
    for (int64_t i = 0; i < spec.M * spec.N; ++i) {
      const double value = exact.value[static_cast<size_t>(i)];
      const double actual = y.At(i);
      const std::string what =
          name + " y[" + std::to_string(i / spec.N) + ", " + std::to_string(i % spec.N) + "]";
      if (std::isfinite(value)) {
        cpu::Expect(what, actual, value, exact.size[static_cast<size_t>(i)], spec.dtype);
      } else {
        Report(std::isnan(value) ? std::isnan(actual) : actual == value, what + " special");
      }
    }
  }
};

void CheckCase(const Case& spec, int seeds) {
  const Problem problem(spec);
  std::string bits;
  int schedule = 0;
  for (const emu::Options& options : Schedules(seeds)) {
    emu::SetOptions(options);
    Dense y(spec.M, spec.N, spec.dtype);
    const std::string error = problem.Run(&y);
    const std::string name = std::string(spec.name) + " #" + std::to_string(schedule);
    Report(error.empty(), name + ": " + error);
    if (!error.empty()) return;
    const std::string now(static_cast<const char*>(y.view.data), y.view.bytes());
    if (schedule == 0) {
      problem.Check(y, name);
      bits = now;
    }
    Report(now == bits, name + ": other bits");
    ++schedule;
  }
  emu::SetOptions(Schedules(0)[0]);
  if (spec.kernel != kCluster) return;
  Dense y(spec.M, spec.N, spec.dtype);
  const std::string error = problem.Run(&y, true);
  Report(error.empty(), std::string(spec.name) + " in planes: " + error);
  const std::string planes(static_cast<const char*>(y.view.data), y.view.bytes());
  Report(planes == bits, std::string(spec.name) + ": other bits than in planes");
}

/// What 16 bits round away: of tokens that are alike, under a bias that leaves of y the roundings
/// of its sums alone, a cluster has those of planes.
void CheckOrder() {
  for (const Case& spec : kCases) {
    if (spec.kernel != kCluster) continue;
    Case alike = spec;
    alike.bias = true;
    alike.lora = kF32;  // the bias too
    alike.r = 0;
    Problem problem(alike);
    auto* x = static_cast<uint16_t*>(problem.x.view.data);
    for (int64_t i = spec.K; i < spec.M * spec.K; ++i) x[i] = x[i - spec.K];
    Exact exact(spec.M, spec.N);
    exact.Add(Exact::Of(problem.x), Exact::Of(problem.w).Transposed());
    for (int64_t n = 0; n < spec.N; ++n) {
      StoreElement(problem.bias.view.data, kF32, n, -exact.value[static_cast<size_t>(n)]);
    }
    Dense y(spec.M, spec.N, spec.dtype);
    Dense planes(spec.M, spec.N, spec.dtype);
    const bool run = problem.Run(&y).empty() && problem.Run(&planes, true).empty();
    const bool same = std::memcmp(y.view.data, planes.view.data, y.view.bytes()) == 0;
    Report(run && same, std::string(spec.name) + ": other roundings than in planes");
  }
}

/// An infinity or NaN in x stays in its token, one in a scale in its outputs; the padding of K and
/// of tokens gives nothing.
void CheckSpecial() {
  const Case cases[] = {
      {"special", 3, 35, 1056, 0, kB, "nf4/64", false, kF32, false, 1},
      {"special", 3, 35, 1056, 0, kB, "int8/64", false, kF32, false, 1},
      {"special", 3, 35, 1056, 0, kB, "same", false, kF32, false, 1},
      {"special", 70, 200, 1056, 0, kB, "nf4/64", false, kF32, false, 1, 90, kWide, 1},
      {"special", 70, 35, 1056, 0, kB, "nf4/64", false, kF32, false, 1, 90, kSmall128, 1},
  };
  for (const Case& spec : cases) {
    const char* weight = spec.weight;
    for (const double value : {std::numeric_limits<double>::infinity(), std::nan("")}) {
      Problem problem(spec);
      StoreElement(problem.x.view.data, kB, 2 * spec.K - 1, value);
      if (problem.w.view.quantised()) {
        problem.w.view.quant.absmax[problem.w.view.quant.blocks() - 1] = static_cast<float>(value);
      } else {
        StoreElement(problem.w.view.dense.data, kB, spec.N * spec.K - 1, value);
      }
      Dense y(spec.M, spec.N, spec.dtype);
      const std::string error = problem.Run(&y);
      Report(error.empty(), std::string("special ") + weight + ": " + error);
      if (error.empty()) problem.Check(y, std::string("special ") + weight);
    }
  }
}

/// A weight's own codebook whose first code is infinite: K that ends inside a step is padded with
/// another code, so that rows which do not use it stay finite.
void CheckCodebook() {
  const Case cases[] = {
      {"codebook", 3, 35, 96, 0, kB, "nf4/64", false, kF32, false, 1},
      {"codebook", 3, 35, 96, 0, kB, "int8/64", false, kF32, false, 1},
      {"codebook", 70, 200, 96, 0, kB, "nf4/64", false, kF32, false, 1, 90, kWide, 1},
      {"codebook", 64, 35, 96, 0, kB, "nf4/64", false, kF32, false, 1, 90, kSmall128, 1},
  };
  for (const Case& spec : cases) {
    const char* weight = spec.weight;
    Problem problem(spec);
    QuantView& w = problem.w.view.quant;
    std::vector<float> codebook(w.codebook, w.codebook + w.format->levels);
    codebook[0] = std::numeric_limits<float>::infinity();
    w.codebook = codebook.data();
    for (size_t i = 0; i < w.code_bytes(); ++i) {
      // No code 0 but in the first byte.
      const uint8_t byte = w.codes[i];
      const bool bytes = w.format->bits == 8;
      const bool has_zero = bytes ? byte == 0 : (byte & 15) == 0 || (byte >> 4) == 0;
      if (has_zero && i > 0) w.codes[i] = 0x77;
    }
    w.codes[0] = 0;
    Dense y(spec.M, spec.N, spec.dtype);
    const std::string error = problem.Run(&y);
    Report(error.empty(), std::string("codebook ") + weight + ": " + error);
    if (error.empty()) problem.Check(y, std::string("codebook ") + weight);
  }
}

/// A token's bits do not depend on its company under the same tile.
void CheckInvariance() {
  Case spec{"company", 8, 64, 1120, 4, kB, "nf4/64d", true, kF32, true, 1};
  const Problem all(spec);
  Dense y(spec.M, spec.N, spec.dtype);
  Report(all.Run(&y).empty(), "company");
  Case alone_spec = spec;
  alone_spec.M = 1;
  Problem alone(alone_spec);
  // The same operands but for the token count: the last token of `all`.
  std::memcpy(alone.x.view.data,
              static_cast<const char*>(all.x.view.data) + (spec.M - 1) * spec.K * 2,
              static_cast<size_t>(spec.K) * 2);
  std::memcpy(alone.h.view.data,
              static_cast<const char*>(all.h.view.data) + (spec.M - 1) * spec.r * 4,
              static_cast<size_t>(spec.r) * 4);
  std::memcpy(alone.lora_b.view.data, all.lora_b.view.data, all.lora_b.view.bytes());
  std::memcpy(alone.bias.view.data, all.bias.view.data, all.bias.view.bytes());
  std::memcpy(alone.lora_bias.view.data, all.lora_bias.view.data, all.lora_bias.view.bytes());
  alone.w.view = all.w.view;
  Dense one(1, spec.N, spec.dtype);
  Report(alone.Run(&one).empty(), "alone");
  Report(
      std::memcmp(one.view.data, static_cast<const char*>(y.view.data) + (spec.M - 1) * spec.N * 2,
                  static_cast<size_t>(spec.N) * 2) == 0,
      "a token alone has other bits");
}

void CheckRefusals() {
  Case spec{"refusal", 4, 16, 64, 0, kB, "nf4/64", false, kF32, false, 108};
  const Problem problem(spec);
  GemmMmaOperands operands;
  operands.x = problem.x.view;
  operands.w.quant = problem.w.view.quant;
  const DeviceLimits limits;
  auto aligned = [](uintptr_t address) { return reinterpret_cast<unsigned char*>(address); };
  operands.x.data = aligned(1 << 20);
  operands.w.quant.codes = aligned(2 << 20);
  Report(SmallMApplies(operands, limits), "applies");
  auto refused = [&](const char* what, auto change) {
    GemmMmaOperands changed = operands;
    change(&changed);
    Report(!SmallMApplies(changed, limits), std::string("refuses ") + what);
  };
  refused("65 tokens", [](GemmMmaOperands* o) { o->x.rows = 65; });
  refused("no token", [](GemmMmaOperands* o) { o->x.rows = 0; });
  refused("f32", [](GemmMmaOperands* o) { o->x.dtype = kF32; });
  refused("transposed", [](GemmMmaOperands* o) { o->w_transposed = true; });
  refused("accumulation", [](GemmMmaOperands* o) { o->accumulate = true; });
  refused("dropout", [](GemmMmaOperands* o) { o->dropout.p = 0.5; });
  refused("K = 48", [](GemmMmaOperands* o) { o->x.cols = o->w.quant.cols = 48; });
  refused("loose x", [&](GemmMmaOperands* o) { o->x.data = aligned((1 << 20) + 8); });
  refused("loose codes", [&](GemmMmaOperands* o) { o->w.quant.codes = aligned((1 << 20) + 8); });
}

/// What takes a product of NF4 by the plan; null: no kernel of few tokens.
struct Choice {
  int64_t M, N, K;
  bool lora;
  const char* kernel;
  uint32_t splits;  // the blocks of a cluster
  size_t launches = 1;
};
/// On an H100.
const Choice kChoices[] = {
    {1, 4096, 4096, true, kPlain, 1},
    {16, 4096, 4096, true, kCluster, 2},
    {32, 4096, 4096, true, kCluster, 4},
    {1, 1024, 8192, false, kCluster, 8},
    {32, 5120, 5120, false, kCluster, 3},
    // 16 slices are wanted: eight, since they are short; planes, since they are long.
    {1, 512, 16384, true, kCluster, 8},
    {32, 1024, 4096, true, kCluster, 8},
    {32, 1024, 14336, true, kPlain, 1, 2},
    // 33 clusters of four do not fit groups of 16 multiprocessors, and three take longer than
    // planes.
    {32, 4224, 4096, false, kPlain, 1, 2},
    {64, 4096, 4096, true, kSmall128, 4},
    {64, 2048, 4096, true, kSmall128, 8},
    {64, 14336, 4096, true, kSmall, 2},
    {65, 4096, 4096, true, kWide, 8},
    {128, 4096, 4096, false, kWide, 8},
    {256, 4096, 4096, true, kWide, 4},
    {384, 4096, 4096, true, kWide, 2},
    {512, 4096, 4096, false, kWide, 2},
    {1024, 4096, 4096, false, kWide, 1},
    {128, 14336, 4096, false, kWide, 2},
    // Three tiles of 64 tokens, the last nearly empty, where tiles of 128 would be two.
    {130, 11264, 256, false, kSmall, 1},
    {512, 4096, 14336, false, kWide, 2},
    {1024, 1024, 4096, false, kWide, 4},
    {1024, 4096, 14336, false, kWide, 1},
    // h is computed beside the products of gemm_wgmma; too many tokens; several waves; idle.
    {512, 4096, 4096, true, nullptr, 0},
    {1025, 4096, 4096, false, nullptr, 0},
    {1024, 14336, 4096, false, nullptr, 0},
    {65, 512, 4096, false, nullptr, 0},
};

/// On an A100.
const Choice kChoicesA100[] = {
    {1, 4096, 4096, true, kPlain, 1},
    {16, 4096, 4096, true, kPlain, 1},  // 64 blocks for 108 multiprocessors
    {32, 4096, 4096, true, kPlain, 1, 2},
    {32, 1024, 4096, false, kPlain, 1, 2},
    {64, 4096, 4096, true, kPlain, 1, 2},
};

template <size_t kCount>
void CheckChoices(const Choice (&choices)[kCount], DeviceLimits device) {
  auto aligned = [](uintptr_t address) { return reinterpret_cast<unsigned char*>(address << 20); };
  for (const Choice& choice : choices) {
    GemmMmaOperands operands;
    operands.x = {aligned(1), kB, choice.M, choice.K, true};
    operands.y = {aligned(2), kB, choice.M, choice.N, true};
    QuantView& w = operands.w.quant;
    w.format = FindFormat("nf4");
    w.rows = choice.N;
    w.cols = choice.K;
    w.blocksize = 64;
    w.codes = aligned(3);
    w.codebook = reinterpret_cast<float*>(aligned(4));
    w.absmax = reinterpret_cast<float*>(aligned(5));
    if (choice.lora) {
      operands.h = reinterpret_cast<float*>(aligned(6));
      operands.lora_factor = {aligned(7), kF32, choice.N, 16, true};
    }
    for (const bool batch_invariant : {false, true}) {
      device.batch_invariant = batch_invariant;
      Workspace workspace(aligned(8));
      Plan plan;
      const Status status = PlanProduct(operands, device, &workspace, &plan);
      const std::string kernel = status.ok() ? plan.steps[0].kernel : status.message();
      const std::string name = "choice for " + std::to_string(choice.M) + " x " +
                               std::to_string(choice.N) + " x " + std::to_string(choice.K) + ": " +
                               kernel;
      const bool few = kernel.find("_m_") != std::string::npos;
      if (choice.kernel == nullptr || batch_invariant) {
        Report(status.ok() && !few, name);
      } else {
        const bool launches = plan.steps.size() == choice.launches;
        Report(kernel.rfind(choice.kernel, 0) == 0 && plan.steps[0].cluster == choice.splits, name);
        Report(launches, name + ", launches: " + std::to_string(plan.steps.size()));
      }
    }
  }
}

int Main(int argc, char** argv) {
  std::string error;
  if (!emu::OptionsFromEnvironment(&error)) {
    std::printf("%s\n", error.c_str());
    return 2;
  }
  const int seeds = argc > 1 ? std::atoi(argv[1]) : 2;
  const std::string only = argc > 2 ? argv[2] : "";
  for (const Case& spec : kCases) {
    if (only.empty() || only == spec.name) CheckCase(spec, seeds);
  }
  if (only.empty()) {
    CheckOrder();
    CheckSpecial();
    CheckCodebook();
    CheckInvariance();
    CheckRefusals();
    CheckChoices(kChoicesA100, DeviceLimits());
    DeviceLimits h100;
    h100.sm = 90;
    h100.sm_count = 132;
    h100.shared_bytes_per_block = 227 * 1024;
    CheckChoices(kChoices, h100);
  }
  Report(emu::FindingCount() == 0, "findings: " + std::to_string(emu::FindingCount()));
  std::printf("small-M: %d checks, %d failures\n", g_checks, g_failures);
  return g_failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace lowrank::cuda

int main(int argc, char** argv) { return lowrank::cuda::Main(argc, argv); }
