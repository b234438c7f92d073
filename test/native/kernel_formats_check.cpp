// Quantisation, dequantisation, casts and random numbers, bit for bit or against the C library.
#include "test/native/kernel_operands.h"

namespace lowrank::cpu {
namespace {

void CheckQuantizer(const KernelTable& table, const RunContext& context) {
  for (const std::string& name : FormatNames()) {
    for (int64_t blocksize : {32, 64, 256, 4096}) {
      for (int64_t elems : {1, 31, 64, 65, 1000, 4097, 20001}) {
        for (DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
          const std::string what = std::string(table.isa) + " quantize " + name + "/" +
                                   std::to_string(blocksize) + " " + DTypeName(dtype) + " " +
                                   std::to_string(elems);
          Dense w(1, elems, dtype), y(1, elems, dtype);
          w.Fill(3);
          for (int64_t i = 0; i < elems && i < 40; ++i) StoreElement(w.view.data, dtype, i, 0);
          if (elems > 500) {  // a block of denormals where the blocks are short enough
            for (int64_t i = 256; i < 320; ++i)
              StoreElement(w.view.data, dtype, i, Uniform() * 1e-40);
          }
          Packed q(name, 1, elems, blocksize, false);
          QuantizeOp op;
          op.w = w.view;
          op.out = q.view;
          Report(op.Check().ok() && table.quantize(op, context).ok(), what);
          const FormatRow& format = *q.view.format;
          bool codes = true, scales = true;
          for (int64_t b = 0; b < q.view.blocks(); ++b) {
            float absmax = 0;
            const int64_t end = std::min(elems, (b + 1) * blocksize);
            for (int64_t i = b * blocksize; i < end; ++i) {
              absmax = std::max(absmax, std::fabs(static_cast<float>(w.At(i))));
            }
            scales = scales && BitsOf(absmax) == BitsOf(q.view.absmax[b]);
            const float inverse = 1.0f / absmax;
            for (int64_t i = b * blocksize; i < end; ++i) {
              const float v = static_cast<float>(w.At(i));
              codes = codes && q.view.Code(i) == (std::isinf(inverse) ? format.zero_code
                                                                      : format.Encode(v * inverse));
            }
          }
          Report(scales, what + " absmax");
          Report(codes, what + " codes");
          if (format.bits == 4 && (elems & 1) != 0) {
            Report((q.view.codes[elems / 2] & 15) == format.zero_code, what + " tail nibble");
          }
          DequantizeOp back;
          back.w = q.view;
          back.y = y.view;
          Report(table.dequantize(back, context).ok(), what + " dequantize");
          bool exact = true;
          for (int64_t i = 0; i < elems; ++i) {
            exact = exact && y.At(i) == RoundTo(dtype, static_cast<double>(q.view.Value(i)));
          }
          Report(exact, what + " dequantised values");
          // Where an element is not finite, the first one is named.
          const int64_t bad = elems * 2 / 3;
          StoreElement(w.view.data, dtype, bad, NAN);
          StoreElement(w.view.data, dtype, elems - 1, INFINITY);
          const Status refused = table.quantize(op, context);
          const int64_t first = bad == elems - 1 ? elems - 1 : bad;
          Report(
              refused.code() == Code::kNonFinite &&
                  refused.message().find("element " + std::to_string(first)) != std::string::npos,
              what + " non-finite " + refused.message());
        }
      }
    }
  }
}

/// Codes where a search can go wrong: within two floats of every threshold and power of two, each
/// alone in a block of ones (a search may take a run with a doubtful value another way), and
/// values of every size, in blocks whose greatest value is 1.
void CheckThresholds(const KernelTable& table, const RunContext& context) {
  for (const std::string& name : FormatNames()) {
    const FormatRow& format = *FindFormat(name);
    std::vector<float> near;
    const auto around = [&](float value) {
      const uint32_t bits = BitsOf(std::fabs(value));
      for (uint32_t i = bits > 2 ? bits - 2 : 0; i <= bits + 2; ++i) {
        if (FloatOf(i) > 1) continue;
        near.push_back(FloatOf(i));
        near.push_back(-FloatOf(i));
      }
    };
    for (int i = 0; i < format.threshold_count; ++i) around(format.thresholds[i]);
    for (int i = 0; i < 40; ++i) around(std::ldexp(1.0f, -i));
    const int64_t blocks = static_cast<int64_t>(near.size()) + 3000;
    Dense w(1, blocks * 64, DType::kF32);
    for (int64_t i = 0; i < blocks * 64; ++i) {
      const int64_t block = i / 64, at = i % 64;
      const int64_t alone = static_cast<int64_t>(near.size());
      float value = 1;
      if (block < alone && at == block % 63 + 1) value = near[static_cast<size_t>(block)];
      if (block >= alone && at != 0) {
        const double size = std::exp2((Uniform() - 1) * (i % 3 == 0 ? 16 : 2));
        value = static_cast<float>(i & 4 ? -size : size);
      }
      StoreElement(w.view.data, DType::kF32, i, value);
    }
    Packed q(name, 1, blocks * 64, 64, false);
    QuantizeOp op;
    op.w = w.view;
    op.out = q.view;
    const std::string what = std::string(table.isa) + " thresholds of " + name;
    Report(table.quantize(op, context).ok(), what);
    int64_t wrong = 0;
    for (int64_t i = 0; i < blocks * 64; ++i) {
      const float value = static_cast<float>(w.At(i));
      int rank = 0;
      for (int t = 0; t < format.threshold_count; ++t) {
        rank += format.thresholds[t] < (format.sign_magnitude ? std::fabs(value) : value);
      }
      int code = format.rank_to_code[rank];
      if (format.sign_magnitude && value < 0) code |= 8;
      if (q.view.Code(i) == code) continue;
      if (++wrong > 3) continue;
      std::printf("%s: %.9g has %d, not %d\n", what.c_str(), static_cast<double>(value),
                  q.view.Code(i), code);
    }
    Report(wrong == 0, what + ": " + std::to_string(wrong) + " codes");
  }
}

void CheckCast(const KernelTable& table, const RunContext& context) {
  for (DType from : {DType::kF32, DType::kBF16, DType::kF16}) {
    for (DType to : {DType::kF32, DType::kBF16, DType::kF16}) {
      const int64_t elems = 65536 * 2 + 7;
      Dense src(1, elems, from), dst(1, elems, to);
      for (int64_t i = 0; i < elems; ++i) {
        if (from == DType::kF32) {
          static_cast<float*>(src.view.data)[i] =
              FloatOf(static_cast<uint32_t>(i) * 32771u + static_cast<uint32_t>(i >> 3));
        } else {
          static_cast<uint16_t*>(src.view.data)[i] = static_cast<uint16_t>(i);
        }
      }
      CastOp op;
      op.src = src.view;
      op.dst = dst.view;
      Report(table.cast(op, context).ok(), "cast status");
      bool same = true;
      for (int64_t i = 0; i < elems; ++i) {
        const float value = LoadElement(src.view.data, from, i);
        uint32_t expected = BitsOf(value), actual = 0;
        if (to == DType::kBF16) expected = FromFloat<BF16>(value).bits;
        if (to == DType::kF16) expected = FromFloat<F16>(value).bits;
        std::memcpy(&actual,
                    static_cast<char*>(dst.view.data) + static_cast<size_t>(i) * DTypeBytes(to),
                    DTypeBytes(to));
        const uint32_t quiet = to == DType::kF32 ? 0x400000u : to == DType::kBF16 ? 0x40u : 0x200u;
        if (std::isnan(value)) expected |= quiet, actual |= quiet;
        if (expected != actual && same) {
          std::printf("cast %s to %s of %08x: %x, expected %x\n", DTypeName(from), DTypeName(to),
                      BitsOf(value), actual, expected);
        }
        same = same && expected == actual;
      }
      Report(same, std::string(table.isa) + " cast " + DTypeName(from) + " to " + DTypeName(to));
    }
  }
}

void CheckRandom(const KernelTable& table, const RunContext& context) {
  const int64_t elems = 200003;
  Dense normal(1, elems, DType::kF32), uniform(1, elems, DType::kF32);
  RandomOp op;
  op.seed = 77;
  op.mean = 0.5;
  op.scale = 2;
  op.y = normal.view;
  Report(table.random(op, context).ok(), "normal status");
  op.kind = RandomOp::Kind::kUniform;
  op.y = uniform.view;
  Report(table.random(op, context).ok(), "uniform status");
  double worst = 0, sum = 0, squares = 0;
  for (int64_t i = 0; i < elems; ++i) {
    const Philox4 draw = PhiloxGroup(77, static_cast<uint64_t>(i) / 4, kNormalStream);
    const size_t pair = static_cast<size_t>(i & 2);
    const double radius = std::sqrt(-2 * std::log((draw.lane[pair] + 1.0) * 0x1p-32));
    const double angle = 2 * M_PI * draw.lane[pair + 1] * 0x1p-32;
    const double exact = 0.5 + 2 * radius * ((i & 1) == 0 ? std::cos(angle) : std::sin(angle));
    worst = std::max(worst, std::fabs(normal.At(i) - exact) - 0x1p-24 * std::fabs(exact));
    sum += normal.At(i);
    squares += normal.At(i) * normal.At(i);
    const Philox4 flat = PhiloxGroup(77, static_cast<uint64_t>(i) / 4, kUniformStream);
    const double u = (2.0 * flat.lane[i & 3] + 1) * 0x1p-32 - 1;
    worst = std::max(worst, std::fabs(uniform.At(i) - (0.5 + 2 * u)) - 0x1p-24 * 2.5);
  }
  const double mean = sum / static_cast<double>(elems);
  Report(worst < 1e-13, "random numbers: error " + std::to_string(worst));
  Report(std::fabs(mean - 0.5) < 0.02 &&
             std::fabs(squares / static_cast<double>(elems) - mean * mean - 4) < 0.05,
         "random numbers: moments");
}

}  // namespace

void CheckFormats(const KernelTable& table, const RunContext& context) {
  CheckQuantizer(table, context);
  CheckThresholds(table, context);
  CheckCast(table, context);
  CheckRandom(table, context);
}

}  // namespace lowrank::cpu
