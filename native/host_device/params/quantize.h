#pragma once

#include <cstdint>

namespace lowrank::gpu {

constexpr uint32_t kQuantizeThreads = 256;
constexpr uint32_t kQuantizeUnroll = 4;   // runs of 16 bytes of w a lane, where a block is one span
constexpr uint32_t kAbsmaxSumsMax = 256;  // blocks of threads that add absmax

/// Shared memory of the 4-bit kernels: 15 ascending thresholds, then +inf.
struct Thresholds {
  float value[16];
};

/// Shared memory of the 8-bit kernels: 255 ascending thresholds as a breadth-first tree. Node n
/// (from 1) has the children 2n and 2n + 1.
struct ThresholdTree {
  float node[256];
  float levels[256];  // the codebook, while the tree is made
};

struct QuantizeParams {
  const void* w;              // [N, K]
  uint8_t* codes;             // packed as QuantView says
  float* absmax;              // [blocks]
  int64_t* first_non_finite;  // [1], lowered to the index of a NaN or an infinity in w
  const float* codebook;      // [256], 8-bit formats
  int64_t elems;
  uint64_t rank_to_code;  // 4-bit formats: nibble i is the code of rank i
  Thresholds thresholds;  // 4-bit formats
  uint32_t blocksize_log2;
  uint32_t zero_code;
  uint32_t sign_magnitude;
  uint32_t vector;  // w is 16-byte aligned, codes 8-byte
};

/// Rowwise int8: one scale per row, in all its blocks.
struct QuantizeRowsParams {
  const void* w;              // [N, K] f32, bf16 or f16 by the kernel
  uint8_t* codes;             // [N, K], 8-byte aligned
  float* absmax;              // [N, blocks]
  int64_t* first_non_finite;  // [1], lowered to the index of what is not finite in f16
  int64_t K;                  // a multiple of 32
  int64_t blocks;             // of a row
  int64_t last_chunk;         // RowChunks::last
  uint32_t whole;             // w is 16-byte aligned
};

constexpr uint32_t kQuantizeRowsThreads = 256;  // at most
constexpr uint32_t kQuantizeRowsUnroll = 4;     // runs of 16 bytes of w a thread has in flight

struct QuantizeRowsShared {
  uint32_t largest[kQuantizeRowsThreads / 32];
};

/// What one block of threads has computed from its part of absmax.
struct AbsmaxSum {
  double sum;
  uint32_t smallest;  // bits of the smallest non-zero value; 0x7f800000 if all are zero
  uint32_t unused;
};

struct AbsmaxSumShared {
  double sum[kQuantizeThreads];
  uint32_t smallest[kQuantizeThreads];
};

struct AbsmaxSumParams {
  const float* absmax;  // [blocks]
  AbsmaxSum* sums;      // [grid]
  int64_t blocks;
  int64_t share;  // of absmax, a block of threads
};

struct AbsmaxCodesShared {
  ThresholdTree tree;
  float offset;
};

struct AbsmaxCodesParams {
  const float* absmax;           // [blocks]
  const AbsmaxSum* sums;         // [sum_count]
  const float* absmax_codebook;  // [256]
  uint8_t* absmax_8bit;          // [blocks]
  float* nested_absmax;          // [ceil(blocks / nested_blocksize)]
  float* absmax_offset;          // [1]
  int64_t blocks;
  int64_t nested_blocksize;
  uint32_t sum_count;
};

}  // namespace lowrank::gpu
