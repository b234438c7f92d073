/** What a method adds to the loss of a step: MonteCLoRA's divergences, the mean over layers and passes. */

import { describe, expect, it } from 'vitest';
import { hash32 } from '../../lib/core/random.js';
import { montecloraLoss, scope, type Tensor } from '../../lib/index.js';
import { gradientOf, offsetsOf, tinyTrainer, valuesOf } from './setup.js';

const options = (klLossWeight: number, method = 'monteclora') => ({
  accumulate: 2,
  adapter:
    method === 'lora'
      ? { targets: ['q_proj', 'up_proj'] as const }
      : { method, targets: ['q_proj', 'up_proj'] as const, r: 3, samples: 2, klLossWeight },
});

describe('the penalty of a method', () => {
  it('is in the gradient of a step, with the seeds of its passes, and not in its loss', async () => {
    const [without, within] = [
      tinyTrainer({}, { format: 'nf4' }, options(0)).trainer,
      tinyTrainer({}, { format: 'nf4' }, options(0.5)).trainer,
    ];
    const [plain, added] = [gradientOf(without), gradientOf(within)];
    expect(added.loss).toBe(plain.loss);
    const { layers } = within.adapters;
    expect(layers.length).toBe(4);
    const offsets = offsetsOf(within);
    const expected = new Float64Array(added.gradient.length);
    for (const pass of [0, 1]) {
      const seed = hash32(within.options.seed, 'pass', 0, pass);
      for (const { place, adapter } of layers) {
        scope(() => {
          const { gradients } = montecloraLoss(adapter, { seed: hash32(seed, place.module) });
          for (const [name, gradient] of Object.entries(gradients as Record<string, Tensor>)) {
            const at = offsets.get(`${place.module}.${name}`) as number;
            gradient.readSync().forEach((value, i) => {
              expected[at + i] = (expected[at + i] as number) + value / (2 * layers.length);
            });
          }
        });
      }
    }
    expect(expected.some((value) => value !== 0)).toBe(true);
    added.gradient.forEach((value, i) => {
      const difference = value - (plain.gradient[i] as number);
      expect(Math.abs(difference - (expected[i] as number))).toBeLessThan(1e-5);
    });
  });

  it('that is not finite stops the run before anything is changed', async () => {
    const { trainer } = tinyTrainer({}, { format: 'nf4' }, options(0.5));
    const { stdPrior } = trainer.adapters.layers[1]?.adapter.parameters ?? {};
    stdPrior?.write(new Float32Array(stdPrior.size).fill(1e4));
    const before = valuesOf(trainer);
    await expect(trainer.train()).rejects.toThrow(
      expect.objectContaining({ code: 'ERR_NON_FINITE' }),
    );
    expect(valuesOf(trainer)).toEqual(before);
    expect(trainer.step).toBe(0);
  });

  it('of a method without one is nothing', async () => {
    const { trainer } = tinyTrainer({}, { format: 'nf4' }, options(0, 'lora'));
    expect((await trainer.train()).gradientNorm).toBeGreaterThan(0);
  });
});
