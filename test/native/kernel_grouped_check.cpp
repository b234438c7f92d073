// Batches whose rows have different adapters, one or several each, against double loops; with one
// a row against the bits of single calls; and on one thread against those of several.
#include "native/cpu/thread_pool.h"
#include "test/native/kernel_operands.h"

namespace lowrank::cpu {
namespace {

struct Batch {
  int64_t M, N, K;
  std::vector<int64_t> ranks;
  int64_t slots;
  bool gates, biases, drop, accumulate;
};

/// An adapter's operands and gradients.
struct Own {
  Dense a, b, bias, da, db, dbias;
  Own(int64_t N, int64_t K, int64_t r, DType dtype)
      : a(r, K, dtype),
        b(N, r, dtype),
        bias(1, N, DType::kF32),
        da(r, K, dtype),
        db(N, r, dtype),
        dbias(1, N, DType::kF32) {
    a.Fill();
    b.Fill();
    bias.Fill();
  }
};

/// The table of a batch as the addon sorts it.
struct Table {
  std::vector<int> adapter_of;  // [M · slots]
  std::vector<AdapterRows> adapters;
  std::vector<int32_t> rows, gates;
  AdapterTable table;

  Table(const Batch& s, const std::vector<Own>& own) {
    const int count = static_cast<int>(own.size());
    for (int64_t m = 0; m < s.M; ++m) {
      std::vector<int> taken;
      for (int64_t slot = 0; slot < s.slots; ++slot) {
        int e = static_cast<int>((Uniform() + 1) / 2 * (count + 1)) - 1;
        if (std::find(taken.begin(), taken.end(), e) != taken.end()) e = -1;
        taken.push_back(e);
        adapter_of.push_back(e);
      }
    }
    int64_t h_begin = 0;
    for (int e = 0; e < count; ++e) {
      AdapterRows one;
      const Own& mine = own[static_cast<size_t>(e)];
      one.lora_a = mine.a.view;
      one.lora_b = mine.b.view;
      if (s.biases && e % 2 == 0) one.lora_bias = mine.bias.view;
      one.scaling = 0.75f + static_cast<float>(e);
      if (s.drop && e % 2 == 1) one.dropout = 0.3;
      one.first = static_cast<int64_t>(rows.size());
      one.h_begin = h_begin;
      for (size_t at = 0; at < adapter_of.size(); ++at) {
        if (adapter_of[at] != e) continue;
        rows.push_back(static_cast<int32_t>(static_cast<int64_t>(at) / s.slots));
        gates.push_back(static_cast<int32_t>(at));
      }
      one.count = static_cast<int64_t>(rows.size()) - one.first;
      h_begin += one.count * one.r();
      adapters.push_back(one);
    }
    table.adapters = adapters.data();
    table.count = count;
    table.rows = rows.data();
    table.gates = gates.data();
    table.row_count = static_cast<int64_t>(rows.size());
    table.slots = s.slots;
    table.h_elems = h_begin;
  }
};

/// A sum, and the sum of its terms' sizes.
struct Sum {
  double value = 0, size = 0;
  void Add(double term, double its_size) {
    value += term;
    size += its_size;
  }
  void Add(double term) { Add(term, std::fabs(term)); }
};

struct Outs {
  Dense h, y, dx, dbias, dgates;
  Outs(const Batch& s, int64_t h_elems, DType dtype)
      : h(1, h_elems, DType::kF32),
        y(s.M, s.N, dtype),
        dx(s.M, s.K, dtype),
        dbias(1, s.N, DType::kF32),
        dgates(1, s.M * s.slots, DType::kF32) {}
};

class Check {
 public:
  Check(const KernelTable& kernels, const RunContext& context, const Batch& s, DType dtype,
        const std::string& kind)
      : kernels_(kernels),
        context_(context),
        s_(s),
        dtype_(dtype),
        what_(std::string(kernels.isa) + " grouped " + DTypeName(dtype) + " " + kind + " M" +
              std::to_string(s.M) + " N" + std::to_string(s.N) + " K" + std::to_string(s.K) +
              " slots" + std::to_string(s.slots)),
        x_(s.M, s.K, dtype),
        dy_(s.M, s.N, dtype),
        bias_(1, s.N, dtype),
        gates_(1, s.M * s.slots, DType::kF32),
        w_(MakeWeight(kernels, context, kind, s.N, s.K, dtype)),
        own_(MakeOwn()),
        rows_(s, own_),
        outs_(s, rows_.table.h_elems, dtype) {
    for (Dense* operand : {&x_, &dy_, &bias_, &gates_}) operand->Fill();
    if (s.accumulate) {
      outs_.dgates.Fill();
      for (int64_t i = 0; i < s.M * s.slots; ++i) before_.push_back(outs_.dgates.At(i));
    }
  }

  void Run() {
    Backward(Forward(context_, &outs_), context_, &outs_);
    ExpectForward();
    ExpectBackward();
    if (s_.slots == 1 && !s_.gates) SingleCalls();
    OneThread();
  }

 private:
  std::vector<Own> MakeOwn() const {
    std::vector<Own> own;
    for (const int64_t r : s_.ranks) own.emplace_back(s_.N, s_.K, r, dtype_);
    return own;
  }

  GroupedForwardOp Forward(const RunContext& context, Outs* outs) {
    GroupedForwardOp op;
    op.x = x_.view;
    op.w = w_.view;
    op.bias = bias_.view;
    op.table = rows_.table;
    if (s_.gates) op.row_scale = gates_.view;
    op.h = outs->h.view;
    op.y = outs->y.view;
    op.seed = kSeed;
    Status status = op.Check();
    if (status.ok()) status = kernels_.grouped_forward(op, context);
    Report(status.ok(), what_ + " forward " + status.message());
    return op;
  }

  void Backward(const GroupedForwardOp& forward, const RunContext& context, Outs* outs) {
    for (size_t e = 0; e < own_.size(); ++e) {
      rows_.adapters[e].d_lora_a = own_[e].da.view;
      rows_.adapters[e].d_lora_b = own_[e].db.view;
      if (rows_.adapters[e].lora_bias.present) rows_.adapters[e].d_lora_bias = own_[e].dbias.view;
    }
    GroupedBackwardOp op;
    op.dy = dy_.view;
    op.x = x_.view;
    op.w = w_.view;
    op.table = forward.table;
    op.row_scale = forward.row_scale;
    op.h = outs->h.view;
    op.dx = outs->dx.view;
    op.d_bias = outs->dbias.view;
    if (s_.gates) op.d_row_scale = outs->dgates.view;
    op.accumulate_d_row_scale = s_.accumulate;
    op.in_features = s_.K;
    op.seed = kSeed;
    Status status = op.Check();
    if (status.ok()) status = kernels_.grouped_backward(op, context);
    Report(status.ok(), what_ + " backward " + status.message());
  }

  double G(int64_t slot) const { return s_.gates ? gates_.At(slot) : 1; }
  double Gate(const AdapterRows& one, int64_t m, int64_t k) const {
    DropoutSpec dropout;
    dropout.p = one.dropout;
    dropout.seed = kSeed;
    return GateAt(dropout, m, k, s_.K);
  }
  Sum H(const AdapterRows& one, const Own& own, int64_t m, int64_t j) const {
    Sum sum;
    for (int64_t k = 0; k < s_.K; ++k) sum.Add(x_.At(m, k) * Gate(one, m, k) * own.a.At(j, k));
    return sum;
  }
  /// dy · lora_b
  Sum U(const Own& own, int64_t m, int64_t j) const {
    Sum sum;
    for (int64_t n = 0; n < s_.N; ++n) sum.Add(dy_.At(m, n) * own.b.At(n, j));
    return sum;
  }

  /// One for each slot of row m that has an adapter.
  template <typename Fn>
  void EachEntry(int64_t m, const Fn& fn) const {
    for (int64_t slot = m * s_.slots; slot < (m + 1) * s_.slots; ++slot) {
      const int e = rows_.adapter_of[static_cast<size_t>(slot)];
      if (e < 0) continue;
      fn(slot, rows_.adapters[static_cast<size_t>(e)], own_[static_cast<size_t>(e)]);
    }
  }

  void ExpectForward() const {
    for (int64_t m = 0; m < s_.M; ++m) {
      for (int64_t n = 0; n < s_.N; ++n) {
        Sum sum;
        sum.Add(bias_.At(n));
        for (int64_t k = 0; k < s_.K; ++k) sum.Add(x_.At(m, k) * w_.At(n, k));
        EachEntry(m, [&](int64_t slot, const AdapterRows& one, const Own& own) {
          const double factor = static_cast<double>(one.scaling) * G(slot);
          for (int64_t j = 0; j < one.r(); ++j) {
            const Sum h = H(one, own, m, j);
            sum.Add(factor * h.value * own.b.At(n, j), std::fabs(factor * own.b.At(n, j)) * h.size);
          }
          if (one.lora_bias.present) sum.Add(factor * own.bias.At(n));
        });
        Expect(what_ + " y", outs_.y.At(m, n), sum.value, sum.size, dtype_);
      }
    }
  }

  void ExpectBackward() const {
    std::vector<Sum> gates(static_cast<size_t>(s_.M * s_.slots));
    for (size_t i = 0; i < before_.size(); ++i) gates[i].Add(before_[i]);
    for (int64_t m = 0; m < s_.M; ++m) {
      for (int64_t k = 0; k < s_.K; ++k) {
        Sum sum;
        for (int64_t n = 0; n < s_.N; ++n) sum.Add(dy_.At(m, n) * w_.At(n, k));
        EachEntry(m, [&](int64_t slot, const AdapterRows& one, const Own& own) {
          const double factor = one.scaling * G(slot) * Gate(one, m, k);
          for (int64_t j = 0; j < one.r(); ++j) {
            const Sum u = U(own, m, j);
            sum.Add(factor * u.value * own.a.At(j, k), std::fabs(factor * own.a.At(j, k)) * u.size);
          }
        });
        Expect(what_ + " dx", outs_.dx.At(m, k), sum.value, sum.size, dtype_);
      }
      EachEntry(m, [&](int64_t slot, const AdapterRows& one, const Own& own) {
        Sum& sum = gates[static_cast<size_t>(slot)];
        const double scaling = one.scaling;
        for (int64_t j = 0; j < one.r(); ++j) {
          const Sum h = H(one, own, m, j), u = U(own, m, j);
          sum.Add(scaling * h.value * u.value, scaling * h.size * u.size);
        }
        for (int64_t n = 0; one.lora_bias.present && n < s_.N; ++n) {
          sum.Add(scaling * dy_.At(m, n) * own.bias.At(n));
        }
      });
    }
    for (size_t i = 0; s_.gates && i < gates.size(); ++i) {
      Expect(what_ + " dRowScale", outs_.dgates.At(static_cast<int64_t>(i)), gates[i].value,
             gates[i].size, DType::kF32);
    }
    for (int64_t n = 0; n < s_.N; ++n) {
      Sum sum;
      for (int64_t m = 0; m < s_.M; ++m) sum.Add(dy_.At(m, n));
      Expect(what_ + " dBias", outs_.dbias.At(n), sum.value, sum.size, DType::kF32);
    }
    for (size_t e = 0; e < own_.size(); ++e) ExpectFactors(rows_.adapters[e], own_[e]);
  }

  void ExpectFactors(const AdapterRows& one, const Own& own) const {
    const auto each = [&](const auto& fn) {
      for (int64_t i = one.first; i < one.first + one.count; ++i) {
        fn(static_cast<int64_t>(rows_.rows[static_cast<size_t>(i)]),
           static_cast<double>(one.scaling) * G(rows_.gates[static_cast<size_t>(i)]));
      }
    };
    for (int64_t j = 0; j < one.r(); ++j) {
      for (int64_t k = 0; k < s_.K; ++k) {
        Sum sum;
        each([&](int64_t m, double factor) {
          const Sum u = U(own, m, j);
          const double x = factor * Gate(one, m, k) * x_.At(m, k);
          sum.Add(u.value * x, u.size * std::fabs(x));
        });
        Expect(what_ + " dLoraA", own.da.At(j, k), sum.value, sum.size, dtype_);
      }
      for (int64_t n = 0; n < s_.N; ++n) {
        Sum sum;
        each([&](int64_t m, double factor) {
          const Sum h = H(one, own, m, j);
          const double dy = factor * dy_.At(m, n);
          sum.Add(h.value * dy, h.size * std::fabs(dy));
        });
        Expect(what_ + " dLoraB", own.db.At(n, j), sum.value, sum.size, dtype_);
      }
    }
    for (int64_t n = 0; one.lora_bias.present && n < s_.N; ++n) {
      Sum sum;
      each([&](int64_t m, double factor) { sum.Add(factor * dy_.At(m, n)); });
      Expect(what_ + " dLoraBias", own.dbias.At(n), sum.value, sum.size, DType::kF32);
    }
  }

  /// The rows of an adapter as a batch of their own, where the place does not count: no dropout.
  void SingleCalls() const {
    for (size_t e = 0; e < own_.size(); ++e) {
      const AdapterRows& one = rows_.adapters[e];
      if (one.dropout > 0 || one.count == 0) continue;
      const int64_t count = one.count, r = one.r();
      Dense x(count, s_.K, dtype_), dy(count, s_.N, dtype_), h(count, r, DType::kF32),
          y(count, s_.N, dtype_), dx(count, s_.K, dtype_), da(r, s_.K, dtype_), db(s_.N, r, dtype_),
          dbias(1, s_.N, DType::kF32);
      const auto row_of = [&](const Dense& all, int64_t i) {
        const size_t bytes = static_cast<size_t>(all.view.cols) * DTypeBytes(dtype_);
        return std::make_pair(static_cast<char*>(all.view.data) + static_cast<size_t>(i) * bytes,
                              bytes);
      };
      const auto batch_row = [&](int64_t i) {
        return static_cast<int64_t>(rows_.rows[static_cast<size_t>(one.first + i)]);
      };
      for (int64_t i = 0; i < count; ++i) {
        for (const auto& [all, some] : {std::make_pair(&x_, &x), std::make_pair(&dy_, &dy)}) {
          const auto [from, bytes] = row_of(*all, batch_row(i));
          std::memcpy(row_of(*some, i).first, from, bytes);
        }
      }
      LoraForwardOp forward;
      forward.x = x.view;
      forward.w = w_.view;
      forward.bias = bias_.view;
      forward.lora_a = one.lora_a;
      forward.lora_b = one.lora_b;
      forward.lora_bias = one.lora_bias;
      forward.h = h.view;
      forward.y = y.view;
      forward.scaling = one.scaling;
      LoraBackwardOp backward;
      backward.dy = dy.view;
      backward.x = x.view;
      backward.w = w_.view;
      backward.lora_a = one.lora_a;
      backward.lora_b = one.lora_b;
      backward.h = h.view;
      backward.dx = dx.view;
      backward.d_lora_a = da.view;
      backward.d_lora_b = db.view;
      if (one.lora_bias.present) backward.d_lora_bias = dbias.view;
      backward.scaling = one.scaling;
      Report(kernels_.lora_forward(forward, context_).ok() &&
                 kernels_.lora_backward(backward, context_).ok(),
             what_ + " single");
      for (int64_t i = 0; i < count; ++i) {
        for (const auto& [all, some] :
             {std::make_pair(&outs_.y, &y), std::make_pair(&outs_.dx, &dx)}) {
          const auto [mine, bytes] = row_of(*all, batch_row(i));
          Report(std::memcmp(mine, row_of(*some, i).first, bytes) == 0,
                 what_ + (some == &y ? " y" : " dx") + " has the bits of a single call");
        }
      }
      const bool bias = !one.lora_bias.present || dbias.buffer.Same(own_[e].dbias.buffer);
      Report(da.buffer.Same(own_[e].da.buffer) && db.buffer.Same(own_[e].db.buffer) && bias,
             what_ + " gradients have the bits of a single call");
    }
  }

  void OneThread() {
    ThreadPool pool(1);
    const RunContext context = {&pool, context_.cancel};
    std::vector<Own> before;
    std::swap(before, own_);
    own_ = MakeOwn();
    Outs outs(s_, rows_.table.h_elems, dtype_);
    for (size_t i = 0; i < before_.size(); ++i) {
      StoreElement(outs.dgates.view.data, DType::kF32, static_cast<int64_t>(i), before_[i]);
    }
    Backward(Forward(context, &outs), context, &outs);
    bool same = outs.h.buffer.Same(outs_.h.buffer) && outs.y.buffer.Same(outs_.y.buffer) &&
                outs.dx.buffer.Same(outs_.dx.buffer) &&
                outs.dgates.buffer.Same(outs_.dgates.buffer);
    for (size_t e = 0; e < own_.size(); ++e) {
      same = same && own_[e].da.buffer.Same(before[e].da.buffer) &&
             own_[e].db.buffer.Same(before[e].db.buffer) &&
             own_[e].dbias.buffer.Same(before[e].dbias.buffer);
    }
    Report(same, what_ + " has the same bits on one thread");
  }

  static constexpr uint64_t kSeed = 0x123456789abcdefull;
  const KernelTable& kernels_;
  const RunContext& context_;
  const Batch s_;
  const DType dtype_;
  const std::string what_;
  Dense x_, dy_, bias_, gates_;
  Weight w_;
  std::vector<Own> own_;
  Table rows_;
  Outs outs_;
  std::vector<double> before_;
};

}  // namespace

void CheckGrouped(const KernelTable& table, const RunContext& context) {
  const Batch batches[] = {
      {1, 1, 1, {1}, 1, true, false, false, false},
      {2, 65, 172, {8, 3}, 1, false, true, false, false},
      {7, 31, 63, {4, 0, 5}, 1, true, true, false, true},
      {33, 17, 65, {16, 4, 7, 1}, 1, false, true, true, false},
      {70, 13, 33, {270, 2}, 1, true, false, false, false},
      {5, 600, 24, {4, 3}, 2, true, true, false, false},
      {21, 24, 300, {5, 2, 9}, 3, true, true, true, true},
      {70, 9, 16, {3, 20}, 2, false, true, false, false},
      // One adapter: more rows than a sum, than a chunk of rows, and columns than a block.
      {1400, 33, 5, {3}, 1, false, true, false, false},
      {40, 301, 5, {20}, 1, false, false, false, false},
      // Few rows of each, or all but one: more columns than their blocks have, in y and in dx.
      {7, 1100, 40, {4, 16, 9}, 1, true, true, false, true},
      {18, 1100, 40, {4, 16, 9, 2, 3}, 1, false, true, false, false},
      {18, 40, 1288, {4, 16, 9, 2, 3}, 1, true, true, false, true},
      {20, 40, 1288, {4, 16, 9, 2, 3}, 1, false, false, true, false},
  };
  for (const Batch& batch : batches) {
    for (const char* kind : {"f32", "same", "nf4/64"}) {
      for (DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
        Check(table, context, batch, dtype, kind).Run();
      }
    }
  }
}

}  // namespace lowrank::cpu
