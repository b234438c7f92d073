/** What a method adds to the loss of a step: MonteCLoRA's divergences, the mean over layers and passes. */

import { beforeAll, describe, expect, it } from 'vitest';
import { montecloraLoss, scope, type Tensor } from '../../lib/index.js';
import { FusedKernels } from '../../lib/train/kernels.js';
import { hash32 } from '../../lib/train/random.js';
import { tinyTrainer, useBackend } from './setup.js';

beforeAll(() => useBackend('cpu'));

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
      (await tinyTrainer({}, { format: 'nf4' }, options(0))).trainer,
      (await tinyTrainer({}, { format: 'nf4' }, options(0.5))).trainer,
    ];
    const losses = [without, within].map((trainer) => trainer.rehearse(new FusedKernels()));
    expect(losses[1]).toBe(losses[0]);
    const { slots } = within.adapters;
    expect(slots.length).toBe(4);
    const expected = new Float64Array(within.lastGradient.length);
    for (const pass of [0, 1]) {
      const seed = hash32(within.options.seed, 'dropout', 0, pass);
      slots.forEach(({ adapter, parameters }, index) => {
        scope(() => {
          const { gradients } = montecloraLoss(adapter, { seed: hash32(seed, index) });
          for (const { name, at_elems } of parameters) {
            const own = (gradients as Readonly<Record<string, Tensor>>)[name]?.readSync() ?? [];
            own.forEach((value: number, i: number) => {
              expected[at_elems + i] =
                (expected[at_elems + i] as number) + value / (2 * slots.length);
            });
          }
        });
      });
    }
    expect(expected.some((value) => value !== 0)).toBe(true);
    within.lastGradient.forEach((value, i) => {
      const added = value - (without.lastGradient[i] as number);
      expect(Math.abs(added - (expected[i] as number))).toBeLessThan(1e-5);
    });
  });

  it('follows the parameters as they are trained', async () => {
    const { trainer } = await tinyTrainer({}, { format: 'nf4' }, options(0.5));
    const kernels = new FusedKernels();
    trainer.train(kernels);
    const { parameters, adapter } = trainer.adapters.slots[0] as (typeof trainer.adapters.slots)[0];
    trainer.rehearse(kernels);
    for (const { name, values } of parameters)
      expect(adapter.parameters[name]?.readSync()).toEqual(values.slice());
  });

  it('that is not finite stops the run before anything is changed', async () => {
    const { trainer } = await tinyTrainer({}, { format: 'nf4' }, options(0.5));
    const prior = trainer.adapters.slots[1]?.parameters.find(({ name }) => name === 'stdPrior');
    prior?.values.fill(1e4);
    const before = trainer.adapters.values.slice();
    expect(() => trainer.train(new FusedKernels())).toThrow(
      expect.objectContaining({ code: 'ERR_NON_FINITE' }),
    );
    expect(trainer.adapters.values).toEqual(before);
    expect(trainer.step).toBe(0);
  });

  it('of a method without one is nothing', async () => {
    const { trainer } = await tinyTrainer({}, { format: 'nf4' }, options(0, 'lora'));
    expect(trainer.train(new FusedKernels()).gradientNorm).toBeGreaterThan(0);
  });
});
