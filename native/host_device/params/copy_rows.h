/// Parameters of the kernel that permutes the rows of a matrix.
#pragma once

#include <cstdint>

namespace lowrank::gpu {

constexpr uint32_t kCopyRowsThreads = 256;
constexpr uint32_t kCopyRowsUnroll = 2;  // runs of 16 bytes a thread
/// The part of a row that a block copies: a whole row of 4,096 16-bit elements.
constexpr int64_t kCopyRowsPieceBytes = int64_t{kCopyRowsThreads} * kCopyRowsUnroll * 16;

struct CopyRowsParams {
  const void* src = nullptr;      // [rows, row_bytes]
  void* dst = nullptr;            // [rows, row_bytes]
  const int32_t* rows = nullptr;  // a permutation of all rows
  int64_t row_bytes = 0;          // of 16-bit elements
  uint32_t pieces = 0;            // of a row
  int32_t scatter = 0;            // dst[rows[i]] = src[i], else dst[i] = src[rows[i]]
  int32_t vector = 0;             // rows are whole 16-byte pieces, 16-byte aligned
};

}  // namespace lowrank::gpu
