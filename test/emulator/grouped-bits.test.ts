/**
 * Few rows of each of many adapters, which Hopper takes in one launch, have the bits of the two launches that other
 * cards with the same tensor cores take.
 */
import { expect, it } from 'vitest';
import { emulated, runOnCards } from './cards.js';
import { DEVICES } from './case-runs.mjs';

const KERNELS = ['grouped_forward_kernel', 'grouped_shrink_kernel', 'grouped_expand_kernel'];

it.runIf(emulated)(
  'few rows of many adapters have the same bits in one launch and in two',
  async () => {
    const runs = await runOnCards('^grouped few rows ', [
      ...DEVICES.map(({ name }) => name),
      'sm_120',
    ]);
    const [small, smaller, hopper, few, later] = runs.map(({ lines }) => lines);
    expect(small).toHaveLength(6);
    expect(smaller).toEqual(small);
    // Tensor cores cut sums off otherwise from compute capability 9.0 on.
    expect(few).toEqual(hopper);
    expect(later).toEqual(hopper);
    // Six batches a case, one of them with two adapters a row, one with too many ranks for a cluster.
    expect(runs.map(({ launches }) => KERNELS.map(launches))).toEqual([
      [0, 36, 42],
      [0, 36, 42],
      [36, 6, 6],
      [36, 6, 6],
      [0, 36, 42],
    ]);
  },
  600_000,
);
