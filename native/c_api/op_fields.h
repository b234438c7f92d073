/// Fields that structs of several ops have.
#pragma once

#include "native/c_api/operands.h"

namespace lowrank::c_api {

inline Compute ComputeOf(const Operands& operands) {
  return operands.Flag(LOWRANK_COMPUTE_INT8) ? Compute::kInt8 : Compute::kExact;
}

template <typename Args>
DropoutSpec DropoutOf(const Args& given, Operands* operands) {
  DropoutSpec dropout;
  dropout.p = given.dropout;
  dropout.seed = given.seed;
  dropout.mask = operands->OptionalIn(given.dropout_mask, "dropoutMask");
  return dropout;
}

}  // namespace lowrank::c_api
