/**
 * Few rows of each of many adapters, which Hopper takes in one launch, have the bits of the two launches that other
 * cards take.
 */
import { expect, it } from 'vitest';
import { emulated, runOnCards } from './cards.js';
import { DEVICES } from './case-runs.mjs';

const KERNELS = ['grouped_forward_kernel', 'grouped_shrink_kernel', 'grouped_expand_kernel'];

it.runIf(emulated)(
  'few rows of many adapters have the same bits in one launch and in two',
  async () => {
    const runs = await runOnCards(
      '^grouped few rows ',
      DEVICES.map(({ name }) => name),
    );
    expect(runs[0]?.lines).toHaveLength(6);
    for (const { lines } of runs.slice(1)) expect(lines).toEqual(runs[0]?.lines);
    // Six batches a case, one of them with two adapters a row, one with too many ranks for a cluster.
    expect(runs.map(({ launches }) => KERNELS.map(launches))).toEqual([
      [0, 36, 42],
      [0, 36, 42],
      [36, 6, 6],
      [36, 6, 6],
    ]);
  },
  600_000,
);
