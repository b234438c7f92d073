/// Blockwise dequantisation, streaming.
///
///   y[i] = codebook[code[i]] · scale(i / blocksize), rounded once to y's type
///   scale(b) = absmax[b], or absmax_codebook[absmax_8bit[b]] · nested_absmax[b / nested_blocksize]
///              + absmax_offset, product and sum rounded separately
///
/// Operands   codes [N, K] packed as QuantView says · y [N, K] f32 | bf16 | f16
/// Grid       ceil(elems / (kThreads · kUnroll · elements of 16 bytes of y))
/// Shared     the codebook, 64 bytes or 1,024, and that of the scales, 1,024
/// Numerics   f32 product, one rounding: equal bits on every device
/// Needs      blocks of 32 elements or more, a power of two. Pointers of any alignment: where y is
///            not 16-byte aligned, elements go one by one.
///
/// Budget     NF4 to bf16: 0.5625 bytes in, 2 out. A lane writes 16 bytes, so a warp's store is 512
///            in one run; its codes are then 4 bytes a lane, 128 in one run: 16-byte loads of codes
///            would scatter the stores, which are four fifths of the bytes. kUnroll of both are in
///            flight a lane (32 KiB of codes a multiprocessor). At 3.0 TB/s each of 132
///            multiprocessors sees 5.1 elements a clock at 1.755 GHz; each is one lookup (16 words
///            in 16 banks: never a conflict), one product and 8 to 10 integer instructions: about
///            55 of 128 issue slots, 5 of 32 shared-memory lanes. So the stream sets the time.
///
///            int8: 256 entries, so that 32 random lanes share banks (2.9 wavefronts, counted,
///            where 1 is ideal). At 4.3 elements a clock that is 40 per cent of what the banks
///            serve; 32 copies would be free of it and cost 32 KiB and their filling a block of
///            threads.
#include "cuda/common/element.cuh"
#include "native/host_device/params/dequantize.h"

namespace lowrank::gpu {
namespace {

constexpr int kThreads = kDequantizeThreads;
constexpr int kUnroll = kDequantizeUnroll;
static_assert(kThreads == 256, "a thread brings one entry of the scales' codebook");

LOWRANK_DEVICE float BlockScale(const DequantizeParams& p, const float* s_absmax_codebook,
                                int64_t block) {
  if (p.absmax != nullptr) return p.absmax[block];
  const float nested = p.nested_absmax[block / p.nested_blocksize];
  const float product = s_absmax_codebook[p.absmax_8bit[block]] * nested;
  return product + *p.absmax_offset;
}

template <int kBits>
LOWRANK_DEVICE uint32_t LoadCode(const uint8_t* g_codes, int64_t index) {
  if constexpr (kBits == 8) return g_codes[index];
  const uint32_t pair = g_codes[index >> 1];
  return (index & 1) == 0 ? pair >> 4 : pair & 15u;
}

/// The codes of one group of y: 2 to 8 bytes.
template <int kBytes>
LOWRANK_DEVICE uint64_t LoadCodes(const uint8_t* g_codes, int64_t group) {
  if constexpr (kBytes == 8) {
    const uint2 word = reinterpret_cast<const uint2*>(g_codes)[group];
    return static_cast<uint64_t>(word.y) << 32 | word.x;
  } else if constexpr (kBytes == 4) {
    return reinterpret_cast<const uint32_t*>(g_codes)[group];
  } else {
    return reinterpret_cast<const uint16_t*>(g_codes)[group];
  }
}

template <typename T, int kBits>
LOWRANK_DEVICE void DequantizeBody(const DequantizeParams& p) {
  constexpr int kElems = Group<T>::kElems;
  constexpr int kCodeBytes = kElems * kBits / 8;
  constexpr int kLevels = 1 << kBits;
  using Storage = DequantizeShared<kLevels>;
  Storage& s = DynamicShared<Storage>();
  for (int i = static_cast<int>(threadIdx.x); i < kLevels; i += kThreads) {
    s.codebook[i] = p.codebook[i];
  }
  if (p.absmax == nullptr) s.absmax_codebook[threadIdx.x] = p.absmax_codebook[threadIdx.x];
  __syncthreads();

  const int64_t first = static_cast<int64_t>(blockIdx.x) * (kThreads * kUnroll) + threadIdx.x;
  auto is_whole = [&](int64_t group) { return p.vector != 0 && (group + 1) * kElems <= p.elems; };
  uint64_t codes[kUnroll];
  float scale[kUnroll];
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    const int64_t group = first + u * kThreads;
    if (!is_whole(group)) continue;
    codes[u] = LoadCodes<kCodeBytes>(p.codes, group);
    // A group starts at a multiple of its size, so it is in one block.
    scale[u] = BlockScale(p, s.absmax_codebook, (group * kElems) >> p.blocksize_log2);
  }
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    const int64_t group = first + u * kThreads;
    if (!is_whole(group)) {
      for (int64_t i = group * kElems; i < p.elems && i < (group + 1) * kElems; ++i) {
        const float level = s.codebook[LoadCode<kBits>(p.codes, i)];
        StoreElement(T(), p.y, i, level * BlockScale(p, s.absmax_codebook, i >> p.blocksize_log2));
      }
      continue;
    }
    float value[kElems];
#pragma unroll
    for (int i = 0; i < kElems; ++i) {
      // The first of a byte's two codes is in the high nibble.
      const int shift = kBits == 8 ? 8 * i : 4 * (i ^ 1);
      value[i] = s.codebook[static_cast<uint32_t>(codes[u] >> shift) & (kLevels - 1)] * scale[u];
    }
    static_cast<uint4*>(p.y)[group] = Pack(T(), value);
  }
}

}  // namespace

#define LOWRANK_DEQUANTIZE_KERNELS(X) \
  X(4bit_f32, ElementF32, 4)          \
  X(4bit_bf16, ElementBF16, 4)        \
  X(4bit_f16, ElementF16, 4)          \
  X(8bit_f32, ElementF32, 8)          \
  X(8bit_bf16, ElementBF16, 8)        \
  X(8bit_f16, ElementF16, 8)

#define LOWRANK_DEFINE(name, T, kBits)                                        \
  LOWRANK_KERNEL(dequantize_##name##_kernel, DequantizeParams, kThreads, 4) { \
    DequantizeBody<T, kBits>(p);                                              \
  }
LOWRANK_DEQUANTIZE_KERNELS(LOWRANK_DEFINE)
#undef LOWRANK_DEFINE

}  // namespace lowrank::gpu
