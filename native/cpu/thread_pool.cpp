#include "native/cpu/thread_pool.h"

#if defined(__linux__)
#include <sched.h>
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cstdlib>
#include <exception>

#include "native/core/runtime/float_mode.h"
#include "native/core/runtime/spin.h"
#include "native/cpu/host_memory.h"

namespace lowrank::cpu {
namespace {

constexpr size_t kPage = 4096;

#if defined(__linux__)
int CurrentCore() { return sched_getcpu(); }

/// Moves the calling thread off `core` if it may run elsewhere: a mask without that core moves it
/// at once, and the mask is restored at once.
void LeaveCore(int core) {
  cpu_set_t allowed;
  if (core < 0 || core >= CPU_SETSIZE || sched_getcpu() != core) return;
  if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0 || CPU_COUNT(&allowed) < 2) return;
  cpu_set_t others = allowed;
  CPU_CLR(core, &others);
  if (sched_setaffinity(0, sizeof(others), &others) != 0) return;
  sched_setaffinity(0, sizeof(allowed), &allowed);
}
#else
int CurrentCore() { return -1; }
void LeaveCore(int) {}
#endif

}  // namespace

ThreadPool::ThreadPool(int threads) : asked_(threads) {
  workers_.reserve(static_cast<size_t>(threads - 1));
  bool more = true;
  for (int i = 1; i < threads && more; ++i) {
    try {
      workers_.emplace_back([this] { WorkerLoop(); });
    } catch (const std::exception&) {
      // The system gives no more threads, or no memory for one: work with the existing ones.
      more = false;
    }
  }
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_.store(true, std::memory_order_release);
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
    left_.store(0, std::memory_order_relaxed);
    caller_core_.store(CurrentCore(), std::memory_order_relaxed);
    const uint64_t number = (job_.load(std::memory_order_relaxed) >> 16) + 1;
    job_.store(number << 16 | kOpen, std::memory_order_release);
  }
  wake_.notify_all();
  // Lets a woken worker leave this core.
  std::this_thread::yield();
  Drain();
  const uint64_t joined = job_.fetch_and(~kOpen, std::memory_order_acq_rel) & kJoined;
  const auto all_left = [&] { return left_.load(std::memory_order_acquire) == joined; };
  // With more threads than cores, the awaited one may need this core.
  while (!SpinUntil(all_left)) std::this_thread::yield();
}

void ThreadPool::WorkerLoop() {
  SetDefaultFloatMode();
  uint64_t seen = 0;
  const auto called = [&] {
    return stop_.load(std::memory_order_acquire) ||
           job_.load(std::memory_order_acquire) >> 16 != seen;
  };
  for (;;) {
    if (!SpinUntil(called)) {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, called);
    }
    if (stop_.load(std::memory_order_acquire)) return;
    // A woken worker often lands on the caller's core, and the system takes milliseconds to notice
    // an idle one. A worker that comes too late moves for the next job.
    LeaveCore(caller_core_.load(std::memory_order_relaxed));
    uint64_t job = job_.load(std::memory_order_acquire);
    while ((job & kOpen) != 0 &&
           !job_.compare_exchange_weak(job, job + 1, std::memory_order_acq_rel)) {
    }
    seen = job >> 16;
    if ((job & kOpen) == 0) continue;
    Drain();
    left_.fetch_add(1, std::memory_order_release);
  }
}

Scratch::~Scratch() {
  for (Chunk& chunk : chunks_) std::free(chunk.data);
}

Scratch::Chunk* Scratch::ChunkWithRoom(size_t bytes) {
  Chunk* empty = nullptr;
  for (Chunk& chunk : chunks_) {
    if (chunk.slots == 0) chunk.used = 0;
    if (chunk.data != nullptr && chunk.bytes - chunk.used >= bytes) return &chunk;
    if (chunk.slots == 0) empty = &chunk;
  }
  std::free(empty->data);
  *empty = Chunk();
  const size_t rounded = (bytes + kHugePage - 1) / kHugePage * kHugePage;
  empty->data = static_cast<char*>(std::aligned_alloc(kHugePage, rounded));
  if (empty->data == nullptr) return nullptr;
#if defined(__linux__)
  madvise(empty->data, rounded, MADV_HUGEPAGE);
#endif
  empty->bytes = rounded;
  return empty;
}

void* Scratch::Get(int slot, size_t bytes) {
  Buffer& buffer = buffers_[slot];
  if (buffer.bytes >= bytes) return buffer.data;
  if (buffer.chunk != nullptr) --buffer.chunk->slots;
  // Grows by at least half, so that a slowly growing slot does not leave many pieces behind.
  const size_t wanted = std::max(bytes, buffer.bytes + buffer.bytes / 2);
  const size_t rounded = (wanted + kPage - 1) / kPage * kPage;
  buffer = Buffer();
  Chunk* chunk = ChunkWithRoom(rounded);
  if (chunk == nullptr) return nullptr;
  buffer = {chunk->data + chunk->used, rounded, chunk};
  chunk->used += rounded;
  ++chunk->slots;
  return buffer.data;
}

Scratch& Scratch::OfThisThread() {
  thread_local Scratch scratch;
  return scratch;
}

}  // namespace lowrank::cpu
