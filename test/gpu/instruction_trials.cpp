#include "test/gpu/instruction_trials.h"

#include <string>

#include "native/core/dtype.h"
#include "test/gpu/instruction_params.h"

namespace lowrank::cuda {
namespace {

uint32_t AnyWord(std::mt19937_64& rng) { return static_cast<uint32_t>(rng()); }

float Integer(std::mt19937_64& rng, int limit) {
  return static_cast<float>(static_cast<int>(rng() % static_cast<uint64_t>(2 * limit + 1)) - limit);
}
/// In [-1, 1), so that sums of absolute products are below their count.
float Fraction(std::mt19937_64& rng) {
  return static_cast<float>(static_cast<int64_t>(rng() >> 40)) / 8388608.0f - 1.0f;
}

uint16_t Half(bool bf16, float value) {
  return bf16 ? FromFloat<BF16>(value).bits : FromFloat<F16>(value).bits;
}

/// The words of cp.async, ldmatrix and the like are any. A product's: a, b as pairs or words, d as
/// f32; told apart by their place, which the generator counts.
std::function<uint32_t(std::mt19937_64&)> ProductWords(const char* type, bool integers) {
  const std::string name = type;
  return [name, integers, place = 0](std::mt19937_64& rng) mutable {
    const int at = place++ % 10;
    const float value = integers ? Integer(rng, 64) : Fraction(rng);
    if (at >= 6) return AsWord(value);
    // What the hardware does with the bits that tf32 lacks is not told.
    if (name == "tf32") return AsWord(value) & 0xffffe000u;
    const float other = integers ? Integer(rng, 64) : Fraction(rng);
    const bool bf16 = name == "bf16";
    return uint32_t{Half(bf16, value)} | uint32_t{Half(bf16, other)} << 16;
  };
}

Trial Plain(const char* kernel, uint32_t in_words, uint32_t out_words, uint32_t shared_bytes) {
  Trial trial;
  trial.kernel = kernel;
  trial.fill = "any bits";
  trial.in_words = in_words;
  trial.out_words = out_words;
  trial.shared_bytes = shared_bytes;
  trial.word = AnyWord;
  return trial;
}

std::vector<Trial> Sm80Trials() {
  std::vector<Trial> trials;
  for (const char* kernel : {"cp_async_16_kernel", "cp_async_8_kernel", "cp_async_4_kernel"}) {
    trials.push_back(Plain(kernel, 160, 128, 2048));
  }
  trials.push_back(Plain("cp_async_groups_kernel", 256, 256, 2048));
  trials.push_back(Plain("ldmatrix_x4_kernel", 288, 128, 2048));
  trials.push_back(Plain("ldmatrix_x2_kernel", 288, 64, 2048));
  trials.push_back(Plain("ldmatrix_x4_trans_kernel", 288, 128, 2048));
  trials.push_back(Plain("ldmatrix_x2_trans_kernel", 288, 64, 2048));
  trials.push_back(Plain("mma_s8_kernel", 320, 128, 0));
  trials.push_back(Plain("mma_s8u8_kernel", 320, 128, 0));
  trials.push_back(Plain("to_tf32_kernel", 256, 256, 0));
  trials.back().compare = Compare::kFloats;
  // Within 2^-22 of a power from 1/2 to 2.
  trials.push_back(Plain("exp2_kernel", 32, 32, 0));
  trials.back().compare = Compare::kProduct;
  trials.back().magnitude = 1;
  trials.push_back(Plain("language_kernel", 96, 256, 0));
  trials.push_back(Plain("bits_kernel", 96, 96, 0));
  trials.push_back(Plain("load_stream_16_kernel", 128, 128, 0));
  trials.push_back(Plain("load_stream_16_if_kernel", 160, 128, 0));
  trials.push_back(Plain("atomics_kernel", 4, 66, 0));
  const struct {
    const char* kernel;
    const char* type;
    double products;
  } products[] = {{"mma_bf16_kernel", "bf16", 16},
                  {"mma_f16_kernel", "f16", 16},
                  {"mma_tf32_kernel", "tf32", 8}};
  for (const auto& row : products) {
    for (const bool integers : {true, false}) {
      Trial trial = Plain(row.kernel, 320, 128, 0);
      trial.fill = integers ? "integers" : "fractions";
      trial.compare = integers ? Compare::kBits : Compare::kProduct;
      trial.magnitude = row.products + 1;
      trial.word = ProductWords(row.type, integers);
      trials.push_back(std::move(trial));
    }
  }
  return trials;
}

std::vector<Trial> Sm90Trials() {
  std::vector<Trial> trials;
  const auto tensor = [&](const char* kernel, uint32_t out_words) {
    Trial trial = Plain(kernel, 2, out_words, gpu::kTensorShared);
    trial.min_sm = 90;
    trial.threads = 128;
    trial.tensor_cols = 64;
    trial.element = [](std::mt19937_64& rng) { return static_cast<uint16_t>(rng()); };
    return trial;
  };
  const struct {
    const char* kernel;
    uint32_t row_bytes;
    uint32_t swizzle_bytes;
  } loads[] = {{"tensor_load_plain_kernel", 128, 0},
               {"tensor_load_32_kernel", 32, 32},
               {"tensor_load_64_kernel", 64, 64},
               {"tensor_load_128_kernel", 128, 128}};
  for (const auto& load : loads) {
    Trial trial = tensor(load.kernel, gpu::kCopyBoxRows * load.row_bytes / 4);
    trial.tensor_rows[0] = 64;
    trial.shared_tensor = true;
    trial.box_rows[0] = gpu::kCopyBoxRows;
    trial.box_cols = load.row_bytes / 2;
    trial.swizzle_bytes = load.swizzle_bytes;
    trials.push_back(std::move(trial));
  }
  for (const char* kernel :
       {"wgmma_bf16_n128_kernel", "wgmma_f16_n128_kernel", "wgmma_bf16_n256_kernel",
        "wgmma_f16_n256_kernel", "wgmma_bf16_n64_registers_kernel",
        "wgmma_f16_n64_registers_kernel", "wgmma_bf16_n128_registers_kernel",
        "wgmma_f16_n128_registers_kernel"}) {
    for (const bool integers : {true, false}) {
      const uint32_t n = std::strstr(kernel, "n64") != nullptr    ? 64
                         : std::strstr(kernel, "n128") != nullptr ? 128
                                                                  : 256;
      const bool bf16 = std::strstr(kernel, "bf16") != nullptr;
      Trial trial = tensor(kernel, 64 * n);
      trial.fill = integers ? "integers" : "fractions";
      trial.compare = integers ? Compare::kBits : Compare::kProduct;
      trial.magnitude = 65;
      trial.in_words = 64 * n;
      trial.word = [integers](std::mt19937_64& rng) {
        return AsWord(integers ? Integer(rng, 64) : Fraction(rng));
      };
      trial.element = [integers, bf16](std::mt19937_64& rng) {
        return Half(bf16, integers ? Integer(rng, 64) : Fraction(rng));
      };
      trial.bf16 = bf16;
      trial.tensor_rows[0] = 64;
      trial.tensor_rows[1] = n;
      trial.box_rows[0] = 64;
      trial.box_rows[1] = n;
      trial.box_cols = 64;
      trial.swizzle_bytes = 128;
      trials.push_back(std::move(trial));
    }
  }
  Trial bytes = tensor("wgmma_s8u8_n256_kernel", 64 * 256);
  bytes.in_words = 64 * 256;
  bytes.tensor_rows[0] = 64;
  bytes.tensor_rows[1] = 256;
  bytes.box_rows[0] = 64;
  bytes.box_rows[1] = 256;
  bytes.box_cols = 64;  // pairs of bytes
  bytes.swizzle_bytes = 128;
  trials.push_back(std::move(bytes));
  Trial pair = tensor("cluster_kernel", gpu::kCopyBoxRows * 32);
  pair.cluster = 2;
  pair.tensor_rows[0] = 64;
  pair.shared_tensor = true;
  pair.box_rows[0] = gpu::kCopyBoxRows;
  pair.box_cols = 64;
  pair.swizzle_bytes = 128;
  trials.push_back(std::move(pair));
  trials.push_back(Plain("stmatrix_kernel", 130, 128, 1024));
  trials.push_back(Plain("store_16_kernel", 128, 128, 0));
  trials.push_back(Plain("registers_kernel", 384, 384, 0));
  trials.back().threads = 384;
  trials.push_back(Plain("dependent_kernel", 32, 32, 0));
  trials.back().dependent = true;
  for (Trial& trial : trials) trial.min_sm = 90;
  return trials;
}

}  // namespace

std::vector<Trial> InstructionTrials() {
  std::vector<Trial> trials = Sm80Trials();
  for (Trial& trial : Sm90Trials()) trials.push_back(std::move(trial));
  return trials;
}

}  // namespace lowrank::cuda
