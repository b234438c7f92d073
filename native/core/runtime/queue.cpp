#include "native/core/runtime/queue.h"

#include <chrono>
#include <exception>
#include <new>
#include <system_error>
#include <utility>

#include "native/core/runtime/float_mode.h"
#include "native/core/runtime/spin.h"
#include "native/core/runtime/trace.h"

namespace lowrank {
namespace {

Status InputPoison(const OpRefs& refs) {
  for (const StoragePtr& input : refs.inputs) {
    LOWRANK_RETURN_IF_ERROR(input->poison());
  }
  return Status();
}

Status RunOne(const char* device, Task& task) {
  if (task.refs.cancel && task.refs.cancel->cancelled()) {
    return Status::Bare(Code::kCancelled, device, "the environment is closing");
  }
  LOWRANK_RETURN_IF_ERROR(InputPoison(task.refs));
  return RunGuarded(device, task.description, [&task] { return task.run(task.refs); });
}

}  // namespace

Status RunGuarded(const char* device, const std::string& description,
                  const std::function<Status()>& run) {
  const auto start = std::chrono::steady_clock::now();
  // The last line of defence: no exception may leave this thread.
  try {
    const Status status = run();
    if (!description.empty()) {
      const std::chrono::duration<double, std::micro> spent =
          std::chrono::steady_clock::now() - start;
      TraceOp(device, description, spent.count());
    }
    return status;
  } catch (const std::bad_alloc&) {
    return Status::Bare(Code::kOom, device, "out of memory while computing");
  } catch (const std::exception& error) {
    return Status::Bare(Code::kCompute, device, error.what());
  } catch (...) {
    return Status::Bare(Code::kCompute, device, "unknown failure");
  }
}

DoneFn Outcome::Done() {
  return [this](const Status& status) {
    // Notified under the lock: the waiter may destroy this as soon as it is free.
    const std::lock_guard<std::mutex> lock(mutex_);
    status_ = status;
    done_ = true;
    ready_.notify_one();
  };
}

Status Outcome::Get() {
  std::unique_lock<std::mutex> lock(mutex_);
  ready_.wait(lock, [this] { return done_; });
  return status_;
}

Queue::Queue(const char* device) : device_(device), thread_([this] { Loop(); }) {}

Status Queue::Push(Task task) {
  LOWRANK_RETURN_IF_ERROR(home_.Check(device_));
  CancelPtr cancel = task.refs.cancel;
  if (cancel) cancel->Begin();
  unfinished_.fetch_add(1, std::memory_order_acq_rel);
  try {
    std::lock_guard<std::mutex> lock(mutex_);
    tasks_.push_back(std::move(task));
    pending_.store(static_cast<int64_t>(tasks_.size()), std::memory_order_release);
  } catch (const std::bad_alloc&) {
    unfinished_.fetch_sub(1, std::memory_order_acq_rel);
    if (cancel) cancel->End();
    return Status(Code::kOom, std::string(device_) + ": no memory for one more queued op");
  }
  wake_.notify_one();
  return Status();
}

void Queue::Loop() {
  SetDefaultFloatMode();
  for (;;) {
    SpinUntil([&] { return pending_.load(std::memory_order_acquire) != 0; });
    Task task;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [this] { return !tasks_.empty(); });
      task = std::move(tasks_.front());
      tasks_.pop_front();
      pending_.store(static_cast<int64_t>(tasks_.size()), std::memory_order_release);
    }
    // Without `run` it is an entry that DropQueued has taken.
    if (task.run) Finish(task, RunOne(device_, task));
  }
}

Status Queue::WaitForEarlier() {
  if (unfinished_.load(std::memory_order_acquire) == 0 || home_.orphaned() ||
      std::this_thread::get_id() == thread_.get_id()) {
    return Status();
  }
  Outcome outcome;
  Task task;
  task.run = [](const OpRefs&) { return Status(); };
  task.done = outcome.Done();
  LOWRANK_RETURN_IF_ERROR(Push(std::move(task)));
  return outcome.Get();
}

void Queue::DropQueued(const CancelToken* cancel) {
  if (home_.orphaned()) return;
  // Entries stay in place, emptied, because removing them could need memory. The code that runs
  // under the lock frees operands and notifies waiters; none of it takes this queue's lock.
  const std::lock_guard<std::mutex> lock(mutex_);
  const Status status = Status::Bare(Code::kCancelled, device_, "the environment is closing");
  for (Task& queued : tasks_) {
    if (!queued.run || queued.refs.cancel.get() != cancel) continue;
    Task task = std::exchange(queued, Task());
    Finish(task, status);
  }
}

void Queue::Finish(Task& task, const Status& status) {
  const CancelPtr cancel = task.refs.cancel;
  if (!status.ok()) {
    for (const StoragePtr& output : task.refs.outputs) output->Poison(status);
  }
  // Operands are freed before `done` is called, so that the memory counters are exact by then.
  task.run = nullptr;
  task.refs.inputs.clear();
  task.refs.outputs.clear();
  // Before `done`: whoever that wakes finds the queue idle.
  unfinished_.fetch_sub(1, std::memory_order_acq_rel);
  if (task.done) task.done(status);
  task.done = nullptr;
  if (cancel) cancel->End();
}

}  // namespace lowrank
