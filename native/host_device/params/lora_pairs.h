/// The bf16 parts of h and of a factor that are multiplied when h · factor is a few more steps of a
/// tensor-core product (cuda/lora/lora_pairs.cuh), shared by the kernels and their plans.
#pragma once

#include <cstdint>

#include "native/host_device/params/gemm_mma.h"

namespace lowrank::gpu {

/// The parts of pair q, 2 bits each, pair 0 lowest. Parts are at most 2^-8 and 2^-17 of the whole,
/// so the omitted pairs (1, 2), (2, 1) and (2, 2) add at most 2^-24 of |h · factor|:
///
///   pair     0  1  2  3  4  5
///   h        0  1  2  0  1  0
///   factor   0  0  0  1  1  2
constexpr uint32_t kPartsOfH = 0u | 1u << 2 | 2u << 4 | 0u << 6 | 1u << 8 | 0u << 10;
constexpr uint32_t kPartsOfFactor = 0u | 0u << 2 | 0u << 4 | 1u << 6 | 1u << 8 | 2u << 10;
/// Each part once, for an operand in parts that is multiplied by a whole one.
constexpr uint32_t kEachPart = 0u | 1u << 2 | 2u << 4;

/// Number of pairs for f32 accuracy: a bf16 factor is its own part 0, an f16 one has two parts.
constexpr int32_t LoraPairs(ElementCode factor) {
  return factor == kElementBF16 ? 3 : factor == kElementF16 ? 5 : 6;
}

}  // namespace lowrank::gpu
