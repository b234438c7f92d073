/// The products of a layer of experts on tensor cores: those of matmul_mma_sm80.cu, for every
/// expert with its own slots, in one launch.
///
///   experts         y[s]  = x[row of s] · w_eᵀ + bias_e + scaling · (h[s] · lora_b_eᵀ)
///   experts_grad    dx[s] = dy[s] · w_e + dh[s] · lora_a_e
///
/// for the slots s of each expert e; 0 for slots without one.
///
/// Operands   x [rows, K], dy [slots, N], y, dx T · w [E · N, K] as there · offsets, order i32 · h,
/// dh
///            [slots, r] f32 · lora_b [E · N, r] or [N, r], lora_a [E · r, K] or [r, K], bias [E,
///            N]
/// Grid       (tiles of rows, tiles of columns): a block finds its expert and rows from the
/// offsets.
///            The host knows the slots, not whose they are: slots / kTileM + E + 1 tiles of rows at
///            most, and those that are too many end at once
/// Numerics   those of the body. The reduction is not split, so a slot's bits depend on its row and
///            its expert alone
/// Needs      as there, and experts that begin with a block of scales
///
/// Rows of x that lie apart are copied from where they are: each thread keeps the numbers of the 4
/// or 8 rows whose pieces it copies, so that the main loop is that of a whole product.
///
/// Budget     The body's. Before it come two dependent reads (offsets, order: some 1,200 clk, 3.5 %
///            of a tile of 32 slabs) and 5 shuffles for each 32 experts. Padding to rows of 128 or
///            64: at 48 rows an expert 2.33 or 1.67 of the products, at 128 1.50 or 1.25, at 512
///            1.12 or 1.06. w_e comes from L2 for all but its first tile of rows.
#include "cuda/experts/expert_tiles.cuh"
#include "cuda/mma/gemm_mma.cuh"

namespace lowrank::gpu {
namespace {

/// The rows of x of a tile of slots.
template <typename Tile>
class SlotRows {
  static constexpr int kPieces = 8;  // of 16 bytes, of a row of a slab
  static constexpr int kRowStep = Tile::kThreads / kPieces;
  static constexpr int kCopies = Tile::kTileM / kRowStep;
  // The rows of a thread's copies then have the same swizzle.
  static_assert(kRowStep % 8 == 0 && Tile::kTileM % kRowStep == 0);

 public:
  __device__ __forceinline__ SlotRows(const ExpertSlots& slots, const ExpertTile& tile)
      : slots_(slots), first_(tile.first) {
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      const int row = static_cast<int>(threadIdx.x) / kPieces + i * kRowStep;
      rows_[i] = row < tile.count ? RowOfSlot(slots, tile.first + row) : -1;
    }
  }

  __device__ __forceinline__ int64_t Of(int row) const { return RowOfSlot(slots_, first_ + row); }

  __device__ __forceinline__ void Copy(const GemmMmaParams& p, int64_t R, int64_t r0,
                                       unsigned char* s_x) const {
    const int piece = static_cast<int>(threadIdx.x) % kPieces;
    const int64_t at = r0 + piece * 8;
    const uint16_t* g_x = static_cast<const uint16_t*>(p.x);
    unsigned char* s_to = s_x + SwizzledOffset<128>(static_cast<int>(threadIdx.x) / kPieces, piece);
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      const bool inside = rows_[i] >= 0 && at < R;
      CpAsync16(s_to + i * kRowStep * 128, inside ? g_x + rows_[i] * R + at : g_x, inside ? 16 : 0);
    }
  }

 private:
  const ExpertSlots& slots_;
  int32_t first_;
  int32_t rows_[kCopies];
};

template <WeightFormat kFormat, typename Element, typename Tile>
LOWRANK_DEVICE void ExpertsMmaBody(const ExpertsMmaParams& p) {
  const GemmMmaParams& all = p.product;
  const int64_t p0 = blockIdx.x % all.tiles_p * Tile::kTileP;
  const ExpertTile tile = FindExpertTile(p.slots, Tile::kTileM, blockIdx.x / all.tiles_p);
  if (tile.count == 0) {
    GridDependencyWait();
    return;
  }
  const int64_t first = tile.first;
  GemmMmaParams own = all;
  own.M = tile.count;
  own.y = static_cast<uint16_t*>(all.y) + first * (Tile::kTransposed ? all.K : all.N);
  own.h = all.h == nullptr ? nullptr : all.h + first * all.r;
  if (tile.expert == p.slots.experts) {
    own.slabs_per_split = 0;
    own.split_pairs = 0;
    own.bias = nullptr;
  } else {
    const int64_t expert = tile.expert;
    own.w = WeightFrom(all.w, expert * all.N * all.K);
    own.bias = ElementsFrom(all.bias, all.bias_dtype, expert * all.N);
    if (!p.shared_factor) {
      own.factor = ElementsFrom(all.factor, all.factor_dtype,
                                expert * all.r * (Tile::kTransposed ? all.K : all.N));
    }
  }
  if constexpr (Tile::kTransposed) {
    own.x = static_cast<const uint16_t*>(all.x) + first * all.N;
    GemmMmaBlock<kFormat, Element, Tile>(own, 0, p0, NeighbourRows<Tile>{0});
  } else {
    GemmMmaBlock<kFormat, Element, Tile>(own, 0, p0, SlotRows<Tile>(p.slots, tile));
  }
}

}  // namespace

#define LOWRANK_EXPERTS_MMA_KERNEL(op, transposed, format, kFormat, bits, dtype, Element, tile_m,  \
                                   tile_p, stages, min_blocks)                                     \
  LOWRANK_EARLY_KERNEL(op##_mma_##format##_##dtype##_##tile_m##x##tile_p##_kernel,                 \
                       ExpertsMmaParams, (GemmTile<tile_m, tile_p, stages, transposed>::kThreads), \
                       min_blocks) {                                                               \
    ExpertsMmaBody<WeightFormat::kFormat, Element, GemmTile<tile_m, tile_p, stages, transposed>>(  \
        p);                                                                                        \
  }
LOWRANK_EXPERTS_MMA_KERNELS(LOWRANK_EXPERTS_MMA_KERNEL)

}  // namespace lowrank::gpu
