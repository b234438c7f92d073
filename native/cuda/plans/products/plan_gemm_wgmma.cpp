#include "native/cuda/plans/products/plan_gemm_wgmma.h"

#include <algorithm>
#include <cstddef>

#include "native/cuda/plans/products/plan_wgmma_beside.h"
#include "native/host_device/params/gemm_wgmma.h"
#include "native/host_device/params/lora_pairs.h"

namespace lowrank::cuda {
namespace {

using gpu::PanelSource;

struct WgmmaTileRow {
  int64_t tile_n;
  uint32_t stages;
  const char* kernel[2];  // bf16, f16
  double column_cost;     // time per column of the tile
  const char* note;
};
constexpr WgmmaTileRow kWgmmaTiles[] = {
    {256,
     4,
     {"gemm_wgmma_128x256_bf16_kernel", "gemm_wgmma_128x256_f16_kernel"},
     1.0,
     "untuned; 32 B/clk/SM from L2"},
    {128,
     6,
     {"gemm_wgmma_128x128_bf16_kernel", "gemm_wgmma_128x128_f16_kernel"},
     1.5,
     "untuned; 48 B/clk/SM from L2, bound by it; where 128 x 256 leaves multiprocessors idle"},
};
/// When it is chosen, all untuned. From this M on the last pair of row tiles is at most half
/// padding, and decoding a panel costs less than the faster products save, if half of the
/// multiprocessors have a tile; below, smaller tiles of another kernel win.
/// have a tile; below, smaller tiles of another kernel win.
constexpr int64_t kMinM = 385;
constexpr int64_t kMinK = 64;
/// Columns of the first panel from which h is computed in the same launch as the products, per 32
/// ranks: 1,024 are four tiles of 128 x 256, of 65 k clk each at K = 4,096, against four units of
/// 32 rows of 52 k clk. If the same warps then decode another panel, a block must also have a
/// second tile to hide that. Untuned.
constexpr int64_t kMinShrinkColumns = 1024;
/// Ranks up to which this takes less than a launch of its own: for bf16 factors, and for those
/// split in three parts, which read three times the bytes from L2 (docs/gpu-design.md, G8r).
/// Untuned.
constexpr int64_t kShrinkRanks1 = 64;
constexpr int64_t kShrinkRanks3 = 32;
/// The share of the products' time that a gradient in the same launch takes, times K · N over the
/// columns of its x. 16 rows and 64 columns by one of three warps take 1,200 clk, which is 0.39 clk
/// per element; the products do 2,065 multiply-adds per clk (65 k clk per tile of 128 x 256 at K =
/// 4,096).
constexpr double kGradShare = 0.39 * 2065;

/// One launch computes the columns of `panel_tiles` tiles.
struct Split {
  const WgmmaTileRow* tile = nullptr;
  int64_t panel_tiles = 0;
  double cost = 0;  // in columns of a tile
};

/// Waves of tiles, plus the decode of the first panel, which nothing hides, plus one launch per
/// panel. A column of a tile of 128 x 256 takes about 4.2e-5 us per element of K. Decoding one
/// takes about 1.2e-4 / 256 · 128 of that share per multiprocessor and wave: 1 % of a wave per tile
/// of the panel.
Split ChooseSplit(int64_t M, int64_t N, int64_t K, int64_t stride_elems, bool panels,
                  const DeviceLimits& device) {
  constexpr double kDecodeShare = 0.011;
  constexpr double kLaunchColumnsTimesK = 24e3;  // 1 us
  const int64_t pairs_m = CeilDiv(M, gpu::kWgmmaTileM * gpu::kWgmmaCluster);
  const int64_t clusters = std::max<int64_t>(device.sm_count / gpu::kWgmmaCluster, 1);
  Split best;
  for (const WgmmaTileRow& tile : kWgmmaTiles) {
    const int64_t tiles_n = CeilDiv(N, tile.tile_n);
    // Two panels, and a third of the L2 for x and y.
    const int64_t panel_bytes = tile.tile_n * stride_elems * 2;
    const int64_t most =
        panels ? std::clamp<int64_t>(device.l2_bytes / 3 / panel_bytes, 1, tiles_n) : tiles_n;
    for (int64_t panel_tiles = panels ? 1 : most; panel_tiles <= most; ++panel_tiles) {
      const int64_t full = tiles_n / panel_tiles;
      const int64_t rest = tiles_n % panel_tiles;
      const int64_t waves =
          full * CeilDiv(pairs_m * panel_tiles, clusters) + CeilDiv(pairs_m * rest, clusters);
      const double columns = static_cast<double>(tile.tile_n) * tile.column_cost;
      double cost = static_cast<double>(waves) * columns;
      if (panels) {
        cost += kDecodeShare * columns * static_cast<double>(panel_tiles) +
                kLaunchColumnsTimesK / static_cast<double>(K) *
                    static_cast<double>(full + (rest != 0 ? 1 : 0));
      }
      if (best.tile == nullptr || cost < best.cost) best = {&tile, panel_tiles, cost};
    }
  }
  return best;
}

uint32_t Log2(int64_t power_of_two) {
  uint32_t log = 0;
  while ((int64_t{1} << log) < power_of_two) ++log;
  return log;
}

/// Rows [first, first + rows) of w into `target`, or of wᵀ where it is transposed.
gpu::PanelFill FillOf(const WeightView& w, bool transposed, int64_t first, int64_t rows,
                      uint16_t* target, int64_t stride_elems) {
  gpu::PanelFill fill;
  fill.target = target;
  fill.rows = rows;
  fill.cols = transposed ? w.rows() : w.cols();
  fill.stride_elems = stride_elems;
  fill.first_elem = transposed ? first : first * w.cols();
  fill.row_step = transposed ? 1 : w.cols();
  fill.col_step = transposed ? w.cols() : 1;
  const bool by_eight = w.cols() % 8 == 0;
  if (!w.quantised()) {
    fill.kind = SourceOf(w.dense.dtype);
    fill.source = w.dense.data;
    if (transposed && by_eight && IsAligned(fill.source, 16)) fill.path = gpu::PanelPath::kTurned;
    return fill;
  }
  const QuantView& quant = w.quant;
  fill.kind = quant.format->bits == 4 ? PanelSource::kCodes4 : PanelSource::kCodes8;
  fill.source = quant.codes;
  fill.codebook = quant.codebook;
  fill.absmax = quant.double_quant() ? nullptr : quant.absmax;
  fill.absmax_8bit = quant.absmax_8bit;
  fill.absmax_codebook = quant.absmax_codebook;
  fill.nested_absmax = quant.nested_absmax;
  fill.absmax_offset = quant.absmax_offset;
  fill.blocksize_log2 = Log2(quant.blocksize);
  fill.nested_blocksize_log2 = Log2(quant.nested_blocksize);
  if (by_eight && quant.blocksize % 8 == 0 && IsAligned(fill.source, 16)) {
    fill.path = transposed ? gpu::PanelPath::kTurned : gpu::PanelPath::kRows;
  }
  return fill;
}

/// [rows, cols] of 16-bit elements, read in boxes of 64 columns.
TensorMapRequest MapOf(size_t param_offset, const void* base, DType dtype, int64_t rows,
                       int64_t cols, int64_t stride_elems, uint32_t box_rows) {
  TensorMapRequest map;
  map.param_offset_bytes = static_cast<uint32_t>(param_offset);
  map.base = base;
  map.dtype = dtype;
  map.rank = 2;
  map.size_elems = {static_cast<uint64_t>(cols), static_cast<uint64_t>(rows)};
  map.stride_bytes = {0, static_cast<uint64_t>(stride_elems) * 2};
  map.box_elems = {gpu::kWgmmaTileK, box_rows};
  map.swizzle_bytes = 128;
  return map;
}

bool Supports(const GemmMmaOperands& operands) {
  return operands.x.dtype != DType::kF32 &&
         (operands.w.quantised() || operands.w.dense.dtype == operands.x.dtype);
}

bool ReadableByTma(const void* data, int64_t cols) { return IsAligned(data, 16) && cols % 8 == 0; }

int64_t ShrinkRanks(const GemmMmaOperands& operands) {
  const TensorView& factor = operands.shrink_factor;
  return operands.w_transposed ? factor.cols : factor.rows;
}

/// lora_b is turned before it is read (plan_wgmma_beside.h), so that only lora_a must be aligned.
bool CanShrink(const GemmMmaOperands& operands) {
  const TensorView& factor = operands.shrink_factor;
  const int64_t r = ShrinkRanks(operands);
  return factor.present && r > 0 &&
         r <= (factor.dtype == DType::kBF16 ? kShrinkRanks1 : kShrinkRanks3) &&
         (operands.w_transposed || IsAligned(factor.data, 16)) &&
         ReadableByTma(operands.x.data, operands.x.cols);
}

/// Is w multiplied without a copy?
bool IsDirect(const GemmMmaOperands& operands) {
  const WeightView& w = operands.w;
  return !operands.w_transposed && !w.quantised() && ReadableByTma(w.dense.data, w.cols());
}

/// Columns of y, or of dx.
int64_t OutputsOf(const GemmMmaOperands& operands) {
  return operands.w_transposed ? operands.w.cols() : operands.w.rows();
}

Split SplitOf(const GemmMmaOperands& operands, const DeviceLimits& device) {
  const int64_t K = operands.x.cols;
  return ChooseSplit(operands.x.rows, OutputsOf(operands), K, CeilDiv(K, 8) * 8,
                     !IsDirect(operands), device);
}

/// With h to compute, the first launch does that, and sums over h wait for it.
int64_t FirstGradPanel(const GemmMmaOperands& operands) {
  return operands.shrink_factor.present ? 1 : 0;
}

}  // namespace

bool WgmmaTakes(const GemmMmaOperands& operands, const DeviceLimits& device) {
  const int64_t narrow_tiles = gpu::kWgmmaCluster *
                               CeilDiv(operands.x.rows, gpu::kWgmmaTileM * gpu::kWgmmaCluster) *
                               CeilDiv(OutputsOf(operands), kWgmmaTiles[1].tile_n);
  return device.has_wgmma() && Supports(operands) && operands.x.rows >= kMinM &&
         operands.x.cols >= kMinK && narrow_tiles >= device.sm_count / 2 &&
         device.shared_bytes_per_block >= gpu::WgmmaSharedBytes(256, 4);
}

bool WgmmaShrinks(const GemmMmaOperands& operands, const DeviceLimits& device) {
  if (device.batch_invariant || !CanShrink(operands) || !WgmmaTakes(operands, device)) return false;
  const int64_t N = OutputsOf(operands);
  const bool panels = !IsDirect(operands);
  const Split split = SplitOf(operands, device);
  const int64_t columns = split.panel_tiles * split.tile->tile_n;
  const int64_t pairs =
      CeilDiv(operands.x.rows, gpu::kWgmmaTileM * gpu::kWgmmaCluster) * split.panel_tiles;
  const bool decodes = panels && columns < N;
  const int64_t groups = ShrinkGroups(ShrinkRanks(operands));
  // Running Philox again for each 32 ranks, or while L2 is saturated, takes longer than another
  // launch.
  const bool gated = operands.dropout.active() && !operands.w_transposed;
  const bool parts = operands.shrink_factor.dtype != DType::kBF16;
  if (gated && (groups > 1 || (parts && ShrinkRanks(operands) > gpu::kShrinkNarrowRanks))) {
    return false;
  }
  return std::min(N, columns) >= kMinShrinkColumns * groups &&
         (!decodes || pairs > device.sm_count / gpu::kWgmmaCluster);
}

bool WgmmaHidesGrads(const GemmMmaOperands& operands, const std::vector<WgmmaGrad>& grads,
                     const DeviceLimits& device) {
  if (!WgmmaTakes(operands, device) || grads.size() > gpu::kRowGrads) return false;
  if (grads.empty()) return true;
  const int64_t N = OutputsOf(operands);
  const Split split = SplitOf(operands, device);
  const int64_t panels = CeilDiv(N, split.panel_tiles * split.tile->tile_n);
  double share = 0;
  for (const WgmmaGrad& grad : grads) {
    const LoraGradOperands& of = grad.operands;
    const bool can = of.r > 0 && of.r <= gpu::kRowGradRanks && !of.sums &&
                     of.factor_dtype == DType::kF32 && of.x.dtype == operands.x.dtype &&
                     ReadableByTma(of.x.data, of.x.cols) &&
                     (!of.dropout.active() || operands.w_transposed);
    if (!can) return false;
    share += kGradShare * static_cast<double>(of.x.cols) /
             (static_cast<double>(operands.x.cols) * static_cast<double>(N));
  }
  const int64_t first = FirstGradPanel(operands);
  return first < panels &&
         share * static_cast<double>(panels) <= static_cast<double>(panels - first);
}

Status PlanGemmWgmma(const GemmMmaOperands& operands, const DeviceLimits& device,
                     Workspace* workspace, Plan* plan, std::vector<WgmmaGrad>* grads) {
  const DType dtype = operands.x.dtype;
  const int64_t M = operands.x.rows;
  const int64_t K = operands.x.cols;
  const int64_t N = OutputsOf(operands);
  const bool transposed = operands.w_transposed;
  if (!device.has_wgmma() || !Supports(operands) || K == 0) {
    return Status(Code::kUnsupported,
                  "loraForward: the wgmma kernel takes 16-bit activations, a weight that is "
                  "quantised or of their dtype, and K > 0, on compute capability 9.0");
  }
  const bool shrinks = operands.shrink_factor.present;
  if (shrinks && !CanShrink(operands)) {
    return Status(
        Code::kUnsupported,
        "loraForward: the wgmma kernel computes h for r up to 64 with bf16 factors and up to "
        "32 with others, with rows of x and lora_a that are 16-byte aligned");
  }
  if (M == 0 || N == 0) return Status();
  constexpr int64_t kMostRows = int64_t{1} << 30;
  if (M > kMostRows || N > kMostRows || K > kMostRows) {
    return Status(Code::kUnsupported, "loraForward: the wgmma kernel takes M, N and K up to 2^30");
  }
  const size_t type = dtype == DType::kBF16 ? 0 : 1;
  const int64_t stride_elems = CeilDiv(K, 8) * 8;
  const bool direct = IsDirect(operands);
  const bool copy_x = !ReadableByTma(operands.x.data, K);
  const Split split = SplitOf(operands, device);
  const int64_t panel_rows = split.panel_tiles * split.tile->tile_n;
  const int64_t panels_n = CeilDiv(N, panel_rows);

  gpu::GemmWgmmaPrepareParams prepare;
  uint16_t* panels[2] = {nullptr, nullptr};
  if (!direct) {
    const int64_t first_rows = std::min(panel_rows, N);
    panels[0] = workspace->Take<uint16_t>(first_rows * stride_elems);
    if (first_rows < N) {
      panels[1] = workspace->Take<uint16_t>(std::min(panel_rows, N - first_rows) * stride_elems);
    }
    prepare.panel = FillOf(operands.w, transposed, 0, first_rows, panels[0], stride_elems);
  }
  const void* x = operands.x.data;
  if (copy_x) {
    uint16_t* copy = workspace->Take<uint16_t>(M * stride_elems);
    WeightView source;
    source.dense = operands.x;
    prepare.x = FillOf(source, false, 0, M, copy, stride_elems);
    x = copy;
  }
  uint16_t* h_parts = nullptr;
  uint16_t* lora_b_parts = nullptr;
  int64_t slab_k = 0;
  gpu::RowShrink shrink;
  KeptPanels kept;
  const int64_t r = transposed ? operands.lora_factor.rows : operands.lora_factor.cols;
  if (operands.lora_factor.present && r > 0) {
    const int32_t pairs = gpu::LoraPairs(static_cast<gpu::ElementCode>(operands.lora_factor.dtype));
    const int64_t r_padded = CeilDiv(r, 8) * 8;
    slab_k = pairs * r_padded;
    h_parts = workspace->Take<uint16_t>(M * slab_k);
    lora_b_parts = workspace->Take<uint16_t>(N * slab_k);
    prepare.h.target = h_parts;
    prepare.h.source = operands.h;
    prepare.h.kind = PanelSource::kF32;
    prepare.h.rows = M;
    prepare.h.row_step = r;
    prepare.h.r = static_cast<uint32_t>(r);
    prepare.h.r_padded = static_cast<uint32_t>(r_padded);
    prepare.h.pairs = static_cast<uint32_t>(pairs);
    prepare.h.parts = gpu::kPartsOfH;
    prepare.h.scale = operands.scaling;
    if (transposed) prepare.h.scale *= LoraKeptScale(operands.dropout);
    prepare.lora_b = prepare.h;
    prepare.lora_b.target = lora_b_parts;
    prepare.lora_b.source = operands.lora_factor.data;
    prepare.lora_b.kind = SourceOf(operands.lora_factor.dtype);
    prepare.lora_b.rows = N;
    prepare.lora_b.row_step = transposed ? 1 : r;
    prepare.lora_b.rank_step = transposed ? N : 1;
    prepare.lora_b.parts = gpu::kPartsOfFactor;
    prepare.lora_b.scale = 1;
    if (transposed && operands.dropout.active()) kept = KeptPanels(operands, panel_rows, workspace);
    if (shrinks) {
      shrink = ShrinkOf(operands, prepare.h, device.sm_count, workspace, &prepare);
      shrink.kept = kept.Fill(0);
      prepare.h = gpu::SplitFill();
    } else {
      prepare.kept = kept.Fill(0);
    }
  }
  std::vector<GradPanels> grad_panels;
  if (grads != nullptr) {
    const GradSchedule schedule = {FirstGradPanel(operands), panels_n, panel_rows, device.sm_count};
    for (WgmmaGrad& grad : *grads) grad_panels.emplace_back(&grad, schedule, kept, workspace);
  }
  float* addend = nullptr;
  if (operands.bias.present || operands.lora_bias.present) {
    addend = workspace->Take<float>(N);
    prepare.addend.target = addend;
    prepare.addend.N = N;
    prepare.addend.scaling = operands.scaling;
    if (operands.bias.present) {
      prepare.addend.bias = operands.bias.data;
      prepare.addend.bias_kind = SourceOf(operands.bias.dtype);
    }
    if (operands.lora_bias.present) {
      prepare.addend.lora_bias = operands.lora_bias.data;
      prepare.addend.lora_bias_kind = SourceOf(operands.lora_bias.dtype);
    }
  }

  const bool prepares =
      !direct || copy_x || slab_k != 0 || operands.bias.present || operands.lora_bias.present;
  if (prepares) {
    constexpr int64_t kWarps = gpu::kWgmmaPrepareThreads / 32;
    const int64_t items = std::max({prepare.panel.rows * CeilDiv(K, 1024), prepare.x.rows,
                                    CeilDiv(prepare.h.rows * prepare.h.r_padded, 32),
                                    CeilDiv(prepare.lora_b.rows * prepare.lora_b.r_padded, 32),
                                    CeilDiv(prepare.factor.rows * prepare.factor.r_padded, 32),
                                    CeilDiv(prepare.addend.N, 32),
                                    prepare.kept.rows * CeilDiv(prepare.kept.words, 32)});
    LaunchStep step;
    step.kernel = type == 0 ? "gemm_wgmma_prepare_bf16_kernel" : "gemm_wgmma_prepare_f16_kernel";
    step.grid.x = static_cast<uint32_t>(
        std::min<int64_t>(CeilDiv(items, kWarps), int64_t{4} * device.sm_count));
    step.threads = gpu::kWgmmaPrepareThreads;
    step.shared_bytes = gpu::kPanelCodebookBytes;
    step.SetParams(prepare);
    plan->steps.push_back(std::move(step));
  }

  const int64_t pairs_m = CeilDiv(M, gpu::kWgmmaTileM * gpu::kWgmmaCluster);
  const uint32_t box_n = static_cast<uint32_t>(split.tile->tile_n / gpu::kWgmmaCluster);
  int64_t panel = 0;
  for (int64_t first_n = 0; first_n < N; first_n += panel_rows, ++panel) {
    const int64_t panel_n = std::min(panel_rows, N - first_n);
    const int64_t next_n = first_n + panel_rows;
    gpu::GemmWgmmaParams p;
    p.y = operands.y.data;
    p.addend = addend;
    p.kept = kept.Bits(panel);
    p.kept_words = kept.row_words();
    p.accumulate = operands.accumulate;
    p.M = M;
    p.N = N;
    p.first_n = first_n;
    p.panel_n = panel_n;
    p.tiles_m = static_cast<uint32_t>(pairs_m);
    p.tiles_n = static_cast<uint32_t>(CeilDiv(panel_n, split.tile->tile_n));
    p.k_blocks = static_cast<uint32_t>(CeilDiv(K, gpu::kWgmmaTileK));
    p.slab_blocks = static_cast<uint32_t>(CeilDiv(slab_k, gpu::kWgmmaTileK));
    p.slab_steps = static_cast<uint32_t>(CeilDiv(slab_k, 16));
    if (panel == 0) p.shrink = shrink;
    for (size_t i = 0; i < grad_panels.size(); ++i) p.grads[i] = grad_panels[i].Of(panel);
    p.y_vector = ReadableByTma(operands.y.data, N) && first_n % 8 == 0;
    if (!direct && next_n < N) {
      p.next_panel = FillOf(operands.w, transposed, next_n, std::min(panel_rows, N - next_n),
                            panels[(panel + 1) % 2], stride_elems);
      p.next_kept = kept.Fill(panel + 1);
    }

    LaunchStep step;
    step.kernel = split.tile->kernel[type];
    step.SetTile(gpu::kWgmmaTileM, split.tile->tile_n);
    step.grid.x = static_cast<uint32_t>(
        gpu::kWgmmaCluster *
        std::min<int64_t>(pairs_m * p.tiles_n, std::max(device.sm_count / 2, 1)));
    step.threads = gpu::kWgmmaThreads;
    step.cluster = gpu::kWgmmaCluster;
    step.shared_bytes =
        gpu::WgmmaSharedBytes(static_cast<uint32_t>(split.tile->tile_n), split.tile->stages);
    step.SetParams(p);
    using P = gpu::GemmWgmmaParams;
    step.tensor_maps.push_back(
        MapOf(offsetof(P, x_map), x, dtype, M, K, stride_elems, gpu::kWgmmaTileM));
    const void* w_base = direct ? static_cast<const uint16_t*>(operands.w.dense.data) + first_n * K
                                : panels[panel % 2];
    step.tensor_maps.push_back(
        MapOf(offsetof(P, w_map), w_base, dtype, panel_n, K, stride_elems, box_n));
    if (slab_k != 0) {
      step.tensor_maps.push_back(
          MapOf(offsetof(P, h_map), h_parts, DType::kBF16, M, slab_k, slab_k, gpu::kWgmmaTileM));
      const uint16_t* parts = lora_b_parts == nullptr ? nullptr : lora_b_parts + first_n * slab_k;
      step.tensor_maps.push_back(
          MapOf(offsetof(P, lora_b_map), parts, DType::kBF16, panel_n, slab_k, slab_k, box_n));
    }
    plan->steps.push_back(std::move(step));
  }
  return Status();
}

}  // namespace lowrank::cuda
