/// Packing of GEMM operands into panels.
///
/// A "unit" is the 32 bits of an operand that one step of a microkernel consumes: one f32, or with
/// the bf16 policy two bf16 neighbours along the summation index (low half first). ku units cover a
/// block of kc <= kKC of that index.
///
///   A panel   [ku][mr]   units of mr <= kMR rows; for a matrix unit [mr][ku] (amx_tile.h)
///   B panel   [ku][nr]   units of nr = kNR columns; the last panel of a matrix may be kVL wide.
///                        Panels of one block are PanelStride(ku) apart
///
///        k ->                     panel, in memory
///   a0 |  0  1  2  3              a0.0 a1.0 a2.0 | a0.1 a1.1 a2.1 | ...
///   a1 |  0  1  2  3
///   a2 |  0  1  2  3
///
/// Columns beyond the matrix hold copies of its last column. Their sums are computed and dropped.
#pragma once

#include "native/cpu/kernels/pack/granule_panels.h"
#include "native/cpu/kernels/tile/base_tiles.h"

namespace lowrank::cpu::LOWRANK_ISA {

// Columns of B per task: kNC · kKC floats = 256 KiB, a quarter of a 1 MiB L2, next to the C tile.
constexpr int64_t kNC = kPanelColumns;

/// For panels that are packed in one pass, so that nothing is left to interleave with tiles.
struct NoDecoder {};

/// Sums of f32, which tiles add to the sums in memory.
struct FloatSums {
  static constexpr bool kCodes = false;  // products of int8 codes?
  LOWRANK_INLINE VecF Add(VecF sum, VecF more) { return sum + more; }
};

struct F32Policy : FloatSums {
  static constexpr bool kPairs = false;
  static constexpr bool kTiles = false;
  static constexpr int64_t Units(int64_t kc) { return kc; }
  LOWRANK_INLINE VecF Step(VecF acc, float a, VecF b) { return Fma(Splat(a), b, acc); }
  LOWRANK_INLINE VecF StepLanes(VecF acc, VecF a, VecF b) { return Fma(a, b, acc); }
};

struct BF16Policy : FloatSums {
  static constexpr bool kPairs = true;
  static constexpr bool kTiles = kHasTiles;
  static constexpr int64_t Units(int64_t kc) { return (kc + 1) / 2; }
  LOWRANK_INLINE VecF Step(VecF acc, float a, VecF b) {
    uint32_t pair;
    std::memcpy(&pair, &a, 4);
    return DotBF16(acc, SplatU(pair), Bits(b));
  }
  LOWRANK_INLINE VecF StepLanes(VecF acc, VecF a, VecF b) { return DotBF16(acc, Bits(a), Bits(b)); }
};

/// Rows of a chunk are split into count panels of nearly equal height, so that no panel has one row
/// while others have kMR. The first panel may be separate, with `first` rows.
struct RowPanels {
  int64_t rows;
  int64_t count;
  int64_t first = 0;
  int64_t Start(int64_t panel) const {
    if (first == 0 || panel == 0) return panel * rows / count;
    return first + (panel - 1) * (rows - first) / (count - 1);
  }

  /// Calls body(panel, m, mr) for those of [begin, end) that have rows: mr of them from m on.
  template <typename Body>
  LOWRANK_MEMBER_INLINE void Each(int64_t begin, int64_t end, const Body& body) const {
    for (int64_t panel = begin; panel < end; ++panel) {
      const int64_t m = Start(panel);
      const int mr = static_cast<int>(Start(panel + 1) - m);
      if (mr != 0) body(panel, m, mr);
    }
  }
};

LOWRANK_INLINE RowPanels SplitRows(int64_t rows) { return {rows, Max(CeilDiv(rows, kMR), 1)}; }

/// out[u · stride + i] = unit u of row i, for i < rows <= kVL. src rows are `pitch` bytes apart. A
/// whole vector is stored if it ends before `limit` (the next unit then overwrites its lanes beyond
/// `rows`, or they are spare columns of a B panel), otherwise `rows` lanes.
static __attribute__((noinline)) void TransposeUnits(const char* src, int64_t pitch, int rows,
                                                     int64_t ku, Unit* out, int64_t stride,
                                                     const Unit* limit) {
  int64_t u = 0;
  for (; u + kVL <= ku; u += kVL) {
    VecF r[kVL];
#pragma GCC unroll 16
    for (int i = 0; i < kVL; ++i) {
      const int row = i < rows ? i : rows - 1;
      r[i] = Load(src + row * pitch + u * 4);
    }
    Transpose(r);
    if (out + (u + kVL - 1) * stride + kVL <= limit) {
#pragma GCC unroll 16
      for (int j = 0; j < kVL; ++j) Store(out + (u + j) * stride, r[j]);
    } else {
      // A copy: for this branch, r itself would be kept in memory.
      float turned[kVL][kVL];
#pragma GCC unroll 16
      for (int j = 0; j < kVL; ++j) Store(turned[j], r[j]);
      for (int j = 0; j < kVL; ++j) {
        std::memcpy(out + (u + j) * stride, turned[j], static_cast<size_t>(rows) * 4);
      }
    }
  }
  for (; u < ku; ++u) {
    for (int i = 0; i < rows; ++i) {
      std::memcpy(out + u * stride + i, src + i * pitch + u * 4, 4);
    }
  }
}

/// bf16 rows with an odd kc: the last unit is one element and a zero.
LOWRANK_INLINE void LastHalfUnit(const char* src, int64_t pitch, int rows, int64_t kc, Unit* out) {
  for (int i = 0; i < rows; ++i) {
    uint16_t last;
    std::memcpy(&last, src + i * pitch + (kc - 1) * 2, 2);
    const uint32_t pair = last;
    std::memcpy(out + i, &pair, 4);
  }
}

/// Transposes rows to units [ku][stride], for any policy, in groups of kVL rows.
template <typename Policy>
LOWRANK_INLINE void TransposeRows(const char* src, int64_t pitch, int rows, int64_t kc, Unit* out,
                                  int64_t stride, const Unit* limit) {
  const int64_t whole = Policy::kPairs ? kc / 2 : kc;
  if (!Policy::kPairs && rows == 1 && stride == 1) {  // nothing to transpose
    std::memcpy(out, src, static_cast<size_t>(kc) * 4);
    return;
  }
  for (int i = 0; i < rows; i += kVL) {
    const int group = static_cast<int>(Min(kVL, rows - i));
    // An incomplete group, if there are several, would overwrite the next unit's first group.
    const Unit* bound = (group == kVL || rows <= kVL) ? limit : out;
    TransposeUnits(src + i * pitch, pitch, group, whole, out + i, stride, bound);
    if (Policy::kPairs && (kc & 1) != 0) {
      LastHalfUnit(src + i * pitch, pitch, group, kc, out + whole * stride + i);
    }
  }
}

/// Packs `rows` rows of kc elements into an A panel.
template <typename Policy>
LOWRANK_INLINE void PlaceRows(const char* src, int64_t pitch, int rows, int64_t kc, Unit* out) {
  const int64_t ku = Policy::Units(kc);
  if constexpr (!Policy::kTiles) {
    TransposeRows<Policy>(src, pitch, rows, kc, out, rows, out + ku * rows);
    return;
  }
  const int64_t bytes = kc * static_cast<int64_t>(Policy::kPairs ? 2 : 4);
  for (int i = 0; i < rows; ++i) {
    out[(i + 1) * ku - 1] = 0;  // an odd kc leaves half of the last unit
    std::memcpy(out + i * ku, src + i * pitch, static_cast<size_t>(bytes));
  }
}

LOWRANK_INLINE void NarrowToBF16(const float* in, int64_t count, uint16_t* out) {
  NarrowRun(out, DType::kBF16, 0, count, in);
}

/// A panel from rows [m0, m0 + mr) and columns [k0, k0 + kc) of a dense row-major matrix.
template <typename Policy>
static void PackA(const RowSource& a, int64_t m0, int mr, int64_t k0, int64_t kc, Unit* out) {
  constexpr DType kDirect = Policy::kPairs ? DType::kBF16 : DType::kF32;
  if (a.dense->dtype == kDirect && a.AsStored(m0, mr)) {
    constexpr int64_t kBytes = Policy::kPairs ? 2 : 4;
    PlaceRows<Policy>(a.StoredRow(m0) + k0 * kBytes, a.cols * kBytes, mr, kc, out);
    return;
  }
  alignas(64) float rows[kMR][kKC];
  for (int i = 0; i < mr; ++i) {
    RowAsFloat(a, m0 + i, k0, kc, rows[i]);
    if constexpr (Policy::kPairs) {
      NarrowToBF16(rows[i], kc, reinterpret_cast<uint16_t*>(rows[i]));
    }
  }
  PlaceRows<Policy>(reinterpret_cast<const char*>(rows), sizeof(rows[0]), mr, kc, out);
}

/// A panel of the transpose: rows [i0, i0 + mr) are columns of a [depth, cols] f32 matrix, and row
/// `cols` is a row of ones (which sums B's columns).
static void PackTransposedA(const TensorView& a, int64_t i0, int mr, int64_t k0, int64_t kc,
                            Unit* out) {
  const float* data = static_cast<const float*>(a.data);
  const bool widen = a.dtype != DType::kF32;
  for (int64_t k = 0; k < kc; ++k) {
    for (int i = 0; i < mr; ++i) {
      const int64_t at = (k0 + k) * a.cols + i0 + i;
      out[k * mr + i] = i0 + i >= a.cols ? 1.0f
                        : widen          ? ScalarWiden(a.data, a.dtype, at)
                                         : data[at];
    }
  }
}

/// Width of the B panel that starts at column n of n1.
LOWRANK_INLINE int64_t PanelWidth(int64_t n, int64_t n1) {
  return n1 - n > (kNV - 1) * kVL ? kNR : CeilDiv(n1 - n, kVL) * kVL;
}

/// Do rows of b in memory become its panels directly?
template <typename Policy>
LOWRANK_INLINE bool AreUnits(const RowSource& b) {
  constexpr DType kDirect = Policy::kPairs ? DType::kBF16 : DType::kF32;
  return b.dense != nullptr && b.dense->dtype == kDirect && b.gate == nullptr;
}

/// A vector of columns of a B panel with `rows` real ones: the others are copies of the first.
LOWRANK_INLINE void FillColumns(int rows, int64_t ku, int64_t nr, Unit* out) {
  if (rows == kVL) return;
  for (int64_t u = 0; u < ku; ++u) {
    for (int i = rows; i < kVL; ++i) out[u * nr + i] = out[u * nr];
  }
}

/// B panels for y = A · bᵀ: columns are rows [n0, n1) of b, the summation index its columns.
template <typename Policy>
static void PackBTransposed(const RowSource& b, int64_t k0, int64_t kc, int64_t n0, int64_t n1,
                            Unit* out) {
  const int64_t ku = Policy::Units(kc);
  const bool direct = AreUnits<Policy>(b);
  const bool fused = DecodesTurned(b);
  RowSource rows_of_b = b;
  if (Policy::kPairs)
    rows_of_b.round_to = DType::kF32;  // NarrowToBF16() rounds, and once is enough
  for (int64_t n = n0; n < n1; n += kNR) {
    const int64_t nr = PanelWidth(n, n1);
    for (int64_t v = 0; v < nr; v += kVL) {
      const int rows = static_cast<int>(Max(Min(kVL, n1 - n - v), 1));
      const int64_t row = Min(n + v, n1 - 1);
      if (fused) {
        for (int i = 0; i < kVL; ++i) PrefetchRow(b, row + kVL + i, k0, kc);
        const NaturalPlaces<Policy::kPairs> places = {out + v, nr};
        DecodeColumns<Policy::kPairs>(b, row, rows, k0, kc, places);
        continue;
      }
      alignas(64) float buffer[kVL][kKC];
      const char* src = reinterpret_cast<const char*>(buffer);
      int64_t pitch = sizeof(buffer[0]);
      if (direct) {
        pitch = b.cols * static_cast<int64_t>(Policy::kPairs ? 2 : 4);
        src = static_cast<const char*>(b.dense->data) + row * pitch + k0 * (pitch / b.cols);
        for (int i = 0; i < kVL; ++i) PrefetchRow(b, row + kVL + i, k0, kc);
      } else {
        for (int i = 0; i < rows; ++i) {
          PrefetchRow(b, row + i + kPrefetchRows, k0, kc);
          RowAsFloat(rows_of_b, row + i, k0, kc, buffer[i]);
          if constexpr (Policy::kPairs) {
            NarrowToBF16(buffer[i], kc, reinterpret_cast<uint16_t*>(buffer[i]));
          }
        }
      }
      TransposeRows<Policy>(src, pitch, rows, kc, out + v, nr, out + v + (ku - 1) * nr + kVL);
      FillColumns(rows, ku, nr, out + v);
    }
    out += PanelStride(ku);
  }
}

/// `panels` B panels of `nr` columns each, from column n of a dense matrix on; units are its rows
/// [k0, k0 + kc). A row's part of all panels is read at once, because rows are pages apart.
template <typename Policy>
static void CopyPanels(const RowSource& source, int64_t k0, int64_t kc, int64_t n, int64_t nr,
                       int64_t panels, Unit* out) {
  const TensorView& b = *source.dense;
  const int64_t stride = PanelStride(Policy::Units(kc));
  for (int64_t k = 0; k < kc; k += Policy::kPairs ? 2 : 1, out += nr) {
    const int64_t e = (k0 + k) * b.cols + n;
    PrefetchRow(source, k0 + k + kPrefetchRows, n, panels * nr);
    if (Policy::kPairs) PrefetchRow(source, k0 + k + 1 + kPrefetchRows, n, panels * nr);
    for (int64_t panel = 0; panel < panels; ++panel) {
      for (int64_t v = 0; v < nr; v += kVL) {
        const int64_t at = e + panel * nr + v;
        Unit* to = out + panel * stride + v;
        const VecF even = LoadWide(b.data, b.dtype, at);
        if constexpr (Policy::kPairs) {
          const VecF odd = k + 1 < kc ? LoadWide(b.data, b.dtype, at + b.cols) : VecF{};
          StoreU(to, PairBF16(even, odd));
        } else {
          Store(to, even);
        }
      }
    }
  }
}

/// Any B panels, through rows in f32.
template <typename Policy>
static void PackRowsDirect(const RowSource& b, int64_t k0, int64_t kc, int64_t n0, int64_t n1,
                           Unit* out) {
  const int64_t ku = Policy::Units(kc);
  const int64_t cols = n1 - n0;
  const int64_t padded = CeilDiv(cols, kVL) * kVL;
  alignas(64) float even[kNC];
  alignas(64) float odd[kNC];
  std::memset(even + cols, 0, static_cast<size_t>(padded - cols) * 4);
  std::memset(odd + cols, 0, static_cast<size_t>(padded - cols) * 4);
  for (int64_t u = 0; u < ku; ++u) {
    PrefetchUnit<Policy::kPairs>(b, k0 + (Policy::kPairs ? 2 : 1) * u, n0, cols);
    if constexpr (Policy::kPairs) {
      RowAsFloat(b, k0 + 2 * u, n0, cols, even);
      if (2 * u + 1 < kc) {
        RowAsFloat(b, k0 + 2 * u + 1, n0, cols, odd);
      } else {
        std::memset(odd, 0, static_cast<size_t>(padded) * 4);
      }
    } else {
      RowAsFloat(b, k0 + u, n0, cols, even);
    }
    Unit* panel = out;
    for (int64_t n = 0; n < cols; n += kNR) {
      const int64_t nr = PanelWidth(n, cols);
      for (int64_t v = 0; v < nr; v += kVL) {
        if constexpr (Policy::kPairs) {
          StoreU(panel + u * nr + v, PairBF16(Load(even + n + v), Load(odd + n + v)));
        } else {
          Store(panel + u * nr + v, Load(even + n + v));
        }
      }
      panel += PanelStride(ku);
    }
  }
}

/// B panels for y = A · b: columns are columns [n0, n1) of b, the summation index its rows. If
/// SpreadsColumns(b), columns are whole granules in the order of lanes (UnspreadColumns).
template <typename Policy>
static void PackBDirect(const RowSource& b, int64_t k0, int64_t kc, int64_t n0, int64_t n1,
                        Unit* out) {
  const bool fused = DecodesDirect(b);
  const bool plain = b.dense != nullptr && b.AsStored();
  if (SpreadsColumns(b)) {
    WithGranules(GranulesOf(b), [&](auto known) {
      DecodeGranules<Policy::kPairs, known()>(b, k0, kc, n0, n1 - n0, out);
    });
    return;
  }
  if (fused) {
    DecodePanels<Policy::kPairs>(b, k0, kc, n0, n1 - n0, out);
    return;
  }
  if (!plain) {
    PackRowsDirect<Policy>(b, k0, kc, n0, n1, out);
    return;
  }
  const int64_t full = (n1 - n0) / kNR;
  CopyPanels<Policy>(b, k0, kc, n0, kNR, full, out);
  const int64_t n = n0 + full * kNR;
  if (n == n1) return;
  out += full * PanelStride(Policy::Units(kc));
  if (n1 - n == kVL) {
    CopyPanels<Policy>(b, k0, kc, n, kVL, 1, out);
  } else {  // a last vector that is incomplete
    PackRowsDirect<Policy>(b, k0, kc, n, n1, out);
  }
}

}  // namespace lowrank::cpu::LOWRANK_ISA
