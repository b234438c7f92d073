#pragma once

#include <cstdint>

namespace lowrank::gpu {

constexpr uint32_t kDequantizeThreads = 256;
constexpr uint32_t kDequantizeUnroll = 4;  // runs of 16 bytes of y a thread

/// Shared memory.
template <int kLevels>
struct DequantizeShared {
  float codebook[kLevels];
  float absmax_codebook[256];  // with double quantisation
};

struct DequantizeParams {
  const uint8_t* codes;          // packed as QuantView says
  const float* codebook;         // [16] or [256]
  const float* absmax;           // [blocks], null with double quantisation
  const uint8_t* absmax_8bit;    // [blocks]
  const float* absmax_codebook;  // [256]
  const float* nested_absmax;    // [ceil(blocks / nested_blocksize)]
  const float* absmax_offset;    // [1]
  int64_t nested_blocksize;
  int64_t elems;
  void* y;  // [N, K]
  uint32_t blocksize_log2;
  uint32_t vector;  // y is 16-byte aligned, codes 8-byte
};

}  // namespace lowrank::gpu
