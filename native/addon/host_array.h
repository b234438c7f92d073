/// JavaScript arrays as host memory: what a typed array holds, checked, and the conversions between
/// its elements and a tensor's.
#pragma once

#include <napi.h>

#include "native/core/dtype.h"
#include "native/core/status.h"

namespace lowrank::addon {

/// The bytes behind a typed array at this moment. Lengths come from N-API, never from the caller,
/// so a detached or shrunk buffer shows as too short.
struct HostArray {
  void* data = nullptr;
  size_t length = 0;  // elements
  napi_typedarray_type type = napi_uint8_array;

  size_t element_bytes() const;
};

/// Throws ERR_TYPE for anything but a typed array.
HostArray HostArrayOf(const Napi::Value& value, const char* op, const char* operand);

/// target[i] = source[i] in `dtype`, one rounding: Float32Array and Float64Array are values, a
/// Uint16Array holds the bits of a 16-bit dtype.
Status ConvertIn(const HostArray& source, DType dtype, size_t count, const char* op, void* target);

/// The reverse: f32 values into a Float32Array, bits of a 16-bit dtype into a Uint16Array.
Status ConvertOut(const void* source, DType dtype, size_t count, napi_typedarray_type type,
                  void* target);

}  // namespace lowrank::addon
