/** The comparison of a training step with other trainers. */

import { expect, it } from 'vitest';
import { ratioOf } from '../../lib/compare/compare.js';

const samples = (...times: readonly number[]) => ({
  // Negative: other programs used the cores.
  samples: times.map((ms) => ({ ms: Math.abs(ms), clean: ms > 0 })),
});

it('takes ratios of clean samples of the same round, and none of fewer than three', () => {
  expect(ratioOf(samples(20, 60, 90, 1), samples(10, 20, 30, -9))).toBe(3);
  expect(ratioOf(samples(20, 60, -90), samples(10, 20, 30))).toBeUndefined();
  expect(ratioOf(samples(20, 60), samples(10, 20, 30))).toBeUndefined();
});
