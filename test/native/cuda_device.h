/// Operands in the emulator's device memory, and plans run on it, for the native checks of the CUDA
/// kernels.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "cuda/emulator/runtime.h"
#include "native/cuda/plans/plan.h"
#include "test/native/kernel_operands.h"

namespace lowrank::cuda {

/// Copies of host buffers on the device, freed with this; Read() brings one back. Every copy starts
/// `misalign` bytes behind a 256-byte boundary and ends at a page that faults.
class DeviceCopies {
 public:
  explicit DeviceCopies(size_t misalign = 0) : misalign_(misalign) {}
  ~DeviceCopies() {
    for (const Copy& copy : copies_) emu::Free(copy.base);
  }
  DeviceCopies(const DeviceCopies&) = delete;
  DeviceCopies& operator=(const DeviceCopies&) = delete;

  template <typename T>
  T* Put(T* host, size_t bytes) {
    if (host == nullptr) return nullptr;
    T* device = static_cast<T*>(Allocate(bytes));
    emu::CopyMemory(const_cast<std::remove_const_t<T>*>(device), host, bytes);
    return device;
  }
  TensorView Put(TensorView view) {
    if (view.present) view.data = Put(static_cast<unsigned char*>(view.data), view.bytes());
    return view;
  }
  /// An output: uninitialised on the device.
  TensorView Empty(TensorView view) {
    view.data = Allocate(view.bytes());
    return view;
  }
  QuantView Put(QuantView view) {
    const size_t blocks = static_cast<size_t>(view.blocks());
    view.codes = Put(view.codes, view.code_bytes());
    PutScales(&view, blocks, true);
    return view;
  }
  QuantView Empty(QuantView view) {
    const size_t blocks = static_cast<size_t>(view.blocks());
    view.codes = static_cast<uint8_t*>(Allocate(view.code_bytes()));
    PutScales(&view, blocks, false);
    return view;
  }
  void* Allocate(size_t bytes) {
    unsigned char* base = static_cast<unsigned char*>(emu::Allocate(bytes + misalign_));
    copies_.push_back({base});
    return base + misalign_;
  }

 private:
  struct Copy {
    void* base;
  };

  void PutScales(QuantView* view, size_t blocks, bool filled) {
    const size_t levels = static_cast<size_t>(view->format->levels);
    // The tables keep their alignment: they are the library's own.
    const size_t misalign = misalign_;
    misalign_ = 0;
    view->codebook = Put(view->codebook, levels * 4);
    view->absmax_codebook = Put(view->absmax_codebook, 256 * 4);
    const size_t nested = static_cast<size_t>(view->nested_blocks());
    auto part = [&](auto* host, size_t bytes) {
      using T = std::remove_pointer_t<decltype(host)>;
      if (host == nullptr) return host;
      return filled ? Put(host, bytes) : static_cast<T*>(Allocate(bytes));
    };
    view->absmax = part(view->absmax, blocks * 4);
    view->absmax_8bit = part(view->absmax_8bit, blocks);
    view->nested_absmax = part(view->nested_absmax, nested * 4);
    view->absmax_offset = part(view->absmax_offset, 4);
    misalign_ = misalign;
  }

  size_t misalign_;
  std::vector<Copy> copies_;
};

/// Plans (by `make`, a function of a workspace and a plan), runs every step; `first_non_finite`
/// takes what the plan reports. Each step runs on memory as the steps before left it.
template <typename Make>
std::string RunPlan(const Make& make, int64_t* first_non_finite = nullptr) {
  Workspace measure;
  Plan sketch;
  Status status = make(&measure, &sketch);
  if (!status.ok()) return status.message();
  void* memory = emu::Allocate(std::max<size_t>(measure.bytes(), 1));
  Workspace workspace(memory);
  Plan plan;
  status = make(&workspace, &plan);
  std::string error = status.ok() ? "" : status.message();
  if (error.empty() && workspace.bytes() != measure.bytes()) error = "workspace sizes differ";
  if (plan.first_non_finite != nullptr) {
    emu::SetMemory(plan.first_non_finite, 0x7f, sizeof(int64_t));
  }
  for (const LaunchStep& step : plan.steps) {
    if (!error.empty()) break;
    emu::Launch launch;
    launch.kernel = emu::FindKernel(step.kernel);
    launch.grid = emu::Dim3(step.grid.x, step.grid.y, step.grid.z);
    launch.block = emu::Dim3(step.threads);
    launch.cluster = step.cluster;
    launch.shared_bytes = step.shared_bytes;
    launch.params = step.params.data();
    if (launch.kernel == nullptr) {
      error = std::string("no kernel ") + step.kernel;
    } else if (launch.kernel->param_bytes != step.param_bytes) {
      error = std::string("parameters of ") + step.kernel;
    } else if (emu::RunGrid(launch) != emu::LaunchStatus::kOk) {
      error = std::string("failed: ") + step.kernel;
    }
  }
  if (first_non_finite != nullptr) {
    *first_non_finite = plan.first_non_finite == nullptr ? -1 : *plan.first_non_finite;
  }
  emu::Free(memory);
  return error;
}

/// Every schedule that a check is repeated under: forward, reverse, early copies, `seeds` random.
/// With fewer than none: forward with late copies, and reverse with early ones.
inline std::vector<emu::Options> Schedules(int seeds) {
  std::vector<emu::Options> schedules;
  emu::Options options = emu::CurrentOptions();
  options.order = emu::Order::kForward;
  schedules.push_back(options);
  options.order = emu::Order::kReverse;
  if (seeds < 0) {
    options.copies = emu::Copies::kEarly;
    schedules.push_back(options);
    return schedules;
  }
  schedules.push_back(options);
  options.order = emu::Order::kForward;
  options.copies = emu::Copies::kEarly;
  schedules.push_back(options);
  options.order = emu::Order::kRandom;
  for (int seed = 1; seed <= seeds; ++seed) {
    options.seed = static_cast<uint64_t>(seed);
    options.copies = seed % 2 == 0 ? emu::Copies::kEarly : emu::Copies::kLate;
    schedules.push_back(options);
  }
  return schedules;
}

}  // namespace lowrank::cuda
