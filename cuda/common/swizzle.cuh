/// Where the 16-byte pieces of a tile are in shared memory.
#pragma once

#include "cuda/gpu.cuh"

namespace lowrank::gpu {

/// Byte offset of 16-byte piece `piece` of row `row` in a tile of kRowBytes: pieces are permuted
/// within 128 bytes so that eight rows' equal pieces (ldmatrix, Decode's stores) and one row's
/// eight pieces (copies) both lie in different banks.
///
///   row   piece at 16-byte slot  0 1 2 3 4 5 6 7
///    0                           0 1 2 3 4 5 6 7
///    1                           1 0 3 2 5 4 7 6
///    2                           2 3 0 1 6 7 4 5   ...
template <int kRowBytes>
LOWRANK_DEVICE int SwizzledOffset(int row, int piece) {
  constexpr int kPieces = kRowBytes / 16 < 8 ? kRowBytes / 16 : 8;
  static_assert(kRowBytes % 16 == 0 && (kPieces & (kPieces - 1)) == 0);
  return row * kRowBytes + ((piece ^ ((row / (8 / kPieces)) & (kPieces - 1))) << 4);
}

}  // namespace lowrank::gpu
