/// ldmatrix, stmatrix and mma.sync: the last lane to come computes the whole warp's tile.
///
/// An mma costs about 0.3 us of a Zen 4 core, half of it in gathering the fragments of 32 lanes.
#include <cstring>

#include "cuda/emulator/instructions/elements.h"
#include "cuda/emulator/instructions/tensor_sums.h"
#include "cuda/emulator/state/scheduler.h"

namespace lowrank::emu {
namespace {

/// The tensor core reads the upper 19 bits of a tf32 operand.
float FromTF32(uint32_t bits) { return FloatOf(bits & 0xffffe000u); }

struct MmaArg {
  float* d;
  const uint32_t* a;
  const uint32_t* b;
  const float* c;
};

/// kK of the tile; elements of 16 bits lie two in a word, tf32 one.
template <MmaType kType, int kK>
struct Fragments {
  static constexpr bool kPairs = kType != MmaType::kTF32;
  static constexpr int kHalf = kPairs ? 8 : 4;  // columns of a that one pair of registers spans
  static constexpr int kHalves = kK / kHalf;

  static float Convert(uint32_t bits) {
    if constexpr (kType == MmaType::kBF16) return FromBF16(bits);
    if constexpr (kType == MmaType::kF16) return FromF16(bits);
    return FromTF32(bits);
  }
  /// Calls store(k offset, value) for the elements of one register.
  template <typename Store>
  static void Unpack(uint32_t word, uint32_t t, int half, const Store& store) {
    if constexpr (kPairs) {
      const int k = half * kHalf + 2 * static_cast<int>(t);
      store(k, Convert(word & 0xffffu));
      store(k + 1, Convert(word >> 16));
    } else {
      store(half * kHalf + static_cast<int>(t), Convert(word));
    }
  }
};

template <MmaType kType, int kK>
void MmaFn(uint32_t, void** args) {
  using F = Fragments<kType, kK>;
  TileOfA a;
  PanelOfB b;
  alignas(32) float c[16][8];
  for (uint32_t lane = 0; lane < kWarpSize; ++lane) {
    const auto* arg = static_cast<const MmaArg*>(args[lane]);
    const uint32_t g = lane / 4;
    const uint32_t t = lane % 4;
    for (int half = 0; half < F::kHalves; ++half) {
      F::Unpack(arg->a[2 * half], t, half, [&](int k, float v) { a.value[g][k] = v; });
      F::Unpack(arg->a[2 * half + 1], t, half, [&](int k, float v) { a.value[g + 8][k] = v; });
      F::Unpack(arg->b[half], t, half, [&](int k, float v) { b.value[k][g] = v; });
    }
    std::memcpy(&c[g][2 * t], arg->c, 2 * sizeof(float));
    std::memcpy(&c[g + 8][2 * t], arg->c + 2, 2 * sizeof(float));
  }
  constexpr int kMinExponent = kType == MmaType::kF16 ? kMinExponentF16 : kMinExponentF32;
  a.Finish(kK, kMinExponent);
  b.Finish(kK, kMinExponent);
  const TensorCore core = TensorCoreOf(running->options.sm);
  const int depth = kType == MmaType::kTF32 ? core.depth / 2 : core.depth;
  AddProducts(a, b, kK, depth < kK ? depth : kK, core.bits, c);
  for (uint32_t lane = 0; lane < kWarpSize; ++lane) {
    const auto* arg = static_cast<const MmaArg*>(args[lane]);
    const uint32_t g = lane / 4;
    const uint32_t t = lane % 4;
    std::memcpy(arg->d, &c[g][2 * t], 2 * sizeof(float));
    std::memcpy(arg->d + 2, &c[g + 8][2 * t], 2 * sizeof(float));
  }
  if (observing) {
    Count(kK == 16 ? "mma.m16n8k16" : kType == MmaType::kTF32 ? "mma.m16n8k8.tf32" : "mma.m16n8k8");
  }
}

struct MmaIntArg {
  int32_t* d;
  const uint32_t* a;
  const uint32_t* b;
  const int32_t* c;
};

template <typename ByteA, typename ByteB>
void MmaIntFn(uint32_t, void** args) {
  int32_t a[16][32];
  int32_t b[32][8];
  for (uint32_t lane = 0; lane < kWarpSize; ++lane) {
    const auto* arg = static_cast<const MmaIntArg*>(args[lane]);
    const uint32_t g = lane / 4;
    const uint32_t t = lane % 4;
    for (uint32_t half = 0; half < 2; ++half) {
      for (uint32_t i = 0; i < 4; ++i) {
        const uint32_t k = half * 16 + 4 * t + i;
        a[g][k] = static_cast<ByteA>(arg->a[2 * half] >> (8 * i));
        a[g + 8][k] = static_cast<ByteA>(arg->a[2 * half + 1] >> (8 * i));
        b[k][g] = static_cast<ByteB>(arg->b[half] >> (8 * i));
      }
    }
  }
  for (uint32_t lane = 0; lane < kWarpSize; ++lane) {
    const auto* arg = static_cast<const MmaIntArg*>(args[lane]);
    for (uint32_t i = 0; i < 4; ++i) {
      const uint32_t row = lane / 4 + (i >= 2 ? 8 : 0);
      const uint32_t column = 2 * (lane % 4) + i % 2;
      auto sum = static_cast<uint32_t>(arg->c[i]);
      for (uint32_t k = 0; k < 32; ++k) sum += static_cast<uint32_t>(a[row][k] * b[k][column]);
      arg->d[i] = static_cast<int32_t>(sum);
    }
  }
  if (observing) Count("mma.m16n8k32");
}

struct MatrixArg {
  uint32_t* r;
  unsigned char* row;
  int count;
  bool transposed;
  Site site;
};

void CountRows(void** args, RequestKind kind) {
  const auto* head = static_cast<const MatrixArg*>(args[0]);
  for (int matrix = 0; matrix < head->count; ++matrix) {
    LaneAccess rows[8];
    for (int i = 0; i < 8; ++i) {
      rows[i] = {
          reinterpret_cast<uintptr_t>(static_cast<const MatrixArg*>(args[matrix * 8 + i])->row),
          16};
    }
    CountRequest(kind, 16, rows, 8, head->site);
  }
}

/// The rows as lane l sees them: of matrix j, row and column of its pair of elements.
template <typename Visit>
void ForEachPair(void** args, const Visit& visit) {
  const auto* head = static_cast<const MatrixArg*>(args[0]);
  for (uint32_t lane = 0; lane < kWarpSize; ++lane) {
    auto* arg = static_cast<MatrixArg*>(args[lane]);
    for (int matrix = 0; matrix < head->count; ++matrix) {
      unsigned char* at[2];
      for (uint32_t i = 0; i < 2; ++i) {
        const uint32_t row = head->transposed ? 2 * (lane % 4) + i : lane / 4;
        const uint32_t column = head->transposed ? lane / 4 : 2 * (lane % 4) + i;
        at[i] = static_cast<MatrixArg*>(args[static_cast<uint32_t>(matrix) * 8 + row])->row +
                2 * column;
      }
      visit(&arg->r[matrix], at[0], at[1]);
    }
  }
}

void LdMatrixFn(uint32_t, void** args) {
  ForEachPair(args, [](uint32_t* r, const unsigned char* low, const unsigned char* high) {
    uint16_t pair[2];
    std::memcpy(&pair[0], low, 2);
    std::memcpy(&pair[1], high, 2);
    *r = static_cast<uint32_t>(pair[1]) << 16 | pair[0];
  });
  if (observing) {
    CountRows(args, RequestKind::kLdMatrix);
    Count("ldmatrix");
  }
}

void StMatrixFn(uint32_t, void** args) {
  ForEachPair(args, [](uint32_t* r, unsigned char* low, unsigned char* high) {
    const auto first = static_cast<uint16_t>(*r);
    const auto second = static_cast<uint16_t>(*r >> 16);
    std::memcpy(low, &first, 2);
    std::memcpy(high, &second, 2);
  });
  if (observing) {
    CountRows(args, RequestKind::kStMatrix);
    Count("stmatrix");
  }
}

void Matrix(CollectiveFn fn, const char* what, MatrixArg* arg, bool write) {
  if (current->lane < static_cast<uint32_t>(arg->count) * 8) {
    if (!IsShared(arg->row)) {
      Fail("oob-shared", arg->site, "%s: address %p is not in shared memory", what,
           static_cast<void*>(arg->row));
    }
    if (reinterpret_cast<uintptr_t>(arg->row) % 16 != 0) {
      Fail("misaligned", arg->site, "%s: row at shared address %u", what, SharedAddress(arg->row));
    }
    if (observing && running->check) {
      AccessKind kind = write ? AccessKind::kWrite : AccessKind::kRead;
      // The counters see whole matrices instead.
      const bool counters = running->counters;
      running->counters = false;
      AccessSlow(arg->row, 16, kind, arg->site);
      running->counters = counters;
    }
  }
  Collective(fn, kAllLanes, arg, what, arg->site, true);
}

}  // namespace

void LdMatrix(uint32_t* r, int count, bool transposed, const void* s_row, Site site) {
  MatrixArg arg{r, static_cast<unsigned char*>(const_cast<void*>(s_row)), count, transposed, site};
  Matrix(LdMatrixFn, "ldmatrix", &arg, false);
}

void StMatrix(const uint32_t* r, int count, bool transposed, void* s_row, Site site) {
  MatrixArg arg{const_cast<uint32_t*>(r), static_cast<unsigned char*>(s_row), count, transposed,
                site};
  Matrix(StMatrixFn, "stmatrix", &arg, true);
}

void Mma(MmaType type, float* d, const uint32_t* a, const uint32_t* b, const float* c, Site site) {
  MmaArg arg{d, a, b, c};
  switch (type) {
    case MmaType::kBF16:
      return Collective(MmaFn<MmaType::kBF16, 16>, kAllLanes, &arg, "mma.sync", site, true);
    case MmaType::kF16:
      return Collective(MmaFn<MmaType::kF16, 16>, kAllLanes, &arg, "mma.sync", site, true);
    case MmaType::kTF32:
      return Collective(MmaFn<MmaType::kTF32, 8>, kAllLanes, &arg, "mma.sync", site, true);
    case MmaType::kS8:
    case MmaType::kU8:
    case MmaType::kS8U8:
      Fail("instruction", site, "mma.sync of bytes accumulates in int32: MmaInt");
  }
}

void MmaK8(MmaType type, float* d, const uint32_t* a, const uint32_t* b, const float* c,
           Site site) {
  MmaArg arg{d, a, b, c};
  Collective(type == MmaType::kF16 ? MmaFn<MmaType::kF16, 8> : MmaFn<MmaType::kBF16, 8>, kAllLanes,
             &arg, "mma.sync", site, true);
}

void MmaInt(MmaType type, int32_t* d, const uint32_t* a, const uint32_t* b, const int32_t* c,
            Site site) {
  MmaIntArg arg{d, a, b, c};
  const CollectiveFn fn = type == MmaType::kU8   ? MmaIntFn<uint8_t, uint8_t>
                          : type == MmaType::kS8 ? MmaIntFn<int8_t, int8_t>
                                                 : MmaIntFn<int8_t, uint8_t>;
  Collective(fn, kAllLanes, &arg, "mma.sync", site, true);
}

}  // namespace lowrank::emu
