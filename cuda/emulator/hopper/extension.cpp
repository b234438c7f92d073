/// The sm_90a models' place in the runtime: state of workers and blocks, and small instructions.
#include <cstring>

#include "cuda/emulator/hopper/hopper_state.h"
#include "cuda/emulator/state/scheduler.h"

namespace lowrank::emu {
namespace {

__thread CopyEngine* engine __attribute__((tls_model("initial-exec"))) = nullptr;

void BeginBlock(Block* block) {
  // Where the launch before failed, its blocks had no end.
  if (worker->resident().size() == 1) Engine() = CopyEngine();
  if (block->extension == nullptr) block->extension = new BlockModel;
  BlockModel& model = ModelOf(block);
  model.warps.assign(block->warps, WgmmaWarp());
  model.warpgroups.assign((block->warps + 3) / 4, {});
  model.threads.assign(block->threads, BulkGroups());
  BeginBarriers(block);
  BeginRegisters(block);
}

void EndBlock(Block* block) {
  EndBulk(block);
  EndWgmma(block);
  EndBarriers(block);
}

bool Progress() { return LandOne(); }

[[maybe_unused]] const bool registered = [] {
  Extension extension_of_hopper;
  extension_of_hopper.block_begin = BeginBlock;
  extension_of_hopper.block_end = EndBlock;
  extension_of_hopper.progress = Progress;
  extension_of_hopper.own_access = OwnAccess;
  RegisterExtension(extension_of_hopper);
  return true;
}();

}  // namespace

CopyEngine& Engine() {
  if (engine == nullptr) engine = new CopyEngine;  // one a worker, for ever
  return *engine;
}

BlockModel& ModelOf(Block* block) { return *static_cast<BlockModel*>(block->extension); }

bool Checking() { return worker->run()->check; }

unsigned char* SharedClusterPointer(uint32_t address, Site site) {
  void* own = SharedPointer(address & 0xffffffu);
  const uint32_t rank = address >> 24;
  if (rank == 0) return static_cast<unsigned char*>(own);
  void* of_rank = MapShared(own, rank - 1, site);
  const BlockState* block = worker->BlockOfShared(reinterpret_cast<uintptr_t>(of_rank));
  if (block != nullptr && block->live == 0) {
    Fail("cluster", site, "the shared memory of rank %u, whose threads have exited", rank - 1);
  }
  return static_cast<unsigned char*>(of_rank);
}

void RequireShared(const void* ptr, uint64_t bytes, const char* what, Site site) {
  const BlockState* block = worker->BlockOfShared(reinterpret_cast<uintptr_t>(ptr));
  const unsigned char* begin = static_cast<const unsigned char*>(ptr);
  if (block == nullptr || begin < block->shared_base ||
      begin + bytes > block->shared_base + block->shared_bytes) {
    Fail("oob-shared", site, "%s: %llu bytes at %p are not inside a block's shared memory", what,
         static_cast<unsigned long long>(bytes), ptr);
  }
}

void CheckProxyFence(const void* ptr, size_t bytes, const char* what, Site site) {
  Site writer;
  if (UnfencedWrite(ptr, bytes, &writer)) {
    Report("proxy-fence", site, writer,
           "%s uses memory that ordinary stores wrote, without fence.proxy.async after them", what);
  }
}

uint64_t HashBytes(uint64_t hash, const void* ptr, size_t bytes) {
  const unsigned char* from = static_cast<const unsigned char*>(ptr);
  for (size_t i = 0; i + 8 <= bytes; i += 8) {
    uint64_t word;
    std::memcpy(&word, from + i, 8);
    hash = (hash ^ word) * 0x9e3779b97f4a7c15u;
    hash ^= hash >> 29;
  }
  return hash;
}

void FenceProxyAsync(Site) {
  NoteProxyFence();
  Count("fence.proxy.async");
}

uint32_t ClusterRank() { return current->block->cluster_rank; }
uint32_t ClusterSize() { return current->block->cluster_size; }

uint32_t MapAddress(uint32_t s_address, uint32_t rank, Site site) {
  if (rank >= ClusterSize()) {
    Fail("cluster", site, "mapa: rank %u of a cluster of %u", rank, ClusterSize());
  }
  return (s_address & 0xffffffu) | (rank + 1) << 24;
}

const void* MapGeneric(const void* s_pointer, uint32_t rank, Site site) {
  if (rank >= ClusterSize()) {
    Fail("cluster", site, "mapa: rank %u of a cluster of %u", rank, ClusterSize());
  }
  return MapShared(s_pointer, rank, site);
}

void ClusterLoad(uint32_t s_address, void* value, uint32_t bytes, Site site) {
  const unsigned char* from = SharedClusterPointer(s_address, site);
  RequireShared(from, bytes, "ld.shared::cluster", site);
  Access(from, bytes, false, site);
  std::memcpy(value, from, bytes);
}

void ClusterStore(uint32_t s_address, const void* value, uint32_t bytes, Site site) {
  unsigned char* to = SharedClusterPointer(s_address, site);
  RequireShared(to, bytes, "st.shared::cluster", site);
  Access(to, bytes, true, site);
  std::memcpy(to, value, bytes);
}

void SetMaxRegisters(uint32_t count, bool, Site site) {
  if (count < 24 || count > 256 || count % 8 != 0) {
    Fail("registers", site, "setmaxnreg: %u is not a multiple of 8 from 24 to 256", count);
  }
}

bool ElectOne(uint32_t mask, Site site) {
  const uint32_t lanes = Ballot(mask, true, site);
  return (lanes & ((uint32_t{1} << current->lane) - 1)) == 0;
}

}  // namespace lowrank::emu
