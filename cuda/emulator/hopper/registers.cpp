/// The registers of wgmma, in check mode: accumulators and fragments of a are variables of a
/// thread, whose plain accesses the hooks tell of like those of memory.
///
/// Since its first wgmma.fence a thread's stack has, for each word, the last access and how many
/// fences the thread had executed then. What a product uses must not have been touched since the
/// last one, and must be left alone until the product has been waited for.
#include <cstdlib>

#include "cuda/emulator/hopper/hopper_state.h"
#include "cuda/emulator/state/scheduler.h"

namespace lowrank::emu {
namespace {

constexpr size_t kStackWords = StackPool::kStackBytes / 4;

uint32_t AccumulatorBytes(const WgmmaOperation& operation) { return operation.shape.n / 2 * 4; }

bool Overlap(uintptr_t a, size_t a_bytes, uintptr_t b, size_t b_bytes) {
  return a < b + b_bytes && b < a + a_bytes;
}

/// The last access of a word in [ptr, ptr + bytes) since the lane's last fence; 0: none.
uint32_t Unfenced(const LaneRegisters& lane, const Fiber& fiber, const void* ptr, size_t bytes) {
  const uintptr_t offset = reinterpret_cast<uintptr_t>(ptr) - fiber.stack_begin;
  if (lane.last == nullptr || offset + bytes > StackPool::kStackBytes) return 0;
  for (size_t word = offset / 4; word < (offset + bytes + 3) / 4; ++word) {
    if (lane.last[word].fences == lane.fences) return lane.last[word].site;
  }
  return 0;
}

}  // namespace

LaneRegisters::~LaneRegisters() { std::free(last); }

void BeginRegisters(Block* block) {
  // The vector keeps what it has: fences are counted on, so that old accesses are none.
  auto& registers = ModelOf(block).registers;
  if (registers.size() < block->threads) registers = std::vector<LaneRegisters>(block->threads);
  for (Fiber& fiber : static_cast<BlockState*>(block)->fibers) fiber.watched = false;
}

void FenceRegisters() {
  if (!Checking()) return;
  Warp* warp = CurrentFiber()->warp_state;
  for (uint32_t i = 0; i < kWarpSize; ++i) {
    Fiber& fiber = warp->lanes[i];
    LaneRegisters& lane = ModelOf(fiber.block).registers[fiber.linear];
    if (lane.last == nullptr) {
      lane.last = static_cast<RegisterAccess*>(std::calloc(kStackWords, sizeof(RegisterAccess)));
    }
    ++lane.fences;
    fiber.watched = lane.last != nullptr;
  }
}

void CheckRegisters(const WgmmaOperation& operation) {
  if (!Checking()) return;
  const Warp* warp = CurrentFiber()->warp_state;
  for (uint32_t i = 0; i < kWarpSize; ++i) {
    const Fiber& fiber = warp->lanes[i];
    const LaneRegisters& lane = ModelOf(fiber.block).registers[fiber.linear];
    if (const uint32_t site = Unfenced(lane, fiber, operation.d[i], AccumulatorBytes(operation))) {
      Report("wgmma-fence", operation.site, InternedSite(site),
             "wgmma.mma_async uses accumulators that other instructions accessed after the last "
             "wgmma.fence");
    }
    if (!operation.registers_a) continue;
    if (const uint32_t site = Unfenced(lane, fiber, operation.a[i][0], 16)) {
      Report("wgmma-fence", operation.site, InternedSite(site),
             "wgmma.mma_async reads fragments of a that were written after the last wgmma.fence");
    }
  }
}

void OwnAccess(const void* ptr, uint32_t bytes, bool write, Site site) {
  const Fiber* fiber = CurrentFiber();
  const BlockModel& model = ModelOf(fiber->block);
  const LaneRegisters& lane = model.registers[fiber->linear];
  const auto address = reinterpret_cast<uintptr_t>(ptr);
  const uint32_t number = InternSite(site);
  const size_t first = (address - fiber->stack_begin) / 4;
  const size_t end = (address - fiber->stack_begin + bytes + 3) / 4;
  for (size_t word = first; word < end && word < kStackWords; ++word) {
    lane.last[word] = {lane.fences, number};
  }
  for (const WgmmaOperation& operation : model.warps[fiber->warp].operations) {
    const auto d = reinterpret_cast<uintptr_t>(operation.d[fiber->lane]);
    if (Overlap(address, bytes, d, AccumulatorBytes(operation))) {
      Report("wgmma-register", site, operation.site,
             "%s of an accumulator of wgmma.mma_async that has not been waited for",
             write ? "write" : "read");
    }
    const auto a = reinterpret_cast<uintptr_t>(operation.a[fiber->lane][0]);
    if (write && operation.registers_a && Overlap(address, bytes, a, 16)) {
      Report("wgmma-register", site, operation.site,
             "write of a fragment of a that wgmma.mma_async may still read: it has not been waited "
             "for");
    }
  }
}

}  // namespace lowrank::emu
