/// Blocked products in the BLIS manner: tasks over blocks of columns (and, if there are few, of row
/// panels). Inside a task, for each kKC of the summation index, the block of B is packed (and a
/// packed weight decoded) once into this thread's scratch, and all row panels pass over it.
///
/// Scratch     B block kNC · kKC · 4 = 256 KiB, two if the next is decoded in parallel with tiles,
///             C tile rows · kNC · 4, all per thread
/// Numerics    f32 accumulators over kKC, added in order to the f32 C tile; the bits of an element
///             depend only on the depth of the sum, not on M, N, its position, or the threads
#pragma once

#include "native/cpu/kernels/amx/amx_rows.h"
#include "native/cpu/kernels/isa/base_set.h"
#include "native/cpu/kernels/pack/lane_pack.h"
#include "native/cpu/kernels/tile/last_steps.h"
#include "native/cpu/route.h"

namespace lowrank::cpu::LOWRANK_ISA {

// Scratch slots. The first three and those from kGroupSlot on belong to the thread that runs the
// op, the others to each task.
enum Slot {
  kPackedSlot,
  kDhSlot,
  kShrinkSlot,
  kBSlot,
  kCSlot,
  kAdapterSlot,
  kASlot,
  kStageSlot,
  kGroupSlot,
  kFactorSlot,
  kNormSlot,
  kRoundedSlot,
  kGateSlot
};
static_assert(kGateSlot < Scratch::kSlots);

// Packed A of one chunk of rows: small enough to leave space in a 32 MiB L3.
constexpr int64_t kChunkBytes = 9 << 20;
// Rows per chunk. A weight is decoded once per chunk, so its cost falls below 2 % of the products;
// the C tile of a task is then 512 · kNC · 4 = 512 KiB.
constexpr int64_t kChunkRows = 512;
// With fewer multiply-adds than this the calling thread works alone: waking the pool costs about 5
// us.
constexpr int64_t kSerialWork = 100000;
// Rows of A up to which the next block of B is decoded in parallel with tiles. With more, decoding
// is under 3 % of the products, and a second block takes the space of the sums in L2. Not for f32,
// whose blocks are twice as large: no difference at 64 rows, 10 % slower at 16.
constexpr int64_t kBesideRows = 256;
// Tasks per thread, to balance uneven ones.
constexpr int64_t kTasksPerThread = 4;
// Each thread's last block of columns is cut into this many tasks. Otherwise a thread whose core is
// slower by a few percent (a hyper-threading sibling, a late start) makes the others wait for up to
// a whole block, a sixteenth of 4,096 columns. Cutting all blocks would read A more often.
constexpr int64_t kTailParts = 4;
// Rows from which granules are cut this way, since a part may be one granule wide: with fewer rows,
// w comes from memory, and only 32 bytes of a row are read there at a time.
constexpr int64_t kTailRows = 64;

/// Data that the tasks of one op share.
struct Run {
  const RunContext& context;
  int failure = 0;  // a Code; 0 is kOk

  explicit Run(const RunContext& c) : context(c) {}
  void Fail(Code code) { __atomic_store_n(&failure, static_cast<int>(code), __ATOMIC_RELAXED); }
  bool Stopped() {
    if (context.cancelled()) Fail(Code::kCancelled);
    return __atomic_load_n(&failure, __ATOMIC_RELAXED) != 0;
  }
  Outcome Result() const { return {static_cast<Code>(failure), 0}; }
  template <typename T>
  T* Get(Slot slot, int64_t elems) {
    void* data = Scratch::OfThisThread().Get(slot, static_cast<size_t>(Max(elems, 1)) * sizeof(T));
    if (data == nullptr) Fail(Code::kOom);
    return static_cast<T*>(data);
  }
  /// Calls body(task) for each task; `work` counts multiply-adds or elements of about that cost.
  template <typename Body>
  void ForEach(int64_t tasks, int64_t work, const Body& body) {
    if (work < kSerialWork) {
      for (int64_t task = 0; task < tasks; ++task) body(task);
    } else {
      context.pool->ParallelFor(tasks, body);
    }
  }
};

/// The panels of rows and columns that a task owns.
struct Grid {
  RowPanels rows;
  int64_t cols;
  int64_t col_panels;
  int64_t row_blocks;
  int64_t col_blocks;
  int64_t panel_cols = kNR;
  /// The number of last blocks of columns that are cut into parts.
  int64_t tail_blocks = 0;
  int64_t tail_parts = 1;

  int64_t tasks() const { return row_blocks * (col_blocks + tail_blocks * (tail_parts - 1)); }
  /// The first panel of a block of columns, counting the tail blocks by their parts.
  int64_t ColumnPanel(int64_t block) const {
    const int64_t whole = col_blocks - tail_blocks;
    if (block <= whole) return block * col_panels / col_blocks;
    const int64_t tail = whole * col_panels / col_blocks;
    return tail + (block - whole) * (col_panels - tail) / (tail_blocks * tail_parts);
  }
};

struct Block {
  int64_t panel0, panel1;  // row panels
  int64_t m0, m1;          // rows
  int64_t n0, n1;          // columns
  int64_t pitch = 0;       // of the sums of a block, if this is a part of one
  /// A line more than a multiple of vectors: rows a power of two apart would share a few sets of
  /// L1.
  int64_t ldc() const { return pitch != 0 ? pitch : CeilDiv(n1 - n0, kVL) * kVL + 16; }
  int64_t c_elems() const { return (m1 - m0) * ldc(); }
};

/// Blocks of columns start at multiples of panel_cols and have at most `most_cols`.
LOWRANK_INLINE Grid PlanGrid(int64_t rows, int64_t cols, int threads, int64_t panel_cols = kNR,
                             int64_t most_cols = kNC, int64_t tasks_per_thread = kTasksPerThread) {
  Grid grid = {SplitRows(rows), cols, CeilDiv(cols, panel_cols), 1, 1, panel_cols};
  const int64_t wanted = threads == 1 ? 1 : threads * tasks_per_thread;
  grid.col_blocks =
      Max(CeilDiv(grid.col_panels, most_cols / panel_cols), Min(wanted, grid.col_panels));
  if (grid.col_blocks < wanted && grid.col_blocks > 0) {
    // Each block of rows packs B again, which pays from four panels on.
    grid.row_blocks = Max(Min(CeilDiv(wanted, grid.col_blocks), grid.rows.count / 4), 1);
  }
  const bool narrow = panel_cols == kNR || rows >= kTailRows;
  if (threads > 1 && tasks_per_thread > 1 && narrow && cols > 0) {
    grid.tail_blocks = Min(threads, grid.col_blocks);
    grid.tail_parts = Max(Min(kTailParts, grid.col_panels / grid.col_blocks), 1);
  }
  return grid;
}

LOWRANK_INLINE Block BlockOf(const Grid& grid, int64_t task) {
  const int64_t row_block = task % grid.row_blocks;
  const int64_t col_block = task / grid.row_blocks;
  Block block;
  block.panel0 = row_block * grid.rows.count / grid.row_blocks;
  block.panel1 = (row_block + 1) * grid.rows.count / grid.row_blocks;
  block.m0 = grid.rows.Start(block.panel0);
  block.m1 = grid.rows.Start(block.panel1);
  block.n0 = grid.ColumnPanel(col_block) * grid.panel_cols;
  block.n1 = Min(grid.ColumnPanel(col_block + 1) * grid.panel_cols, grid.cols);
  return block;
}

/// Calls body(part, its sums) for kNC columns of a block at a time, which a product takes at once.
template <typename Body>
LOWRANK_INLINE void EachPart(const Block& block, float* c, const Body& body) {
  for (int64_t n0 = block.n0; n0 < block.n1; n0 += kNC) {
    Block part = block;
    part.n0 = n0;
    part.n1 = Min(n0 + kNC, block.n1);
    part.pitch = block.ldc();
    body(part, c + n0 - block.n0);
  }
}

/// Adds them to the whole block.
LOWRANK_INLINE void AddLastSteps(const Grid& grid, const Block& block, const LastSteps& last,
                                 float* c) {
  if (last.depth == 0) return;
  grid.rows.Each(block.panel0, block.panel1, [&](int64_t, int64_t m, int mr) {
    for (int64_t n = block.n0; n < block.n1; n += kNR) {
      last.Add(m - block.m0, mr, n - block.n0, PanelWidth(n, block.n1),
               c + (m - block.m0) * block.ldc() + (n - block.n0), block.ldc());
    }
  });
}

/// c [m1 - m0, n1 - n0] (+)= A · B over `depth`, and the last steps.
///
///   pack_a(k0, kc)            the packed row panels of this block of the summation index,
///                             from row block.m0 on
///   pack_b(k0, kc, n0, n1, b) panels of columns; or, if it has a Decoder for this weight,
///                             decoded a piece at a time in parallel with the tiles of the previous
///                             block
template <typename Policy, typename PackAFn, typename PackBFn>
static void Accumulate(Run& run, const Grid& grid, const Block& block, int64_t depth,
                       const PackAFn& pack_a, const PackBFn& pack_b, float* c, bool first,
                       const LastSteps& last = {}) {
  const int64_t ldc = block.ldc();
  if (depth == 0 && first) std::memset(c, 0, static_cast<size_t>(block.c_elems()) * 4);
  if (depth == 0) {
    AddLastSteps(grid, block, last, c);
    return;
  }
  const int64_t col_panels = CeilDiv(block.n1 - block.n0, kNR);
  const int64_t b_units = col_panels * PanelStride(PanelUnits<Policy>(Min(depth, kDepth<Policy>)));
  using Decoder = typename PackBFn::Decoder;
  constexpr bool kDecodes = !Policy::kTiles && !std::is_same_v<Decoder, NoDecoder>;
  bool beside = false;
  if constexpr (kDecodes) {
    beside =
        depth > kDepth<Policy> && pack_b.DecodesBeside(block.m1 - block.m0, block.n1 - block.n0);
  }
  Unit* b = run.Get<Unit>(kBSlot, beside ? 2 * b_units : b_units);
  if (b == nullptr) return;
  Unit* other = b + b_units;  // target for decoding the next block, if that happens
  for (int64_t k0 = 0; k0 < depth; k0 += kDepth<Policy>) {
    if (run.Stopped()) return;
    const int64_t kc = Min(kDepth<Policy>, depth - k0);
    const int64_t ku = Policy::Units(kc);
    const int64_t panel_stride = PanelStride(PanelUnits<Policy>(kc));
    const Unit* a = pack_a(k0, kc);
    if (a == nullptr) return;
    const int64_t next_kc = Min(kDepth<Policy>, depth - k0 - kc);
    if constexpr (Policy::kTiles) {
      pack_b(k0, kc, block.n0, block.n1, b);
      const int64_t rows = block.m1 - block.m0;
      const int64_t steps = CeilDiv(rows, kStepRows) * col_panels;
      int64_t part = 0;
      TileSession session;
      for (int64_t m = 0; m < rows; m += kStepRows) {
        for (int64_t n = 0; n < block.n1 - block.n0; n += kNR) {
          if (next_kc > 0) pack_b.Ask(k0 + kc, next_kc, block.n0, block.n1, part++, steps);
          MultiplyPanels(session, a + m * ku, Min(kStepRows, rows - m), ku,
                         b + n / kNR * panel_stride, PanelWidth(n, block.n1 - block.n0),
                         c + m * ldc + n, ldc, first && k0 == 0);
        }
      }
      session.End();
      continue;
    }
    const int64_t tiles = (block.panel1 - block.panel0) * col_panels;
    // A panel of columns that is used by one panel of rows stays in L1 until then.
    const bool by_panels = PackBFn::kByPanels && block.panel1 - block.panel0 == 1;
    const int64_t strip = by_panels ? kNR : block.n1 - block.n0;
    Decoder decoder;
    int64_t every = 0;  // steps
    if constexpr (kDecodes) {
      if (beside && next_kc > 0) {
        decoder = pack_b.Decoding(k0 + kc, next_kc, block.n0, block.n1, other);
        every = Max(tiles * ku / decoder.pieces(), 1);
      }
    }
    for (int64_t n0 = block.n0; n0 < block.n1; n0 += strip) {
      const int64_t n1 = Min(n0 + strip, block.n1);
      if (k0 == 0 || !beside) pack_b(k0, kc, n0, n1, b);
      grid.rows.Each(block.panel0, block.panel1, [&](int64_t panel, int64_t m, int mr) {
        const TileFn full = PickTile<Policy>(mr, kNR);
        const Unit* a_panel = a + (m - block.m0) * ku;
        float* c_row = c + (m - block.m0) * ldc;
        const Unit* b_panel = b;
        // Lines of the next panel to prefetch with each tile: they come from L3 or beyond.
        const bool asks = !kAsksInTile && panel + 1 < block.panel1;
        const int64_t next_lines = asks ? CeilDiv(mr * ku * 4, 64 * col_panels) : 0;
        const Unit* next = a_panel + mr * ku;
        int64_t part = (panel - block.panel0) * col_panels + (n0 - block.n0) / kNR;
        for (int64_t n = n0; n < n1; n += kNR, b_panel += panel_stride) {
          if (next_kc > 0 && every == 0) {
            pack_b.Ask(k0 + kc, next_kc, block.n0, block.n1, part++, tiles);
          }
          const int64_t nr = PanelWidth(n, block.n1);
          for (int64_t i = 0; i < next_lines; ++i, next += 16) __builtin_prefetch(next, 0, 2);
          float* to = c_row + (n - block.n0);
          if constexpr (kDecodes) {
            if (every != 0) {
              PickDecodingTile<Policy, kMR, Decoder>(mr)(&decoder, every, {ku}, a_panel, b_panel,
                                                         to, ldc, first && k0 == 0);
              continue;
            }
          }
          const TileFn tile = nr == kNR ? full : PickTile<Policy>(mr, nr);
          tile({ku}, a_panel, b_panel, to, ldc, first && k0 == 0);
          if (next_kc > 0) continue;
          last.Add(m - block.m0, mr, n - block.n0, nr, to, ldc);
        }
      });
    }
    if constexpr (kDecodes) {
      if (!beside) continue;
      decoder.Finish();
      Unit* decoded = other;
      other = b;
      b = decoded;
    }
  }
  if (Policy::kTiles) AddLastSteps(grid, block, last, c);
}

/// Row panels [panel0, panel1) of a block of the summation index, packed into this task's scratch.
template <typename PackPanel>
LOWRANK_INLINE const Unit* PackHere(Run& run, const Grid& grid, const Block& block, int64_t ku,
                                    const PackPanel& pack) {
  Unit* a = run.Get<Unit>(kASlot, (block.m1 - block.m0) * ku);
  if (a == nullptr) return nullptr;
  grid.rows.Each(block.panel0, block.panel1,
                 [&](int64_t, int64_t m, int mr) { pack(m, mr, a + (m - block.m0) * ku); });
  return a;
}

/// Are rows of x the columns of the matrix unit?
LOWRANK_INLINE bool ByColumns(Route route) {
  return route == Route::kTiles || route == Route::kCodeTiles;
}

/// The packed rows of one chunk, for the whole summation index.
///
///   natural order   one block of it after another, each with its row panels one after another
///   by lanes        one row panel after another, each with its blocks (lanes) one after another
///   for row_dot.h   one pass after another
///   columns         for a matrix unit: amx_rows.h
struct PackedChunk {
  Unit* data = nullptr;
  int64_t rows = 0;
  SumOrder order;
  Route route = Route::kPanels;  // the route of the products for which it is packed
  RowPanels panels = {0, 1};

  /// The position of rows from m on in the block at k0, where m is the first of a panel of mr rows.
  template <typename Policy>
  Unit* At(int64_t k0, int64_t m, int64_t mr) const {
    if (order.by_lanes) return data + m * Policy::Units(order.depth) + mr * Policy::Units(k0);
    const int64_t length = Min(kDepth<Policy>, order.depth - k0);
    return data + rows * Policy::Units(k0) + m * Policy::Units(length);
  }
};

template <typename Policy>
LOWRANK_INLINE int64_t ChunkRows(int64_t rows, int64_t depth) {
  const int64_t row_bytes = Max(Policy::Units(depth), 1) * static_cast<int64_t>(sizeof(Unit));
  const int64_t limit = Max(Min(kChunkRows, kChunkBytes / row_bytes), 4 * kMR);
  return CeilDiv(rows, Max(CeilDiv(rows, limit), 1));
}

/// Packs panels [panel0, panel1) of rows that start at m0 of `a`.
template <typename Policy>
LOWRANK_INLINE void PackChunkPanels(Run& run, const RowSource& a, int64_t m0, int64_t panel0,
                                    int64_t panel1, const PackedChunk& chunk) {
  const int64_t depth = chunk.order.depth;
  const bool lanes = chunk.order.by_lanes;
  char* stage = nullptr;
  const bool dots = chunk.route == Route::kLaneDots;
  if (lanes && !dots) {
    stage = run.Get<char>(kStageSlot, kMR * kSpan * static_cast<int64_t>(sizeof(Unit)));
    if (stage == nullptr) return;
  }
  chunk.panels.Each(panel0, panel1, [&](int64_t, int64_t m, int mr) {
    if constexpr (Policy::kTiles) {
      if (ByColumns(chunk.route)) {
        PackTileColumns(a, m0 + m, Min(mr, chunk.rows - m), chunk.order.by_lanes,
                        TileWidth(chunk.rows), chunk.data + m * TileRowUnits(depth));
        return;
      }
    }
    if (dots) {
      PackDots<Policy>(a, m0 + m, mr, chunk.data + m * Policy::Units(depth));
      return;
    }
    for (int64_t k0 = 0; k0 < depth; k0 += lanes ? kSpan : kKC) {
      if (lanes) {
        const int64_t length = chunk.order.Length(k0);
        PackSpanA<Policy>(a, m0 + m, mr, k0, length * kVL, stage,
                          [&](int l) { return chunk.At<Policy>(k0 + l * length, m, mr); });
      } else {
        PackA<Policy>(a, m0 + m, mr, k0, chunk.order.Length(k0), chunk.At<Policy>(k0, m, mr));
      }
    }
  });
}

/// The rows of `a`, dense and possibly gated, as the A operand of a task.
template <typename Policy>
struct RowsOf {
  Run& run;
  const Grid& grid;
  const Block& block;
  const RowSource& a;
  int64_t m0;  // row of `a` that is row 0 of the grid

  const Unit* operator()(int64_t k0, int64_t kc) const {
    return PackHere(run, grid, block, Policy::Units(kc), [&](int64_t m, int mr, Unit* out) {
      PackA<Policy>(a, m0 + m, mr, k0, kc, out);
    });
  }
};

template <typename Policy>
struct ChunkOf {
  const PackedChunk& chunk;
  const Block& block;
  const Unit* operator()(int64_t k0, int64_t) const { return chunk.At<Policy>(k0, block.m0, 0); }
};

template <typename Policy>
struct TransposedB {
  using Decoder = NoDecoder;
  static constexpr bool kByPanels = true;  // whole pieces of rows, so panel by panel is as fast
  const RowSource& b;
  void operator()(int64_t k0, int64_t kc, int64_t n0, int64_t n1, Unit* out) const {
    PackBTransposed<Policy>(b, k0, kc, n0, n1, out);
  }
  /// Prefetches part of what a block will read, with the tiles of the previous block. Packed
  /// weights, a sixth of the bytes or less, are prefetched while they are decoded.
  LOWRANK_MEMBER_INLINE void Ask(int64_t k0, int64_t kc, int64_t n0, int64_t n1, int64_t part,
                                 int64_t parts) const {
    if (b.dense == nullptr) return;
    const int64_t end = n0 + (part + 1) * (n1 - n0) / parts;
    for (int64_t n = n0 + part * (n1 - n0) / parts; n < end; ++n) PrefetchRow(b, n, k0, kc);
  }
};

template <typename Policy>
struct DirectB {
  using Decoder = std::conditional_t<Policy::kPairs, GranulePanels<true>, NoDecoder>;
  bool DecodesBeside(int64_t rows, int64_t) const {
    return rows <= kBesideRows && WholeGranules(b);
  }
  Decoder Decoding(int64_t k0, int64_t kc, int64_t n0, int64_t n1, Unit* out) const {
    return Decoder(b, k0, kc, n0, n1 - n0, out);
  }
  static constexpr bool kByPanels = false;  // a panel would use 16 bytes of each row
  const RowSource& b;
  void operator()(int64_t k0, int64_t kc, int64_t n0, int64_t n1, Unit* out) const {
    PackBDirect<Policy>(b, k0, kc, n0, n1, out);
  }
  LOWRANK_MEMBER_INLINE void Ask(int64_t k0, int64_t kc, int64_t n0, int64_t n1, int64_t part,
                                 int64_t parts) const {
    if (b.dense == nullptr) return;
    const int64_t end = k0 + (part + 1) * kc / parts;
    for (int64_t k = k0 + part * kc / parts; k < end; ++k) PrefetchRow(b, k, n0, n1 - n0);
  }
};

/// out[row0 + m][n] = c, plus what `out` holds if requested, rounded once.
LOWRANK_INLINE void StoreTile(const Block& block, float* c, const TensorView& out, int64_t row0,
                              bool accumulate) {
  const int64_t cols = block.n1 - block.n0;
  for (int64_t m = block.m0; m < block.m1; ++m) {
    float* row = c + (m - block.m0) * block.ldc();
    const int64_t begin = (row0 + m) * out.cols + block.n0;
    if (accumulate) {
      int64_t i = 0;
      for (; i + kVL <= cols; i += kVL) {
        Store(row + i, LoadWide(out.data, out.dtype, begin + i) + Load(row + i));
      }
      for (; i < cols; ++i) row[i] = ScalarWiden(out.data, out.dtype, begin + i) + row[i];
    }
    NarrowRun(out.data, out.dtype, begin, cols, row);
  }
}

LOWRANK_INLINE void StoreGrad(const TensorView& out, int64_t index, float value, bool accumulate) {
  if (accumulate) value += ScalarWiden(out.data, out.dtype, index);
  ScalarNarrow(out.data, out.dtype, index, value);
}

/// `count` <= kVL elements from `begin` on.
LOWRANK_INLINE void StoreGrads(const TensorView& out, int64_t begin, int64_t count, VecF values,
                               bool accumulate) {
  if (count == kVL) {
    if (accumulate) values = LoadWide(out.data, out.dtype, begin) + values;
    StoreNarrow(out.data, out.dtype, begin, values);
    return;
  }
  for (int64_t l = 0; l < count; ++l) StoreGrad(out, begin + l, values[l], accumulate);
}

}  // namespace lowrank::cpu::LOWRANK_ISA
