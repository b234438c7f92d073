/// Attention backward: AttentionBackwardOp has the formulas.
///
/// Scores are computed again, a tile of keys with a block of queries at a time, and never stored.
///
/// Numerics   f32; pairs round p and ds to bf16 before their products. Sums of a tile, then of
///            tiles and blocks, in ascending order, heads of a group one after another
/// Tasks      (sequence, key head): dk and dv are sums of one task, dq of one block in it
/// Scratch    k and v of a key head once more, dk and dv in f32; a block of q, do and dq, a tile of
///            scores
#pragma once

#include "native/cpu/kernels/model/attention.h"

namespace lowrank::cpu::LOWRANK_ISA {

template <typename Policy>
struct AttentionBackwardPass {
  Run& run;
  const AttentionBackwardOp& op;
  const AttentionShape& shape = op.shape;
  const ScoreMap map{op.shape.scale, op.shape.softcap};
  const int64_t T = op.rows();
  const int64_t D = op.shape.head_dim;
  const int64_t padded = PaddedDim<Policy>(D);
  const int64_t units = padded / kUnitElems<Policy>;
  const int64_t dims = CeilDiv(D, kRows) * kRows;
  static constexpr int64_t kPer = kUnitElems<Policy>;
  static constexpr int64_t kRows = kProductRows<Policy>;
  static constexpr int64_t kTile = kKeyTile<Policy>;   // keys
  static constexpr int64_t kBlock = kKeyTile<Policy>;  // queries
  static constexpr int64_t kPanels = kBlock / kQueries;
  const int64_t rows = CeilDiv(T, kTile) * kTile;

  struct Memory {
    Unit* k;        // [rows][units]
    Unit* v;        // [rows][units]
    Unit* k_pairs;  // [rows / kPer][padded]
    float* dk;      // [rows][padded]
    float* dv;
    // Of a block of queries: panels [kQueries / units][...], and units of rows
    Unit* stage;  // [kQueries][padded]
    Unit* q;
    Unit* d_o;
    Unit* q_pairs;
    Unit* d_o_pairs;
    float* dq;     // panels [padded][kQueries]
    float* delta;  // D of the formula
    float* lse;    // log2 of the sums
    // Of a tile: [keys][queries]
    float* scores;
    float* dp;
    Unit* p;         // pairs along queries, or p in place of scores
    Unit* ds;        // the same, in place of dp
    Unit* ds_pairs;  // pairs along keys
  };

  Memory Cut() const {
    const int64_t kept = rows * units;
    const int64_t sums = rows * padded;
    const int64_t block = kBlock * units;
    const int64_t tile = kTile * kBlock;
    const int64_t halves = Policy::kPairs ? tile / 2 : 0;
    const int64_t sizes[] = {kept,
                             kept,
                             Policy::kPairs ? kept : 0,
                             sums,
                             sums,
                             kQueries * padded,
                             block,
                             block,
                             block,
                             block,
                             kBlock * padded,
                             kBlock,
                             kBlock,
                             tile,
                             tile,
                             halves,
                             halves,
                             halves};
    int64_t floats = 0;
    for (const int64_t size : sizes) floats += Pieces::Aligned(size);
    Pieces pieces{run.Get<float>(kCSlot, floats)};
    Memory memory = {};
    if (pieces.next == nullptr) return memory;
    float** const parts[] = {&memory.k,       &memory.v,         &memory.k_pairs, &memory.dk,
                             &memory.dv,      &memory.stage,     &memory.q,       &memory.d_o,
                             &memory.q_pairs, &memory.d_o_pairs, &memory.dq,      &memory.delta,
                             &memory.lse,     &memory.scores,    &memory.dp,      &memory.p,
                             &memory.ds,      &memory.ds_pairs};
    for (int64_t i = 0; i < 18; ++i) *parts[i] = pieces.Take(sizes[i]);
    if constexpr (!Policy::kPairs) {
      memory.k_pairs = memory.k;
      memory.p = memory.scores;
      memory.ds = memory.dp;
      memory.ds_pairs = memory.dp;
    }
    return memory;
  }

  /// A block of queries from row b0 on of one head.
  struct Block {
    int64_t b0;
    int64_t count;   // rows
    int64_t panels;  // with some
    Sight sight[kPanels];
    int64_t begin() const { return sight[0].begin; }
    int64_t end() const { return sight[panels - 1].end; }
  };

  void ReadBlock(const Sequence& sequence, int64_t head, const Memory& memory, Block* block) const {
    block->count = Min(kBlock, T - block->b0);
    block->panels = CeilDiv(block->count, kQueries);
    const int64_t M = op.q.matrix.rows;
    alignas(64) float row[kMostHeadDim];
    alignas(64) float other[kMostHeadDim];
    for (int64_t panel = 0; panel < block->panels; ++panel) {
      const int64_t t0 = block->b0 + panel * kQueries;
      const int64_t count = Min(kQueries, T - t0);
      block->sight[panel].Set(sequence, count, [&](int64_t i) { return t0 + i; });
      const auto place = [&](Unit* panels, Unit* pairs) {
        std::memset(memory.stage + count * units, 0,
                    static_cast<size_t>((kQueries - count) * units) * sizeof(Unit));
        TurnPanel(memory.stage, units, panels + panel * units * kQueries);
        PairRows<Policy>(memory.stage, kQueries, padded, pairs + panel * kQueries / kPer * padded);
      };
      for (int64_t i = 0; i < count; ++i) {
        ReadHead(op.q.matrix, sequence.index * T + t0 + i, op.q.first + head * D, D, padded, row);
        Turn(shape.rope, sequence.Position(t0 + i), false, row);
        RoundRow(op.q.matrix.dtype, padded, row);
        PlaceRow<Policy>(row, padded, memory.stage + i * units);
      }
      place(memory.q, memory.q_pairs);
      for (int64_t i = 0; i < kQueries; ++i) {
        const int64_t at = panel * kQueries + i;
        memory.delta[at] = 0;
        memory.lse[at] = 0;
        if (i >= count) continue;
        const int64_t m = sequence.index * T + t0 + i;
        ReadHead(op.o, m, head * D, D, padded, other);
        ReadHead(op.d_o, m, head * D, D, padded, row);
        VecF sum = {};
        for (int64_t d = 0; d < padded; d += kVL) sum += Load(row + d) * Load(other + d);
        for (int64_t l = 0; l < kVL; ++l) memory.delta[at] += sum[l];
        memory.lse[at] = static_cast<const float*>(op.lse.data)[head * M + m] * kLog2E;
        PlaceRow<Policy>(row, padded, memory.stage + i * units);
      }
      place(memory.d_o, memory.d_o_pairs);
    }
    std::memset(memory.dq, 0,
                static_cast<size_t>(block->panels * padded * kQueries) * sizeof(float));
  }

  /// p and ds of keys [begin, end) of a tile, of the panel whose first column is p0.
  template <bool kCapped>
  void Weigh(const Sight& sight, int64_t k0, int64_t begin, int64_t end, int64_t p0,
             const Memory& memory) const {
    const bool hides = sight.Hides(k0 + begin, k0 + end);
    for (int v = 0; v < kNV; ++v) {
      const int64_t col = p0 + v * kVL;
      const VecF lse = Load(memory.lse + col);
      const VecF delta = Load(memory.delta + col);
      for (int64_t r = begin; r < end; r += 2) {
        VecF p[2];
        VecF ds[2];
#pragma GCC unroll 2
        for (int64_t j = 0; j < 2; ++j) {
          const int64_t at = (r + j) * kBlock + col;
          const VecF x = map.Exponent<kCapped>(Load(memory.scores + at));
          p[j] = Exp2<kExpDegree<Policy>>(x - lse);
          ds[j] = p[j] * (Load(memory.dp + at) - delta);
          if constexpr (kCapped) {
            const VecF u = x * Splat(1.0f / map.cap);
            ds[j] *= Splat(1.0f) - u * u;
          }
          if (hides) {
            const VecI sees = sight.Sees(v, k0 + r + j);
            p[j] = sees ? p[j] : VecF{};
            ds[j] = sees ? ds[j] : VecF{};
          }
          Put(memory.p, at, p[j]);
          Put(memory.ds, at, ds[j]);
        }
        if constexpr (Policy::kPairs) {
          StoreU(memory.ds_pairs + r / 2 * kBlock + col, PairBF16(ds[0], ds[1]));
        }
      }
    }
  }

  /// kVL values of a row of a tile: in f32, or as the halves of pairs.
  LOWRANK_MEMBER_INLINE static void Put(Unit* rows, int64_t at, VecF value) {
    if constexpr (Policy::kPairs) {
      StoreNarrow(rows, DType::kBF16, at, value);
    } else {
      Store(rows + at, value);
    }
  }

  void Hide(int64_t begin, int64_t end, int64_t p0, const Memory& memory) const {
    for (int64_t r = begin; r < end; ++r) {
      for (int v = 0; v < kNV; ++v) {
        Put(memory.p, r * kBlock + p0 + v * kVL, VecF{});
        Put(memory.ds, r * kBlock + p0 + v * kVL, VecF{});
      }
    }
  }

  /// Of one panel of a block: scores, p, ds and what they add to dq; keys [s0, n) of a tile.
  void PanelOfTile(const Sight& sight, int64_t panel, int64_t k0, int64_t s0, int64_t n,
                   const Memory& memory, Products<Policy>& products) const {
    const int64_t p0 = panel * kQueries;
    const int64_t begin = Min(Max(Max(sight.begin - k0, 0) / kRows * kRows, s0), n);
    const int64_t end = Max(Min(CeilDiv(Max(sight.end - k0, 0), kRows) * kRows, n), begin);
    Hide(s0, begin, p0, memory);
    Hide(end, n, p0, memory);
    if (begin == end) return;
    for (int64_t r = begin; r < end; r += kRows) {
      const int64_t at = (k0 + r) * units;
      products.template Multiply<kNV, false, Sums::kSet>(memory.k + at, units,
                                                         memory.q + p0 * units, kQueries, units,
                                                         memory.scores + r * kBlock + p0, kBlock);
      products.template Multiply<kNV, false, Sums::kSet>(memory.v + at, units,
                                                         memory.d_o + p0 * units, kQueries, units,
                                                         memory.dp + r * kBlock + p0, kBlock);
    }
    if (map.cap == 0) {
      Weigh<false>(sight, k0, begin, end, p0, memory);
    } else {
      Weigh<true>(sight, k0, begin, end, p0, memory);
    }
    for (int64_t d = 0; d < dims; d += kRows) {
      products.template Multiply<kNV, true, Sums::kAdd>(
          memory.k_pairs + k0 / kPer * padded + PairedAt<Policy>(begin, d, padded),
          PairedPitch<Policy>(padded), memory.ds_pairs + begin / kPer * kBlock + p0, kBlock,
          (end - begin) / kPer, memory.dq + p0 * padded + d * kQueries, kQueries);
    }
  }

  /// dk and dv of keys [s0, n) of a tile, from all queries of a block.
  void KeyGrads(const Block& block, int64_t k0, int64_t s0, int64_t n, const Memory& memory,
                Products<Policy>& products) const {
    const int64_t count = block.panels * kQueries;
    for (int64_t r = s0; r < n; r += kRows) {
      // Rows before the key do not see it. A group of tiles begins at a multiple of 32 as r does.
      const int64_t from = Max(k0 + r - block.b0, 0) / kVL * kVL;
      if (from >= count) break;
      const int64_t a = (r * kBlock + from) / kPer;
      const int64_t b = from / kPer * padded;
      const int64_t depth = (count - from) / kPer;
      const auto add = [&](auto vectors, int64_t d) {
        constexpr int kVectors = decltype(vectors)::value;
        const int64_t out = (k0 + r) * padded + d;
        products.template Multiply<kVectors, false, Sums::kAdd>(memory.p + a, kBlock / kPer,
                                                                memory.d_o_pairs + b + d, padded,
                                                                depth, memory.dv + out, padded);
        products.template Multiply<kVectors, false, Sums::kAdd>(memory.ds + a, kBlock / kPer,
                                                                memory.q_pairs + b + d, padded,
                                                                depth, memory.dk + out, padded);
      };
      int64_t d = 0;
      for (; d + kNR <= padded; d += kNR) add(std::integral_constant<int, kNV>(), d);
      for (; d < padded; d += kVL) add(std::integral_constant<int, 1>(), d);
    }
  }

  void WriteQueries(const Sequence& sequence, int64_t head, const Block& block,
                    const Memory& memory) const {
    alignas(64) float factors[kQueries];
    for (float& factor : factors) factor = shape.scale;
    for (int64_t panel = 0; panel < block.panels; ++panel) {
      TurnBack(memory.dq + panel * padded * kQueries, factors, padded, memory.stage);
      const int64_t t0 = block.b0 + panel * kQueries;
      for (int64_t i = 0; i < Min(kQueries, T - t0); ++i) {
        float* row = memory.stage + i * padded;
        Turn(shape.rope, sequence.Position(t0 + i), true, row);
        WriteHead(op.dq, sequence.index * T + t0 + i, head, row);
      }
    }
  }

  void WriteHead(const HeadsView& out, int64_t row, int64_t head, const float* values) const {
    const TensorView& matrix = out.matrix;
    NarrowRun(matrix.data, matrix.dtype, row * matrix.cols + out.first + head * D, D, values);
  }

  void Head(const Sequence& sequence, int64_t head, const Memory& memory,
            Products<Policy>& products) const {
    Block block;
    for (block.b0 = 0; block.b0 < T; block.b0 += kBlock) {
      ReadBlock(sequence, head, memory, &block);
      for (int64_t k0 = block.begin() / kTile * kTile; k0 < block.end(); k0 += kTile) {
        if (run.Stopped()) return;
        const int64_t s0 = Max(block.begin() - k0, 0) / kRows * kRows;
        const int64_t n = CeilDiv(Min(kTile, block.end() - k0), kRows) * kRows;
        for (int64_t panel = 0; panel < block.panels; ++panel) {
          PanelOfTile(block.sight[panel], panel, k0, s0, n, memory, products);
        }
        KeyGrads(block, k0, s0, n, memory, products);
      }
      WriteQueries(sequence, head, block, memory);
    }
  }

  void KeyHead(int64_t b, int64_t g) const {
    const Memory memory = Cut();
    if (memory.k == nullptr) return;
    const Sequence sequence = {shape, b, T, 0};
    const KeySource keys = {op.k.matrix, op.v.matrix, op.k.first, op.v.first, b * T, &shape.rope};
    PackKeys<Policy>(keys, sequence, g, 0, T, memory.k, memory.v);
    if constexpr (Policy::kPairs) {
      for (int64_t k0 = 0; k0 < T; k0 += kTile) {
        const int64_t count = CeilDiv(Min(kTile, T - k0), kRows) * kRows;
        PairKeys<Policy>(memory.k + k0 * units, count, padded, memory.k_pairs + k0 * units);
      }
    }
    const auto bytes = static_cast<size_t>(rows * padded) * sizeof(float);
    std::memset(memory.dk, 0, bytes);
    std::memset(memory.dv, 0, bytes);
    Products<Policy> products;
    for (int64_t h = 0; h < shape.group(); ++h) {
      Head(sequence, g * shape.group() + h, memory, products);
    }
    products.End();
    if (run.Stopped()) return;
    for (int64_t t = 0; t < T; ++t) {
      float* dk = memory.dk + t * padded;
      for (int64_t d = 0; d < padded; d += kVL) Store(dk + d, Load(dk + d) * Splat(shape.scale));
      Turn(shape.rope, sequence.Position(t), true, dk);
      WriteHead(op.dk, b * T + t, g, dk);
      WriteHead(op.dv, b * T + t, g, memory.dv + t * padded);
    }
  }

  void All() const {
    if (op.q.matrix.rows == 0) return;
    const int64_t tasks = shape.sequences * shape.kv_heads;
    run.ForEach(tasks, tasks * shape.group() * T * T * D, [&](int64_t task) {
      if (!run.Stopped()) KeyHead(task / shape.kv_heads, task % shape.kv_heads);
    });
  }
};

LOWRANK_OP Outcome AttentionBackward(const AttentionBackwardOp& op, const RunContext& context) {
  return RunAttention<AttentionBackwardPass>(op, context);
}

}  // namespace lowrank::cpu::LOWRANK_ISA
