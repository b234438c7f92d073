/// Planted bugs that check mode must name, and the same kernels without the bug, which must be
/// clean.
#include "test/native/hopper_fixture.h"

namespace lowrank::test {
namespace {

enum class Bug : uint32_t {
  kNone,
  kNoProxyFence,
  kOverwriteOperand,
  kReadBeforeWait,
  kTooFewBytes,
  kTooManyBytes,
  kNoWgmmaFence,
  kNoWgmmaWait,
  kDescriptorOfLane,
  kDescriptorOfWarp,
  kMisalignedTile,
  kForeignMap,
  kOverwrittenBarrier,
  kUninitialisedBarrier,
  kTooManyArrivals,
  kTwoCopies,
  kStoreSourceChanged,
  kNoStoreWait,
  kWrongParity,
  kReadOfPeerTooEarly,
  kBarrierRace,
  kOutsideShared,
  kMaskBeyondCluster,
  kPartialWarp,
  kPeerHasLeft,
  kUnpublishedBarrier,
  kFenceOfWriter,
  kNoFenceOfReader,
  kFenceBeforeAcquire,
  kCopied,  // none: what is multiplied comes by cp.async
  kNoProxyFenceAfterCopy,
};

struct BugParams {
  alignas(64) unsigned char map[128];        // 64 x 8 elements, not swizzled
  alignas(64) unsigned char store_map[128];  // the same of `out`
  Bug bug;
  const uint16_t* source;  // what `map` describes
  float* out;
};

/// A tile is loaded, read, changed, multiplied with itself, and stored: every rule once.
void WholeWay(const void* params) {
  const auto& p = *static_cast<const BugParams*>(params);
  const Bug bug = p.bug;
  const uint32_t thread = current->linear;
  const uint32_t barrier = Address(32768);
  if (thread == 0 && bug != Bug::kUninitialisedBarrier) MbarrierInit(barrier, 1, HERE);
  if (bug != Bug::kBarrierRace) BarrierSync(0, 0, HERE);
  if (thread == 0) {
    MbarrierArriveExpectTx(barrier,
                           bug == Bug::kTooFewBytes    ? 512
                           : bug == Bug::kTooManyBytes ? 2048
                                                       : 1024,
                           HERE);
    if (bug == Bug::kTooManyArrivals) {
      MbarrierArrive(barrier, 1, HERE);
      MbarrierArrive(barrier, 2, HERE);
    }
    const int32_t at[2] = {0, 0};
    const uint32_t to = bug == Bug::kMisalignedTile  ? Address(64)
                        : bug == Bug::kOutsideShared ? Address(65536 - 512)
                                                     : Address(0);
    alignas(64) unsigned char nothing[128] = {};
    TensorLoad(to, bug == Bug::kForeignMap ? nothing : p.map, 2, at, barrier,
               bug == Bug::kMaskBeyondCluster ? 4 : 0, HERE);
    if (bug == Bug::kTwoCopies) {
      MbarrierExpectTx(barrier, 1024, HERE);
      TensorLoad(to, p.map, 2, at, barrier, 0, HERE);
    }
  }
  if (bug == Bug::kOverwrittenBarrier) {
    BarrierSync(0, 0, HERE);
    if (thread == 5) Put(Shared(32768), uint64_t{1}, HERE);
    BarrierSync(0, 0, HERE);
  }
  if (bug != Bug::kReadBeforeWait) {
    MbarrierTryWaitParity(barrier, bug == Bug::kWrongParity ? 1 : 0, HERE);
  }
  // Rows of 8 x 16 bytes become the blocks that a descriptor without swizzle reads.
  const auto chunk = Get<std::array<uint64_t, 2>>(Shared(thread % 64 * 16), HERE);
  const bool copied = bug == Bug::kCopied || bug == Bug::kNoProxyFenceAfterCopy;
  for (uint32_t i = thread; i < 64 * 2 * 2; i += 128) {
    if (copied) {
      CpAsync(Shared(4096 + i * 16), p.source + thread % 64 * 8, 16, 16, HERE);
    } else {
      Put(Shared(4096 + i * 16), chunk, HERE);
    }
  }
  if (copied) {
    CpAsyncCommit(HERE);
    CpAsyncWait(0, HERE);
  }
  if (bug != Bug::kNoProxyFence && bug != Bug::kNoProxyFenceAfterCopy) FenceProxyAsync(HERE);
  BarrierSync(0, 0, HERE);
  float d[4] = {};
  uint64_t a = DescriptorOf(Address(4096), 0, {128, 256});
  uint64_t b = DescriptorOf(Address(6144), 0, {128, 256});
  if (bug == Bug::kDescriptorOfLane && thread % 32 == 9) a += 1;
  if (bug == Bug::kDescriptorOfWarp && thread / 32 == 2) b += 8;
  WgmmaShape shape;
  shape.n = 8;
  if (bug == Bug::kPartialWarp && thread % 32 == 31) return;
  if (bug != Bug::kNoWgmmaFence) WgmmaFence(HERE);
  Wgmma(shape, d, a, b, true, false, HERE);
  WgmmaCommit(HERE);
  if (bug == Bug::kOverwriteOperand && thread == 0) Put(Shared(4096), uint64_t{12345}, HERE);
  if (bug != Bug::kNoWgmmaWait) WgmmaWait(0, HERE);
  BarrierSync(0, 0, HERE);
  for (uint32_t i = thread; i < 256; i += 128) Put(Shared(8192 + i * 4), d[i % 4], HERE);
  FenceProxyAsync(HERE);
  BarrierSync(0, 0, HERE);
  if (thread == 0) {
    const int32_t at[2] = {0, 0};
    TensorStore(p.store_map, 2, at, Address(8192), HERE);
    BulkCommitGroup(HERE);
    if (bug == Bug::kStoreSourceChanged) Put(Shared(8192), uint64_t{77}, HERE);
    if (bug != Bug::kNoStoreWait) BulkWaitGroup(0, true, HERE);
  }
}

/// A peer's shared memory is read before, or after, it was written.
void ReadPeer(const void* params) {
  const auto& p = *static_cast<const BugParams*>(params);
  Put(Shared(current->linear * 4), current->linear, HERE);
  if (p.bug != Bug::kReadOfPeerTooEarly) {
    ClusterArrive(HERE);
    ClusterWait(HERE);
  }
  if (p.bug == Bug::kPeerHasLeft && ClusterRank() == 1) return;
  uint32_t value;
  ClusterLoad(MapAddress(Address(current->linear * 4), ClusterRank() ^ 1, HERE), &value, 4, HERE);
  if (p.bug == Bug::kPeerHasLeft) return;
  ClusterArrive(HERE);
  ClusterWait(HERE);
}

/// Both threads of a pair of blocks arrive at each other's barrier.
void ArriveAtPeer(const void* params) {
  const auto& p = *static_cast<const BugParams*>(params);
  const uint32_t barrier = Address(0);
  if (current->linear == 0) {
    MbarrierInit(barrier, 1, HERE);
    if (p.bug != Bug::kUnpublishedBarrier) FenceMbarrierInit(HERE);
  }
  ClusterArrive(HERE);
  ClusterWait(HERE);
  if (current->linear == 0) {
    MbarrierArrive(MapAddress(barrier, ClusterRank() ^ 1, HERE), 1, HERE);
    MbarrierTryWaitParity(barrier, 0, HERE);
  }
  ClusterArrive(HERE);
  ClusterWait(HERE);
}

enum class GridWait : uint32_t { kAll, kOneAndBarrier, kNone, kOneNoBarrier, kTooLate, kNeither };

struct GridParams {
  uint32_t* data;
  GridWait wait;
};

void FillGrid(const void* params) {
  const auto& p = *static_cast<const GridParams*>(params);
  Put(p.data + current->linear, current->linear, HERE);
}
void ReadGrid(const void* params) {
  const auto& p = *static_cast<const GridParams*>(params);
  const uint32_t thread = current->linear;
  if (p.wait == GridWait::kNeither) return;
  const bool one = p.wait == GridWait::kOneAndBarrier || p.wait == GridWait::kOneNoBarrier;
  if (p.wait == GridWait::kAll || (one && thread == 0)) GridDependencyWait();
  if (p.wait == GridWait::kOneAndBarrier) BarrierSync(0, 0, HERE);
  Put(Shared(thread * 4), Get<uint32_t>(p.data + thread, HERE), HERE);
  if (p.wait == GridWait::kTooLate) GridDependencyWait();
}

/// A launch that overlaps the one before it, or the one before that, and reads what that wrote.
void CheckGridDependency() {
  DeviceArray<uint32_t> data(64);
  const auto found = [&](GridWait wait, bool overlaps, bool one_between) {
    GridParams p{data.data(), wait};
    GridParams other{data.data(), GridWait::kAll};
    bool caught = false;
    for (const Schedule& schedule : kSchedules) {
      LaunchChain chain;
      Shape shape;
      shape.threads = 64;
      shape.chain = &chain;
      Use(schedule);
      Run(FillGrid, &p, shape);
      shape.overlaps_previous = overlaps;
      if (one_between) Run(ReadGrid, &other, shape);
      Run(ReadGrid, &p, shape);
      const std::vector<Finding> findings = Findings();
      for (const Finding& finding : findings) caught |= finding.kind == "grid-dependency";
      if (!caught) Expect(findings.empty(), "overlapping launches: another finding");
    }
    return caught;
  };
  Expect(!found(GridWait::kAll, true, false), "every thread waits for the launch before");
  Expect(!found(GridWait::kOneAndBarrier, true, false), "a thread waits, then a barrier");
  Expect(!found(GridWait::kNone, false, false), "launches that do not overlap");
  Expect(found(GridWait::kNone, true, false), "nobody waits for the launch before");
  Expect(found(GridWait::kOneNoBarrier, true, false), "a thread waits, the others do not");
  Expect(found(GridWait::kTooLate, true, false), "every thread waits too late");
  Expect(found(GridWait::kNone, true, true), "nobody waits for the launch before the last");
  Expect(found(GridWait::kNeither, true, false), "nobody reads, and nobody waits");
  Expect(!found(GridWait::kNeither, false, false), "nobody waits for a launch that has ended");
}

/// One block writes 1 KB of global memory and raises a flag, the other waits for it and copies.
void CopyOfOthersWrite(const void* params) {
  const auto& p = *static_cast<const BugParams*>(params);
  auto* flag = reinterpret_cast<uint32_t*>(p.out + 256);
  const uint32_t thread = current->linear;
  if (current->block->block_idx.x == 1) {
    Put(p.out + thread * 2, uint64_t{0x3f8000003f800000u}, HERE);
    if (p.bug == Bug::kFenceOfWriter) FenceProxyAsync(HERE);
    BarrierSync(0, 0, HERE);
    if (thread == 0) StoreRelease(flag, 1, HERE);
    return;
  }
  if (thread != 0) return;
  const uint32_t barrier = Address(32768);
  MbarrierInit(barrier, 1, HERE);
  if (p.bug == Bug::kFenceBeforeAcquire) FenceProxyAsync(HERE);
  while (LoadAcquire(flag, HERE) == 0) {
  }
  if (p.bug == Bug::kNone) FenceProxyAsync(HERE);
  MbarrierArriveExpectTx(barrier, 1024, HERE);
  BulkLoad(Address(0), p.out, 1024, barrier, 0, HERE);
  MbarrierTryWaitParity(barrier, 0, HERE);
}

void CheckDetectors() {
  std::vector<uint16_t> ones(64 * 8, FromFloat<BF16>(1.0f).bits);
  DeviceArray<uint16_t> in(ones);
  DeviceArray<uint16_t> out(ones);
  BugParams p{};
  TensorMapSpec spec;
  p.source = in.data();
  spec.base = reinterpret_cast<uintptr_t>(in.data());
  spec.rank = 2;
  spec.elem_bytes = 2;
  spec.size_elems[0] = spec.box_elems[0] = 64;
  spec.size_elems[1] = spec.box_elems[1] = 8;
  spec.stride_bytes[1] = 128;
  EncodeTensorMap(spec, p.map);
  spec.base = reinterpret_cast<uintptr_t>(out.data());
  EncodeTensorMap(spec, p.store_map);
  Shape shape;
  shape.threads = 128;
  for (const Bug bug : {Bug::kNone, Bug::kCopied}) {
    p.bug = bug;
    Clean("the whole way", WholeWay, &p, shape, [&] {
      const std::vector<uint16_t> stored = out.Read();
      float value;
      std::memcpy(&value, stored.data(), 4);
      return value == 16.0f;
    });
  }
  const auto planted = [&](Bug bug, const char* name, const char* kind) {
    p.bug = bug;
    Caught(name, kind, WholeWay, &p, shape);
  };
  planted(Bug::kNoProxyFence, "no fence.proxy.async", "proxy-fence");
  planted(Bug::kNoProxyFenceAfterCopy, "no fence.proxy.async after cp.async", "proxy-fence");
  planted(Bug::kOverwriteOperand, "an operand overwritten under wgmma", "async-in-flight");
  planted(Bug::kReadBeforeWait, "a tile read before its barrier", "async-in-flight");
  planted(Bug::kTooFewBytes, "too few bytes expected", "deadlock");
  planted(Bug::kTooManyBytes, "too many bytes expected", "deadlock");
  planted(Bug::kNoWgmmaFence, "no wgmma.fence", "wgmma-fence");
  planted(Bug::kNoWgmmaWait, "no wgmma.wait_group", "async-unwaited");
  planted(Bug::kDescriptorOfLane, "a lane with another descriptor", "wgmma");
  planted(Bug::kDescriptorOfWarp, "a warp with another descriptor", "wgmma");
  planted(Bug::kMisalignedTile, "a tile off 128 bytes", "misaligned");
  planted(Bug::kForeignMap, "a map that nobody encoded", "tensor-map");
  planted(Bug::kOverwrittenBarrier, "a barrier overwritten", "barrier");
  planted(Bug::kUninitialisedBarrier, "a barrier not initialised", "barrier");
  planted(Bug::kTooManyArrivals, "too many arrivals", "barrier");
  planted(Bug::kTwoCopies, "two copies to one place", "async-in-flight");
  planted(Bug::kStoreSourceChanged, "a store's source changed", "async-in-flight");
  planted(Bug::kNoStoreWait, "a store nobody waited for", "async-unwaited");
  planted(Bug::kWrongParity, "the wrong parity", "async-in-flight");
  planted(Bug::kBarrierRace, "a barrier used before it stands", "barrier");
  planted(Bug::kOutsideShared, "a tile outside shared memory", "oob-shared");
  planted(Bug::kMaskBeyondCluster, "a mask beyond the cluster", "cluster");
  planted(Bug::kPartialWarp, "wgmma by part of a warp", "divergent-warp");
  Shape pair;
  pair.blocks = pair.cluster = 2;
  Clean("a peer's memory", ReadPeer, &p, pair, [] { return true; });
  p.bug = Bug::kReadOfPeerTooEarly;
  Caught("a peer's memory read too early", "race-shared", ReadPeer, &p, pair);
  p.bug = Bug::kNone;
  Clean("a peer's barrier", ArriveAtPeer, &p, pair, [] { return true; });
  p.bug = Bug::kUnpublishedBarrier;
  Caught("a peer's barrier without fence.mbarrier_init", "barrier", ArriveAtPeer, &p, pair);
  Shape blocks;
  blocks.blocks = 2;
  blocks.threads = 128;
  DeviceArray<float> shared_by_blocks(std::vector<float>(257));
  p.out = shared_by_blocks.data();
  const auto over_blocks = [&](Bug bug) {
    p.bug = bug;
    emu::SetMemory(p.out + 256, 0, 4);
  };
  for (const Bug bug : {Bug::kNone, Bug::kFenceOfWriter}) {
    over_blocks(bug);
    Clean("a copy of what another block wrote", CopyOfOthersWrite, &p, blocks, [&] {
      emu::SetMemory(p.out + 256, 0, 4);
      return true;
    });
  }
  for (const Bug bug : {Bug::kNoFenceOfReader, Bug::kFenceBeforeAcquire}) {
    over_blocks(bug);
    Caught("a copy of what another block wrote, not fenced", "proxy-fence", CopyOfOthersWrite, &p,
           blocks);
  }
  p.bug = Bug::kPeerHasLeft;
  Caught("the memory of a peer that has left", "cluster", ReadPeer, &p, pair);
}

}  // namespace
}  // namespace lowrank::test

int main() {
  lowrank::test::CheckDetectors();
  lowrank::test::CheckGridDependency();
  return lowrank::test::Verdict();
}
