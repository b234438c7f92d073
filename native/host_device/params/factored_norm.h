/// Parameters of the kernel that finishes the norms of an adapted weight.
#pragma once

#include <cstdint>

namespace lowrank::gpu {

constexpr uint32_t kFactoredNormThreads = 256;
constexpr int kFactoredNormRows = 32;  // n of a block, one a lane
constexpr uint32_t kFactoredNormSharedBytes = 5248;

struct FactoredNormParams {
  const float* product = nullptr;  // [product_planes, r, N], whose sum is lora_a · wᵀ
  const float* gram = nullptr;     // [gram_planes, r, r], whose sum is lora_a · lora_aᵀ
  const void* lora_b = nullptr;    // [N, r]
  const float* squares = nullptr;  // [N]
  float* norms = nullptr;          // [N]
  int64_t N = 0;
  int64_t r = 0;
  int64_t gram_plane_elems = 0;  // from one plane to the next
  int32_t product_planes = 0;
  int32_t gram_planes = 0;
  float scaling = 1;
  int32_t lora_b_element = 0;  // SmallElement
};

}  // namespace lowrank::gpu
