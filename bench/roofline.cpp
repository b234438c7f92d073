// Ceilings of this machine: multiply-adds of each type from registers, and reads and copies of a
// buffer that no cache holds. Prints one JSON object: {"1": {"f32": GFLOP/s, ..., "read": GB/s}}.
// A type that the processor has no instruction for is left out.
//   c++ -O3 -march=native -std=c++17 -pthread roofline.cpp -o roofline && ./roofline 1,2 BYTES
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>
#include <thread>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__linux__)
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

// Two units of four cycles' latency need eight chains; twelve leave room for other machines.
constexpr int kChains = 12;
constexpr int kRepeats = 20;

// Chains are named one by one: GCC keeps an array of vectors in memory, and the loop then measures
// the cache.
#define LOWRANK_CHAINS(STEP)                                                                 \
  STEP(s0)                                                                                   \
  STEP(s1) STEP(s2) STEP(s3) STEP(s4) STEP(s5) STEP(s6) STEP(s7) STEP(s8) STEP(s9) STEP(s10) \
      STEP(s11)

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
typedef float Floats __attribute__((vector_size(4 * kLanes)));

float ChainsF32(long rounds, float seed) {
  const Floats a = Floats{} + 0.999f;
  const Floats b = Floats{} + 0.001f;
#define LOWRANK_STEP(s) Floats s = Floats{} + seed;
  LOWRANK_CHAINS(LOWRANK_STEP)
#undef LOWRANK_STEP
  for (long round = 0; round < rounds; round++) {
#define LOWRANK_STEP(s) s = s * a + b;
    LOWRANK_CHAINS(LOWRANK_STEP)
#undef LOWRANK_STEP
    // Equal chains would be computed once.
#define LOWRANK_STEP(s) __asm__ volatile("" : "+v"(s));
#if defined(__x86_64__)
    LOWRANK_CHAINS(LOWRANK_STEP)
#endif
#undef LOWRANK_STEP
  }
  Floats total = Floats{};
#define LOWRANK_STEP(s) total += s;
  LOWRANK_CHAINS(LOWRANK_STEP)
#undef LOWRANK_STEP
  float sum = 0;
  for (int lane = 0; lane < kLanes; lane++) sum += total[lane];
  return sum;
}

#if defined(__AVX512BF16__)
constexpr double kFlopsBf16 = 64;
float ChainsBf16(long rounds, float seed) {
  const __m512 value = _mm512_set1_ps(seed);
  const __m512bh a = _mm512_cvtne2ps_pbh(value, value);
#define LOWRANK_STEP(s) __m512 s = _mm512_set1_ps(seed);
  LOWRANK_CHAINS(LOWRANK_STEP)
#undef LOWRANK_STEP
  for (long round = 0; round < rounds; round++) {
#define LOWRANK_STEP(s)          \
  s = _mm512_dpbf16_ps(s, a, a); \
  __asm__ volatile("" : "+v"(s));
    LOWRANK_CHAINS(LOWRANK_STEP)
#undef LOWRANK_STEP
  }
  __m512 total = _mm512_setzero_ps();
#define LOWRANK_STEP(s) total = _mm512_add_ps(total, s);
  LOWRANK_CHAINS(LOWRANK_STEP)
#undef LOWRANK_STEP
  return _mm512_reduce_add_ps(total);
}
#endif

#if defined(__AMX_BF16__) && defined(__AMX_INT8__) && defined(__linux__)
#define LOWRANK_TILES
constexpr double kFlopsTiles = 2.0 * 16 * 16 * 32;  // of bf16; int8 has twice as many

/// Linux saves a thread's tiles only for a process that has asked for them.
bool MayUseTiles() {
  constexpr int kRequestPermission = 0x1023;
  constexpr int kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

/// Products of the matrix unit, four sums in turn.
template <bool kInt8>
float ChainsTiles(long rounds, float) {
  struct {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } config;
  __asm__ volatile("ldtilecfg %0" : : "m"(config));
  for (long round = 0; round < rounds; round++) {
    for (int i = 0; i < kChains / 4; i++) {
      if constexpr (kInt8) {
        _tile_dpbssd(0, 4, 6);
        _tile_dpbssd(1, 4, 7);
        _tile_dpbssd(2, 5, 6);
        _tile_dpbssd(3, 5, 7);
      } else {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
    }
  }
  _tile_release();
  return 0;
}
#endif

#if defined(__AVX512VNNI__)
constexpr double kOpsInt8 = 128;
float ChainsInt8(long rounds, float seed) {
  const __m512i a = _mm512_set1_epi32(static_cast<int>(seed) | 0x01010101);
#define LOWRANK_STEP(s) __m512i s = a;
  LOWRANK_CHAINS(LOWRANK_STEP)
#undef LOWRANK_STEP
  for (long round = 0; round < rounds; round++) {
#define LOWRANK_STEP(s)             \
  s = _mm512_dpbusd_epi32(s, a, a); \
  __asm__ volatile("" : "+v"(s));
    LOWRANK_CHAINS(LOWRANK_STEP)
#undef LOWRANK_STEP
  }
  __m512i total = _mm512_setzero_si512();
#define LOWRANK_STEP(s) total = _mm512_add_epi32(total, s);
  LOWRANK_CHAINS(LOWRANK_STEP)
#undef LOWRANK_STEP
  return static_cast<float>(_mm512_reduce_add_epi32(total));
}
#elif defined(__AVXVNNI__)
constexpr double kOpsInt8 = 64;
float ChainsInt8(long rounds, float seed) {
  const __m256i a = _mm256_set1_epi32(static_cast<int>(seed) | 0x01010101);
#define LOWRANK_STEP(s) __m256i s = a;
  LOWRANK_CHAINS(LOWRANK_STEP)
#undef LOWRANK_STEP
  for (long round = 0; round < rounds; round++) {
#define LOWRANK_STEP(s)                 \
  s = _mm256_dpbusd_avx_epi32(s, a, a); \
  __asm__ volatile("" : "+v"(s));
    LOWRANK_CHAINS(LOWRANK_STEP)
#undef LOWRANK_STEP
  }
  __m256i total = a;
#define LOWRANK_STEP(s) total = _mm256_add_epi32(total, s);
  LOWRANK_CHAINS(LOWRANK_STEP)
#undef LOWRANK_STEP
  return static_cast<float>(_mm256_extract_epi32(total, 0));
}
#endif

volatile float g_sink;

/// Keeps threads that begin together on a core each: two new ones are often put on one, and a run
/// is over before the system has seen that another is idle.
class Cores {
 public:
  /// Keeps the calling thread where it is, or where none of those before it is kept.
  void Keep() {
#if defined(__linux__)
    const std::lock_guard<std::mutex> lock(mutex_);
    cpu_set_t free;
    if (sched_getaffinity(0, sizeof(free), &free) != 0) return;
    for (int taken : taken_) CPU_CLR(taken, &free);
    if (sched_setaffinity(0, sizeof(free), &free) != 0) return;  // more threads than cores
    const int core = sched_getcpu();
    CPU_ZERO(&free);
    CPU_SET(core, &free);
    sched_setaffinity(0, sizeof(free), &free);
    taken_.push_back(core);
#endif
  }

 private:
  std::mutex mutex_;
  std::vector<int> taken_;
};

/// Seconds of the fastest of several runs in which every thread calls `body(thread)` once.
template <typename Body>
double Best(int threads, const Body& body) {
  double best = 1e30;
  for (int repeat = 0; repeat < kRepeats; repeat++) {
    std::atomic<int> ready{0};
    std::atomic<bool> go{false};
    std::vector<std::thread> pool;
    Cores cores;
    for (int t = 0; t < threads; t++) {
      pool.emplace_back([&, t] {
        cores.Keep();
        ready++;
        while (!go) std::this_thread::yield();
        body(t);
      });
    }
    while (ready < threads) std::this_thread::yield();
    const auto start = std::chrono::steady_clock::now();
    go = true;
    for (std::thread& thread : pool) thread.join();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    best = std::min(best, seconds.count());
  }
  return best;
}

template <typename Chains>
double PeakGflops(int threads, double flops, const Chains& chains, long rounds = 1'500'000) {
  const double seconds =
      Best(threads, [&](int t) { g_sink = chains(rounds, 1.0f + static_cast<float>(t)); });
  return flops * kChains * static_cast<double>(rounds) * threads / seconds * 1e-9;
}

#if defined(__AVX512BF16__)
/// Of the instruction that products use: the matrix unit's where the process may have it.
double PeakBf16(int threads) {
#if defined(LOWRANK_TILES)
  if (MayUseTiles()) return PeakGflops(threads, kFlopsTiles, ChainsTiles<false>, 50'000);
#endif
  return PeakGflops(threads, kFlopsBf16, ChainsBf16);
}
#endif

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
double PeakInt8(int threads) {
#if defined(LOWRANK_TILES)
  if (MayUseTiles()) return PeakGflops(threads, 2 * kFlopsTiles, ChainsTiles<true>, 50'000);
#endif
  return PeakGflops(threads, kOpsInt8, ChainsInt8);
}
#endif

/// Sums of a whole part: eight vectors a step, so that additions do not bound it.
float ReadAll(const Floats* data, size_t count) {
  Floats s[8] = {};
  for (size_t i = 0; i + 8 <= count; i += 8) {
    for (size_t j = 0; j < 8; j++) s[j] += data[i + j];
  }
  Floats total = Floats{};
  for (const Floats& part : s) total += part;
  return total[0];
}

}  // namespace

int main(int argc, char** argv) {
  const std::string list = argc > 1 ? argv[1] : "1";
  const size_t bytes = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : size_t{256} << 20;
  std::vector<int> counts;
  for (size_t at = 0; at < list.size();) {
    const size_t end = std::min(list.find(',', at), list.size());
    counts.push_back(std::max(1, std::atoi(list.substr(at, end - at).c_str())));
    at = end + 1;
  }
  const size_t vectors = bytes / sizeof(Floats);
  std::vector<float> from(bytes / 4 + 64, 1.0f), to(bytes / 4 + 64, 2.0f);
  const auto aligned = [](std::vector<float>& data) {
    const auto address = reinterpret_cast<uintptr_t>(data.data());
    return reinterpret_cast<Floats*>((address + 63) / 64 * 64);
  };
  Floats* source = aligned(from);
  Floats* target = aligned(to);

  std::printf("{");
  for (size_t i = 0; i < counts.size(); i++) {
    const int threads = counts[i];
    std::printf("%s\"%d\": {\"f32\": %.1f", i > 0 ? ", " : "", threads,
                PeakGflops(threads, 2.0 * kLanes, ChainsF32));
#if defined(__AVX512BF16__)
    std::printf(", \"bf16\": %.1f", PeakBf16(threads));
#endif
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
    std::printf(", \"int8\": %.1f", PeakInt8(threads));
#endif
    const size_t part = vectors / static_cast<size_t>(threads);
    const double moved = static_cast<double>(part * sizeof(Floats)) * threads * 1e-9;
    const double read = Best(
        threads, [&](int t) { g_sink = ReadAll(source + static_cast<size_t>(t) * part, part); });
    const double copy = Best(threads, [&](int t) {
      const size_t at = static_cast<size_t>(t) * part;
      std::memcpy(static_cast<void*>(target + at), source + at, part * sizeof(Floats));
    });
    std::printf(", \"read\": %.2f, \"copy\": %.2f}", moved / read, 2 * moved / copy);
    std::fflush(stdout);
  }
  std::printf("}\n");
}
