/// A B panel of a 4-bit weight for y = x · wᵀ by lanes, in pieces small enough to go beside a
/// register tile (granule_panels.h says why): a piece is a group of eight codes of each of kVL rows
/// of w.
///
///   codes    rows of w as bitsandbytes lays them out: 4 bytes a group
///   out      LanePanel(out, 0, lane, ku) of lane_pack.h
///
/// What a piece decodes, the piece before it has gathered, by loads and stores of single words:
/// they use none of the pipes of vectors, which products fill. Turned in registers, as decode.h
/// does, codes would take five permutations a group there.
///
/// Numerics   those of decode.h
/// Budget     pairs, a piece, core of 2 x 256-bit multiply-adds: 8 products and 28 look-ups,
/// shifts,
///            conversions and stores. Of 256 rows of x, whose products are all but 3 % of the time
///            where w is decoded before them, pieces that only decode take 1.2 %, and that only
///            gather 0.5 %, mostly for lines that come late
#pragma once

#include "native/cpu/kernels/lane_pack.h"

namespace lowrank::cpu::LOWRANK_ISA {

template <bool kPairs>
class LanePanels {
 public:
  LanePanels() = default;
  /// Rows [n0, n0 + kNR) of w, columns [k0, k0 + span), whole granules.
  LanePanels(const RowSource& source, int64_t k0, int64_t span, int64_t n0, Unit* out)
      : table_(source.table),
        w_(source.quant),
        codes_(w_->codes + (n0 * w_->cols + k0) / 2),
        element_(n0 * w_->cols + k0),
        groups_(span / kGroup),
        left_(kNV * groups_),
        out_(out),
        lane_(PanelStride(span / kVL / (kPairs ? 2 : 1))) {
    Gather();
  }
  int64_t pieces() const { return left_; }

  /// Decodes a piece, if one is left.
  LOWRANK_MEMBER_INLINE void Step() {
    if (left_ == 0) return;
    LanePanels* self = this;
    // What a compiler kept of this in registers the tile beside it would have to spill.
    asm("" : "+r"(self));
    self->Decode();
  }
  void Finish() {
    while (left_ != 0) Step();
  }

 private:
  // Lines of codes are asked for so far ahead: two of them, 32 pieces.
  static constexpr int64_t kAhead = 128;

  LOWRANK_MEMBER_INLINE void Decode() {
    const LanePlaces<kPairs> places = {out_, kNR, lane_};
    const VecU group = LoadU(words_);
    const VecF scale = Load(scales_);
#pragma GCC unroll 4
    for (int i = 0; i < kGroup; i += 2) {
      DecodePair<kPairs, DType::kF32>(table_, group, scale, decoded_, i, places);
    }
    if (--left_ == 0) return;
    Gather();
    if (++decoded_ < groups_) return;
    decoded_ = 0;
    out_ += kVL;
  }

  /// The codes of the next piece, and its scales where they differ from those of the one before.
  LOWRANK_MEMBER_INLINE void Gather() {
    const int64_t pitch = w_->cols / 2;
    const uint8_t* from = codes_;
#pragma GCC unroll 16
    for (int i = 0; i < kVL; ++i, from += pitch) {
      uint32_t word;
      std::memcpy(&word, from, sizeof(word));
      asm("" : "+r"(word));  // not by way of a vector
      words_[i] = word;
    }
    // One row a piece, since 16 pieces read the same lines. Near the rows' ends what lies ahead is
    // the row below: kVL - 1 further down is what comes.
    const bool ends = gathered_ * 4 + kAhead >= groups_ * 4;
    __builtin_prefetch(codes_ + (gathered_ % kVL + (ends ? kVL - 1 : 0)) * pitch + kAhead);
    if (gathered_ * kGroup % w_->blocksize == 0) GatherScales();
    codes_ += kGroup / 2;
    if (++gathered_ < groups_) return;
    gathered_ = 0;
    element_ += kVL * w_->cols;
    codes_ += kVL * pitch - groups_ * (kGroup / 2);
  }
  LOWRANK_MEMBER_INLINE void GatherScales() {
    const int64_t block = (element_ + gathered_ * kGroup) / w_->blocksize;
    const int64_t pitch = w_->cols / w_->blocksize;
    // A line has those of 16 blocks; again one row at a time.
    PrefetchScales(*w_, (block + block % kVL * pitch + 16) * w_->blocksize, 1);
    for (int i = 0; i < kVL; ++i) scales_[i] = BlockScale(*w_, block + i * pitch);
  }

  alignas(64) uint32_t words_[kVL];  // of the next piece, with its scales
  alignas(64) float scales_[kVL];
  Table16 table_;
  const QuantView* w_ = nullptr;
  const uint8_t* codes_ = nullptr;  // of the first row at the group that is gathered next
  int64_t element_ = 0;             // where that row's span begins
  int64_t gathered_ = 0;            // groups of these rows
  int64_t decoded_ = 0;
  int64_t groups_ = 0;  // of a row
  int64_t left_ = 0;    // pieces
  Unit* out_ = nullptr;
  int64_t lane_ = 0;  // from lane to lane
};

}  // namespace lowrank::cpu::LOWRANK_ISA
