#include "native/cuda/plans/plan.h"
#include "native/cuda/plans/plan_streaming.h"
#include "native/host_device/params/dequantize.h"

namespace lowrank::cuda {
namespace {

/// By bits, then in DType's order.
constexpr const char* kKernels4[3] = {"dequantize_4bit_f32_kernel", "dequantize_4bit_bf16_kernel",
                                      "dequantize_4bit_f16_kernel"};
constexpr const char* kKernels8[3] = {"dequantize_8bit_f32_kernel", "dequantize_8bit_bf16_kernel",
                                      "dequantize_8bit_f16_kernel"};

}  // namespace

Status MakePlan(const DequantizeOp& op, const DeviceLimits&, Workspace*, Plan* plan) {
  const QuantView& w = op.w;
  if (w.elems() == 0) return Status();
  gpu::DequantizeParams params{};
  params.codes = w.codes;
  params.codebook = w.codebook;
  params.absmax = w.double_quant() ? nullptr : w.absmax;
  params.absmax_8bit = w.absmax_8bit;
  params.absmax_codebook = w.absmax_codebook;
  params.nested_absmax = w.nested_absmax;
  params.absmax_offset = w.absmax_offset;
  params.nested_blocksize = w.nested_blocksize;
  params.elems = w.elems();
  params.y = op.y.data;
  params.blocksize_log2 = Log2(w.blocksize);
  params.vector = IsAligned(op.y.data, 16) && IsAligned(w.codes, 8);

  LaunchStep step;
  const bool nibbles = w.format->bits == 4;
  step.kernel = (nibbles ? kKernels4 : kKernels8)[static_cast<int>(op.y.dtype)];
  step.threads = gpu::kDequantizeThreads;
  step.shared_bytes =
      nibbles ? sizeof(gpu::DequantizeShared<16>) : sizeof(gpu::DequantizeShared<256>);
  const int64_t runs = CeilDiv(static_cast<int64_t>(op.y.bytes()), 16);
  LOWRANK_RETURN_IF_ERROR(
      SetGrid(DequantizeOp::kName, runs, gpu::kDequantizeThreads * gpu::kDequantizeUnroll, &step));
  step.SetParams(params);
  plan->steps.push_back(step);
  return Status();
}

}  // namespace lowrank::cuda
