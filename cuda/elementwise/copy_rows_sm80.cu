/// The rows of a matrix of 16-bit elements in another order: those of each adapter of a batch one
/// after another, and back (native/cuda/plans/ops/plan_grouped_segments.cpp).
///
///   gather    dst[i] = src[rows[i]]
///   scatter   dst[rows[i]] = src[i]
///
/// Operands   src, dst [rows, row_bytes] · rows: each row once
/// Grid       pieces of 8 KiB of a row, row after row; no shared memory
/// Numerics   the bits themselves
/// Needs      nothing: rows that do not begin at 16 bytes go element by element
///
/// Budget     4 bytes an element. At 3.0 TB/s and 1.755 GHz each of 132 multiprocessors sees 3.3
///            elements a clock, 0.4 loads of 16 bytes and as many stores: 6 of 128 issue slots. A
///            block waits twice, for the row's number and for the row: some 1,200 clocks in which
///            eight blocks have 64 KiB on their way, 53 bytes a clock where 13 are wanted.
#include "cuda/gpu.cuh"
#include "native/host_device/params/copy_rows.h"

namespace lowrank::gpu {
namespace {

constexpr int kThreads = kCopyRowsThreads;
constexpr int kUnroll = kCopyRowsUnroll;

LOWRANK_DEVICE void CopyRowsBody(const CopyRowsParams& p) {
  const int64_t row = blockIdx.x / p.pieces;
  const int64_t piece = blockIdx.x % p.pieces * kCopyRowsPieceBytes;
  const int64_t other = p.rows[row];
  const unsigned char* g_src =
      static_cast<const unsigned char*>(p.src) + (p.scatter != 0 ? row : other) * p.row_bytes;
  unsigned char* g_dst =
      static_cast<unsigned char*>(p.dst) + (p.scatter != 0 ? other : row) * p.row_bytes;
  if (p.vector == 0) {
    const int64_t end = piece + kCopyRowsPieceBytes;
    for (int64_t at = piece + 2 * threadIdx.x; at < end && at < p.row_bytes; at += 2 * kThreads) {
      *reinterpret_cast<uint16_t*>(g_dst + at) = *reinterpret_cast<const uint16_t*>(g_src + at);
    }
    return;
  }
  uint4 run[kUnroll];
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    const int64_t at = piece + (u * kThreads + static_cast<int64_t>(threadIdx.x)) * 16;
    if (at < p.row_bytes) run[u] = LoadStream16(g_src + at);
  }
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    const int64_t at = piece + (u * kThreads + static_cast<int64_t>(threadIdx.x)) * 16;
    if (at < p.row_bytes) *reinterpret_cast<uint4*>(g_dst + at) = run[u];
  }
}

}  // namespace

LOWRANK_KERNEL(copy_rows_kernel, CopyRowsParams, kThreads, 8) { CopyRowsBody(p); }

}  // namespace lowrank::gpu
