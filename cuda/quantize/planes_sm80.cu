/// Decodes planar weights (native/host_device/planes.h).
///
///   y[n, k] = level(c) · s, (level(c) - z) · s or level(c) · s - m, rounded once to y's type
///
/// Operands   codes, levels, planes as Planes says · y [N, K] f32 | bf16 | f16
/// Grid       ceil(N · ceil(K / 8) / kThreads): a thread decodes eight elements of a row, whose
/// codes
///            are `bits` whole bytes
/// Shared     the levels, 1,024 bytes
/// Numerics   f32, each operation rounded by itself, one rounding to y: equal bits on every device
/// Needs      nothing of shapes or alignment: where rows of y are not whole 16-byte pieces,
/// elements
///            go one by one
///
/// Budget     4 bits with groups of 32 to bf16: 0.56 bytes in, 2 out an element. A warp's store is
///            512 bytes in one run, and its codes 32 · bits in one run, read a byte at a time
///            through L1: 4 loads for 8 elements at 4 bits. The factors of an entry are computed
///            once for the elements of a thread that share it. About 12 integer instructions an
///            element; at 2.56 bytes an element and 3.0 TB/s each of 132 multiprocessors sees 5.1
///            elements a clock: 61 of 128 issue slots. So the stream sets the time.
#include "cuda/common/element.cuh"
#include "native/host_device/params/dequantize.h"

namespace lowrank::gpu {
namespace {

constexpr int kThreads = kPlanesThreads;
static_assert(kThreads == 256, "a thread brings one level");

/// The bytes of eight codes from element 8 · chunk of a row on, zero past its end. `words`: rows
/// are whole words of four codes' bytes, which 4 and 8 bits have where K is a multiple of eight.
LOWRANK_DEVICE uint64_t LoadRun(const uint8_t* g_row, int64_t row_bytes, int32_t bits,
                                int64_t chunk, bool words) {
  if (words && bits == 4) return reinterpret_cast<const uint32_t*>(g_row)[chunk];
  if (words && bits == 8) {
    const uint2 pair = reinterpret_cast<const uint2*>(g_row)[chunk];
    return static_cast<uint64_t>(pair.y) << 32 | pair.x;
  }
  const int64_t first = chunk * bits;
  uint64_t word = 0;
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    if (j < bits && first + j < row_bytes) {
      word |= static_cast<uint64_t>(g_row[first + j]) << (8 * j);
    }
  }
  return word;
}

/// Code j of the eight. The first of a byte's two nibbles is the high one.
LOWRANK_DEVICE uint32_t CodeOf(uint64_t word, int32_t bits, int j) {
  const int at = bits == 4 ? j ^ 1 : j;
  return static_cast<uint32_t>(word >> (at * bits)) & ((1u << bits) - 1u);
}

template <typename T>
LOWRANK_DEVICE void PlanesBody(const PlanesParams& p) {
  constexpr int kRun = 8;
  constexpr int kElems = Group<T>::kElems;
  PlanesShared& s = DynamicShared<PlanesShared>();
  if (threadIdx.x < p.level_count) s.levels[threadIdx.x] = p.levels[threadIdx.x];
  __syncthreads();

  const int64_t chunks = (p.cols + kRun - 1) / kRun;
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t n = at / chunks;
  if (n >= p.rows) return;
  const int64_t chunk = at % chunks;
  const int64_t first = chunk * kRun;
  const int count = p.cols - first < kRun ? static_cast<int>(p.cols - first) : kRun;
  const int32_t bits = p.planes.bits;
  const uint64_t word =
      LoadRun(p.codes + n * p.planes.row_bytes, p.planes.row_bytes, bits, chunk, p.words != 0);
  int64_t entry = -1;
  PlaneFactors factors{};
  float value[kRun];
#pragma unroll
  for (int j = 0; j < kRun; ++j) {
    value[j] = 0.0f;
    if (j >= count) continue;
    const int64_t own = PlaneEntry(p.planes, p.cols, n, first + j);
    if (own != entry) {
      entry = own;
      factors = FactorsOf(p.planes, entry);
    }
    value[j] = PlaneValue(p.planes, s.levels[CodeOf(word, bits, j)], factors);
  }
  const int64_t to = n * p.cols + first;
  if (p.vector != 0) {
#pragma unroll
    for (int q = 0; q < kRun / kElems; ++q) {
      float part[kElems];
#pragma unroll
      for (int j = 0; j < kElems; ++j) part[j] = value[q * kElems + j];
      static_cast<uint4*>(p.y)[to / kElems + q] = Pack(T(), part);
    }
    return;
  }
#pragma unroll
  for (int j = 0; j < kRun; ++j) {
    if (j < count) StoreElement(T(), p.y, to + j, value[j]);
  }
}

}  // namespace

#define LOWRANK_PLANES_KERNELS(X) \
  X(f32, ElementF32)              \
  X(bf16, ElementBF16)            \
  X(f16, ElementF16)

#define LOWRANK_DEFINE(name, T) \
  LOWRANK_KERNEL(planes_##name##_kernel, PlanesParams, kThreads, 4) { PlanesBody<T>(p); }
LOWRANK_PLANES_KERNELS(LOWRANK_DEFINE)
#undef LOWRANK_DEFINE

}  // namespace lowrank::gpu
