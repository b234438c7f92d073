/// Batches of LoRA adapters in a graph capture: a table of several adapters goes to the device with
/// each call and is refused; a batch of one adapter is loraForward, which a graph replays.
#include "test/native/cuda_backend_fixture.h"

namespace lowrank {
namespace {

constexpr int64_t kM = 3;
constexpr int64_t kN = 4;
constexpr int64_t kK = 8;
constexpr int64_t kR = 2;

struct Operand {
  StoragePtr storage;
  TensorView view;

  Operand(int64_t rows, int64_t cols, float from)
      : storage(New(static_cast<size_t>(rows * cols) * sizeof(float))) {
    view = View(storage);
    view.rows = rows;
    view.cols = cols;
    std::vector<float> values = Ramp(static_cast<size_t>(rows * cols), from);
    for (float& value : values) value /= 8;
    Fill(storage, values);
  }
};

/// A batch of adapters 0, 1, 0, and the layer that has adapter 0 for all rows.
struct Layer {
  Operand x{kM, kK, -5}, w{kN, kK, -9}, a{kR, kK, -3}, b{kN, kR, -2};
  Operand h{1, kM* kR, 0}, y{kM, kN, 0};

  OpRefs Refs() const {
    OpRefs refs = {{x.storage, w.storage, a.storage, b.storage}, {h.storage, y.storage}, g_cancel};
    return refs;
  }

  Status EnqueueGroup() const {
    struct Tables {
      AdapterRows adapters[2];
      int32_t rows[3] = {0, 2, 1};
    };
    auto tables = std::make_shared<Tables>();
    for (AdapterRows& adapter : tables->adapters) {
      adapter.lora_a = a.view;
      adapter.lora_b = b.view;
      adapter.scaling = 1;
    }
    tables->adapters[0].count = 2;
    tables->adapters[1].first = 2;
    tables->adapters[1].count = 1;
    tables->adapters[1].h_begin = 2 * kR;
    GroupedForwardOp op;
    op.x = x.view;
    op.w.dense = w.view;
    op.table.adapters = tables->adapters;
    op.table.count = 2;
    op.table.rows = tables->rows;
    op.table.gates = tables->rows;
    op.table.row_count = kM;
    op.table.h_elems = kM * kR;
    op.h = h.view;
    op.y = y.view;
    OpRefs refs = Refs();
    refs.tables = tables;
    return g_backend->Enqueue(op, std::move(refs));
  }

  Status EnqueueOne() const {
    LoraForwardOp op;
    op.x = x.view;
    op.w.dense = w.view;
    op.lora_a = a.view;
    op.lora_b = b.view;
    op.h = h.view;
    op.h.rows = kM;
    op.h.cols = kR;
    op.y = y.view;
    op.scaling = 1;
    return g_backend->Enqueue(op, Refs());
  }
};

}  // namespace

void GroupedInACapture() {
  const cuda::CUstream stream = NewStream();
  for (const bool grouped : {true, false}) {
    const Layer layer;
    const auto enqueue = [&] { return grouped ? layer.EnqueueGroup() : layer.EnqueueOne(); };
    ExpectOk(g_backend->UseStream(stream, g_cancel), "useStream");
    ExpectOk(enqueue(), "before the capture, which makes room for the workspace");
    std::vector<float> expected;
    ExpectOk(ReadInto(layer.y.storage, &expected), "read");
    ExpectOk(Synchronize(), "synchronize");

    Call(Driver().cuStreamBeginCapture_v2(stream, cuda::CU_STREAM_CAPTURE_MODE_RELAXED),
         "cuStreamBeginCapture");
    ExpectOk(g_backend->UseStream(stream, g_cancel), "useStream");
    ExpectOk(enqueue(), "in the capture");
    ExpectOk(Flush(), "flush");
    const Status poison = layer.y.storage->poison();
    if (grouped) {
      Expect(poison.code() == Code::kUnsupported &&
                 poison.message().find("table of adapters") != std::string::npos,
             "a table of adapters is refused in a capture: " + poison.message());
    } else {
      ExpectOk(poison, "one adapter for all rows is captured");
    }
    cuda::CUgraph graph = nullptr;
    Call(Driver().cuStreamEndCapture(stream, &graph), "cuStreamEndCapture");
    ExpectOk(g_backend->UseStream(nullptr, g_cancel), "useStream(null)");
    std::vector<float> values;
    if (grouped) {
      // Only what was refused is lost: the next call writes y again.
      const Layer again;
      ExpectOk(again.EnqueueGroup(), "after the capture");
      ExpectOk(ReadInto(again.y.storage, &values), "read");
      Expect(values == expected, "after a capture a batch is computed as before");
    } else {
      Fill(layer.y.storage, Ramp(kM * kN, 3));
      ExpectOk(Synchronize(), "synchronize");
      cuda::CUgraphExec exec = nullptr;
      Call(Driver().cuGraphInstantiateWithFlags(&exec, graph, 0), "cuGraphInstantiate");
      Call(Driver().cuGraphLaunch(exec, stream), "cuGraphLaunch");
      Call(Driver().cuStreamSynchronize(stream), "cuStreamSynchronize");
      ExpectOk(ReadInto(layer.y.storage, &values), "read");
      Expect(values == expected, "the graph has the result of the call");
      Call(Driver().cuGraphExecDestroy(exec), "cuGraphExecDestroy");
    }
    Call(Driver().cuGraphDestroy(graph), "cuGraphDestroy");
  }
  ExpectOk(Synchronize(), "synchronize");
  Call(Driver().cuStreamDestroy_v2(stream), "cuStreamDestroy");
}

}  // namespace lowrank
