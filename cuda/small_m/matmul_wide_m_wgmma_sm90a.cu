/// Products of 65 to 1,024 tokens with 4-bit weights on Hopper: wgmma with the weight in registers,
/// 128 tokens a block.
///
///   y = x · dequant(w)ᵀ + bias + scaling · (h · lora_bᵀ + lora_bias)
///
/// Operands   as matmul_small_m_sm80.cu, codes of 4 bits
/// Grid       x: ceil(N / 256) clusters of 1, 2, 4 or 8 blocks, which split K; y: ceil(M / 128)
/// Block      384 threads: two warpgroups decode and multiply, 128 outputs each; a third brings x
///            and the scales
/// Registers  384 · 168 at the launch, then 256 · 224 + 128 · 56, the same sum: 128 of the 224 are
///            sums, 32 codes of this step and the next, 16 a table of two rows, 16 operands of two
///            groups of products in flight
/// Shared     four stages of x (32 KiB each), the codebook, and scales of 32 quantisation blocks a
///            row in turn (33 KiB); the sums of the block lie over x at the end: 164 KiB
/// Numerics   as matmul_small_m_sm80.cu: sums in f32 along a slice of K, then the slices in order
///
/// The order of k is that of matmul_small_m_wgmma_sm90a.cu: element 32t + 4q + 2h + i of each 128
/// is at 16q + 8h + 2t + i. TMA moves 16 bytes at least, so x comes by cp.async in pieces of 4
/// bytes, which need no registers and land three stages ahead. `full` of a stage has an arrival of
/// each warp that copies, after its fence for the proxy of wgmma; `empty` one of each warp that
/// multiplies, once the products that read the stage are done.
///
/// Budget of a step, 256 outputs x 128 tokens x 128 k, in clocks of a multiprocessor
///   tensor     32 · m64n128k16 of 64 clocks = 2,048; 2,435 at the 798 TFLOP/s that the power limit
///              leaves. All below is of these
///   shared     wavefronts: x read by products 1,024, copied 256, and 256 on its way through L1;
///              codes 128; scales and codebook read 96, written 16: 1,776, 73 %
///   integer    compiled: 391 instructions a warp that decodes, about 170 one that copies, at two a
///              clock: 1,900, 78 %
///   issue      600 and about 430, at four a clock: 1,630, 67 %
///   L2         32 KiB of x, 16 of codes, 1 to 8 of scales: 21 to 24 bytes a clock of about 30
///
/// All codes by byte permutes: half of the rows by lookups, as with 64 tokens, are 512 wavefronts
/// more, 94 % of the shared memory, for 330 clocks of integer instructions less. One fragment after
/// the other, so that one table of two rows is in registers and not two.
///
/// 4096 x 4096, M = 1,024: 128 blocks of 32 steps, 44.4 us; at the end 1.2, of which a thousand
/// clocks each write and read the sums; with launch and tail 47 (goal 48; G6). Where K is cut in
/// two, four or eight, a block reads 32, 48 or 56 KiB of sums from its peers' shared memory at 14
/// bytes a clock and multiprocessor in clusters of two and 11 in larger ones, 1.3, 2.5 and 2.9 us,
/// and as much by L2 meanwhile (small_m_wgmma.cuh). Three warps a scheduler use 0.8 of the issue
/// slots, where the kernel of 64 tokens has two, and 0.7: so this takes fewer tokens as well.
#include "cuda/small_m/small_m_wgmma.cuh"
#include "cuda/wgmma/wgmma_tile.cuh"

namespace lowrank::gpu {
namespace {

using Tile = SmallMTileWide;
using Shared = SmallMWideShared;
constexpr int kStages = Shared::kStages;
constexpr int kStepK = kSmallMStepK<SmallMFormat::kCode4, Tile>;
constexpr int kProducerWarps = 4;
constexpr int kHalfBytes = Tile::kTokens * 128;  // x of four products
static_assert((kStages + 1) * kStepK / 32 < Shared::kScaleSlots);

/// The phase of a stage's barriers for `step`.
LOWRANK_DEVICE uint32_t Parity(int step) { return static_cast<uint32_t>(step / kStages % 2); }

/// The scales of two rows per thread, decoded into a ring of block indexes, one step at a time.
class ScaleRing {
 public:
  __device__ __forceinline__ ScaleRing(const SmallMParams& params, const SmallMPlace& place,
                                       Shared* s)
      : w_(params.w), s_scales_(reinterpret_cast<float*>(s + 1) + Thread()) {
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int64_t row = int64_t{place.row_block} * Tile::kRows + Thread() + i * kRowsApart;
      // Rows past N read the last one; their results are not stored.
      const int64_t element = min(row, params.N - 1) * params.K + place.split * params.slice_k;
      begin_[i] = static_cast<uint32_t>(element >> w_.blocksize_log2);
      in_block_[i] = static_cast<int>(element & ((int64_t{1} << w_.blocksize_log2) - 1));
    }
  }

  /// The blocks that begin before `k` of the slice and are not there yet, two of each row at a
  /// time.
  __device__ __forceinline__ void Fill(int k) {
    int end[kOwn];
#pragma unroll
    for (int i = 0; i < kOwn; ++i) end[i] = ((in_block_[i] + k - 1) >> w_.blocksize_log2) + 1;
#pragma unroll 1
    while (next_[0] < end[0] || next_[1] < end[1]) {
      float scale[kOwn][2];
      if (w_.absmax_8bit == nullptr) {
#pragma unroll
        for (int i = 0; i < kOwn; ++i) {
#pragma unroll
          for (int b = 0; b < 2; ++b) {
            scale[i][b] = w_.absmax[begin_[i] + min(next_[i] + b, end[i] - 1)];
          }
        }
      } else {
        uint32_t code[kOwn][2];
#pragma unroll
        for (int i = 0; i < kOwn; ++i) {
#pragma unroll
          for (int b = 0; b < 2; ++b) {
            const uint32_t block = begin_[i] + min(next_[i] + b, end[i] - 1);
            code[i][b] = w_.absmax_8bit[block];
            scale[i][b] = w_.nested_absmax[block >> w_.nested_log2];
          }
        }
#pragma unroll
        for (int i = 0; i < kOwn; ++i) {
#pragma unroll
          for (int b = 0; b < 2; ++b) scale[i][b] = SmallMScale(w_, code[i][b], scale[i][b]);
        }
      }
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
#pragma unroll
        for (int b = 0; b < 2; ++b) {
          const int slot = (next_[i] + b) % Shared::kScaleSlots;
          if (next_[i] + b < end[i]) {
            float* s_scale = s_scales_ + slot * Tile::kScaleStride + i * kRowsApart;
            *s_scale = scale[i][b];
            SlotFilled(s_scale, static_cast<uint32_t>(next_[i] + b));
          }
        }
        next_[i] = min(next_[i] + 2, end[i]);
      }
    }
  }

 private:
  static constexpr int kRowsApart = kProducerWarps * 32;
  static constexpr int kOwn = Tile::kRows / kRowsApart;
  static_assert(kOwn == 2);

  LOWRANK_DEVICE int Thread() { return static_cast<int>(threadIdx.x) % kRowsApart; }

  const GemmMmaWeight& w_;
  float* const s_scales_;
  uint32_t begin_[kOwn];  // the rows' first blocks: of the weight there are fewer than 2^32
  int in_block_[kOwn];    // of the rows' first elements
  int next_[kOwn] = {};
};

/// The warpgroup that brings x and the scales.
class Producer {
 public:
  __device__ __forceinline__ Producer(const SmallMParams& params, const SmallMPlace& place)
      : s_(DynamicShared<Shared>()),
        slice_(static_cast<int>(min(params.slice_k, params.K - place.split * params.slice_k))),
        scales_(params, place, &s_),
        row_bytes_(static_cast<uint32_t>(params.K) * 2),
        // The last token is used for those past M: its results are not stored.
        last_(static_cast<int>(params.M - place.first_m) - 1),
        warp_(static_cast<int>(threadIdx.x / 32) % kProducerWarps) {
    const int run = static_cast<int>(threadIdx.x % 32 / 8);
    const int word = static_cast<int>(threadIdx.x % 8);
    lane_k_ = run * 32;
    x_ = Keep(static_cast<const uint16_t*>(params.x) + place.first_m * params.K +
              place.split * params.slice_k + lane_k_ + word * 2);
    place_ = warp_ * 128 + (word ^ warp_) * 16 + run * 4;
  }

  __device__ __forceinline__ void Run() {
    const int steps = (slice_ + kStepK - 1) / kStepK;
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      BarrierWait(&s_.empty[step % kStages], Parity(step) ^ 1);
      scales_.Fill(min((step + 1) * kStepK, slice_));
      CopyX(step);
      CpAsyncCommit();
      if (step >= kAhead) {
        CpAsyncWait<kAhead>();
        Publish(step - kAhead);
      }
    }
    CpAsyncWait<0>();
#pragma unroll 1
    for (int step = max(steps - kAhead, 0); step < steps; ++step) Publish(step);
  }

 private:
  /// Steps of x in flight beside the one just issued. With one more, a consumer would wait for a
  /// step that is published only after it has released a stage.
  static constexpr int kAhead = kStages - 2;
  static constexpr int kRowsAtOnce = 64;

  /// A row of a stage, 128 bytes, at once: eight words each of four runs of 16 elements, which are
  /// whole sectors; zero past the slice.
  __device__ __forceinline__ void CopyX(int step) {
    const int k = step * kStepK;
    const auto* g_x = reinterpret_cast<const unsigned char*>(x_ + k);
    const uint32_t bytes = k + lane_k_ < slice_ ? 4 : 0;
    // In turn, rows of a warp are 0 or 4 in a pattern of eight.
    unsigned char* s_x = s_.main.x[step % kStages];
    SlotFilled(s_x, static_cast<uint32_t>(step));
    unsigned char* s_rows[2] = {s_x + place_, s_x + (place_ ^ 64)};
    int row = warp_;
#pragma unroll 1
    for (int group = 0; group < Tile::kTokens / kRowsAtOnce; ++group) {
#pragma unroll
      for (int i = 0; i < kRowsAtOnce / kProducerWarps; ++i) {
        const auto own = static_cast<uint32_t>(min(row + i * kProducerWarps, last_));
        const unsigned char* g_row = g_x + uint64_t{own} * row_bytes_;
        unsigned char* s_row = s_rows[i % 2] + i * kProducerWarps * 128;
        CpAsync4(s_row, g_row, bytes);
        CpAsync4(s_row + kHalfBytes, g_row + 32, bytes);
      }
      row += kRowsAtOnce;
      s_rows[0] += kRowsAtOnce * 128;
      s_rows[1] += kRowsAtOnce * 128;
    }
  }

  __device__ __forceinline__ void Publish(int step) {
    FenceProxyAsyncShared();
    __syncwarp();
    if (threadIdx.x % 32 == 0) BarrierArrive(&s_.full[step % kStages]);
  }

  Shared& s_;
  const int slice_;
  ScaleRing scales_;
  const uint32_t row_bytes_;
  const int last_;
  const int warp_;
  int lane_k_;         // of a step
  const uint16_t* x_;  // the lane's first word of the first token
  uint32_t place_;     // of that word in a stage
};

/// The two warpgroups that decode and multiply.
template <typename Element>
class Consumer : WgmmaRows<Element, Tile, Shared> {
  using Base = WgmmaRows<Element, Tile, Shared>;
  using Base::kThreads;
  using Base::s_, Base::decoder_, Base::slice_;
  using typename Base::Codes;

 public:
  __device__ __forceinline__ Consumer(const SmallMParams& params, const SmallMPlace& place)
      : Base(params, place) {}

  __device__ __forceinline__ void Run() {
    Codes next;
    this->LoadCodes(0, &next);
    decoder_.Fill();
    NamedBarrier(1, kThreads);
    const int last = (slice_ - 1) / kStepK;
#pragma unroll 1
    for (int step = 0; step < last; ++step) {
      const Codes now = next;
      this->LoadCodes(step + 1, &next);
      Step<false>(step, now, [] {});
    }
    Step<true>(last, next, [this] { this->StoreHalf(); });
    WgmmaWait<0>();
    NamedBarrier(1, kThreads);  // all products have read the stages
    this->StoreSums();
    ClusterSync();
    this->Finish();
    ClusterSync();  // a block that left would take its sums from under its peers
  }

 private:
  template <bool kTail, typename AfterHalf>
  __device__ __forceinline__ void Step(int step, const Codes& codes, AfterHalf after_half) {
    const int stage = step % kStages;
    BarrierWait(&s_.full[stage], Parity(step));
    const auto after_first = [&] {
      if (step != 0 && threadIdx.x % 32 == 0) BarrierArrive(&s_.empty[(step - 1) % kStages]);
    };
    this->template Multiply<kTail>(s_.main.x[stage], step, codes, after_first, after_half);
  }
};

template <typename Element>
LOWRANK_DEVICE void Run(const SmallMParams& p) {
  Shared& s = DynamicShared<Shared>();
  if (threadIdx.x == 0) {
    InitBarriers(s.full, kProducerWarps);
    InitBarriers(s.empty, kSmallMWarps);
  }
  __syncthreads();
  const SmallMPlace place = PlaceOfBlock<Tile>(p);
  if (threadIdx.x >= kSmallMThreads) {
    RegistersDownTo<56>();
    Producer(p, place).Run();
    ClusterSync();
    ClusterSync();
  } else {
    RegistersUpTo<224>();
    Consumer<Element>(p, place).Run();
  }
}

}  // namespace

LOWRANK_EARLY_KERNEL(matmul_wide_m_wgmma_4bit_bf16_kernel, SmallMParams, kSmallMWideThreads, 1) {
  Run<WgmmaElementBF16>(p);
}
LOWRANK_EARLY_KERNEL(matmul_wide_m_wgmma_4bit_f16_kernel, SmallMParams, kSmallMWideThreads, 1) {
  Run<WgmmaElementF16>(p);
}

}  // namespace lowrank::gpu
