/// The border of the C interface: structs of any age in, codes and one sentence out, no exception.
#pragma once

#include <cstddef>
#include <cstring>
#include <exception>
#include <new>
#include <string>

#include "native/c_api/include/lowrank.h"
#include "native/core/status.h"

namespace lowrank::c_api {

/// A failure of the border itself, which has no Code.
struct Result {
  Result(const Status& given) : status(given), code(static_cast<int32_t>(given.code())) {}
  static Result Abi(const std::string& message);

  Status status;
  int32_t code;
};

/// Remembers a result for lowrank_last_error() of this thread, and returns its code.
int32_t Finish(const Result& result) noexcept;

/// Runs the body of a call: `body()` is a Status or a Result.
template <typename Body>
int32_t Guard(const char* op, const Body& body) noexcept {
  try {
    return Finish(body());
  } catch (const std::bad_alloc&) {
    return Finish(Status::Bare(Code::kOom, op, "no memory for the call"));
  } catch (const std::exception& error) {
    return Finish(Status::Bare(Code::kCompute, op, error.what()));
  } catch (...) {
    return Finish(Status::Bare(Code::kCompute, op, "unknown failure"));
  }
}

/// The size of a struct in ABI 1, the least that is accepted. Where a struct has grown since, it is
/// the offset of the first field that was added.
template <typename Args>
constexpr size_t kFirstSize = sizeof(Args);

Status RefuseNull(const char* op, const char* operand, const char* expected);

/// Checks the size that a struct of the caller states against ours. A larger struct, of a newer
/// header, is fine if what we do not know in it is zero.
Result CheckSize(const char* op, const void* given, size_t first_size, size_t known_size);

/// A copy of the caller's struct, of our size: fields that the caller's header lacks are zero.
template <typename Args>
Result ReadArgs(const char* op, const Args* given, Args* args) {
  const Result size = CheckSize(op, given, kFirstSize<Args>, sizeof(Args));
  if (size.code != LOWRANK_OK) return size;
  std::memset(static_cast<void*>(args), 0, sizeof(Args));
  std::memcpy(static_cast<void*>(args), given,
              given->size < sizeof(Args) ? given->size : sizeof(Args));
  return Status();
}

/// A call of one struct: body(args) with our copy of it.
template <typename Args, typename Body>
int32_t Call(const char* op, const Args* given, const Body& body) noexcept {
  return Guard(op, [&]() -> Result {
    Args args;
    const Result read = ReadArgs(op, given, &args);
    if (read.code != LOWRANK_OK) return read;
    return body(args);
  });
}

/// Writes an answer into the caller's struct, as much of it as the caller's header has, and keeps
/// the stated size. `answer.size` is not used.
template <typename Info>
Result WriteInfo(const char* op, const Info& answer, Info* given) {
  const Result size = CheckSize(op, given, kFirstSize<Info>, sizeof(Info));
  if (size.code != LOWRANK_OK) return size;
  const size_t stated = given->size;
  const size_t bytes = stated < sizeof(Info) ? stated : sizeof(Info);
  std::memcpy(reinterpret_cast<char*>(given) + sizeof(size_t),
              reinterpret_cast<const char*>(&answer) + sizeof(size_t), bytes - sizeof(size_t));
  return Status();
}

/// Copies a text into a field, cut where it is too long.
template <size_t kSize>
void CopyText(const std::string& text, char (&field)[kSize]) {
  const size_t length = text.size() < kSize - 1 ? text.size() : kSize - 1;
  std::memcpy(field, text.data(), length);
  field[length] = '\0';
}

}  // namespace lowrank::c_api
