// The updates of the host have the bits of the native step, and the decay where their formulas have it.
import { expect, it } from 'vitest';
import { adamwStep, scope, Tensor } from '../../lib/index.js';
import { adamRule, ademamixRule, lionRule } from '../../lib/optim/parts/rules.js';
import { randomValues } from '../finetune/setup.js';

it('AdamW with the decay before the step, as native', () => {
  scope(() => {
    const n = 1000;
    const settings = { beta1: 0.8, beta2: 0.95, eps: 1e-6 };
    const [p, m, v] = [randomValues(n, 1), new Float32Array(n), new Float32Array(n)];
    const tensor = (values: Float32Array) => Tensor.from(values, [n], { device: 'cpu' });
    const [tp, tm, tv] = [tensor(p), tensor(m), tensor(v)];
    for (let step = 1; step <= 6; step++) {
      const g = randomValues(n, 10 + step);
      const [lr, weightDecay] = [0.0078125 * step, 0.25];
      adamRule({ p, g, lr, weightDecay, step }, m, v, settings, { decay: 'before' });
      adamwStep([tp], [tensor(g)], [tm], [tv], {
        ...{ lr, step, weightDecay, betas: [0.8, 0.95], eps: 1e-6 },
      });
      expect([p, m, v]).toEqual([tp, tm, tv].map((t) => t.readSync()));
    }
  });
});

/** Learning rate and decay so large that their order shows. */
const [kLr, kDecay] = [0.25, 0.5];

it('AdEMAMix with the decay before or after the step, as its formula in float64', () => {
  const constants = { beta1: 0.8, beta2: 0.95, beta3: 0.99, alpha: 2, eps: 1e-6 };
  for (const decay of ['before', 'after'] as const) {
    const [p, g] = [randomValues(50, 3), randomValues(50, 4)];
    const start = p.slice();
    const state = () => new Float32Array(50);
    const update = { p, g, lr: kLr, weightDecay: kDecay, step: 1 };
    ademamixRule(update, state(), state(), state(), constants, decay);
    for (const [i, value] of start.entries()) {
      const gradient = g[i] as number;
      const moved = (kLr * (gradient + 2 * 0.01 * gradient)) / (Math.abs(gradient) + 1e-6);
      const kept = 1 - kLr * kDecay;
      const expected = decay === 'before' ? value * kept - moved : (value - moved) * kept;
      expect(p[i]).toBeCloseTo(expected, 5);
    }
  }
});

it('Lion with the decay apart from its mean, as its formula in float64', () => {
  const [p, g, m] = [randomValues(50, 5), randomValues(50, 6), randomValues(50, 7)];
  const [start, mean] = [p.slice(), m.slice()];
  lionRule({ p, g, lr: kLr, weightDecay: kDecay, step: 1 }, m, { beta1: 0.8, beta2: 0.9 });
  for (const [i, value] of start.entries()) {
    const [gradient, old] = [g[i] as number, mean[i] as number];
    const direction = Math.sign(0.8 * old + 0.2 * gradient) + kDecay * value;
    expect(p[i]).toBeCloseTo(value - kLr * direction, 5);
    expect(m[i]).toBeCloseTo(0.9 * old + 0.1 * gradient, 6);
  }
});
