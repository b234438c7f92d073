/// Plans of a batch whose rows have different adapters (cuda/grouped/lora_grouped_sm80.cu, and for
/// few rows cuda/grouped/lora_grouped_forward_sm90.cu): one product with the base weight for all
/// rows, and one launch per part for all adapters. If each adapter has many rows, each gets a
/// product of its own instead (plan_grouped_segments.cpp).
///
///   forward    shrink, base product, expand; on Hopper, with few rows per adapter, all three in
///              one launch
///   backward   those wanted of d_bias, dh and the sum of its slices, d_row_scale, base product,
///              dx, d_lora_a, d_lora_b
///
/// If rows have several adapters, expand and dx are launched once per adapter of a row.
///
/// With f32 activations the base product is in the output, and the last launch adds to it; with
/// 16-bit ones the workspace holds its f32 sums (PlanProductPlanes), so that an element is rounded
/// once.
#include <algorithm>
#include <cstring>

#include "native/cuda/plans/factors/plan_lora_grad.h"
#include "native/cuda/plans/ops/plan_grouped.h"
#include "native/cuda/plans/plan_cluster.h"
#include "native/cuda/plans/plan_streaming.h"
#include "native/cuda/plans/products/plan_gemm_mma.h"
#include "native/host_device/params/lora_grouped.h"

namespace lowrank::cuda {
namespace {

/// The tables, in the order in which they are uploaded.
class Tables {
 public:
  Tables(const AdapterTable& table, int64_t m_count, bool masked) {
    rows_ = WithOthers(table.rows, table.row_count, m_count);
    const int64_t slots = m_count * table.slots;
    if (table.slots > 1) gates_ = WithOthers(table.gates, table.row_count, slots);
    for (int64_t e = 0; e < table.count; ++e) {
      const AdapterRows& adapter = table.adapters[e];
      adapters_.push_back(GroupedAdapterOf(adapter, masked));
      AddTiles(static_cast<int32_t>(e), adapter.first, adapter.count);
      largest_r_ = std::max(largest_r_, adapter.r());
      largest_tile_ = std::max(largest_tile_, std::min<int64_t>(adapter.count, gpu::kGroupedTile));
    }
    with_adapter_ = static_cast<int64_t>(tiles_.size());
    AddTiles(-1, table.row_count, slots - table.row_count);
    of_slots_ = static_cast<int64_t>(tiles_.size());
    if (table.slots > 1) {
      AddLayers(table, m_count);
    } else {
      layers_.push_back({0, of_slots_});
    }
    // A tile without an adapter still reads the fields of the first one.
    if (adapters_.empty()) adapters_.push_back(gpu::GroupedAdapter{});
  }

  void Upload(gpu::GroupedParams* params, Workspace* workspace, Plan* plan) const {
    const size_t adapters = Round(adapters_.size() * sizeof(gpu::GroupedAdapter));
    const size_t tiles = Round(tiles_.size() * sizeof(gpu::GroupedRowTile));
    const size_t rows = Round(rows_.size() * sizeof(int32_t));
    const size_t gates = Round(gates_.size() * sizeof(int32_t));
    const size_t bytes = adapters + tiles + rows + gates + places_.size() * sizeof(int32_t);
    unsigned char* at = workspace->Take<unsigned char>(static_cast<int64_t>(bytes));
    plan->upload.resize(bytes);
    plan->upload_to = at;
    unsigned char* from = plan->upload.data();
    Copy(adapters_, from);
    Copy(tiles_, from + adapters);
    Copy(rows_, from + adapters + tiles);
    Copy(gates_, from + adapters + tiles + rows);
    Copy(places_, from + adapters + tiles + rows + gates);
    if (at == nullptr) return;  // only measuring the workspace
    params->adapters = reinterpret_cast<const gpu::GroupedAdapter*>(at);
    params->tiles = reinterpret_cast<const gpu::GroupedRowTile*>(at + adapters);
    params->rows = reinterpret_cast<const int32_t*>(at + adapters + tiles);
    params->gates = params->rows;
    if (gates_.empty()) return;
    params->gates = reinterpret_cast<const int32_t*>(at + adapters + tiles + rows);
    params->places = reinterpret_cast<const int32_t*>(at + adapters + tiles + rows + gates);
  }

  /// Tiles of a launch that adds to rows.
  struct Layer {
    int64_t first;
    int64_t count;
  };
  const std::vector<Layer>& layers() const { return layers_; }
  GroupedSizes sizes() const { return {with_adapter_, largest_r_, largest_tile_}; }
  int64_t tiles_with_adapter() const { return with_adapter_; }
  /// Including those of empty slots.
  int64_t tiles_of_slots() const { return of_slots_; }
  int64_t largest_r() const { return largest_r_; }
  /// Rows of the fullest tile that has an adapter.
  int64_t largest_tile() const { return largest_tile_; }

 private:
  /// One entry of each row per layer, in the order of the adapters. Every row has an entry in the
  /// last layer, because that layer finishes a row; rows without an adapter are only there.
  void AddLayers(const AdapterTable& table, int64_t m_count) {
    std::vector<int64_t> left(static_cast<size_t>(m_count), 0);
    for (int64_t i = 0; i < table.row_count; ++i) ++left[static_cast<size_t>(table.rows[i])];
    int64_t most = 1;
    for (const int64_t count : left) most = std::max(most, count);
    std::vector<std::vector<gpu::GroupedRowTile>> tiles(static_cast<size_t>(most));
    std::vector<std::vector<int32_t>> places(static_cast<size_t>(most));
    const auto add = [&](int64_t layer, int32_t adapter, int64_t place) {
      std::vector<gpu::GroupedRowTile>& own = tiles[static_cast<size_t>(layer)];
      std::vector<int32_t>& list = places[static_cast<size_t>(layer)];
      if (own.empty() || own.back().adapter != adapter || own.back().count == gpu::kGroupedTile) {
        own.push_back({adapter, 0, static_cast<int64_t>(list.size())});
      }
      ++own.back().count;
      list.push_back(static_cast<int32_t>(place));
    };
    for (int64_t e = 0; e < table.count; ++e) {
      const AdapterRows& adapter = table.adapters[e];
      for (int64_t i = adapter.first; i < adapter.first + adapter.count; ++i) {
        add(most - left[static_cast<size_t>(table.rows[i])]--, static_cast<int32_t>(e), i);
      }
    }
    for (int64_t i = table.row_count; i < static_cast<int64_t>(rows_.size()); ++i) {
      add(most - 1, -1, i);
    }
    for (int64_t layer = 0; layer < most; ++layer) {
      const auto begin = static_cast<int64_t>(places_.size());
      layers_.push_back({static_cast<int64_t>(tiles_.size()),
                         static_cast<int64_t>(tiles[static_cast<size_t>(layer)].size())});
      for (gpu::GroupedRowTile tile : tiles[static_cast<size_t>(layer)]) {
        tile.first += begin;
        tiles_.push_back(tile);
      }
      const std::vector<int32_t>& list = places[static_cast<size_t>(layer)];
      places_.insert(places_.end(), list.begin(), list.end());
    }
  }

  static size_t Round(size_t bytes) { return (bytes + 15) / 16 * 16; }
  template <typename T>
  static void Copy(const std::vector<T>& from, unsigned char* to) {
    if (!from.empty()) std::memcpy(to, from.data(), from.size() * sizeof(T));
  }
  void AddTiles(int32_t adapter, int64_t first, int64_t count) {
    for (int64_t i = 0; i < count; i += gpu::kGroupedTile) {
      const int64_t rows = std::min<int64_t>(gpu::kGroupedTile, count - i);
      tiles_.push_back({adapter, static_cast<int32_t>(rows), first + i});
    }
  }

  std::vector<gpu::GroupedAdapter> adapters_;
  std::vector<gpu::GroupedRowTile> tiles_;
  std::vector<int32_t> rows_;
  std::vector<int32_t> gates_;   // like rows_, if there is one slot per row
  std::vector<int32_t> places_;  // of the layers' tiles; none if there is one slot per row
  std::vector<Layer> layers_;
  int64_t with_adapter_ = 0;
  int64_t of_slots_ = 0;
  int64_t largest_r_ = 0;
  int64_t largest_tile_ = 0;
};

/// The launches that add to rows, add(parameters, tiles): the first adds to the base product, the
/// others to the sums of the one before.
template <typename AddFn>
Status AddRowSteps(const Tables& tables, const gpu::GroupedParams& params, const AddFn& add) {
  const std::vector<Tables::Layer>& layers = tables.layers();
  for (size_t i = 0; i < layers.size(); ++i) {
    gpu::GroupedParams one = params;
    if (one.tiles != nullptr) one.tiles += layers[i].first;
    one.partial = i + 1 < layers.size() ? 1 : 0;
    if (i > 0) {
      one.sums = one.base;
      one.sum_planes = 1;
    }
    LOWRANK_RETURN_IF_ERROR(add(one, layers[i].count));
  }
  return Status();
}

/// How grouped_forward_kernel splits a batch; no cluster if it does not take the batch.
struct ForwardCut {
  uint32_t cluster = 0;
  int64_t parts = 0;  // clusters per tile
  int64_t block_cols = 0;
  int64_t chunk_cols = 0;
  int64_t shared_bytes = 0;
};

ForwardCut CutForward(const AdapterTable& table, const Tables& tables, int64_t N,
                      const DeviceLimits& device) {
  // A thread computes a column: with fewer columns the block's h costs more than they do.
  constexpr int64_t kLeastCols = 128;
  constexpr int64_t kStep = gpu::kGroupedForwardColumnStep;
  const int64_t r = tables.largest_r();
  ForwardCut cut;
  if (!device.has_clusters() || tables.tiles_with_adapter() == 0) return cut;
  if (tables.largest_tile() > gpu::kGroupedShrinkRows || r > gpu::kGroupedForwardRanks) return cut;
  cut.cluster = r <= 4 * gpu::kGroupedForwardBlockRanks ? 4 : 8;
  // As many clusters as a device runs at once: each cluster of a tile computes h itself, and finds
  // lora_a in L2.
  int64_t most_tiles = 0;
  for (const Tables::Layer& layer : tables.layers()) most_tiles = std::max(most_tiles, layer.count);
  const int64_t at_once = ClustersAtOnce(cut.cluster, 1, device.sm_count);
  const int64_t wanted = std::max<int64_t>(at_once / most_tiles, 1);
  cut.block_cols =
      CeilDiv(std::max(CeilDiv(N, wanted * cut.cluster), std::min(kLeastCols, N)), kStep) * kStep;
  cut.parts = CeilDiv(N, cut.block_cols * cut.cluster);
  int64_t pitch = 0;
  for (int64_t e = 0; e < table.count; ++e) {
    const TensorView& b = table.adapters[e].lora_b;
    pitch = std::max(pitch, gpu::GroupedFactorPitch(table.adapters[e].r(),
                                                    static_cast<int64_t>(DTypeBytes(b.dtype))));
  }
  // A block has a multiprocessor to itself, because of its registers. The part of lora_b that does
  // not fit is loaded in turns, which wait for memory.
  constexpr auto kOwnBytes = static_cast<int64_t>(sizeof(gpu::GroupedForwardShared));
  const int64_t most = (device.shared_bytes_per_block - kOwnBytes) / pitch / kStep * kStep;
  cut.chunk_cols = std::min(cut.block_cols, most);
  cut.shared_bytes = kOwnBytes + cut.chunk_cols * pitch;
  return cut;
}

Status AddForwardStep(const char* op, const ForwardCut& cut, int64_t tiles,
                      gpu::GroupedParams params, Plan* plan) {
  params.cluster = cut.cluster;
  params.j_tiles = static_cast<uint32_t>(cut.parts) * cut.cluster;
  params.block_cols = cut.block_cols;
  params.chunk_cols = cut.chunk_cols;
  if (tiles == 0) return Status();
  LaunchStep step;
  step.kernel = "grouped_forward_kernel";
  step.threads = gpu::kGroupedShrinkThreads;
  step.cluster = cut.cluster;
  step.shared_bytes = static_cast<uint32_t>(cut.shared_bytes);
  LOWRANK_RETURN_IF_ERROR(SetGrid(op, tiles * params.j_tiles, 1, &step));
  step.SetParams(params);
  plan->steps.push_back(std::move(step));
  return Status();
}

void SetShared(const TensorView& row_scale, const TensorView& mask, uint64_t seed,
               gpu::GroupedParams* params) {
  if (row_scale.present) params->row_scale = row_scale.data;
  params->row_scale_element = LoraElementOf(row_scale.dtype);
  params->gate.seed = seed;
  if (mask.present) params->gate.mask = mask.data;
  params->gate.mask_element = LoraElementOf(mask.dtype);
}

/// Planes of the base product that are added where they are read: a plane costs loads of one
/// latency instead of a launch, but only four of them are in flight at a time.
constexpr int64_t kBasePlanes = 16;

/// The product with the base weight, into `out` if that is f32; otherwise its sums, in planes if
/// these are few.
Status PlanBase(const GemmMmaOperands& operands, const TensorView& out, const DeviceLimits& device,
                Workspace* workspace, gpu::GroupedParams* params, Plan* plan) {
  float* sums = static_cast<float*>(out.data);
  if (out.dtype != DType::kF32) sums = workspace->Take<float>(out.elems());
  params->base = sums;
  params->sums = sums;
  params->sum_planes = 1;
  if (out.dtype == DType::kF32) {
    GemmMmaOperands product = operands;
    product.y = out;
    return PlanProduct(product, device, workspace, plan);
  }
  ProductPlanes planes;
  LOWRANK_RETURN_IF_ERROR(PlanProductPlanes(operands, sums, device, workspace, plan, &planes));
  if (planes.count > kBasePlanes) {
    AppendPlaneSum(planes.planes, planes.count, out.elems(), sums, plan);
  } else if (planes.count > 1) {
    params->sums = planes.planes;
    params->sum_planes = static_cast<int32_t>(planes.count);
    params->sum_plane_elems = out.elems();
  }
  return Status();
}

}  // namespace

Status MakePlan(const GroupedForwardOp& op, const DeviceLimits& device, Workspace* workspace,
                Plan* plan) {
  if (op.y.elems() == 0) return Status();
  if (TakesSegments(op, device)) return PlanSegments(op, device, workspace, plan);
  const Tables tables(op.table, op.x.rows, op.mask.present);
  gpu::GroupedParams params{};
  SetShared(op.row_scale, op.mask, op.seed, &params);
  tables.Upload(&params, workspace, plan);
  params.x = op.x.data;
  params.x_element = LoraElementOf(op.x.dtype);
  params.h = static_cast<float*>(op.h.data);
  params.out = op.y.data;
  if (op.bias.present) params.bias = op.bias.data;
  params.bias_element = LoraElementOf(op.bias.dtype);
  params.N = op.y.cols;
  params.K = op.x.cols;
  const ForwardCut cut = CutForward(op.table, tables, params.N, device);
  if (cut.cluster == 0) {
    LOWRANK_RETURN_IF_ERROR(AddGroupedShrink(op.kName, tables.sizes(), device, params, plan));
  }
  GemmMmaOperands base;
  base.x = op.x;
  base.w = op.w;
  base.compute = op.compute;
  LOWRANK_RETURN_IF_ERROR(PlanBase(base, op.y, device, workspace, &params, plan));
  return AddRowSteps(tables, params, [&](const gpu::GroupedParams& one, int64_t tiles) {
    if (cut.cluster != 0) return AddForwardStep(op.kName, cut, tiles, one, plan);
    return AddGroupedStep(op.kName, "grouped_expand_kernel", tiles, 1, one.N, one, plan);
  });
}

Status MakePlan(const GroupedBackwardOp& op, const DeviceLimits& device, Workspace* workspace,
                Plan* plan) {
  if (op.d_bias.present) {
    LoraExpandBackwardOp sums;
    sums.dy = op.dy;
    sums.d_bias = op.d_bias;
    sums.accumulate_d_bias = op.accumulate_d_bias;
    LOWRANK_RETURN_IF_ERROR(MakePlan(sums, device, workspace, plan));
  }
  bool needs_a = false;
  bool needs_b = false;
  for (int64_t e = 0; e < op.table.count; ++e) {
    const AdapterRows& adapter = op.table.adapters[e];
    needs_a = needs_a || adapter.d_lora_a.elems() > 0;
    needs_b = needs_b || adapter.d_lora_b.elems() > 0;
  }
  const bool needs_dx = op.dx.elems() > 0;
  const bool needs_gates = op.d_row_scale.elems() > 0;
  if (!needs_a && !needs_b && !needs_dx && !needs_gates) return Status();
  if (TakesSegments(op, device)) return PlanSegments(op, device, workspace, plan);
  const Tables tables(op.table, op.dy.rows, op.mask.present);
  gpu::GroupedParams params{};
  SetShared(op.row_scale, op.mask, op.seed, &params);
  tables.Upload(&params, workspace, plan);
  params.x = op.x.data;
  params.dy = op.dy.data;
  params.x_element = LoraElementOf(op.dy.dtype);
  params.h = static_cast<float*>(op.h.data);
  params.out = op.dx.data;
  params.N = op.dy.cols;
  params.K = op.in_features;
  if (needs_a || needs_dx || needs_gates) {
    params.dh = workspace->Take<float>(op.table.h_elems);
    if (needs_gates) params.u = workspace->Take<float>(op.table.h_elems);
    LOWRANK_RETURN_IF_ERROR(
        AddGroupedDh(op.kName, tables.sizes(), op.table.h_elems, params, workspace, plan));
  }
  if (needs_gates) {
    gpu::GroupedParams gates = params;
    gates.d_row_scale = op.d_row_scale.data;
    gates.d_row_scale_element = LoraElementOf(op.d_row_scale.dtype);
    gates.accumulate = op.accumulate_d_row_scale ? 1 : 0;
    // One tile per block: one tile of one column.
    LOWRANK_RETURN_IF_ERROR(AddGroupedStep(op.kName, "grouped_gates_kernel",
                                           tables.tiles_of_slots(), 1, 1, gates, plan));
    plan->steps.back().shared_bytes = 0;  // its sums stay in registers
  }
  if (needs_dx) {
    GemmMmaOperands base;
    base.x = op.dy;
    base.w = op.w;
    base.w_transposed = true;
    base.accumulate = op.accumulate_dx;  // into f32 dx at once; else below
    LOWRANK_RETURN_IF_ERROR(PlanBase(base, op.dx, device, workspace, &params, plan));
    params.accumulate = op.accumulate_dx && op.dx.dtype != DType::kF32 ? 1 : 0;
    LOWRANK_RETURN_IF_ERROR(
        AddRowSteps(tables, params, [&](const gpu::GroupedParams& one, int64_t tiles) {
          return AddGroupedStep(op.kName, "grouped_dx_kernel", tiles, 1, one.K, one, plan);
        }));
  }
  if (needs_a) {
    LOWRANK_RETURN_IF_ERROR(AddGroupedStep(op.kName, "grouped_da_kernel", op.table.count,
                                           tables.largest_r(), params.K, params, plan));
  }
  if (!needs_b) return Status();
  return AddGroupedStep(op.kName, "grouped_db_kernel", op.table.count, params.N,
                        tables.largest_r() + 1, params, plan);
}

}  // namespace lowrank::cuda
