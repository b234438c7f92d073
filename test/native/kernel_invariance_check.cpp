// What must not change a result: threads, neighbours in the batch, numbers that are not finite. And what lies under
// the kernels: the pool, and memory.
#include <atomic>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include "native/cpu/host_memory.h"
#include "test/native/kernel_operands.h"

namespace lowrank::cpu {

/// Same bits for every number of threads, and for rows alone and in a batch.
void CheckInvariance(const KernelTable& table, const CancelToken* cancel) {
  for (DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    // 832 and 4160: sums by lanes (sum_order.h), of one span and of a span and a granule. 2304: w
    // turned beside tiles where rows are many (dense_strips.h). 2100: dx of a row alone and of
    // a few by threads that share rows of w (direct_dot.h).
    struct Case {
      const char* kind;
      int64_t K, N = 300;
    };
    const Case cases[] = {{"nf4/64", 520},   {"nf4/64", 832}, {"nf4/64", 4160},
                          {"fp4/128d", 896}, {"same", 520},   {"same", 2304},
                          {"nf4/64d", 192, 2100}};
    for (const Case& each : cases) {
      const char* kind = each.kind;
      const int64_t K = each.K;
      const int64_t M = 83, N = each.N, r = 12;
      ThreadPool one(1);
      const RunContext single = {&one, cancel};
      const Weight w = MakeWeight(table, single, kind, N, K, dtype);
      Dense x(M, K, dtype), dy(M, N, dtype), a(r, K, DType::kF32), b(N, r, DType::kF32);
      x.Fill();
      dy.Fill();
      a.Fill();
      b.Fill();
      auto run = [&](int threads, int64_t m0, int64_t rows, std::vector<Dense>* outs) {
        ThreadPool pool(threads);
        const RunContext context = {&pool, cancel};
        outs->clear();
        outs->emplace_back(rows, r, DType::kF32);
        outs->emplace_back(rows, N, dtype);
        outs->emplace_back(rows, K, dtype);
        outs->emplace_back(r, K, DType::kF32);
        outs->emplace_back(N, r, DType::kF32);
        LoraForwardOp f;
        f.x = x.view;
        f.x.data = static_cast<char*>(x.view.data) + static_cast<size_t>(m0 * K) * DTypeBytes(dtype);
        f.x.rows = rows;
        f.w = w.view;
        f.lora_a = a.view;
        f.lora_b = b.view;
        f.h = (*outs)[0].view;
        f.y = (*outs)[1].view;
        f.scaling = 0.5f;
        Report(table.lora_forward(f, context).ok(), "invariance forward");
        LoraBackwardOp g;
        g.dy = dy.view;
        g.dy.data =
            static_cast<char*>(dy.view.data) + static_cast<size_t>(m0 * N) * DTypeBytes(dtype);
        g.dy.rows = rows;
        g.x = f.x;
        g.w = w.view;
        g.lora_a = a.view;
        g.lora_b = b.view;
        g.h = f.h;
        g.dx = (*outs)[2].view;
        g.d_lora_a = (*outs)[3].view;
        g.d_lora_b = (*outs)[4].view;
        g.scaling = 0.5f;
        Report(table.lora_backward(g, context).ok(), "invariance backward");
      };
      std::vector<Dense> base, other;
      run(1, 0, M, &base);
      const std::string what = std::string(table.isa) + " " + DTypeName(dtype) + " " + kind +
                               " K " + std::to_string(K);
      for (int threads : {2, 3, 8}) {
        run(threads, 0, M, &other);
        for (size_t i = 0; i < base.size(); ++i) {
          Report(base[i].buffer.Same(other[i].buffer),
                 what + " threads " + std::to_string(threads) + " output " + std::to_string(i));
        }
      }
      for (int64_t m0 : {int64_t{0}, int64_t{41}, int64_t{82}}) {
        for (int64_t rows : {int64_t{1}, int64_t{5}, int64_t{17}}) {
          if (m0 + rows > M) continue;
          run(2, m0, rows, &other);
          for (size_t i = 0; i < 3; ++i) {
            const size_t row_bytes =
                static_cast<size_t>(base[i].view.cols) * DTypeBytes(base[i].view.dtype);
            const char* from = static_cast<const char*>(base[i].view.data) +
                               static_cast<size_t>(m0) * row_bytes;
            Report(std::memcmp(from, other[i].view.data, row_bytes * static_cast<size_t>(rows)) == 0,
                   what + " rows alone, output " + std::to_string(i));
          }
        }
      }
    }
  }
}

/// Every task once, in every job, and an end whenever it comes: workers late for a job, for the last
/// one, or for the first.
void CheckPool() {
  int64_t wrong = 0;
  for (int i = 0; i < 3000; ++i) {
    ThreadPool pool(2 + i % 7);
    for (int job = 0; job < i % 4; ++job) {
      const int64_t tasks = 1 + job * 5;
      std::atomic<int64_t> sum{0};
      pool.ParallelFor(tasks, [&](int64_t task) { sum += task + 1; });
      if (sum != tasks * (tasks + 1) / 2) ++wrong;
    }
  }
  Report(wrong == 0, "jobs of a pool");
}

/// What the devices keep of freed memory: the blocks that were freed last, whatever was before.
#if defined(__SANITIZE_ADDRESS__)
void CheckHostMemory() {}  // nothing is kept there
#else
void CheckHostMemory() {
  HostMemory memory;
  const auto allocate = [&](size_t bytes) {
    void* data = nullptr;
    const Status status = memory.Allocate("cpu", bytes, &data);
    Report(status.ok(), "memory: allocate " + std::to_string(bytes) + " bytes");
    return data;
  };
  const auto fill = [&](size_t bytes) {
    void* data = allocate(bytes);
    std::memset(data, 0x5a, bytes);
    return static_cast<unsigned char*>(data);
  };
  // Given back, then taken again with what was written: pages that malloc has free are cleared.
  const auto keeps = [&](size_t bytes) {
    unsigned char* const before = fill(bytes);
    memory.Free(before, bytes);
#if defined(__GLIBC__)
    malloc_trim(0);
#endif
    auto* const after = static_cast<unsigned char*>(allocate(bytes));
    const bool same = after == before && after[0] == 0x5a && after[bytes / 2] == 0x5a;
    memory.Free(after, bytes);
    return same;
  };
  constexpr size_t kAll = size_t{64} << 20;
  memory.Free(fill(kAll), kAll);
  Report(keeps(size_t{1} << 20), "memory: a block after one as large as all that is kept");
  Report(keeps(size_t{16} << 10), "memory: a small block is kept");
  Report(keeps(kAll), "memory: a block as large as all that is kept");

  unsigned char* blocks[5];
  for (unsigned char*& block : blocks) block = fill(kAll / 4);
  for (unsigned char* block : blocks) memory.Free(block, kAll / 4);
  void* taken[4];
  for (int i = 0; i < 4; ++i) taken[i] = allocate(kAll / 4);
  for (int i = 0; i < 4; ++i) {
    Report(taken[i] == blocks[4 - i], "memory: the last of equal blocks first, " +
                                          std::to_string(i) + " of the four that are kept");
    memory.Free(taken[i], kAll / 4);
  }
  // Beside live memory, what was live at once may stay; once it is gone, 64 MB.
  constexpr size_t kPart = size_t{48} << 20;
  const auto still = [&](unsigned char* block) { return block[0] == 0x5a; };
  unsigned char* const base = fill(2 * kPart);
  unsigned char* parts[3];
  for (const bool with_base : {true, false}) {
    for (unsigned char*& part : parts) part = fill(kPart);
    for (unsigned char* part : parts) memory.Free(part, kPart);
    if (!with_base) memory.Free(base, 2 * kPart);
    int64_t kept = 0;
    for (unsigned char*& part : parts) {
      part = static_cast<unsigned char*>(allocate(kPart));
      if (still(part)) ++kept;
    }
    Report(kept == (with_base ? 3 : 1), "memory: blocks of a step that are kept, " +
                                            std::string(with_base ? "beside a model" : "alone"));
    for (unsigned char* part : parts) memory.Free(part, kPart);
  }
  const MemoryUsage usage = memory.usage();
  Report(usage.live_bytes == 0 && usage.live_tensors == 0, "memory: what is kept is not in use");
}
#endif

/// NaN and Inf reach every output that they take part in, and no other.
void CheckNonFinite(const KernelTable& table, const RunContext& context) {
  for (DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    for (const char* kind : {"nf4/64", "same"}) {
      const int64_t M = 20, N = 70, K = 300, r = 4;
      const std::string what = std::string(table.isa) + " " + DTypeName(dtype) + " " + kind;
      const Weight w = MakeWeight(table, context, kind, N, K, dtype);
      Dense x(M, K, dtype), a(r, K, dtype), b(N, r, dtype), h(M, r, DType::kF32), y(M, N, dtype);
      x.Fill();
      a.Fill();
      b.Fill();
      StoreElement(x.view.data, dtype, 3 * K + 77, NAN);
      StoreElement(x.view.data, dtype, 5 * K + 299, INFINITY);
      LoraForwardOp op;
      op.x = x.view;
      op.w = w.view;
      op.lora_a = a.view;
      op.lora_b = b.view;
      op.h = h.view;
      op.y = y.view;
      op.scaling = 1;
      Report(table.lora_forward(op, context).ok(), what + " status");
      bool right = true;
      for (int64_t i = 0; i < M * N; ++i) {
        const int64_t m = i / N;
        const bool is_nan = std::isnan(y.At(i)), finite = std::isfinite(y.At(i));
        right = right && (m == 3 ? is_nan : m == 5 ? !finite : finite);
      }
      Report(right, what + " NaN and Inf");
    }
  }
}

}  // namespace lowrank::cpu
