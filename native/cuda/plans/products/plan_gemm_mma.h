/// Products of bf16 and f16 activations on tensor cores (m16n8k16), with the base weight or its
/// transpose, with the LoRA term in the same accumulators.
#pragma once

#include "native/cuda/plans/plan.h"
#include "native/host_device/params/gemm_mma.h"

namespace lowrank::cuda {

/// Whose slots a product of experts multiplies.
struct ExpertsOfProduct {
  RouteView route;
  bool gather = false;         // x has the rows of the route, not its slots
  bool shared_factor = false;  // lora_factor is one for all experts
};

/// The operands of one product; absent ones take no part.
struct GemmMmaOperands {
  TensorView x;               // [M, K] bf16 | f16; dy [M, N] where w_transposed
  WeightView w;               // [N, K] dense of any dtype, or quantised
  bool w_transposed = false;  // false: y = x · wᵀ, true: dx = dy · w
  TensorView bias;            // [1, N] of any dtype, forward only
  float* h = nullptr;         // [M, r] f32: h, or dh (already scaled)
  TensorView shrink_factor;   // lora_a [r, K], or lora_b [N, r] where w_transposed: present where
                              // h, or dh, is still to be computed
  float shrink_scaling = 1;   // of that h
  TensorView lora_factor;     // lora_b [N, r] forward, lora_a [r, K] otherwise; of any dtype
  TensorView lora_bias;       // [1, N] of any dtype, forward only
  float scaling = 1;          // of the LoRA term and lora_bias
  DropoutSpec dropout;        // gate of the LoRA term where w_transposed, else of x in the shrink
  bool accumulate = false;    // add to what y holds
  bool x_made = false;        // an earlier step writes x; only for sums (PlanProductPlanes)
  TensorView y;               // [M, N] in x's dtype, or dx [M, K]
  Compute compute = Compute::kExact;  // kInt8: forward, rowwise weight (plan_gemm_int8.h)
  /// Of a product of experts: M is the number of slots, and w [E · N, K], bias [E, N] and, if it is
  /// not shared, lora_factor have those of all experts one after another. Null: of one weight.
  const ExpertsOfProduct* experts = nullptr;

  int64_t M() const { return experts == nullptr ? x.rows : experts->route.slots(); }
  /// Rows of w, and of y's columns, that one product has.
  int64_t N() const { return w.rows() / (experts == nullptr ? 1 : experts->route.experts); }
  /// The rank of lora_factor.
  int64_t r() const {
    if (!w_transposed) return lora_factor.cols;
    const bool all = experts != nullptr && !experts->shared_factor;
    return lora_factor.rows / (all ? experts->route.experts : 1);
  }
  /// Tiles of `tile_m` rows, as many as there may be.
  int64_t RowTiles(int64_t tile_m) const;
};

/// The slots as a kernel sees them.
gpu::ExpertSlots ExpertSlotsOf(const RouteView& route, bool gather);

/// Sums [M, N] = x · wᵀ, or dx's [M, K] = x · w, in f32 and before any rounding, from x, x_made, w
/// and w_transposed of the operands. For 16-bit x, if another kernel adds to them and rounds once.
/// A split product has planes, one after another in the workspace; otherwise there is one, in
/// `sums`.
struct ProductPlanes {
  const float* planes = nullptr;
  int64_t count = 1;
};
Status PlanProductPlanes(const GemmMmaOperands& operands, float* sums, const DeviceLimits& device,
                         Workspace* workspace, Plan* plan, ProductPlanes* planes);

/// One row of the tile table: what a block computes, and when it is chosen.
struct GemmMmaTile {
  const char* name;         // in the kernel's name
  int64_t tile_m;           // rows of x per block
  int64_t tile_p;           // columns of y (or dx) per block
  uint32_t threads;         // a block
  int64_t min_blocks_x100;  // least blocks per multiprocessor, in hundredths
  const char* note;         // evidence
};

/// A tile, and the number of parts of the reduction, each with blocks of its own.
struct GemmMmaChoice {
  const GemmMmaTile* tile = nullptr;
  int32_t splits = 1;
  int32_t slabs_per_split = 0;  // of 64 elements of the reduction
};

/// The tile changes no bits (every tile sums an element in the same order), but splitting does:
/// there is none if a row must have the same bits in any batch, or if the weight is small.
GemmMmaChoice SelectGemmMma(const GemmMmaOperands& operands, const DeviceLimits& device);

/// The operands as a tiled kernel's parameters, except the split of the reduction and its tiles.
gpu::GemmMmaParams GemmMmaParamsOf(const GemmMmaOperands& operands);

/// y = x · wᵀ + bias + scaling · (h · lora_bᵀ + lora_bias), or
/// dx = dy · w + gate ⊙ (scaling · h · lora_a)
Status PlanGemmMma(const GemmMmaOperands& operands, const DeviceLimits& device,
                   Workspace* workspace, Plan* plan);

/// The same with the given choice.
Status PlanGemmMma(const GemmMmaOperands& operands, const GemmMmaChoice& choice,
                   Workspace* workspace, Plan* plan);

/// PlanProductPlanes with these kernels.
Status PlanGemmMmaPlanes(const GemmMmaOperands& operands, float* sums, const DeviceLimits& device,
                         Workspace* workspace, Plan* plan, ProductPlanes* planes);

/// The product for any dtype of x, by the kernel family that suits the shape and the device: f32,
/// few tokens, wgmma, or the tiled one of this header. If shrink_factor is present, h is computed
/// too: by a launch before, or in the product's launches.
Status PlanProduct(const GemmMmaOperands& operands, const DeviceLimits& device,
                   Workspace* workspace, Plan* plan);

}  // namespace lowrank::cuda
