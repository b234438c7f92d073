// The updates of the host have the bits of the native step, and the decay where their formulas have it.
import { expect, it } from 'vitest';
import { adamwStep, scope, Tensor } from '../../lib/index.js';
import { encodeStates, stateMap } from '../../lib/optim/eight-bit/dynamic-map.js';
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

it('codes of 8 bits are the nearest levels, found one by one', () => {
  for (const signed of [true, false]) {
    const map = stateMap(signed);
    const random = randomValues(4096, 9).map((x, i) => x * 10 ** -(i % 9));
    const exact = [...map.levels, 0, -0, 1, 1e-30, -1e-30].map((x) => (signed ? x : Math.abs(x)));
    const values = Float32Array.from([...exact, ...random].map((x) => (signed ? x : Math.abs(x))));
    const codes = new Uint8Array(values.length);
    const absmax = new Float32Array(Math.ceil(values.length / 256));
    encodeStates(values, map, codes, absmax);
    for (const [i, x] of values.entries()) {
      const scaled = Math.fround(x / (absmax[i >> 8] as number));
      const distance = (level: number) => Math.abs(scaled - level);
      const allowed = [...map.levels].filter((level) => !signed || x === 0 || level * x >= 0);
      const least = Math.min(...allowed.map(distance));
      // At the bound of two signs the code next to the nearest counts, whatever its distance.
      const got = distance(map.levels[codes[i] as number] as number);
      expect(got === least || Math.abs(scaled) < 1e-6, `${x}`).toBe(true);
    }
  }
});
