/// Products of int8 codes with a rowwise int8 weight (LLM.int8, W8A8) on tensor cores, mma.sync
/// m16n8k32 of bytes, with the LoRA term in the same registers.
///
///   row_codes     sx = max|x| / 127 of a row, q = x / sx to nearest even within ±127, Σ q
///   matmul_int8   y [M, N] = float(Σ q · c) · (sx · sw) + bias
///                            + scaling · (h · lora_bᵀ + lora_bias)
///
/// Operands     x [M, K] f32, bf16 or f16, row-major · w [N, K] bytes c + 128, as they are stored;
///              sw = absmax / 127 of a row, which all its blocks hold · h [M, r] f32 · lora_b
///              [N, r], bias, lora_bias [1, N] of any type · y [M, N] f32, bf16 or f16
/// Grid         row_codes: a block a row. matmul_int8: a block a tile; tiles go down a group of
///              eight rows of tiles and then to the right, so that the blocks in flight share
///              panels of both operands: x is read from DRAM once, w once for 1,024 rows of x
/// Shared       GemmInt8SharedBytes: 128x128 71,168 bytes (two stages), two blocks a
///              multiprocessor; 64x64 49,920 (three), three; 16x32 37,120 (six), four
/// Numerics     The definition of compute: 'int8' (docs/architecture.md). Σ q · byte wraps at 32
///              bits, as does 128 · Σ q, and their difference Σ q · c is within them for K up to
///              2^17: exact, whatever the tile. Products with scales in f32, as the CPU has them,
///              so that a product has the CPU's bits and those of its row alone. Then the LoRA
///              term as bf16 parts (gemm_mma_lora.cuh), bias in f32, one rounding to y's type. A
///              row of x that is not finite has the scale NaN and codes of 0.
/// Needs        K % 32 == 0, at most 2^17; w 16-byte aligned
///
/// A slab is 128 codes of K: the bytes, ldmatrix and mma of a bf16 slab of 64 elements
/// (matmul_mma_sm80.cu), with twice the products, and nothing to decode.
///
/// Budget of a slab of 128x128 (2,097,152 multiplications) per multiprocessor. sm_80 does 2,048 a
/// cycle on four schedulers, so a slab is 1,024 cycles of mma (as bf16 takes for half of that):
///
///   shared wavefronts, 1 a cycle
///     ldmatrix of x 256, of w 256 · copies of x 128, of w 128           768 of 1,024 cycles
///   issue slots a scheduler (one warp of the block)
///     mma 128 · ldmatrix 32 · copies 16, addresses and loop about 40    216 of 1,024 cycles
///   from L2: x 16 KB, w 16 KB                                           32 of about 47 bytes
///                                                                      a cycle
///
/// On H100 mma.sync of bytes does about 2,540 a cycle and multiprocessor, so a slab is 826 cycles
/// and needs 40 bytes a cycle, but L2 gives about 30: 1,092 cycles, 1,920 multiplications each.
/// 8192³ takes 1.24 ms there, 0.72 by wgmma of bytes (matmul_int8_wgmma_sm90a.cu, for many rows on
/// Hopper), and 1.38 by wgmma in bf16. On A100 it takes 1.76 ms, bound by mma; bf16 takes 3.5.
///
/// The LoRA term is 3 (bf16 factor) to 6 (f32) steps of 16 beside K / 32 steps: 2.3 to 4.7 % at
/// r = 16, K = 4,096. row_codes: 2 bytes an element in (a row of up to 8,192 stays in registers, a
/// longer one is read twice, the second time from L1), 1 out; about 10 instructions and a division
/// (8) an element. At 3.0 TB/s a multiprocessor sees 4.3 elements a clock: 78 of 128 issue slots.
/// 8192² is 67 us, 5 % of its product.
///
/// 16x32: M = 1, N = K = 4,096 is 128 blocks of w, 128 KB each, with five slabs of 4 KB in flight:
/// 20 KB a multiprocessor, and 16 KB cover the latency. 16.8 MB take 5.6 us at 3.0 TB/s, after 2 us
/// for the row's codes, during which the first slabs of w are already loaded.
#include "cuda/int8/gemm_int8.cuh"

namespace lowrank::gpu {

#define LOWRANK_GEMM_INT8_KERNEL(tile_m, tile_p, warp_m, warp_p, stages, min_blocks) \
  using Int8Tile_##tile_m = Int8Tile<tile_m, tile_p, warp_m, warp_p, stages>;        \
  static_assert(sizeof(GemmInt8Shared<Int8Tile_##tile_m>) ==                         \
                GemmInt8SharedBytes(tile_m, tile_p, stages));                        \
  LOWRANK_EARLY_KERNEL(matmul_int8_##tile_m##x##tile_p##_kernel, GemmInt8Params,     \
                       Int8Tile_##tile_m::kThreads, min_blocks) {                    \
    GemmInt8Body<Int8Tile_##tile_m>(p);                                              \
  }
LOWRANK_GEMM_INT8_KERNELS(LOWRANK_GEMM_INT8_KERNEL)

static_assert(sizeof(RowCodesShared) == kRowCodesSharedBytes);
#define LOWRANK_ROW_CODES_KERNEL(dtype, T)                                          \
  LOWRANK_KERNEL(row_codes_##dtype##_kernel, RowCodesParams, kRowCodesThreads, 4) { \
    RowCodesBody<T>(p);                                                             \
  }
LOWRANK_ROW_CODES_KERNELS(LOWRANK_ROW_CODES_KERNEL)

}  // namespace lowrank::gpu
