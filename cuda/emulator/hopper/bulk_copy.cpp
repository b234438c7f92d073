/// The copy engine: linear bulk copies, tensor tiles (TMA), multicast, stores in bulk groups.
///
/// A load lands when every lane of every resident block is parked (late copies), in the middle of a
/// wait (random order), or as it is issued (early copies); then its bytes go off the barrier. A
/// store happens at its wait, or early.
#include <algorithm>
#include <cstring>

#include "cuda/emulator/hopper/hopper_state.h"
#include "cuda/emulator/state/scheduler.h"

namespace lowrank::emu {
namespace {

constexpr uint32_t kChunk = 16;  // what swizzles move

void RequireAligned(const void* ptr, uint64_t alignment, const char* what, const char* operand,
                    Site site) {
  if (reinterpret_cast<uintptr_t>(ptr) % alignment != 0) {
    Fail("misaligned", site, "%s: the %s %p is not %llu-byte aligned", what, operand, ptr,
         static_cast<unsigned long long>(alignment));
  }
}

/// The pattern works on address bits: 16-byte chunk ^= 128-byte row, in groups of the swizzle.
unsigned char* Swizzled(unsigned char* ptr, uint32_t swizzle_bytes) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(ptr);
  const uintptr_t mask = swizzle_bytes == 0 ? 0 : swizzle_bytes / kChunk - 1;
  return reinterpret_cast<unsigned char*>(address ^ ((address >> 7) & mask) << 4);
}

uint32_t BoxBytes(const EncodedTensorMap& map) {
  uint32_t bytes = map.elem_bytes;
  for (uint32_t i = 0; i < map.rank; ++i) bytes *= map.box_elems[i];
  return bytes;
}

/// Calls fn(offset in the packed box, global address of the first element, elements inside) for
/// each chunk of 16 bytes of the box; `inside` 0: all of it is outside the tensor. Elements before
/// the tensor make `skip` > 0.
template <typename F>
void ForEachChunk(const EncodedTensorMap& map, const int32_t* coordinates, F fn) {
  const uint32_t row_bytes = map.box_elems[0] * map.elem_bytes;
  uint32_t index[5] = {};
  uint32_t row_offset = 0;
  for (;;) {
    bool row_inside = true;
    uint64_t base = map.base;
    for (uint32_t i = 1; i < map.rank; ++i) {
      const int64_t at = int64_t{coordinates[i]} + index[i];
      row_inside = row_inside && at >= 0 && at <= int64_t{map.size_minus_one[i]};
      base += static_cast<uint64_t>(at) * map.stride_bytes[i - 1];
    }
    const uint32_t chunk_elems = kChunk / map.elem_bytes;
    for (uint32_t byte = 0; byte < row_bytes; byte += kChunk) {
      const int64_t first = int64_t{coordinates[0]} + byte / map.elem_bytes;
      const int64_t begin = std::max<int64_t>(first, 0);
      const int64_t end =
          std::min<int64_t>(first + chunk_elems, int64_t{map.size_minus_one[0]} + 1);
      const uint32_t inside = row_inside && end > begin ? static_cast<uint32_t>(end - begin) : 0;
      fn(row_offset + byte, base + static_cast<uint64_t>(begin) * map.elem_bytes,
         static_cast<uint32_t>(begin - first), inside);
    }
    row_offset += row_bytes;
    uint32_t dimension = 1;
    while (dimension < map.rank && ++index[dimension] == map.box_elems[dimension]) {
      index[dimension++] = 0;
    }
    if (dimension >= map.rank) return;
  }
}

EncodedTensorMap Decode(const void* map, uint32_t rank, const char* what, Site site) {
  RequireAligned(map, 64, what, "tensor map", site);
  EncodedTensorMap decoded;
  std::memcpy(&decoded, map, sizeof(decoded));
  if (decoded.mark != kTensorMapMark) {
    Fail("tensor-map", site, "%s: what lies at %p is no encoded tensor map", what, map);
  }
  if (decoded.rank != rank) {
    Fail("tensor-map", site, "%s: %u coordinates for a tensor of %u dimensions", what, rank,
         decoded.rank);
  }
  return decoded;
}

/// Shared memory of a tile: alignment that the pattern of the swizzle needs, and bounds.
void CheckTile(const void* s_tile, const EncodedTensorMap& map, const char* what, Site site) {
  const uint32_t alignment = map.swizzle_bytes == 0 ? 128 : map.swizzle_bytes * 8;
  RequireAligned(s_tile, alignment, what, "shared address", site);
  RequireShared(s_tile, BoxBytes(map), what, site);
}

void Publish(unsigned char* s_dst, uint32_t bytes) {
  MarkInitialised(s_dst, bytes);
  MarkPublished(s_dst, bytes);
}

void LandLoad(const BulkOperation& operation) {
  for (size_t i = 0; i < operation.s_dst.size(); ++i) {
    unsigned char* dst = operation.s_dst[i];
    if (operation.kind == BulkOperation::Kind::kLoad) {
      std::memcpy(dst, operation.src, operation.bytes);
    } else {
      const EncodedTensorMap& map = operation.map;
      ForEachChunk(map, operation.coordinates,
                   [&](uint32_t offset, uint64_t from, uint32_t skip, uint32_t inside) {
                     unsigned char chunk[kChunk] = {};
                     if (inside != 0) {
                       std::memcpy(chunk + skip * map.elem_bytes,
                                   reinterpret_cast<const void*>(from), inside * map.elem_bytes);
                     }
                     std::memcpy(Swizzled(dst + offset, map.swizzle_bytes), chunk, kChunk);
                   });
    }
    Publish(dst, operation.bytes);
    LandBytes(operation.barriers[i], operation.bytes);
  }
}

void LandStore(const BulkOperation& operation) {
  if (operation.kind == BulkOperation::Kind::kStore) {
    std::memcpy(operation.g_dst, operation.src, operation.bytes);
    return;
  }
  const EncodedTensorMap& map = operation.map;
  ForEachChunk(map, operation.coordinates,
               [&](uint32_t offset, uint64_t to, uint32_t skip, uint32_t inside) {
                 if (inside == 0) return;
                 const unsigned char* from = Swizzled(
                     const_cast<unsigned char*>(operation.src) + offset, map.swizzle_bytes);
                 std::memcpy(reinterpret_cast<void*>(to), from + skip * map.elem_bytes,
                             inside * map.elem_bytes);
               });
}

/// The global side of one chunk: whole where it is aligned, else by its elements.
void NoteGlobal(uint64_t address, uint32_t elems, uint32_t elem_bytes, AccessKind kind, Site site) {
  const bool whole = address % kChunk == 0 && elems * elem_bytes == kChunk;
  const uint32_t step = whole ? kChunk : elem_bytes;
  for (uint32_t byte = 0; byte < elems * elem_bytes; byte += step) {
    AccessSlow(reinterpret_cast<const void*>(address + byte), step, kind, site);
  }
}

/// What a store reads and writes, as accesses of the thread that waits for it.
void NoteStore(const BulkOperation& operation) {
  if (!Checking()) return;
  if (HashBytes(0, operation.src, operation.bytes) != operation.source_hash) {
    Report("async-in-flight", operation.site, Site(),
           "the source of a bulk store changed before it was waited for");
  }
  AccessSlow(operation.src, operation.bytes, AccessKind::kCopyRead, operation.site);
  if (operation.kind == BulkOperation::Kind::kStore) {
    AccessSlow(operation.g_dst, operation.bytes, AccessKind::kWrite, operation.site);
    return;
  }
  ForEachChunk(
      operation.map, operation.coordinates, [&](uint32_t, uint64_t to, uint32_t, uint32_t inside) {
        if (inside == 0) return;
        NoteGlobal(to, inside, operation.map.elem_bytes, AccessKind::kWrite, operation.site);
      });
}

bool Early() { return CurrentOptions().copies == Copies::kEarly; }

void Issue(const BulkPtr& operation) {
  Engine().pending.push_back(operation);
  if (Early()) Land(operation);
}

/// A load's targets: its own, or one a block of the multicast mask.
void AddTargets(BulkOperation* operation, uint32_t s_dst, uint32_t barrier, uint32_t multicast,
                const char* what, Site site) {
  if (multicast != 0 && multicast >> ClusterSize() != 0) {
    Fail("cluster", site, "%s: the mask %x names blocks beyond the cluster's %u", what, multicast,
         ClusterSize());
  }
  for (uint32_t rank = 0; rank < (multicast == 0 ? 1 : ClusterSize()); ++rank) {
    if (multicast != 0 && (multicast >> rank & 1) == 0) continue;
    const uint32_t dst = multicast == 0 ? s_dst : MapAddress(s_dst, rank, site);
    const uint32_t bar = multicast == 0 ? barrier : MapAddress(barrier, rank, site);
    unsigned char* s_bar = SharedClusterPointer(bar, site);
    RequireShared(s_bar, 8, what, site);
    const auto address = reinterpret_cast<uintptr_t>(s_bar);
    CheckPeerUse(BarrierAt(address, what, site), address, site);
    operation->s_dst.push_back(SharedClusterPointer(dst, site));
    operation->barriers.push_back(address);
  }
}

/// Marks the targets as in flight: the writes must be ordered after what was read there.
void NoteTargets(const BulkOperation& operation, const char* what) {
  if (!Checking()) return;
  for (const unsigned char* dst : operation.s_dst) {
    CheckProxyFence(dst, operation.bytes, what, operation.site);
    AccessSlow(dst, operation.bytes, AccessKind::kCopyIssue, operation.site);
  }
}

BulkPtr NewOperation(BulkOperation::Kind kind, Site site) {
  auto operation = std::make_shared<BulkOperation>();
  operation->kind = kind;
  operation->site = site;
  operation->block = current->block;
  return operation;
}

void LinearLoad(const void* src, uint32_t s_dst, uint32_t bytes, uint32_t barrier,
                uint32_t multicast, Site site) {
  const char* what = "cp.async.bulk";
  if (bytes % 16 != 0) Fail("misaligned", site, "%s: a size of %u bytes", what, bytes);
  RequireAligned(src, 16, what, "source", site);
  const BulkPtr operation = NewOperation(BulkOperation::Kind::kLoad, site);
  operation->bytes = bytes;
  operation->src = static_cast<const unsigned char*>(src);
  AddTargets(operation.get(), s_dst, barrier, multicast, what, site);
  for (const unsigned char* dst : operation->s_dst) {
    RequireAligned(dst, 16, what, "shared address", site);
    RequireShared(dst, bytes, what, site);
  }
  if (Checking()) {
    CheckProxyFence(src, bytes, what, site);
    AccessSlow(src, bytes, AccessKind::kCopyRead, site);
  }
  NoteTargets(*operation, what);
  Count("cp.async.bulk");
  Count("cp.async.bulk bytes", bytes);
  Issue(operation);
}

BulkGroups& GroupsOfThread() { return ModelOf(current->block).threads[current->linear]; }

void AddStore(const BulkPtr& operation, const char* what) {
  if (Checking()) {
    CheckProxyFence(operation->src, operation->bytes, what, operation->site);
    operation->source_hash = HashBytes(0, operation->src, operation->bytes);
  }
  GroupsOfThread().open.push_back(operation);
  Issue(operation);
}

}  // namespace

void Land(const BulkPtr& operation) {
  if (operation->landed) return;
  operation->landed = true;
  auto& pending = Engine().pending;
  pending.erase(std::find(pending.begin(), pending.end(), operation));
  const bool load = operation->kind == BulkOperation::Kind::kLoad ||
                    operation->kind == BulkOperation::Kind::kTensorLoad;
  load ? LandLoad(*operation) : LandStore(*operation);
}

bool LandOne() {
  auto& pending = Engine().pending;
  if (pending.empty()) return false;
  const Order order = CurrentOptions().order;
  const size_t index = order == Order::kForward   ? 0
                       : order == Order::kReverse ? pending.size() - 1
                                                  : Random() % pending.size();
  Land(BulkPtr(pending[index]));
  return true;
}

void EndBulk(Block* block) {
  auto& pending = Engine().pending;
  for (size_t i = pending.size(); i-- > 0;) {
    if (pending[i]->block != block) continue;
    Report("async-unwaited", pending[i]->site, Site(),
           "the block has ended, and nobody waited for this copy");
    pending.erase(pending.begin() + static_cast<std::ptrdiff_t>(i));
  }
}

void BulkLoad(uint32_t s_dst, const void* g_src, uint32_t bytes, uint32_t barrier,
              uint32_t multicast, Site site) {
  LinearLoad(g_src, s_dst, bytes, barrier, multicast, site);
}

void BulkCopyToPeer(uint32_t s_dst, uint32_t s_src, uint32_t bytes, uint32_t barrier, Site site) {
  const unsigned char* src = SharedClusterPointer(s_src, site);
  RequireShared(src, bytes, "cp.async.bulk", site);
  LinearLoad(src, s_dst, bytes, barrier, 0, site);
}

void BulkStore(void* g_dst, uint32_t s_src, uint32_t bytes, Site site) {
  const char* what = "cp.async.bulk (store)";
  if (bytes % 16 != 0) Fail("misaligned", site, "%s: a size of %u bytes", what, bytes);
  const BulkPtr operation = NewOperation(BulkOperation::Kind::kStore, site);
  operation->src = SharedClusterPointer(s_src, site);
  operation->bytes = bytes;
  operation->g_dst = static_cast<unsigned char*>(g_dst);
  RequireAligned(operation->src, 16, what, "shared address", site);
  RequireShared(operation->src, bytes, what, site);
  RequireAligned(g_dst, 16, what, "target", site);
  Count("cp.async.bulk store bytes", bytes);
  AddStore(operation, what);
}

void BulkCommitGroup(Site) {
  BulkGroups& groups = GroupsOfThread();
  groups.committed.push_back(std::move(groups.open));
  groups.open.clear();
}

void BulkWaitGroup(uint32_t pending, bool, Site) {
  BulkGroups& groups = GroupsOfThread();
  while (groups.committed.size() > pending) {
    const std::vector<BulkPtr> group = std::move(groups.committed.front());
    groups.committed.erase(groups.committed.begin());
    for (const BulkPtr& operation : group) {
      NoteStore(*operation);
      Land(operation);
    }
  }
}

void TensorLoad(uint32_t s_dst, const void* map, uint32_t rank, const int32_t* coordinates,
                uint32_t barrier, uint32_t multicast, Site site) {
  const char* what = "cp.async.bulk.tensor";
  const BulkPtr operation = NewOperation(BulkOperation::Kind::kTensorLoad, site);
  operation->map = Decode(map, rank, what, site);
  operation->bytes = BoxBytes(operation->map);
  std::copy_n(coordinates, rank, operation->coordinates);
  AddTargets(operation.get(), s_dst, barrier, multicast, what, site);
  for (const unsigned char* dst : operation->s_dst) CheckTile(dst, operation->map, what, site);
  if (Checking()) {
    ForEachChunk(operation->map, operation->coordinates,
                 [&](uint32_t, uint64_t from, uint32_t, uint32_t inside) {
                   if (inside == 0) return;
                   CheckProxyFence(reinterpret_cast<const void*>(from),
                                   inside * operation->map.elem_bytes, what, site);
                   NoteGlobal(from, inside, operation->map.elem_bytes, AccessKind::kCopyRead, site);
                 });
  }
  NoteTargets(*operation, what);
  Count("cp.async.bulk.tensor");
  Count("cp.async.bulk.tensor bytes", operation->bytes);
  Issue(operation);
}

void TensorStore(const void* map, uint32_t rank, const int32_t* coordinates, uint32_t s_src,
                 Site site) {
  const char* what = "cp.async.bulk.tensor (store)";
  const BulkPtr operation = NewOperation(BulkOperation::Kind::kTensorStore, site);
  operation->map = Decode(map, rank, what, site);
  operation->bytes = BoxBytes(operation->map);
  std::copy_n(coordinates, rank, operation->coordinates);
  operation->src = SharedClusterPointer(s_src, site);
  CheckTile(operation->src, operation->map, what, site);
  Count("cp.async.bulk.tensor store bytes", operation->bytes);
  AddStore(operation, what);
}

void TensorPrefetch(const void* map, Site site) {
  EncodedTensorMap decoded;
  RequireAligned(map, 64, "prefetch.tensormap", "tensor map", site);
  std::memcpy(&decoded, map, sizeof(decoded));
  if (decoded.mark != kTensorMapMark) {
    Fail("tensor-map", site, "prefetch.tensormap: what lies at %p is no encoded tensor map", map);
  }
}

const char* EncodeTensorMap(const TensorMapSpec& spec, void* map) {
  if (map == nullptr || reinterpret_cast<uintptr_t>(map) % 64 != 0) {
    return "the tensor map is not 64-byte aligned";
  }
  if (spec.rank < 1 || spec.rank > 5) return "the rank is not 1 to 5";
  if (spec.elem_bytes != 1 && spec.elem_bytes != 2 && spec.elem_bytes != 4 &&
      spec.elem_bytes != 8) {
    return "the element size is not 1, 2, 4 or 8 bytes";
  }
  if (spec.base == 0 || spec.base % 16 != 0) return "the base address is not 16-byte aligned";
  if (spec.swizzle_bytes != 0 && spec.swizzle_bytes != 32 && spec.swizzle_bytes != 64 &&
      spec.swizzle_bytes != 128) {
    return "the swizzle is not 0, 32, 64 or 128 bytes";
  }
  EncodedTensorMap encoded;
  encoded.mark = kTensorMapMark;
  encoded.base = spec.base;
  encoded.rank = static_cast<uint8_t>(spec.rank);
  encoded.elem_bytes = static_cast<uint8_t>(spec.elem_bytes);
  encoded.swizzle_bytes = static_cast<uint8_t>(spec.swizzle_bytes);
  for (uint32_t i = 0; i < spec.rank; ++i) {
    if (spec.size_elems[i] < 1 || spec.size_elems[i] > uint64_t{1} << 32) {
      return "a size is not 1 to 2^32";
    }
    if (spec.box_elems[i] < 1 || spec.box_elems[i] > 256) return "a box size is not 1 to 256";
    if (spec.elem_stride[i] > 1) return "element strides other than 1 are not modelled";
    if (i > 0 && (spec.stride_bytes[i] % 16 != 0 || spec.stride_bytes[i] == 0 ||
                  spec.stride_bytes[i] >= uint64_t{1} << 40)) {
      return "a stride is not a multiple of 16 below 2^40";
    }
    encoded.size_minus_one[i] = static_cast<uint32_t>(spec.size_elems[i] - 1);
    encoded.box_elems[i] = static_cast<uint16_t>(spec.box_elems[i]);
    if (i > 0) encoded.stride_bytes[i - 1] = spec.stride_bytes[i];
  }
  const uint32_t row_bytes = spec.box_elems[0] * spec.elem_bytes;
  if (row_bytes % 16 != 0) return "the rows of the box are not a multiple of 16 bytes";
  if (spec.swizzle_bytes != 0 && row_bytes > spec.swizzle_bytes) {
    return "the rows of the box are wider than the swizzle";
  }
  std::memset(map, 0, 128);
  std::memcpy(map, &encoded, sizeof(encoded));
  return nullptr;
}

}  // namespace lowrank::emu
