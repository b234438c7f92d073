/// Rows of a table by their ids (EmbeddingOp):
///
///   y[m] = scale · table[ids[m]], zeros where ids[m] is -1
///
/// Operands   ids [rows] · table [V, cols] dense of any type, or packed as QuantView says · y
/// [rows,
///            cols] of any type
/// Grid       kRowThreads / row_lanes rows a block, eight neighbouring elements a lane
///            (cuda/common/row_lanes.cuh)
/// Shared     the codebook of a packed table
/// Numerics   decoded in f32, times scale, one rounding: equal bits on every device
/// Needs      nothing: rows and blocks that are no multiples of eight go element by element
///
/// Budget     8192 rows of 4096 bf16: 134 MB, 45 us at 3.0 TB/s. A row is 8 KB in one run. A lane
///            has 16 bytes in flight, and a multiprocessor 1,024 lanes: 16 KB, where memory needs 9
///            and two latencies, of the id and of the row, ask for twice that. 3.3 elements a clock
///            and multiprocessor, eight of which are about 70 instructions: 29 warp instructions of
///            128 slots. A packed table moves less: its decode, 60 instructions more for eight
///            elements of 2.3 bytes, stays below half of the slots.
#include "cuda/common/row_lanes.cuh"
#include "cuda/common/runs.cuh"
#include "cuda/common/weight_octets.cuh"
#include "native/host_device/params/embedding.h"

namespace lowrank::gpu {
namespace {

LOWRANK_DEVICE void EmbeddingBody(const EmbeddingParams& p) {
  EmbeddingShared& s = DynamicShared<EmbeddingShared>();
  FillCodebook(p.table, s.codebook);
  const RowLane at(p.row_lanes);
  if (at.row >= p.rows) return;
  const int64_t id = p.ids[at.row];
  for (int64_t run = at.lane; run < p.row_runs; run += p.row_lanes) {
    const Span<8> span(run * 8, p.cols);
    float value[8] = {};
    if (id >= 0) {
      LoadWeightEight(value, p.table, s.codebook, id * p.cols + span.col, span.count,
                      p.vector != 0);
#pragma unroll
      for (int i = 0; i < 8; ++i) value[i] *= p.scale;
    }
    StoreRun(p.y, at.row * p.cols, span, value);
  }
}

}  // namespace

LOWRANK_KERNEL(embedding_kernel, EmbeddingParams, kRowThreads, 4) { EmbeddingBody(p); }

}  // namespace lowrank::gpu
