/// Streams and events of the emulated driver: one worker thread a stream, operations in order
/// within a stream, any order between streams except where events or the legacy null stream say so.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <unordered_set>
#include <vector>

#include "cuda/emulator/runtime.h"

namespace lowrank::emu::driver {

class StreamSet;
class Stream;
class Capture;
using StreamPtr = std::shared_ptr<Stream>;

/// What a stream does when its turn comes. A result other than 0 (a CUresult) faults the set:
/// nothing that is queued runs any more.
using Work = std::function<int()>;

/// A place in a stream's order; reached once so many of its operations have finished.
struct Ticket {
  StreamPtr stream;
  uint64_t number = 0;
};

/// What an event stood for when it was recorded.
struct Recording {
  Ticket ticket;
  std::chrono::steady_clock::time_point time;  // valid once the ticket is reached
};
using RecordingPtr = std::shared_ptr<Recording>;

/// Guarded by the lock of the sets, except what is const, and what belongs to the capture (its
/// lock).
class Stream {
 public:
  Stream(StreamSet* set, bool blocking, int priority)
      : set_(set), blocking_(blocking), priority_(priority) {}

  StreamSet* set() const { return set_; }
  bool blocking() const { return blocking_; }  // ordered with the null stream
  int priority() const { return priority_; }
  /// Of its launches, read and written where they run.
  const std::shared_ptr<LaunchChain>& chain() const { return chain_; }

  /// The capture that this stream's operations go to, or none.
  std::shared_ptr<Capture> capture;
  /// Nodes of the capture that the next operation comes after.
  std::vector<size_t> capture_tail;

 private:
  friend class StreamSet;
  struct Operation {
    Work work;
    std::vector<Ticket> after;
    std::chrono::steady_clock::time_point pushed;
  };

  StreamSet* const set_;
  const bool blocking_;
  const int priority_;
  const std::shared_ptr<LaunchChain> chain_ = std::make_shared<LaunchChain>();
  std::deque<Operation> queue_;
  uint64_t pushed_ = 0;
  uint64_t finished_ = 0;
  uint64_t demanded_ = 0;  // late mode: somebody waits for this place
  bool working_ = false;   // has a thread
  bool closed_ = false;    // destroyed by the caller; the thread goes once the queue is empty
};

/// The streams of one context. All sets share one lock and one condition: events may cross
/// contexts, and nothing here is held for longer than a few pointer moves.
class StreamSet : public std::enable_shared_from_this<StreamSet> {
 public:
  StreamSet();

  /// The legacy null stream.
  const StreamPtr& null_stream() const { return null_stream_; }
  StreamPtr Create(bool blocking, int priority);
  /// What is queued still runs.
  void Close(const StreamPtr& stream);

  /// Appends to the stream's order; `after` are further places that must have been reached.
  Ticket Push(const StreamPtr& stream, Work work, std::vector<Ticket> after = {});
  /// The place that the stream's last operation so far will reach.
  Ticket Last(const StreamPtr& stream);
  RecordingPtr Record(const StreamPtr& stream);

  bool Reached(const Ticket& ticket);
  void Wait(const Ticket& ticket);
  /// Until everything pushed before this call has finished, in every stream.
  void WaitAll();

  /// The first failure, 0 while there is none.
  int fault();
  void Fault(int result);

  /// In late mode an operation begins only once somebody waits for it (or after kLatestStart), so
  /// that code which forgets to wait is seen to read too early. Else at once.
  void set_late(bool late);

  /// Closes every stream, the null stream too: the context goes.
  void CloseAll();

  /// True on a thread that runs a host function: the driver may not be called from there.
  static bool InHostFunction();
  static int RunHostFunction(void (*function)(void*), void* argument);

 private:
  /// How long late mode holds an operation back that nobody waits for: a host function may be what
  /// the program waits for by other means.
  static constexpr std::chrono::milliseconds kLatestStart{20};

  void StartThread(const StreamPtr& stream);
  void Serve(const StreamPtr& stream);
  void WaitLocked(std::unique_lock<std::mutex>& lock, const Ticket& ticket);

  std::mutex& mutex_;
  std::condition_variable& changed_;
  StreamPtr null_stream_;
  std::unordered_set<StreamPtr> streams_;  // all but the null stream
  int fault_ = 0;
  bool late_ = false;
};

}  // namespace lowrank::emu::driver
