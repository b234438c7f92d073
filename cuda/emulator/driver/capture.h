/// Stream capture and graphs: the operations of capturing streams are written down with what each
/// comes after, and run later in an order that keeps to it.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "cuda/emulator/driver/stream.h"

namespace lowrank::emu::driver {

enum class NodeKind : uint8_t { kKernel, kCopy, kSet, kHost, kAllocate, kFree, kEmpty };

struct GraphNode {
  NodeKind kind = NodeKind::kEmpty;
  Work work;
  std::vector<size_t> after;  // indices of earlier nodes
};

/// Immutable once the capture has ended.
struct Graph {
  std::vector<GraphNode> nodes;
};
using GraphPtr = std::shared_ptr<Graph>;

/// An order of the nodes in which each follows what it comes after. Different orders are different
/// runs of the hardware: 0 as captured, 1 the latest first, 2 at random by `seed`.
std::vector<size_t> OrderNodes(const Graph& graph, int order, uint64_t seed);

/// What the mode of cuStreamBeginCapture forbids elsewhere.
enum class CaptureMode : uint8_t { kGlobal, kThreadLocal, kRelaxed };

/// What this thread says of captures elsewhere (cuThreadExchangeStreamCaptureMode).
CaptureMode& ThreadCaptureMode();

/// One capture in progress. Guarded by Mutex().
class Capture {
 public:
  Capture(StreamPtr origin, CaptureMode mode);

  static std::mutex& Mutex();

  /// Appends a node to `stream`, which takes part.
  void Add(Stream* stream, NodeKind kind, Work work);
  /// `stream` takes part from here on, its next operation after `nodes`.
  static void Join(const std::shared_ptr<Capture>& capture, const StreamPtr& stream,
                   const std::vector<size_t>& nodes);
  /// All streams leave. False where a stream that joined has work that the origin does not follow.
  bool Finish();

  const StreamPtr& origin() const { return origin_; }
  CaptureMode mode() const { return mode_; }
  std::thread::id thread() const { return thread_; }
  const GraphPtr& graph() const { return graph_; }

  /// Something that a capture cannot hold was called; it ends in an error.
  bool invalid = false;

 private:
  const StreamPtr origin_;
  const CaptureMode mode_;
  const std::thread::id thread_ = std::this_thread::get_id();
  const GraphPtr graph_ = std::make_shared<Graph>();
  std::vector<StreamPtr> joined_;
};
using CapturePtr = std::shared_ptr<Capture>;

/// Captures in progress, of all contexts. Guarded by Capture::Mutex().
std::vector<CapturePtr>& ActiveCaptures();

}  // namespace lowrank::emu::driver
