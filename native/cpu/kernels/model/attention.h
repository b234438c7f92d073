/// Attention forward: AttentionOp has the formula.
///
/// Operands   q, k, v columns of [M, cols] any dtype · rope [P, rot] f32 · lse [heads, M] f32
/// Lanes      rows t · group + h of a key head: the heads of its group share its keys
/// Numerics   scores, softmax and sums in f32; sums of a tile of keys, then of tiles, rescaled
/// where
///            the maximum grows. Pairs round p to bf16 before its product. Tiles begin at
///            multiples of their size, and what is hidden adds zeros: a row has the same bits in
///            any panel, and in the steps of a cache
/// Tasks      (sequence, key head, panel of rows), the longest first
/// Scratch    k and v of some sequences once more; a task has its panel, a tile of scores and o
#pragma once

#include "native/cpu/kernels/model/attention_tiles.h"
#include "native/host_device/attention_sink.h"

namespace lowrank::cpu::LOWRANK_ISA {

// Rows of sequences that are packed before the tasks of theirs run.
constexpr int64_t kPackedRows = 4096;

/// Where the keys and values of a sequence are: in the operands, or turned already in a cache.
struct KeySource {
  TensorView k, v;
  int64_t k_first, v_first;  // columns of key head 0
  int64_t row;               // the sequence's first row
  const TensorView* rope;    // null where keys are turned
};

LOWRANK_INLINE KeySource KeysOf(const AttentionOp& op, int64_t b, const TensorView* rope) {
  if (op.k_cache.present) return {op.k_cache, op.v_cache, 0, 0, b * op.capacity(), nullptr};
  return {op.k.matrix, op.v.matrix, op.k.first, op.v.first, b * op.rows(), rope};
}

/// Keys and values of rows [from, to) of key head g as units along rows, filled up with rows of
/// zeros to a multiple of kProductRows.
template <typename Policy>
LOWRANK_INLINE void PackKeys(const KeySource& keys, const Sequence& sequence, int64_t g,
                             int64_t from, int64_t to, Unit* k_rows, Unit* v_rows) {
  const int64_t D = sequence.shape.head_dim;
  const int64_t padded = PaddedDim<Policy>(D);
  const int64_t units = padded / kUnitElems<Policy>;
  alignas(64) float row[kMostHeadDim];
  for (int64_t i = from; i < to; ++i) {
    ReadHead(keys.k, keys.row + i, keys.k_first + g * D, D, padded, row);
    if (keys.rope != nullptr) {
      Turn(*keys.rope, sequence.Position(i), false, row);
      RoundRow(keys.k.dtype, padded, row);
    }
    PlaceRow<Policy>(row, padded, k_rows + (i - from) * units);
    ReadHead(keys.v, keys.row + i, keys.v_first + g * D, D, padded, row);
    PlaceRow<Policy>(row, padded, v_rows + (i - from) * units);
  }
  const int64_t count = to - from;
  const int64_t filled = CeilDiv(count, kProductRows<Policy>) * kProductRows<Policy>;
  const auto bytes = static_cast<size_t>((filled - count) * units) * sizeof(Unit);
  std::memset(k_rows + count * units, 0, bytes);
  std::memset(v_rows + count * units, 0, bytes);
}

/// The tasks of one op.
template <typename Policy>
struct AttentionForward {
  Run& run;
  const AttentionOp& op;
  const AttentionShape& shape = op.shape;
  const ScoreMap map{op.shape.scale, op.shape.softcap};
  const int64_t T = op.rows();
  const int64_t D = op.shape.head_dim;
  const int64_t padded = PaddedDim<Policy>(D);
  const int64_t units = padded / kUnitElems<Policy>;
  const int64_t dims = CeilDiv(D, kRows) * kRows;  // of padded ones, those that have sums
  const int64_t group = shape.group();
  const int64_t panels = CeilDiv(T * group, kQueries);
  static constexpr int64_t kTile = kKeyTile<Policy>;
  static constexpr int64_t kRows = kProductRows<Policy>;

  /// k and v of a tile, or of all keys of a head: [rows][units] each.
  struct Packed {
    const Unit* k;
    const Unit* v;
  };
  struct Memory {
    Unit* rows;     // of queries, then of o
    Unit* q;        // panel
    float* scores;  // [kTile][kQueries], then p in f32
    Unit* p;        // pairs of it
    float* o;       // [padded][kQueries]
    Unit* k;        // a tile, where there is but one panel
    Unit* v_rows;
    Unit* v;
  };

  Memory Cut(bool with_tile) const {
    const int64_t sizes[] = {kQueries * padded,
                             units * kQueries,
                             kTile * kQueries,
                             Policy::kPairs ? kTile / 2 * kQueries : 0,
                             padded * kQueries,
                             with_tile ? kTile * units : 0,
                             with_tile ? kTile * units : 0,
                             with_tile && Policy::kPairs ? kTile / 2 * padded : 0};
    int64_t floats = 0;
    for (const int64_t size : sizes) floats += Pieces::Aligned(size);
    Pieces pieces{run.Get<float>(kCSlot, floats)};
    Memory memory = {};
    if (pieces.next == nullptr) return memory;
    memory.rows = pieces.Take(sizes[0]);
    memory.q = pieces.Take(sizes[1]);
    memory.scores = pieces.Take(sizes[2]);
    memory.p = Policy::kPairs ? pieces.Take(sizes[3]) : memory.scores;
    memory.o = pieces.Take(sizes[4]);
    memory.k = pieces.Take(sizes[5]);
    memory.v_rows = pieces.Take(sizes[6]);
    memory.v = Policy::kPairs ? pieces.Take(sizes[7]) : memory.v_rows;
    return memory;
  }

  /// Rows r0 + i of key head g as the panel of queries.
  void ReadQueries(const Sequence& sequence, int64_t g, int64_t r0, int64_t count,
                   const Memory& memory) const {
    alignas(64) float row[kMostHeadDim];
    for (int64_t i = 0; i < count; ++i) {
      const int64_t t = (r0 + i) / group;
      const int64_t head = g * group + (r0 + i) % group;
      ReadHead(op.q.matrix, sequence.index * T + t, op.q.first + head * D, D, padded, row);
      Turn(shape.rope, sequence.Position(t), false, row);
      RoundRow(op.q.matrix.dtype, padded, row);
      PlaceRow<Policy>(row, padded, memory.rows + i * units);
    }
    std::memset(memory.rows + count * units, 0,
                static_cast<size_t>((kQueries - count) * units) * sizeof(Unit));
    TurnPanel(memory.rows, units, memory.q);
  }

  /// Scores [s0, n) of a tile to p; the largest so far and the sums follow.
  /// @param factors by which o so far is to be multiplied
  template <bool kCapped>
  void Softmax(const Sight& sight, int64_t k0, int64_t s0, int64_t n, const Memory& memory,
               float* most, float* sums, float* factors) const {
    const bool hides = sight.Hides(k0 + s0, k0 + n);
    const VecF hidden = Splat(-__builtin_inff());
    for (int v = 0; v < kNV; ++v) {
      float* s = memory.scores + v * kVL;
      const VecF before = Load(most + v * kVL);
      VecF top[2] = {before, before};
      for (int64_t r = s0; r < n; r += 2) {
#pragma GCC unroll 2
        for (int64_t j = 0; j < 2; ++j) {
          float* at = s + (r + j) * kQueries;
          VecF x = map.Exponent<kCapped>(Load(at));
          if (hides) x = sight.Sees(v, k0 + r + j) ? x : hidden;
          Store(at, x);
          top[j] = Larger(x, top[j]);
        }
      }
      const VecF now = Larger(top[0], top[1]);
      const VecF factor = Exp2<6>(before - now);
      VecF sum[2] = {};
      for (int64_t r = s0; r < n; r += 2) {
        VecF p[2];
#pragma GCC unroll 2
        for (int64_t j = 0; j < 2; ++j) {
          p[j] = Exp2<kExpDegree<Policy>>(Load(s + (r + j) * kQueries) - now);
          sum[j] += p[j];
          if constexpr (!Policy::kPairs) Store(s + (r + j) * kQueries, p[j]);
        }
        if constexpr (Policy::kPairs) {
          StoreU(memory.p + r / 2 * kQueries + v * kVL, PairBF16(p[0], p[1]));
        }
      }
      Store(most + v * kVL, now);
      Store(factors + v * kVL, factor);
      Store(sums + v * kVL, Load(sums + v * kVL) * factor + (sum[0] + sum[1]));
    }
  }

  /// o of lanes, [padded][kQueries], and what it is to be divided by.
  /// @param tile_of makes the packed keys [k0, end) of (k0, end)
  template <typename TileOf>
  void Sum(const Sight& sight, const Memory& memory, Products<Policy>& products, float* most,
           float* sums, const TileOf& tile_of) const {
    alignas(64) float factors[kQueries];
    for (int64_t i = 0; i < kQueries; ++i) {
      most[i] = kNoScore;
      sums[i] = 0;
    }
    std::memset(memory.o, 0, static_cast<size_t>(padded * kQueries) * sizeof(float));
    for (int64_t k0 = sight.begin / kTile * kTile; k0 < sight.end; k0 += kTile) {
      if (run.Stopped()) return;
      const int64_t end = Min(k0 + kTile, sight.end);
      const int64_t s0 = Max(sight.begin - k0, 0) / kRows * kRows;
      const int64_t n = CeilDiv(end - k0, kRows) * kRows;
      const Packed tile = tile_of(k0, end);
      for (int64_t r = s0; r < n; r += kRows) {
        products.template Multiply<kNV, false, Sums::kSet>(tile.k + r * units, units, memory.q,
                                                           kQueries, units,
                                                           memory.scores + r * kQueries, kQueries);
      }
      if (map.cap == 0) {
        Softmax<false>(sight, k0, s0, n, memory, most, sums, factors);
      } else {
        Softmax<true>(sight, k0, s0, n, memory, most, sums, factors);
      }
      const int64_t depth = (n - s0) / kUnitElems<Policy>;
      const Unit* p = memory.p + s0 / kUnitElems<Policy> * kQueries;
      for (int64_t d = 0; d < dims; d += kRows) {
        products.template Multiply<kNV, true, Sums::kScale>(
            tile.v + PairedAt<Policy>(s0, d, padded), PairedPitch<Policy>(padded), p, kQueries,
            depth, memory.o + d * kQueries, kQueries, factors);
      }
    }
  }

  /// @param packed k and v of the head, or null: then tiles are packed as they come
  void Panel(int64_t b, int64_t g, int64_t panel, const Packed* packed) const {
    const Memory memory = Cut(packed == nullptr);
    if (memory.rows == nullptr) return;
    const Sequence sequence = {shape, b, T, op.past};
    const int64_t r0 = panel * kQueries;
    const int64_t count = Min(kQueries, T * group - r0);
    ReadQueries(sequence, g, r0, count, memory);
    Sight sight;
    sight.Set(sequence, count, [&](int64_t i) { return (r0 + i) / group; });
    alignas(64) float most[kQueries];
    alignas(64) float sums[kQueries];
    Products<Policy> products;
    if (packed != nullptr) {
      Sum(sight, memory, products, most, sums, [&](int64_t k0, int64_t) {
        return Packed{packed->k + k0 * units, packed->v + k0 * units};
      });
    } else {
      const KeySource keys = KeysOf(op, b, &shape.rope);
      Sum(sight, memory, products, most, sums, [&](int64_t k0, int64_t end) {
        PackKeys<Policy>(keys, sequence, g, k0, end, memory.k, memory.v_rows);
        if constexpr (Policy::kPairs) {
          const int64_t filled = CeilDiv(end - k0, kRows) * kRows;
          PairKeys<Policy>(memory.v_rows, filled, padded, memory.v);
        }
        return Packed{memory.k, memory.v};
      });
    }
    products.End();
    if (run.Stopped()) return;
    WriteRows(sequence, g, r0, count, memory, most, sums);
  }

  void WriteRows(const Sequence& sequence, int64_t g, int64_t r0, int64_t count,
                 const Memory& memory, const float* most, const float* sums) const {
    alignas(64) float inverse[kQueries];
    double lse[kQueries];
    for (int64_t i = 0; i < kQueries; ++i) inverse[i] = i < count ? 1.0f / sums[i] : 0.0f;
    for (int64_t i = 0; i < count && (op.lse.present || op.sinks.present); ++i) {
      lse[i] =
          static_cast<double>(most[i]) * 0.6931471805599453 + LogOf(static_cast<double>(sums[i]));
      if (!op.sinks.present) continue;
      const float sink = static_cast<const float*>(op.sinks.data)[g * group + (r0 + i) % group];
      const double alone = lse[i];
      lse[i] = SumWithSink(alone, static_cast<double>(sink));
      inverse[i] = static_cast<float>(ExpOf(alone - lse[i]) / static_cast<double>(sums[i]));
    }
    TurnBack(memory.o, inverse, padded, memory.rows);
    const int64_t M = op.q.matrix.rows;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t m = sequence.index * T + (r0 + i) / group;
      const int64_t head = g * group + (r0 + i) % group;
      NarrowRun(op.o.data, op.o.dtype, m * op.o.cols + head * D, D, memory.rows + i * padded);
      if (op.lse.present) {
        static_cast<float*>(op.lse.data)[head * M + m] = static_cast<float>(lse[i]);
      }
    }
  }

  /// Sequences [b0, b0 + count): k and v of every key head once more, then their panels.
  void Sequences(int64_t b0, int64_t count) const {
    const int64_t keys = op.past + T;
    const int64_t rows = CeilDiv(keys, kTile) * kTile;
    const int64_t heads = count * shape.kv_heads;
    const int64_t work = count * shape.heads * T * keys * D;
    if (panels == 1) {
      run.ForEach(heads, work, [&](int64_t task) {
        if (!run.Stopped()) Panel(b0 + task / shape.kv_heads, task % shape.kv_heads, 0, nullptr);
      });
      return;
    }
    Unit* k = run.Get<Unit>(kPackedSlot, heads * rows * units);
    Unit* v = run.Get<Unit>(kDhSlot, heads * rows * units);
    if (k == nullptr || v == nullptr) return;
    const int64_t tiles = rows / kTile;
    run.ForEach(heads * tiles, heads * keys * D * 4, [&](int64_t task) {
      const int64_t head = task / tiles;
      const int64_t b = b0 + head / shape.kv_heads;
      const int64_t from = task % tiles * kTile;
      const int64_t to = Min(from + kTile, keys);
      const int64_t at = (head * rows + from) * units;
      const Sequence sequence = {shape, b, T, op.past};
      Unit* v_rows = v + at;
      if constexpr (Policy::kPairs) v_rows = run.Get<Unit>(kStageSlot, kTile * units);
      if (v_rows == nullptr || run.Stopped()) return;
      PackKeys<Policy>(KeysOf(op, b, &shape.rope), sequence, head % shape.kv_heads, from, to,
                       k + at, v_rows);
      if constexpr (Policy::kPairs) {
        PairKeys<Policy>(v_rows, CeilDiv(to - from, kRows) * kRows, padded, v + at);
      }
    });
    run.ForEach(heads * panels, work, [&](int64_t task) {
      if (run.Stopped()) return;
      const int64_t head = task % heads;
      const Packed packed = {k + head * rows * units, v + head * rows * units};
      Panel(b0 + head / shape.kv_heads, head % shape.kv_heads, panels - 1 - task / heads, &packed);
    });
  }

  /// New keys, turned, and values go behind those in the cache.
  void Append() const {
    const TensorView& k = op.k.matrix;
    const TensorView& v = op.v.matrix;
    const int64_t cols = shape.kv_heads * D;
    run.ForEach(k.rows, k.rows * cols, [&](int64_t m) {
      const int64_t t = m % T;
      const int64_t row = m / T * op.capacity() + op.past + t;
      alignas(64) float head[kMostHeadDim];
      for (int64_t g = 0; g < shape.kv_heads; ++g) {
        ReadHead(k, m, op.k.first + g * D, D, D, head);
        Turn(shape.rope, op.past + t, false, head);
        NarrowRun(op.k_cache.data, k.dtype, row * cols + g * D, D, head);
      }
      const size_t bytes = DTypeBytes(v.dtype);
      std::memcpy(
          static_cast<char*>(op.v_cache.data) + static_cast<size_t>(row * cols) * bytes,
          static_cast<const char*>(v.data) + static_cast<size_t>(m * v.cols + op.v.first) * bytes,
          static_cast<size_t>(cols) * bytes);
    });
  }

  void All() const {
    if (op.q.matrix.rows == 0) return;
    if (op.k_cache.present) Append();
    const int64_t at_once = Max(kPackedRows / (op.past + T), 1);
    for (int64_t b = 0; b < shape.sequences && !run.Stopped(); b += at_once) {
      Sequences(b, Min(at_once, shape.sequences - b));
    }
  }
};

/// Calls body with the policy of the operands.
template <typename Body>
LOWRANK_INLINE void WithAttentionPolicy(DType dtype, const Body& body) {
  if constexpr (kHasBF16Dot) {
    if (dtype == DType::kBF16) return body(BF16Policy{});
  }
  body(F32Policy{});
}

/// One pass of attention, Pass<Policy>{run, op}.All(), if the documents may be read.
template <template <typename> class Pass, typename Op>
LOWRANK_INLINE Outcome RunAttention(const Op& op, const RunContext& context) {
  Run run(context);
  const int64_t bad = FirstBadDocument(op.shape.documents, op.shape.sequences, op.rows());
  if (bad >= 0) return {Code::kValue, bad};
  WithAttentionPolicy(op.q.matrix.dtype, [&](auto policy) {
    const Pass<decltype(policy)> pass = {run, op};
    pass.All();
  });
  return run.Result();
}

LOWRANK_OP Outcome Attention(const AttentionOp& op, const RunContext& context) {
  return RunAttention<AttentionForward>(op, context);
}

}  // namespace lowrank::cpu::LOWRANK_ISA
