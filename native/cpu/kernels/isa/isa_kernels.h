/// What one instruction set's translation unit exports: plain functions over descriptors.
///
/// Those units are compiled with flags that not every processor runs. So that the linker cannot
/// pick an AVX-512 copy of a shared inline function for the portable path, they build no
/// std::string and instantiate nothing from the standard library: outcomes are plain data here, and
/// isa_table.h, for units without such flags, turns them into a Status.
#pragma once

#include <cstdint>

#include "native/core/ops.h"
#include "native/cpu/kernel_table.h"
#include "native/cpu/kernels/tile/base_tiles.h"

namespace lowrank::cpu {

struct Outcome {
  Code code = Code::kOk;
  int64_t index = 0;  // kNonFinite: the first such element of the input
};

struct IsaKernels {
  const char* isa;
  Outcome (*quantize)(const QuantizeOp& op, const RunContext& context);
  Outcome (*dequantize)(const DequantizeOp& op, const RunContext& context);
  Outcome (*matmul)(const MatmulOp& op, const RunContext& context);
  Outcome (*matmul_input_grad)(const MatmulInputGradOp& op, const RunContext& context);
  Outcome (*lora_forward)(const LoraForwardOp& op, const RunContext& context);
  Outcome (*lora_forward_many)(const LoraForwardManyOp& op, const RunContext& context);
  Outcome (*lora_forward_swiglu)(const LoraForwardSwigluOp& op, const RunContext& context);
  Outcome (*lora_backward)(const LoraBackwardOp& op, const RunContext& context);
  Outcome (*lora_shrink)(const LoraShrinkOp& op, const RunContext& context);
  Outcome (*lora_expand)(const LoraExpandOp& op, const RunContext& context);
  Outcome (*lora_expand_backward)(const LoraExpandBackwardOp& op, const RunContext& context);
  Outcome (*lora_shrink_backward)(const LoraShrinkBackwardOp& op, const RunContext& context);
  Outcome (*weight_grad)(const WeightGradOp& op, const RunContext& context);
  Outcome (*grouped_forward)(const GroupedForwardOp& op, const RunContext& context);
  Outcome (*grouped_backward)(const GroupedBackwardOp& op, const RunContext& context);
  Outcome (*multiply_add)(const MultiplyAddOp& op, const RunContext& context);
  Outcome (*map)(const MapOp& op, const RunContext& context);
  Outcome (*swiglu)(const SwigluOp& op, const RunContext& context);
  Outcome (*swiglu_backward)(const SwigluBackwardOp& op, const RunContext& context);
  Outcome (*sum_product)(const SumProductOp& op, const RunContext& context);
  Outcome (*map_features)(const MapFeaturesOp& op, const RunContext& context);
  Outcome (*block_matmul)(const BlockMatmulOp& op, const RunContext& context);
  Outcome (*block_input_grad)(const BlockMatmulInputGradOp& op, const RunContext& context);
  Outcome (*block_weight_grad)(const BlockWeightGradOp& op, const RunContext& context);
  Outcome (*weight_norms)(const WeightNormsOp& op, const RunContext& context);
  Outcome (*factored_norm)(const FactoredNormOp& op, const RunContext& context);
  Outcome (*quantize_scales)(const QuantizeScalesOp& op, const RunContext& context);
  Outcome (*cast)(const CastOp& op, const RunContext& context);
  /// loraForwardMany of some parts; with `swiglu` the last is the up of loraForwardSwiglu.
  Outcome (*forward_parts)(const LoraForwardOp* parts, int64_t count, bool swiglu,
                           const RunContext& context);
  F32Tiles tiles;
};

namespace portable {
extern const IsaKernels kKernels;
}
#if defined(__x86_64__) || defined(_M_X64)
namespace avx2 {
extern const IsaKernels kKernels;
}
namespace avx512 {
extern const IsaKernels kKernels;
}
namespace avx512_vnni {
extern const IsaKernels kKernels;
}
namespace avx512_bf16 {
extern const IsaKernels kKernels;
}
namespace avx512_amx {
extern const IsaKernels kKernels;
}
#elif defined(__aarch64__)
namespace neon {
extern const IsaKernels kKernels;
}
#endif

/// The same for every instruction set: plain double arithmetic, element by element.
Outcome RandomKernel(const RandomOp& op, const RunContext& context);

}  // namespace lowrank::cpu
