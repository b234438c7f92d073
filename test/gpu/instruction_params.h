/// What the host and test/gpu's kernels share: one block a trial, its words in and its words out.
#pragma once

#include <cstdint>

#include "native/host_device/params/parts/tensor_map.h"

namespace lowrank::gpu {

struct InstructionParams {
  const uint32_t* in;  // [blocks][in_words]
  uint32_t* out;       // [blocks][out_words]
  uint32_t in_words;
  uint32_t out_words;
};

/// Two tensors of 16-bit elements; the block's coordinates in them come from its words.
struct TensorInstructionParams {
  TensorMap a;  // box [64 rows, swizzle / 2 elements] or, for products, [64, 64]
  TensorMap b;  // box [n, 64]
  InstructionParams words;
};

constexpr uint32_t kCopyBoxRows = 64;
constexpr uint32_t kTensorShared = 2048 + 64 * 128 + 256 * 128;  // bytes: barriers, a, b

}  // namespace lowrank::gpu
