/** Floats of four bits by plain rounding to the nearest level. */

import { float4Blocks, nvScales } from '../blocks/float4.js';
import { type BlockQuantizer, importances } from './block.js';
import { extremeOf } from './fit.js';

const f32 = Math.fround;

/** The first of the nearest levels, as ggml finds them: differences in f32, code by code. */
function nearestCode(value: number, scale: number, levels: Float32Array): number {
  let best = 0;
  let least = Number.POSITIVE_INFINITY;
  for (let code = 0; code < levels.length; code++) {
    const off = Math.abs(f32(f32((levels[code] as number) * scale) - value));
    if (off >= least) continue;
    least = off;
    best = code;
  }
  return best;
}

/**
 * The power of two under the largest magnitude, less the two of the largest level, 4 to 6. The logarithm is rounded to f32 as
 * ggml's is: just below a power of two it may be that power's.
 */
const mxfp4: BlockQuantizer = (x, _, { codes, scales }) => {
  const { table } = float4Blocks.MXFP4.codes;
  const largest = Math.abs(extremeOf(x));
  const exponent = largest === 0 ? -127 : Math.floor(f32(Math.log2(largest))) - 2;
  const byte = Math.max(0, exponent + 127);
  scales[0] = byte;
  const half = 2 ** (byte - 128);
  for (let i = 0; i < x.length; i++) codes[i] = nearestCode(x[i] as number, half, table);
};

/** The byte of e4m3 nearest to a number that is not negative; ties to the even byte, and no more than 448. */
function nearestScale(value: number): number {
  let low = 0;
  for (let step = 64; step > 0; step >>= 1) {
    if (low + step <= 126 && (nvScales[low + step] as number) <= value) low += step;
  }
  const [below, above] = [nvScales[low] as number, nvScales[low + 1] as number];
  if (low === 126) return low;
  const tie = low % 2 === 1 && value - below === above - value;
  return value - below > above - value || tie ? low + 1 : low;
}

/** The scale by which the largest magnitude becomes 6, or one of the two below or above it, whichever loses least. */
const nvfp4: BlockQuantizer = (x, p, { codes, scales }) => {
  const { group, codes: own } = float4Blocks.NVFP4;
  const trial = new Uint8Array(group);
  for (let g = 0; g < scales.length; g++) {
    const [from, to] = [g * group, (g + 1) * group];
    const part = x.subarray(from, to);
    const weights = importances(p, from, to);
    const middle = nearestScale(Math.abs(extremeOf(part)) / 6);
    let least = Number.POSITIVE_INFINITY;
    for (let byte = Math.max(0, middle - 2); byte <= Math.min(126, middle + 2); byte++) {
      const scale = nvScales[byte] as number;
      let error = 0;
      for (let i = 0; i < group; i++) {
        const value = part[i] as number;
        const code = nearestCode(value, scale, own.table);
        const off = value - scale * (own.table[code] as number);
        error += (weights[i] as number) * off * off;
        trial[i] = code;
      }
      if (error >= least) continue;
      least = error;
      scales[g] = byte;
      codes.set(trial, from);
    }
  }
};

export const float4Quantizers = { MXFP4: mxfp4, NVFP4: nvfp4 };
