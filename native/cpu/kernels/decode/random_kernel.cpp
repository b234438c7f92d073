// Flags: -O3 -ffp-contract=off
#include "native/host_device/random.h"

#include "native/cpu/kernels/isa/isa_kernels.h"

namespace lowrank::cpu {
namespace {

// Elements per task; about 1 ms.
constexpr int64_t kTaskElems = 32768;
constexpr int64_t kSerialElems = 1024;

}  // namespace

Outcome RandomKernel(const RandomOp& op, const RunContext& context) {
  const int64_t elems = op.y.elems();
  const bool keep = op.kind == RandomOp::Kind::kKeep;
  const uint32_t threshold = keep ? DropoutThreshold(op.mean) : 0;
  const uint64_t seed = op.SeedNow();
  std::atomic<bool> cancelled{false};
  auto body = [&](int64_t task) {
    if (context.cancelled()) {
      cancelled.store(true, std::memory_order_relaxed);
      return;
    }
    const int64_t end = std::min((task + 1) * kTaskElems, elems);
    for (int64_t group = task * kTaskElems / 4; group * 4 < end; ++group) {
      double values[4];
      if (keep) {
        KeepGroup(seed, static_cast<uint64_t>(group), threshold, values);
      } else {
        RandomGroup(op.kind == RandomOp::Kind::kNormal, seed, static_cast<uint64_t>(group), op.mean,
                    op.scale, values);
      }
      for (int64_t i = group * 4; i < std::min(group * 4 + 4, end); ++i) {
        StoreElement(op.y.data, op.y.dtype, i, values[i & 3]);
      }
    }
  };
  const int64_t tasks = (elems + kTaskElems - 1) / kTaskElems;
  if (elems <= kSerialElems) {
    for (int64_t task = 0; task < tasks; ++task) body(task);
  } else {
    context.pool->ParallelFor(tasks, body);
  }
  return {cancelled ? Code::kCancelled : Code::kOk, 0};
}

}  // namespace lowrank::cpu
