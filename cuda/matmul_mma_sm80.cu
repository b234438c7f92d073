/// Products with a base weight on tensor cores (m16n8k16), tiled.
#include "cuda/gemm_mma.cuh"

namespace lowrank::gpu {

#define LOWRANK_GEMM_MMA_KERNEL(op, transposed, format, kFormat, bits, dtype, Element, tile_m,    \
                                tile_p, stages, min_blocks)                                       \
  using op##_##format##_##dtype##_##tile_m##_Tile = GemmTile<tile_m, tile_p, stages, transposed>; \
  static_assert(sizeof(GemmMmaShared<WeightSource<WeightFormat::kFormat, Element,                 \
                                                  op##_##format##_##dtype##_##tile_m##_Tile>,     \
                                     op##_##format##_##dtype##_##tile_m##_Tile>) ==               \
                GemmMmaSharedBytes(bits, transposed, tile_m, tile_p, stages,                      \
                                   WeightFormat::kFormat == WeightFormat::kDense));               \
  LOWRANK_KERNEL(op##_mma_##format##_##dtype##_##tile_m##x##tile_p##_kernel, GemmMmaParams,       \
                 (GemmTile<tile_m, tile_p, stages, transposed>::kThreads), min_blocks) {          \
    GemmMmaBody<WeightFormat::kFormat, Element, GemmTile<tile_m, tile_p, stages, transposed>>(p); \
  }
LOWRANK_GEMM_MMA_KERNELS(LOWRANK_GEMM_MMA_KERNEL)

}  // namespace lowrank::gpu
