/// A matrix of any dtype in the emulator's device memory, and what it holds as doubles.
#pragma once

#include <memory>

#include "native/core/tensor_view.h"
#include "test/native/hopper_operands.h"

namespace lowrank::test {

inline float ToFloatAs(DType dtype, const void* data, size_t i) {
  if (dtype == DType::kF32) return static_cast<const float*>(data)[i];
  if (dtype == DType::kBF16) return ToFloat(static_cast<const BF16*>(data)[i]);
  return ToFloat(static_cast<const F16*>(data)[i]);
}
inline float RoundTo(DType dtype, float value) {
  if (dtype == DType::kF32) return value;
  return dtype == DType::kBF16 ? ToFloat(FromFloat<BF16>(value)) : ToFloat(FromFloat<F16>(value));
}

/// A matrix in device memory and as doubles.
struct Matrix {
  std::vector<double> values;
  std::unique_ptr<DeviceArray<unsigned char>> device;
  TensorView view;

  Matrix(int64_t rows, int64_t cols, DType dtype, std::mt19937_64* rng, double scale,
         size_t misalign = 0) {
    const size_t count = static_cast<size_t>(rows * cols);
    std::vector<unsigned char> bytes(count * DTypeBytes(dtype));
    values.resize(count);
    std::normal_distribution<double> normal(0, scale);
    for (size_t i = 0; i < count; ++i) {
      const float value = rng == nullptr ? 0.0f : static_cast<float>(normal(*rng));
      if (dtype == DType::kF32) std::memcpy(&bytes[i * 4], &value, 4);
      if (dtype == DType::kBF16) {
        const BF16 rounded = FromFloat<BF16>(value);
        std::memcpy(&bytes[i * 2], &rounded, 2);
      }
      if (dtype == DType::kF16) {
        const F16 rounded = FromFloat<F16>(value);
        std::memcpy(&bytes[i * 2], &rounded, 2);
      }
      values[i] = static_cast<double>(ToFloatAs(dtype, bytes.data(), i));
    }
    device = std::make_unique<DeviceArray<unsigned char>>(bytes, misalign);
    view.data = device->data();
    view.dtype = dtype;
    view.rows = rows;
    view.cols = cols;
    view.present = true;
  }

  void Set(int64_t row, int64_t col, float value) {
    const size_t i = static_cast<size_t>(row * view.cols + col);
    if (view.dtype == DType::kF32) {
      std::memcpy(device->data() + i * 4, &value, 4);
    } else {
      const uint16_t bits =
          view.dtype == DType::kBF16 ? FromFloat<BF16>(value).bits : FromFloat<F16>(value).bits;
      std::memcpy(device->data() + i * 2, &bits, 2);
    }
    values[i] = static_cast<double>(ToFloatAs(view.dtype, device->data(), i));
  }
};

}  // namespace lowrank::test
