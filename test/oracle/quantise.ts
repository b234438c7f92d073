/**
 * Blockwise quantisation from the definitions: NF4 and FP4 of the QLoRA paper and its library, and
 * the signed dynamic 8-bit map of "8-bit optimizers via block-wise quantization".
 *
 * v = x · (1 / absmax), both rounded to f32; the code is that of the nearest level, where a value
 * exactly on a threshold takes the lower level. A block whose 1 / absmax overflows (zeros, or an
 * absmax below 2^-128) holds one code throughout. For the formats of the peer it is the one that the
 * peer's data show: 7 for NF4, 0 for FP4 and int8. For int8 that is the lowest level; times an absmax
 * of 0 it is still zero.
 */

/** NF4 levels, ascending: QLoRA (2023), appendix E. */
export const NF4_LEVELS: readonly number[] = [
  -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
  -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
  0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
  0.7229568362236023, 1.0,
];

/** FP4 magnitudes by code 0..7 (sign in the top bit): exponent and mantissa bits of the definition. */
const FP4_MAGNITUDES: readonly number[] = [0, 0.0625 / 12, 8 / 12, 1, 4 / 12, 0.5, 2 / 12, 0.25];

/** Decision thresholds of FP4 with the code on either side, as the peer writes them in decimal. */
const FP4_STEPS: readonly (readonly [above: number, code: number])[] = [
  [0.00260417, 1],
  [0.0859375, 6],
  [0.20833333, 7],
  [0.29166667, 4],
  [0.4166667, 5],
  [0.583333, 2],
  [0.8333333, 3],
];

/**
 * The signed dynamic map, ascending. Seven decades 10^-6 .. 1; decade i holds the means of
 * neighbours of 2^i + 1 points spread evenly over [0.1, 1], with both signs; and 0, and 1. Built in
 * f32 as the peer does, with its spread running from both ends to the middle by fused products.
 */
export function dynamicMap(): Float32Array {
  const f32 = Math.fround;
  const levels = [0, 1];
  for (let decade = 0; decade < 7; decade++) {
    const intervals = 2 ** decade;
    const step = f32(f32(f32(1) - f32(0.1)) / intervals);
    const point = (index: number): number =>
      index < Math.floor((intervals + 1) / 2)
        ? f32(f32(0.1) + step * index)
        : f32(1 - step * (intervals - index));
    const power = f32(10 ** (decade - 6));
    for (let index = 0; index < intervals; index++) {
      const mean = f32(f32(point(index) + point(index + 1)) / 2);
      levels.push(f32(power * mean), -f32(power * mean));
    }
  }
  return Float32Array.from(levels.sort((a, b) => a - b));
}

const DYNAMIC_MAP = dynamicMap();

/** Code of the nearest of ascending `levels`; on a midpoint (rounded to f32) the lower one. */
function nearestAscending(levels: ArrayLike<number>, value: number): number {
  let low = 0;
  let high = levels.length - 1;
  while (low < high) {
    const middle = Math.floor((low + high) / 2);
    const midpoint = Math.fround(((levels[middle] as number) + (levels[middle + 1] as number)) / 2);
    if (value > midpoint) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** A format by its definition. */
interface Codec {
  /** Value of each code for absmax = 1, in f32. */
  readonly levels: Float32Array;
  /** Code of a normalised value. */
  readonly encode: (value: number) => number;
  /** Code of a block of zeros. */
  readonly zeroCode: number;
}

function ascending(values: ArrayLike<number>, zeroCode: number): Codec {
  const levels = Float32Array.from(values);
  return { levels, encode: (value) => nearestAscending(levels, value), zeroCode };
}

/** One row a format: the compiler asks for it where a test passes a format that is not here. */
const CODECS = {
  nf4: ascending(NF4_LEVELS, 7),
  fp4: {
    levels: Float32Array.from([...FP4_MAGNITUDES, ...FP4_MAGNITUDES.map((value) => 0 - value)]),
    encode(value) {
      let code = 0;
      for (const [above, next] of FP4_STEPS) {
        if (Math.abs(value) > Math.fround(above)) code = next;
      }
      return value < 0 ? code + 8 : code;
    },
    zeroCode: 0,
  },
  int8: ascending(DYNAMIC_MAP, 0),
  int4: {
    // 16 levels with equal steps from -1 to 1.
    levels: Float32Array.from({ length: 16 }, (_, i) => (2 * i - 15) / 15),
    encode(value) {
      // Levels above each midpoint, the midpoint's own value (in f32) not.
      let code = 0;
      for (let i = 1; i < 16; i++) if (value > Math.fround((2 * i - 16) / 15)) code = i;
      return code;
    },
    zeroCode: 8,
  },
} satisfies Readonly<Record<string, Codec>>;

export type OracleFormat = keyof typeof CODECS;

/** Those that there are. */
export const ORACLE_FORMATS = Object.keys(CODECS) as readonly OracleFormat[];

/** Value of each code for absmax = 1, in f32. */
export const codebookOf = (format: OracleFormat): Float32Array => CODECS[format].levels.slice();

/** Code of a normalised value. */
export const encodeNormalised = (format: OracleFormat, value: number): number =>
  CODECS[format].encode(value);

export const zeroCodeOf = (format: OracleFormat): number => CODECS[format].zeroCode;

export interface Quantised {
  readonly format: OracleFormat;
  readonly blocksize: number;
  readonly codes: Uint8Array; // one an element
  readonly absmax: Float32Array; // [blocks]
}

/** Quantises the flattened values (each an f32 number), blocks running across row ends. */
export function quantiseBlocks(
  values: ArrayLike<number>,
  format: OracleFormat,
  blocksize: number,
): Quantised {
  const blocks = Math.ceil(values.length / blocksize);
  const codes = new Uint8Array(values.length);
  const absmax = new Float32Array(blocks);
  for (let block = 0; block < blocks; block++) {
    const start = block * blocksize;
    const end = Math.min(start + blocksize, values.length);
    let largest = 0;
    for (let i = start; i < end; i++) largest = Math.max(largest, Math.abs(values[i] as number));
    absmax[block] = largest;
    const inverse = Math.fround(1 / largest);
    for (let i = start; i < end; i++) {
      codes[i] = Number.isFinite(inverse)
        ? encodeNormalised(format, Math.fround((values[i] as number) * inverse))
        : zeroCodeOf(format);
    }
  }
  return { format, blocksize, codes, absmax };
}

/** Two 4-bit codes a byte, the even element in the high nibble; an odd tail gets the code of 0. */
export function packNibbles(codes: Uint8Array, zeroCode: number): Uint8Array {
  const packed = new Uint8Array(Math.ceil(codes.length / 2));
  for (let i = 0; i < packed.length; i++) {
    packed[i] = (codes[2 * i] as number) * 16 + (codes[2 * i + 1] ?? zeroCode);
  }
  return packed;
}

export function unpackNibbles(packed: Uint8Array, count: number): Uint8Array {
  return Uint8Array.from({ length: count }, (_, i) => {
    const pair = packed[i >> 1] as number;
    return i % 2 === 0 ? Math.floor(pair / 16) : pair % 16;
  });
}

export interface NestedAbsmax {
  readonly offset: number; // mean of absmax, f32
  readonly absmax8bit: Uint8Array; // [blocks]
  readonly nestedAbsmax: Float32Array; // [ceil(blocks / 256)]
}

/** Double quantisation: absmax less its mean, in the 8-bit map, in blocks of 256. */
export function nestAbsmax(absmax: Float32Array, offset?: number): NestedAbsmax {
  let sum = 0;
  for (const value of absmax) sum += value;
  const mean = offset ?? Math.fround(absmax.length === 0 ? 0 : sum / absmax.length);
  const centred = Float32Array.from(absmax, (value) => Math.fround(value - mean));
  const nested = quantiseBlocks(centred, 'int8', 256);
  return { offset: mean, absmax8bit: nested.codes, nestedAbsmax: nested.absmax };
}

/** Scale of every block again: a product and a sum, each rounded to f32. */
export function unnestAbsmax(
  nested: NestedAbsmax,
  map: ArrayLike<number> = DYNAMIC_MAP,
): Float32Array {
  return Float32Array.from(nested.absmax8bit, (code, block) => {
    const scale = nested.nestedAbsmax[Math.floor(block / 256)] as number;
    return Math.fround(Math.fround((map[code] as number) * scale) + nested.offset);
  });
}

/** codebook[code] · absmax in f32. */
export function dequantiseBlocks(
  quantised: Quantised,
  codebook: ArrayLike<number> = codebookOf(quantised.format),
): Float64Array {
  const { codes, absmax, blocksize } = quantised;
  const values = new Float64Array(codes.length);
  for (let i = 0; i < values.length; i++) {
    const scale = absmax[Math.floor(i / blocksize)] as number;
    values[i] = Math.fround((codebook[codes[i] as number] as number) * scale);
  }
  return values;
}
