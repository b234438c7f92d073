/// Elements of tensors whose type is known at run time: one branch, the same for a warp.
#pragma once

#include "cuda/element.cuh"
#include "cuda/params/elementwise.h"

namespace lowrank::gpu {

LOWRANK_DEVICE float LoadSmall(int32_t element, const void* g_data, int64_t index) {
  if (element == kSmallF32) return LoadElement(ElementF32(), g_data, index);
  if (element == kSmallBF16) return LoadElement(ElementBF16(), g_data, index);
  return LoadElement(ElementF16(), g_data, index);
}

LOWRANK_DEVICE void StoreSmall(int32_t element, void* g_data, int64_t index, float value) {
  if (element == kSmallF32) return StoreElement(ElementF32(), g_data, index, value);
  if (element == kSmallBF16) return StoreElement(ElementBF16(), g_data, index, value);
  StoreElement(ElementF16(), g_data, index, value);
}

}  // namespace lowrank::gpu
