#include "native/cuda/plans/products/plan_wgmma_beside.h"

#include <algorithm>

#include "native/host_device/params/lora_pairs.h"

namespace lowrank::cuda {
namespace {

/// Splits of the rows, for `blocks` units each: those that give the fewest rows to the busiest
/// warp, in steps of 16 and at least 64, with planes of at most a quarter of x.
int64_t RowSplits(int64_t rows, int64_t r, int64_t blocks, int64_t warps) {
  const int64_t most = std::max<int64_t>(1, std::min(rows / 64, rows / (16 * r)));
  int64_t best = 1;
  int64_t fewest = INT64_MAX;
  for (int64_t splits = 1; splits <= most && blocks * (splits - 1) < 2 * warps; ++splits) {
    const int64_t units = CeilDiv(blocks * splits, warps);
    const int64_t of_one = units * CeilDiv(CeilDiv(rows, splits), gpu::kRowGradRows);
    if (of_one < fewest) {
      fewest = of_one;
      best = splits;
    }
  }
  return best;
}

}  // namespace

KeptPanels::KeptPanels(const GemmMmaOperands& operands, int64_t panel_cols, Workspace* workspace)
    : panel_words_(panel_cols / 32) {  // a tile has at least four
  fill_.rows = operands.y.rows;
  fill_.cols = operands.y.cols;
  fill_.gate = LoraGateOf(operands.y, operands.dropout);
  fill_.row_words = static_cast<uint32_t>(CeilDiv(fill_.cols, 32));
  fill_.target = workspace->Take<uint32_t>(fill_.rows * fill_.row_words);
}

gpu::KeptFill KeptPanels::Fill(int64_t panel) const {
  gpu::KeptFill fill = fill_;
  fill.first_word = static_cast<uint32_t>(panel * panel_words_);
  fill.words = std::min(static_cast<uint32_t>(panel_words_), fill.row_words - fill.first_word);
  return fill;
}

gpu::RowShrink ShrinkOf(const GemmMmaOperands& operands, const gpu::SplitFill& split,
                        int64_t sm_count, Workspace* workspace,
                        gpu::GemmWgmmaPrepareParams* prepare) {
  const TensorView& x = operands.x;
  const TensorView& factor = operands.shrink_factor;
  const int64_t pair_rows = gpu::kWgmmaCluster * gpu::kWgmmaTileM;
  // In whole pairs: a tile that nobody waits for stays zero.
  const int64_t row_tiles = gpu::kWgmmaCluster * CeilDiv(x.rows, pair_rows);
  const DropoutSpec dropout = operands.w_transposed ? DropoutSpec() : operands.dropout;
  gpu::RowShrink shrink;
  shrink.x = x.data;
  shrink.h = operands.h;
  shrink.split = split;
  shrink.rows = x.rows;
  shrink.cols = x.cols;
  shrink.scale = operands.shrink_scaling * LoraKeptScale(dropout);
  shrink.gate = LoraGateOf(x, dropout);
  shrink.lora_a = factor.data;
  shrink.parts = factor.dtype == DType::kBF16 ? 1 : gpu::kShrinkFactorParts;
  const int64_t r = split.r;
  shrink.groups = static_cast<uint32_t>(ShrinkGroups(r));
  // With Philox, a unit of 32 rows takes longer than a tile's products, and the first wave of tiles
  // would wait for it: each multiprocessor gets a small unit.
  constexpr int64_t kSmallPerTile = gpu::kWgmmaTileM / 16;
  if (dropout.active()) {
    shrink.small_blocks = static_cast<uint32_t>(
        std::min(CeilDiv(sm_count, kSmallPerTile), x.rows / gpu::kWgmmaTileM) * kSmallPerTile);
  }
  if (operands.w_transposed || shrink.parts > 1) {
    gpu::SplitFill& parts = prepare->factor;
    parts.target = workspace->Take<uint16_t>(r * shrink.parts * x.cols);
    parts.source = factor.data;
    parts.kind = SourceOf(factor.dtype);
    parts.rows = r;
    parts.row_step = operands.w_transposed ? 1 : x.cols;
    parts.rank_step = operands.w_transposed ? r : 1;
    parts.r = static_cast<uint32_t>(x.cols);
    parts.r_padded = parts.r;
    parts.pairs = shrink.parts;
    parts.parts = gpu::kEachPart;
    shrink.lora_a = parts.target;
  }
  uint32_t* counters = workspace->Take<uint32_t>(1 + row_tiles);
  shrink.next_unit = counters;
  shrink.done_units = counters == nullptr ? nullptr : counters + 1;
  prepare->counters = counters;
  prepare->counter_count = static_cast<uint32_t>(1 + row_tiles);
  return shrink;
}

GradPanels::GradPanels(WgmmaGrad* grad, const GradSchedule& schedule, const KeptPanels& kept,
                       Workspace* workspace)
    : schedule_(schedule) {
  const LoraGradOperands& of = grad->operands;
  const int64_t rows = of.x.rows;
  const int64_t cols = of.x.cols;
  blocks_ = CeilDiv(cols, gpu::kRowGradCols);
  const int64_t splits = RowSplits(rows, of.r, CeilDiv(blocks_, schedule.panels - schedule.first),
                                   schedule.blocks * gpu::kShrinkWarps);
  grad_.x = of.x.data;
  grad_.factor = static_cast<const float*>(of.factor);
  grad_.rows = rows;
  grad_.cols = cols;
  grad_.rows_per_split = CeilDiv(CeilDiv(rows, splits), gpu::kRowGradRows) * gpu::kRowGradRows;
  grad_.splits = static_cast<uint32_t>(CeilDiv(rows, grad_.rows_per_split));
  grad_.plane_elems = LoraPlaneElems(cols * of.r);
  grad_.c_elems = of.rank_major ? 1 : of.r;
  grad_.j_elems = of.rank_major ? cols : 1;
  grad_.r = static_cast<uint32_t>(of.r);
  if (of.dropout.active()) {
    grad_.kept = kept.Bits(0);
    grad_.kept_words = kept.row_words();
  }
  grad_.planes = workspace->Take<float>(grad_.plane_elems * grad_.splits);
  grad->planes.planes = grad_.planes;
  grad->planes.plane_elems = grad_.plane_elems;
  grad->planes.splits = grad_.splits;
}

int64_t GradPanels::BlocksUntil(int64_t panel) const {
  if (panel < schedule_.first) return 0;
  if (grad_.kept_words != 0) {  // the bits of later panels are not written yet
    return std::min(blocks_, (panel + 1) * schedule_.panel_cols / gpu::kRowGradCols);
  }
  return blocks_ * (panel - schedule_.first + 1) / (schedule_.panels - schedule_.first);
}

gpu::RowGrad GradPanels::Of(int64_t panel) const {
  gpu::RowGrad grad = grad_;
  const int64_t first = BlocksUntil(panel - 1);
  grad.first_block = static_cast<uint32_t>(first);
  grad.blocks = static_cast<uint32_t>(BlocksUntil(panel) - first);
  if (grad.blocks == 0) grad.x = nullptr;
  return grad;
}

}  // namespace lowrank::cuda
