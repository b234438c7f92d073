import { native } from '../core/binding.js';
import { fail, wrongType } from '../core/errors.js';
import { formatOf, type QuantFormat } from '../core/formats.js';

/** Codes as a weight stores them, and the scale of each block. */
export interface CodebookCodes {
  readonly codes: Uint8Array;
  readonly absmax: Float32Array;
}

/**
 * Checks for 256 ascending levels within ±1. Some may be equal, like the two zeros of fp8. @throws
 * ERR_TYPE, ERR_SHAPE, ERR_VALUE
 */
export function checkCodebook(op: string, codebook: unknown): Float32Array {
  if (!(codebook instanceof Float32Array)) {
    throw wrongType(op, 'codebook', 'a Float32Array', codebook);
  }
  if (codebook.length !== 256) {
    fail('ERR_SHAPE', op, 'codebook', 'of 256 levels', String(codebook.length));
  }
  codebook.forEach((level, i) => {
    const above = i === 0 || level >= (codebook[i - 1] as number);
    if (!(above && Math.abs(level) <= 1)) {
      fail('ERR_VALUE', op, 'codebook', 'ascending and within ±1', `${level} at ${i}`);
    }
  });
  return codebook;
}

const formatTables = new Map<QuantFormat, Float32Array>();

/** The levels that a format implies. Those of int8 (Dettmers' dynamic map) are also used by double quantisation. */
export function formatCodebook(op: string, format: QuantFormat): Float32Array {
  if (formatTables.size === 0) {
    const rows = native(op, (raw) => raw.formats());
    for (const { name, codebook } of rows) formatTables.set(name as QuantFormat, codebook);
  }
  return formatTables.get(format) as Float32Array;
}

/** The table that a weight keeps: none if it is the format's. */
export function ownTable(
  op: string,
  format: QuantFormat,
  table: Float32Array,
): Float32Array | undefined {
  const standard = formatCodebook(op, format);
  return table.every((level, i) => level === standard[i]) ? undefined : table.slice();
}

/**
 * The index of the ascending level nearest to v; a tie takes the lower one. The bounds between
 * levels are rounded to f32.
 */
function nearestIn(levels: ArrayLike<number>): (v: number) => number {
  const bounds = Float32Array.from({ length: levels.length - 1 }, (_, i) => {
    return Math.fround((levels[i] as number) + (levels[i + 1] as number)) / 2;
  });
  return (v) => {
    let [low, high] = [0, bounds.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if ((bounds[middle] as number) < v) low = middle + 1;
      else high = middle;
    }
    return low;
  };
}

/** The code of a scaled value, and the code for blocks of zeros. */
function coderOf(format: QuantFormat, codebook: Float32Array) {
  const { bits, signMagnitude } = formatOf(format);
  if (!signMagnitude) {
    const codeOf = nearestIn(codebook);
    return { codeOf, zero: bits === 8 ? 0 : codeOf(0) };
  }
  // Eight magnitudes in any order, then their negatives.
  const codes = [...codebook.subarray(0, 8).keys()];
  const order = codes.sort((a, b) => (codebook[a] as number) - (codebook[b] as number));
  const rankOf = nearestIn(order.map((code) => codebook[code] as number));
  const codeOf = (v: number) => (order[rankOf(Math.abs(v))] as number) + (v < 0 ? 8 : 0);
  return { codeOf, zero: codeOf(0) };
}

/** Two codes per byte, the first in the high half. `fill` completes an odd count. */
function packed(codes: Uint8Array, fill: number): Uint8Array {
  return Uint8Array.from({ length: Math.ceil(codes.length / 2) }, (_, i) => {
    return ((codes[2 * i] as number) << 4) | (codes[2 * i + 1] ?? fill);
  });
}

/**
 * Blockwise codes of the level nearest to `v · (1 / absmax)`; a tie takes the lower level (for fp4 the one nearer to 0).
 * Each operation is rounded to f32, and so are the bounds between levels: this is what bitsandbytes' CUDA source does with a
 * table of the user. A block of zeros, or whose `1 / absmax` overflows, gets codes of 0, as there; 4-bit formats get the
 * level nearest to 0.
 * @returns codes as the format stores them: 4-bit codes two per byte
 * @throws ERR_NON_FINITE
 */
export function encodeCodebook(
  op: string,
  format: QuantFormat,
  values: Float32Array,
  codebook: Float32Array,
  blocksize: number,
): CodebookCodes {
  const { codeOf, zero } = coderOf(format, codebook);
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
      codes[i] = Number.isFinite(inverse) ? codeOf(scaled) : zero;
    }
  });
  return { codes: formatOf(format).bits === 8 ? codes : packed(codes, zero), absmax };
}
