#include "cuda/emulator/driver/memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "cuda/emulator/driver/options.h"
#include "cuda/emulator/runtime.h"
#include "native/cuda/driver/driver.h"

namespace lowrank::emu::driver {
namespace {

/// The granularity of a real pool.
constexpr size_t kGranularity = 512;

/// Every allocation of the runtime has pages of its own.
void SetOpen(const Allocation& allocation, bool open) {
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t begin = reinterpret_cast<uintptr_t>(allocation.data) / page * page;
  const uintptr_t end =
      (reinterpret_cast<uintptr_t>(allocation.data) + allocation.bytes + page - 1) / page * page;
  mprotect(reinterpret_cast<void*>(begin), end - begin, open ? PROT_READ | PROT_WRITE : PROT_NONE);
}

uint64_t AddressOf(const Allocation& allocation) {
  return reinterpret_cast<uint64_t>(allocation.data);
}

}  // namespace

size_t Memory::ReservedLocked() const {
  size_t sum = direct_;
  for (const PoolPtr& pool : pools_) sum += pool->reserved;
  return sum;
}

int Memory::Allocate(size_t bytes, const PoolPtr& pool, AllocationPtr* allocation) {
  if (bytes == 0) return cuda::CUDA_ERROR_INVALID_VALUE;
  if (bytes > limit_) return cuda::CUDA_ERROR_OUT_OF_MEMORY;
  const size_t counted = (bytes + kGranularity - 1) / kGranularity * kGranularity;
  const bool closed = Checking() && pool != nullptr;
  const std::lock_guard<std::mutex> lock(mutex_);
  if (pool != nullptr && pool->max_bytes != 0 && pool->used + counted > pool->max_bytes) {
    return cuda::CUDA_ERROR_OUT_OF_MEMORY;
  }
  const size_t kept = pool == nullptr ? 0 : pool->reserved - pool->used;
  const size_t grow = counted > kept ? counted - kept : 0;
  if (ReservedLocked() + grow > limit_) {
    for (const PoolPtr& other : pools_) {
      if (other != pool) other->reserved = other->used;
    }
    if (ReservedLocked() + grow > limit_) return cuda::CUDA_ERROR_OUT_OF_MEMORY;
  }
  void* data = emu::Allocate(bytes);
  if (data == nullptr) return cuda::CUDA_ERROR_OUT_OF_MEMORY;
  auto made = std::make_shared<Allocation>();
  made->data = static_cast<unsigned char*>(data);
  made->bytes = bytes;
  made->counted = counted;
  made->pool = pool;
  made->live = pool == nullptr;
  if (pool == nullptr) {
    direct_ += counted;
  } else {
    pool->used += counted;
    pool->reserved = std::max(pool->reserved, pool->used);
    pool->used_high = std::max(pool->used_high, pool->used);
    pool->reserved_high = std::max(pool->reserved_high, pool->reserved);
  }
  if (closed) SetOpen(*made, false);
  allocations_[AddressOf(*made)] = made;
  *allocation = std::move(made);
  return cuda::CUDA_SUCCESS;
}

void Memory::Begin(const AllocationPtr& allocation) {
  const std::lock_guard<std::mutex> lock(mutex_);
  allocation->live = true;
  if (Checking()) SetOpen(*allocation, true);
}

bool Memory::AcceptFree(const AllocationPtr& allocation) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (allocation->freed) return false;
  allocation->freed = true;
  return true;
}

void Memory::Suspend(const AllocationPtr& allocation) {
  const std::lock_guard<std::mutex> lock(mutex_);
  allocation->live = false;
  if (Checking()) SetOpen(*allocation, false);
}

void Memory::Finish(const AllocationPtr& allocation) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = allocations_.find(AddressOf(*allocation));
  if (found == allocations_.end() || found->second != allocation) return;
  allocations_.erase(found);
  allocation->freed = true;
  allocation->live = false;
  if (allocation->pool == nullptr) {
    direct_ -= allocation->counted;
  } else {
    allocation->pool->used -= allocation->counted;
  }
  if (Checking())
    SetOpen(*allocation, true);  // a graph's may be closed; the runtime looks at its end
  emu::Free(allocation->data);
  freed_.push_back(allocation);
  if (freed_.size() > kRemembered) freed_.pop_front();
}

void Memory::FreeAll() {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (const auto& [address, allocation] : allocations_) {
    SetOpen(*allocation, true);
    allocation->freed = true;
    allocation->live = false;
    emu::Free(allocation->data);
  }
  allocations_.clear();
  pools_.clear();
  direct_ = 0;
}

AllocationPtr Memory::FindStart(uint64_t address) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = allocations_.find(address);
  return found == allocations_.end() || found->second->freed ? nullptr : found->second;
}

AllocationPtr Memory::FindHolding(uint64_t address, size_t bytes) {
  const std::lock_guard<std::mutex> lock(mutex_);
  auto after = allocations_.upper_bound(address);
  if (after == allocations_.begin()) return nullptr;
  const AllocationPtr& allocation = std::prev(after)->second;
  const uint64_t offset_bytes = address - AddressOf(*allocation);
  if (allocation->freed || offset_bytes > allocation->bytes ||
      bytes > allocation->bytes - offset_bytes || offset_bytes == allocation->bytes) {
    return nullptr;
  }
  return allocation;
}

bool Memory::IsLive(const AllocationPtr& allocation) {
  const std::lock_guard<std::mutex> lock(mutex_);
  return allocation->live;
}

std::string Memory::Describe(uint64_t address) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto holds = [address](const AllocationPtr& allocation) {
    return address >= AddressOf(*allocation) &&
           address < AddressOf(*allocation) + allocation->bytes;
  };
  const char* state = nullptr;
  AllocationPtr found;
  for (const AllocationPtr& allocation : freed_) {
    if (!holds(allocation)) continue;
    found = allocation;
    state = "that had been freed";
  }
  for (const auto& [start, allocation] : allocations_) {
    if (!holds(allocation)) continue;
    found = allocation->live ? nullptr : allocation;
    state = "whose allocation this stream does not follow, or that had been freed in a graph";
  }
  if (found == nullptr) return "";
  char text[200];
  std::snprintf(text, sizeof(text), "0x%llx is byte %llu of %llu bytes %s",
                static_cast<unsigned long long>(address),
                static_cast<unsigned long long>(address - AddressOf(*found)),
                static_cast<unsigned long long>(found->bytes), state);
  return text;
}

void Memory::AddPool(const PoolPtr& pool) {
  const std::lock_guard<std::mutex> lock(mutex_);
  pools_.push_back(pool);
}

void Memory::RemovePool(const PoolPtr& pool) {
  // What was allocated from it stays valid, as in the real driver, and stays counted.
  const std::lock_guard<std::mutex> lock(mutex_);
  pool->threshold = 0;
  pool->reserved = pool->used;
  if (pool->used == 0) pools_.erase(std::remove(pools_.begin(), pools_.end(), pool), pools_.end());
}

void Memory::TrimPool(const PoolPtr& pool, size_t keep_bytes) {
  const std::lock_guard<std::mutex> lock(mutex_);
  pool->reserved = std::min(pool->reserved, std::max(pool->used, keep_bytes));
}

void Memory::TrimToThresholds() {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (const PoolPtr& pool : pools_) {
    pool->reserved = std::min(pool->reserved, std::max(pool->used, pool->threshold));
  }
}

Pool Memory::ReadPool(const PoolPtr& pool) {
  const std::lock_guard<std::mutex> lock(mutex_);
  return *pool;
}

void Memory::SetThreshold(const PoolPtr& pool, uint64_t bytes) {
  const std::lock_guard<std::mutex> lock(mutex_);
  pool->threshold = static_cast<size_t>(bytes);
}

size_t Memory::free_bytes() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return limit_ - std::min(limit_, ReservedLocked());
}

}  // namespace lowrank::emu::driver
