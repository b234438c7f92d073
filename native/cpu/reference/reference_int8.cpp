#include "native/cpu/reference/reference_int8.h"

#include <cmath>
#include <limits>

namespace lowrank::cpu::reference {
namespace {

/// A row as codes, with the scale of each of its blocks.
struct CodedRow {
  std::vector<int> codes;
  std::vector<float> scales;
};

int Nearest(float value) { return static_cast<int>(std::nearbyint(value)); }

CodedRow CodeRow(const TensorView& x, int64_t m, int64_t block) {
  CodedRow row;
  row.codes.assign(static_cast<size_t>(x.cols), 0);
  for (int64_t begin = 0; begin < x.cols; begin += block) {
    const int64_t end = std::min(begin + block, x.cols);
    float largest = 0;
    for (int64_t k = begin; k < end; ++k) {
      const float size = std::fabs(LoadElement(x.data, x.dtype, m * x.cols + k));
      // A NaN stays, because nothing is larger.
      if (!(size <= largest)) largest = std::isnan(largest) ? largest : size;
    }
    const float scale =
        std::isfinite(largest) ? largest / 127.0f : std::numeric_limits<float>::quiet_NaN();
    row.scales.push_back(scale);
    if (!(scale > 0)) continue;
    for (int64_t k = begin; k < end; ++k) {
      const float quotient = LoadElement(x.data, x.dtype, m * x.cols + k) / scale;
      row.codes[static_cast<size_t>(k)] = Nearest(std::clamp(quotient, -127.0f, 127.0f));
    }
  }
  return row;
}

/// A weight as int8 codes: its own codes converted, and the scale of each block.
struct CodedWeight {
  const QuantView& w;
  int table[256] = {};
  float unit = 0;

  explicit CodedWeight(const QuantView& weight) : w(weight) {
    if (w.rowwise) {
      for (int i = 0; i < 256; ++i) table[i] = i - 128;
      return;
    }
    float largest = 0;
    bool finite = true;
    for (int i = 0; i < 16; ++i) {
      largest = std::max(largest, std::fabs(w.codebook[i]));
      finite = finite && std::isfinite(w.codebook[i]);
    }
    for (int i = 0; i < 16 && finite && largest > 0; ++i) {
      table[i] = Nearest(127.0f * w.codebook[i] / largest);
    }
    unit = finite ? largest / 127.0f : std::numeric_limits<float>::quiet_NaN();
  }
  float Scale(int64_t block) const {
    return w.rowwise ? w.Scale(block) / 127.0f : w.Scale(block) * unit;
  }
};

}  // namespace

std::vector<double> Int8Product(const TensorView& x, const QuantView& w,
                                const RunContext& context) {
  const CodedWeight coded(w);
  const int64_t block = w.rowwise ? std::max<int64_t>(w.cols, 1) : 64;  // of x
  std::vector<double> y(static_cast<size_t>(x.rows * w.rows), 0);
  for (int64_t m = 0; m < x.rows; ++m) {
    const CodedRow row = CodeRow(x, m, block);
    for (int64_t n = 0; n < w.rows; ++n) {
      Poll(context);
      double sum = 0;
      for (int64_t k = 0; k < w.cols;) {
        // The part of a block of x that has one scale of w.
        const int64_t first = n * w.cols + k;
        const int64_t stop =
            std::min({(k / block + 1) * block, w.cols, k + w.blocksize - first % w.blocksize});
        const float x_scale = row.scales[static_cast<size_t>(k / block)];
        const float w_scale = coded.Scale(first / w.blocksize);
        int dot = 0;
        for (; k < stop; ++k)
          dot += row.codes[static_cast<size_t>(k)] * coded.table[w.Code(n * w.cols + k)];
        sum += dot * (static_cast<double>(x_scale) * static_cast<double>(w_scale));
      }
      y[static_cast<size_t>(m * w.rows + n)] = sum;
    }
  }
  return y;
}

}  // namespace lowrank::cpu::reference
