/// Which kernels a call would run, without a tensor and without running it.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "native/core/ops/ops.h"

namespace lowrank {

/// A call by its sizes: x [M, K], w [N, K], and an adapter of rank r where r is not 0.
struct CallShape {
  int64_t M = 0;
  int64_t N = 0;
  int64_t K = 0;
  int64_t r = 0;
  DType dtype = DType::kF32;          // of the activations
  const FormatRow* format = nullptr;  // null: a dense weight
  DType dense = DType::kF32;          // its dtype
  int64_t blocksize = 0;              // of a quantised one
  bool rowwise = false;
  Compute compute = Compute::kExact;  // of forward products
};

/// The ops of a call. Their operands have addresses that are aligned, apart from one another, and
/// never read; only codebooks are real.
struct OpsOfShape {
  MatmulOp matmul;
  MatmulInputGradOp input_grad;
  LoraForwardOp lora_forward;    // where r is not 0
  LoraBackwardOp lora_backward;  // the same; all gradients

  explicit OpsOfShape(const CallShape& shape);
  /// That of each op which the call has.
  Status Check() const;
  bool adapter() const { return lora_forward.lora_a.present; }
};

/// An address that is aligned, apart from all others, and never read.
void* UnreadAddress(size_t bytes);

/// Rows of a product on the CPU, and the row of the table of routes that takes them.
struct RouteOfRows {
  std::string op;
  int64_t first = 0;
  int64_t count = 0;
  std::string isa;  // whose kernels
  std::string route;
  std::string file;
  std::string takes_weight;
  std::string takes_rows;
  std::string reason;
};

/// One launch of a plan.
struct PlannedLaunch {
  std::string kernel;
  std::array<uint32_t, 3> grid{};
  uint32_t threads = 0;
  uint32_t cluster = 1;
  uint32_t shared_bytes = 0;
  uint32_t tile_rows = 0;  // of the result, that a block of threads makes at once; 0: no product
  uint32_t tile_cols = 0;
};

/// An op on a CUDA device.
struct PlannedOp {
  std::string op;
  int64_t workspace_bytes = 0;
  std::vector<PlannedLaunch> launches;
};

struct Explanation {
  std::string isa;  // of the CPU
  int threads = 0;
  std::vector<RouteOfRows> routes;
  int sm = 0;  // of a CUDA device
  std::string card;
  int multiprocessors = 0;
  std::vector<PlannedOp> plans;
};

/// Defined by each backend's folder. They fail with kValue for a name that none has, and with
/// kUnsupported for an instruction set that does not run here.
Status ExplainOnInstructionSet(const std::string& isa, const CallShape& shape,
                               Explanation* explanation);
/// A card of an architecture, as "sm_90", that need not be here.
Status ExplainOnArchitecture(const std::string& architecture, const CallShape& shape,
                             Explanation* explanation);

}  // namespace lowrank
