#include "native/cpu/reference_int8.h"

#include <cmath>
#include <limits>

namespace lowrank::cpu::reference {
namespace {

constexpr int64_t kBlock = 64;

/// A row as codes, and the scale of each of its blocks.
struct CodedRow {
  std::vector<int> codes;
  std::vector<float> scales;
};

int Nearest(float value) { return static_cast<int>(std::nearbyint(value)); }

CodedRow CodeRow(const TensorView& x, int64_t m) {
  CodedRow row;
  row.codes.assign(static_cast<size_t>(x.cols), 0);
  for (int64_t begin = 0; begin < x.cols; begin += kBlock) {
    const int64_t end = std::min(begin + kBlock, x.cols);
    float largest = 0;
    for (int64_t k = begin; k < end; ++k) {
      const float size = std::fabs(LoadElement(x.data, x.dtype, m * x.cols + k));
      // A NaN stays: nothing is larger than it.
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

}  // namespace

std::vector<double> Int8Product(const TensorView& x, const QuantView& w,
                                const RunContext& context) {
  float largest = 0;
  bool finite = true;
  for (int i = 0; i < 16; ++i) {
    largest = std::max(largest, std::fabs(w.codebook[i]));
    finite = finite && std::isfinite(w.codebook[i]);
  }
  int table[16] = {};
  for (int i = 0; i < 16 && finite && largest > 0; ++i) {
    table[i] = Nearest(127.0f * w.codebook[i] / largest);
  }
  const float unit = finite ? largest / 127.0f : std::numeric_limits<float>::quiet_NaN();
  std::vector<double> y(static_cast<size_t>(x.rows * w.rows), 0);
  for (int64_t m = 0; m < x.rows; ++m) {
    const CodedRow row = CodeRow(x, m);
    for (int64_t n = 0; n < w.rows; ++n) {
      Poll(context);
      double sum = 0;
      for (int64_t k = 0; k < w.cols;) {
        // As much of a block of x as has one scale of w.
        const int64_t first = n * w.cols + k;
        const int64_t stop =
            std::min({(k / kBlock + 1) * kBlock, w.cols, k + w.blocksize - first % w.blocksize});
        const float x_scale = row.scales[static_cast<size_t>(k / kBlock)];
        const float w_scale = w.Scale(first / w.blocksize) * unit;
        int dot = 0;
        for (; k < stop; ++k)
          dot += row.codes[static_cast<size_t>(k)] * table[w.Code(n * w.cols + k)];
        sum += dot * (static_cast<double>(x_scale) * static_cast<double>(w_scale));
      }
      y[static_cast<size_t>(m * w.rows + n)] = sum;
    }
  }
  return y;
}

}  // namespace lowrank::cpu::reference
