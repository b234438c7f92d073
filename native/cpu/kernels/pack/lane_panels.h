/// A B panel of a 4-bit weight for y = x · wᵀ by lanes, in pieces small enough to interleave with a
/// register tile (granule_panels.h says why). A piece is a group of eight codes of each of kVL rows
/// of w.
///
///   codes    rows of w in bitsandbytes' layout: 4 bytes per group
///   out      LanePanel(out, 0, lane, ku) of lane_pack.h
///
/// Each piece gathers the codes for the next one by loads and stores of single words: these use
/// none of the vector pipes, which products fill. Transposed in registers, as in decode.h, codes
/// would take five permutations per group there.
///
/// Numerics   those of decode.h
/// Budget     pairs, a piece, core of 2 x 256-bit multiply-adds: 8 products and 28 look-ups,
///            shifts, conversions and stores, 32 words moved, 30 other instructions: all places are
///            steps from the last one, because divisions and products of indices took twice as long
///            as the rest. For 256 rows of x it takes 1.5 % of the time, where decoding w before
///            the tiles takes 3
#pragma once

#include "native/cpu/kernels/pack/lane_pack.h"

namespace lowrank::cpu::LOWRANK_ISA {

template <bool kPairs>
class LanePanels {
  static_assert(!kPairs || kVL >= kGranuleGroups, "a granule's groups begin in lanes of their own");

 public:
  LanePanels() = default;
  /// Rows [n0, n0 + kNR) of w, columns [k0, k0 + span), whole granules.
  LanePanels(const RowSource& source, int64_t k0, int64_t span, int64_t n0, Unit* out)
      : table_(source.tables.nibbles),
        w_(source.quant),
        codes_(w_->codes + (n0 * w_->cols + k0) / 2),
        element_(n0 * w_->cols + k0),
        pitch_(w_->cols / 2),
        row_granules_(span / kGranule),
        granules_(row_granules_),
        left_(kNV * row_granules_ * kGranuleGroups),
        out_(out),
        lane_(PanelStride(span / kVL / (kPairs ? 2 : 1))) {
    GatherScales();
    GatherCodes();
  }
  int64_t pieces() const { return left_; }

  /// Decodes a piece, if one is left.
  LOWRANK_MEMBER_INLINE void Step() {
    if (left_ != 0) OutOfRegisters(this)->Decode();
  }
  void Finish() {
    while (left_ != 0) Step();
  }

 private:
  // Prefetch distance for codes: two lines, 32 pieces.
  static constexpr int64_t kAhead = 128;
  static constexpr int64_t kUnits = kPlaces / (kPairs ? 2 : 1);

  LOWRANK_MEMBER_INLINE void Decode() {
    // The places of group g are those of group 0, g lanes further on.
    const LanePlaces<kPairs> places = {out_, kNR, lane_};
    const VecU group = LoadU(words_);
    const LaneFactors<false> factors = {Load(scales_)};
#pragma GCC unroll 4
    for (int i = 0; i < kGroup; i += 2) {
      DecodePair<kPairs, DType::kF32>(table_, group, factors, 0, i, places);
    }
    if (--left_ == 0) return;
    out_ += lane_;
    if (--groups_ == 0) NextGranule();
    GatherCodes();
  }

  /// The places and scales of the next granule.
  LOWRANK_MEMBER_INLINE void NextGranule() {
    groups_ = kGranuleGroups;
    out_ += kUnits * kNR - kGranuleGroups * lane_;
    element_ += kGranule;
    const bool ends = --granules_ == 0;
    if (ends) {
      granules_ = row_granules_;
      out_ += kVL - row_granules_ * kUnits * kNR;
      codes_ += kVL * pitch_ - row_granules_ * (kGranule / 2);
      element_ += kVL * w_->cols - row_granules_ * kGranule;
    }
    if (ends || (element_ & (w_->blocksize - 1)) == 0) GatherScales();
  }

  /// The codes of the next piece, four rows per address.
  LOWRANK_MEMBER_INLINE void GatherCodes() {
    const int64_t pitch = pitch_;
    const int64_t pitch3 = 3 * pitch;
    const uint8_t* from = codes_;
#pragma GCC unroll 4
    for (int i = 0; i < kVL; i += 4, from += 4 * pitch) {
      uint32_t words[4];
      std::memcpy(&words[0], from, sizeof(uint32_t));
      std::memcpy(&words[1], from + pitch, sizeof(uint32_t));
      std::memcpy(&words[2], from + 2 * pitch, sizeof(uint32_t));
      std::memcpy(&words[3], from + pitch3, sizeof(uint32_t));
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        asm("" : "+r"(words[j]));  // not through a vector register
        words_[i + j] = words[j];
      }
    }
    // One row per piece, because 16 pieces read the same lines. Near the ends of rows, the row
    // below is ahead: the next data is kVL - 1 rows further down.
    const bool ends = granules_ * (kGranule / 2) <= kAhead;
    __builtin_prefetch(codes_ + (ends ? kVL - 1 : left_ % kVL) * pitch + kAhead);
    codes_ += kGroup / 2;
  }
  LOWRANK_MEMBER_INLINE void GatherScales() {
    const int shift = __builtin_ctzll(static_cast<uint64_t>(w_->blocksize));
    const int64_t block = element_ >> shift;
    const int64_t pitch = w_->cols >> shift;
    // A line has the scales of 16 blocks; again one row at a time.
    PrefetchScales(*w_, (block + block % kVL * pitch + 16) << shift, 1);
    for (int i = 0; i < kVL; ++i) scales_[i] = BlockScale(*w_, block + i * pitch);
  }

  alignas(64) uint32_t words_[kVL];  // for the next piece, with its scales
  alignas(64) float scales_[kVL];
  Table16 table_;
  const QuantView* w_ = nullptr;
  const uint8_t* codes_ = nullptr;  // the first row, at the group to gather next
  int64_t element_ = 0;             // start of the granule in that row
  int64_t pitch_ = 0;               // bytes of codes between rows
  int64_t row_granules_ = 0;
  int64_t granules_ = 0;             // left of these rows
  int64_t groups_ = kGranuleGroups;  // left of this granule
  int64_t left_ = 0;                 // pieces
  Unit* out_ = nullptr;
  int64_t lane_ = 0;  // from lane to lane
};

}  // namespace lowrank::cpu::LOWRANK_ISA
