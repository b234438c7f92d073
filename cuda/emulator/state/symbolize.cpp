/// From sites to file and line.
#include <dlfcn.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>

#include "cuda/emulator/runtime.h"
#include "cuda/emulator/state/report.h"

namespace lowrank::emu {
namespace {

/// Addresses of one process's command line.
constexpr size_t kAddressesAtOnce = 400;

struct KnownLines {
  std::mutex mutex;
  std::map<uint64_t, SourceLine> lines;
};

KnownLines& Lines() {
  static auto* known = new KnownLines;
  return *known;
}

SourceLine Parse(const std::string& answer) {
  SourceLine line;
  const size_t colon = answer.rfind(':');
  if (colon == std::string::npos || answer.compare(0, 2, "??") == 0) return line;
  line.line = static_cast<unsigned>(std::strtoul(answer.c_str() + colon + 1, nullptr, 10));
  if (line.line != 0) line.file = answer.substr(0, colon);
  return line;
}

struct Address {
  uint64_t bits;
  uintptr_t offset;  // in its object
};

/// Asks binutils' addr2line; answers stay empty where it is not installed or the object has no line
/// table. A process for each address would take as long as reading the line table does.
void AskAddr2line(const std::string& object, const Address* addresses, size_t count,
                  std::map<uint64_t, SourceLine>* lines) {
  std::string command = "addr2line -e '" + object + "'";
  for (size_t i = 0; i < count; ++i) {
    char text[24];
    std::snprintf(text, sizeof(text), " 0x%zx", static_cast<size_t>(addresses[i].offset));
    command += text;
    (*lines)[addresses[i].bits] = SourceLine();
  }
  command += " 2>/dev/null";
  std::FILE* pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) return;
  char text[4400];
  for (size_t i = 0; i < count && std::fgets(text, sizeof(text), pipe) != nullptr; ++i) {
    (*lines)[addresses[i].bits] = Parse(text);
  }
  pclose(pipe);
}

}  // namespace

void ResolveAll(const std::vector<Site>& sites) {
  KnownLines& known = Lines();
  const std::lock_guard<std::mutex> lock(known.mutex);
  std::map<std::string, std::vector<Address>> objects;
  for (const Site site : sites) {
    if (site.bits == 0 || site.line() != 0 || known.lines.count(site.bits) != 0) continue;
    // The instruction before: the call itself.
    const auto address = reinterpret_cast<uintptr_t>(site.pointer()) - 1;
    Dl_info info{};
    if (dladdr(reinterpret_cast<const void*>(address), &info) == 0 || info.dli_fname == nullptr) {
      continue;
    }
    auto base = reinterpret_cast<uintptr_t>(info.dli_fbase);
    constexpr uintptr_t kFixedExecutable = 0x400000;
    if (base == kFixedExecutable) base = 0;
    std::string object = info.dli_fname;
    if (object.find('\'') != std::string::npos) continue;
    // A program's own name is as it was called, which need not be a path.
    if (object.find('/') == std::string::npos)
      object = "/proc/" + std::to_string(getpid()) + "/exe";
    objects[object].push_back({site.bits, address - base});
  }
  for (const auto& [object, addresses] : objects) {
    for (size_t at = 0; at < addresses.size(); at += kAddressesAtOnce) {
      AskAddr2line(object, addresses.data() + at, std::min(kAddressesAtOnce, addresses.size() - at),
                   &known.lines);
    }
  }
}

SourceLine Resolve(Site site) {
  if (site.bits == 0) return SourceLine();
  if (site.line() != 0) return {static_cast<const char*>(site.pointer()), site.line()};
  ResolveAll({site});
  KnownLines& known = Lines();
  const std::lock_guard<std::mutex> lock(known.mutex);
  const auto found = known.lines.find(site.bits);
  return found == known.lines.end() ? SourceLine() : found->second;
}

std::string ToString(Site site) {
  const SourceLine line = Resolve(site);
  if (!line.file.empty()) return line.file + ":" + std::to_string(line.line);
  if (site.bits == 0) return "an unknown place";
  char text[400];
  Dl_info info{};
  const auto address = reinterpret_cast<uintptr_t>(site.pointer());
  if (dladdr(site.pointer(), &info) != 0 && info.dli_fname != nullptr) {
    std::snprintf(text, sizeof(text), "%s+0x%zx", info.dli_fname,
                  static_cast<size_t>(address - reinterpret_cast<uintptr_t>(info.dli_fbase)));
  } else {
    std::snprintf(text, sizeof(text), "0x%zx", static_cast<size_t>(address));
  }
  return text;
}

}  // namespace lowrank::emu
