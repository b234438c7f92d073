/// From sites to file and line.
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>

#include "cuda/emulator/runtime.h"

namespace lowrank::emu {
namespace {

/// "file:line" of an address, asked of binutils' addr2line; nothing where it is not installed or
/// the object has no line table.
SourceLine AskAddr2line(const void* return_address) {
  SourceLine line;
  // The instruction before: the call itself.
  const auto address = reinterpret_cast<uintptr_t>(return_address) - 1;
  Dl_info info{};
  if (dladdr(reinterpret_cast<const void*>(address), &info) == 0 || info.dli_fname == nullptr) {
    return line;
  }
  auto base = reinterpret_cast<uintptr_t>(info.dli_fbase);
  constexpr uintptr_t kFixedExecutable = 0x400000;
  if (base == kFixedExecutable) base = 0;
  std::string object = info.dli_fname;
  if (object.find('\'') != std::string::npos) return line;
  // A program's own name is as it was called, which need not be a path.
  if (object.find('/') == std::string::npos) object = "/proc/self/exe";
  char command[4400];
  const int length = std::snprintf(command, sizeof(command), "addr2line -e '%s' 0x%llx 2>/dev/null",
                                   object.c_str(), static_cast<unsigned long long>(address - base));
  if (length < 0 || static_cast<size_t>(length) >= sizeof(command)) return line;
  std::FILE* pipe = popen(command, "r");
  if (pipe == nullptr) return line;
  char text[4400];
  if (std::fgets(text, sizeof(text), pipe) != nullptr) {
    const std::string answer = text;
    const size_t colon = answer.rfind(':');
    if (colon != std::string::npos && answer.compare(0, 2, "??") != 0) {
      line.file = answer.substr(0, colon);
      line.line = static_cast<unsigned>(std::strtoul(answer.c_str() + colon + 1, nullptr, 10));
    }
  }
  pclose(pipe);
  return line;
}

}  // namespace

SourceLine Resolve(Site site) {
  if (site.bits == 0) return SourceLine();
  if (site.line() != 0) return {static_cast<const char*>(site.pointer()), site.line()};
  static std::mutex mutex;
  static auto* known = new std::map<uint64_t, SourceLine>;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known->find(site.bits);
  if (found != known->end()) return found->second;
  return (*known)[site.bits] = AskAddr2line(site.pointer());
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
