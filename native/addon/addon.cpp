/// Entry point of the addon: one EnvState per environment, and the groups of raw functions.
#include <napi.h>

#include "native/addon/bindings.h"
#include "native/addon/env_state.h"

namespace lowrank::addon {
namespace {

// Handles are finalised before the instance data, so the references that they bury last are deleted
// here.
void DeleteState(Napi::Env env, EnvState* state) {
  state->graveyard()->DeleteBuried(env);
  delete state;
}

Napi::Object Init(Napi::Env env, Napi::Object exports) {
  env.SetInstanceData<EnvState, DeleteState>(new EnvState(env));
  RegisterDevices(env, exports);
  RegisterExplain(env, exports);
  RegisterTensors(env, exports);
  RegisterTransfer(env, exports);
  RegisterStreams(env, exports);
  RegisterAttention(env, exports);
  RegisterModelOps(env, exports);
  RegisterOptimizer(env, exports);
  RegisterWeights(env, exports);
  RegisterPlanes(env, exports);
  RegisterBitFields(env, exports);
  RegisterOps(env, exports);
  RegisterBorrowed(env, exports);
  RegisterLoraParts(env, exports);
  RegisterGrouped(env, exports);
  RegisterElementwise(env, exports);
  RegisterFeatures(env, exports);
  RegisterExperts(env, exports);
  return exports;
}

}  // namespace
}  // namespace lowrank::addon

static Napi::Object InitLowrank(Napi::Env env, Napi::Object exports) {
  return lowrank::addon::Init(env, exports);
}

NODE_API_MODULE(lowrank, InitLowrank)
