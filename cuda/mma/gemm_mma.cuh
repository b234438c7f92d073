/// The body of the tiled tensor-core products. matmul_mma_sm80.cu has the formula and the
/// budget.
#pragma once

#include "cuda/mma/gemm_mma_lora.cuh"

namespace lowrank::gpu {

/// What one block computes: kTileM x kTileP of the output, kTileR of the reduction at a time. P is
/// N forward and K transposed, R is the other one.
template <int kM, int kP, int kStageCount, bool kTransposedWeight>
struct GemmTile {
  static constexpr int kTileM = kM;
  static constexpr int kTileP = kP;
  static constexpr int kTileR = 64;
  static constexpr int kStages = kStageCount;
  static constexpr bool kTransposed = kTransposedWeight;
  static constexpr int kWarpM = kM == 64 ? 32 : 64;
  static constexpr int kWarpP = kP == 64 ? 32 : 64;
  static constexpr int kWarpsP = kP / kWarpP;
  static constexpr int kThreads = kM / kWarpM * kWarpsP * 32;
  static_assert(kM % kWarpM == 0 && kP % kWarpP == 0);
};

/// A row of staged output is 32 bytes longer than its floats: the 32-byte fragments of four rows (a
/// half-warp's store) are then in 32 different banks.
template <typename Tile>
constexpr int kStagedRow = Tile::kTileP + 8;

template <typename Source, typename Tile>
struct GemmMmaShared {
  static constexpr int kTiles = Source::kDirect ? Tile::kStages : 2;

  struct MainLoop : Source::Shared {
    alignas(128) unsigned char x[Tile::kStages][Tile::kTileM * 128];
    unsigned char w[kTiles][WeightSlab<Tile>::kBytes];
  };
  union {
    MainLoop loop;
    float out[Tile::kTileM * kStagedRow<Tile>];
  };
};

/// A product's accumulators in one warp: rows 16 mi + lane / 4 (+ 8), columns 8 pi + 2 (lane % 4).
template <typename Acc, typename Tile>
struct WarpProduct {
  static constexpr int kMi = Tile::kWarpM / 16;
  static constexpr int kPi = Tile::kWarpP / 8;

  Acc acc[kMi][kPi][4];  // float, or int32_t where x and w are bytes
  /// Offsets of this lane's ldmatrix rows in the tiles of x and w at step 0. A step, or transposed
  /// the 16 columns of a pair of pi, only flips bits of a row's piece, so the rest is immediates.
  int x_offset_bytes;
  int w_offset_bytes;
  /// This lane's first accumulator in the block's tile.
  int row;
  int col;

  __device__ __forceinline__ WarpProduct() {
    const int lane = static_cast<int>(threadIdx.x & 31);
    const int warp = static_cast<int>(threadIdx.x >> 5);
    const int m0 = warp / Tile::kWarpsP * Tile::kWarpM;
    const int p0 = warp % Tile::kWarpsP * Tile::kWarpP;
    row = m0 + lane / 4;
    col = p0 + lane % 4 * 2;
    x_offset_bytes = SwizzledOffset<128>(m0 + lane % 16, lane / 16);
    if constexpr (Tile::kTransposed) {
      w_offset_bytes = SwizzledOffset<Tile::kTileP * 2>(lane % 16, p0 / 8 + lane / 16);
    } else {
      w_offset_bytes = SwizzledOffset<128>(p0 + lane / 16 * 8 + lane % 8, lane / 8 % 2);
    }
  }

  __device__ __forceinline__ void Clear() {
#pragma unroll
    for (int mi = 0; mi < kMi; ++mi) {
#pragma unroll
      for (int pi = 0; pi < kPi; ++pi) {
#pragma unroll
        for (int q = 0; q < 4; ++q) acc[mi][pi][q] = Acc();
      }
    }
  }

  /// 16 elements of the reduction (32 for bytes), step `step` of the slab's four. MmaElement is
  /// that of x and w, or bf16 for the LoRA parts.
  template <typename MmaElement>
  __device__ __forceinline__ void Step(const unsigned char* s_x, const unsigned char* s_w,
                                       int step) {
    uint32_t a[kMi][4];
#pragma unroll
    for (int mi = 0; mi < kMi; ++mi) {
      LdMatrixX4(a[mi], s_x + (x_offset_bytes ^ (step * 32)) + mi * 16 * 128);
    }
#pragma unroll
    for (int pi = 0; pi < kPi; pi += 2) {
      uint32_t b[4];
      if constexpr (Tile::kTransposed) {
        LdMatrixX4Trans(b, s_w + (w_offset_bytes ^ (pi * 16)) + step * 16 * Tile::kTileP * 2);
      } else {
        LdMatrixX4(b, s_w + (w_offset_bytes ^ (step * 32)) + pi * 8 * 128);
      }
#pragma unroll
      for (int mi = 0; mi < kMi; ++mi) {
        MmaElement::Mma(acc[mi][pi], a[mi], b[0], b[1]);
        MmaElement::Mma(acc[mi][pi + 1], a[mi], b[2], b[3]);
      }
    }
  }
};

/// Adds the LoRA term through a tile of x and one of w, which must be free.
template <typename Tile>
LOWRANK_DEVICE void AddLora(const GemmMmaParams& p, int64_t m0, int64_t p0, unsigned char* s_h,
                            unsigned char* s_factor, WarpProduct<float, Tile>* product) {
  const LoraSlabs<Tile> lora(p);
#pragma unroll 1
  for (int slab = 0; slab * 4 < lora.blocks(); ++slab) {
    if (slab > 0) __syncthreads();
    lora.Fill(slab, m0, p0, s_h, s_factor);
    __syncthreads();
#pragma unroll 1
    for (int step = 0; step < 4 && slab * 4 + step < lora.blocks(); ++step) {
      product->template Step<ElementBF16T>(s_h, s_factor, step);
    }
  }
}

/// Eight neighbours of an output row: adds bias and the old value, rounds once to T, and stores.
template <typename Element>
LOWRANK_DEVICE void StoreEight(const GemmMmaParams& p, float (&r_value)[8], int64_t m, int64_t col,
                               int64_t cols) {
  uint16_t* g_y = static_cast<uint16_t*>(p.y) + m * cols + col;
  if (p.accumulate) {
    float old[8];
    LoadEight(old, p.y, Element::kCode, m * cols + col, cols - col, p.vector_store);
#pragma unroll
    for (int q = 0; q < 8; ++q) r_value[q] += old[q];
  }
  const uint4 packed =
      make_uint4(Element::Pack(r_value[0], r_value[1]), Element::Pack(r_value[2], r_value[3]),
                 Element::Pack(r_value[4], r_value[5]), Element::Pack(r_value[6], r_value[7]));
  if (p.vector_store) {
    *reinterpret_cast<uint4*>(g_y) = packed;
    return;
  }
  const uint32_t pairs[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
  for (int q = 0; q < 8; ++q) {
    if (col + q < cols) g_y[q] = static_cast<uint16_t>(pairs[q / 2] >> (q % 2 * 16));
  }
}

/// bias + scaling · lora_bias of eight columns; zeros if neither is given.
LOWRANK_DEVICE void LoadBias(const GemmMmaParams& p, float (&r_bias)[8], int64_t col) {
#pragma unroll
  for (int q = 0; q < 8; ++q) r_bias[q] = 0.0f;
#pragma unroll 1
  for (int of_lora = 0; of_lora < 2; ++of_lora) {
    const void* g_bias = of_lora != 0 ? p.lora_bias : p.bias;
    if (g_bias == nullptr) continue;
    float value[8];
    LoadEight(value, g_bias, of_lora != 0 ? p.lora_bias_dtype : p.bias_dtype, col, p.N - col,
              false);
#pragma unroll
    for (int q = 0; q < 8; ++q) {
      r_bias[q] = of_lora != 0 ? r_bias[q] + p.scaling * value[q] : value[q];
    }
  }
}

/// Reads a block's sums through shared memory, eight neighbours of a row at a time, adds the bias
/// if required, and calls store(value, m, col).
template <typename Tile, typename Store>
LOWRANK_DEVICE void StoreProduct(const GemmMmaParams& p, const WarpProduct<float, Tile>& product,
                                 float* s_out, int64_t m0, int64_t p0, bool with_bias,
                                 Store store) {
  using Product = WarpProduct<float, Tile>;
  constexpr int kRow = kStagedRow<Tile>;
  __syncthreads();
#pragma unroll
  for (int mi = 0; mi < Product::kMi; ++mi) {
#pragma unroll
    for (int pi = 0; pi < Product::kPi; ++pi) {
      const float(&acc)[4] = product.acc[mi][pi];
      float* s_upper = s_out + (product.row + mi * 16) * kRow + product.col + pi * 8;
      *reinterpret_cast<float2*>(s_upper) = make_float2(acc[0], acc[1]);
      *reinterpret_cast<float2*>(s_upper + 8 * kRow) = make_float2(acc[2], acc[3]);
    }
  }
  __syncthreads();
  constexpr int kPieces = Tile::kTileP / 8;
  static_assert(Tile::kThreads % kPieces == 0);
  const int piece = static_cast<int>(threadIdx.x) % kPieces;
  const int64_t col = p0 + piece * 8;
  if (col >= (Tile::kTransposed ? p.K : p.N)) return;
  float bias[8] = {};
  if (with_bias) LoadBias(p, bias, col);
  for (int row = static_cast<int>(threadIdx.x) / kPieces; row < Tile::kTileM;
       row += Tile::kThreads / kPieces) {
    if (m0 + row >= p.M) break;
    // Half of the lanes start with the second four, so that the reads of eight lanes use all banks.
    const float* s_row = s_out + row * kRow + piece * 8;
    const int swap = (kPieces == 4 ? row : piece / 4) % 2;
    const float4 one = reinterpret_cast<const float4*>(s_row)[swap];
    const float4 two = reinterpret_cast<const float4*>(s_row)[1 - swap];
    const float4 low = swap == 0 ? one : two;
    const float4 high = swap == 0 ? two : one;
    float value[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
    for (int q = 0; q < 8; ++q) value[q] += bias[q];
    store(value, m0 + row, col);
  }
}

/// Eight neighbours of a row of this block's plane.
LOWRANK_DEVICE void StorePlane(const GemmMmaParams& p, const float (&r_value)[8], int64_t m,
                               int64_t col, int64_t cols) {
  float* g_plane = p.planes + (static_cast<int64_t>(blockIdx.y) * p.M + m) * cols + col;
  if (cols % 8 == 0) {
    float4* g_pair = reinterpret_cast<float4*>(g_plane);
    g_pair[0] = make_float4(r_value[0], r_value[1], r_value[2], r_value[3]);
    g_pair[1] = make_float4(r_value[4], r_value[5], r_value[6], r_value[7]);
    return;
  }
#pragma unroll
  for (int q = 0; q < 8; ++q) {
    if (col + q < cols) g_plane[q] = r_value[q];
  }
}

/// Sums the planes in the order of the reduction, so that the bits depend only on the plan.
template <typename Element>
LOWRANK_DEVICE void GemmMmaReduceBody(const GemmMmaParams& p) {
  const int64_t P = p.w_transposed ? p.K : p.N;
  const int64_t pieces = (P + 7) / 8;
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kGemmMmaReduceThreads + threadIdx.x;
  const int64_t m = at / pieces;
  const int64_t col = at % pieces * 8;
  if (m >= p.M) return;
  float value[8] = {};
  if (!p.w_transposed) LoadBias(p, value, col);
  for (int split = 0; split < p.splits; ++split) {
    float part[8];
    const int64_t index = (split * p.M + m) * P + col;
    LoadEight(part, p.planes, kElementF32, index, P - col, P % 8 == 0);
#pragma unroll
    for (int q = 0; q < 8; ++q) value[q] += part[q];
  }
  StoreEight<Element>(p, value, m, col, P);
}

/// Which rows of x a block multiplies: neighbours from m0 on.
template <typename Tile>
struct NeighbourRows {
  int64_t m0;

  /// Row `row` of the block in x.
  __device__ __forceinline__ int64_t Of(int row) const { return m0 + row; }
  /// A slab of the rows: R elements each, those from r0 on.
  __device__ __forceinline__ void Copy(const GemmMmaParams& p, int64_t R, int64_t r0,
                                       unsigned char* s_x) const {
    CopyTile<Tile::kTileM, 128, Tile::kThreads>(static_cast<const uint16_t*>(p.x) + m0 * R + r0,
                                                R * 2, p.M - m0, (R - r0) * 2, s_x);
  }
};

/// The tile of y at (m0, p0), over this block's part of the reduction. `rows` says where x's rows
/// are.
template <WeightFormat kFormat, typename Element, typename Tile, typename Rows>
LOWRANK_DEVICE void GemmMmaBlock(const GemmMmaParams& p, int64_t m0, int64_t p0, const Rows& rows) {
  using Source = WeightSource<kFormat, Element, Tile>;
  using Shared = GemmMmaShared<Source, Tile>;
  using Product = WarpProduct<float, Tile>;
  constexpr int kStages = Tile::kStages;
  static_assert(kStages >= 2 && (!Source::kGeneral || kStages == 2));
  static_assert(Source::kSteps == Tile::kTileR / 16);
  // The general kernel waits for its look-ups; the code of four steps would not make it faster.
  [[maybe_unused]] constexpr int kUnroll = Source::kGeneral ? 1 : Source::kSteps;

  Shared& shared = DynamicShared<Shared>();
  typename Shared::MainLoop& s = shared.loop;
  const int64_t P = Tile::kTransposed ? p.K : p.N;
  const int64_t R = Tile::kTransposed ? p.N : p.K;
  // This block's part of the reduction. The LoRA term belongs to the first part.
  const int all_slabs = static_cast<int>((R + Tile::kTileR - 1) / Tile::kTileR);
  const int first = static_cast<int>(blockIdx.y) * p.slabs_per_split;
  const int end = min(all_slabs, first + p.slabs_per_split);
  Source source(p, &s, p0);
  Product product;
  product.Clear();

  // Elements past the end of a row or of the rows are zeros on both sides of the product.
  auto load_x = [&](int slab) {
    unsigned char* s_x = s.x[slab % kStages];
    SlotFilled(s_x, static_cast<uint32_t>(slab));
    const int64_t r0 = static_cast<int64_t>(slab) * Tile::kTileR;
    if constexpr (!Source::kGeneral) {
      rows.Copy(p, R, r0, s_x);
    } else {
#pragma unroll 1
      for (int at = threadIdx.x; at < Tile::kTileM * 8; at += Tile::kThreads) {
        const int row = at / 8;
        const int col = at % 8 * 8;
        uint32_t pairs[4] = {0, 0, 0, 0};
        const bool inside = m0 + row < p.M;
        const uint16_t* g_x = static_cast<const uint16_t*>(p.x) + (inside ? rows.Of(row) : 0) * R;
#pragma unroll
        for (int q = 0; q < 8; ++q) {
          if (!inside || r0 + col + q >= R) continue;
          pairs[q / 2] |= static_cast<uint32_t>(g_x[r0 + col + q]) << (q % 2 * 16);
        }
        *reinterpret_cast<uint4*>(s_x + SwizzledOffset<128>(row, at % 8)) =
            make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
      }
    }
  };

  // A stage of x, and of the weight kLead slabs ahead: Decode needs it one iteration earlier.
  auto load_stage = [&](int slab) {
    if (slab < end) {
      load_x(slab);
      if constexpr (Source::kDirect) source.IssueTile(slab, s.w[slab % kStages]);
    }
    if constexpr (!Source::kDirect) {
      if (slab + Source::kLead < end) source.Issue(slab + Source::kLead);
    }
    CpAsyncCommit();
  };

  // The oldest stage is complete for every thread, and every thread is done with the slab before.
  auto wait_stage = [&] {
    CpAsyncWait<kStages - 2>();
    __syncthreads();
  };

  // A dropped element is zero whatever it held. The draws for a row of fragments are a loop,
  // because unrolled they would be half of the kernel.
  auto apply_gate = [&] {
    const DropoutGate<!Source::kGeneral> gate(p);
#pragma unroll
    for (int mi = 0; mi < Product::kMi; ++mi) {
      uint32_t keeps = 0;
#pragma unroll 1
      for (int pi = 0; pi < Product::kPi; ++pi) {
        keeps |= gate.Keeps(m0 + product.row + mi * 16, p0 + product.col + pi * 8) << (4 * pi);
      }
#pragma unroll
      for (int pi = 0; pi < Product::kPi; ++pi) {
#pragma unroll
        for (int q = 0; q < 4; ++q) {
          float& value = product.acc[mi][pi][q];
          value = (keeps >> (4 * pi + q) & 1u) != 0 ? value * p.kept_scale : 0.0f;
        }
      }
    }
  };

  // First, so that its gate applies to the LoRA term only.
  auto add_lora = [&] {
    // The last stage and tile, which the prologue leaves free.
    unsigned char* s_h = s.x[(first + kStages - 1) % kStages];
    unsigned char* s_factor = s.w[(first + Shared::kTiles - 1) % Shared::kTiles];
    AddLora(p, m0, p0, s_h, s_factor, &product);
    if constexpr (Tile::kTransposed) {
      if (p.gated) apply_gate();
    }
  };

  auto mma_and_decode = [&](int slab) {
    const unsigned char* s_x = s.x[slab % kStages];
    SlotRead(s_x, static_cast<uint32_t>(slab));
    const unsigned char* s_w = s.w[slab % Shared::kTiles];
    unsigned char* s_next = s.w[(slab + 1) % Shared::kTiles];
#pragma unroll kUnroll
    for (int step = 0; step < Source::kSteps; ++step) {
      product.template Step<Element>(s_x, s_w, step);
      if (slab + 1 < end) source.Decode(slab + 1, s_next, step);
    }
  };

  source.Init(first);
  if constexpr (!Source::kDirect) {
    if (first < end) source.Issue(first);
  }
  if (p.x_made) GridDependencyWait();
#pragma unroll
  for (int stage = 0; stage < kStages - 1; ++stage) load_stage(first + stage);
  GridDependencyWait();
  if (p.split_pairs > 0 && first == 0) add_lora();
  if (first < end) {
    source.LoadScales(first + 1);
    wait_stage();
#pragma unroll kUnroll
    for (int step = 0; step < Source::kSteps; ++step) {
      source.Decode(first, s.w[first % Shared::kTiles], step);
    }
    source.StoreScales(first + 1);
  }
#pragma unroll 1
  for (int slab = first; slab < end; ++slab) {
    wait_stage();
    load_stage(slab + kStages - 1);
    source.LoadScales(slab + 2);
    mma_and_decode(slab);
    source.StoreScales(slab + 2);
  }
  // All issued copies have been waited for.
  const bool with_bias = !Tile::kTransposed && p.splits == 1;
  StoreProduct(p, product, shared.out, m0, p0, with_bias,
               [&](float(&value)[8], int64_t m, int64_t col) {
                 if (p.splits > 1) {
                   StorePlane(p, value, m, col, P);
                 } else {
                   StoreEight<Element>(p, value, m, col, P);
                 }
               });
}

template <WeightFormat kFormat, typename Element, typename Tile>
LOWRANK_DEVICE void GemmMmaBody(const GemmMmaParams& p) {
  const int64_t m0 = blockIdx.x / p.tiles_p * Tile::kTileM;
  const int64_t p0 = blockIdx.x % p.tiles_p * Tile::kTileP;
  GemmMmaBlock<kFormat, Element, Tile>(p, m0, p0, NeighbourRows<Tile>{m0});
}

}  // namespace lowrank::gpu
