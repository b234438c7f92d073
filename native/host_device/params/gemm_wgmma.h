/// Parameters of cuda/wgmma/gemm_wgmma_sm90a.cu, shared by the kernels and their plan.
#pragma once

#include <cstdint>

#include "native/host_device/params/lora_shrink.h"
#include "native/host_device/params/parts/tensor_map.h"

namespace lowrank::gpu {

/// Rows of a tile, elements of K per stage, blocks of a cluster (which share a column tile),
/// threads.
constexpr uint32_t kWgmmaTileM = 128;
constexpr uint32_t kWgmmaTileK = 64;  // 128 bytes, the widest swizzle
constexpr uint32_t kWgmmaCluster = 2;
constexpr uint32_t kWgmmaThreads = 384;
constexpr uint32_t kWgmmaPrepareThreads = 256;
constexpr uint32_t kPanelCodebookBytes = 256 * 4;

/// For h computed by the products: maximum rows of a unit in fragments of 16, warps that share it
/// and their barrier, elements of K per chunk, ranks of a unit up to r = 16 and beyond, columns of
/// eight ranks whose sums are combined in shared memory at a time.
constexpr uint32_t kShrinkFragments = 2;
constexpr uint32_t kShrinkRows = 16 * kShrinkFragments;
constexpr uint32_t kShrinkWarps = 3;
constexpr uint32_t kShrinkBarrier = 1;
constexpr uint32_t kShrinkChunkK = 32;
constexpr uint32_t kShrinkNarrowRanks = 16;
constexpr uint32_t kShrinkWideRanks = 32;
constexpr uint32_t kShrinkSumTiles = 2;
constexpr uint32_t kShrinkSharedBytes = kShrinkWarps * kShrinkSumTiles * 32 * 16 + 16;
/// Parts of an element of lora_a: one for bf16, otherwise three.
constexpr uint32_t kShrinkFactorParts = 3;

/// For gradients computed by the products: columns of a unit, rows per step, columns of eight
/// ranks.
constexpr uint32_t kRowGradCols = 64;
constexpr uint32_t kRowGradRows = 16;
constexpr uint32_t kRowGradTilesJ = 2;
constexpr uint32_t kRowGradRanks = 8 * kRowGradTilesJ;

/// Dynamic shared memory of the products: stages of x and w, 16 rows of 72 elements per consumer
/// warp, the codebook, the sums of h, two barriers per stage; padded to the 1,024 bytes of the
/// swizzle.
constexpr uint32_t WgmmaSharedBytes(uint32_t tile_n, uint32_t stages) {
  return (stages * (kWgmmaTileM + tile_n) * kWgmmaTileK * 2 + 8 * 16 * 72 * 2 +
          kPanelCodebookBytes + kShrinkSharedBytes + stages * 16 + 1023) /
         1024 * 1024;
}

/// The source of the elements of a 16-bit panel.
enum class PanelSource : uint32_t { kNone, kF32, kBF16, kF16, kCodes4, kCodes8 };

/// How the elements of a panel are read: one at a time, or eight neighbours of the source at a
/// time, which are neighbours in the panel's rows or, transposed, in its columns. Eight need a
/// source that is 16-byte aligned and has rows and blocks of multiples of eight.
enum class PanelPath : uint32_t { kElements, kRows, kTurned };

/// A part of a matrix, to be written as T with rows `stride_elems` apart: element (row, col) is
/// element first_elem + row · row_step + col · col_step of the source. A part of w: row_step K,
/// col_step 1; of wᵀ: row_step 1, col_step K.
struct PanelFill {
  void* target = nullptr;  // T, 16-byte aligned
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride_elems = 0;  // a multiple of 8
  int64_t first_elem = 0;
  int64_t row_step = 0;
  int64_t col_step = 1;
  const void* source = nullptr;  // elements, or codes
  PanelSource kind = PanelSource::kNone;
  uint32_t blocksize_log2 = 0;
  uint32_t nested_blocksize_log2 = 0;
  PanelPath path = PanelPath::kElements;
  const float* codebook = nullptr;
  const float* absmax = nullptr;  // null with double quantisation
  const uint8_t* absmax_8bit = nullptr;
  const float* absmax_codebook = nullptr;
  const float* nested_absmax = nullptr;
  const float* absmax_offset = nullptr;
};

/// A matrix as bf16 parts side by side: target[row, pair · r_padded + ri], zero for ri >= r, is the
/// part for that pair (params/lora_pairs.h) of scale · source, whose element (row, ri) is at row ·
/// row_step + ri · rank_step.
struct SplitFill {
  void* target = nullptr;  // bf16 [rows, pairs · r_padded]
  const void* source = nullptr;
  PanelSource kind = PanelSource::kNone;  // kF32, kBF16 or kF16
  int64_t rows = 0;
  int64_t row_step = 0;
  int64_t rank_step = 1;
  uint32_t r = 0;
  uint32_t r_padded = 0;  // a multiple of 8
  uint32_t pairs = 0;
  uint32_t parts = 0;  // kPartsOfH or kPartsOfFactor
  float scale = 1;
};

/// addend[n] = bias[n] + scaling · lora_bias[n]
struct AddendFill {
  float* target = nullptr;
  int64_t N = 0;
  const void* bias = nullptr;
  const void* lora_bias = nullptr;
  PanelSource bias_kind = PanelSource::kNone;
  PanelSource lora_bias_kind = PanelSource::kNone;
  float scaling = 0;
};

/// The elements of columns [32 · first_word, 32 · (first_word + words)) that the gate keeps: bit b
/// of word i of a row is for column 32 i + b. Undefined if there is no such column.
struct KeptFill {
  uint32_t* target = nullptr;  // [rows, row_words]; null: no gate
  int64_t rows = 0;
  int64_t cols = 0;  // of the gated matrix
  uint32_t row_words = 0;
  uint32_t first_word = 0;
  uint32_t words = 0;
  LoraGate gate;
};

/// h = scale · (gate ⊙ x) · lora_aᵀ, computed by the product kernels: in f32, and as the parts that
/// they multiply. For the input gradient this is dh = scaling · dy · lora_b: x is dy, lora_a is
/// lora_bᵀ.
struct RowShrink {
  const void* x = nullptr;       // T [rows, cols], rows 16-byte aligned; null: h stands already
  const void* lora_a = nullptr;  // bf16 [r, parts, cols], rows 16-byte aligned: a factor in parts
  float* h = nullptr;            // [rows, r]
  SplitFill split;               // of h, which is its source
  // Counters that the previous launch has zeroed: of units started, and of units finished in each
  // row tile.
  uint32_t* next_unit = nullptr;
  uint32_t* done_units = nullptr;
  int64_t rows = 0;
  int64_t cols = 0;
  uint32_t parts = 1;         // or kShrinkFactorParts
  uint32_t groups = 1;        // units of the same rows: of up to 16 ranks, else of 32 ranks each
  uint32_t small_blocks = 0;  // the first of a unit's rows, 16 of them each; a multiple of 8
  float scale = 1;
  LoraGate gate;
  KeptFill kept;  // of the products' gate, a unit's rows with its h
};

/// The gradient of a factor, as planes that are sums over the rows of one split each, computed by
/// the product kernels for a range of the columns of x:
///
///   planes[s](c, j) = Σ_m (kept ⊙ x)(m, c) · factor(m, j),   m in split s
struct RowGrad {
  const void* x = nullptr;        // T [rows, cols], rows 16-byte aligned; null: nothing to do
  const float* factor = nullptr;  // [rows, r]: h, or dh
  float* planes = nullptr;  // (c, j) of split s at s · plane_elems + c · c_elems + j · j_elems
  const uint32_t* kept = nullptr;  // [rows, kept_words], as KeptFill; null: all
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t rows_per_split = 0;  // a multiple of kRowGradRows
  int64_t plane_elems = 0;
  int64_t c_elems = 0;  // 1 or r
  int64_t j_elems = 0;  // cols or 1
  uint32_t kept_words = 0;
  uint32_t r = 0;
  uint32_t splits = 0;
  uint32_t first_block = 0;  // of this launch, of kRowGradCols columns
  uint32_t blocks = 0;
};
constexpr uint32_t kRowGrads = 2;

/// Work that must be complete before the first product.
struct GemmWgmmaPrepareParams {
  PanelFill panel;   // of w
  PanelFill x;       // where x itself cannot be read by TMA
  SplitFill factor;  // lora_a, or lora_b turned, in parts, where h is computed beside the products
  SplitFill h;       // [M]
  SplitFill lora_b;  // [N]
  AddendFill addend;
  KeptFill kept;                 // of the first panel, where h is given
  uint32_t* counters = nullptr;  // to be zeroed
  uint32_t counter_count = 0;
};

/// y[:, first_n .. first_n + panel_n) for one panel of w. For the input gradient y is dx, x is dy,
/// w is wᵀ [K, N], h is dh and lora_b is lora_aᵀ, so N and K here are K and N of the layer.
struct GemmWgmmaParams {
  TensorMap x_map;                 // T [M, K], box [kTileM, 64]
  TensorMap w_map;                 // T [panel_n, K], box [kTileN / 2, 64]
  TensorMap h_map;                 // bf16 [M, slab_k]
  TensorMap lora_b_map;            // bf16 [panel_n, slab_k]
  void* y = nullptr;               // T [M, N]
  const float* addend = nullptr;   // f32 [N] or null
  const uint32_t* kept = nullptr;  // [M, kept_words], from the panel's first column on: what the
                                   // adapter's term counts for, as KeptFill; null: all
  uint32_t kept_words = 0;         // of a row
  uint32_t accumulate = 0;         // add to what y holds
  int64_t M = 0;
  int64_t N = 0;
  int64_t first_n = 0;
  int64_t panel_n = 0;
  uint32_t tiles_m = 0;      // pairs of kTileM rows
  uint32_t tiles_n = 0;      // of this panel
  uint32_t k_blocks = 0;     // of 64, of x and w
  uint32_t slab_blocks = 0;  // of 64, of h and lora_b
  uint32_t slab_steps = 0;   // of 16 of them
  uint32_t y_vector = 0;     // y's rows are 16-byte aligned and N a multiple of 8
  PanelFill next_panel;      // filled beside the products
  KeptFill next_kept;
  RowShrink shrink;          // of the first panel's launch
  RowGrad grads[kRowGrads];  // the share of this launch
};

}  // namespace lowrank::gpu
