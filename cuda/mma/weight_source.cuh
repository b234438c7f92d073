/// Where a slab of the base weight comes from: one class per kind of weight, all with the same five
/// functions, so that the main loop of gemm_mma.cuh need not know the kind.
///
///   Init(slab)           before the first barrier, with the first slab of the block's reduction (a
///                        multiple of 8)
///   Issue(slab)          starts the asynchronous copies of a slab's bytes, kLead slabs before x's
///   LoadScales(slab) / StoreScales(slab)   the scales of a slab's elements, read early in an
///                        iteration and put into shared memory late in it, so that nobody waits
///   Decode(slab, s_w, step)   a kSteps-th part of the slab as T into the tile s_w
///
/// A slab is the tile of w that meets kTileR elements of the reduction: forward [kTileP n, kTileR
/// k], transposed [kTileR n, kTileP k]. Both keep k along a row, as w lies in memory, so the same
/// bytes serve both directions; only the ldmatrix of gemm_mma.cuh differs.
#pragma once

#include "cuda/common/decode.cuh"
#include "cuda/common/swizzle.cuh"

namespace lowrank::gpu {

enum class WeightFormat {
  kCode4,    // 4-bit codes, K a multiple of 32, blocksize >= 32
  kCode8,    // 8-bit codes, likewise
  kDense,    // T itself, K a multiple of 8
  kGeneral,  // any weight and any shape, element by element
};

/// The shape of a slab in shared memory.
template <typename Tile>
struct WeightSlab {
  static constexpr int kRows = Tile::kTransposed ? Tile::kTileR : Tile::kTileP;  // n
  static constexpr int kCols = Tile::kTransposed ? Tile::kTileP : Tile::kTileR;  // k
  static constexpr int kRowBytes = kCols * 2;
  static constexpr int kBytes = kRows * kRowBytes;
  static constexpr int kChunks = kCols / 32;  // of 32 elements, a row: what one decode task takes
  static constexpr int kTasks = kRows * kChunks / Tile::kThreads;  // a thread
  static_assert(kRows * kChunks % Tile::kThreads == 0);

  /// First n and k of slab `slab`.
  LOWRANK_DEVICE int64_t FirstRow(int slab, int64_t first_p) {
    return Tile::kTransposed ? static_cast<int64_t>(slab) * Tile::kTileR : first_p;
  }
  LOWRANK_DEVICE int64_t FirstCol(int slab, int64_t first_p) {
    return Tile::kTransposed ? first_p : static_cast<int64_t>(slab) * Tile::kTileR;
  }
};

/// Copies kRows rows of kRowBytes to a swizzled tile, asynchronously; beyond `rows_left` rows and
/// `bytes_left` bytes of a row it writes zeros. Each thread has one pointer and one step between
/// its copies, because the kernel is short of registers.
template <int kRows, int kRowBytes, int kThreads>
LOWRANK_DEVICE void CopyTile(const void* g_first, int64_t row_bytes, int64_t rows_left,
                             int64_t bytes_left, unsigned char* s_tile) {
  constexpr int kPieces = kRowBytes / 16;
  constexpr int kCopies = kRows * kPieces / kThreads;
  constexpr int kRowStep = kThreads / kPieces;
  static_assert(kCopies >= 1 && kRows * kPieces % kThreads == 0 && kThreads % kPieces == 0);
  // The rows of a thread's copies then have the same swizzle.
  static_assert(kCopies == 1 || kRowStep * kRowBytes % 1024 == 0);
  const int row = static_cast<int>(threadIdx.x) / kPieces;
  const int piece = static_cast<int>(threadIdx.x) % kPieces;
  const bool inside = piece * 16 < bytes_left;
  const unsigned char* g_from = static_cast<const unsigned char*>(g_first);
  if (inside && row < rows_left) g_from += row * row_bytes + piece * 16;
  unsigned char* s_to = s_tile + SwizzledOffset<kRowBytes>(row, piece);
#pragma unroll
  for (int i = 0; i < kCopies; ++i) {
    CpAsync16(s_to + i * kRowStep * kRowBytes, g_from,
              inside && row + i * kRowStep < rows_left ? 16 : 0);
    if (inside && row + (i + 1) * kRowStep < rows_left) g_from += kRowStep * row_bytes;
  }
}

/// Slab `slab` of a row-major w [N, K] with kBits per element.
template <typename Tile, int kBits>
LOWRANK_DEVICE void CopySlab(const void* g_w, int slab, int64_t first_p, int64_t N, int64_t K,
                             unsigned char* s_tile) {
  using Slab = WeightSlab<Tile>;
  const int64_t row = Slab::FirstRow(slab, first_p);
  const int64_t col = Slab::FirstCol(slab, first_p);
  CopyTile<Slab::kRows, Slab::kCols * kBits / 8, Tile::kThreads>(
      static_cast<const unsigned char*>(g_w) + (row * K + col) * kBits / 8, K * kBits / 8, N - row,
      (K - col) * kBits / 8, s_tile);
}

/// Scales of a slab's elements in shared memory, two buffers deep.
///
/// Forward: the scales of a row run along k with the slabs, so a panel of eight a row is read at
/// once (one 32-byte sector of absmax) and serves 8 or 4 slabs; each iteration reads an equal part
/// of the next panel. Transposed: every slab has its own rows; the scales of 128 columns are 2 or 4
/// neighbours in memory, a quarter or half of the sector they lie in: at 64 rows a slab that is
/// 2 KB of sectors beside 20 KB of dy and codes, and the block to the right reads the rest from L2.
/// With double quantisation absmax is bytes: eight or four of a sector's 32 at a time, and
/// absmax_codebook is a gather from 1 KB in L1; both are one access for 32 or 64 codes.
template <typename Tile>
struct ScaleStage {
  using Slab = WeightSlab<Tile>;
  static constexpr int kSlots = Tile::kTransposed ? Slab::kChunks : 8;  // a row
  /// The padding puts the lanes of a store (8 slots of 4 rows, 4 of 8 or 2 of 16) in different
  /// banks.
  static constexpr int kStride = Slab::kRows + (!Tile::kTransposed ? 4 : kSlots == 4 ? 8 : 16);
  /// The most entries that a thread fills in an iteration.
  static constexpr int kPerThread =
      Tile::kTransposed ? Slab::kTasks : Slab::kRows * 2 / Tile::kThreads;
  static_assert(kPerThread >= 1);

  float scale[2][kSlots * kStride];
};

/// 4-bit and 8-bit codes with one scale per block.
template <WeightFormat kFormat, typename Element, typename Tile>
class WeightSource {
  using Slab = WeightSlab<Tile>;
  using Stage = ScaleStage<Tile>;
  static constexpr int kCodeBits = kFormat == WeightFormat::kCode4 ? 4 : 8;
  static constexpr int kCodeRowBytes = Slab::kCols * kCodeBits / 8;
  static constexpr int kPieces = kCodeRowBytes / 16;  // a row

 public:
  static constexpr int kBits = kCodeBits;
  static constexpr bool kDirect = false;
  static constexpr bool kGeneral = false;
  static constexpr int kLead = 1;
  static constexpr int kSteps = 4;

  struct Shared {
    alignas(128) unsigned char codes[Tile::kStages][Slab::kRows * kCodeRowBytes];
    Stage stage;
    alignas(16) float codebook[kCodeBits == 4 ? 16 : 256];
  };

  __device__ __forceinline__ WeightSource(const GemmMmaParams& p, Shared* s_shared, int64_t first_p)
      : w_(p.w), s_(*s_shared), first_p_(first_p), N_(p.N), K_(p.K) {
    offset_ = w_.absmax_8bit == nullptr ? 0.0f : *w_.absmax_offset;
  }

  __device__ __forceinline__ void Init(int slab) {
    for (int i = threadIdx.x; i < (kCodeBits == 4 ? 16 : 256); i += Tile::kThreads) {
      s_.codebook[i] = w_.codebook[i];
    }
    if constexpr (Tile::kTransposed) {
      FillScales(slab);
    } else {
      // The whole panel, step by step.
      const int steps = 1 << (w_.scale_span_log2 - 3);
      for (int step = 0; step < steps; ++step) FillScales(slab + step - steps + 1);
    }
  }

  __device__ __forceinline__ void Issue(int slab) {
    CopySlab<Tile, kCodeBits>(w_.data, slab, first_p_, N_, K_, s_.codes[slab % Tile::kStages]);
  }

  /// Forward the scales loaded beside slab - 2's product are a part of the panel after slab - 1's.
  __device__ __forceinline__ void LoadScales(int slab) {
#pragma unroll
    for (int i = 0; i < Stage::kPerThread; ++i) {
      const Entry entry = EntryOf(slab, i);
      loaded_code_[i] = 0;
      loaded_[i] = 0.0f;
      if (!entry.inside) continue;
      const int64_t block = entry.index >> w_.blocksize_log2;
      if (w_.absmax_8bit == nullptr) {
        loaded_[i] = w_.absmax[block];
      } else {
        loaded_code_[i] = w_.absmax_8bit[block];
        loaded_[i] = w_.nested_absmax[block >> w_.nested_log2];
      }
    }
  }

  __device__ __forceinline__ void StoreScales(int slab) {
#pragma unroll
    for (int i = 0; i < Stage::kPerThread; ++i) {
      const Entry entry = EntryOf(slab, i);
      if (!entry.present) continue;
      float scale = loaded_[i];
      // Product and sum are rounded separately, as in QuantView::Scale.
      if (w_.absmax_8bit != nullptr) {
        scale = w_.absmax_codebook[loaded_code_[i]] * scale + offset_;
      }
      s_.stage.scale[entry.buffer][entry.slot * Stage::kStride + entry.row] = scale;
    }
  }

  /// Thread t's tasks are 32 codes each of rows t, t + kThreads, ... (then the next chunk): eight
  /// lanes have eight rows, whose equal pieces SwizzledOffset keeps apart.
  __device__ __forceinline__ void Decode(int slab, unsigned char* s_w, int step) {
    constexpr int kStepsPerTask = kSteps / Slab::kTasks;
    static_assert(kSteps % Slab::kTasks == 0);
    const int task = step / kStepsPerTask;
    const int at = static_cast<int>(threadIdx.x) + task * Tile::kThreads;
    const int row = at % Slab::kRows;
    const int chunk = at / Slab::kRows;
    const bool inside = Slab::FirstRow(slab, first_p_) + row < N_ &&
                        Slab::FirstCol(slab, first_p_) + chunk * 32 < K_;
    // Parts [first, last) of the task's four; each has eight codes.
    const int first = step % kStepsPerTask * 4 / kStepsPerTask;
    const int last = first + 4 / kStepsPerTask;
    const unsigned char* s_codes = s_.codes[slab % Tile::kStages];
    const float scale = ScaleOf(slab, row, chunk);
    if constexpr (kCodeBits == 4) {
      if (first == 0) {
        table_ = MakeNibbleTable<Element>(s_.codebook, scale);
        codes_ =
            *reinterpret_cast<const uint4*>(s_codes + SwizzledOffset<kCodeRowBytes>(row, chunk));
      }
    } else {
      if (first % 2 == 0) LoadCodes8(s_codes, row, chunk, first / 2);
    }
#pragma unroll
    for (int part = first; part < last; ++part) {
      uint4 value = make_uint4(0, 0, 0, 0);  // outside w: zero whatever the tables hold
      if constexpr (kCodeBits == 4) {
        const uint32_t words[4] = {codes_.x, codes_.y, codes_.z, codes_.w};
        if (inside) value = DecodeNibbles(table_, words[part]);
      } else {
        if (part % 2 == 0 && part != first) LoadCodes8(s_codes, row, chunk, part / 2);
        if (inside) {
          value = part % 2 == 0 ? DecodeBytes(codes_.x, codes_.y, scale)
                                : DecodeBytes(codes_.z, codes_.w, scale);
        }
      }
      *reinterpret_cast<uint4*>(s_w + SwizzledOffset<Slab::kRowBytes>(row, chunk * 4 + part)) =
          value;
    }
  }

 private:
  /// One scale to fetch, that of element `index` of w, into slot `slot` of row `row`.
  struct Entry {
    int64_t index;
    int buffer;
    int slot;
    int row;
    bool present;  // this thread has such an entry
    bool inside;   // and it lies in w
  };

  __device__ __forceinline__ Entry EntryOf(int slab, int i) const {
    const int at = static_cast<int>(threadIdx.x) + i * Tile::kThreads;
    const int span_log2 = w_.scale_span_log2;
    Entry entry;
    int64_t n;
    int64_t k;
    if constexpr (Tile::kTransposed) {
      const int per_row_log2 = kColsLog2 - span_log2;
      entry.row = at >> per_row_log2;
      entry.slot = (at & ((1 << per_row_log2) - 1)) << (span_log2 - 5);
      entry.buffer = slab & 1;
      entry.present = entry.row < Slab::kRows;
      n = Slab::FirstRow(slab, first_p_) + entry.row;
      k = first_p_ + entry.slot * 32;
    } else {
      const int slabs_log2 = span_log2 - 3;  // slabs that a panel serves
      const int turn = slab - 1;
      const int panel = (turn >> slabs_log2) + 1;
      const int rows_log2 = kRowsLog2 - slabs_log2;  // rows that an iteration reads
      const int step = turn & ((1 << slabs_log2) - 1);
      entry.row = (step << rows_log2) + (at >> 3);
      entry.slot = at & 7;
      entry.buffer = panel & 1;
      entry.present = at < (8 << rows_log2);
      n = first_p_ + entry.row;
      k = static_cast<int64_t>(panel * 8 + entry.slot) << span_log2;
    }
    entry.inside = entry.present && n < N_ && k < K_;
    entry.index = n * K_ + k;
    return entry;
  }

  __device__ __forceinline__ float ScaleOf(int slab, int row, int chunk) const {
    const int coarse = w_.scale_span_log2 - 5;
    if constexpr (Tile::kTransposed) {
      return s_.stage.scale[slab & 1][((chunk >> coarse) << coarse) * Stage::kStride + row];
    } else {
      const int at = (slab * 2 + chunk) >> coarse;
      return s_.stage.scale[(at >> 3) & 1][(at & 7) * Stage::kStride + row];
    }
  }

  __device__ __forceinline__ void FillScales(int slab) {
    LoadScales(slab);
    StoreScales(slab);
  }

  __device__ __forceinline__ void LoadCodes8(const unsigned char* s_codes, int row, int chunk,
                                             int half) {
    codes_ = *reinterpret_cast<const uint4*>(
        s_codes + SwizzledOffset<kCodeRowBytes>(row, chunk * (kCodeBits / 4) + half));
  }

  /// Decodes eight 8-bit codes by table: random among 256 entries, so a warp's lookup takes about
  /// 3.5 wavefronts. One copy of the table per bank would take 1, but also 32 KB: then one block of
  /// four less fits on a multiprocessor, which costs more.
  __device__ __forceinline__ uint4 DecodeBytes(uint32_t low, uint32_t high, float scale) const {
    uint32_t pairs[4];
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      const uint32_t word = (q < 2 ? low : high) >> (q % 2 * 16);
      pairs[q] =
          Element::Pack(s_.codebook[word & 255u] * scale, s_.codebook[(word >> 8) & 255u] * scale);
    }
    return make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
  }

  static constexpr int Log2(int value) { return value <= 1 ? 0 : 1 + Log2(value / 2); }
  static constexpr int kColsLog2 = Log2(Slab::kCols);
  static constexpr int kRowsLog2 = Log2(Slab::kRows);

  const GemmMmaWeight& w_;
  Shared& s_;
  const int64_t first_p_;
  const int64_t N_;
  const int64_t K_;
  float offset_;
  float loaded_[Stage::kPerThread];
  uint32_t loaded_code_[Stage::kPerThread];
  NibbleTable table_;  // kept from one step of a task to the next, as the codes are
  uint4 codes_;
};

/// A dense weight of T: its bytes are already the tile.
template <typename Element, typename Tile>
class WeightSource<WeightFormat::kDense, Element, Tile> {
  using Slab = WeightSlab<Tile>;

 public:
  static constexpr int kBits = 0;
  static constexpr bool kDirect = true;
  static constexpr bool kGeneral = false;
  static constexpr int kLead = 0;
  static constexpr int kSteps = 4;

  struct Shared {};

  __device__ __forceinline__ WeightSource(const GemmMmaParams& p, Shared*, int64_t first_p)
      : w_(p.w), first_p_(first_p), N_(p.N), K_(p.K) {}
  __device__ __forceinline__ void Init(int) {}

  __device__ __forceinline__ void IssueTile(int slab, unsigned char* s_w) {
    CopySlab<Tile, 16>(w_.data, slab, first_p_, N_, K_, s_w);
  }
  __device__ __forceinline__ void LoadScales(int) {}
  __device__ __forceinline__ void StoreScales(int) {}
  __device__ __forceinline__ void Decode(int, unsigned char*, int) {}

 private:
  const GemmMmaWeight& w_;
  const int64_t first_p_;
  const int64_t N_;
  const int64_t K_;
};

/// Any weight: odd K (a row may start in a low nibble), blocks across row ends, any alignment, a
/// dense weight of another type. Each element is found by itself in global memory, through L1.
template <typename Element, typename Tile>
class WeightSource<WeightFormat::kGeneral, Element, Tile> {
  using Slab = WeightSlab<Tile>;

 public:
  static constexpr int kBits = 0;
  static constexpr bool kDirect = false;
  static constexpr bool kGeneral = true;
  static constexpr int kLead = 1;
  static constexpr int kSteps = 4;

  struct Shared {};

  __device__ __forceinline__ WeightSource(const GemmMmaParams& p, Shared*, int64_t first_p)
      : w_(p.w), first_p_(first_p), N_(p.N), K_(p.K) {}
  __device__ __forceinline__ void Init(int) {}
  __device__ __forceinline__ void Issue(int) {}
  __device__ __forceinline__ void LoadScales(int) {}
  __device__ __forceinline__ void StoreScales(int) {}

  __device__ __forceinline__ void Decode(int slab, unsigned char* s_w, int step) {
    constexpr int kPieces = Slab::kRowBytes / 16;
    constexpr int kPerStep = Slab::kRows * kPieces / kSteps;
    static_assert(kPerStep % Tile::kThreads == 0);
#pragma unroll 1
    for (int i = 0; i < kPerStep; i += Tile::kThreads) {
      const int at = step * kPerStep + i + static_cast<int>(threadIdx.x);
      const int row = at / kPieces;
      const int piece = at % kPieces;
      const int64_t n = Slab::FirstRow(slab, first_p_) + row;
      const int64_t k = Slab::FirstCol(slab, first_p_) + piece * 8;
      float value[8];
      LoadValues(value, n * K_ + k, n < N_ ? K_ - k : 0);
      *reinterpret_cast<uint4*>(s_w + SwizzledOffset<Slab::kRowBytes>(row, piece)) =
          make_uint4(Element::Pack(value[0], value[1]), Element::Pack(value[2], value[3]),
                     Element::Pack(value[4], value[5]), Element::Pack(value[6], value[7]));
    }
  }

 private:
  /// Elements [index, index + 8) of w, zero from `count` on, where the last is read again, so that
  /// all loads are in flight at once.
  __device__ __forceinline__ void LoadValues(float (&r_value)[8], int64_t index,
                                             int64_t count) const {
    if (w_.bits == 0) {
      LoadEight(r_value, w_.data, w_.dense_dtype, index, count, false);
      return;
    }
#pragma unroll
    for (int q = 0; q < 8; ++q) r_value[q] = 0.0f;
    if (count <= 0) return;
    const int last = count < 8 ? static_cast<int>(count) - 1 : 7;
    const uint8_t* g_codes = static_cast<const uint8_t*>(w_.data);
    const int per_byte_log2 = w_.bits == 4 ? 1 : 0;
    uint32_t code[8];
#pragma unroll
    for (int q = 0; q < 8; ++q) code[q] = g_codes[(index + min(q, last)) >> per_byte_log2];
    if (w_.bits == 4) {
#pragma unroll
      for (int q = 0; q < 8; ++q) {
        code[q] = ((index + q) & 1) == 0 ? code[q] >> 4 : code[q] & 15u;
      }
    }
    // A block has at least 32 elements, so eight neighbours are in at most two.
    const int64_t first_block = index >> w_.blocksize_log2;
    const float first_scale = ScaleOf(first_block);
    const float last_scale = ScaleOf((index + last) >> w_.blocksize_log2);
#pragma unroll
    for (int q = 0; q < 8; ++q) {
      const bool first = (index + q) >> w_.blocksize_log2 == first_block;
      if (q <= last) r_value[q] = w_.codebook[code[q]] * (first ? first_scale : last_scale);
    }
  }

  __device__ __forceinline__ float ScaleOf(int64_t block) const {
    if (w_.absmax_8bit == nullptr) return w_.absmax[block];
    return w_.absmax_codebook[w_.absmax_8bit[block]] *
               w_.nested_absmax[block / w_.nested_blocksize] +
           *w_.absmax_offset;
  }

  const GemmMmaWeight& w_;
  const int64_t first_p_;
  const int64_t N_;
  const int64_t K_;
};

}  // namespace lowrank::gpu
