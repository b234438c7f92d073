/**
 * Blocks of 256 whose groups have small integers for scales, by search: each group's best scale first, then the f16 that the
 * largest of them asks for, then the integers around each quotient, by their error.
 */

import { iq4Blocks } from '../blocks/iq4.js';
import { kQuantBlocks } from '../blocks/k-quants.js';
import type { BlockLayout } from '../blocks/layout.js';
import { type BlockQuantizer, importances } from './block.js';
import {
  assign,
  errorOf,
  fitScale,
  fitScaleAndMin,
  type Levels,
  levelsOf,
  type ScaleAndMin,
} from './fit.js';
import { halfBits, halfValue, scaleBits } from './half.js';

const f32 = Math.fround;

/** Integers next to a number, within `least` and `most`. */
function around(value: number, least: number, most: number): number[] {
  const middle = Math.min(most, Math.max(least, Math.round(value)));
  return [middle, middle - 1, middle + 1].filter((each) => each >= least && each <= most);
}

/** `w = (d · sc) · level` with signed integers sc, kept by the table of the layout. */
function signedScales(layout: BlockLayout, levels: Levels): BlockQuantizer {
  const { group } = layout;
  const table = layout.scale.integers?.table as Float32Array;
  const least = Math.min(...table);
  const most = Math.max(...table);
  const indexOf = new Map(Array.from(table, (value, i) => [value, i]));
  const trial = new Uint8Array(group);
  return (x, p, { codes, scales, half }) => {
    const fits = Float64Array.from(scales, (_, g) => {
      const [from, to] = [g * group, (g + 1) * group];
      return fitScale(x.subarray(from, to), importances(p, from, to), levels, trial);
    });
    const extreme = fits.reduce((a, b) => (Math.abs(b) > Math.abs(a) ? b : a), 0);
    // The integers reach one step further below 0 than above.
    half[0] = scaleBits(extreme / least);
    const d = halfValue(half[0] as number);
    for (let g = 0; g < scales.length; g++) {
      const [from, to] = [g * group, (g + 1) * group];
      const part = x.subarray(from, to);
      const weights = importances(p, from, to);
      let best = Number.POSITIVE_INFINITY;
      for (const sc of around(d === 0 ? 0 : (fits[g] as number) / d, least, most)) {
        const scale = f32(d * sc);
        assign(part, scale, levels, trial);
        const error = errorOf(part, weights, levels, trial, scale);
        if (error >= best) continue;
        best = error;
        scales[g] = indexOf.get(sc) as number;
        codes.set(trial, from);
      }
    }
  };
}

/** `w = (d · sc) · c − (dmin · m)` with integers sc and m from 0. */
function scalesAndMins({ group, bits, scale }: BlockLayout, levels: Levels): BlockQuantizer {
  const top = 2 ** bits - 1;
  const most = (scale.integers?.table.length as number) - 1;
  const trial = new Uint8Array(group);
  const shifted = new Float32Array(group);
  return (x, p, { codes, scales, mins, half, minHalf }) => {
    const fits = Array.from(scales, (_, g): ScaleAndMin => {
      const [from, to] = [g * group, (g + 1) * group];
      return fitScaleAndMin(x.subarray(from, to), importances(p, from, to), top, trial);
    });
    half[0] = scaleBits(Math.max(...fits.map((fit) => fit.scale)) / most);
    minHalf[0] = scaleBits(Math.max(...fits.map((fit) => fit.min)) / most);
    const [d, dmin] = [halfValue(half[0] as number), halfValue(minHalf[0] as number)];
    for (const [g, fit] of fits.entries()) {
      const [from, to] = [g * group, (g + 1) * group];
      const part = x.subarray(from, to);
      const weights = importances(p, from, to);
      let best = Number.POSITIVE_INFINITY;
      for (const m of around(dmin === 0 ? 0 : fit.min / dmin, 0, most)) {
        const min = f32(dmin * m);
        for (let i = 0; i < group; i++) shifted[i] = (part[i] as number) + min;
        for (const sc of around(d === 0 ? 0 : fit.scale / d, 0, most)) {
          const step = f32(d * sc);
          assign(shifted, step, levels, trial);
          const error = errorOf(part, weights, levels, trial, step, min);
          if (error >= best) continue;
          best = error;
          scales[g] = sc;
          mins[g] = m;
          codes.set(trial, from);
        }
      }
    }
  };
}

const even = ({ codes }: BlockLayout): Levels => levelsOf(codes.table);
const iq4 = levelsOf(iq4Blocks.IQ4_NL.codes.table);
const { Q2_K, Q3_K, Q4_K, Q5_K, Q6_K } = kQuantBlocks;

export const searchingQuantizers = {
  Q2_K: scalesAndMins(Q2_K, even(Q2_K)),
  Q3_K: signedScales(Q3_K, even(Q3_K)),
  Q4_K: scalesAndMins(Q4_K, even(Q4_K)),
  Q5_K: scalesAndMins(Q5_K, even(Q5_K)),
  Q6_K: signedScales(Q6_K, even(Q6_K)),
  IQ4_XS: signedScales(iq4Blocks.IQ4_XS, iq4),
  IQ4_NL: ((x, p, { codes, half }) => {
    half[0] = halfBits(fitScale(x, importances(p, 0, x.length), iq4, codes));
    assign(x, halfValue(half[0] as number), iq4, codes);
  }) satisfies BlockQuantizer,
};
