/** Blocks of GGUF: what each holds, byte by byte, and how it decodes. */
import { decodeBits } from '../dtypes.js';
import { unpackParts } from './bits.js';
import { decodeMinifloats, levelsOf } from './minifloat.js';

const f32 = Math.fround;

/** Levels of IQ4_NL and IQ4_XS. */
const IQ4_LEVELS = [
  -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113,
] as const;

export interface GgufBlock {
  /** Elements a block, and their bytes. */
  readonly elements: number;
  readonly bytes: number;
  readonly decode: (block: Uint8Array) => Float32Array;
}

const half = (block: Uint8Array, at: number): number =>
  decodeBits('f16', (block[at] as number) + 256 * (block[at + 1] as number));

/** Bits of a code that lie in two places. */
const join = (low: Uint8Array, high: Uint8Array, weight: number): Uint8Array =>
  low.map((code, i) => code + weight * (high[i] as number));

/** f32(scale · level) - min, a scale and a min for every group of elements. */
function grouped(
  levels: ArrayLike<number>,
  scales: readonly number[],
  mins?: readonly number[],
): Float32Array {
  const span = levels.length / scales.length;
  return Float32Array.from(levels, (level, i) => {
    const group = Math.floor(i / span);
    return f32((scales[group] as number) * level) - (mins?.[group] ?? 0);
  });
}

const minus = (codes: Uint8Array, bias: number): number[] => Array.from(codes, (c) => c - bias);
const iq4 = (codes: Uint8Array): number[] => Array.from(codes, (c) => IQ4_LEVELS[c] as number);
const times = (d: number, codes: ArrayLike<number>): number[] =>
  Array.from(codes, (code) => f32(d * code));

/** Nibbles of 32 elements: 16 bytes, j in the low and j + 16 in the high one. */
const nibbles32 = (block: Uint8Array, at: number): Uint8Array =>
  unpackParts(block.subarray(at, at + 16), 4, 16);

/** The same with a fifth bit: bit j of four bytes before them for element j. */
const five32 = (block: Uint8Array, at: number): Uint8Array =>
  join(nibbles32(block, at + 4), unpackParts(block.subarray(at, at + 4), 1, 1), 16);

/** Scales and mins of Q4_K and Q5_K: eight of six bits each in 12 bytes. */
function sixBits(b: Uint8Array): { scales: number[]; mins: number[] } {
  const low = unpackParts(b.subarray(8), 4, 1);
  const read = (first: number, j: number): number => {
    const top = b[first + (j % 4)] as number;
    return j < 4 ? top % 64 : (low[2 * (j - 4) + first / 4] as number) + 16 * Math.floor(top / 64);
  };
  const eight = [0, 1, 2, 3, 4, 5, 6, 7];
  return { scales: eight.map((j) => read(0, j)), mins: eight.map((j) => read(4, j)) };
}

/** d · scale and dmin · min of a block of Q4_K or Q5_K. */
function kScales(block: Uint8Array): [scales: number[], mins: number[]] {
  const { scales, mins } = sixBits(block.subarray(4, 16));
  return [times(half(block, 0), scales), times(half(block, 2), mins)];
}

/** Twice the level of each code of e2m1, times half the scale: the scale 255 is a number here. */
const mxfp4 = (codes: Uint8Array, byte: number): Float32Array =>
  grouped(
    decodeMinifloats('e2m1', codes).map((v) => 2 * v),
    [2 ** (byte - 128)],
  );

/** e4m3 without a sign; 0x7f alone is 0, and 0xff goes on after 448 (ggml's CPU code; its CUDA code reads a sign). */
const ue4m3 = (byte: number): number => {
  if (byte % 128 === 127) return byte === 127 ? 0 : 480;
  return levelsOf('e4m3fn')[byte % 128] as number;
};

export const GGUF_BLOCKS: Readonly<Record<string, GgufBlock>> = {
  Q4_0: {
    elements: 32,
    bytes: 18,
    decode: (b) => grouped(minus(nibbles32(b, 2), 8), [half(b, 0)]),
  },
  Q4_1: {
    elements: 32,
    bytes: 20,
    decode: (b) => grouped(nibbles32(b, 4), [half(b, 0)], [-half(b, 2)]),
  },
  Q5_0: {
    elements: 32,
    bytes: 22,
    decode: (b) => grouped(minus(five32(b, 2), 16), [half(b, 0)]),
  },
  Q5_1: {
    elements: 32,
    bytes: 24,
    decode: (b) => grouped(five32(b, 4), [half(b, 0)], [-half(b, 2)]),
  },
  Q8_0: {
    elements: 32,
    bytes: 34,
    decode: (b) => grouped(Int8Array.from(b.subarray(2)), [half(b, 0)]),
  },
  Q2_K: {
    elements: 256,
    bytes: 84,
    decode: (b) => {
      const pairs = unpackParts(b.subarray(0, 16), 4, 16);
      const scales = times(half(b, 80), pairs.subarray(0, 16));
      const mins = times(half(b, 82), pairs.subarray(16));
      return grouped(unpackParts(b.subarray(16, 80), 2, 32), scales, mins);
    },
  },
  Q3_K: {
    elements: 256,
    bytes: 110,
    decode: (b) => {
      const codes = join(
        unpackParts(b.subarray(32, 96), 2, 32),
        unpackParts(b.subarray(0, 32), 1, 32),
        4,
      );
      const low = unpackParts(b.subarray(96, 104), 4, 8);
      const scales = minus(join(low, unpackParts(b.subarray(104, 108), 2, 4), 16), 32);
      return grouped(minus(codes, 4), times(half(b, 108), scales));
    },
  },
  Q4_K: {
    elements: 256,
    bytes: 144,
    decode: (b) => grouped(unpackParts(b.subarray(16), 4, 32), ...kScales(b)),
  },
  Q5_K: {
    elements: 256,
    bytes: 176,
    decode: (b) => {
      const fifth = unpackParts(b.subarray(16, 48), 1, 32);
      return grouped(join(unpackParts(b.subarray(48), 4, 32), fifth, 16), ...kScales(b));
    },
  },
  Q6_K: {
    elements: 256,
    bytes: 210,
    decode: (b) => {
      const low = unpackParts(b.subarray(0, 128), 4, 64);
      const codes = join(low, unpackParts(b.subarray(128, 192), 2, 32), 16);
      const scales = times(half(b, 208), Int8Array.from(b.subarray(192, 208)));
      return grouped(minus(codes, 32), scales);
    },
  },
  IQ4_NL: {
    elements: 32,
    bytes: 18,
    decode: (b) => grouped(iq4(nibbles32(b, 2)), [half(b, 0)]),
  },
  IQ4_XS: {
    elements: 256,
    bytes: 136,
    decode: (b) => {
      const low = unpackParts(b.subarray(4, 8), 4, 1);
      const scales = minus(join(low, unpackParts(b.subarray(2, 4), 2, 1), 16), 32);
      return grouped(iq4(unpackParts(b.subarray(8), 4, 16)), times(half(b, 0), scales));
    },
  },
  MXFP4: { elements: 32, bytes: 17, decode: (b) => mxfp4(nibbles32(b, 1), b[0] as number) },
  NVFP4: {
    elements: 64,
    bytes: 36,
    decode: (b) => {
      const levels = decodeMinifloats('e2m1', unpackParts(b.subarray(4), 4, 8));
      return grouped(levels, Array.from(b.subarray(0, 4), ue4m3));
    },
  },
  TQ2_0: {
    elements: 256,
    bytes: 66,
    decode: (b) => grouped(minus(unpackParts(b.subarray(0, 64), 2, 32), 1), [half(b, 64)]),
  },
};

export function ggufBlock(type: string): GgufBlock {
  const found = GGUF_BLOCKS[type];
  if (found === undefined) throw new Error(`oracle: no GGUF type ${type}`);
  return found;
}

/** All blocks of a tensor. */
export function decodeGguf(type: string, bytes: Uint8Array): Float32Array {
  const block = ggufBlock(type);
  const count = bytes.length / block.bytes;
  const out = new Float32Array(count * block.elements);
  for (let i = 0; i < count; i++) {
    const own = bytes.subarray(i * block.bytes, (i + 1) * block.bytes);
    out.set(block.decode(own), i * block.elements);
  }
  return out;
}
