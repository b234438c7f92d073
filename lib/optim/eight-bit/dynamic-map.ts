/** bitsandbytes' dynamic maps of 256 levels, and blocks of states in their codes. */

/** Elements of the flattened parameter that share a scale. */
export const kBlock = 256;

const f = Math.fround;

/** The middles of n - 1 equal parts of [0.1, 1], with torch's roundings to f32: the ends of parts are rounded once. */
function middles(n: number): number[] {
  const step = f(f(1 - f(0.1)) / (n - 1));
  const at = (i: number) => f(i < n >> 1 ? f(0.1) + step * i : 1 - step * (n - 1 - i));
  return Array.from({ length: n - 1 }, (_, i) => f(f(at(i) + at(i + 1)) / 2));
}

/**
 * Dettmers' dynamic map (8-bit Optimizers via Block-wise Quantization, 2022, arXiv:2110.02861): seven decades, each with twice
 * as many levels as the one below, and 0 and 1. The signed map has the levels of both signs and 0 and 1 once.
 */
export function dynamicMap(signed: boolean): Float32Array {
  const levels = [0, 1];
  for (let i = 0; i < 7; i++) {
    for (const middle of middles(2 ** (signed ? i : i + 1) + 1)) {
      const level = f(f(10 ** (i - 6)) * middle);
      levels.push(level);
      if (signed) levels.push(-level);
    }
  }
  return Float32Array.from(levels).sort();
}

/** A map with the bounds between its levels. */
export interface StateMap {
  readonly levels: Float32Array;
  readonly signed: boolean;
  /** By the upper 16 bits of a value: a code whose level is not above any value with these bits. */
  readonly starts: Uint8Array;
}

const word = new Uint32Array(1);
const value = new Float32Array(word.buffer);

function mapOf(signed: boolean): StateMap {
  const levels = dynamicMap(signed);
  const starts = new Uint8Array(1 << 16);
  for (let upper = 0; upper < 1 << 16; upper++) {
    // Of negative values the largest lower bits are the least.
    word[0] = upper * 65536 + (upper >= 1 << 15 ? 65535 : 0);
    const least = value[0] as number;
    let code = 0;
    while (code < 254 && (levels[code + 1] as number) <= least) code++;
    starts[upper] = code;
  }
  return { levels, signed, starts };
}

const kMaps = new Map<boolean, StateMap>();

export function stateMap(signed: boolean): StateMap {
  const found = kMaps.get(signed) ?? mapOf(signed);
  kMaps.set(signed, found);
  return found;
}

/** `values[i] = levels[codes[i]] · absmax[block of i]`, in f32. */
export function decodeStates(
  codes: Uint8Array,
  absmax: Float32Array,
  { levels }: StateMap,
  values: Float32Array,
): void {
  for (let i = 0; i < values.length; i++) {
    values[i] = (levels[codes[i] as number] as number) * (absmax[i >> 8] as number);
  }
}

/**
 * The codes of values by blocks: the nearest level, and for a signed map one of the sign of the value, as bitsandbytes' kernels
 * choose it. A block of zeros has the scale 0.
 */
export function encodeStates(
  values: Float32Array,
  map: StateMap,
  codes: Uint8Array,
  absmax: Float32Array,
): void {
  const { levels, signed } = map;
  const zero = levels.indexOf(0);
  for (let begin = 0, block = 0; begin < values.length; begin += kBlock, block++) {
    const end = Math.min(begin + kBlock, values.length);
    let largest = 0;
    for (let i = begin; i < end; i++) largest = Math.max(largest, Math.abs(values[i] as number));
    absmax[block] = largest;
    for (let i = begin; i < end; i++) {
      const state = values[i] as number;
      let code = largest === 0 ? zero : nearest(map, f(state / largest));
      const level = levels[code] as number;
      if (signed && state > 0 && level < 0) code++;
      else if (signed && state < 0 && level >= 0 && code > 0) code--;
      codes[i] = code;
    }
  }
}

/** The code of the level nearest to v, within ±1; a tie takes the lower one. */
function nearest({ levels, starts }: StateMap, v: number): number {
  value[0] = v;
  let low = starts[(word[0] as number) >>> 16] as number;
  while (low < 254 && (levels[low + 1] as number) <= v) low++;
  const [below, above] = [levels[low] as number, levels[low + 1] as number];
  return v - below <= above - v ? low : low + 1;
}
