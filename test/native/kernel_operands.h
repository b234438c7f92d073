/// Operands, weights and the error bound for the native kernel checks.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

#include "native/core/ops/ops.h"
#include "native/cpu/kernel_table.h"
#include "native/host_device/philox.h"

namespace lowrank::cpu {

inline int g_failures = 0;
inline int g_checks = 0;

inline void Report(bool ok, const std::string& what) {
  ++g_checks;
  if (ok) return;
  ++g_failures;
  if (g_failures < 60) std::printf("FAIL %s\n", what.c_str());
}

/// Memory of exactly this size: on Linux what follows its last byte faults, elsewhere a sanitizer
/// sees an over-read of one byte. Large ones lie as the devices' memory does, aligned and in large
/// pages (host_memory.cpp).
class Buffer {
 public:
  explicit Buffer(size_t bytes) : bytes_(bytes), data_(nullptr) {
    constexpr size_t kHugePage = size_t{2} << 20;
    const bool huge = bytes >= 2 * kHugePage;
#if defined(__linux__)
    if (!huge) {
      const size_t kPage = static_cast<size_t>(sysconf(_SC_PAGESIZE));
      const size_t readable = (bytes + kPage - 1) / kPage * kPage;
      // Before it more than a page, as whole rows of w may be read there by mistake.
      constexpr size_t kBefore = size_t{64} << 10;
      mapped_ = kBefore + readable + kPage;
      map_ = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (map_ == MAP_FAILED) std::abort();
      char* end = static_cast<char*>(map_) + kBefore + readable;
      if (mprotect(end, kPage, PROT_NONE) != 0) std::abort();
      if (mprotect(map_, kBefore, PROT_NONE) != 0) std::abort();
      data_ = end - bytes;
    }
#endif
    if (data_ == nullptr &&
        posix_memalign(&data_, huge ? kHugePage : 64, std::max<size_t>(bytes, 1)) != 0) {
      std::abort();
    }
#if defined(__linux__)
    if (huge) madvise(data_, bytes, MADV_HUGEPAGE);
#endif
    std::memset(data_, 0x5a, bytes);
  }
  Buffer(Buffer&& other) noexcept
      : bytes_(other.bytes_), data_(other.data_), map_(other.map_), mapped_(other.mapped_) {
    other.data_ = nullptr;
    other.map_ = nullptr;
  }
  Buffer(const Buffer&) = delete;
  ~Buffer() {
#if defined(__linux__)
    if (map_ != nullptr) munmap(map_, mapped_);
#endif
    if (map_ == nullptr) std::free(data_);
  }
  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  bool Same(const Buffer& other) const {
    return bytes_ == other.bytes_ && std::memcmp(data_, other.data_, bytes_) == 0;
  }

 private:
  size_t bytes_;
  void* data_;
  void* map_ = nullptr;
  size_t mapped_ = 0;
};

inline uint64_t g_state = 1;
inline double Uniform() {
  g_state = g_state * 6364136223846793005ull + 1442695040888963407ull;
  return static_cast<double>(g_state >> 11) / 9007199254740992.0 * 2.0 - 1.0;
}

struct Dense {
  Buffer buffer;
  TensorView view;
  Dense(int64_t rows, int64_t cols, DType dtype)
      : buffer(static_cast<size_t>(rows * cols) * DTypeBytes(dtype)) {
    view.data = buffer.data();
    view.dtype = dtype;
    view.rows = rows;
    view.cols = cols;
    view.present = true;
  }
  Dense& Fill(double scale = 1) {
    for (int64_t i = 0; i < view.elems(); ++i) {
      StoreElement(view.data, view.dtype, i, Uniform() * scale);
    }
    return *this;
  }
  double At(int64_t i) const { return static_cast<double>(LoadElement(view.data, view.dtype, i)); }
  double At(int64_t row, int64_t col) const { return At(row * view.cols + col); }
};

struct Packed {
  QuantView view;
  std::vector<Buffer> parts;
  Packed(const std::string& format, int64_t rows, int64_t cols, int64_t blocksize, bool nested) {
    view.format = FindFormat(format);
    view.rows = rows;
    view.cols = cols;
    view.blocksize = blocksize;
    view.codebook = view.format->codebook;
    const size_t blocks = static_cast<size_t>(view.blocks());
    auto part = [&](size_t bytes) {
      parts.emplace_back(bytes);
      return parts.back().data();
    };
    view.codes = static_cast<uint8_t*>(part(view.code_bytes()));
    if (nested) {
      view.absmax_8bit = static_cast<uint8_t*>(part(blocks));
      view.absmax_codebook = DynamicMap8bit();
      view.nested_absmax = static_cast<float*>(part(static_cast<size_t>(view.nested_blocks()) * 4));
      view.absmax_offset = static_cast<float*>(part(4));
    } else {
      view.absmax = static_cast<float*>(part(blocks * 4));
    }
  }
};

inline double RoundTo(DType dtype, double value) {
  float out;
  StoreElement(&out, dtype, 0, value);
  return static_cast<double>(LoadElement(&out, dtype, 0));
}

struct Weight {
  std::string name;
  std::vector<Dense> dense;
  std::vector<Packed> packed;
  WeightView view;
  DType activations = DType::kF32;

  double At(int64_t n, int64_t k) const {
    const int64_t i = n * view.cols() + k;
    if (view.dense.present) return dense[0].At(i);
    return RoundTo(activations, static_cast<double>(view.quant.Value(i)));
  }
};

/// Codes of int8 and scales as LLM.int8 has them: any byte, and the ends more often than by chance.
inline void FillRowwise(QuantView* w) {
  static const std::vector<float> levels = [] {
    std::vector<float> table(256);
    for (size_t i = 0; i < table.size(); ++i) {
      table[i] = (static_cast<float>(i) - 128.0f) / 127.0f;
    }
    return table;
  }();
  w->rowwise = true;
  w->codebook = levels.data();
  for (int64_t i = 0; i < w->elems(); ++i) {
    const double at = Uniform();
    w->codes[i] = at > 0.9 ? 255 : at < -0.9 ? 0 : static_cast<uint8_t>(128 + at * 127);
  }
  const int64_t blocks = w->cols / w->blocksize;
  for (int64_t n = 0; n < w->rows; ++n) {
    std::fill_n(w->absmax + n * blocks, blocks, static_cast<float>(std::fabs(Uniform())) + 0.25f);
  }
}

inline Weight MakeWeight(const KernelTable& table, const RunContext& context,
                         const std::string& kind, int64_t N, int64_t K, DType activations) {
  Weight w;
  w.name = kind;
  w.activations = activations;
  if (kind == "f32" || kind == "same") {
    w.dense.emplace_back(N, K, kind == "f32" ? DType::kF32 : activations);
    w.dense[0].Fill();
    w.view.dense = w.dense[0].view;
    return w;
  }
  const bool nested = kind.back() == 'd';
  const size_t slash = kind.find('/');
  const bool rowwise = kind.compare(0, slash, "rowwise") == 0;
  w.packed.emplace_back(rowwise ? "int8" : kind.substr(0, slash).c_str(), N, K,
                        std::atoll(kind.c_str() + slash + 1), nested);
  w.view.quant = w.packed[0].view;
  if (rowwise) {
    FillRowwise(&w.view.quant);
    return w;
  }
  Dense source(N, K, DType::kF32);
  source.Fill();
  QuantizeOp op;
  op.w = source.view;
  op.out = w.view.quant;
  const Status status = table.quantize(op, context);
  Report(status.ok(), "quantize " + kind + " " + status.message());
  return w;
}

inline double OutputUnit(DType dtype) {
  return dtype == DType::kF32 ? 0x1p-24 : dtype == DType::kBF16 ? 0x1p-8 : 0x1p-11;
}

/// |y - y64| <= units · 2^-24 · sum|ab| + one rounding of the output.
inline void Expect(const std::string& what, double actual, double exact, double sum, DType dtype,
                   double units = 16) {
  const double limit = units * 0x1p-24 * sum + OutputUnit(dtype) * std::fabs(exact) * 1.01 +
                       (dtype == DType::kF16 ? 0x1p-25 : 0x1p-149);
  if (!(std::fabs(actual - exact) <= limit)) {
    char text[200];
    std::snprintf(text, sizeof(text), " got %.9g, exact %.9g, limit %.3g", actual, exact, limit);
    Report(false, what + text);
  } else {
    ++g_checks;
  }
}

inline double GateAt(const DropoutSpec& dropout, int64_t m, int64_t k, int64_t K) {
  if (!dropout.active()) return 1;
  const int64_t i = m * K + k;
  const bool keep =
      dropout.mask.present
          ? LoadElement(dropout.mask.data, dropout.mask.dtype, i) != 0
          : DropoutKeeps(dropout.seed, static_cast<uint64_t>(i), DropoutThreshold(dropout.p));
  return keep ? static_cast<double>(static_cast<float>(1.0 / (1.0 - dropout.p))) : 0;
}

struct Shape {
  int64_t M, N, K, r;
};

/// A LoRA layer with an adapter in f32: operands, and both passes over them.
struct LoraLayer {
  Dense x, dy, a, b, h, y, dx, da, db;
  LoraForwardOp forward;
  LoraBackwardOp backward;

  LoraLayer(const Shape& s, DType dtype, const WeightView& w)
      : x(s.M, s.K, dtype),
        dy(s.M, s.N, dtype),
        a(s.r, s.K, DType::kF32),
        b(s.N, s.r, DType::kF32),
        h(s.M, s.r, DType::kF32),
        y(s.M, s.N, dtype),
        dx(s.M, s.K, dtype),
        da(s.r, s.K, DType::kF32),
        db(s.N, s.r, DType::kF32) {
    for (Dense* operand : {&x, &dy, &a, &b, &h}) operand->Fill();
    forward.x = x.view;
    forward.w = w;
    forward.lora_a = a.view;
    forward.lora_b = b.view;
    forward.h = h.view;
    forward.y = y.view;
    forward.scaling = 1;
    backward.dy = dy.view;
    backward.x = x.view;
    backward.w = w;
    backward.lora_a = a.view;
    backward.lora_b = b.view;
    backward.h = h.view;
    backward.dx = dx.view;
    backward.d_lora_a = da.view;
    backward.d_lora_b = db.view;
    backward.scaling = 1;
  }
};

void CheckLayers(const KernelTable& table, const RunContext& context);
void CheckOptimizers(const KernelTable& table, const RunContext& context);
void CheckParts(const KernelTable& table, const RunContext& context);
void CheckFeatures(const KernelTable& table, const RunContext& context);
void CheckGrouped(const KernelTable& table, const RunContext& context);
void CheckInvariance(const KernelTable& table, const CancelToken* cancel);
void CheckPool();
void CheckAliases();
void CheckHostMemory();
void CheckNonFinite(const KernelTable& table, const RunContext& context);
/// The tables of docs/cpu-design.md, and what they say of a set. PrintRoutes: the rows that they
/// should have of it.
void CheckRouteTable();
void CheckRoutes(const KernelTable& table, const std::string& set);
void PrintRoutes(const KernelTable& table, const std::string& set);
void CheckBase(const KernelTable& table, const RunContext& context);
void CheckPartsInTurns(const KernelTable& table, const RunContext& context);
void CheckInt8(const KernelTable& table, const CancelToken* cancel);
void CheckFormats(const KernelTable& table, const RunContext& context);
void CheckPlanes(const KernelTable& table, const RunContext& context);
/// The kernels of a matrix unit without one, or null where the processor has not what they need.
void CheckAttention(const KernelTable& table, const RunContext& context);
const KernelTable* EmulatedTiles();
void CheckTiles(const KernelTable& unit, const KernelTable& emulated, const RunContext& context);
void CheckAttentionTiles(const KernelTable& unit, const KernelTable& emulated,
                         const RunContext& context);
/// threads = 1 measures processor time, else wall time. `which`: one case of the list, counted from
/// 0, or a shape of its own over NF4, "MxNxK" in f32 or "MxNxK,bf16"; null: all of the list.
void Bench(const KernelTable& table, int threads, double budget, const char* which);

}  // namespace lowrank::cpu
