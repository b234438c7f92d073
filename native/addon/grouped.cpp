/// A batch whose rows have different adapters. A batch with one adapter runs as loraForward and
/// loraBackward, one without adapters as matmul.
#include <cstdint>
#include <vector>

#include "native/addon/bindings.h"
#include "native/addon/host_array.h"
#include "native/addon/operands.h"
#include "native/core/ops/adapter_table.h"

namespace lowrank::addon {
namespace {

/// The entries of an adapter in the array of adapters: loraA, loraB, loraBias | null. The last
/// element is a Float64Array with the scaling and dropout of each: one call of Node's for an entry,
/// not four.
constexpr uint32_t kFields = 3;

/// `operands` keeps it alive.
AdapterTableMemory* ReadAdapters(const Napi::Value& adapters, const Napi::Value& rows,
                                 const Napi::Value& slots, int64_t m_count, Operands* operands) {
  const Napi::Env env = operands->env();
  const char* op = operands->op();
  auto table = std::make_shared<AdapterTableMemory>();
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
  table->adapters.resize(count);
  for (uint32_t e = 0; e < count; ++e) {
    AdapterRows& adapter = table->adapters[e];
    adapter.lora_a = operands->In(list.Get(e * kFields), "loraA");
    adapter.lora_b = operands->In(list.Get(e * kFields + 1), "loraB");
    adapter.lora_bias = operands->OptionalRow(list.Get(e * kFields + 2), "loraBias");
    adapter.scaling = static_cast<float>(numbers[size_t{2} * e]);
    adapter.dropout = numbers[size_t{2} * e + 1];
  }
  ThrowIfError(env, table->SetSlots(op, NumberArg(slots, op, "slots"), m_count));
  const std::vector<int32_t> adapter_of = IntegersArg(rows, op, "rows");
  ThrowIfError(
      env, table->Sort(op, adapter_of.data(), static_cast<int64_t>(adapter_of.size()), m_count));
  operands->Keep(table);
  return table.get();
}

template <typename Op>
Status Enqueue(const Op& op, Operands* operands) {
  return SubmitGrouped(op, [operands](const auto& one) {
    return operands->backend()->Enqueue(one, operands->Take());
  });
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
  op.table = ReadAdapters(info[3], info[4], info[5], op.x.rows, &operands)->Table();
  op.row_scale = SlotsAsRow(operands.OptionalIn(info[6], "rowScale"));
  op.seed = SeedArg(info[7], info[8], kOp);
  op.mask = operands.OptionalIn(info[9], "dropoutMask");
  op.compute = ComputeArg(info[10], kOp);
  TensorHandle y;
  TensorHandle h;
  op.y = operands.Out(&y, x.dtype, WithLast(x.shape, op.w.rows()));
  op.h = operands.Out(&h, DType::kF32, {op.table.h_elems});
  ThrowIfError(env, Enqueue(op, &operands));
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
  AdapterTableMemory* const table = ReadAdapters(info[5], info[6], info[7], op.dy.rows, &operands);
  op.row_scale = SlotsAsRow(operands.OptionalIn(info[8], "rowScale"));
  op.seed = SeedArg(info[9], info[10], kOp);
  op.mask = operands.OptionalIn(info[11], "dropoutMask");
  const int64_t n = op.dy.cols;
  const std::vector<int64_t> gates = IsPresent(info[8])
                                         ? TensorOf(info[8], kOp, "rowScale").shape
                                         : std::vector<int64_t>{op.dy.rows * table->slots};
  std::vector<WantedOutput> wanted = {
      {"dx", &op.dx, &op.accumulate_dx, WithLast(dy.shape, op.in_features)},
      {"dBias", &op.d_bias, &op.accumulate_d_bias, {n}, true},
      {"dRowScale", &op.d_row_scale, &op.accumulate_d_row_scale, gates}};
  for (AdapterRows& adapter : table->adapters) {
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
  op.d_row_scale = SlotsAsRow(op.d_row_scale);
  op.table = table->Table();
  ThrowIfError(env, Enqueue(op, &operands));
  return outputs.Wrap(env);
}

}  // namespace

void RegisterGrouped(Napi::Env env, Napi::Object exports) {
  Export<GroupedForward>(env, exports, "groupedForward");
  Export<GroupedBackward>(env, exports, "groupedBackward");
}

}  // namespace lowrank::addon
