import { native } from '../core/binding.js';
import { fail, wrongType } from '../core/errors.js';

/** Codes of one byte and the scale of each block. */
export interface CodebookCodes {
  readonly codes: Uint8Array;
  readonly absmax: Float32Array;
}

/** 256 ascending levels within ±1. @throws ERR_TYPE, ERR_SHAPE, ERR_VALUE */
export function checkCodebook(op: string, codebook: unknown): Float32Array {
  if (!(codebook instanceof Float32Array)) {
    throw wrongType(op, 'codebook', 'a Float32Array', codebook);
  }
  if (codebook.length !== 256) {
    fail('ERR_SHAPE', op, 'codebook', 'of 256 levels', String(codebook.length));
  }
  codebook.forEach((level, i) => {
    const above = i === 0 || level > (codebook[i - 1] as number);
    if (!(above && Math.abs(level) <= 1)) {
      fail('ERR_VALUE', op, 'codebook', 'ascending, within ±1', `${level} at ${i}`);
    }
  });
  return codebook;
}

let dynamicMap: Float32Array | undefined;

/** Is this the table that the int8 format encodes by itself (Dettmers' dynamic map)? */
export function isDynamicMap(op: string, codebook: Float32Array): boolean {
  dynamicMap ??= native(op, (raw) => raw.formats().find(({ name }) => name === 'int8'))?.codebook;
  return codebook.every((level, i) => level === dynamicMap?.[i]);
}

/**
 * Blockwise codes of the level that is nearest to `v · (1 / absmax)`, a tie the lower one; each operation rounded to
 * f32, the bounds between levels too: what bitsandbytes' CUDA source does with a table of the user's. A block of
 * zeros, or whose `1 / absmax` overflows, has codes of 0, as there.
 * @throws ERR_NON_FINITE
 */
export function encodeCodebook(
  op: string,
  values: Float32Array,
  codebook: Float32Array,
  blocksize: number,
): CodebookCodes {
  const bounds = Float32Array.from({ length: 255 }, (_, i) => {
    return Math.fround((codebook[i] as number) + (codebook[i + 1] as number)) / 2;
  });
  const nearest = (v: number): number => {
    let [low, high] = [0, bounds.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if ((bounds[middle] as number) < v) low = middle + 1;
      else high = middle;
    }
    return low;
  };
  const codes = new Uint8Array(values.length);
  const absmax = new Float32Array(Math.ceil(values.length / blocksize));
  absmax.forEach((_, block) => {
    const [begin, end] = [block * blocksize, Math.min((block + 1) * blocksize, values.length)];
    let most = 0;
    for (let i = begin; i < end; i++) {
      const size = Math.abs(values[i] as number);
      if (!Number.isFinite(size)) {
        fail('ERR_NON_FINITE', op, 'w', 'finite values', `${values[i]} at ${i}`);
      }
      most = Math.max(most, size);
    }
    absmax[block] = most;
    const inverse = Math.fround(1 / most);
    for (let i = begin; i < end; i++) {
      const scaled = Math.fround((values[i] as number) * inverse);
      codes[i] = Number.isFinite(inverse) ? nearest(scaled) : 0;
    }
  });
  return { codes, absmax };
}
