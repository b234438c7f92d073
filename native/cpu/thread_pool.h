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
  std::atomic<bool> stop_{false};

  // Number of the job << 16 | kOpen while there may be tasks left | workers that have joined it. A
  // worker that comes when it is closed (it had no core before) is not waited for: on a machine
  // that others use, or where two threads were put on one core, the rest go on without it.
  static constexpr uint64_t kOpen = 1 << 15;
  static constexpr uint64_t kJoined = kOpen - 1;
  std::atomic<uint64_t> job_{0};
  // Of those that joined, how many are done with it.
  std::atomic<uint64_t> left_{0};

  // Where the thread that gave the job out runs, or -1: workers move off that core.
  std::atomic<int> caller_core_{-1};

  // The job in progress; published by job_, for those who join it.
  TaskFn fn_ = nullptr;
  const void* context_ = nullptr;
  int64_t tasks_ = 0;
  std::atomic<int64_t> next_{0};
};

/// Memory that one thread reuses from op to op. Get() gives at least `bytes`, 64-byte aligned,
/// uninitialised, valid until the next Get() of the same slot on this thread; nullptr when the
/// machine has no more. `slot` tells apart buffers that are alive at the same time.
///
/// Slots lie one after another in huge pages. In pages of 4 KiB, which the system scatters, a few
/// hundred KiB that a kernel reads again and again fall on each other in the second-level cache:
/// the same product was up to 15 % slower on worker threads than on the main one, whose heap the
/// system happened to keep together.
class Scratch {
 public:
  static constexpr int kSlots = 13;
  Scratch() = default;
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  void* Get(int slot, size_t bytes);
  static Scratch& OfThisThread();

 private:
  struct Chunk {
    char* data = nullptr;
    size_t bytes = 0;
    size_t used = 0;  // slots are cut from the front, and never given back to it
    int slots = 0;    // that live in it
  };
  struct Buffer {
    void* data = nullptr;
    size_t bytes = 0;
    Chunk* chunk = nullptr;
  };
  Chunk* ChunkWithRoom(size_t bytes);

  Buffer buffers_[kSlots];
  // A slot that grows moves on, and a chunk without slots is free to be filled again, so there are
  // never more chunks than slots and the one that is being filled.
  Chunk chunks_[kSlots + 1];
};

}  // namespace lowrank::cpu
