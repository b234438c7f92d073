/// What a contraction that is cut over blocks costs on a Hopper card where a cluster adds its
/// parts, and where planes and a second launch do: clocks of 1.755 GHz (docs/gpu-design.md). Later
/// cards with clusters are taken for one: of theirs nothing is published.
#pragma once

#include <algorithm>
#include <cstdint>

namespace lowrank::cuda {

/// L2's bytes a clock and multiprocessor.
constexpr int64_t kL2Bytes = 30;
/// What planes and clusters cost beside their bytes: a launch of 1.05 us, and two barriers of 0.1.
constexpr int64_t kSecondLaunchClocks = 1850;
constexpr int64_t kClusterClocks = 350;

/// Bytes of its peers' sums that a block reads in a clock, in tenths, by the blocks of a cluster:
/// 3.3 and 2.65 TB/s of a whole H100 for two and four have been published; for eight the same as
/// for four is assumed.
constexpr int64_t PeerBytesTimesTen(int64_t cluster) { return cluster <= 2 ? 142 : 114; }

/// A cluster's blocks run in one group of multiprocessors, and the groups of an H100 have 16 or 18.
constexpr int64_t kGroupSms = 16;

/// Clusters that a device of so many multiprocessors runs at once; 0 where a group is smaller.
constexpr int64_t ClustersAtOnce(int64_t cluster, int64_t blocks_per_sm, int64_t sms) {
  const int64_t groups = std::max<int64_t>(1, sms / kGroupSms);
  return groups * (std::min(sms, kGroupSms) * blocks_per_sm / cluster);
}

/// Sums of `bytes` a block, added by their cluster.
constexpr int64_t ClusterSumClocks(int64_t bytes, int64_t cluster) {
  return kClusterClocks + bytes * (cluster - 1) / cluster * 10 / PeerBytesTimesTen(cluster);
}

/// Planes of `elems` f32 each, written, and added by a launch.
constexpr int64_t PlaneSumClocks(int64_t planes, int64_t elems, int64_t multiprocessors) {
  return kSecondLaunchClocks +
         2 * planes * elems * int64_t{sizeof(float)} / (kL2Bytes * multiprocessors);
}

}  // namespace lowrank::cuda
