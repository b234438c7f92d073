/// Rows of a batch with many adapters: which rows a block has, what gates them, and where results
/// go. lora_grouped_sm80.cu has the formulas.
#pragma once

#include "cuda/common/planes.cuh"
#include "cuda/common/small_operand.cuh"
#include "cuda/lora/lora_gate.cuh"
#include "native/host_device/params/lora_grouped.h"

namespace lowrank::gpu {

/// g of an entry, or 1.
LOWRANK_DEVICE float RowScaleOf(const GroupedParams& p, int64_t entry) {
  if (p.row_scale == nullptr) return 1.0f;
  return LoadSmall(p.row_scale_element, p.row_scale, p.gates[entry]);
}

/// An element of the base product.
LOWRANK_DEVICE float BaseSum(const GroupedParams& p, int64_t index) {
  constexpr int kAtOnce = 4;
  if (p.sum_planes == 1) return p.sums[index];
  return SumPlanes<kAtOnce>(p.sums + index, p.sum_plane_elems, p.sum_planes);
}

/// Shared by the kernels whose tiles consist of rows.
struct RowsOfTile {
  GroupedRowTile tile;
  GroupedAdapter e;
  int64_t rows;
  int64_t first_row = 0;
  int64_t first_col;

  __device__ __forceinline__ explicit RowsOfTile(const GroupedParams& p)
      : tile(p.tiles[blockIdx.x / p.j_tiles]),
        e(p.adapters[tile.adapter < 0 ? 0 : tile.adapter]),
        rows(tile.count),
        first_col(static_cast<int64_t>(blockIdx.x % p.j_tiles) * kGroupedTile) {}
  __device__ __forceinline__ int64_t RowOf(const GroupedParams& p, int64_t i) const {
    return p.rows[tile.first + i];
  }
  /// Row i of the tile in h and dh.
  __device__ __forceinline__ int64_t RankRow(const GroupedParams&, int64_t i) const {
    return e.h_begin + (tile.first - e.first + i) * e.r;
  }
};

/// The same for kernels that add to rows: a launch takes one entry of a row.
struct OneEntryOfRows : RowsOfTile {
  static constexpr bool kSliced = false;
  __device__ __forceinline__ explicit OneEntryOfRows(const GroupedParams& p) : RowsOfTile(p) {}
  __device__ __forceinline__ int64_t EntryOf(const GroupedParams& p, int64_t i) const {
    return p.places == nullptr ? tile.first + i : p.places[tile.first + i];
  }
  __device__ __forceinline__ int64_t RowOf(const GroupedParams& p, int64_t i) const {
    return p.rows[EntryOf(p, i)];
  }
  __device__ __forceinline__ int64_t RankRow(const GroupedParams& p, int64_t i) const {
    return e.h_begin + (EntryOf(p, i) - e.first) * e.r;
  }
};

/// Rows whose sums h · lora_bᵀ are added to the base product.
struct ExpandedRows : OneEntryOfRows {
  __device__ __forceinline__ explicit ExpandedRows(const GroupedParams& p) : OneEntryOfRows(p) {}
  __device__ __forceinline__ void Store(const GroupedParams& p, int64_t i, int64_t j,
                                        float sum) const {
    const int64_t entry = EntryOf(p, i);
    const int64_t m = p.rows[entry];
    float value = BaseSum(p, m * p.N + j);
    if (tile.adapter >= 0) {
      if (e.lora_bias != nullptr) sum += LoadSmall(e.bias_element, e.lora_bias, j);
      value += e.scaling * RowScaleOf(p, entry) * sum;
    }
    if (p.partial != 0) {
      p.base[m * p.N + j] = value;
      return;
    }
    if (p.bias != nullptr) value += LoadSmall(p.bias_element, p.bias, j);
    StoreSmall(p.x_element, p.out, m * p.N + j, value);
  }
};

}  // namespace lowrank::gpu
