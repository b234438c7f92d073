/// Warp instructions of the emulator against their definitions.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "cuda/gpu.cuh"
#include "test/native/emulator_check.h"
#include "test/native/tensor_sum.h"

namespace {

using namespace lowrank::emu;
using lowrank::test::TensorSum;

std::mt19937 generator(7);

uint32_t Bits() { return static_cast<uint32_t>(generator()); }

float BF16(uint32_t bits) { return __bfloat162float(__ushort_as_bfloat16(uint16_t(bits))); }
float F16(uint32_t bits) { return __half2float(__ushort_as_half(uint16_t(bits))); }

/// A finite bf16 or f16 of moderate size.
uint32_t Small(MmaType type) {
  const float v = static_cast<float>(static_cast<int>(Bits() % 2001) - 1000) / 64.0f;
  return type == MmaType::kBF16 ? __bfloat16_as_ushort(__float2bfloat16_rn(v))
                                : __half_as_ushort(__float2half_rn(v));
}

/// The manual's tables: which element a register of a lane holds.
struct Place {
  int row;
  int column;
};
Place PlaceOfA16(int lane, int reg, int element) {
  return {lane / 4 + reg % 2 * 8, lane % 4 * 2 + element + reg / 2 * 8};
}
Place PlaceOfB16(int lane, int reg, int element) {
  return {lane % 4 * 2 + element + reg * 8, lane / 4};
}
Place PlaceOfC(int lane, int reg) { return {lane / 4 + reg / 2 * 8, lane % 4 * 2 + reg % 2}; }

enum class Elements { kModerate, kAnyBits, kFinite, kSpread };
/// Of a kind: also any that is finite, or of exponents so far apart that much is cut off.
uint32_t Element(MmaType type, Elements elements) {
  if (elements == Elements::kModerate) return Small(type);
  const uint32_t bits = Bits() & 0xffffu;
  if (elements == Elements::kAnyBits) return bits;
  const uint32_t exponents = type == MmaType::kBF16 ? 0x7f80u : 0x7c00u;
  if (elements == Elements::kFinite) return (bits & exponents) == exponents ? bits & 0x80ffu : bits;
  if (Bits() % 8 == 0) return bits & 0x8000u;
  const uint32_t spread =
      type == MmaType::kBF16 ? (120 + Bits() % 16) << 7 : (7 + Bits() % 16) << 10;
  return (bits & ~exponents) | spread;
}

void CheckMma16(MmaType type, Elements elements) {
  uint32_t a[32][4];
  uint32_t b[32][2];
  float c[32][4];
  float d[32][4];
  double wide_a[16][16];
  double wide_b[16][8];
  double wide_c[16][8];
  const auto convert = [&](uint32_t bits) {
    return type == MmaType::kBF16 ? BF16(bits) : F16(bits);
  };
  for (int lane = 0; lane < 32; ++lane) {
    for (int reg = 0; reg < 4; ++reg) {
      a[lane][reg] = 0;
      for (int i = 0; i < 2; ++i) {
        const uint32_t bits = Element(type, elements);
        a[lane][reg] |= bits << (16 * i);
        const Place at = PlaceOfA16(lane, reg, i);
        wide_a[at.row][at.column] = static_cast<double>(convert(bits));
      }
      c[lane][reg] = static_cast<float>(Bits() % 4096) / 8;
      if (elements == Elements::kFinite) c[lane][reg] = __uint_as_float(Bits() & 0xff7fffffu);
      if (elements == Elements::kSpread && Bits() % 2 == 0) c[lane][reg] *= -0x1p-9f;
      const Place at = PlaceOfC(lane, reg);
      wide_c[at.row][at.column] = static_cast<double>(c[lane][reg]);
    }
    for (int reg = 0; reg < 2; ++reg) {
      b[lane][reg] = 0;
      for (int i = 0; i < 2; ++i) {
        const uint32_t bits = Element(type, elements);
        b[lane][reg] |= bits << (16 * i);
        const Place at = PlaceOfB16(lane, reg, i);
        wide_b[at.row][at.column] = static_cast<double>(convert(bits));
      }
    }
  }
  RunBody(
      [&] {
        const uint32_t lane = current->lane;
        Mma(type, d[lane], a[lane], b[lane], c[lane], Site());
      },
      32);
  bool right = true;
  for (int lane = 0; lane < 32; ++lane) {
    for (int reg = 0; reg < 4; ++reg) {
      const Place at = PlaceOfC(lane, reg);
      std::vector<double> row(16);
      std::vector<double> column(16);
      for (int k = 0; k < 16; ++k) {
        row[static_cast<size_t>(k)] = wide_a[at.row][k];
        column[static_cast<size_t>(k)] = wide_b[k][at.column];
      }
      const bool bf16 = type == MmaType::kBF16;
      const float want =
          TensorSum(row, column, c[lane][reg], bf16 ? 7 : 10, bf16 ? -126 : -14,
                    CurrentOptions().sm >= 90 ? 25 : 24, CurrentOptions().sm >= 90 ? 16 : 8);
      right = right && (want == d[lane][reg] || (std::isnan(want) && std::isnan(d[lane][reg])));
      right = right && (!std::isnan(want) || __float_as_uint(d[lane][reg]) == 0x7fffffffu);
    }
  }
  Expect(right, std::string("mma.m16n8k16 ") + (type == MmaType::kBF16 ? "bf16" : "f16") +
                    ", elements " + std::to_string(static_cast<int>(elements)));
}

void CheckMmaTF32() {
  uint32_t a[32][4];
  uint32_t b[32][2];
  float d[32][4] = {};
  double wide_a[16][8];
  double wide_b[8][8];
  const auto value = [] { return static_cast<float>(static_cast<int>(Bits() % 2047) - 1023); };
  for (int lane = 0; lane < 32; ++lane) {
    for (int reg = 0; reg < 4; ++reg) {
      const float v = value();
      a[lane][reg] = __float_as_uint(v);
      wide_a[lane / 4 + reg % 2 * 8][lane % 4 + reg / 2 * 4] = static_cast<double>(v);
    }
    for (int reg = 0; reg < 2; ++reg) {
      const float v = value();
      b[lane][reg] = __float_as_uint(v) | 0x1fffu;  // bits that the tensor core does not read
      wide_b[lane % 4 + reg * 4][lane / 4] = static_cast<double>(v);
    }
  }
  RunBody(
      [&] {
        const uint32_t lane = current->lane;
        lowrank::gpu::MmaTF32(d[lane], a[lane], b[lane][0], b[lane][1]);
      },
      32);
  bool right = true;
  for (int lane = 0; lane < 32; ++lane) {
    for (int reg = 0; reg < 4; ++reg) {
      const Place at = PlaceOfC(lane, reg);
      std::vector<double> row(8);
      std::vector<double> column(8);
      for (int k = 0; k < 8; ++k) {
        row[static_cast<size_t>(k)] = wide_a[at.row][k];
        column[static_cast<size_t>(k)] = wide_b[k][at.column];
      }
      const bool hopper = CurrentOptions().sm >= 90;
      const float want = TensorSum(row, column, 0, 10, -126, hopper ? 25 : 24, hopper ? 8 : 4);
      right = right && want == d[lane][reg];
    }
  }
  Expect(right, "mma.m16n8k8 tf32");
  Expect(lowrank::gpu::ToTF32(1.0f + 0x1p-11f) == __float_as_uint(1.0f + 0x1p-10f) &&
             lowrank::gpu::ToTF32(-1.0f - 0x1p-11f) == __float_as_uint(-1.0f - 0x1p-10f) &&
             lowrank::gpu::ToTF32(1.0f + 0x1p-12f) == __float_as_uint(1.0f),
         "cvt.rna.tf32 rounds ties away from zero");
}

void CheckMmaBytes(MmaType type) {
  uint32_t a[32][4];
  uint32_t b[32][2];
  int32_t d[32][4];
  int32_t c[32][4];
  for (int lane = 0; lane < 32; ++lane) {
    for (uint32_t& word : a[lane]) word = Bits();
    for (uint32_t& word : b[lane]) word = Bits();
    for (int32_t& word : c[lane]) word = static_cast<int32_t>(Bits());
  }
  RunBody(
      [&] {
        const uint32_t lane = current->lane;
        MmaInt(type, d[lane], a[lane], b[lane], c[lane], Site());
      },
      32);
  const auto byte = [](bool is_unsigned, uint32_t word, int i) {
    const uint32_t bits = word >> (8 * i) & 0xffu;
    return is_unsigned ? static_cast<int>(bits) : static_cast<int>(static_cast<int8_t>(bits));
  };
  const bool unsigned_a = type == MmaType::kU8;
  const bool unsigned_b = type != MmaType::kS8;
  bool right = true;
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) {
      const int owner = row % 8 * 4 + column / 2;
      const int reg = row / 8 * 2 + column % 2;
      auto sum = static_cast<uint32_t>(c[owner][reg]);
      for (int k = 0; k < 32; ++k) {
        const int lane_a = row % 8 * 4 + k % 16 / 4;
        const int lane_b = column * 4 + k % 16 / 4;
        sum += static_cast<uint32_t>(byte(unsigned_a, a[lane_a][row / 8 + k / 16 * 2], k % 4) *
                                     byte(unsigned_b, b[lane_b][k / 16], k % 4));
      }
      right = right && static_cast<uint32_t>(d[owner][reg]) == sum;
    }
  }
  Expect(right, type == MmaType::kS8   ? "mma.m16n8k32 s8"
                : type == MmaType::kU8 ? "mma.m16n8k32 u8"
                                       : "mma.m16n8k32 s8 u8");
}

void CheckMatrices() {
  for (const int count : {1, 2, 4}) {
    for (const bool transposed : {false, true}) {
      bool right = true;
      const LaunchStatus status = RunBody(
          [&] {
            auto* s = reinterpret_cast<uint16_t*>(current->block->dynamic_shared);
            const uint32_t lane = current->lane;
            for (uint32_t i = lane; i < 512; i += 32) s[i] = static_cast<uint16_t>(i * 37);
            SyncWarp(kAllLanes, Site());
            uint32_t r[4] = {};
            LdMatrix(r, count, transposed, s + (lane % 32) * 8, Site());
            for (int j = 0; j < count; ++j) {
              for (uint32_t i = 0; i < 2; ++i) {
                const uint32_t row = transposed ? lane % 4 * 2 + i : lane / 4;
                const uint32_t column = transposed ? lane / 4 : lane % 4 * 2 + i;
                const auto want =
                    static_cast<uint16_t>((static_cast<uint32_t>(j) * 64 + row * 8 + column) * 37);
                right = right && static_cast<uint16_t>(r[j] >> (16 * i)) == want;
              }
            }
            StMatrix(r, count, transposed, s + 256 + (lane % 32) * 8, Site());
            SyncWarp(kAllLanes, Site());
            for (uint32_t i = lane; i < static_cast<uint32_t>(count) * 64; i += 32) {
              right = right && s[256 + i] == static_cast<uint16_t>(i * 37);
            }
          },
          32, 1, 1024);
      Expect(right && status == LaunchStatus::kOk,
             "ldmatrix, stmatrix x" + std::to_string(count) + (transposed ? ".trans" : ""));
    }
  }
}

void CheckShuffles() {
  bool right = true;
  RunBody(
      [&] {
        const auto lane = static_cast<int>(current->lane);
        for (const int width : {32, 8}) {
          const int base = lane / width * width;
          for (int select = 0; select < 32; ++select) {
            right =
                right && __shfl_sync(~0u, lane * 3, select, width) == (base + select % width) * 3;
            const int up = lane - select < base ? lane : lane - select;
            right = right && __shfl_up_sync(~0u, lane, unsigned(select), width) == up;
            const int down = lane + select >= base + width ? lane : lane + select;
            right = right && __shfl_down_sync(~0u, lane, unsigned(select), width) == down;
            const int other = (lane ^ select) >= base + width ? lane : lane ^ select;
            right = right && __shfl_xor_sync(~0u, lane, select, width) == other;
            // What nvcc makes of the same calls: c = ((32 - width) << 8) | clamp.
            const uint32_t segment = static_cast<uint32_t>(32 - width) << 8;
            const auto u = static_cast<uint32_t>(select);
            bool in_range = false;
            right = right && ShufflePtx(~0u, uint32_t(lane), u, segment, ShuffleMode::kUp,
                                        &in_range, Site()) == uint32_t(up);
            right = right && in_range == (lane - select >= base);
            right = right && ShufflePtx(~0u, uint32_t(lane), u, segment | 31, ShuffleMode::kXor,
                                        nullptr, Site()) == uint32_t(other);
            right = right && ShufflePtx(~0u, uint32_t(lane), u, segment | 31, ShuffleMode::kDown,
                                        nullptr, Site()) == uint32_t(down);
            right = right && ShufflePtx(~0u, uint32_t(lane), u, segment | 31, ShuffleMode::kIndex,
                                        nullptr, Site()) == uint32_t(base + select % width);
          }
        }
        right = right && __shfl_xor_sync(~0u, 0x123456789abcdef0ull + unsigned(lane), 1) ==
                             0x123456789abcdef0ull + unsigned(lane ^ 1);
      },
      32);
  Expect(right, "shfl.sync");
}

void CheckVotes() {
  bool right = true;
  RunBody(
      [&] {
        const auto lane = current->lane;
        right = right && __ballot_sync(~0u, lane % 3 == 0) == 0x49249249u;
        right = right && __any_sync(~0u, lane == 31) == 1 && __any_sync(~0u, 0) == 0;
        right = right && __all_sync(~0u, lane < 32) == 1 && __all_sync(~0u, lane != 4) == 0;
        right = right && __reduce_add_sync(~0u, lane) == 496u;
        right = right && __reduce_min_sync(~0u, int(lane) - 16) == -16;
        right = right && __reduce_max_sync(~0u, lane) == 31u;
        right = right && __reduce_xor_sync(~0u, lane) == 0u && __reduce_or_sync(~0u, lane) == 31u;
        right =
            right && __match_any_sync(~0u, lane % 2) == (lane % 2 == 0 ? 0x55555555u : 0xaaaaaaaau);
        if (lane < 8) {  // a mask of its own
          right = right && __reduce_add_sync(0xffu, lane) == 28u;
        } else {
          right = right && __ballot_sync(0xffffff00u, 1) == 0xffffff00u;
        }
        right = right && __syncthreads_count(lane % 2) == 16 && __syncthreads_or(lane == 3) == 1 &&
                __syncthreads_and(lane != 3) == 0;
      },
      32);
  Expect(right, "votes, reductions, bar.red");
}

void CheckBits() {
  Expect(__byte_perm(0x33221100u, 0x77665544u, 0x7531u) == 0x77553311u, "prmt");
  Expect(__byte_perm(0x00008000u, 0, 0x9999u) == 0xffffffffu, "prmt, sign");
  Expect(__dp4a(0x04030201u, 0x80ff0201u, 7u) == 7 + 1 + 4 + 3 * 255 + 4 * 128, "dp4a, unsigned");
  Expect(__dp2a_lo(0xfffe0003u, 0x77770105u, 9u) == 9 + 3 * 5 + 0xfffe, "dp2a.lo, unsigned");
  Expect(lowrank::gpu::AndOr(0xff00ff00u, 0x44444444u, 0x32103210u) == 0x76107610u, "and, or");
  Expect(__brev(1u) == 0x80000000u && __brev(0x12345678u) == 0x1e6a2c48u, "brev");
  Expect(__funnelshift_r(0x89abcdefu, 0x01234567u, 8) == 0x6789abcdu &&
             __funnelshift_l(0x89abcdefu, 0x01234567u, 8) == 0x23456789u,
         "funnel shifts");
  Expect(__umulhi(0xffffffffu, 0xffffffffu) == 0xfffffffeu && __mulhi(-1, 1) == -1, "mul.hi");
  Expect(__float2int_rn(2.5f) == 2 && __float2int_rn(3.5f) == 4 && __float2int_rz(-2.9f) == -2 &&
             __float2int_rn(1e20f) == 2147483647 && __float2uint_rz(-1.0f) == 0u &&
             __float2int_rn(NAN) == 0,
         "float to integer");
  bool right = true;
  for (uint32_t bits = 0; bits < 0x10000u; ++bits) {
    const __half half = __ushort_as_half(static_cast<uint16_t>(bits));
    const __nv_bfloat16 brain = __ushort_as_bfloat16(static_cast<uint16_t>(bits));
    const bool half_nan = (bits & 0x7fffu) > 0x7c00u;
    const bool brain_nan = (bits & 0x7fffu) > 0x7f80u;
    right = right &&
            (half_nan ? 0x7fffu : bits) == __half_as_ushort(__float2half_rn(__half2float(half)));
    right = right && (brain_nan ? 0x7fffu : bits) ==
                         __bfloat16_as_ushort(__float2bfloat16_rn(__bfloat162float(brain)));
  }
  Expect(right, "16-bit floats come back as they were");
  Expect(__bfloat16_as_ushort(__float2bfloat16_rn(__uint_as_float(0x3f808000u))) == 0x3f80u &&
             __bfloat16_as_ushort(__float2bfloat16_rn(__uint_as_float(0x3f818000u))) == 0x3f82u,
         "bf16 ties to even");
}

}  // namespace

int main() {
  for (int round = 0; round < 10; ++round) {
    Options options = CurrentOptions();
    options.sm = round % 2 == 0 ? 80 : 90;
    SetOptions(options);
    for (const MmaType type : {MmaType::kBF16, MmaType::kF16}) {
      for (const Elements elements :
           {Elements::kModerate, Elements::kAnyBits, Elements::kFinite, Elements::kSpread}) {
        CheckMma16(type, elements);
      }
    }
    CheckMmaTF32();
    CheckMmaBytes(MmaType::kS8);
    CheckMmaBytes(MmaType::kU8);
    CheckMmaBytes(MmaType::kS8U8);
  }
  CheckMatrices();
  CheckShuffles();
  CheckVotes();
  CheckBits();
  std::printf("%d wrong\n", failures);
  return failures == 0 ? 0 : 1;
}
