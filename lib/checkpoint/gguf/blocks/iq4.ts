/** Four bits with levels that lie closer to each other around 0. */

import { type BlockLayout, counting, shared } from './layout.js';

/** The levels, from the definition of the format. */
export const iq4Levels = Float32Array.of(
  ...[-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113],
);

export const iq4Blocks = {
  IQ4_NL: {
    group: 32,
    bits: 4,
    codes: { fields: [{ at: shared(32, 2, 4, 16), bits: 4 }], table: iq4Levels },
    scale: { half: 0 },
  },
  IQ4_XS: {
    group: 32,
    bits: 4,
    codes: { fields: [{ at: shared(256, 8, 4, 16), bits: 4 }], table: iq4Levels },
    scale: {
      integers: {
        fields: [
          { at: shared(8, 4, 4, 1), bits: 4 },
          { at: shared(8, 2, 2, 1), bits: 2, shift: 4 },
        ],
        table: counting(6, -32),
      },
      half: 0,
    },
  },
} as const satisfies Readonly<Record<string, BlockLayout>>;
