#include "cuda/emulator/state/shadow.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <unordered_map>

namespace lowrank::emu {
namespace {

struct SiteTable {
  std::unordered_map<uint64_t, uint32_t> numbers;
  std::vector<Site> sites{Site()};
};

SiteTable& Sites() {
  static auto* table = new SiteTable;
  return *table;
}

void* MapZeroed(size_t bytes) {
  void* base = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return base == MAP_FAILED ? nullptr : base;
}

}  // namespace

RecentSite recent_sites[kRecentSites];

uint32_t InternSiteSlow(Site site) {
  if (site.bits == 0) return 0;
  SiteTable& table = Sites();
  const auto [found, is_new] =
      table.numbers.emplace(site.bits, static_cast<uint32_t>(table.sites.size()));
  if (is_new) table.sites.push_back(site);
  RecentSiteOf(site) = {site.bits, found->second};
  return found->second;
}

Site InternedSite(uint32_t number) { return Sites().sites[number]; }

ShadowMemory::~ShadowMemory() { Release(); }

void ShadowMemory::Release() {
  if (cells_ != nullptr) munmap(cells_, room_words_ * sizeof(Cell));
  if (initialised_ != nullptr) munmap(initialised_, room_words_);
  cells_ = nullptr;
  initialised_ = nullptr;
  room_words_ = 0;
}

bool ShadowMemory::Reset(uintptr_t base, size_t bytes, bool initialised) {
  base_ = base & ~uintptr_t{3};
  splits_.clear();
  free_splits_.clear();
  const size_t words = (base + bytes - base_ + 3) / 4;
  if (words > room_words_) {
    Release();
    cells_ = static_cast<Cell*>(MapZeroed(words * sizeof(Cell)));
    initialised_ = static_cast<uint8_t*>(MapZeroed(words));
    if (cells_ == nullptr || initialised_ == nullptr) {
      Release();
      return false;
    }
    room_words_ = words;
  } else if (cells_ != nullptr) {
    std::memset(static_cast<void*>(cells_), 0, words * sizeof(Cell));
    std::memset(initialised_, 0, words);
  }
  words_ = words;
  if (initialised && initialised_ != nullptr) std::memset(initialised_, 0xff, words);
  return true;
}

std::array<Cell, 4>* ShadowMemory::Split(Cell* cell) {
  if ((cell->flags & kCellSplit) == 0) {
    uint32_t number;
    if (free_splits_.empty()) {
      number = static_cast<uint32_t>(splits_.size());
      splits_.emplace_back();
    } else {
      number = free_splits_.back();
      free_splits_.pop_back();
    }
    splits_[number].fill(*cell);
    cell->write.site = number;
    cell->flags = kCellSplit;
  }
  return &splits_[cell->write.site];
}

void ShadowMemory::Merge(Cell* cell, const Cell& value) {
  if ((cell->flags & kCellSplit) != 0) free_splits_.push_back(cell->write.site);
  *cell = value;
}

void ShadowMemory::Mark(uintptr_t address, size_t bytes, bool initialised) {
  if (!present()) return;
  uintptr_t at = address;
  const uintptr_t end = address + bytes;
  const auto mark_byte = [&](uintptr_t byte) {
    uint8_t& mask = initialised_[Word(byte)];
    const auto bit = static_cast<uint8_t>(1u << ((byte - base_) % 4));
    mask = static_cast<uint8_t>(initialised ? mask | bit : mask & ~bit);
  };
  while (at < end && (at - base_) % 4 != 0) mark_byte(at++);
  const size_t whole = (end - at) / 4;
  if (whole != 0) std::memset(initialised_ + Word(at), initialised ? 0xff : 0, whole);
  for (at += whole * 4; at < end; ++at) mark_byte(at);
}

void ShadowMemory::CopyMarks(uintptr_t address, const ShadowMemory& source,
                             uintptr_t source_address, size_t bytes) {
  if (!present()) return;
  if (!source.present()) return Mark(address, bytes, true);
  if ((address - base_) % 4 == 0 && (source_address - source.base_) % 4 == 0 && bytes % 4 == 0) {
    std::memmove(initialised_ + Word(address), source.initialised_ + source.Word(source_address),
                 bytes / 4);
    return;
  }
  for (size_t i = 0; i < bytes; ++i) {
    Mark(address + i, 1, source.ByteInitialised(source_address + i));
  }
}

void ShadowMemory::Forget(uintptr_t address, size_t bytes) {
  if (!present() || bytes == 0) return;
  for (uintptr_t at = address; at < address + bytes;) {
    Cell* cell = At(Word(at));
    const size_t byte = (at - base_) % 4;
    const size_t here = std::min<size_t>(4 - byte, address + bytes - at);
    if (here == 4) {
      Merge(cell, Cell());
    } else {
      std::array<Cell, 4>& bytes_of = *Split(cell);
      for (size_t i = 0; i < here; ++i) bytes_of[byte + i] = Cell();
    }
    at += here;
  }
}

}  // namespace lowrank::emu
