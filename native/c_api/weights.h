/// What is behind a lowrank_weight, and which ones are alive.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "native/c_api/call.h"
#include "native/core/runtime/backend.h"

/// Read-only once it is in the table.
struct lowrank_weight {
  lowrank_weight() = default;
  ~lowrank_weight() {
    if (release != nullptr) release(context);
  }
  lowrank_weight(const lowrank_weight&) = delete;
  lowrank_weight& operator=(const lowrank_weight&) = delete;

  lowrank::WeightView view;
  DLDevice device{kDLCPU, 0};
  std::vector<lowrank::StoragePtr> parts;    // what the library owns of it
  void (*release)(void* context) = nullptr;  // of memory that the caller owns
  void* context = nullptr;
};

namespace lowrank::c_api {

/// Makes a handle of one reference.
lowrank_weight* AddWeight(std::shared_ptr<lowrank_weight> weight);
/// The weight behind a handle, which stays while the pointer is held. Refuses NULL, a handle that
/// was released for the last time, and any other address.
Status FindWeight(const char* op, const char* operand, const lowrank_weight* weight,
                  std::shared_ptr<const lowrank_weight>* held);
Status RetainWeight(const char* op, const lowrank_weight* weight);
Status ReleaseWeight(const char* op, const lowrank_weight* weight);
int64_t LiveWeights();

}  // namespace lowrank::c_api
