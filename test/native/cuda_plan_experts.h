/// A layer of experts, for cuda_plan_table.cpp.
#pragma once

#include "test/native/cuda_plan_operands.h"

namespace lowrank::plan_table {

inline IndexView SomeIndices(int64_t count, int64_t limit) {
  return {Some<int32_t>(), count, limit, true};
}

/// M tokens, k experts of E each, with LoRA of rank 16.
template <typename Card>
void AddExperts(DType dtype, const char* format, int64_t M, int64_t k, int64_t E, int64_t N,
                int64_t K, Card* card) {
  const int64_t slots = M * k;
  SelectExpertsOp select;
  select.logits = Matrix(dtype, M, E);
  select.chosen = {Some<int32_t>(), slots};
  select.gates = Matrix(DType::kF32, M, k);
  card->Add(select);
  SelectExpertsBackwardOp gates;
  gates.d_gates = Matrix(DType::kF32, M, k);
  gates.logits = select.logits;
  gates.chosen = SomeIndices(slots, E);
  gates.gates = select.gates;
  gates.d_logits = Matrix(dtype, M, E);
  card->Add(gates);
  RouteRowsOp rows;
  rows.chosen = SomeIndices(slots, E);
  rows.order = {Some<int32_t>(), slots};
  rows.inverse = {Some<int32_t>(), slots};
  rows.offsets = {Some<int32_t>(), E + 1};
  rows.k = k;
  rows.experts = E;
  card->Add(rows);
  ExpertsForwardOp forward;
  forward.route.order = SomeIndices(slots, slots);
  forward.route.inverse = SomeIndices(slots, slots);
  forward.route.offsets = SomeIndices(E + 1, slots + 1);
  forward.route.rows = M;
  forward.route.k = k;
  forward.route.experts = E;
  forward.x = Matrix(dtype, M, K);
  forward.w = Weight(format, dtype, false, E * N, K);
  forward.lora_a = Matrix(dtype, E * 16, K);
  forward.lora_b = Matrix(dtype, E * N, 16);
  forward.h = Matrix(DType::kF32, slots, 16);
  forward.y = Matrix(dtype, slots, N);
  forward.scaling = 2;
  card->Add(forward);
  ExpertsBackwardOp backward;
  backward.dy = forward.y;
  backward.w = forward.w;
  backward.x = forward.x;
  backward.lora_a = forward.lora_a;
  backward.lora_b = forward.lora_b;
  backward.h = forward.h;
  backward.dx = Matrix(dtype, slots, K);
  backward.d_lora_a = Matrix(dtype, E * 16, K);
  backward.d_lora_b = Matrix(dtype, E * N, 16);
  backward.route = forward.route;
  backward.scaling = 2;
  card->Add(backward);
  CombineRowsOp combine;
  combine.y = forward.y;
  combine.gates = select.gates;
  combine.out = Matrix(dtype, M, N);
  combine.route = forward.route;
  card->Add(combine);
  CombineRowsBackwardOp spread;
  spread.d_out = combine.out;
  spread.y = combine.y;
  spread.gates = combine.gates;
  spread.dy = Matrix(dtype, slots, N);
  spread.d_gates = Matrix(DType::kF32, M, k);
  spread.route = forward.route;
  card->Add(spread);
}

/// Few slots of each expert, and many; rows that are not whole 16-byte pieces.
template <typename Card>
void AddExpertLayers(DType dtype, Card* card) {
  for (const char* format : {"", "nf4", "int8"}) {
    AddExperts(dtype, format, 16, 8, 128, 768, 2048, card);
    AddExperts(dtype, format, 8192, 8, 128, 768, 2048, card);
    AddExperts(dtype, format, 64, 2, 8, 768, 100, card);
  }
}

}  // namespace lowrank::plan_table
