/// Products of 33 to 64 tokens with 4-bit weights on Hopper: wgmma with the weight in registers.
///
///   y = x · dequant(w)ᵀ + bias + scaling · (h · lora_bᵀ + lora_bias)
///
/// Operands   as matmul_small_m_sm80.cu, codes of 4 bits
/// Grid       ceil(N / 256) clusters of 1, 2, 4 or 8 blocks, which split K
/// Block      256 threads: two warpgroups of 128 outputs each
/// Shared     three stages of x (16 KiB each), a table of 32 KiB, the scales (264 · 4 bytes a block
///            index); the sums of the block lie over x and the table at the end
/// Numerics   as matmul_small_m_sm80.cu: sums in f32 along a slice of K, then the slices in order
///
/// The order of k is that of the file named above: a lane's 16 bytes of codes are its elements of
/// eight products. So the products read x with the k of each 128 moved: element 32t + 4q + 2h + i
/// is at 16q + 8h + 2t + i. x goes through registers, a step ahead, and is stored in pieces of 4
/// bytes, which is why TMA does not bring it.
///
/// Why not the sm_80 kernel. Wavefronts of 128 bytes of a step of a warp (4,096 weights), and
/// limits in weights a clock of a multiprocessor:
///
///                    mma.sync, 128 rows    wgmma, 256 rows
///   lookups                  0                   64          row g of a fragment
///   x, read                128                   64          a warpgroup's rows share it
///   x, written              32                   16
///   codes, scales           20                   20
///   shared memory         22.7                 25.0
///   tensor cores         20 to 24              32            mma.sync gives 62 to 75 % of wgmma
///   L2, bytes a weight     1.56                1.06          0.5 of x, 0.56 of w; L2 gives 6 TB/s
///   integer, compiled     17.5                 35.8          468 and 229 instructions a step
///   issue, compiled       18.4                 29.3          889 and 559 for 128 weights
///
/// 14336 x 4096, M = 64, clusters of 2: 112 blocks of 524,288 weights. Memory takes 10.1 us,
/// L2 10.4, issue slots 10.2, shared memory 12.0; with 1 for the launch and 0.9 for a cluster
/// barrier and 32 KiB of sums from the peer 13.9 us (goal 14.5; G4). The sm_80 kernel takes 18.1 by
/// the same count. 4096 x 4096, clusters of 8: 128 blocks of 131,072, memory 3.2, issue slots 2.6
/// in the loop and 1 outside; 3.6 + 1 + 1.3 = 5.9 (6.5). docs/performance-log.md has the other
/// ways.
#include "cuda/ptx_sm90.cuh"
#include "cuda/small_m_block.cuh"

namespace lowrank::gpu {
namespace {

struct ProductBF16 : ElementBF16T {
  LOWRANK_DEVICE void Multiply(float (&d)[32], const uint32_t (&a)[4], uint64_t b) {
    WgmmaBF16(d, a, b);
  }
};
struct ProductF16 : ElementF16T {
  LOWRANK_DEVICE void Multiply(float (&d)[32], const uint32_t (&a)[4], uint64_t b) {
    WgmmaF16(d, a, b);
  }
};

template <typename Element>
class WgmmaBlock : SmallMBlock<SmallMFormat::kCode4, Element, SmallMTileWgmma, SmallMWgmmaShared> {
  using Tile = SmallMTileWgmma;
  using Base = SmallMBlock<SmallMFormat::kCode4, Element, Tile, SmallMWgmmaShared>;
  using Base::kStepK, Base::kThreads;
  using Base::p_, Base::s_, Base::decoder_, Base::lane_, Base::first_n_, Base::first_k_;
  using Base::slice_;
  using typename Base::Codes;
  using typename Base::Decoder;
  static constexpr int kStages = SmallMWgmmaShared::kStages;
  static constexpr int kHalfBytes = SmallMWgmmaShared::kStageBytes / 2;  // of four products
  static constexpr int kCopies = 4;  // 16-byte pieces of x a thread and step
  static_assert(Tile::kWarpsK == 1 && Tile::kTokens == 64 && kStepK == 128);

 public:
  __device__ __forceinline__ explicit WgmmaBlock(const SmallMParams& params)
      : Base(params, blockIdx.x / params.splits, blockIdx.x % params.splits),
        warp_(static_cast<int>(threadIdx.x / 32)) {
#pragma unroll
    for (int copy = 0; copy < kCopies; ++copy) {
      const auto token = static_cast<uint32_t>(min(Token(copy), static_cast<int>(p_.M) - 1));
      x_index_[copy] = Keep(token * static_cast<uint32_t>(p_.K) + static_cast<uint32_t>(first_k_));
    }
    const int token = Token(0);
    x_place_ = Keep(warp_ % 2 * kHalfBytes + token * 128 + ((lane_ % 2 * 4) ^ token % 8) * 16 +
                    lane_ / 2 % 4 * 4);
  }

  __device__ __forceinline__ void Run() {
    Codes next, after;
    this->LoadCodes(0, &next);
    this->LoadCodes(1, &after);
    LoadX<false>(0);
    decoder_.Fill();
    this->FillScales();
    StoreX(0);
    LoadX<false>(1);
    FenceProxyAsyncShared();
    __syncthreads();
    const int whole = slice_ / kStepK;
#pragma unroll 1
    for (int step = 0; step < whole; ++step) {
      const Codes now = next;
      next = after;
      this->LoadCodes(step + 2, &after);
      Multiply<false>(step, now);
      // Whoever passed the last barrier is done with the stage before the one just multiplied.
      StoreX(step + 1);
      LoadX<false>(step + 2);
      FenceProxyAsyncShared();
      __syncthreads();
    }
    if (whole * kStepK < slice_) {
      LoadX<true>(whole);
      StoreX(whole);
      FenceProxyAsyncShared();
      __syncthreads();
      Multiply<true>(whole, next);
    }
    WgmmaWait<0>();
    this->StorePlanes([this](int i, int j, int e) { return sum_[i][j * 4 + e]; });
    ClusterSync();
    Finish();
    ClusterSync();  // a block that left would take its sums from under its peers
  }

 private:
  /// A warp's pieces: half of the k of 128, which four products read, of tokens in fours. Its loads
  /// are whole sectors, and its stores meet each bank once.
  __device__ __forceinline__ int Token(int copy) const {
    return warp_ / 2 * 4 + lane_ / 8 + copy * 16;
  }

  /// A step of x; past the slice its last piece, or with kTail nothing but zero. The last token
  /// stands in for those past M: what they give is not stored.
  template <bool kTail>
  __device__ __forceinline__ void LoadX(int step) {
    const int k = step * kStepK + lane_ / 2 % 4 * 32 + warp_ % 2 * 16 + lane_ % 2 * 8;
#pragma unroll
    for (int copy = 0; copy < kCopies; ++copy) {
      const uint32_t at = x_index_[copy] + min(k, slice_ - 8);
      x_[copy] = *reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(p_.x) + at);
      if (kTail && k >= slice_) x_[copy] = make_uint4(0, 0, 0, 0);
    }
  }

  __device__ __forceinline__ void StoreX(int step) {
    unsigned char* s_x = s_.main.x[step % kStages];
#pragma unroll
    for (int word = 0; word < 4; ++word) {
      unsigned char* s_word = s_x + (x_place_ ^ (word * 16));
#pragma unroll
      for (int copy = 0; copy < kCopies; ++copy) {
        *reinterpret_cast<uint32_t*>(s_word + copy * 16 * 128) = Word(x_[copy], word);
      }
    }
  }

  /// The products of a step but the last two pairs are done when this returns.
  template <bool kTail>
  __device__ __forceinline__ void Multiply(int step, Codes codes) {
    typename Decoder::Prepared prepared[Tile::kTilesN];
    this->template Prepare<kTail>(step, &codes, prepared);
    const unsigned char* s_x = s_.main.x[step % kStages];
#pragma unroll
    for (int u = 0; u < 4; ++u) {
      uint32_t a[Tile::kTilesN][2][4];
#pragma unroll
      for (int i = 0; i < Tile::kTilesN; ++i) {
        decoder_.Fragments(i, prepared[i], codes.raw[i], u, a[i]);
      }
      const uint64_t x = WgmmaDescriptor(s_x + u / 2 * kHalfBytes) + u % 2 * 4;
      WgmmaFence();
#pragma unroll
      for (int i = 0; i < Tile::kTilesN; ++i) {
        Element::Multiply(sum_[i], a[i][0], x);
        Element::Multiply(sum_[i], a[i][1], x + 2);
      }
      WgmmaCommit();
      WgmmaWait<1>();
    }
  }

  /// The blocks' sums in the order of k; a block finishes its share of the rows.
  __device__ __forceinline__ void Finish() {
    constexpr int kCount = 8;  // tokens a thread at a time
    const int rows = Tile::kRows / static_cast<int>(p_.splits);
    const int rank = static_cast<int>(blockIdx.x % p_.splits);
    const int row = rank * rows + static_cast<int>(threadIdx.x) % rows;
    const int step = kThreads / rows;
    const int64_t n = first_n_ + row;
    if (n >= p_.N) return;
#pragma unroll 1
    for (int first = static_cast<int>(threadIdx.x) / rows; first < p_.M; first += kCount * step) {
      float sum[kCount] = {};
#pragma unroll 1
      for (uint32_t peer = 0; peer < p_.splits; ++peer) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
          const int token = first + i * step;
          if (token >= p_.M) break;
          const float value = LoadFromPeer(s_.planes + token * Tile::kPlaneStride + row, peer);
          sum[i] = peer == 0 ? value : sum[i] + value;
        }
      }
      FinishOutputs<Element>(p_, n, first, step, sum);
    }
  }

  const int warp_;
  uint32_t x_index_[kCopies];  // of the rows' slices
  uint32_t x_place_;           // of the first four bytes in a stage
  uint4 x_[kCopies];           // of the step after the next
  float sum_[Tile::kTilesN][32] = {};
};

}  // namespace

LOWRANK_KERNEL(matmul_small_m_wgmma_4bit_bf16_kernel, SmallMParams, kSmallMThreads, 1) {
  WgmmaBlock<ProductBF16>(p).Run();
}
LOWRANK_KERNEL(matmul_small_m_wgmma_4bit_f16_kernel, SmallMParams, kSmallMThreads, 1) {
  WgmmaBlock<ProductF16>(p).Run();
}

}  // namespace lowrank::gpu
