/// Do the checks of sm_90a find what is planted in hopper_cases.cu, in every schedule, and nothing
/// in the correct kernels?
#include <set>

#include "test/native/hopper_cases.h"
#include "test/native/hopper_fixture.h"

namespace lowrank::test {
namespace {

struct Case {
  const char* kernel;
  const char* kind;  // expected; empty: nothing, and y as the formula says
  uint32_t blocks = 1;
  uint32_t cluster = 1;
  float y = 0;                   // of every thread, where nothing is wrong
  const char* before = nullptr;  // a launch of x
  bool overlaps = false;         // that this one overlaps
};

const std::vector<Case>& Cases() {
  static const std::vector<Case> cases = {
      {"case_accumulators", "", 1, 1, 33},
      {"case_accumulators_written_after_fence", "wgmma-fence"},
      {"case_accumulators_read_after_fence", "wgmma-fence"},
      {"case_accumulators_fenced_again", "", 1, 1, 16 + 32 + 16},
      {"case_accumulator_read_in_flight", "wgmma-register"},
      {"case_fragments", "", 1, 1, 64},
      {"case_fragment_overwritten", "wgmma-register"},
      {"case_fragment_not_fenced", "wgmma-fence"},
      {"case_scope_of_device", "", 2, 1, 7},
      {"case_release_at_block", "race-global", 2},
      {"case_acquire_at_cluster", "race-global", 2},
      {"case_acquire_at_cluster", "", 2, 2, 7},
      {"case_fence_of_device", "", 2, 1, 7},
      {"case_fence_of_block", "race-global", 2},
      {"case_fence_of_block_after_one_of_device", "race-global", 2},
      {"case_atomics_of_block", "race-global", 2},
      {"case_arrival_of_cluster", "", 2, 2, 8},
      {"case_arrival_of_block", "race-global", 2, 2},
      {"case_arrival_relaxed", "race-global", 2, 2},
      {"case_wait_of_block", "race-global", 2, 2},
      {"case_plain_load", "", 1, 1, 3, "case_fill_x", true},
      {"case_non_coherent_load", "", 1, 1, 3, "case_fill_x", false},
      {"case_non_coherent_load", "non-coherent", 1, 1, 3, "case_fill_x", true},
      {"case_non_coherent_load_of_own", "non-coherent"},
      {"case_ring", "", 1, 1, 6},
      {"case_ring_read_of_last_turn", "ring"},
      {"case_ring_read_of_nothing", "ring"},
  };
  return cases;
}

std::string NameOf(const std::string& path) {
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? path : path.substr(slash + 1);
}

void RunOne(const Case& test, const HopperCaseParams& params, bool overlaps, LaunchChain* chain,
            const char* kernel) {
  Launch launch;
  launch.kernel = FindKernel(kernel);
  launch.grid = Dim3(test.blocks);
  launch.block = Dim3(128);
  launch.cluster = test.cluster;
  launch.shared_bytes = 32768;
  launch.chain = chain;
  launch.overlaps_previous = overlaps;
  launch.params = &params;
  RunGrid(launch);
}

void Check(const Case& test, const Schedule& schedule) {
  const std::string name = std::string(test.kernel) + ", " + schedule.name;
  const uint32_t elems = 128 * test.blocks;
  DeviceArray<float> y(std::vector<float>(2 * elems));
  DeviceArray<float> x(std::vector<float>(128));
  DeviceArray<uint32_t> counter(std::vector<uint32_t>(2));
  const HopperCaseParams params{y.data(), x.data(), counter.data()};
  Use(schedule);
  LaunchChain chain;
  if (test.before != nullptr) RunOne(test, params, false, &chain, test.before);
  RunOne(test, params, test.overlaps, &chain, test.kernel);
  std::set<std::string> kinds;
  std::string all;
  for (const Finding& finding : Findings()) {
    kinds.insert(finding.kind);
    all += "\n  " + finding.kind + ": " + finding.text;
    Expect(NameOf(finding.where.file) == "hopper_cases.cu", name + ": no place in " + finding.text);
  }
  if (*test.kind != 0) {
    Expect(kinds == std::set<std::string>{test.kind},
           name + ": not " + test.kind + " alone, but" + all);
    return;
  }
  Expect(kinds.empty(), name + ": a false alarm:" + all);
  const std::vector<float> values = y.Read();
  for (uint32_t i = 0; i < elems; ++i) {
    if (values[i] == test.y) continue;
    Expect(false, name + ": y is " + std::to_string(values[i]));
    break;
  }
}

}  // namespace
}  // namespace lowrank::test

int main() {
  for (const auto& test : lowrank::test::Cases()) {
    for (const auto& schedule : lowrank::test::kSchedules) lowrank::test::Check(test, schedule);
  }
  return lowrank::test::Verdict();
}
