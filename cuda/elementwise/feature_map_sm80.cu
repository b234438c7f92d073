/// A fixed 0/1 map of features:
///
///   y[m, j] = alpha · Σ x[m, t] over t of list j + beta · c[m, j]
///
/// Operands   x [rows, inputs] · c, y [rows, outputs], each of its own type · lists as
///            FeatureMapView says, checked when the map was made
/// Grid       (ceil(outputs / lists of a block), rows in turns); a block is 2^cols_log2 lists by
///            256 / 2^cols_log2 rows, so that few lists leave no lane without work. A thread keeps
///            its list for all of its rows.
/// Numerics   a list's sum in double, ascending, rounded to f32; then alpha, beta and c in f32 in
///            the order of the formula, one rounding: the bits of every other device but reference
/// Needs      nothing: elements go one by one
///
/// Budget     a permutation of bf16: 4 bytes an element and 4 of the index for each turn of rows. A
///            warp's store is one run, its load a gather within a row: where that row (8 KB at
///            4,096 features) is read by neighbouring warps it comes from L1, one wavefront for
///            each line of 128 bytes that the lanes touch, 32 at worst. At 3.0 TB/s each of 132
///            multiprocessors sees 3.2 elements a clock, at worst 3.2 wavefronts of the one that L1
///            gives: random permutations of whole rows run at a third of the memory's rate, slices,
///            repeats and transpositions at its full rate. Layers permute M · K elements beside
///            products of M · N · K.
#include "cuda/common/small_operand.cuh"
#include "native/host_device/params/feature_map.h"

namespace lowrank::gpu {
namespace {

constexpr int kThreads = kFeatureMapThreads;

LOWRANK_DEVICE void StoreMapped(const MapFeaturesParams& p, int64_t at, float sum) {
  float value = p.alpha * sum;
  if (p.c != nullptr) value += p.beta * LoadSmall(p.c_element, p.c, at);
  StoreSmall(p.y_element, p.y, at, value);
}

LOWRANK_DEVICE void MapFeaturesBody(const MapFeaturesParams& p) {
  const int thread = static_cast<int>(threadIdx.x);
  const int cols = 1 << p.cols_log2;
  const int64_t list = (static_cast<int64_t>(blockIdx.x) << p.cols_log2) + (thread & (cols - 1));
  if (list >= p.outputs) return;
  const int64_t block_rows = kThreads >> p.cols_log2;
  const int64_t first = blockIdx.y * block_rows + (thread >> p.cols_log2);
  const int64_t step = gridDim.y * block_rows;
  if (p.begin == nullptr) {
    const int32_t from = p.index[list];
    for (int64_t row = first; row < p.rows; row += step) {
      const float value = from < 0 ? 0.0f : LoadSmall(p.x_element, p.x, row * p.inputs + from);
      StoreMapped(p, row * p.outputs + list, value);
    }
    return;
  }
  const int32_t begin = p.begin[list];
  const int32_t end = p.begin[list + 1];
  for (int64_t row = first; row < p.rows; row += step) {
    // Starts at -0, the only value that changes no sum.
    double sum = begin == end ? 0.0 : -0.0;
    for (int32_t i = begin; i < end; ++i) {
      sum += static_cast<double>(LoadSmall(p.x_element, p.x, row * p.inputs + p.index[i]));
    }
    StoreMapped(p, row * p.outputs + list, static_cast<float>(sum));
  }
}

}  // namespace

LOWRANK_KERNEL(map_features_kernel, MapFeaturesParams, kThreads, 4) { MapFeaturesBody(p); }

}  // namespace lowrank::gpu
