// Peak f32 multiply-add rate of this machine: independent chains of vector FMAs in every thread, no
// memory traffic. Prints GFLOP/s. Compiled and run by `lowrank bench`.
//   c++ -O3 -march=native -pthread roofline.cpp -o roofline && ./roofline THREADS
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
typedef float Vector __attribute__((vector_size(4 * kLanes)));

// Two FMA units of four cycles' latency need eight chains; twelve leave room for other machines.
constexpr int kChains = 12;
constexpr long kRounds = 4'000'000;

static void Chains(float seed, float* result) {
  const Vector a = Vector{} + 0.999f;
  const Vector b = Vector{} + 0.001f;
  // Named one by one: GCC keeps an array of vectors in memory, and the loop then measures the
  // cache.
  Vector s0 = Vector{} + seed, s1 = s0 + 1.f, s2 = s0 + 2.f, s3 = s0 + 3.f, s4 = s0 + 4.f,
         s5 = s0 + 5.f, s6 = s0 + 6.f, s7 = s0 + 7.f, s8 = s0 + 8.f, s9 = s0 + 9.f, s10 = s0 + 10.f,
         s11 = s0 + 11.f;
  for (long round = 0; round < kRounds; round++) {
    s0 = s0 * a + b, s1 = s1 * a + b, s2 = s2 * a + b, s3 = s3 * a + b;
    s4 = s4 * a + b, s5 = s5 * a + b, s6 = s6 * a + b, s7 = s7 * a + b;
    s8 = s8 * a + b, s9 = s9 * a + b, s10 = s10 * a + b, s11 = s11 * a + b;
  }
  const Vector total = s0 + s1 + s2 + s3 + s4 + s5 + s6 + s7 + s8 + s9 + s10 + s11;
  float sum = 0;
  for (int lane = 0; lane < kLanes; lane++) sum += total[lane];
  *result = sum;
}

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 1;
  double best = 0;
  for (int repeat = 0; repeat < 5; repeat++) {
    std::vector<float> results(threads);
    std::vector<std::thread> pool;
    const auto start = std::chrono::steady_clock::now();
    for (int t = 0; t < threads; t++) pool.emplace_back(Chains, 1.0f + t, &results[t]);
    for (std::thread& thread : pool) thread.join();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    const double flops = 2.0 * kLanes * kChains * kRounds * threads;
    if (flops / seconds.count() > best) best = flops / seconds.count();
  }
  std::printf("%.1f\n", best / 1e9);
}
