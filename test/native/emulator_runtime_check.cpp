/// The emulator's counters against accesses whose cost is known, clusters, memory, options, and
/// what a launch must leave as it was.
#include <fenv.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "cuda/gpu.cuh"
#include "test/native/emulator_check.h"

namespace {

using namespace lowrank::emu;

void CheckCluster() {
  const uint32_t kBlocks = 8;
  std::vector<uint32_t> seen(kBlocks, 0);
  for (const Order order : {Order::kForward, Order::kReverse, Order::kRandom}) {
    Options options = CurrentOptions();
    options.order = order;
    options.check = 1;
    SetOptions(options);
    const LaunchStatus status = RunBody(
        [&] {
          auto* s = reinterpret_cast<uint32_t*>(current->block->dynamic_shared);
          const uint32_t rank = current->block->cluster_rank;
          if (current->linear == 0) {
            Access(s, 4, true, Site());
            *s = 100 + rank;
          }
          ClusterArrive(Site());
          ClusterWait(Site());
          const auto* other = static_cast<uint32_t*>(
              MapShared(s, (rank + 1) % current->block->cluster_size, Site()));
          Access(other, 4, false, Site());
          if (current->linear == 5) seen[current->block->linear] = *other;
          ClusterArrive(Site());
          ClusterWait(Site());
        },
        64, kBlocks, 16, 4);
    bool right = status == LaunchStatus::kOk;
    for (uint32_t i = 0; i < kBlocks; ++i) right = right && seen[i] == 100 + (i + 1) % 4;
    Expect(right, "a cluster reads its neighbour's shared memory");
  }
  Options quiet;
  quiet.print = false;
  SetOptions(quiet);
  Expect(RunBody([] {}, 32, 6, 0, 4) == LaunchStatus::kInvalidConfiguration,
         "a grid that clusters do not divide is refused");
  SetOptions(Options());
}

/// kernel -> requests, cost, ideal of the only line.
void CheckCost(const char* what, RequestKind kind, uint64_t cost, uint64_t ideal,
               const Body& access) {
  Options options;
  options.counters = true;
  SetOptions(options);
  ClearCounts();
  RunBody(access, 32, 1, 32768);
  SetOptions(Options());
  bool found = false;
  for (const LineCount& line : LineCounts()) {
    if (line.kind != kind) continue;
    found = true;
    Expect(line.requests == 1 && line.cost == cost && line.ideal == ideal,
           std::string(what) + ": " + std::to_string(line.requests) + " requests, cost " +
               std::to_string(line.cost) + ", ideal " + std::to_string(line.ideal));
  }
  Expect(found, std::string(what) + ": nothing counted");
}

void CheckCounters() {
  const auto shared = [](uint32_t bytes, uint32_t stride_bytes) {
    return [=] {
      Access(current->block->dynamic_shared + current->lane * stride_bytes, bytes, false,
             Site::Line("x", 1));
    };
  };
  const RequestKind load = RequestKind::kLoadShared;
  CheckCost("4 bytes, side by side", load, 1, 1, shared(4, 4));
  CheckCost("4 bytes, every second word", load, 2, 1, shared(4, 8));
  CheckCost("4 bytes, one bank", load, 32, 1, shared(4, 128));
  CheckCost("4 bytes, one padded bank", load, 1, 1, shared(4, 132));
  CheckCost("4 bytes, one word for all", load, 1, 1, shared(4, 0));
  CheckCost("8 bytes, side by side", load, 2, 2, shared(8, 8));
  CheckCost("16 bytes, side by side", load, 4, 4, shared(16, 16));
  CheckCost("16 bytes, rows of 128", load, 32, 4, shared(16, 128));
  CheckCost("16 bytes, one address for all", load, 2, 2, shared(16, 0));
  CheckCost("bytes, side by side", load, 1, 1, shared(1, 1));
  auto* g = static_cast<unsigned char*>(Allocate(32768));
  const auto global = [g](uint32_t bytes, uint32_t stride_bytes, uint32_t offset) {
    return
        [=] { Access(g + offset + current->lane * stride_bytes, bytes, true, Site::Line("x", 1)); };
  };
  const RequestKind store = RequestKind::kStoreGlobal;
  CheckCost("global, 4 bytes side by side", store, 4, 4, global(4, 4, 0));
  CheckCost("global, 16 bytes side by side", store, 16, 16, global(16, 16, 0));
  CheckCost("global, every second word", store, 8, 4, global(4, 8, 0));
  CheckCost("global, off by 4 bytes", store, 5, 4, global(4, 4, 4));
  CheckCost("global, one sector a lane", store, 32, 4, global(4, 256, 0));
  Free(g);
}

void OtherHandler(int, siginfo_t*, void*) {}

void CheckSurroundings() {
  struct sigaction action{};
  action.sa_sigaction = OtherHandler;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGSEGV, &action, nullptr);
  fesetround(FE_DOWNWARD);
  float rounded = 0;
  volatile float third = 3;
  RunBody([&] { rounded = 1.0f / third; }, 1);
  Expect(fegetround() == FE_DOWNWARD && rounded == 0x1.555556p-2f, "rounding mode");
  fesetround(FE_TONEAREST);
  Options quiet;
  quiet.print = false;
  SetOptions(quiet);
  const LaunchStatus status = RunBody([] { *reinterpret_cast<volatile int*>(8) = 1; }, 64, 4);
  Expect(status == LaunchStatus::kIllegalAddress, "a fault ends the launch");
  const LaunchStatus overflow = RunBody(
      [] {
        std::function<int(int)> deep = [&](int n) {
          volatile char frame[512];
          frame[n % 512] = 1;
          return n == 0 ? frame[0] : deep(n - 1) + frame[n % 512];
        };
        deep(100000);
      },
      1);
  Expect(overflow == LaunchStatus::kIllegalAddress &&
             Findings().back().text.find("stack is full") != std::string::npos,
         "a full stack ends the launch");
  SetOptions(Options());
  struct sigaction now{};
  sigaction(SIGSEGV, nullptr, &now);
  Expect(now.sa_sigaction == OtherHandler, "the handler of SIGSEGV");
  signal(SIGSEGV, SIG_DFL);
  stack_t stack{};
  sigaltstack(nullptr, &stack);
  Expect((stack.ss_flags & SS_DISABLE) != 0, "the alternate signal stack");
}

size_t ResidentBytes() {
  std::FILE* file = std::fopen("/proc/self/statm", "r");
  unsigned long total = 0;
  unsigned long resident = 0;
  if (file == nullptr || std::fscanf(file, "%lu %lu", &total, &resident) != 2) return 0;
  std::fclose(file);
  return resident * 4096;
}

void CheckManyLaunches() {
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&wrong] {
      for (int i = 0; i < 50; ++i) {
        std::atomic<uint32_t> sum{0};
        RunBody(
            [&] {
              sum += current->linear;
              __syncthreads();
            },
            128, 9);
        if (sum != 9u * 128 * 127 / 2) ++wrong;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  Expect(wrong == 0, "launches from several threads at once");
  Options several;
  several.workers = 4;
  SetOptions(several);
  constexpr uint32_t kBlocks = 24;
  uint32_t turn = 0;
  for (int i = 0; i < 200; ++i) {
    turn = 0;
    const LaunchStatus status = RunBody(
        [&] {
          const uint32_t after = kBlocks - 1 - current->block->linear;
          if (current->linear == 0) {
            while (LoadAcquire(&turn, Site()) != after) {
            }
          }
          __syncthreads();
          if (current->linear == 5) StoreRelease(&turn, after + 1, Site());
        },
        64, kBlocks);
    if (status != LaunchStatus::kOk || turn != kBlocks) ++wrong;
  }
  SetOptions(Options());
  Expect(wrong == 0, "blocks wait for each other on several workers");
  const auto churn = [] {
    for (int i = 0; i < 200; ++i) {
      void* memory = Allocate(1 << 20);
      RunBody([] { __syncthreads(); }, 256, 4, 1024);
      Free(memory);
    }
  };
  churn();
  const size_t before = ResidentBytes();
  for (int i = 0; i < 5; ++i) churn();
  Expect(ResidentBytes() < before + (4u << 20), "memory does not grow");
  Expect(AllocatedBytes() == 0, "everything allocated was freed");
}

void CheckMemory() {
  auto* a = static_cast<unsigned char*>(Allocate(100, 4));
  Expect(a[0] == 0xff && a[99] == 0xff, "fresh memory is poisoned");
  void* base = nullptr;
  size_t bytes = 0;
  bool host = true;
  Expect(FindRange(a + 99, &base, &bytes, &host) && base == a && bytes == 100 && !host,
         "a range is found");
  Expect(!FindRange(a + 100, nullptr, nullptr, nullptr) && !Free(a + 4), "past its end is none");
  Expect(Free(a) && !Free(a), "freed once");
  auto* b = static_cast<unsigned char*>(Allocate(100, 256));
  b[101] = 1;
  Options quiet;
  quiet.print = false;
  SetOptions(quiet);
  const size_t count = FindingCount();
  Free(b);
  Expect(FindingCount() == count + 1, "a write after the end is found when it is freed");
  SetOptions(Options());
  int local[4] = {};
  RegisterHost(local, sizeof(local));
  Expect(IsGlobal(local + 3) && !IsGlobal(local + 4) && UnregisterHost(local) && !IsGlobal(local),
         "host ranges");
}

void CheckOptions() {
  Expect(SetOption("order", "random") && SetOption("seed", "12") && SetOption("copies", "early") &&
             CurrentOptions().order == Order::kRandom && CurrentOptions().seed == 12 &&
             CurrentOptions().copies == Copies::kEarly,
         "options are set by name");
  Expect(!SetOption("order", "sideways") && !SetOption("seed", "-1") && !SetOption("nothing", "1"),
         "bad options are refused");
  SetOptions(Options());
  std::string error;
  setenv("LOWRANK_EMULATOR_COPIES", "never", 1);
  Expect(!OptionsFromEnvironment(&error) && error.find("COPIES") != std::string::npos,
         "a bad variable is named");
  unsetenv("LOWRANK_EMULATOR_COPIES");
  Expect(OptionsFromEnvironment(&error), "the environment's options");
}

}  // namespace

int main() {
  CheckCluster();
  CheckCounters();
  CheckSurroundings();
  CheckMemory();
  CheckOptions();
  CheckManyLaunches();
  std::printf("%d wrong\n", failures);
  return failures == 0 ? 0 : 1;
}
