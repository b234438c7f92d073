/// An optimiser's step in a graph capture: a graph takes the norm, the step and its counter, and
/// replays them with what the tensors hold then.
#include <cmath>

#include "test/native/cuda_backend_fixture.h"

namespace lowrank {
namespace {

constexpr size_t kCount = 5000;
constexpr float kGradient = 0.5f;

struct Training {
  StoragePtr p = New(kCount * sizeof(float)), g = New(kCount * sizeof(float));
  StoragePtr m = New(kCount * sizeof(float)), v = New(kCount * sizeof(float));
  StoragePtr norm = New(sizeof(float)), lr = New(sizeof(float)), done = New(sizeof(float));

  Training() {
    Fill(p, std::vector<float>(kCount, 1));
    Fill(g, std::vector<float>(kCount, kGradient));
    for (const StoragePtr& state : {m, v}) Fill(state, std::vector<float>(kCount, 0));
    Fill(lr, {0.25f});
    Fill(done, {0});
  }

  Status Enqueue() const {
    const auto part = std::make_shared<std::pair<GradientPart, ParameterPart>>();
    part->first.g = View(g);
    GlobalNormOp sum;
    sum.parts = &part->first;
    sum.count = 1;
    sum.pieces = OptimizerPieces(kCount);
    sum.norm = View(norm);
    OpRefs refs = {{g}, {norm}, g_cancel};
    refs.tables = part;
    LOWRANK_RETURN_IF_ERROR(g_backend->Enqueue(sum, std::move(refs)));
    ParameterPart& own = part->second;
    own.p = View(p);
    own.g = View(g);
    own.states[0] = View(m);
    own.states[1] = View(v);
    OptimizerStepOp step;
    step.settings = {0.5, 0.5, 0, 1};
    step.parts = &own;
    step.count = 1;
    step.pieces = sum.pieces;
    step.lr_at = View(lr);
    step.steps_done = View(done);
    step.norm = View(norm);
    OpRefs more = {{g, norm, lr, p, m, v, done}, {p, m, v, done}, g_cancel};
    more.tables = part;
    return g_backend->Enqueue(step, std::move(more));
  }

  float First(const StoragePtr& storage) const {
    std::vector<float> values;
    ExpectOk(ReadInto(storage, &values), "read");
    for (const float value : values) {
      if (value != values[0]) Expect(false, "every element has the same value");
    }
    return values.empty() ? 0 : values[0];
  }
};

}  // namespace

void OptimizerInACapture() {
  const cuda::CUstream stream = NewStream();
  const Training eager;
  const Training graphed;
  ExpectOk(g_backend->UseStream(stream, g_cancel), "useStream");
  for (int step = 0; step < 3; ++step) ExpectOk(eager.Enqueue(), "a step");
  ExpectOk(Synchronize(), "synchronize");
  Call(Driver().cuStreamBeginCapture_v2(stream, cuda::CU_STREAM_CAPTURE_MODE_RELAXED),
       "cuStreamBeginCapture");
  ExpectOk(g_backend->UseStream(stream, g_cancel), "useStream");
  ExpectOk(graphed.Enqueue(), "in the capture");
  ExpectOk(Flush(), "flush");
  ExpectOk(graphed.p->poison(), "a step is captured");
  cuda::CUgraph graph = nullptr;
  Call(Driver().cuStreamEndCapture(stream, &graph), "cuStreamEndCapture");
  ExpectOk(g_backend->UseStream(nullptr, g_cancel), "useStream(null)");
  Expect(graphed.First(graphed.p) == 1, "a captured step has not run");
  cuda::CUgraphExec exec = nullptr;
  Call(Driver().cuGraphInstantiateWithFlags(&exec, graph, 0), "cuGraphInstantiate");
  const auto replay = [&] {
    Call(Driver().cuGraphLaunch(exec, stream), "cuGraphLaunch");
    Call(Driver().cuStreamSynchronize(stream), "cuStreamSynchronize");
  };
  for (int step = 0; step < 3; ++step) replay();
  Expect(graphed.First(graphed.done) == 3, "each replay counts a step");
  Expect(graphed.First(graphed.p) == eager.First(eager.p) && eager.First(eager.p) < 0.5f,
         "replays have the bits of calls");
  Expect(graphed.First(graphed.m) == eager.First(eager.m), "moments too");
  Fill(graphed.g, std::vector<float>(kCount, std::nanf("")));
  ExpectOk(Synchronize(), "synchronize");
  replay();
  Expect(graphed.First(graphed.p) == eager.First(eager.p) && graphed.First(graphed.done) == 3,
         "a norm that is not finite changes nothing");
  Call(Driver().cuGraphExecDestroy(exec), "cuGraphExecDestroy");
  Call(Driver().cuGraphDestroy(graph), "cuGraphDestroy");
  ExpectOk(Synchronize(), "synchronize");
  Call(Driver().cuStreamDestroy_v2(stream), "cuStreamDestroy");
}

}  // namespace lowrank
