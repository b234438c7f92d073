#include "native/cuda/driver/library.h"

#include <dlfcn.h>
#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>

#include "native/cuda/driver/fault_injection.h"

namespace lowrank::cuda {
namespace {

/// Some drivers take half a minute to wake up many GPUs.
constexpr std::chrono::seconds kOpenTimeout{60};

/// The value of an environment variable; empty if it is not set.
std::string Environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

Status Absent(const std::string& what) { return Status(Code::kDevice, what); }

std::string TooOld(int version) {
  return "the driver supports CUDA " + VersionText(version) + ", CUDA " +
         VersionText(kNeededVersion) + " or later is needed: install a newer NVIDIA driver";
}

/// Why cuInit failed, and what to do about it.
std::string InitFailure(const Driver& driver, CUresult error) {
  const std::string text = "the driver did not start: " + ErrorText(driver, error);
  switch (error) {
    case CUDA_ERROR_NO_DEVICE:
      return "no CUDA device: the driver is installed but finds no GPU (or CUDA_VISIBLE_DEVICES "
             "hides it)";
    case CUDA_ERROR_STUB_LIBRARY:
      return text + ": this libcuda is the toolkit's stub; the driver itself is not installed";
    case CUDA_ERROR_INSUFFICIENT_DRIVER:
    case CUDA_ERROR_SYSTEM_DRIVER_MISMATCH:
      return text +
             ": libcuda and the kernel module have different versions; the older one must be "
             "replaced (after an update of the driver, restart the machine)";
    case CUDA_ERROR_OUT_OF_MEMORY:
      return text + ": out of memory at start";
    default:
      return text;
  }
}

/// Fills the table and initialises. A call may be missing because the driver is old, so its version
/// is reported first.
Status Fill(void* handle, int fault_place, Library* library) {
  Driver& driver = library->driver;
  std::string missing;
#define LOWRANK_LOOK_UP(symbol, parameters)                                          \
  driver.symbol = reinterpret_cast<decltype(driver.symbol)>(dlsym(handle, #symbol)); \
  if (driver.symbol == nullptr && missing.empty()) missing = #symbol;
  LOWRANK_FOR_EACH_CUDA_CALL(LOWRANK_LOOK_UP)
#undef LOWRANK_LOOK_UP
  library->last_report =
      reinterpret_cast<const char* (*)()>(dlsym(handle, "lowrankEmulatorLastReport"));
  if (driver.cuInit == nullptr || driver.cuDriverGetVersion == nullptr ||
      driver.cuGetErrorName == nullptr || driver.cuGetErrorString == nullptr) {
    return Absent(library->path + " is not a CUDA driver: it lacks " + missing);
  }
  LOWRANK_RETURN_IF_ERROR(InjectFaults(&driver, fault_place));
  const CUresult error = driver.cuInit(0);
  if (error != CUDA_SUCCESS) {
    const Code code = error == CUDA_ERROR_OUT_OF_MEMORY ? Code::kOom : Code::kDevice;
    return Status(code, InitFailure(driver, error));
  }
  const CUresult asked = driver.cuDriverGetVersion(&library->version);
  if (asked != CUDA_SUCCESS) {
    const Code code = asked == CUDA_ERROR_OUT_OF_MEMORY ? Code::kOom : Code::kDevice;
    return Status(code, "the driver does not report its version: " + ErrorText(driver, asked));
  }
  if (library->version < kNeededVersion) return Absent(TooOld(library->version));
  if (missing.empty()) return Status();
  return Absent(library->path + " lacks " + missing + ", which every driver of CUDA " +
                VersionText(kNeededVersion) + " has");
}

/// dlerror() without the file name that it begins with.
std::string LoaderText() {
  const char* text = dlerror();
  return text == nullptr ? "unknown reason" : text;
}

}  // namespace

std::string VersionText(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

std::string ErrorText(const Driver& driver, CUresult error) {
  const char* name = nullptr;
  const char* text = nullptr;
  if (driver.cuGetErrorName != nullptr) driver.cuGetErrorName(error, &name);
  if (driver.cuGetErrorString != nullptr) driver.cuGetErrorString(error, &text);
  return std::string(text == nullptr ? "error" : text) + " (" +
         (name == nullptr ? "CUresult" : name) + ", " + std::to_string(error) + ")";
}

bool IsFatal(CUresult error) {
  switch (error) {
    case CUDA_ERROR_DEINITIALIZED:
    case CUDA_ERROR_ECC_UNCORRECTABLE:
    case CUDA_ERROR_ILLEGAL_ADDRESS:
    case CUDA_ERROR_LAUNCH_TIMEOUT:
    case CUDA_ERROR_CONTEXT_IS_DESTROYED:
    case CUDA_ERROR_ASSERT:
    case CUDA_ERROR_HARDWARE_STACK_ERROR:
    case CUDA_ERROR_ILLEGAL_INSTRUCTION:
    case CUDA_ERROR_MISALIGNED_ADDRESS:
    case CUDA_ERROR_INVALID_ADDRESS_SPACE:
    case CUDA_ERROR_INVALID_PC:
    case CUDA_ERROR_LAUNCH_FAILED:
      return true;
    default:
      return false;
  }
}

std::string BesideThis(const std::string& file) {
  Dl_info here;
  if (dladdr(reinterpret_cast<const void*>(&VersionText), &here) == 0 ||
      here.dli_fname == nullptr) {
    return file;
  }
  const std::string path = here.dli_fname;
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? file : path.substr(0, slash + 1) + file;
}

namespace {

Status OpenAndFill(Library* library) {
  const std::string given = Environment("LOWRANK_CUDA_LIBRARY");
  // WSL keeps the driver where the loader does not look.
  const char* const usual[] = {"libcuda.so.1", "/usr/lib/wsl/lib/libcuda.so.1"};
  void* handle = nullptr;
  std::string reason;
  if (!given.empty()) {
    library->path = given;
    handle = dlopen(given.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) reason = LoaderText();
  } else {
    for (const char* path : usual) {
      library->path = path;
      handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
      if (handle != nullptr) break;
      const std::string text = LoaderText();
      if (reason.empty()) reason = text;
    }
  }
  if (handle == nullptr) {
    return Absent("no CUDA driver: " + reason + "; an NVIDIA driver with CUDA " +
                  VersionText(kNeededVersion) + " or later is needed");
  }
  return Fill(handle, 0, library);
}

/// Shared between the thread that opens the driver, and may never return, and the one that waits.
struct Opening {
  std::mutex mutex;
  std::condition_variable ready;
  bool done = false;
  Status status;
  Library library;
};

Status ReadTimeout(std::chrono::seconds* timeout) {
  const std::string given = Environment("LOWRANK_CUDA_TIMEOUT");
  *timeout = kOpenTimeout;
  if (given.empty()) return Status();
  if (given.size() > 6 || given.find_first_not_of("0123456789") != given.npos || given[0] == '0') {
    return Refuse(Code::kDevice, "LOWRANK_CUDA_TIMEOUT", "the time to wait for the driver",
                  "whole seconds, 1 to 999999", "\"" + given + "\"");
  }
  *timeout = std::chrono::seconds(std::atoi(given.c_str()));
  return Status();
}

}  // namespace

// On its own thread: if the driver hangs because its kernel module does, the program must not hang
// too.
Status OpenSystemDriver(Library* library) {
  std::chrono::seconds timeout;
  LOWRANK_RETURN_IF_ERROR(ReadTimeout(&timeout));
  const auto opening = std::make_shared<Opening>();
  try {
    std::thread([opening] {
      Library opened;
      const Status status = OpenAndFill(&opened);
      const std::lock_guard<std::mutex> lock(opening->mutex);
      opening->library = opened;
      opening->status = status;
      opening->done = true;
      opening->ready.notify_all();
    }).detach();
  } catch (const std::system_error&) {
    return Status(Code::kOom, "the system cannot create a thread to start the CUDA driver on");
  }
  std::unique_lock<std::mutex> lock(opening->mutex);
  if (!opening->ready.wait_for(lock, timeout, [&] { return opening->done; })) {
    return Absent("the CUDA driver did not start within " + std::to_string(timeout.count()) +
                  " s (LOWRANK_CUDA_TIMEOUT changes this limit): cuInit hangs; look at dmesg and "
                  "nvidia-smi");
  }
  *library = opening->library;
  return opening->status;
}

Status EmulatorPath(std::string* path) {
  const std::string variant = Environment("LOWRANK_EMULATOR");
  if (variant.find('/') != std::string::npos) {
    *path = variant;
  } else if (variant.empty() || variant == "source") {
    *path = BesideThis("lowrank-emulator.so");
  } else if (variant == "check" || variant == "ptx") {
    *path = BesideThis("lowrank-emulator-" + variant + ".so");
  } else {
    return Absent("LOWRANK_EMULATOR must be source, check, ptx or a path, got \"" + variant + "\"");
  }
  if (access(path->c_str(), R_OK) != 0) {
    return Absent("the emulator was not built (npm run build:emulator): no file " + *path);
  }
  return Status();
}

Status OpenEmulator(const std::string& path, Library* library) {
  library->path = path;
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) return Absent("the emulator cannot be loaded: " + LoaderText());
  return Fill(handle, 1, library);
}

}  // namespace lowrank::cuda
