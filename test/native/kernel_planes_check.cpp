// Planar weights: values bit for bit, products against float64, and a row alone against its batch.
// Each plane lies at the end of readable memory.
#include "test/native/kernel_operands.h"

namespace lowrank::cpu {
namespace {

struct PlanarKind {
  int bits;
  PlaneGrid grid;
  int64_t grid_rows;
  int64_t grid_span;  // groups of an ordered grid
  PlaneType scale;
  bool outer;
  bool zero;
  bool min;
  LevelRule rule = LevelRule::kTable;
};

constexpr PlanarKind kKinds[] = {
    {1, PlaneGrid::kTiles, 1, 1000, PlaneType::kF32, false, true, false},
    {2, PlaneGrid::kFlat, 1, 40, PlaneType::kF16, false, true, false},
    {4, PlaneGrid::kCyclic, 1, 32, PlaneType::kF16, false, true, false},
    {3, PlaneGrid::kTiles, 1, 16, PlaneType::kByte, true, false, false},
    {4, PlaneGrid::kTiles, 1, 16, PlaneType::kByte, false, false, false},
    {4, PlaneGrid::kTiles, 1, 32, PlaneType::kByte, true, false, true},
    {4, PlaneGrid::kTiles, 1, 128, PlaneType::kF16, false, true, false},
    {4, PlaneGrid::kOrdered, 1, 3, PlaneType::kF16, false, true, false},
    {4, PlaneGrid::kTiles, 1, 32, PlaneType::kF16, false, false, false},
    {4, PlaneGrid::kTiles, 1, 1 << 20, PlaneType::kBF16, false, false, false},
    {4, PlaneGrid::kFlat, 1, 192, PlaneType::kF16, false, true, false},
    {4, PlaneGrid::kFlat, 1, 64, PlaneType::kF32, false, false, true},
    {4, PlaneGrid::kTiles, 1, 48, PlaneType::kF16, false, false, false},
    {4, PlaneGrid::kTiles, 1, 16, PlaneType::kF16, false, true, false},
    {2, PlaneGrid::kTiles, 1, 16, PlaneType::kByte, true, false, true},
    {5, PlaneGrid::kTiles, 1, 32, PlaneType::kF16, false, false, true, LevelRule::kLinear},
    {6, PlaneGrid::kTiles, 1, 16, PlaneType::kByte, true, false, false, LevelRule::kLinear},
    {6, PlaneGrid::kFlat, 1, 48, PlaneType::kByte, true, false, false},
    {7, PlaneGrid::kOrdered, 1, 5, PlaneType::kF32, false, false, true},
    {8, PlaneGrid::kTiles, 3, 24, PlaneType::kBF16, false, false, false},
    {8, PlaneGrid::kTiles, 1, 32, PlaneType::kF16, false, false, false, LevelRule::kLinear},
    {8, PlaneGrid::kOrdered, 1, 600, PlaneType::kF16, false, true, false, LevelRule::kLinear},
    {8, PlaneGrid::kTiles, 1000, 1000, PlaneType::kF32, false, false, false},
    {8, PlaneGrid::kTiles, 1, 32, PlaneType::kF16, false, false, false, LevelRule::kSigned},
    {8, PlaneGrid::kOrdered, 1, 64, PlaneType::kF16, false, false, true, LevelRule::kSigned},
};

/// A weight of random planes.
struct Planar {
  QuantView view;
  std::vector<Buffer> parts;

  Planar(const PlanarKind& kind, int64_t rows, int64_t cols) {
    parts.reserve(16);
    view.format = PlanarFormat(kind.bits);
    view.rows = rows;
    view.cols = cols;
    Planes& planes = view.planes;
    planes.bits = static_cast<uint8_t>(kind.bits);
    planes.row_bytes = (cols * kind.bits + 7) / 8;
    planes.grid = kind.grid;
    planes.grid_rows = std::min(kind.grid_rows, rows);
    planes.grid_span = std::min(kind.grid_span, cols);
    const bool ordered = kind.grid == PlaneGrid::kOrdered;
    planes.grid_pitch = ordered ? kind.grid_span : (cols + planes.grid_span - 1) / planes.grid_span;
    int64_t entries = (rows + planes.grid_rows - 1) / planes.grid_rows * planes.grid_pitch;
    if (kind.grid == PlaneGrid::kFlat) {
      entries = (rows * cols + planes.grid_span - 1) / planes.grid_span;
    }
    if (kind.grid == PlaneGrid::kCyclic) entries = planes.grid_span;
    view.codes = Bytes(rows * planes.row_bytes);
    float* levels = Floats(view.format->levels, 1 << (kind.bits - 1));
    view.codebook = levels;
    planes.rule = kind.rule;
    planes.first_level = -5;
    for (int c = 0; c < view.format->levels; ++c) {
      if (kind.rule == LevelRule::kLinear) levels[c] = static_cast<float>(c - 5);
      if (kind.rule == LevelRule::kSigned) levels[c] = static_cast<float>(static_cast<int8_t>(c));
    }
    Scale(kind.scale, kind.outer, entries, &planes.scale);
    if (kind.min) Scale(kind.scale, kind.outer, entries, &planes.min);
    if (kind.zero) {
      planes.zero = Bytes(entries);
      planes.zero_type = PlaneType::kByte;
    }
    if (ordered) {
      auto* group = static_cast<int32_t*>(Part(static_cast<size_t>(cols) * 4));
      for (int64_t k = 0; k < cols; ++k) {
        group[k] = static_cast<int32_t>((Uniform() + 1) / 2 * static_cast<double>(kind.grid_span));
      }
      planes.group = group;
    }
  }

 private:
  void* Part(size_t bytes) {
    parts.emplace_back(bytes);
    return parts.back().data();
  }
  uint8_t* Bytes(int64_t count) {
    auto* bytes = static_cast<uint8_t*>(Part(static_cast<size_t>(count)));
    for (int64_t i = 0; i < count; ++i) bytes[i] = static_cast<uint8_t>((Uniform() + 1) * 128);
    return bytes;
  }
  float* Floats(int64_t count, double size) {
    auto* floats = static_cast<float*>(Part(static_cast<size_t>(count) * 4));
    for (int64_t i = 0; i < count; ++i) floats[i] = static_cast<float>(Uniform() * size);
    return floats;
  }
  const void* Numbers(PlaneType type, int64_t count) {
    if (type == PlaneType::kByte) return Bytes(count);
    if (type == PlaneType::kF32) return Floats(count, 1);
    const auto dtype = static_cast<DType>(type);
    void* data = Part(static_cast<size_t>(count) * 2);
    for (int64_t i = 0; i < count; ++i) StoreElement(data, dtype, i, Uniform());
    return data;
  }
  void Scale(PlaneType type, bool outer, int64_t entries, ScalePlane* plane) {
    plane->type = type;
    plane->data = Numbers(type, entries);
    if (type == PlaneType::kByte) plane->table = Floats(256, 1);
    plane->outer_span = 8;
    if (!outer) return;
    plane->outer_type = PlaneType::kF16;
    plane->outer = Numbers(PlaneType::kF16, (entries + 7) / 8);
  }
};

void CheckValues(const KernelTable& table, const RunContext& context, const std::string& what,
                 const QuantView& w, DType dtype) {
  Dense y(w.rows, w.cols, dtype);
  DequantizeOp op;
  op.w = w;
  op.y = y.view;
  Report(op.Check().ok() && table.dequantize(op, context).ok(), what + " dequantize");
  bool exact = true;
  for (int64_t i = 0; i < w.elems(); ++i) {
    exact = exact && y.At(i) == RoundTo(dtype, static_cast<double>(w.Value(i)));
  }
  Report(exact, what + " values");
}

void CheckProducts(const KernelTable& table, const RunContext& context, const std::string& what,
                   const QuantView& w, DType dtype) {
  constexpr int64_t kRows = 72;     // enough for the kernels of many rows
  constexpr int64_t kChecked = 20;  // of them, against float64
  const int64_t N = w.rows, K = w.cols;
  Dense x(kRows, K, dtype), dy(kRows, N, dtype), y(kRows, N, dtype), dx(kRows, K, dtype);
  x.Fill();
  dy.Fill();
  WeightView weight;
  weight.quant = w;
  MatmulOp forward{x.view, weight, {}, y.view};
  MatmulInputGradOp backward{dy.view, weight, dx.view};
  Report(forward.Check().ok() && table.matmul(forward, context).ok(), what + " matmul");
  Report(backward.Check().ok() && table.matmul_input_grad(backward, context).ok(), what + " dx");
  std::vector<double> values(static_cast<size_t>(N * K));
  for (int64_t i = 0; i < N * K; ++i) {
    values[static_cast<size_t>(i)] = RoundTo(dtype, static_cast<double>(w.Value(i)));
  }
  std::vector<double> sums(static_cast<size_t>(K)), sizes(static_cast<size_t>(K));
  for (int64_t m = 0; m < kChecked; ++m) {
    sums.assign(sums.size(), 0);
    sizes.assign(sizes.size(), 0);
    for (int64_t n = 0; n < N; ++n) {
      const double* row = values.data() + n * K;
      const double dy_n = dy.At(m, n);
      double sum = 0, size = 0;
      for (int64_t k = 0; k < K; ++k) {
        const double term = x.At(m, k) * row[k];
        sum += term;
        size += std::fabs(term);
        sums[static_cast<size_t>(k)] += dy_n * row[k];
        sizes[static_cast<size_t>(k)] += std::fabs(dy_n * row[k]);
      }
      Expect(what + " y", y.At(m, n), sum, size, dtype);
    }
    for (int64_t k = 0; k < K; ++k) {
      Expect(what + " dx", dx.At(m, k), sums[static_cast<size_t>(k)], sizes[static_cast<size_t>(k)],
             dtype);
    }
  }
  // Rows have the same bits in every batch, whichever kernel computes it.
  for (const auto& [first, rows] :
       {std::pair<int64_t, int64_t>{7, 1}, {70, 2}, {1, 3}, {0, 5}, {3, 7}, {60, 12}, {2, 40}}) {
    Dense some_y(rows, N, dtype), some_dx(rows, K, dtype);
    forward.x = x.view.Rows(first, rows);
    forward.y = some_y.view;
    backward.dy = dy.view.Rows(first, rows);
    backward.dx = some_dx.view;
    const std::string batch = what + " rows " + std::to_string(rows);
    Report(table.matmul(forward, context).ok() && table.matmul_input_grad(backward, context).ok(),
           batch);
    const TensorView of_y = y.view.Rows(first, rows), of_dx = dx.view.Rows(first, rows);
    Report(std::memcmp(of_y.data, some_y.view.data, of_y.bytes()) == 0, batch + " bits of y");
    Report(std::memcmp(of_dx.data, some_dx.view.data, of_dx.bytes()) == 0, batch + " bits of dx");
  }
}

}  // namespace

void CheckPlanes(const KernelTable& table, const RunContext& context) {
  for (const PlanarKind& kind : kKinds) {
    for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{5, 96},
                                     {7, 37},
                                     {40, 333},
                                     {19, 640},
                                     {37, 1216},
                                     {5, 4416}}) {
      Planar w(kind, rows, cols);
      for (DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
        const std::string what = std::string(table.isa) + " planes of " +
                                 std::to_string(kind.bits) + " bits " + std::to_string(rows) + "x" +
                                 std::to_string(cols) + " " + DTypeName(dtype);
        CheckValues(table, context, what, w.view, dtype);
        CheckProducts(table, context, what, w.view, dtype);
        // Rows of it are a weight too.
        CheckValues(table, context, what + " from row 2 on", w.view.Rows(2, rows - 2), dtype);
      }
    }
  }
}

}  // namespace lowrank::cpu
