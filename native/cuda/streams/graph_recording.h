/// One step as a CUDA graph: what was recorded, the memory that it uses, and its runs.
///
/// The thread of the step enqueues as always. The issuing thread launches into a stream that is
/// being captured, and keeps nothing poisoned: a failure belongs to the recording. An allocation of
/// the thread first waits until the ops before it are recorded, so that what they freed can be used
/// again, and so that the memory of a step does not depend on which thread was faster.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <vector>

#include "native/core/runtime/backend.h"
#include "native/core/runtime/queue.h"
#include "native/cuda/driver/context.h"
#include "native/cuda/streams/graph_memory.h"
#include "native/cuda/streams/streams.h"

namespace lowrank::cuda {

class GraphRecording final : public Recording, public std::enable_shared_from_this<GraphRecording> {
 public:
  /// What a recording uses of its backend.
  struct Host {
    Backend* backend = nullptr;
    Context* context = nullptr;
    Streams* streams = nullptr;
    Queue* queue = nullptr;
    std::function<Status(size_t, StoragePtr*)> allocate;  // not of a recording
    std::function<Status()> check_alive;
  };

  explicit GraphRecording(Host host);
  ~GraphRecording() override;

  // --- The thread that records.
  Status Begin(size_t scratch_bytes);
  Status End(bool discard) override;
  bool open() const { return open_; }
  bool RecordsThisThread() const { return open_ && thread_ == std::this_thread::get_id(); }
  Status Allocate(size_t bytes, StoragePtr* storage);
  /// `issue` records the op called `op`, on the issuing thread, unless one before it failed.
  Status Push(const char* op, OpRefs refs, std::function<Status(GraphRecording*)> issue);

  // --- Issuing thread.
  CUstream stream() const { return stream_; }
  void* scratch() const { return scratch_ == nullptr ? nullptr : scratch_->data(); }
  size_t scratch_bytes() const { return scratch_ == nullptr ? 0 : scratch_->bytes(); }
  /// Memory for the intermediate results of one op.
  Status GrowScratch(size_t bytes, void** base);

  // --- Any thread.
  Status Replay(CancelPtr cancel) override;
  int64_t launches() const override { return launches_; }

 private:
  /// Memory from outside that the ops use.
  struct Outer {
    StoragePtr storage;
    const char* op = "";  // the first that uses it
    bool read = false;
    bool written = false;
  };

  /// Runs `work` on the issuing thread and waits for it.
  Status OnIssuer(std::function<Status()> work);
  void Drain();
  void Note(const char* op, const OpRefs& refs);
  Status EndCapture(bool discard);
  Status Launch(const OpRefs& refs);

  const Host host_;
  const std::thread::id thread_ = std::this_thread::get_id();
  const std::shared_ptr<GraphMemory> memory_;
  std::atomic<bool> open_{true};  // until End()
  CUstream stream_ = nullptr;
  CUgraphExec exec_ = nullptr;
  int64_t launches_ = 0;
  StoragePtr scratch_;
  std::vector<StoragePtr> outgrown_;
  std::unordered_map<Storage*, Outer> outer_;
  std::vector<std::weak_ptr<Storage>> made_;
  std::vector<StoragePtr> results_;
  Status failure_;  // the first; issuing thread, then whoever has drained

  std::mutex mutex_;
  std::condition_variable idle_;
  int64_t pending_ = 0;
};

}  // namespace lowrank::cuda
