/** Microscaling formats of OCP: groups of 32 that share a power of two, by the rules of their libraries. */
import { e8m0Table } from '../planar/levels.js';
import type { PlanarWeight } from '../planar/planar-weight.js';
import { type Element, e2m1, e2m3, e3m2, e4m3, e5m2, exponentOf } from './minifloat.js';
import { encodeTiles, type Source, tileMaxima, tiles } from './source.js';

export type MxFormat = 'mxfp8-e4m3' | 'mxfp8-e5m2' | 'mxfp6-e3m2' | 'mxfp6-e2m3' | 'mxfp4';

export const mxElements: Readonly<Record<MxFormat, Element>> = {
  'mxfp8-e4m3': e4m3,
  'mxfp8-e5m2': e5m2,
  'mxfp6-e3m2': e3m2,
  'mxfp6-e2m3': e2m3,
  mxfp4: e2m1,
};

export const kMxGroup = 32;

/** How the power of two follows from the largest magnitude of a group. */
export type MxScaleRule = 'floor' | 'rceil' | 'even' | 'modelopt';

const f32 = Math.fround;
const kBias = 127;
const kLargestByte = 254;

/** 1 / 2^(byte − 127) */
const kInverses = Float64Array.from({ length: 255 }, (_, byte) => 2 ** (kBias - byte));

const kFloat = new Float32Array(1);
const kBits = new Uint32Array(kFloat.buffer);

/** An f32 with a mantissa of `bits` bits: half a unit added, the rest cut off. */
function cutMantissa(value: number, bits: number): number {
  kFloat[0] = value;
  const word = (kBits[0] as number) + (1 << (22 - bits));
  kBits[0] = word - (word % 2 ** (23 - bits));
  return kFloat[0] as number;
}

/** The least exponent of a power of two that is not below an f32. */
function ceilingExponent(value: number): number {
  const exponent = exponentOf(value);
  return 2 ** exponent < value ? exponent + 1 : exponent;
}

const kRules: Readonly<Record<MxScaleRule, (most: number, element: Element) => number>> = {
  floor: (most, { largest }) => exponentOf(most) - exponentOf(largest),
  even: (most, { largest, mantissaBits }) =>
    exponentOf(cutMantissa(most, mantissaBits)) - exponentOf(largest),
  rceil: (most, { largest }) => ceilingExponent(f32(most / largest)),
  modelopt: (most, { largest }) => Math.ceil(f32(Math.log2(f32(most / largest)))),
};

export const mxScaleRules = Object.keys(kRules) as readonly MxScaleRule[];

/** Codes of w · 2^(127 − E), saturating; ties to even, with ModelOpt's rule to the smaller magnitude. */
export function quantizeMx(source: Source, element: Element, rule: MxScaleRule): PlanarWeight {
  const { rows, columns } = source;
  const { bits, levels, encode } = element;
  const grid = tiles(1, kMxGroup);
  const maxima = tileMaxima(source, grid);
  const scales = Uint8Array.from(maxima, (most) => {
    const byte = most === 0 ? 0 : kRules[rule](most, element) + kBias;
    return Math.min(Math.max(byte, 0), kLargestByte);
  });
  const tiesDown = rule === 'modelopt';
  const codes = encodeTiles(source, grid, (value, tile) =>
    encode(f32(value * (kInverses[scales[tile] as number] as number)), tiesDown),
  );
  const values = { dtype: 'u8', data: scales, table: e8m0Table } as const;
  return { rows, columns, bits, codes, levels, grid, scale: { values } };
}
