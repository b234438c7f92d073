#include "cuda/emulator/driver/stream.h"

#include <pthread.h>
#include <algorithm>
#include <csignal>
#include <system_error>
#include <thread>
#include <utility>

namespace lowrank::emu::driver {
namespace {

thread_local bool in_host_function = false;

/// Signals of the process go to its own threads; only what this thread itself does wrong stays
/// here.
class BlockSignals {
 public:
  BlockSignals() {
    sigset_t all;
    sigfillset(&all);
    for (const int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT}) {
      sigdelset(&all, fault);
    }
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~BlockSignals() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  BlockSignals(const BlockSignals&) = delete;
  BlockSignals& operator=(const BlockSignals&) = delete;

 private:
  sigset_t before_;
};

/// Never destroyed: detached threads wait on it while the process exits.
struct SharedLock {
  std::mutex mutex;
  std::condition_variable changed;

  static SharedLock& Get() {
    static auto* const shared = new SharedLock;
    return *shared;
  }
};

}  // namespace

StreamSet::StreamSet()
    : mutex_(SharedLock::Get().mutex),
      changed_(SharedLock::Get().changed),
      null_stream_(std::make_shared<Stream>(this, true, 0)) {}

StreamPtr StreamSet::Create(bool blocking, int priority) {
  auto stream = std::make_shared<Stream>(this, blocking, priority);
  const std::lock_guard<std::mutex> lock(mutex_);
  streams_.insert(stream);
  return stream;
}

void StreamSet::Close(const StreamPtr& stream) {
  const std::lock_guard<std::mutex> lock(mutex_);
  stream->closed_ = true;
  if (stream->finished_ == stream->pushed_) streams_.erase(stream);
  changed_.notify_all();
}

void StreamSet::CloseAll() {
  const std::lock_guard<std::mutex> lock(mutex_);
  null_stream_->closed_ = true;
  for (const StreamPtr& stream : streams_) stream->closed_ = true;
  streams_.clear();
  changed_.notify_all();
}

void StreamSet::StartThread(const StreamPtr& stream) {
  const BlockSignals block;  // inherited by the new thread
  // Detached, over memory that lives as long as it needs: a process may exit at any moment, and no
  // destructor waits for a kernel then.
  std::thread([keep = shared_from_this(), stream] { keep->Serve(stream); }).detach();
  stream->working_ = true;
}

Ticket StreamSet::Push(const StreamPtr& stream, Work work, std::vector<Ticket> after) {
  const std::lock_guard<std::mutex> lock(mutex_);
  // The null stream and the blocking ones wait for each other; non-blocking ones take no part.
  if (stream == null_stream_) {
    for (const StreamPtr& other : streams_) {
      if (other->blocking_ && other->finished_ < other->pushed_) {
        after.push_back({other, other->pushed_});
      }
    }
  } else if (stream->blocking_ && null_stream_->finished_ < null_stream_->pushed_) {
    after.push_back({null_stream_, null_stream_->pushed_});
  }
  if (!stream->working_) StartThread(stream);
  stream->queue_.push_back({std::move(work), std::move(after), std::chrono::steady_clock::now()});
  ++stream->pushed_;
  changed_.notify_all();
  return {stream, stream->pushed_};
}

Ticket StreamSet::Last(const StreamPtr& stream) {
  const std::lock_guard<std::mutex> lock(mutex_);
  return {stream, stream->pushed_};
}

RecordingPtr StreamSet::Record(const StreamPtr& stream) {
  auto recording = std::make_shared<Recording>();
  // The operation writes the time before its ticket is reached, so readers need no further lock.
  Recording* raw = recording.get();
  recording->ticket = Push(stream, [keep = recording, raw] {
    raw->time = std::chrono::steady_clock::now();
    return 0;
  });
  return recording;
}

bool StreamSet::Reached(const Ticket& ticket) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (ticket.stream->finished_ >= ticket.number) return true;
  // Whoever polls wants it done: late mode must not hold a polling loop up.
  ticket.stream->demanded_ = std::max(ticket.stream->demanded_, ticket.number);
  changed_.notify_all();
  return false;
}

void StreamSet::WaitLocked(std::unique_lock<std::mutex>& lock, const Ticket& ticket) {
  Stream& stream = *ticket.stream;
  if (stream.finished_ >= ticket.number) return;
  stream.demanded_ = std::max(stream.demanded_, ticket.number);
  changed_.notify_all();
  changed_.wait(lock, [&] { return stream.finished_ >= ticket.number; });
}

void StreamSet::Wait(const Ticket& ticket) {
  std::unique_lock<std::mutex> lock(mutex_);
  WaitLocked(lock, ticket);
}

void StreamSet::WaitAll() {
  std::unique_lock<std::mutex> lock(mutex_);
  std::vector<Ticket> all = {{null_stream_, null_stream_->pushed_}};
  for (const StreamPtr& stream : streams_) all.push_back({stream, stream->pushed_});
  for (const Ticket& ticket : all) WaitLocked(lock, ticket);
}

int StreamSet::fault() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return fault_;
}

void StreamSet::Fault(int result) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (fault_ == 0) fault_ = result;
}

void StreamSet::set_late(bool late) {
  const std::lock_guard<std::mutex> lock(mutex_);
  late_ = late;
  changed_.notify_all();
}

void StreamSet::Serve(const StreamPtr& stream) {
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    changed_.wait(lock, [&] { return !stream->queue_.empty() || stream->closed_; });
    if (stream->queue_.empty()) break;
    Stream::Operation operation = std::move(stream->queue_.front());
    stream->queue_.pop_front();
    const uint64_t number = stream->finished_ + 1;
    if (late_) {
      changed_.wait_until(lock, operation.pushed + kLatestStart,
                          [&] { return stream->demanded_ >= number || !late_; });
    }
    for (const Ticket& ticket : operation.after) WaitLocked(lock, ticket);
    if (fault_ == 0 && operation.work) {
      lock.unlock();
      const int result = operation.work();
      lock.lock();
      if (result != 0 && fault_ == 0) fault_ = result;
    }
    // What the operation held (memory of a graph, a record of an event) goes before it counts as
    // finished, and outside the lock: it may be the last reference to something with locks of its
    // own.
    lock.unlock();
    operation = {};
    lock.lock();
    stream->finished_ = number;
    changed_.notify_all();
  }
  streams_.erase(stream);
}

bool StreamSet::InHostFunction() { return in_host_function; }

int StreamSet::RunHostFunction(void (*function)(void*), void* argument) {
  in_host_function = true;
  function(argument);
  in_host_function = false;
  return 0;
}

}  // namespace lowrank::emu::driver
