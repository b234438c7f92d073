/// Every PTX wrapper on a GPU against the emulator, word for word, on random operands.
///
///   gpu_instructions_check EMULATOR [--device LIBRARY] [--trials N] [--seed N]
///
/// EMULATOR is a library made of the emulator and test/gpu's kernels. The GPU is the system's
/// driver, with the kernels in lowrank-instructions.fatbin beside this program; --device names
/// another such library in its place, which proves the comparison without a GPU.
///
/// One line of JSON an instruction: what was compared, how many words differ, and where the
/// hardware may round otherwise (products of random values) the largest difference, in units of
/// 2^-24 of the sum of the absolute products. Exit status: 0, 1 where something differs, 2 where it
/// could not be run.
#include <cmath>
#include <cstdlib>

#include "test/gpu/instruction_params.h"
#include "test/gpu/instruction_trials.h"
#include "test/gpu/machine.h"

namespace lowrank::cuda {
namespace {

constexpr double kUnit = 1.0 / (1 << 24);
/// Of products of random values, in those units. The emulator cuts sums off as tensor cores are
/// known to (cuda/emulator/instructions/tensor_sums.h), so 0 is expected; a card that differs from
/// that model loses at most 10 units a step. A word in the wrong place is off by a hundred thousand.
constexpr double kProductTolerance = 32;

struct Outcome {
  Words words;
  Status status;
};

void AddMap(const Trial& trial, int which, const void* base, uint32_t blocks, LaunchStep* step) {
  TensorMapRequest map;
  map.param_offset_bytes = static_cast<uint32_t>(which * static_cast<int>(sizeof(gpu::TensorMap)));
  map.base = base;
  map.dtype = trial.bf16 ? DType::kBF16 : DType::kF16;
  const uint32_t copies = trial.shared_tensor ? 1 : blocks;
  map.size_elems = {trial.tensor_cols, uint64_t{trial.tensor_rows[which]} * copies};
  map.stride_bytes = {0, uint64_t{trial.tensor_cols} * 2};
  map.box_elems = {trial.box_cols, trial.box_rows[which]};
  map.swizzle_bytes = trial.swizzle_bytes;
  step->tensor_maps.push_back(map);
}

Outcome Run(Machine* machine, const Trial& trial, uint32_t blocks, const Words& in,
            const std::vector<uint16_t> (&tensors)[2]) {
  Outcome outcome;
  outcome.words.assign(size_t{blocks} * trial.out_words, 0);
  DeviceMemory memory(machine);
  gpu::InstructionParams words;
  words.in = static_cast<const uint32_t*>(memory.Put(in.data(), in.size() * 4));
  words.out = static_cast<uint32_t*>(memory.Zeros(outcome.words.size() * 4));
  words.in_words = trial.in_words;
  words.out_words = trial.out_words;

  LaunchStep step;
  step.kernel = trial.kernel;
  step.grid.x = blocks;
  step.threads = trial.threads;
  step.cluster = trial.cluster;
  step.shared_bytes = trial.shared_bytes;
  if (trial.tensor_cols == 0) {
    step.SetParams(words);
  } else {
    gpu::TensorInstructionParams params = {};
    params.words = words;
    step.SetParams(params);
    for (int which = 0; which < 2; ++which) {
      if (tensors[which].empty()) continue;
      AddMap(trial, which, memory.Put(tensors[which].data(), tensors[which].size() * 2), blocks,
             &step);
    }
  }
  outcome.status = memory.status();
  if (outcome.status.ok()) {
    const std::vector<LaunchStep> steps(trial.dependent ? 2 : 1, step);
    outcome.status = machine->context->Launch(steps, machine->home());
  }
  if (!outcome.status.ok()) return outcome;
  memory.Read(words.out, outcome.words.data(), outcome.words.size() * 4);
  outcome.status = memory.status();
  return outcome;
}

bool SameFloat(uint32_t a, uint32_t b) {
  return a == b || (std::isnan(AsFloat(a)) && std::isnan(AsFloat(b)));
}

/// Whether a trial passes; prints its line.
bool Judge(const Trial& trial, uint32_t blocks, const Outcome& device, const Outcome& emulator) {
  std::string error = !device.status.ok()     ? device.status.message()
                      : !emulator.status.ok() ? emulator.status.message()
                                              : "";
  size_t differing = 0;
  double largest = 0;
  std::string first;
  for (size_t i = 0; error.empty() && i < device.words.size(); ++i) {
    const uint32_t a = device.words[i];
    const uint32_t b = emulator.words[i];
    if (a == b) continue;
    if (trial.compare == Compare::kFloats && SameFloat(a, b)) continue;
    if (trial.compare == Compare::kProduct) {
      const double apart =
          std::fabs(double{AsFloat(a)} - double{AsFloat(b)}) / (trial.magnitude * kUnit);
      largest = std::isnan(apart) ? INFINITY : std::max(largest, apart);
      if (apart <= kProductTolerance) continue;
    }
    ++differing;
    if (first.empty()) {
      char text[96];
      std::snprintf(text, sizeof(text), "block %zu word %zu: %08x, emulated %08x",
                    i / trial.out_words, i % trial.out_words, a, b);
      first = text;
    }
  }
  const bool passed = error.empty() && differing == 0;
  error = JsonText(error);
  std::printf(
      "{\"instruction\":\"%s\",\"fill\":\"%s\",\"trials\":%u,\"words\":%zu,"
      "\"differing\":%zu,\"passed\":%s",
      trial.kernel, trial.fill, blocks, device.words.size(), differing, passed ? "true" : "false");
  if (trial.compare == Compare::kProduct) {
    std::printf(",\"largest\":%.3f,\"tolerance\":%.0f", std::isfinite(largest) ? largest : 1e30,
                kProductTolerance);
  }
  if (!first.empty()) std::printf(",\"first\":\"%s\"", first.c_str());
  if (!error.empty()) std::printf(",\"error\":\"%s\"", error.c_str());
  std::printf("}\n");
  std::fflush(stdout);
  return passed;
}

struct Arguments {
  const char* emulator = nullptr;
  const char* device = nullptr;
  uint32_t trials = 64;
  uint64_t seed = 1;
};

int CannotRun(const Status& status) {
  std::fprintf(stderr, "%s\n", status.message().c_str());
  return 2;
}

bool RunTrial(const Trial& trial, uint32_t blocks, std::mt19937_64* rng, Machine* device,
              Machine* emulator) {
  Words in(size_t{blocks} * trial.in_words);
  for (uint32_t& word : in) word = trial.word(*rng);
  std::vector<uint16_t> tensors[2];
  for (int which = 0; which < 2; ++which) {
    const size_t rows = size_t{trial.tensor_rows[which]} * (trial.shared_tensor ? 1 : blocks);
    tensors[which].resize(rows * trial.tensor_cols);
    for (uint16_t& element : tensors[which]) element = trial.element(*rng);
  }
  const Outcome real = Run(device, trial, blocks, in, tensors);
  const Outcome emulated = Run(emulator, trial, blocks, in, tensors);
  return Judge(trial, blocks, real, emulated);
}

int Main(const Arguments& arguments) {
  Machine device;
  device.name = "the device";
  Status status = StartMachine(arguments.device, "lowrank-instructions.fatbin", &device);
  if (!status.ok()) return CannotRun(status);
  const int sm = device.gpu.limits.sm;
  // The emulator answers as the same generation does.
  setenv("LOWRANK_EMULATOR_SM", std::to_string(sm).c_str(), 1);
  Machine emulator;
  emulator.name = "the emulator";
  status = StartMachine(arguments.emulator, nullptr, &emulator);
  if (!status.ok()) return CannotRun(status);
  PrintMachine(device);

  std::mt19937_64 rng(arguments.seed);
  int failures = 0;
  for (const Trial& trial : InstructionTrials()) {
    if (sm < trial.min_sm || (trial.min_sm == 90 && sm != 90)) {
      std::printf("{\"instruction\":\"%s\",\"fill\":\"%s\",\"skipped\":\"on sm_%d\"}\n",
                  trial.kernel, trial.fill, sm);
      continue;
    }
    // A product of a warpgroup is thousands of multiplications to the emulator.
    const uint32_t blocks = trial.in_words > 1000 ? 4 : arguments.trials / 2 * 2;
    failures += RunTrial(trial, blocks, &rng, &device, &emulator) ? 0 : 1;
  }
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace lowrank::cuda

int main(int count, char** values) {
  lowrank::cuda::Arguments arguments;
  for (int i = 1; i < count; ++i) {
    const std::string name = values[i];
    const char* const value = i + 1 < count ? values[i + 1] : "";
    const bool takes_value = name == "--device" || name == "--trials" || name == "--seed";
    if (name == "--device") arguments.device = value;
    if (name == "--trials") arguments.trials = static_cast<uint32_t>(std::max(2, std::atoi(value)));
    if (name == "--seed") arguments.seed = std::strtoull(value, nullptr, 10);
    if (takes_value) {
      ++i;
    } else {
      arguments.emulator = values[i];
    }
  }
  if (arguments.emulator == nullptr) {
    std::fprintf(stderr, "gpu_instructions_check EMULATOR [--device LIBRARY] [--trials N]\n");
    return 2;
  }
  return lowrank::cuda::Main(arguments);
}
