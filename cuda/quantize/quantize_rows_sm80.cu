/// Rowwise int8 quantisation (LLM.int8, Dettmers et al., 2022, arXiv:2208.07339) of values rounded
/// to f16, as bitsandbytes does:
///
///   v            = f16(w)
///   absmax[n, :] = max |v[n, :]|, in all blocks of the row
///   code         = round(v · (127 / absmax)), ties to even, + 128; of a row of zeros 128
///
/// Operands   w [N, K] f32 | bf16 | f16 · codes [N, K] bytes · absmax [N, K / blocksize] f32
/// Grid       a block of threads a row, of as many as have two runs of 16 bytes each, 32 to 256
/// Shared     a word a warp: 32 bytes
/// Numerics   127 / absmax and the product with it are f32, each rounded: the same bytes on every
///            device. Rounding to f16 keeps the order, so that the maximum is taken of w as it
///            lies and rounded once. A product is at most 127 (1 + 2^-23); with 1.5 · 2^23 + 128
///            added, where the unit is 1 and that number even, the sum is the code to nearest even,
///            and its low byte what is stored. Of a row that is not finite in f16
///            first_non_finite is lowered to the indices of what is not, and its codes are 128.
/// Needs      K % 32 == 0; w of any alignment, codes 8-byte aligned
///
/// Budget     bf16: 2 bytes an element in, 1 out, 4 a block of scales. A row of up to 8,192 (f32:
///            4,096) stays in registers between its maximum and its codes; of a longer one the last
///            chunk does, and the rest comes from L1, where five rows of 14,336 are 143 KB, or from
///            L2: w is read from DRAM once. 5 blocks of 256 threads fit a multiprocessor (48
///            registers at most): rows of 4,096 are 40 KB in flight there, where 16 KB cover the
///            latency; rows of 1,024 are blocks of 64 threads, 20 of them, as much.
///
///            At 3.0 TB/s each of 132 multiprocessors sees 4.3 elements a clock. One costs 3
///            instructions on the way forth (to widen, the sign, the maximum), 6 back (to widen, to
///            f16 and from it, product, sum, 3/4 to place the byte) and one of addresses: 43 of 128
///            issue slots, 4.3 of 64 conversions. 14336 x 4096 is 59 us.
#include "cuda/common/row_chunks.cuh"
#include "native/host_device/params/quantize.h"

namespace lowrank::gpu {
namespace {

constexpr uint32_t kInfinity = 0x7f800000u;

LOWRANK_DEVICE float RoundedToHalf(ElementF16, float value) { return value; }
template <typename T>
LOWRANK_DEVICE float RoundedToHalf(T, float value) {
  return __half2float(__float2half_rn(value));
}

/// Reports elements that are not finite, and zeroes the group.
template <int kElems>
LOWRANK_DEVICE void ReportNonFinite(const QuantizeRowsParams& p, int64_t begin,
                                    float (&value)[kElems]) {
#pragma unroll
  for (int i = 0; i < kElems; ++i) {
    if ((__float_as_uint(value[i]) & kInfinity) == kInfinity) {
      atomicMin(reinterpret_cast<unsigned long long*>(p.first_non_finite),
                static_cast<unsigned long long>(begin + i));
    }
    value[i] = 0.0f;
  }
}

/// The low bytes of four words.
LOWRANK_DEVICE uint32_t LowBytes(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  return __byte_perm(__byte_perm(a, b, 0x0040), __byte_perm(c, d, 0x0040), 0x5410);
}

template <typename T>
LOWRANK_DEVICE void QuantizeRowsBody(const QuantizeRowsParams& p) {
  using Row = RowChunks<T, kQuantizeRowsUnroll>;
  constexpr int kElems = Row::kElems;
  QuantizeRowsShared& shared = DynamicShared<QuantizeRowsShared>();
  const int64_t n = static_cast<int64_t>(blockIdx.x);
  const int64_t begin = n * p.K;
  const int threads = static_cast<int>(blockDim.x);
  Row row{p.w, begin, p.K, threads, p.last_chunk, p.whole != 0};

  const float raw_max = __uint_as_float(LargestOfBlock(row.Largest(), shared.largest, threads));
  const uint32_t largest =
      __float_as_uint(FloatFrom(ElementF16(), BitsFrom(ElementF16(), raw_max)));
  const float absmax = __uint_as_float(largest);
  const bool finite = largest < kInfinity;
#pragma unroll 1
  for (int64_t b = static_cast<int64_t>(threadIdx.x); b < p.blocks; b += threads) {
    p.absmax[n * p.blocks + b] = absmax;
  }
  const float scale = finite && largest != 0 ? 127.0f / absmax : 0.0f;
  constexpr float kCodeOfZero = 12582912.0f + 128.0f;  // its low byte is 128, its unit 1
  row.Back([&](int64_t k, float(&value)[kElems]) {
#pragma unroll
    for (int i = 0; i < kElems; ++i) value[i] = RoundedToHalf(T(), value[i]);
    if (!finite) ReportNonFinite(p, begin + k, value);
    uint32_t code[kElems];
#pragma unroll
    for (int i = 0; i < kElems; ++i) code[i] = __float_as_uint(value[i] * scale + kCodeOfZero);
    uint32_t words[2] = {};
#pragma unroll
    for (int i = 0; i < kElems; i += 4) {
      words[i / 4] = LowBytes(code[i], code[i + 1], code[i + 2], code[i + 3]);
    }
    StoreGroupBytes<kElems>(p.codes + begin + k, words);
  });
}

}  // namespace

#define LOWRANK_QUANTIZE_ROWS_KERNEL(dtype, T)                                                  \
  LOWRANK_KERNEL(quantize_rows_##dtype##_kernel, QuantizeRowsParams, kQuantizeRowsThreads, 5) { \
    QuantizeRowsBody<T>(p);                                                                     \
  }
LOWRANK_QUANTIZE_ROWS_KERNEL(f32, ElementF32)
LOWRANK_QUANTIZE_ROWS_KERNEL(bf16, ElementBF16)
LOWRANK_QUANTIZE_ROWS_KERNEL(f16, ElementF16)

}  // namespace lowrank::gpu
