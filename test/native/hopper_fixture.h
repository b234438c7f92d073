/// Kernels of the Hopper checks: launches in check mode under every schedule, clean or caught.
#pragma once

#include <array>
#include <functional>

#include "test/native/hopper_operands.h"

#define HERE ::lowrank::emu::Site::Line(__FILE__, __LINE__)

namespace lowrank::test {

using namespace emu;

inline int g_checks = 0;
inline int g_failures = 0;

inline void Expect(bool ok, const std::string& what) {
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
  LaunchChain* chain = nullptr;
  bool overlaps_previous = false;
};

using Body = void (*)(const void*);

inline LaunchStatus Run(Body body, const void* params, const Shape& shape) {
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
  launch.chain = shape.chain;
  launch.overlaps_previous = shape.overlaps_previous;
  launch.params = params;
  return RunGrid(launch);
}

inline unsigned char* Shared(uint32_t offset = 0) {
  return current->block->dynamic_shared + offset;
}
inline uint32_t Address(uint32_t offset) { return SharedAddress(Shared(offset)); }

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

inline void Use(const Schedule& schedule) {
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
inline void Clean(const std::string& name, Body body, const void* params, const Shape& shape,
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
inline void Caught(const std::string& name, const char* kind, Body body, const void* params,
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
inline uint32_t SwizzledChunk(uint32_t width, uint32_t row, uint32_t chunk) {
  if (width == 128) return chunk ^ row % 8;
  if (width == 64) return chunk ^ row / 2 % 4;
  if (width == 32) return chunk ^ row / 4 % 2;
  return chunk;
}

struct Placement {
  uint32_t leading;
  uint32_t stride;
};

/// A matrix descriptor of wgmma.
inline uint64_t DescriptorOf(uint32_t address, uint32_t swizzle, const Placement& strides) {
  const uint64_t mode = swizzle == 0 ? 0 : swizzle == 128 ? 1 : swizzle == 64 ? 2 : 3;
  return (address >> 4 & 0x3fff) | uint64_t{strides.leading >> 4} << 16 |
         uint64_t{strides.stride >> 4} << 32 | mode << 62;
}

inline int Verdict() {
  std::printf("%d checks, %d failures\n%s\n", g_checks, g_failures,
              g_failures == 0 ? "PASS" : "FAIL");
  return g_failures == 0 ? 0 : 1;
}

}  // namespace lowrank::test
