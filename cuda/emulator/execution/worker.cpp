/// The scheduler: which fiber runs next, when blocks start, and what to do when nothing can run.
#include <sched.h>

#include <algorithm>
#include <cstring>
#include <string>

#include "cuda/emulator/state/memory.h"
#include "cuda/emulator/state/scheduler.h"

namespace lowrank::emu {

__thread Thread* current = nullptr;
__thread Worker* worker = nullptr;
GridRun* running = nullptr;
Extension extension;

namespace {

/// Two mappings a thread (stack and guard page): the kernel's limit is 65,530 of a process.
constexpr uint32_t kMaxResidentThreads = 16384;
constexpr uint64_t kFruitlessRounds = 1000;
constexpr std::chrono::seconds kPatience(5);

uint32_t LowestLane(uint32_t lanes) { return static_cast<uint32_t>(__builtin_ctz(lanes)); }
uint32_t HighestLane(uint32_t lanes) { return 31u - static_cast<uint32_t>(__builtin_clz(lanes)); }

uint32_t NthLane(uint32_t lanes, uint64_t n) {
  return LowestLane(__builtin_ia32_pdep_si(1u << n, lanes));
}

/// What every thread runs.
void FiberMain() {
  const Launch& launch = *running->launch;
  launch.kernel->body(launch.params);
  Fiber* fiber = CurrentFiber();
  if (running->check) CheckCopiesWaited(fiber);
  LeaveWarp(fiber);
  worker->Reschedule();
  __builtin_unreachable();
}

}  // namespace

void Worker::SetSpinning(Fiber* fiber) {
  Warp* warp = fiber->warp_state;
  BlockState* block = fiber->block_state;
  ClearRunnable(warp, block, uint32_t{1} << fiber->lane);
  warp->spinning |= uint32_t{1} << fiber->lane;
  block->spinning_warps |= uint32_t{1} << warp->index;
}

bool Worker::WakeSpinners() {
  bool any = false;
  for (BlockState* block : resident_) {
    for (uint32_t warps = block->spinning_warps; warps != 0; warps &= warps - 1) {
      Warp* warp = &block->warp_states[LowestLane(warps)];
      SetRunnable(warp, block, warp->spinning);
      warp->spinning = 0;
      any = true;
    }
    block->spinning_warps = 0;
  }
  return any;
}

Fiber* Worker::PickNext(Fiber* after) {
  if (random_order) {
    uint64_t warps = 0;
    for (const BlockState* block : resident_) {
      warps += static_cast<uint64_t>(__builtin_popcount(block->runnable_warps));
    }
    if (warps == 0) return nullptr;
    uint64_t pick = NextRandom() % warps;
    for (BlockState* block : resident_) {
      const auto here = static_cast<uint64_t>(__builtin_popcount(block->runnable_warps));
      if (pick < here) {
        Warp& warp = block->warp_states[NthLane(block->runnable_warps, pick)];
        const auto lanes = static_cast<uint64_t>(__builtin_popcount(warp.runnable));
        return warp.lanes + NthLane(warp.runnable, NextRandom() % lanes);
      }
      pick -= here;
    }
    return nullptr;
  }
  const bool reverse = run_->options.order == Order::kReverse;
  BlockState* block = nullptr;
  Warp* warp = nullptr;
  if (after != nullptr) {
    block = after->block_state;
    warp = after->warp_state;
    if (warp->runnable == 0) warp = nullptr;
  }
  if (block == nullptr || block->runnable_warps == 0) {
    const auto count = static_cast<uint32_t>(resident_.size());
    const uint32_t from = block == nullptr ? 0 : block->resident_index + 1;
    block = nullptr;
    for (uint32_t i = 0; i < count && block == nullptr; ++i) {
      const uint32_t index = reverse ? (from + count - 1 - i) % count : (from + i) % count;
      if (resident_[index]->runnable_warps != 0) block = resident_[index];
    }
    if (block == nullptr) return nullptr;
    warp = nullptr;
    after = nullptr;
  }
  if (warp == nullptr) {
    uint32_t warps = block->runnable_warps;
    if (after != nullptr && !reverse) {  // round robin
      const uint32_t higher = warps & ~((2u << after->warp) - 1u);
      if (higher != 0) warps = higher;
    }
    warp = &block->warp_states[reverse ? HighestLane(warps) : LowestLane(warps)];
  }
  return warp->lanes + (reverse ? HighestLane(warp->runnable) : LowestLane(warp->runnable));
}

void Worker::Reschedule() {
  Fiber* me = CurrentFiber();
  Fiber* next = PickNext(me);
  if (next == me) return;
  if (next == nullptr) {
    current = nullptr;
    lowrank_emu_switch(&me->stack_pointer, main_stack_pointer_);
    return;
  }
  current = next;
  lowrank_emu_switch(&me->stack_pointer, next->stack_pointer);
}

void Worker::Abandon() {
  run_->failed = true;
  if (in_extension) longjmp(extension_exit, 1);
  current = nullptr;
  void* nobody = nullptr;
  lowrank_emu_switch(&nobody, main_stack_pointer_);
  __builtin_unreachable();
}

void Worker::Enter(Fiber* fiber) {
  current = fiber;
  lowrank_emu_switch(&main_stack_pointer_, fiber->stack_pointer);
  current = nullptr;
}

BlockState* Worker::TakeSlot() {
  static std::atomic<uint32_t> slots_made{0};
  BlockState* block = nullptr;
  if (!idle_.empty()) {
    block = idle_.back();
    idle_.pop_back();
  } else {
    slots_.push_back(std::make_unique<BlockState>());
    block = slots_.back().get();
    block->slot = slots_made.fetch_add(1);
    block->shared_window = SharedWindow(block->slot);
    block->warp_states.resize(kWarpSize);
  }
  if (block->shared_window == nullptr || !block->stacks.Reserve(run_->threads)) return nullptr;
  if (block->fibers.size() < run_->threads) block->fibers.resize(run_->threads);
  return block;
}

void Worker::StartBlock(BlockState* block, uint64_t linear, uint32_t rank, BlockState* first) {
  const Launch& launch = *run_->launch;
  const Dim3& grid = launch.grid;
  const Dim3& dim = launch.block;
  block->block_idx =
      Dim3(static_cast<uint32_t>(linear % grid.x), static_cast<uint32_t>(linear / grid.x % grid.y),
           static_cast<uint32_t>(linear / (uint64_t{grid.x} * grid.y)));
  block->block_dim = dim;
  block->grid_dim = grid;
  block->linear = static_cast<uint32_t>(linear);
  block->instance = run_->first_instance + static_cast<uint32_t>(linear);
  block->threads = run_->threads;
  block->warps = (run_->threads + kWarpSize - 1) / kWarpSize;
  block->cluster_size = launch.cluster;
  block->cluster_rank = rank;
  block->cluster_first = first;
  block->shared_bytes = run_->static_shared_bytes + run_->shared_bytes;
  const uint32_t room_bytes = (block->shared_bytes + 1023u) / 1024u * 1024u;
  block->shared_base = block->shared_window + kSharedWindow - room_bytes;
  block->dynamic_shared = block->shared_base + run_->static_shared_bytes;
  if (room_bytes != 0) std::memset(block->shared_base, 0xff, room_bytes);
  block->live = run_->threads;
  block->runnable_warps = 0;
  block->spinning_warps = 0;
  for (Barrier& barrier : block->barriers) {
    if (barrier.expected != 0 || barrier.warps != 0) barrier = Barrier();
  }
  if (rank == 0) {
    block->cluster_arrived = 0;
    block->cluster_threads = run_->threads * launch.cluster;
    block->cluster_phase = 0;
    block->cluster_waiters.clear();
    block->cluster_clock.Clear();
    block->cluster_clock_done.Clear();
    block->cluster_ticket.clear();  // made anew by the first arrival
  }
  if (run_->check) {
    block->grid_wait = Access1();
    block->slots.clear();
    block->shadow.Reset(reinterpret_cast<uintptr_t>(block->shared_base), room_bytes, false);
    block->shared_reads.assign(size_t{room_bytes} / 4 * block->warps, 0);
  }
  for (uint32_t i = 0; i < block->warps; ++i) {
    Warp& warp = block->warp_states[i];
    const uint32_t lanes = std::min(kWarpSize, run_->threads - i * kWarpSize);
    warp.index = i;
    warp.alive = lanes == kWarpSize ? kAllLanes : (uint32_t{1} << lanes) - 1u;
    warp.runnable = 0;
    warp.waiting = 0;
    warp.spinning = 0;
    warp.lanes = &block->fibers[i * kWarpSize];
    if (run_->check) warp.clock.Reset(block->warps);
    SetRunnable(&warp, block, warp.alive);
  }
  uint32_t x = 0;
  uint32_t y = 0;
  uint32_t z = 0;
  for (uint32_t i = 0; i < run_->threads; ++i) {
    Fiber& fiber = block->fibers[i];
    fiber.thread_idx = Dim3(x, y, z);
    fiber.lane = i % kWarpSize;
    fiber.warp = i / kWarpSize;
    fiber.linear = i;
    fiber.block = block;
    fiber.proxy_fences = 0;
    fiber.warp_state = &block->warp_states[i / kWarpSize];
    fiber.block_state = block;
    fiber.what = "not started";
    fiber.site = Site();
    fiber.parked = false;
    fiber.fenced = Scope::kNone;
    fiber.last_fence = Scope::kNone;
    for (auto& state : fiber.at_fence) state.reset();
    fiber.waited_for_grids = false;
    fiber.acquired_from = nullptr;
    fiber.copies.Clear();
    fiber.stack_begin = reinterpret_cast<uintptr_t>(block->stacks.Bottom(i));
    fiber.stack_pointer = PrepareFiber(block->stacks.Top(i), FiberMain);
    if (++x == dim.x) {
      x = 0;
      if (++y == dim.y) {
        y = 0;
        ++z;
      }
    }
  }
  block->resident_index = static_cast<uint32_t>(resident_.size());
  resident_.push_back(block);
  if (extension.block_begin != nullptr) extension.block_begin(block);
}

bool Worker::StartCluster() {
  const uint32_t size = run_->launch->cluster;
  if ((resident_.size() + size) * run_->threads >
      std::max(kMaxResidentThreads, size * run_->threads)) {
    return false;
  }
  const uint64_t turn = run_->next_cluster.fetch_add(1);
  if (turn >= run_->clusters) return false;
  uint64_t cluster = turn;
  if (run_->options.order == Order::kReverse) cluster = run_->clusters - 1 - turn;
  if (random_order) cluster = (turn * run_->stride + run_->offset) % run_->clusters;
  BlockState* first = nullptr;
  for (uint32_t rank = 0; rank < size; ++rank) {
    BlockState* block = TakeSlot();
    if (block == nullptr) {
      Report("fault", Site(), Site(), "no memory for the stacks and shared memory of a block");
      run_->failed = true;
      return false;
    }
    if (rank == 0) first = block;
    // Clusters lie along x, and the grid's x is a multiple of their size.
    StartBlock(block, cluster * size + rank, rank, first);
  }
  return true;
}

void Worker::Retire() {
  size_t kept = 0;
  for (size_t i = 0; i < resident_.size(); i += run_->launch->cluster) {
    const size_t size = run_->launch->cluster;
    bool done = true;
    for (size_t rank = 0; rank < size; ++rank) done = done && resident_[i + rank]->live == 0;
    for (size_t rank = 0; rank < size; ++rank) {
      BlockState* block = resident_[i + rank];
      if (done) {
        if (extension.block_end != nullptr) extension.block_end(block);
        idle_.push_back(block);
      } else {
        block->resident_index = static_cast<uint32_t>(kept);
        resident_[kept++] = block;
      }
    }
  }
  resident_.resize(kept);
}

bool Worker::Unblock() {
  if (extension.progress != nullptr) {
    volatile bool moved = false;  // survives the longjmp
    in_extension = true;
    if (setjmp(extension_exit) == 0) moved = extension.progress();
    in_extension = false;
    if (run_->failed) return false;
    if (moved) {
      WakeSpinners();
      return true;
    }
  }
  bool spinning = false;
  for (const BlockState* block : resident_) spinning = spinning || block->spinning_warps != 0;
  if (!spinning) {
    ReportDeadlock("deadlock");
    return false;
  }
  if (progress_ != progress_seen_) {
    progress_seen_ = progress_;
    fruitless_ = 0;
    return WakeSpinners();
  }
  // Everyone has polled in vain. A block that has not started may be what they wait for.
  if (StartCluster()) return true;
  if (run_->failed) return false;
  if (!stuck_) ++run_->workers_stuck;
  stuck_ = true;
  const int inside = run_->workers_inside;
  // Whoever went on in between may have released what these threads poll: look again.
  const uint64_t changes = run_->changes;
  if (changes != changes_seen_ || run_->workers_stuck < inside) {
    changes_seen_ = changes;
    fruitless_ = 0;
    sched_yield();
    return WakeSpinners();
  }
  const auto now = std::chrono::steady_clock::now();
  if (++fruitless_ == 1) fruitless_since_ = now;
  // Another worker that is stuck may have seen what it waited for, and not told yet.
  if (fruitless_ > kFruitlessRounds && (inside == 1 || now - fruitless_since_ > kPatience)) {
    ReportDeadlock("livelock");
    return false;
  }
  return WakeSpinners();
}

void Worker::ReportDeadlock(const char* kind) {
  struct Group {
    const Fiber* first;
    uint32_t count;
  };
  std::vector<Group> groups;
  uint32_t exited = 0;
  for (const BlockState* block : resident_) {
    exited += block->threads - block->live;
    for (uint32_t i = 0; i < block->threads; ++i) {
      const Fiber& fiber = block->fibers[i];
      if ((fiber.warp_state->alive >> fiber.lane & 1u) == 0) continue;
      auto same = std::find_if(groups.begin(), groups.end(), [&](const Group& group) {
        return group.first->site == fiber.site && std::strcmp(group.first->what, fiber.what) == 0;
      });
      if (same == groups.end()) {
        groups.push_back({&fiber, 1});
      } else {
        ++same->count;
      }
    }
  }
  std::string text = "nothing can run:";
  for (size_t i = 0; i < std::min<size_t>(groups.size(), 6); ++i) {
    const Fiber& fiber = *groups[i].first;
    text += " " + std::to_string(groups[i].count) + " threads wait in " + fiber.what + " at " +
            ToString(fiber.site) + " (first: block " + std::to_string(fiber.block->linear) +
            " thread " + std::to_string(fiber.linear) + ");";
  }
  text += " " + std::to_string(exited) + " threads have exited, " +
          std::to_string(resident_.size()) + " blocks are resident";
  const Site site = groups.empty() ? Site() : groups.front().first->site;
  Report(kind, site, Site(), "%s", text.c_str());
  run_->failed = true;
}

BlockState* Worker::BlockOfShared(uintptr_t address) {
  for (BlockState* block : resident_) {
    if (address - reinterpret_cast<uintptr_t>(block->shared_window) < kSharedStride) return block;
  }
  return nullptr;
}

void Worker::Run(GridRun* run) {
  run_ = run;
  random_order = run->options.order == Order::kRandom;
  random_ = (run->options.seed + 1) * 0x9E3779B97F4A7C15ull | 1u;
  progress_ = 0;
  progress_seen_ = 0;
  fruitless_ = 0;
  stuck_ = false;
  ++run->workers_inside;
  while (!run->failed) {
    if (resident_.empty() && !StartCluster()) break;
    Fiber* next = PickNext(nullptr);
    if (next != nullptr) {
      Enter(next);
      if (!run->failed) Retire();
    } else if (!Unblock()) {
      break;
    }
  }
  for (BlockState* block : resident_) idle_.push_back(block);
  resident_.clear();
  ++run->changes;
  if (stuck_) --run->workers_stuck;
  --run->workers_inside;
}

}  // namespace lowrank::emu
