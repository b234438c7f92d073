/// The register tile: C [mr, nr] (+)= A panel · B panel, for mr = 1 .. kMR rows and one or kNV
/// vectors of columns.
///
/// Every variant adds the products of an element in the order of the summation index, so the bits
/// of an element do not depend on the rows and columns that share its tile.
#pragma once

#include "native/cpu/kernels/int8/tile_int8.h"
#include "native/cpu/kernels/isa/base_set.h"
#include "native/cpu/kernels/tile/ask_ahead.h"

namespace lowrank::cpu::LOWRANK_ISA {

/// Work that a tile interleaves with its products: Next(u, ku) at step u, and again at the step it
/// returns.
struct NothingBeside {
  LOWRANK_MEMBER_INLINE int64_t Next(int64_t, int64_t ku) const { return ku; }
};

/// Decodes a piece every few steps.
template <typename Decoder>
struct DecodingBeside {
  Decoder* decoder;
  int64_t every;
  LOWRANK_MEMBER_INLINE int64_t Next(int64_t u, int64_t ku) const {
    decoder->Step();
    return Min(u + every, ku);
  }
};

/// first: the first block writes C, later ones add to it.
template <typename Policy, int kRows, int kVectors, typename Beside>
LOWRANK_INLINE void TileBeside(const Beside& beside, const TileBlocks& blocks, const Unit* a,
                               const Unit* b, float* c, int64_t ldc, bool first) {
  const int64_t ku = blocks.ku;
  for (int64_t block = 0;; ++block) {
    VecF acc[kRows][kVectors] = {};
    for (int64_t u = 0; u < ku;) {
      for (const int64_t end = beside.Next(u, ku); u < end; ++u) {
        VecF columns[kVectors];
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) columns[v] = Load(b + v * kVL);
        AskAhead<kRows, kVectors * kVL>(a, b);
#pragma GCC unroll 16
        for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
          for (int v = 0; v < kVectors; ++v) acc[i][v] = Policy::Step(acc[i][v], a[i], columns[v]);
        }
        a += kRows;
        b += kVectors * kVL;
      }
    }
    float* row = c;
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i, row += ldc) {
      // Row by row: GCC would compute the addresses of all rows first, with 70 operations and ten
      // spills.
      asm("" : "+r"(row));
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        float* out = row + v * kVL;
        Store(out, first ? acc[i][v] : Policy::Add(Load(out), acc[i][v]));
      }
    }
    if (block + 1 >= blocks.count) return;
    first = false;
    a += blocks.a_stride - ku * kRows;
    b += blocks.b_stride - ku * kVectors * kVL;
  }
}

template <typename Policy, int kRows, int kVectors>
static void Tile(const TileBlocks& blocks, const Unit* a, const Unit* b, float* c, int64_t ldc,
                 bool first) {
  TileBeside<Policy, kRows, kVectors>(NothingBeside{}, blocks, a, b, c, ldc, first);
}

template <typename Decoder>
using DecodingTileFn = void (*)(Decoder* decoder, int64_t every, const TileBlocks& blocks,
                                const Unit* a, const Unit* b, float* c, int64_t ldc, bool first);

template <typename Policy, int kRows, int kVectors, typename Decoder>
static void DecodingTile(Decoder* decoder, int64_t every, const TileBlocks& blocks, const Unit* a,
                         const Unit* b, float* c, int64_t ldc, bool first) {
  TileBeside<Policy, kRows, kVectors>(DecodingBeside<Decoder>{decoder, every}, blocks, a, b, c, ldc,
                                      first);
}

/// The tile for kNR columns, or for kVectors vectors of them.
template <typename Policy, int kRows, typename Decoder, int kVectors = kNV>
LOWRANK_INLINE DecodingTileFn<Decoder> PickDecodingTile(int rows) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return PickDecodingTile<Policy, kRows - 1, Decoder, kVectors>(rows);
  }
  return DecodingTile<Policy, kRows, kVectors, Decoder>;
}

template <typename Policy, int kRows>
LOWRANK_INLINE TileFn PickOwnTile(int rows, int64_t nr) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return PickOwnTile<Policy, kRows - 1>(rows, nr);
  }
  if constexpr (kIsInt8<Policy>) {
    return nr == kNR ? Int8Tile<kRows, kNV> : Int8Tile<kRows, 1>;
  } else {
    return nr == kNR ? Tile<Policy, kRows, kNV> : Tile<Policy, kRows, 1>;
  }
}

/// The f32 tile is the base's, if there is one.
template <typename Policy>
LOWRANK_INLINE TileFn PickTile(int rows, int64_t nr) {
  if constexpr (kHasBase && std::is_same_v<Policy, F32Policy>) {
    return Base().tiles.tile(rows, nr);
  } else {
    return PickOwnTile<Policy, kMR>(rows, nr);
  }
}

}  // namespace lowrank::cpu::LOWRANK_ISA
