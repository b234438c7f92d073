/// The stream that ops go to, its order with the device's own stream, and stream-ordered memory.
///
/// Memory is allocated and freed on the device's own stream, `home`. While ops go to a stream of
/// the caller's, two events keep the order: that stream waits for home before an op (its operands
/// may be fresh), and home waits for that stream before a free. A stream that is being captured
/// into a graph cannot wait for anything outside it, nor can anything outside wait for it: there
/// the caller is responsible for the order, and keeps the operands until the graph has run.
#pragma once

#include <atomic>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "native/core/runtime/backend.h"
#include "native/cuda/driver/context.h"

namespace lowrank::cuda {

class Streams {
 public:
  explicit Streams(Context* context) : context_(*context) {}
  Streams(const Streams&) = delete;
  Streams& operator=(const Streams&) = delete;

  // --- Issuing thread.
  Status Start();
  void Stop();
  /// Null is home. Later work on it comes after everything issued before.
  Status Use(CUstream stream);
  CUstream current() const { return current_.load(std::memory_order_relaxed); }
  /// Makes the current stream see every allocation so far.
  Status PrepareOp();
  /// Whether the current stream is being captured into a graph.
  Status IsCapturing(bool* capturing);
  /// Memory for the intermediate results of one op on the current stream; the next op gets the same
  /// bytes.
  Status Workspace(size_t bytes, void** base);
  /// How much of it the current stream has; `base` is null if it has none.
  size_t WorkspaceHere(void** base) const;
  /// At least this much for every stream from now on.
  Status Reserve(size_t bytes);
  int64_t workspace_bytes() const { return workspace_bytes_.load(std::memory_order_relaxed); }

  // --- Any thread.
  /// Fails with kOom after waiting for pending frees and releasing what the pool keeps.
  Status Allocate(size_t bytes, CUdeviceptr* pointer);
  /// After everything issued so far. If the driver refuses, later calls try again.
  void Free(CUdeviceptr pointer);

 private:
  struct Arena {
    CUdeviceptr base = 0;
    size_t bytes = 0;
  };

  Status Switch(CUstream stream);
  Status Follow(CUevent event, CUstream first, CUstream then);
  bool CapturingLocked();
  void FreeLocked(CUdeviceptr pointer);
  Status Grow(Arena* arena, size_t bytes);

  Context& context_;
  std::atomic<CUstream> current_{nullptr};
  Status switch_status_;  // issuing thread
  std::mutex mutex_;      // the order of event and wait, and what follows
  CUevent home_event_ = nullptr;
  CUevent current_event_ = nullptr;
  std::vector<CUdeviceptr> unfreed_;
  std::unordered_map<CUstream, Arena> arenas_;  // issuing thread
  size_t reserved_bytes_ = 0;                   // issuing thread
  std::atomic<int64_t> workspace_bytes_{0};
};

}  // namespace lowrank::cuda
