/// Blockwise quantisation and dequantisation, and casts.
///
///   absmax[b] = max |w| over block b,   code = rank_to_code[#(thresholds < w · (1 / absmax))]
///   w'        = codebook[code] · absmax
///
/// Rowwise (LLM.int8, Dettmers et al., 2022, arXiv:2208.07339), for values rounded to f16 as in
/// bitsandbytes:
///
///   absmax[n] = max |w[n, :]|, in all blocks of the row
///   code      = round(w · (127 / absmax)), ties to even, + 128; 128 for a row of zeros
///
/// Operands   w [N, K] f32 | bf16 | f16 · codes packed as QuantView says · absmax [blocks] f32
/// Numerics   products and comparisons in f32 only: the same bytes on every instruction set. A
///            block whose 1 / absmax overflows (zeros, or absmax < 2^-128) holds zero_code, as in
///            bitsandbytes, and keeps its absmax.
/// Tasks      whole blocks, an even number of elements each, so no two tasks share a byte
#pragma once

#include "native/cpu/kernels/decode/encode.h"
#include "native/cpu/kernels/decode/granule.h"
#include "native/cpu/kernels/int8/pack_int8.h"

namespace lowrank::cpu::LOWRANK_ISA {

// Elements between two cancellation checks: 16 KiB of f32, a multiple of every blocksize.
constexpr int64_t kPieceElems = 4096;
constexpr int64_t kNestedBlock = 256;

/// Calls body(begin, count) for pieces of `elems` elements. Tasks are long runs of pieces: at the
/// start of each the prefetchers must find the stream again, which took 1.3 us, as long as 3,000
/// elements. Nothing is summed over elements, so results do not depend on the cut.
template <typename Body>
LOWRANK_INLINE void ForEachPiece(Run& run, int64_t elems, const Body& body) {
  const int64_t runs = run.context.pool->threads() * kTasksPerThread;
  const int64_t task_elems = CeilDiv(CeilDiv(elems, runs), kPieceElems) * kPieceElems;
  if (elems == 0) return;
  run.ForEach(CeilDiv(elems, task_elems), elems, [&](int64_t task) {
    const int64_t end = Min((task + 1) * task_elems, elems);
    for (int64_t begin = task * task_elems; begin < end && !run.Stopped(); begin += kPieceElems) {
      body(begin, Min(kPieceElems, end - begin));
    }
  });
}

LOWRANK_INLINE void AtomicMin(int64_t* target, int64_t value) {
  int64_t seen = __atomic_load_n(target, __ATOMIC_RELAXED);
  while (value < seen && !__atomic_compare_exchange_n(target, &seen, value, true, __ATOMIC_RELAXED,
                                                      __ATOMIC_RELAXED)) {
  }
}

/// There is one.
LOWRANK_INLINE int64_t FirstNonFinite(const float* in, int64_t count) {
  int64_t i = 0;
  while (i < count - 1 && (BitsOf(in[i]) & 0x7f800000u) != 0x7f800000u) ++i;
  return i;
}

/// absmax -> absmax_8bit, nested_absmax, absmax_offset, as in bitsandbytes' double quantisation:
/// the mean is subtracted, and the rest goes through the 8-bit map in blocks of 256.
static void QuantizeAbsmax(Run& run, const float* absmax, const QuantView& out) {
  FormatRow map = *out.format;  // the int8 row's search over the nested codebook
  float midpoints[255];
  uint8_t identity[256];
  for (int i = 0; i < 256; ++i) {
    identity[i] = static_cast<uint8_t>(i);
    if (i < 255) midpoints[i] = (out.absmax_codebook[i] + out.absmax_codebook[i + 1]) * 0.5f;
  }
  map.bits = 8;
  map.thresholds = midpoints;
  map.threshold_count = 255;
  map.rank_to_code = identity;
  map.sign_magnitude = false;
  map.zero_code = 0;
  const int64_t blocks = (out.rows * out.cols + out.blocksize - 1) / out.blocksize;
  double sum = 0;
  for (int64_t b = 0; b < blocks; ++b) sum += static_cast<double>(absmax[b]);
  const float offset = blocks == 0 ? 0.0f : static_cast<float>(sum / static_cast<double>(blocks));
  *out.absmax_offset = offset;
  BucketSearch search;
  const Encoder encoder = MakeEncoder(map, &search);
  float rest[kNestedBlock];
  for (int64_t b = 0; b < blocks; b += out.nested_blocksize) {
    if (run.Stopped()) return;
    const int64_t end = Min(b + out.nested_blocksize, blocks);
    uint32_t max = 0;
    for (int64_t i = b; i < end; i += kNestedBlock) {
      const int64_t count = Min(kNestedBlock, end - i);
      for (int64_t j = 0; j < count; ++j) rest[j] = absmax[i + j] - offset;
      const uint32_t part = MaxMagnitude(rest, count);
      max = part > max ? part : max;
    }
    const float nested = FloatOf(max);
    out.nested_absmax[b / out.nested_blocksize] = nested;
    for (int64_t i = b; i < end; i += kNestedBlock) {
      const int64_t count = Min(kNestedBlock, end - i);
      for (int64_t j = 0; j < count; ++j) rest[j] = absmax[i + j] - offset;
      EncodeBlock(encoder, rest, count, nested, out.absmax_8bit + i);
    }
  }
}

/// Quantises row n of a rowwise weight by whole vectors, in two passes over pieces of it. Returns
/// its first element that is not finite in f16, or K.
LOWRANK_INLINE int64_t QuantizeRowwise(const QuantizeOp& op, int64_t n) {
  const QuantView& out = op.out;
  const int64_t K = out.cols;
  alignas(64) float values[kPieceElems];
  const auto load = [&](int64_t k) {
    const int64_t count = Min(kPieceElems, K - k);
    WidenRun(op.w.data, op.w.dtype, n * K + k, count, values);
    for (int64_t i = 0; i < count; i += kVL) {
      Store(values + i, RoundTo(DType::kF16, Load(values + i)));
    }
    return count;
  };
  uint32_t max = 0;
  for (int64_t k = 0; k < K; k += kPieceElems) {
    const int64_t count = load(k);
    const uint32_t part = MaxMagnitude(values, count);
    if (part >= 0x7f800000u) return k + FirstNonFinite(values, count);
    max = part > max ? part : max;
  }
  const float absmax = FloatOf(max);
  for (int64_t b = 0; b < K / out.blocksize; ++b) {
    out.absmax[n * K / out.blocksize + b] = absmax;
  }
  const VecF scale = Splat(max == 0 ? 0.0f : 127.0f / absmax);
  for (int64_t k = 0; k < K; k += kPieceElems) {
    const int64_t count = K > kPieceElems ? load(k) : K;
    for (int64_t i = 0; i < count; i += kVL) {
      const VecI code = RoundToInt(Load(values + i) * scale) + 128;
      StoreBytes(out.codes + n * K + k + i, reinterpret_cast<VecU>(code));
    }
  }
  return K;
}

LOWRANK_INLINE Outcome QuantizeRowwise(Run& run, const QuantizeOp& op) {
  const int64_t rows = op.w.rows;
  int64_t bad = op.w.elems();
  const int64_t tasks = Min(rows, run.context.pool->threads() * kTasksPerThread);
  run.ForEach(tasks, op.w.elems(), [&](int64_t task) {
    for (int64_t n = task * rows / tasks; n < (task + 1) * rows / tasks; ++n) {
      if (run.Stopped()) return;
      const int64_t k = QuantizeRowwise(op, n);
      if (k < op.w.cols) AtomicMin(&bad, n * op.w.cols + k);
    }
  });
  if (run.failure == 0 && bad < op.w.elems()) return {Code::kNonFinite, bad};
  return run.Result();
}

LOWRANK_OP Outcome Quantize(const QuantizeOp& op, const RunContext& context) {
  Run run(context);
  const QuantView& out = op.out;
  if (out.rowwise) return QuantizeRowwise(run, op);
  const int64_t elems = op.w.rows * op.w.cols;
  const int64_t blocks = CeilDiv(elems, out.blocksize);
  const bool nested = out.absmax_8bit != nullptr;
  float* absmax = nested ? run.Get<float>(kPackedSlot, blocks) : out.absmax;
  if (nested && absmax == nullptr) return run.Result();
  int64_t bad = elems;
  BucketSearch search;
  const Encoder encoder = MakeEncoder(*out.format, &search);
  ForEachPiece(run, elems, [&](int64_t begin, int64_t piece) {
    alignas(64) float widened[kPieceElems];
    const float* values = widened;
    if (op.w.dtype == DType::kF32) {
      values = static_cast<const float*>(op.w.data) + begin;
    } else {
      WidenRun(op.w.data, op.w.dtype, begin, piece, widened);
    }
    for (int64_t i = 0; i < piece; i += out.blocksize) {
      const int64_t count = Min(out.blocksize, piece - i);
      const uint32_t max = MaxMagnitude(values + i, count);
      if (max >= 0x7f800000u) AtomicMin(&bad, begin + i + FirstNonFinite(values + i, count));
      absmax[(begin + i) / out.blocksize] = FloatOf(max);
      uint8_t* codes = out.codes + (out.format->bits == 8 ? begin + i : (begin + i) / 2);
      EncodeBlock(encoder, values + i, count, FloatOf(max), codes);
    }
  });
  if (run.failure == 0 && bad < elems) return {Code::kNonFinite, bad};
  if (nested && run.failure == 0) QuantizeAbsmax(run, absmax, out);
  return run.Result();
}

#if defined(__AVX512F__)
/// Decodes elements [begin, begin + count) of a 4-bit weight, whole granules, to 16 bits. The
/// codebook is scaled and rounded once per granule, as two adjacent tables, and a look-up gives 32
/// elements.
static void DecodeHalves(const QuantView& w, const Table16& table, DType dtype, int64_t begin,
                         int64_t count, uint16_t* out) {
  const GranuleScale scale_of(w);
  const uint8_t* codes = w.codes + begin / 2;
  for (int64_t e = begin; e < begin + count; e += kGranule) {
    const VecF scaled = table.entries * Splat(scale_of(e));
    const VecU rounded = dtype == DType::kBF16 ? RoundBF16(scaled) : RoundF16(scaled);
    const __m512i pair_table = _mm512_broadcast_i64x4(reinterpret_cast<__m256i>(Narrow(rounded)));
#pragma GCC unroll 2
    for (int64_t i = 0; i < kGranule; i += 2 * kVL, out += 2 * kVL) {
      // Spreads a byte to both halves of a lane: the high nibble, which comes first, to the lower
      // one. At most bit 4 is left above an index, and it only selects between equal tables.
      const VecU bytes = WidenBytes(codes);
      codes += kVL;
      const __m512i index = reinterpret_cast<__m512i>(bytes >> 4 | bytes << 16);
      StoreU(out, reinterpret_cast<VecU>(_mm512_permutexvar_epi16(index, pair_table)));
    }
  }
}
#endif

LOWRANK_OP Outcome Dequantize(const DequantizeOp& op, const RunContext& context) {
  Run run(context);
  const int64_t elems = op.w.rows * op.w.cols;
  LevelTables tables;
  LoadTables(op.w, &tables);
  ForEachPiece(run, elems, [&](int64_t begin, int64_t count) {
#if defined(__AVX512F__)
    if (op.y.dtype != DType::kF32 && !op.w.planar() && op.w.format->bits == 4 &&
        op.w.blocksize % kGranule == 0) {
      const int64_t whole = count / kGranule * kGranule;
      DecodeHalves(op.w, tables.nibbles, op.y.dtype, begin, whole,
                   static_cast<uint16_t*>(op.y.data) + begin);
      begin += whole;
      count -= whole;
    }
#endif
    if (op.y.dtype == DType::kF32) {
      DecodeRun(op.w, tables, DType::kF32, begin, count, static_cast<float*>(op.y.data) + begin);
    } else {
      alignas(64) float values[kPieceElems];
      DecodeRun(op.w, tables, DType::kF32, begin, count, values);
      NarrowRun(op.y.data, op.y.dtype, begin, count, values);
    }
  });
  return run.Result();
}

LOWRANK_OP Outcome Cast(const CastOp& op, const RunContext& context) {
  Run run(context);
  const int64_t elems = op.src.rows * op.src.cols;
  ForEachPiece(run, elems, [&](int64_t begin, int64_t count) {
    alignas(64) float values[kPieceElems];
    WidenRun(op.src.data, op.src.dtype, begin, count, values);
    NarrowRun(op.dst.data, op.dst.dtype, begin, count, values);
  });
  return run.Result();
}

}  // namespace lowrank::cpu::LOWRANK_ISA
