/// Products with a base weight on tensor cores (m16n8k16), tiled.
#include "cuda/gemm_mma.cuh"

namespace lowrank::gpu {

// clang-format off
#define LOWRANK_GEMM_MMA_FORMATS(X, op, transposed, M, P, stages, blocks) \
  X(op, transposed, code4, kCode4, bf16, ElementBF16T, M, P, stages, blocks) \
  X(op, transposed, code4, kCode4, f16, ElementF16T, M, P, stages, blocks) \
  X(op, transposed, code8, kCode8, bf16, ElementBF16T, M, P, stages, blocks) \
  X(op, transposed, code8, kCode8, f16, ElementF16T, M, P, stages, blocks) \
  X(op, transposed, dense, kDense, bf16, ElementBF16T, M, P, stages, blocks) \
  X(op, transposed, dense, kDense, f16, ElementF16T, M, P, stages, blocks)
#define LOWRANK_GEMM_MMA_KERNELS(X) \
  LOWRANK_GEMM_MMA_FORMATS(X, matmul, false, 128, 128, 2, 2) \
  LOWRANK_GEMM_MMA_FORMATS(X, matmul, false, 64, 64, 2, 3) \
  LOWRANK_GEMM_MMA_FORMATS(X, input_grad, true, 128, 128, 2, 2) \
  LOWRANK_GEMM_MMA_FORMATS(X, input_grad, true, 64, 64, 2, 3) \
  X(matmul, false, general, kGeneral, bf16, ElementBF16T, 64, 64, 2, 2) \
  X(matmul, false, general, kGeneral, f16, ElementF16T, 64, 64, 2, 2) \
  X(input_grad, true, general, kGeneral, bf16, ElementBF16T, 64, 64, 2, 2) \
  X(input_grad, true, general, kGeneral, f16, ElementF16T, 64, 64, 2, 2)
// clang-format on

#define LOWRANK_GEMM_MMA_KERNEL(op, transposed, format_name, kFormat, type_name, Element, M, P,   \
                                stages, blocks)                                                   \
  LOWRANK_KERNEL(op##_mma_##format_name##_##type_name##_##M##x##P##_kernel, GemmMmaParams,        \
                 (GemmTile<M, P, stages, transposed>::kThreads), blocks) {                        \
    GemmMmaBody<WeightFormat::kFormat, Element, GemmTile<M, P, stages, transposed>>(p);           \
  }
LOWRANK_GEMM_MMA_KERNELS(LOWRANK_GEMM_MMA_KERNEL)

}  // namespace lowrank::gpu
