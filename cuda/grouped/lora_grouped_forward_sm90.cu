/// The adapters' part of a batch with few rows per adapter (generation), in one cluster launch:
///
///   h_e  = (gate_e ⊙ x[m]) · lora_a_eᵀ
///   y[m] = base[m] + bias + g · scaling_e · (h_e · lora_b_eᵀ + lora_bias_e)
///
/// Operands   as lora_grouped_sm80.cu, whose shrink and expand this is; up to 8 rows and 128 ranks
///            an adapter
/// Grid       tiles of rows times parts of N; a part is one cluster of 4 blocks, or of 8 from 65
///            ranks on. Where tiles are few, several parts compute the same h, since lora_a then
///            comes from L2
/// Block      512 threads. A cluster's blocks share the ranks in shrink (lora_grouped_shrink.cuh)
///            and the columns in expand, and read each other's h by distributed shared memory
/// Shared     6,656 bytes of sums and h; rows of lora_b, as many as fit, an odd number of 16 bytes
///            apart, so that eight lanes with a row each meet all banks
/// Order      lora_b is on its way while h is summed; then the cluster's barrier; then, behind the
///            base product, its sums are read and y and h are stored
/// Numerics   those of shrink and expand, the same sums in the same order: the same bits
/// Needs      nothing but for speed: 16-byte aligned x, lora_a and lora_b; ranks in eights
///
/// Budget     32 rows of 32 adapters, r = 16, 4,096 x 4,096 in bf16: 128 blocks on 132
///            multiprocessors, each 32 KiB of lora_a, 32 KiB of lora_b and 8 KiB of x from L2:
///              two dependent reads of the tables at 600 clk, then lora_b is asked for    1.2 k
///              64 KiB at 13 bytes a clock, the third read and x under it                 5.0 k
///              the last line's latency, 32 shuffles and the sums                         0.9 k
///              the cluster's barrier, h of the peers                                     0.6 k
///              two columns a thread, sums of the product from L2                         0.9 k
///            8.6 k clk = 4.9 us, with the launch 6.1 us (goal G13: 6.5). Behind a base product
///            the launch is hidden. r = 64: 33.5 MB, 11.4 us, and 3.2 us of the same (15)
#include "cuda/grouped/lora_grouped_shrink.cuh"
#include "cuda/ptx_sm90.cuh"

namespace lowrank::gpu {
namespace {

constexpr int kThreads = kGroupedShrinkThreads;
constexpr int kRows = kGroupedShrinkRows;
constexpr int kRanks = kGroupedShrinkRanks;

class ForwardBlock {
 public:
  __device__ __forceinline__ explicit ForwardBlock(const GroupedParams& p)
      : p_(p),
        s_(DynamicShared<GroupedForwardShared>()),
        s_factor_(reinterpret_cast<unsigned char*>(&s_ + 1)),
        op_(p),
        place_(static_cast<int>(blockIdx.x % p.j_tiles)),
        rank_(place_ % static_cast<int>(p.cluster)),
        groups_(static_cast<int>(op_.e.r + kRanks - 1) / kRanks),
        of_block_((groups_ + static_cast<int>(p.cluster) - 1) / static_cast<int>(p.cluster)),
        first_(static_cast<int64_t>(place_) * p.block_cols),
        end_(first_ + p.block_cols < p.N ? first_ + p.block_cols : p.N),
        element_bytes_(op_.e.b_element == kSmallF32 ? 4 : 2),
        pitch_(static_cast<int>(GroupedFactorPitch(op_.e.r, element_bytes_))) {}

  __device__ __forceinline__ void Run() {
    // The tile belongs to the cluster, so all of its blocks take the same branch.
    if (op_.tile.adapter < 0) {
      GridDependencyWait();
      for (int64_t n = first_ + threadIdx.x; n < end_; n += kThreads) {
        for (int i = 0; i < op_.tile.count; ++i) op_.Store(p_, i, n, 0.0f);
      }
      return;
    }
    CopyFactor(first_);
    const int first_rank = rank_ * of_block_ * kRanks;
    // 0 or less if the blocks before have them all.
    const int ranks = min(of_block_ * kRanks, static_cast<int>(op_.e.r) - first_rank);
    ShrinkRanks(p_, op_, first_rank, first_rank + ranks, s_.shrink,
                [&](int64_t j, int lane, float h) { s_.own[(j - first_rank) / kRanks][lane] = h; });
    ClusterSync();
    GatherH();
    GridDependencyWait();
    if (place_ < static_cast<int>(p_.cluster)) StoreH(first_rank, ranks);
    for (int64_t n0 = first_; n0 < end_; n0 += p_.chunk_cols) {
      if (n0 != first_) {
        __syncthreads();  // the rows before these have been read
        CopyFactor(n0);
      }
      CpAsyncWait<0>();
      __syncthreads();
      Expand(n0);
    }
    ClusterSync();  // a block that left would take its h from under its peers
  }

 private:
  /// Rows of lora_b from n0 on, as many as fit.
  __device__ __forceinline__ void CopyFactor(int64_t n0) {
    const int64_t rows = RowsFrom(n0);
    const int64_t row_bytes = op_.e.r * element_bytes_;
    const unsigned char* g_rows = static_cast<const unsigned char*>(op_.e.lora_b) + n0 * row_bytes;
    if (Whole()) {
      const auto pieces = static_cast<uint32_t>(row_bytes / 16);
      for (uint32_t i = threadIdx.x; i < rows * pieces; i += kThreads) {
        CpAsync16(s_factor_ + i / pieces * pitch_ + i % pieces * 16, g_rows + i * 16, 16);
      }
    } else {
      const auto r = static_cast<uint32_t>(op_.e.r);
      for (uint32_t i = threadIdx.x; i < rows * r; i += kThreads) {
        unsigned char* s_element = s_factor_ + i / r * pitch_ + i % r * element_bytes_;
        if (element_bytes_ == 4) {
          *reinterpret_cast<uint32_t*>(s_element) = reinterpret_cast<const uint32_t*>(g_rows)[i];
        } else {
          *reinterpret_cast<uint16_t*>(s_element) = reinterpret_cast<const uint16_t*>(g_rows)[i];
        }
      }
    }
    CpAsyncCommit();
  }

  /// Each thread takes four ranks of a row, from the block that summed them.
  __device__ __forceinline__ void GatherH() {
    for (int i = static_cast<int>(threadIdx.x); i < groups_ * kRows; i += kThreads) {
      const int group = i / kRows;
      const int row = i % kRows;
      const auto* s_own = reinterpret_cast<const float4*>(s_.own[group % of_block_]) + row;
      reinterpret_cast<float4*>(s_.h[group])[row] =
          LoadFromPeer(s_own, static_cast<uint32_t>(group / of_block_));
    }
  }

  __device__ __forceinline__ void StoreH(int first_rank, int ranks) {
    for (int i = static_cast<int>(threadIdx.x); i < op_.count * ranks; i += kThreads) {
      const int row = i / ranks;
      const int j = i % ranks;
      p_.h[op_.RankRow(p_, row) + first_rank + j] = s_.own[j / kRanks][row * kRanks + j % kRanks];
    }
  }

  /// One column per thread, with its sums for all rows.
  __device__ __forceinline__ void Expand(int64_t n0) const {
    const int64_t rows = RowsFrom(n0);
    for (int64_t column = threadIdx.x; column < rows; column += kThreads) {
      const unsigned char* s_row = s_factor_ + column * pitch_;
      float sums[kRows] = {};
      for (int64_t j = 0; j < op_.e.r; j += 8) {
        const auto inside = static_cast<int>(op_.e.r - j);  // or more
        float factors[8];
        EightToFloats(op_.e.b_element, LoadSmallEight(op_.e.b_element, s_row, j, inside, true),
                      factors);
#pragma unroll
        for (int half = 0; half < 8; half += kRanks) {
#pragma unroll
          for (int i = 0; i < kRows; ++i) {
            if (i >= op_.count || half >= inside) continue;
            const float4 h = reinterpret_cast<const float4*>(s_.h[(j + half) / kRanks])[i];
            sums[i] = fmaf(h.x, factors[half], sums[i]);
            sums[i] = fmaf(h.y, factors[half + 1], sums[i]);
            sums[i] = fmaf(h.z, factors[half + 2], sums[i]);
            sums[i] = fmaf(h.w, factors[half + 3], sums[i]);
          }
        }
      }
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        if (i < op_.count) op_.Store(p_, i, n0 + column, sums[i]);
      }
    }
  }

  /// 0 or less for a block past the last column.
  __device__ __forceinline__ int64_t RowsFrom(int64_t n0) const {
    return p_.chunk_cols < end_ - n0 ? p_.chunk_cols : end_ - n0;
  }
  /// Do rows of lora_b consist of whole 16-byte pieces?
  __device__ __forceinline__ bool Whole() const {
    return reinterpret_cast<uintptr_t>(op_.e.lora_b) % 16 == 0 && op_.e.r % 8 == 0;
  }

  const GroupedParams& p_;
  GroupedForwardShared& s_;
  unsigned char* s_factor_;  // rows of lora_b, pitch_ apart
  const ShrinkBlock<ExpandedRows> op_;
  const int place_;      // among the blocks of the tile
  const int rank_;       // in the cluster
  const int groups_;     // of four ranks
  const int of_block_;   // of them in a block
  const int64_t first_;  // columns of y
  const int64_t end_;
  const int element_bytes_;
  const int pitch_;
};

}  // namespace

LOWRANK_EARLY_KERNEL(grouped_forward_kernel, GroupedParams, kGroupedShrinkThreads, 1) {
  ForwardBlock(p).Run();
}

}  // namespace lowrank::gpu
