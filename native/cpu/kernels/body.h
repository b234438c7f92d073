/// Every kernel of one instruction set: included once by each kernels_<isa>.cpp, which names the
/// namespace (LOWRANK_ISA) and the table (LOWRANK_ISA_NAME).
#pragma once

#include "native/cpu/kernels/block_matmul.h"
#include "native/cpu/kernels/feature_map.h"
#include "native/cpu/kernels/lora_grouped.h"
#include "native/cpu/kernels/lora_parts.h"
#include "native/cpu/kernels/quantize.h"
#include "native/cpu/kernels/weight_norms.h"

namespace lowrank::cpu::LOWRANK_ISA {

extern const IsaKernels kKernels = {
    LOWRANK_ISA_NAME,
    Quantize,
    Dequantize,
    Matmul,
    MatmulInputGrad,
    LoraForward,
    LoraForwardMany,
    LoraForwardSwiglu,
    LoraBackward,
    LoraShrink,
    LoraExpand,
    LoraExpandBackward,
    LoraShrinkBackward,
    WeightGrad,
    GroupedForward,
    GroupedBackward,
    MultiplyAdd,
    Map,
    Swiglu,
    SwigluBackward,
    SumProduct,
    MapFeatures,
    BlockMatmul,
    BlockMatmulInputGrad,
    BlockWeightGrad,
    WeightNorms,
    FactoredNorm,
    QuantizeScales,
    Cast,
};

}  // namespace lowrank::cpu::LOWRANK_ISA
