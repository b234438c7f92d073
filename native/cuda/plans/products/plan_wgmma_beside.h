/// What the spare warps of a wgmma product do besides decoding panels of w: h in its first launch,
/// the bits of its gate, the factors' gradients (cuda/wgmma/lora_row_shrink.cuh,
/// cuda/wgmma/lora_row_grad.cuh).
#pragma once

#include "native/cuda/plans/products/plan_gemm_wgmma.h"
#include "native/host_device/params/gemm_wgmma.h"

namespace lowrank::cuda {

/// Units of 32 rows for h of r ranks.
constexpr int64_t ShrinkGroups(int64_t r) {
  return r <= gpu::kShrinkNarrowRanks ? 1 : CeilDiv(r, int64_t{gpu::kShrinkWideRanks});
}

constexpr gpu::PanelSource SourceOf(DType dtype) {
  return dtype == DType::kF32    ? gpu::PanelSource::kF32
         : dtype == DType::kBF16 ? gpu::PanelSource::kBF16
                                 : gpu::PanelSource::kF16;
}

/// The gate of the input gradient's adapter term as bits. Written one panel of columns at a time
/// but kept for all: a gradient of the first panel's columns may run later than its products.
class KeptPanels {
 public:
  KeptPanels() = default;
  KeptPanels(const GemmMmaOperands& operands, int64_t panel_cols, Workspace* workspace);

  /// Null if there is no gate.
  const uint32_t* Bits(int64_t panel) const {
    return fill_.target == nullptr ? nullptr : fill_.target + panel * panel_words_;
  }
  uint32_t row_words() const { return fill_.row_words; }
  gpu::KeptFill Fill(int64_t panel) const;

 private:
  gpu::KeptFill fill_;
  int64_t panel_words_ = 0;
};

/// Computes h in the launch of the first panel, and what `prepare` must do for it: zero the
/// counters, transpose lora_b.
gpu::RowShrink ShrinkOf(const GemmMmaOperands& operands, const gpu::SplitFill& split,
                        int64_t sm_count, Workspace* workspace,
                        gpu::GemmWgmmaPrepareParams* prepare);

/// The launches of a product, and their number of spare warps.
struct GradSchedule {
  int64_t first = 0;  // first launch in which gradients may be computed
  int64_t panels = 0;
  int64_t panel_cols = 0;
  int64_t blocks = 0;  // per launch
};

/// A gradient's share of each launch.
class GradPanels {
 public:
  /// Allocates the planes, and sets grad->planes.
  GradPanels(WgmmaGrad* grad, const GradSchedule& schedule, const KeptPanels& kept,
             Workspace* workspace);
  gpu::RowGrad Of(int64_t panel) const;

 private:
  /// Blocks of columns that are done when the launch of `panel` has ended.
  int64_t BlocksUntil(int64_t panel) const;

  GradSchedule schedule_;
  gpu::RowGrad grad_;
  int64_t blocks_ = 0;  // of kRowGradCols columns
};

}  // namespace lowrank::cuda
