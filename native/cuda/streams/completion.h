/// What follows work on the device: one thread waits for events in the order they were recorded,
/// passes bytes to their readers, judges ops, and releases what they used.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "native/core/runtime/backend.h"
#include "native/cuda/driver/context.h"
#include "native/cuda/streams/staging.h"

namespace lowrank::cuda {

/// One event, and what happens after it. Made before the work is issued, so that nothing can fail
/// between the two.
struct Completion {
  CUevent event = nullptr;       // recorded after the work
  CUstream stream = nullptr;     // the stream of the event; null until something is issued
  uint64_t op_number = 0;        // the last op issued before it
  StagingBlock staging;          // source or target of the work's copy; read by `sink`
  std::vector<StoragePtr> keep;  // the caller's memory that the work touches

  // A read, or a wait.
  std::function<Status(const void*)> sink;
  std::vector<VerdictPtr> depends;
  DoneFn done;
  CancelPtr cancel;  // Begin() was called on it

  // An op that reports how it went: `staging` holds the word of Plan::first_non_finite.
  std::shared_ptr<Verdict> verdict;
  bool finite_in_f16 = false;          // Plan::finite_in_f16
  const char* documents_op = nullptr;  // Plan::documents_op
  int64_t document_rows = 0;           // Plan::document_rows

  // LOWRANK_TRACE: timing events around an op.
  CUevent trace_begin = nullptr;
  CUevent trace_end = nullptr;
  std::string description;

  std::unique_ptr<Completion> next;
};

class Completions {
 public:
  Completions(Context* context, Staging* staging);
  Completions(const Completions&) = delete;
  Completions& operator=(const Completions&) = delete;

  /// Makes the context current on its thread, which it starts the first time.
  Status Start();

  /// Issuing thread: an unused event.
  Status TakeEvent(bool timing, CUevent* event);
  /// From any thread, in the order of recording. Allocates nothing.
  void Push(std::unique_ptr<Completion> completion);
  /// Issuing thread: releases what a completion that was not pushed has taken; may be null. Its
  /// copy may be under way.
  void Abandon(std::unique_ptr<Completion> completion);
  /// Tells the readers of this token that they are cancelled. Their copies still finish; if those
  /// touch the caller's memory, the wait for them remains.
  void DropQueued(const CancelToken* cancel);

 private:
  void Loop();
  /// Blocks until the event has passed.
  Status Await(CUevent event);
  void Finish(std::unique_ptr<Completion> completion, const Status& passed);
  Status Judge(const Completion& completion, const Status& passed);
  void GiveBack(Completion* completion, bool reusable);
  void ReturnEvent(bool timing, CUevent event);

  Context& context_;
  Staging& staging_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::condition_variable attached_;
  std::unique_ptr<Completion> first_;
  Completion* last_ = nullptr;
  bool attach_asked_ = false;
  Status attach_status_;
  std::vector<CUevent> free_events_[2];  // without and with timing
  std::atomic<int64_t> pending_{0};
  std::thread thread_;
};

}  // namespace lowrank::cuda
