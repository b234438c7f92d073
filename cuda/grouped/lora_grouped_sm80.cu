/// The adapters' part of a batch whose rows have different adapters; the base product is another
/// kernel's. With e an adapter of row m and g = row_scale[m, its slot]:
///
///   grouped_shrink   h_e = (gate_e ⊙ x[m]) · lora_a_eᵀ
///   grouped_expand   y[m] = base[m] + bias + g · scaling_e · (h_e · lora_b_eᵀ + lora_bias_e)
///   grouped_dh       dh_e = g · scaling_e · u_e, u_e = dy[m] · lora_b_e
///   grouped_gates    dg = scaling_e · (u_e · h_e + dy[m] · lora_bias_e), 0 of an empty slot
///   grouped_dx       dx[m] = base[m] + gate_e ⊙ (dh_e · lora_a_e)
///   grouped_da       d_lora_a_e = dh_eᵀ · (gate_e ⊙ x)
///   grouped_db       d_lora_b_e = scaling_e · (g ⊙ dy)ᵀ · h_e,
///                    d_lora_bias_e = scaling_e · Σ g · dy
///
/// and grouped_dh_sum, which adds the slices of dh's reduction. All but this one, shrink and gates
/// are c(i, j) = Σ_t a(i, t) · b(j, t). A row with several adapters is added to by as many launches
/// of expand or dx, in the order of the adapters; all but the last leave the sum in base.
///
/// Operands   a table of adapters, tiles of their rows, and the rows' indices, in device memory;
///            x and dy of one type, each factor of its own; h and dh packed f32
/// Shrink     a block has 8 rows of one adapter and some of its ranks, four at a time
///            (lora_grouped_shrink.cuh). So a factor is read once by whatever few rows there are,
///            and the launch stores h itself
/// Tile       of the others: 32 x 32 elements of c, 2 x 2 a thread; of rows: those of one adapter.
///            The reduction goes by slabs of 16.
/// Grid       tiles of rows (or of ranks or of n, for each adapter) times tiles of columns; blocks
///            beyond an adapter's own rank end at once. shrink: y, eights of a tile's rows; gates:
///            tiles of rows, a warp every eighth row
/// Shared     the two slabs, 4,352 bytes
/// Slices     dh is small and its reduction, over N, long: up to 16 slices of whole spans, each by
///            a block of its own into a plane, so that few rows fill the card. How many depends on
///            N alone, and so do the bits of a row
/// Numerics   f32; shrink as its file says. Others: ascending t, 256 terms at a time, then the sum
///            of those, then that of the slices; planes of the base product in their order;
///            one rounding. Nothing of a row depends on the others, nor of
///            an adapter's gradient on the rows of others.
/// Needs      nothing but for speed: 16-byte aligned x and lora_a
/// Hopper     lora_grouped_forward_sm90.cu has shrink and expand in one launch, for few rows
///
/// Budget     32 rows of 32 adapters, r = 16, 4,096 x 4,096 in bf16: 8.4 MB of factors, 2.8 us at
///            3.0 TB/s. Shrink: 128 blocks of four ranks, a warp one chunk, all of its loads in
///            flight at once: three dependent reads of the tables (some 600 clk each) and one of
///            the factors, 4.2 MB at 3.0 TB/s with the latency of memory, 2.5 k clk, then 32
///            shuffles and the sums: 5 k clk = 3 us. Many rows, r = 16: 512 FMA beside 20 loads of
///            16 bytes a chunk and four ranks, x from L1 from the second four on. Expand: 4,096
///            blocks of one slab.
#include "cuda/grouped/lora_grouped_shrink.cuh"

namespace lowrank::gpu {
namespace {

constexpr int kThreads = kGroupedThreads;
constexpr int kTile = kGroupedTile;
constexpr int kDepth = kGroupedDepth;
constexpr int kPitch = kGroupedPitch;

struct GroupedShared {
  float a[kDepth][kPitch];
  float b[kDepth][kPitch];
};
static_assert(sizeof(GroupedShared) == kGroupedSharedBytes);

/// Is element `index` of x kept by the adapter's gate?
LOWRANK_DEVICE bool IsKept(const GroupedParams& p, const GroupedAdapter& e, int64_t index) {
  if (e.gate_kind == kLoraGateNone) return true;
  if (e.gate_kind == kLoraGateMask) return LoadSmall(p.gate.mask_element, p.gate.mask, index) != 0;
  LoraGate gate = p.gate;
  gate.threshold = e.threshold;
  return (KeptOfGroup(gate, static_cast<uint64_t>(index) >> 2) >> (index & 3) & 1u) != 0;
}

/// gate ⊙ x at (m, k)
LOWRANK_DEVICE float GatedX(const GroupedParams& p, const GroupedAdapter& e, int64_t m, int64_t k) {
  const int64_t index = m * p.K + k;
  if (!IsKept(p, e, index)) return 0.0f;
  const float value = LoadSmall(p.x_element, p.x, index);
  return e.gate_kind == kLoraGateNone ? value : value * e.kept_scale;
}

struct DeltaH : RowsOfTile {
  static constexpr bool kSliced = true;
  static constexpr bool kAAlongDepth = true;
  static constexpr bool kBAlongDepth = false;
  int64_t cols;
  int64_t depth;

  __device__ __forceinline__ explicit DeltaH(const GroupedParams& p)
      : RowsOfTile(p), cols(e.r), depth(p.N) {}
  __device__ __forceinline__ float A(const GroupedParams& p, int64_t i, int64_t t) const {
    return LoadSmall(p.x_element, p.dy, RowOf(p, i) * p.N + t);
  }
  __device__ __forceinline__ float B(const GroupedParams&, int64_t j, int64_t t) const {
    return LoadSmall(e.b_element, e.lora_b, t * e.r + j);
  }
  __device__ __forceinline__ void Store(const GroupedParams& p, int64_t i, int64_t j,
                                        float sum) const {
    const int64_t index = RankRow(p, i) + j;
    p.dh[index] = e.scaling * RowScaleOf(p, tile.first + i) * sum;
    if (p.u != nullptr) p.u[index] = sum;
  }
};

struct Expand : ExpandedRows {
  static constexpr bool kAAlongDepth = true;
  static constexpr bool kBAlongDepth = true;
  int64_t cols;
  int64_t depth;

  __device__ __forceinline__ explicit Expand(const GroupedParams& p)
      : ExpandedRows(p), cols(p.N), depth(tile.adapter < 0 ? 0 : e.r) {}
  __device__ __forceinline__ float A(const GroupedParams& p, int64_t i, int64_t t) const {
    return p.h[RankRow(p, i) + t];
  }
  __device__ __forceinline__ float B(const GroupedParams&, int64_t j, int64_t t) const {
    return LoadSmall(e.b_element, e.lora_b, j * e.r + t);
  }
};

struct InputGrad : OneEntryOfRows {
  static constexpr bool kAAlongDepth = true;
  static constexpr bool kBAlongDepth = false;
  int64_t cols;
  int64_t depth;

  __device__ __forceinline__ explicit InputGrad(const GroupedParams& p)
      : OneEntryOfRows(p), cols(p.K), depth(tile.adapter < 0 ? 0 : e.r) {}
  __device__ __forceinline__ float A(const GroupedParams& p, int64_t i, int64_t t) const {
    return p.dh[RankRow(p, i) + t];
  }
  __device__ __forceinline__ float B(const GroupedParams& p, int64_t j, int64_t t) const {
    return LoadSmall(e.a_element, e.lora_a, t * p.K + j);
  }
  __device__ __forceinline__ void Store(const GroupedParams& p, int64_t i, int64_t j,
                                        float sum) const {
    const int64_t index = RowOf(p, i) * p.K + j;
    float value = BaseSum(p, index);
    if (tile.adapter >= 0 && IsKept(p, e, index)) {
      value += e.gate_kind == kLoraGateNone ? sum : e.kept_scale * sum;
    }
    if (p.partial != 0) {
      p.base[index] = value;
      return;
    }
    if (p.accumulate != 0) value += LoadSmall(p.x_element, p.out, index);
    StoreSmall(p.x_element, p.out, index, value);
  }
};

/// Shared by the gradients of an adapter's factors.
struct OneAdapter {
  static constexpr bool kSliced = false;
  GroupedAdapter e;
  int64_t first_row;
  int64_t first_col;
  int64_t depth;

  __device__ __forceinline__ explicit OneAdapter(const GroupedParams& p)
      : e(p.adapters[blockIdx.x / (p.i_tiles * p.j_tiles)]),
        first_row(static_cast<int64_t>(blockIdx.x / p.j_tiles % p.i_tiles) * kTile),
        first_col(static_cast<int64_t>(blockIdx.x % p.j_tiles) * kTile),
        depth(e.count) {}
  __device__ __forceinline__ int64_t RowOf(const GroupedParams& p, int64_t t) const {
    return p.rows[e.first + t];
  }
};

struct GradA : OneAdapter {
  static constexpr bool kAAlongDepth = false;
  static constexpr bool kBAlongDepth = false;
  int64_t rows;
  int64_t cols;

  __device__ __forceinline__ explicit GradA(const GroupedParams& p)
      : OneAdapter(p), rows(e.d_lora_a == nullptr ? 0 : e.r), cols(p.K) {}
  __device__ __forceinline__ float A(const GroupedParams& p, int64_t i, int64_t t) const {
    return p.dh[e.h_begin + t * e.r + i];
  }
  __device__ __forceinline__ float B(const GroupedParams& p, int64_t j, int64_t t) const {
    return GatedX(p, e, RowOf(p, t), j);
  }
  __device__ __forceinline__ void Store(const GroupedParams& p, int64_t i, int64_t j,
                                        float sum) const {
    const int64_t index = i * p.K + j;
    if (e.accumulate_a != 0) sum += LoadSmall(e.d_a_element, e.d_lora_a, index);
    StoreSmall(e.d_a_element, e.d_lora_a, index, sum);
  }
};

/// Column r is that of d_lora_bias: its factor is ones.
struct GradB : OneAdapter {
  static constexpr bool kAAlongDepth = false;
  static constexpr bool kBAlongDepth = false;
  int64_t rows;
  int64_t cols;

  __device__ __forceinline__ explicit GradB(const GroupedParams& p)
      : OneAdapter(p),
        rows(e.d_lora_b == nullptr ? 0 : p.N),
        cols(e.r + (e.d_lora_bias == nullptr ? 0 : 1)) {}
  __device__ __forceinline__ float A(const GroupedParams& p, int64_t i, int64_t t) const {
    const int64_t m = RowOf(p, t);
    return RowScaleOf(p, e.first + t) * LoadSmall(p.x_element, p.dy, m * p.N + i);
  }
  __device__ __forceinline__ float B(const GroupedParams& p, int64_t j, int64_t t) const {
    if (j == e.r) return 1.0f;
    return p.h[e.h_begin + t * e.r + j];
  }
  __device__ __forceinline__ void Store(const GroupedParams&, int64_t i, int64_t j,
                                        float sum) const {
    sum *= e.scaling;
    if (j == e.r) {
      if (e.accumulate_bias != 0) sum += LoadSmall(e.d_bias_element, e.d_lora_bias, i);
      StoreSmall(e.d_bias_element, e.d_lora_bias, i, sum);
      return;
    }
    const int64_t index = i * e.r + j;
    if (e.accumulate_b != 0) sum += LoadSmall(e.d_b_element, e.d_lora_b, index);
    StoreSmall(e.d_b_element, e.d_lora_b, index, sum);
  }
};

/// Calls load(i, t) for kTile rows from `first` and kDepth terms from t, with zeros beyond either.
template <bool kAlongDepth, typename LoadFn>
LOWRANK_DEVICE void FillSlab(int64_t first, int64_t rows, int64_t t, int64_t end,
                             const LoadFn& load, float (&s_slab)[kDepth][kPitch]) {
  static_assert(kTile * kDepth % kThreads == 0);
#pragma unroll
  for (int begin = 0; begin < kTile * kDepth; begin += kThreads) {
    const int place = begin + static_cast<int>(threadIdx.x);
    const int row = kAlongDepth ? place / kDepth : place % kTile;
    const int step = kAlongDepth ? place % kDepth : place / kTile;
    const bool inside = first + row < rows && t + step < end;
    s_slab[step][row] = inside ? load(first + row, t + step) : 0.0f;
  }
}

template <typename Op>
LOWRANK_DEVICE void GroupedBody(const GroupedParams& p) {
  GroupedShared& s = DynamicShared<GroupedShared>();
  const Op op(p);
  if (op.first_row >= op.rows || op.first_col >= op.cols) return;
  const int row = static_cast<int>(threadIdx.x) / 16;
  const int col = static_cast<int>(threadIdx.x) % 16;
  float total[2][2] = {};
  const int64_t slice_begin = Op::kSliced ? blockIdx.y * p.slice : 0;
  const int64_t slice_end =
      Op::kSliced && slice_begin + p.slice < op.depth ? slice_begin + p.slice : op.depth;
  for (int64_t span = slice_begin; span < slice_end; span += kGroupedSpan) {
    const int64_t end = span + kGroupedSpan < slice_end ? span + kGroupedSpan : slice_end;
    float sum[2][2] = {};
    for (int64_t t = span; t < end; t += kDepth) {
      FillSlab<Op::kAAlongDepth>(
          op.first_row, op.rows, t, end, [&](int64_t i, int64_t step) { return op.A(p, i, step); },
          s.a);
      FillSlab<Op::kBAlongDepth>(
          op.first_col, op.cols, t, end, [&](int64_t j, int64_t step) { return op.B(p, j, step); },
          s.b);
      __syncthreads();
#pragma unroll 4
      for (int d = 0; d < kDepth; ++d) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            sum[i][j] = fmaf(s.a[d][row + 16 * i], s.b[d][col + 16 * j], sum[i][j]);
          }
        }
      }
      __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int j = 0; j < 2; ++j) total[i][j] += sum[i][j];
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int64_t at_row = op.first_row + row + 16 * i;
      const int64_t at_col = op.first_col + col + 16 * j;
      if (at_row >= op.rows || at_col >= op.cols) continue;
      if constexpr (Op::kSliced) {
        if (p.planes != nullptr) {
          p.planes[blockIdx.y * p.plane_elems + op.RankRow(p, at_row) + at_col] = total[i][j];
          continue;
        }
      }
      op.Store(p, at_row, at_col, total[i][j]);
    }
  }
}

/// Adds the slices of a tile's sums in ascending order; neighbouring threads take ranks.
template <typename Op>
LOWRANK_DEVICE void SumSlices(const GroupedParams& p) {
  const Op op(p);
  const int64_t slices = (op.depth + p.slice - 1) / p.slice;
  for (int place = static_cast<int>(threadIdx.x); place < kTile * kTile; place += kThreads) {
    const int64_t row = op.first_row + place / kTile;
    const int64_t col = op.first_col + place % kTile;
    if (row >= op.rows || col >= op.cols) continue;
    const float* g_sum = p.planes + op.RankRow(p, row) + col;
    float total = 0;
    for (int64_t slice = 0; slice < slices; ++slice) total += g_sum[slice * p.plane_elems];
    op.Store(p, row, col, total);
  }
}

// ------------------------------------------------------------------------------------- shrink

LOWRANK_DEVICE void ShrinkBody(const GroupedParams& p) {
  GroupedShrinkShared& s = DynamicShared<GroupedShrinkShared>();
  const ShrinkBlock<RowsOfTile> op(p);
  if (op.count <= 0) return;
  const int64_t begin = blockIdx.x % p.j_tiles * p.block_ranks;
  const int64_t end = begin + p.block_ranks < op.e.r ? begin + p.block_ranks : op.e.r;
  ShrinkRanks(p, op, begin, end, s, [&](int64_t j0, int lane, float h) {
    const int row = lane / kGroupedShrinkRanks;
    const int64_t j = j0 + lane % kGroupedShrinkRanks;
    if (row < op.count && j < op.e.r) p.h[op.RankRow(p, op.row0 + row) + j] = h;
  });
}

// -------------------------------------------------------------------------------------- gates

/// term(t) summed over t < count by a warp: a lane takes every 32nd, kGroupedSpan terms at a time.
template <typename TermFn>
LOWRANK_DEVICE float WarpSum(int64_t count, const TermFn& term) {
  constexpr int64_t kLanes = 32;
  float total = 0;
  for (int64_t span = threadIdx.x % kLanes; span < count; span += kLanes * kGroupedSpan) {
    float sum = 0;
    for (int64_t t = span; t < count && t < span + kLanes * kGroupedSpan; t += kLanes) {
      sum += term(t);
    }
    total += sum;
  }
#pragma unroll
  for (int distance = kLanes / 2; distance > 0; distance /= 2) {
    total += __shfl_xor_sync(0xffffffffu, total, distance);
  }
  return total;
}

LOWRANK_DEVICE void StoreGate(const GroupedParams& p, int64_t gate, float value) {
  if (p.accumulate != 0) value += LoadSmall(p.d_row_scale_element, p.d_row_scale, gate);
  StoreSmall(p.d_row_scale_element, p.d_row_scale, gate, value);
}

LOWRANK_DEVICE void GateGrads(const GroupedParams& p) {
  const RowsOfTile op(p);
  const GroupedAdapter& e = op.e;
  for (int64_t i = threadIdx.x / 32; i < op.rows; i += kThreads / 32) {
    const int64_t entry = op.tile.first + i;
    float sum = 0;
    if (op.tile.adapter >= 0) {
      const int64_t begin = op.RankRow(p, i);
      sum = WarpSum(e.r, [&](int64_t j) { return p.u[begin + j] * p.h[begin + j]; });
      if (e.lora_bias != nullptr) {
        const int64_t row = op.RowOf(p, i) * p.N;
        sum += WarpSum(p.N, [&](int64_t n) {
          return LoadSmall(p.x_element, p.dy, row + n) * LoadSmall(e.bias_element, e.lora_bias, n);
        });
      }
      sum *= e.scaling;
    }
    if (threadIdx.x % 32 == 0) StoreGate(p, p.gates[entry], sum);
  }
}

}  // namespace

LOWRANK_KERNEL(grouped_shrink_kernel, GroupedParams, kGroupedShrinkThreads, 1) { ShrinkBody(p); }
LOWRANK_KERNEL(grouped_expand_kernel, GroupedParams, kThreads, 2) { GroupedBody<Expand>(p); }
LOWRANK_KERNEL(grouped_dh_kernel, GroupedParams, kThreads, 2) { GroupedBody<DeltaH>(p); }
LOWRANK_KERNEL(grouped_dh_sum_kernel, GroupedParams, kThreads, 2) { SumSlices<DeltaH>(p); }
LOWRANK_KERNEL(grouped_gates_kernel, GroupedParams, kThreads, 2) { GateGrads(p); }
LOWRANK_KERNEL(grouped_dx_kernel, GroupedParams, kThreads, 2) { GroupedBody<InputGrad>(p); }
LOWRANK_KERNEL(grouped_da_kernel, GroupedParams, kThreads, 2) { GroupedBody<GradA>(p); }
LOWRANK_KERNEL(grouped_db_kernel, GroupedParams, kThreads, 2) { GroupedBody<GradB>(p); }

}  // namespace lowrank::gpu
