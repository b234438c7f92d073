#include "native/core/status.h"

namespace lowrank {

const char* CodeName(Code code) {
  switch (code) {
    case Code::kOk:
      return "OK";
    case Code::kType:
      return "ERR_TYPE";
    case Code::kShape:
      return "ERR_SHAPE";
    case Code::kDtype:
      return "ERR_DTYPE";
    case Code::kDevice:
      return "ERR_DEVICE";
    case Code::kFormat:
      return "ERR_FORMAT";
    case Code::kValue:
      return "ERR_VALUE";
    case Code::kNonFinite:
      return "ERR_NON_FINITE";
    case Code::kDisposed:
      return "ERR_DISPOSED";
    case Code::kAlias:
      return "ERR_ALIAS";
    case Code::kUnsupported:
      return "ERR_UNSUPPORTED";
    case Code::kOom:
      return "ERR_OOM";
    case Code::kCompute:
      return "ERR_COMPUTE";
    case Code::kCancelled:
      return "ERR_CANCELLED";
    case Code::kMemoryBudget:
      return "ERR_MEMORY_BUDGET";
  }
  return "ERR_COMPUTE";
}

Status Status::Bare(Code code, const char* where, const char* what) noexcept {
  try {
    return Status(code, std::string(where) + ": " + what);
  } catch (...) {
    Status status;
    status.code_ = code;
    return status;
  }
}

const std::string& Status::message() const {
  // Never destroyed: a queue thread may outlive the static objects.
  static const std::string* const none = new std::string();
  return message_ ? *message_ : *none;
}

Status Refuse(Code code, const std::string& op, const std::string& operand,
              const std::string& expected, const std::string& actual) {
  return Status(code, op + ": " + operand + " must be " + expected + ", got " + actual);
}

}  // namespace lowrank
