/// Plans of cuda/simt/gemm_f32_sm80.cu.
#include "native/cuda/plans/products/plan_gemm_f32.h"

#include "native/cuda/plans/weight_params.h"
#include "native/host_device/params/gemm_f32.h"
#include "native/host_device/philox.h"

namespace lowrank::cuda {
namespace {

constexpr uint32_t kTileC = 16;

struct F32Tile {
  const char* kernel[2];   // plain, transposed
  const char* experts[2];  // of experts
  int64_t tile_m;
  int64_t tile_p;
  uint32_t threads;
  const char* note;
};

constexpr F32Tile kF32Tiles[] = {
    {{"gemm_f32_128x128_kernel", "gemm_f32_transposed_128x128_kernel"},
     {"experts_f32_128x128_kernel", "experts_f32_transposed_128x128_kernel"},
     128,
     128,
     256,
     "untuned: 64 products for 16 shared-memory pieces; from a block a multiprocessor"},
    {{"gemm_f32_32x64_kernel", "gemm_f32_transposed_32x64_kernel"},
     {"experts_f32_32x64_kernel", "experts_f32_transposed_32x64_kernel"},
     32,
     64,
     128,
     "untuned: eight times the blocks of the large tile, four a multiprocessor"},
};

int64_t Blocks(const F32Tile& tile, const GemmMmaOperands& operands, int64_t P) {
  return operands.RowTiles(tile.tile_m) * CeilDiv(P, tile.tile_p);
}

const F32Tile& SelectTile(const GemmMmaOperands& operands, int64_t P, const DeviceLimits& device) {
  return Blocks(kF32Tiles[0], operands, P) >= device.sm_count ? kF32Tiles[0] : kF32Tiles[1];
}

uint32_t SharedBytes(const F32Tile& tile) {
  // Three slabs of x, two of w, and the codebook.
  return static_cast<uint32_t>((3 * tile.tile_m + 2 * tile.tile_p) * kTileC * 4 + 1024);
}

/// `cols` is the row length of w.
gpu::GemmF32Pass MakePass(const void* x, const gpu::GemmMmaWeight& w, int64_t C, int64_t cols,
                          float scale) {
  gpu::GemmF32Pass pass{};
  pass.x = static_cast<const float*>(x);
  pass.w = w;
  pass.C = C;
  pass.scale = scale;
  pass.vector_x = C % 4 == 0 && IsAligned(x, 16);
  // If rows and blocks are multiples of eight, eight elements are aligned and have one scale.
  pass.vector_w = cols % 8 == 0 && IsAligned(w.data, 16) && (w.bits == 0 || w.blocksize_log2 >= 3);
  return pass;
}

}  // namespace

Status PlanGemmF32(const GemmMmaOperands& operands, const DeviceLimits& device,
                   Workspace* workspace, Plan* plan) {
  const bool transposed = operands.w_transposed;
  const int64_t M = operands.M();
  const int64_t P = transposed ? operands.w.cols() : operands.N();
  if (M == 0 || P == 0) return Status();

  TensorView x = operands.x;
  if (x.dtype != DType::kF32) {
    x.dtype = DType::kF32;
    x.data = workspace->Take<float>(x.elems());
    LOWRANK_RETURN_IF_ERROR(MakePlan(CastOp{operands.x, x}, device, workspace, plan));
  }

  gpu::GemmF32Params params{};
  if (operands.h != nullptr && operands.lora_factor.present) {
    const TensorView& factor = operands.lora_factor;
    params.passes[0] = MakePass(operands.h, DenseWeightParams(factor), operands.r(), factor.cols,
                                operands.scaling);
  }
  params.passes[1] = MakePass(x.data, WeightParams(operands.w), x.cols, operands.w.cols(), 1.0f);
  params.y = operands.y.data;
  params.y_dtype = static_cast<uint8_t>(operands.y.dtype);
  params.bias = operands.bias.data;
  params.bias_dtype = static_cast<uint8_t>(operands.bias.dtype);
  params.lora_bias = operands.lora_bias.data;
  params.lora_bias_dtype = static_cast<uint8_t>(operands.lora_bias.dtype);
  params.scaling = operands.scaling;
  params.M = M;
  params.P = P;
  params.accumulate = operands.accumulate;
  const DropoutSpec& dropout = operands.dropout;
  if (dropout.active()) {
    params.gated = true;
    params.mask = dropout.mask.data;
    params.mask_dtype = static_cast<uint8_t>(dropout.mask.dtype);
    params.seed = dropout.seed;
    params.threshold = DropoutThreshold(dropout.p);
    params.kept_scale = static_cast<float>(1.0 / (1.0 - dropout.p));
  }

  const F32Tile& tile = SelectTile(operands, P, device);
  const int64_t blocks = Blocks(tile, operands, P);
  if (blocks > INT32_MAX) {
    return Status(Code::kUnsupported, "cuda: a product of " + std::to_string(blocks) +
                                          " tiles exceeds the largest grid, 2147483647");
  }
  params.tiles_p = (P + tile.tile_p - 1) / tile.tile_p;
  LaunchStep step;
  const ExpertsOfProduct* experts = operands.experts;
  step.kernel = (experts == nullptr ? tile.kernel : tile.experts)[transposed ? 1 : 0];
  step.SetTile(tile.tile_m, tile.tile_p);
  step.grid.x = static_cast<uint32_t>(blocks);
  step.threads = tile.threads;
  step.shared_bytes = SharedBytes(tile);
  if (experts == nullptr) {
    step.SetParams(params);
  } else {
    step.SetParams(gpu::ExpertsF32Params{params, ExpertSlotsOf(experts->route, experts->gather),
                                         experts->shared_factor});
  }
  plan->steps.push_back(std::move(step));
  return Status();
}

}  // namespace lowrank::cuda
