#include "native/addon/host_array.h"

#include <cstring>
#include <string>

#include "native/addon/handles.h"

namespace lowrank::addon {
namespace {

template <typename Source, typename Target>
void ConvertElements(const Source* source, size_t count, Target* target) {
  for (size_t i = 0; i < count; ++i) {
    if constexpr (sizeof(Source) == 8) {
      target[i] = FromDouble<Target>(source[i]);
    } else {
      target[i] = FromFloat<Target>(source[i]);
    }
  }
}

}  // namespace

size_t HostArray::element_bytes() const {
  switch (type) {
    case napi_float64_array:
    case napi_bigint64_array:
    case napi_biguint64_array:
      return 8;
    case napi_float32_array:
    case napi_int32_array:
    case napi_uint32_array:
      return 4;
    case napi_int16_array:
    case napi_uint16_array:
      return 2;
    default:
      return 1;
  }
}

HostArray HostArrayOf(const Napi::Value& value, const char* op, const char* operand) {
  const Napi::Env env = value.Env();
  if (!value.IsTypedArray()) {
    ThrowIfError(env, Refuse(Code::kType, op, operand, "a typed array", "another value"));
  }
  HostArray array;
  napi_value buffer;
  size_t byte_offset;
  if (napi_get_typedarray_info(env, value, &array.type, &array.length, &array.data, &buffer,
                               &byte_offset) != napi_ok) {
    ThrowIfError(env, Refuse(Code::kType, op, operand, "a readable typed array", "another one"));
  }
  bool unshared = true;
  if (napi_is_arraybuffer(env, buffer, &unshared) == napi_ok) array.shared = !unshared;
  return array;
}

std::vector<int32_t> IntegersArg(const Napi::Value& value, const char* op, const char* operand) {
  const HostArray array = HostArrayOf(value, op, operand);
  if (array.type != napi_int32_array) {
    ThrowIfError(value.Env(), Refuse(Code::kType, op, operand, "an Int32Array",
                                     "a typed array of another type"));
  }
  return CopiedElements<int32_t>(array);
}

Status ConvertIn(const HostArray& source, DType dtype, size_t count, const char* op, void* target) {
  if (source.length != count) {
    return Refuse(Code::kShape, op, "data", "of length " + std::to_string(count),
                  std::to_string(source.length));
  }
  if (count == 0) return Status();
  if (source.type == napi_uint16_array) {
    if (dtype == DType::kF32) {
      return Refuse(Code::kDtype, op, "dtype", "bf16 or f16 (a Uint16Array holds 16-bit values)",
                    "\"f32\"");
    }
    std::memcpy(target, source.data, count * sizeof(uint16_t));
    return Status();
  }
  if (source.type != napi_float32_array && source.type != napi_float64_array) {
    return Refuse(Code::kType, op, "data", "a Float32Array, Float64Array or Uint16Array",
                  "a typed array of another type");
  }
  if (source.type == napi_float32_array && dtype == DType::kF32) {
    std::memcpy(target, source.data, count * sizeof(float));
    return Status();
  }
  VisitDType(dtype, [&](auto tag) {
    using T = decltype(tag);
    if (source.type == napi_float32_array) {
      ConvertElements(static_cast<const float*>(source.data), count, static_cast<T*>(target));
    } else {
      ConvertElements(static_cast<const double*>(source.data), count, static_cast<T*>(target));
    }
  });
  return Status();
}

Status ConvertOut(const void* source, DType dtype, size_t count, napi_typedarray_type type,
                  void* target) {
  if (count == 0) return Status();
  if (type == napi_float32_array) {
    if (dtype == DType::kF32) {
      std::memcpy(target, source, count * sizeof(float));
      return Status();
    }
    VisitDType(dtype, [&](auto tag) {
      using T = decltype(tag);
      float* values = static_cast<float*>(target);
      const T* elements = static_cast<const T*>(source);
      for (size_t i = 0; i < count; ++i) values[i] = ToFloat(elements[i]);
    });
    return Status();
  }
  if (type == napi_uint16_array && dtype != DType::kF32) {
    std::memcpy(target, source, count * sizeof(uint16_t));
    return Status();
  }
  return Refuse(Code::kDtype, "read", "target",
                dtype == DType::kF32 ? "a Float32Array" : "a Float32Array or a Uint16Array",
                "an array of another type");
}

}  // namespace lowrank::addon
