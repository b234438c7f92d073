/// The adapter's shrink in one launch on devices with clusters: the splits of lora_shrink_sm80.cu
/// are the blocks of a cluster, which adds their sums.
///
///   h = scale · (gate ⊙ x) · lora_aᵀ, and dh = scaling · dy · lora_b, in f32
///
/// Operands   as lora_contract.cuh, whose walk over x this is
/// Grid       ceil(M / 64) · rank tiles clusters along x, of 2 to 8 blocks: the splits of K in
///            order
/// Block      256 threads
/// Shared     as there; the sums of a split, [fragment][lane] of four, over the first warp's
/// Workspace  none
/// Numerics   as there: the warps of a block in order, the splits in order, then scale; as planes
///            and lora_reduce_kernel give, bit by bit
///
/// Budget     what the walk takes, then 1 - 1 / cluster of 4 KiB of sums (r = 16) from the peers at
///            11 bytes a clock, and two barriers of 0.1 us, in place of planes and 1.05 us for
///            their launch. Up to 64 rows are one tile of rows, which planes cut in splits of two
///            tiles of K: 16 at K = 4,096. In a cluster of eight a block has four tiles, which are
///            asked for at once but the last: 400 clocks more a tile. 0.5 + 0.7 + 0.4 + 0.2 + 0.2
///            = 2.0 us at K = 4,096, r = 16, M = 16, where splits, planes and their launch
///            take 2.7.
#include "cuda/lora/lora_contract.cuh"
#include "cuda/ptx_sm90.cuh"

namespace lowrank::gpu {
namespace {

template <typename T, int kRankTile>
class ClusterShrink : LoraContract<T, kRankTile, false> {
  using Base = LoraContract<T, kRankTile, false>;
  using Base::kTilesJ, Base::kTilesO, Base::p_, Base::warp_;

 public:
  LOWRANK_MEMBER explicit ClusterShrink(const LoraContractParams& p)
      : Base(p, blockIdx.x / p.cluster, blockIdx.x % p.cluster) {}

  LOWRANK_MEMBER void Run() {
    this->Walk();
    // Each thread adds and stores at the same places.
    this->Meet([this](int fragment, const float4& sum) { *this->SumOf(fragment) = sum; });
    ClusterSync();  // every block's sums are there
    GridDependencyWait();
    Finish();
    ClusterSync();  // a block that left would take its sums from under its peers
  }

 private:
  /// Adds the splits' sums in order: each block has some of the fragments, a warp one at a time.
  LOWRANK_MEMBER void Finish() const {
    const auto cluster = static_cast<int>(p_.cluster);
    const auto rank = static_cast<int>(blockIdx.x % p_.cluster);
    for (int i = warp_ * cluster + rank; i < kTilesO * kTilesJ; i += kLoraWarps * cluster) {
      if (this->o0_ + i / kTilesJ * 16 >= p_.rows) break;
      const float4* s_part = this->SumOf(i);
      float4 part[kLoraClusterMax];  // all asked for before the first is added
#pragma unroll
      for (int peer = 0; peer < static_cast<int>(kLoraClusterMax); ++peer) {
        if (peer >= cluster) break;
        part[peer] = peer == rank ? *s_part : LoadFromPeer(s_part, peer);
      }
      float4 sum = make_float4(0, 0, 0, 0);  // as lora_reduce_kernel begins
#pragma unroll
      for (int peer = 0; peer < static_cast<int>(kLoraClusterMax); ++peer) {
        if (peer >= cluster) break;
        sum.x += part[peer].x;
        sum.y += part[peer].y;
        sum.z += part[peer].z;
        sum.w += part[peer].w;
      }
      this->Store(i, sum);
    }
  }
};

}  // namespace

#define LOWRANK_LORA_SHRINK_CLUSTER(name, Tag, kRanks, kMinBlocks)                          \
  LOWRANK_EARLY_KERNEL(lora_shrink_cluster_##name##_r##kRanks##_kernel, LoraContractParams, \
                       kLoraThreads, kMinBlocks) {                                          \
    ClusterShrink<Tag, kRanks>(p).Run();                                                    \
  }
LOWRANK_LORA_TILES(LOWRANK_LORA_SHRINK_CLUSTER)
#undef LOWRANK_LORA_SHRINK_CLUSTER

}  // namespace lowrank::gpu
