/// The outcome of every call below the addon: a code and, for a failure, one sentence for the user.
#pragma once

#include <string>
#include <utility>

namespace lowrank {

/// Mirrors `ErrorCode` in lib/core/errors.ts; CodeName gives the spelling used there.
enum class Code {
  kOk,
  kType,
  kShape,
  kDtype,
  kDevice,
  kFormat,
  kValue,
  kNonFinite,
  kDisposed,
  kAlias,
  kUnsupported,
  kOom,
  kCompute,
  kCancelled,
};

const char* CodeName(Code code);

class Status {
 public:
  Status() = default;
  Status(Code code, std::string message) : code_(code), message_(std::move(message)) {}

  bool ok() const { return code_ == Code::kOk; }
  Code code() const { return code_; }
  const std::string& message() const { return message_; }

 private:
  Code code_ = Code::kOk;
  std::string message_;
};

/// `<op>: <operand> must be <expected>, got <actual>`: the one form of a refusal.
Status Refuse(Code code, const std::string& op, const std::string& operand,
              const std::string& expected, const std::string& actual);

}  // namespace lowrank

/// Returns early with the first failure.
#define LOWRANK_RETURN_IF_ERROR(expr)                  \
  do {                                                 \
    ::lowrank::Status lowrank_status_ = (expr);        \
    if (!lowrank_status_.ok()) return lowrank_status_; \
  } while (false)
