// What a peer in C++ shares: the job, the operands, the protocol (lib/bench/subject-process.ts).
#ifndef LOWRANK_BENCH_PEER_H_
#define LOWRANK_BENCH_PEER_H_

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

namespace peer {

/// In the order of the command line.
struct Job {
  std::string op, dtype, format;
  int64_t M, K, N, r;
  int threads;
  double cold_bytes;
};

inline Job ReadJob(char** argv) {
  const auto number = [](const char* text) { return static_cast<int64_t>(std::atoll(text)); };
  return {argv[1],           argv[2],         argv[3],         number(argv[4]),
          number(argv[5]),   number(argv[6]), number(argv[7]), std::atoi(argv[8]),
          std::atof(argv[9])};
}
constexpr int kArguments = 10;

constexpr float kScaling = 2;

/// An operand: the seed of its hash, and its largest absolute value (lib/bench/data.ts).
struct Operand {
  uint32_t seed;
  double scale;
};
constexpr Operand kX{1, 1}, kDy{2, 1}, kW{3, 0.05}, kLoraA{4, 0.05}, kLoraB{5, 0.2};

inline std::vector<float> Elements(Operand operand, int64_t count) {
  std::vector<float> values(static_cast<size_t>(count));
  for (size_t i = 0; i < values.size(); i++) {
    uint32_t u = static_cast<uint32_t>(i) * 0x9e3779b1u + operand.seed * 0x85ebca6bu;
    u = (u ^ (u >> 15)) * 0x2c1b3c6du;
    u ^= u >> 13;
    values[i] = static_cast<float>((u / 2147483648.0 - 1) * operand.scale);
  }
  return values;
}

inline int64_t Copies(const Job& job, double weight_bytes) {
  const double copies = std::ceil(job.cold_bytes / weight_bytes);
  return std::clamp<int64_t>(static_cast<int64_t>(copies), 1, 256);
}

/// What is said before the first sample; `last_row` is the last row of the result.
struct Ready {
  std::string version, note;
  double weight_bytes;
  int64_t copies;
  std::vector<float> last_row;
};

/// Gives up, in words.
[[noreturn]] inline void Fail(const std::string& text) {
  std::printf("{\"error\": \"%s\"}\n", text.c_str());
  std::exit(1);
}

/// Answers numbers of calls with their time, until stdin ends.
template <typename Call>
void Serve(const Ready& ready, const Call& call) {
  std::printf("{\"ready\": {\"version\": \"%s\", \"note\": \"%s\", \"weightBytes\": %.0f, ",
              ready.version.c_str(), ready.note.c_str(), ready.weight_bytes);
  std::printf("\"copies\": %lld, \"runner\": \"a loop in C++\", \"probe\": [",
              static_cast<long long>(ready.copies));
  const size_t width = ready.last_row.size();
  const size_t count = std::min<size_t>(16, width);
  for (size_t i = 0; i < count; i++) {
    std::printf("%s%.9g", i > 0 ? ", " : "", ready.last_row[i * width / count]);
  }
  std::printf("]}}\n");
  std::fflush(stdout);
  long long calls = 0;
  while (std::scanf("%lld", &calls) == 1) {
    const auto start = std::chrono::steady_clock::now();
    for (long long i = 0; i < calls; i++) call();
    const std::chrono::duration<double, std::milli> ms = std::chrono::steady_clock::now() - start;
    std::printf("{\"ms\": %.9g}\n", ms.count());
    std::fflush(stdout);
  }
}

}  // namespace peer

#endif  // LOWRANK_BENCH_PEER_H_
