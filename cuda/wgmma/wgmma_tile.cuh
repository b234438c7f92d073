/// Shared by the products with wgmma of whole tiles (gemm_wgmma_sm90a.cu,
/// matmul_int8_wgmma_sm90a.cu): the ring of stages between the thread that copies and the
/// warpgroups that multiply, fragments of its tiles, and the path of 16-bit results to y.
///
/// Cluster  two blocks that share a column tile: each fetches its own rows of x and one half of the
///          rows of w, which it multicasts
/// Ring     kStages stages of x and w. `full` of a stage has one arrival, of the thread that
///          copies, and the bytes of its copies; `empty` one of each of the eight warps that
///          multiply in both blocks, since both copy into the stage
/// Stage    s.x[stage] and s.w[stage], rows of 128 bytes, the widest swizzle of the copy engine:
///          four steps of 32 bytes, 16 elements or 32 codes of K
/// Output   16 rows of 64 columns a warp at a time: 64 of 16 bits are a line of 128 bytes, which
///          eight lanes store. The rows are 8 elements longer in shared memory, so that the eight
///          of a matrix (stmatrix), 144 bytes apart, and the eight pieces of a row (the loads)
///          both meet each bank once
#pragma once

#include "cuda/common/swizzle.cuh"
#include "cuda/ptx_sm90.cuh"

namespace lowrank::gpu {

constexpr uint32_t kClusterBlocks = 2;
constexpr uint32_t kConsumerWarps = 8;  // two warpgroups, 64 rows of the tile each
constexpr uint32_t kStageRow = 128;     // bytes
constexpr uint32_t kStageSteps = kStageRow / 32;
constexpr uint32_t kOutCols = 64;
constexpr uint32_t kOutStride = kOutCols + 8;

/// Where a thread is in a ring. On a fresh barrier parity 1 has completed: the filling thread waits
/// for the other parity than the reading ones.
template <uint32_t kCount>
struct RingPosition {
  uint32_t stage = 0;
  uint32_t parity = 0;

  __device__ __forceinline__ void Advance() {
    if (++stage == kCount) {
      stage = 0;
      parity ^= 1;
    }
  }
};

/// The barriers of a ring of stages.
template <uint32_t kStages>
struct StageRing {
  uint64_t full[kStages];   // the bytes of a stage have come
  uint64_t empty[kStages];  // nobody in the cluster reads it any more
};

/// One thread's work, before a fence or a barrier: how many arrivals a phase of these takes.
template <size_t kCount>
LOWRANK_DEVICE void InitBarriers(uint64_t (&s_barriers)[kCount], uint32_t arrivals) {
  for (size_t i = 0; i < kCount; ++i) {
    BarrierInit(&s_barriers[i], arrivals);
  }
}
template <uint32_t kStages>
LOWRANK_DEVICE void InitRing(StageRing<kStages>& ring) {
  InitBarriers(ring.full, 1);
  InitBarriers(ring.empty, kConsumerWarps * kClusterBlocks);
}

/// The thread that copies: fills the next stage as soon as both blocks of the cluster have read it,
/// with columns from k of the rows of x from m and of w from n.
template <typename Storage, uint32_t kStages>
LOWRANK_DEVICE void FillStage(Storage& s, RingPosition<kStages>& at, uint32_t rank,
                              const TensorMap& x_map, const TensorMap& w_map, int32_t k, int32_t m,
                              int32_t n) {
  constexpr uint32_t kHalf = sizeof(s.w[0]) / kClusterBlocks;  // bytes of w
  uint64_t* s_full = &s.ring.full[at.stage];
  BarrierWait(&s.ring.empty[at.stage], at.parity ^ 1);
  BarrierArriveExpectBytes(s_full, sizeof(s.x[0]) + sizeof(s.w[0]));
  TensorLoad2D(s.x[at.stage], &x_map, k, m, s_full);
  TensorLoad2DMulticast(s.w[at.stage] + rank * kHalf, &w_map, k,
                        n + static_cast<int32_t>(rank * (kHalf / kStageRow)), s_full,
                        (1u << kClusterBlocks) - 1);
  at.Advance();
}

/// The products of a stage: multiply(descriptor of x, descriptor of w, step) for each of its steps.
/// `group` is the warpgroup's half of the rows.
template <typename Storage, typename Multiply>
LOWRANK_DEVICE void MultiplyStage(const Storage& s, uint32_t stage, uint32_t group,
                                  Multiply multiply) {
  const uint64_t x = WgmmaDescriptor(s.x[stage] + group * 64 * kStageRow);
  const uint64_t w = WgmmaDescriptor(s.w[stage]);
  WgmmaFence();
#pragma unroll
  for (uint32_t step = 0; step < kStageSteps; ++step) multiply(x + step * 2, w + step * 2, step);
  WgmmaCommit();
}

/// Both blocks copy into a stage, so both are told that this warp has read it.
template <uint32_t kStages>
LOWRANK_DEVICE void ReleaseStage(StageRing<kStages>& ring, uint32_t stage) {
  const uint32_t lane = threadIdx.x % 32;
  if (lane < kClusterBlocks) BarrierArriveAt(&ring.empty[stage], lane);
}

/// To the next stage, whose products have been issued. One group of products stays in flight: the
/// stage before is free once this one is issued.
template <uint32_t kStages>
LOWRANK_DEVICE void PassStage(StageRing<kStages>& ring, RingPosition<kStages>& at,
                              uint32_t& previous, bool in_flight) {
  if (in_flight) {
    WgmmaWait<1>();
    ReleaseStage(ring, previous);
  }
  previous = at.stage;
  at.Advance();
}

/// The four 8 x 8 matrices of rows row0 .. row0 + 15 and 16 elements of K of a tile of a stage, as
/// the copy engine's swizzle left them.
LOWRANK_DEVICE void LoadSwizzled(const unsigned char* s_tile, uint32_t row0, uint32_t step,
                                 uint32_t (&fragment)[4]) {
  const uint32_t lane = threadIdx.x % 32;
  LdMatrixX4(fragment, s_tile + SwizzledOffset<128>(static_cast<int>(row0 + lane % 16),
                                                    static_cast<int>(step * 2 + lane / 16)));
}

/// Columns of y, of 16 bits, that a launch writes. References to its parameters, which are read
/// where they are used: as values they take registers that gemm_wgmma_sm90a.cu does not have.
struct OutColumns {
  uint16_t* g_y;          // the first of row 0
  const int64_t& stride;  // elements of a row of y
  const int64_t& rows;
  const int64_t& cols;
  bool vector;  // rows begin at, and have, whole 16 bytes
};

/// A warp's 16 rows of a tile of kCols columns, from (m0, n0) of `out` on, 64 columns at a time
/// through shared memory, so that the global stores are whole lines. pack(octet, n) gives the two
/// neighbours that a lane has at columns n and n + 1, in its `octet` of eight: .x of row lane / 4,
/// .y of the row eight below.
template <uint32_t kCols, typename Pack>
LOWRANK_DEVICE void StoreTile(const OutColumns& out, uint16_t* s_out, int64_t m0, int64_t n0,
                              Pack pack) {
  const uint32_t lane = threadIdx.x % 32;
#pragma unroll
  for (uint32_t part = 0; part < kCols / kOutCols; ++part) {
    const int64_t part_n0 = n0 + part * kOutCols;
    __syncwarp();  // the part before has been read
#pragma unroll
    for (uint32_t pair = 0; pair < kOutCols / 16; ++pair) {
      uint32_t packed[4];  // two 8 x 8 columns: rows g and g + 8 of each
#pragma unroll
      for (uint32_t half = 0; half < 2; ++half) {
        const uint2 rows = pack(part * (kOutCols / 8) + pair * 2 + half,
                                part_n0 + pair * 16 + half * 8 + lane % 4 * 2);
        packed[half * 2] = rows.x;
        packed[half * 2 + 1] = rows.y;
      }
      // Matrices 0..3 are rows 0..7 and 8..15 of the first eight columns, then of the second.
      StMatrixX4(s_out + (lane % 16) * kOutStride + pair * 16 + lane / 16 * 8, packed);
    }
    __syncwarp();
    if (out.vector) {
#pragma unroll
      for (uint32_t row = lane / 8; row < 16; row += 4) {
        const int64_t n = part_n0 + lane % 8 * 8;
        if (m0 + row < out.rows && n < out.cols) {
          Store16(out.g_y + (m0 + row) * out.stride + n,
                  *reinterpret_cast<const uint4*>(s_out + row * kOutStride + lane % 8 * 8));
        }
      }
    } else {
      for (uint32_t row = 0; row < 16; ++row) {
        for (uint32_t col = lane; col < kOutCols; col += 32) {
          if (m0 + row < out.rows && part_n0 + col < out.cols) {
            out.g_y[(m0 + row) * out.stride + part_n0 + col] = s_out[row * kOutStride + col];
          }
        }
      }
    }
  }
}

}  // namespace lowrank::gpu
