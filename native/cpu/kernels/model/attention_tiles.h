/// What the passes of attention share: rows of heads, turned and packed; products with 2 · kVL
/// queries; which keys a query sees.
///
/// Lanes are queries. Scores are kept as sᵀ [keys][queries], so that maxima, sums and masks of a
/// query stay in its lane: nothing is summed across lanes, and the bits of a query do not depend on
/// its neighbours. Operands are in units (pack.h): one f32, or two bf16 along the summed index.
///
/// A matrix unit (amx_tile.h) takes 32 rows and 32 queries at once. Its groups of the summed index
/// begin at multiples of their size, whatever part of a tile of keys a panel sees. What is summed
/// over keys is turned when it is packed, since rows of the unit's first operand run along the
/// summed index.
#pragma once

#include "native/core/ops/attention_ops.h"
#include "native/cpu/kernels/amx/amx_tile.h"
#include "native/cpu/kernels/model/softmax.h"
#include "native/cpu/kernels/tile/gemm.h"

namespace lowrank::cpu::LOWRANK_ISA {

// Queries of a panel.
constexpr int64_t kQueries = kNR;
// Does the matrix unit multiply?
template <typename Policy>
constexpr bool kOnTiles = kHasTiles && Policy::kPairs;
// Rows of a product: with kNV vectors of queries these fill the registers, or the unit's tiles.
template <typename Policy>
constexpr int64_t kProductRows = kOnTiles<Policy>        ? kStepRows
                                 : kVL == 16 || kMR >= 8 ? 8
                                                         : 4;
// Columns of heads are filled up with zeros to a multiple of it, for transposes of vectors.
template <typename Policy>
constexpr int64_t kUnitElems = Policy::kPairs ? 2 : 1;
// Keys of a tile, and queries of a block in the backward pass: a level of the sums.
template <typename Policy>
constexpr int64_t kKeyTile = Policy::kPairs ? 128 : 64;
// A term of 16 bits forgives a shorter polynomial.
template <typename Policy>
constexpr int kExpDegree = Policy::kPairs ? 4 : 6;

template <typename Policy>
LOWRANK_INLINE int64_t PaddedDim(int64_t head_dim) {
  return CeilDiv(head_dim, kVL * kUnitElems<Policy>) * kVL * kUnitElems<Policy>;
}

/// How the sums of a product meet what is there.
enum class Sums { kSet, kAdd, kScale };

/// The products of one task: d [kProductRows][kVectors · kVL] = Σₖ a[r, k] · b[k], set, added to d,
/// or to d · factors; a[r, k] is a[r · lda + k], or a[k · lda + r] where kTurned.
template <typename Policy, bool kTiles = kOnTiles<Policy>, typename Session = TileSession>
class Products {
 public:
  template <int kVectors, bool kTurned, Sums kSums>
  static __attribute__((noinline)) void Multiply(const Unit* a, int64_t lda, const Unit* b,
                                                 int64_t ldb, int64_t depth, float* d, int64_t ldd,
                                                 const float* factors = nullptr) {
    constexpr int64_t kRows = kProductRows<Policy>;
    VecF acc[kRows][kVectors] = {};
    for (int64_t k = 0; k < depth; ++k) {
      VecF cols[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) cols[v] = Load(b + k * ldb + v * kVL);
#pragma GCC unroll 16
      for (int64_t r = 0; r < kRows; ++r) {
        const Unit row = kTurned ? a[k * lda + r] : a[r * lda + k];
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) acc[r][v] = Policy::Step(acc[r][v], row, cols[v]);
      }
    }
#pragma GCC unroll 16
    for (int64_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        float* out = d + r * ldd + v * kVL;
        VecF sum = acc[r][v];
        if constexpr (kSums == Sums::kAdd) sum += Load(out);
        if constexpr (kSums == Sums::kScale) sum = Fma(Load(out), Load(factors + v * kVL), sum);
        Store(out, sum);
      }
    }
  }
  void End() {}
};

/// On the matrix unit; a is never turned. What is added to stays in the tiles.
template <typename Policy, typename Session>
class Products<Policy, true, Session> {
 public:
  template <int kVectors, bool kTurned, Sums kSums>
  LOWRANK_MEMBER_INLINE void Multiply(const Unit* a, int64_t lda, const Unit* b, int64_t ldb,
                                      int64_t depth, float* d, int64_t ldd,
                                      const float* factors = nullptr) {
    session_.Shape(kStepRows, kVectors * kVL);
    if constexpr (kSums == Sums::kAdd) {
      session_.Load(d, ldd);
    } else {
      session_.Zero();
    }
    session_.Add({a, lda, kTileRows * lda, kTileUnits}, {b, ldb, kVL, kTileUnits * ldb},
                 depth / kTileUnits);
    if constexpr (kSums != Sums::kScale) {
      session_.Store(d, ldd);
      return;
    }
    session_.Store(sums_, kStepRows);
    for (int64_t r = 0; r < kStepRows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        float* out = d + r * ldd + v * kVL;
        Store(out, Fma(Load(out), Load(factors + v * kVL), Load(sums_ + r * kStepRows + v * kVL)));
      }
    }
  }
  void End() { session_.End(); }

 private:
  Session session_;
  alignas(64) float sums_[kStepRows * kStepRows] = {};
};

/// Turns dimensions i and i + rot / 2 of a row by the angle of a position, or back.
LOWRANK_INLINE void Turn(const TensorView& rope, int64_t position, bool back, float* row) {
  if (!rope.present) return;
  const int64_t half = rope.cols / 2;
  const float* cos = static_cast<const float*>(rope.data) + position * rope.cols;
  const float* sin = cos + half;
  float* other = row + half;
  const float sign = back ? -1.0f : 1.0f;
  int64_t i = 0;
  for (; i + kVL <= half; i += kVL) {
    const VecF a = Load(row + i);
    const VecF b = Load(other + i);
    const VecF c = Load(cos + i);
    const VecF s = Load(sin + i) * Splat(sign);
    Store(row + i, a * c - b * s);
    Store(other + i, b * c + a * s);
  }
  for (; i < half; ++i) {
    const float a = row[i];
    const float b = other[i];
    const float s = sin[i] * sign;
    row[i] = a * cos[i] - b * s;
    other[i] = b * cos[i] + a * s;
  }
}

/// One sequence: which keys its rows see, and their positions. Rows count from the first in a
/// cache.
struct Sequence {
  const AttentionShape& shape;
  int64_t index;  // b
  int64_t rows;   // T
  int64_t past;

  int64_t Begin(int64_t t) const {
    return shape.documents.present ? shape.documents.data[index * rows + t] : 0;
  }
  int64_t Position(int64_t t) const { return past + t - Begin(t); }
  int64_t First(int64_t t) const {
    const int64_t first = Begin(t);
    return shape.window == 0 ? first : Max(first, past + t - shape.window + 1);
  }
  int64_t Last(int64_t t) const { return past + t; }
};

/// The keys that the lanes of a panel see: [first, last] of each.
struct Sight {
  alignas(64) int32_t first[kQueries];
  alignas(64) int32_t last[kQueries];
  int64_t begin = 0;  // some lane sees keys [begin, end)
  int64_t end = 0;
  int64_t all_begin = 0;  // every lane sees keys [all_begin, all_end)
  int64_t all_end = 0;

  /// @param t of the rows in turn, ascending
  template <typename RowOf>
  LOWRANK_MEMBER_INLINE void Set(const Sequence& sequence, int64_t count, const RowOf& row_of) {
    for (int64_t i = 0; i < kQueries; ++i) {
      first[i] = i < count ? static_cast<int32_t>(sequence.First(row_of(i))) : 0;
      last[i] = i < count ? static_cast<int32_t>(sequence.Last(row_of(i))) : -1;
    }
    begin = first[0];
    end = last[count - 1] + 1;
    all_begin = first[count - 1];
    all_end = count < kQueries ? 0 : last[0] + 1;
  }
  bool Hides(int64_t from, int64_t to) const { return from < all_begin || to > all_end; }
  /// Of vector v of the lanes: those that see a key.
  LOWRANK_MEMBER_INLINE VecI Sees(int v, int64_t key) const {
    const VecI at = static_cast<int32_t>(key) - VecI{};
    const VecI from = reinterpret_cast<VecI>(LoadU(first + v * kVL));
    const VecI to = reinterpret_cast<VecI>(LoadU(last + v * kVL));
    return (at >= from) & (at <= to);
  }
};

/// A row of one head as f32, filled up with zeros; turned and rounded to its dtype.
LOWRANK_INLINE void ReadHead(const TensorView& matrix, int64_t row, int64_t first_col, int64_t dim,
                             int64_t padded, float* out) {
  WidenRun(matrix.data, matrix.dtype, row * matrix.cols + first_col, dim, out);
  for (int64_t i = dim; i < padded; ++i) out[i] = 0;
}

LOWRANK_INLINE void RoundRow(DType dtype, int64_t padded, float* row) {
  if (dtype == DType::kF32) return;
  for (int64_t i = 0; i < padded; i += kVL) Store(row + i, RoundTo(dtype, Load(row + i)));
}

/// A row of f32 as units along it.
template <typename Policy>
LOWRANK_INLINE void PlaceRow(const float* row, int64_t padded, Unit* out) {
  if constexpr (Policy::kPairs) {
    NarrowRun(out, DType::kBF16, 0, padded, row);
  } else {
    std::memcpy(out, row, static_cast<size_t>(padded) * sizeof(float));
  }
}

/// Rows of units along them, `count` of them and even, as units of rows: pairs of two rows, or the
/// rows themselves.
template <typename Policy>
LOWRANK_INLINE void PairRows(const Unit* rows, int64_t count, int64_t padded, Unit* out) {
  if constexpr (Policy::kPairs) {
    const auto* halves = reinterpret_cast<const uint16_t*>(rows);
    for (int64_t r = 0; r < count; r += 2) {
      for (int64_t i = 0; i < padded; i += kVL) {
        const VecU even = ZeroExtend(*reinterpret_cast<const LooseH*>(halves + r * padded + i));
        const VecU odd =
            ZeroExtend(*reinterpret_cast<const LooseH*>(halves + (r + 1) * padded + i));
        StoreU(out + r / 2 * padded + i, even | (odd << 16));
      }
    }
  } else {
    std::memcpy(out, rows, static_cast<size_t>(count * padded) * sizeof(Unit));
  }
}

/// Keys or values of a tile, [count][units] and count a multiple of kProductRows, as the operand of
/// products that are summed over keys: [kKeyTile / 2][padded] like PairRows, or turned for tiles,
/// [padded][kKeyTile / 2].
template <typename Policy>
LOWRANK_INLINE void PairKeys(const Unit* rows, int64_t count, int64_t padded, Unit* out) {
  if constexpr (!kOnTiles<Policy>) {
    PairRows<Policy>(rows, count, padded, out);
  } else {
    const auto* halves = reinterpret_cast<const uint16_t*>(rows);
    for (int64_t u = 0; u < count / 2; u += kVL) {
      for (int64_t i = 0; i < padded; i += kVL) {
        VecF r[kVL];
#pragma GCC unroll 16
        for (int64_t j = 0; j < kVL; ++j) {
          const uint16_t* even = halves + 2 * (u + j) * padded + i;
          const VecU low = ZeroExtend(*reinterpret_cast<const LooseH*>(even));
          const VecU high = ZeroExtend(*reinterpret_cast<const LooseH*>(even + padded));
          r[j] = AsFloat(low | (high << 16));
        }
        Transpose(r);
#pragma GCC unroll 16
        for (int64_t j = 0; j < kVL; ++j) Store(out + (i + j) * kKeyTile<Policy> / 2 + u, r[j]);
      }
    }
  }
}

/// Where dimension d of a key is in what PairKeys made of a tile, and how far the next one is.
template <typename Policy>
LOWRANK_INLINE int64_t PairedAt(int64_t key, int64_t d, int64_t padded) {
  if constexpr (kOnTiles<Policy>) return d * kKeyTile<Policy> / 2 + key / 2;
  return key / kUnitElems<Policy> * padded + d;
}
template <typename Policy>
LOWRANK_INLINE int64_t PairedPitch(int64_t padded) {
  return kOnTiles<Policy> ? kKeyTile<Policy> / 2 : padded;
}

/// Rows [kQueries][units] as the panel [units][kQueries].
LOWRANK_INLINE void TurnPanel(const Unit* rows, int64_t units, Unit* panel) {
  for (int64_t q = 0; q < kQueries; q += kVL) {
    for (int64_t u = 0; u < units; u += kVL) {
      VecF r[kVL];
#pragma GCC unroll 16
      for (int64_t i = 0; i < kVL; ++i) r[i] = Load(rows + (q + i) * units + u);
      Transpose(r);
#pragma GCC unroll 16
      for (int64_t i = 0; i < kVL; ++i) Store(panel + (u + i) * kQueries + q, r[i]);
    }
  }
}

/// The panel [dims][kQueries] of f32, each lane times its factor, as rows [kQueries][dims].
LOWRANK_INLINE void TurnBack(const float* panel, const float* factors, int64_t padded,
                             float* rows) {
  for (int64_t q = 0; q < kQueries; q += kVL) {
    const VecF factor = Load(factors + q);
    for (int64_t d = 0; d < padded; d += kVL) {
      VecF r[kVL];
#pragma GCC unroll 16
      for (int64_t i = 0; i < kVL; ++i) r[i] = Load(panel + (d + i) * kQueries + q) * factor;
      Transpose(r);
#pragma GCC unroll 16
      for (int64_t i = 0; i < kVL; ++i) Store(rows + (q + i) * padded + d, r[i]);
    }
  }
}

/// Memory of a task, cut from the front.
struct Pieces {
  float* next;
  float* Take(int64_t floats) {
    float* piece = next;
    next += Aligned(floats);
    return piece;
  }
  static int64_t Aligned(int64_t floats) { return CeilDiv(floats, 16) * 16; }
};

}  // namespace lowrank::cpu::LOWRANK_ISA
