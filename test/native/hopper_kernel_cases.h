/// The products that hopper_kernel_check.cpp runs.
#pragma once

#include <cstddef>
#include <cstdint>

#include "native/core/dtype.h"

namespace lowrank::test {

/// Who computes h: nobody (it is given), or the kernel, from x as it is or behind a gate. Of an
/// input gradient, the gate of its adapter term; who computes dh is said by Beside.
enum class Shrink { kGiven, kPlain, kPhilox, kMask };
/// What an input gradient has beside it: nothing, dh by the kernel, the factors' gradients too, or
/// those alone.
enum class Beside { kNothing, kDh, kDhAndGrads, kGrads };
/// y = x · wᵀ, or dx = dy · w, alone or added to what dx holds. M, N and K are those of the
/// product: the weight of a gradient is [K, N], its factor lora_a [r, N].
enum class Direction { kForward, kInputGrad, kAddedInputGrad };

struct Case {
  const char* name;
  int64_t M, N, K, r;
  DType dtype;
  const char* format;  // null: dense of `dense`
  DType dense;
  bool nested;
  int64_t blocksize;
  DType lora;
  bool bias;
  bool lora_bias;
  int64_t l2_bytes;  // small: several panels
  int sm_count;
  size_t misalign;  // bytes that x, w and y are off
  Shrink shrink = Shrink::kGiven;
  DType lora_a = DType::kF32;
  Direction direction = Direction::kForward;
  Beside beside = Beside::kNothing;

  bool computes_h() const {
    return direction == Direction::kForward
               ? shrink != Shrink::kGiven
               : beside == Beside::kDh || beside == Beside::kDhAndGrads;
  }
  bool has_grads() const { return beside == Beside::kGrads || beside == Beside::kDhAndGrads; }
  bool transposed() const { return direction != Direction::kForward; }
  /// Element (n, k) of the product's weight or factor, of k_count columns, where it lies.
  size_t Index(int64_t n, int64_t k, int64_t k_count) const {
    return static_cast<size_t>(transposed() ? k * N + n : n * k_count + k);
  }
};

constexpr DType kB = DType::kBF16;
constexpr DType kH = DType::kF16;
constexpr DType kF = DType::kF32;
const Case kCases[] = {
    {"nf4", 128, 256, 128, 0, kB, "nf4", kB, false, 64, kB, false, false, 50 << 20, 132, 0},
    {"nf4 lora", 256, 256, 192, 16, kB, "nf4", kB, true, 64, kF, true, true, 50 << 20, 132, 0},
    {"nf4 ragged", 300, 333, 200, 5, kB, "nf4", kB, false, 64, kB, true, true, 50 << 20, 132, 0},
    {"fp4 f16", 257, 136, 96, 8, kH, "fp4", kB, true, 32, kH, true, false, 50 << 20, 132, 0},
    {"int8", 130, 520, 320, 20, kB, "int8", kB, false, 256, kF, false, false, 50 << 20, 4, 0},
    {"int8 f16", 140, 264, 64, 0, kH, "int8", kB, true, 64, kF, true, false, 50 << 20, 2, 0},
    {"dense bf16", 200, 264, 136, 4, kB, nullptr, kB, false, 64, kB, true, false, 50 << 20, 132, 0},
    {"dense f16", 129, 128, 72, 4, kH, nullptr, kH, false, 64, kF, false, true, 50 << 20, 132, 0},
    {"odd K", 140, 150, 61, 3, kB, "nf4", kB, false, 64, kB, true, false, 50 << 20, 132, 0},
    {"odd all", 129, 257, 77, 1, kH, "fp4", kB, true, 32, kH, false, true, 50 << 20, 132, 0},
    {"misaligned", 130, 260, 64, 9, kB, "nf4", kB, false, 64, kB, false, false, 50 << 20, 132, 2},
    {"misaligned dense", 130, 260, 64, 9, kB, nullptr, kB, false, 64, kB, false, false, 50 << 20,
     132, 2},
    {"panels", 520, 1100, 128, 16, kB, "nf4", kB, true, 64, kF, true, true, 300 * 1024, 4, 0},
    {"panels f16", 300, 700, 448, 4, kH, "int8", kB, false, 64, kH, true, false, 400 * 1024, 6, 0},
};

const Case kShrinkCases[] = {
    {"shrink", 264, 256, 128, 16, kB, "nf4", kB, true, 64, kB, true, true, 50 << 20, 132, 0,
     Shrink::kPlain, kB},
    {"shrink f32 panels", 520, 600, 200, 16, kB, "nf4", kB, false, 64, kF, false, true, 300 * 1024,
     4, 0, Shrink::kPlain, kF},
    {"shrink f16", 300, 136, 264, 3, kB, nullptr, kB, false, 64, kH, false, false, 50 << 20, 132, 0,
     Shrink::kPlain, kH},
    {"shrink of f16", 141, 264, 136, 9, kH, "int8", kB, false, 64, kF, true, false, 50 << 20, 2, 0,
     Shrink::kPlain, kF},
    {"shrink dropout", 140, 264, 328, 8, kB, "fp4", kB, false, 64, kB, false, false, 50 << 20, 132,
     0, Shrink::kPhilox, kB},
    {"shrink f32 dropout", 265, 264, 72, 5, kH, "nf4", kB, true, 64, kB, false, false, 50 << 20,
     132, 0, Shrink::kPhilox, kF},
    {"shrink mask", 129, 264, 200, 16, kB, "nf4", kB, true, 64, kF, false, false, 50 << 20, 132, 0,
     Shrink::kMask, kF},
};

/// Of more than 16 ranks.
const Case kWideCases[] = {
    {"shrink wide", 300, 264, 200, 17, kB, "nf4", kB, true, 64, kB, true, false, 50 << 20, 132, 0,
     Shrink::kPlain, kB},
    {"shrink wide f32", 264, 600, 136, 32, kB, "nf4", kB, false, 64, kF, false, true, 300 * 1024, 4,
     0, Shrink::kPlain, kF},
    {"shrink wide groups", 161, 264, 72, 48, kB, "fp4", kB, false, 64, kB, false, false, 50 << 20,
     132, 0, Shrink::kPhilox, kB},
    {"shrink wide all", 140, 264, 328, 64, kH, "int8", kB, false, 64, kB, false, false, 50 << 20, 2,
     0, Shrink::kPlain, kB},
    {"shrink wide f32 dropout", 145, 264, 104, 27, kH, "nf4", kB, false, 64, kF, false, false,
     50 << 20, 132, 0, Shrink::kPhilox, kF},
    {"special shrink wide f32", 140, 136, 72, 18, kB, nullptr, kB, false, 64, kB, true, false,
     50 << 20, 132, 0, Shrink::kPlain, kF},
};

constexpr Direction kGrad = Direction::kInputGrad;
constexpr Direction kAdded = Direction::kAddedInputGrad;
const Case kGradCases[] = {
    {"dx nf4", 128, 256, 128, 0, kB, "nf4", kB, false, 64, kB, false, false, 50 << 20, 132, 0,
     Shrink::kGiven, kF, kGrad},
    {"dx lora", 256, 264, 192, 16, kB, "nf4", kB, true, 64, kF, false, false, 50 << 20, 132, 0,
     Shrink::kGiven, kF, kGrad},
    {"dx ragged", 300, 328, 203, 5, kB, "fp4", kB, false, 64, kB, false, false, 50 << 20, 132, 0,
     Shrink::kGiven, kF, kAdded},
    {"dx odd", 140, 151, 66, 3, kH, "nf4", kB, true, 32, kH, false, false, 50 << 20, 132, 0,
     Shrink::kPhilox, kF, kAdded},
    {"dx int8", 130, 520, 320, 20, kH, "int8", kB, false, 256, kF, false, false, 50 << 20, 4, 0,
     Shrink::kGiven, kF, kGrad},
    {"dx dense", 200, 264, 136, 4, kB, nullptr, kB, false, 64, kB, false, false, 50 << 20, 132, 0,
     Shrink::kMask, kF, kAdded},
    {"dx dense f16", 150, 136, 75, 2, kH, nullptr, kH, false, 64, kF, false, false, 50 << 20, 132,
     0, Shrink::kPhilox, kF, kGrad},
    {"dx misaligned", 130, 260, 64, 9, kB, "nf4", kB, false, 64, kB, false, false, 50 << 20, 132, 2,
     Shrink::kMask, kF, kGrad},
    {"dx panels", 520, 1100, 128, 16, kB, "nf4", kB, true, 64, kF, false, false, 300 * 1024, 4, 0,
     Shrink::kPhilox, kF, kGrad},
    {"dx panels f16", 300, 904, 448, 4, kH, "int8", kB, false, 64, kH, false, false, 400 * 1024, 6,
     0, Shrink::kMask, kF, kAdded},
};

const Case kBesideCases[] = {
    {"dx dh wide", 200, 264, 136, 64, kB, "nf4", kB, false, 64, kB, false, false, 50 << 20, 132, 0,
     Shrink::kPhilox, kB, kGrad, Beside::kDh},
    {"dx dh wide f32", 161, 136, 200, 23, kB, "nf4", kB, true, 64, kF, false, false, 50 << 20, 132,
     0, Shrink::kGiven, kF, kAdded, Beside::kDh},
    {"dx dh", 264, 264, 192, 16, kB, "nf4", kB, true, 64, kF, false, false, 50 << 20, 132, 0,
     Shrink::kGiven, kF, kGrad, Beside::kDh},
    {"dx dh dropout", 300, 600, 200, 5, kH, "int8", kB, false, 64, kH, false, false, 300 * 1024, 4,
     0, Shrink::kPhilox, kH, kAdded, Beside::kDh},
    {"dx dh mask", 140, 136, 72, 9, kB, "fp4", kB, true, 32, kB, false, false, 50 << 20, 132, 0,
     Shrink::kMask, kB, kGrad, Beside::kDh},
    {"dx all", 520, 1104, 136, 16, kB, "nf4", kB, true, 64, kF, false, false, 300 * 1024, 4, 0,
     Shrink::kGiven, kF, kGrad, Beside::kDhAndGrads},
    {"dx all dropout", 523, 1104, 136, 5, kB, "nf4", kB, false, 64, kB, false, false, 300 * 1024, 4,
     0, Shrink::kPhilox, kB, kGrad, Beside::kDhAndGrads},
    {"dx all mask f16", 401, 904, 448, 4, kH, "int8", kB, false, 64, kH, false, false, 400 * 1024,
     6, 0, Shrink::kMask, kF, kAdded, Beside::kDhAndGrads},
    {"dx grads", 200, 264, 328, 16, kB, nullptr, kB, false, 64, kF, false, false, 50 << 20, 132, 0,
     Shrink::kPhilox, kF, kGrad, Beside::kGrads},
    {"dx grads f16", 300, 904, 72, 1, kH, "fp4", kB, false, 64, kF, false, false, 300 * 1024, 6, 0,
     Shrink::kGiven, kF, kGrad, Beside::kGrads},
};

const Case kSpecialCases[] = {
    {"special f32", 140, 136, 72, 2, kB, nullptr, kB, false, 64, kF, false, false, 50 << 20, 132,
     0},
    {"special bf16", 140, 136, 72, 2, kH, nullptr, kH, false, 64, kB, true, false, 50 << 20, 132,
     0},
    {"special f16", 140, 136, 72, 2, kB, nullptr, kB, false, 64, kH, true, false, 50 << 20, 132, 0},
    {"special shrink", 140, 136, 72, 2, kB, nullptr, kB, false, 64, kB, true, false, 50 << 20, 132,
     0, Shrink::kPlain, kB},
    {"special shrink f32", 140, 136, 72, 2, kB, nullptr, kB, false, 64, kB, true, false, 50 << 20,
     132, 0, Shrink::kPlain, kF},
    {"special dx", 140, 136, 72, 2, kB, nullptr, kB, false, 64, kF, false, false, 50 << 20, 132, 0,
     Shrink::kPhilox, kF, kGrad},
    {"special dx grads", 140, 136, 72, 2, kB, nullptr, kB, false, 64, kF, false, false, 50 << 20,
     132, 0, Shrink::kPhilox, kF, kGrad, Beside::kGrads},
    {"special dx grads f16", 140, 136, 72, 2, kH, nullptr, kH, false, 64, kF, false, false,
     50 << 20, 132, 0, Shrink::kGiven, kF, kGrad, Beside::kGrads},
    {"special shrink of f16", 140, 136, 72, 2, kH, nullptr, kH, false, 64, kB, true, false,
     50 << 20, 132, 0, Shrink::kPlain, kF},
};

}  // namespace lowrank::test
