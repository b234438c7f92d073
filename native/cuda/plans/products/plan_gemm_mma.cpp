#include "native/cuda/plans/products/plan_gemm_mma.h"

#include <algorithm>
#include <iterator>

#include "native/cuda/plans/factors/plan_lora_grad.h"
#include "native/cuda/plans/weight_params.h"
#include "native/host_device/params/gemm_mma.h"
#include "native/host_device/params/lora_pairs.h"
#include "native/host_device/philox.h"

namespace lowrank::cuda {
namespace {

static_assert(static_cast<int>(DType::kF32) == gpu::kElementF32 &&
              static_cast<int>(DType::kBF16) == gpu::kElementBF16 &&
              static_cast<int>(DType::kF16) == gpu::kElementF16);

enum class Format { kCode4, kCode8, kDense, kGeneral };

/// One kernel, from the list that also instantiates it.
struct KernelRow {
  const char* name;
  Format format;
  DType dtype;
  bool transposed;
  bool experts;
  int64_t tile_m;
  int64_t tile_p;
  uint32_t shared_bytes;
};

constexpr DType kDTypeOf_bf16 = DType::kBF16;
constexpr DType kDTypeOf_f16 = DType::kF16;

#define LOWRANK_GEMM_MMA_ROW_OF(experts, op, transposed, format, kFormat, bits, dtype, Element, \
                                tile_m, tile_p, stages, min_blocks)                             \
  KernelRow{#op "_mma_" #format "_" #dtype "_" #tile_m "x" #tile_p "_kernel",                   \
            Format::kFormat,                                                                    \
            kDTypeOf_##dtype,                                                                   \
            transposed,                                                                         \
            experts,                                                                            \
            tile_m,                                                                             \
            tile_p,                                                                             \
            gpu::GemmMmaSharedBytes(bits, transposed, tile_m, tile_p, stages,                   \
                                    Format::kFormat == Format::kDense)},
#define LOWRANK_GEMM_MMA_ROW(...) LOWRANK_GEMM_MMA_ROW_OF(false, __VA_ARGS__)
#define LOWRANK_EXPERTS_MMA_ROW(...) LOWRANK_GEMM_MMA_ROW_OF(true, __VA_ARGS__)
constexpr KernelRow kMmaKernels[] = {LOWRANK_GEMM_MMA_KERNELS(LOWRANK_GEMM_MMA_ROW)
                                         LOWRANK_EXPERTS_MMA_KERNELS(LOWRANK_EXPERTS_MMA_ROW)};
#undef LOWRANK_EXPERTS_MMA_ROW
#undef LOWRANK_GEMM_MMA_ROW
#undef LOWRANK_GEMM_MMA_ROW_OF

/// In order of preference; the last takes the rest.
constexpr GemmMmaTile kMmaTiles[] = {
    {"128x128", 128, 128, 128, 60,
     "untuned; a slab is 1,024 cycles of mma on sm_80 against 4 x 430 of shared memory as 64x64"},
    {"64x64", 64, 64, 128, 0, "untuned; more blocks where 128x128 leaves multiprocessors idle"},
};

/// The least part of the reduction that pays for a block: 16 slabs of 128x128 are 9 us on sm_80,
/// and the second launch that sums the planes takes about 4.
constexpr int64_t kMinSlabsPerSplit = 16;
/// In elements. Splitting does not pay for smaller weights either, and so they keep a row's bits in
/// any batch.
constexpr int64_t kMinWeightToSplit = int64_t{1} << 21;

/// Slots an expert from which tiles of 128 rows take less time than those of 64. Below, an expert
/// mostly has one tile, of 1,024 cycles a slab against 2 x 430; at 48 slots it has 0.87 of the
/// large ones, 895, and 1.25 of the small ones, 1,077.
constexpr int64_t kLargeTileSlots = 40;

/// All kernels but the general one copy whole 16-byte pieces of x and of w.
Format FormatOf(const GemmMmaOperands& operands) {
  const WeightView& w = operands.w;
  if (!IsAligned(operands.x.data, 16) || operands.x.cols % 8 != 0) return Format::kGeneral;
  if (!w.quantised()) {
    const bool whole = w.cols() % 8 == 0 && IsAligned(w.dense.data, 16);
    return whole && w.dense.dtype == operands.x.dtype ? Format::kDense : Format::kGeneral;
  }
  const QuantView& q = w.quant;
  // A decode task is 32 codes of one row and one block.
  const bool whole = q.cols % 32 == 0 && q.blocksize % 32 == 0 && IsAligned(q.codes, 16) &&
                     (!q.double_quant() || Log2Exact(q.nested_blocksize) >= 0);
  if (!whole) return Format::kGeneral;
  return q.format->bits == 4 ? Format::kCode4 : Format::kCode8;
}

/// One scale per row of a slab if its 64 codes are in one block, else one per 32.
int32_t ScaleSpanLog2(const WeightView& w) {
  return w.quantised() && w.quant.blocksize >= 64 && w.quant.cols % 64 == 0 ? 6 : 5;
}

void SetLora(const GemmMmaOperands& operands, gpu::GemmMmaParams* params) {
  const TensorView& factor = operands.lora_factor;
  if (!factor.present) return;
  params->r = operands.r();
  if (params->r == 0) return;
  params->h = operands.h;
  params->factor = factor.data;
  params->factor_dtype = static_cast<uint8_t>(factor.dtype);
  params->split_pairs = gpu::LoraPairs(static_cast<gpu::ElementCode>(factor.dtype));
  // Loads eight elements at a multiple of eight: rows of a multiple of eight are 16-byte aligned.
  params->vector_factors = params->r % 8 == 0 && factor.cols % 8 == 0 &&
                           IsAligned(operands.h, 16) && IsAligned(factor.data, 16);
}

void SetGate(const DropoutSpec& dropout, gpu::GemmMmaParams* params) {
  params->gated = dropout.active();
  if (!params->gated) return;
  params->seed = dropout.seed;
  params->threshold = DropoutThreshold(dropout.p);
  params->kept_scale = static_cast<float>(1.0 / (1.0 - dropout.p));
  if (!dropout.mask.present) return;
  params->mask = dropout.mask.data;
  params->mask_dtype = static_cast<uint8_t>(dropout.mask.dtype);
}

void AddReduce(const gpu::GemmMmaParams& params, DType dtype, Plan* plan) {
  const int64_t pieces = CeilDiv(params.w_transposed ? params.K : params.N, 8);
  LaunchStep step;
  step.kernel =
      dtype == DType::kBF16 ? "gemm_mma_reduce_bf16_kernel" : "gemm_mma_reduce_f16_kernel";
  step.grid.x = static_cast<uint32_t>(CeilDiv(params.M * pieces, gpu::kGemmMmaReduceThreads));
  step.threads = gpu::kGemmMmaReduceThreads;
  step.SetParams(params);
  plan->steps.push_back(std::move(step));
}

const void* DataOf(const TensorView& view) { return view.present ? view.data : nullptr; }

}  // namespace

int64_t GemmMmaOperands::RowTiles(int64_t tile_m) const {
  if (experts == nullptr) return CeilDiv(x.rows, tile_m);
  return gpu::MostExpertTiles(M(), experts->route.experts, tile_m);
}

gpu::ExpertSlots ExpertSlotsOf(const RouteView& route, bool gather) {
  gpu::ExpertSlots slots{};
  slots.offsets = route.offsets.data;
  slots.order = gather ? route.order.data : nullptr;
  slots.slots = static_cast<int32_t>(route.slots());
  slots.experts = static_cast<int32_t>(route.experts);
  slots.k = static_cast<int32_t>(route.k);
  return slots;
}

gpu::GemmMmaParams GemmMmaParamsOf(const GemmMmaOperands& operands) {
  gpu::GemmMmaParams params{};
  params.x = operands.x.data;
  params.y = operands.y.data;
  params.w = WeightParams(operands.w);
  params.M = operands.M();
  params.N = operands.N();
  params.K = operands.w.cols();
  params.w_transposed = operands.w_transposed;
  params.bias = DataOf(operands.bias);
  params.bias_dtype = static_cast<uint8_t>(operands.bias.dtype);
  params.lora_bias = DataOf(operands.lora_bias);
  params.lora_bias_dtype = static_cast<uint8_t>(operands.lora_bias.dtype);
  params.scaling = operands.scaling;
  params.accumulate = operands.accumulate;
  params.x_made = operands.x_made;
  params.vector_store = operands.y.cols % 8 == 0 && IsAligned(operands.y.data, 16);
  SetLora(operands, &params);
  SetGate(operands.dropout, &params);
  return params;
}

GemmMmaChoice SelectGemmMma(const GemmMmaOperands& operands, const DeviceLimits& device) {
  const bool general = FormatOf(operands) == Format::kGeneral;
  const int64_t P = operands.y.cols;
  const int64_t slabs = CeilDiv(operands.x.cols, 64);
  const bool whole = device.batch_invariant || operands.experts != nullptr ||
                     P * operands.x.cols < kMinWeightToSplit;
  const bool few = operands.experts != nullptr &&
                   operands.M() < kLargeTileSlots * operands.experts->route.experts;
  const int64_t splits_max = whole ? 1 : std::max<int64_t>(slabs / kMinSlabsPerSplit, 1);
  for (const GemmMmaTile& tile : kMmaTiles) {
    const bool last = &tile == std::end(kMmaTiles) - 1;
    if ((general || few) && !last) continue;
    const int64_t blocks = operands.RowTiles(tile.tile_m) * CeilDiv(P, tile.tile_p);
    const int64_t wanted =
        std::clamp<int64_t>(device.sm_count / std::max<int64_t>(blocks, 1), 1, splits_max);
    // Panels of scales start at multiples of eight slabs.
    const int64_t per_split = CeilDiv(CeilDiv(slabs, wanted), 8) * 8;
    const int64_t splits = std::max<int64_t>(CeilDiv(slabs, std::max<int64_t>(per_split, 1)), 1);
    if (!last && blocks * splits * 100 < tile.min_blocks_x100 * device.sm_count) continue;
    return {&tile, static_cast<int32_t>(splits), static_cast<int32_t>(per_split)};
  }
  return {};
}

Status PlanGemmMma(const GemmMmaOperands& operands, const DeviceLimits& device,
                   Workspace* workspace, Plan* plan) {
  return PlanGemmMma(operands, SelectGemmMma(operands, device), workspace, plan);
}

Status PlanGemmMma(const GemmMmaOperands& operands, const GemmMmaChoice& choice,
                   Workspace* workspace, Plan* plan) {
  const int64_t M = operands.M();
  const int64_t P = operands.w_transposed ? operands.w.cols() : operands.N();
  if (M == 0 || P == 0) return Status();

  const Format format = FormatOf(operands);
  const GemmMmaTile& tile = *choice.tile;
  const int64_t tiles_p = CeilDiv(P, tile.tile_p);
  const int64_t tiles = operands.RowTiles(tile.tile_m) * tiles_p;
  constexpr int64_t kMaxGrid = 0x7fffffff;
  if (tiles > kMaxGrid) {
    return Refuse(Code::kUnsupported, operands.w_transposed ? "matmulInputGrad" : "matmul", "y",
                  "at most " + std::to_string(kMaxGrid) + " tiles of " + tile.name,
                  std::to_string(tiles));
  }

  gpu::GemmMmaParams params = GemmMmaParamsOf(operands);
  params.w.scale_span_log2 = ScaleSpanLog2(operands.w);
  params.tiles_p = tiles_p;
  params.splits = choice.splits;
  params.slabs_per_split = choice.slabs_per_split;
  if (choice.splits > 1) params.planes = workspace->Take<float>(choice.splits * M * P);

  for (const KernelRow& kernel : kMmaKernels) {
    if (kernel.format != format || kernel.dtype != operands.x.dtype ||
        kernel.transposed != operands.w_transposed || kernel.tile_m != tile.tile_m ||
        kernel.tile_p != tile.tile_p || kernel.experts != (operands.experts != nullptr)) {
      continue;
    }
    LaunchStep step;
    step.kernel = kernel.name;
    step.SetTile(kernel.tile_m, kernel.tile_p);
    step.grid.x = static_cast<uint32_t>(tiles);
    step.grid.y = static_cast<uint32_t>(choice.splits);
    step.threads = tile.threads;
    step.shared_bytes = kernel.shared_bytes;
    if (operands.experts == nullptr) {
      step.SetParams(params);
    } else {
      const ExpertsOfProduct& experts = *operands.experts;
      step.SetParams(gpu::ExpertsMmaParams{params, ExpertSlotsOf(experts.route, experts.gather),
                                           experts.shared_factor});
    }
    plan->steps.push_back(std::move(step));
    if (choice.splits > 1) AddReduce(params, operands.x.dtype, plan);
    return Status();
  }
  return Refuse(Code::kUnsupported, "matmul", "x", "bf16 or f16", DTypeName(operands.x.dtype));
}

Status PlanGemmMmaPlanes(const GemmMmaOperands& operands, float* sums, const DeviceLimits& device,
                         Workspace* workspace, Plan* plan, ProductPlanes* planes) {
  GemmMmaChoice choice = SelectGemmMma(operands, device);
  // AppendPlaneSum requires it.
  if (operands.y.cols % 4 != 0 && choice.splits > 1) {
    choice.slabs_per_split *= choice.splits;
    choice.splits = 1;
  }
  const size_t before = plan->steps.size();
  LOWRANK_RETURN_IF_ERROR(PlanGemmMma(operands, choice, workspace, plan));
  if (plan->steps.size() == before) return Status();
  const bool cut = choice.splits > 1;
  if (cut) plan->steps.pop_back();  // the reduction that rounds
  LaunchStep& step = plan->steps.back();
  gpu::GemmMmaParams params;
  std::memcpy(&params, step.params.data(), sizeof(params));
  if (!cut) {
    params.splits = 2;  // of which the grid has the first, with all of the reduction
    params.planes = sums;
    step.SetParams(params);
  }
  *planes = {params.planes, choice.splits};
  return Status();
}

}  // namespace lowrank::cuda
