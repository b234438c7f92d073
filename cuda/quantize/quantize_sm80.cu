/// Blockwise quantisation, streaming, and the double quantisation of its scales.
///
///   absmax[b] = max |w| over block b
///   code[i]   = rank_to_code[#(thresholds < w[i] · (1 / absmax))], all in f32
///   then, for double quantisation, offset = mean(absmax) and absmax - offset through the 8-bit map
///   in blocks of nested_blocksize
///
/// Operands   w [N, K] f32 | bf16 | f16 · codes packed as QuantView says · absmax [blocks] f32
/// Grid       quantize: one warp a run of kUnroll spans (a span is 32 · 16 bytes of w), or of one
///            block where the block is longer. absmax_sum: kAbsmaxSumsMax blocks of threads at
///            most. absmax_codes: one warp a nested block.
/// Shared     thresholds: 64 bytes, or 2 KiB as a search tree
/// Numerics   the peer's: product with the reciprocal in f32; a block whose 1 / absmax overflows
///            (zeros, or absmax < 2^-128) holds zero_code. The same bytes on every device. A NaN or
///            infinity in w lowers first_non_finite to its index.
/// Needs      blocks of 32 to 4,096 elements, a power of two; w and codes of any alignment
///
/// The mean. The CPU adds absmax in order in double. Scales are f32 multiples of the last bit of
/// the smallest one; while their sum stays below 2^52 of that bit every partial sum is exact, in
/// any order, so the parallel sum has the sequential one's bits. Each block of threads of
/// absmax_codes tests that, and repeats the sum in order where it fails (scales that differ by 2^20
/// and more).
///
/// Budget     NF4 from bf16: 2 bytes in, 0.5625 out. A lane loads 16 bytes (8 elements), 8 lanes a
///            block of 64, absmax by 3 shuffles; kUnroll loads are in flight a lane, 4 · 16 · 2,048
///            threads = 128 KiB a multiprocessor. At 3.0 TB/s each of 132 multiprocessors sees 5.1
///            elements a clock; one costs about 19 instructions (4 to widen it and for the
///            maximum, 1 product, 11 of the search, 3 to place the code): 97 of 128 issue slots;
///            and 3 lookups among 16 words (16 banks: never a conflict): 16 of 32 lanes of shared
///            memory. The search is the closest second to the stream.
///
///            int8: the 255 thresholds stand as a breadth-first tree, whose first six levels cannot
///            conflict; the last two cost about 2.1 wavefronts, so 10.2 an element (1.28 of the
///            ideal, counted) at 4.3 elements a clock: bound by shared memory, 1.4 of the stream's
///            time. 32 copies would be free of it and cost 32 KiB a block of threads.
#include <type_traits>

#include "cuda/common/element.cuh"
#include "native/host_device/params/quantize.h"

namespace lowrank::gpu {
namespace {

constexpr int kThreads = kQuantizeThreads;
constexpr int kWarps = kThreads / 32;
constexpr int kUnroll = kQuantizeUnroll;
constexpr uint32_t kAllLanes = 0xffffffffu;
constexpr uint32_t kInfinity = 0x7f800000u;

// ------------------------------------------------------------------------------------ the search

/// Four times the number of thresholds below v: four steps of a binary search on the byte offset,
/// which is also where the rank's nibble lies in rank_to_code. The first threshold is the same for
/// all, so a register; a later step is a load, a comparison and an addition.
LOWRANK_DEVICE uint32_t RankTimes4(const Thresholds& s_thresholds, float v) {
  const unsigned char* s_bytes = reinterpret_cast<const unsigned char*>(s_thresholds.value);
  uint32_t offset_bytes = 0;
#pragma unroll
  for (uint32_t step = 8; step != 0; step >>= 1) {
    const float threshold =
        *reinterpret_cast<const float*>(s_bytes + offset_bytes + 4 * (step - 1));
    if (v > threshold) offset_bytes += 4 * step;
  }
  return offset_bytes;
}

/// Midpoints of neighbouring levels. Called by the whole block of threads.
LOWRANK_DEVICE void FillTree(ThresholdTree* s_tree, const float* g_codebook) {
  static_assert(kThreads == 256, "a thread brings one level and makes one node");
  const uint32_t node = threadIdx.x;
  s_tree->levels[node] = g_codebook[node];
  __syncthreads();
  if (node != 0) {
    const int depth = 31 - __clz(static_cast<int>(node));
    const uint32_t place = node - (1u << depth);
    const uint32_t rank = ((2 * place + 1) << (7 - depth)) - 1;
    s_tree->node[node] = (s_tree->levels[rank] + s_tree->levels[rank + 1]) * 0.5f;
  }
}

LOWRANK_DEVICE uint32_t Rank(const ThresholdTree& s_tree, float v) {
  uint32_t node = 1;
#pragma unroll
  for (int depth = 0; depth < 8; ++depth) node = 2 * node + (v > s_tree.node[node] ? 1u : 0u);
  return node - 256;
}

// ---------------------------------------------------------------------------------- one group of w

template <typename T, int kBits>
struct Quantizer {
  static constexpr int kElems = Group<T>::kElems;
  using Table = std::conditional_t<kBits == 4, Thresholds, ThresholdTree>;

  const QuantizeParams& p;
  const Table& s_table;

  __device__ __forceinline__ bool IsWhole(int64_t group) const {
    return p.vector != 0 && (group + 1) * kElems <= p.elems;
  }

  /// Elements past the end are zeros, which change no maximum.
  __device__ __forceinline__ void Widen(const uint4& raw, int64_t group,
                                        float (&value)[kElems]) const {
    if (IsWhole(group)) {
      Unpack(T(), raw, value);
      return;
    }
#pragma unroll
    for (int i = 0; i < kElems; ++i) {
      const int64_t index = group * kElems + i;
      value[i] = index < p.elems ? LoadElement(T(), p.w, index) : 0.0f;
    }
  }

  __device__ __forceinline__ uint32_t Encode(float value, float inverse) const {
    const float normalised = value * inverse;
    if constexpr (kBits == 8) {
      return Rank(s_table, normalised);
    } else {
      const bool signed_codes = p.sign_magnitude != 0;
      const uint32_t rank = RankTimes4(s_table, signed_codes ? fabsf(normalised) : normalised);
      const uint32_t code = static_cast<uint32_t>(p.rank_to_code >> rank) & 15u;
      return signed_codes && normalised < 0.0f ? code | 8u : code;
    }
  }

  __device__ __forceinline__ void Store(int64_t group, const float (&value)[kElems],
                                        float absmax) const {
    const int64_t begin = group * kElems;
    if (begin >= p.elems) return;
    const float inverse = 1.0f / absmax;
    const bool zeros = __float_as_uint(inverse) == kInfinity;
    uint64_t packed = 0;
#pragma unroll
    for (int i = 0; i < kElems; ++i) {
      const bool coded = !zeros && begin + i < p.elems;
      const uint64_t code = coded ? Encode(value[i], inverse) : p.zero_code;
      packed |= code << (kBits == 8 ? 8 * i : 4 * (i ^ 1));
    }
    constexpr int kBytes = kElems * kBits / 8;
    if (IsWhole(group)) {
      if constexpr (kBytes == 8) {
        reinterpret_cast<uint2*>(p.codes)[group] =
            make_uint2(static_cast<uint32_t>(packed), static_cast<uint32_t>(packed >> 32));
      } else if constexpr (kBytes == 4) {
        reinterpret_cast<uint32_t*>(p.codes)[group] = static_cast<uint32_t>(packed);
      } else {
        reinterpret_cast<uint16_t*>(p.codes)[group] = static_cast<uint16_t>(packed);
      }
      return;
    }
    const int64_t code_bytes = kBits == 8 ? p.elems : (p.elems + 1) / 2;
#pragma unroll
    for (int i = 0; i < kBytes; ++i) {
      const int64_t at = group * kBytes + i;
      if (at < code_bytes) p.codes[at] = static_cast<uint8_t>(packed >> (8 * i));
    }
  }
};

template <int kElems>
LOWRANK_DEVICE uint32_t MaxMagnitude(const float (&value)[kElems]) {
  uint32_t largest = 0;
#pragma unroll
  for (int i = 0; i < kElems; ++i) {
    const uint32_t magnitude = __float_as_uint(value[i]) & 0x7fffffffu;
    largest = magnitude > largest ? magnitude : largest;
  }
  return largest;
}

/// The largest of `lanes` neighbouring lanes (a power of two), given to all of them. As bits, whose
/// order is that of the magnitudes with Inf and NaN last.
LOWRANK_DEVICE uint32_t MaxOfLanes(uint32_t largest, int lanes) {
  for (int distance = lanes / 2; distance > 0; distance /= 2) {
    const uint32_t other = __shfl_xor_sync(kAllLanes, largest, distance);
    largest = other > largest ? other : largest;
  }
  return largest;
}

template <int kElems>
LOWRANK_DEVICE void ReportNonFinite(const QuantizeParams& p, int64_t begin,
                                    const float (&value)[kElems]) {
#pragma unroll
  for (int i = kElems - 1; i >= 0; --i) {
    if ((__float_as_uint(value[i]) & kInfinity) == kInfinity) {
      atomicMin(reinterpret_cast<unsigned long long*>(p.first_non_finite),
                static_cast<unsigned long long>(begin + i));
    }
  }
}

// ---------------------------------------------------------------------------------------- w ->
// codes

template <typename T, int kBits>
LOWRANK_DEVICE void QuantizeBody(const QuantizeParams& p) {
  using Lane = Quantizer<T, kBits>;
  constexpr int kElems = Lane::kElems;
  typename Lane::Table& s_table = DynamicShared<typename Lane::Table>();
  if constexpr (kBits == 8) {
    FillTree(&s_table, p.codebook);
  } else if (threadIdx.x < 16) {
    s_table.value[threadIdx.x] = p.thresholds.value[threadIdx.x];
  }
  __syncthreads();

  const Lane self{p, s_table};
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  const int64_t groups_per_block = (int64_t{1} << p.blocksize_log2) / kElems;
  auto finish = [&](int64_t group, const float(&value)[kElems], uint32_t largest) {
    const int64_t begin = group * kElems;
    if (largest >= kInfinity) ReportNonFinite(p, begin, value);
    const float absmax = __uint_as_float(largest);
    if (group % groups_per_block == 0 && begin < p.elems) {
      p.absmax[begin >> p.blocksize_log2] = absmax;
    }
    self.Store(group, value, absmax);
  };

  if (groups_per_block <= 32) {
    const int64_t first = warp * (32 * kUnroll) + lane;
    uint4 raw[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t group = first + u * 32;
      if (self.IsWhole(group)) raw[u] = LoadStream16(static_cast<const uint4*>(p.w) + group);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t group = first + u * 32;
      float value[kElems];
      self.Widen(raw[u], group, value);
      finish(group, value, MaxOfLanes(MaxMagnitude(value), static_cast<int>(groups_per_block)));
    }
    return;
  }
  // A block longer than a span: one pass for its maximum, another (from cache) for its codes.
  const int64_t first = warp * groups_per_block + lane;
  auto load = [&](int64_t group, float(&value)[kElems]) {
    uint4 raw = make_uint4(0, 0, 0, 0);
    if (self.IsWhole(group)) raw = static_cast<const uint4*>(p.w)[group];
    self.Widen(raw, group, value);
  };
  uint32_t largest = 0;
#pragma unroll 4
  for (int64_t offset = 0; offset < groups_per_block; offset += 32) {
    float value[kElems];
    load(first + offset, value);
    const uint32_t magnitude = MaxMagnitude(value);
    largest = magnitude > largest ? magnitude : largest;
  }
  largest = MaxOfLanes(largest, 32);
  for (int64_t offset = 0; offset < groups_per_block; offset += 32) {
    float value[kElems];
    load(first + offset, value);
    finish(first + offset, value, largest);
  }
}

// ------------------------------------------------------------------------------- absmax -> 8 bits

LOWRANK_DEVICE void AbsmaxSumBody(const AbsmaxSumParams& p) {
  AbsmaxSumShared& s = DynamicShared<AbsmaxSumShared>();
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * p.share;
  const int64_t end = begin + p.share < p.blocks ? begin + p.share : p.blocks;
  double sum = 0;
  uint32_t smallest = kInfinity;
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
    const float value = p.absmax[i];
    const uint32_t bits = __float_as_uint(value);
    sum += static_cast<double>(value);
    if (bits != 0 && bits < smallest) smallest = bits;
  }
  s.sum[threadIdx.x] = sum;
  s.smallest[threadIdx.x] = smallest;
  for (unsigned half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x >= half) continue;
    s.sum[threadIdx.x] += s.sum[threadIdx.x + half];
    const uint32_t other = s.smallest[threadIdx.x + half];
    if (other < s.smallest[threadIdx.x]) s.smallest[threadIdx.x] = other;
  }
  if (threadIdx.x == 0) p.sums[blockIdx.x] = AbsmaxSum{s.sum[0], s.smallest[0], 0};
}

/// float(Σ absmax / blocks), with the bits of the sum in order.
LOWRANK_DEVICE float AbsmaxMean(const AbsmaxCodesParams& p) {
  if (p.blocks == 0) return 0.0f;
  double sum = 0;
  uint32_t smallest = kInfinity;
  for (uint32_t i = 0; i < p.sum_count; ++i) {
    sum += p.sums[i].sum;
    smallest = p.sums[i].smallest < smallest ? p.sums[i].smallest : smallest;
  }
  // The smallest's power of two is 2^23 of its last bits (denormals: those of 2^-126).
  const uint32_t exponent = smallest & kInfinity;
  const float power = __uint_as_float(exponent != 0 ? exponent : 0x00800000u);
  const bool exact = sum <= static_cast<double>(power) * 536870912.0;  // 2^29
  const bool finite = sum < 1e300;  // else w holds what is refused, and the mean is not looked at
  if (!exact && finite) {
    sum = 0;
    for (int64_t i = 0; i < p.blocks; ++i) sum += static_cast<double>(p.absmax[i]);
  }
  return static_cast<float>(sum / static_cast<double>(p.blocks));
}

LOWRANK_DEVICE void AbsmaxCodesBody(const AbsmaxCodesParams& p) {
  AbsmaxCodesShared& s = DynamicShared<AbsmaxCodesShared>();
  FillTree(&s.tree, p.absmax_codebook);
  if (threadIdx.x == 0) {
    s.offset = AbsmaxMean(p);
    if (blockIdx.x == 0) *p.absmax_offset = s.offset;
  }
  __syncthreads();
  const float offset = s.offset;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  const int64_t begin = warp * p.nested_blocksize;
  if (begin >= p.blocks) return;
  const int64_t end = begin + p.nested_blocksize < p.blocks ? begin + p.nested_blocksize : p.blocks;
  uint32_t largest = 0;
  for (int64_t i = begin + lane; i < end; i += 32) {
    const uint32_t magnitude = __float_as_uint(p.absmax[i] - offset) & 0x7fffffffu;
    largest = magnitude > largest ? magnitude : largest;
  }
  largest = MaxOfLanes(largest, 32);
  const float nested = __uint_as_float(largest);
  const float inverse = 1.0f / nested;
  const bool zeros = __float_as_uint(inverse) == kInfinity;
  if (lane == 0) p.nested_absmax[warp] = nested;
  for (int64_t i = begin + lane; i < end; i += 32) {
    const uint32_t code = zeros ? 0u : Rank(s.tree, (p.absmax[i] - offset) * inverse);
    p.absmax_8bit[i] = static_cast<uint8_t>(code);
  }
}

}  // namespace

#define LOWRANK_QUANTIZE_KERNELS(X) \
  X(4bit_f32, ElementF32, 4)        \
  X(4bit_bf16, ElementBF16, 4)      \
  X(4bit_f16, ElementF16, 4)        \
  X(8bit_f32, ElementF32, 8)        \
  X(8bit_bf16, ElementBF16, 8)      \
  X(8bit_f16, ElementF16, 8)

#define LOWRANK_DEFINE(name, T, kBits)                                    \
  LOWRANK_KERNEL(quantize_##name##_kernel, QuantizeParams, kThreads, 4) { \
    QuantizeBody<T, kBits>(p);                                            \
  }
LOWRANK_QUANTIZE_KERNELS(LOWRANK_DEFINE)
#undef LOWRANK_DEFINE

LOWRANK_KERNEL(quantize_absmax_sum_kernel, AbsmaxSumParams, kThreads, 4) { AbsmaxSumBody(p); }
LOWRANK_KERNEL(quantize_absmax_codes_kernel, AbsmaxCodesParams, kThreads, 4) { AbsmaxCodesBody(p); }

}  // namespace lowrank::gpu
