#include "native/cuda/plans/products/plan_matmul_small_m.h"

#include <algorithm>

#include "native/cuda/plans/factors/plan_lora_grad.h"
#include "native/cuda/plans/plan_cluster.h"
#include "native/cuda/plans/plan_streaming.h"
#include "native/cuda/plans/weight_params.h"
#include "native/host_device/params/matmul_small_m.h"

namespace lowrank::cuda {
namespace {

using gpu::SmallMFormat;

/// One format of one tile.
struct SmallMFormatRow {
  const char* kernels[2];          // bf16, f16
  const char* cluster_kernels[2];  // for sm_90a, where the slices are the blocks of a cluster
  int64_t step_k;                  // slices of K are multiples of it
  int64_t shared_bytes;            // without the scales
};

struct SmallMTileRow {
  int min_sm;
  int64_t m_max;               // tokens: the first row with enough is taken
  int64_t rows;                // outputs per block
  int64_t tokens;              // tokens it has sums for
  int64_t scale_bytes;         // per block index, for all rows
  int64_t blocks_per_sm;       // as its registers allow
  SmallMFormatRow formats[3];  // in SmallMFormat's order
  const char* note;
};

template <SmallMFormat kFormat, typename Tile>
constexpr SmallMFormatRow MakeFormat(const char* bf16, const char* f16, const char* cluster_bf16,
                                     const char* cluster_f16) {
  return {{bf16, f16},
          {cluster_bf16, cluster_f16},
          gpu::kSmallMStepK<kFormat, Tile>,
          static_cast<int64_t>(sizeof(gpu::SmallMShared<kFormat, Tile>))};
}

#define LOWRANK_SMALL_M_FORMAT(kFormat, Tile, format, m_max)       \
  MakeFormat<SmallMFormat::kFormat, gpu::Tile>(                    \
      "matmul_small_m_" format "_bf16_m" #m_max "_kernel",         \
      "matmul_small_m_" format "_f16_m" #m_max "_kernel",          \
      "matmul_small_m_cluster_" format "_bf16_m" #m_max "_kernel", \
      "matmul_small_m_cluster_" format "_f16_m" #m_max "_kernel")
#define LOWRANK_SMALL_M_ROW(m_max, Tile, blocks_per_sm, note) \
  {80,                                                        \
   m_max,                                                     \
   gpu::Tile::kRows,                                          \
   gpu::Tile::kTokens,                                        \
   gpu::Tile::kScaleStride * int64_t{sizeof(float)},          \
   blocks_per_sm,                                             \
   {LOWRANK_SMALL_M_FORMAT(kCode4, Tile, "4bit", m_max),      \
    LOWRANK_SMALL_M_FORMAT(kCode8, Tile, "8bit", m_max),      \
    LOWRANK_SMALL_M_FORMAT(kDense, Tile, "dense", m_max)},    \
   note}

/// Rows grow with M because every block reads x from L2: 2 · M / rows bytes per weight. The notes
/// give the bytes of x and of w per 4-bit weight. Untuned: no GPU has run them.
constexpr SmallMTileRow kSmallMTiles[] = {
    LOWRANK_SMALL_M_ROW(8, SmallMTile8, 2, "0.5 of x beside 0.56 of w at M = 8"),
    LOWRANK_SMALL_M_ROW(16, SmallMTile16, 1, "0.5 beside 0.56 at M = 16"),
    LOWRANK_SMALL_M_ROW(32, SmallMTile32, 1, "0.5 beside 0.56 at M = 32"),
    LOWRANK_SMALL_M_ROW(64, SmallMTile64, 1, "1 beside 0.56 at M = 64; 256 rows do not fit"),
};
#undef LOWRANK_SMALL_M_ROW
#undef LOWRANK_SMALL_M_FORMAT

constexpr int64_t kTokensOfMma = 32;  // up to these memory bounds mma.sync too
constexpr int64_t kTokensOfWgmma = 1024;
/// The x of a block's tokens has at most 2^32 elements.
constexpr int64_t kWgmmaColsMax = (int64_t{1} << 32) / gpu::SmallMTileWide::kTokens;
constexpr int64_t kSplitsMax = 64;
constexpr int64_t kColsMax = int64_t{1} << 26;  // a block's rows have fewer than 2^31 pieces

const SmallMTileRow* TileFor(int64_t M, const DeviceLimits& device) {
  for (const SmallMTileRow& row : kSmallMTiles) {
    if (M <= row.m_max && device.sm >= row.min_sm) return &row;
  }
  return nullptr;
}

SmallMFormat FormatOf(const WeightView& w) {
  if (!w.quantised()) return SmallMFormat::kDense;
  return w.quant.format->bits == 4 ? SmallMFormat::kCode4 : SmallMFormat::kCode8;
}

/// How K is split.
struct Slices {
  int64_t k = 0;  // per block; 0: no slice's scales fit in shared memory
  int64_t count = 0;
  int64_t shared_bytes = 0;
};

/// K in `wanted` slices, or a few less if those have one step more each; none if their scales do
/// not fit in shared memory.
Slices CutKInto(int64_t wanted, const GemmMmaOperands& operands, const SmallMTileRow& tile,
                const DeviceLimits& device) {
  const SmallMFormatRow& format = tile.formats[static_cast<int>(FormatOf(operands.w))];
  const int64_t K = operands.x.cols;
  Slices slices;
  slices.k = std::min(CeilDiv(CeilDiv(K, format.step_k), wanted) * format.step_k, K);
  slices.count = CeilDiv(K, slices.k);
  slices.shared_bytes = format.shared_bytes;
  if (operands.w.quantised()) {
    // A slice that starts inside a block touches one block more than its length holds.
    const int64_t blocks = (slices.k - 1) / operands.w.quant.blocksize + 2;
    slices.shared_bytes += blocks * tile.scale_bytes;
  }
  return slices.shared_bytes <= device.shared_bytes_per_block ? slices : Slices();
}

Slices CutK(const GemmMmaOperands& operands, const SmallMTileRow& tile,
            const DeviceLimits& device) {
  const SmallMFormatRow& format = tile.formats[static_cast<int>(FormatOf(operands.w))];
  const int64_t steps = CeilDiv(operands.x.cols, format.step_k);
  // K is not split if there are blocks for three quarters of the multiprocessors: the planes and
  // the second launch cost more than the idle ones.
  const int64_t blocks = CeilDiv(operands.w.rows(), tile.rows);
  int64_t wanted = 1;
  if (4 * blocks < 3 * device.sm_count) {
    wanted = std::max<int64_t>(1, device.sm_count * tile.blocks_per_sm / blocks);
  }
  wanted = std::min({wanted, steps, kSplitsMax});
  for (; wanted <= std::min(steps, kSplitsMax); ++wanted) {
    const Slices slices = CutKInto(wanted, operands, tile, device);
    if (slices.count > 0) return slices;
  }
  return Slices();
}

/// A wgmma kernel: `rows` outputs by `tokens`, K split over the blocks of a cluster.
struct WgmmaRow {
  int64_t rows;
  int64_t tokens;
  int64_t scale_bytes;  // per block index, for all rows
  uint32_t threads;
  int64_t shared_bytes;    // without the scales
  int64_t scale_slots;     // scales of a row held at a time; 0: those of a slice
  int64_t step_clocks;     // per 128 k: stepClocks of bench/gpu/budget-model.mjs
  bool half_by_l2;         // half of the sums reach the peers through L2
  const char* kernels[2];  // bf16, f16
};
template <typename Tile, typename Shared>
constexpr WgmmaRow MakeWgmma(uint32_t threads, int64_t step_clocks, const char* bf16,
                             const char* f16) {
  return {Tile::kRows,
          Tile::kTokens,
          Tile::kScaleStride * int64_t{sizeof(float)},
          threads,
          static_cast<int64_t>(sizeof(Shared)),
          Shared::kScaleSlots,
          step_clocks,
          Shared::kHalfByL2,
          {bf16, f16}};
}
template <typename Tile>
using WgmmaShared = gpu::SmallMWgmmaShared<Tile, gpu::kSmallMWgmmaStages, 0>;
constexpr WgmmaRow kWgmmaRows[] = {
    MakeWgmma<gpu::SmallMTileWgmma, WgmmaShared<gpu::SmallMTileWgmma>>(
        gpu::kSmallMThreads, 1711, "matmul_small_m_wgmma_4bit_bf16_kernel",
        "matmul_small_m_wgmma_4bit_f16_kernel"),
    MakeWgmma<gpu::SmallMTileWgmma128, WgmmaShared<gpu::SmallMTileWgmma128>>(
        gpu::kSmallMThreads, 942, "matmul_small_m_wgmma128_4bit_bf16_kernel",
        "matmul_small_m_wgmma128_4bit_f16_kernel"),
    MakeWgmma<gpu::SmallMTileWide, gpu::SmallMWideShared>(gpu::kSmallMWideThreads, 2435,
                                                          "matmul_wide_m_wgmma_4bit_bf16_kernel",
                                                          "matmul_wide_m_wgmma_4bit_f16_kernel"),
};

/// A multiprocessor's share of the memory rate, in bytes per clock, as the mma.sync kernels reach
/// it for any format.
constexpr int64_t kMemoryBytes = 13;

/// `planes`, the slices that fill a device, as the blocks of a cluster: the same number, so with
/// the same bits, if a cluster can have them. Otherwise the most that it can, or none if planes and
/// their launch take fewer clocks. Example: 1,024 x 4,096 at 32 tokens wants 16 slices. In eight, a
/// block takes 2,520 clocks of memory and 1,610 for its peers' sums; in sixteen 1,260, plus 1,850
/// for the second launch and 1,060 for the planes. So it is a cluster of eight. At K = 14,336 it is
/// planes.
Slices ClusterSlices(const Slices& planes, const GemmMmaOperands& operands,
                     const SmallMTileRow& tile, const DeviceLimits& device) {
  if (!device.has_clusters() || planes.count < 2) return Slices();
  const int64_t M = operands.x.rows;
  const int64_t N = operands.w.rows();
  const int64_t blocks = CeilDiv(N, tile.rows);
  // Otherwise the blocks run one after another, because shared memory is too small for the scales
  // of fewer slices.
  const bool one_wave = blocks * planes.count <= device.sm_count * tile.blocks_per_sm;
  auto clocks = [&](const Slices& slices) {
    const int64_t a_multiprocessor = CeilDiv(blocks * slices.count, device.sm_count);
    const int64_t lane_elems = gpu::LaneElems(FormatOf(operands.w));
    return a_multiprocessor * tile.rows * slices.k / lane_elems * 16 / kMemoryBytes;
  };
  for (int64_t wanted = std::min<int64_t>(planes.count, gpu::kSmallMClusterMax); wanted > 1;
       --wanted) {
    const Slices slices = CutKInto(wanted, operands, tile, device);
    if (slices.count != wanted) continue;  // each block needs a slice and room for its scales
    if (one_wave && blocks > ClustersAtOnce(wanted, tile.blocks_per_sm, device.sm_count)) continue;
    if (slices.count == planes.count) return slices;
    const int64_t sum_bytes = tile.rows * tile.tokens * int64_t{sizeof(float)};
    const int64_t by_planes = clocks(planes) + PlaneSumClocks(planes.count, M * N, device.sm_count);
    const int64_t by_cluster = clocks(slices) + ClusterSumClocks(sum_bytes, wanted);
    return by_cluster <= by_planes ? slices : Slices();
  }
  return Slices();
}

/// From this many tokens on the panels of gemm_wgmma are better: if a device needs several waves of
/// blocks, since the decode of all but the first is hidden, and with a LoRA term, whose h they
/// compute in the same launch.
constexpr int64_t kTokensOfPanels = 385;

/// What follows a block's last step: endClocks of bench/gpu/budget-model.mjs. The sums of its peers
/// in a cluster, half of which go through L2 if a warp has two fragments, and meanwhile the
/// instructions that turn them into outputs.
int64_t EndClocks(const WgmmaRow& row, int64_t cluster) {
  constexpr int64_t kOutputClocks = 2000;
  const int64_t sum_bytes = row.rows * row.tokens * int64_t{sizeof(float)};
  if (cluster == 1) return std::max(kOutputClocks, sum_bytes / 2 / kL2Bytes);
  const int64_t half_bytes = row.half_by_l2 ? sum_bytes / 2 : 0;
  const int64_t peer_bytes = (sum_bytes - half_bytes) * (cluster - 1) / cluster;
  const int64_t peers = peer_bytes * 10 / PeerBytesTimesTen(cluster);
  // Half of the stores come late; the last products hide the others.
  return kClusterClocks + std::max({peers, half_bytes / kL2Bytes, kOutputClocks}) +
         half_bytes / kL2Bytes / 2;
}

struct WgmmaChoice {
  const WgmmaRow* row = nullptr;
  Slices slices;
  int64_t clocks = 0;
};

/// The wgmma kernel and the slices that take the fewest clocks; none if the kernels do not take
/// these operands or would leave too much of the device idle.
WgmmaChoice ChooseWgmma(const GemmMmaOperands& operands, const DeviceLimits& device) {
  constexpr int64_t kStepK = gpu::kSmallMStepK<SmallMFormat::kCode4, gpu::SmallMTileWgmma>;
  const int64_t K = operands.x.cols;
  const int64_t M = operands.x.rows;
  WgmmaChoice best;
  if (!device.has_wgmma() || M <= kTokensOfMma || M > kTokensOfWgmma) return best;
  if (FormatOf(operands.w) != SmallMFormat::kCode4 || K > kWgmmaColsMax) return best;
  if (operands.w.quant.blocks() >= int64_t{1} << 32) return best;
  if (M >= kTokensOfPanels && operands.h != nullptr) return best;
  const int64_t steps = CeilDiv(K, kStepK);
  for (const WgmmaRow& row : kWgmmaRows) {
    const int64_t blocks = CeilDiv(operands.w.rows(), row.rows) * CeilDiv(M, row.tokens);
    for (int64_t count = 1; count <= gpu::kSmallMClusterMax; count *= 2) {
      if (count > 1 && count * blocks > device.sm_count) break;
      Slices slices;
      slices.k = std::min(CeilDiv(steps, count) * kStepK, K);
      slices.count = CeilDiv(K, slices.k);
      // Every block of a cluster needs a slice.
      if (slices.count != count) continue;
      const int64_t scales =
          row.scale_slots > 0 ? row.scale_slots : (slices.k - 1) / operands.w.quant.blocksize + 2;
      slices.shared_bytes = row.shared_bytes + scales * row.scale_bytes;
      if (slices.shared_bytes > device.shared_bytes_per_block) continue;
      const int64_t waves = CeilDiv(blocks * count, device.sm_count);
      if (M >= kTokensOfPanels && waves > 1) continue;
      // Up to 64 tokens the alternative is the mma.sync kernel for few tokens, which can split K
      // freely; above it is the tiled one, with 62 % of the products per clock and no better waves.
      const bool full = M <= gpu::SmallMTileWgmma::kTokens
                            ? 4 * blocks * count >= 3 * device.sm_count
                            : 8 * blocks * count >= 5 * waves * device.sm_count;
      if (!full) continue;
      const int64_t clocks =
          waves * (CeilDiv(slices.k, kStepK) * row.step_clocks + EndClocks(row, count));
      if (best.row == nullptr || clocks < best.clocks) best = {&row, slices, clocks};
    }
  }
  return best;
}

/// Does the family have a kernel for these operands, by either instruction?
bool Takes(const GemmMmaOperands& operands) {
  const TensorView& x = operands.x;
  const WeightView& w = operands.w;
  if (x.dtype == DType::kF32 || operands.w_transposed || operands.accumulate) return false;
  if (operands.dropout.active() || x.rows < 1 || w.rows() < 1) return false;
  if (!w.quantised() && w.dense.dtype != x.dtype) return false;
  if (w.quantised() && w.quant.double_quant()) {
    const int32_t nested_log2 = Log2Exact(w.quant.nested_blocksize);
    if (nested_log2 < 0 || nested_log2 > 30) return false;
  }
  const int64_t lane_elems = gpu::LaneElems(FormatOf(w));
  if (x.cols < lane_elems || x.cols % lane_elems != 0 || x.cols > kColsMax) return false;
  const void* weight = w.quantised() ? w.quant.codes : w.dense.data;
  return IsAligned(x.data, 16) && IsAligned(weight, 16);
}

/// By mma.sync.
bool MmaTakes(const GemmMmaOperands& operands, const DeviceLimits& device) {
  const SmallMTileRow* tile = TileFor(operands.x.rows, device);
  return tile != nullptr && CutK(operands, *tile, device).count > 0;
}

gpu::SmallMParams ParamsOf(const GemmMmaOperands& operands, const Slices& slices) {
  const bool lora =
      operands.h != nullptr && operands.lora_factor.present && operands.lora_factor.cols > 0;
  gpu::SmallMParams params{};
  params.w = WeightParams(operands.w);
  params.x = operands.x.data;
  params.bias = operands.bias.present ? operands.bias.data : nullptr;
  params.lora_b = lora ? operands.lora_factor.data : nullptr;
  params.lora_bias = operands.lora_bias.present ? operands.lora_bias.data : nullptr;
  params.h = lora ? operands.h : nullptr;
  params.y = operands.y.data;
  params.M = operands.x.rows;
  params.N = operands.w.rows();
  params.K = operands.x.cols;
  params.slice_k = slices.k;
  params.r = lora ? operands.lora_factor.cols : 0;
  params.scaling = operands.scaling;
  params.splits = static_cast<uint32_t>(slices.count);
  params.bias_dtype = static_cast<uint8_t>(operands.bias.dtype);
  params.lora_b_dtype = static_cast<uint8_t>(operands.lora_factor.dtype);
  params.lora_bias_dtype = static_cast<uint8_t>(operands.lora_bias.dtype);
  params.x_made = operands.x_made;
  return params;
}

/// The mma.sync launch: `slices` along y, or as the blocks of a cluster along x.
Status AddMmaStep(const SmallMTileRow& tile, const GemmMmaOperands& operands, const Slices& slices,
                  bool cluster, const gpu::SmallMParams& params, Plan* plan) {
  const SmallMFormatRow& format = tile.formats[static_cast<int>(FormatOf(operands.w))];
  LaunchStep step;
  step.kernel =
      (cluster ? format.cluster_kernels : format.kernels)[operands.x.dtype == DType::kF16 ? 1 : 0];
  step.SetTile(tile.tokens, tile.rows);
  step.threads = gpu::kSmallMThreads;
  step.shared_bytes = static_cast<uint32_t>(slices.shared_bytes);
  LOWRANK_RETURN_IF_ERROR(SetGrid(MatmulOp::kName, params.N, tile.rows, &step));
  if (cluster) {
    // With few blocks, all are on the device at once.
    step.cluster = static_cast<uint32_t>(slices.count);
    step.grid.x *= step.cluster;
  } else {
    step.grid.y = static_cast<uint32_t>(slices.count);
  }
  step.SetParams(params);
  plan->steps.push_back(step);
  return Status();
}

}  // namespace

bool SmallMApplies(const GemmMmaOperands& operands, const DeviceLimits& device) {
  return Takes(operands) &&
         (ChooseWgmma(operands, device).row != nullptr || MmaTakes(operands, device));
}

bool SmallMPlanesApply(const GemmMmaOperands& operands, const DeviceLimits& device) {
  // AppendPlaneSum requires it.
  return operands.y.cols % 4 == 0 && Takes(operands) && MmaTakes(operands, device);
}

Status PlanMatmulSmallMPlanes(const GemmMmaOperands& operands, float* sums,
                              const DeviceLimits& device, Workspace* workspace, Plan* plan,
                              ProductPlanes* planes) {
  const SmallMTileRow& tile = *TileFor(operands.x.rows, device);
  const Slices slices = CutK(operands, tile, device);
  gpu::SmallMParams params = ParamsOf(operands, slices);
  // Blocks write planes if there are several splits; with one, the grid has only the first of two.
  params.splits = std::max<uint32_t>(params.splits, 2);
  params.partial =
      slices.count > 1 ? workspace->Take<float>(slices.count * operands.y.elems()) : sums;
  *planes = {params.partial, slices.count};
  return AddMmaStep(tile, operands, slices, false, params, plan);
}

Status PlanMatmulSmallM(const GemmMmaOperands& operands, const DeviceLimits& device,
                        Workspace* workspace, Plan* plan) {
  const int64_t M = operands.x.rows;
  const int64_t N = operands.w.rows();
  const SmallMTileRow* tile = TileFor(M, device);
  const WgmmaChoice wgmma = ChooseWgmma(operands, device);
  const Slices slices = wgmma.row != nullptr ? wgmma.slices : CutK(operands, *tile, device);
  const int f16 = operands.x.dtype == DType::kF16 ? 1 : 0;
  gpu::SmallMParams params = ParamsOf(operands, slices);

  if (wgmma.row != nullptr) {
    LaunchStep step;
    step.shared_bytes = static_cast<uint32_t>(slices.shared_bytes);
    step.kernel = wgmma.row->kernels[f16];
    step.SetTile(wgmma.row->tokens, wgmma.row->rows);
    step.threads = wgmma.row->threads;
    step.cluster = params.splits;
    const int64_t row_blocks = CeilDiv(N, wgmma.row->rows);
    step.grid.x = static_cast<uint32_t>(row_blocks) * params.splits;
    step.grid.y = static_cast<uint32_t>(CeilDiv(M, wgmma.row->tokens));
    if (wgmma.row->half_by_l2 && params.splits > 1) {
      params.partial = workspace->Take<float>(slices.count * M * row_blocks * wgmma.row->rows / 2);
    }
    step.SetParams(params);
    plan->steps.push_back(step);
    return Status();
  }
  const Slices cluster = ClusterSlices(slices, operands, *tile, device);
  if (cluster.count > 0) {
    return AddMmaStep(*tile, operands, cluster, true, ParamsOf(operands, cluster), plan);
  }
  if (slices.count > 1) params.partial = workspace->Take<float>(slices.count * M * N);
  LOWRANK_RETURN_IF_ERROR(AddMmaStep(*tile, operands, slices, false, params, plan));
  if (slices.count == 1) return Status();

  LaunchStep finish;
  finish.kernel =
      f16 != 0 ? "matmul_small_m_finish_f16_kernel" : "matmul_small_m_finish_bf16_kernel";
  finish.threads = gpu::kSmallMFinishThreads;
  LOWRANK_RETURN_IF_ERROR(SetGrid(MatmulOp::kName, N, gpu::kSmallMFinishThreads, &finish));
  finish.grid.y = static_cast<uint32_t>(CeilDiv(M, gpu::kSmallMFinishTokens));
  finish.SetParams(params);
  plan->steps.push_back(finish);
  return Status();
}

}  // namespace lowrank::cuda
