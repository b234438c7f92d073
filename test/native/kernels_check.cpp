// Checks the CPU kernel tables against plain double loops, without JavaScript: every instruction
// set that runs here, dtypes, formats, ragged shapes, thread counts, a row alone and in a batch.
//
//   kernels_check [isa]                               all checks; status 1 if one fails
//   kernels_check --routes                            the routes of each set that runs here
//   kernels_check --bench [isa [threads [seconds [case or shape]]]]   GFLOP/s beside the measured
//   peak
#include "test/native/kernel_operands.h"

namespace lowrank::cpu {
namespace {

constexpr const char* kEmulated = "avx512-amx, emulated";

int Main(int argc, char** argv) {
  const bool bench = argc > 1 && std::strcmp(argv[1], "--bench") == 0;
  const char* only = bench ? (argc > 2 ? argv[2] : nullptr) : (argc > 1 ? argv[1] : nullptr);
  const char* names[] = {"portable",    "avx2",       "avx512",  "avx512-vnni",
                         "avx512-bf16", "avx512-amx", kEmulated, "neon"};
  CancelToken cancel;
  ThreadPool pool(2);
  const RunContext context = {&pool, &cancel};
  if (bench) {
    std::string reason;
    const KernelTable* table = SelectKernels(only, &reason);
    if (table == nullptr) {
      std::printf("%s\n", reason.c_str());
      return 1;
    }
    const int threads = argc > 3 ? std::atoi(argv[3]) : 2;
    Bench(*table, threads, argc > 4 ? std::atof(argv[4]) : 1.0, argc > 5 ? argv[5] : nullptr);
    return 0;
  }
  const bool routes = only != nullptr && std::strcmp(only, "--routes") == 0;
  if (routes) only = nullptr;
  std::string reason;
  if (!routes) CheckRouteTable();
  Report(SelectKernels("mmx", &reason) == nullptr && reason.find("portable") != std::string::npos,
         "an unknown instruction set is refused: " + reason);
  if (!routes) {
    CheckPool();
    CheckHostMemory();
    CheckAliases();
  }
  for (const char* name : names) {
    if (only != nullptr && std::strcmp(only, name) != 0) continue;
    const bool is_emulated = std::strcmp(name, kEmulated) == 0;
    reason = "needs AVX-512 with bf16";
    const KernelTable* table = is_emulated ? EmulatedTiles() : SelectKernels(name, &reason);
    if (table == nullptr) {
      std::printf("%s: %s\n", name, reason.c_str());
      continue;
    }
    const std::string set = is_emulated ? "avx512-amx" : name;
    if (routes) {
      PrintRoutes(*table, set);
      continue;
    }
    const int before = g_failures;
    CheckRoutes(*table, set);
    CheckLayers(*table, context);
    CheckParts(*table, context);
    CheckOptimizers(*table, context);
    CheckAttention(*table, context);
    CheckFeatures(*table, context);
    CheckGrouped(*table, context);
    CheckInvariance(*table, &cancel);
    CheckNonFinite(*table, context);
    CheckFormats(*table, context);
    CheckPlanes(*table, context);
    CheckInt8(*table, &cancel);
    CheckBase(*table, context);
    CheckPartsInTurns(*table, context);
    CancelToken cancelled;
    cancelled.Cancel();
    Dense x(4, 8, DType::kF32), y(4, 8, DType::kF32);
    CastOp op;
    op.src = x.Fill().view;
    op.dst = y.view;
    Report(table->cast(op, {&pool, &cancelled}).code() == Code::kCancelled, "cancelled");
    const KernelTable* unit = is_emulated ? SelectKernels("avx512-amx", &reason) : nullptr;
    if (unit != nullptr) CheckTiles(*unit, *table, context);
    if (unit != nullptr) CheckAttentionTiles(*unit, *table, context);
    std::printf("%s: %d failures\n", name, g_failures - before);
  }
  std::printf("%d checks, %d failures\n", g_checks, g_failures);
  return g_failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace lowrank::cpu

int main(int argc, char** argv) { return lowrank::cpu::Main(argc, argv); }
