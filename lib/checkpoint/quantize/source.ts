/** A weight to quantise, and loops over the elements that share a scale. */
import { halfBits, halfValue } from '../gguf/quantize/half.js';
import type { Grid, PlaneValues } from '../planar/planar-weight.js';

/** The dtypes in which peers compute. */
export type SourceDType = 'F32' | 'BF16' | 'F16';

/** A weight [N, K] with finite values. */
export interface Source {
  readonly values: Float32Array;
  readonly rows: number;
  readonly columns: number;
  readonly dtype: SourceDType;
}

/** Rows and columns that share a scale. */
export type Tiles = Extract<Grid, { readonly kind: 'tiles' }>;

export const tiles = (rows: number, columns: number): Tiles => ({ kind: 'tiles', rows, columns });

const kFloat = new Float32Array(1);
const kBits = new Uint32Array(kFloat.buffer);

/** The bits of a finite number in bf16, to nearest even. */
function bf16Bits(value: number): number {
  kFloat[0] = value;
  const bits = kBits[0] as number;
  return (bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16;
}

function bf16Value(bits: number): number {
  kBits[0] = bits << 16;
  return kFloat[0] as number;
}

/** Rounds a number as an operation in a dtype does. */
export const roundTo: Readonly<Record<SourceDType, (value: number) => number>> = {
  F32: Math.fround,
  BF16: (value) => (Number.isFinite(value) ? bf16Value(bf16Bits(value)) : value),
  F16: (value) => {
    const bits = halfBits(value);
    // From 65,520 on f16 has no finite number.
    return (bits & 0x7c00) === 0x7c00
      ? Math.sign(value) * Number.POSITIVE_INFINITY
      : halfValue(bits);
  },
};

/** The distance from 1 to the next number of a dtype. */
export const epsilonOf: Readonly<Record<SourceDType, number>> = {
  F32: 2 ** -23,
  BF16: 2 ** -7,
  F16: 2 ** -10,
};

/** Numbers of a dtype as a plane has them. */
export function planeOf(dtype: SourceDType, values: Float32Array): PlaneValues {
  if (dtype === 'F32') return { dtype: 'f32', data: values };
  const bitsOf = dtype === 'BF16' ? bf16Bits : halfBits;
  return { dtype: dtype === 'BF16' ? 'bf16' : 'f16', data: Uint16Array.from(values, bitsOf) };
}

/** Calls `visit` with every run of elements of one tile: from, to, tile. */
export function visitTiles(
  { rows: N, columns: K }: Pick<Source, 'rows' | 'columns'>,
  { rows, columns }: Tiles,
  visit: (from: number, to: number, tile: number) => void,
): void {
  const pitch = Math.ceil(K / columns);
  for (let n = 0; n < N; n++) {
    let tile = Math.floor(n / rows) * pitch;
    for (let k = 0; k < K; k += columns) {
      visit(n * K + k, n * K + Math.min(k + columns, K), tile++);
    }
  }
}

/** Number of tiles. */
export const tileCount = ({ rows, columns }: Pick<Source, 'rows' | 'columns'>, grid: Tiles) =>
  Math.ceil(rows / grid.rows) * Math.ceil(columns / grid.columns);

/** The largest magnitude of each tile. */
export function tileMaxima(source: Source, grid: Tiles): Float32Array {
  const { values } = source;
  const maxima = new Float32Array(tileCount(source, grid));
  visitTiles(source, grid, (from, to, tile) => {
    let most = maxima[tile] as number;
    for (let i = from; i < to; i++) {
      const size = Math.abs(values[i] as number);
      if (size > most) most = size;
    }
    maxima[tile] = most;
  });
  return maxima;
}

/** The least and the largest number of each tile, 0 among them. */
export function tileRanges(source: Source, grid: Tiles) {
  const { values } = source;
  const least = new Float32Array(tileCount(source, grid));
  const most = new Float32Array(least.length);
  visitTiles(source, grid, (from, to, tile) => {
    let [low, high] = [least[tile] as number, most[tile] as number];
    for (let i = from; i < to; i++) {
      const value = values[i] as number;
      if (value < low) low = value;
      if (value > high) high = value;
    }
    least[tile] = low;
    most[tile] = high;
  });
  return { least, most };
}

/** A code for every element, by its value and its tile. */
export function encodeTiles(
  source: Source,
  grid: Tiles,
  encode: (value: number, tile: number) => number,
): Uint8Array {
  const { values } = source;
  const codes = new Uint8Array(values.length);
  visitTiles(source, grid, (from, to, tile) => {
    for (let i = from; i < to; i++) codes[i] = encode(values[i] as number, tile);
  });
  return codes;
}
