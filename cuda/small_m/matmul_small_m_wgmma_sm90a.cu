/// Products of 33 tokens and more with 4-bit weights on Hopper: wgmma with the weight in registers,
/// 64 tokens a block. plan_matmul_small_m.cpp says where blocks of 128 take less.
///
///   y = x · dequant(w)ᵀ + bias + scaling · (h · lora_bᵀ + lora_bias)
///
/// Operands   as matmul_small_m_sm80.cu, codes of 4 bits
/// Grid       x: ceil(N / 256) clusters of 1, 2, 4 or 8 blocks, which split K; y: ceil(M / 64).
///            Also with tiles of 128 outputs, where the blocks of a cluster have too little to do
/// Block      256 threads: two warpgroups of half of the outputs each
/// Shared     three stages of x (16 KiB each), a table of 32 KiB, the scales (264 · 4 bytes a block
///            index; 128 outputs: 136 · 4); sums of the block lie over x and the table at the end
/// Workspace  where K is split, [splits, M, N / 2] f32: half of the sums (small_m_wgmma.cuh)
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
///   lookups                  0                   32          row g of every second fragment
///   x, read                128                   64          a warpgroup's rows share it
///   x, loaded                0                   16          cp.async passes L1 by
///   x, written              32                   16
///   codes, scales           20                   20
///   shared memory         22.7                 27.7
///   tensor cores         20 to 24              32            mma.sync gives 62 to 75 % of wgmma
///   L2, bytes a weight     1.56                1.06          0.5 of x, 0.56 of w; L2 gives 6 TB/s
///   integer, compiled     17.5                 26.9          468 and 305 instructions a step
///   issue, compiled       18.4                 27.4          889 and 597 for 128 weights
///
/// So a step of a block takes 1,220 clocks at full rates, and 1,711 where two warps a scheduler use
/// 0.7 of the issue slots. Row g of every fragment by lookups would be 1,440 of shared memory.
///
/// 128 outputs, with one fragment a warp whose row g is by lookups: x comes, and is stored, once
/// for half as many weights. A step is 853 clocks of L2 (16 KiB of x and 9 of w at 30 bytes a
/// clock), 848 of shared memory, some 530 of integer instructions and 640 of tensor cores.
///
/// A block reads (1 - 1 / cluster) of 32 KiB of sums from its peers' shared memory, at 14 bytes a
/// clock and multiprocessor in clusters of two (3.3 TB/s of an H100, as published) and 11 in larger
/// ones (2.65 for four). Of 256 outputs that is fragment 1 of each warp; fragment 0 goes by L2,
/// stored while the last products of fragment 1 run (610 clocks; 1,090 at 30 bytes a clock, and the
/// cluster's barrier waits for it: up to 0.4 us) and read beside the peers' in 1,090. With these
/// clocks (docs/gpu-design.md), in us of an H100:
///   14336 x 4096, M = 64    256 outputs, clusters of 2, 16 steps of 1,711: 19.5 (goal 14.5; G4)
///   4096 x 4096, M = 64     128 outputs, clusters of 4, 8 steps of 942: 7.6 (6.5); with 256, in
///                           clusters of 8, 8.1
///                M = 128    256 outputs, clusters of 4, 8 steps: 11.8
///                M = 256    256 outputs, clusters of 2, 16 steps: 19.5
///                M = 512    256 outputs, no clusters, 32 steps: 35
/// From 65 tokens on the kernel of 128 takes less (11.0, 16.2 and 26.1), but where its tiles are
/// half empty. docs/performance/cuda-few-tokens.md has the other ways.
#include "cuda/small_m/small_m_wgmma.cuh"

namespace lowrank::gpu {
namespace {

template <typename Tile>
using SharedOf = SmallMWgmmaShared<Tile, kSmallMWgmmaStages, 0>;

template <typename Element, typename Tile, typename Shared = SharedOf<Tile>>
class WgmmaBlock : WgmmaRows<Element, Tile, Shared> {
  using Base = WgmmaRows<Element, Tile, Shared>;
  using Base::kHalfBytes, Base::kStepK;
  using Base::p_, Base::s_, Base::decoder_, Base::slice_, Base::first_k_, Base::lane_;
  using typename Base::Codes;
  static constexpr int kCopies = 4;  // 16-byte pieces of x a thread and step

 public:
  __device__ __forceinline__ WgmmaBlock(const SmallMParams& params, const SmallMPlace& place)
      : Base(params, place), half_(static_cast<int>(threadIdx.x / 32 % 2)) {
    // The last token is used for those past M: its results are not stored.
    const auto last = static_cast<int>(p_.M - place.first_m) - 1;
    x_ = Keep(static_cast<const uint16_t*>(p_.x) + place.first_m * p_.K + first_k_);
    const int token = static_cast<int>(threadIdx.x / 64) * 4 + lane_ / 8;
#pragma unroll
    for (int copy = 0; copy < kCopies; ++copy) {
      const auto row = static_cast<uint32_t>(min(token + copy * 16, last));
      index_[copy] = Keep(row * static_cast<uint32_t>(p_.K));
    }
    x_place_ = Keep(half_ * kHalfBytes + token * 128 + ((lane_ % 2 * 4) ^ token % 8) * 16 +
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
    const int last = (slice_ - 1) / kStepK;
#pragma unroll 1
    for (int step = 0; step < last; ++step) {
      const Codes now = next;
      next = after;
      this->LoadCodes(step + 2, &after);
      this->template Multiply<false>(s_.main.x[step % Shared::kStages], step, now, [] {}, [] {});
      // Every thread that passed the last barrier is done with the stage before the current one.
      StoreX(step + 1);
      LoadX<false>(step + 2);
      FenceProxyAsyncShared();
      __syncthreads();
    }
    if (slice_ % kStepK != 0) {
      // The pieces past the end, so far copies of the last one, become zero.
      LoadX<true>(last);
      StoreX(last);
      FenceProxyAsyncShared();
      __syncthreads();
    }
    this->template Multiply<true>(
        s_.main.x[last % Shared::kStages], last, next, [] {}, [this] { this->StoreHalf(); });
    WgmmaWait<0>();
    __syncthreads();  // all products have read the stages
    this->StoreSums();
    ClusterSync();
    this->Finish();
    ClusterSync();  // a block that left would take its sums from under its peers
  }

 private:
  /// A warp's pieces: half of the k of 128, which four products read, of tokens in fours. Its loads
  /// are whole sectors, and its stores meet each bank once. A step of x; past the slice its last
  /// piece, or with kTail nothing but zero.
  template <bool kTail>
  __device__ __forceinline__ void LoadX(int step) {
    const int k = step * kStepK + lane_ / 2 % 4 * 32 + half_ * 16 + lane_ % 2 * 8;
#pragma unroll
    for (int copy = 0; copy < kCopies; ++copy) {
      x_of_[copy] = LoadStream16(x_ + (index_[copy] + min(k, slice_ - 8)));
      if (kTail && k >= slice_) x_of_[copy] = make_uint4(0, 0, 0, 0);
    }
  }

  __device__ __forceinline__ void StoreX(int step) {
    unsigned char* s_x = s_.main.x[step % Shared::kStages];
    SlotFilled(s_x, static_cast<uint32_t>(step));
#pragma unroll
    for (int word = 0; word < 4; ++word) {
      unsigned char* s_word = s_x + (x_place_ ^ (word * 16));
#pragma unroll
      for (int copy = 0; copy < kCopies; ++copy) {
        *reinterpret_cast<uint32_t*>(s_word + copy * 16 * 128) = Word(x_of_[copy], word);
      }
    }
  }

  const int half_;
  const uint16_t* x_;        // from the slice of the first token on
  uint32_t index_[kCopies];  // of the rows
  uint32_t x_place_;         // of the first four bytes in a stage
  uint4 x_of_[kCopies];      // of the step after the next
};

}  // namespace

#define LOWRANK_SMALL_M_WGMMA(name, Tile)                                          \
  LOWRANK_EARLY_KERNEL(name##_4bit_bf16_kernel, SmallMParams, kSmallMThreads, 1) { \
    WgmmaBlock<WgmmaElementBF16, Tile>(p, PlaceOfBlock<Tile>(p)).Run();            \
  }                                                                                \
  LOWRANK_EARLY_KERNEL(name##_4bit_f16_kernel, SmallMParams, kSmallMThreads, 1) {  \
    WgmmaBlock<WgmmaElementF16, Tile>(p, PlaceOfBlock<Tile>(p)).Run();             \
  }
LOWRANK_SMALL_M_WGMMA(matmul_small_m_wgmma, SmallMTileWgmma)
LOWRANK_SMALL_M_WGMMA(matmul_small_m_wgmma128, SmallMTileWgmma128)
#undef LOWRANK_SMALL_M_WGMMA

}  // namespace lowrank::gpu
