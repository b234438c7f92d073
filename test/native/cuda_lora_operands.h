/// Device memory, cases, schedules and comparison for the adapter's kernel checks.
#pragma once

#include <memory>

#include "cuda/emulator/run_plan.h"
#include "native/cuda/plans/plan.h"
#include "test/native/kernel_operands.h"

namespace lowrank::loracheck {

using cpu::Expect;
using cpu::GateAt;
using cpu::Report;
using cpu::Uniform;

/// Random schedules beside the three that every case runs in.
inline int g_seeds = 0;

/// Memory of the emulated device, ending at a page that faults, `misalign` elements off.
class Device {
 public:
  explicit Device(int64_t misalign = 0) : misalign_(misalign) {}

  TensorView Tensor(int64_t rows, int64_t cols, DType dtype) {
    TensorView view;
    view.dtype = dtype;
    view.rows = rows;
    view.cols = cols;
    view.present = true;
    const size_t skip = static_cast<size_t>(misalign_) * DTypeBytes(dtype);
    arrays_.emplace_back(view.bytes() + skip, 256);
    view.data = arrays_.back().data() + skip;
    return view;
  }
  /// Values in [-scale, scale]; whole numbers where `integers`.
  TensorView Random(int64_t rows, int64_t cols, DType dtype, double scale, bool integers = false) {
    const TensorView view = Tensor(rows, cols, dtype);
    std::vector<unsigned char> host(view.bytes() + 8);
    for (int64_t i = 0; i < view.elems(); ++i) {
      const double value = Uniform() * scale;
      StoreElement(host.data(), dtype, i, integers ? std::round(value) : value);
    }
    emu::CopyMemory(view.data, host.data(), view.bytes());
    return view;
  }
  TensorView Copy(const TensorView& from) {
    if (!from.present) return from;
    TensorView view = Tensor(from.rows, from.cols, from.dtype);
    emu::CopyMemory(view.data, from.data, from.bytes());
    return view;
  }
  void* Bytes(size_t bytes) {
    arrays_.emplace_back(bytes, 256);
    return arrays_.back().data();
  }

 private:
  int64_t misalign_;
  std::vector<emu::DeviceArray<unsigned char>> arrays_;
};

inline double At(const TensorView& view, int64_t i) {
  return LoadElement(view.data, view.dtype, i);
}
inline void Poke(const TensorView& view, int64_t i, double value) {
  StoreElement(view.data, view.dtype, i, value);
}

struct Case {
  int64_t M = 0, N = 0, K = 0, r = 0;
  DType x = DType::kBF16;
  DType factor = DType::kF32;
  double p = 0;
  bool mask = false;
  DType mask_dtype = DType::kF32;
  int64_t misalign = 0;
  int sm_count = 108;
  int64_t l2_bytes = 40 << 20;
  bool integers = false;
  // Backward
  int needs = 31;  // bits: dx, d_lora_a, d_lora_b, d_bias, d_lora_bias
  bool accumulate = false;
  DType out = DType::kF32;

  std::string Name() const {
    return std::string(DTypeName(x)) + " factor " + DTypeName(factor) + " M " + std::to_string(M) +
           " N " + std::to_string(N) + " K " + std::to_string(K) + " r " + std::to_string(r) +
           (p > 0 ? " dropout" : "") + (mask ? std::string(" mask ") + DTypeName(mask_dtype) : "") +
           (misalign > 0 ? " misaligned" : "") + (integers ? " integers" : "") + " needs " +
           std::to_string(needs) + (accumulate ? " accumulate " : " ") + DTypeName(out) + " on " +
           std::to_string(sm_count) + "/" + std::to_string(l2_bytes);
  }
  cuda::DeviceLimits Limits() const {
    cuda::DeviceLimits limits;
    limits.sm_count = sm_count;
    limits.l2_bytes = l2_bytes;
    return limits;
  }
};

/// Plans, gives the plan its workspace, and runs it under several schedules: `reset` before and
/// `outputs` compared bit for bit after each.
template <typename Make, typename Reset>
bool RunAll(const std::string& name, Device* device, const Make& make, const Reset& reset,
            const std::vector<TensorView>& outputs) {
  cuda::Workspace measure;
  cuda::Plan plan;
  Status status = make(&measure, &plan);
  Report(status.ok(), name + ": " + status.message());
  if (!status.ok()) return false;
  std::vector<std::vector<unsigned char>> first;
  for (int turn = 0; turn < 3 + g_seeds; ++turn) {
    // Fresh memory each time: nothing may rest on what a launch before left there.
    cuda::Workspace workspace(measure.bytes() > 0 ? device->Bytes(measure.bytes()) : nullptr);
    plan.steps.clear();
    make(&workspace, &plan);
    emu::Options options = emu::CurrentOptions();
    options.order = turn == 1   ? emu::Order::kReverse
                    : turn == 0 ? emu::Order::kForward
                                : emu::Order::kRandom;
    options.copies = turn % 2 == 0 ? emu::Copies::kLate : emu::Copies::kEarly;
    options.seed = static_cast<uint64_t>(turn);
    emu::SetOptions(options);
    reset();
    status = emu::RunPlan(plan);
    std::string text = name + ": " + status.message();
    for (const emu::Finding& finding : emu::Findings()) text += "\n  " + finding.text;
    Report(status.ok() && emu::FindingCount() == 0, text);
    emu::ClearFindings();
    if (!status.ok()) return false;
    for (size_t i = 0; i < outputs.size(); ++i) {
      if (!outputs[i].present) continue;
      const unsigned char* bytes = static_cast<const unsigned char*>(outputs[i].data);
      if (turn == 0) {
        first.resize(outputs.size());
        first[i].assign(bytes, bytes + outputs[i].bytes());
      } else {
        Report(std::memcmp(first[i].data(), bytes, first[i].size()) == 0,
               name + ": output " + std::to_string(i) + " has other bits in schedule " +
                   std::to_string(turn));
      }
    }
  }
  return true;
}

/// A value in double and the sum of the magnitudes of what was added.
struct Sum {
  double value = 0;
  double size = 0;
  void Add(double product) {
    value += product;
    size += std::fabs(product);
  }
};

/// `actual` against `sum`: exactly where everything is an integer, else within the bound of so many
/// units; the same NaN or infinity where the double has one.
inline void Compare(const std::string& what, const TensorView& out, int64_t i, const Sum& sum,
                    bool integers, double units = 16) {
  const double actual = At(out, i);
  if (std::fabs(sum.value) > 0x1.fffffefffp127) {  // rounds to infinity in f32
    return Report(actual == std::copysign(HUGE_VAL, sum.value), what + " overflows");
  }
  if (!std::isfinite(sum.value) || integers) {
    const bool same = std::isnan(sum.value) ? std::isnan(actual) : actual == sum.value;
    if (same) return Report(true, what);
    return Report(false, what + "[" + std::to_string(i) + "] got " + std::to_string(actual) +
                             ", exact " + std::to_string(sum.value));
  }
  Expect(what + "[" + std::to_string(i) + "]", actual, sum.value, sum.size, out.dtype, units);
}

inline DropoutSpec MakeDropout(const Case& c, Device* device) {
  DropoutSpec dropout;
  dropout.p = c.p;
  dropout.seed = 0xfedcba9876543210ull;
  if (c.mask) {
    dropout.mask = device->Random(c.M, c.K, c.mask_dtype, 1);
    for (int64_t i = 0; i < c.M * c.K; ++i) {
      if (Uniform() < -0.2) Poke(dropout.mask, i, i % 2 == 0 ? 0.0 : -0.0);
    }
  }
  return dropout;
}

/// The element of gate ⊙ x; zero where dropped, whatever x holds.
inline double Gated(const TensorView& x, const DropoutSpec& dropout, int64_t m, int64_t k) {
  const double gate = GateAt(dropout, m, k, x.cols);
  return gate == 0 ? 0 : gate * At(x, m * x.cols + k);
}

}  // namespace lowrank::loracheck
