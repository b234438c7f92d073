/// The order of a device: one thread that takes entries in the order in which they were queued. On
/// a host device an entry computes, on a CUDA device it issues work to a stream.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <string>
#include <thread>

#include "native/core/runtime/backend.h"
#include "native/core/runtime/fork.h"

namespace lowrank {

/// One entry of the queue. `run` is called even with a cancelled token, and then must only clean
/// up.
struct Task {
  std::function<Status(const OpRefs& refs)> run;
  OpRefs refs;
  std::string description;  // only filled if LOWRANK_TRACE is set
  DoneFn done;              // optional; always called, last, with the outcome
};

/// Calls `run`, whose exceptions become a Status; traces it if there is a description.
Status RunGuarded(const char* device, const std::string& description,
                  const std::function<Status()>& run);

/// Takes the outcome of one DoneFn, for which a thread waits.
class Outcome {
 public:
  /// The Outcome must live until Get() has returned.
  DoneFn Done();
  Status Get();

 private:
  std::mutex mutex_;
  std::condition_variable ready_;
  bool done_ = false;
  Status status_;
};

class Queue {
 public:
  explicit Queue(const char* device);
  Queue(const Queue&) = delete;
  Queue& operator=(const Queue&) = delete;

  /// Never blocks on work. Fails with kOom if the entry cannot be stored, with kDevice in a child
  /// of the process that has the thread.
  Status Push(Task task);

  /// Finishes the entries of this token that have not started, as cancelled, whatever is running:
  /// the end of one environment does not wait for the kernels of another.
  void DropQueued(const CancelToken* cancel);

  /// Returns once everything queued earlier has run. At once on the queue's own thread, in a child
  /// of the process that has it, and where nothing is queued.
  Status WaitForEarlier();

  const ForkMark& home() const { return home_; }

 private:
  void Loop();
  void Finish(Task& task, const Status& status);

  const char* device_;
  const ForkMark home_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Task> tasks_;
  std::atomic<int64_t> pending_{0};
  std::atomic<int64_t> unfinished_{0};  // of entries: those that wait, and the one that runs
  std::thread thread_;
};

}  // namespace lowrank
