/// Launches: the registry of kernels, the helper threads, and RunGrid.
#include <fenv.h>

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <string>
#include <thread>

#include "cuda/emulator/state/memory.h"
#include "cuda/emulator/state/report.h"
#include "cuda/emulator/state/scheduler.h"

namespace lowrank::emu {
namespace {

constexpr uint32_t kMaxThreads = 1024;
/// What the largest device gives one block, and what the driver keeps to itself.
constexpr uint32_t kMaxSharedBytes = 227 * 1024;
/// Below this many threads a launch is over before a helper has woken up.
constexpr uint64_t kThreadsWorthHelp = 512;

std::map<std::string, Kernel>& Registry() {
  static auto* registry = new std::map<std::string, Kernel>;
  return *registry;
}

void RunOnThisThread(GridRun* run, Worker* with) {
  const SignalStack signal_stack;
  fenv_t environment;
  fegetenv(&environment);
  fesetenv(FE_DFL_ENV);
  worker = with;
  worker->Run(run);
  worker = nullptr;
  fesetenv(&environment);
}

/// Threads that wait for launches. Never joined and never destroyed: the library stays loaded.
class Helpers {
 public:
  static Helpers& Get() {
    static auto* helpers = new Helpers;
    return *helpers;
  }

  void Publish(GridRun* run, int count) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      while (threads_ < count) {
        std::thread([this] { Loop(); }).detach();
        ++threads_;
      }
      run_ = run;
      wanted_ = count;
    }
    if (count == 1) {
      wake_.notify_one();
    } else {
      wake_.notify_all();
    }
  }
  /// Those that have not begun will not; waits for the others.
  void Finish() {
    std::unique_lock<std::mutex> lock(mutex_);
    run_ = nullptr;
    wanted_ = 0;
    idle_.wait(lock, [this] { return active_ == 0; });
  }

 private:
  void Loop() {
    Worker mine;
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return wanted_ > 0; });
      --wanted_;
      ++active_;
      GridRun* run = run_;
      lock.unlock();
      RunOnThisThread(run, &mine);
      lock.lock();
      if (--active_ == 0) idle_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::condition_variable idle_;
  GridRun* run_ = nullptr;
  int threads_ = 0;
  int wanted_ = 0;
  int active_ = 0;
};

LaunchStatus Invalid(const Launch& launch, const std::string& why) {
  Report("configuration", Site(), Site(), "%s: %s",
         launch.kernel == nullptr ? "no kernel" : launch.kernel->name, why.c_str());
  FlushFindings(launch.kernel == nullptr ? "" : launch.kernel->name);
  return LaunchStatus::kInvalidConfiguration;
}

}  // namespace

bool RegisterKernel(const Kernel& kernel) {
  Registry()[kernel.name] = kernel;
  return true;
}

const Kernel* FindKernel(const char* name) {
  const auto found = Registry().find(name);
  return found == Registry().end() ? nullptr : &found->second;
}

std::vector<const Kernel*> AllKernels() {
  std::vector<const Kernel*> all;
  for (const auto& [name, kernel] : Registry()) all.push_back(&kernel);
  return all;
}

void RegisterExtension(const Extension& callbacks) { extension = callbacks; }

LaunchStatus RunGrid(const Launch& launch) {
  static std::mutex one_at_a_time;
  static uint32_t next_instance = 1;
  // Whichever thread calls: its stacks and shared memories outlive the thread.
  static auto* const callers_worker = new Worker;
  const std::lock_guard<std::mutex> lock(one_at_a_time);

  if (launch.kernel == nullptr) return Invalid(launch, "null");
  const Kernel& kernel = *launch.kernel;
  const uint64_t threads = uint64_t{launch.block.x} * launch.block.y * launch.block.z;
  const uint64_t blocks = uint64_t{launch.grid.x} * launch.grid.y * launch.grid.z;
  if (threads == 0 || threads > kMaxThreads || launch.block.z > 64) {
    return Invalid(launch, "a block of " + std::to_string(threads) + " threads");
  }
  if (threads > kernel.max_threads) {
    return Invalid(launch, "a block of " + std::to_string(threads) +
                               " threads, its launch bounds allow " +
                               std::to_string(kernel.max_threads));
  }
  if (blocks == 0 || launch.grid.x > 0x7fffffffu || launch.grid.y > 65535 ||
      launch.grid.z > 65535 || blocks > 0x7fffffffu) {
    return Invalid(launch, "a grid of " + std::to_string(launch.grid.x) + " x " +
                               std::to_string(launch.grid.y) + " x " +
                               std::to_string(launch.grid.z) + " blocks");
  }
  if (launch.cluster == 0 || launch.cluster > 16 || launch.grid.x % launch.cluster != 0) {
    return Invalid(launch, "clusters of " + std::to_string(launch.cluster) + " blocks in a grid " +
                               std::to_string(launch.grid.x) + " wide");
  }
  // Dynamic shared memory starts on a 1,024-byte boundary.
  const uint32_t static_bytes = (kernel.static_shared_bytes + 1023u) / 1024u * 1024u;
  if (uint64_t{kernel.static_shared_bytes} + launch.shared_bytes > kMaxSharedBytes) {
    return Invalid(launch, std::to_string(launch.shared_bytes) + " bytes of shared memory");
  }

  GridRun run;
  run.launch = &launch;
  run.options = CurrentOptions();
  run.check =
      kernel.hooks != Hooks::kNone &&
      (run.options.check == 1 || (run.options.check == -1 && kernel.hooks == Hooks::kAlways));
  run.counters = run.options.counters;
  run.blocks = blocks;
  run.clusters = blocks / launch.cluster;
  run.threads = static_cast<uint32_t>(threads);
  run.static_shared_bytes = static_bytes;
  run.shared_bytes = launch.shared_bytes;
  if (next_instance > UINT32_MAX - blocks) {
    ForgetAccesses();
    next_instance = 1;
  }
  run.first_instance = next_instance;
  next_instance += static_cast<uint32_t>(blocks);
  if (launch.chain != nullptr) {
    const std::lock_guard<std::mutex> chain_lock(launch.chain->mutex);
    auto& unfinished = launch.chain->unfinished;
    if (!launch.overlaps_previous) unfinished.clear();
    run.unfinished = unfinished;
    unfinished.emplace_back(run.first_instance, next_instance);
  }
  run.offset = run.options.seed * 0x9E3779B97F4A7C15ull % run.clusters;
  run.stride = (run.options.seed * 2654435761u) % run.clusters | 1u;
  while (std::gcd(run.stride, run.clusters) != 1) ++run.stride;

  running = &run;
  observing = run.check || run.counters;
  BeginChecks();
  {
    const FaultGuard guard;
    static const int cores =  // asking costs 7 us
        std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
    int workers = run.options.workers > 0 ? run.options.workers : cores;
    if (observing || blocks * threads < kThreadsWorthHelp) workers = 1;
    workers = static_cast<int>(std::min<uint64_t>(static_cast<uint64_t>(workers), run.clusters));
    if (workers > 1) Helpers::Get().Publish(&run, workers - 1);
    RunOnThisThread(&run, callers_worker);
    if (workers > 1) Helpers::Get().Finish();
  }
  observing = false;
  running = nullptr;
  if (run.check && !run.unfinished.empty() && !run.failed && !run.waited_for_grids) {
    Report("grid-dependency", Site(), Site(),
           "it may start before earlier launches have ended, and ends without griddepcontrol.wait: "
           "what follows it may start before they have ended");
  }
  const bool found = FlushFindings(kernel.name);
  if (run.fault) return LaunchStatus::kIllegalAddress;
  return found || run.failed ? LaunchStatus::kFinding : LaunchStatus::kOk;
}

}  // namespace lowrank::emu
