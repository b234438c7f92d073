/// The adapter's shrink: h = (gate ⊙ x) · lora_aᵀ and dh = scaling · dy · lora_b, in f32.
///
/// The body, its numerics and its budget are in lora_contract.cuh.
///
/// Grid         (ceil(M / 64) · rank tiles, splits of K); with more than one split the planes are
///              added by lora_reduce_kernel, or, few of them on Hopper, by a cluster
///              (lora_shrink_cluster_sm90.cu)
/// Bytes        x once: 67.1 MB at M = 8,192, K = 4,096 in bf16, and 0.26 MB of factor from L2 for
///              each row block: 43 us on A100, 22 us on H100. Beside the base product (1,000 us and
///              345 us) that is 4.3 % and 6.5 %: goal G8's 5 % asks for the overlap with the base
///              product on H100, or for x to stay in L2 from the operation that produced it.
/// Small M      64 rows are one block; K is split so that a block has two tiles, and the time is
///              that of a few memory latencies
/// Rounded      an f32 lora_a by itself (factoredNorm) is stored in 16 bits as well, 128 KB at
///              r = 16 and K = 4,096, for the product that comes next: no time of its own, in place
///              of a launch of 1.5 us
#include "cuda/lora/lora_contract.cuh"

namespace lowrank::gpu {

#define LOWRANK_LORA_SHRINK_KERNEL(name, Tag, kRanks, kMinBlocks)                                 \
  LOWRANK_EARLY_KERNEL(lora_shrink_##name##_r##kRanks##_kernel, LoraContractParams, kLoraThreads, \
                       kMinBlocks) {                                                              \
    constexpr bool kRounds = Tag::kBytes == 4;                                                    \
    LoraContract<Tag, kRanks, false, kRounds>::Run(p, blockIdx.x, blockIdx.y);                    \
  }
LOWRANK_LORA_TILES(LOWRANK_LORA_SHRINK_KERNEL)

}  // namespace lowrank::gpu
