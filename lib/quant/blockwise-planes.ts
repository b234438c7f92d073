/**
 * Planar weights that are blockwise ones under another name: one scale for each block of a power of two of a row, and no
 * zero-points. The kernels of blockwise formats decode them in fewer steps.
 */

import { entryValues } from '../checkpoint/planar/decode.js';
import type { Grid, PlanarWeight, ZeroPlane } from '../checkpoint/planar/planar-weight.js';
import { native } from '../core/binding.js';
import { formatOf, type QuantFormat } from '../core/formats.js';

/** Parts of the addon's `weightFromParts`. */
export interface BlockwisePlanes {
  /** The native row of its width; levels and scales are the weight's own. */
  readonly format: QuantFormat;
  readonly blocksize: number;
  readonly codes: Uint8Array;
  readonly codebook: Float32Array;
  readonly absmax: Float32Array;
}

/** The number that all zero-points are, 0 without any; undefined if they differ. */
function oneZero(zero: ZeroPlane | undefined): number | undefined {
  if (zero === undefined) return 0;
  if (zero.dtype !== 'u8') return undefined;
  const [first = 0] = zero.data;
  for (let i = 0; i < zero.data.length; i++) if (zero.data[i] !== first) return undefined;
  return first;
}

/** Elements of a block: the largest power of two that the format has and that K and the groups are multiples of. */
function blockOf(grid: Grid, K: number, most: number, least: number): number | undefined {
  if (grid.kind !== 'tiles') return undefined;
  const span = Math.min(grid.columns, K);
  let block = most;
  while (block >= least && (K % block !== 0 || span % block !== 0)) block /= 2;
  return block >= least ? block : undefined;
}

/** The blockwise form of a weight, or undefined if it has none with the same values. */
export function blockwiseOf(weight: PlanarWeight): BlockwisePlanes | undefined {
  const { rows: N, columns: K, bits, codes, levels, grid, scale, min } = weight;
  const zero = oneZero(weight.zero);
  const format: QuantFormat = bits <= 4 ? 'int4' : 'int8';
  const { minBlocksize, maxBlocksize, levels: count } = formatOf(format);
  const blocksize = blockOf(grid, K, maxBlocksize, minBlocksize);
  if (min !== undefined || zero === undefined || blocksize === undefined) return undefined;
  if (grid.kind !== 'tiles' || levels.length > count) return undefined;
  const scales = entryValues(scale);
  const [blocks, pitch] = [K / blocksize, Math.ceil(K / grid.columns)];
  const absmax = new Float32Array(N * blocks);
  for (let n = 0; n < N; n++) {
    const row = Math.floor(n / grid.rows) * pitch;
    for (let b = 0; b < blocks; b++) {
      absmax[n * blocks + b] = scales[row + Math.floor((b * blocksize) / grid.columns)] as number;
    }
  }
  const codebook = new Float32Array(count);
  levels.forEach((level, code) => {
    codebook[code] = level - zero;
  });
  return { format, blocksize, codes: bits <= 4 ? pairsOf(codes) : codes, codebook, absmax };
}

/** Two codes a byte, the first in the high half. K of a blockwise weight is even. */
function pairsOf(codes: Uint8Array): Uint8Array {
  const pairs = new Uint8Array(codes.length / 2);
  native('fromPlanes', (addon) => addon.packPairs(codes, pairs, addon.threads()));
  return pairs;
}
