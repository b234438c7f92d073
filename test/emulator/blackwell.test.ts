/** Cards after Hopper: data centre cards keep its clusters, and RTX cards are given none. */
import { expect, it } from 'vitest';
import { emulated, runOnCards } from './cards.js';

const FILTER = '^grouped few rows bf16 nf4$';
const CARDS = ['sm_90', 'sm_100', 'sm_120'];

it.runIf(emulated)(
  'a batch of few rows an adapter goes by clusters on sm_90 and sm_100',
  async () => {
    const runs = await runOnCards(FILTER, CARDS);
    const launched = (kernels: RegExp) => runs.map((run) => run.launched(kernels) > 0);
    expect(launched(/^grouped_forward_/)).toEqual([true, true, false]);
    expect(launched(/cluster|wgmma/)[2]).toBe(false);
    expect(launched(/wgmma/)[1]).toBe(false);
    for (const { lines } of runs)
      expect(lines.map(([name]) => name)).toEqual(runs[0]?.lines.map(([name]) => name));
  },
  600_000,
);
