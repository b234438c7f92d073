/// The memory of a recorded step. A block that is freed while the step is recorded is given to
/// later allocations of the same step: a graph runs its ops in the order in which they were
/// recorded. Until the last block and the graph are gone, nobody else gets any of it.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <utility>
#include <vector>

#include "native/core/runtime/backend.h"

namespace lowrank::cuda {

class GraphMemory {
 public:
  /// @param source gives a chunk of at least so many bytes, counted as any memory of the device
  explicit GraphMemory(std::function<Status(size_t, StoragePtr*)> source)
      : source_(std::move(source)) {}
  GraphMemory(const GraphMemory&) = delete;
  GraphMemory& operator=(const GraphMemory&) = delete;

  /// The smallest free block that is large enough; a new chunk if there is none.
  Status Take(size_t bytes, void** data);
  /// From any thread.
  void Give(void* data);
  bool Owns(const void* data) const;

 private:
  struct Block {
    size_t bytes = 0;
    size_t chunk = 0;  // index; neighbours of one chunk are joined
    bool free = false;
  };
  using Blocks = std::map<uintptr_t, Block>;

  Status AddChunk(size_t bytes);
  void JoinNext(Blocks::iterator block);

  const std::function<Status(size_t, StoragePtr*)> source_;
  mutable std::mutex mutex_;
  std::vector<StoragePtr> chunks_;
  Blocks blocks_;
  std::set<std::pair<size_t, uintptr_t>> free_;
};

}  // namespace lowrank::cuda
