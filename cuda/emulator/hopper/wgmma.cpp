/// wgmma: products of a warpgroup from shared memory (SS) or from registers and shared memory (RS).
///
/// Each warp computes its 16 rows. An operation is queued at its issue and computed at the wait
/// that retires its group, which is the latest moment allowed; with early copies, or `at_issue`, at
/// once. It reads the registers of a, like the shared memory, when it is computed. Sums of 16-bit
/// elements are f32, those of bytes s32 that wrap.
#include <algorithm>
#include <cstring>

#include "cuda/emulator/hopper/hopper_state.h"
#include "cuda/emulator/instructions/elements.h"
#include "cuda/emulator/instructions/tensor_sums.h"
#include "cuda/emulator/state/scheduler.h"

namespace lowrank::emu {
namespace {

constexpr uint32_t kK = 16;         // of 16-bit elements: 32 bytes of a row
constexpr uint32_t kKBytes = 32;    // of bytes, so that chunks lie alike
constexpr uint32_t kWarpRows = 16;  // of one warp
constexpr uint32_t kMaxN = 256;

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

uint32_t FirstRow() { return current->warp % 4 * kWarpRows; }

/// Rows [first_mn, first_mn + 8) of an operand: store(k, the eight).
template <typename Store>
void Gather(uint64_t bits, bool mn_major, bool bf16, bool negate, uint32_t first_mn, Store store) {
  __m128i by_k[kK];
  ForEachChunk(bits, mn_major, first_mn, 8,
               [&](const unsigned char* chunk, uint32_t mn, uint32_t k) {
                 std::memcpy(&by_k[mn_major ? k : k + mn - first_mn], chunk, 16);
               });
  const __m256 sign = _mm256_set1_ps(negate ? -0.0f : 0.0f);
  for (uint32_t k = 0; k < kK; ++k) {
    if (!mn_major && k % 8 == 0) TransposeEight(&by_k[k]);
    store(k, _mm256_xor_ps(EightToFloats(by_k[k], bf16), sign));
  }
}

int MinExponent(const WgmmaShape& shape) { return shape.bf16 ? kMinExponentF32 : kMinExponentF16; }

/// The warp's 16 rows of a, from its registers or from shared memory.
void GatherA(const WgmmaOperation& operation, TileOfA* a) {
  const WgmmaShape& shape = operation.shape;
  if (!operation.registers_a) {
    for (uint32_t half = 0; half < 2; ++half) {
      Gather(operation.desc_a, shape.a_mn_major, shape.bf16, shape.negate_a, FirstRow() + 8 * half,
             [&](uint32_t k, __m256 rows) {
               alignas(32) float value[8];
               _mm256_store_ps(value, rows);
               for (uint32_t i = 0; i < 8; ++i) a->value[8 * half + i][k] = value[i];
             });
    }
  }
  for (uint32_t lane = 0; operation.registers_a && lane < kWarpSize; ++lane) {
    for (uint32_t i = 0; i < 4; ++i) {
      const uint32_t word = *operation.a[lane][i];
      for (uint32_t second = 0; second < 2; ++second) {
        const uint32_t bits = second == 0 ? word & 0xffffu : word >> 16;
        const float value = shape.bf16 ? FromBF16(bits) : FromF16(bits);
        a->value[i % 2 * 8 + lane / 4][lane % 4 * 2 + i / 2 * 8 + second] =
            shape.negate_a ? -value : value;
      }
    }
  }
  a->Finish(kK, MinExponent(shape));
}

/// The operands' bytes: bounds and fences at the issue, their values at both ends.
template <typename F>
void ForEachOperandChunk(const WgmmaOperation& operation, F fn) {
  if (!operation.registers_a) {
    ForEachChunk(operation.desc_a, operation.shape.a_mn_major, FirstRow(), kWarpRows, fn);
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

/// A row of 32 bytes as 16-bit integers.
struct Row16 {
  __m256i half[2];
};
template <bool kSigned>
Row16 Widen(const unsigned char* bytes) {
  Row16 row;
  for (uint32_t i = 0; i < 2; ++i) {
    __m128i chunk;
    std::memcpy(&chunk, bytes + 16 * i, 16);
    row.half[i] = kSigned ? _mm256_cvtepi8_epi16(chunk) : _mm256_cvtepu8_epi16(chunk);
  }
  return row;
}
__m256i Products(const Row16& a, const Row16& b) {
  return _mm256_add_epi32(_mm256_madd_epi16(a.half[0], b.half[0]),
                          _mm256_madd_epi16(a.half[1], b.half[1]));
}

/// Codes s8 of a against bytes u8 of b, in s32. The sums lie as those of Compute do.
void ComputeBytes(WgmmaOperation* operation) {
  unsigned char rows[kMaxN][kKBytes];
  const auto gather = [&](uint64_t bits, uint32_t first, uint32_t count) {
    ForEachChunk(bits, false, first, count,
                 [&](const unsigned char* chunk, uint32_t mn, uint32_t k) {
                   std::memcpy(rows[mn - first] + 2 * k, chunk, 16);
                 });
  };
  Row16 a[kWarpRows];
  gather(operation->desc_a, FirstRow(), kWarpRows);
  for (uint32_t row = 0; row < kWarpRows; ++row) a[row] = Widen<true>(rows[row]);
  gather(operation->desc_b, 0, operation->shape.n);
  for (uint32_t n = 0; n < operation->shape.n; n += 2) {
    const Row16 b[2] = {Widen<false>(rows[n]), Widen<false>(rows[n + 1])};
    for (uint32_t row = 0; row < kWarpRows; ++row) {
      // Each 128 bits hold four sums of each column, which two additions of neighbours make one.
      const __m256i pairs = _mm256_hadd_epi32(Products(a[row], b[0]), Products(a[row], b[1]));
      const __m256i fours = _mm256_hadd_epi32(pairs, pairs);
      alignas(32) uint32_t part[8];
      _mm256_store_si256(reinterpret_cast<__m256i*>(part), fours);
      void* const of_lane = operation->d[row % 8 * 4 + n % 8 / 2];
      uint32_t* const sums = static_cast<uint32_t*>(of_lane) + n / 8 * 4 + row / 8 * 2;
      for (uint32_t i = 0; i < 2; ++i) {
        sums[i] = part[i] + part[4 + i] + (operation->accumulate ? sums[i] : 0);
      }
    }
  }
}

/// Rows g and g + 8 of lane 4 g + t: d[4 j + i] is column 8 j + 2 t + i % 2, row g + 8 · (i / 2).
/// Eight columns at a time, each product in one step of the tensor core.
void Compute(WgmmaOperation* operation) {
  if (operation->done) return;
  operation->done = true;
  const WgmmaShape& shape = operation->shape;
  if (shape.s8u8) return ComputeBytes(operation);
  constexpr TensorCore kCore = TensorCoreOf(90);
  static_assert(kCore.depth == kK);
  TileOfA a;
  GatherA(*operation, &a);
  for (uint32_t panel = 0; panel < shape.n / 8; ++panel) {
    PanelOfB b;
    Gather(operation->desc_b, shape.b_mn_major, shape.bf16, shape.negate_b, 8 * panel,
           [&](uint32_t k, __m256 columns) { _mm256_store_ps(b.value[k], columns); });
    b.Finish(kK, MinExponent(shape));
    alignas(32) float c[kWarpRows][8] = {};
    /// What a lane holds of row g or g + 8 of the panel.
    const auto of_lane = [&](uint32_t row, uint32_t t) {
      return static_cast<float*>(operation->d[row % 8 * 4 + t]) + 4 * panel + row / 8 * 2;
    };
    for (uint32_t row = 0; operation->accumulate && row < kWarpRows; ++row) {
      for (uint32_t t = 0; t < 4; ++t) std::memcpy(&c[row][2 * t], of_lane(row, t), 8);
    }
    AddProducts(a, b, kK, kCore.depth, kCore.bits, c);
    for (uint32_t row = 0; row < kWarpRows; ++row) {
      for (uint32_t t = 0; t < 4; ++t) std::memcpy(of_lane(row, t), &c[row][2 * t], 8);
    }
  }
}

WgmmaWarp& WarpModel() { return ModelOf(current->block).warps[current->warp]; }

/// Products that add to the same accumulators are in order where they have one shape, else by a
/// fence between them.
void CheckShapes(const WgmmaWarp& warp, const WgmmaOperation& operation) {
  for (const WgmmaOperation& earlier : warp.operations) {
    if (earlier.d[0] != operation.d[0] || earlier.fences != warp.fences) continue;
    if (earlier.shape.n == operation.shape.n && earlier.shape.s8u8 == operation.shape.s8u8)
      continue;
    Report("wgmma-fence", operation.site, earlier.site,
           "wgmma.mma_async of another shape into the same accumulators, without wgmma.fence "
           "between");
  }
}

/// Has a lane's fragment of a changed since the issue?
bool FragmentsChanged(const WgmmaOperation& operation) {
  for (uint32_t lane = 0; lane < kWarpSize; ++lane) {
    for (uint32_t i = 0; i < 4; ++i) {
      if (*operation.a[lane][i] != operation.a_at_issue[lane][i]) return true;
    }
  }
  return false;
}

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
    operation.a[lane] = of_lane.a[0];
    for (uint32_t i = 0; operation.registers_a && i < 4; ++i) {
      operation.a_at_issue[lane][i] = *operation.a[lane][i];
    }
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
  operation.fences = warp.fences;
  CheckShapes(warp, operation);
  CheckRegisters(operation);
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
  Count("wgmma multiply-adds",
        uint64_t{kWarpRows} * operation.shape.n * (operation.shape.s8u8 ? kKBytes : kK));
  if (at_issue || CurrentOptions().copies == Copies::kEarly) Compute(&operation);
  warp.operations.push_back(operation);
}

void FenceOnWarp(uint32_t, void**) {
  WarpModel().fenced = true;
  ++WarpModel().fences;
  FenceRegisters();
}

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
    if (operation->registers_a && FragmentsChanged(*operation)) {
      Report("wgmma-register", operation->site, Site(),
             "a fragment of a changed before this wgmma.mma_async was waited for");
    }
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
  if (shape.s8u8 && shape.n > 32 && shape.n % 16 != 0) {
    Fail("wgmma", operation->site, "wgmma of bytes: n = %u is over 32 and no multiple of 16",
         shape.n);
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

void Wgmma(const WgmmaShape& shape, void* d, uint64_t desc_a, uint64_t desc_b, bool accumulate,
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

void WgmmaRegisters(const WgmmaShape& shape, float* d, const WgmmaFragment& a, uint64_t desc_b,
                    bool accumulate, bool at_issue, Site site) {
  WgmmaOperation operation;
  operation.shape = shape;
  operation.registers_a = true;
  operation.a[0] = a;
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
