/// The streaming CUDA kernels on the emulator against native/cpu/reference/reference.cpp: quantise,
/// dequantise, cast and random give its very bytes for every format, type, blocksize and alignment,
/// under every schedule. Findings of the check mode are failures.
///
///   cuda_streaming_check [random seeds, default 1]
#include <cstring>
#include <functional>
#include <limits>

#include "test/native/cuda_device.h"

namespace lowrank::cuda {
namespace {

using cpu::Dense;
using cpu::g_checks;
using cpu::g_failures;
using cpu::kReferenceKernels;
using cpu::Packed;
using cpu::Report;
using cpu::RunContext;

const RunContext kContext{nullptr, nullptr};
const DeviceLimits kLimits;
constexpr DType kDTypes[] = {DType::kF32, DType::kBF16, DType::kF16};
constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// Equal bytes, the first difference in words otherwise.
void Same(const std::string& what, const void* actual, const void* expected, size_t bytes) {
  const uint8_t* a = static_cast<const uint8_t*>(actual);
  const uint8_t* b = static_cast<const uint8_t*>(expected);
  for (size_t i = 0; i < bytes; ++i) {
    if (a[i] == b[i]) continue;
    char text[80];
    std::snprintf(text, sizeof(text), ": byte %zu of %zu is %02x, not %02x", i, bytes, a[i], b[i]);
    Report(false, what + text);
    return;
  }
  Report(true, what);
}

template <typename Op>
std::string Launch(const Op& op, int64_t* first_non_finite = nullptr) {
  return RunPlan(
      [&](Workspace* workspace, Plan* plan) { return MakePlan(op, kLimits, workspace, plan); },
      first_non_finite);
}

// -------------------------------------------------------------------------------------
// quantisation

using Content = std::function<double(int64_t index, double normal)>;
struct NamedContent {
  const char* name;
  Content value;
};

const NamedContent kContents[] = {
    {"normal", [](int64_t, double v) { return v; }},
    {"a block of zeros", [](int64_t i, double v) { return i / 64 == 1 ? 0 : v; }},
    {"all zeros", [](int64_t, double) { return 0.0; }},
    {"an outlier", [](int64_t i, double v) { return i == 70 ? -1000 : v; }},
    {"denormals", [](int64_t i, double v) { return i < 200 ? v * 1e-40 : v; }},
    {"one value", [](int64_t, double) { return -0.375; }},
    {"negative zeros", [](int64_t i, double v) { return i % 3 == 0 ? -0.0 : v; }},
    {"levels and midpoints",
     [](int64_t i, double) {
       const float* book = FindFormat("nf4")->codebook;
       const double level = static_cast<double>(book[i % 16]);
       if (i % 32 == 15) return 1.0;
       return i % 2 == 0 ? level : (level + static_cast<double>(book[(i + 1) % 16])) / 2;
     }},
    // Partial sums of such scales are rounded: the mean has the bits of the sum in order only where
    // it is that sum.
    {"scales of every size",
     [](int64_t i, double v) { return std::ldexp(v, static_cast<int>(i / 32 * 7 % 90) - 75); }},
};

void CheckQuantize(const std::string& format, DType dtype, int64_t N, int64_t K, int64_t blocksize,
                   bool nested, size_t misalign, const NamedContent& content) {
  const std::string name = std::string(content.name) + " " + format + " " + DTypeName(dtype) +
                           " [" + std::to_string(N) + ", " + std::to_string(K) + "] / " +
                           std::to_string(blocksize) + (nested ? " nested" : "") + " off " +
                           std::to_string(misalign);
  Dense w(N, K, dtype);
  for (int64_t i = 0; i < w.view.elems(); ++i) {
    StoreElement(w.view.data, dtype, i, content.value(i, cpu::Uniform() * 0.1));
  }
  Packed expected(format, N, K, blocksize, nested);
  QuantizeOp op;
  op.w = w.view;
  op.out = expected.view;
  Report(kReferenceKernels.quantize(op, kContext).ok(), name + " reference");

  DeviceCopies device(misalign);
  QuantizeOp on_device;
  on_device.w = device.Put(w.view);
  on_device.out = device.Empty(expected.view);
  int64_t bad = 0;
  const std::string error = Launch(on_device, &bad);
  Report(error.empty(), name + ": " + error);
  if (!error.empty()) return;
  Report(bad == Plan::kNoneFound, name + " found " + std::to_string(bad));
  const QuantView& out = on_device.out;
  const size_t blocks = static_cast<size_t>(out.blocks());
  Same(name + " codes", out.codes, expected.view.codes, out.code_bytes());
  if (nested) {
    Same(name + " absmax_8bit", out.absmax_8bit, expected.view.absmax_8bit, blocks);
    Same(name + " nested_absmax", out.nested_absmax, expected.view.nested_absmax,
         static_cast<size_t>(out.nested_blocks()) * 4);
    Same(name + " absmax_offset", out.absmax_offset, expected.view.absmax_offset, 4);
  } else {
    Same(name + " absmax", out.absmax, expected.view.absmax, blocks * 4);
  }

  // And back, to every type, from the reference's parts.
  DequantizeOp back;
  back.w = device.Put(expected.view);
  for (const DType to : kDTypes) {
    if (misalign % DTypeBytes(to) != 0) continue;
    Dense y(N, K, to);
    DequantizeOp reference;
    reference.w = expected.view;
    reference.y = y.view;
    Report(kReferenceKernels.dequantize(reference, kContext).ok(), name + " reference back");
    back.y = device.Empty(y.view);
    const std::string back_error = Launch(back);
    Report(back_error.empty(), name + " back: " + back_error);
    if (back_error.empty()) {
      Same(name + " back to " + DTypeName(to), back.y.data, y.view.data, y.view.bytes());
    }
  }
}

void CheckQuantization() {
  constexpr int64_t kShapes[][2] = {{1, 1}, {5, 27}, {7, 33}, {4, 32}, {64, 65}, {13, 172}};
  for (const std::string& format : FormatNames()) {
    for (const DType dtype : kDTypes) {
      for (const auto& shape : kShapes) {
        for (const bool nested : {false, true}) {
          CheckQuantize(format, dtype, shape[0], shape[1], 64, nested, 0, kContents[0]);
        }
      }
      for (int64_t blocksize = 32; blocksize <= 4096; blocksize *= 2) {
        CheckQuantize(format, dtype, 5, 2049, blocksize, false, 0, kContents[0]);
        CheckQuantize(format, dtype, 83, 211, blocksize, true, 0, kContents[0]);
      }
      for (const NamedContent& content : kContents) {
        CheckQuantize(format, dtype, 11, 37, 64, false, 0, content);
        CheckQuantize(format, dtype, 61, 337, 32, true, 0, content);
      }
      CheckQuantize(format, dtype, 3, 700, 64, true, DTypeBytes(dtype), kContents[0]);
      CheckQuantize(format, dtype, 3, 701, 1024, false, 8, kContents[0]);
    }
  }
  // More nested blocks than a block of threads has warps, and sums of several.
  CheckQuantize("nf4", DType::kBF16, 300, 257, 32, true, 0, kContents[0]);
}

/// The mean of scales whose partial sums round: in order each 2^-54 is lost beside 1 + 2^-24, which
/// is halfway between two f32 and goes to the lower; added to each other first they tip it over.
void CheckMean() {
  const NamedContent content = {"sums that round", [](int64_t i, double) {
                                  const int64_t block = i / 32;
                                  return block == 0 ? 1.0 : std::ldexp(1.0, block == 1 ? -24 : -54);
                                }};
  CheckQuantize("nf4", DType::kF32, 1, 2048, 32, true, 0, content);
}

void CheckNonFinite() {
  for (const char* format : {"nf4", "int8"}) {
    for (const DType dtype : kDTypes) {
      for (const int64_t blocksize : {64, 1024}) {
        for (const int64_t at : {0, 250, 1234, 1499}) {
          Dense w(3, 500, dtype);
          w.Fill();
          StoreElement(w.view.data, dtype, at, at == 250 ? -kInfinity : std::nan(""));
          StoreElement(w.view.data, dtype, 1499, kInfinity);
          Packed packed(format, 3, 500, blocksize, true);
          DeviceCopies device;
          QuantizeOp op;
          op.w = device.Put(w.view);
          op.out = device.Empty(packed.view);
          int64_t bad = 0;
          const std::string error = Launch(op, &bad);
          Report(error.empty() && bad == at,
                 "non-finite at " + std::to_string(at) + ", found " + std::to_string(bad) + error);
        }
      }
    }
  }
}

/// Nested blocks of a size that is no power of two, as a checkpoint may have.
void CheckNestedBlocksize() {
  Packed packed("nf4", 40, 129, 32, true);
  Dense w(40, 129, DType::kF32);
  w.Fill();
  QuantizeOp op;
  op.w = w.view;
  op.out = packed.view;
  op.out.nested_blocksize = 300;
  Report(kReferenceKernels.quantize(op, kContext).ok(), "nested blocks of 300");
  Dense y(40, 129, DType::kF32);
  DequantizeOp back;
  back.w = op.out;
  back.w.nested_blocksize = 48;
  std::vector<float> nested(4, 0.5f);
  nested[1] = 0.25f;
  nested[3] = 7.0f;
  back.w.nested_absmax = nested.data();
  back.y = y.view;
  back.w.nested_blocksize = 50;
  Report(kReferenceKernels.dequantize(back, kContext).ok(), "nested blocks of 50");
  DeviceCopies device;
  DequantizeOp on_device;
  on_device.w = device.Put(back.w);
  on_device.y = device.Empty(y.view);
  Report(Launch(on_device).empty(), "nested blocks of 50 on the device");
  Same("nested blocks of 50", on_device.y.data, y.view.data, y.view.bytes());
}

/// A weight without elements: the mean of no scales is 0, and there is nothing else to do.
void CheckEmpty() {
  Dense w(0, 5, DType::kF32);
  Packed packed("nf4", 0, 5, 64, true);
  DeviceCopies device;
  QuantizeOp op;
  op.w = device.Put(w.view);
  op.out = device.Empty(packed.view);
  Report(Launch(op).empty() && *op.out.absmax_offset == 0, "empty weight");
  CastOp cast;
  cast.src = cast.dst = w.view;
  RandomOp random;
  random.y = w.view;
  DequantizeOp back;
  back.w = op.out;
  back.y = w.view;
  Report(Launch(cast).empty() && Launch(random).empty() && Launch(back).empty(), "empty tensors");
}

// ---------------------------------------------------------------------------------- cast and
// random

/// NaN of any payload is one value here; all else is compared bit by bit.
void SameElements(const std::string& what, const void* actual, const Dense& expected) {
  const TensorView& view = expected.view;
  std::vector<uint8_t> bytes(view.bytes());
  std::memcpy(bytes.data(), actual, bytes.size());
  for (int64_t i = 0; i < view.elems(); ++i) {
    const float value = LoadElement(bytes.data(), view.dtype, i);
    const float wanted = LoadElement(view.data, view.dtype, i);
    if (std::isnan(value) && std::isnan(wanted) && std::signbit(value) == std::signbit(wanted)) {
      const size_t size = DTypeBytes(view.dtype);
      std::memcpy(bytes.data() + static_cast<size_t>(i) * size,
                  static_cast<const uint8_t*>(view.data) + static_cast<size_t>(i) * size, size);
    }
  }
  Same(what, bytes.data(), view.data, view.bytes());
}

void CheckCast(DType from, DType to, int64_t elems, size_t misalign) {
  Dense src(1, elems, from);
  for (int64_t i = 0; i < elems; ++i) {
    // Every 16-bit pattern in turn; of f32 patterns around each rounding boundary.
    const uint32_t pattern = static_cast<uint32_t>(i) * 40503u;
    if (from == DType::kF32) {
      const uint32_t bits = pattern << 16 | (i % 5 == 0 ? 0x8000u : i % 5 == 1 ? 0x7fffu : pattern);
      std::memcpy(static_cast<uint8_t*>(src.view.data) + i * 4, &bits, 4);
    } else {
      const uint16_t bits = static_cast<uint16_t>(pattern);
      std::memcpy(static_cast<uint8_t*>(src.view.data) + i * 2, &bits, 2);
    }
  }
  Dense dst(1, elems, to);
  CastOp op;
  op.src = src.view;
  op.dst = dst.view;
  Report(kReferenceKernels.cast(op, kContext).ok(), "cast reference");
  DeviceCopies device(misalign);
  CastOp on_device;
  on_device.src = device.Put(src.view);
  on_device.dst = device.Empty(dst.view);
  const std::string name = std::string("cast ") + DTypeName(from) + " to " + DTypeName(to) +
                           " of " + std::to_string(elems) + " off " + std::to_string(misalign);
  const std::string error = Launch(on_device);
  Report(error.empty(), name + ": " + error);
  if (!error.empty()) return;
  if (from == to) {
    Same(name, on_device.dst.data, dst.view.data, dst.view.bytes());
  } else {
    SameElements(name, on_device.dst.data, dst);
  }
}

void CheckRandom(RandomOp::Kind kind, DType dtype, int64_t elems, size_t misalign) {
  Dense y(1, elems, dtype);
  RandomOp op;
  op.kind = kind;
  op.seed = 0x123456789abcdefull;
  op.mean = 0.25;
  op.scale = 3;
  op.y = y.view;
  Report(kReferenceKernels.random(op, kContext).ok(), "random reference");
  DeviceCopies device(misalign);
  RandomOp on_device = op;
  // The same seed in two parts, one of them in memory.
  const uint64_t added = 0x0fedcba987654321ull;
  on_device.seed = op.seed - added;
  Dense words(1, 2, DType::kF32);
  std::memcpy(words.view.data, &added, sizeof(added));
  DeviceCopies aligned;
  on_device.seed_at = aligned.Put(words.view);
  on_device.y = device.Empty(y.view);
  const std::string name = std::string("random ") + DTypeName(dtype) + " of " +
                           std::to_string(elems) + " off " + std::to_string(misalign);
  const std::string error = Launch(on_device);
  Report(error.empty(), name + ": " + error);
  if (error.empty()) Same(name, on_device.y.data, y.view.data, y.view.bytes());
}

void CheckCastsAndRandom() {
  for (const DType from : kDTypes) {
    for (const DType to : kDTypes) {
      CheckCast(from, to, 65536 + 4097, 0);
      for (const int64_t elems : {1, 3, 4, 5, 8, 31, 4099}) CheckCast(from, to, elems, 0);
      CheckCast(from, to, 777, 4);
      CheckCast(from, to, 4096, 8);
    }
  }
  for (const RandomOp::Kind kind :
       {RandomOp::Kind::kNormal, RandomOp::Kind::kUniform, RandomOp::Kind::kKeep}) {
    for (const DType dtype : kDTypes) {
      for (const int64_t elems : {1, 2, 3, 4, 7, 512, 5001}) CheckRandom(kind, dtype, elems, 0);
      CheckRandom(kind, dtype, 1000, 4);
    }
  }
}

int Main(int argc, char** argv) {
  std::string error;
  if (!emu::OptionsFromEnvironment(&error)) {
    std::printf("%s\n", error.c_str());
    return 2;
  }
  const int seeds = argc > 1 ? std::atoi(argv[1]) : 1;
  for (const emu::Options& options : Schedules(seeds)) {
    emu::SetOptions(options);
    CheckQuantization();
    CheckMean();
    CheckNonFinite();
    CheckNestedBlocksize();
    CheckEmpty();
    CheckCastsAndRandom();
  }
  Report(emu::FindingCount() == 0, "findings: " + std::to_string(emu::FindingCount()));
  std::printf("streaming: %d checks, %d failures\n", g_checks, g_failures);
  return g_failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace lowrank::cuda

int main(int argc, char** argv) { return lowrank::cuda::Main(argc, argv); }
