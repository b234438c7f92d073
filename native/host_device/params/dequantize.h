#pragma once

#include <cstdint>

#include "native/host_device/planes.h"

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

/// Of planar weights.
constexpr uint32_t kPlanesThreads = 256;

/// Shared memory.
struct PlanesShared {
  float levels[256];
};

struct PlanesParams {
  Planes planes;
  const uint8_t* codes;
  const float* levels;  // [16] or [256]
  void* y;              // [rows, cols]
  int64_t rows;
  int64_t cols;
  uint32_t level_count;
  uint32_t vector;  // rows of y are whole 16-byte pieces, 16-byte aligned
  uint32_t words;   // K is a multiple of eight, and codes are 8-byte aligned
};

}  // namespace lowrank::gpu
