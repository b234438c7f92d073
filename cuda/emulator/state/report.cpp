#include "cuda/emulator/state/report.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <mutex>
#include <set>
#include <tuple>

#include "cuda/emulator/state/scheduler.h"

namespace lowrank::emu {
namespace {

constexpr size_t kMaxFindings = 100;
constexpr size_t kMaxFindingsOfALaunch = 20;

struct Pending {
  std::string kind;
  std::string text;
  Site site;
  Site other;
};

struct State {
  std::mutex mutex;
  std::vector<Pending> pending;
  size_t pending_total = 0;
  std::set<std::tuple<std::string, uint64_t, uint64_t>> seen;  // of this launch
  std::vector<Finding> findings;
  size_t total = 0;
};

State& Get() {
  static auto* state = new State;
  return *state;
}

void Add(const char* kind, Site site, Site other, const char* format, va_list arguments) {
  char text[1200];
  std::vsnprintf(text, sizeof(text), format, arguments);
  std::string full = text;
  if (current != nullptr) {
    const Dim3& block = current->block->block_idx;
    const Dim3& thread = current->thread_idx;
    char who[120];
    std::snprintf(who, sizeof(who), ": block (%u, %u, %u) thread (%u, %u, %u)", block.x, block.y,
                  block.z, thread.x, thread.y, thread.z);
    full += who;
  }
  State& state = Get();
  const std::lock_guard<std::mutex> lock(state.mutex);
  if (!state.seen.emplace(kind, site.bits, other.bits).second) return;
  ++state.pending_total;
  if (state.pending.size() < kMaxFindingsOfALaunch) {
    state.pending.push_back({kind, std::move(full), site, other});
  }
}

}  // namespace

void Report(const char* kind, Site site, Site other, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  Add(kind, site, other, format, arguments);
  va_end(arguments);
}

void Fail(const char* kind, Site site, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  Add(kind, site, Site(), format, arguments);
  va_end(arguments);
  worker->Abandon();
}

bool FlushFindings(const char* kernel) {
  State& state = Get();
  const std::lock_guard<std::mutex> lock(state.mutex);
  state.seen.clear();
  if (state.pending_total == 0) return false;
  const Options& options = CurrentOptions();
  std::FILE* file =
      options.report_path.empty() ? nullptr : std::fopen(options.report_path.c_str(), "a");
  std::vector<Site> sites;
  for (const Pending& pending : state.pending) {
    sites.push_back(pending.site);
    sites.push_back(pending.other);
  }
  ResolveAll(sites);
  for (Pending& pending : state.pending) {
    Finding finding;
    finding.kind = std::move(pending.kind);
    finding.text = std::move(pending.text);
    finding.kernel = kernel;
    if (pending.site.bits != 0) {
      finding.where = Resolve(pending.site);
      finding.text += " at " + ToString(pending.site);
    }
    if (pending.other.bits != 0) finding.text += " (other: " + ToString(pending.other) + ")";
    const std::string line =
        "lowrank emulator: " + finding.kind + " in " + finding.kernel + ": " + finding.text + "\n";
    if (options.print) std::fputs(line.c_str(), stderr);
    if (file != nullptr) std::fputs(line.c_str(), file);
    if (state.findings.size() < kMaxFindings) state.findings.push_back(std::move(finding));
  }
  if (state.pending_total > state.pending.size() && options.print) {
    std::fprintf(stderr, "lowrank emulator: %zu more findings in %s\n",
                 state.pending_total - state.pending.size(), kernel);
  }
  if (file != nullptr) std::fclose(file);
  state.total += state.pending_total;
  state.pending.clear();
  state.pending_total = 0;
  return true;
}

std::vector<Finding> Findings() {
  State& state = Get();
  const std::lock_guard<std::mutex> lock(state.mutex);
  return state.findings;
}

size_t FindingCount() {
  State& state = Get();
  const std::lock_guard<std::mutex> lock(state.mutex);
  return state.total;
}

void ClearFindings() {
  State& state = Get();
  const std::lock_guard<std::mutex> lock(state.mutex);
  state.findings.clear();
  state.total = 0;
}

}  // namespace lowrank::emu
