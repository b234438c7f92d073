/// Register tiles of f32 sums with plain types: a set with a base (base_set.h) takes them from it,
/// so that they are compiled once for all AVX-512 sets.
#pragma once

#include "native/core/tensor_view.h"

namespace lowrank::cpu {

using Unit = float;  // under the bf16 policy only moved, never computed with

/// Blocks of the summation index that a tile processes in sequence, ku units each, and the distance
/// between their panels.
struct TileBlocks {
  int64_t ku;
  int64_t count = 1;
  int64_t a_stride = 0;
  int64_t b_stride = 0;
};
using TileFn = void (*)(const TileBlocks& blocks, const Unit* a, const Unit* b, float* c,
                        int64_t ldc, bool first);

/// shrink_rows.h: rows are `pitch` bytes apart.
using ShrinkTileFn = void (*)(const char* rows, int64_t pitch, int64_t kc, const float* b, float* c,
                              int64_t ldc, bool first);

/// factor_rows.h: `rows` rows of x that are `pitch` bytes apart, with those of dh.
struct VisitedRows {
  const char* x;
  int64_t pitch;
  const float* dh;
  int64_t dh_pitch;
  int64_t rows;
};
/// What a tile does with the sums in memory: ignore them, continue them, or add its own to them.
enum class Sums { kStart, kGoOn, kAdd };
using FactorRowsFn = void (*)(const VisitedRows& visit, float* c, int64_t ldc, Sums sums);

/// thin_dot.h: columns [n0, n1) of c, over kc of the summation index from k0 on. The next data to
/// read is `ahead` bytes after the data read here; 0: there is none.
struct ThinPart {
  const TensorView& b;
  int64_t n0, n1;
  int64_t k0, kc;
  const Unit* a;
  bool first;
  int64_t ahead;
};
/// c: the address of column n0 of each row; whole vectors are written.
using ThinDotFn = void (*)(const ThinPart& part, float* const* c);

/// Finds the tiles of a set.
struct F32Tiles {
  TileFn (*tile)(int rows, int64_t columns);
  ShrinkTileFn (*shrink)(bool pairs, bool wide, int rows);
  FactorRowsFn (*factor_rows)(bool pairs, int ranks);
  ThinDotFn (*thin_dot)(bool transposed, int64_t rows, DType dtype);
};

}  // namespace lowrank::cpu
