/// Do the emulator's checks find what is planted in emulator_cases.cu, in every schedule, and
/// nothing in the correct kernels? Works with any build of the cases that is observed: instrumented
/// by the host compiler, or translated from PTX.
#include <cstdio>
#include <cstring>
#include <functional>
#include <set>
#include <string>
#include <vector>

#include "cuda/emulator/runtime.h"
#include "test/native/emulator_cases.h"

namespace {

using namespace lowrank::emu;

struct Case {
  const char* kernel;
  const char* kind;  // expected; empty: nothing
  uint32_t grid = 1;
  uint32_t shared_bytes = 512;
  std::function<float(uint32_t)> y = nullptr;  // expected results of a correct kernel
  LaunchStatus status = LaunchStatus::kFinding;
  const char* says = "";  // what the finding's text has
};

const std::vector<Case>& Cases() {
  static const std::vector<Case> cases = {
      {"case_missing_barrier", "race-shared"},
      {"case_missing_syncwarp", "race-shared"},
      {"case_write_after_read", "race-shared"},
      {"case_overwrites_read_of_other_warp", "race-shared"},
      {"case_synchronised", "", 1, 512,
       [](uint32_t i) { return static_cast<float>((i ^ 1u) + 1); }},
      {"case_neighbouring_bytes", "", 1, 512,
       [](uint32_t i) { return 127.0f - static_cast<float>(i); }},
      {"case_same_byte", "race-shared"},
      {"case_shared_out_of_bounds", "oob-shared"},
      {"case_shared_ends_within", "oob-shared", 1, 516},
      {"case_race_in_last_word", "race-shared"},
      {"case_uninitialised_last_word", "uninitialised"},
      {"case_misaligned", "misaligned"},
      {"case_uninitialised_shared", "uninitialised"},
      {"case_shared_too_small", "shared-size"},
      {"case_global_read_out_of_bounds", "oob-global"},
      {"case_global_write_out_of_bounds", "oob-global"},
      {"case_uninitialised_global", "uninitialised"},
      {"case_wild_pointer", "fault", 1, 512, nullptr, LaunchStatus::kIllegalAddress},
      {"case_trap", "fault"},
      {"case_blocks_write_one_word", "race-global", 2},
      {"case_block_overwrites_read", "race-global", 4},
      {"case_last_block_overwrites", "race-global", 4},
      {"case_atomics", "", 3, 512, [](uint32_t) { return 4.0f; }},
      {"case_atomic_and_plain", "race-global", 2},
      {"case_last_block_reduces", "", 5, 512, [](uint32_t) { return 15.0f; }},
      {"case_last_block_fence", "", 5, 512, [](uint32_t) { return 15.0f; }},
      {"case_last_block_relaxed", "race-global", 5},
      {"case_release_without_barrier", "race-global", 5},
      {"case_blocks_wait_for_next", "", 7, 512, [](uint32_t) { return 7.0f; }},
      {"case_release_without_syncwarp", "race-global", 2},
      {"case_write_after_release", "race-global", 2},
      {"case_release_and_acquire", "", 2, 512,
       [](uint32_t i) { return i < 32 ? 31.0f - static_cast<float>(i) : 1.0f; }},
      {"case_waits_for_ever", "livelock"},
      {"case_copy_without_wait", "async-in-flight", 1, 2048},
      {"case_copy_waits_for_one_too_few", "async-in-flight", 1, 2048},
      {"case_copy_first_of_two", "", 1, 2048, [](uint32_t) { return 2.0f; }},
      {"case_copy_second_of_two", "async-in-flight", 1, 2048},
      {"case_copy_without_barrier", "race-shared", 1, 2048},
      {"case_copy_over_live_buffer", "race-shared", 1, 2048},
      {"case_copy_never_waited", "async-unwaited", 1, 2048},
      {"case_copy_pipeline", "", 1, 2048, [](uint32_t) { return 9.0f; }},
      {"case_divergent_barrier", "divergent-barrier"},
      {"case_exit_before_barrier", "deadlock"},
      {"case_half_a_warp_multiplies", "divergent-warp"},
      {"case_shuffle_from_outside_mask", "inactive-lane", 1, 512, nullptr, LaunchStatus::kFinding,
       "reads lane 16, which is not in the mask 0000ffff"},
      {"case_shuffle_from_exited", "inactive-lane", 1, 512, nullptr, LaunchStatus::kFinding,
       "reads lane 16, which is in the mask ffffffff but has exited"},
      {"case_shuffle_waits_for_absent", "deadlock"},
      {"case_warp_reduction", "", 1, 512, [](uint32_t) { return 127.0f * 64; }},
      {"case_matrix_loads", "", 1, 2048, [](uint32_t) { return 1.0f; }},
  };
  return cases;
}

struct Schedule {
  const char* name;
  Order order;
  uint64_t seed;
  Copies copies;
};

std::string Trim(const std::string& path) {
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? path : path.substr(slash + 1);
}

/// Translated PTX knows no struct of shared memory, only where it ends.
bool Found(const std::set<std::string>& kinds, const std::string& kind) {
  return kinds.count(kind) != 0 || (kind == "shared-size" && kinds.count("oob-shared") != 0);
}

/// Empty when all is as it must be.
std::string RunCase(const Case& test) {
  const uint32_t elems = 128 * test.grid;
  EmulatorCaseParams params{};
  auto* x = static_cast<float*>(Allocate(512 * sizeof(float), 16));
  params.x = x;
  params.y = static_cast<float*>(Allocate(elems * sizeof(float), 16));
  params.scratch = static_cast<float*>(Allocate(elems * sizeof(float), 16));
  params.counter = static_cast<uint32_t*>(Allocate(sizeof(uint32_t), 4));
  const std::vector<float> ones(512 + elems, 1.0f);
  CopyMemory(x, ones.data(), 512 * sizeof(float));
  CopyMemory(params.y, ones.data(), elems * sizeof(float));
  SetMemory(params.counter, 0, sizeof(uint32_t));

  ClearFindings();
  Launch launch;
  launch.kernel = FindKernel(test.kernel);
  if (launch.kernel == nullptr) return "there is no such kernel";
  launch.grid = Dim3(test.grid);
  launch.block = Dim3(128);
  launch.shared_bytes = test.shared_bytes;
  launch.params = &params;
  const LaunchStatus status = RunGrid(launch);

  std::string wrong;
  std::string texts;
  std::set<std::string> kinds;
  for (const Finding& finding : Findings()) {
    kinds.insert(finding.kind);
    texts += finding.text + "\n";
    if (finding.kind == test.kind && finding.kind != "shared-size" &&
        Trim(finding.where.file) != "emulator_cases.cu") {
      wrong = "a finding that does not name the file: " + finding.text;
    }
  }
  std::string all;
  for (const std::string& kind : kinds) all += " " + kind;
  if (*test.kind != 0 && !Found(kinds, test.kind)) wrong = "found:" + all;
  if (wrong.empty() && texts.find(test.says) == std::string::npos) wrong = "said: " + texts;
  if (*test.kind == 0 && !kinds.empty()) wrong = "false alarm: " + Findings().front().text;
  const LaunchStatus expected = *test.kind == 0 ? LaunchStatus::kOk : test.status;
  if (wrong.empty() && status != expected) {
    wrong = "status " + std::to_string(static_cast<int>(status));
  }
  if (wrong.empty() && test.y != nullptr) {
    const uint32_t count = std::strcmp(test.kernel, "case_blocks_wait_for_next") == 0 ? elems : 128;
    for (uint32_t i = 0; i < count && wrong.empty(); ++i) {
      const float want = count == 128 ? test.y(i) : test.y(i) - static_cast<float>(i / 128);
      if (params.y[i] != want) {
        wrong = "y[" + std::to_string(i) + "] = " + std::to_string(params.y[i]);
      }
    }
  }
  Free(x);
  Free(params.y);
  Free(params.scratch);
  Free(params.counter);
  return wrong;
}

}  // namespace

int main() {
  std::vector<Schedule> schedules;
  for (const Copies copies : {Copies::kLate, Copies::kEarly}) {
    schedules.push_back({"forward", Order::kForward, 1, copies});
    schedules.push_back({"reverse", Order::kReverse, 1, copies});
    for (uint64_t seed = 1; seed <= 5; ++seed) {
      schedules.push_back({"random", Order::kRandom, seed, copies});
    }
  }
  int failed = 0;
  int run = 0;
  for (const Schedule& schedule : schedules) {
    Options options;
    options.check = 1;
    options.print = false;
    options.order = schedule.order;
    options.seed = schedule.seed;
    options.copies = schedule.copies;
    SetOptions(options);
    for (const Case& test : Cases()) {
      ++run;
      const std::string wrong = RunCase(test);
      if (wrong.empty()) continue;
      ++failed;
      std::printf("%s, %s seed %d, copies %s: expected \"%s\", %s\n", test.kernel, schedule.name,
                  static_cast<int>(schedule.seed),
                  schedule.copies == Copies::kLate ? "late" : "early", test.kind, wrong.c_str());
    }
  }
  std::printf("%d cases in %d schedules, %d runs failed\n", static_cast<int>(Cases().size()),
              static_cast<int>(schedules.size()), failed);
  return failed == 0 && run > 0 ? 0 : 1;
}
