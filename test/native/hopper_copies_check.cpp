/// mbarrier, TMA, bulk copies and distributed shared memory of the emulator against plain
/// definitions.
#include "test/native/hopper_fixture.h"

namespace lowrank::test {
namespace {

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
  if (current->linear == 0) {
    MbarrierInit(barrier, 1, HERE);
    FenceMbarrierInit(HERE);
  }
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

// ---------------------------------------------------------------------------- transaction barriers

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

}  // namespace
}  // namespace lowrank::test

int main() {
  lowrank::test::CheckBarriers();
  lowrank::test::CheckTiles();
  lowrank::test::CheckBulk();
  return lowrank::test::Verdict();
}
