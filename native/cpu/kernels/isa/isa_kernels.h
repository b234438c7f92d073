/// The exports of one instruction set's translation unit: plain functions over descriptors.
///
/// Those units are compiled with flags for instructions that not every processor has. So that the
/// linker cannot pick an AVX-512 copy of a shared inline function for the portable path, they build
/// no std::string and instantiate nothing from the standard library. Outcomes are plain data here,
/// and isa_table.h, for units without such flags, converts them to a Status.
#pragma once

#include <cstdint>

#include "native/core/ops/ops.h"
#include "native/cpu/kernel_table.h"
#include "native/cpu/kernels/tile/base_tiles.h"

namespace lowrank::cpu {

struct Outcome {
  Code code = Code::kOk;
  int64_t index = 0;  // kNonFinite: the first such element of the input
};

struct IsaKernels {
  const char* isa;
#define LOWRANK_ISA_MEMBER(Name, member) \
  Outcome (*member)(const Name##Op& op, const RunContext& context);
  LOWRANK_FOR_EACH_ISA_OP(LOWRANK_ISA_MEMBER)
#undef LOWRANK_ISA_MEMBER
  /// loraForwardMany of some parts. With `swiglu` the last part is the up of loraForwardSwiglu.
  Outcome (*forward_parts)(const LoraForwardOp* parts, int64_t count, bool swiglu,
                           const RunContext& context);
  F32Tiles tiles;
  RouteTable routes;
};

/// The ops of a model (LOWRANK_FOR_EACH_MODEL_OP) of one instruction set. `products` are those of
/// the set that the device runs, which may be a later one.
struct ModelKernels {
#define LOWRANK_MODEL_MEMBER(Name, member) \
  Outcome (*member)(const Name##Op& op, const RunContext& context, const IsaKernels& products);
  LOWRANK_FOR_EACH_MODEL_OP(LOWRANK_MODEL_MEMBER)
#undef LOWRANK_MODEL_MEMBER
};

namespace portable {
extern const IsaKernels kKernels;
extern const ModelKernels kModelKernels;
}  // namespace portable
#if defined(__x86_64__) || defined(_M_X64)
namespace avx2 {
extern const IsaKernels kKernels;
extern const ModelKernels kModelKernels;
}  // namespace avx2
namespace avx512 {
extern const IsaKernels kKernels;
extern const ModelKernels kModelKernels;
}  // namespace avx512
namespace avx512_vnni {
extern const IsaKernels kKernels;
}
namespace avx512_bf16 {
extern const IsaKernels kKernels;
extern const ModelKernels kModelKernels;
}  // namespace avx512_bf16
namespace avx512_amx {
extern const IsaKernels kKernels;
extern const ModelKernels kModelKernels;
}  // namespace avx512_amx
#elif defined(__aarch64__)
namespace neon {
extern const IsaKernels kKernels;
extern const ModelKernels kModelKernels;
}  // namespace neon
#endif

/// The same for every instruction set: plain double arithmetic, element by element.
Outcome RandomKernel(const RandomOp& op, const RunContext& context);

}  // namespace lowrank::cpu
