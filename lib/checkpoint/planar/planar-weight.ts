/**
 * The one form of a quantised weight that kernels see, whatever file it came from. A codec
 * (lib/checkpoint/codecs) turns the tensors of a layer into it and back.
 *
 * Planes keep the numbers of the file: a scale that is a product of a 6-bit integer and an f16 stays
 * two numbers, so that writing gives the bytes back.
 */

/** Numbers of a plane as they are stored. `u8` values are looked up in a table. */
export type PlaneValues =
  | { readonly dtype: 'f32'; readonly data: Float32Array }
  | { readonly dtype: 'f16' | 'bf16'; readonly data: Uint16Array }
  | { readonly dtype: 'u8'; readonly data: Uint8Array; readonly table: Float32Array };

/**
 * A plane of scales or minima on the weight's grid.
 *
 * `value(i) = own(i)`, or with `outer` `f32(own(i) · outer(floor(i / outer.span)))`, or with `offset` that plus the
 * offset. Each operation is rounded to f32.
 */
export interface ScalePlane {
  readonly values: PlaneValues;
  /** Factors that `span` consecutive entries share. */
  readonly outer?: { readonly values: PlaneValues; readonly span: number };
  /** Added to the product (bitsandbytes' double quantisation). */
  readonly offset?: number;
}

/** Zero-points on the weight's grid, in steps of a code. `f16` and `f32` may be fractions (HQQ). */
export type ZeroPlane =
  | { readonly dtype: 'u8'; readonly data: Uint8Array }
  | { readonly dtype: 'f16' | 'bf16'; readonly data: Uint16Array }
  | { readonly dtype: 'f32'; readonly data: Float32Array };

/**
 * Which entry of a plane belongs to element (n, k).
 *
 * - `tiles`: `floor(n / rows) · pitch + floor(k / columns)` with `pitch = ceil(K / columns)`. Groups of a row have `rows: 1`,
 *   a scale a row has `columns: K`, one for the tensor has `rows: N` too.
 * - `flat`: `floor((n · K + k) / span)`, across the ends of rows.
 * - `ordered`: `n · groups + group[k]` (GPTQ's act-order).
 * - `cyclic`: `(n · K + k) mod period`, where the elements of a group lie in different rows (HQQ's axis 0).
 */
export type Grid =
  | { readonly kind: 'tiles'; readonly rows: number; readonly columns: number }
  | { readonly kind: 'flat'; readonly span: number }
  | { readonly kind: 'ordered'; readonly groups: number; readonly group: Int32Array }
  | { readonly kind: 'cyclic'; readonly period: number };

/**
 * A quantised weight [N, K]:
 *
 * `w[n, k] = levels[c] · s`, with `zero` `(levels[c] − z) · s`, with `min` `levels[c] · s − m`
 *
 * where c is the code of (n, k), and s, z and m are the values of its entry. All in f32, each operation rounded by itself.
 * A weight has `zero` or `min` or neither.
 */
export interface PlanarWeight {
  /** N */
  readonly rows: number;
  /** K */
  readonly columns: number;
  /** Bits of a code, 1 to 8. */
  readonly bits: number;
  /** [N · K], one code a byte, each below `2 ** bits`. */
  readonly codes: Uint8Array;
  /** [2 ** bits], the value of each code. NaN codes of fp8 are NaN. */
  readonly levels: Float32Array;
  readonly grid: Grid;
  readonly scale: ScalePlane;
  readonly zero?: ZeroPlane;
  readonly min?: ScalePlane;
}

/** Number of entries of each plane of a weight. */
export function entriesOf({
  rows,
  columns,
  grid,
}: Pick<PlanarWeight, 'rows' | 'columns' | 'grid'>): number {
  switch (grid.kind) {
    case 'tiles':
      return Math.ceil(rows / grid.rows) * Math.ceil(columns / grid.columns);
    case 'flat':
      return Math.ceil((rows * columns) / grid.span);
    case 'ordered':
      return rows * grid.groups;
    case 'cyclic':
      return grid.period;
  }
}
