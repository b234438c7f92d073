/** Blocks of 256 whose groups have integer scales, and some integer minima, times an f16 of the block. */

import {
  type BlockField,
  type BlockLayout,
  type BlockPlane,
  counting,
  shared,
  signed,
} from './layout.js';

const field = (
  [count, byte, bits, chunk]: readonly [number, number, number, number],
  shift = 0,
): BlockField => ({ at: shared(count, byte, bits, chunk), bits, shift });

/** Nibbles of the 16 bytes at the start of Q2_K: the low one is a group's scale, the high one its minimum. */
const nibblesOf = (high: 0 | 1, half: number): BlockPlane => ({
  integers: {
    fields: [{ at: Array.from({ length: 16 }, (_, i) => 8 * i + 4 * high), bits: 4 }],
    table: counting(4),
  },
  half,
});

/**
 * Eight 6-bit integers of the 12 bytes b from `byte` on. The first four are the low bits of b[from + j]. The other four have
 * their low bits in a nibble of b[4 + j], and their upper bits above those of the first four.
 */
function sixBits(byte: number, from: 0 | 4): BlockPlane {
  const low = from === 0 ? 0 : 4;
  const groups = [0, 1, 2, 3, 4, 5, 6, 7];
  return {
    integers: {
      fields: [
        {
          at: groups.map((j) => (j < 4 ? 8 * (byte + from + j) : 8 * (byte + 4 + j) + low)),
          bits: groups.map((j) => (j < 4 ? 6 : 4)),
        },
        {
          at: groups.map((j) => 8 * (byte + from + (j % 4)) + 6),
          bits: groups.map((j) => (j < 4 ? 0 : 2)),
          shift: 4,
        },
      ],
      table: counting(6),
    },
    half: from / 2,
  };
}

export const kQuantBlocks = {
  Q2_K: {
    group: 16,
    bits: 2,
    codes: { fields: [field([256, 16, 2, 32])], table: counting(2) },
    scale: nibblesOf(0, 80),
    min: nibblesOf(1, 82),
  },
  Q3_K: {
    group: 16,
    bits: 3,
    codes: { fields: [field([256, 0, 1, 32], 2), field([256, 32, 2, 32])], table: counting(3, -4) },
    scale: {
      integers: {
        fields: [field([16, 96, 4, 8]), field([16, 104, 2, 4], 4)],
        table: counting(6, -32),
      },
      half: 108,
    },
  },
  Q4_K: {
    group: 32,
    bits: 4,
    codes: { fields: [field([256, 16, 4, 32])], table: counting(4) },
    scale: sixBits(4, 0),
    min: sixBits(4, 4),
  },
  Q5_K: {
    group: 32,
    bits: 5,
    codes: { fields: [field([256, 16, 1, 32], 4), field([256, 48, 4, 32])], table: counting(5) },
    scale: sixBits(4, 0),
    min: sixBits(4, 4),
  },
  Q6_K: {
    group: 16,
    bits: 6,
    codes: {
      fields: [field([256, 0, 4, 64]), field([256, 128, 2, 32], 4)],
      table: counting(6, -32),
    },
    scale: {
      integers: { fields: [field([16, 192, 8, 1])], table: signed(8) },
      half: 208,
    },
  },
} as const satisfies Readonly<Record<string, BlockLayout>>;
