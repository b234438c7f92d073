/// A pool of worker threads for fixed-block work. Results never depend on which thread runs a task:
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
  /// `threads` includes the caller, which works too. There may be fewer if the system gives no
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

  // Number of the job << 16 | kOpen while tasks may be left | number of workers that have joined. A
  // worker that arrives after it is closed (it had no core before) is not waited for: on a shared
  // machine, or with two threads on one core, the others go on without it.
  static constexpr uint64_t kOpen = 1 << 15;
  static constexpr uint64_t kJoined = kOpen - 1;
  std::atomic<uint64_t> job_{0};
  // How many of those that joined have finished.
  std::atomic<uint64_t> left_{0};

  // The core of the thread that started the job, or -1: workers move off that core.
  std::atomic<int> caller_core_{-1};

  // The current job; published by job_, for the workers that join.
  TaskFn fn_ = nullptr;
  const void* context_ = nullptr;
  int64_t tasks_ = 0;
  std::atomic<int64_t> next_{0};
};

/// Memory that one thread reuses from op to op. Get() returns at least `bytes`, 64-byte aligned,
/// uninitialised, valid until the next Get() of the same slot on this thread; nullptr if the
/// machine has no more. `slot` distinguishes buffers that are in use at the same time.
///
/// Slots are contiguous in huge pages. In 4 KiB pages, which the system scatters, a few hundred KiB
/// that a kernel reads repeatedly collide in the second-level cache: the same product was up to 15
/// % slower on worker threads than on the main one, whose heap the system happened to keep
/// together.
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
    size_t used = 0;  // slots are cut from the front, and never returned
    int slots = 0;    // slots in it
  };
  struct Buffer {
    void* data = nullptr;
    size_t bytes = 0;
    Chunk* chunk = nullptr;
  };
  Chunk* ChunkWithRoom(size_t bytes);

  Buffer buffers_[kSlots];
  // A slot that grows moves, and a chunk without slots can be refilled, so there are never more
  // chunks than slots plus the one being filled.
  Chunk chunks_[kSlots + 1];
};

}  // namespace lowrank::cpu
