#include "native/cuda/plans/plan_planes.h"
#include "native/cuda/plans/plan_streaming.h"
#include "native/host_device/params/dequantize.h"

namespace lowrank::cuda {
namespace {

/// By bits, then in DType's order.
constexpr const char* kKernels4[3] = {"dequantize_4bit_f32_kernel", "dequantize_4bit_bf16_kernel",
                                      "dequantize_4bit_f16_kernel"};
constexpr const char* kPlanes[3] = {"planes_f32_kernel", "planes_bf16_kernel", "planes_f16_kernel"};
constexpr const char* kKernels8[3] = {"dequantize_8bit_f32_kernel", "dequantize_8bit_bf16_kernel",
                                      "dequantize_8bit_f16_kernel"};

}  // namespace

Status PlanPlanes(const QuantView& w, const TensorView& y, Plan* plan) {
  gpu::PlanesParams params{};
  params.planes = w.planes;
  params.codes = w.codes;
  params.levels = w.codebook;
  params.level_count = static_cast<uint32_t>(w.format->levels);
  params.y = y.data;
  params.rows = w.rows;
  params.cols = w.cols;
  params.vector = IsAligned(y.data, 16) && w.cols % 8 == 0;
  params.words = IsAligned(w.codes, 8) && w.cols % 8 == 0;
  LaunchStep step;
  step.kernel = kPlanes[static_cast<int>(y.dtype)];
  step.threads = gpu::kPlanesThreads;
  step.shared_bytes = sizeof(gpu::PlanesShared);
  LOWRANK_RETURN_IF_ERROR(
      SetGrid(DequantizeOp::kName, w.rows * CeilDiv(w.cols, 8), gpu::kPlanesThreads, &step));
  step.SetParams(params);
  plan->steps.push_back(step);
  return Status();
}

Status MakePlan(const DequantizeOp& op, const DeviceLimits&, Workspace*, Plan* plan) {
  const QuantView& w = op.w;
  if (w.elems() == 0) return Status();
  if (w.planar()) return PlanPlanes(w, op.y, plan);
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
