/// Planar weights (native/host_device/planes.h) from host arrays. Everything that kernels will read
/// by is checked here: sizes, codes, groups.
#include <algorithm>
#include <string>

#include "native/addon/bindings.h"
#include "native/addon/handles.h"
#include "native/addon/host_array.h"

namespace lowrank::addon {
namespace {

constexpr const char* kPlanesOp = "fromPlanes";
constexpr int64_t kTableEntries = 256;

[[noreturn]] void Reject(Napi::Env env, Code code, const std::string& operand,
                         const std::string& expected, const std::string& actual) {
  Throw(env, code, Refuse(code, kPlanesOp, operand.c_str(), expected, actual).message());
}

/// Numbers of a plane as JavaScript names their types.
bool TypeNamed(const std::string& name, PlaneType* type) {
  constexpr const char* kNames[] = {"f32", "bf16", "f16", "u8"};
  for (int i = 0; i < 4; ++i) {
    if (name == kNames[i]) {
      *type = static_cast<PlaneType>(i);
      return true;
    }
  }
  return false;
}

size_t BytesOf(PlaneType type) {
  constexpr size_t kBytes[] = {4, 2, 2, 1};
  return kBytes[static_cast<int>(type)];
}

/// The layout: {bits, grid, gridRows, gridSpan, gridPitch, scale, scaleOuter, scaleOuterSpan,
/// scaleOffset, min, minOuter, minOuterSpan, zero}, with types by name where there is such a plane.
class Layout {
 public:
  Layout(const Napi::Value& value) : object_(value.As<Napi::Object>()) {}

  int64_t Size(const char* name) const {
    return IntegerArg(object_.Get(name), kPlanesOp, name, Code::kShape, kMaxElements);
  }
  bool Has(const char* name) const { return IsPresent(object_.Get(name)); }
  PlaneType Type(const char* name) const {
    const std::string text = StringArg(object_.Get(name), kPlanesOp, name);
    PlaneType type{};
    if (!TypeNamed(text, &type)) {
      Reject(object_.Env(), Code::kDtype, name, "f32, bf16, f16 or u8", "\"" + text + "\"");
    }
    return type;
  }
  void Scale(const char* name, ScalePlane* plane) const {
    const std::string outer = std::string(name) + "Outer";
    const std::string offset = std::string(name) + "Offset";
    plane->type = Type(name);
    plane->outer_span = 1;
    if (Has(outer.c_str())) {
      plane->outer_type = Type(outer.c_str());
      plane->outer_span = Size((outer + "Span").c_str());
      if (plane->outer_type == PlaneType::kByte || plane->outer_span < 1) {
        Reject(object_.Env(), Code::kDtype, outer, "f32, bf16 or f16 of a span of 1 or more",
               "another");
      }
    }
    plane->has_offset = Has(offset.c_str());
    if (plane->has_offset) {
      plane->offset = static_cast<float>(NumberArg(object_.Get(offset), kPlanesOp, offset.c_str()));
    }
  }
  PlaneGrid Grid() const {
    const std::string name = StringArg(object_.Get("grid"), kPlanesOp, "grid");
    if (name == "tiles") return PlaneGrid::kTiles;
    if (name == "flat") return PlaneGrid::kFlat;
    if (name == "ordered") return PlaneGrid::kOrdered;
    if (name == "cyclic") return PlaneGrid::kCyclic;
    Reject(object_.Env(), Code::kFormat, "grid", "tiles, flat, ordered or cyclic",
           "\"" + name + "\"");
  }

 private:
  Napi::Object object_;
};

int64_t CeilDiv(int64_t a, int64_t b) { return a / b + (a % b != 0 ? 1 : 0); }

/// Entries of the grid.
int64_t EntriesOf(Napi::Env env, const WeightHandle& weight) {
  const Planes& planes = weight.planes;
  const bool ordered = planes.grid == PlaneGrid::kOrdered;
  if (planes.grid_span < 1 || planes.grid_rows < 1) {
    Reject(env, Code::kShape, "grid", "of one element or more", "an empty one");
  }
  if (ordered && (planes.grid_pitch < 1 || planes.grid_pitch > weight.cols)) {
    Reject(env, Code::kShape, "groups", "from 1 to K = " + std::to_string(weight.cols),
           std::to_string(planes.grid_pitch));
  }
  switch (planes.grid) {
    case PlaneGrid::kTiles:
      return CeilDiv(weight.rows, planes.grid_rows) * planes.grid_pitch;
    case PlaneGrid::kFlat:
      return CeilDiv(weight.rows * weight.cols, planes.grid_span);
    case PlaneGrid::kCyclic:
      return planes.grid_span;
    default:
      return weight.rows * planes.grid_pitch;
  }
}

/// The first code of more than `bits` bits, or -1.
int64_t FirstTooLarge(const uint8_t* codes, int64_t count, int bits) {
  if (bits == 8) return -1;
  uint8_t all = 0;
  for (int64_t i = 0; i < count; ++i) all = static_cast<uint8_t>(all | codes[i]);
  if (all >> bits == 0) return -1;
  int64_t found = 0;
  while (codes[found] >> bits == 0) ++found;
  return found;
}

/// Packs a row, one code a byte, as planes hold it. All codes have at most `bits` bits.
void PackRow(const uint8_t* codes, int64_t count, int bits, uint8_t* row) {
  if (bits == 8) {
    std::copy_n(codes, count, row);
    return;
  }
  if (bits == 4) {
    for (int64_t i = 0; i < count / 2; ++i) {
      row[i] = static_cast<uint8_t>(codes[2 * i] << 4 | codes[2 * i + 1]);
    }
    if (count % 2 != 0) row[count / 2] = static_cast<uint8_t>(codes[count - 1] << 4);
    return;
  }
  // Eight codes are as many bytes as a code has bits.
  for (int64_t k = 0; k < count; k += 8) {
    const int64_t here = std::min<int64_t>(8, count - k);
    uint64_t word = 0;
    for (int64_t i = 0; i < here; ++i) word |= static_cast<uint64_t>(codes[k + i]) << (i * bits);
    uint8_t* out = row + k / 8 * bits;
    for (int64_t i = 0; i < CeilDiv(here * bits, 8); ++i) {
      out[i] = static_cast<uint8_t>(word >> (8 * i));
    }
  }
}

/// Packs one code a byte as planes hold them. Returns the first that is too large, or -1.
int64_t PackCodes(const uint8_t* codes, const WeightHandle& weight, uint8_t* out) {
  const Planes& planes = weight.planes;
  const int64_t bad = FirstTooLarge(codes, weight.rows * weight.cols, planes.bits);
  if (bad >= 0) return bad;
  for (int64_t n = 0; n < weight.rows; ++n) {
    PackRow(codes + n * weight.cols, weight.cols, planes.bits, out + n * planes.row_bytes);
  }
  return -1;
}

/// The arrays of a call, by name.
class Parts {
 public:
  Parts(Napi::Env env, Backend* backend, Napi::Object object, WeightHandle* weight)
      : env_(env), backend_(backend), object_(object), weight_(weight) {}

  /// A part of exactly `bytes`.
  void Take(WeightHandle::Part part, int64_t elems, size_t element_bytes) {
    const char* name = WeightHandle::PartName(part);
    const HostArray array = ArrayOf(name, static_cast<size_t>(elems) * element_bytes);
    weight_->parts[part] =
        FilledPart(env_, backend_, array.data, array.length * array.element_bytes());
  }
  void Scale(const ScalePlane& plane, int64_t entries, WeightHandle::Part own,
             WeightHandle::Part table, WeightHandle::Part outer, bool has_outer) {
    Take(own, entries, BytesOf(plane.type));
    if (plane.type == PlaneType::kByte) Take(table, kTableEntries, sizeof(float));
    if (has_outer) Take(outer, CeilDiv(entries, plane.outer_span), BytesOf(plane.outer_type));
  }
  void Group() {
    const Planes& planes = weight_->planes;
    const std::vector<int32_t> group = IntegersArg(object_.Get("group"), kPlanesOp, "group");
    if (static_cast<int64_t>(group.size()) != weight_->cols) {
      Reject(env_, Code::kShape, "group", "of length " + std::to_string(weight_->cols),
             std::to_string(group.size()));
    }
    for (size_t k = 0; k < group.size(); ++k) {
      if (group[k] < 0 || group[k] >= planes.grid_pitch) {
        Reject(env_, Code::kValue, "group", "from 0 to " + std::to_string(planes.grid_pitch - 1),
               std::to_string(group[k]) + " of column " + std::to_string(k));
      }
    }
    weight_->parts[WeightHandle::kGroup] = IntegersPart(env_, backend_, group);
  }
  /// The levels, filled up with zeros that no code names.
  void Levels() {
    const size_t own = size_t{1} << weight_->planes.bits;
    const HostArray array = ArrayOf("levels", own * sizeof(float));
    std::vector<float> levels(static_cast<size_t>(weight_->format->levels));
    std::memcpy(levels.data(), array.data, own * sizeof(float));
    Planes& planes = weight_->planes;
    planes.first_level = levels[0];
    const auto all = [&](const auto& level) {
      for (size_t c = 0; c < own; ++c) {
        if (levels[c] != static_cast<float>(level(c))) return false;
      }
      return true;
    };
    if (all([&](size_t c) { return levels[0] + static_cast<float>(c); })) {
      planes.rule = LevelRule::kLinear;
    } else if (own == 256 && all([](size_t c) { return static_cast<int8_t>(c); })) {
      planes.rule = LevelRule::kSigned;
    }
    weight_->parts[WeightHandle::kCodebook] =
        FilledPart(env_, backend_, levels.data(), levels.size() * sizeof(float));
  }
  void Codes() {
    const auto bytes = static_cast<size_t>(weight_->rows * weight_->planes.row_bytes);
    StoragePtr part;
    ThrowIfError(env_, backend_->Allocate(bytes, &part));
    const HostArray array = ArrayOf("codes", static_cast<size_t>(weight_->rows * weight_->cols));
    int64_t bad = -1;
    const Status status = FillFresh(env_, part, [&](void* target) {
      bad = PackCodes(static_cast<const uint8_t*>(array.data), *weight_,
                      static_cast<uint8_t*>(target));
      return Status();
    });
    ThrowIfError(env_, status);
    if (bad >= 0) {
      const auto code = static_cast<const uint8_t*>(array.data)[bad];
      Reject(env_, Code::kValue, "codes",
             "below " + std::to_string(1 << weight_->planes.bits) + " (of " +
                 std::to_string(weight_->planes.bits) + " bits)",
             std::to_string(code) + " at " + std::to_string(bad));
    }
    weight_->parts[WeightHandle::kCodes] = part;
  }

 private:
  HostArray ArrayOf(const char* name, size_t bytes) {
    const HostArray array = HostArrayOf(object_.Get(name), kPlanesOp, name);
    const size_t actual = array.length * array.element_bytes();
    if (actual != bytes) {
      Reject(env_, Code::kShape, name, "of " + std::to_string(bytes) + " bytes",
             std::to_string(actual));
    }
    return array;
  }

  Napi::Env env_;
  Backend* backend_;
  Napi::Object object_;
  WeightHandle* weight_;
};

// weightFromPlanes(device, N, K, layout, parts)
Napi::Value WeightFromPlanes(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Backend* backend = BackendArg(info[0]);
  WeightHandle weight;
  weight.SetShape(info[1], info[2], kPlanesOp);
  if (weight.rows == 0 || weight.cols == 0) {
    Reject(env, Code::kShape, "shape", "of one row and one column or more",
           "[" + std::to_string(weight.rows) + ", " + std::to_string(weight.cols) + "]");
  }
  if (!info[3].IsObject() || !info[4].IsObject()) {
    Reject(env, Code::kType, "layout", "an object, with an object of parts", "another value");
  }
  const Layout layout(info[3]);
  Planes& planes = weight.planes;
  const int64_t bits = layout.Size("bits");
  weight.format = PlanarFormat(static_cast<int>(std::min<int64_t>(bits, 9)));
  if (weight.format == nullptr) {
    Reject(env, Code::kFormat, "bits", "from 1 to 8", std::to_string(bits));
  }
  planes.bits = static_cast<uint8_t>(bits);
  planes.row_bytes = CeilDiv(weight.cols * bits, 8);
  planes.grid = layout.Grid();
  planes.grid_rows = layout.Size("gridRows");
  planes.grid_span = layout.Size("gridSpan");
  planes.grid_pitch = planes.grid == PlaneGrid::kTiles && planes.grid_span > 0
                          ? CeilDiv(weight.cols, planes.grid_span)
                          : layout.Size("gridPitch");
  layout.Scale("scale", &planes.scale);
  const bool scale_outer = layout.Has("scaleOuter");
  const bool min = layout.Has("min");
  const bool min_outer = layout.Has("minOuter");
  const bool zero = layout.Has("zero");
  if (min) layout.Scale("min", &planes.min);
  if (zero) planes.zero_type = layout.Type("zero");
  if (min && zero) Reject(env, Code::kFormat, "min", "absent beside zero-points", "given");
  const int64_t entries = EntriesOf(env, weight);
  Parts parts(env, backend, info[4].As<Napi::Object>(), &weight);
  parts.Scale(planes.scale, entries, WeightHandle::kScale, WeightHandle::kScaleTable,
              WeightHandle::kScaleOuter, scale_outer);
  if (min) {
    parts.Scale(planes.min, entries, WeightHandle::kMin, WeightHandle::kMinTable,
                WeightHandle::kMinOuter, min_outer);
  }
  if (zero) parts.Take(WeightHandle::kZero, entries, BytesOf(planes.zero_type));
  if (planes.grid == PlaneGrid::kOrdered) parts.Group();
  parts.Levels();
  parts.Codes();
  return WrapWeight(env, std::move(weight));
}

}  // namespace

void RegisterPlanes(Napi::Env env, Napi::Object exports) {
  Export<WeightFromPlanes>(env, exports, "weightFromPlanes");
}

}  // namespace lowrank::addon
