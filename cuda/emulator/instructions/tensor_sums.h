/// What a tensor core makes of products and an addend.
///
/// Products of 16-bit and tf32 elements are exact, and have the sum of their factors' exponents.
/// They and the addend are shifted to the largest exponent among them, cut off (toward zero) so
/// many bits below it, added exactly, and the sum is cut off to f32. That is one step; an
/// instruction takes its k in one or more of them, in the order of k:
///
///                     bits below    k of a step: 16-bit elements, tf32
///   before sm_90      24            8, 4
///   from sm_90 on     25            all of the instruction (16, 8)
///
/// Source: MMA-Sim, a model of these cores found equal to them bit by bit (arXiv 2511.10909), which
/// agrees with arXiv 2512.07004 and, for the first of them, with Fasi, Higham, Mikaitis and Pranesh
/// (2021). An infinity or NaN makes the sum what IEEE arithmetic does; a NaN is 0x7fffffff.
#pragma once

#include <cstdint>

namespace lowrank::emu {

/// How the device at hand adds.
struct TensorCore {
  int bits;   // kept below the largest exponent
  int depth;  // k of a step of 16-bit elements; of tf32 half as much
};
constexpr TensorCore TensorCoreOf(int sm) {
  return sm >= 90 ? TensorCore{25, 16} : TensorCore{24, 8};
}

constexpr int kTileRows = 16;
constexpr int kPanelColumns = 8;
constexpr int kMaxDepth = 16;

/// Exponents of the smallest normal numbers: subnormal ones have these.
constexpr int kMinExponentF16 = -14;
constexpr int kMinExponentF32 = -126;  // bf16, tf32

/// 16 rows of a; `k` of the values are in use.
struct TileOfA {
  alignas(32) float value[kTileRows][kMaxDepth];
  alignas(32) int16_t exponent[kMaxDepth][kTileRows];
  bool finite;

  void Finish(int k, int min_exponent);  // after the values
};
/// Eight columns of b.
struct PanelOfB {
  alignas(32) float value[kMaxDepth][kPanelColumns];
  alignas(32) int16_t exponent[kMaxDepth][kPanelColumns];
  bool finite;

  void Finish(int k, int min_exponent);
};
/// c += a · b over k elements, in steps of `depth`.
void AddProducts(const TileOfA& a, const PanelOfB& b, int k, int depth, int bits,
                 float (*c)[kPanelColumns]);

}  // namespace lowrank::emu
