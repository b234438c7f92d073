/// What attention prepares, element by element.
///
///   attention_place       heads of rows, turned where it is asked for and rounded to T, to where
///                         they are read by pieces of 16 bytes, or behind those in a cache
///   attention_rows        of each row of a walk lse · log2 e, D = Σ o · d_o, and the keys it sees
///   attention_documents   lowers first_bad to the first entry that is neither its own row nor the
///                         entry before it
///
/// Operands   heads of any type and alignment · rope [P, rot] f32
/// Grid       a thread a piece, blockIdx.y the job; a warp a row; a thread an entry
/// Numerics   a · cos ± b · sin, each product rounded, then to T, as on the CPU; D in f32, lanes in
///            ascending order, then the lanes
/// Budget     place of k at 8,192 rows of 8 heads of 128 in bf16 moves 34 MB, 11 us at 3.0 TB/s,
///            where each block of the forward pass would turn its keys again: some 10
///            instructions a pair, 320 of the 996 clocks of a tile. Of q and k before the backward
///            pass 168 MB, 56 us; rows of o and d_o 134 MB, 45 us.
#include "cuda/attention/attention_turn.cuh"

namespace lowrank::gpu {
namespace {

/// Copies heads to where they are read with 16-byte pieces, or kept: rounded to T, turned where a
/// job asks for it.
template <typename T>
LOWRANK_DEVICE void PlaceBody(const AttentionPlaceParams& p) {
  constexpr int kElems = Group<T>::kElems;
  const AttentionPlaceJob& job = p.jobs[blockIdx.y];
  const int64_t task = static_cast<int64_t>(blockIdx.x) * kAttentionPlaceThreads + threadIdx.x;
  if (task >= job.tasks) return;
  const int col = static_cast<int>(task % job.pieces) * kElems;
  const int64_t row_head = task / job.pieces;
  const int head = static_cast<int>(row_head % job.heads);
  const int64_t m = row_head / job.heads;
  const int64_t b = m / job.rows;
  const int t = static_cast<int>(m % job.rows);
  AttentionRope rope = p.rope;
  if (job.turned == 0) rope.rot = 0;
  const int begin = SightOf(job.turned == 0 ? nullptr : p.documents, m, t, 0).begin;
  float value[kElems];
  const int64_t from = (b * job.src.sequence_rows + t) * job.src.row_elems +
                       static_cast<int64_t>(head) * job.src.head_elems;
  LoadTurned(GlobalRow<T>{job.src, from, p.head_dim}, TurnOf(rope, p.past + t - begin), 1.0f, col,
             value);
  const int64_t to = (b * job.dst.sequence_rows + job.dst_first + t) * job.dst.row_elems +
                     static_cast<int64_t>(head) * job.dst.head_elems;
  StorePiece<T>(job.dst, to, col, job.dst.head_elems, value);
}

LOWRANK_DEVICE void RowsBody(const AttentionRowsParams& p) {
  constexpr uint32_t kAll = 0xffffffffu;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t walk = static_cast<int64_t>(p.rows) * p.group;
  const int64_t at = (static_cast<int64_t>(blockIdx.x) * kAttentionRowsThreads + threadIdx.x) / 32;
  if (at >= p.M * p.kv_heads * p.group) return;
  const int64_t pair = at / walk;
  const int r = static_cast<int>(at % walk);
  const int t = r / p.group;
  const int64_t head = pair % p.kv_heads * p.group + r % p.group;
  const int64_t m = pair / p.kv_heads * p.rows + t;
  const int64_t o = m * p.o.row_elems + head * p.o.head_elems;
  const int64_t d_o = m * p.d_o.row_elems + head * p.d_o.head_elems;
  float sum = 0.0f;
  for (int i = lane; i < p.head_dim; i += 32) {
    sum = fmaf(LoadSmall(p.o.element, p.o.data, o + i),
               LoadSmall(p.d_o.element, p.d_o.data, d_o + i), sum);
  }
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    sum += __shfl_xor_sync(kAll, sum, distance);
  }
  if (lane != 0) return;
  const float lse = p.lse[head * p.M + m] * 1.44269504f;
  p.walk[at] = {lse, sum, SightOf(p.documents, m, t, p.window).first, t};
}

LOWRANK_DEVICE void DocumentsBody(const AttentionDocumentsParams& p) {
  const int64_t m = static_cast<int64_t>(blockIdx.x) * kAttentionDocumentsThreads + threadIdx.x;
  if (m >= p.M) return;
  const int t = static_cast<int>(m % p.rows);
  const int begin = p.documents[m];
  if (begin == t || (t > 0 && begin == p.documents[m - 1])) return;
  const uint64_t word = static_cast<uint64_t>(m) << 32 | static_cast<uint32_t>(begin);
  atomicMin(reinterpret_cast<unsigned long long*>(p.first_bad),
            static_cast<unsigned long long>(word));
}

}  // namespace

LOWRANK_KERNEL(attention_place_f32_kernel, AttentionPlaceParams, kAttentionPlaceThreads, 4) {
  PlaceBody<ElementF32>(p);
}
LOWRANK_KERNEL(attention_place_bf16_kernel, AttentionPlaceParams, kAttentionPlaceThreads, 4) {
  PlaceBody<ElementBF16>(p);
}
LOWRANK_KERNEL(attention_place_f16_kernel, AttentionPlaceParams, kAttentionPlaceThreads, 4) {
  PlaceBody<ElementF16>(p);
}
LOWRANK_KERNEL(attention_rows_kernel, AttentionRowsParams, kAttentionRowsThreads, 4) {
  RowsBody(p);
}
LOWRANK_KERNEL(attention_documents_kernel, AttentionDocumentsParams, kAttentionDocumentsThreads,
               4) {
  DocumentsBody(p);
}

}  // namespace lowrank::gpu
