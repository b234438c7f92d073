/// Which kernels the plans of large products choose on a Hopper card, and on others; for
/// cuda_lora_check.cpp.
#pragma once

#include <string>

#include "native/core/ops/ops.h"
#include "native/cuda/plans/plan.h"
#include "test/native/cuda_lora_operands.h"

namespace lowrank::loracheck {

/// Where h is computed beside the products, as the budget of cuda/wgmma/gemm_wgmma_sm90a.cu says,
/// and where by a launch of its own.
inline void CheckForwardPlans() {
  cuda::DeviceLimits h100;
  h100.sm = 90;
  h100.sm_count = 132;
  h100.shared_bytes_per_block = 232448;
  h100.l2_bytes = 50 << 20;
  const auto at = [](uintptr_t address, int64_t rows, int64_t cols, DType dtype) {
    return TensorView{reinterpret_cast<void*>(address), dtype, rows, cols, true};
  };
  const auto forward = [&](int64_t M, int64_t N, int64_t r) {
    LoraForwardOp op;
    op.x = at(4096, M, 4096, DType::kBF16);
    op.w.dense = at(4096, N, 4096, DType::kBF16);
    op.lora_a = at(4096, r, 4096, DType::kBF16);
    op.lora_b = at(4096, N, r, DType::kBF16);
    op.h = at(4096, M, r, DType::kF32);
    op.y = at(4096, M, N, DType::kBF16);
    return op;
  };
  const auto expect = [](const LoraForwardOp& op, const cuda::DeviceLimits& device, bool own_launch,
                         const std::string& name) {
    cuda::Workspace workspace;
    cuda::Plan plan;
    const Status status = cuda::MakePlan(op, device, &workspace, &plan);
    bool found = false;
    for (const cuda::LaunchStep& step : plan.steps) {
      found = found || std::string(step.kernel).find("lora_shrink_") == 0;
    }
    Report(status.ok() && found == own_launch,
           "forward plan, " + name + (own_launch ? ": h by its own launch" : ": h beside y"));
  };
  expect(forward(8192, 4096, 16), h100, false, "M 8192");
  expect(forward(512, 4096, 1), h100, false, "M 512");
  LoraForwardOp op = forward(8192, 4096, 16);
  op.dropout.p = 0.1;
  expect(op, h100, false, "dropout");
  op.lora_a.dtype = op.lora_b.dtype = DType::kF32;
  expect(op, h100, false, "f32 adapter");
  op.lora_a.data = reinterpret_cast<void*>(4100);
  expect(op, h100, true, "lora_a off 16 bytes");
  op = forward(8192, 4096, 16);
  op.x.data = reinterpret_cast<void*>(4098);
  expect(op, h100, true, "x off 16 bytes");
  // Up to 64 ranks of bf16 factors and 32 of others, behind a gate 32 and 16.
  for (const bool gated : {false, true}) {
    for (const DType dtype : {DType::kBF16, DType::kF32}) {
      const int64_t most = (dtype == DType::kBF16 ? 64 : 32) / (gated ? 2 : 1);
      for (const int64_t r : {most, most + 1}) {
        op = forward(8192, 4096, r);
        op.lora_a.dtype = op.lora_b.dtype = dtype;
        op.dropout.p = gated ? 0.1 : 0;
        expect(op, h100, r > most,
               "r " + std::to_string(r) + " " + DTypeName(dtype) + (gated ? ", gated" : ""));
      }
    }
  }
  expect(forward(8192, 512, 16), h100, true, "few columns");
  const FormatRow* nf4 = FindFormat("nf4");
  for (const int64_t M : {2048, 4096}) {
    op = forward(M, 4096, 16);
    op.w.dense = TensorView();
    auto* parts = reinterpret_cast<uint8_t*>(4096);
    op.w.quant = {nf4, 4096, 4096, 64, parts, nf4->codebook, reinterpret_cast<float*>(parts)};
    expect(op, h100, M == 2048, "two panels, M " + std::to_string(M));
  }
  expect(forward(256, 4096, 16), h100, true, "few tokens");
  cuda::DeviceLimits other = h100;
  other.batch_invariant = true;
  expect(forward(8192, 4096, 16), other, true, "batch-invariant");
  expect(forward(8192, 4096, 16), cuda::DeviceLimits(), true, "sm_80");
}

/// How many launches a layer of few tokens over 4-bit codes takes: on a Hopper card its shrink and
/// its product are clusters.
inline void CheckFewTokenLaunches() {
  cuda::DeviceLimits h100;
  h100.sm = 90;
  h100.sm_count = 132;
  h100.shared_bytes_per_block = 232448;
  const auto expect = [](int64_t M, int64_t N, int64_t K, const cuda::DeviceLimits& device,
                         size_t launches, uint32_t shrink_cluster) {
    const auto at = [](int64_t rows, int64_t cols, DType dtype) {
      return TensorView{reinterpret_cast<void*>(4096), dtype, rows, cols, true};
    };
    LoraForwardOp op;
    op.x = at(M, K, DType::kBF16);
    auto* parts = reinterpret_cast<uint8_t*>(4096);
    const FormatRow* nf4 = FindFormat("nf4");
    op.w.quant = {nf4, N, K, 64, parts, nf4->codebook, reinterpret_cast<float*>(parts)};
    op.lora_a = at(16, K, DType::kF32);
    op.lora_b = at(N, 16, DType::kF32);
    op.h = at(M, 16, DType::kF32);
    op.y = at(M, N, DType::kBF16);
    cuda::Workspace workspace;
    cuda::Plan plan;
    const Status status = cuda::MakePlan(op, device, &workspace, &plan);
    Report(status.ok() && plan.steps.size() == launches && plan.steps[0].cluster == shrink_cluster,
           "launches, M " + std::to_string(M) + " N " + std::to_string(N) + " K " +
               std::to_string(K) + ": " + std::to_string(plan.steps.size()));
  };
  for (const int64_t M : {1, 16, 32}) {
    expect(M, 4096, 4096, h100, 2, 8);
    expect(M, 5120, 5120, h100, 2, 8);
    expect(M, 4096, 14336, h100, 3, 1);  // eight splits would be long
    expect(M, 4096, 4096, cuda::DeviceLimits(), M == 32 ? 4 : 3, 1);
  }
  // By K and r alone.
  h100.batch_invariant = true;
  for (const int64_t M : {1, 256}) expect(M, 4096, 4096, h100, 2, 8);
}

/// Which kernel multiplies dy by w: the Hopper product over the transposed weight, or mma.sync.
inline void CheckInputGradPlans() {
  cuda::DeviceLimits h100;
  h100.sm = 90;
  h100.sm_count = 132;
  h100.shared_bytes_per_block = 232448;
  h100.l2_bytes = 50 << 20;
  const auto expect = [](int64_t M, int64_t N, int64_t K, const cuda::DeviceLimits& device,
                         bool wgmma, const std::string& name) {
    auto* parts = reinterpret_cast<uint8_t*>(4096);
    MatmulInputGradOp op;
    op.dy = TensorView{parts, DType::kBF16, M, N, true};
    const FormatRow* nf4 = FindFormat("nf4");
    op.w.quant = {nf4, N, K, 64, parts, nf4->codebook, reinterpret_cast<float*>(parts)};
    op.dx = TensorView{parts, DType::kBF16, M, K, true};
    cuda::Workspace workspace;
    cuda::Plan plan;
    const Status status = cuda::MakePlan(op, device, &workspace, &plan);
    bool found = false;
    for (const cuda::LaunchStep& step : plan.steps) {
      found = found || std::string(step.kernel).find("gemm_wgmma_128x") == 0;
    }
    Report(status.ok() && found == wgmma,
           "dx plan, " + name + (wgmma ? ": by wgmma" : ": by mma.sync"));
  };
  expect(8192, 4096, 4096, h100, true, "M 8192");
  expect(385, 4096, 4096, h100, true, "M 385");
  expect(384, 4096, 4096, h100, false, "M 384");
  expect(512, 8192, 1024, h100, false, "few columns of dx");
  expect(512, 1024, 8192, h100, true, "few columns of dy");
  cuda::DeviceLimits other = h100;
  other.batch_invariant = true;
  expect(8192, 4096, 4096, other, false, "batch-invariant");
  expect(8192, 4096, 4096, cuda::DeviceLimits(), false, "sm_80");
}

}  // namespace lowrank::loracheck
