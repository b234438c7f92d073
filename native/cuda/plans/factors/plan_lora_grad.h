/// Plans of the adapter's gradients, and what they share with the shrink
/// (cuda/lora/lora_contract.cuh).
#pragma once

#include "native/cuda/plans/plan.h"
#include "native/host_device/params/lora_grad.h"

namespace lowrank::cuda {

/// One row of the tile table.
struct LoraTile {
  int min_sm;
  int64_t r_max;                  // largest rank it is chosen for; the last row takes every rank
  int64_t rank_tile;              // ranks per block; blocks for more run side by side
  int64_t blocks_per_sm;          // resident, by registers and shared memory; 1 for f32
  const char* shrink[3];          // kernels by LoraElement
  const char* shrink_cluster[3];  // of sm_90a
  const char* grad[3];
  const char* note;  // evidence
};
const LoraTile& SelectLoraTile(int64_t r, const DeviceLimits& device);

/// How a contraction is split: `splits` planes, each over `q_per_split` of the contracted
/// dimension.
struct LoraSplit {
  int64_t splits = 0;
  int64_t q_per_split = 0;
};
/// Enough blocks for two waves, none with less than two tiles; once the first wave is full, writing
/// and reading the planes costs at most a quarter of the bytes of x.
LoraSplit SelectLoraSplit(int64_t o_blocks, int64_t q_count, int64_t slots, int64_t x_bytes,
                          int64_t plane_elems);

/// The split of a shrink whose rows have the same bits in any batch: it depends only on the
/// contracted dimension and the rank. Writing and reading the planes costs at most an eighth of the
/// bytes of x, and a single row still has several blocks.
LoraSplit BatchInvariantShrinkSplit(int64_t q_count, int64_t r, DType x);

/// What every contraction over x [M, K] needs: x, its gate, the ranks.
gpu::LoraContractParams LoraContractOver(const TensorView& x, const DropoutSpec& dropout, int64_t r,
                                         const LoraTile& tile);
/// The shrink of x by `factor`, without its output.
gpu::LoraContractParams LoraShrinkOver(const TensorView& x, const TensorView& factor,
                                       bool contraction_major, const DropoutSpec& dropout,
                                       const LoraTile& tile);
/// Blocks of this tile that the device runs at once.
int64_t LoraSlots(const LoraTile& tile, DType x, const DeviceLimits& device);
int32_t LoraElementOf(DType dtype);
/// Which elements dropout keeps, of x or of a matrix of its shape and dtype.
gpu::LoraGate LoraGateOf(const TensorView& x, const DropoutSpec& dropout);
/// 1 / (1 - p) with dropout, else 1.
float LoraKeptScale(const DropoutSpec& dropout);
/// Elements from one plane to the next: planes are 256-byte aligned.
int64_t LoraPlaneElems(int64_t count);

/// A launch of `blocks` times `splits` blocks.
template <typename Params>
LaunchStep LoraStep(const char* kernel, int64_t blocks, int64_t splits, DType x,
                    const Params& params) {
  LaunchStep step;
  step.kernel = kernel;
  step.grid = {static_cast<uint32_t>(blocks), static_cast<uint32_t>(splits), 1};
  step.threads = gpu::kLoraThreads;
  step.shared_bytes = static_cast<uint32_t>(gpu::LoraSharedBytes(static_cast<int>(DTypeBytes(x))));
  step.SetParams(params);
  return step;
}

/// Sums to be computed by one launch, which is added only if there are any.
class LoraReduction {
 public:
  /// out = scale · Σ planes (+ out). `splits` = 0 stores zeros.
  void Add(const float* planes, int64_t plane_elems, int64_t splits, const TensorView& out,
           float scale, bool accumulate);
  void AddF32(const float* planes, int64_t plane_elems, int64_t splits, float* out, int64_t count,
              float scale, bool accumulate);
  void AppendTo(Plan* plan);

 private:
  gpu::LoraReduceParams params_;
  int segments_ = 0;
  int64_t largest_ = 0;
};

/// A launch that adds planes of `count` elements, stored one after another, to sums. The kernel
/// loads four elements at a time, so rows must be a multiple of four.
void AppendPlaneSum(const float* planes, int64_t splits, int64_t count, float* sums, Plan* plan);

/// Partial sums of a gradient, the input of LoraReduction.
struct LoraGradPlanes {
  const float* planes = nullptr;  // [splits, plane_elems]
  int64_t plane_elems = 0;
  const float* sums = nullptr;  // column sums, [splits, sums_plane_elems]
  int64_t sums_plane_elems = 0;
  int64_t splits = 0;
};

/// The operands of Σₘ x[m, c] · factor[m, j].
struct LoraGradOperands {
  TensorView x;                  // [M, C]
  const void* factor = nullptr;  // [M, r]: h, or dh; dy for the gradient of a dense weight
  DType factor_dtype = DType::kF32;
  int64_t r = 0;            // 0: only column sums
  bool rank_major = false;  // planes are [r, C] (d_lora_a), not [C, r] (d_lora_b)
  bool sums = false;        // also column sums
  DropoutSpec dropout;      // of x
};

/// Appends the pass over x.
LoraGradPlanes PlanLoraGrad(const LoraGradOperands& operands, const DeviceLimits& device,
                            Workspace* workspace, Plan* plan);

/// Appends one pass over dy for its gradients and for dh = scaling · dy · lora_b [M, r]. If dh has
/// planes of its own (always if it is added to), their sum is added to `reduction`.
LoraGradPlanes PlanLoraDy(const LoraGradOperands& operands, const TensorView& lora_b, float scaling,
                          float* dh, bool accumulate_dh, const DeviceLimits& device,
                          Workspace* workspace, Plan* plan, LoraReduction* reduction);

}  // namespace lowrank::cuda
