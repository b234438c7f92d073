/// Kernels for the check of the emulated driver: small ones that show an order, a value or a fault.
#include <unistd.h>

#include "test/native/emulated_driver_params.h"

#include "cuda/gpu.cuh"

namespace lowrank::test {

/// y[i] = x[i] + value
LOWRANK_KERNEL(test_add_kernel, AddParams, 256, 1) {
  const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < p.n) p.y[i] = p.x[i] + p.value;
}

/// log[log[0]] = value, after a while: two of these that overlap lose an entry.
LOWRANK_KERNEL(test_append_kernel, AppendParams, 32, 1) {
  if (threadIdx.x != 0) return;
  const uint32_t at = p.log[0];
  usleep(p.microseconds);
  p.log[1 + at] = p.value;
  p.log[0] = at + 1;
}

/// Each thread writes its slot of dynamic shared memory and reads its neighbour's, without a
/// barrier where `racy`.
LOWRANK_KERNEL(test_neighbour_kernel, NeighbourParams, 64, 1) {
  struct Storage {
    float values[64];
  };
  Storage& s = gpu::DynamicShared<Storage>();
  const uint32_t i = threadIdx.x;
  s.values[i] = static_cast<float>(i);
  if (p.racy == 0) __syncthreads();
  p.y[i] = s.values[(i + 32) % 64];
}

/// Writes elems past the end of y, or to an address that nobody has.
LOWRANK_KERNEL(test_wild_kernel, WildParams, 32, 1) {
  if (threadIdx.x == 0) p.y[p.index] = 1;
}

/// The bytes at the end of a large parameter struct.
LOWRANK_KERNEL(test_params_kernel, LargeParams, 32, 1) {
  if (threadIdx.x == 0) p.y[0] = p.padding[0] + p.padding[997] + p.last;
}

/// For the architecture rule alone.
LOWRANK_KERNEL(test_wgmma_kernel, WildParams, 128, 1) {
  if (threadIdx.x == 0) p.y[p.index] = 90;
}

}  // namespace lowrank::test
