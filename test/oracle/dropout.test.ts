import { describe, expect, it } from 'vitest';
import { dropoutKeeps, dropoutMask64, philox4x32 } from './dropout.js';

describe('Philox4x32-10', () => {
  // Known answers of the authors' own distribution (Random123).
  it.each([
    [
      [0, 0, 0, 0],
      [0, 0],
      [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8],
    ],
    [
      [0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff],
      [0xffffffff, 0xffffffff],
      [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd],
    ],
    [
      [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344],
      [0xa4093822, 0x299f31d0],
      [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1],
    ],
  ] as const)('of %j under %j', (counter, key, words) => {
    expect(philox4x32(counter, key)).toEqual(words);
  });

  it('a mask is the element rule, row-major, and uses both halves of the seed', () => {
    const mask = dropoutMask64(7, 0.3, 5, 13);
    for (let i = 0; i < 65; i++) expect(mask.data[i] === 1).toBe(dropoutKeeps(7, i, 0.3));
    expect(dropoutMask64(7 + 2 ** 32, 0.3, 5, 13).data).not.toEqual(mask.data);
    expect(dropoutMask64(8, 0.3, 5, 13).data).not.toEqual(mask.data);
  });
});
