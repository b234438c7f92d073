/// Memory of the library as tensors of DLPack.
#pragma once

#include <memory>
#include <vector>

#include "native/c_api/call.h"

namespace lowrank::c_api {

/// A row-major tensor over `data`, which `keep` holds until the tensor's deleter is called.
DLManagedTensorVersioned* NewExport(void* data, DLDevice device, DLDataType dtype,
                                    std::vector<int64_t> shape, bool read_only,
                                    std::shared_ptr<const void> keep);

}  // namespace lowrank::c_api
