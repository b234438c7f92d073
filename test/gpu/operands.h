/// Operands of an op in device memory, filled on the device.
#pragma once

#include <vector>

#include "native/core/ops/ops.h"
#include "test/gpu/machine.h"

namespace lowrank::cuda {

class Operands {
 public:
  explicit Operands(Machine* machine) : machine_(*machine), memory_(machine) {}

  DeviceMemory& memory() { return memory_; }
  /// The first failure of anything below.
  const Status& status() const { return status_.ok() ? memory_.status() : status_; }

  /// Uninitialised.
  TensorView Tensor(int64_t rows, int64_t cols, DType dtype) {
    TensorView view;
    view.dtype = dtype;
    view.rows = rows;
    view.cols = cols;
    view.present = true;
    view.data = memory_.Take(view.bytes());
    return view;
  }
  /// Normal values; each call draws others.
  TensorView Normal(int64_t rows, int64_t cols, DType dtype, double scale = 1) {
    RandomOp op;
    op.seed = ++seed_;
    op.scale = scale;
    op.y = Tensor(rows, cols, dtype);
    Run(op);
    return op.y;
  }
  /// A weight's parts, uninitialised.
  QuantView Quantised(const char* format, int64_t N, int64_t K, bool double_quant) {
    QuantView view;
    view.format = FindFormat(format);
    view.rows = N;
    view.cols = K;
    view.blocksize = 64;
    const size_t blocks = static_cast<size_t>(view.blocks());
    view.codes = Part<uint8_t>(view.code_bytes());
    view.codebook = Table(view.format->codebook, static_cast<size_t>(view.format->levels));
    if (double_quant) {
      view.absmax_8bit = Part<uint8_t>(blocks);
      view.absmax_codebook = Table(DynamicMap8bit(), 256);
      view.nested_absmax = Part<float>(static_cast<size_t>(view.nested_blocks()));
      view.absmax_offset = Part<float>(1);
    } else {
      view.absmax = Part<float>(blocks);
    }
    return view;
  }
  /// A random weight: dense where `format` is empty.
  WeightView Weight(const char* format, bool double_quant, int64_t N, int64_t K, DType dtype,
                    double scale) {
    WeightView w;
    const TensorView dense = Normal(N, K, dtype, scale);
    if (*format == 0) {
      w.dense = dense;
      return w;
    }
    QuantizeOp op;
    op.w = dense;
    op.out = Quantised(format, N, K, double_quant);
    Run(op);
    memory_.Free(dense.data);
    w.quant = op.out;
    return w;
  }

  /// To its end.
  template <typename Op>
  void Run(const Op& op) {
    if (!status().ok()) return;
    DeviceMemory workspace(&machine_);
    Plan plan;
    status_ = PlanOp(&machine_, op, &workspace, &plan);
    if (status_.ok()) status_ = RunPlan(&machine_, plan, machine_.home());
    memory_.Wait();
  }

 private:
  template <typename T>
  T* Part(size_t count) {
    return static_cast<T*>(memory_.Take(count * sizeof(T)));
  }
  const float* Table(const float* values, size_t count) {
    return static_cast<const float*>(memory_.Put(values, count * sizeof(float)));
  }

  Machine& machine_;
  DeviceMemory memory_;
  Status status_;
  uint64_t seed_ = 0;
};

}  // namespace lowrank::cuda
