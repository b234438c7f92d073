/// Pieces of 16 bytes of a head's row: loaded at any alignment, turned, and stored.
#pragma once

#include "cuda/common/element.cuh"
#include "cuda/common/small_operand.cuh"
#include "native/host_device/params/attention.h"

namespace lowrank::gpu {

/// The angles of a row.
struct RowTurn {
  const float* g_cos;  // then the sines
  int rot;             // 0: none
  bool vector;
};

LOWRANK_DEVICE RowTurn TurnOf(const AttentionRope& rope, int position) {
  return {rope.table + static_cast<int64_t>(max(position, 0)) * rope.rot, rope.rot,
          rope.vector != 0};
}

/// Elements [col, col + kElems) of a row, turned, or back with sign -1. Source: Piece(col, value)
/// loads kElems neighbours, Element(i) one.
template <int kElems, typename Source>
LOWRANK_DEVICE void LoadTurned(const Source& source, const RowTurn& turn, float sign, int col,
                               float (&value)[kElems]) {
  source.Piece(col, value);
  if (col >= turn.rot) return;
  const int pairs = turn.rot / 2;
  if (turn.vector && pairs % kElems == 0) {
    const bool upper = col >= pairs;
    float other[kElems];
    source.Piece(upper ? col - pairs : col + pairs, other);
    const float direction = upper ? sign : -sign;
#pragma unroll
    for (int i = 0; i < kElems; i += 4) {
      const float* g_cos = turn.g_cos + (upper ? col - pairs : col) + i;
      const float4 c = *reinterpret_cast<const float4*>(g_cos);
      const float4 s = *reinterpret_cast<const float4*>(g_cos + pairs);
      const float cos[4] = {c.x, c.y, c.z, c.w};
      const float sin[4] = {s.x, s.y, s.z, s.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        value[i + j] = value[i + j] * cos[j] + other[i + j] * (direction * sin[j]);
      }
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kElems; ++i) {
    const int index = col + i;
    if (index >= turn.rot) continue;
    const bool upper = index >= pairs;
    const int at = upper ? index - pairs : index;
    const float other = source.Element(upper ? at : at + pairs);
    const float sin = (upper ? sign : -sign) * turn.g_cos[pairs + at];
    value[i] = value[i] * turn.g_cos[at] + other * sin;
  }
}

/// A row of a head in global memory, of elements of T or of another type.
template <typename T>
struct GlobalRow {
  static constexpr int kElems = Group<T>::kElems;
  const AttentionHeads& heads;
  int64_t first;  // element
  int dim;

  __device__ __forceinline__ float Element(int i) const {
    return LoadSmall(heads.element, heads.data, first + i);
  }
  /// Of a piece that begins inside the head; zeros past its end.
  __device__ __forceinline__ void Piece(int col, float (&value)[kElems]) const {
    if (heads.vector != 0) {
      const auto* g_row = static_cast<const typename T::Bits*>(heads.data) + first;
      const uint4 raw = *reinterpret_cast<const uint4*>(g_row + col);
      Unpack(T(), raw, value);
      return;
    }
#pragma unroll
    for (int i = 0; i < kElems; ++i) value[i] = col + i < dim ? Element(col + i) : 0.0f;
  }
};

/// Stores a piece of a head's row, as far as the head goes.
template <typename T>
LOWRANK_DEVICE void StorePiece(const AttentionHeads& heads, int64_t first, int col, int dim,
                               const float (&value)[Group<T>::kElems]) {
  constexpr int kElems = Group<T>::kElems;
  auto* g_row = static_cast<typename T::Bits*>(heads.data) + first;
  if (heads.vector != 0) {
    *reinterpret_cast<uint4*>(g_row + col) = Pack(T(), value);
    return;
  }
#pragma unroll
  for (int i = 0; i < kElems; ++i) {
    if (col + i < dim) StoreElement(T(), heads.data, first + col + i, value[i]);
  }
}

/// Where row t of a sequence begins to see, and where its document begins. Documents that do not
/// ascend are reported by another kernel; here their rows stay inside the operands.
struct RowSight {
  int first;
  int begin;
};
LOWRANK_DEVICE RowSight SightOf(const int32_t* documents, int64_t m, int t, int window) {
  const int begin = documents == nullptr ? 0 : max(documents[m], 0);
  return {window == 0 ? begin : max(begin, t - window + 1), begin};
}

}  // namespace lowrank::gpu
