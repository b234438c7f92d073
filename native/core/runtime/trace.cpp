#include "native/core/runtime/trace.h"

#include <unistd.h>

#include <cstdlib>
#include <cstring>

namespace lowrank {

bool TraceEnabled() {
  static const bool enabled = [] {
    const char* value = std::getenv("LOWRANK_TRACE");
    return value != nullptr && value[0] != '\0' && std::strcmp(value, "0") != 0;
  }();
  return enabled;
}

void TraceOp(const char* device, const std::string& description, double microseconds) {
  const std::string line = std::string("lowrank ") + device + " " + description + " " +
                           std::to_string(microseconds) + " us\n";
  // A single write, so that lines of several threads do not mix. A lost trace line is not an error.
  const ssize_t written = write(STDERR_FILENO, line.data(), line.size());
  static_cast<void>(written);
}

}  // namespace lowrank
