/** Ternary weights in two bits: −1, 0 and 1. The fourth code is 2. */

import { type BlockLayout, counting, shared } from './layout.js';

export const ternaryBlocks = {
  TQ2_0: {
    group: 256,
    bits: 2,
    codes: { fields: [{ at: shared(256, 0, 2, 32), bits: 2 }], table: counting(2, -1) },
    scale: { half: 64 },
  },
} as const satisfies Readonly<Record<string, BlockLayout>>;
