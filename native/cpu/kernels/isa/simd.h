/// The interface to the instruction set: vectors of kVL floats, and the few operations that GCC's
/// vector extensions cannot express. Everything else in this folder is written once in these terms.
///
/// Every unit is compiled with -ffp-contract=off, so a product and a sum are fused only where the
/// code says Fma. Quantisation, scales and random numbers are thus the same on every set.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

// Never emitted as a symbol: see isa_kernels.h.
#define LOWRANK_INLINE static inline __attribute__((always_inline))
// An op that this set's table may or may not use (body.h).
#define LOWRANK_OP [[maybe_unused]] static
#define LOWRANK_MEMBER_INLINE inline __attribute__((always_inline))

namespace lowrank::cpu::LOWRANK_ISA {

// Register tile kMR x (kNV · kVL): as many accumulators as fit with kNV columns of B and one
// broadcast of A. 28 of 32 registers with AVX-512, 12 of 16 with AVX2, 16 of 32 with NEON, 8 of 16
// with SSE2. Each is at least twice FMA latency x throughput.
#if defined(__AVX512F__)
constexpr int kVL = 16;
constexpr int kMR = 14;
#elif defined(__AVX2__)
constexpr int kVL = 8;
constexpr int kMR = 6;
#elif defined(__aarch64__)
constexpr int kVL = 4;
constexpr int kMR = 8;
#else
constexpr int kVL = 4;
constexpr int kMR = 4;
#endif
constexpr int kNV = 2;
constexpr int kNR = kNV * kVL;

#if defined(__AVX512BF16__)
constexpr bool kHasBF16Dot = true;
#else
constexpr bool kHasBF16Dot = false;
#endif
// Products of bf16 go to a matrix unit (amx_tile.h).
#if defined(__AMX_BF16__) || defined(LOWRANK_EMULATE_TILES)
constexpr bool kHasTiles = true;
#else
constexpr bool kHasTiles = false;
#endif

typedef float VecF __attribute__((vector_size(kVL * 4)));
typedef int32_t VecI __attribute__((vector_size(kVL * 4)));
typedef uint32_t VecU __attribute__((vector_size(kVL * 4)));
typedef uint16_t VecH __attribute__((vector_size(kVL * 2)));
typedef uint16_t VecP __attribute__((vector_size(kVL * 4)));
typedef uint64_t VecQ __attribute__((vector_size(kVL * 4)));
typedef uint8_t VecB __attribute__((vector_size(kVL)));
// The same at any address, for memory of any type.
typedef float LooseF __attribute__((vector_size(kVL * 4), aligned(1), may_alias));
typedef uint32_t LooseU __attribute__((vector_size(kVL * 4), aligned(1), may_alias));
typedef uint16_t LooseH __attribute__((vector_size(kVL * 2), aligned(1), may_alias));
typedef uint8_t LooseB __attribute__((vector_size(kVL), aligned(1), may_alias));

LOWRANK_INLINE VecF Load(const void* p) { return *static_cast<const LooseF*>(p); }
LOWRANK_INLINE void Store(void* p, VecF v) { *static_cast<LooseF*>(p) = v; }
LOWRANK_INLINE VecU LoadU(const void* p) { return *static_cast<const LooseU*>(p); }
LOWRANK_INLINE void StoreU(void* p, VecU v) { *static_cast<LooseU*>(p) = v; }
/// The first `count` < kVL lanes.
LOWRANK_INLINE void StoreFirst(float* out, VecF v, int64_t count) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(out, static_cast<__mmask16>((1u << count) - 1), v);
#else
  for (int64_t i = 0; i < count; ++i) out[i] = v[i];
#endif
}

/// kVL bytes as lanes. GCC 12 splits a conversion of the whole vector into bytes.
LOWRANK_INLINE VecU WidenBytes(const uint8_t* bytes) {
#if defined(__AVX512F__)
  return reinterpret_cast<VecU>(
      _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes))));
#elif defined(__AVX2__)
  return reinterpret_cast<VecU>(
      _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes))));
#else
  return __builtin_convertvector(*reinterpret_cast<const LooseB*>(bytes), VecU);
#endif
}
/// Stores the low bytes of lanes.
LOWRANK_INLINE void StoreBytes(uint8_t* bytes, VecU lanes) {
#if defined(__AVX512F__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(bytes),
                   _mm512_cvtepi32_epi8(reinterpret_cast<__m512i>(lanes)));
#else
  *reinterpret_cast<LooseB*>(bytes) = __builtin_convertvector(lanes & 255u, VecB);
#endif
}
#if defined(__AVX512F__)
/// Loads 32 bytes to both halves.
LOWRANK_INLINE VecU LoadTwice(const void* p) {
  return reinterpret_cast<VecU>(
      _mm512_broadcast_i64x4(_mm256_loadu_si256(static_cast<const __m256i*>(p))));
}
#endif
// One broadcast. GCC 12 builds `v + VecU{}` lane by lane through the stack if v comes from memory,
// which took a sixth of a backward product.
LOWRANK_INLINE VecF Splat(float v) {
#if defined(__AVX512F__)
  return _mm512_set1_ps(v);
#elif defined(__AVX2__)
  return _mm256_set1_ps(v);
#else
  return v - VecF{};
#endif
}
LOWRANK_INLINE VecU SplatU(uint32_t v) {
#if defined(__AVX512F__)
  return reinterpret_cast<VecU>(_mm512_set1_epi32(static_cast<int>(v)));
#elif defined(__AVX2__)
  return reinterpret_cast<VecU>(_mm256_set1_epi32(static_cast<int>(v)));
#else
  return v + VecU{};
#endif
}
LOWRANK_INLINE VecU Bits(VecF v) { return reinterpret_cast<VecU>(v); }
LOWRANK_INLINE VecF AsFloat(VecU v) { return reinterpret_cast<VecF>(v); }
LOWRANK_INLINE int64_t Min(int64_t a, int64_t b) { return a < b ? a : b; }
LOWRANK_INLINE int64_t Max(int64_t a, int64_t b) { return a > b ? a : b; }
LOWRANK_INLINE int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// a · b + c, rounded once if the set has a fused instruction.
LOWRANK_INLINE VecF Fma(VecF a, VecF b, VecF c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__)
  return _mm256_fmadd_ps(a, b, c);
#elif defined(__aarch64__)
  return vfmaq_f32(c, a, b);
#else
  return a * b + c;
#endif
}

/// The root of each lane, correctly rounded.
LOWRANK_INLINE VecF SqrtLanes(VecF v) {
#if defined(__AVX512F__)
  return _mm512_sqrt_ps(v);
#elif defined(__AVX2__)
  return _mm256_sqrt_ps(v);
#elif defined(__aarch64__)
  return vsqrtq_f32(v);
#else
  VecF out;
  for (int i = 0; i < kVL; ++i) out[i] = __builtin_sqrtf(v[i]);
  return out;
#endif
}

/// A table of 16 floats, held in registers if the set can permute them.
struct Table16 {
#if defined(__AVX512F__)
  VecF entries;
#elif defined(__AVX2__)
  VecF low, high;
#elif defined(__aarch64__)
  uint8x16x4_t bytes;
#else
  float entries[16];
#endif
};

LOWRANK_INLINE Table16 LoadTable(const float* entries) {
  Table16 table;
#if defined(__AVX512F__)
  table.entries = Load(entries);
#elif defined(__AVX2__)
  table.low = Load(entries);
  table.high = Load(entries + 8);
#elif defined(__aarch64__)
  table.bytes = vld1q_u8_x4(reinterpret_cast<const uint8_t*>(entries));
#else
  std::memcpy(table.entries, entries, sizeof(table.entries));
#endif
  return table;
}

// Does a look-up of a vector take a few instructions, or one load per element?
#if defined(__AVX2__) || defined(__aarch64__)
constexpr bool kHasLookUps = true;
#else
constexpr bool kHasLookUps = false;
#endif

#if defined(__AVX512F__)
/// (v & mask) | bits.
LOWRANK_INLINE VecU MaskedOr(VecU v, VecU mask, VecU bits) {
  return reinterpret_cast<VecU>(_mm512_ternarylogic_epi32(reinterpret_cast<__m512i>(v),
                                                          reinterpret_cast<__m512i>(mask),
                                                          reinterpret_cast<__m512i>(bits), 0xea));
}

/// Of 32 values in two tables: index & 31.
LOWRANK_INLINE VecF Lookup(VecF low, VecF high, VecU index) {
  return reinterpret_cast<VecF>(_mm512_permutex2var_ps(reinterpret_cast<__m512>(low),
                                                       reinterpret_cast<__m512i>(index),
                                                       reinterpret_cast<__m512>(high)));
}
#endif

/// table[index & 15] in every lane.
LOWRANK_INLINE VecF Lookup(const Table16& table, VecU index) {
#if defined(__AVX512F__)
  return _mm512_permutexvar_ps(reinterpret_cast<__m512i>(index), table.entries);
#elif defined(__AVX2__)
  const __m256i i = reinterpret_cast<__m256i>(index);
  return _mm256_blendv_ps(_mm256_permutevar8x32_ps(table.low, i),
                          _mm256_permutevar8x32_ps(table.high, i),
                          _mm256_castsi256_ps(_mm256_slli_epi32(i, 28)));
#elif defined(__aarch64__)
  const uint32x4_t first = vandq_u32(index, vdupq_n_u32(15u)) * 0x04040404u;
  return vreinterpretq_f32_u8(
      vqtbl4q_u8(table.bytes, vreinterpretq_u8_u32(first + vdupq_n_u32(0x03020100u))));
#else
  VecF out;
  for (int i = 0; i < kVL; ++i) out[i] = table.entries[index[i] & 15];
  return out;
#endif
}

/// round(table · scale): the values of all codes of a block.
template <typename Round>
LOWRANK_INLINE Table16 ScaleTable(const Table16& table, float scale, const Round& round) {
  Table16 out;
#if defined(__AVX512F__)
  out.entries = round(table.entries * Splat(scale));
#elif defined(__AVX2__)
  out.low = round(table.low * Splat(scale));
  out.high = round(table.high * Splat(scale));
#else
  alignas(16) float entries[16];
#if defined(__aarch64__)
  vst1q_u8_x4(reinterpret_cast<uint8_t*>(entries), table.bytes);
#else
  std::memcpy(entries, table.entries, sizeof(entries));
#endif
  for (int i = 0; i < 16; i += kVL) Store(entries + i, round(Load(entries + i) * Splat(scale)));
  out = LoadTable(entries);
#endif
  return out;
}

/// Keeps a value in its register: otherwise GCC reads x from memory again for each product.
LOWRANK_INLINE void Pin(VecF& v) {
#if defined(__AVX512F__)
  asm("" : "+v"(v));
#elif defined(__x86_64__)
  asm("" : "+x"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#endif
}

/// base[index] in every lane.
LOWRANK_INLINE VecF Gather(const float* base, VecU index) {
#if defined(__AVX512F__)
  return _mm512_i32gather_ps(reinterpret_cast<__m512i>(index), base, 4);
#elif defined(__AVX2__)
  return _mm256_i32gather_ps(base, reinterpret_cast<__m256i>(index), 4);
#else
  VecF out;
  for (int i = 0; i < kVL; ++i) out[i] = base[index[i]];
  return out;
#endif
}

/// four[index] in every lane, with indices below 4. All four are read.
LOWRANK_INLINE VecF PickOfFour(const float* four, VecU index) {
#if defined(__AVX512F__)
  return _mm512_permutexvar_ps(reinterpret_cast<__m512i>(index),
                               _mm512_broadcast_f32x4(_mm_loadu_ps(four)));
#elif defined(__AVX2__)
  return _mm256_permutevar_ps(_mm256_broadcast_ps(reinterpret_cast<const __m128*>(four)),
                              reinterpret_cast<__m256i>(index));
#else
  VecF out;
  for (int i = 0; i < kVL; ++i) out[i] = four[index[i]];
  return out;
#endif
}

LOWRANK_INLINE VecU ZeroExtend(VecH v) { return __builtin_convertvector(v, VecU); }
LOWRANK_INLINE VecH Narrow(VecU v) { return __builtin_convertvector(v, VecH); }

/// bf16 bits to f32: exact.
LOWRANK_INLINE VecF WidenBF16(VecH v) { return AsFloat(ZeroExtend(v) << 16); }

/// f32 rounded to bf16, nearest even, as f32; NaN stays a quiet NaN.
LOWRANK_INLINE VecF RoundedToBF16(VecF v) {
#if defined(__AVX512F__)
  // Six instructions, where the code below takes nine: masks for lane-dependent values.
  const __m512i bits = reinterpret_cast<__m512i>(v);
  const __mmask16 odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x10000));
  const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  __m512i sum = _mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff));
  sum = _mm512_mask_add_epi32(sum, odd, bits, _mm512_set1_epi32(0x8000));
  sum = _mm512_mask_or_epi32(sum, nan, bits, _mm512_set1_epi32(0x400000));
  return AsFloat(reinterpret_cast<VecU>(sum) & 0xffff0000u);
#else
  const VecU bits = Bits(v);
  const VecU rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  const VecU quiet = bits | 0x400000u;
  return AsFloat(((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded) & 0xffff0000u);
#endif
}
/// The same as bits in the low half of each lane.
LOWRANK_INLINE VecU RoundBF16(VecF v) { return Bits(RoundedToBF16(v)) >> 16; }

/// f16 bits to f32: exact.
LOWRANK_INLINE VecF WidenF16(VecH v) {
#if defined(__AVX512F__)
  return _mm512_cvtph_ps(reinterpret_cast<__m256i>(v));
#elif defined(__F16C__)
  return _mm256_cvtph_ps(reinterpret_cast<__m128i>(v));
#else
  const VecU bits = ZeroExtend(v);
  const VecU sign = (bits & 0x8000u) << 16;
  const VecU magnitude = bits & 0x7fffu;
  const VecU normal = (magnitude << 13) + (112u << 23);
  const VecU special = 0x7f800000u | ((magnitude & 0x3ffu) << 13);
  // A denormal is magnitude · 2^-24.
  const VecU denormal = Bits(__builtin_convertvector(reinterpret_cast<VecI>(magnitude), VecF) *
                             5.9604644775390625e-8f);
  return AsFloat(sign |
                 (magnitude >= 0x7c00u ? special : (magnitude >= 0x0400u ? normal : denormal)));
#endif
}

/// f32 to f16 bits in the low half of each lane, nearest even, as FromFloat<F16>.
LOWRANK_INLINE VecU RoundF16(VecF v) {
#if defined(__AVX512F__)
  return ZeroExtend(reinterpret_cast<VecH>(_mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT)));
#elif defined(__F16C__)
  return ZeroExtend(reinterpret_cast<VecH>(_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT)));
#else
  const VecU bits = Bits(v);
  const VecU sign = (bits >> 16) & 0x8000u;
  const VecU magnitude = bits & 0x7fffffffu;
  const VecU nan = 0x7e00u | ((magnitude >> 13) & 0x3ffu);
  const VecU denormal = Bits(AsFloat(magnitude) + 0.5f) - 0x3f000000u;
  const VecU normal = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - (112u << 23)) >> 13;
  const VecU finite = magnitude < 0x38800000u ? denormal : normal;
  const VecU overflow = magnitude >= 0x477ff000u ? SplatU(0x7c00u) : finite;
  return sign | (magnitude > 0x7f800000u ? nan : overflow);
#endif
}

/// The same as f32. With 32-bit lanes GCC makes five instructions of the two.
LOWRANK_INLINE VecF RoundedToF16(VecF v) {
#if defined(__AVX512F__)
  return _mm512_cvtph_ps(_mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  return _mm256_cvtph_ps(_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
#else
  return WidenF16(Narrow(RoundF16(v)));
#endif
}

/// Two f32 vectors, rounded to bf16, as pairs (even in the low half of each lane): the input of one
/// step of the bf16 dot product. The hardware conversion treats denormals as zeros.
LOWRANK_INLINE VecU PairBF16(VecF even, VecF odd) {
#if defined(__AVX512BF16__)
  // Even and odd halves side by side, then lane by lane.
  typedef uint16_t Halves __attribute__((vector_size(64)));
  Halves order;
#pragma GCC unroll 32
  for (int j = 0; j < 32; ++j) order[j] = static_cast<uint16_t>(j / 2 + (j & 1) * 16);
  const __m512bh halves = _mm512_cvtne2ps_pbh(odd, even);
  return reinterpret_cast<VecU>(_mm512_permutexvar_epi16(reinterpret_cast<__m512i>(order),
                                                         reinterpret_cast<__m512i>(halves)));
#else
  return RoundBF16(even) | (RoundBF16(odd) << 16);
#endif
}

#if defined(__AVX512BF16__)
/// acc + a.low · b.low + a.high · b.high in f32; denormal inputs count as zeros.
LOWRANK_INLINE VecF DotBF16(VecF acc, VecU a, VecU b) {
  return _mm512_dpbf16_ps(acc, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
}
#else
LOWRANK_INLINE VecF DotBF16(VecF acc, VecU a, VecU b) {
  acc = Fma(AsFloat(a << 16), AsFloat(b << 16), acc);
  return Fma(AsFloat(a & 0xffff0000u), AsFloat(b & 0xffff0000u), acc);
}
#endif

/// The lane numbers 0 .. kVL - 1, as constants.
using Lanes = std::make_integer_sequence<int, kVL>;

template <int... kLane>
LOWRANK_INLINE VecI LaneIndexOf(std::integer_sequence<int, kLane...>) {
  return VecI{kLane...};
}
LOWRANK_INLINE VecI LaneIndex() { return LaneIndexOf(Lanes()); }

template <int kOdd, int... kLane>
LOWRANK_INLINE VecF EveryOther(VecF a, VecF b, std::integer_sequence<int, kLane...>) {
  return __builtin_shufflevector(a, b, (2 * kLane + kOdd)...);
}

/// Pairs of neighbouring lanes, rounded to bf16, as units: PairBF16 of lanes 0, 2, ... of both
/// vectors with lanes 1, 3, ...
LOWRANK_INLINE VecU NeighboursBF16(VecF first, VecF second) {
#if defined(__AVX512BF16__)
  return reinterpret_cast<VecU>(_mm512_cvtne2ps_pbh(second, first));
#else
  return PairBF16(EveryOther<0>(first, second, Lanes()), EveryOther<1>(first, second, Lanes()));
#endif
}

#if defined(__AVX512BF16__)
/// The table rounded to bf16, twice side by side, for LookupBF16().
LOWRANK_INLINE VecU PairTable(const Table16& table) {
  return NeighboursBF16(table.entries, table.entries);
}

/// table[index & 31] in both halves of every lane, of 32 values.
LOWRANK_INLINE VecU LookupBF16(VecU pair_table, VecP index) {
  return reinterpret_cast<VecU>(_mm512_permutexvar_epi16(reinterpret_cast<__m512i>(index),
                                                         reinterpret_cast<__m512i>(pair_table)));
}

/// The same of 64 values in two tables: index & 63.
LOWRANK_INLINE VecU LookupBF16(VecU low, VecU high, VecP index) {
  return reinterpret_cast<VecU>(_mm512_permutex2var_epi16(reinterpret_cast<__m512i>(low),
                                                          reinterpret_cast<__m512i>(index),
                                                          reinterpret_cast<__m512i>(high)));
}

#endif

/// counts + step where a > b.
LOWRANK_INLINE VecU AddWhereGreater(VecU counts, VecF a, VecF b, uint32_t step) {
#if defined(__AVX512F__)
  const __m512i before = reinterpret_cast<__m512i>(counts);
  return reinterpret_cast<VecU>(_mm512_mask_add_epi32(before, _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ),
                                                      before,
                                                      reinterpret_cast<__m512i>(SplatU(step))));
#else
  return counts + (reinterpret_cast<VecU>(a > b) & step);
#endif
}

#if defined(__AVX512F__)
using LaneMask = __mmask16;
#else
using LaneMask = VecU;  // all bits of a lane, or none
#endif

LOWRANK_INLINE LaneMask AtLeast(VecU a, VecU b) {
#if defined(__AVX512F__)
  return _mm512_cmpge_epu32_mask(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b));
#else
  return reinterpret_cast<VecU>(a >= b);
#endif
}

/// v, with zero in the other lanes.
LOWRANK_INLINE VecF Where(LaneMask lanes, VecF v) {
#if defined(__AVX512F__)
  return _mm512_maskz_mov_ps(lanes, v);
#else
  return AsFloat(lanes & Bits(v));
#endif
}

// Masks as bits; lane i of a vector is bit i. For whole bytes, so not for vectors of four.
constexpr bool kHasLaneBits = kVL >= 8;

LOWRANK_INLINE void StoreLaneBits([[maybe_unused]] uint8_t* bits, [[maybe_unused]] LaneMask lanes) {
#if defined(__AVX512F__)
  std::memcpy(bits, &lanes, 2);
#elif defined(__AVX2__)
  *bits = static_cast<uint8_t>(_mm256_movemask_ps(reinterpret_cast<__m256>(lanes)));
#endif
}

LOWRANK_INLINE LaneMask LoadLaneBits([[maybe_unused]] const uint8_t* bits) {
#if defined(__AVX512F__)
  LaneMask lanes;
  std::memcpy(&lanes, bits, 2);
  return lanes;
#elif defined(__AVX2__)
  const VecU own = {1, 2, 4, 8, 16, 32, 64, 128};
  return reinterpret_cast<VecU>((SplatU(*bits) & own) == own);
#else
  return LaneMask{};
#endif
}

/// Lanes 2i and 2i + 1, below 16, as byte i, the first in the high nibble.
LOWRANK_INLINE void StorePairsAsBytes(uint8_t* bytes, VecU nibbles) {
  const VecQ pairs = reinterpret_cast<VecQ>(nibbles);  // little-endian: the first lane is low
  const VecQ joined = pairs << 4 | pairs >> 32;
#if defined(__AVX512F__)
  _mm_storel_epi64(reinterpret_cast<__m128i*>(bytes),
                   _mm512_cvtepi64_epi8(reinterpret_cast<__m512i>(joined)));
#elif defined(__AVX2__)
  // Bytes 0 and 8 of each half.
  const __m256i first_bytes = _mm256_shuffle_epi8(
      reinterpret_cast<__m256i>(joined), _mm256_broadcastsi128_si256(_mm_cvtsi32_si128(0x0800)));
  const __m128i four = _mm_unpacklo_epi16(_mm256_castsi256_si128(first_bytes),
                                          _mm256_extracti128_si256(first_bytes, 1));
  std::memcpy(bytes, &four, 4);
#else
  for (int i = 0; i < kVL / 2; ++i) bytes[i] = static_cast<uint8_t>(joined[i]);
#endif
}

/// The 64-bit products of the lower halves of 64-bit lanes.
LOWRANK_INLINE VecQ MultiplyHalves(VecQ a, VecQ b) {
#if defined(__AVX512F__)
  return reinterpret_cast<VecQ>(
      _mm512_mul_epu32(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
#elif defined(__AVX2__)
  return reinterpret_cast<VecQ>(
      _mm256_mul_epu32(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
#else
  return (a & 0xffffffffu) * (b & 0xffffffffu);
#endif
}

/// Alternates even (kOdd = 0) or odd 64-bit lanes of a and b: a0 b0 a2 b2 ..., a1 b1 a3 b3 ...
template <int kOdd, int... kLane>
LOWRANK_INLINE VecQ InTurn(VecQ a, VecQ b, std::integer_sequence<int, kLane...>) {
  return __builtin_shufflevector(a, b, ((kLane & 1) * (kVL / 2 - 1) + kLane + kOdd)...);
}

template <int kStep, int... kLane>
LOWRANK_INLINE VecU ExchangeLanes(VecU v, std::integer_sequence<int, kLane...>) {
  return __builtin_shufflevector(v, v, (kLane ^ kStep)...);
}

/// The largest lane, by exchanging halves, quarters, ...
template <int kStep>
LOWRANK_INLINE VecU MaxStep(VecU v) {
  const VecU other = ExchangeLanes<kStep>(v, Lanes());
  return other > v ? other : v;
}

LOWRANK_INLINE uint32_t MaxLane(VecU v) {
  if constexpr (kVL > 8) v = MaxStep<8>(v);
  if constexpr (kVL > 4) v = MaxStep<4>(v);
  return MaxStep<1>(MaxStep<2>(v))[0];
}

template <int kStep, int... kLane>
LOWRANK_INLINE VecF TakeFirst(VecF a, VecF b, std::integer_sequence<int, kLane...>) {
  return __builtin_shufflevector(a, b, ((kLane & kStep) != 0 ? (kLane ^ kStep) + kVL : kLane)...);
}

template <int kStep, int... kLane>
LOWRANK_INLINE VecF TakeSecond(VecF a, VecF b, std::integer_sequence<int, kLane...>) {
  return __builtin_shufflevector(a, b, ((kLane & kStep) != 0 ? kLane + kVL : kLane ^ kStep)...);
}

template <int... kLane>
LOWRANK_INLINE VecF Merge(VecF a, VecF b, int64_t half, std::integer_sequence<int, kLane...>) {
  return half == 0 ? __builtin_shufflevector(a, b, (kLane / 2 + (kLane % 2) * kVL)...)
                   : __builtin_shufflevector(a, b, (kVL / 2 + kLane / 2 + (kLane % 2) * kVL)...);
}
/// a[0], b[0], a[1], b[1], ..., and the same for the upper halves.
LOWRANK_INLINE VecF MergeLow(VecF a, VecF b) { return Merge(a, b, 0, Lanes()); }
LOWRANK_INLINE VecF MergeHigh(VecF a, VecF b) { return Merge(a, b, 1, Lanes()); }

/// r[i][j] <-> r[j][i], by exchanging halves, quarters, ... of lanes between pairs of rows. This is
/// one of these exchanges.
template <int kStep>
LOWRANK_INLINE void TransposeStep(VecF (&r)[kVL]) {
#pragma GCC unroll 16
  for (int i = 0; i < kVL; ++i) {
    if ((i & kStep) != 0) continue;
    const VecF a = r[i];
    const VecF b = r[i | kStep];
    r[i] = TakeFirst<kStep>(a, b, Lanes());
    r[i | kStep] = TakeSecond<kStep>(a, b, Lanes());
  }
}

#if defined(__AVX512F__)
/// The same for 4 x 4 elements inside each quarter: r[i][4p + j] <-> r[j][4p + i].
LOWRANK_INLINE void TransposeQuarters(VecF* r) {
  const __m512d a = _mm512_castps_pd(_mm512_unpacklo_ps(r[0], r[1]));
  const __m512d b = _mm512_castps_pd(_mm512_unpacklo_ps(r[2], r[3]));
  const __m512d c = _mm512_castps_pd(_mm512_unpackhi_ps(r[0], r[1]));
  const __m512d d = _mm512_castps_pd(_mm512_unpackhi_ps(r[2], r[3]));
  r[0] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
  r[1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
  r[2] = _mm512_castpd_ps(_mm512_unpacklo_pd(c, d));
  r[3] = _mm512_castpd_ps(_mm512_unpackhi_pd(c, d));
}
#endif

/// The addresses of kRows rows, `pitch` bytes apart, for a loop along them. Every fourth one is
/// kept, and the others are at a distance from those. Otherwise GCC computes all of them anew, or
/// keeps them in vector registers.
template <int kRows>
class RowAddresses {
 public:
  RowAddresses(const void* first, int64_t pitch) : pitch_(pitch), pitch3_(3 * pitch) {
    for (int g = 0; g < kGroups; ++g) group_[g] = static_cast<const char*>(first) + 4 * g * pitch;
  }

  LOWRANK_MEMBER_INLINE const char* At(int row) const {
    return group_[row / 4] + (row % 4 == 3 ? pitch3_ : row % 4 * pitch_);
  }

  LOWRANK_MEMBER_INLINE void Step(int64_t bytes) {
#pragma GCC unroll 4
    for (int g = 0; g < kGroups; ++g) {
      group_[g] += bytes;
      asm("" : "+r"(group_[g]));
    }
    if constexpr (kRows > 3) asm("" : "+r"(pitch3_));
  }

 private:
  static constexpr int kGroups = (kRows + 3) / 4;
  const char* group_[kGroups];
  int64_t pitch_;
  int64_t pitch3_;
};

/// r[j][i] = element j of the next 16 bytes of row i, for 4 elements. Loads combine the quarters,
/// so half of Transpose()'s shuffles are not needed. Where only one shuffle per cycle is possible,
/// as on Intel's processors, loads are cheaper.
template <typename Addresses>
LOWRANK_INLINE void LoadTransposed(const Addresses& rows, VecF (&r)[4]) {
#if defined(__AVX512F__)
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const auto quarter = [&](int g) {
      return _mm_loadu_ps(reinterpret_cast<const float*>(rows.At(4 * g + i)));
    };
    __m512 v = _mm512_castps128_ps512(quarter(0));
    v = _mm512_insertf32x4(v, quarter(1), 1);
    v = _mm512_insertf32x4(v, quarter(2), 2);
    r[i] = _mm512_insertf32x4(v, quarter(3), 3);
  }
  TransposeQuarters(r);
#else
  for (int i = 0; i < kVL; ++i) {
    float row[4];
    std::memcpy(row, rows.At(i), sizeof(row));
    for (int j = 0; j < 4; ++j) r[j][i] = row[j];
  }
#endif
}

using RowCursor = RowAddresses<kVL>;

/// Prefetches the line `distance` bytes ahead in every row.
template <typename Addresses>
LOWRANK_INLINE void AskRows(const Addresses& rows, int64_t distance) {
#pragma GCC unroll 16
  for (int i = 0; i < kVL; ++i) __builtin_prefetch(rows.At(i) + distance, 0, 2);
}

/// r[i][j] <-> r[j][i].
LOWRANK_INLINE void Transpose(VecF (&r)[kVL]) {
#if defined(__AVX512F__)
  // 4 x 4 inside 128-bit quarters by shuffles without index registers, then the quarters.
  VecF s[kVL];
#pragma GCC unroll 16
  for (int i = 0; i < kVL; ++i) s[i] = r[i];
#pragma GCC unroll 4
  for (int i = 0; i < kVL; i += 4) TransposeQuarters(s + i);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const VecF a = _mm512_shuffle_f32x4(s[i], s[i + 4], 0x88);
    const VecF b = _mm512_shuffle_f32x4(s[i], s[i + 4], 0xdd);
    const VecF c = _mm512_shuffle_f32x4(s[i + 8], s[i + 12], 0x88);
    const VecF d = _mm512_shuffle_f32x4(s[i + 8], s[i + 12], 0xdd);
    r[i] = _mm512_shuffle_f32x4(a, c, 0x88);
    r[i + 8] = _mm512_shuffle_f32x4(a, c, 0xdd);
    r[i + 4] = _mm512_shuffle_f32x4(b, d, 0x88);
    r[i + 12] = _mm512_shuffle_f32x4(b, d, 0xdd);
  }
  return;
#endif
  if constexpr (kVL > 8) TransposeStep<8>(r);
  if constexpr (kVL > 4) TransposeStep<4>(r);
  TransposeStep<2>(r);
  TransposeStep<1>(r);
}

}  // namespace lowrank::cpu::LOWRANK_ISA
