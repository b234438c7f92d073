#include "native/cpu/usable_cores.h"

#if defined(__linux__)
#include <sched.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <thread>
#include <vector>

namespace lowrank::cpu {
namespace {

constexpr double kNoQuota = std::numeric_limits<double>::infinity();

/// Number of cores in this thread's affinity mask.
int AllowedCores() {
#if defined(__linux__)
  // The kernel rejects a mask that is shorter than its own.
  for (int cores = CPU_SETSIZE; cores <= 1 << 16; cores *= 2) {
    cpu_set_t* const mask = CPU_ALLOC(static_cast<size_t>(cores));
    if (mask == nullptr) break;
    const size_t bytes = CPU_ALLOC_SIZE(static_cast<size_t>(cores));
    const bool known = sched_getaffinity(0, bytes, mask) == 0;
    const int count = known ? CPU_COUNT_S(bytes, mask) : 0;
    CPU_FREE(mask);
    if (known) return count;
  }
#endif
  return static_cast<int>(std::thread::hardware_concurrency());
}

/// The first two words of a file, or fewer if it has fewer.
std::vector<std::string> Words(const std::string& path) {
  std::vector<std::string> words;
  std::ifstream file(path);
  for (std::string word; words.size() < 2 && file >> word;) words.push_back(word);
  return words;
}

/// Cores of a quota and a period in microseconds; "max" and -1 mean no quota.
double Share(const std::string& quota, const std::string& period) {
  const double share_us = std::strtod(quota.c_str(), nullptr);
  const double period_us = std::strtod(period.c_str(), nullptr);
  return share_us > 0 && period_us > 0 ? share_us / period_us : kNoQuota;
}

double QuotaOfGroup(const std::string& folder, bool unified) {
  if (unified) {
    const auto words = Words(folder + "/cpu.max");
    return words.size() == 2 ? Share(words[0], words[1]) : kNoQuota;
  }
  const auto quota = Words(folder + "/cpu.cfs_quota_us");
  const auto period = Words(folder + "/cpu.cfs_period_us");
  return quota.empty() || period.empty() ? kNoQuota : Share(quota[0], period[0]);
}

/// The smallest quota of the group and its ancestors. If a container does not see its own path, the
/// mount's top is its group.
double LeastQuota(const std::string& mount, std::string group, bool unified) {
  double least = QuotaOfGroup(mount, unified);
  while (group.size() > 1) {
    least = std::min(least, QuotaOfGroup(mount + group, unified));
    group.resize(group.rfind('/'));
  }
  return least;
}

/// Does a list such as "cpu,cpuacct" contain the controller `cpu`?
bool NamesCpu(const std::string& controllers) {
  return ("," + controllers + ",").find(",cpu,") != std::string::npos;
}

double QuotaOfProcess(const std::string& root) {
  double least = kNoQuota;
  std::ifstream groups(root + "/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    // "0::/path" of v2, "4:cpu,cpuacct:/path" of v1.
    const size_t first = line.find(':');
    const size_t second = first == line.npos ? line.npos : line.find(':', first + 1);
    if (second == line.npos || second + 1 >= line.size() || line[second + 1] != '/') continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const std::string group = line.substr(second + 1);
    const std::string mounts = root + "/sys/fs/cgroup";
    if (controllers.empty()) {
      // With v1, the unified tree is in a separate folder, without this controller.
      least = std::min(least, LeastQuota(mounts, group, true));
    } else if (NamesCpu(controllers)) {
      least = std::min(least, LeastQuota(mounts + "/cpu", group, false));
      if (controllers != "cpu") {
        least = std::min(least, LeastQuota(mounts + "/" + controllers, group, false));
      }
    }
  }
  return least;
}

}  // namespace

int UsableCores(const std::string& root) {
  const double quota = QuotaOfProcess(root);
  const int allowed = AllowedCores();
  const int cores = quota < allowed ? static_cast<int>(std::floor(quota)) : allowed;
  return std::max(cores, 1);
}

}  // namespace lowrank::cpu
