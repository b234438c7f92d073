/// A batch whose rows have different adapters. A batch with one adapter runs as loraForward and
/// loraBackward, one without adapters as matmul.
#include <cmath>
#include <cstdint>
#include <vector>

#include "native/addon/bindings.h"
#include "native/addon/host_array.h"
#include "native/addon/operands.h"

namespace lowrank::addon {
namespace {

/// The memory that the table's views point into.
struct TableStorage {
  std::vector<AdapterRows> adapters;
  std::vector<int32_t> rows;
  std::vector<int32_t> gates;  // empty with one slot per row
  int64_t slots = 1;
};

/// One value per slot of each row, in whatever shape, as the row [1, M · slots].
TensorView AsRow(TensorView view) {
  if (!view.present) return view;
  view.cols = view.elems();
  view.rows = 1;
  return view;
}

/// The entries of an adapter in the array of adapters: loraA, loraB, loraBias | null. The last
/// element is a Float64Array with the scaling and dropout of each: one call of Node's for an entry,
/// not four.
constexpr uint32_t kFields = 3;

/// Element i is the index of the adapter in slot i, or -1. Sorts by adapter, ascending within each.
void SortRows(Napi::Env env, const char* op, const Napi::Value& value, int64_t slot_count,
              TableStorage* storage) {
  const auto count = static_cast<int64_t>(storage->adapters.size());
  const Status refusal = Refuse(
      Code::kValue, op, "rows",
      "an Int32Array of " + std::to_string(slot_count) + " from -1 to " + std::to_string(count - 1),
      "another value");
  const std::vector<int32_t> adapter_of = IntegersArg(value, op, "rows");
  if (static_cast<int64_t>(adapter_of.size()) != slot_count) ThrowIfError(env, refusal);
  for (const int32_t adapter : adapter_of) {
    if (adapter < -1 || adapter >= count) ThrowIfError(env, refusal);
    if (adapter >= 0) ++storage->adapters[static_cast<size_t>(adapter)].count;
  }
  int64_t first = 0;
  int64_t h_begin = 0;
  std::vector<int64_t> next;
  next.reserve(storage->adapters.size());
  for (AdapterRows& adapter : storage->adapters) {
    adapter.first = first;
    adapter.h_begin = h_begin;
    next.push_back(first);
    first += adapter.count;
    h_begin += adapter.count * adapter.r();
  }
  std::vector<int32_t>& sorted = storage->slots == 1 ? storage->rows : storage->gates;
  sorted.resize(static_cast<size_t>(first));
  for (size_t i = 0; i < adapter_of.size(); ++i) {
    if (adapter_of[i] < 0) continue;
    sorted[static_cast<size_t>(next[static_cast<size_t>(adapter_of[i])]++)] =
        static_cast<int32_t>(i);
  }
  if (storage->slots == 1) return;
  storage->rows.reserve(sorted.size());
  for (const int32_t slot : sorted) {
    storage->rows.push_back(static_cast<int32_t>(slot / storage->slots));
  }
}

/// `operands` keeps it alive.
TableStorage* ReadAdapters(const Napi::Value& adapters, const Napi::Value& rows,
                           const Napi::Value& slots, int64_t m_count, Operands* operands) {
  const Napi::Env env = operands->env();
  const char* op = operands->op();
  auto storage = std::make_shared<TableStorage>();
  const Status refusal =
      Refuse(Code::kType, op, "adapters",
             "an array of three entries each, then a Float64Array of two each", "another value");
  const uint32_t length = adapters.IsArray() ? adapters.As<Napi::Array>().Length() : 0;
  if (length % kFields != 1) ThrowIfError(env, refusal);
  const uint32_t count = length / kFields;
  const Napi::Array list = adapters.As<Napi::Array>();
  const Napi::Value last = list.Get(length - 1);
  if (!last.IsTypedArray()) ThrowIfError(env, refusal);
  const HostArray pairs = HostArrayOf(last, op, "adapters");
  if (pairs.type != napi_float64_array || pairs.length != size_t{2} * count) {
    ThrowIfError(env, refusal);
  }
  // Copied before list getters can run.
  const std::vector<double> numbers = CopiedElements<double>(pairs);
  storage->adapters.resize(count);
  for (uint32_t e = 0; e < count; ++e) {
    AdapterRows& adapter = storage->adapters[e];
    adapter.lora_a = operands->In(list.Get(e * kFields), "loraA");
    adapter.lora_b = operands->In(list.Get(e * kFields + 1), "loraB");
    adapter.lora_bias = operands->OptionalRow(list.Get(e * kFields + 2), "loraBias");
    adapter.scaling = static_cast<float>(numbers[size_t{2} * e]);
    adapter.dropout = numbers[size_t{2} * e + 1];
  }
  const double given = NumberArg(slots, op, "slots");
  const double most = static_cast<double>(INT32_MAX / (m_count < 1 ? 1 : m_count));
  if (!(given >= 1 && given <= most && std::floor(given) == given)) {
    ThrowIfError(env, Refuse(Code::kValue, op, "slots", "an integer from 1", "another value"));
  }
  storage->slots = static_cast<int64_t>(given);
  SortRows(env, op, rows, m_count * storage->slots, storage.get());
  operands->Keep(storage);
  return storage.get();
}

AdapterTable TableOf(const TableStorage* storage) {
  AdapterTable table;
  table.adapters = storage->adapters.data();
  table.count = static_cast<int64_t>(storage->adapters.size());
  table.rows = storage->rows.data();
  table.gates = storage->slots == 1 ? table.rows : storage->gates.data();
  table.row_count = static_cast<int64_t>(storage->rows.size());
  table.slots = storage->slots;
  for (const AdapterRows& adapter : storage->adapters) {
    table.h_elems += adapter.count * adapter.r();
  }
  return table;
}

/// The adapter that all rows share, or null.
const AdapterRows* OnlyAdapter(const AdapterTable& table, int64_t m_count,
                               const TensorView& row_scale) {
  const bool only = table.count == 1 && table.adapters[0].count == m_count && !row_scale.present;
  return only ? table.adapters : nullptr;
}

DropoutSpec DropoutOf(const AdapterRows& adapter, uint64_t seed, const TensorView& mask) {
  DropoutSpec dropout;
  dropout.p = adapter.dropout;
  dropout.seed = seed;
  dropout.mask = mask;
  return dropout;
}

Status EnqueueForward(const GroupedForwardOp& op, Operands* operands) {
  Backend* backend = operands->backend();
  if (const AdapterRows* adapter = OnlyAdapter(op.table, op.x.rows, op.row_scale)) {
    LoraForwardOp one;
    one.x = op.x;
    one.w = op.w;
    one.bias = op.bias;
    one.lora_a = adapter->lora_a;
    one.lora_b = adapter->lora_b;
    one.lora_bias = adapter->lora_bias;
    one.h = adapter->HOf(op.h);
    one.y = op.y;
    one.scaling = adapter->scaling;
    one.dropout = DropoutOf(*adapter, op.seed, op.mask);
    one.compute = op.compute;
    return backend->Enqueue(one, operands->Take());
  }
  if (op.table.row_count == 0) {
    MatmulOp base;
    base.x = op.x;
    base.w = op.w;
    base.bias = op.bias;
    base.y = op.y;
    base.compute = op.compute;
    return backend->Enqueue(base, operands->Take());
  }
  return backend->Enqueue(op, operands->Take());
}

Status EnqueueBackward(const GroupedBackwardOp& op, Operands* operands) {
  Backend* backend = operands->backend();
  if (const AdapterRows* adapter = OnlyAdapter(op.table, op.dy.rows, op.row_scale)) {
    LoraBackwardOp one;
    one.dy = op.dy;
    one.x = op.x;
    one.w = op.w;
    one.lora_a = adapter->lora_a;
    one.lora_b = adapter->lora_b;
    one.h = adapter->HOf(op.h);
    one.dx = op.dx;
    one.d_lora_a = adapter->d_lora_a;
    one.d_lora_b = adapter->d_lora_b;
    one.d_bias = op.d_bias;
    one.d_lora_bias = adapter->d_lora_bias;
    one.accumulate_dx = op.accumulate_dx;
    one.accumulate_d_lora_a = adapter->accumulate_d_lora_a;
    one.accumulate_d_lora_b = adapter->accumulate_d_lora_b;
    one.accumulate_d_bias = op.accumulate_d_bias;
    one.accumulate_d_lora_bias = adapter->accumulate_d_lora_bias;
    one.scaling = adapter->scaling;
    one.dropout = DropoutOf(*adapter, op.seed, op.mask);
    return backend->Enqueue(one, operands->Take());
  }
  return backend->Enqueue(op, operands->Take());
}

// groupedForward(x, w, bias | null, adapters, rows, slots, rowScale | null, seedLow, seedHigh,
//                dropoutMask | null, compute) -> [y, h]
// adapters: as kFields says, all with rows. rows: indices of adapters, `slots` per row
Napi::Value GroupedForward(const Napi::CallbackInfo& info) {
  constexpr const char* kOp = GroupedForwardOp::kName;
  const Napi::Env env = info.Env();
  const TensorHandle& x = TensorOf(info[0], kOp, "x");
  Operands operands(env, kOp, x.storage->backend());
  GroupedForwardOp op;
  op.x = operands.In(info[0], "x");
  op.w = operands.Weight(info[1], "w");
  op.bias = operands.OptionalRow(info[2], "bias");
  op.table = TableOf(ReadAdapters(info[3], info[4], info[5], op.x.rows, &operands));
  op.row_scale = AsRow(operands.OptionalIn(info[6], "rowScale"));
  op.seed = SeedArg(info[7], info[8], kOp);
  op.mask = operands.OptionalIn(info[9], "dropoutMask");
  op.compute = ComputeArg(info[10], kOp);
  TensorHandle y;
  TensorHandle h;
  op.y = operands.Out(&y, x.dtype, WithLast(x.shape, op.w.rows()));
  op.h = operands.Out(&h, DType::kF32, {op.table.h_elems});
  ThrowIfError(env, EnqueueForward(op, &operands));
  Napi::Array result = Napi::Array::New(env, 2);
  result.Set(0u, WrapTensor(env, std::move(y)));
  result.Set(1u, WrapTensor(env, std::move(h)));
  return result;
}

// groupedBackward(dy, x | null, w | null, h | null, inFeatures, adapters, rows, slots,
//                 rowScale | null, seedLow, seedHigh, dropoutMask | null, wanted)
//   -> [dx, dBias, dRowScale, then dLoraA, dLoraB, dLoraBias of each adapter]
// wanted: as in loraBackward, in the order of the result
Napi::Value GroupedBackward(const Napi::CallbackInfo& info) {
  constexpr const char* kOp = GroupedBackwardOp::kName;
  const Napi::Env env = info.Env();
  const TensorHandle& dy = TensorOf(info[0], kOp, "dy");
  Operands operands(env, kOp, dy.storage->backend());
  GroupedBackwardOp op;
  op.dy = operands.In(info[0], "dy");
  op.x = operands.OptionalIn(info[1], "x");
  if (IsPresent(info[2])) op.w = operands.Weight(info[2], "w");
  op.h = operands.OptionalIn(info[3], "h");
  op.in_features = IntegerArg(info[4], kOp, "inFeatures", Code::kShape, kMaxElements);
  TableStorage* const storage = ReadAdapters(info[5], info[6], info[7], op.dy.rows, &operands);
  op.row_scale = AsRow(operands.OptionalIn(info[8], "rowScale"));
  op.seed = SeedArg(info[9], info[10], kOp);
  op.mask = operands.OptionalIn(info[11], "dropoutMask");
  const int64_t n = op.dy.cols;
  const std::vector<int64_t> gates = IsPresent(info[8])
                                         ? TensorOf(info[8], kOp, "rowScale").shape
                                         : std::vector<int64_t>{op.dy.rows * storage->slots};
  std::vector<WantedOutput> wanted = {
      {"dx", &op.dx, &op.accumulate_dx, WithLast(dy.shape, op.in_features)},
      {"dBias", &op.d_bias, &op.accumulate_d_bias, {n}, true},
      {"dRowScale", &op.d_row_scale, &op.accumulate_d_row_scale, gates}};
  for (AdapterRows& adapter : storage->adapters) {
    wanted.push_back({"dLoraA",
                      &adapter.d_lora_a,
                      &adapter.accumulate_d_lora_a,
                      {adapter.lora_a.rows, adapter.lora_a.cols}});
    wanted.push_back({"dLoraB",
                      &adapter.d_lora_b,
                      &adapter.accumulate_d_lora_b,
                      {adapter.lora_b.rows, adapter.lora_b.cols}});
    wanted.push_back(
        {"dLoraBias", &adapter.d_lora_bias, &adapter.accumulate_d_lora_bias, {n}, true});
  }
  WantedOutputs outputs(info[12], std::move(wanted), &operands);
  op.d_row_scale = AsRow(op.d_row_scale);
  op.table = TableOf(storage);
  ThrowIfError(env, EnqueueBackward(op, &operands));
  return outputs.Wrap(env);
}

}  // namespace

void RegisterGrouped(Napi::Env env, Napi::Object exports) {
  Export<GroupedForward>(env, exports, "groupedForward");
  Export<GroupedBackward>(env, exports, "groupedBackward");
}

}  // namespace lowrank::addon
