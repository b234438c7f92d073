/// What an op becomes on a GPU: a workspace and a few launches. A plan is computed from the
/// descriptor and the device's limits alone, without a driver call or a lasting allocation, so tile
/// selection and workspace sizes can be tested (and queried) without a GPU.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "native/core/ops/ops.h"

namespace lowrank::cuda {

constexpr int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline bool IsAligned(const void* pointer, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % static_cast<uintptr_t>(bytes) == 0;
}

/// What tile selection knows of a device.
struct DeviceLimits {
  int sm = 80;                              // compute capability, major · 10 + minor
  int sm_count = 108;                       // multiprocessors
  int64_t shared_bytes_per_block = 166912;  // with opt-in
  int64_t shared_bytes_per_sm = 167936;
  int64_t l2_bytes = 40 << 20;
  /// Chooses kernels and splits without looking at M, so that a row has the same bits alone and in
  /// any batch.
  bool batch_invariant = false;

  /// Only this architecture has wgmma: neither earlier nor later ones do.
  bool has_wgmma() const { return sm == 90; }
  /// Clusters of blocks that read each other's shared memory. Capability 12.x has them too, but
  /// without what makes them cheap (no multicast; group sizes that are not published), so it uses
  /// planes.
  bool has_clusters() const { return sm >= 90 && sm / 10 != 12; }
};

struct Dim3 {
  uint32_t x = 1;
  uint32_t y = 1;
  uint32_t z = 1;
};

/// A TMA descriptor that the driver encodes into the parameters before the launch. Dimension 0 is
/// contiguous.
struct TensorMapRequest {
  uint32_t param_offset_bytes = 0;  // where in the parameters the 128-byte descriptor lies
  const void* base = nullptr;       // 16-byte aligned
  DType dtype = DType::kBF16;
  bool bytes = false;  // elements are single bytes, regardless of dtype
  uint32_t rank = 2;
  std::array<uint64_t, 5> size_elems{};
  std::array<uint64_t, 5> stride_bytes{};  // of dimensions from 1; [0] is unused
  std::array<uint32_t, 5> box_elems{};
  uint32_t swizzle_bytes = 0;  // 0, 32, 64 or 128
  bool evict_first = false;    // L2 promotion is 256 bytes otherwise
};

/// One kernel launch. `kernel` is the extern "C" name in cuda/.
///
/// What may run at the same time. A step that overlaps starts as soon as every block of the step
/// before it has started. That step may have started just as early, so any number of steps may run
/// at once: all since the last one that does not overlap, including that one. Nothing of an earlier
/// op runs, since the first step of a plan never overlaps. A kernel that waits
/// (griddepcontrol.wait) waits for all of them, because the step before ends only after its own
/// wait.
///
/// So before its wait a kernel
///   - stores nothing to global memory, neither outputs nor workspace: a step that still runs may
///     read or write the same bytes. Every kernel obeys this without exception, so a plan may
///     give the same workspace to several steps (Workspace::Rewind)
///   - loads nothing that a step which may still run writes. Kernels that load early
///     (LOWRANK_EARLY_KERNEL in cuda/gpu.cuh) load operands of the op. If an earlier step writes
///     such an operand, the plan says so: x_made makes the kernel wait first, overlaps = false
///     makes the launch wait
///
/// `npm run check:cuda` follows every path of every kernel to its first store (grid-wait.mjs), and
/// the emulator reports both kinds of access (`grid-dependency`).
struct LaunchStep {
  static constexpr size_t kMaxParamBytes = 4096;

  const char* kernel = nullptr;
  Dim3 grid;
  uint32_t threads = 0;
  uint32_t cluster = 1;  // blocks along x that share a cluster
  uint32_t shared_bytes = 0;
  /// Of a product: the tile of its result that a block computes at once.
  uint32_t tile_rows = 0;
  uint32_t tile_cols = 0;
  /// From sm_90 on: may it start before the earlier steps of its plan have ended? Ignored for the
  /// first step.
  bool overlaps = true;
  uint32_t param_bytes = 0;
  alignas(128) std::array<unsigned char, kMaxParamBytes> params;
  std::vector<TensorMapRequest> tensor_maps;

  void SetTile(int64_t rows, int64_t cols) {
    tile_rows = static_cast<uint32_t>(rows);
    tile_cols = static_cast<uint32_t>(cols);
  }
  template <typename Params>
  void SetParams(const Params& value) {
    static_assert(std::is_trivially_copyable_v<Params> && sizeof(Params) <= kMaxParamBytes);
    std::memcpy(params.data(), &value, sizeof(Params));
    param_bytes = sizeof(Params);
  }
};

/// Hands out parts of one allocation. Over null it only measures: plan once to get bytes(), and
/// again over the real memory. Every part is 256-byte aligned; its contents do not survive the op.
class Workspace {
 public:
  explicit Workspace(void* base = nullptr) : base_(static_cast<unsigned char*>(base)) {}

  template <typename T>
  T* Take(int64_t elems) {
    const size_t offset_bytes = next_;
    next_ += (static_cast<size_t>(elems) * sizeof(T) + 255) / 256 * 256;
    bytes_ = std::max(bytes_, next_);
    return base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + offset_bytes);
  }
  size_t bytes() const { return bytes_; }

  /// Releases what was taken since Mark(), for steps after those that use it. The steps may
  /// overlap: no kernel stores before its wait (LaunchStep).
  size_t Mark() const { return next_; }
  void Rewind(size_t mark) { next_ = mark; }

 private:
  unsigned char* base_;
  size_t next_ = 0;
  size_t bytes_ = 0;
};

/// Launches in stream order; empty if there is nothing to compute.
struct Plan {
  /// What `first_non_finite` holds before the first step: larger than any index.
  static constexpr int64_t kNoneFound = 0x7f7f7f7f7f7f7f7f;

  std::vector<LaunchStep> steps;
  /// For an input that only the kernel can reject: one word of the workspace. The backend sets it
  /// to kNoneFound before the first step; a kernel lowers it (atomicMin) to the index of each
  /// element of the input that is not finite; it is read after the last step. If it is below
  /// kNoneFound, the op and everything that read its outputs fail with kNonFinite.
  int64_t* first_non_finite = nullptr;
  /// Whether the input is tested after rounding to f16.
  bool finite_in_f16 = false;
  /// Set where the word tells of the documents of attention, of sequences of `document_rows` rows:
  /// it is lowered to entry · 2^32 + what the entry holds, and the op fails with kValue.
  const char* documents_op = nullptr;
  int64_t document_rows = 0;
  /// Data that the kernels read besides the op's operands (a table of pointers). The backend copies
  /// it to `upload_to` in the workspace before the first step. Not allowed while a stream is being
  /// captured, since the bytes belong to this op only.
  std::vector<unsigned char> upload;
  void* upload_to = nullptr;

  void Clear() {
    steps.clear();
    first_non_finite = nullptr;
    finite_in_f16 = false;
    documents_op = nullptr;
    document_rows = 0;
    upload.clear();
    upload_to = nullptr;
  }
};

/// `op` has passed Check(). Fails with kUnsupported if no kernel takes it, and says what is
/// supported.
#define LOWRANK_DECLARE_PLAN(Name, member) \
  Status MakePlan(const Name##Op& op, const DeviceLimits& device, Workspace* workspace, Plan* plan);
LOWRANK_FOR_EACH_OP(LOWRANK_DECLARE_PLAN)
#undef LOWRANK_DECLARE_PLAN

}  // namespace lowrank::cuda
