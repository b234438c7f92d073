/// Decodes planar weights (native/host_device/planes.h): any width of codes, any grid of scales.
///
/// Numerics   as PlaneValue, then one rounding to the activations' dtype: the same bits on every
///            instruction set and device
/// Steps      runs of up to kPlaneRun elements of a row. First the factors of the entries that a
/// run
///            meets, then vectors of codes, their levels, difference and product
/// Paths      DecodeWholeGranules  whole granules of codes other than nibbles
///            DecodeWhole     a vector of columns has one entry: groups of whole vectors
///            DecodeOrdered   a group for each column: factors are gathered
///            DecodeEach      all else, element by element
#pragma once

#include "native/cpu/kernels/decode/rows.h"

namespace lowrank::cpu::LOWRANK_ISA {

// Elements of a run, at most.
constexpr int64_t kPlaneRun = 1024;
// Groups of an ordered row whose factors are held at once: 6 KiB of stack. Rows with more go
// element by element.
constexpr int64_t kMostOrdered = 512;

/// The numbers of bytes: themselves, or those of a table.
static inline void NumbersOfBytes(const uint8_t* bytes, const float* table, int64_t count,
                                  float* out) {
  int64_t i = 0;
  if (table == nullptr) {
    for (; i + kVL <= count; i += kVL) {
      Store(out + i, __builtin_convertvector(reinterpret_cast<VecI>(WidenBytes(bytes + i)), VecF));
    }
    for (; i < count; ++i) out[i] = static_cast<float>(bytes[i]);
    return;
  }
#if defined(__AVX512F__)
  // Sub-scales of K-quants have at most six bits: four registers hold their table.
  const VecF first[2] = {Load(table), Load(table + 16)};
  const VecF second[2] = {Load(table + 32), Load(table + 48)};
  for (; i + kVL <= count; i += kVL) {
    const __m512i code = reinterpret_cast<__m512i>(WidenBytes(bytes + i));
    if (_mm512_cmpgt_epu32_mask(code, _mm512_set1_epi32(63)) != 0) break;
    Store(out + i, _mm512_mask_blend_ps(_mm512_test_epi32_mask(code, _mm512_set1_epi32(32)),
                                        _mm512_permutex2var_ps(first[0], code, first[1]),
                                        _mm512_permutex2var_ps(second[0], code, second[1])));
  }
#endif
  for (; i < count; ++i) out[i] = table[bytes[i]];
}

/// Numbers [at, at + count) of a plane, in f32.
static inline void PlaneNumbers(const void* data, PlaneType type, const float* table, int64_t at,
                                int64_t count, float* out) {
  if (type == PlaneType::kByte) {
    NumbersOfBytes(static_cast<const uint8_t*>(data) + at, table, count, out);
    return;
  }
  const auto dtype = static_cast<DType>(type);
  if (dtype == DType::kF32) {
    std::memcpy(out, static_cast<const float*>(data) + at, static_cast<size_t>(count) * 4);
    return;
  }
  for (int64_t i = 0; i < count; i += kVL) {
    VecH lanes = {};
    const int64_t some = Min(kVL, count - i);
    const uint16_t* from = static_cast<const uint16_t*>(data) + at + i;
    if (some == kVL) {
      std::memcpy(&lanes, from, sizeof(lanes));
    } else {
      std::memcpy(&lanes, from, static_cast<size_t>(some) * 2);
    }
    alignas(64) float wide[kVL];
    Store(wide, dtype == DType::kBF16 ? WidenBF16(lanes) : WidenF16(lanes));
    std::memcpy(out + i, wide, static_cast<size_t>(some) * 4);
  }
}

/// out[i] *= the outer factor of entry at + i.
static inline void MultiplyOuter(const ScalePlane& plane, int64_t at, int64_t count, float* out) {
  constexpr int64_t kRun = 256;
  alignas(64) float outers[kRun];
  alignas(64) float spread[kRun + kVL];
  for (int64_t i = 0; i < count; i += kRun) {
    const int64_t run = Min(kRun, count - i);
    const int64_t first = (at + i) / plane.outer_span;
    const int64_t into = (at + i) - first * plane.outer_span;
    const int64_t some = (into + run - 1) / plane.outer_span + 1;
    PlaneNumbers(plane.outer, plane.outer_type, nullptr, first, some, outers);
    // Whole vectors: the next factor overwrites what is too much.
    int64_t to = 0;
    int64_t end = plane.outer_span - into;
    for (int64_t o = 0; o < some; ++o, end += plane.outer_span) {
      const VecF factor = Splat(outers[o]);
      for (int64_t j = to; j < Min(end, run); j += kVL) Store(spread + j, factor);
      to = Min(end, run);
    }
    float* entries = out + i;
    int64_t j = 0;
    for (; j + kVL <= run; j += kVL) Store(entries + j, Load(entries + j) * Load(spread + j));
    for (; j < run; ++j) entries[j] *= spread[j];
  }
}

/// Scales or minima of entries [at, at + count), as PlaneScale.
static inline void PlaneScales(const ScalePlane& plane, int64_t at, int64_t count, float* out) {
  PlaneNumbers(plane.data, plane.type, plane.table, at, count, out);
  if (plane.outer != nullptr) MultiplyOuter(plane, at, count, out);
  if (plane.has_offset) {
    for (int64_t i = 0; i < count; ++i) out[i] += plane.offset;
  }
}

/// The factors of some entries, each kind in an array of its own.
template <int64_t kEntries>
struct PlaneArrays {
  bool zeros;
  bool mins;
  alignas(64) float scale[kEntries];
  alignas(64) float zero[kEntries];
  alignas(64) float min[kEntries];

  explicit PlaneArrays(const Planes& planes)
      : zeros(planes.zero != nullptr), mins(planes.min.data != nullptr) {}
  void Fill(const Planes& planes, int64_t at, int64_t count) {
    PlaneScales(planes.scale, at, count, scale);
    if (zeros) PlaneNumbers(planes.zero, planes.zero_type, nullptr, at, count, zero);
    if (mins) PlaneScales(planes.min, at, count, min);
  }
  /// The weights of levels. `of(array)` gives each lane its factor.
  template <typename Of>
  LOWRANK_MEMBER_INLINE VecF Apply(VecF level, const Of& of) const {
    if (zeros) level = level - of(zero);
    level = level * of(scale);
    return mins ? level - of(min) : level;
  }
};

/// Codes of the kVL columns from k on, a multiple of eight where kVL is; bits above a code of four
/// are undefined. Reads at most eight bytes more than they take.
template <int kBits>
LOWRANK_INLINE VecU PlaneCodes(const uint8_t* row, int bits, int64_t k) {
  if constexpr (kBits == 4) return SpreadCodes(row + k / 2);
  if constexpr (kBits == 8) return WidenBytes(row + k);
#if defined(__AVX512F__)
  // Eight codes are `bits` bytes: a word in each lane, shifted by the lane's place.
  uint64_t low, high;
  const uint8_t* from = row + k / 8 * bits;
  std::memcpy(&low, from, 8);
  std::memcpy(&high, from + bits, 8);
  const __m512i places =
      _mm512_mullo_epi64(_mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0), _mm512_set1_epi64(bits));
  const __m512i mask = _mm512_set1_epi64((1 << bits) - 1);
  const auto spread = [&](uint64_t word) {
    const __m512i words = _mm512_set1_epi64(static_cast<long long>(word));
    return _mm512_cvtepi64_epi32(_mm512_and_si512(_mm512_srlv_epi64(words, places), mask));
  };
  return reinterpret_cast<VecU>(
      _mm512_inserti64x4(_mm512_castsi256_si512(spread(low)), spread(high), 1));
#else
  VecU codes;
  for (int j = 0; j < kVL; ++j) codes[j] = PlaneCode(row, bits, k + j);
  return codes;
#endif
}

/// How levels are found.
enum class PlaneLevels { kTable16, kLinear, kSigned, kTable256 };

template <PlaneLevels kLevels>
LOWRANK_INLINE VecF LevelsOf(const QuantView& w, const LevelTables& tables, VecU codes) {
  if constexpr (kLevels == PlaneLevels::kTable16) return Lookup(tables.nibbles, codes);
  if constexpr (kLevels == PlaneLevels::kLinear) {
    return __builtin_convertvector(reinterpret_cast<VecI>(codes), VecF) +
           Splat(w.planes.first_level);
  }
  if constexpr (kLevels == PlaneLevels::kSigned) {
    return __builtin_convertvector(reinterpret_cast<VecI>(codes << 24) >> 24, VecF);
  }
  return Gather(w.codebook, codes);
}

/// Calls body with the way in which levels of more than four bits are found.
template <typename Body>
LOWRANK_INLINE void WithLevelRule(LevelRule rule, const Body& body) {
  switch (rule) {
    case LevelRule::kLinear:
      return body(std::integral_constant<PlaneLevels, PlaneLevels::kLinear>());
    case LevelRule::kSigned:
      return body(std::integral_constant<PlaneLevels, PlaneLevels::kSigned>());
    case LevelRule::kTable:
      return body(std::integral_constant<PlaneLevels, PlaneLevels::kTable256>());
  }
}

/// Calls body with the width of codes and the kind of levels that are compiled for them.
template <typename Body>
LOWRANK_INLINE void WithPlaneKind(const QuantView& w, const Body& body) {
  using Any = std::integral_constant<int, 0>;
  using Four = std::integral_constant<int, 4>;
  using Eight = std::integral_constant<int, 8>;
  constexpr std::integral_constant<PlaneLevels, PlaneLevels::kTable16> table16;
  const int bits = w.planes.bits;
  if (bits == 4) return body(Four(), table16);
  if (bits < 4) return body(Any(), table16);
  WithLevelRule(w.planes.rule, [&](auto levels) __attribute__((always_inline)) {
    return bits == 8 ? body(Eight(), levels) : body(Any(), levels);
  });
}

/// The codes of a run, where vectors may be read beyond its last.
class PlaneBytes {
 public:
  /// Columns [k, k + count) of row n; k is a multiple of eight, or a run has whole bytes.
  PlaneBytes(const QuantView& w, int64_t n, int64_t k, int64_t count)
      : row_(w.codes + n * w.planes.row_bytes), first_(0) {
    constexpr int64_t kSlack = kVL + 8;
    const int bits = w.planes.bits;
    const uint8_t* end = w.codes + w.code_bytes();
    const uint8_t* begin = row_ + k * bits / 8;
    if (begin + (count + kSlack) * bits / 8 + 8 <= end) return;
    first_ = k;
    std::memcpy(copy_, begin, static_cast<size_t>(Min(end - begin, int64_t{kPlaneRun + 8})));
    row_ = copy_;
  }
  /// The row whose column At(k) is column k.
  const uint8_t* row() const { return row_; }
  int64_t At(int64_t k) const { return k - first_; }

 private:
  const uint8_t* row_;
  int64_t first_;
  alignas(64) uint8_t copy_[kPlaneRun + 64];
};

/// Stores the first `count` lanes.
LOWRANK_INLINE void StorePlane(float* out, VecF value, DType round_to, int64_t count) {
  const VecF rounded = RoundTo(round_to, value);
  if (count >= kVL) {
    Store(out, rounded);
  } else {
    StoreFirst(out, rounded, count);
  }
}

/// The position of (n, k) from which the elements of an entry are counted, for a grid of spans.
LOWRANK_INLINE int64_t SpanPosition(const QuantView& w, int64_t n, int64_t k) {
  return w.planes.grid == PlaneGrid::kFlat ? (n + w.planes.first_row) * w.cols + k : k;
}

/// Has every vector of columns from (n, k) on one entry?
LOWRANK_INLINE bool IsWhole(const QuantView& w, int64_t n, int64_t k) {
  constexpr int64_t kUnit = kVL > 8 ? kVL : 8;
  const Planes& planes = w.planes;
  const bool spans = planes.grid == PlaneGrid::kTiles || planes.grid == PlaneGrid::kFlat;
  if (!spans || k % kUnit != 0) return false;
  const bool one = planes.grid == PlaneGrid::kTiles && planes.grid_span >= w.cols;
  return one || (planes.grid_span % kUnit == 0 && SpanPosition(w, n, k) % kUnit == 0);
}

static inline void DecodeWhole(const QuantView& w, const LevelTables& tables, DType round_to,
                               int64_t n, int64_t k, int64_t count, float* out) {
  const Planes& planes = w.planes;
  PlaneArrays<kPlaneRun / 8 + 1> factors(planes);
  const int64_t into = SpanPosition(w, n, k) % planes.grid_span;
  factors.Fill(planes, PlaneEntry(planes, w.cols, n, k), (into + count - 1) / planes.grid_span + 1);
  const PlaneBytes bytes(w, n, k, count);
  WithPlaneKind(w, [&](auto bits, auto levels) __attribute__((always_inline)) {
    int64_t left = planes.grid_span - into;
    for (int64_t i = 0, entry = 0; i < count; ++entry, left = planes.grid_span) {
      const auto of = [&](const float* array) { return Splat(array[entry]); };
      for (const int64_t end = Min(count, i + left); i < end; i += kVL) {
        const VecU codes = PlaneCodes<bits()>(bytes.row(), planes.bits, bytes.At(k + i));
        const VecF level = LevelsOf<levels()>(w, tables, codes);
        StorePlane(out + i, factors.Apply(level, of), round_to, count - i);
      }
    }
  });
}

/// Element by element.
static inline void DecodeEach(const QuantView& w, DType round_to, int64_t n, int64_t k,
                              int64_t count, float* out) {
  const uint8_t* row = w.codes + n * w.planes.row_bytes;
  int64_t last = -1;
  PlaneFactors factors{};
  for (int64_t i = 0; i < count; ++i) {
    const int64_t entry = PlaneEntry(w.planes, w.cols, n, k + i);
    if (entry != last) factors = FactorsOf(w.planes, entry);
    last = entry;
    const float level = w.codebook[PlaneCode(row, w.planes.bits, k + i)];
    out[i] = RoundTo(round_to, Splat(PlaneValue(w.planes, level, factors)))[0];
  }
}

static inline void DecodeOrdered(const QuantView& w, const LevelTables& tables, DType round_to,
                                 int64_t n, int64_t k, int64_t count, float* out) {
  const Planes& planes = w.planes;
  PlaneArrays<kMostOrdered> factors(planes);
  factors.Fill(planes, (n + planes.first_row) * planes.grid_pitch, planes.grid_pitch);
  const PlaneBytes bytes(w, n, k, count);
  // Groups are not read beyond the last column.
  const int64_t whole = count / kVL * kVL;
  WithPlaneKind(w, [&](auto bits, auto levels) __attribute__((always_inline)) {
    for (int64_t i = 0; i < whole; i += kVL) {
      const VecU group = LoadU(planes.group + k + i);
      const auto of = [&](const float* array) { return Gather(array, group); };
      const VecU codes = PlaneCodes<bits()>(bytes.row(), planes.bits, bytes.At(k + i));
      const VecF level = LevelsOf<levels()>(w, tables, codes);
      StorePlane(out + i, factors.Apply(level, of), round_to, kVL);
    }
  });
  DecodeEach(w, round_to, n, k + whole, count - whole, out + whole);
}

/// Decodes the whole granules at the start of columns [k, k + count) of row n, where that is faster
/// (code_granules.h). Returns how many elements those are.
static int64_t DecodeWholeGranules(const QuantView& w, const LevelTables& tables, DType round_to,
                                   int64_t n, int64_t k, int64_t count, float* out);

static void DecodePlanes(const QuantView& w, const LevelTables& tables, DType round_to,
                         int64_t begin, int64_t count, float* out) {
  const Planes& planes = w.planes;
  int64_t n = begin / w.cols;
  int64_t k = begin % w.cols;
  while (count > 0) {
    int64_t run = Min(count, Min(kPlaneRun, w.cols - k));
    if (const int64_t whole = DecodeWholeGranules(w, tables, round_to, n, k, run, out);
        whole != 0) {
      run = whole;
    } else if (IsWhole(w, n, k)) {
      DecodeWhole(w, tables, round_to, n, k, run, out);
    } else if (planes.grid == PlaneGrid::kOrdered && k % 8 == 0 &&
               planes.grid_pitch <= kMostOrdered) {
      DecodeOrdered(w, tables, round_to, n, k, run, out);
    } else {
      DecodeEach(w, round_to, n, k, run, out);
    }
    out += run;
    count -= run;
    k += run;
    if (k == w.cols) {
      k = 0;
      ++n;
    }
  }
}

}  // namespace lowrank::cpu::LOWRANK_ISA
