/// The insides of the runtime: fibers, warps, resident blocks and the workers that run them.
#pragma once

#include <setjmp.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <unordered_map>
#include <vector>

#include "cuda/emulator/runtime.h"
#include "cuda/emulator/state/clocks.h"
#include "cuda/emulator/state/counters.h"
#include "cuda/emulator/state/fiber.h"
#include "cuda/emulator/state/shadow.h"

namespace lowrank::emu {

struct Warp;
struct BlockState;

struct AsyncCopy {
  void* dst;
  const void* src;
  uint32_t bytes;
  uint32_t source_bytes;
  Site site;
};

/// cp.async of one thread: copies in issue order, and how many each committed group ends at.
struct CopyQueue {
  std::vector<AsyncCopy> copies;
  std::vector<size_t> group_ends;
  size_t done = 0;  // copies that have landed and been waited for

  void Clear() {
    copies.clear();
    group_ends.clear();
    done = 0;
  }
};

struct Fiber : Thread {
  void* stack_pointer = nullptr;
  uintptr_t stack_begin = 0;  // of StackPool::kStackBytes
  Warp* warp_state = nullptr;
  BlockState* block_state = nullptr;

  // Where it waits, and in a collective for whom.
  const char* what = "";
  Site site;
  CollectiveFn collective = nullptr;
  uint32_t mask = 0;
  bool aligned = false;
  bool parked = false;

  Scope fenced = Scope::kNone;              // the widest Fence() that it has executed
  Scope last_fence = Scope::kNone;          // the last one
  std::unique_ptr<ClockState> at_fence[2];  // what the last one of cluster and device scope orders
  bool waited_for_grids = false;            // has executed GridDependencyWait()
  const uint32_t* acquired_from = nullptr;  // the last LoadAcquire
  uint32_t acquired_value = 0;

  CopyQueue copies;
  std::vector<LoggedAccess> log;  // for the counters, since the warp last met
};

/// A lane is in one of: runnable, waiting (in a collective), spinning, parked (in none of the
/// masks), exited (not in alive).
struct Warp {
  uint32_t index = 0;
  uint32_t alive = 0;
  uint32_t runnable = 0;
  uint32_t waiting = 0;
  uint32_t spinning = 0;
  Fiber* lanes = nullptr;
  void* args[kWarpSize] = {};
  WarpClock clock;
};

struct Barrier {
  uint32_t arrived = 0;
  uint32_t expected = 0;
  uint32_t predicates = 0;
  int results[3] = {};
  bool whole_block = false;
  bool aligned = false;
  Site site;                  // of the first to arrive
  Site warp_site[kWarpSize];  // of each warp's first
  uint32_t parked[kWarpSize] = {};
  uint32_t warps = 0;
  ClockState clock;
};
constexpr uint32_t kBarriers = 16;

/// What a slot of a ring holds.
struct SlotFill {
  uint32_t generation;
  Site site;
};

struct BlockState : Block {
  StackPool stacks;
  std::vector<Fiber> fibers;
  std::vector<Warp> warp_states;
  Barrier barriers[kBarriers];
  uint32_t runnable_warps = 0;
  uint32_t spinning_warps = 0;
  uint32_t live = 0;
  uint32_t slot = 0;  // of its shared window
  uint32_t resident_index = 0;
  BlockState* cluster_first = nullptr;  // rank 0; the ranks follow each other in Worker::resident
  // Of the cluster, kept by rank 0.
  uint32_t cluster_arrived = 0;
  uint32_t cluster_threads = 0;
  uint64_t cluster_phase = 0;
  std::vector<Fiber*> cluster_waiters;
  ClockState cluster_clock;
  ClockState cluster_clock_done;
  std::vector<uint64_t> cluster_ticket;  // phase each thread waits for
  Access1 grid_wait;                     // the first thread that waited for earlier launches
  ShadowMemory shadow;                   // of shared memory, in check mode
  std::vector<uint32_t> shared_reads;    // by word and warp: 1 + the clock of its last read
  std::unordered_map<uintptr_t, SlotFill> slots;  // of rings, in check mode
};

/// What all workers of a launch share.
struct GridRun {
  const Launch* launch = nullptr;
  Options options;
  bool check = false;
  bool counters = false;
  uint64_t blocks = 0;
  uint64_t clusters = 0;
  uint32_t threads = 0;
  uint32_t static_shared_bytes = 0;
  uint32_t shared_bytes = 0;
  uint32_t first_instance = 0;
  std::vector<std::pair<uint32_t, uint32_t>> unfinished;  // launches that may still run
  uint64_t stride = 1;                                    // of the random order of blocks
  uint64_t offset = 0;
  std::atomic<uint64_t> next_cluster{0};
  std::atomic<bool> failed{false};
  std::atomic<bool> fault{false};
  std::atomic<bool> waited_for_grids{false};  // a thread has
  std::atomic<int> workers_inside{0};
  std::atomic<int> workers_stuck{0};
  std::atomic<uint64_t> changes{0};  // a worker is no longer stuck, or has left
};
extern GridRun* running;  // the launch; one at a time

/// Runs clusters of the grid, one after another, on one operating-system thread.
class Worker {
 public:
  void Run(GridRun* run);

  /// From a fiber that is not runnable: to the next one, or to the main loop.
  void Reschedule();
  /// From a fiber; does not come back.
  [[noreturn]] void Abandon();

  void SetRunnable(Warp* warp, BlockState* block, uint32_t lanes) {
    warp->runnable |= lanes;
    if (lanes != 0) block->runnable_warps |= uint32_t{1} << warp->index;
  }
  void ClearRunnable(Warp* warp, BlockState* block, uint32_t lanes) {
    warp->runnable &= ~lanes;
    if (warp->runnable == 0) block->runnable_warps &= ~(uint32_t{1} << warp->index);
  }
  void SetSpinning(Fiber* fiber);

  uint64_t NextRandom() {
    random_ ^= random_ << 13;
    random_ ^= random_ >> 7;
    random_ ^= random_ << 17;
    return random_;
  }

  GridRun* run() { return run_; }
  const std::vector<BlockState*>& resident() const { return resident_; }
  /// The resident block whose shared window holds the address; null: none of this worker's.
  BlockState* BlockOfShared(uintptr_t address);

  /// A step that may release another thread.
  void Progress() {
    ++progress_;
    if (__builtin_expect(stuck_, 0)) {
      stuck_ = false;
      ++run_->changes;
      --run_->workers_stuck;
    }
  }
  bool random_order = false;
  uintptr_t fault_address = 0;
  bool in_extension = false;
  jmp_buf extension_exit;

 private:
  bool StartCluster();
  void StartBlock(BlockState* block, uint64_t linear, uint32_t rank, BlockState* first);
  void Retire();
  Fiber* PickNext(Fiber* after);
  void Enter(Fiber* fiber);
  bool WakeSpinners();
  bool Unblock();
  void ReportDeadlock(const char* kind);
  BlockState* TakeSlot();

  GridRun* run_ = nullptr;
  std::vector<std::unique_ptr<BlockState>> slots_;
  std::vector<BlockState*> idle_;
  std::vector<BlockState*> resident_;
  void* main_stack_pointer_ = nullptr;
  uint64_t random_ = 1;
  uint64_t progress_ = 0;
  uint64_t progress_seen_ = 0;
  uint64_t fruitless_ = 0;  // rounds of polling, since when all workers have been stuck
  std::chrono::steady_clock::time_point fruitless_since_;
  uint64_t changes_seen_ = 0;
  bool stuck_ = false;  // all its threads have polled in vain
};
extern __thread Worker* worker __attribute__((tls_model("initial-exec")));

inline Fiber* CurrentFiber() { return static_cast<Fiber*>(current); }
/// The running thread, to release and acquire.
ClockOwner CurrentOwner();

/// A lane ends; fires collectives that waited for nobody else.
void LeaveWarp(Fiber* fiber);
/// Warns of copies that were never waited for.
void CheckCopiesWaited(Fiber* fiber);

/// Shared windows: one reserved range, a window and a gap that faults for each slot.
unsigned char* SharedWindow(uint32_t slot);  // null where there is no memory
constexpr uint32_t kMaxSlots = 4096;
extern uintptr_t shared_range_begin;
constexpr uintptr_t kSharedStride = 2 * uintptr_t{kSharedWindow};
inline bool InSharedRange(uintptr_t address) {
  return address - shared_range_begin < kSharedStride * kMaxSlots;
}

/// Signal handling while a kernel runs (fault.cpp).
class FaultGuard {
 public:
  FaultGuard();
  ~FaultGuard();
};
/// The alternate stack of the calling thread, where it has none of its own.
class SignalStack {
 public:
  SignalStack();
  ~SignalStack();

 private:
  bool ours_ = false;
};

extern Extension extension;

}  // namespace lowrank::emu
