#include "native/cuda/driver/fault_injection.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdlib>
#include <string>
#include <vector>

namespace lowrank::cuda {
namespace {

enum Call {
#define LOWRANK_NUMBER(symbol, parameters) k_##symbol,
  LOWRANK_FOR_EACH_CUDA_CALL(LOWRANK_NUMBER)
#undef LOWRANK_NUMBER
      kCallCount
};

constexpr const char* kNames[] = {
#define LOWRANK_NAME(symbol, parameters) #symbol,
    LOWRANK_FOR_EACH_CUDA_CALL(LOWRANK_NAME)
#undef LOWRANK_NAME
};

struct Fault {
  int call = 0;
  int64_t n = 1;
  CUresult code = CUDA_ERROR_UNKNOWN;
  bool sticky = false;
  bool fatal = false;
};

/// Which calls are to fail, and how often each was made. Never destroyed: threads outlive main().
struct State {
  std::vector<Fault> faults;
  std::array<std::atomic<int64_t>, kCallCount> calls{};
  std::atomic<CUresult> fallen{CUDA_SUCCESS};  // after a fatal fault
};

State& TheState() {
  static State* const state = new State();
  return *state;
}

void Log(Call call) {
  const char* path = std::getenv("LOWRANK_CUDA_FAULT_LOG");
  if (path == nullptr) return;
  const int file = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
  if (file < 0) return;
  const std::string line = std::string(kNames[call]) + "\n";
  const ssize_t written = write(file, line.data(), line.size());
  static_cast<void>(written);
  close(file);
}

/// What this call returns instead of running; CUDA_SUCCESS lets it run.
CUresult Next(Call call) {
  State& state = TheState();
  // Error texts stay readable whatever happened.
  const bool text = call == k_cuGetErrorName || call == k_cuGetErrorString;
  const int64_t number = state.calls[call].fetch_add(1) + 1;
  const CUresult fallen = state.fallen.load();
  if (fallen != CUDA_SUCCESS && !text) return fallen;
  for (const Fault& fault : state.faults) {
    if (fault.call != call) continue;
    if (number != fault.n && !((fault.sticky || fault.fatal) && number > fault.n)) continue;
    if (fault.fatal) state.fallen.store(fault.code);
    Log(call);
    return fault.code;
  }
  return CUDA_SUCCESS;
}

/// The functions in the table have no context argument, so each wrapper stores what it wraps.
template <int kPlace, Call kCall, typename Function>
struct Wrapped;
template <int kPlace, Call kCall, typename... Args>
struct Wrapped<kPlace, kCall, CUresult (*)(Args...)> {
  static inline CUresult (*original)(Args...) = nullptr;
  static CUresult Run(Args... args) {
    const CUresult injected = Next(kCall);
    return injected != CUDA_SUCCESS ? injected : original(args...);
  }
};

template <int kPlace>
void Wrap(Driver* driver){
#define LOWRANK_WRAP(symbol, parameters)                             \
  if (driver->symbol != nullptr) {                                   \
    using W = Wrapped<kPlace, k_##symbol, decltype(driver->symbol)>; \
    W::original = driver->symbol;                                    \
    driver->symbol = &W::Run;                                        \
  }
    LOWRANK_FOR_EACH_CUDA_CALL(LOWRANK_WRAP)
#undef LOWRANK_WRAP
}

std::vector<std::string> Split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  size_t begin = 0;
  for (size_t end = text.find(separator); end != std::string::npos;
       end = text.find(separator, begin)) {
    parts.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  parts.push_back(text.substr(begin));
  return parts;
}

Status Misunderstood(const std::string& part) {
  return Refuse(Code::kDevice, "LOWRANK_CUDA_FAULT", "\"" + part + "\"",
                "<call>[:n=<number>][:code=<number>][:sticky][:fatal]", "something else");
}

Status Parse(const std::string& text, std::vector<Fault>* faults) {
  for (const std::string& entry : Split(text, ',')) {
    const std::vector<std::string> parts = Split(entry, ':');
    Fault fault;
    fault.call = kCallCount;
    for (int call = 0; call < kCallCount; ++call) {
      if (parts[0] == kNames[call]) fault.call = call;
    }
    if (fault.call == kCallCount) return Misunderstood(entry);
    for (size_t i = 1; i < parts.size(); ++i) {
      const bool is_n = parts[i].rfind("n=", 0) == 0;
      const bool is_code = parts[i].rfind("code=", 0) == 0;
      if (is_n || is_code) {
        const char* digits = parts[i].c_str() + (is_n ? 2 : 5);
        char* end = nullptr;
        const long value = std::strtol(digits, &end, 10);
        if (end == digits || *end != '\0' || value < 1) return Misunderstood(entry);
        if (is_n) fault.n = value;
        if (is_code) fault.code = static_cast<CUresult>(value);
      } else if (parts[i] == "sticky") {
        fault.sticky = true;
      } else if (parts[i] == "fatal") {
        fault.fatal = true;
      } else {
        return Misunderstood(entry);
      }
    }
    faults->push_back(fault);
  }
  return Status();
}

}  // namespace

Status InjectFaults(Driver* driver, int place) {
  const char* asked = std::getenv("LOWRANK_CUDA_FAULT");
  if (asked == nullptr || asked[0] == '\0') return Status();
  // Never destroyed, like the state.
  static const Status* const parsed = new Status(Parse(asked, &TheState().faults));
  LOWRANK_RETURN_IF_ERROR(*parsed);
  static_assert(kFaultPlaces == 2, "one line for each place");
  if (place == 0) Wrap<0>(driver);
  if (place == 1) Wrap<1>(driver);
  return Status();
}

}  // namespace lowrank::cuda
