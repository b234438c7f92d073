/// Which kernels a call would run.
#include "native/addon/bindings.h"
#include "native/addon/operands.h"
#include "native/core/runtime/registry.h"

namespace lowrank::addon {
namespace {

constexpr const char* kExplain = "explain";
/// Of each size: products of three are elements and bytes that fit 64 bits.
constexpr int64_t kMostSize = int64_t{1} << 24;

/// A list of JavaScript objects, one for each of `rows`.
template <typename Row, typename Fill>
Napi::Array ListOf(Napi::Env env, const std::vector<Row>& rows, const Fill& fill) {
  Napi::Array list = Napi::Array::New(env, rows.size());
  for (size_t i = 0; i < rows.size(); ++i) {
    Napi::Object object = Napi::Object::New(env);
    fill(rows[i], &object);
    list.Set(static_cast<uint32_t>(i), object);
  }
  return list;
}

void FillRoute(const RouteOfRows& row, Napi::Object* object) {
  object->Set("op", row.op);
  object->Set("firstRow", static_cast<double>(row.first));
  object->Set("rows", static_cast<double>(row.count));
  object->Set("isa", row.isa);
  object->Set("route", row.route);
  object->Set("file", row.file);
  object->Set("takesWeight", row.takes_weight);
  object->Set("takesRows", row.takes_rows);
  object->Set("reason", row.reason);
}

void FillLaunch(const PlannedLaunch& launch, Napi::Object* object) {
  const Napi::Env env = object->Env();
  object->Set("kernel", launch.kernel);
  Napi::Array grid = Napi::Array::New(env, launch.grid.size());
  for (uint32_t i = 0; i < launch.grid.size(); ++i) grid.Set(i, launch.grid[i]);
  object->Set("grid", grid);
  object->Set("threads", launch.threads);
  object->Set("cluster", launch.cluster);
  object->Set("sharedBytes", launch.shared_bytes);
  if (launch.tile_rows == 0) return;
  Napi::Array tile = Napi::Array::New(env, 2);
  tile.Set(0u, launch.tile_rows);
  tile.Set(1u, launch.tile_cols);
  object->Set("tile", tile);
}

void FillPlan(const PlannedOp& plan, Napi::Object* object) {
  object->Set("op", plan.op);
  object->Set("workspaceBytes", static_cast<double>(plan.workspace_bytes));
  object->Set("launches", ListOf(object->Env(), plan.launches, FillLaunch));
}

/// {M, N, K, r, dtype, format | null, blocksize, rowwise, compute}
CallShape ShapeOf(const Napi::Value& value) {
  const Napi::Env env = value.Env();
  if (!value.IsObject()) {
    ThrowIfError(env, Refuse(Code::kType, kExplain, "call", "an object", "something else"));
  }
  const Napi::Object call = value.As<Napi::Object>();
  const auto size = [&](const char* name, int64_t least) {
    const int64_t n = IntegerArg(call.Get(name), kExplain, name, Code::kValue, kMostSize);
    if (n < least) {
      ThrowIfError(env, Refuse(Code::kValue, kExplain, name, "at least " + std::to_string(least),
                               std::to_string(n)));
    }
    return n;
  };
  CallShape shape;
  shape.M = size("M", 1);
  shape.N = size("N", 1);
  shape.K = size("K", 1);
  shape.r = size("r", 0);
  shape.dtype = shape.dense = DTypeArg(call.Get("dtype"), kExplain);
  shape.compute = ComputeArg(call.Get("compute"), kExplain);
  const Napi::Value format = call.Get("format");
  if (!IsPresent(format)) return shape;
  const std::string name = StringArg(format, kExplain, "format");
  shape.format = FindFormat(name);
  if (shape.format == nullptr) {
    ThrowIfError(env,
                 Refuse(Code::kFormat, kExplain, "format", "a known format", "'" + name + "'"));
  }
  shape.blocksize = size("blocksize", 1);
  shape.rowwise = BoolArg(call.Get("rowwise"));
  return shape;
}

// explain(kind: 'device' | 'isa' | 'architecture', name, call)
Napi::Value Explain(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const std::string kind = StringArg(info[0], kExplain, "kind");
  const std::string name = StringArg(info[1], kExplain, "name");
  const CallShape shape = ShapeOf(info[2]);
  Explanation explanation;
  if (kind == "isa") {
    ThrowIfError(env, ExplainOnInstructionSet(name, shape, &explanation));
  } else if (kind == "architecture") {
    ThrowIfError(env, ExplainOnArchitecture(name, shape, &explanation));
  } else {
    ThrowIfError(env, BackendArg(info[1])->Explain(shape, &explanation));
  }
  Napi::Object result = Napi::Object::New(env);
  if (explanation.sm == 0) {
    result.Set("isa", explanation.isa);
    result.Set("threads", explanation.threads);
    result.Set("routes", ListOf(env, explanation.routes, FillRoute));
  } else {
    result.Set("sm", explanation.sm);
    result.Set("card", explanation.card);
    result.Set("multiprocessors", explanation.multiprocessors);
    result.Set("plans", ListOf(env, explanation.plans, FillPlan));
  }
  return result;
}

}  // namespace

void RegisterExplain(Napi::Env env, Napi::Object exports) {
  Export<Explain>(env, exports, "explain");
}

}  // namespace lowrank::addon
