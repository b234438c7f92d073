/// What check mode knows of each word of memory: who wrote and read it last, and its state.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "cuda/emulator/runtime.h"

namespace lowrank::emu {

/// Sites in 32 bits. Number 0 is no site. Only checked launches intern, and they run on one thread
/// at a time.
uint32_t InternSiteSlow(Site site);
struct RecentSite {
  uint64_t bits = 0;
  uint32_t number = 0;
};
constexpr size_t kRecentSites = 1024;
extern RecentSite recent_sites[kRecentSites];
inline RecentSite& RecentSiteOf(Site site) {
  return recent_sites[(site.bits ^ (site.bits >> Site::kPointerBits) * 37u) % kRecentSites];
}
inline uint32_t InternSite(Site site) {
  const RecentSite& recent = RecentSiteOf(site);
  return recent.bits == site.bits ? recent.number : InternSiteSlow(site);
}
Site InternedSite(uint32_t number);

struct Access1 {
  uint32_t instance = 0;         // of the block; 0: nobody
  uint32_t clock = 0;            // of the warp
  uint32_t site = 0;             // interned
  uint16_t thread = 0;           // warp · 32 + lane
  Scope scope = Scope::kDevice;  // of an atomic

  uint32_t warp() const { return thread >> 5; }
  uint32_t lane() const { return thread & 31u; }
};

/// State of four bytes, or of one where they differ.
struct Cell {
  Access1 write;
  Access1 read;         // the last one
  Access1 read_other;   // the last one of another block than `read`
  uint16_t fences = 0;  // the writer's proxy fences so far
  uint8_t flags = 0;
  uint8_t read_lanes = 0;  // did several lanes of the warp read at that clock?
};
enum CellFlag : uint8_t {
  kCellWriteAtomic = 1,
  kCellReadAtomic = 2,
  kCellInFlight = 4,
  kCellSplit = 8,    // write.site is the number of four cells, one a byte
  kCellByCopy = 16,  // written by the copy engine, or a copy is in flight
};

/// The cells of one range, and of each word which bytes are initialised. Pages become real where
/// they are used.
class ShadowMemory {
 public:
  ShadowMemory() = default;
  ~ShadowMemory();
  ShadowMemory(const ShadowMemory&) = delete;
  ShadowMemory& operator=(const ShadowMemory&) = delete;

  /// Covers [base, base + bytes), all cells empty. False where there is no memory.
  bool Reset(uintptr_t base, size_t bytes, bool initialised);
  bool present() const { return cells_ != nullptr; }

  /// The word that holds the address, counted from the start.
  size_t Word(uintptr_t address) const { return (address - base_) / 4; }
  uintptr_t base() const { return base_; }
  Cell* At(size_t word) { return cells_ + word; }
  std::array<Cell, 4>* Split(Cell* cell);  // makes it four where it is one
  void Merge(Cell* cell, const Cell& value);
  /// `bytes_mask`: bit i is byte i of the word.
  bool Initialised(size_t word, uint32_t bytes_mask) const {
    return (initialised_[word] & bytes_mask) == bytes_mask;
  }
  void SetInitialised(size_t word, uint32_t bytes_mask) {
    initialised_[word] = static_cast<uint8_t>(initialised_[word] | bytes_mask);
  }
  void Mark(uintptr_t address, size_t bytes, bool initialised);
  /// Byte by byte what `source` says of its bytes.
  void CopyMarks(uintptr_t address, const ShadowMemory& source, uintptr_t source_address,
                 size_t bytes);
  /// Nobody has read or written.
  void Forget(uintptr_t address, size_t bytes);

 private:
  bool ByteInitialised(uintptr_t address) const {
    return (initialised_[Word(address)] >> ((address - base_) % 4) & 1) != 0;
  }
  void Release();

  Cell* cells_ = nullptr;
  uint8_t* initialised_ = nullptr;
  size_t words_ = 0;       // in use
  size_t room_words_ = 0;  // mapped
  uintptr_t base_ = 0;
  std::vector<std::array<Cell, 4>> splits_;
  std::vector<uint32_t> free_splits_;
};

}  // namespace lowrank::emu
