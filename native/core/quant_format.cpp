#include "native/core/quant_format.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace lowrank {
namespace {

// NF4 (Dettmers et al., "QLoRA", 2023, appendix E): quantiles of N(0, 1), asymmetric so that zero
// is exact. Thresholds are the midpoints as written in bitsandbytes' CUDA source.
constexpr float kNf4Codebook[16] = {
    -1.0f,
    -0.6961928009986877f,
    -0.5250730514526367f,
    -0.39491748809814453f,
    -0.28444138169288635f,
    -0.18477343022823334f,
    -0.09105003625154495f,
    0.0f,
    0.07958029955625534f,
    0.16093020141124725f,
    0.24611230194568634f,
    0.33791524171829224f,
    0.44070982933044434f,
    0.5626170039176941f,
    0.7229568362236023f,
    1.0f,
};
constexpr float kNf4Thresholds[15] = {
    -0.8480964004993439f,  -0.6106329262256622f,  -0.4599952697753906f,   -0.33967943489551544f,
    -0.23460740596055984f, -0.13791173323988914f, -0.045525018125772476f, 0.03979014977812767f,
    0.1202552504837513f,   0.2035212516784668f,   0.2920137718319893f,    0.3893125355243683f,
    0.5016634166240692f,   0.6427869200706482f,   0.8614784181118011f,
};
constexpr uint8_t kAscending[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

// FP4: sign, two exponent bits, one mantissa bit; magnitudes 0, 1/192, 1/6, 1/4, 1/3, 1/2, 2/3, 1.
// The codes list them in another order.
constexpr float kFp4Codebook[16] = {
    0.0f, 0.0625f / 12,  8.0f / 12,  1.0f,  4.0f / 12,  0.5f,  2.0f / 12,  0.25f,
    0.0f, -0.0625f / 12, -8.0f / 12, -1.0f, -4.0f / 12, -0.5f, -2.0f / 12, -0.25f,
};
constexpr float kFp4Thresholds[7] = {0.00260417f, 0.0859375f, 0.20833333f, 0.29166667f,
                                     0.4166667f,  0.583333f,  0.8333333f};
constexpr uint8_t kFp4RankToCode[8] = {0, 1, 6, 7, 4, 5, 2, 3};

// INT4: 16 even steps from -1 to 1, independent of any zero-points, which are added to the product
// (lib/quant/group-affine.ts). Thresholds are the midpoints. Code 8 is the smallest level above 0.
constexpr float kInt4Codebook[16] = {
    -15.0f / 15, -13.0f / 15, -11.0f / 15, -9.0f / 15, -7.0f / 15, -5.0f / 15,
    -3.0f / 15,  -1.0f / 15,  1.0f / 15,   3.0f / 15,  5.0f / 15,  7.0f / 15,
    9.0f / 15,   11.0f / 15,  13.0f / 15,  15.0f / 15,
};
constexpr float kInt4Thresholds[15] = {
    -14.0f / 15, -12.0f / 15, -10.0f / 15, -8.0f / 15, -6.0f / 15, -4.0f / 15, -2.0f / 15, 0.0f,
    2.0f / 15,   4.0f / 15,   6.0f / 15,   8.0f / 15,  10.0f / 15, 12.0f / 15, 14.0f / 15,
};

struct DynamicMap {
  float levels[256];
  float midpoints[255];
  uint8_t identity[256];

  // 7 decades; decade i has 2^i means of a linear split of [0.1, 1], with both signs, and 0 and 1.
  // Every step is rounded to f32, because bitsandbytes builds the table with f32 tensors.
  DynamicMap() {
    int count = 0;
    for (int decade = 0; decade < 7; ++decade) {
      const int boundaries = (1 << decade) + 1;
      const float step = 0.9f / static_cast<float>(boundaries - 1);
      const float exponent = static_cast<float>(std::pow(10.0, decade - 6));
      auto boundary = [&](int i) {
        // From both ends towards the middle with fused products, like torch.linspace: the double
        // holds the product exactly.
        const double wide = step;
        return static_cast<float>(i < boundaries / 2 ? 0.1f + wide * i
                                                     : 1.0f - wide * (boundaries - 1 - i));
      };
      for (int i = 0; i + 1 < boundaries; ++i) {
        const float mean = (boundary(i) + boundary(i + 1)) / 2.0f;
        levels[count++] = exponent * mean;
        levels[count++] = -(exponent * mean);
      }
    }
    levels[count++] = 0.0f;
    levels[count++] = 1.0f;
    std::sort(levels, levels + count);
    for (int i = 0; i < 255; ++i) midpoints[i] = (levels[i] + levels[i + 1]) * 0.5f;
    std::iota(identity, identity + 256, static_cast<uint8_t>(0));
  }
};

const DynamicMap& TheDynamicMap() {
  static const DynamicMap map;
  return map;
}

struct Rows {
  const FormatRow* first;
  int count;
  const FormatRow* begin() const { return first; }
  const FormatRow* end() const { return first + count; }
};

/// One row a format; what lists formats reads it. Not a container: an op that runs while the
/// process ends still reads its row.
Rows TheRows() {
  static const FormatRow rows[] = {
      {"nf4", 4, 16, kNf4Codebook, kNf4Thresholds, 15, kAscending, false, 7, 32, 4096, 64},
      {"fp4", 4, 16, kFp4Codebook, kFp4Thresholds, 7, kFp4RankToCode, true, 0, 32, 4096, 64},
      {"int8", 8, 256, TheDynamicMap().levels, TheDynamicMap().midpoints, 255,
       TheDynamicMap().identity, false, 0, 32, 4096, 256},
      {"int4", 4, 16, kInt4Codebook, kInt4Thresholds, 15, kAscending, false, 8, 32, 4096, 64},
  };
  return {rows, static_cast<int>(std::size(rows))};
}

}  // namespace

uint8_t FormatRow::Encode(float normalised) const {
  const float ranked = sign_magnitude ? std::fabs(normalised) : normalised;
  const float* below = std::lower_bound(thresholds, thresholds + threshold_count, ranked);
  const uint8_t code = rank_to_code[below - thresholds];
  return sign_magnitude && normalised < 0 ? static_cast<uint8_t>(code | (levels / 2)) : code;
}

const FormatRow* FindFormat(const std::string& name) {
  for (const FormatRow& row : TheRows()) {
    if (name == row.name) return &row;
  }
  return nullptr;
}

int FormatCount() { return TheRows().count; }
const FormatRow& FormatAt(int index) { return TheRows().first[index]; }

std::vector<std::string> FormatNames(int bits) {
  std::vector<std::string> names;
  for (const FormatRow& row : TheRows()) {
    if (bits == 0 || row.bits == bits) names.push_back(row.name);
  }
  return names;
}

const FormatRow* PlanarFormat(int bits) {
  static const struct Planar {
    FormatRow of[9];
    Planar() : of() {
      for (int b = 1; b <= 8; ++b) {
        of[b].name = "planes";
        of[b].bits = b;
        of[b].levels = b <= 4 ? 16 : 256;
      }
    }
  } planar;
  return bits >= 1 && bits <= 8 ? &planar.of[bits] : nullptr;
}

const float* RowwiseLevels() {
  static const struct Levels {
    float of[256];
    Levels() {
      for (int code = 0; code < 256; ++code) of[code] = static_cast<float>(code - 128) / 127.0f;
    }
  } levels;
  return levels.of;
}

const float* DynamicMap8bit() { return TheDynamicMap().levels; }

}  // namespace lowrank
