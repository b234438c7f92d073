/// JavaScript arrays as host memory: the checked content of a typed array, and the conversions
/// between its elements and a tensor's.
#pragma once

#include <napi.h>

#include <cstring>
#include <vector>

#include "native/core/dtype.h"
#include "native/core/status.h"

namespace lowrank::addon {

/// The bytes behind a typed array at this moment. Lengths come from N-API, never from the caller,
/// so a detached or shrunk buffer shows as too short. Valid until JavaScript may run again (a
/// getter is enough), because it can detach or shrink the buffer. Other threads can write to shared
/// memory at any time, so a copy is what is checked.
struct HostArray {
  void* data = nullptr;
  size_t length = 0;  // elements
  napi_typedarray_type type = napi_uint8_array;
  bool shared = false;  // over a SharedArrayBuffer, which can be neither detached nor shrunk

  size_t element_bytes() const;
};

/// Throws ERR_TYPE for anything but a typed array.
HostArray HostArrayOf(const Napi::Value& value, const char* op, const char* operand);

/// The elements of a typed array of that type, copied.
template <typename T>
std::vector<T> CopiedElements(const HostArray& array) {
  std::vector<T> values(array.length);
  if (!values.empty()) std::memcpy(values.data(), array.data, values.size() * sizeof(T));
  return values;
}
/// The same for an Int32Array; throws ERR_TYPE for anything else.
std::vector<int32_t> IntegersArg(const Napi::Value& value, const char* op, const char* operand);

/// target[i] = source[i] in `dtype`, rounded once: Float32Array and Float64Array are values, a
/// Uint16Array holds the bits of a 16-bit dtype.
Status ConvertIn(const HostArray& source, DType dtype, size_t count, const char* op, void* target);

/// The reverse: f32 values into a Float32Array, bits of a 16-bit dtype into a Uint16Array.
Status ConvertOut(const void* source, DType dtype, size_t count, napi_typedarray_type type,
                  void* target);

}  // namespace lowrank::addon
