/// Products of few tokens in one launch where there are clusters: where matmul_small_m_sm80.cu cuts
/// K over blocks and leaves planes, the slices are the blocks of a cluster, which adds them.
///
///   y = x · dequant(w)ᵀ + bias + scaling · (h · lora_bᵀ + lora_bias)
///
/// Operands   as matmul_small_m_sm80.cu, whose products, tiles and formats these are
///            (small_m_mma.cuh)
/// Grid       ceil(N / kRows) clusters along x, each of 2 to 8 blocks, which are the slices of K in
///            order. plan_matmul_small_m.cpp says when they are these, and how many
/// Block      256 threads
/// Shared     as there; at the end the sums of the slice, [token][kRows + 4] f32, over the first
///            warp's plane
/// Workspace  none
/// Numerics   as there, addition by addition: a warp along its k, the warps of a block in order,
///            the slices in order; then bias and the LoRA term in f32, and one rounding to T. So y
///            has the bits of the same slices in planes
///
/// Each block adds its warps' planes. Then all wait for each other, and each finishes its share of
/// the rows for all tokens: a thread asks for four outputs of every slice at once and adds them in
/// order. A block stays until its peers have read what they need.
///
/// Any number of blocks up to 8, not a power of two alone: a device is full with as many slices as
/// planes would be, and y keeps their bits. Where rows do not come out even, the last blocks have
/// fewer or none.
///
/// Budget: as matmul_small_m_sm80.cu until the sums are there. What follows, of a block in clocks:
/// kTokens · kRows · 4 bytes, of which 1 - 1 / cluster come from the peers at 14 bytes a clock in
/// clusters of two and 11 in larger ones, and two barriers of 0.1 us. In place of that planes take
/// 1.05 us for their launch and their bytes twice at 30 a clock and multiprocessor. 4096 x 4096 of
/// NF4 on an H100, us:
///
///   M                              1        16       32
///   cluster                        none     2        4
///   bytes of w, or instructions    3.9      4.0      4.1      at full rates; docs/gpu-design.md
///   planes and their launch                 1.2      1.7
///   peers' sums and barriers                0.3      0.8
///   before, now                    3.9      5.2, 4.3 5.8, 4.9
///   with LoRA, r = 16              4.9, 4.4 6.2, 4.8 6.8, 5.4  0.5 for each launch before the
///                                                             product: the shrink's, and its sum's
///                                                             where that is no cluster
///
/// A thread of the last part reads its four rows of lora_b for one token: eight threads that share
/// rows read them as one.
#include "cuda/ptx_sm90.cuh"
#include "cuda/small_m/small_m_mma.cuh"

namespace lowrank::gpu {
namespace {

template <SmallMFormat kFormat, typename Element, typename Tile>
class ClusterBlock : MmaRows<kFormat, Element, Tile> {
  using Base = MmaRows<kFormat, Element, Tile>;
  using Base::kCount, Base::kTokensApart, Base::kThreads;
  using Base::p_, Base::s_, Base::first_n_;

 public:
  __device__ __forceinline__ explicit ClusterBlock(const SmallMParams& params)
      : Base(params, blockIdx.x / params.splits, blockIdx.x % params.splits) {}

  __device__ __forceinline__ void Run() {
    this->MultiplySlice();
    StoreSlice();
    ClusterSync();  // every block's sums are there
    GridDependencyWait();
    Finish();
    ClusterSync();  // a block that left would take its sums from under its peers
  }

 private:
  /// The sums of the slice over the first warp's plane. A thread adds and stores the same places.
  __device__ __forceinline__ void StoreSlice() {
    const int row = static_cast<int>(threadIdx.x) % Tile::kRows;
    const int first = static_cast<int>(threadIdx.x) / Tile::kRows;
    float sum[kCount][1];
    this->AddWarps(row, first, sum);
    float* s_value = s_.planes + first * Tile::kPlaneStride + row;
#pragma unroll
    for (int i = 0; i < kCount; ++i) s_value[i * kTokensApart * Tile::kPlaneStride] = sum[i][0];
  }

  /// The blocks' sums in the order of k. A block finishes its share of the rows, a thread four of
  /// them of a token at a time. Eight tokens of the same rows are beside each other, whose sums lie
  /// in different banks; a warp has whole sectors of y where a share has 16 rows.
  __device__ __forceinline__ void Finish() {
    constexpr int kQuads = Tile::kRows / 4;
    const auto split = static_cast<int>(blockIdx.x % p_.splits);
    const auto splits = static_cast<int>(p_.splits);
    const int share = (kQuads + splits - 1) / splits;
    const int tokens = static_cast<int>(p_.M);
    const int octets = (tokens + 7) / 8;
    for (int i = static_cast<int>(threadIdx.x); i < octets * share * 8; i += kThreads) {
      const int quad = split * share + i / 8 % share;
      const int token = i / 8 / share * 8 + i % 8;
      const int64_t n = first_n_ + quad * 4;
      if (token >= tokens || quad >= kQuads || n >= p_.N) continue;
      const auto* s_part =
          reinterpret_cast<const float4*>(s_.planes + token * Tile::kPlaneStride + quad * 4);
      float4 part[kSmallMClusterMax];  // all asked for before the first is added
#pragma unroll
      for (int peer = 0; peer < static_cast<int>(kSmallMClusterMax); ++peer) {
        if (peer >= splits) break;
        part[peer] = peer == split ? *s_part : LoadFromPeer(s_part, peer);
      }
      float sum[1][4] = {{part[0].x, part[0].y, part[0].z, part[0].w}};
#pragma unroll
      for (int peer = 1; peer < static_cast<int>(kSmallMClusterMax); ++peer) {
        if (peer >= splits) break;
        sum[0][0] += part[peer].x;
        sum[0][1] += part[peer].y;
        sum[0][2] += part[peer].z;
        sum[0][3] += part[peer].w;
      }
      FinishOutputs<Element>(p_, OutputBias<4>(p_, n), n, token, 1, sum);
    }
  }
};

}  // namespace

#define LOWRANK_DEFINE(name, kFormat, Element, Tile, kMinBlocks)                             \
  LOWRANK_EARLY_KERNEL(matmul_small_m_cluster_##name##_kernel, SmallMParams, kSmallMThreads, \
                       kMinBlocks) {                                                         \
    ClusterBlock<kFormat, Element, Tile>(p).Run();                                           \
  }
LOWRANK_SMALL_M_KERNELS(LOWRANK_DEFINE)
#undef LOWRANK_DEFINE

}  // namespace lowrank::gpu
