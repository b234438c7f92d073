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

#include "native/cpu/kernels/gemm.h"

namespace lowrank::cpu::LOWRANK_ISA {

// Elements a task: 64 KiB of f32, a multiple of every blocksize.
constexpr int64_t kTaskElems = 16384;
constexpr int64_t kNestedBlock = 256;

/// Thresholds and codes of a format, padded to 16 so that a 4-bit rank is a binary search in
/// registers.
struct Encoder {
  const FormatRow* format;
  Table16 thresholds;
  Table16 codes;  // bit patterns
};

LOWRANK_INLINE Encoder MakeEncoder(const FormatRow& format) {
  Encoder encoder;
  encoder.format = &format;
  if (format.bits == 4) {
    float thresholds[16];
    float codes[16];
    for (int i = 0; i < 16; ++i) {
      thresholds[i] = i < format.threshold_count ? format.thresholds[i] : __builtin_inff();
      const uint32_t code = format.rank_to_code[i <= format.threshold_count ? i : 0];
      std::memcpy(&codes[i], &code, 4);
    }
    encoder.thresholds = LoadTable(thresholds);
    encoder.codes = LoadTable(codes);
  }
  return encoder;
}

/// 4-bit codes of kVL normalised values.
LOWRANK_INLINE VecU EncodeNibbles(const Encoder& encoder, VecF normalised) {
  VecF ranked = normalised;
  if (encoder.format->sign_magnitude) ranked = AsFloat(Bits(normalised) & 0x7fffffffu);
  VecU rank = {};
#pragma GCC unroll 4
  for (uint32_t step = 8; step != 0; step >>= 1) {
    const VecU above =
        reinterpret_cast<VecU>(ranked > Lookup(encoder.thresholds, rank + (step - 1)));
    rank += above & step;
  }
  VecU code = Bits(Lookup(encoder.codes, rank));
  if (encoder.format->sign_magnitude) {
    code |= reinterpret_cast<VecU>(normalised < 0.0f) & 8u;
  }
  return code;
}

/// Ranks of kVL values among the 255 thresholds of an 8-bit format: a binary search in all lanes.
LOWRANK_INLINE VecU EncodeBytes(const FormatRow& format, VecF normalised) {
  VecU rank = {};
  for (uint32_t step = 128; step != 0; step >>= 1) {
    const VecF threshold = Gather(format.thresholds, rank + (step - 1));
    rank += reinterpret_cast<VecU>(normalised > threshold) & step;
  }
  return rank;
}

/// Codes of `count` f32 values of one block with this absmax, one a byte.
LOWRANK_INLINE void EncodeBlock(const Encoder& encoder, const float* in, int64_t count,
                                float absmax, uint8_t* codes) {
  const FormatRow& format = *encoder.format;
  const float inverse = 1.0f / absmax;
  if (inverse > 3.402823466e38f) {
    std::memset(codes, format.zero_code, static_cast<size_t>(count));
    return;
  }
  auto normalised = [&](VecF v) { return v * inverse; };
  int64_t i = 0;
  if (format.bits == 4) {
    for (; i + kVL <= count; i += kVL) {
      const VecB bytes =
          __builtin_convertvector(EncodeNibbles(encoder, normalised(Load(in + i))), VecB);
      *reinterpret_cast<LooseB*>(codes + i) = bytes;
    }
    for (; i < count; ++i) {
      codes[i] = static_cast<uint8_t>(EncodeNibbles(encoder, normalised(Splat(in[i])))[0]);
    }
    return;
  }
  for (; i < count; i += kVL) {
    VecF values = {};
    const int64_t lanes = Min(kVL, count - i);
    std::memcpy(&values, in + i, static_cast<size_t>(lanes) * sizeof(float));
    const VecU rank = EncodeBytes(format, normalised(values));
    for (int64_t j = 0; j < lanes; ++j) codes[i + j] = format.rank_to_code[rank[j]];
  }
}

/// max |v| as f32 bits, whose order is that of the magnitudes and puts Inf and NaN last.
LOWRANK_INLINE uint32_t MaxMagnitude(const float* in, int64_t count) {
  VecU max = {};
  int64_t i = 0;
  for (; i + kVL <= count; i += kVL) {
    const VecU bits = Bits(Load(in + i)) & 0x7fffffffu;
    max = bits > max ? bits : max;
  }
  uint32_t result = MaxLane(max);
  for (; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, in + i, 4);
    bits &= 0x7fffffffu;
    result = bits > result ? bits : result;
  }
  return result;
}

/// Two codes a byte, the first in the high nibble. `count` is even.
LOWRANK_INLINE void PackNibbles(const uint8_t* codes, int64_t count, uint8_t* packed) {
  for (int64_t i = 0; i < count / 2; ++i) {
    packed[i] = static_cast<uint8_t>(codes[2 * i] << 4 | codes[2 * i + 1]);
  }
}

LOWRANK_INLINE void AtomicMin(int64_t* target, int64_t value) {
  int64_t seen = __atomic_load_n(target, __ATOMIC_RELAXED);
  while (value < seen && !__atomic_compare_exchange_n(target, &seen, value, true, __ATOMIC_RELAXED,
                                                      __ATOMIC_RELAXED)) {
  }
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
  const Encoder encoder = MakeEncoder(map);
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
    float nested;
    std::memcpy(&nested, &max, 4);
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
  const Encoder encoder = MakeEncoder(*out.format);
  run.ForEach(CeilDiv(elems, kTaskElems), elems, [&](int64_t task) {
    if (run.Stopped()) return;
    alignas(64) float values[4096];
    alignas(64) uint8_t codes[4096];
    const int64_t end = Min((task + 1) * kTaskElems, elems);
    for (int64_t begin = task * kTaskElems; begin < end; begin += 4096) {
      const int64_t piece = Min(4096, end - begin);
      WidenRun(op.w.data, op.w.dtype, begin, piece, values);
      for (int64_t i = 0; i < piece; i += out.blocksize) {
        const int64_t count = Min(out.blocksize, piece - i);
        const uint32_t max = MaxMagnitude(values + i, count);
        if (max >= 0x7f800000u) {
          for (int64_t j = 0; j < count; ++j) {
            uint32_t bits;
            std::memcpy(&bits, values + i + j, 4);
            if ((bits & 0x7f800000u) == 0x7f800000u) {
              AtomicMin(&bad, begin + i + j);
              break;
            }
          }
        }
        float scale;
        std::memcpy(&scale, &max, 4);
        absmax[(begin + i) / out.blocksize] = scale;
        uint8_t* target = out.format->bits == 8 ? out.codes + begin + i : codes + i;
        EncodeBlock(encoder, values + i, count, scale, target);
      }
      if (out.format->bits == 4) {
        PackNibbles(codes, piece & ~int64_t{1}, out.codes + begin / 2);
        if ((piece & 1) != 0) {
          out.codes[(begin + piece) / 2] =
              static_cast<uint8_t>(codes[piece - 1] << 4 | out.format->zero_code);
        }
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
