/// The runtime of the CUDA emulator: what kernels, the PTX translation, the Hopper models and the
/// emulated driver are written against.
///
/// Every CUDA thread is a fiber. A warp-wide instruction is a rendezvous (Collective): each lane
/// leaves a pointer to its arguments, the last one to come computes for all of them. Barriers and
/// waits park lanes; a block whose lanes are all parked is dead, and says where each one stands.
///
/// Conventions:
///   - functions here act on the running thread, `current`, unless they say otherwise
///   - nothing throws, exits or aborts: Fail() ends the launch, Report() records a finding and goes
///     on; RunGrid() returns a status
///   - every operation takes the Site it stands at, so that findings name file and line
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace lowrank::emu {

// ---------------------------------------------------------------------------- where things stand

/// A place in the source, one word: a return address (resolved when it is printed), or a file name
/// and a line. File names must live for ever (string literals); lines are below 65,536.
struct Site {
  uint64_t bits = 0;

  static Site Address(const void* return_address) {
    return Site{reinterpret_cast<uintptr_t>(return_address) & kPointerMask};
  }
  static Site Line(const char* file, unsigned line) {
    return Site{(reinterpret_cast<uintptr_t>(file) & kPointerMask) | static_cast<uint64_t>(line)
                                                                         << kPointerBits};
  }
  static constexpr int kPointerBits = 48;
  static constexpr uint64_t kPointerMask = (uint64_t{1} << kPointerBits) - 1;

  unsigned line() const { return static_cast<unsigned>(bits >> kPointerBits); }  // 0: an address
  const void* pointer() const { return reinterpret_cast<const void*>(bits & kPointerMask); }
  bool operator==(const Site& other) const { return bits == other.bits; }
};

/// The caller of the (not inlined) function this stands in.
#define LOWRANK_EMU_CALLER ::lowrank::emu::Site::Address(__builtin_return_address(0))
/// As the last parameter of a device function: the line of the call, whatever is inlined.
#define LOWRANK_EMU_HERE \
  ::lowrank::emu::Site site = ::lowrank::emu::Site::Line(__builtin_FILE(), __builtin_LINE())

struct SourceLine {
  std::string file;  // as the compiler knew it; empty where nothing is known
  unsigned line = 0;
};
/// Looks a site up (addr2line for return addresses; results are kept).
SourceLine Resolve(Site site);
std::string ToString(Site site);  // "file.cu:12"

// ---------------------------------------------------------------------------------------- options

enum class Order : uint8_t { kForward, kReverse, kRandom };
enum class Copies : uint8_t { kLate, kEarly };  // asynchronous copies land at the wait, or at once

/// Read from LOWRANK_EMULATOR_<NAME> by OptionsFromEnvironment().
struct Options {
  Order order = Order::kForward;  // ORDER=forward|reverse|random
  uint64_t seed = 1;              // SEED, of the random order
  Copies copies = Copies::kLate;  // COPIES=late|early
  /// CHECK=0|1: races, bounds, initialisation. -1: for kernels whose hooks are Hooks::kAlways.
  int check = -1;
  bool counters = false;    // COUNTERS=0|1: requests, wavefronts and sectors per source line
  int workers = 0;          // WORKERS=n operating-system threads; 0: one per core
  int sm = 80;              // SM=80|86|89|90|120: the capability that the device reports
  std::string report_path;  // REPORT=path: findings are appended there too
  bool print = true;        // PRINT=0: findings are not written to stderr
};
const Options& CurrentOptions();
void SetOptions(const Options& options);
/// Sets one option by its name in lower case ("order", "seed", ...). False: no such name or value.
bool SetOption(const char* name, const char* value);
/// Starts from the defaults. False, and the message in `error`, where a value is not understood.
bool OptionsFromEnvironment(std::string* error);

// ----------------------------------------------------------------------- threads, blocks, kernels

struct Dim3 {
  uint32_t x = 1;
  uint32_t y = 1;
  uint32_t z = 1;
  constexpr Dim3(uint32_t x_ = 1, uint32_t y_ = 1, uint32_t z_ = 1) : x(x_), y(y_), z(z_) {}
};

/// One resident block. Shared memory is a window of kSharedWindow bytes of which the block's own
/// part is the end (so that running off it meets a guard page); a shared address is the offset in
/// the window, and the low 10 bits of shared_base are zero.
struct Block {
  Dim3 block_idx;
  Dim3 block_dim;
  Dim3 grid_dim;
  uint32_t linear = 0;    // of the block in its grid
  uint32_t instance = 0;  // unique to this execution of this block, never 0
  uint32_t threads = 0;
  uint32_t warps = 0;
  uint32_t cluster_size = 1;  // blocks along x
  uint32_t cluster_rank = 0;
  unsigned char* shared_window = nullptr;
  unsigned char* shared_base = nullptr;     // static shared memory, if any, comes first
  unsigned char* dynamic_shared = nullptr;  // 1,024-byte aligned
  uint32_t shared_bytes = 0;                // from shared_base on
  void* extension = nullptr;                // of the Extension, kept for the next block here
};
constexpr uint32_t kSharedWindow = 256 * 1024;
constexpr uint32_t kWarpSize = 32;
constexpr uint32_t kAllLanes = 0xffffffffu;

struct Thread {
  Dim3 thread_idx;
  uint32_t lane = 0;
  uint32_t warp = 0;    // in the block
  uint32_t linear = 0;  // in the block
  Block* block = nullptr;
  uint32_t proxy_fences = 0;  // fence.proxy.async executed so far
  bool watched = false;       // Extension::own_access is told of its variables
};
/// The running thread; null outside kernels.
extern __thread Thread* current __attribute__((tls_model("initial-exec")));

/// Who calls Access() for a kernel's plain loads and stores.
enum class Hooks : uint8_t {
  kNone,       // nobody (source mode, fast): only explicit operations are seen, nothing is checked
  kOnRequest,  // everything is seen (PTX mode); checked where Options::check is 1
  kAlways,     // everything is seen (source mode, instrumented); checked unless it is 0
};

struct Kernel {
  const char* name = nullptr;
  void (*body)(const void* params) = nullptr;  // run by every thread
  uint32_t param_bytes = 0;
  uint32_t max_threads = 1024;
  uint32_t min_blocks = 1;
  uint32_t static_shared_bytes = 0;
  Hooks hooks = Hooks::kNone;
  int ptx_version = 0;  // 10 · major + minor of the PTX it is made of; 0: compiled for any device
};
/// At static initialisation. A later kernel of the same name takes the place of the earlier one.
bool RegisterKernel(const Kernel& kernel);
const Kernel* FindKernel(const char* name);
std::vector<const Kernel*> AllKernels();

/// Launches of one stream that a launch after them may overlap, as ranges of block numbers.
struct LaunchChain {
  std::mutex mutex;
  std::vector<std::pair<uint32_t, uint32_t>> unfinished;  // [first, end)
};
struct Launch {
  const Kernel* kernel = nullptr;
  Dim3 grid;
  Dim3 block;
  uint32_t cluster = 1;       // blocks along x; they are co-resident
  uint32_t shared_bytes = 0;  // dynamic
  const void* params = nullptr;
  /// Of its stream, or null. A launch that overlaps those before it (programmatic stream
  /// serialization) may look at what they write only after GridDependencyWait(), and has to wait
  /// before it ends: what follows knows of them through it alone.
  LaunchChain* chain = nullptr;
  bool overlaps_previous = false;
};
enum class LaunchStatus : uint8_t {
  kOk,
  kInvalidConfiguration,  // sizes that no device takes; nothing ran
  kIllegalAddress,        // a memory fault: CUDA_ERROR_ILLEGAL_ADDRESS
  kFinding,               // anything else that was found: CUDA_ERROR_ASSERT
};
/// Runs the grid to its end on the calling thread (and helpers of the runtime). One launch at a
/// time: concurrent callers wait for each other. Findings go to Reports().
LaunchStatus RunGrid(const Launch& launch);

// --------------------------------------------------------------------------------------- findings

/// Kinds: race-shared, race-global, oob-shared, oob-global, misaligned, uninitialised,
/// async-in-flight (a copy's bytes used, or its target written, before its wait), async-unwaited,
/// divergent-barrier, divergent-warp (an aligned instruction reached by part of a warp), barrier
/// (wrong counts), inactive-lane, deadlock, livelock, fault, shared-size, proxy-fence, and what
/// extensions add.
struct Finding {
  std::string kind;
  std::string text;    // a sentence, with file and line of every site
  std::string kernel;  // its name
  SourceLine where;    // of the first site
};
/// Records a finding and goes on; a pair (site, other) is recorded once a launch and kind. `text`
/// is printf-like, without the sites: they are appended as " at file:line", " (other: file:line)".
void Report(const char* kind, Site site, Site other, const char* format, ...)
    __attribute__((format(printf, 4, 5)));
/// Records a finding and ends the launch. Does not return. Only on a kernel's thread.
[[noreturn]] void Fail(const char* kind, Site site, const char* format, ...)
    __attribute__((format(printf, 3, 4)));
/// Those since the last ClearFindings(), at most 100 of them.
std::vector<Finding> Findings();
size_t FindingCount();  // all of them
void ClearFindings();

// ----------------------------------------------------------------------------- warps and barriers

/// Lanes of `mask` that have not exited meet; the last one calls fn(mask, args), args[lane] being
/// each lane's `arg`. `aligned`: every lane of the warp must come, to the same site (.aligned).
using CollectiveFn = void (*)(uint32_t mask, void** args);
void Collective(CollectiveFn fn, uint32_t mask, void* arg, const char* what, Site site,
                bool aligned);

void SyncWarp(uint32_t mask, Site site);
uint32_t ActiveMask();  // lanes of this warp that have not exited and are not parked elsewhere
/// Barriers 0 to 15; threads 0 means the whole block. `aligned` demands one site from all.
void BarrierSync(uint32_t id, uint32_t threads, Site site, bool aligned = true);
void BarrierArrive(uint32_t id, uint32_t threads, Site site);
enum class BarrierOp : uint8_t { kOr, kAnd, kCount };
int BarrierReduce(BarrierOp op, int predicate, Site site);
/// Blocks of a cluster; arrive releases unless it is relaxed, wait acquires.
void ClusterArrive(Site site, bool relaxed = false);
void ClusterWait(Site site);
/// The same shared address in the block of that rank of the cluster.
void* MapShared(const void* s_ptr, uint32_t rank, Site site);

/// Called by polling loops: lets every other thread run first, then blocks that have not started.
void SpinYield(const char* what, Site site);
/// Not runnable until Wake(); the deadlock report names `what` and the site.
void Park(const char* what, Site site);
void Wake(Thread* thread);
/// From the generator of the random order (any order may call it).
uint64_t Random();

enum class ShuffleMode : uint8_t { kIndex, kUp, kDown, kXor };
uint64_t Shuffle(uint32_t mask, uint64_t value, int32_t select, int32_t width, ShuffleMode mode,
                 Site site);
/// As shfl.sync: `clamp_and_segment` is PTX's operand c, *in_range its predicate.
uint32_t ShufflePtx(uint32_t mask, uint32_t value, uint32_t select, uint32_t clamp_and_segment,
                    ShuffleMode mode, bool* in_range, Site site);
uint32_t Ballot(uint32_t mask, bool predicate, Site site);
/// match.any.sync: the lanes that hold the same value.
uint32_t MatchAny(uint32_t mask, uint64_t value, Site site);
enum class ReduceOp : uint8_t { kAdd, kMinS, kMaxS, kMinU, kMaxU, kAnd, kOr, kXor };
uint32_t Reduce(uint32_t mask, uint32_t value, ReduceOp op, Site site);

// ----------------------------------------------------------------------------------- tensor cores

/// ldmatrix: `count` 8 x 8 matrices of 16-bit elements; lane l gives row l % 8 of matrix l / 8.
void LdMatrix(uint32_t* r, int count, bool transposed, const void* s_row, Site site);
/// stmatrix, its inverse.
void StMatrix(const uint32_t* r, int count, bool transposed, void* s_row, Site site);

enum class MmaType : uint8_t { kBF16, kF16, kTF32, kS8, kU8, kS8U8 };
/// d [16, 8] = c + a [16, k] · b [k, 8], k = 16 (bf16, f16), 8 (tf32) or 32 (s8); fragments as PTX
/// lays them out (cuda/ptx.cuh). Products are exact; c and the products are summed in double in the
/// order of k and rounded once to f32 (s8: int32, wrapping). c and d may be the same array.
void Mma(MmaType type, float* d, const uint32_t* a, const uint32_t* b, const float* c, Site site);
void MmaInt(MmaType type, int32_t* d, const uint32_t* a, const uint32_t* b, const int32_t* c,
            Site site);
/// The 16-wide f16/bf16 product with k = 8 (m16n8k8): a[2], b[1].
void MmaK8(MmaType type, float* d, const uint32_t* a, const uint32_t* b, const float* c, Site site);

// -------------------------------------------------------------------- loads, stores, async copies

enum class AccessKind : uint8_t {
  kRead,
  kReadNonCoherent,  // ld.global.nc: of memory that nobody may write while the launch runs
  kWrite,
  kAtomic,       // a read-modify-write; atomics race with plain accesses only
  kAtomicLoad,   // volatile, relaxed or acquire
  kAtomicStore,  // volatile, relaxed or release
  kCopyIssue,    // an asynchronous copy will write here
  kCopyDone,     // and has
  kCopyRead,     // an asynchronous copy reads here: uninitialised bytes are copied, not used
};
/// Who sees what an atomic, a fence or a barrier object orders: two threads synchronise where the
/// scopes of both sides include the other one. The scope of the system is the device's here.
enum class Scope : uint8_t { kNone, kBlock, kCluster, kDevice };
/// Is anything watching? Where not, Access() need not be called.
extern bool observing;
/// The hook of every load and store in global and shared memory; others are ignored. Does not
/// perform the access. Called before it.
void AccessSlow(const void* ptr, uint32_t bytes, AccessKind kind, Site site,
                Scope scope = Scope::kDevice);
inline void Access(const void* ptr, uint32_t bytes, bool write, Site site) {
  if (__builtin_expect(observing, 0)) {
    AccessSlow(ptr, bytes, write ? AccessKind::kWrite : AccessKind::kRead, site);
  }
}
/// Before an atomic on *ptr that stands in no AtomicBegin/AtomicEnd.
inline void NoteAtomic(const void* ptr, uint32_t bytes, Site site) {
  if (__builtin_expect(observing, 0)) AccessSlow(ptr, bytes, AccessKind::kAtomic, site);
}
/// Happens-before between threads through a word in memory: release before the store (or atomic),
/// acquire after the load.
void NoteRelease(const void* ptr, Site site, Scope scope = Scope::kDevice);
void NoteAcquire(const void* ptr, Site site, Scope scope = Scope::kDevice);
/// fence.acq_rel: from now on this thread's relaxed atomics count as release and acquire (an
/// approximation that errs to silence), at the scope of the last fence; what an earlier, wider one
/// stood after, they release at its scope.
void Fence(Scope scope);
/// griddepcontrol.wait: until the launches before this one have finished.
void GridDependencyWait();
/// Around a relaxed atomic: the access itself, and what a Fence() before it makes of it.
void AtomicBegin(const void* ptr, uint32_t bytes, Site site, Scope scope = Scope::kDevice);
void AtomicEnd(const void* ptr, Site site, Scope scope = Scope::kDevice);
/// A load that polls: yields first where it repeats this thread's last acquire of that word.
uint32_t LoadAcquire(const uint32_t* ptr, Site site, Scope scope = Scope::kDevice);
void StoreRelease(uint32_t* ptr, uint32_t value, Site site, Scope scope = Scope::kDevice);

/// cp.async: `bytes` to shared memory, of which `source_bytes` are read and the rest is zero.
void CpAsync(void* s_dst, const void* g_src, uint32_t bytes, uint32_t source_bytes, Site site);
void CpAsyncCommit(Site site);
void CpAsyncWait(uint32_t pending_groups, Site site);  // wait_group
void CpAsyncWaitAll(Site site);                        // wait_all: uncommitted copies too

/// Address spaces as PTX sees them.
uint32_t SharedAddress(const void* s_ptr);  // offset in the window
void* SharedPointer(uint32_t address);      // of the running block
bool IsShared(const void* ptr);             // of any resident block
bool IsGlobal(const void* ptr);             // in an allocation or a registered host range

// ------------------------------------------------------------------------ happens-before, by hand

/// What a thread has seen of others: the state of a barrier-like object in check mode (mbarrier).
/// Costs nothing where nothing is checked.
class SyncClock {
 public:
  SyncClock();
  ~SyncClock();
  SyncClock(const SyncClock& other);
  SyncClock& operator=(const SyncClock& other);
  void Clear();
  void Release(Scope scope);        // joins what the running thread has done into this
  void Acquire(Scope scope) const;  // the running thread has now seen what is in this
  void Join(const SyncClock& other);

 private:
  struct State;
  State* state_ = nullptr;
};

/// One set of callbacks for models that live outside the runtime (TMA, wgmma).
struct Extension {
  void (*block_begin)(Block* block) = nullptr;  // before its threads run
  void (*block_end)(Block* block) = nullptr;    // all its threads have exited
  /// Every lane of every resident block is parked: let one asynchronous operation complete. False
  /// where none is pending.
  bool (*progress)() = nullptr;
  /// In check mode: a plain access of a thread that is `watched` to its own variables.
  void (*own_access)(const void* ptr, uint32_t bytes, bool write, Site site) = nullptr;
};
void RegisterExtension(const Extension& extension);

// ------------------------------------------------------------------------------------- shadow data

/// Marks for check mode, on the shared or global bytes at ptr; no effect elsewhere.
void MarkInitialised(const void* ptr, size_t bytes);
/// Forgets who read and wrote there (a copy engine's write that a barrier object has published).
void MarkPublished(const void* ptr, size_t bytes);
/// For the proxy check. The running thread executes fence.proxy.async.
void NoteProxyFence();
/// The youngest ordinary write of this launch to these bytes with no fence.proxy.async after it,
/// neither by its thread nor by this one since it has seen the write. False where there is none.
bool UnfencedWrite(const void* ptr, size_t bytes, Site* writer);

/// Slots of a ring in shared memory, known by their address: what is read has to be what the slot
/// was filled with last. Reads and writes that are ordered, but of the wrong turn, show only so.
void NoteSlotFilled(const void* s_slot, uint32_t generation, Site site);
void NoteSlotRead(const void* s_slot, uint32_t generation, Site site);

// ------------------------------------------------------------------------------------------ counts

/// What a warp's accesses at one source line cost.
enum class RequestKind : uint8_t {
  kLoadShared,
  kStoreShared,
  kLoadGlobal,
  kStoreGlobal,
  kAtomicShared,
  kAtomicGlobal,
  kLdMatrix,
  kStMatrix,
  kCopyToShared,    // cp.async, the shared side
  kCopyFromGlobal,  // cp.async, the global side
};
const char* ToString(RequestKind kind);
struct LineCount {
  std::string kernel;
  SourceLine where;
  RequestKind kind = RequestKind::kLoadShared;
  uint32_t bytes_per_lane = 0;
  uint64_t requests = 0;  // warp-wide
  uint64_t cost = 0;      // shared wavefronts, or global 32-byte sectors
  uint64_t ideal = 0;     // the fewest that move these bytes
  uint64_t bytes = 0;
};
/// One lane's part of a warp-wide request; bytes 0: takes no part.
struct LaneAccess {
  uintptr_t address;
  uint32_t bytes;
};
/// Counts one warp-wide request (of a model that sees whole requests itself).
void CountRequest(RequestKind kind, uint32_t bytes_per_lane, const LaneAccess* lanes, int count,
                  Site site);
/// Adds to a dynamic counter ("mma.m16n8k16", "barrier", ...), a string literal. Nothing where
/// Options::counters is off.
void Count(const char* name, uint64_t n = 1);
struct NamedCount {
  std::string kernel;
  std::string name;
  uint64_t value = 0;
};
std::vector<LineCount> LineCounts();    // sorted by file, line, kind
std::vector<NamedCount> NamedCounts();  // sorted by kernel, name
void ClearCounts();

// ----------------------------------------------------------------------------------- device memory

/// Device memory, in a reserved range of its own: filled with 0xFF (a NaN in every float format),
/// its end at a page that faults. `alignment` is a power of two up to 4,096; bytes between the end
/// asked for and the page are checked when it is freed. Null where there is no room.
void* Allocate(size_t bytes, size_t alignment = 256);
bool Free(void* ptr);  // false: not the start of an allocation
/// Memory of the host that kernels may use: part of the checks from now on, taken as initialised.
void RegisterHost(void* ptr, size_t bytes);
bool UnregisterHost(void* ptr);
/// The allocation or host range that holds ptr.
bool FindRange(const void* ptr, void** base, size_t* bytes, bool* is_host);
size_t AllocatedBytes();
/// memcpy and memset that keep the marks of check mode: what is copied is as initialised as its
/// source was.
void CopyMemory(void* dst, const void* src, size_t bytes);
void SetMemory(void* dst, int value, size_t bytes);

}  // namespace lowrank::emu
