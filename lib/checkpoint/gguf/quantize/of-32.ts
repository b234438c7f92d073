/**
 * Blocks of 32 by plain rounding, with ggml's bytes: every operation in f32, codes from the f32 scale, not from the f16 one that is
 * stored. With importances, by search.
 */

import { blocksOf32 } from '../blocks/of-32.js';
import { type BlockQuantizer, inverseOf } from './block.js';
import { assign, extremeOf, fitScale, fitScaleAndMin, levelsOf } from './fit.js';
import { halfBits, halfValue } from './half.js';

const f32 = Math.fround;

/** `w = d · (c − zero)`: the weight of the largest magnitude gets code 0, so d has the sign that it does not have. */
function symmetric(type: 'Q4_0' | 'Q5_0'): BlockQuantizer {
  const { bits, codes } = blocksOf32[type];
  const levels = levelsOf(codes.table);
  const zero = 2 ** (bits - 1);
  const top = 2 ** bits - 1;
  return (x, p, target) => {
    if (p !== undefined) {
      target.half[0] = halfBits(fitScale(x, p, levels, target.codes));
      assign(x, halfValue(target.half[0] as number), levels, target.codes);
      return;
    }
    const d = f32(extremeOf(x) / -zero);
    const inverse = inverseOf(d);
    target.half[0] = halfBits(d);
    for (let i = 0; i < x.length; i++) {
      const code = Math.trunc(f32(f32((x[i] as number) * inverse) + (zero + 0.5)));
      target.codes[i] = Math.min(top, code);
    }
  };
}

/** `w = d · c + m` from the least weight to the largest. */
function asymmetric(type: 'Q4_1' | 'Q5_1'): BlockQuantizer {
  const top = 2 ** blocksOf32[type].bits - 1;
  return (x, p, target) => {
    let [least, most] = [x[0] as number, x[0] as number];
    for (const value of x) {
      least = Math.min(least, value);
      most = Math.max(most, value);
    }
    if (p !== undefined) {
      searchShifted(x, p, least, top, target);
      return;
    }
    const d = f32(f32(most - least) / top);
    const inverse = inverseOf(d);
    target.half[0] = halfBits(d);
    target.minHalf[0] = halfBits(least);
    for (let i = 0; i < x.length; i++) {
      const steps = f32(f32((x[i] as number) - least) * inverse);
      target.codes[i] = Math.min(top, Math.trunc(f32(steps + 0.5)));
    }
  };
}

/** The search knows minima below 0; a block that lies above 0 is shifted down to it. */
function searchShifted(
  x: Float32Array,
  p: Float32Array,
  least: number,
  top: number,
  { codes, half, minHalf }: Parameters<BlockQuantizer>[2],
): void {
  const shift = Math.max(0, least);
  const fit = fitScaleAndMin(shift === 0 ? x : x.map((value) => value - shift), p, top, codes);
  half[0] = halfBits(fit.scale);
  minHalf[0] = halfBits(shift - fit.min);
  const [d, m] = [halfValue(half[0] as number), halfValue(minHalf[0] as number)];
  for (let i = 0; i < x.length; i++) {
    const code = d === 0 ? 0 : Math.round(((x[i] as number) - m) / d);
    codes[i] = Math.min(top, Math.max(0, code));
  }
}

/** Half away from zero, as C rounds. */
const roundAway = (value: number): number => Math.sign(value) * Math.floor(Math.abs(value) + 0.5);

const eightBits: BlockQuantizer = (x, _, target) => {
  const d = f32(Math.abs(extremeOf(x)) / 127);
  const inverse = inverseOf(d);
  target.half[0] = halfBits(d);
  // A code is the byte of a signed number.
  for (let i = 0; i < x.length; i++) target.codes[i] = roundAway(f32((x[i] as number) * inverse));
};

/** −1, 0 and 1 times the largest magnitude of 256. */
const ternary: BlockQuantizer = (x, _, target) => {
  const d = Math.abs(extremeOf(x));
  const inverse = inverseOf(d);
  target.half[0] = halfBits(d);
  for (let i = 0; i < x.length; i++) {
    target.codes[i] = roundAway(f32((x[i] as number) * inverse)) + 1;
  }
};

export const roundingQuantizers = {
  Q4_0: symmetric('Q4_0'),
  Q4_1: asymmetric('Q4_1'),
  Q5_0: symmetric('Q5_0'),
  Q5_1: asymmetric('Q5_1'),
  Q8_0: eightBits,
  TQ2_0: ternary,
};
