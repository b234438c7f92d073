/// wgmma of the emulator against the step of a tensor core by its definition: both operand sources,
/// both majors, every swizzle, both 16-bit types; and of bytes, whose rows of 32 lie as 16 elements
/// of 16 bits.
#include "test/native/hopper_fixture.h"
#include "test/native/tensor_sum.h"

namespace lowrank::test {
namespace {

struct WgmmaParams {
  WgmmaShape shape;
  bool registers;
  bool accumulate;
  uint32_t swizzle_a;
  uint32_t swizzle_b;
  const uint16_t* a;  // [64][16]
  const uint16_t* b;  // [n][16]
  const float* c;     // [64][n]; s32 by their bits where the elements are bytes
  float* d;
};

/// Where element (mn, k) of an operand of `rows` rows lies, by the canonical layouts: blocks of
/// 8 x 16 bytes without swizzle, else rows of the swizzle's width whose chunks it moves.
uint32_t PlaceElement(uint32_t swizzle, bool mn_major, uint32_t rows, uint32_t mn, uint32_t k,
                      Placement* strides) {
  const uint32_t major = mn_major ? mn : k;
  const uint32_t minor = mn_major ? k : mn;
  if (swizzle == 0) {
    // Blocks along K first where K-major (leading), along MN first where MN-major (stride).
    *strides = mn_major ? Placement{128 * (rows / 8) + 128, 128} : Placement{128, 256 + 128};
    const uint32_t along_k = mn_major ? strides->leading : strides->leading;
    return mn / 8 * strides->stride + k / 8 * along_k + minor % 8 * 16 + major % 8 * 2;
  }
  const uint32_t width_elems = swizzle / 2;
  const uint32_t pattern = 8 * swizzle;  // bytes after which it repeats
  *strides = mn_major ? Placement{2 * pattern + 1024, pattern} : Placement{16, pattern};
  const uint32_t place = SwizzledChunk(swizzle, minor % 8, major % width_elems / 8) * 16 +
                         minor % 8 * swizzle + major % 8 * 2;
  if (mn_major) {
    return place + major / width_elems * strides->leading + minor / 8 * strides->stride;
  }
  return place + minor / 8 * strides->stride;
}

constexpr uint32_t kB = 32768;  // offset of the second operand

void Multiply(const void* params) {
  const auto& p = *static_cast<const WgmmaParams*>(params);
  const uint32_t thread = current->linear;
  Placement a_strides{};
  Placement b_strides{};
  for (uint32_t i = thread; i < 64 * 16; i += 128) {
    const uint32_t at =
        PlaceElement(p.swizzle_a, p.shape.a_mn_major, 64, i / 16, i % 16, &a_strides);
    if (!p.registers) Put(Shared(at), p.a[i], HERE);
  }
  for (uint32_t i = thread; i < p.shape.n * 16; i += 128) {
    const uint32_t at =
        PlaceElement(p.swizzle_b, p.shape.b_mn_major, p.shape.n, i / 16, i % 16, &b_strides);
    Put(Shared(kB + at), p.b[i], HERE);
  }
  PlaceElement(p.swizzle_a, p.shape.a_mn_major, 64, 0, 0, &a_strides);
  PlaceElement(p.swizzle_b, p.shape.b_mn_major, p.shape.n, 0, 0, &b_strides);
  FenceProxyAsync(HERE);
  BarrierSync(0, 0, HERE);
  float d[128];
  const uint32_t g = thread % 32 / 4;
  const uint32_t t = thread % 4;
  const uint32_t row0 = thread / 32 * 16 + g;
  for (uint32_t i = 0; i < p.shape.n / 2; ++i) {
    d[i] = p.c[(row0 + i / 2 % 2 * 8) * p.shape.n + i / 4 * 8 + 2 * t + i % 2];
  }
  WgmmaFence(HERE);
  const uint64_t b = DescriptorOf(Address(kB), p.swizzle_b, b_strides);
  uint32_t a[4];
  if (p.registers) {
    for (uint32_t i = 0; i < 4; ++i) {
      const uint16_t* pair = p.a + (row0 + i % 2 * 8) * 16 + 2 * t + i / 2 * 8;
      a[i] = pair[0] | static_cast<uint32_t>(pair[1]) << 16;
    }
    WgmmaRegisters(p.shape, d, {a, a + 1, a + 2, a + 3}, b, p.accumulate, false, HERE);
  } else {
    Wgmma(p.shape, d, DescriptorOf(Address(0), p.swizzle_a, a_strides), b, p.accumulate, false,
          HERE);
  }
  WgmmaCommit(HERE);
  WgmmaWait(0, HERE);
  for (uint32_t i = 0; i < p.shape.n / 2; ++i) {
    p.d[(row0 + i / 2 % 2 * 8) * p.shape.n + i / 4 * 8 + 2 * t + i % 2] = d[i];
  }
}

float Value(bool bf16, uint16_t bits) { return bf16 ? ToFloat(BF16{bits}) : ToFloat(F16{bits}); }

/// Bits of a sum of 32 products of bytes, which wraps.
float SumOfBytes(uint32_t sum, const uint16_t* a, const uint16_t* b) {
  for (uint32_t k = 0; k < 32; ++k) {
    const int32_t code = static_cast<int8_t>(a[k / 2] >> (k % 2 * 8) & 0xff);
    const int32_t byte = b[k / 2] >> (k % 2 * 8) & 0xff;
    sum += static_cast<uint32_t>(code * byte);
  }
  float bits;
  std::memcpy(&bits, &sum, 4);
  return bits;
}

void CheckWgmma(WgmmaParams p) {
  const uint32_t n = p.shape.n;
  std::mt19937 rng(n);
  std::normal_distribution<float> normal;
  const auto random16 = [&](size_t count) {
    std::vector<uint16_t> values(count);
    for (uint16_t& value : values) {
      const float real = normal(rng);
      if (p.shape.s8u8) {
        value = static_cast<uint16_t>(rng());
        continue;
      }
      value = p.shape.bf16 ? FromFloat<BF16>(real).bits : FromFloat<F16>(real).bits;
    }
    return values;
  };
  const std::vector<uint16_t> a = random16(64 * 16);
  const std::vector<uint16_t> b = random16(n * 16);
  std::vector<float> c(64 * n);
  for (float& value : c) value = normal(rng);
  if (p.shape.s8u8) {
    // Near the ends of 32 bits too.
    for (float& value : c) {
      const uint32_t bits = static_cast<uint32_t>(rng());
      std::memcpy(&value, &bits, 4);
    }
  }
  std::vector<float> expected(64 * n);
  for (uint32_t m = 0; m < 64; ++m) {
    for (uint32_t col = 0; col < n; ++col) {
      if (p.shape.s8u8) {
        uint32_t first = 0;
        if (p.accumulate) std::memcpy(&first, &c[m * n + col], 4);
        expected[m * n + col] = SumOfBytes(first, &a[m * 16], &b[col * 16]);
        continue;
      }
      std::vector<double> row(16);
      std::vector<double> column(16);
      for (uint32_t k = 0; k < 16; ++k) {
        row[k] = static_cast<double>(Value(p.shape.bf16, a[m * 16 + k]));
        if (p.shape.negate_a) row[k] = -row[k];
        column[k] = static_cast<double>(Value(p.shape.bf16, b[col * 16 + k]));
        if (p.shape.negate_b) column[k] = -column[k];
      }
      expected[m * n + col] = TensorStep(row, column, p.accumulate ? c[m * n + col] : 0.0f,
                                         p.shape.bf16 ? 7 : 10, p.shape.bf16 ? -126 : -14, 25);
    }
  }
  DeviceArray<uint16_t> a_device(a);
  DeviceArray<uint16_t> b_device(b);
  DeviceArray<float> c_device(c);
  DeviceArray<float> d_device(size_t{64} * n);
  p.a = a_device.data();
  p.b = b_device.data();
  p.c = c_device.data();
  p.d = d_device.data();
  Shape shape;
  shape.threads = 128;
  const std::string name = "wgmma n " + std::to_string(n) +
                           (p.shape.s8u8   ? " s8 u8"
                            : p.shape.bf16 ? " bf16"
                                           : " f16") +
                           (p.registers          ? " rs"
                            : p.shape.a_mn_major ? " ss a MN"
                                                 : " ss a K") +
                           (p.shape.b_mn_major ? " b MN" : " b K") + " swizzles " +
                           std::to_string(p.swizzle_a) + " " + std::to_string(p.swizzle_b);
  Clean(name, Multiply, &p, shape, [&] {
    return std::memcmp(d_device.Read().data(), expected.data(), expected.size() * 4) == 0;
  });
}

void CheckProducts() {
  const uint32_t widths[4] = {0, 32, 64, 128};
  uint32_t turn = 0;
  for (const uint32_t swizzle_a : widths) {
    for (const uint32_t swizzle_b : widths) {
      for (uint32_t majors = 0; majors < 4; ++majors) {
        WgmmaParams p{};
        // MN-major operands come in whole swizzle widths.
        const uint32_t sizes[6] = {64, 128, 192, 256, 64, 128};
        p.shape.n = sizes[turn % 6];
        p.shape.bf16 = turn % 3 != 0;
        p.shape.a_mn_major = (majors & 1) != 0;
        p.shape.b_mn_major = (majors & 2) != 0;
        p.shape.negate_a = turn % 5 == 4;
        p.shape.negate_b = turn % 7 == 6;
        p.accumulate = turn % 4 != 3;
        p.swizzle_a = swizzle_a;
        p.swizzle_b = swizzle_b;
        CheckWgmma(p);
        ++turn;
      }
    }
  }
  for (uint32_t n = 8; n <= 256; n += 24) {
    WgmmaParams p{};
    p.shape.n = n;
    p.shape.bf16 = n % 16 == 0;
    p.registers = n % 48 == 8;
    p.accumulate = true;
    p.swizzle_a = p.swizzle_b = 128;
    CheckWgmma(p);
  }
}

void CheckBytes() {
  uint32_t turn = 0;
  for (const uint32_t swizzle : {0, 32, 64, 128}) {
    for (const uint32_t n : {8, 24, 32, 48, 112, 256}) {
      WgmmaParams p{};
      p.shape.n = n;
      p.shape.s8u8 = true;
      p.accumulate = turn++ % 3 != 2;
      p.swizzle_a = swizzle;
      p.swizzle_b = n % 32 == 0 ? 128 : swizzle;
      CheckWgmma(p);
    }
  }
}

}  // namespace
}  // namespace lowrank::test

int main() {
  lowrank::test::CheckProducts();
  lowrank::test::CheckBytes();
  return lowrank::test::Verdict();
}
