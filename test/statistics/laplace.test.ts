// Laplace-LoRA against dense matrices in float64: curvature, evidence, predictive covariance.
import { describe, expect, it } from 'vitest';
import {
  type LaplacePosterior,
  type LogitsPass,
  laplace,
  predictiveProbabilities,
} from '../../lib/index.js';
import {
  C,
  forward,
  gaussNewton,
  H,
  inputs,
  kronecker,
  NAMES,
  network,
  type Oracle,
  oracle,
  type Rows,
} from './laplace-oracle.js';

const near = (mine: number, expected: number, scale: number, what: string) =>
  expect(Math.abs(mine - expected), `${what}: ${mine}, ${expected}`).toBeLessThan(2e-4 * scale);

function compare(
  posterior: LaplacePosterior,
  own: Oracle,
  test: Rows,
  T: number,
  pass: LogitsPass,
) {
  for (const lambda of [0.01, 0.3, 1, 20]) {
    const evidence = own.evidence(lambda);
    near(
      posterior.logMarginalLikelihood(lambda),
      evidence,
      Math.abs(evidence),
      `evidence at ${lambda}`,
    );
    posterior.priorPrecision = lambda;
    const { examples, classes, logits, covariance } = posterior.predict(pass);
    expect([examples, classes]).toEqual([test.length / T, C]);
    for (let n = 0; n < examples; n++) {
      const expected = own.covariance(test, T, n, lambda);
      const scale = Math.max(...expected.map((row, c) => row[c] as number));
      for (let c = 0; c < C; c++) {
        near(logits[n * C + c] as number, forward(test, T).logits[n]?.[c] as number, 1, 'logit');
        for (let d = 0; d < C; d++) {
          near(
            covariance[(n * C + c) * C + d] as number,
            expected[c]?.[d] as number,
            scale,
            `${n} ${c} ${d} at ${lambda}`,
          );
        }
      }
    }
  }
}

describe.each(['cpu', 'reference'] as const)('laplace on %s', (device) => {
  it.each([
    ['an example a row', 1],
    ['examples of three rows', 3],
  ])('equals Kronecker products, determinants and solves: %s', async (_, T) => {
    const { factors, pass, dispose } = network(device);
    const batches = [inputs(4, T, 21), inputs(3, T, 22)] as const;
    const labels = [0, 2, 1, 1, 2, 0, 1];
    const posterior = await laplace(
      [
        { pass: pass(batches[0], T), labels: labels.slice(0, 4) },
        { pass: pass(batches[1], T), labels: Int32Array.from(labels.slice(4)) },
      ],
      { rank: H },
    );
    expect(posterior.examples).toBe(7);
    expect(posterior.parameters).toBe(
      Object.values(factors).reduce((sum, { size }) => sum + size, 0),
    );
    const all = batches.flat();
    const curvatures = Object.fromEntries(NAMES.map((name) => [name, kronecker(all, T, name)]));
    const test = inputs(2, T, 33);
    compare(posterior, oracle(curvatures, all, T, labels), test, T, pass(test, T));
    posterior.dispose();
    dispose();
  });

  it.each(NAMES)(
    'equals the Gauss-Newton matrix where a Kronecker product does: %s alone',
    async (name) => {
      // The same example several times: inputs and gradients do not vary together.
      const { factors, pass, dispose } = network(device);
      const one = inputs(1, 1, 40);
      const x = [one, one, one].flat();
      const labels = [2, 0, 2];
      const posterior = await laplace([{ pass: pass(x, 1), labels }], {
        rank: H,
        trained: [factors[name]],
      });
      const own = oracle({ [name]: gaussNewton(x, 1, name) }, x, 1, labels);
      const test = inputs(2, 1, 41);
      compare(posterior, own, test, 1, pass(test, 1));
      posterior.dispose();
      dispose();
    },
  );

  it('needs few directions where the data have few', async () => {
    const { pass, dispose } = network(device);
    const x = inputs(2, 1, 50);
    const labels = [1, 2];
    // Two examples: at most two directions of inputs; of gradients two an example and class.
    const posterior = await laplace([{ pass: pass(x, 1), labels }], { rank: 4 });
    const curvatures = Object.fromEntries(NAMES.map((name) => [name, kronecker(x, 1, name)]));
    const test = inputs(2, 1, 51);
    compare(posterior, oracle(curvatures, x, 1, labels), test, 1, pass(test, 1));
    posterior.dispose();
    dispose();
  });

  it('chooses the prior with the largest evidence', async () => {
    const { pass, dispose } = network(device);
    const x = inputs(6, 1, 60);
    const labels = forward(x, 1).logits.map((z) => z.indexOf(Math.max(...z)));
    const posterior = await laplace([{ pass: pass(x, 1), labels }], { rank: H });
    const best = posterior.fitPriorPrecision();
    expect(posterior.priorPrecision).toBe(best);
    const curvatures = Object.fromEntries(NAMES.map((name) => [name, kronecker(x, 1, name)]));
    const { evidence } = oracle(curvatures, x, 1, labels);
    const value = posterior.logMarginalLikelihood();
    for (const factor of [1e-3, 0.5, 0.9, 1.1, 2, 1e3]) {
      expect(posterior.logMarginalLikelihood(best * factor)).toBeLessThan(value);
      expect(evidence(best * factor)).toBeLessThan(evidence(best));
    }
    posterior.dispose();
    dispose();
  });
});

describe('predictiveProbabilities', () => {
  it('averages the softmax over draws', () => {
    // Two classes: the logistic function of a normal difference, by quadrature.
    const covariance = Float64Array.from([2, 0.5, 0.5, 1]);
    const logits = Float64Array.from([1.2, -0.3]);
    const [mean, sigma] = [1.5, Math.sqrt(2 + 1 - 2 * 0.5)];
    let expected = 0;
    for (let z = -8; z < 8; z += 1e-3) {
      const density = Math.exp((-z * z) / 2) / Math.sqrt(2 * Math.PI);
      expected += (density / (1 + Math.exp(-(mean + sigma * z)))) * 1e-3;
    }
    const prediction = { examples: 1, classes: 2, logits, covariance };
    const [p = 0, q = 0] = predictiveProbabilities(prediction, { samples: 200_000, seed: 3 });
    expect(p + q).toBeCloseTo(1, 10);
    expect(Math.abs(p - expected)).toBeLessThan(5 * (0.25 / Math.sqrt(200_000)) * 2);
    expect(p).toBeLessThan(1 / (1 + Math.exp(-1.5)));
    const again = predictiveProbabilities(prediction, { samples: 100, seed: 3 });
    expect(predictiveProbabilities(prediction, { samples: 100, seed: 3 })).toEqual(again);
    const sure = { ...prediction, covariance: new Float64Array(4) };
    expect(predictiveProbabilities(sure, { samples: 3 })[0]).toBeCloseTo(
      1 / (1 + Math.exp(-1.5)),
      10,
    );
    // A singular covariance: both logits move together, and nothing changes.
    const together = { ...prediction, covariance: Float64Array.from([1, 1, 1, 1]) };
    expect(predictiveProbabilities(together, { samples: 50 })[0]).toBeCloseTo(
      1 / (1 + Math.exp(-1.5)),
      3,
    );
    expect(() => predictiveProbabilities(prediction, { samples: 0 })).toThrow(
      'samples must be an integer',
    );
    const broken = { ...prediction, covariance: Float64Array.from([Number.NaN, 0, 0, 1]) };
    expect(() => predictiveProbabilities(broken)).toThrow('the covariance must be finite');
  });
});
