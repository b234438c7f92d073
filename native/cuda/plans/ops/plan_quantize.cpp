#include <algorithm>
#include <limits>

#include "native/cuda/plans/plan.h"
#include "native/cuda/plans/plan_streaming.h"
#include "native/host_device/params/quantize.h"

namespace lowrank::cuda {
namespace {

/// By bits, then in DType's order.
constexpr const char* kKernels4[3] = {"quantize_4bit_f32_kernel", "quantize_4bit_bf16_kernel",
                                      "quantize_4bit_f16_kernel"};
constexpr const char* kKernels8[3] = {"quantize_8bit_f32_kernel", "quantize_8bit_bf16_kernel",
                                      "quantize_8bit_f16_kernel"};
constexpr const char* kKernelsRows[3] = {"quantize_rows_f32_kernel", "quantize_rows_bf16_kernel",
                                         "quantize_rows_f16_kernel"};
constexpr int64_t kWarps = gpu::kQuantizeThreads / 32;

gpu::QuantizeParams ParamsOf(const QuantizeOp& op, float* absmax, int64_t* first_non_finite) {
  const QuantView& out = op.out;
  const FormatRow& format = *out.format;
  gpu::QuantizeParams params{};
  params.w = op.w.data;
  params.codes = out.codes;
  params.absmax = absmax;
  params.first_non_finite = first_non_finite;
  params.codebook = out.codebook;
  params.elems = op.w.elems();
  if (format.bits == 4) {
    for (int i = 0; i < 16; ++i) {
      params.thresholds.value[i] = i < format.threshold_count
                                       ? format.thresholds[i]
                                       : std::numeric_limits<float>::infinity();
      if (i <= format.threshold_count) {
        params.rank_to_code |= static_cast<uint64_t>(format.rank_to_code[i]) << (4 * i);
      }
    }
  }
  params.blocksize_log2 = Log2(out.blocksize);
  params.zero_code = format.zero_code;
  params.sign_magnitude = format.sign_magnitude;
  params.vector = IsAligned(op.w.data, 16) && IsAligned(out.codes, 8);
  return params;
}

/// One scale per row: one block of threads per row, a small one if rows are short.
Status PlanRows(const QuantizeOp& op, Workspace* workspace, Plan* plan) {
  const QuantView& out = op.out;
  // Allocations are aligned so, as are rows of a multiple of 32.
  if (!IsAligned(out.codes, 8)) {
    return Refuse(Code::kUnsupported, QuantizeOp::kName, "out",
                  "8-byte aligned (the weight is rowwise)", "codes at another address");
  }
  const int64_t elems = 16 / static_cast<int64_t>(DTypeBytes(op.w.dtype));
  const int64_t warps =
      std::min(CeilDiv(out.cols, 2 * elems * 32), int64_t{gpu::kQuantizeRowsThreads / 32});
  const int64_t chunk = warps * 32 * gpu::kQuantizeRowsUnroll * elems;
  gpu::QuantizeRowsParams params{};
  params.w = op.w.data;
  params.codes = out.codes;
  params.absmax = out.absmax;
  params.first_non_finite = plan->first_non_finite = workspace->Take<int64_t>(1);
  params.K = out.cols;
  params.blocks = out.cols / out.blocksize;
  params.last_chunk = (out.cols - 1) / chunk;
  params.whole = IsAligned(op.w.data, 16);
  plan->finite_in_f16 = true;

  LaunchStep step;
  step.kernel = kKernelsRows[static_cast<int>(op.w.dtype)];
  step.threads = static_cast<uint32_t>(warps * 32);
  step.shared_bytes = sizeof(gpu::QuantizeRowsShared);
  LOWRANK_RETURN_IF_ERROR(SetGrid(QuantizeOp::kName, out.rows, 1, &step));
  step.SetParams(params);
  plan->steps.push_back(step);
  return Status();
}

/// Offset, nested scales and codes from the sums of the scales.
Status PlanAbsmaxCodes(const QuantView& out, const float* absmax, const gpu::AbsmaxSum* sums,
                       int64_t sum_count, Plan* plan) {
  gpu::AbsmaxCodesParams params{};
  params.absmax = absmax;
  params.sums = sums;
  params.absmax_codebook = out.absmax_codebook;
  params.absmax_8bit = out.absmax_8bit;
  params.nested_absmax = out.nested_absmax;
  params.absmax_offset = out.absmax_offset;
  params.blocks = out.blocks();
  params.nested_blocksize = out.nested_blocksize;
  params.sum_count = static_cast<uint32_t>(sum_count);
  LaunchStep step;
  step.kernel = "quantize_absmax_codes_kernel";
  step.threads = gpu::kQuantizeThreads;
  step.shared_bytes = sizeof(gpu::AbsmaxCodesShared);
  const int64_t nested_blocks = out.nested_blocks() > 0 ? out.nested_blocks() : 1;
  LOWRANK_RETURN_IF_ERROR(SetGrid(QuantizeOp::kName, nested_blocks, kWarps, &step));
  step.SetParams(params);
  plan->steps.push_back(step);
  return Status();
}

/// Quantises the scales of a double-quantised weight, `absmax` [blocks], to 8 bits.
Status PlanAbsmax(const QuantView& out, const float* absmax, const DeviceLimits& device,
                  Workspace* workspace, Plan* plan) {
  const int64_t blocks = out.blocks();
  const int64_t sums_max = device.sm_count < static_cast<int>(gpu::kAbsmaxSumsMax)
                               ? device.sm_count
                               : int64_t{gpu::kAbsmaxSumsMax};
  gpu::AbsmaxSumParams sum{};
  sum.absmax = absmax;
  sum.blocks = blocks;
  // Whole rounds of a block of threads, so that each thread reads a contiguous run.
  sum.share = CeilDiv(CeilDiv(blocks, sums_max), gpu::kQuantizeThreads) * gpu::kQuantizeThreads;
  const int64_t sum_count = CeilDiv(blocks, sum.share);
  sum.sums = workspace->Take<gpu::AbsmaxSum>(sum_count);
  LaunchStep step;
  step.kernel = "quantize_absmax_sum_kernel";
  step.threads = gpu::kQuantizeThreads;
  step.shared_bytes = sizeof(gpu::AbsmaxSumShared);
  step.grid.x = static_cast<uint32_t>(sum_count);
  step.SetParams(sum);
  plan->steps.push_back(step);

  return PlanAbsmaxCodes(out, absmax, sum.sums, sum_count, plan);
}

}  // namespace

Status MakePlan(const QuantizeOp& op, const DeviceLimits& device, Workspace* workspace,
                Plan* plan) {
  const QuantView& out = op.out;
  const int64_t blocks = out.blocks();
  // The mean of the scales is written even if there are no elements.
  if (blocks == 0) {
    if (!out.double_quant() || out.absmax_offset == nullptr) return Status();
    return PlanAbsmaxCodes(out, nullptr, nullptr, 0, plan);
  }
  if (out.rowwise) return PlanRows(op, workspace, plan);
  float* absmax = out.double_quant() ? workspace->Take<float>(blocks) : out.absmax;
  plan->first_non_finite = workspace->Take<int64_t>(1);

  LaunchStep step;
  const bool nibbles = out.format->bits == 4;
  step.kernel = (nibbles ? kKernels4 : kKernels8)[static_cast<int>(op.w.dtype)];
  step.threads = gpu::kQuantizeThreads;
  step.shared_bytes = nibbles ? sizeof(gpu::Thresholds) : sizeof(gpu::ThresholdTree);
  const int64_t span = 32 * 16 / static_cast<int64_t>(DTypeBytes(op.w.dtype));
  const int64_t warp_elems = out.blocksize > span ? out.blocksize : span * gpu::kQuantizeUnroll;
  LOWRANK_RETURN_IF_ERROR(SetGrid(QuantizeOp::kName, op.w.elems(), warp_elems * kWarps, &step));
  step.SetParams(ParamsOf(op, absmax, plan->first_non_finite));
  plan->steps.push_back(step);
  if (!out.double_quant()) return Status();
  return PlanAbsmax(out, absmax, device, workspace, plan);
}

Status MakePlan(const QuantizeScalesOp& op, const DeviceLimits& device, Workspace* workspace,
                Plan* plan) {
  if (op.out.blocks() == 0) return PlanAbsmaxCodes(op.out, nullptr, nullptr, 0, plan);
  return PlanAbsmax(op.out, static_cast<const float*>(op.absmax.data), device, workspace, plan);
}

}  // namespace lowrank::cuda
