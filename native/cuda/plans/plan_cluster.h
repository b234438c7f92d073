/// What a contraction that is split over blocks costs on a Hopper card, in clocks of 1.755 GHz
/// (docs/gpu-design.md): if a cluster adds the parts, and if planes and a second launch do. Later
/// cards with clusters are assumed to cost the same, since no numbers for them are published.
#pragma once

#include <algorithm>
#include <cstdint>

namespace lowrank::cuda {

/// L2 bytes per clock and multiprocessor.
constexpr int64_t kL2Bytes = 30;
/// What planes and clusters cost besides their bytes: a launch of 1.05 us, and two barriers of 0.1.
constexpr int64_t kSecondLaunchClocks = 1850;
constexpr int64_t kClusterClocks = 350;

/// Bytes of its peers' sums that a block reads per clock, times ten, by the blocks of a cluster.
/// For two and four, 3.3 and 2.65 TB/s of a whole H100 have been published; eight is assumed to
/// equal four.
constexpr int64_t PeerBytesTimesTen(int64_t cluster) { return cluster <= 2 ? 142 : 114; }

/// A cluster runs in one group of multiprocessors; the groups of an H100 have 16 or 18.
constexpr int64_t kGroupSms = 16;

/// Clusters that a device with this many multiprocessors runs at once; 0 if a group is smaller.
constexpr int64_t ClustersAtOnce(int64_t cluster, int64_t blocks_per_sm, int64_t sms) {
  const int64_t groups = std::max<int64_t>(1, sms / kGroupSms);
  return groups * (std::min(sms, kGroupSms) * blocks_per_sm / cluster);
}

/// Clocks for `bytes` of sums per block, added by their cluster.
constexpr int64_t ClusterSumClocks(int64_t bytes, int64_t cluster) {
  return kClusterClocks + bytes * (cluster - 1) / cluster * 10 / PeerBytesTimesTen(cluster);
}

/// Clocks for planes of `elems` f32 each: written, and added by a launch.
constexpr int64_t PlaneSumClocks(int64_t planes, int64_t elems, int64_t multiprocessors) {
  return kSecondLaunchClocks +
         2 * planes * elems * int64_t{sizeof(float)} / (kL2Bytes * multiprocessors);
}

}  // namespace lowrank::cuda
