/// Parameters of the kernel for feature maps.
#pragma once

#include <cstdint>

namespace lowrank::gpu {

constexpr uint32_t kFeatureMapThreads = 256;

struct MapFeaturesParams {
  const void* x = nullptr;         // [rows, inputs]
  const void* c = nullptr;         // [rows, outputs], or null
  void* y = nullptr;               // [rows, outputs]
  const int32_t* begin = nullptr;  // [outputs + 1]; null: one input each
  const int32_t* index = nullptr;
  int64_t rows = 0;
  int64_t inputs = 0;
  int64_t outputs = 0;
  float alpha = 1;
  float beta = 1;
  int32_t x_element = 0;  // SmallElement
  int32_t c_element = 0;
  int32_t y_element = 0;
  int32_t cols_log2 = 0;  // of a block's 256 threads, the lists beside each other
};

}  // namespace lowrank::gpu
