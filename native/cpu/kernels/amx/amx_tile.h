/// The tiles of the matrix unit (AMX), and the same arithmetic in vectors.
///
///   C [32][32] (+)= A · B in f32, A and B pairs of bf16
///
/// Tiles      2 x 2 of C (tmm0 to 3), two of A stacked (4, 5), two of B side by side (6, 7):
///            4 products for 4 loads
///            A tile   16 rows of 16 units, along the summation index
///            B tile   16 units of 16 columns
/// Numerics   kTileUnits units at a time: the products of the first elements are one chain of fused
///            multiply-adds, those of the second elements another, both from zero. The sum of both
///            is added to C. Denormals count as zeros, before and after each operation. This is
///            how Intel's manual defines TDPBF16PS (Instruction Set Extensions Programming
///            Reference, chapter 3); A and B may be swapped
/// Budget     16 cycles per product of tiles (1024 operations a cycle), 8 per load: products are
///            the bottleneck as long as operands come from L1 or L2
#pragma once

#include "native/cpu/kernels/pack/pack.h"

namespace lowrank::cpu::LOWRANK_ISA {

constexpr int64_t kTileUnits = 16;
constexpr int64_t kTileRows = 16;
// Units in a tile.
constexpr int64_t kTile = kTileRows * kTileUnits;
// Elements of the summation index in a tile.
constexpr int64_t kTileDepth = 2 * kTileUnits;
// Rows and columns of C in a step.
constexpr int64_t kStepRows = 2 * kTileRows;

/// The position of a pair of tiles, group after group of kTileUnits units; all in units.
struct TileOperand {
  const Unit* data;
  int64_t pitch;  // from one row of a tile to the next
  int64_t other;  // from the first tile to the second
  int64_t step;   // from a group to the next
};

#if defined(__AMX_BF16__)

/// This thread's tiles, until End(). A destructor would need C++'s exception tables, which
/// isa_kernels.h keeps out of these units.
class TileSession {
 public:
  void End() {
    if (rows_ != 0) _tile_release();
    rows_ = 0;
  }

  /// C has 1 to kStepRows rows, and up to kTileUnits columns or two tiles of them. Setting a new
  /// shape clears it.
  LOWRANK_MEMBER_INLINE void Shape(int64_t rows, int64_t cols) {
    two_cols_ = cols > kTileUnits;
    const int64_t width = Min(cols, kTileUnits);
    if (rows != rows_ || width != width_) Configure(rows, width);
  }

  LOWRANK_MEMBER_INLINE void Zero() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }

  LOWRANK_MEMBER_INLINE void Load(const float* c, int64_t ldc) {
    const float* lower = c + kTileRows * ldc;
    Written();
    _tile_loadd(0, c, ldc * 4);
    if (two_cols_) _tile_loadd(1, c + kTileUnits, ldc * 4);
    if (two_rows_) _tile_loadd(2, lower, ldc * 4);
    if (two_rows_ && two_cols_) _tile_loadd(3, lower + kTileUnits, ldc * 4);
  }

  LOWRANK_MEMBER_INLINE void Store(float* c, int64_t ldc) const {
    float* lower = c + kTileRows * ldc;
    _tile_stored(0, c, ldc * 4);
    if (two_cols_) _tile_stored(1, c + kTileUnits, ldc * 4);
    if (two_rows_) _tile_stored(2, lower, ldc * 4);
    if (two_rows_ && two_cols_) _tile_stored(3, lower + kTileUnits, ldc * 4);
  }

  LOWRANK_MEMBER_INLINE void Add(const TileOperand& a, const TileOperand& b, int64_t groups) {
    if (two_cols_) {
      two_rows_ ? Products<true, true>(a, b, groups) : Products<false, true>(a, b, groups);
    } else {
      two_rows_ ? Products<true, false>(a, b, groups) : Products<false, false>(a, b, groups);
    }
  }

  /// c [kStepRows][kStepRows] = A · B of one group. Units are four signed codes, sums are int32.
  LOWRANK_MEMBER_INLINE void Dots(const TileOperand& a, const TileOperand& b, int32_t* c) {
    if (two_cols_) {
      two_rows_ ? ProductsOfCodes<true, true>(a, b, c) : ProductsOfCodes<false, true>(a, b, c);
    } else {
      two_rows_ ? ProductsOfCodes<true, false>(a, b, c) : ProductsOfCodes<false, false>(a, b, c);
    }
  }

 private:
  /// Makes stores visible: GCC 12 does not know that the instructions below read this memory.
  LOWRANK_INLINE void Written() { asm volatile("" : : : "memory"); }

  struct Config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  };

  void Configure(int64_t rows, int64_t width) {
    rows_ = rows;
    width_ = width;
    two_rows_ = rows > kTileRows;
    const uint8_t upper = static_cast<uint8_t>(Min(rows, kTileRows));
    const uint8_t lower = static_cast<uint8_t>(two_rows_ ? rows - kTileRows : kTileRows);
    const uint8_t tile_rows[8] = {upper, upper, lower, lower, upper, lower, kTileUnits, kTileUnits};
    alignas(64) Config config = {};
    config.palette = 1;
    for (int i = 0; i < 8; ++i) {
      config.rows[i] = tile_rows[i];
      const bool is_a = i == 4 || i == 5;
      config.row_bytes[i] = static_cast<uint16_t>((is_a ? kTileUnits : width) * sizeof(Unit));
    }
    Written();
    _tile_loadconfig(&config);
  }

  template <bool kTwoRows, bool kTwoCols>
  static void Products(const TileOperand& a_operand, const TileOperand& b_operand, int64_t groups) {
    const Unit* a = a_operand.data;
    const Unit* b = b_operand.data;
    const Unit* lower = a + a_operand.other;
    const Unit* right = b + b_operand.other;
    const int64_t a_pitch = a_operand.pitch * 4;
    const int64_t b_pitch = b_operand.pitch * 4;
    Written();
    for (int64_t g = 0; g < groups; ++g) {
      _tile_loadd(4, a, a_pitch);
      _tile_loadd(6, b, b_pitch);
      _tile_dpbf16ps(0, 4, 6);
      if constexpr (kTwoCols) {
        _tile_loadd(7, right, b_pitch);
        _tile_dpbf16ps(1, 4, 7);
      }
      if constexpr (kTwoRows) {
        _tile_loadd(5, lower, a_pitch);
        _tile_dpbf16ps(2, 5, 6);
        if constexpr (kTwoCols) _tile_dpbf16ps(3, 5, 7);
      }
      a += a_operand.step;
      lower += a_operand.step;
      b += b_operand.step;
      right += b_operand.step;
    }
  }

  template <bool kTwoRows, bool kTwoCols>
  LOWRANK_INLINE void ProductsOfCodes(const TileOperand& a, const TileOperand& b, int32_t* c) {
    constexpr int64_t kPitch = kStepRows * 4;
    int32_t* lower = c + kTileRows * kStepRows;
    Written();
    _tile_zero(0);
    _tile_loadd(4, a.data, a.pitch * 4);
    _tile_loadd(6, b.data, b.pitch * 4);
    _tile_dpbssd(0, 4, 6);
    if constexpr (kTwoCols) {
      _tile_zero(1);
      _tile_loadd(7, b.data + b.other, b.pitch * 4);
      _tile_dpbssd(1, 4, 7);
    }
    if constexpr (kTwoRows) {
      _tile_zero(2);
      _tile_loadd(5, a.data + a.other, a.pitch * 4);
      _tile_dpbssd(2, 5, 6);
      if constexpr (kTwoCols) {
        _tile_zero(3);
        _tile_dpbssd(3, 5, 7);
      }
    }
    _tile_stored(0, c, kPitch);
    if constexpr (kTwoCols) _tile_stored(1, c + kTileUnits, kPitch);
    if constexpr (kTwoRows) _tile_stored(2, lower, kPitch);
    if constexpr (kTwoRows && kTwoCols) _tile_stored(3, lower + kTileUnits, kPitch);
    Written();
  }

  int64_t rows_ = 0;
  int64_t width_ = 0;
  bool two_rows_ = false;
  bool two_cols_ = false;
};

#elif defined(LOWRANK_EMULATE_TILES)

/// Defines the results of the matrix unit, for processors without one.
class TileSession {
 public:
  void End() {}
  void Shape(int64_t rows, int64_t cols) {
    rows_ = rows;
    tiles_ = cols > kTileUnits ? 2 : 1;
    width_ = Min(cols, kTileUnits);
  }
  void Zero() { std::memset(c_, 0, sizeof(c_)); }
  void Load(const float* c, int64_t ldc) {
    for (int64_t m = 0; m < rows_; ++m) std::memcpy(c_[m], c + m * ldc, RowBytes());
  }
  void Store(float* c, int64_t ldc) const {
    for (int64_t m = 0; m < rows_; ++m) std::memcpy(c + m * ldc, c_[m], RowBytes());
  }
  __attribute__((noinline)) void Add(const TileOperand& a, const TileOperand& b, int64_t groups) {
    const uint32_t before = _mm_getcsr();
    SetControl(before | 0x8040u);  // denormals are zeros
    for (int64_t m = 0; m < rows_; ++m) {
      const Unit* row = a.data + m / kTileRows * a.other + m % kTileRows * a.pitch;
      for (int64_t n = 0; n < tiles_; ++n) {
        VecF total = LoadC(m, n);
        for (int64_t g = 0; g < groups; ++g) {
          VecF first = {};
          VecF second = {};
          for (int64_t u = 0; u < kTileUnits; ++u) {
            const VecU x = Bits(Splat(row[g * a.step + u]));
            VecU y = {};
            std::memcpy(&y, b.data + n * b.other + g * b.step + u * b.pitch, TileBytes());
            first = Fma(AsFloat(x << 16), AsFloat(y << 16), first);
            second = Fma(AsFloat(x & 0xffff0000u), AsFloat(y & 0xffff0000u), second);
          }
          total = total + (first + second);
        }
        lowrank::cpu::LOWRANK_ISA::Store(c_[m] + n * kVL, total);
      }
    }
    SetControl(before);
  }
  __attribute__((noinline)) void Dots(const TileOperand& a, const TileOperand& b, int32_t* c) {
    for (int64_t m = 0; m < rows_; ++m) {
      const Unit* row = a.data + m / kTileRows * a.other + m % kTileRows * a.pitch;
      for (int64_t n = 0; n < tiles_; ++n) {
        VecI total = {};
        for (int64_t u = 0; u < kTileUnits; ++u) {
          VecU y = {};
          std::memcpy(&y, b.data + n * b.other + u * b.pitch, TileBytes());
          const VecU x = Bits(Splat(row[u]));
          for (int byte = 0; byte < 4; ++byte) {
            total += SignedByte(x, byte) * SignedByte(y, byte);
          }
        }
        StoreU(c + m * kStepRows + n * kVL, reinterpret_cast<VecU>(total));
      }
    }
  }

 private:
  static VecI SignedByte(VecU units, int byte) {
    return reinterpret_cast<VecI>(units << (24 - 8 * byte)) >> 24;
  }
  // No access to memory is moved across this.
  static void SetControl(uint32_t bits) { asm volatile("ldmxcsr %0" : : "m"(bits) : "memory"); }
  VecF LoadC(int64_t m, int64_t n) const {
    return lowrank::cpu::LOWRANK_ISA::Load(c_[m] + n * kVL);
  }
  size_t TileBytes() const { return static_cast<size_t>(width_) * sizeof(Unit); }
  size_t RowBytes() const { return static_cast<size_t>(tiles_) * TileBytes(); }

  alignas(64) float c_[kStepRows][kStepRows];
  int64_t rows_ = 0;
  int64_t tiles_ = 0;
  int64_t width_ = 0;
};

#else

/// Such a set gets no products here.
class TileSession {
 public:
  void End() {}
};

#endif

/// c [rows, nr] (+)= an A panel, [rows][ku] units, times a B panel, [ku][nr] (pack.h).
template <typename Session>
static void MultiplyPanels(Session& session, const Unit* a, int64_t rows, int64_t ku, const Unit* b,
                           int64_t nr, float* c, int64_t ldc, bool first) {
  session.Shape(rows, nr);
  if (first) {
    session.Zero();
  } else {
    session.Load(c, ldc);
  }
  const int64_t groups = ku / kTileUnits;
  const int64_t done = groups * kTileUnits;
  session.Add({a, ku, kTileRows * ku, kTileUnits}, {b, nr, kTileUnits, kTileUnits * nr}, groups);
  if (done < ku) {
    // The last units, padded with zeros: tiles of another shape would lose C.
    alignas(64) Unit last_a[kStepRows * kTileUnits] = {};
    alignas(64) Unit last_b[kTileUnits * kNR] = {};
    const size_t bytes = static_cast<size_t>(ku - done) * sizeof(Unit);
    for (int64_t m = 0; m < rows; ++m) {
      std::memcpy(last_a + m * kTileUnits, a + m * ku + done, bytes);
    }
    std::memcpy(last_b, b + done * nr, bytes * static_cast<size_t>(nr));
    session.Add({last_a, kTileUnits, kTile, 0}, {last_b, nr, kTileUnits, 0}, 1);
  }
  session.Store(c, ldc);
}

}  // namespace lowrank::cpu::LOWRANK_ISA
