/// Packs in the order of lanes (sum_order.h): rows of x as A panels or for row_dot.h, and a 4-bit
/// weight as B panels, a span of columns at a time.
#pragma once

#include "native/cpu/kernels/decode/code_granules.h"
#include "native/cpu/kernels/pack/pack.h"

namespace lowrank::cpu::LOWRANK_ISA {

/// Distributes a granule of a row over its lanes: out[lane · pitch + place].
template <typename Element>
LOWRANK_INLINE void SpreadGranule(const Element* in, Element* out, int64_t pitch) {
  typedef Element Half __attribute__((vector_size(4 * sizeof(Element)), aligned(1), may_alias));
  typedef Element Whole __attribute__((vector_size(8 * sizeof(Element)), aligned(1), may_alias));
#pragma GCC unroll 8
  for (int g = 0; g < kGranule / kGroup; ++g) {
    const Whole group = *reinterpret_cast<const Whole*>(in + g * kGroup);
    const Half low = __builtin_shufflevector(group, group, ElementAt(0), ElementAt(1), ElementAt(2),
                                             ElementAt(3));
    const Half high = __builtin_shufflevector(group, group, ElementAt(4), ElementAt(5),
                                              ElementAt(6), ElementAt(7));
    *reinterpret_cast<Half*>(out + LaneOf(g, 0) * pitch + PlaceOf(g, 0)) = low;
    *reinterpret_cast<Half*>(out + LaneOf(g, 4) * pitch + PlaceOf(g, 4)) = high;
  }
}

/// Packs columns [k0, k0 + span) of rows [m0, m0 + mr) to rows of lanes, `span` elements each, then
/// to the panels of each lane: at(lane).
template <typename Policy, typename PanelFn>
LOWRANK_INLINE void PackSpanA(const RowSource& a, int64_t m0, int mr, int64_t k0, int64_t span,
                              char* stage, const PanelFn& at) {
  constexpr int64_t kBytes = Policy::kPairs ? 2 : 4;
  constexpr DType kDirect = Policy::kPairs ? DType::kBF16 : DType::kF32;
  const int64_t len = span / kVL;
  const bool direct = a.dense->dtype == kDirect && a.AsStored();
  for (int i = 0; i < mr; ++i) {
    alignas(64) float buffer[kKC];
    char* row = stage + i * span * kBytes;
    for (int64_t k = 0; k < span; k += kKC) {
      const int64_t kc = Min(kKC, span - k);
      const char* src = reinterpret_cast<const char*>(buffer);
      if (direct) {
        src = a.StoredRow(m0 + i) + (k0 + k) * kBytes;
      } else {
        RowAsFloat(a, m0 + i, k0 + k, kc, buffer);
        if constexpr (Policy::kPairs) NarrowToBF16(buffer, kc, reinterpret_cast<uint16_t*>(buffer));
      }
      for (int64_t e = 0; e < kc; e += kGranule) {
        char* out = row + (k + e) / kVL * kBytes;
        if constexpr (Policy::kPairs) {
          SpreadGranule(reinterpret_cast<const uint16_t*>(src) + e,
                        reinterpret_cast<uint16_t*>(out), len);
        } else {
          SpreadGranule(reinterpret_cast<const float*>(src) + e, reinterpret_cast<float*>(out),
                        len);
        }
      }
    }
  }
  for (int l = 0; l < kVL; ++l) {
    Unit* out = at(l);
    TransposeRows<Policy>(stage + l * len * kBytes, span * kBytes, mr, len, out, mr,
                          out + Policy::Units(len) * mr);
  }
}

/// Rows [m0, m0 + rows) of x in row_dot.h's layout: units [granule][place][row][lane].
template <typename Policy>
static void PackDots(const RowSource& a, int64_t m0, int64_t rows, Unit* out) {
  constexpr int kUnits = static_cast<int>(Policy::Units(kPlaces));
  alignas(64) float buffer[kKC];
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t k = 0; k < a.cols; k += kKC) {
      const int64_t kc = Min(kKC, a.cols - k);
      RowAsFloat(a, m0 + i, k, kc, buffer);
      for (int64_t e = 0; e < kc; e += kGranule) {
        Unit* granule = out + ((k + e) / kGranule * kUnits * rows + i) * kVL;
#pragma GCC unroll 16
        for (int u = 0; u < kUnits; ++u) {
          VecU first, second;
#pragma GCC unroll 16
          for (int l = 0; l < kVL; ++l) {
            constexpr int kStep = Policy::kPairs ? 2 : 1;
            first[l] = static_cast<uint32_t>(ElementOf(l, kStep * u));
            second[l] = static_cast<uint32_t>(ElementOf(l, kStep * u + kStep - 1));
          }
          const VecF even = Gather(buffer + e, first);
          if constexpr (Policy::kPairs) {
            // bf16 widened to f32: only the high halves are set.
            const VecF odd = Gather(buffer + e, second);
            StoreU(granule + u * rows * kVL, Bits(even) >> 16 | (Bits(odd) & 0xffff0000u));
          } else {
            Store(granule + u * rows * kVL, even);
          }
        }
      }
    }
  }
}

/// B panels of rows [n0, n1) of w, columns [k0, k0 + span): lane l of the panel at column n is
/// LanePanel(b, n - n0, l, ku).
LOWRANK_INLINE Unit* LanePanel(Unit* b, int64_t n, int l, int64_t ku) {
  return b + (n / kNR * kVL + l) * PanelStride(ku);
}

/// kVL rows of codes that are not nibbles, columns [k0, k0 + kc), whole granules: decoded row by
/// row and turned.
template <typename Policy>
static void TurnCodeGranules(const RowSource& w, int64_t row, int rows, int64_t k0, int64_t kc,
                             Unit* out, int64_t nr, int64_t lane_stride) {
  constexpr int kUnits = static_cast<int>(Policy::Units(kPlaces));
  constexpr int64_t kMost = kKC / kGranule;
  alignas(64) float scratch[FactorScratch(kVL, kMost + 1)];
  alignas(64) float decoded[kMost * kUnits][kVL][kVL];
  const int64_t granules = kc / kGranule;
  const ScaleRows scales = PartScales(*w.quant, row, rows, k0, kc, scratch);
  for (int i = 0; i < rows; ++i) {
    DecodeCodeGranules<kUnitOrder<Policy::kPairs>>(*w.quant, w.tables, row + i, k0, granules,
                                                   scales, i, kVL, w.round_to,
                                                   {decoded[0][i], kVL * kVL});
  }
  for (int64_t u = 0; u < granules * kUnits; ++u) {
    VecF r[kVL];
#pragma GCC unroll 16
    for (int i = 0; i < kVL; ++i) r[i] = Load(decoded[u][i < rows ? i : rows - 1]);
    Transpose(r);
#pragma GCC unroll 16
    for (int l = 0; l < kVL; ++l) Store(out + l * lane_stride + u * nr, r[l]);
  }
}

template <typename Policy>
static void DecodeSpan(const RowSource& w, int64_t k0, int64_t span, int64_t n0, int64_t n1,
                       Unit* b) {
  const int64_t ku = Policy::Units(span / kVL);
  const bool codes = GranulesOf(w) == Granules::kCodes;
  for (int64_t n = n0; n < n1; n += kNR) {
    const int64_t nr = PanelWidth(n, n1);
    for (int64_t v = 0; v < nr; v += kVL) {
      const int rows = static_cast<int>(Max(Min(kVL, n1 - n - v), 1));
      const int64_t row = Min(n + v, n1 - 1);
      for (int64_t k = 0; k < span; k += kKC) {
        const LanePlaces<Policy::kPairs> places = {
            LanePanel(b, n - n0, 0, ku) + v + Policy::Units(k / kVL) * nr, nr, PanelStride(ku)};
        for (int64_t i = row + kVL; i < Min(row + 2 * kVL, w.rows); ++i) {
          PrefetchRow(w, i, k0 + k, Min(kKC, span - k));
        }
        if (codes) {
          TurnCodeGranules<Policy>(w, row, rows, k0 + k, Min(kKC, span - k), places.out, nr,
                                   places.block);
        } else {
          DecodeColumns<Policy::kPairs>(w, row, rows, k0 + k, Min(kKC, span - k), places);
        }
      }
    }
  }
}

}  // namespace lowrank::cpu::LOWRANK_ISA
