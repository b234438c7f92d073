/// A pool of worker threads for fixed-block work. Which thread runs a task never affects a result:
/// tasks are cut by shape, and each writes its own outputs.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace lowrank::cpu {

class ThreadPool {
 public:
  /// `threads` counts the caller, which works too. There may be fewer where the system gives no
  /// more.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }
  int asked_threads() const { return asked_; }

  /// Calls body(task) for every task in [0, tasks), on any threads, and returns when all are done.
  /// One caller at a time (the device's queue thread). `body` must not throw.
  template <typename Body>
  void ParallelFor(int64_t tasks, const Body& body) {
    Run(
        tasks,
        [](const void* context, int64_t task) { (*static_cast<const Body*>(context))(task); },
        &body);
  }

 private:
  using TaskFn = void (*)(const void* context, int64_t task);

  void Run(int64_t tasks, TaskFn fn, const void* context);
  void WorkerLoop();
  void Drain();

  const int asked_;
  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<uint64_t> generation_{0};
  std::atomic<int> running_{0};
  std::atomic<bool> stop_{false};

  // The job in progress; published by generation_, finished when running_ is 0.
  TaskFn fn_ = nullptr;
  const void* context_ = nullptr;
  int64_t tasks_ = 0;
  std::atomic<int64_t> next_{0};
};

/// Memory that one thread reuses from op to op. Get() gives at least `bytes`, 64-byte aligned,
/// uninitialised, valid until the next Get() of the same slot on this thread; nullptr when the
/// machine has no more. `slot` tells apart buffers that are alive at the same time.
class Scratch {
 public:
  static constexpr int kSlots = 8;
  Scratch() = default;
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  void* Get(int slot, size_t bytes);
  static Scratch& OfThisThread();

 private:
  struct Buffer {
    void* data = nullptr;
    size_t bytes = 0;
  };
  Buffer buffers_[kSlots];
};

}  // namespace lowrank::cpu
