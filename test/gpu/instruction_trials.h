/// What test/gpu/instructions_check.cpp runs: a kernel of test/gpu, its operands, and how its words
/// are compared.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <random>
#include <vector>

namespace lowrank::cuda {

using Words = std::vector<uint32_t>;

/// How a trial's words are compared.
enum class Compare {
  kBits,
  kFloats,   // bits, but any NaN equals any other
  kProduct,  // f32 sums that hardware may truncate
};

struct Trial {
  const char* kernel = nullptr;
  const char* fill = "";  // for the report
  int min_sm = 80;
  uint32_t threads = 32;
  uint32_t cluster = 1;
  uint32_t shared_bytes = 0;
  uint32_t in_words = 0;  // a block
  uint32_t out_words = 0;
  Compare compare = Compare::kBits;
  std::function<uint32_t(std::mt19937_64&)> word;
  // Launched twice, the second time allowed to begin early.
  bool dependent = false;
  // Tensors of 16-bit elements and the boxes of them, where the kernel reads any.
  uint32_t tensor_rows[2] = {0, 0};  // a block; the same for all where `shared_tensor`
  uint32_t tensor_cols = 0;
  uint32_t box_rows[2] = {0, 0};
  uint32_t box_cols = 0;
  uint32_t swizzle_bytes = 0;
  bool shared_tensor = false;
  bool bf16 = true;
  std::function<uint16_t(std::mt19937_64&)> element;
  // Σ|products| that a word of the output stands for, in the product's units.
  double magnitude = 1;
};

/// Every wrapper of cuda/ptx.cuh, then those of cuda/ptx_sm90.cuh.
std::vector<Trial> InstructionTrials();

inline float AsFloat(uint32_t word) {
  float value;
  std::memcpy(&value, &word, 4);
  return value;
}
inline uint32_t AsWord(float value) {
  uint32_t word;
  std::memcpy(&word, &value, 4);
  return word;
}

}  // namespace lowrank::cuda
