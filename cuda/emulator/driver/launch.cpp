#include "cuda/emulator/driver/launch.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <tuple>
#include <utility>

#include "cuda/emulator/driver/json.h"
#include "cuda/emulator/driver/options.h"
#include "native/cuda/driver/driver.h"

namespace lowrank::emu::driver {
namespace {

/// Sums over launches. Keys are what a line is told apart by.
using LineKey = std::tuple<std::string, unsigned, std::string, RequestKind, uint32_t>;
using NameKey = std::pair<std::string, std::string>;

struct Totals {
  std::mutex mutex;
  std::mutex launch_mutex;  // findings and counts of the runtime belong to one launch at a time
  std::string last_report;
  uint64_t launches = 0;
  std::map<std::string, uint64_t> launches_of;
  std::map<LineKey, LineCount> lines;
  std::map<NameKey, uint64_t> names;

  static Totals& Get() {
    static auto* const totals = new Totals;
    return *totals;
  }
};

void WriteLine(const LineCount& line, JsonWriter* json) {
  json->BeginObject()
      .Text("kernel", line.kernel)
      .Text("file", line.where.file)
      .Number("line", line.where.line)
      .Text("kind", ToString(line.kind))
      .Number("bytes_per_lane", line.bytes_per_lane)
      .Number("requests", line.requests)
      .Number("cost", line.cost)
      .Number("ideal", line.ideal)
      .Number("bytes", line.bytes)
      .EndObject();
}

void WriteDim(const char* key, const Dim3& dim, JsonWriter* json) {
  json->Key(key).BeginArray().Number(dim.x).Number(dim.y).Number(dim.z).EndArray();
}

const char* StatusName(LaunchStatus status) {
  switch (status) {
    case LaunchStatus::kOk:
      return "ok";
    case LaunchStatus::kInvalidConfiguration:
      return "invalid-configuration";
    case LaunchStatus::kIllegalAddress:
      return "illegal-address";
    case LaunchStatus::kFinding:
      return "finding";
  }
  return "unknown";
}

int ResultOf(LaunchStatus status) {
  switch (status) {
    case LaunchStatus::kOk:
      return cuda::CUDA_SUCCESS;
    case LaunchStatus::kInvalidConfiguration:
      return cuda::CUDA_ERROR_LAUNCH_FAILED;
    case LaunchStatus::kIllegalAddress:
      return cuda::CUDA_ERROR_ILLEGAL_ADDRESS;
    case LaunchStatus::kFinding:
      break;
  }
  return cuda::CUDA_ERROR_ASSERT;
}

/// One line of JSON in the trace: what was launched and what came of it.
void Trace(const Launch& launch, LaunchStatus status, const std::vector<Finding>& findings,
           const std::vector<LineCount>& lines, const std::vector<NamedCount>& names) {
  const std::string path = CurrentDriverOptions().trace_path;
  if (path.empty()) return;
  JsonWriter json;
  json.BeginObject().Text("kernel", launch.kernel->name);
  WriteDim("grid", launch.grid, &json);
  WriteDim("block", launch.block, &json);
  json.Number("cluster", launch.cluster)
      .Number("overlaps_previous", launch.overlaps_previous ? 1 : 0)
      .Number("shared_bytes", launch.shared_bytes)
      .Number("static_shared_bytes", launch.kernel->static_shared_bytes)
      .Number("param_bytes", launch.kernel->param_bytes)
      .Text("status", StatusName(status));
  json.Key("findings").BeginArray();
  for (const Finding& finding : findings) {
    json.BeginObject()
        .Text("kind", finding.kind)
        .Text("text", finding.text)
        .Text("file", finding.where.file)
        .Number("line", finding.where.line)
        .EndObject();
  }
  json.EndArray().Key("lines").BeginArray();
  for (const LineCount& line : lines) WriteLine(line, &json);
  json.EndArray().Key("counts").BeginObject();
  for (const NamedCount& count : names) json.Key(count.name).Number(count.value);
  json.EndObject().EndObject();
  // Opened for each line: what was launched before a crash is there to be read.
  if (std::FILE* file = std::fopen(path.c_str(), "ae")) {
    std::fprintf(file, "%s\n", json.str().c_str());
    std::fclose(file);
  }
}

/// Notes on addresses in the text that lie in memory which is no longer (or not yet) to be used.
std::string AddressNotes(const std::string& text, Memory* memory) {
  std::string notes;
  for (size_t at = text.find("0x"); at != std::string::npos; at = text.find("0x", at + 2)) {
    const uint64_t address = std::strtoull(text.c_str() + at, nullptr, 16);
    const std::string note = memory->Describe(address);
    if (!note.empty() && notes.find(note) == std::string::npos) notes += "\n  " + note;
  }
  return notes;
}

std::string ReportText(const std::vector<Finding>& findings, Memory* memory) {
  std::string text;
  for (const Finding& finding : findings) {
    if (!text.empty()) text += "\n";
    text += finding.kernel + ": " + finding.kind + ": " + finding.text;
    text += AddressNotes(finding.text, memory);
  }
  return text;
}

void AddTotals(const Launch& launch, const std::vector<LineCount>& lines,
               const std::vector<NamedCount>& names) {
  Totals& totals = Totals::Get();
  const std::lock_guard<std::mutex> lock(totals.mutex);
  ++totals.launches;
  ++totals.launches_of[launch.kernel->name];
  for (const LineCount& line : lines) {
    const LineKey key{line.where.file, line.where.line, line.kernel, line.kind,
                      line.bytes_per_lane};
    const auto [found, added] = totals.lines.try_emplace(key, line);
    if (added) continue;
    found->second.requests += line.requests;
    found->second.cost += line.cost;
    found->second.ideal += line.ideal;
    found->second.bytes += line.bytes;
  }
  for (const NamedCount& count : names) totals.names[{count.kernel, count.name}] += count.value;
}

}  // namespace

OwnedLaunch::OwnedLaunch(const Launch& launch, std::shared_ptr<LaunchChain> chain,
                         std::shared_ptr<Memory> memory)
    : launch_(launch), chain_(std::move(chain)), memory_(std::move(memory)) {
  const size_t bytes = launch.kernel->param_bytes;
  params_.resize((bytes + sizeof(ParamBlock) - 1) / sizeof(ParamBlock));
  if (bytes > 0) std::memcpy(static_cast<void*>(params_.data()), launch.params, bytes);
}

int OwnedLaunch::Run() const {
  Totals& totals = Totals::Get();
  const std::lock_guard<std::mutex> lock(totals.launch_mutex);
  Launch launch = launch_;
  launch.params = params_.data();
  launch.chain = chain_.get();
  ClearFindings();
  ClearCounts();
  const LaunchStatus status = CurrentDriverOptions().run ? RunGrid(launch) : LaunchStatus::kOk;
  const std::vector<Finding> findings = Findings();
  const bool counted = CurrentOptions().counters;
  const auto lines = counted ? LineCounts() : std::vector<LineCount>();
  const auto names = counted ? NamedCounts() : std::vector<NamedCount>();
  AddTotals(launch, lines, names);
  Trace(launch, status, findings, lines, names);
  if (!findings.empty()) {
    const std::string text = ReportText(findings, memory_.get());
    const std::lock_guard<std::mutex> report_lock(totals.mutex);
    totals.last_report = text;
  }
  return ResultOf(status);
}

int ReportCopyFault(const std::string& text) {
  std::fprintf(stderr, "lowrank-emulator: %s\n", text.c_str());
  Totals& totals = Totals::Get();
  const std::lock_guard<std::mutex> lock(totals.mutex);
  totals.last_report = text;
  return cuda::CUDA_ERROR_ILLEGAL_ADDRESS;
}

std::string LastReport() {
  Totals& totals = Totals::Get();
  const std::lock_guard<std::mutex> lock(totals.mutex);
  return totals.last_report;
}

std::string CountersJson() {
  Totals& totals = Totals::Get();
  const std::lock_guard<std::mutex> lock(totals.mutex);
  JsonWriter json;
  json.BeginObject().Number("launches", totals.launches).Key("kernels").BeginArray();
  for (const auto& [kernel, launches] : totals.launches_of) {
    json.BeginObject().Text("kernel", kernel).Number("launches", launches);
    json.Key("counts").BeginObject();
    for (const auto& [key, value] : totals.names) {
      if (key.first == kernel) json.Key(key.second).Number(value);
    }
    json.EndObject().EndObject();
  }
  json.EndArray().Key("lines").BeginArray();
  for (const auto& [key, line] : totals.lines) WriteLine(line, &json);
  json.EndArray().EndObject();
  return json.str();
}

void ResetCounters() {
  Totals& totals = Totals::Get();
  const std::lock_guard<std::mutex> lock(totals.mutex);
  totals.launches = 0;
  totals.launches_of.clear();
  totals.lines.clear();
  totals.names.clear();
  totals.last_report.clear();
}

std::string KernelsJson() {
  std::vector<const Kernel*> kernels = AllKernels();
  std::sort(kernels.begin(), kernels.end(),
            [](const Kernel* a, const Kernel* b) { return std::strcmp(a->name, b->name) < 0; });
  JsonWriter json;
  json.BeginObject().Text("variant", Variant()).Key("kernels").BeginArray();
  for (const Kernel* kernel : kernels) {
    json.BeginObject()
        .Text("name", kernel->name)
        .Number("param_bytes", kernel->param_bytes)
        .Number("max_threads", kernel->max_threads)
        .Number("min_blocks", kernel->min_blocks)
        .Number("static_shared_bytes", kernel->static_shared_bytes)
        .EndObject();
  }
  json.EndArray().EndObject();
  return json.str();
}

}  // namespace lowrank::emu::driver
