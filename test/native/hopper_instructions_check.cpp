/// Each sm_90a instruction of the emulator against a plain definition, planted bugs that check mode
/// must name, and the same kernels without the bug, which must be clean.
#include <array>
#include <functional>

#include "test/native/hopper_operands.h"

#define HERE ::lowrank::emu::Site::Line(__FILE__, __LINE__)

namespace lowrank::test {
namespace {

using namespace emu;

int g_checks = 0;
int g_failures = 0;

void Expect(bool ok, const std::string& what) {
  ++g_checks;
  if (ok) return;
  ++g_failures;
  std::printf("FAIL %s\n", what.c_str());
}

struct Shape {
  uint32_t blocks = 1;
  uint32_t threads = 32;
  uint32_t cluster = 1;
  uint32_t shared_bytes = 65536;
};

using Body = void (*)(const void*);

LaunchStatus Run(Body body, const void* params, const Shape& shape) {
  Kernel kernel;
  kernel.name = "check";
  kernel.body = body;
  kernel.hooks = Hooks::kOnRequest;
  Launch launch;
  launch.kernel = &kernel;
  launch.grid = Dim3(shape.blocks);
  launch.block = Dim3(shape.threads);
  launch.cluster = shape.cluster;
  launch.shared_bytes = shape.shared_bytes;
  launch.params = params;
  return RunGrid(launch);
}

unsigned char* Shared(uint32_t offset = 0) { return current->block->dynamic_shared + offset; }
uint32_t Address(uint32_t offset) { return SharedAddress(Shared(offset)); }

template <typename T>
void Put(void* ptr, T value, Site site) {
  Access(ptr, sizeof(T), true, site);
  std::memcpy(ptr, &value, sizeof(T));
}
template <typename T>
T Get(const void* ptr, Site site) {
  Access(ptr, sizeof(T), false, site);
  T value;
  std::memcpy(&value, ptr, sizeof(T));
  return value;
}

const Schedule kSchedules[] = {
    {Order::kForward, 1, Copies::kLate, "forward late"},
    {Order::kForward, 1, Copies::kEarly, "forward early"},
    {Order::kReverse, 1, Copies::kLate, "reverse late"},
    {Order::kRandom, 3, Copies::kLate, "random late"},
    {Order::kRandom, 4, Copies::kEarly, "random early"},
};

void Use(const Schedule& schedule) {
  Options options = CurrentOptions();
  options.order = schedule.order;
  options.seed = schedule.seed;
  options.copies = schedule.copies;
  options.check = 1;
  options.print = false;
  SetOptions(options);
  ClearFindings();
}

/// No finding under any schedule, and `result` holds after each.
void Clean(const std::string& name, Body body, const void* params, const Shape& shape,
           const std::function<bool()>& result) {
  for (const Schedule& schedule : kSchedules) {
    Use(schedule);
    Run(body, params, shape);
    const std::vector<Finding> findings = Findings();
    Expect(findings.empty(),
           name + ", " + schedule.name + ": " +
               (findings.empty() ? "" : findings[0].kind + " " + findings[0].text));
    Expect(result(), name + ", " + schedule.name + ": result");
  }
}

/// At least one schedule finds `kind`.
void Caught(const std::string& name, const char* kind, Body body, const void* params,
            const Shape& shape) {
  std::string seen;
  for (const Schedule& schedule : kSchedules) {
    Use(schedule);
    Run(body, params, shape);
    for (const Finding& finding : Findings()) {
      if (finding.kind == kind) {
        Expect(true, name);
        return;
      }
      seen += " " + finding.kind + ": " + finding.text + "\n";
    }
  }
  Expect(false, name + ": no " + kind + " found, but\n" + seen);
}

/// Chunk of a row of `width` bytes as the swizzle moves it, by row: the definition's tables.
uint32_t SwizzledChunk(uint32_t width, uint32_t row, uint32_t chunk) {
  if (width == 128) return chunk ^ row % 8;
  if (width == 64) return chunk ^ row / 2 % 4;
  if (width == 32) return chunk ^ row / 4 % 2;
  return chunk;
}

// ------------------------------------------------------------------------------------ tensor tiles

struct TileParams {
  alignas(64) unsigned char map[128];
  uint32_t rank;
  int32_t at[5];
  uint32_t bytes;
  unsigned char* out;  // [block][bytes]
  uint32_t multicast;
  unsigned char* store_map;
};

/// Loads a box and copies the shared bytes out.
void LoadTile(const void* params) {
  const auto& p = *static_cast<const TileParams*>(params);
  const uint32_t barrier = Address(65536 - 64);
  if (current->linear == 0) {
    MbarrierInit(barrier, 1, HERE);
    FenceMbarrierInit(HERE);
  }
  ClusterArrive(HERE);
  ClusterWait(HERE);
  if (current->linear == 0) {
    MbarrierArriveExpectTx(barrier, p.bytes, HERE);
    if (p.multicast == 0 || ClusterRank() == 0) {
      TensorLoad(Address(0), p.map, p.rank, p.at, barrier, p.multicast, HERE);
    }
  }
  while (!MbarrierTryWaitParity(barrier, 0, HERE)) {
  }
  for (uint32_t i = current->linear * 16; i < p.bytes; i += 32 * 16) {
    const auto chunk = Get<std::array<uint64_t, 2>>(Shared(i), HERE);
    Put(p.out + size_t{current->block->linear} * p.bytes + i, chunk, HERE);
  }
  ClusterArrive(HERE);
  ClusterWait(HERE);
}

/// Fills the tile with its offsets in shared memory and stores it.
void StoreTile(const void* params) {
  const auto& p = *static_cast<const TileParams*>(params);
  for (uint32_t i = current->linear * 2; i < p.bytes; i += 64) {
    Put(Shared(i), static_cast<uint16_t>(i / 2 + 1), HERE);
  }
  FenceProxyAsync(HERE);
  BarrierSync(0, 0, HERE);
  if (current->linear == 0) {
    TensorStore(p.map, p.rank, p.at, Address(0), HERE);
    BulkCommitGroup(HERE);
    BulkWaitGroup(0, false, HERE);
  }
}

struct TileCase {
  uint32_t elem_bytes;
  uint32_t swizzle;
  std::vector<uint64_t> size;
  std::vector<uint32_t> box;
  std::vector<int32_t> at;
};

void CheckTile(const TileCase& c) {
  const auto rank = static_cast<uint32_t>(c.size.size());
  std::string name = "tensor tile";
  for (const uint32_t edge : c.box) name += " " + std::to_string(edge);
  name += " swizzle " + std::to_string(c.swizzle);
  TensorMapSpec spec;
  spec.rank = rank;
  spec.elem_bytes = c.elem_bytes;
  spec.swizzle_bytes = c.swizzle;
  uint64_t stride = (c.size[0] * c.elem_bytes + 15) / 16 * 16 + 16;
  TileParams p{};
  p.rank = rank;
  p.bytes = c.elem_bytes;
  for (uint32_t i = 0; i < rank; ++i) {
    spec.size_elems[i] = c.size[i];
    spec.box_elems[i] = c.box[i];
    spec.elem_stride[i] = 1;
    if (i > 0) {
      spec.stride_bytes[i] = stride;
      stride *= c.size[i];
    }
    p.at[i] = c.at[i];
    p.bytes *= c.box[i];
  }
  std::vector<unsigned char> tensor(stride);
  std::mt19937 rng(5);
  for (unsigned char& byte : tensor) byte = static_cast<unsigned char>(rng());
  DeviceArray<unsigned char> device(tensor);
  spec.base = reinterpret_cast<uintptr_t>(device.data());
  const char* refusal = EncodeTensorMap(spec, p.map);
  Expect(refusal == nullptr, name + ": " + (refusal == nullptr ? "" : refusal));

  // By definition, element by element.
  std::vector<unsigned char> tile(p.bytes);
  const uint32_t row_bytes = c.box[0] * c.elem_bytes;
  std::vector<uint32_t> index(rank);
  std::vector<int64_t> source(p.bytes, -1);  // of each shared byte
  for (uint32_t row = 0; row < p.bytes / row_bytes; ++row) {
    for (uint32_t byte = 0; byte < row_bytes; ++byte) {
      const int64_t x = int64_t{c.at[0]} + byte / c.elem_bytes;
      bool inside = x >= 0 && x < static_cast<int64_t>(c.size[0]);
      int64_t from = x * c.elem_bytes + byte % c.elem_bytes;
      uint32_t rest = row;
      for (uint32_t i = 1; i < rank; ++i) {
        const int64_t at = int64_t{c.at[i]} + rest % c.box[i];
        rest /= c.box[i];
        inside = inside && at >= 0 && at < static_cast<int64_t>(c.size[i]);
        from += at * static_cast<int64_t>(spec.stride_bytes[i]);
      }
      const uint32_t to =
          row * row_bytes + SwizzledChunk(c.swizzle, row, byte / 16) * 16 + byte % 16;
      tile[to] = inside ? tensor[static_cast<size_t>(from)] : 0;
      source[to] = inside ? from : -1;
    }
  }
  DeviceArray<unsigned char> out(p.bytes);
  p.out = out.data();
  Clean(name, LoadTile, &p, Shape(), [&] { return out.Read() == tile; });

  DeviceArray<unsigned char> blank(std::vector<unsigned char>(tensor.size(), 0));
  spec.base = reinterpret_cast<uintptr_t>(blank.data());
  EncodeTensorMap(spec, p.map);
  std::vector<unsigned char> stored(tensor.size());
  for (uint32_t i = 0; i < p.bytes; ++i) {
    const auto value = static_cast<uint16_t>(i / 2 + 1);
    if (source[i] >= 0) {
      stored[static_cast<size_t>(source[i])] = static_cast<unsigned char>(value >> (8 * (i % 2)));
    }
  }
  Clean(name + " stored", StoreTile, &p, Shape(), [&] { return blank.Read() == stored; });
}

void CheckTiles() {
  CheckTile({2, 128, {200, 40}, {64, 16}, {64, 8}});
  CheckTile({2, 128, {100, 20}, {64, 16}, {64, 8}});
  CheckTile({2, 64, {77, 9}, {32, 24}, {-8, -3}});
  CheckTile({2, 32, {16, 300}, {16, 256}, {0, 100}});
  CheckTile({1, 128, {1000, 4}, {128, 8}, {960, -2}});
  CheckTile({4, 0, {12, 50}, {8, 32}, {5, 30}});
  CheckTile({2, 0, {333}, {256}, {100}});
  CheckTile({2, 64, {40, 7, 5}, {32, 4, 3}, {16, 5, 3}});
  CheckTile({2, 128, {64, 3, 4, 2, 3}, {64, 2, 2, 1, 2}, {8, 2, 3, 1, 2}});

  // One load into three of four blocks.
  TileParams p{};
  std::vector<uint16_t> values(64 * 8);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<uint16_t>(i * 7);
  DeviceArray<uint16_t> device(values);
  TensorMapSpec spec;
  spec.base = reinterpret_cast<uintptr_t>(device.data());
  spec.rank = 2;
  spec.elem_bytes = 2;
  spec.size_elems[0] = spec.box_elems[0] = 64;
  spec.size_elems[1] = spec.box_elems[1] = 8;
  spec.stride_bytes[1] = 128;
  EncodeTensorMap(spec, p.map);
  p.rank = 2;
  p.bytes = 1024;
  p.multicast = 0xf;
  DeviceArray<unsigned char> out(4 * 1024);
  p.out = out.data();
  Shape cluster;
  cluster.blocks = cluster.cluster = 4;
  Clean("multicast", LoadTile, &p, cluster, [&] {
    const std::vector<unsigned char> all = out.Read();
    for (size_t i = 0; i < 4; ++i) {
      if (std::memcmp(&all[i * 1024], values.data(), 1024) != 0) return false;
    }
    return true;
  });

  // What the driver refuses.
  const auto refused = [&](const char* name, const std::function<void(TensorMapSpec*)>& change) {
    TensorMapSpec bad = spec;
    change(&bad);
    Expect(EncodeTensorMap(bad, p.map) != nullptr, std::string("encode refuses ") + name);
  };
  refused("a base off 16", [](TensorMapSpec* s) { s->base += 8; });
  refused("a stride off 16", [](TensorMapSpec* s) { s->stride_bytes[1] = 130; });
  refused("a box of 257", [](TensorMapSpec* s) { s->box_elems[1] = 257; });
  refused("rows wider than the swizzle", [](TensorMapSpec* s) { s->swizzle_bytes = 64; });
  refused("six dimensions", [](TensorMapSpec* s) { s->rank = 6; });
  refused("a size of 0", [](TensorMapSpec* s) { s->size_elems[1] = 0; });
}

// ------------------------------------------------------------------------------ linear bulk copies

struct BulkParams {
  const unsigned char* in;
  unsigned char* out;
};

/// Block 0 loads, hands the bytes to its peer, which stores them.
void RelayBulk(const void* params) {
  const auto& p = *static_cast<const BulkParams*>(params);
  const uint32_t barrier = Address(8192);
  if (current->linear == 0) MbarrierInit(barrier, 1, HERE);
  ClusterArrive(HERE);
  ClusterWait(HERE);
  if (current->linear == 0) MbarrierArriveExpectTx(barrier, 512, HERE);
  if (ClusterRank() == 0 && current->linear == 0) {
    BulkLoad(Address(0), p.in, 512, barrier, 0, HERE);
    MbarrierTryWaitParity(barrier, 0, HERE);
    BulkCopyToPeer(MapAddress(Address(1024), 1, HERE), Address(0), 512,
                   MapAddress(barrier, 1, HERE), HERE);
  }
  if (ClusterRank() == 1 && current->linear == 0) {
    MbarrierTryWaitParity(barrier, 0, HERE);
    BulkStore(p.out, Address(1024), 512, HERE);
    BulkCommitGroup(HERE);
    BulkWaitGroup(0, true, HERE);
  }
  ClusterArrive(HERE);
  ClusterWait(HERE);
}

/// Each block writes into its peer's shared memory, and reads its own.
void ExchangeShared(const void* params) {
  const auto& p = *static_cast<const BulkParams*>(params);
  const uint32_t value = 100 * ClusterRank() + current->linear;
  const uint32_t peer = (ClusterRank() + 1) % ClusterSize();
  ClusterStore(MapAddress(Address(current->linear * 4), peer, HERE), &value, 4, HERE);
  ClusterArrive(HERE);
  ClusterWait(HERE);
  uint32_t mine;
  ClusterLoad(Address(current->linear * 4), &mine, 4, HERE);
  const uint32_t same =
      Get<uint32_t>(MapGeneric(Shared(current->linear * 4), ClusterRank(), HERE), HERE);
  Put(p.out + (current->block->linear * 32 + current->linear) * 4, mine == same ? mine : 0, HERE);
  ClusterArrive(HERE);
  ClusterWait(HERE);
}

void CheckBulk() {
  std::vector<unsigned char> bytes(512);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<unsigned char>(i * 3);
  DeviceArray<unsigned char> in(bytes);
  DeviceArray<unsigned char> out(512);
  BulkParams p{in.data(), out.data()};
  Shape pair;
  pair.blocks = pair.cluster = 2;
  Clean("bulk copies", RelayBulk, &p, pair, [&] { return out.Read() == bytes; });

  DeviceArray<uint32_t> values(3 * 32);
  p.out = reinterpret_cast<unsigned char*>(values.data());
  Shape three;
  three.blocks = three.cluster = 3;
  Clean("distributed shared memory", ExchangeShared, &p, three, [&] {
    const std::vector<uint32_t> all = values.Read();
    for (uint32_t i = 0; i < 96; ++i) {
      if (all[i] != 100 * ((i / 32 + 2) % 3) + i % 32) return false;
    }
    return true;
  });
}

// ------------------------------------------------------------------------------------------- wgmma

struct WgmmaParams {
  WgmmaShape shape;
  bool registers;
  bool accumulate;
  uint32_t swizzle_a;
  uint32_t swizzle_b;
  const uint16_t* a;  // [64][16]
  const uint16_t* b;  // [n][16]
  const float* c;     // [64][n]
  float* d;
};

struct Placement {
  uint32_t leading;
  uint32_t stride;
};

/// Where element (mn, k) of an operand of `rows` rows lies, by the canonical layouts: blocks of
/// 8 x 16 bytes without swizzle, else rows of the swizzle's width whose chunks it moves.
uint32_t PlaceElement(uint32_t swizzle, bool mn_major, uint32_t rows, uint32_t mn, uint32_t k,
                      Placement* strides) {
  const uint32_t major = mn_major ? mn : k;
  const uint32_t minor = mn_major ? k : mn;
  if (swizzle == 0) {
    // Blocks along K first where K-major (leading), along MN first where MN-major (stride).
    *strides = mn_major ? Placement{128 * (rows / 8) + 128, 128} : Placement{128, 256 + 128};
    const uint32_t along_k = mn_major ? strides->leading : strides->leading;
    return mn / 8 * strides->stride + k / 8 * along_k + minor % 8 * 16 + major % 8 * 2;
  }
  const uint32_t width_elems = swizzle / 2;
  const uint32_t pattern = 8 * swizzle;  // bytes after which it repeats
  *strides = mn_major ? Placement{2 * pattern + 1024, pattern} : Placement{16, pattern};
  const uint32_t place = SwizzledChunk(swizzle, minor % 8, major % width_elems / 8) * 16 +
                         minor % 8 * swizzle + major % 8 * 2;
  if (mn_major) {
    return place + major / width_elems * strides->leading + minor / 8 * strides->stride;
  }
  return place + minor / 8 * strides->stride;
}

uint64_t DescriptorOf(uint32_t address, uint32_t swizzle, const Placement& strides) {
  const uint64_t mode = swizzle == 0 ? 0 : swizzle == 128 ? 1 : swizzle == 64 ? 2 : 3;
  return (address >> 4 & 0x3fff) | uint64_t{strides.leading >> 4} << 16 |
         uint64_t{strides.stride >> 4} << 32 | mode << 62;
}

constexpr uint32_t kB = 32768;  // offset of the second operand

void Multiply(const void* params) {
  const auto& p = *static_cast<const WgmmaParams*>(params);
  const uint32_t thread = current->linear;
  Placement a_strides{};
  Placement b_strides{};
  for (uint32_t i = thread; i < 64 * 16; i += 128) {
    const uint32_t at =
        PlaceElement(p.swizzle_a, p.shape.a_mn_major, 64, i / 16, i % 16, &a_strides);
    if (!p.registers) Put(Shared(at), p.a[i], HERE);
  }
  for (uint32_t i = thread; i < p.shape.n * 16; i += 128) {
    const uint32_t at =
        PlaceElement(p.swizzle_b, p.shape.b_mn_major, p.shape.n, i / 16, i % 16, &b_strides);
    Put(Shared(kB + at), p.b[i], HERE);
  }
  PlaceElement(p.swizzle_a, p.shape.a_mn_major, 64, 0, 0, &a_strides);
  PlaceElement(p.swizzle_b, p.shape.b_mn_major, p.shape.n, 0, 0, &b_strides);
  FenceProxyAsync(HERE);
  BarrierSync(0, 0, HERE);
  float d[128];
  const uint32_t g = thread % 32 / 4;
  const uint32_t t = thread % 4;
  const uint32_t row0 = thread / 32 * 16 + g;
  for (uint32_t i = 0; i < p.shape.n / 2; ++i) {
    d[i] = p.c[(row0 + i / 2 % 2 * 8) * p.shape.n + i / 4 * 8 + 2 * t + i % 2];
  }
  WgmmaFence(HERE);
  const uint64_t b = DescriptorOf(Address(kB), p.swizzle_b, b_strides);
  if (p.registers) {
    uint32_t a[4];
    for (uint32_t i = 0; i < 4; ++i) {
      const uint16_t* pair = p.a + (row0 + i % 2 * 8) * 16 + 2 * t + i / 2 * 8;
      a[i] = pair[0] | static_cast<uint32_t>(pair[1]) << 16;
    }
    WgmmaRegisters(p.shape, d, a, b, p.accumulate, false, HERE);
  } else {
    Wgmma(p.shape, d, DescriptorOf(Address(0), p.swizzle_a, a_strides), b, p.accumulate, false,
          HERE);
  }
  WgmmaCommit(HERE);
  WgmmaWait(0, HERE);
  for (uint32_t i = 0; i < p.shape.n / 2; ++i) {
    p.d[(row0 + i / 2 % 2 * 8) * p.shape.n + i / 4 * 8 + 2 * t + i % 2] = d[i];
  }
}

float Value(bool bf16, uint16_t bits) { return bf16 ? ToFloat(BF16{bits}) : ToFloat(F16{bits}); }

void CheckWgmma(WgmmaParams p) {
  const uint32_t n = p.shape.n;
  std::mt19937 rng(n);
  std::normal_distribution<float> normal;
  const auto random16 = [&](size_t count) {
    std::vector<uint16_t> values(count);
    for (uint16_t& value : values) {
      const float real = normal(rng);
      value = p.shape.bf16 ? FromFloat<BF16>(real).bits : FromFloat<F16>(real).bits;
    }
    return values;
  };
  const std::vector<uint16_t> a = random16(64 * 16);
  const std::vector<uint16_t> b = random16(n * 16);
  std::vector<float> c(64 * n);
  for (float& value : c) value = normal(rng);
  std::vector<float> expected(64 * n);
  for (uint32_t m = 0; m < 64; ++m) {
    for (uint32_t col = 0; col < n; ++col) {
      double sum = p.accumulate ? static_cast<double>(c[m * n + col]) : 0.0;
      for (uint32_t k = 0; k < 16; ++k) {
        double product = static_cast<double>(Value(p.shape.bf16, a[m * 16 + k])) *
                         static_cast<double>(Value(p.shape.bf16, b[col * 16 + k]));
        if (p.shape.negate_a) product = -product;
        if (p.shape.negate_b) product = -product;
        sum += product;
      }
      expected[m * n + col] = static_cast<float>(sum);
    }
  }
  DeviceArray<uint16_t> a_device(a);
  DeviceArray<uint16_t> b_device(b);
  DeviceArray<float> c_device(c);
  DeviceArray<float> d_device(size_t{64} * n);
  p.a = a_device.data();
  p.b = b_device.data();
  p.c = c_device.data();
  p.d = d_device.data();
  Shape shape;
  shape.threads = 128;
  const std::string name = "wgmma n " + std::to_string(n) + (p.shape.bf16 ? " bf16" : " f16") +
                           (p.registers          ? " rs"
                            : p.shape.a_mn_major ? " ss a MN"
                                                 : " ss a K") +
                           (p.shape.b_mn_major ? " b MN" : " b K") + " swizzles " +
                           std::to_string(p.swizzle_a) + " " + std::to_string(p.swizzle_b);
  Clean(name, Multiply, &p, shape, [&] { return d_device.Read() == expected; });
}

void CheckProducts() {
  const uint32_t widths[4] = {0, 32, 64, 128};
  uint32_t turn = 0;
  for (const uint32_t swizzle_a : widths) {
    for (const uint32_t swizzle_b : widths) {
      for (uint32_t majors = 0; majors < 4; ++majors) {
        WgmmaParams p{};
        // MN-major operands come in whole swizzle widths.
        const uint32_t sizes[6] = {64, 128, 192, 256, 64, 128};
        p.shape.n = sizes[turn % 6];
        p.shape.bf16 = turn % 3 != 0;
        p.shape.a_mn_major = (majors & 1) != 0;
        p.shape.b_mn_major = (majors & 2) != 0;
        p.shape.negate_a = turn % 5 == 4;
        p.shape.negate_b = turn % 7 == 6;
        p.accumulate = turn % 4 != 3;
        p.swizzle_a = swizzle_a;
        p.swizzle_b = swizzle_b;
        CheckWgmma(p);
        ++turn;
      }
    }
  }
  for (uint32_t n = 8; n <= 256; n += 24) {
    WgmmaParams p{};
    p.shape.n = n;
    p.shape.bf16 = n % 16 == 0;
    p.registers = n % 48 == 8;
    p.accumulate = true;
    p.swizzle_a = p.swizzle_b = 128;
    CheckWgmma(p);
  }
}

// ---------------------------------------------------------------------------------- transaction
// barriers

/// Two producers and a consumer that go three times round one barrier; the other block arrives too.
void CountPhases(const void* params) {
  const auto& p = *static_cast<const BulkParams*>(params);
  const uint32_t full = Address(0);
  const uint32_t empty = Address(8);
  if (current->linear == 0) {
    MbarrierInit(full, 2 * 2, HERE);  // lanes 0 and 1 of both blocks
    MbarrierInit(empty, 1, HERE);
    FenceMbarrierInit(HERE);
  }
  ClusterArrive(HERE);
  ClusterWait(HERE);
  for (uint32_t round = 0; round < 3; ++round) {
    if (current->linear < 2) {
      MbarrierTryWaitParity(empty, (round & 1) ^ 1, HERE);
      Put(Shared(64 + 4 * current->linear), round * 10 + current->linear, HERE);
      for (uint32_t rank = 0; rank < 2; ++rank) {
        MbarrierArrive(MapAddress(full, rank, HERE), 1, HERE);
      }
    } else if (current->linear == 2) {
      MbarrierTryWaitParity(full, round & 1, HERE);
      const uint32_t sum = Get<uint32_t>(Shared(64), HERE) + Get<uint32_t>(Shared(68), HERE);
      Put(p.out + 4 * (current->block->linear * 3 + round), sum, HERE);
      MbarrierArrive(empty, 1, HERE);
    } else if (current->linear == 3 && round == 2) {
      uint32_t turns = 0;
      while (!MbarrierTestWaitParity(full, 0, HERE)) ++turns;
    }
  }
  ClusterArrive(HERE);
  ClusterWait(HERE);
}

/// States instead of parities, and a count.
void CountStates(const void* params) {
  const auto& p = *static_cast<const BulkParams*>(params);
  const uint32_t barrier = Address(0);
  if (current->linear == 0) MbarrierInit(barrier, 33, HERE);
  BarrierSync(0, 0, HERE);
  const uint64_t state = MbarrierArrive(barrier, current->linear == 0 ? 2 : 1, HERE);
  while (!MbarrierTryWait(barrier, state, HERE)) {
  }
  BarrierSync(0, 0, HERE);
  if (current->linear == 0) {
    MbarrierInvalidate(barrier, HERE);
    Put(p.out, uint32_t{7}, HERE);
  }
}

void CheckBarriers() {
  DeviceArray<uint32_t> out(6);
  BulkParams p{nullptr, reinterpret_cast<unsigned char*>(out.data())};
  Shape pair;
  pair.blocks = pair.cluster = 2;
  Clean("mbarrier phases", CountPhases, &p, pair,
        [&] { return out.Read() == std::vector<uint32_t>({1, 21, 41, 1, 21, 41}); });
  Clean("mbarrier states", CountStates, &p, Shape(), [&] { return out.Read()[0] == 7; });
}

// ------------------------------------------------------------------------------------ planted bugs

enum class Bug : uint32_t {
  kNone,
  kNoProxyFence,
  kOverwriteOperand,
  kReadBeforeWait,
  kTooFewBytes,
  kTooManyBytes,
  kNoWgmmaFence,
  kNoWgmmaWait,
  kDescriptorOfLane,
  kDescriptorOfWarp,
  kMisalignedTile,
  kForeignMap,
  kOverwrittenBarrier,
  kUninitialisedBarrier,
  kTooManyArrivals,
  kTwoCopies,
  kStoreSourceChanged,
  kNoStoreWait,
  kWrongParity,
  kReadOfPeerTooEarly,
  kBarrierRace,
  kOutsideShared,
  kMaskBeyondCluster,
  kPartialWarp,
};

struct BugParams {
  alignas(64) unsigned char map[128];        // 64 x 8 elements, not swizzled
  alignas(64) unsigned char store_map[128];  // the same of `out`
  Bug bug;
  float* out;
};

/// A tile is loaded, read, changed, multiplied with itself, and stored: every rule once.
void WholeWay(const void* params) {
  const auto& p = *static_cast<const BugParams*>(params);
  const Bug bug = p.bug;
  const uint32_t thread = current->linear;
  const uint32_t barrier = Address(32768);
  if (thread == 0 && bug != Bug::kUninitialisedBarrier) MbarrierInit(barrier, 1, HERE);
  if (bug != Bug::kBarrierRace) BarrierSync(0, 0, HERE);
  if (thread == 0) {
    MbarrierArriveExpectTx(barrier,
                           bug == Bug::kTooFewBytes    ? 512
                           : bug == Bug::kTooManyBytes ? 2048
                                                       : 1024,
                           HERE);
    if (bug == Bug::kTooManyArrivals) {
      MbarrierArrive(barrier, 1, HERE);
      MbarrierArrive(barrier, 2, HERE);
    }
    const int32_t at[2] = {0, 0};
    const uint32_t to = bug == Bug::kMisalignedTile  ? Address(64)
                        : bug == Bug::kOutsideShared ? Address(65536 - 512)
                                                     : Address(0);
    alignas(64) unsigned char nothing[128] = {};
    TensorLoad(to, bug == Bug::kForeignMap ? nothing : p.map, 2, at, barrier,
               bug == Bug::kMaskBeyondCluster ? 4 : 0, HERE);
    if (bug == Bug::kTwoCopies) {
      MbarrierExpectTx(barrier, 1024, HERE);
      TensorLoad(to, p.map, 2, at, barrier, 0, HERE);
    }
  }
  if (bug == Bug::kOverwrittenBarrier) {
    BarrierSync(0, 0, HERE);
    if (thread == 5) Put(Shared(32768), uint64_t{1}, HERE);
    BarrierSync(0, 0, HERE);
  }
  if (bug != Bug::kReadBeforeWait) {
    MbarrierTryWaitParity(barrier, bug == Bug::kWrongParity ? 1 : 0, HERE);
  }
  // Rows of 8 x 16 bytes become the blocks that a descriptor without swizzle reads.
  const auto chunk = Get<std::array<uint64_t, 2>>(Shared(thread % 64 * 16), HERE);
  for (uint32_t i = thread; i < 64 * 2 * 2; i += 128) {
    Put(Shared(4096 + i * 16), chunk, HERE);
  }
  if (bug != Bug::kNoProxyFence) FenceProxyAsync(HERE);
  BarrierSync(0, 0, HERE);
  float d[4] = {};
  uint64_t a = DescriptorOf(Address(4096), 0, {128, 256});
  uint64_t b = DescriptorOf(Address(6144), 0, {128, 256});
  if (bug == Bug::kDescriptorOfLane && thread % 32 == 9) a += 1;
  if (bug == Bug::kDescriptorOfWarp && thread / 32 == 2) b += 8;
  WgmmaShape shape;
  shape.n = 8;
  if (bug == Bug::kPartialWarp && thread % 32 == 31) return;
  if (bug != Bug::kNoWgmmaFence) WgmmaFence(HERE);
  Wgmma(shape, d, a, b, true, false, HERE);
  WgmmaCommit(HERE);
  if (bug == Bug::kOverwriteOperand && thread == 0) Put(Shared(4096), uint64_t{12345}, HERE);
  if (bug != Bug::kNoWgmmaWait) WgmmaWait(0, HERE);
  BarrierSync(0, 0, HERE);
  for (uint32_t i = thread; i < 256; i += 128) Put(Shared(8192 + i * 4), d[i % 4], HERE);
  FenceProxyAsync(HERE);
  BarrierSync(0, 0, HERE);
  if (thread == 0) {
    const int32_t at[2] = {0, 0};
    TensorStore(p.store_map, 2, at, Address(8192), HERE);
    BulkCommitGroup(HERE);
    if (bug == Bug::kStoreSourceChanged) Put(Shared(8192), uint64_t{77}, HERE);
    if (bug != Bug::kNoStoreWait) BulkWaitGroup(0, true, HERE);
  }
}

/// A peer's shared memory is read before, or after, it was written.
void ReadPeer(const void* params) {
  const auto& p = *static_cast<const BugParams*>(params);
  Put(Shared(current->linear * 4), current->linear, HERE);
  if (p.bug != Bug::kReadOfPeerTooEarly) {
    ClusterArrive(HERE);
    ClusterWait(HERE);
  }
  uint32_t value;
  ClusterLoad(MapAddress(Address(current->linear * 4), ClusterRank() ^ 1, HERE), &value, 4, HERE);
  ClusterArrive(HERE);
  ClusterWait(HERE);
}

void CheckDetectors() {
  std::vector<uint16_t> ones(64 * 8, FromFloat<BF16>(1.0f).bits);
  DeviceArray<uint16_t> in(ones);
  DeviceArray<uint16_t> out(ones);
  BugParams p{};
  TensorMapSpec spec;
  spec.base = reinterpret_cast<uintptr_t>(in.data());
  spec.rank = 2;
  spec.elem_bytes = 2;
  spec.size_elems[0] = spec.box_elems[0] = 64;
  spec.size_elems[1] = spec.box_elems[1] = 8;
  spec.stride_bytes[1] = 128;
  EncodeTensorMap(spec, p.map);
  spec.base = reinterpret_cast<uintptr_t>(out.data());
  EncodeTensorMap(spec, p.store_map);
  Shape shape;
  shape.threads = 128;
  p.bug = Bug::kNone;
  Clean("the whole way", WholeWay, &p, shape, [&] {
    const std::vector<uint16_t> stored = out.Read();
    float value;
    std::memcpy(&value, stored.data(), 4);
    return value == 16.0f;
  });
  const auto planted = [&](Bug bug, const char* name, const char* kind) {
    p.bug = bug;
    Caught(name, kind, WholeWay, &p, shape);
  };
  planted(Bug::kNoProxyFence, "no fence.proxy.async", "proxy-fence");
  planted(Bug::kOverwriteOperand, "an operand overwritten under wgmma", "async-in-flight");
  planted(Bug::kReadBeforeWait, "a tile read before its barrier", "async-in-flight");
  planted(Bug::kTooFewBytes, "too few bytes expected", "deadlock");
  planted(Bug::kTooManyBytes, "too many bytes expected", "deadlock");
  planted(Bug::kNoWgmmaFence, "no wgmma.fence", "wgmma-fence");
  planted(Bug::kNoWgmmaWait, "no wgmma.wait_group", "async-unwaited");
  planted(Bug::kDescriptorOfLane, "a lane with another descriptor", "wgmma");
  planted(Bug::kDescriptorOfWarp, "a warp with another descriptor", "wgmma");
  planted(Bug::kMisalignedTile, "a tile off 128 bytes", "misaligned");
  planted(Bug::kForeignMap, "a map that nobody encoded", "tensor-map");
  planted(Bug::kOverwrittenBarrier, "a barrier overwritten", "barrier");
  planted(Bug::kUninitialisedBarrier, "a barrier not initialised", "barrier");
  planted(Bug::kTooManyArrivals, "too many arrivals", "barrier");
  planted(Bug::kTwoCopies, "two copies to one place", "async-in-flight");
  planted(Bug::kStoreSourceChanged, "a store's source changed", "async-in-flight");
  planted(Bug::kNoStoreWait, "a store nobody waited for", "async-unwaited");
  planted(Bug::kWrongParity, "the wrong parity", "async-in-flight");
  planted(Bug::kBarrierRace, "a barrier used before it stands", "barrier");
  planted(Bug::kOutsideShared, "a tile outside shared memory", "oob-shared");
  planted(Bug::kMaskBeyondCluster, "a mask beyond the cluster", "cluster");
  planted(Bug::kPartialWarp, "wgmma by part of a warp", "divergent-warp");
  Shape pair;
  pair.blocks = pair.cluster = 2;
  Clean("a peer's memory", ReadPeer, &p, pair, [] { return true; });
  p.bug = Bug::kReadOfPeerTooEarly;
  Caught("a peer's memory read too early", "race-shared", ReadPeer, &p, pair);
}

}  // namespace
}  // namespace lowrank::test

int main() {
  using namespace lowrank::test;
  CheckBarriers();
  CheckTiles();
  CheckBulk();
  CheckProducts();
  CheckDetectors();
  std::printf("%d checks, %d failures\n%s\n", g_checks, g_failures,
              g_failures == 0 ? "PASS" : "FAIL");
  return g_failures == 0 ? 0 : 1;
}
