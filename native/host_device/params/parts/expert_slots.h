/// The slots of a layer of experts as the kernels of its products see them.
#pragma once

#include <cstdint>

namespace lowrank::gpu {

/// Those of expert e are [offsets[e], offsets[e + 1]). Slots from offsets[experts] on have none.
struct ExpertSlots {
  const int32_t* offsets;  // [experts + 1]
  const int32_t* order;    // [slots]: slot s has row order[s] / k; null: row s
  int32_t slots;
  int32_t experts;
  int32_t k;
};

/// The most tiles of up to `rows` slots of one expert, or of none, each.
constexpr int64_t MostExpertTiles(int64_t slots, int64_t experts, int64_t rows) {
  return slots / rows + (slots < experts + 1 ? slots : experts + 1);
}

}  // namespace lowrank::gpu
