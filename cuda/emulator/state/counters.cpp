#include "cuda/emulator/state/counters.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>
#include <tuple>
#include <unordered_map>

#include "cuda/emulator/state/report.h"
#include "cuda/emulator/state/scheduler.h"

namespace lowrank::emu {
namespace {

constexpr uint32_t kBanks = 32;  // of 4 bytes
constexpr uint32_t kSector = 32;

struct Cost {
  uint64_t requests = 0;
  uint64_t cost = 0;
  uint64_t ideal = 0;
  uint64_t bytes = 0;
};

struct LineKey {
  const char* kernel;
  uint64_t site;
  RequestKind kind;
  uint32_t bytes;
  bool operator==(const LineKey& other) const {
    return kernel == other.kernel && site == other.site && kind == other.kind &&
           bytes == other.bytes;
  }
};
struct LineKeyHash {
  size_t operator()(const LineKey& key) const {
    return static_cast<size_t>((key.site * 31 + static_cast<uint64_t>(key.kind)) * 31 + key.bytes) ^
           reinterpret_cast<uintptr_t>(key.kernel);
  }
};

struct State {
  std::mutex mutex;
  std::unordered_map<LineKey, Cost, LineKeyHash> lines;
  std::map<std::pair<std::string, std::string>, uint64_t> named;
};

State& Get() {
  static auto* state = new State;
  return *state;
}

bool IsSharedKind(RequestKind kind) {
  switch (kind) {
    case RequestKind::kLoadGlobal:
    case RequestKind::kStoreGlobal:
    case RequestKind::kAtomicGlobal:
    case RequestKind::kCopyFromGlobal:
      return false;
    default:
      return true;
  }
}

/// Different words of one transaction: the busiest bank, and how many words there are.
void BankLoad(const LaneAccess* lanes, int count, uint32_t* busiest, uint32_t* words) {
  std::vector<uintptr_t> seen;
  for (int i = 0; i < count; ++i) {
    if (lanes[i].bytes == 0) continue;
    const uintptr_t last = (lanes[i].address + lanes[i].bytes - 1) / 4;
    for (uintptr_t word = lanes[i].address / 4; word <= last; ++word) seen.push_back(word);
  }
  std::sort(seen.begin(), seen.end());
  seen.erase(std::unique(seen.begin(), seen.end()), seen.end());
  uint32_t load[kBanks] = {};
  *busiest = 0;
  for (const uintptr_t word : seen) *busiest = std::max(*busiest, ++load[word % kBanks]);
  *words = static_cast<uint32_t>(seen.size());
}

/// Do lanes i and i xor `distance` read the same address wherever both take part?
bool Pairwise(const LaneAccess* lanes, int count, int distance) {
  for (int i = 0; i < count; ++i) {
    const int other = i ^ distance;
    if (other >= count || lanes[i].bytes == 0 || lanes[other].bytes == 0) continue;
    if (lanes[i].address != lanes[other].address) return false;
  }
  return true;
}

void AddTransaction(const LaneAccess* lanes, int count, uint32_t* cost, uint32_t* ideal) {
  uint32_t busiest;
  uint32_t words;
  BankLoad(lanes, count, &busiest, &words);
  *cost += busiest;
  *ideal += (words + kBanks - 1) / kBanks;
}

}  // namespace

/// A request of 4 bytes a lane is one transaction; of 8, one for each half warp; of 16, one for
/// each quarter. Two neighbours become one where all their lanes share addresses in pairs.
void SharedCost(uint32_t bytes_per_lane, const LaneAccess* lanes, int count, uint32_t* cost,
                uint32_t* ideal) {
  *cost = 0;
  *ideal = 0;
  const int per = bytes_per_lane >= 16 ? 8 : bytes_per_lane == 8 ? 16 : 32;
  for (int at = 0; at < count;) {
    const int both = std::min(count - at, 2 * per);
    if (per < 32 && both == 2 * per &&
        (Pairwise(lanes + at, both, 1) || Pairwise(lanes + at, both, 2))) {
      AddTransaction(lanes + at, both, cost, ideal);
      at += both;
      continue;
    }
    // A pair starts at an even quarter or half.
    for (int half = 0; half < 2 && at < count; ++half) {
      const int here = std::min(count - at, per);
      AddTransaction(lanes + at, here, cost, ideal);
      at += here;
    }
  }
}

void GlobalCost(const LaneAccess* lanes, int count, uint32_t* cost, uint32_t* ideal) {
  std::vector<std::pair<uintptr_t, uintptr_t>> ranges;
  std::vector<uintptr_t> sectors;
  for (int i = 0; i < count; ++i) {
    if (lanes[i].bytes == 0) continue;
    const uintptr_t end = lanes[i].address + lanes[i].bytes;
    ranges.emplace_back(lanes[i].address, end);
    for (uintptr_t sector = lanes[i].address / kSector; sector <= (end - 1) / kSector; ++sector) {
      sectors.push_back(sector);
    }
  }
  std::sort(sectors.begin(), sectors.end());
  *cost = static_cast<uint32_t>(std::unique(sectors.begin(), sectors.end()) - sectors.begin());
  std::sort(ranges.begin(), ranges.end());
  uint64_t bytes = 0;
  uintptr_t covered = 0;
  for (const auto& [begin, end] : ranges) {
    const uintptr_t from = std::max(begin, covered);
    if (end > from) bytes += end - from;
    covered = std::max(covered, end);
  }
  *ideal = static_cast<uint32_t>((bytes + kSector - 1) / kSector);
}

void CountRequest(RequestKind kind, uint32_t bytes_per_lane, const LaneAccess* lanes, int count,
                  Site site) {
  if (running == nullptr || !running->counters) return;
  uint32_t cost;
  uint32_t ideal;
  if (IsSharedKind(kind)) {
    SharedCost(bytes_per_lane, lanes, count, &cost, &ideal);
  } else {
    GlobalCost(lanes, count, &cost, &ideal);
  }
  uint64_t bytes = 0;
  for (int i = 0; i < count; ++i) bytes += lanes[i].bytes;
  State& state = Get();
  const std::lock_guard<std::mutex> lock(state.mutex);
  Cost& line = state.lines[{running->launch->kernel->name, site.bits, kind, bytes_per_lane}];
  ++line.requests;
  line.cost += cost;
  line.ideal += ideal;
  line.bytes += bytes;
}

void LogAccess(const void* ptr, uint32_t bytes, RequestKind kind, Site site) {
  CurrentFiber()->log.push_back(
      {site, reinterpret_cast<uintptr_t>(ptr), static_cast<uint16_t>(bytes), kind});
}

void FlushLogs(BlockState* block, Warp* warp) {
  const uint32_t lanes = std::min(kWarpSize, block->threads - warp->index * kWarpSize);
  const std::vector<LoggedAccess>& first = warp->lanes[0].log;
  bool same = true;
  bool any = false;
  for (uint32_t lane = 0; lane < lanes; ++lane) {
    const std::vector<LoggedAccess>& log = warp->lanes[lane].log;
    any = any || !log.empty();
    same = same && log.size() == first.size() &&
           std::equal(log.begin(), log.end(), first.begin(),
                      [](const LoggedAccess& a, const LoggedAccess& b) {
                        return a.site == b.site && a.kind == b.kind;
                      });
  }
  if (!any) return;
  const auto count = static_cast<int>(lanes);
  LaneAccess request[kWarpSize];
  if (same) {
    for (size_t i = 0; i < first.size(); ++i) {
      uint32_t widest = 0;
      for (uint32_t lane = 0; lane < lanes; ++lane) {
        const LoggedAccess& access = warp->lanes[lane].log[i];
        request[lane] = {access.address, access.bytes};
        widest = std::max<uint32_t>(widest, access.bytes);
      }
      CountRequest(first[i].kind, widest, request, count, first[i].site);
    }
  } else {
    struct Group {
      LoggedAccess access;
      LaneAccess lanes[kWarpSize];
    };
    std::map<std::tuple<uint64_t, RequestKind, size_t>, Group> groups;
    for (uint32_t lane = 0; lane < lanes; ++lane) {
      std::map<std::pair<uint64_t, RequestKind>, size_t> turns;
      for (const LoggedAccess& access : warp->lanes[lane].log) {
        const size_t turn = turns[{access.site.bits, access.kind}]++;
        auto [group, is_new] = groups.try_emplace({access.site.bits, access.kind, turn});
        if (is_new) {
          group->second.access = access;
          std::memset(group->second.lanes, 0, sizeof(group->second.lanes));
        }
        group->second.access.bytes = std::max(group->second.access.bytes, access.bytes);
        group->second.lanes[lane] = {access.address, access.bytes};
      }
    }
    for (const auto& [key, group] : groups) {
      CountRequest(group.access.kind, group.access.bytes, group.lanes, count, group.access.site);
    }
  }
  for (uint32_t lane = 0; lane < lanes; ++lane) warp->lanes[lane].log.clear();
}

void Count(const char* name, uint64_t n) {
  if (running == nullptr || !running->counters) return;
  State& state = Get();
  const std::lock_guard<std::mutex> lock(state.mutex);
  state.named[{running->launch->kernel->name, name}] += n;
}

const char* ToString(RequestKind kind) {
  switch (kind) {
    case RequestKind::kLoadShared:
      return "ld.shared";
    case RequestKind::kStoreShared:
      return "st.shared";
    case RequestKind::kLoadGlobal:
      return "ld.global";
    case RequestKind::kStoreGlobal:
      return "st.global";
    case RequestKind::kAtomicShared:
      return "atom.shared";
    case RequestKind::kAtomicGlobal:
      return "atom.global";
    case RequestKind::kLdMatrix:
      return "ldmatrix";
    case RequestKind::kStMatrix:
      return "stmatrix";
    case RequestKind::kCopyToShared:
      return "cp.async to shared";
    case RequestKind::kCopyFromGlobal:
      return "cp.async from global";
  }
  return "";
}

std::vector<LineCount> LineCounts() {
  State& state = Get();
  const std::lock_guard<std::mutex> lock(state.mutex);
  std::vector<Site> sites;
  for (const auto& [key, cost] : state.lines) sites.push_back(Site{key.site});
  ResolveAll(sites);
  // Inlining gives one line several addresses: they are one row.
  std::map<std::tuple<std::string, std::string, unsigned, RequestKind, uint32_t>, Cost> rows;
  for (const auto& [key, cost] : state.lines) {
    const Site site{key.site};
    SourceLine where = Resolve(site);
    if (where.file.empty()) where.file = ToString(site);
    Cost& row = rows[{key.kernel, where.file, where.line, key.kind, key.bytes}];
    row.requests += cost.requests;
    row.cost += cost.cost;
    row.ideal += cost.ideal;
    row.bytes += cost.bytes;
  }
  std::vector<LineCount> result;
  for (const auto& [key, cost] : rows) {
    LineCount line;
    line.kernel = std::get<0>(key);
    line.where = {std::get<1>(key), std::get<2>(key)};
    line.kind = std::get<3>(key);
    line.bytes_per_lane = std::get<4>(key);
    line.requests = cost.requests;
    line.cost = cost.cost;
    line.ideal = cost.ideal;
    line.bytes = cost.bytes;
    result.push_back(std::move(line));
  }
  return result;
}

std::vector<NamedCount> NamedCounts() {
  State& state = Get();
  const std::lock_guard<std::mutex> lock(state.mutex);
  std::vector<NamedCount> result;
  for (const auto& [key, value] : state.named) result.push_back({key.first, key.second, value});
  return result;
}

void ClearCounts() {
  State& state = Get();
  const std::lock_guard<std::mutex> lock(state.mutex);
  state.lines.clear();
  state.named.clear();
}

}  // namespace lowrank::emu
