#include "cuda/emulator/driver/capture.h"

#include <algorithm>
#include <utility>

namespace lowrank::emu::driver {
namespace {

/// A step of splitmix64.
uint64_t NextRandom(uint64_t* state) {
  *state += 0x9e3779b97f4a7c15u;
  uint64_t z = *state;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

void AddUnique(std::vector<size_t>* nodes, size_t node) {
  if (std::find(nodes->begin(), nodes->end(), node) == nodes->end()) nodes->push_back(node);
}

}  // namespace

std::vector<size_t> OrderNodes(const Graph& graph, int order, uint64_t seed) {
  const size_t count = graph.nodes.size();
  std::vector<size_t> waiting_for(count);
  std::vector<std::vector<size_t>> followers(count);
  std::vector<size_t> ready;
  for (size_t i = 0; i < count; ++i) {
    waiting_for[i] = graph.nodes[i].after.size();
    for (const size_t before : graph.nodes[i].after) followers[before].push_back(i);
    if (waiting_for[i] == 0) ready.push_back(i);
  }
  std::vector<size_t> sequence;
  while (!ready.empty()) {
    auto next = std::min_element(ready.begin(), ready.end());
    if (order == 1) next = std::max_element(ready.begin(), ready.end());
    if (order == 2) {
      next = ready.begin() + static_cast<std::ptrdiff_t>(NextRandom(&seed) % ready.size());
    }
    const size_t node = *next;
    ready.erase(next);
    sequence.push_back(node);
    for (const size_t follower : followers[node]) {
      if (--waiting_for[follower] == 0) ready.push_back(follower);
    }
  }
  return sequence;
}

CaptureMode& ThreadCaptureMode() {
  static thread_local CaptureMode mode = CaptureMode::kGlobal;
  return mode;
}

Capture::Capture(StreamPtr origin, CaptureMode mode) : origin_(std::move(origin)), mode_(mode) {}

std::mutex& Capture::Mutex() {
  static auto* const mutex = new std::mutex;
  return *mutex;
}

std::vector<CapturePtr>& ActiveCaptures() {
  static auto* const active = new std::vector<CapturePtr>;
  return *active;
}

void Capture::Add(Stream* stream, NodeKind kind, Work work) {
  const size_t node = graph_->nodes.size();
  graph_->nodes.push_back({kind, std::move(work), stream->capture_tail});
  stream->capture_tail.assign(1, node);
}

void Capture::Join(const CapturePtr& capture, const StreamPtr& stream,
                   const std::vector<size_t>& nodes) {
  if (stream->capture == nullptr) {
    stream->capture = capture;
    stream->capture_tail.clear();
    capture->joined_.push_back(stream);
  }
  for (const size_t node : nodes) AddUnique(&stream->capture_tail, node);
}

bool Capture::Finish() {
  // Everything that the origin's last operations follow, directly or not.
  std::vector<bool> followed(graph_->nodes.size());
  std::vector<size_t> open = origin_->capture_tail;
  while (!open.empty()) {
    const size_t node = open.back();
    open.pop_back();
    if (followed[node]) continue;
    followed[node] = true;
    for (const size_t before : graph_->nodes[node].after) open.push_back(before);
  }
  bool all = true;
  for (const StreamPtr& stream : joined_) {
    for (const size_t node : stream->capture_tail) all = all && followed[node];
    stream->capture = nullptr;
    stream->capture_tail.clear();
  }
  joined_.clear();
  origin_->capture = nullptr;
  origin_->capture_tail.clear();
  return all;
}

}  // namespace lowrank::emu::driver
