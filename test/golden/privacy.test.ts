// The accountant against Opacus and Google's dp-accounting; clipped sums of LoRA's gradients against Opacus.
import { describe, expect, it } from 'vitest';
import {
  noiseForPrivacy,
  perExampleGradients,
  privacyAccountant,
  scope,
  Tensor,
} from '../../lib/index.js';
import { sampledGaussianDivergence } from '../../lib/statistics/privacy/renyi.js';
import { seriesDivergence } from '../../lib/statistics/privacy/series.js';
import { DEVICES } from '../conformance/operands.js';
import { loadCase } from './case-file.js';
import { tensorOf } from './library.js';
import { RuleBook } from './rules.js';

/** Rows of a matrix. */
const rowsOf = (values: Float64Array, columns: number): number[][] =>
  Array.from({ length: values.length / columns }, (_, i) =>
    Array.from(values.subarray(i * columns, (i + 1) * columns)),
  );

it('finds the divergences and epsilons of the peers', () => {
  const golden = loadCase('privacy/rdp_epsilon');
  const rules = new RuleBook(golden);
  const runs = rowsOf(golden.numbers('in.runs'), 4);
  const orders = [...golden.numbers('in.orders')];
  const divergences = runs.flatMap(([q = 0, sigma = 0, steps = 0]) =>
    orders.map((order) => {
      const closed = q === 1 || Number.isInteger(order);
      const one = closed
        ? sampledGaussianDivergence(q, sigma, order)
        : seriesDivergence(q, sigma, order, false);
      return steps * one;
    }),
  );
  rules.check('out.rdp', divergences);
  const peers = [
    ['opacus', ''],
    ['dp-accounting', '_dp_accounting'],
  ] as const;
  for (const [sums, suffix] of peers) {
    const found = runs.map(([sampleRate = 0, noise = 0, steps = 0, delta = 0]) =>
      privacyAccountant({ sampleRate, noise, steps, delta, orders, sums }),
    );
    const [epsilon, order] = [found.map((each) => each.epsilon), found.map((each) => each.order)];
    rules.check(`out.epsilon${suffix}`, epsilon);
    rules.check(`out.order${suffix}`, order);
  }
  // What the library says by itself is nearer to the truth, and within the rules of epsilon too.
  const exact = runs.map(([sampleRate = 0, noise = 0, steps = 0, delta = 0]) =>
    privacyAccountant({ sampleRate, noise, steps, delta, orders }),
  );
  rules.check(
    'out.epsilon',
    exact.map(({ epsilon }) => epsilon),
  );
  rules.finish();
});

it('finds the noise of the peer', () => {
  const golden = loadCase('privacy/noise_for_epsilon');
  const rules = new RuleBook(golden);
  const orders = [...golden.numbers('in.orders')];
  const targets = rowsOf(golden.numbers('in.targets'), 4);
  const noise = targets.map(([sampleRate = 0, steps = 0, delta = 0, epsilon = 0]) =>
    noiseForPrivacy({ sampleRate, steps, delta, epsilon, orders, sums: 'dp-accounting' }),
  );
  rules.check('out.noise_multiplier', noise);
  rules.finish();
  expect(noise).toHaveLength(3);
});

describe.each(DEVICES)('on %s', (device) => {
  it.each(['ghost_norms_lora', 'ghost_norms_one_token'])('%s', (name) => {
    scope(() => {
      const golden = loadCase(`privacy/${name}`);
      const rules = new RuleBook(golden);
      const { examples, scaling, max_grad_norm, noise_multiplier } = golden.params as Record<
        string,
        number
      >;
      const of = (tensor: string) => tensorOf(golden.tensor(tensor), device);
      const [x, dy, a, b] = [
        of('in.x'),
        of('in.grad_out'),
        of('adapter.lora_A'),
        of('adapter.lora_B'),
      ] as const;
      const w = Tensor.zeros([b.shape[0] as number, a.shape[1] as number], { device });
      const found = perExampleGradients((t) => {
        const input = t.constant(x);
        const h = t.shrink(input, t.variable(a));
        const y = t.expand(input, w, h, t.variable(b), { scaling: scaling as number });
        const all = t.sum(t.multiply(y, t.constant(dy)), 0);
        const loss = t.sum(t.reshape(all, [1, all.tensor.size]), 1);
        return { loss: t.reshape(loss, [1]), examples: examples as number };
      });
      const bound = max_grad_norm as number;
      const sums = found.clipped(bound);
      rules.check('out.norms', found.norms.readSync());
      // From each example's own gradient.
      const factors = Array.from({ length: examples as number }, (_, i) => {
        const weight = Float32Array.from({ length: examples as number }, (_, j) => +(i === j));
        const one = found.weighted(Tensor.from(weight, [weight.length], { device }));
        const norm = Math.hypot(...[...one.values()].flatMap((each) => [...each.readSync()]));
        return Math.min(1, bound / (norm + 1e-6));
      });
      rules.check('out.clip_factor', factors);
      for (const [factor, side] of [
        [a, 'A'],
        [b, 'B'],
      ] as const) {
        const noise = golden.numbers(`in.noise_${side}`);
        const made = (sums.get(factor) as Tensor).readSync();
        const gradient = Array.from(
          made,
          (sum, i) =>
            (sum + (noise_multiplier as number) * bound * (noise[i] as number)) /
            (examples as number),
        );
        rules.check(`out.grad_lora_${side}`, gradient);
      }
      rules.finish();
    });
  });
});
