#include "native/cpu/thread_pool.h"

#include <cstdlib>
#include <exception>

#include "native/core/float_mode.h"
#include "native/core/spin.h"

namespace lowrank::cpu {

ThreadPool::ThreadPool(int threads) : asked_(threads) {
  workers_.reserve(static_cast<size_t>(threads - 1));
  bool more = true;
  for (int i = 1; i < threads && more; ++i) {
    try {
      workers_.emplace_back([this] { WorkerLoop(); });
    } catch (const std::exception&) {
      // The system gives no more threads, or memory for one: work with those there are.
      more = false;
    }
  }
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_.store(true, std::memory_order_relaxed);
    generation_.fetch_add(1, std::memory_order_release);
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::Drain() {
  for (;;) {
    const int64_t task = next_.fetch_add(1, std::memory_order_relaxed);
    if (task >= tasks_) return;
    fn_(context_, task);
  }
}

void ThreadPool::Run(int64_t tasks, TaskFn fn, const void* context) {
  if (workers_.empty() || tasks <= 1) {
    for (int64_t task = 0; task < tasks; ++task) fn(context, task);
    return;
  }
  {
    std::lock_guard<std::mutex> lock(mutex_);
    fn_ = fn;
    context_ = context;
    tasks_ = tasks;
    next_.store(0, std::memory_order_relaxed);
    running_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
    generation_.fetch_add(1, std::memory_order_release);
  }
  wake_.notify_all();
  Drain();
  for (int spin = 0; running_.load(std::memory_order_acquire) != 0; ++spin) {
    // With more threads than cores the one waited for may need this core.
    if (spin < kSpins) {
      Pause();
    } else {
      std::this_thread::yield();
    }
  }
}

void ThreadPool::WorkerLoop() {
  SetDefaultFloatMode();
  uint64_t seen = 0;
  for (;;) {
    for (int spin = 0; spin < kSpins && generation_.load(std::memory_order_acquire) == seen;
         ++spin) {
      Pause();
    }
    if (generation_.load(std::memory_order_acquire) == seen) {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [&] { return generation_.load(std::memory_order_acquire) != seen; });
    }
    seen = generation_.load(std::memory_order_acquire);
    if (stop_.load(std::memory_order_relaxed)) return;
    Drain();
    running_.fetch_sub(1, std::memory_order_release);
  }
}

Scratch::~Scratch() {
  for (Buffer& buffer : buffers_) std::free(buffer.data);
}

void* Scratch::Get(int slot, size_t bytes) {
  Buffer& buffer = buffers_[slot];
  if (buffer.bytes < bytes) {
    std::free(buffer.data);
    const size_t rounded = (bytes + 4095) / 4096 * 4096;
    buffer.data = std::aligned_alloc(64, rounded);
    buffer.bytes = buffer.data == nullptr ? 0 : rounded;
  }
  return buffer.data;
}

Scratch& Scratch::OfThisThread() {
  thread_local Scratch scratch;
  return scratch;
}

}  // namespace lowrank::cpu
