/// What the sm_90a models keep: transaction barriers and copies in flight of one worker, products
/// and bulk groups of one block.
#pragma once

#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#include "cuda/emulator/hopper/hopper.h"

namespace lowrank::emu {

/// mbarrier. The object in shared memory holds kBarrierMark and nothing else; a barrier is known by
/// its host address, so that peers of a cluster find it.
struct TransactionBarrier {
  uint32_t count = 0;    // arrivals a phase
  uint32_t pending = 0;  // of this phase
  int64_t bytes = 0;     // expected and not yet landed (below 0: landed before they were expected)
  uint64_t phase = 0;
  SyncClock arriving;   // what those who arrived have done
  SyncClock completed;  // the same when the last phase completed
  std::vector<Thread*> waiters;
  Site init_site;
  const Thread* initialiser = nullptr;
  bool published = false;  // its initialiser has executed fence.mbarrier_init since
};
constexpr uint64_t kBarrierMark = 0x6d62617272696572;  // "mbarrier"

/// cuTensorMapEncodeTiled's result in the emulator.
struct EncodedTensorMap {
  uint64_t mark = 0;
  uint64_t base = 0;
  uint64_t stride_bytes[4] = {};    // of dimensions 1..4
  uint32_t size_minus_one[5] = {};  // elements
  uint16_t box_elems[5] = {};
  uint8_t rank = 0;
  uint8_t elem_bytes = 0;
  uint8_t swizzle_bytes = 0;
};
constexpr uint64_t kTensorMapMark = 0x7061'6d72'6f73'6e65;
static_assert(sizeof(EncodedTensorMap) <= 128);

/// A copy that the engine has not finished.
struct BulkOperation {
  enum class Kind : uint8_t { kLoad, kTensorLoad, kStore, kTensorStore };
  Kind kind = Kind::kLoad;
  Site site;
  Block* block = nullptr;  // of the thread that issued it
  uint32_t bytes = 0;
  EncodedTensorMap map;
  int32_t coordinates[5] = {};
  const unsigned char* src = nullptr;  // of a load; of a store: shared memory
  unsigned char* g_dst = nullptr;      // of a linear store
  std::vector<unsigned char*> s_dst;   // of a load, one a block of the mask
  std::vector<uintptr_t> barriers;     // beside each
  uint64_t source_hash = 0;            // of a store's source at its issue, where checked
  bool landed = false;
};
using BulkPtr = std::shared_ptr<BulkOperation>;

/// cp.async.bulk groups of one thread.
struct BulkGroups {
  std::vector<BulkPtr> open;
  std::vector<std::vector<BulkPtr>> committed;
};

/// wgmma.mma_async of one warp.
struct WgmmaOperation {
  WgmmaShape shape;
  uint64_t desc_a = 0;
  uint64_t desc_b = 0;
  bool registers_a = false;
  bool accumulate = false;
  bool done = false;
  void* d[kWarpSize] = {};                 // f32, or s32 where the shape's elements are bytes
  WgmmaFragment a[kWarpSize] = {};         // read when the product is computed
  uint32_t a_at_issue[kWarpSize][4] = {};  // what they held then
  uint64_t operand_hash = 0;
  uint64_t fences = 0;  // of the warp at the issue
  Site site;
};
struct WgmmaWarp {
  std::vector<WgmmaOperation> operations;  // issued and not waited for
  std::vector<size_t> group_ends;
  bool fenced = false;
  uint64_t fences = 0;
  uint64_t issued = 0;
};
/// What the first warp of a warpgroup issued, for the other three to agree with.
struct WgmmaTrace {
  uint64_t desc_a;
  uint64_t desc_b;
  Site site;
};
/// The last access of a word of a thread's stack (registers.cpp).
struct RegisterAccess {
  uint32_t fences;  // wgmma.fence that the thread had executed
  uint32_t site;    // interned
};
struct LaneRegisters {
  uint32_t fences = 0;
  RegisterAccess* last = nullptr;  // by word of the stack, once there has been a fence

  LaneRegisters() = default;
  ~LaneRegisters();
  LaneRegisters(const LaneRegisters&) = delete;
  LaneRegisters& operator=(const LaneRegisters&) = delete;
  LaneRegisters(LaneRegisters&&) = delete;
  LaneRegisters& operator=(LaneRegisters&&) = delete;
};
struct BlockModel {
  std::vector<WgmmaWarp> warps;
  std::vector<std::vector<WgmmaTrace>> warpgroups;
  std::vector<BulkGroups> threads;
  std::vector<LaneRegisters> registers;  // by thread
};

/// One operating-system thread's engine: the blocks of a cluster run on one.
struct CopyEngine {
  std::unordered_map<uintptr_t, TransactionBarrier> barriers;
  std::vector<BulkPtr> pending;  // in issue order
};
CopyEngine& Engine();
BlockModel& ModelOf(Block* block);

/// Is this launch checked?
bool Checking();
/// Host address of a shared::cluster address.
unsigned char* SharedClusterPointer(uint32_t address, Site site);
/// Ends the launch where [ptr, ptr + bytes) is not inside the shared memory of its block.
void RequireShared(const void* ptr, uint64_t bytes, const char* what, Site site);
/// Reports ordinary writes of this block that an engine is about to see without a fence.
void CheckProxyFence(const void* ptr, size_t bytes, const char* what, Site site);
uint64_t HashBytes(uint64_t hash, const void* ptr, size_t bytes);

TransactionBarrier& BarrierAt(uintptr_t address, const char* what, Site site);
/// Reports the use of a peer's barrier whose initialisation the peer has not published.
void CheckPeerUse(const TransactionBarrier& barrier, uintptr_t address, Site site);
/// `bytes` have landed.
void LandBytes(uintptr_t barrier, int64_t bytes);
/// Lets one copy of the engine land: in issue order, the reverse, or at random.
bool LandOne();
/// This one, where it has not landed yet.
void Land(const BulkPtr& operation);

/// wgmma.fence, for the running warp.
void FenceRegisters();
/// Reports what the product uses and others have accessed since the last wgmma.fence.
void CheckRegisters(const WgmmaOperation& operation);
/// An access of the running thread to its own stack.
void OwnAccess(const void* ptr, uint32_t bytes, bool write, Site site);

/// At a block's beginning and end (extension.cpp).
void BeginRegisters(Block* block);
void BeginBarriers(Block* block);
void EndBarriers(Block* block);
void EndBulk(Block* block);
void EndWgmma(Block* block);

}  // namespace lowrank::emu
