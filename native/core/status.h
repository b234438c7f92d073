/// The outcome of every call below the addon: a code and, for a failure, one sentence for the user.
#pragma once

#include <memory>
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
  kMemoryBudget = 15,  // 14 is LOWRANK_ERR_ABI of the interface for C
};

const char* CodeName(Code code);

/// Copies share the message: passing a failure on allocates nothing, so it works even without
/// memory.
class Status {
 public:
  Status() = default;
  Status(Code code, std::string message)
      : code_(code), message_(std::make_shared<const std::string>(std::move(message))) {}
  /// "<where>: <what>", or only the code if there is no memory for the text.
  static Status Bare(Code code, const char* where, const char* what) noexcept;

  bool ok() const { return code_ == Code::kOk; }
  Code code() const { return code_; }
  const std::string& message() const;

 private:
  Code code_ = Code::kOk;
  std::shared_ptr<const std::string> message_;
};

/// `<op>: <operand> must be <expected>, got <actual>`: the form of every validation error.
Status Refuse(Code code, const std::string& op, const std::string& operand,
              const std::string& expected, const std::string& actual);

}  // namespace lowrank

/// Returns early with the first failure.
#define LOWRANK_RETURN_IF_ERROR(expr)                  \
  do {                                                 \
    ::lowrank::Status lowrank_status_ = (expr);        \
    if (!lowrank_status_.ok()) return lowrank_status_; \
  } while (false)
