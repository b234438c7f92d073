/// Rows of any operand as f32: dense tensors of any dtype, packed weights, dropout gates.
#pragma once

#include "native/core/ops/ops.h"
#include "native/cpu/kernels/decode/levels.h"
#include "native/cpu/kernels/decode/philox_rows.h"

namespace lowrank::cpu::LOWRANK_ISA {

LOWRANK_INLINE float ScalarWiden(const void* data, DType dtype, int64_t i) {
  if (dtype == DType::kF32) {
    float value;
    std::memcpy(&value, static_cast<const char*>(data) + i * 4, 4);
    return value;
  }
  VecH lanes = {};
  uint16_t bits;
  std::memcpy(&bits, static_cast<const char*>(data) + i * 2, 2);
  lanes[0] = bits;
  return dtype == DType::kBF16 ? WidenBF16(lanes)[0] : WidenF16(lanes)[0];
}

LOWRANK_INLINE VecF LoadWide(const void* data, DType dtype, int64_t i) {
  if (dtype == DType::kF32) return Load(static_cast<const char*>(data) + i * 4);
  const VecH half = *reinterpret_cast<const LooseH*>(static_cast<const char*>(data) + i * 2);
  return dtype == DType::kBF16 ? WidenBF16(half) : WidenF16(half);
}

/// Elements [begin, begin + count) of a dense array, widened to f32.
LOWRANK_INLINE void WidenRun(const void* data, DType dtype, int64_t begin, int64_t count,
                             float* out) {
  int64_t i = 0;
  for (; i + kVL <= count; i += kVL) Store(out + i, LoadWide(data, dtype, begin + i));
  for (; i < count; ++i) out[i] = ScalarWiden(data, dtype, begin + i);
}

LOWRANK_INLINE void StoreNarrow(void* data, DType dtype, int64_t i, VecF value) {
  if (dtype == DType::kF32) {
    Store(static_cast<char*>(data) + i * 4, value);
    return;
  }
  const VecU bits = dtype == DType::kBF16 ? RoundBF16(value) : RoundF16(value);
  *reinterpret_cast<LooseH*>(static_cast<char*>(data) + i * 2) = Narrow(bits);
}

LOWRANK_INLINE void ScalarNarrow(void* data, DType dtype, int64_t i, float value) {
  if (dtype == DType::kF32) {
    std::memcpy(static_cast<char*>(data) + i * 4, &value, 4);
    return;
  }
  const VecF lanes = Splat(value);
  const uint16_t bits =
      static_cast<uint16_t>((dtype == DType::kBF16 ? RoundBF16(lanes) : RoundF16(lanes))[0]);
  std::memcpy(static_cast<char*>(data) + i * 2, &bits, 2);
}

/// Rounds f32 values once to the dtype of the target.
LOWRANK_INLINE void NarrowRun(void* data, DType dtype, int64_t begin, int64_t count,
                              const float* in) {
  int64_t i = 0;
  for (; i + kVL <= count; i += kVL) StoreNarrow(data, dtype, begin + i, Load(in + i));
  for (; i < count; ++i) ScalarNarrow(data, dtype, begin + i, in[i]);
}

/// Rounds f32 values to `dtype` and back, in place.
LOWRANK_INLINE VecF RoundTo(DType dtype, VecF v) {
  if (dtype == DType::kF32) return v;
  if (dtype == DType::kBF16) return RoundedToBF16(v);
  return RoundedToF16(v);
}

/// Returns body(std::integral_constant of the dtype that decoded weights are rounded to). Pairs are
/// rounded where they are made.
template <bool kPairs, typename Body>
LOWRANK_INLINE auto WithRounding(DType round_to, const Body& body) {
  if constexpr (!kPairs) {
    if (round_to == DType::kBF16) return body(std::integral_constant<DType, DType::kBF16>());
    if (round_to == DType::kF16) return body(std::integral_constant<DType, DType::kF16>());
  }
  return body(std::integral_constant<DType, DType::kF32>());
}

/// absmax of a block. The product and the sum are rounded separately (-ffp-contract=off).
LOWRANK_INLINE float BlockScale(const QuantView& w, int64_t block) {
  if (w.absmax != nullptr) return w.absmax[block];
  const float nested = w.nested_blocksize == 256 ? w.nested_absmax[block >> 8]
                                                 : w.nested_absmax[block / w.nested_blocksize];
  const float product = w.absmax_codebook[w.absmax_8bit[block]] * nested;
  return product + *w.absmax_offset;
}

/// Scales of blocks [first, first + count), like BlockScale.
LOWRANK_INLINE void ScaleRun(const QuantView& w, int64_t first, int64_t count, float* out) {
  int64_t i = 0;
  if (w.absmax == nullptr && w.nested_blocksize % kVL == 0) {
    const VecF offset = Splat(*w.absmax_offset);
    for (; i < count && (first + i) % kVL != 0; ++i) out[i] = BlockScale(w, first + i);
    for (; i + kVL <= count; i += kVL) {
      const int64_t block = first + i;
      const VecU codes = WidenBytes(w.absmax_8bit + block);
      const VecF product =
          Gather(w.absmax_codebook, codes) * Splat(w.nested_absmax[block / w.nested_blocksize]);
      Store(out + i, product + offset);
    }
  }
  for (; i < count; ++i) out[i] = BlockScale(w, first + i);
}

/// The shift by which each lane brings its own code of a little-endian group of eight 4-bit codes
/// to the low bits: element 2i is the high nibble of byte i.
LOWRANK_INLINE VecU NibbleShifts(int first) {
  VecU shifts;
#pragma GCC unroll 16
  for (int j = 0; j < kVL; ++j) {
    const uint32_t e = static_cast<uint32_t>((first + j) & 7);
    shifts[j] = (e >> 1) * 8 + ((e & 1) == 0 ? 4 : 0);
  }
  return shifts;
}

/// kVL codes (unmasked high bits) from their bytes; kVL = 4 takes two bytes.
LOWRANK_INLINE VecU SpreadCodes(const uint8_t* bytes) {
  if constexpr (kVL == 16) {
    uint32_t a, b;
    std::memcpy(&a, bytes, 4);
    std::memcpy(&b, bytes + 4, 4);
#if defined(__AVX512F__)
    const __m512i low = reinterpret_cast<__m512i>(SplatU(a));
    return reinterpret_cast<VecU>(_mm512_mask_set1_epi32(low, 0xff00, static_cast<int>(b))) >>
           NibbleShifts(0);
#endif
  } else if constexpr (kVL == 8) {
    uint32_t a;
    std::memcpy(&a, bytes, 4);
    return SplatU(a) >> NibbleShifts(0);
  } else {
    uint16_t a;
    std::memcpy(&a, bytes, 2);
    return SplatU(a) >> NibbleShifts(0);
  }
}

/// The levels of a packed weight's codes. Only the table for its number of bits is filled.
struct LevelTables {
  Table16 nibbles = {};
  Table256 bytes;
};

LOWRANK_INLINE void LoadTables(const QuantView& w, LevelTables* tables) {
  if (w.format->levels == 16) {
    tables->nibbles = LoadTable(w.codebook);
  } else {
    LoadTable(w.codebook, &tables->bytes);
  }
}

/// Decodes elements [begin, begin + count) of a planar weight (planes.h).
static void DecodePlanes(const QuantView& w, const LevelTables& tables, DType round_to,
                         int64_t begin, int64_t count, float* out);

/// Decodes elements [begin, begin + count) of a packed weight to f32: codebook[code] · scale,
/// rounded once, then once more to `round_to`.
static inline void DecodeRun(const QuantView& w, const LevelTables& tables, DType round_to,
                             int64_t begin, int64_t count, float* out) {
  if (w.planar()) {
    DecodePlanes(w, tables, round_to, begin, count, out);
    return;
  }
  const Table16& table = tables.nibbles;
  const int block_shift = __builtin_ctzll(static_cast<uint64_t>(w.blocksize));
  int64_t e = begin;
  const int64_t end = begin + count;
  auto scalar = [&](int64_t i, float scale) {
    uint8_t code = w.format->bits == 8 ? w.codes[i] : w.codes[i >> 1];
    if (w.format->bits == 4) code = (i & 1) == 0 ? code >> 4 : code & 15;
    return RoundTo(round_to, Splat(w.codebook[code] * scale))[0];
  };
  while (e < end) {
    const int64_t block = e >> block_shift;
    const int64_t stop = Min((block + 1) << block_shift, end);
    const float scale = BlockScale(w, block);
    const VecF scales = Splat(scale);
    if (w.format->bits == 4) {
      if ((e & 1) != 0) {
        *out++ = scalar(e, scale);
        ++e;
      }
      for (; e + kVL <= stop; e += kVL, out += kVL) {
        const VecF value = Lookup(table, SpreadCodes(w.codes + (e >> 1))) * scales;
        Store(out, RoundTo(round_to, value));
      }
      // Less than a vector is left before the scale changes or the run ends, because blocks and
      // rows do not start together. Its codes are read as a whole vector, unless they are the
      // weight's last.
      const int64_t rest = stop - e;
      if (rest > 0) {
        const uint8_t* codes = w.codes + (e >> 1);
        uint8_t last[kVL / 2] = {};
        if ((e >> 1) + kVL / 2 > static_cast<int64_t>(w.code_bytes())) {
          std::memcpy(last, codes, static_cast<size_t>(rest + 1) / 2);
          codes = last;
        }
        const VecF value = Lookup(table, SpreadCodes(codes)) * scales;
        StoreFirst(out, RoundTo(round_to, value), rest);
        out += rest;
        e = stop;
      }
    } else {
      WithLevels(tables.bytes, [&](auto bytes) __attribute__((always_inline)) {
        const Levels<bytes()> levels(tables.bytes);
        for (; e + 4 * kVL <= stop; e += 4 * kVL, out += 4 * kVL) {
          VecF values[4];
          levels.Run(w.codes + e, values);
#pragma GCC unroll 4
          for (int j = 0; j < 4; ++j) {
            Store(out + j * kVL, RoundTo(round_to, values[j] * scales));
          }
        }
      });
    }
    for (; e < stop; ++e) *out++ = scalar(e, scale);
  }
}

/// gate(m, k): 0 or 1 / (1 - p), from the generator or from a mask.
struct Gate {
  bool active = false;
  uint64_t seed = 0;
  uint32_t threshold = 0;
  float kept = 1;  // 1 / (1 - p)
  TensorView mask;
  int64_t cols = 0;  // K
  // Room for one bit per element, [M][K / 8] bytes. The first user of the gate draws and stores the
  // bits; once all are `drawn`, later users read them. Only for a K that satisfies CanNote().
  uint8_t* bits = nullptr;
  bool drawn = false;

  /// A row then has whole vectors and groups of draws, so rows share no byte of bits.
  bool CanNote() const { return kHasLaneBits && active && !mask.present && cols % 16 == 0; }
};

LOWRANK_INLINE Gate MakeGate(const DropoutSpec& dropout, int64_t cols) {
  Gate gate;
  gate.active = dropout.p > 0 || dropout.mask.present;
  gate.seed = dropout.seed;
  gate.threshold = DropoutThreshold(dropout.p);
  gate.kept = static_cast<float>(1.0 / (1.0 - dropout.p));
  gate.mask = dropout.mask;
  gate.cols = cols;
  return gate;
}

/// values[i] *= gate(m, k0 + i). A dropped element becomes zero whatever it held (even NaN).
static inline void ApplyGate(const Gate& gate, int64_t m, int64_t k0, int64_t count,
                             float* values) {
  const int64_t begin = m * gate.cols + k0;
  if (gate.mask.present) {
    for (int64_t i = 0; i < count; ++i) {
      const bool keep = ScalarWiden(gate.mask.data, gate.mask.dtype, begin + i) != 0;
      values[i] = keep ? values[i] * gate.kept : 0.0f;
    }
    return;
  }
  if (gate.drawn) {
    const uint8_t* bits = gate.bits + begin / 8;
    for (int64_t i = 0; i < count; i += kVL) {
      Store(values + i, Where(LoadLaneBits(bits + i / 8), Load(values + i) * gate.kept));
    }
    return;
  }
  uint32_t draws[kDrawRun];
  for (int64_t done = 0; done < count;) {
    const int64_t e = begin + done;
    const int skip = static_cast<int>(e & 3);
    const int64_t run = Min(count - done, kDrawRun - skip);
    DropoutDraws(gate.seed, static_cast<uint64_t>(e) >> 2, CeilDiv(run + skip, 4), draws);
    const uint32_t* draw = draws + skip;
    int64_t i = 0;
    for (; i + kVL <= run; i += kVL) {
      float* value = values + done + i;
      const LaneMask kept = AtLeast(LoadU(draw + i), SplatU(gate.threshold));
      if (gate.bits != nullptr) StoreLaneBits(gate.bits + (e + i) / 8, kept);
      Store(value, Where(kept, Load(value) * gate.kept));
    }
    for (; i < run; ++i) {
      float& value = values[done + i];
      value = draw[i] >= gate.threshold ? value * gate.kept : 0.0f;
    }
    done += run;
  }
}

/// A matrix operand whose rows are available as f32: dense or packed, possibly gated.
struct RowSource {
  const TensorView* dense = nullptr;
  const TensorView* more = nullptr;  // rows that follow those of `dense`, with its dtype and width
  const QuantView* quant = nullptr;
  DType round_to = DType::kF32;        // packed weights are rounded to the activations' dtype
  const Gate* gate = nullptr;          // dropout over this matrix
  float factor = 1;                    // scaling, applied to dense rows
  const int32_t* index = nullptr;      // the stored row of row i of a dense matrix, if it is not i
  const float* row_factors = nullptr;  // one per row, times `factor`
  int64_t rows = 0;
  int64_t cols = 0;
  LevelTables tables;

  /// Are dense rows read as they are stored?
  bool AsStored() const {
    return gate == nullptr && factor == 1 && index == nullptr && row_factors == nullptr;
  }
  /// Are rows [row, row + count) read as stored, one after another? Then they start at
  /// StoredRow(row).
  bool AsStored(int64_t row, int64_t count) const {
    return AsStored() && (more == nullptr || row >= dense->rows || row + count <= dense->rows);
  }
  const char* StoredRow(int64_t row) const {
    const TensorView& view = ViewOf(&row);
    return static_cast<const char*>(view.data) +
           row * cols * static_cast<int64_t>(DTypeBytes(view.dtype));
  }
  /// The view that contains dense row `*row`, which becomes its row in that view.
  const TensorView& ViewOf(int64_t* row) const {
    if (more == nullptr || *row < dense->rows) return *dense;
    *row -= dense->rows;
    return *more;
  }
};

LOWRANK_INLINE RowSource DenseRows(const TensorView& view) {
  RowSource source;
  source.dense = &view;
  source.rows = view.rows;
  source.cols = view.cols;
  return source;
}

LOWRANK_INLINE void Append(const TensorView& more, RowSource* rows) {
  rows->more = &more;
  rows->rows += more.rows;
}

LOWRANK_INLINE RowSource WeightRows(const WeightView& w, DType activations) {
  if (w.dense.present) return DenseRows(w.dense);
  RowSource source;
  source.quant = &w.quant;
  source.round_to = activations;
  source.rows = w.quant.rows;
  source.cols = w.quant.cols;
  LoadTables(w.quant, &source.tables);
  return source;
}

/// Columns [c0, c0 + count) of row `row`, in f32.
static inline void RowAsFloat(const RowSource& source, int64_t row, int64_t c0, int64_t count,
                              float* out) {
  if (source.quant != nullptr) {
    DecodeRun(*source.quant, source.tables, source.round_to, row * source.cols + c0, count, out);
    return;
  }
  const int64_t stored = source.index == nullptr ? row : source.index[row];
  int64_t own = stored;
  const TensorView& view = source.ViewOf(&own);
  WidenRun(view.data, view.dtype, own * source.cols + c0, count, out);
  float factor = source.factor;
  if (source.row_factors != nullptr) factor *= source.row_factors[row];
  if (factor != 1) {
    for (int64_t i = 0; i < count; ++i) out[i] *= factor;
  }
  if (source.gate != nullptr) ApplyGate(*source.gate, stored, c0, count, out);
}

/// Prefetches the scales of `count` elements from `begin` on.
LOWRANK_INLINE void PrefetchScales(const QuantView& w, int64_t begin, int64_t count) {
  const int shift = __builtin_ctzll(static_cast<uint64_t>(w.blocksize));
  const int64_t bytes = w.absmax != nullptr ? 4 : 1;
  const char* scales = w.absmax != nullptr ? reinterpret_cast<const char*>(w.absmax)
                                           : reinterpret_cast<const char*>(w.absmax_8bit);
  const int64_t end = ((begin + count - 1) >> shift) * bytes;
  for (int64_t at = (begin >> shift) * bytes; at <= end; at += 64) {
    __builtin_prefetch(scales + at, 0, 2);
  }
}

/// Prefetches numbers [at, at + count) of a plane.
LOWRANK_INLINE void PrefetchNumbers(const void* data, PlaneType type, int64_t at, int64_t count) {
  if (data == nullptr) return;
  const int64_t bytes = type == PlaneType::kByte ? 1 : type == PlaneType::kF32 ? 4 : 2;
  const char* from = static_cast<const char*>(data) + at * bytes;
  for (int64_t i = 0; i < count * bytes; i += 64) __builtin_prefetch(from + i, 0, 2);
}

/// Prefetches the factors of columns [c0, c0 + count) of a row of a planar weight.
LOWRANK_INLINE void PrefetchFactors(const QuantView& w, int64_t row, int64_t c0, int64_t count) {
  const Planes& planes = w.planes;
  if (planes.grid == PlaneGrid::kCyclic || planes.grid == PlaneGrid::kOrdered) return;
  const int64_t at = PlaneEntry(planes, w.cols, row, c0);
  const int64_t entries = (count - 1) / planes.grid_span + 1;
  PrefetchNumbers(planes.scale.data, planes.scale.type, at, entries);
  PrefetchNumbers(planes.zero, planes.zero_type, at, entries);
  PrefetchNumbers(planes.min.data, planes.min.type, at, entries);
}

/// Prefetches the lines that RowAsFloat(row, c0, count) will read. A block takes one or two lines
/// of each of many rows, a pattern that the hardware does not predict. Without prefetching, those
/// misses took a tenth of a product over NF4.
LOWRANK_INLINE void PrefetchRow(const RowSource& source, int64_t row, int64_t c0, int64_t count) {
  if (row >= source.rows || c0 >= source.cols) return;
  if (source.index != nullptr) row = source.index[row];
  constexpr int64_t kLine = 64;
  const int64_t begin = row * source.cols + c0;
  const char* bytes;
  int64_t size;
  if (source.quant != nullptr && source.quant->planar()) {
    const Planes& planes = source.quant->planes;
    bytes = reinterpret_cast<const char*>(source.quant->codes) + row * planes.row_bytes +
            c0 * planes.bits / 8;
    size = count * planes.bits / 8;
    PrefetchFactors(*source.quant, row, c0, count);
  } else if (source.quant != nullptr) {
    const QuantView& w = *source.quant;
    const int half = w.format->bits == 4 ? 1 : 0;
    bytes = reinterpret_cast<const char*>(w.codes) + (begin >> half);
    size = count >> half;
    PrefetchScales(w, begin, count);
  } else {
    const int64_t elem = static_cast<int64_t>(DTypeBytes(source.dense->dtype));
    bytes = static_cast<const char*>(source.dense->data) + begin * elem;
    size = count * elem;
  }
  const int64_t before = static_cast<int64_t>(reinterpret_cast<uintptr_t>(bytes) % kLine);
  for (int64_t at = -before; at < size; at += kLine) __builtin_prefetch(bytes + at, 0, 2);
}

}  // namespace lowrank::cpu::LOWRANK_ISA
