/// wgmma: products of a warpgroup from shared memory (SS) or from registers and shared memory (RS).
///
/// Each warp computes its 16 rows. An operation is queued at its issue and computed at the wait
/// that retires its group, which is the latest moment allowed; with early copies, or `at_issue`, at
/// once.
#include <algorithm>
#include <cstring>

#include "cuda/emulator/hopper/hopper_state.h"
#include "cuda/emulator/scheduler.h"

namespace lowrank::emu {
namespace {

constexpr uint32_t kK = 16;
constexpr uint32_t kRows = 16;  // of one warp
constexpr uint32_t kMaxN = 256;

float FromBF16(uint16_t bits) {
  const uint32_t word = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &word, 4);
  return value;
}
float FromF16(uint16_t bits) {
  _Float16 value;
  std::memcpy(&value, &bits, 2);
  return static_cast<float>(value);
}

/// Of Compute(): too much for the stacks of fibers, one a worker.
struct Scratch {
  float a[kRows][kK];
  float b[kMaxN][kK];
  double by_k[kK][kMaxN];
  double sums[kMaxN];
};
__thread Scratch* scratch __attribute__((tls_model("initial-exec"))) = nullptr;

/// A matrix descriptor: 14-bit fields in units of 16 bytes.
struct Descriptor {
  uint32_t start_bytes;
  uint32_t leading_bytes;
  uint32_t stride_bytes;
  uint32_t swizzle_bytes;  // 0, 32, 64, 128

  explicit Descriptor(uint64_t bits)
      : start_bytes(static_cast<uint32_t>(bits & 0x3fff) << 4),
        leading_bytes(static_cast<uint32_t>(bits >> 16 & 0x3fff) << 4),
        stride_bytes(static_cast<uint32_t>(bits >> 32 & 0x3fff) << 4),
        swizzle_bytes(0) {
    constexpr uint32_t kSwizzles[4] = {0, 128, 64, 32};
    swizzle_bytes = kSwizzles[bits >> 62];
  }

  /// Shared address of eight elements. K-major: row `mn`, k from 8 · chunk. MN-major: rows from
  /// 8 · chunk, column k. Without swizzle an operand is made of 8 x 16-byte blocks; with one, of
  /// rows (columns) of its width, eight of which repeat the pattern.
  uint32_t KMajor(uint32_t mn, uint32_t chunk) const {
    if (swizzle_bytes == 0) {
      return start_bytes + mn / 8 * stride_bytes + chunk * leading_bytes + mn % 8 * 16;
    }
    return Swizzle(start_bytes + mn / 8 * stride_bytes + mn % 8 * swizzle_bytes + chunk * 16);
  }
  uint32_t MNMajor(uint32_t chunk, uint32_t k) const {
    if (swizzle_bytes == 0) {
      return start_bytes + chunk * stride_bytes + k / 8 * leading_bytes + k % 8 * 16;
    }
    const uint32_t chunks = swizzle_bytes / 16;
    return Swizzle(start_bytes + chunk % chunks * 16 + chunk / chunks * leading_bytes +
                   k % 8 * swizzle_bytes + k / 8 * stride_bytes);
  }
  uint32_t Swizzle(uint32_t address) const {
    return address ^ ((address >> 7) & (swizzle_bytes / 16 - 1)) << 4;
  }
};

/// Calls fn(pointer to eight elements, first mn, first k) for each 16 bytes of rows
/// [first_mn, first_mn + count) of an operand; the elements follow each other along K, or along MN
/// where mn_major.
template <typename F>
void ForEachChunk(uint64_t bits, bool mn_major, uint32_t first_mn, uint32_t count, F fn) {
  const Descriptor descriptor(bits);
  if (mn_major) {
    for (uint32_t mn = first_mn; mn < first_mn + count; mn += 8) {
      for (uint32_t k = 0; k < kK; ++k) {
        fn(static_cast<const unsigned char*>(SharedPointer(descriptor.MNMajor(mn / 8, k))), mn, k);
      }
    }
  } else {
    for (uint32_t mn = first_mn; mn < first_mn + count; ++mn) {
      for (uint32_t k = 0; k < kK; k += 8) {
        fn(static_cast<const unsigned char*>(SharedPointer(descriptor.KMajor(mn, k / 8))), mn, k);
      }
    }
  }
}

/// target[mn - first_mn][k]
void Gather(uint64_t bits, bool mn_major, bool bf16, bool negate, uint32_t first_mn, uint32_t count,
            float (*target)[kK]) {
  ForEachChunk(
      bits, mn_major, first_mn, count, [&](const unsigned char* chunk, uint32_t mn, uint32_t k) {
        uint16_t elems[8];
        std::memcpy(elems, chunk, 16);
        for (uint32_t i = 0; i < 8; ++i) {
          const float value = bf16 ? FromBF16(elems[i]) : FromF16(elems[i]);
          float& to = mn_major ? target[mn - first_mn + i][k] : target[mn - first_mn][k + i];
          to = negate ? -value : value;
        }
      });
}

uint32_t FirstRow() { return current->warp % 4 * kRows; }

/// The operands' bytes: bounds and fences at the issue, their values at both ends.
template <typename F>
void ForEachOperandChunk(const WgmmaOperation& operation, F fn) {
  if (!operation.registers_a) {
    ForEachChunk(operation.desc_a, operation.shape.a_mn_major, FirstRow(), kRows, fn);
  }
  ForEachChunk(operation.desc_b, operation.shape.b_mn_major, 0, operation.shape.n, fn);
}

uint64_t HashOperands(const WgmmaOperation& operation) {
  uint64_t hash = 0;
  ForEachOperandChunk(operation, [&](const unsigned char* chunk, uint32_t, uint32_t) {
    hash = HashBytes(hash, chunk, 16);
  });
  return hash;
}

/// Rows g and g + 8 of lane 4 g + t: d[4 j + i] is column 8 j + 2 t + i % 2, row g + 8 · (i / 2).
void Compute(WgmmaOperation* operation) {
  if (operation->done) return;
  operation->done = true;
  const WgmmaShape& shape = operation->shape;
  if (scratch == nullptr) scratch = new Scratch;
  auto& [a, b, by_k, sums] = *scratch;
  if (operation->registers_a) {
    for (uint32_t lane = 0; lane < kWarpSize; ++lane) {
      for (uint32_t i = 0; i < 4; ++i) {
        const uint32_t row = lane / 4 + i % 2 * 8;
        const uint32_t k = lane % 4 * 2 + i / 2 * 8;
        for (uint32_t half = 0; half < 2; ++half) {
          const uint16_t bits = static_cast<uint16_t>(operation->a[lane][i] >> (16 * half));
          const float value = shape.bf16 ? FromBF16(bits) : FromF16(bits);
          a[row][k + half] = shape.negate_a ? -value : value;
        }
      }
    }
  } else {
    Gather(operation->desc_a, shape.a_mn_major, shape.bf16, shape.negate_a, FirstRow(), kRows, a);
  }
  Gather(operation->desc_b, shape.b_mn_major, shape.bf16, shape.negate_b, 0, shape.n, b);
  for (uint32_t n = 0; n < shape.n; ++n) {
    for (uint32_t k = 0; k < kK; ++k) by_k[k][n] = static_cast<double>(b[n][k]);
  }
  for (uint32_t row = 0; row < kRows; ++row) {
    for (uint32_t n = 0; n < shape.n; ++n) {
      const uint32_t lane = row % 8 * 4 + n % 8 / 2;
      const uint32_t i = n / 8 * 4 + row / 8 * 2 + n % 2;
      sums[n] = operation->accumulate ? static_cast<double>(operation->d[lane][i]) : 0.0;
    }
    for (uint32_t k = 0; k < kK; ++k) {
      const double factor = static_cast<double>(a[row][k]);
      const double* column = by_k[k];
      for (uint32_t n = 0; n < shape.n; ++n) sums[n] += factor * column[n];
    }
    for (uint32_t n = 0; n < shape.n; ++n) {
      const uint32_t lane = row % 8 * 4 + n % 8 / 2;
      operation->d[lane][n / 8 * 4 + row / 8 * 2 + n % 2] = static_cast<float>(sums[n]);
    }
  }
}

WgmmaWarp& WarpModel() { return ModelOf(current->block).warps[current->warp]; }

struct IssueArgs {
  WgmmaOperation* operation;  // of this lane: d[0] and a[0] are its own
  bool at_issue;
};

void IssueOnWarp(uint32_t, void** args) {
  WgmmaOperation operation = *static_cast<IssueArgs*>(args[0])->operation;
  const bool at_issue = static_cast<IssueArgs*>(args[0])->at_issue;
  for (uint32_t lane = 0; lane < kWarpSize; ++lane) {
    const WgmmaOperation& of_lane = *static_cast<IssueArgs*>(args[lane])->operation;
    if (of_lane.desc_a != operation.desc_a || of_lane.desc_b != operation.desc_b ||
        of_lane.accumulate != operation.accumulate) {
      Fail("wgmma", operation.site, "wgmma: descriptors or scale-d differ between lanes 0 and %u",
           lane);
    }
    operation.d[lane] = of_lane.d[0];
    std::memcpy(operation.a[lane], of_lane.a[0], sizeof(operation.a[lane]));
  }
  WgmmaWarp& warp = WarpModel();
  auto& trace = ModelOf(current->block).warpgroups[current->warp / 4];
  if (warp.issued == trace.size()) {
    trace.push_back({operation.desc_a, operation.desc_b, operation.site});
  } else {
    const WgmmaTrace& first = trace[warp.issued];
    if (first.desc_a != operation.desc_a || first.desc_b != operation.desc_b) {
      Report("wgmma", operation.site, first.site,
             "wgmma: descriptors differ between the warps of a warpgroup");
    }
  }
  ++warp.issued;
  if (!warp.fenced) {
    Report("wgmma-fence", operation.site, Site(), "wgmma.mma_async without wgmma.fence before it");
  }
  ForEachOperandChunk(operation, [&](const unsigned char* chunk, uint32_t, uint32_t) {
    RequireShared(chunk, 16, "wgmma", operation.site);
  });
  if (Checking()) {
    ForEachOperandChunk(operation, [&](const unsigned char* chunk, uint32_t, uint32_t) {
      CheckProxyFence(chunk, 16, "wgmma", operation.site);
    });
    operation.operand_hash = HashOperands(operation);
  }
  Count(operation.registers_a ? "wgmma.rs (warp)" : "wgmma.ss (warp)");
  Count("wgmma multiply-adds", uint64_t{kRows} * operation.shape.n * kK);
  if (at_issue || CurrentOptions().copies == Copies::kEarly) Compute(&operation);
  warp.operations.push_back(operation);
}

void FenceOnWarp(uint32_t, void**) { WarpModel().fenced = true; }

void CommitOnWarp(uint32_t, void**) {
  WgmmaWarp& warp = WarpModel();
  warp.group_ends.push_back(warp.operations.size());
}

/// Retires an operation: its result is there, its operands may be overwritten.
void Retire(WgmmaOperation* operation) {
  if (Checking()) {
    if (HashOperands(*operation) != operation->operand_hash) {
      Report("async-in-flight", operation->site, Site(),
             "an operand of wgmma in shared memory changed before it was waited for");
    }
    ForEachOperandChunk(*operation, [&](const unsigned char* chunk, uint32_t, uint32_t) {
      AccessSlow(chunk, 16, AccessKind::kCopyRead, operation->site);
    });
  }
  Compute(operation);
}

void WaitOnWarp(uint32_t, void** args) {
  const uint32_t pending = *static_cast<const uint32_t*>(args[0]);
  WgmmaWarp& warp = WarpModel();
  if (warp.group_ends.size() <= pending) return;
  const size_t groups = warp.group_ends.size() - pending;
  const size_t retired = warp.group_ends[groups - 1];
  for (size_t i = 0; i < retired; ++i) Retire(&warp.operations[i]);
  // All lanes know that the operands have been read, whichever lane tells others.
  if (Checking()) CurrentFiber()->warp_state->clock.Meet();
  warp.operations.erase(warp.operations.begin(),
                        warp.operations.begin() + static_cast<std::ptrdiff_t>(retired));
  warp.group_ends.erase(warp.group_ends.begin(),
                        warp.group_ends.begin() + static_cast<std::ptrdiff_t>(groups));
  for (size_t& end : warp.group_ends) end -= retired;
  // The accumulators may now be used by other instructions.
  if (warp.operations.empty()) warp.fenced = false;
}

void Issue(WgmmaOperation* operation, bool at_issue) {
  const WgmmaShape& shape = operation->shape;
  if (shape.n < 8 || shape.n > kMaxN || shape.n % 8 != 0) {
    Fail("wgmma", operation->site, "wgmma: n = %u is not a multiple of 8 up to 256", shape.n);
  }
  IssueArgs args{operation, at_issue};
  Collective(IssueOnWarp, kAllLanes, &args, "wgmma.mma_async", operation->site, true);
}

}  // namespace

void WgmmaFence(Site site) {
  Collective(FenceOnWarp, kAllLanes, nullptr, "wgmma.fence", site, true);
}
void WgmmaCommit(Site site) {
  Collective(CommitOnWarp, kAllLanes, nullptr, "wgmma.commit_group", site, true);
}
void WgmmaWait(uint32_t pending, Site site) {
  Collective(WaitOnWarp, kAllLanes, &pending, "wgmma.wait_group", site, true);
}

void Wgmma(const WgmmaShape& shape, float* d, uint64_t desc_a, uint64_t desc_b, bool accumulate,
           bool at_issue, Site site) {
  WgmmaOperation operation;
  operation.shape = shape;
  operation.desc_a = desc_a;
  operation.desc_b = desc_b;
  operation.accumulate = accumulate;
  operation.d[0] = d;
  operation.site = site;
  Issue(&operation, at_issue);
}

void WgmmaRegisters(const WgmmaShape& shape, float* d, const uint32_t* a, uint64_t desc_b,
                    bool accumulate, bool at_issue, Site site) {
  WgmmaOperation operation;
  operation.shape = shape;
  operation.registers_a = true;
  std::memcpy(operation.a[0], a, sizeof(operation.a[0]));
  operation.desc_b = desc_b;
  operation.accumulate = accumulate;
  operation.d[0] = d;
  operation.site = site;
  Issue(&operation, at_issue);
}

void EndWgmma(Block* block) {
  for (WgmmaWarp& warp : ModelOf(block).warps) {
    if (!warp.operations.empty()) {
      Report("async-unwaited", warp.operations.back().site, Site(),
             "the block has ended, and nobody waited for this wgmma");
    }
    warp = WgmmaWarp();
  }
}

}  // namespace lowrank::emu
