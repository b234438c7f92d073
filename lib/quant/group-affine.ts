import { fail, wrongType } from '../core/errors.js';
import { checkInteger, showShape } from '../core/validate.js';

/**
 * A group-affine 4-bit weight as other programs store it (GPTQ, HQQ and the like, unpacked). In row n and
 * block `g = floor(k / blocksize)`,
 *
 * `w[n, k] = scales[n, g] · (codes[n, k] − zeros[n, g])`
 *
 * This library stores the same numbers as `absmax = 7.5 · scale` and a zero-point in units of w,
 * `scale · (7.5 − zero)`, so that the levels of the codes, ±1/15 to ±1, are centred on 0.
 */
export interface GroupAffineState {
  /** [N, K] */
  readonly shape: readonly number[];
  /** A power of two from 32 to 4096 that divides K. */
  readonly blocksize: number;
  /** [N · K], 0 to 15, one per byte. */
  readonly codes: Uint8Array;
  /** [N · K / blocksize], not negative. */
  readonly scales: Float32Array;
  /** [N · K / blocksize], in steps of a code; fractions are allowed. */
  readonly zeros: Float32Array;
}

/** Half the distance from the smallest to the largest code: levels are `(code − HALF) / HALF`. */
const HALF = 7.5;

/** The stored form: bytes of two codes, the first in the high nibble. */
export interface GroupAffineParts {
  readonly codes: Uint8Array;
  readonly absmax: Float32Array;
  readonly zeroPoints: Float32Array;
}

/** Number of blocks in a row. @throws ERR_SHAPE if it is not a matrix whose rows are whole blocks */
export function blocksOf(
  op: string,
  operand: string,
  shape: readonly number[],
  blocksize: number,
): number {
  const [, K = 0] = shape;
  if (shape.length !== 2 || K === 0 || K % blocksize !== 0) {
    const expected = `of shape [N, K] with K a multiple of the blocksize ${blocksize}`;
    fail('ERR_SHAPE', op, operand, expected, showShape(shape));
  }
  return K / blocksize;
}

/** `(min + max) / 2` of every block, in f32. @throws ERR_NON_FINITE */
export function middles(op: string, values: Float32Array, blocksize: number): Float32Array {
  return Float32Array.from({ length: values.length / blocksize }, (_, block) => {
    let [least, most] = [Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY];
    for (let i = block * blocksize; i < (block + 1) * blocksize; i++) {
      const value = values[i] as number;
      if (!Number.isFinite(value)) {
        fail('ERR_NON_FINITE', op, 'w', 'finite values', `${value} at ${i}`);
      }
      least = Math.min(least, value);
      most = Math.max(most, value);
    }
    return (least + most) / 2;
  });
}

function checkArray<T extends Uint8Array | Float32Array>(
  op: string,
  operand: string,
  value: unknown,
  kind: new () => T,
  length: number,
): T {
  if (!(value instanceof kind)) throw wrongType(op, operand, `a ${kind.name}`, value);
  if (value.length !== length) {
    fail('ERR_SHAPE', op, operand, `of length ${length}`, String(value.length));
  }
  return value;
}

/** Converts a state to the stored parts. @throws ERR_TYPE, ERR_SHAPE, ERR_VALUE */
export function parseGroupAffine(op: string, state: GroupAffineState): GroupAffineParts {
  const { shape, blocksize } = state;
  if (!Array.isArray(shape)) throw wrongType(op, 'shape', 'an array', shape);
  const elems = shape.reduce((product: number, dim, i) => {
    return product * checkInteger(op, `shape[${i}]`, dim, 0, 2 ** 31);
  }, 1);
  const blocks = (shape[0] as number) * blocksOf(op, 'shape', shape, blocksize);
  const codes = checkArray(op, 'codes', state.codes, Uint8Array, elems);
  const scales = checkArray(op, 'scales', state.scales, Float32Array, blocks);
  const zeros = checkArray(op, 'zeros', state.zeros, Float32Array, blocks);
  const packed = new Uint8Array(Math.ceil(elems / 2));
  codes.forEach((code, i) => {
    if (code > 15) fail('ERR_VALUE', op, 'codes', 'from 0 to 15', `${code} at ${i}`);
    packed[i >> 1] = (packed[i >> 1] as number) | (i % 2 === 0 ? code << 4 : code);
  });
  const [absmax, zeroPoints] = [new Float32Array(blocks), new Float32Array(blocks)];
  scales.forEach((scale, block) => {
    absmax[block] = HALF * scale;
    zeroPoints[block] = scale * (HALF - (zeros[block] as number));
    const finite = Number.isFinite(absmax[block]) && Number.isFinite(zeroPoints[block]);
    if (!finite || scale < 0) {
      const actual = `scale ${scale} and zero ${zeros[block]} of block ${block}`;
      fail('ERR_VALUE', op, 'scales', 'not negative and such that all products are finite', actual);
    }
  });
  return { codes: packed, absmax, zeroPoints };
}

/**
 * Converts stored parts to a state. A block of equal values z ≠ 0 has a scale of 0 and holds z only
 * in its zero-point. `scale · (code − zero)` cannot express that, so it becomes the scale |z| and
 * zeros one step from the code.
 */
export function formatGroupAffine(
  parts: GroupAffineParts,
  shape: readonly number[],
  blocksize: number,
): GroupAffineState {
  const elems = shape.reduce((product, dim) => product * dim, 1);
  const codes = new Uint8Array(elems);
  for (let i = 0; i < elems; i++) {
    const pair = parts.codes[i >> 1] as number;
    codes[i] = i % 2 === 0 ? pair >> 4 : pair & 15;
  }
  const blocks = parts.absmax.length;
  const [scales, zeros] = [new Float32Array(blocks), new Float32Array(blocks)];
  for (let block = 0; block < blocks; block++) {
    const zeroPoint = parts.zeroPoints[block] as number;
    const scale = (parts.absmax[block] as number) / HALF;
    const flat = scale === 0 && zeroPoint !== 0;
    if (flat) codes.fill(8, block * blocksize, (block + 1) * blocksize);
    scales[block] = flat ? Math.abs(zeroPoint) : scale;
    zeros[block] = flat ? 8 - Math.sign(zeroPoint) : scale === 0 ? 0 : HALF - zeroPoint / scale;
  }
  return { shape: [...shape], blocksize, codes, scales, zeros };
}
