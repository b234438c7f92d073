/// The adapter's shrink and gradients over the emulator: against sums in double with the bound of
/// the conformance suite, against the reference device, for every mix of dtypes, ragged shapes,
/// ranks, gates, subsets of the outputs and accumulation, with the same bits in every schedule.
///
///   cuda_lora_check [seeds] [filter] [counters]
///
/// Built with instrumented kernels it also fails on whatever the emulator finds. `counters` prints
/// the accesses of the main loops that cost more than 1.10 of the ideal.
#include <set>

#include "native/cuda/plans/factors/plan_lora_shrink.h"
#include "test/native/cuda_lora_operands.h"
#include "test/native/cuda_lora_plans.h"

namespace lowrank::loracheck {
namespace {

using Tamper = void (*)(const TensorView& x, const TensorView& factor);

/// Kernels of sm_90a whose bits have been compared with those of planes.
std::set<std::string> g_in_clusters;

void CheckShrink(const Case& c, bool contraction_major, Tamper tamper = nullptr) {
  cpu::g_state = 7;
  Device device(c.misalign);
  const double scale = c.integers ? 3 : 1;
  const TensorView x = device.Random(c.M, c.K, c.x, scale, c.integers);
  const TensorView factor = contraction_major
                                ? device.Random(c.K, c.r, c.factor, scale, c.integers)
                                : device.Random(c.r, c.K, c.factor, scale, c.integers);
  if (tamper != nullptr) tamper(x, factor);
  const DropoutSpec dropout = MakeDropout(c, &device);
  const float scaling = contraction_major ? (c.integers ? 0.5f : 1.3f) : 1.0f;
  const TensorView out = device.Tensor(c.M, c.r, DType::kF32);
  const std::string name =
      (contraction_major ? "shrink (contraction-major) " : "shrink ") + c.Name();
  const auto layout =
      contraction_major ? cuda::ShrinkFactor::kContractionMajor : cuda::ShrinkFactor::kRankMajor;
  const auto make = [&](cuda::Workspace* workspace, cuda::Plan* plan) {
    return cuda::PlanLoraShrink(x, factor, layout, dropout, scaling, static_cast<float*>(out.data),
                                false, c.Limits(), workspace, plan);
  };
  const auto reset = [&] { emu::SetMemory(out.data, 0xff, out.bytes()); };
  if (!RunAll(name, &device, make, reset, {out})) return;
  // As many splits in a cluster have the bits of planes.
  cuda::DeviceLimits hopper = c.Limits();
  hopper.sm = 90;
  const TensorView added = device.Tensor(c.M, c.r, DType::kF32);
  const auto in_cluster = [&](cuda::Workspace* workspace, cuda::Plan* plan) {
    return cuda::PlanLoraShrink(x, factor, layout, dropout, scaling,
                                static_cast<float*>(added.data), false, hopper, workspace, plan);
  };
  cuda::Workspace measure;
  cuda::Plan planes, cluster;
  if (make(&measure, &planes).ok() && in_cluster(&measure, &cluster).ok() &&
      !cluster.steps.empty() && cluster.steps[0].cluster > 1) {
    const auto reset_added = [&] { emu::SetMemory(added.data, 0xff, added.bytes()); };
    if (!RunAll(name + " in a cluster", &device, in_cluster, reset_added, {added})) return;
    Report(cluster.steps.size() == 1, name + ": one launch in a cluster");
    if (planes.steps[0].grid.y == cluster.steps[0].cluster) {
      Report(std::memcmp(added.data, out.data, out.bytes()) == 0, name + ": a cluster's bits");
      g_in_clusters.insert(cluster.steps[0].kernel);
    }
  }
  for (int64_t m = 0; m < c.M; ++m) {
    for (int64_t j = 0; j < c.r; ++j) {
      Sum sum;
      for (int64_t k = 0; k < c.K; ++k) {
        sum.Add(static_cast<double>(scaling) * Gated(x, dropout, m, k) *
                At(factor, contraction_major ? k * c.r + j : j * c.K + k));
      }
      // What is promised of sums of K products on tensor cores (docs/gpu-design.md).
      Compare(name, out, m * c.r + j, sum, c.integers, 16 + 1.25 * static_cast<double>(c.K));
    }
  }
}

struct Backward {
  LoraBackwardOp op;
  LoraBackwardOp host;  // the reference's operands: the same inputs, outputs of its own
  std::vector<TensorView> outputs;
  std::vector<TensorView> before;
  std::vector<TensorView> expected;
};

Backward MakeBackward(const Case& c, Device* device) {
  cpu::g_state = 11;
  Backward b;
  const double scale = c.integers ? 3 : 1;
  LoraBackwardOp& op = b.op;
  op.dy = device->Random(c.M, c.N, c.x, scale, c.integers);
  op.x = device->Random(c.M, c.K, c.x, scale, c.integers);
  op.lora_a = device->Random(c.r, c.K, c.factor, scale, c.integers);
  op.lora_b = device->Random(c.N, c.r, c.factor, scale, c.integers);
  op.h = device->Random(c.M, c.r, DType::kF32, c.integers ? 4 : 2, c.integers);
  op.w.dense = device->Random(c.N, c.K, c.x, scale, c.integers);
  op.dropout = MakeDropout(c, device);
  op.scaling = c.integers ? 2.0f : 0.7f;
  const auto output = [&](int bit, int64_t rows, int64_t cols, DType dtype, TensorView* view) {
    if ((c.needs >> bit & 1) != 0) *view = device->Random(rows, cols, dtype, 4, true);
    b.outputs.push_back(*view);
    b.before.push_back(device->Copy(*view));
    b.expected.push_back(device->Copy(*view));
  };
  output(0, c.M, c.K, c.x, &op.dx);
  output(1, c.r, c.K, c.out, &op.d_lora_a);
  output(2, c.N, c.r, c.out, &op.d_lora_b);
  output(3, 1, c.N, c.out, &op.d_bias);
  output(4, 1, c.N, c.out, &op.d_lora_bias);
  op.accumulate_dx = op.accumulate_d_lora_a = op.accumulate_d_lora_b = op.accumulate_d_bias =
      op.accumulate_d_lora_bias = c.accumulate;
  b.host = op;
  b.host.dx.data = b.expected[0].data;
  b.host.d_lora_a.data = b.expected[1].data;
  b.host.d_lora_b.data = b.expected[2].data;
  b.host.d_bias.data = b.expected[3].data;
  b.host.d_lora_bias.data = b.expected[4].data;
  return b;
}

/// The exact outputs, by the formulas of LoraBackwardOp.
std::vector<std::vector<Sum>> BackwardSums(const Case& c, const LoraBackwardOp& op) {
  const double scaling = static_cast<double>(op.scaling);
  std::vector<Sum> dh(static_cast<size_t>(c.M * c.r));
  std::vector<std::vector<Sum>> sums(5);
  for (int64_t m = 0; m < c.M; ++m) {
    for (int64_t n = 0; n < c.N; ++n) {
      for (int64_t j = 0; j < c.r; ++j) {
        dh[static_cast<size_t>(m * c.r + j)].Add(scaling * At(op.dy, m * c.N + n) *
                                                 At(op.lora_b, n * c.r + j));
      }
    }
  }
  if (op.dx.present) {
    sums[0].resize(static_cast<size_t>(c.M * c.K));
    for (int64_t i = 0; i < c.M * c.K; ++i) {
      Sum& sum = sums[0][static_cast<size_t>(i)];
      const int64_t m = i / c.K;
      const int64_t k = i % c.K;
      for (int64_t n = 0; n < c.N; ++n) {
        sum.Add(At(op.dy, m * c.N + n) * At(op.w.dense, n * c.K + k));
      }
      const double gate = GateAt(op.dropout, m, k, c.K);
      for (int64_t j = 0; j < c.r && gate != 0; ++j) {
        const Sum& part = dh[static_cast<size_t>(m * c.r + j)];
        sum.value += gate * part.value * At(op.lora_a, j * c.K + k);
        sum.size += std::fabs(gate * part.size * At(op.lora_a, j * c.K + k));
      }
    }
  }
  if (op.d_lora_a.present) {
    sums[1].resize(static_cast<size_t>(c.r * c.K));
    for (int64_t m = 0; m < c.M; ++m) {
      for (int64_t i = 0; i < c.r * c.K; ++i) {
        const double gated = Gated(op.x, op.dropout, m, i % c.K);
        const Sum& part = dh[static_cast<size_t>(m * c.r + i / c.K)];
        sums[1][static_cast<size_t>(i)].value += part.value * gated;
        sums[1][static_cast<size_t>(i)].size += part.size * std::fabs(gated);
      }
    }
  }
  if (op.d_lora_b.present) {
    sums[2].resize(static_cast<size_t>(c.N * c.r));
    for (int64_t m = 0; m < c.M; ++m) {
      for (int64_t i = 0; i < c.N * c.r; ++i) {
        sums[2][static_cast<size_t>(i)].Add(scaling * At(op.dy, m * c.N + i / c.r) *
                                            At(op.h, m * c.r + i % c.r));
      }
    }
  }
  for (size_t bias = 3; bias < 5; ++bias) {
    if (!(bias == 3 ? op.d_bias : op.d_lora_bias).present) continue;
    sums[bias].resize(static_cast<size_t>(c.N));
    for (int64_t i = 0; i < c.M * c.N; ++i) {
      sums[bias][static_cast<size_t>(i % c.N)].Add((bias == 3 ? 1.0 : scaling) * At(op.dy, i));
    }
  }
  return sums;
}

using TamperOp = void (*)(const LoraBackwardOp& op);

void CheckBackward(const Case& c, TamperOp tamper = nullptr) {
  Device device(c.misalign);
  Backward b = MakeBackward(c, &device);
  if (tamper != nullptr) tamper(b.op);
  const std::string name = "backward " + c.Name();
  Report(b.op.Check().ok(), name + ": " + b.op.Check().message());
  const auto make = [&](cuda::Workspace* workspace, cuda::Plan* plan) {
    return cuda::MakePlan(b.op, c.Limits(), workspace, plan);
  };
  const auto reset = [&] {
    for (size_t i = 0; i < b.outputs.size(); ++i) {
      if (!b.outputs[i].present) continue;
      if (c.accumulate) {
        emu::CopyMemory(b.outputs[i].data, b.before[i].data, b.before[i].bytes());
      } else {
        emu::SetMemory(b.outputs[i].data, 0xff, b.outputs[i].bytes());
      }
    }
  };
  if (!RunAll(name, &device, make, reset, b.outputs)) return;
  const std::vector<std::vector<Sum>> sums = BackwardSums(c, b.op);
  const cpu::RunContext context{};
  const Status status = cpu::kReferenceKernels.lora_backward(b.host, context);
  Report(status.ok(), name + ": reference: " + status.message());
  const char* names[] = {"dx ", "d_lora_a ", "d_lora_b ", "d_bias ", "d_lora_bias "};
  for (size_t i = 0; i < b.outputs.size(); ++i) {
    if (!b.outputs[i].present) continue;
    for (int64_t e = 0; e < b.outputs[i].elems(); ++e) {
      Sum sum = sums[i][static_cast<size_t>(e)];
      if (c.accumulate) sum.Add(At(b.before[i], e));
      Compare(names[i] + name, b.outputs[i], e, sum,
              c.integers && b.outputs[i].dtype == DType::kF32);
      Compare(names[i] + name + " (reference)", b.expected[i], e, sum, false);
    }
  }
}

struct Mix {
  DType x;
  DType factor;
};
constexpr Mix kMixes[] = {{DType::kBF16, DType::kF32}, {DType::kBF16, DType::kBF16},
                          {DType::kF16, DType::kF32},  {DType::kF16, DType::kF16},
                          {DType::kF32, DType::kF32},  {DType::kF32, DType::kBF16},
                          {DType::kF32, DType::kF16}};
constexpr DType kDTypes[] = {DType::kF32, DType::kBF16, DType::kF16};

struct Dims {
  int64_t M, N, K;
};
constexpr Dims kDims[] = {{1, 1, 1},     {3, 7, 5},      {17, 33, 40},   {64, 64, 128},
                          {65, 129, 65}, {130, 72, 192}, {200, 96, 264}, {129, 256, 31},
                          {5, 130, 520}, {300, 70, 172}, {2, 640, 1032}, {385, 16, 24}};
constexpr int64_t kRanks[] = {1, 3, 8, 16, 17, 33, 64, 100};

/// Shapes and mixes in full; the rest in a cycle of coprime lengths.
std::vector<Case> Cases() {
  std::vector<Case> cases;
  int turn = 0;
  for (const Mix& mix : kMixes) {
    for (const Dims& dims : kDims) {
      Case c;
      c.M = dims.M, c.N = dims.N, c.K = dims.K;
      c.r = kRanks[turn % 8];
      c.x = mix.x;
      c.factor = mix.factor;
      c.p = turn % 3 == 1 ? 0.1 : turn % 3 == 2 ? 0.5 : 0;
      c.mask = turn % 5 == 2;
      c.mask_dtype = kDTypes[turn / 5 % 3];
      c.misalign = turn % 7 == 3 ? 1 : 0;
      c.sm_count = turn % 4 == 0 ? 1 : turn % 4 == 1 ? 3 : 108;
      c.l2_bytes = turn % 2 == 0 ? 40 << 20 : 1 << 14;
      c.needs = turn % 3 == 0 ? 31 : 1 + turn % 31;
      c.accumulate = turn % 2 == 1;
      c.out = kDTypes[turn % 3];
      cases.push_back(c);
      ++turn;
    }
  }
  // Nothing to sum, or to store.
  for (int empty = 0; empty < 16; ++empty) {
    Case c;
    c.M = (empty & 1) != 0 ? 0 : 5;
    c.N = (empty & 2) != 0 ? 0 : 9;
    c.K = (empty & 4) != 0 ? 0 : 11;
    c.r = (empty & 8) != 0 ? 0 : 4;
    c.accumulate = empty % 3 == 1;
    cases.push_back(c);
  }
  // Wide ranks.
  for (const Mix& mix : {kMixes[0], kMixes[4]}) {
    Case c;
    c.M = 70, c.N = 40, c.K = 72, c.r = 512;
    c.x = mix.x;
    c.factor = mix.factor;
    c.p = 0.25;
    cases.push_back(c);
  }
  // Integers: exact, so that one element of the mask, or one product, shows.
  for (const Mix& mix : kMixes) {
    Case c;
    c.M = 150, c.N = 72, c.K = 200, c.r = 20;
    c.x = mix.x;
    c.factor = mix.factor;
    c.p = 0.5;
    c.integers = true;
    c.needs = 30;
    cases.push_back(c);
    c.K = 203;
    c.mask = true;
    c.mask_dtype = mix.factor;
    cases.push_back(c);
  }
  return cases;
}

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

/// Infinities and NaNs reach what IEEE says and nothing else: 1 · ∞ stays ∞ although 1 has parts
/// that are zero.
void CheckSpecialValues(const std::string& filter) {
  for (const Mix& mix : kMixes) {
    Case c;
    c.M = 67, c.N = 40, c.K = 140, c.r = 9;
    c.x = mix.x;
    c.factor = mix.factor;
    c.needs = 30;
    if (c.Name().find(filter) == std::string::npos) continue;
    for (const bool contraction_major : {false, true}) {
      CheckShrink(c, contraction_major, [](const TensorView& x, const TensorView& factor) {
        for (int64_t i = 0; i < factor.elems(); i += 7) Poke(factor, i, i % 2 == 0 ? 1.0 : -0.5);
        Poke(x, 5, kInfinity);
        Poke(x, x.cols + 6, -kInfinity);
        Poke(x, 2 * x.cols + 7, kNaN);
        Poke(x, 66 * x.cols + 139, kInfinity);
      });
      CheckShrink(c, contraction_major, [](const TensorView& x, const TensorView& factor) {
        for (int64_t i = 0; i < x.elems(); i += 5) Poke(x, i, i % 2 == 0 ? 1.0 : 2.0);
        Poke(factor, 3, kInfinity);
        Poke(factor, 9 * 35, kNaN);
        Poke(factor, factor.elems() - 1, -kInfinity);
      });
      if (mix.x == DType::kF16) continue;
      CheckShrink(c, contraction_major, [](const TensorView& x, const TensorView&) {
        Poke(x, 5, 3.3e38);
        Poke(x, x.cols + 5, -3.4028234e38);
        Poke(x, 3 * x.cols, 1e-40);
      });
    }
    CheckBackward(c, [](const LoraBackwardOp& op) {
      Poke(op.dy, 5, kInfinity);
      Poke(op.dy, 3 * op.dy.cols + 39, kNaN);
      Poke(op.h, 9 * 20 + 3, -kInfinity);
    });
    CheckBackward(c, [](const LoraBackwardOp& op) {
      Poke(op.x, 7, -kInfinity);
      Poke(op.x, 60 * op.x.cols + 139, kNaN);
    });
    // What is dropped is zero, whatever it held.
    c.p = 0.5;
    c.mask = true;
    CheckBackward(c, [](const LoraBackwardOp& op) {
      for (int64_t i = 0; i < op.x.elems(); ++i) {
        if (At(op.dropout.mask, i) == 0) Poke(op.x, i, i % 2 == 0 ? kNaN : kInfinity);
      }
    });
    c.mask = false;
    CheckBackward(c, [](const LoraBackwardOp& op) {
      for (int64_t m = 0; m < op.x.rows; ++m) {
        for (int64_t k = 0; k < op.x.cols; ++k) {
          if (GateAt(op.dropout, m, k, op.x.cols) == 0) Poke(op.x, m * op.x.cols + k, kNaN);
        }
      }
    });
  }
}

/// Plans alone, at sizes that no emulator runs: launches, workspace and blocks as the budgets of
/// cuda/lora/lora_grad_sm80.cu say.
void CheckPlans() {
  for (const int64_t r : {int64_t{8}, int64_t{16}, int64_t{64}}) {
    for (const int64_t M : {int64_t{64}, int64_t{2048}, int64_t{8192}, int64_t{65536}}) {
      const auto tensor = [](int64_t rows, int64_t cols, DType dtype) {
        return TensorView{reinterpret_cast<void*>(4096), dtype, rows, cols, true};
      };
      LoraBackwardOp op;
      op.dy = op.x = tensor(M, 4096, DType::kBF16);
      op.lora_a = op.d_lora_a = tensor(r, 4096, DType::kF32);
      op.lora_b = op.d_lora_b = tensor(4096, r, DType::kF32);
      op.h = tensor(M, r, DType::kF32);
      cuda::Workspace workspace;
      cuda::Plan plan;
      const Status status = cuda::MakePlan(op, cuda::DeviceLimits(), &workspace, &plan);
      const std::string name = "plan M " + std::to_string(M) + " r " + std::to_string(r);
      Report(status.ok() && plan.steps.size() == 4, name + ": four launches");
      const int64_t bytes = static_cast<int64_t>(workspace.bytes());
      // A quarter of x and of dy, or what fills the device once where that is more; and dh.
      const int64_t planes = std::max<int64_t>(M * 4096 / 4, 16 * 4096 * r * 4);
      Report(bytes <= 2 * planes + 12 * M * r * 4, name + ": workspace " + std::to_string(bytes));
      if (M >= 2048) {
        Report(plan.steps[0].grid.x >= 216 && plan.steps[2].grid.x * plan.steps[2].grid.y >= 216,
               name + ": blocks for every multiprocessor");
      }
      op.d_lora_a.present = false;
      plan.steps.clear();
      Report(cuda::MakePlan(op, cuda::DeviceLimits(), &workspace, &plan).ok() &&
                 plan.steps.size() == 2 &&
                 std::string(plan.steps[0].kernel).find("lora_grad_") == 0,
             name + ": one pass over dy for d_lora_b alone");
      op.d_lora_b.present = false;
      plan.steps.clear();
      Report(cuda::MakePlan(op, cuda::DeviceLimits(), &workspace, &plan).ok() && plan.steps.empty(),
             name + ": nothing for nothing");
    }
  }
}

void PrintCounters() {
  emu::Options options = emu::CurrentOptions();
  options.counters = true;
  emu::SetOptions(options);
  g_seeds = -2;
  for (const Mix& mix : kMixes) {
    for (const int64_t r : {int64_t{16}, int64_t{32}}) {
      emu::ClearCounts();
      Case c;
      c.M = 512, c.N = 256, c.K = 512, c.r = r;
      c.x = mix.x;
      c.factor = mix.factor;
      c.p = 0.1;
      c.sm_count = 2;
      CheckShrink(c, false);
      c.needs = 30;
      CheckBackward(c);
      for (const emu::LineCount& line : emu::LineCounts()) {
        const double ratio = static_cast<double>(line.cost) / static_cast<double>(line.ideal);
        std::printf(
            "%s %-8s r %-3ld %-28s %s:%u %s %u B  requests %lu cost %lu ideal %lu  %.2f\n",
            ratio > 1.1 ? "over" : "  ok", DTypeName(mix.x), static_cast<long>(r),
            line.kernel.c_str(), line.where.file.c_str(), line.where.line, emu::ToString(line.kind),
            line.bytes_per_lane, static_cast<unsigned long>(line.requests),
            static_cast<unsigned long>(line.cost), static_cast<unsigned long>(line.ideal), ratio);
      }
      for (const emu::NamedCount& count : emu::NamedCounts()) {
        std::printf("     %-8s r %-3ld %-28s %s %lu\n", DTypeName(mix.x), static_cast<long>(r),
                    count.kernel.c_str(), count.name.c_str(),
                    static_cast<unsigned long>(count.value));
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
  g_seeds = argc > 1 ? std::atoi(argv[1]) : 0;
  const std::string filter = argc > 2 ? argv[2] : "";
  if (argc > 3) {
    PrintCounters();
    return 0;
  }
  for (const Case& c : Cases()) {
    if (c.Name().find(filter) == std::string::npos) continue;
    CheckShrink(c, false);
    CheckShrink(c, true);
    CheckBackward(c);
  }
  CheckSpecialValues(filter);
  if (filter.empty()) Report(g_in_clusters.size() == 6, "each cluster's kernel beside planes");
  CheckPlans();
  CheckForwardPlans();
  CheckFewTokenLaunches();
  CheckInputGradPlans();
  std::printf("cuda_lora_check: %d checks, %d failures\n", cpu::g_checks, cpu::g_failures);
  return cpu::g_failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace lowrank::loracheck

int main(int argc, char** argv) { return lowrank::loracheck::Main(argc, argv); }
