#include "native/cuda/plan_gemm_int8.h"

#include "cuda/params/gemm_int8.h"
#include "native/cuda/plan_streaming.h"

namespace lowrank::cuda {
namespace {

/// Which kernel takes which product: the first row that has rows and blocks enough.
struct TileRow {
  const char* kernel;
  int64_t tile_m;
  int64_t tile_p;
  uint32_t threads;
  int64_t least_rows;         // of x
  int64_t least_blocks_x100;  // of the grid, in hundredths of the multiprocessors
  const char* note;
};
constexpr TileRow kTiles[] = {
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

const TileRow& SelectTile(const GemmMmaOperands& operands, const DeviceLimits& device) {
  const int64_t M = operands.x.rows;
  for (const TileRow& tile : kTiles) {
    const int64_t blocks = CeilDiv(M, tile.tile_m) * CeilDiv(operands.y.cols, tile.tile_p);
    if (M >= tile.least_rows && blocks * 100 >= tile.least_blocks_x100 * device.sm_count) {
      return tile;
    }
  }
  return kTiles[2];
}

/// By DType.
constexpr const char* kRowCodes[] = {"row_codes_f32_kernel", "row_codes_bf16_kernel",
                                     "row_codes_f16_kernel"};

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
  // As allocations are, and rows of a multiple of 32.
  if (!IsAligned(w.codes, 16)) {
    return Refuse(Code::kUnsupported, "matmul", "w", "16-byte aligned (compute is 'int8')",
                  "codes at another address");
  }
  gpu::GemmInt8Params params{};
  params.gemm = GemmMmaParamsOf(operands);
  params.blocks_per_row = w.cols / w.blocksize;
  params.y_dtype = static_cast<uint8_t>(operands.y.dtype);
  LOWRANK_RETURN_IF_ERROR(PlanRowCodes(operands.x, &params, workspace, plan));

  const TileRow& tile = SelectTile(operands, device);
  params.tiles_m = CeilDiv(operands.x.rows, tile.tile_m);
  params.gemm.tiles_p = CeilDiv(operands.y.cols, tile.tile_p);
  LaunchStep step;
  step.kernel = tile.kernel;
  step.threads = tile.threads;
  step.shared_bytes = SharedBytesOf(tile.tile_m);
  LOWRANK_RETURN_IF_ERROR(SetGrid("matmul", params.tiles_m * params.gemm.tiles_p, 1, &step));
  step.SetParams(params);
  plan->steps.push_back(std::move(step));
  return Status();
}

}  // namespace lowrank::cuda
