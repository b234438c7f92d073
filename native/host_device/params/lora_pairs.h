/// Which bf16 parts of h and of a factor are multiplied where h · factor is a few more steps of a
/// tensor-core product (cuda/lora/lora_pairs.cuh), shared by the kernels and their plans.
#pragma once

#include <cstdint>

#include "native/host_device/params/gemm_mma.h"

namespace lowrank::gpu {

/// The parts of pair q, 2 bits each, pair 0 lowest. Parts are at most 2^-8 and 2^-17 of the whole,
/// so (1, 2), (2, 1) and (2, 2), which are left out, come to 2^-24 of |h · factor| at most:
///
///   pair     0  1  2  3  4  5
///   h        0  1  2  0  1  0
///   factor   0  0  0  1  1  2
constexpr uint32_t kPartsOfH = 0u | 1u << 2 | 2u << 4 | 0u << 6 | 1u << 8 | 0u << 10;
constexpr uint32_t kPartsOfFactor = 0u | 0u << 2 | 0u << 4 | 1u << 6 | 1u << 8 | 2u << 10;
/// Each part once, where an operand of all parts is multiplied by another whole.
constexpr uint32_t kEachPart = 0u | 1u << 2 | 2u << 4;

/// Pairs that f32 accuracy takes: a bf16 factor is its own part 0, an f16 one has two parts.
constexpr int32_t LoraPairs(ElementCode factor) {
  return factor == kElementBF16 ? 3 : factor == kElementF16 ? 5 : 6;
}

}  // namespace lowrank::gpu
