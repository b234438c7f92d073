/// The tiled products, on tensor cores and in f32, over the emulator, against sums in double: every
/// format, type, tile and direction on ragged shapes, with and without each part of the LoRA term,
/// in forward, reverse and random schedules with late and early copies.
///
///   cuda_gemm_mma_check [seeds] [filter] [counters]
///
/// Built with instrumented kernels it also fails on whatever the emulator finds. `counters` prints
/// the accesses of one case a kernel that cost more than 1.10 of the ideal.
#include <limits>
#include <memory>

#include "cuda/emulator/runtime.h"
#include "native/cuda/plans/products/plan_gemm_f32.h"
#include "native/cuda/plans/products/plan_gemm_mma.h"
#include "test/native/exact_matrix.h"

namespace lowrank::cpu {}

namespace {

using lowrank::BitsOf;
using lowrank::DropoutSpec;
using lowrank::DType;
using lowrank::DTypeName;
using lowrank::LoadElement;
using lowrank::Status;
using lowrank::StoreElement;
using lowrank::TensorView;
using lowrank::WeightView;
using lowrank::cpu::Exact;
using lowrank::cpu::Expect;
using lowrank::cpu::GateAt;
using lowrank::cpu::MakeWeight;
using lowrank::cpu::Report;
using lowrank::cpu::RoundTo;
using lowrank::cpu::Uniform;
using lowrank::cpu::Weight;
namespace emu = lowrank::emu;

/// Memory of the emulated device, ending at a page that faults. `misalign` bytes off the start.
class DeviceBuffer {
 public:
  DeviceBuffer(size_t bytes, size_t misalign)
      : base_(static_cast<char*>(emu::Allocate(bytes + misalign, 256))), data_(base_ + misalign) {}
  ~DeviceBuffer() { emu::Free(base_); }
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;
  void* data() const { return data_; }

 private:
  char* base_;
  char* data_;
};

class Device {
 public:
  explicit Device(size_t misalign = 0) : misalign_(misalign) {}

  /// `unit` bytes are what an element is aligned to at least.
  void* Bytes(const void* from, size_t bytes, size_t unit = 1) {
    const size_t misalign = (misalign_ + unit - 1) / unit * unit;
    buffers_.push_back(std::make_unique<DeviceBuffer>(bytes, misalign));
    if (from != nullptr) emu::CopyMemory(buffers_.back()->data(), from, bytes);
    return buffers_.back()->data();
  }
  TensorView Tensor(int64_t rows, int64_t cols, DType dtype, double scale = 1) {
    TensorView view;
    view.dtype = dtype;
    view.rows = rows;
    view.cols = cols;
    view.present = true;
    std::vector<unsigned char> host(view.bytes() + 8);
    for (int64_t i = 0; i < view.elems(); ++i) {
      StoreElement(host.data(), dtype, i, Uniform() * scale);
    }
    view.data = Bytes(host.data(), view.bytes(), lowrank::DTypeBytes(dtype));
    return view;
  }
  WeightView Copy(const WeightView& w) {
    WeightView copy = w;
    if (!w.quantised()) {
      copy.dense.data = Bytes(w.dense.data, w.dense.bytes());
      return copy;
    }
    lowrank::QuantView& q = copy.quant;
    auto move = [&](auto*& pointer, size_t bytes) {
      using Pointer = std::remove_reference_t<decltype(pointer)>;
      if (pointer != nullptr) pointer = static_cast<Pointer>(Bytes(pointer, bytes));
    };
    const size_t blocks = static_cast<size_t>(q.blocks());
    move(q.codes, q.code_bytes());
    move(q.codebook, static_cast<size_t>(q.format->levels) * 4);
    move(q.absmax, blocks * 4);
    move(q.absmax_8bit, blocks);
    move(q.absmax_codebook, 256 * 4);
    move(q.nested_absmax, static_cast<size_t>(q.nested_blocks()) * 4);
    move(q.absmax_offset, 4);
    return copy;
  }

 private:
  size_t misalign_;
  std::vector<std::unique_ptr<DeviceBuffer>> buffers_;
};

double At(const TensorView& view, int64_t row, int64_t col) {
  return static_cast<double>(LoadElement(view.data, view.dtype, row * view.cols + col));
}

void RunPlan(const lowrank::cuda::Plan& plan, const std::string& what) {
  for (const lowrank::cuda::LaunchStep& step : plan.steps) {
    emu::Launch launch;
    launch.kernel = emu::FindKernel(step.kernel);
    if (launch.kernel == nullptr) return Report(false, what + ": no kernel " + step.kernel);
    launch.grid = emu::Dim3(step.grid.x, step.grid.y, step.grid.z);
    launch.block = emu::Dim3(step.threads);
    launch.cluster = step.cluster;
    launch.shared_bytes = step.shared_bytes;
    launch.params = step.params.data();
    const emu::LaunchStatus status = emu::RunGrid(launch);
    std::string text =
        what + ": " + step.kernel + " status " + std::to_string(static_cast<int>(status));
    for (const emu::Finding& finding : emu::Findings()) text += "\n  " + finding.text;
    Report(status == emu::LaunchStatus::kOk && emu::FindingCount() == 0, text);
    emu::ClearFindings();
  }
}

struct Case {
  const char* weight = "nf4/64";
  DType dtype = DType::kBF16;
  bool transposed = false;
  int64_t M = 0, N = 0, K = 0, r = 0;
  DType factor = DType::kF32;
  bool bias = false;
  bool lora_bias = false;
  double p = 0;
  bool mask = false;
  bool accumulate = false;
  size_t misalign = 0;
  int32_t splits = 1;    // parts of the reduction
  bool special = false;  // infinities and NaN in x, h, the factor, and where no code points
  int sm_count = 108;    // few multiprocessors choose large tiles

  std::string Name() const {
    return std::string(transposed ? "dx " : "y ") + weight + " " + DTypeName(dtype) + " M " +
           std::to_string(M) + " N " + std::to_string(N) + " K " + std::to_string(K) + " r " +
           std::to_string(r) + " factor " + DTypeName(factor) + (bias ? " bias" : "") +
           (lora_bias ? " lora_bias" : "") + (p > 0 ? " dropout" : "") + (mask ? " mask" : "") +
           (accumulate ? " accumulate" : "") + (misalign > 0 ? " misaligned" : "") +
           (special ? " special" : "") + (splits > 1 ? " in parts" : "") + " on " +
           std::to_string(sm_count);
  }
};

struct Operands {
  Device device;
  Weight weight;
  lowrank::cuda::GemmMmaOperands gemm;
  std::vector<float> h;
  TensorView before;  // y's contents where accumulated

  explicit Operands(const Case& c) : device(c.misalign) {
    lowrank::cpu::g_state = 77;
    const lowrank::cpu::RunContext context{};
    weight = MakeWeight(lowrank::cpu::kReferenceKernels, context, c.weight, c.N, c.K, c.dtype);
    const int64_t reduction = c.transposed ? c.N : c.K;
    const int64_t cols = c.transposed ? c.K : c.N;
    gemm.x = device.Tensor(c.M, reduction, c.dtype);
    gemm.w = device.Copy(weight.view);
    gemm.w_transposed = c.transposed;
    if (c.bias) gemm.bias = device.Tensor(1, c.N, c.factor, 4);
    if (c.r > 0) {
      TensorView h_view = device.Tensor(c.M, c.r, DType::kF32, 8);
      gemm.h = static_cast<float*>(h_view.data);
      gemm.lora_factor =
          c.transposed ? device.Tensor(c.r, c.K, c.factor) : device.Tensor(c.N, c.r, c.factor);
      if (c.lora_bias) gemm.lora_bias = device.Tensor(1, c.N, c.factor);
      gemm.scaling = c.transposed ? 1.0f : 1.7f;
    }
    gemm.dropout.p = c.p;
    gemm.dropout.seed = 0x123456789abcull;
    if (c.mask) {
      gemm.dropout.mask = device.Tensor(c.M, c.K, DType::kBF16);
      for (int64_t i = 0; i < c.M * c.K; i += 3) {
        StoreElement(gemm.dropout.mask.data, DType::kBF16, i, 0);
      }
    }
    gemm.accumulate = c.accumulate;
    before = device.Tensor(c.M, cols, c.dtype, 3);
    gemm.y = before;
    gemm.y.data = device.Bytes(c.accumulate ? before.data : nullptr, before.bytes());
  }
};

/// What must stay where it is: each in a row or column of its own, beside the ends of tiles.
void Poke(const Case& c, Operands* operands) {
  const double inf = std::numeric_limits<double>::infinity();
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const lowrank::cuda::GemmMmaOperands& gemm = operands->gemm;
  const TensorView& x = gemm.x;
  StoreElement(x.data, x.dtype, x.cols - 1, inf);
  StoreElement(x.data, x.dtype, x.cols, -inf);
  StoreElement(x.data, x.dtype, x.elems() - 1, nan);
  if (c.r > 0) {
    StoreElement(const_cast<float*>(gemm.h), DType::kF32, 2 * c.r, inf);
    StoreElement(const_cast<float*>(gemm.h), DType::kF32, 4 * c.r - 1, nan);
    // Its top 16 bits alone would be an infinity; and a value that bf16 rounds to one.
    const_cast<float*>(gemm.h)[4 * c.r] = lowrank::FloatOf(0x7f800001u);
    const_cast<float*>(gemm.h)[5 * c.r] = 3.399e38f / gemm.scaling;
    const TensorView& factor = gemm.lora_factor;
    StoreElement(factor.data, factor.dtype, factor.elems() - 1, -inf);
    StoreElement(factor.data, factor.dtype, 0, 0);
  }
  // Zero-filled codes past the end of w are code 0: with it unused, an infinity there must not
  // show.
  const lowrank::QuantView& q = gemm.w.quant;
  if (!gemm.w.quantised() || q.format->bits != 4) return;
  const lowrank::QuantView& host = operands->weight.view.quant;
  for (size_t i = 0; i < q.code_bytes(); ++i) {
    uint8_t code = host.codes[i];
    if ((code & 15) == 0) code = static_cast<uint8_t>(code | 1);
    if ((code >> 4) == 0) code = static_cast<uint8_t>(code | 16);
    host.codes[i] = code;
    q.codes[i] = code;
  }
  const_cast<float*>(q.codebook)[0] = static_cast<float>(inf);
}

void Compare(const Case& c, const Operands& operands) {
  const lowrank::cuda::GemmMmaOperands& gemm = operands.gemm;
  const auto of = [](const TensorView& view) {
    return Exact::Of(view.rows, view.cols,
                     [&](int64_t row, int64_t col) { return At(view, row, col); });
  };
  const Exact w = Exact::Of(c.N, c.K, [&](int64_t row, int64_t col) {
    return RoundTo(c.dtype, operands.weight.At(row, col));
  });
  Exact adapter(c.M, gemm.y.cols);
  if (c.r > 0) {
    const Exact h = Exact::Of(
        c.M, c.r, [&](int64_t m, int64_t j) { return static_cast<double>(gemm.h[m * c.r + j]); });
    const Exact factor = of(gemm.lora_factor);
    adapter.Add(h, c.transposed ? factor : factor.Transposed());
  }
  if (gemm.lora_bias.present) adapter.Add(of(gemm.lora_bias));
  Exact y(c.M, gemm.y.cols);
  y.Add(of(gemm.x), c.transposed ? w : w.Transposed());
  for (int64_t m = 0; m < c.M; ++m) {
    for (int64_t col = 0; col < gemm.y.cols; ++col) {
      const double gate = (c.transposed ? GateAt(gemm.dropout, m, col, c.K) : 1) *
                          static_cast<double>(gemm.scaling);
      if (gate == 0) continue;  // also of an infinity in h
      y.value[y.Index(m, col)] += gate * adapter.value[y.Index(m, col)];
      y.size[y.Index(m, col)] += std::fabs(gate) * adapter.size[y.Index(m, col)];
    }
  }
  if (gemm.bias.present) y.Add(of(gemm.bias));
  if (c.accumulate) y.Add(of(operands.before));

  const std::string name = c.Name();
  for (int64_t m = 0; m < c.M; ++m) {
    for (int64_t col = 0; col < gemm.y.cols; ++col) {
      const double exact = y.value[y.Index(m, col)];
      const double rounded = RoundTo(c.dtype, exact);
      const double actual = At(gemm.y, m, col);
      const std::string what = name + " [" + std::to_string(m) + ", " + std::to_string(col) + "]";
      if (std::isfinite(rounded)) {
        Expect(what, actual, exact, y.size[y.Index(m, col)], c.dtype);
      } else {
        Report(std::isnan(rounded) ? std::isnan(actual) : actual == rounded,
               what + " " + std::to_string(actual) + " for " + std::to_string(exact));
      }
    }
  }
}

Status MakePlan(const Case& c, const lowrank::cuda::GemmMmaOperands& operands,
                const lowrank::cuda::DeviceLimits& limits, lowrank::cuda::Workspace* workspace,
                lowrank::cuda::Plan* plan) {
  if (c.dtype == DType::kF32) {
    return lowrank::cuda::PlanGemmF32(operands, limits, workspace, plan);
  }
  lowrank::cuda::GemmMmaChoice choice = SelectGemmMma(operands, limits);
  if (c.splits > 1) {
    const int64_t slabs = (operands.x.cols + 63) / 64;
    choice.slabs_per_split = static_cast<int32_t>((slabs / c.splits + 8) / 8 * 8);
    choice.splits =
        static_cast<int32_t>((slabs + choice.slabs_per_split - 1) / choice.slabs_per_split);
    Report(choice.splits == c.splits, c.Name() + ": in " + std::to_string(choice.splits));
  }
  return PlanGemmMma(operands, choice, workspace, plan);
}

/// The other tile, which gives the same bits.
void CheckOtherTile(const Case& c, const Operands& operands,
                    const std::vector<unsigned char>& expected) {
  lowrank::cuda::DeviceLimits limits;
  limits.sm_count = c.sm_count < 100 ? 100000 : 1;
  lowrank::cuda::Workspace workspace;
  lowrank::cuda::Plan plan;
  MakePlan(c, operands.gemm, limits, &workspace, &plan);
  if (c.accumulate) {
    emu::CopyMemory(operands.gemm.y.data, operands.before.data, operands.before.bytes());
  }
  RunPlan(plan, c.Name());
  Report(std::memcmp(expected.data(), operands.gemm.y.data, expected.size()) == 0,
         c.Name() + ": other bits with the other tile");
}

/// Every schedule gives the bits of the first.
void Check(const Case& c, int seeds) {
  Operands operands(c);
  if (c.special) Poke(c, &operands);
  lowrank::cuda::DeviceLimits limits;
  limits.sm_count = c.sm_count;
  lowrank::cuda::Workspace measure;
  lowrank::cuda::Plan plan;
  Status status = MakePlan(c, operands.gemm, limits, &measure, &plan);
  if (!status.ok()) return Report(false, c.Name() + ": " + status.message());
  void* memory = measure.bytes() > 0 ? operands.device.Bytes(nullptr, measure.bytes()) : nullptr;
  lowrank::cuda::Workspace workspace(memory);
  plan.steps.clear();
  MakePlan(c, operands.gemm, limits, &workspace, &plan);

  std::vector<unsigned char> first;
  for (int turn = 0; turn < 3 + seeds; ++turn) {
    emu::Options options = emu::CurrentOptions();
    options.order = turn == 0   ? emu::Order::kForward
                    : turn == 1 ? emu::Order::kReverse
                    : turn == 2 ? emu::Order::kForward
                                : emu::Order::kRandom;
    options.copies = turn == 2 || turn % 2 == 1 ? emu::Copies::kEarly : emu::Copies::kLate;
    options.seed = static_cast<uint64_t>(turn);
    emu::SetOptions(options);
    if (turn > 0 && c.accumulate) {
      emu::CopyMemory(operands.gemm.y.data, operands.before.data, operands.before.bytes());
    }
    RunPlan(plan, c.Name());
    const unsigned char* y = static_cast<const unsigned char*>(operands.gemm.y.data);
    if (turn == 0) {
      Compare(c, operands);
      first.assign(y, y + operands.before.bytes());
    } else {
      Report(std::memcmp(first.data(), y, first.size()) == 0,
             c.Name() + ": other bits in schedule " + std::to_string(turn));
    }
  }
  if (c.splits == 1 && c.dtype != DType::kF32) CheckOtherTile(c, operands, first);
}

/// A few of all combinations: each value of each dimension, against shapes that cycle. A sample has
/// of each weight, dtype and direction one fast variant, in turns, and the ragged one.
std::vector<Case> Cases(bool sample) {
  std::vector<Case> cases;
  struct Dims {
    int64_t M, N, K, r;
  };
  const Dims shapes[] = {
      {130, 136, 192, 16}, {65, 72, 96, 3}, {1, 8, 32, 0}, {129, 264, 160, 40}, {64, 64, 64, 64}};
  const Dims ragged[] = {{5, 33, 31, 3}, {65, 15, 65, 8}, {3, 63, 172, 17}, {70, 66, 129, 1}};
  const char* weights[] = {"nf4/64",   "nf4/64d",  "fp4/32",   "nf4/128d", "int8/64",
                           "int8/32d", "int8/256", "fp4/4096", "same",     "f32"};
  int turn = 0;
  for (const bool transposed : {false, true}) {
    for (const DType dtype : {DType::kBF16, DType::kF16, DType::kF32}) {
      for (const char* weight : weights) {
        for (int variant = 0; variant < 4; ++variant) {
          const bool fast = variant < 3;
          if (sample && fast && variant != turn / 4 % 3) {
            ++turn;
            continue;
          }
          const Dims& dims = fast ? shapes[turn % 5] : ragged[turn % 4];
          Case c;
          c.weight = weight;
          c.dtype = dtype;
          c.transposed = transposed;
          c.M = dims.M, c.N = dims.N, c.K = dims.K, c.r = dims.r;
          c.factor = turn % 2 == 0 ? DType::kF32 : dtype;
          c.bias = !transposed && turn % 3 == 0;
          c.lora_bias = !transposed && turn % 4 == 1;
          c.p = transposed && turn % 3 == 1 ? 0.3 : 0;
          c.mask = transposed && turn % 3 == 2;
          c.accumulate = turn % 5 >= 3;
          c.sm_count = variant % 2 == 0 ? 2 : 1000;
          cases.push_back(c);
          ++turn;
        }
      }
      // Not in the cycle: nothing to sum, a long reduction, memory off 16 bytes.
      Case c;
      c.dtype = dtype;
      c.transposed = transposed;
      c.bias = !transposed;
      c.M = 9, c.N = transposed ? 0 : 24, c.K = transposed ? 24 : 0;
      cases.push_back(c);
      c.r = 5;
      cases.push_back(c);
      c.M = 70, c.N = 1032, c.K = 1056, c.r = 24, c.weight = "nf4/64d", c.factor = dtype;
      cases.push_back(c);
      c.sm_count = 8;
      cases.push_back(c);
      for (const char* weight : {"nf4/64", "fp4/32d", "int8/64", "same", "f32"}) {
        for (const DType factor : {DType::kF32, dtype}) {
          Case special;
          special.dtype = dtype, special.transposed = transposed, special.weight = weight;
          special.factor = factor, special.special = true;
          special.M = 67, special.N = 72, special.K = 96, special.r = 9;
          special.p = transposed ? 0.5 : 0;
          special.sm_count = factor == DType::kF32 ? 1 : 1000;
          cases.push_back(special);
        }
      }
      // A reduction in parts, of both tiles and of the general decode.
      c.M = 66, c.N = transposed ? 2112 : 40, c.K = transposed ? 64 : 2112;
      c.splits = 2, c.sm_count = 1000;
      cases.push_back(c);
      c.sm_count = 1, c.accumulate = true;
      cases.push_back(c);
      c.accumulate = false;
      c.N = transposed ? 3110 : 13, c.K = transposed ? 13 : 3110;
      cases.push_back(c);
      c.splits = 1, c.sm_count = 108;
      c.M = 20, c.N = 40, c.K = 64, c.misalign = dtype == DType::kF32 ? 4 : 2, c.weight = "same";
      cases.push_back(c);
    }
  }
  return cases;
}

void PrintCounters() {
  for (const emu::LineCount& line : emu::LineCounts()) {
    if (line.requests == 0) continue;
    const double ratio =
        line.ideal == 0 ? 0 : static_cast<double>(line.cost) / static_cast<double>(line.ideal);
    std::printf("%-48s %s:%d %-16s %2u B requests %8llu cost %8llu ideal %8llu ratio %.2f%s\n",
                line.kernel.c_str(), line.where.file.c_str(), static_cast<int>(line.where.line),
                emu::ToString(line.kind), line.bytes_per_lane,
                static_cast<unsigned long long>(line.requests),
                static_cast<unsigned long long>(line.cost),
                static_cast<unsigned long long>(line.ideal), ratio, ratio > 1.10 ? "  <--" : "");
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int seeds = argc > 1 ? std::atoi(argv[1]) : 1;
  const std::string filter = argc > 2 ? argv[2] : "";
  std::string error;
  if (!emu::OptionsFromEnvironment(&error)) std::printf("%s\n", error.c_str());
  const bool counters = argc > 3;
  if (counters) {
    emu::Options options = emu::CurrentOptions();
    options.counters = true;
    emu::SetOptions(options);
  }
  int count = 0;
  for (const Case& c : Cases(seeds <= -2)) {
    if (c.Name().find(filter) == std::string::npos) continue;
    Check(c, seeds);
    ++count;
  }
  if (counters) PrintCounters();
  std::printf("cuda_gemm_mma_check: %d cases, %d checks, %d failures\n", count,
              lowrank::cpu::g_checks, lowrank::cpu::g_failures);
  return lowrank::cpu::g_failures == 0 && count > 0 ? 0 : 1;
}
