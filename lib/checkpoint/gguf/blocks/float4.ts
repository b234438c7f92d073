/** Floats of four bits (e2m1) as ggml reads them: both codes of zero are +0, and no byte of a scale is a NaN. */

import { type BlockLayout, shared } from './layout.js';

const kMagnitudes = [0, 0.5, 1, 1.5, 2, 3, 4, 6];

/** The value of each code. */
export const float4Levels = Float32Array.from([...kMagnitudes, ...kMagnitudes.map((v) => 0 - v)]);

/** Twice as much, as MXFP4 has it: with half the scale, whose largest byte is a number then. */
const kDoubled = float4Levels.map((level) => 2 * level);

/** Half the value of each byte of e8m0. */
export const mxScales = Float32Array.from({ length: 256 }, (_, byte) => 2 ** (byte - 128));

/** The value of each byte of e4m3. ggml ignores the sign, but takes 0x7f alone for 0: 0xff is 480. */
export const nvScales = Float32Array.from({ length: 256 }, (_, byte) => {
  const [exponent, fraction] = [(byte >> 3) & 15, byte & 7];
  if (byte === 0x7f) return 0;
  return exponent === 0 ? fraction * 2 ** -9 : (8 + fraction) * 2 ** (exponent - 10);
});

export const float4Blocks = {
  MXFP4: {
    group: 32,
    bits: 4,
    codes: { fields: [{ at: shared(32, 1, 4, 16), bits: 4 }], table: kDoubled },
    scale: { integers: { fields: [{ at: [0], bits: 8 }], table: mxScales } },
  },
  NVFP4: {
    group: 16,
    bits: 4,
    codes: { fields: [{ at: shared(64, 4, 4, 8), bits: 4 }], table: float4Levels },
    scale: { integers: { fields: [{ at: shared(4, 0, 8, 1), bits: 8 }], table: nvScales } },
  },
} as const satisfies Readonly<Record<string, BlockLayout>>;
