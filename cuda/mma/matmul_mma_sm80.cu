/// Products with a base weight on tensor cores (mma.sync m16n8k16), tiled, in both directions, with
/// the LoRA term in the same accumulators.
///
///   matmul       y [M, N]  = x · wᵀ + bias + scaling · (h · lora_bᵀ + lora_bias)
///   input_grad   dx [M, K] (+)= dy · w + gate ⊙ (dh · lora_a)
///
/// Operands     x [M, K], dy [M, N], y, dx T (bf16 or f16), row-major · w [N, K] codes in
///              bitsandbytes' layout (code4, code8), T (dense), or any weight (general) · h, dh
///              [M, r] f32 · lora_b [N, r], lora_a [r, K], bias, lora_bias [1, N] of any type
/// Grid         (tiles, splits): tiles of one row of blocks are neighbours, so that x is read from
///              DRAM once and w, which fits L2 as codes, comes from there; a split is a part of the
///              reduction and stores an f32 plane, which gemm_mma_reduce sums in order
/// Shared       GemmMmaSharedBytes (params/gemm_mma.h): code4 128x128 82,304 bytes (dx 76,160), two
///              blocks a multiprocessor on sm_80; code8 91,392 (85,248), one there and two on
///              sm_90; dense 69,632. The output is staged over the stages at the end.
/// Numerics     w is round_T(codebook[code] · scale), rounded once; products of T exact, summed in
///              f32 by the tensor core; h and the factor as bf16 parts whose products are exact, 3
///              pairs of parts for a bf16 factor, 5 for f16, 6 for f32 (dropped: 2^-23 of each
///              product); bias and what y holds are added in f32, then one rounding to T. The LoRA
///              term comes first, so that the gate meets it alone and needs no second accumulator.
///              The bits depend on how the reduction is split, not on the tile or the schedule.
/// Needs        code4, code8: K % 32 == 0, blocksize >= 32; dense: K % 8 == 0; all: x's rows whole
///              16-byte pieces, x and w 16-byte aligned. general: nothing; it loads elements
///              singly.
///
/// The bytes of w serve both directions: forward the tile [n, k] is the mma's B operand as it lies,
/// transposed the tile [n, k] is read by ldmatrix.trans. An iteration of the main loop multiplies
/// slab i (64 of the reduction) while the same warps decode slab i + 1 into the other tile and
/// cp.async brings x of slab i + 1 and codes of slab i + 2: one barrier a slab.
///
/// Budget of a slab of code4 128x128 (1,048,576 multiplications), per multiprocessor; sm_80 has
/// 1,024 a cycle and four schedulers, so a slab is 1,024 cycles of mma:
///
///   shared wavefronts, 1 a cycle (counted by the emulator, every access at its ideal)
///     ldmatrix of x 256, of w 256 · copies of x 128, of codes 32 · decode: codes 32, codebook 64,
///     tile 128, scales 12                                              908 of 1,024 cycles
///   issue slots a scheduler (one warp of the block)
///     mma 128 · ldmatrix 32 · decode 64 codes a thread: 168 permutes and masks, tables 2 · 32,
///     loads and stores 20 · copies, addresses, scales, loop about 90    500 of 1,024 cycles
///   from L2: x 16 KB, codes 4 KB, scales 0.5 KB (dx 2 KB of sectors)   22 of about 47 bytes
///                                                                      a cycle
///
/// Two blocks a multiprocessor fill each other's gaps; nothing but the mma is above 90 %. Without a
/// gate the LoRA term is 3 (bf16 factor) to 6 (f32) extra steps of K / 16: 1.2 to 2.3 % at r = 16,
/// K = 4,096. The gate of dx costs 32 Philox groups a thread, 3,500 issue slots a warp or 5 % of a
/// tile at N = 4,096, of which the other block's mma hides most.
///
/// Floor, 4096 x 4096, M = 8,192: 881 us on A100 (312 TFLOP/s). On H100 mma.sync issues at about 62
/// % of wgmma's rate (1,270 multiplications a cycle and multiprocessor), so 467 us: goals of the
/// backward pass there (371 us, 378 with dropout, whole) need wgmma and this kernel does not reach
/// them; it is what other architectures run, and H100 where tiles are few. There (M = 128, 256,
/// 512: goals 8.5, 14, 25.5 us) 128x128 tiles are 32, 64, 128 blocks for 132 multiprocessors: 4, 2
/// and 1 parts of the reduction, 16, 32 and 64 slabs of 908 cycles of shared memory a block
/// = 8.3, 16.6 and 33 us, with 4 us for the planes of the first two. 64x64 tiles without parts
/// would take 15.6 and 31 us (a slab of 4 is 430 wavefronts each), which is why parts pay; the
/// goals take a design that decodes into wgmma's registers.
#include "cuda/mma/gemm_mma.cuh"

namespace lowrank::gpu {

#define LOWRANK_GEMM_MMA_KERNEL(op, transposed, format, kFormat, bits, dtype, Element, tile_m,    \
                                tile_p, stages, min_blocks)                                       \
  using op##_##format##_##dtype##_##tile_m##_Tile = GemmTile<tile_m, tile_p, stages, transposed>; \
  static_assert(sizeof(GemmMmaShared<WeightSource<WeightFormat::kFormat, Element,                 \
                                                  op##_##format##_##dtype##_##tile_m##_Tile>,     \
                                     op##_##format##_##dtype##_##tile_m##_Tile>) ==               \
                GemmMmaSharedBytes(bits, transposed, tile_m, tile_p, stages,                      \
                                   WeightFormat::kFormat == WeightFormat::kDense));               \
  LOWRANK_EARLY_KERNEL(op##_mma_##format##_##dtype##_##tile_m##x##tile_p##_kernel, GemmMmaParams, \
                       (GemmTile<tile_m, tile_p, stages, transposed>::kThreads), min_blocks) {    \
    GemmMmaBody<WeightFormat::kFormat, Element, GemmTile<tile_m, tile_p, stages, transposed>>(p); \
  }
LOWRANK_GEMM_MMA_KERNELS(LOWRANK_GEMM_MMA_KERNEL)

#define LOWRANK_GEMM_MMA_REDUCE_KERNEL(dtype, Element)                                        \
  LOWRANK_KERNEL(gemm_mma_reduce_##dtype##_kernel, GemmMmaParams, kGemmMmaReduceThreads, 5) { \
    GemmMmaReduceBody<Element>(p);                                                            \
  }
LOWRANK_GEMM_MMA_REDUCE_KERNELS(LOWRANK_GEMM_MMA_REDUCE_KERNEL)

}  // namespace lowrank::gpu
