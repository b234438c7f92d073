#include "native/c_api/call.h"

namespace lowrank::c_api {
namespace {

// Far beyond any struct of this interface: a `size` that was never set reads no foreign memory.
constexpr size_t kMostSize = 4096;

thread_local Result t_last{Status()};

static_assert(LOWRANK_ERR_TYPE == static_cast<int>(Code::kType), "codes are fixed");
static_assert(LOWRANK_ERR_SHAPE == static_cast<int>(Code::kShape), "codes are fixed");
static_assert(LOWRANK_ERR_DTYPE == static_cast<int>(Code::kDtype), "codes are fixed");
static_assert(LOWRANK_ERR_DEVICE == static_cast<int>(Code::kDevice), "codes are fixed");
static_assert(LOWRANK_ERR_FORMAT == static_cast<int>(Code::kFormat), "codes are fixed");
static_assert(LOWRANK_ERR_VALUE == static_cast<int>(Code::kValue), "codes are fixed");
static_assert(LOWRANK_ERR_NON_FINITE == static_cast<int>(Code::kNonFinite), "codes are fixed");
static_assert(LOWRANK_ERR_DISPOSED == static_cast<int>(Code::kDisposed), "codes are fixed");
static_assert(LOWRANK_ERR_ALIAS == static_cast<int>(Code::kAlias), "codes are fixed");
static_assert(LOWRANK_ERR_UNSUPPORTED == static_cast<int>(Code::kUnsupported), "codes are fixed");
static_assert(LOWRANK_ERR_OOM == static_cast<int>(Code::kOom), "codes are fixed");
static_assert(LOWRANK_ERR_COMPUTE == static_cast<int>(Code::kCompute), "codes are fixed");
static_assert(LOWRANK_ERR_CANCELLED == static_cast<int>(Code::kCancelled), "codes are fixed");
static_assert(LOWRANK_ERR_MEMORY_BUDGET == static_cast<int>(Code::kMemoryBudget),
              "codes are fixed");

}  // namespace

Result Result::Abi(const std::string& message) {
  Result result(Status(Code::kType, message));
  result.code = LOWRANK_ERR_ABI;
  return result;
}

int32_t Finish(const Result& result) noexcept {
  t_last = result;
  return result.code;
}

Status RefuseNull(const char* op, const char* operand, const char* expected) {
  return Refuse(Code::kType, op, operand, expected, "NULL");
}

Result CheckSize(const char* op, const void* given, size_t first_size, size_t known_size) {
  if (given == nullptr) return RefuseNull(op, "the struct", "given");
  size_t size = 0;
  std::memcpy(&size, given, sizeof(size));
  if (size < first_size || size > kMostSize) {
    return Result::Abi(std::string(op) + ": size must be sizeof the struct, " +
                       std::to_string(known_size) + " bytes in ABI " + std::to_string(LOWRANK_ABI) +
                       ", got " + std::to_string(size));
  }
  const auto* bytes = static_cast<const unsigned char*>(given);
  for (size_t i = known_size; i < size; ++i) {
    if (bytes[i] == 0) continue;
    return Result::Abi(std::string(op) + ": the struct of " + std::to_string(size) +
                       " bytes is of a newer header and sets a field at byte " + std::to_string(i) +
                       ", and this library (ABI " + std::to_string(LOWRANK_ABI) + ") knows " +
                       std::to_string(known_size) + " bytes");
  }
  return Status();
}

}  // namespace lowrank::c_api

using lowrank::Code;
using lowrank::c_api::t_last;

int32_t lowrank_abi(void) { return LOWRANK_ABI; }

const char* lowrank_version(void) { return LOWRANK_VERSION; }

const char* lowrank_code_name(int32_t code) {
  if (code == LOWRANK_ERR_ABI) return "ERR_ABI";
  if (code < LOWRANK_OK || code > LOWRANK_ERR_MEMORY_BUDGET) return "ERR_UNKNOWN";
  return lowrank::CodeName(static_cast<Code>(code));
}

const char* lowrank_last_error(void) {
  if (t_last.code == LOWRANK_OK) return "";
  const std::string& message = t_last.status.message();
  // Without memory for a sentence there is the code alone.
  return message.empty() ? lowrank_code_name(t_last.code) : message.c_str();
}
