#include "native/cuda/streams/graph_memory.h"

#include <algorithm>
#include <iterator>

namespace lowrank::cuda {
namespace {

constexpr size_t kAlignment = 256;
/// Small tensors share a chunk of this size.
constexpr size_t kChunk = size_t{1} << 20;

uintptr_t Address(const void* data) { return reinterpret_cast<uintptr_t>(data); }

}  // namespace

Status GraphMemory::AddChunk(size_t bytes) {
  StoragePtr chunk;
  LOWRANK_RETURN_IF_ERROR(source_(std::max(bytes, kChunk), &chunk));
  blocks_[Address(chunk->data())] = {chunk->bytes(), chunks_.size(), true};
  free_.emplace(chunk->bytes(), Address(chunk->data()));
  chunks_.push_back(std::move(chunk));
  return Status();
}

Status GraphMemory::Take(size_t bytes, void** data) {
  const size_t wanted = (std::max<size_t>(bytes, 1) + kAlignment - 1) / kAlignment * kAlignment;
  const std::lock_guard<std::mutex> lock(mutex_);
  auto found = free_.lower_bound({wanted, 0});
  if (found == free_.end()) {
    LOWRANK_RETURN_IF_ERROR(AddChunk(wanted));
    found = free_.lower_bound({wanted, 0});
  }
  const uintptr_t address = found->second;
  free_.erase(found);
  Block& block = blocks_[address];
  block.free = false;
  if (block.bytes > wanted) {
    const Block rest = {block.bytes - wanted, block.chunk, true};
    block.bytes = wanted;
    free_.emplace(rest.bytes, address + wanted);
    blocks_[address + wanted] = rest;
  }
  *data = reinterpret_cast<void*>(address);
  return Status();
}

void GraphMemory::JoinNext(Blocks::iterator block) {
  const auto next = std::next(block);
  if (next == blocks_.end() || !block->second.free || !next->second.free) return;
  if (next->second.chunk != block->second.chunk) return;
  free_.erase({block->second.bytes, block->first});
  free_.erase({next->second.bytes, next->first});
  block->second.bytes += next->second.bytes;
  free_.emplace(block->second.bytes, block->first);
  blocks_.erase(next);
}

void GraphMemory::Give(void* data) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto block = blocks_.find(Address(data));
  if (block == blocks_.end()) return;
  block->second.free = true;
  free_.emplace(block->second.bytes, block->first);
  JoinNext(block);
  if (block != blocks_.begin()) JoinNext(std::prev(block));
}

bool GraphMemory::Owns(const void* data) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  const uintptr_t address = Address(data);
  return std::any_of(chunks_.begin(), chunks_.end(), [&](const StoragePtr& chunk) {
    return address >= Address(chunk->data()) && address < Address(chunk->data()) + chunk->bytes();
  });
}

}  // namespace lowrank::cuda
