#include "native/cuda/plans/products/plan_gemm_int8.h"

#include <algorithm>
#include <cstddef>

#include "native/cuda/plans/plan_streaming.h"
#include "native/host_device/params/gemm_int8.h"

namespace lowrank::cuda {
namespace {

/// Which kernel takes which product: the first row whose minimum of rows and blocks is met.
struct Int8TileRow {
  const char* kernel;
  int64_t tile_m;
  int64_t tile_p;
  uint32_t threads;
  int64_t least_rows;         // of x
  int64_t least_blocks_x100;  // of the grid, in hundredths of the multiprocessors
  const char* note;
};
constexpr Int8TileRow kInt8Tiles[] = {
    {"matmul_int8_128x128_kernel", 128, 128, 128, 65, 60, "untuned; the fewest bytes a product"},
    {"matmul_int8_64x64_kernel", 64, 64, 128, 33, 0,
     "untuned; where 128x128 leaves multiprocessors idle"},
    {"matmul_int8_16x32_kernel", 16, 32, 64, 0, 0,
     "untuned; as many blocks as there are multiprocessors from N = 4,096 on"},
};

constexpr uint32_t SharedBytesOf(int64_t tile_m) {
#define LOWRANK_GEMM_INT8_BYTES(m, p, warp_m, warp_p, stages, min_blocks) \
  if (tile_m == m) return gpu::GemmInt8SharedBytes(m, p, stages);
  LOWRANK_GEMM_INT8_KERNELS(LOWRANK_GEMM_INT8_BYTES)
#undef LOWRANK_GEMM_INT8_BYTES
  return 0;
}

const Int8TileRow& SelectTile(const GemmMmaOperands& operands, const DeviceLimits& device) {
  const int64_t M = operands.x.rows;
  for (const Int8TileRow& tile : kInt8Tiles) {
    const int64_t blocks = CeilDiv(M, tile.tile_m) * CeilDiv(operands.y.cols, tile.tile_p);
    if (M >= tile.least_rows && blocks * 100 >= tile.least_blocks_x100 * device.sm_count) {
      return tile;
    }
  }
  return kInt8Tiles[2];
}

/// By DType.
constexpr const char* kRowCodes[] = {"row_codes_f32_kernel", "row_codes_bf16_kernel",
                                     "row_codes_f16_kernel"};

/// On Hopper a pair of blocks of the wgmma kernel computes 256 x 256 of y in 1,280 clocks per 128
/// of K; two 128x128 blocks on a multiprocessor take 2,184, and one alone 1,092. So wgmma wins as
/// soon as the others would put two blocks on some multiprocessors, and the second row tile of a
/// pair is not empty. Untuned.
constexpr int64_t kWgmmaLeastRows = 129;
constexpr int64_t kWgmmaLeastPairsX100 = 26;  // in hundredths of the multiprocessors
constexpr int64_t kPairM = int64_t{gpu::kInt8WgmmaTileM} * gpu::kInt8WgmmaCluster;

int64_t PairsOf(const GemmMmaOperands& operands) {
  return CeilDiv(operands.x.rows, kPairM) * CeilDiv(operands.y.cols, gpu::kInt8WgmmaTileP);
}

bool TakesWgmma(const GemmMmaOperands& operands, const DeviceLimits& device) {
  constexpr int64_t kMost = int64_t{1} << 30;
  const int64_t pairs = PairsOf(operands);
  return device.has_wgmma() && operands.x.rows >= kWgmmaLeastRows &&
         pairs * 100 >= kWgmmaLeastPairsX100 * device.sm_count && pairs <= kMost &&
         std::max(operands.x.rows, operands.y.cols) <= kMost &&
         device.shared_bytes_per_block >= gpu::kInt8WgmmaSharedBytes;
}

/// Rows of bytes, or of bf16 parts, in boxes of 128 rows by 128 bytes.
TensorMapRequest MapOf(size_t param_offset, const void* base, bool bytes, int64_t rows,
                       int64_t cols) {
  const uint32_t elem_bytes = bytes ? 1 : 2;
  TensorMapRequest map;
  map.param_offset_bytes = static_cast<uint32_t>(param_offset);
  map.base = base;
  map.dtype = DType::kBF16;
  map.bytes = bytes;
  map.rank = 2;
  map.size_elems = {static_cast<uint64_t>(cols), static_cast<uint64_t>(rows)};
  map.stride_bytes = {0, static_cast<uint64_t>(cols) * elem_bytes};
  map.box_elems = {gpu::kInt8WgmmaSlab / elem_bytes, gpu::kInt8WgmmaTileM};
  map.swizzle_bytes = 128;
  return map;
}
static_assert(gpu::kInt8WgmmaTileP / gpu::kInt8WgmmaCluster == gpu::kInt8WgmmaTileM);

Status PlanWgmma(const gpu::GemmInt8Params& int8, const GemmMmaOperands& operands,
                 const DeviceLimits& device, Workspace* workspace, Plan* plan) {
  const int64_t M = int8.gemm.M;
  const int64_t N = int8.gemm.N;
  const int64_t K = int8.gemm.K;
  gpu::Int8PartsParams parts{};
  parts.gemm = int8.gemm;
  parts.steps = CeilDiv(int8.gemm.r, 16) * int8.gemm.split_pairs;
  if (parts.steps > 0) {
    parts.h = workspace->Take<uint16_t>(M * parts.steps * 16);
    parts.factor = workspace->Take<uint16_t>(N * parts.steps * 16);
    LaunchStep step;
    step.kernel = "matmul_int8_parts_kernel";
    step.threads = gpu::kInt8PartsThreads;
    LOWRANK_RETURN_IF_ERROR(
        SetGrid("matmul", (M + N) * parts.steps * 2, gpu::kInt8PartsThreads, &step));
    step.SetParams(parts);
    plan->steps.push_back(std::move(step));
  }

  gpu::GemmInt8WgmmaParams params{};
  params.int8 = int8;
  params.int8.tiles_m = CeilDiv(M, kPairM);
  params.int8.gemm.tiles_p = CeilDiv(N, gpu::kInt8WgmmaTileP);
  params.k_slabs = static_cast<uint32_t>(CeilDiv(K, gpu::kInt8WgmmaSlab));
  params.lora_slabs = static_cast<uint32_t>(CeilDiv(parts.steps, 4));
  params.lora_steps = static_cast<uint32_t>(parts.steps);
  LaunchStep step;
  step.kernel = "matmul_int8_wgmma_kernel";
  step.SetTile(gpu::kInt8WgmmaTileM, gpu::kInt8WgmmaTileP);
  step.threads = gpu::kInt8WgmmaThreads;
  step.cluster = gpu::kInt8WgmmaCluster;
  step.shared_bytes = gpu::kInt8WgmmaSharedBytes;
  step.grid.x =
      static_cast<uint32_t>(gpu::kInt8WgmmaCluster *
                            std::min<int64_t>(PairsOf(operands), std::max(device.sm_count / 2, 1)));
  step.SetParams(params);
  using P = gpu::GemmInt8WgmmaParams;
  step.tensor_maps.push_back(MapOf(offsetof(P, x_map), int8.codes, true, M, K));
  step.tensor_maps.push_back(MapOf(offsetof(P, w_map), int8.gemm.w.data, true, N, K));
  if (parts.steps > 0) {
    const int64_t cols = parts.steps * 16;
    step.tensor_maps.push_back(MapOf(offsetof(P, h_map), parts.h, false, M, cols));
    step.tensor_maps.push_back(MapOf(offsetof(P, factor_map), parts.factor, false, N, cols));
  }
  plan->steps.push_back(std::move(step));
  return Status();
}

Status PlanRowCodes(const TensorView& x, gpu::GemmInt8Params* product, Workspace* workspace,
                    Plan* plan) {
  gpu::RowCodesParams params{};
  params.x = x.data;
  params.codes = workspace->Take<int8_t>(x.elems());
  params.scales = workspace->Take<float>(x.rows);
  params.sums = workspace->Take<int32_t>(x.rows);
  params.K = x.cols;
  params.whole = IsAligned(x.data, 16) ? 1 : 0;
  product->codes = params.codes;
  product->scales = params.scales;
  product->sums = params.sums;
  LaunchStep step;
  step.kernel = kRowCodes[static_cast<int>(x.dtype)];
  step.threads = gpu::kRowCodesThreads;
  step.shared_bytes = gpu::kRowCodesSharedBytes;
  LOWRANK_RETURN_IF_ERROR(SetGrid("matmul", x.rows, 1, &step));
  step.SetParams(params);
  plan->steps.push_back(std::move(step));
  return Status();
}

}  // namespace

Status PlanGemmInt8(const GemmMmaOperands& operands, const DeviceLimits& device,
                    Workspace* workspace, Plan* plan) {
  if (operands.y.elems() == 0) return Status();
  const QuantView& w = operands.w.quant;
  // Allocations are aligned so, as are rows of a multiple of 32.
  if (!IsAligned(w.codes, 16)) {
    return Refuse(Code::kUnsupported, "matmul", "w", "16-byte aligned (for compute int8)",
                  "codes at another address");
  }
  gpu::GemmInt8Params params{};
  params.gemm = GemmMmaParamsOf(operands);
  params.blocks_per_row = w.cols / w.blocksize;
  params.y_dtype = static_cast<uint8_t>(operands.y.dtype);
  LOWRANK_RETURN_IF_ERROR(PlanRowCodes(operands.x, &params, workspace, plan));

  if (TakesWgmma(operands, device)) return PlanWgmma(params, operands, device, workspace, plan);
  const Int8TileRow& tile = SelectTile(operands, device);
  params.tiles_m = CeilDiv(operands.x.rows, tile.tile_m);
  params.gemm.tiles_p = CeilDiv(operands.y.cols, tile.tile_p);
  LaunchStep step;
  step.kernel = tile.kernel;
  step.SetTile(tile.tile_m, tile.tile_p);
  step.threads = tile.threads;
  step.shared_bytes = SharedBytesOf(tile.tile_m);
  LOWRANK_RETURN_IF_ERROR(SetGrid("matmul", params.tiles_m * params.gemm.tiles_p, 1, &step));
  step.SetParams(params);
  plan->steps.push_back(std::move(step));
  return Status();
}

}  // namespace lowrank::cuda
