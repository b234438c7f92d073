// What a set shares with its base (native/cpu/kernels/isa/base_set.h), and what it must not.
#include <memory>

#include "native/cpu/kernel_table.h"
#include "test/native/kernel_operands.h"

namespace lowrank::cpu {
namespace {

const char* BaseOf(const KernelTable& table) {
  for (const char* name : {"avx512-vnni", "avx512-bf16", "avx512-amx"}) {
    if (std::strcmp(table.isa, name) == 0) return "avx512";
  }
  return nullptr;
}

bool Same(const LoraLayer& a, const LoraLayer& b) {
  return a.h.buffer.Same(b.h.buffer) && a.y.buffer.Same(b.y.buffer) &&
         a.dx.buffer.Same(b.dx.buffer) && a.da.buffer.Same(b.da.buffer) &&
         a.db.buffer.Same(b.db.buffer);
}

}  // namespace

/// Products in f32 have the bits of the base's. Those of bf16 pairs have others, being summed in
/// another order.
void CheckBase(const KernelTable& table, const RunContext& context) {
  const char* name = BaseOf(table);
  if (name == nullptr) return;
  const KernelTable* base = SelectKernels(name, nullptr);
  const bool has_pairs = std::strcmp(table.isa, "avx512-vnni") != 0;
  const Shape s = {24, 640, 4160, 12};
  for (DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    for (const char* kind : {"nf4/64", "int8/256", "same", "f32"}) {
      const Weight w = MakeWeight(table, context, kind, s.N, s.K, dtype);
      const bool pairs = has_pairs && dtype == DType::kBF16 && std::strcmp(kind, "f32") != 0;
      const std::string what =
          std::string(table.isa) + " " + DTypeName(dtype) + " " + kind + " and " + name + ": ";
      const uint64_t state = g_state;
      LoraLayer own(s, dtype, w.view);
      g_state = state;
      LoraLayer shared(s, dtype, w.view);
      // What is left of y by its own bias, and of dx by itself, are the roundings of their sums.
      Report(base->lora_forward(shared.forward, context).ok() &&
                 base->lora_backward(shared.backward, context).ok(),
             what + "status of the base");
      Dense bias(1, s.N, dtype);
      for (int64_t n = 0; n < s.N; ++n) StoreElement(bias.view.data, dtype, n, -shared.y.At(0, n));
      for (int64_t i = 0; i < s.M * s.K; ++i) {
        const double left = -shared.dx.At(i);
        StoreElement(own.dx.view.data, dtype, i, left);
        StoreElement(shared.dx.view.data, dtype, i, left);
      }
      const auto run = [&](const KernelTable& set, LoraLayer& layer) {
        layer.forward.bias = bias.view;
        layer.backward.accumulate_dx = true;
        return set.lora_forward(layer.forward, context).ok() &&
               set.lora_backward(layer.backward, context).ok();
      };
      Report(run(table, own) && run(*base, shared), what + "status");
      Report(Same(own, shared) != pairs, what + (pairs ? "are to differ" : "are to be the same"));
      if (!pairs) continue;
      Report(!own.y.buffer.Same(shared.y.buffer), what + "y is to differ");
      Report(!own.dx.buffer.Same(shared.dx.buffer), what + "dx is to differ");
    }
  }
}

/// Parts of one x whose products are this set's and the base's in turns: each has the bits that it
/// has alone, and so has silu(gate) ⊙ up.
void CheckPartsInTurns(const KernelTable& table, const RunContext& context) {
  const Shape s = {9, 96, 832, 5};
  const char* kinds[] = {"f32", "nf4/64", "f32", "f32", "same", "int8/256"};
  constexpr int kParts = 6;
  for (DType dtype : {DType::kF32, DType::kBF16}) {
    const std::string what = std::string(table.isa) + " " + DTypeName(dtype) + " parts in turns: ";
    std::vector<Weight> weights;
    std::vector<std::unique_ptr<LoraLayer>> alone, together;
    std::vector<LoraForwardOp> parts;
    for (int i = 0; i < kParts; ++i) {
      weights.push_back(MakeWeight(table, context, kinds[i], s.N, s.K, dtype));
      const uint64_t state = g_state;
      alone.push_back(std::make_unique<LoraLayer>(s, dtype, weights.back().view));
      g_state = state;
      together.push_back(std::make_unique<LoraLayer>(s, dtype, weights.back().view));
    }
    for (int i = 0; i < kParts; ++i) {
      for (auto* layers : {&alone, &together}) (*layers)[i]->forward.x = alone[0]->x.view;
      parts.push_back(together[i]->forward);
      Report(table.lora_forward(alone[i]->forward, context).ok(), what + "status alone");
    }
    LoraForwardManyOp many;
    many.parts = parts.data();
    many.count = kParts;
    Report(table.lora_forward_many(many, context).ok(), what + "status");
    for (int i = 0; i < kParts; ++i) {
      Report(together[i]->y.buffer.Same(alone[i]->y.buffer), what + "y of " + kinds[i]);
      Report(together[i]->h.buffer.Same(alone[i]->h.buffer), what + "h of " + kinds[i]);
    }
    for (int i = 0; i + 1 < kParts; ++i) {
      Dense expected(s.M, s.N, dtype), y(s.M, s.N, dtype);
      const GatedActivationOp gated = {alone[i]->y.view, alone[i + 1]->y.view, expected.view};
      Report(table.gated_activation(gated, context).ok(), what + "status of swiglu");
      for (const bool kept : {false, true}) {
        LoraForwardSwigluOp op;
        op.gate = together[i]->forward;
        op.up = together[i + 1]->forward;
        if (!kept) op.gate.y = op.up.y = TensorView();
        op.y = y.view;
        Report(table.lora_forward_swiglu(op, context).ok(), what + "status of the fused swiglu");
        Report(y.buffer.Same(expected.buffer),
               what + "swiglu of " + kinds[i] + " and " + kinds[i + 1] + (kept ? ", kept" : ""));
      }
    }
  }
}

}  // namespace lowrank::cpu
