/** Blocks of 32 with an f16 scale, some with an f16 minimum. Byte j of the nibbles has elements j (low) and j + 16 (high). */

import { type BlockField, type BlockLayout, counting, shared, signed } from './layout.js';

const nibbles = (byte: number): BlockField => ({ at: shared(32, byte, 4, 16), bits: 4 });
/** Bit j of four bytes is the fifth bit of element j. */
const fifths = (byte: number): BlockField => ({ at: shared(32, byte, 1, 1), bits: 1, shift: 4 });

const kScale = { half: 0 };
const kMin = { half: 2, added: true };

export const blocksOf32 = {
  Q4_0: {
    group: 32,
    bits: 4,
    codes: { fields: [nibbles(2)], table: counting(4, -8) },
    scale: kScale,
  },
  Q4_1: {
    group: 32,
    bits: 4,
    codes: { fields: [nibbles(4)], table: counting(4) },
    scale: kScale,
    min: kMin,
  },
  Q5_0: {
    group: 32,
    bits: 5,
    codes: { fields: [fifths(2), nibbles(6)], table: counting(5, -16) },
    scale: kScale,
  },
  Q5_1: {
    group: 32,
    bits: 5,
    codes: { fields: [fifths(4), nibbles(8)], table: counting(5) },
    scale: kScale,
    min: kMin,
  },
  Q8_0: {
    group: 32,
    bits: 8,
    codes: { fields: [{ at: shared(32, 2, 8, 1), bits: 8 }], table: signed(8) },
    scale: kScale,
  },
} as const satisfies Readonly<Record<string, BlockLayout>>;
