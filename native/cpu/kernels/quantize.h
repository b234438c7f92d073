/// Blockwise quantisation and dequantisation, and casts.
///
///   absmax[b] = max |w| over block b,   code = rank_to_code[#(thresholds < w · (1 / absmax))]
///   w'        = codebook[code] · absmax
///
/// Operands   w [N, K] f32 | bf16 | f16 · codes packed as QuantView says · absmax [blocks] f32
/// Numerics   products and comparisons in f32 only: the same bytes on every instruction set. A
/// block
///            whose 1 / absmax overflows (zeros, or absmax < 2^-128) holds zero_code, as the peer's
///            does; its absmax is kept.
/// Tasks      whole blocks, an even number of elements each, so no two tasks share a byte
#pragma once

#include "native/cpu/kernels/encode.h"

namespace lowrank::cpu::LOWRANK_ISA {

// Elements a task: 64 KiB of f32, a multiple of every blocksize.
constexpr int64_t kTaskElems = 16384;
constexpr int64_t kNestedBlock = 256;

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

/// absmax -> absmax_8bit, nested_absmax, absmax_offset, as bitsandbytes' double quantisation: the
/// mean is taken off, the rest goes through the 8-bit map in blocks of 256.
LOWRANK_INLINE void QuantizeAbsmax(Run& run, const float* absmax, const FormatRow& map,
                                   const QuantView& out) {
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

static Outcome Quantize(const QuantizeOp& op, const RunContext& context) {
  Run run(context);
  const QuantView& out = op.out;
  const int64_t elems = op.w.rows * op.w.cols;
  const int64_t blocks = CeilDiv(elems, out.blocksize);
  const bool nested = out.absmax_8bit != nullptr;
  float* absmax = nested ? run.Get<float>(kPackedSlot, blocks) : out.absmax;
  if (nested && absmax == nullptr) return run.Result();
  int64_t bad = elems;
  BucketSearch search;
  const Encoder encoder = MakeEncoder(*out.format, &search);
  run.ForEach(CeilDiv(elems, kTaskElems), elems, [&](int64_t task) {
    if (run.Stopped()) return;
    alignas(64) float widened[4096];
    const int64_t end = Min((task + 1) * kTaskElems, elems);
    for (int64_t begin = task * kTaskElems; begin < end; begin += 4096) {
      const int64_t piece = Min(4096, end - begin);
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
    }
  });
  if (run.failure == 0 && bad < elems) return {Code::kNonFinite, bad};
  if (nested && run.failure == 0) {
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
    QuantizeAbsmax(run, absmax, map, out);
  }
  return run.Result();
}

static Outcome Dequantize(const DequantizeOp& op, const RunContext& context) {
  Run run(context);
  const int64_t elems = op.w.rows * op.w.cols;
  Table16 table = {};
  if (op.w.format->bits == 4) table = LoadTable(op.w.codebook);
  run.ForEach(CeilDiv(elems, kTaskElems), elems, [&](int64_t task) {
    if (run.Stopped()) return;
    alignas(64) float values[4096];
    const int64_t end = Min((task + 1) * kTaskElems, elems);
    for (int64_t begin = task * kTaskElems; begin < end; begin += 4096) {
      const int64_t count = Min(4096, end - begin);
      if (op.y.dtype == DType::kF32) {
        DecodeRun(op.w, table, DType::kF32, begin, count, static_cast<float*>(op.y.data) + begin);
      } else {
        DecodeRun(op.w, table, DType::kF32, begin, count, values);
        NarrowRun(op.y.data, op.y.dtype, begin, count, values);
      }
    }
  });
  return run.Result();
}

static Outcome Cast(const CastOp& op, const RunContext& context) {
  Run run(context);
  const int64_t elems = op.src.rows * op.src.cols;
  run.ForEach(CeilDiv(elems, kTaskElems), elems, [&](int64_t task) {
    if (run.Stopped()) return;
    alignas(64) float values[4096];
    const int64_t end = Min((task + 1) * kTaskElems, elems);
    for (int64_t begin = task * kTaskElems; begin < end; begin += 4096) {
      const int64_t count = Min(4096, end - begin);
      WidenRun(op.src.data, op.src.dtype, begin, count, values);
      NarrowRun(op.dst.data, op.dst.dtype, begin, count, values);
    }
  });
  return run.Result();
}

}  // namespace lowrank::cpu::LOWRANK_ISA
