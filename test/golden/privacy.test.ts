// The accountant against Opacus and Google's dp-accounting.
import { expect, it } from 'vitest';
import { noiseForPrivacy, privacyAccountant } from '../../lib/index.js';
import { sampledGaussianDivergence } from '../../lib/statistics/privacy/renyi.js';
import { seriesDivergence } from '../../lib/statistics/privacy/series.js';
import { loadCase } from './case-file.js';
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
