/// Codes in the bits of a file, as lib/core/bit-fields.ts describes them: the loops over all
/// elements of a layer, on several threads. The layout is checked in lib, and here against the
/// bytes.
#include <algorithm>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "native/addon/bindings.h"
#include "native/addon/handles.h"
#include "native/addon/host_array.h"

namespace lowrank::addon {
namespace {

constexpr const char* kReadOp = "readFields";
constexpr const char* kPackOp = "packPairs";
/// Elements that are worth another thread.
constexpr int64_t kThreadElems = int64_t{1} << 18;
constexpr int64_t kMaxThreads = 256;
/// Of bits and bytes: far beyond any file, far below an overflow of products with a row's number.
constexpr double kMostNumber = 281474976710656.0;  // 2^48

HostArray ArrayOf(const Napi::Value& value, const char* op, const char* operand,
                  napi_typedarray_type type, const char* name) {
  const HostArray array = HostArrayOf(value, op, operand);
  if (array.type != type) {
    Throw(value.Env(), Code::kType,
          Refuse(Code::kType, op, operand, name, "an array of another type").message());
  }
  return array;
}

HostArray BytesOf(const Napi::Value& value, const char* op, const char* operand) {
  return ArrayOf(value, op, operand, napi_uint8_array, "a Uint8Array");
}

/// Some bits of every code. Columns lie alike in every run of them, with whole bytes between two.
struct Field {
  int64_t rows;
  int64_t columns;
  int64_t base_bits;
  std::vector<double> row_at;
  int64_t row_stride_bits;
  int64_t run_bytes;  // from a run to the next
  // Of each column of a run: byte and bit where it begins, how many bits, and where they go.
  std::vector<uint32_t> byte;
  std::vector<uint8_t> bit;
  std::vector<uint8_t> mask;
  std::vector<uint8_t> shift;

  int64_t run() const { return static_cast<int64_t>(byte.size()); }
  int64_t runs() const { return (columns + run() - 1) / run(); }
  int64_t RowBits(int64_t row) const {
    const auto period = static_cast<int64_t>(row_at.size());
    return base_bits + row / period * row_stride_bits + static_cast<int64_t>(row_at[row % period]);
  }
  /// Where the bits of column i of run `r` end, from the start of a row.
  int64_t EndBits(int64_t r, int64_t i) const {
    int64_t width = 0;
    while (width < 8 && mask[i] >> width != 0) ++width;
    return (r * run_bytes + byte[i]) * 8 + bit[i] + width;
  }
};

/// Is every bit of the field inside of `bytes`?
bool Inside(const Field& field, int64_t bytes) {
  int64_t end = 0;
  const int64_t last = field.runs() - 1;
  const int64_t rest = field.columns - last * field.run();
  for (int64_t i = 0; i < field.run(); ++i) {
    if (field.mask[i] == 0) continue;
    if (last > 0) end = std::max(end, field.EndBits(last - 1, i));
    if (i < rest) end = std::max(end, field.EndBits(last, i));
  }
  if (end == 0) return true;
  for (int64_t row = 0; row < field.rows; ++row) {
    const int64_t start = field.RowBits(row);
    if (start < 0 || start + end > bytes * 8) return false;
  }
  return true;
}

/// codes[row, column] ^= the field's bits, for the runs from `first` to `end`.
void ReadRuns(const Field& field, const uint8_t* bytes, int64_t size, int64_t first, int64_t end,
              uint8_t* codes) {
  const uint32_t* byte = field.byte.data();
  const uint8_t* bit = field.bit.data();
  const uint8_t* mask = field.mask.data();
  const uint8_t* shift = field.shift.data();
  bool within = true;  // no column's bits lie in two bytes
  for (int64_t i = 0; i < field.run(); ++i) {
    within = within && ((static_cast<uint32_t>(mask[i]) << bit[i]) >> 8) == 0;
  }
  // Rows inside of runs: words down the columns of a file hold many rows.
  for (int64_t r = first; r < end; ++r) {
    const int64_t column = r * field.run();
    const int64_t count = std::min(field.run(), field.columns - column);
    for (int64_t row = 0; row < field.rows; ++row) {
      const int64_t start = field.RowBits(row);
      const int64_t at = start / 8 + r * field.run_bytes;
      const auto offset = static_cast<uint32_t>(start % 8);
      uint8_t* to = codes + row * field.columns + column;
      if (within && offset == 0) {
        for (int64_t i = 0; i < count; ++i) {
          const uint32_t value = (static_cast<uint32_t>(bytes[at + byte[i]]) >> bit[i]) & mask[i];
          to[i] = static_cast<uint8_t>(to[i] ^ (value << shift[i]));
        }
        continue;
      }
      for (int64_t i = 0; i < count; ++i) {
        const uint32_t from = offset + bit[i];
        const int64_t place = at + byte[i] + (from >> 3);
        // A column without bits may lie behind the last byte.
        const uint32_t low = place < size ? bytes[place] : 0;
        const uint32_t high = place + 1 < size ? bytes[place + 1] : 0;
        const uint32_t value = ((low | high << 8) >> (from & 7)) & mask[i];
        to[i] = static_cast<uint8_t>(to[i] ^ (value << shift[i]));
      }
    }
  }
}

/// Calls work(first, end) with parts of 0 to `count`, one a thread. All are done when it returns.
template <typename Work>
void InParts(int64_t count, int64_t threads, const Work& work) {
  std::vector<std::thread> others;
  int64_t done = 0;
  for (int64_t t = 1; t < threads; ++t) {
    const int64_t end = count * t / threads;
    try {
      others.emplace_back(work, done, end);
    } catch (const std::system_error&) {
      break;  // No thread is left: this one does the rest.
    }
    done = end;
  }
  work(done, count);
  for (std::thread& other : others) other.join();
}

// readFields(bytes, codes, [rows, columns, base, row stride, run bytes, threads], row at, byte,
// bit, mask, shift): one field of a layout, whose bits are combined with those of `codes` by XOR.
Napi::Value ReadFields(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const HostArray sizes = ArrayOf(info[2], kReadOp, "sizes", napi_float64_array, "a Float64Array");
  bool sane = sizes.length == 6;
  const auto number = [&](size_t i) {
    const double value = static_cast<const double*>(sizes.data)[i];
    sane = sane && value >= 0 && value <= kMostNumber;
    return sane ? static_cast<int64_t>(value) : 0;
  };
  Field field{};
  int64_t threads = 1;
  if (sane) {
    field.rows = number(0);
    field.columns = number(1);
    field.base_bits = number(2);
    field.row_stride_bits = number(3);
    field.run_bytes = number(4);
    threads = std::clamp<int64_t>(number(5), 1, kMaxThreads);
  }
  field.row_at = CopiedElements<double>(
      ArrayOf(info[3], kReadOp, "rowAt", napi_float64_array, "a Float64Array"));
  field.byte = CopiedElements<uint32_t>(
      ArrayOf(info[4], kReadOp, "byte", napi_uint32_array, "a Uint32Array"));
  field.bit = CopiedElements<uint8_t>(BytesOf(info[5], kReadOp, "bit"));
  field.mask = CopiedElements<uint8_t>(BytesOf(info[6], kReadOp, "mask"));
  field.shift = CopiedElements<uint8_t>(BytesOf(info[7], kReadOp, "shift"));
  const HostArray bytes = BytesOf(info[0], kReadOp, "bytes");
  const HostArray codes = BytesOf(info[1], kReadOp, "codes");
  const size_t run = field.byte.size();
  const bool alike = run != 0 && field.bit.size() == run && field.mask.size() == run &&
                     field.shift.size() == run && !field.row_at.empty();
  const auto size = static_cast<int64_t>(bytes.length);
  const bool small =
      std::all_of(field.bit.begin(), field.bit.end(), [](uint8_t b) { return b < 8; });
  sane = sane && std::all_of(field.row_at.begin(), field.row_at.end(),
                             [](double at) { return at >= 0 && at <= kMostNumber; });
  // Steps that are never taken may be of any size.
  if (sane && alike) {
    if (field.runs() <= 1) field.run_bytes = 0;
    if (field.rows <= static_cast<int64_t>(field.row_at.size())) field.row_stride_bits = 0;
    sane = field.run_bytes <= size && field.row_stride_bits <= size * 8;
  }
  if (!sane || !alike || !small || field.rows < 1 || field.columns < 1 ||
      field.rows > kMaxElements / field.columns ||
      static_cast<int64_t>(codes.length) != field.rows * field.columns || !Inside(field, size)) {
    Throw(env, Code::kShape,
          Refuse(Code::kShape, kReadOp, "fields",
                 "inside of " + std::to_string(size) + " bytes, for each of the codes", "others")
              .message());
  }
  threads = std::min(threads, (field.rows * field.columns + kThreadElems - 1) / kThreadElems);
  threads = std::min(threads, field.runs());
  InParts(field.runs(), threads, [&](int64_t first, int64_t end) {
    ReadRuns(field, static_cast<const uint8_t*>(bytes.data), size, first, end,
             static_cast<uint8_t*>(codes.data));
  });
  return env.Undefined();
}

// packPairs(codes, pairs, threads): two codes a byte, the first in the high half.
Napi::Value PackPairs(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const int64_t asked = IntegerArg(info[2], kPackOp, "threads", Code::kValue, kMaxThreads);
  const HostArray codes = BytesOf(info[0], kPackOp, "codes");
  const HostArray pairs = BytesOf(info[1], kPackOp, "pairs");
  if (codes.length != 2 * pairs.length) {
    Throw(env, Code::kShape,
          Refuse(Code::kShape, kPackOp, "pairs", "of half as many bytes as codes",
                 std::to_string(pairs.length))
              .message());
  }
  const auto count = static_cast<int64_t>(pairs.length);
  const auto* from = static_cast<const uint8_t*>(codes.data);
  auto* to = static_cast<uint8_t*>(pairs.data);
  const int64_t threads = std::clamp<int64_t>(count / kThreadElems, 1, std::max<int64_t>(asked, 1));
  InParts(count, threads, [from, to](int64_t first, int64_t end) {
    for (int64_t i = first; i < end; ++i) {
      to[i] = static_cast<uint8_t>(from[2 * i] << 4 | from[2 * i + 1]);
    }
  });
  return env.Undefined();
}

// largestCode(codes): the largest byte, 0 of none.
Napi::Value LargestCode(const Napi::CallbackInfo& info) {
  const HostArray codes = BytesOf(info[0], "largestCode", "codes");
  const auto* data = static_cast<const uint8_t*>(codes.data);
  uint8_t most = 0;
  for (size_t i = 0; i < codes.length; ++i) most = std::max(most, data[i]);
  return Napi::Number::New(info.Env(), most);
}

}  // namespace

void RegisterBitFields(Napi::Env env, Napi::Object exports) {
  Export<ReadFields>(env, exports, "readFields");
  Export<PackPairs>(env, exports, "packPairs");
  Export<LargestCode>(env, exports, "largestCode");
}

}  // namespace lowrank::addon
