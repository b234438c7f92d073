// MonteCLoRA's draws: their moments against draws of another generator, the gradients through one, the
// divergences against integrals.
import { describe, expect, it } from 'vitest';
import {
  type Adapter,
  adapters,
  checkGradients,
  type Device,
  devices,
  montecloraLoss,
  scope,
  Tensor,
} from '../../lib/index.js';

const available = devices()
  .filter(({ available }) => available)
  .map(({ device }) => device);

/** Uniform and normal numbers of another generator than the library's. */
function generator(seed: number) {
  let state = seed >>> 0;
  const uniform = (): number => {
    state = (state + 0x6d2b79f5) >>> 0;
    let z = state;
    z = Math.imul(z ^ (z >>> 15), z | 1);
    z ^= z + Math.imul(z ^ (z >>> 7), z | 61);
    return (((z ^ (z >>> 14)) >>> 0) + 0.5) / 2 ** 32;
  };
  const normal = () => Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform());
  return { uniform, normal };
}

interface Priors {
  readonly std: readonly number[];
  readonly expert: readonly number[];
}

/** An adapter whose y over the identity is loraA as it was drawn, transposed. */
function transparent(device: Device, K: number, scaler: number, { std, expert }: Priors) {
  const r = std.length;
  const eye = Float32Array.from({ length: r * r }, (_, i) => (i % (r + 1) === 0 ? 1 : 0));
  const place = { inFeatures: K, outFeatures: r, device, seed: 1 };
  const adapter = adapters.monteclora.create({
    ...place,
    ...{ r, loraAlpha: r, samples: expert.length, sampleScaler: scaler },
  });
  adapter.parameters.loraB?.write(eye);
  adapter.parameters.stdPrior?.write(Float32Array.from(std));
  adapter.parameters.expertPrior?.write(Float32Array.from(expert));
  return adapter as unknown as Adapter;
}

/** Weights of a draw as the paper's approximation of a Dirichlet has them. */
function weightsOf(expert: readonly number[], normal: () => number): number[] {
  const n = expert.length;
  const alphas = expert.map(Math.exp);
  const mean = expert.reduce((sum, p) => sum + p, 0) / n;
  const inverse = alphas.reduce((sum, alpha) => sum + 1 / alpha, 0);
  const exp = expert.map((p, e) => {
    const variance = (1 - 2 / n) / (alphas[e] as number) + inverse / n ** 2;
    return Math.exp(p - mean + Math.sqrt(variance + 1e-6) * normal());
  });
  const sum = exp.reduce((total, v) => total + v, 0);
  return exp.map((v) => v / sum);
}

describe.each(available)('a draw on %s', (device) => {
  const priors = { std: [0.2, -0.4, 0.5], expert: [0.3, 1.1, -0.5, 0.1] };
  const [K, draws, scaler] = [64, device === 'cuda-emulated' ? 60 : 300, 0.25];

  it('has the moments of its distributions', () => {
    scope(() => {
      const adapter = transparent(device, K, scaler, priors);
      const r = priors.std.length;
      const eye = Tensor.from(
        Float32Array.from({ length: K * K }, (_, i) => (i % (K + 1) === 0 ? 1 : 0)),
        [K, K],
        { device },
      );
      const w = Tensor.zeros([r, K], { device });
      const mean = adapter.parameters.loraA?.readSync() as Float32Array;
      const squares = new Float64Array(r);
      const fourths = new Float64Array(r);
      let sum = 0;
      for (let seed = 0; seed < draws; seed++) {
        scope(() => {
          const { y, saved } = adapter.forward(eye, w, { seed });
          const values = y.readSync();
          saved.dispose();
          for (let i = 0; i < r; i++) {
            // Of this draw: the variance of row i.
            let own = 0;
            for (let k = 0; k < K; k++) {
              const noise = ((values[k * r + i] as number) - (mean[i * K + k] as number)) / scaler;
              own += noise ** 2 / K;
              sum += noise;
            }
            squares[i] = (squares[i] as number) + own / draws;
            fourths[i] = (fourths[i] as number) + own ** 2 / draws;
          }
        });
      }
      const { normal } = generator(7);
      const many = 40_000;
      const expected = priors.std.map((s) => {
        let [square, fourth] = [0, 0];
        for (let i = 0; i < many; i++) {
          let wishart = 0;
          for (let j = 0; j < r; j++) wishart += normal() ** 2;
          const weights = weightsOf(priors.expert, normal);
          const v = Math.max(Math.exp(2 * s) * wishart, 1e-3);
          const own = v * weights.reduce((total, g) => total + g * g, 0);
          square += own / many;
          // Of a mean over K squares of normals.
          fourth += (own * own * (1 + 2 / K)) / many;
        }
        return { square, fourth };
      });
      // Five standard errors of the mean over draws.
      expected.forEach(({ square, fourth }, i) => {
        const deviation = Math.sqrt(fourth - square ** 2);
        const bound = (5 * deviation) / Math.sqrt(draws);
        expect(Math.abs((squares[i] as number) - square)).toBeLessThan(bound);
        expect(bound).toBeLessThan((device === 'cuda-emulated' ? 0.8 : 0.4) * square);
        expect((fourths[i] as number) / fourth).toBeGreaterThan(0.25);
        expect((fourths[i] as number) / fourth).toBeLessThan(4);
      });
      const all = expected.reduce((total, { square }) => total + square, 0);
      expect(Math.abs(sum)).toBeLessThan(5 * Math.sqrt(draws * K * all));
    });
  });

  it('is that of its seed, and none without one', async () => {
    await scope(async () => {
      const adapter = transparent(device, K, scaler, priors);
      const x = Tensor.randn([5, K], { seed: 2, device });
      const w = Tensor.randn([3, K], { seed: 3, device });
      const run = (options: object) => adapter.forward(x, w, options).y.read();
      const mean = await run({});
      expect(await run({ seed: 5 })).toEqual(await run({ seed: 5 }));
      expect(await run({ seed: 5 })).not.toEqual(await run({ seed: 6 }));
      expect(await run({ seed: 5 })).not.toEqual(mean);
      expect(await run({ seed: 5, training: false })).toEqual(mean);
    });
  });
});

it('has the gradients of a draw', () => {
  scope(() => {
    const priors = { std: [0.2, -0.4, 0.5], expert: [0.3, 1.1, -0.5, 0.1] };
    const K = 12;
    const adapter = transparent('reference', K, 0.5, priors);
    const draw = (shape: number[], seed: number) =>
      Tensor.randn(shape, { seed, device: 'reference' });
    const w = draw([3, K], 3);
    const run = (at: Record<string, Tensor>) => {
      for (const [name, tensor] of Object.entries(adapter.parameters)) {
        tensor.write((at[name] as Tensor).readSync());
      }
      return adapter.forward(at.dx as Tensor, w, { seed: 5 });
    };
    const start = Object.entries(adapter.parameters).map(([name, { shape }], i) => [
      name,
      draw([...shape], 20 + i),
    ]);
    const reports = checkGradients({
      inputs: { dx: draw([5, K], 2), ...Object.fromEntries(start) },
      forward: (at) => run(at).y,
      backward: (dy, at) => {
        const { dx, parameters } = adapter.backward(dy, run(at).saved);
        return { dx, ...parameters } as Record<string, Tensor>;
      },
    });
    expect(reports.map(({ name }) => name).sort()).toEqual(
      ['dx', 'expertPrior', 'loraA', 'loraB', 'stdPrior'].sort(),
    );
    expect(reports.filter(({ passed }) => !passed)).toEqual([]);
  });
});

describe('montecloraLoss', () => {
  const make = (settings: object, { std, expert }: Priors) => {
    const adapter = adapters.monteclora.create({
      ...{ inFeatures: 6, outFeatures: 5, device: 'reference', seed: 1 },
      ...{ r: std.length, samples: expert.length, klLossWeight: 1, ...settings },
    });
    adapter.parameters.stdPrior?.write(Float32Array.from(std));
    adapter.parameters.expertPrior?.write(Float32Array.from(expert));
    return adapter as unknown as Adapter;
  };
  const lossOf = (settings: object, priors: Priors, seed = 3): number =>
    montecloraLoss(make(settings, priors), { seed }).loss.readSync()[0] as number;

  /** `∫ p ln(p / q)` over (0, 1) after x = sin²(θ), which flattens the ends. */
  function betaDivergence([a, b]: readonly number[], c: number): number {
    const steps = 20_000;
    const log = (x: number, p: number, q: number) =>
      (p - 1) * Math.log(x) + (q - 1) * Math.log1p(-x);
    const grid = Array.from({ length: steps }, (_, i) => {
      const theta = ((i + 0.5) / steps) * (Math.PI / 2);
      return [Math.sin(theta) ** 2, Math.sin(2 * theta)] as const;
    });
    const total = (p: number, q: number) =>
      grid.reduce((sum, [x, dx]) => sum + Math.exp(log(x, p, q)) * dx, 0);
    const [mine, theirs] = [total(a as number, b as number), total(c, c)];
    return grid.reduce((sum, [x, dx]) => {
      const p = Math.exp(log(x, a as number, b as number)) / mine;
      const ratio = log(x, a as number, b as number) - log(x, c, c) - Math.log(mine / theirs);
      return sum + p * ratio * dx;
    }, 0);
  }

  it('has the divergence of the mixture’s weights', () => {
    scope(() => {
      const expert = [0.4, 0.9];
      // What is left when the concentration changes alone.
      const difference =
        lossOf({ dirichletPrior: 1.5 }, { std: [0], expert }) -
        lossOf({ dirichletPrior: 2.5 }, { std: [0], expert });
      const alphas = expert.map(Math.exp);
      const expected = betaDivergence(alphas, 1.5) - betaDivergence(alphas, 2.5);
      expect(Math.abs(difference - expected)).toBeLessThan(2e-6);
      // Of equal distributions none.
      const same = { std: [0], expert: [Math.log(1.5), Math.log(1.5)] };
      const moved = { std: [0], expert };
      const [zero, some] = [same, moved].map((p) => lossOf({ dirichletPrior: 1.5 }, p));
      expect(
        Math.abs((some as number) - (zero as number) - betaDivergence(alphas, 1.5)),
      ).toBeLessThan(2e-6);
    });
  });

  it('has the divergences of the variances that the seed draws', () => {
    scope(() => {
      const [r, n, seed] = [3, 2, 3];
      const expert = [0, 0];
      const at = (std: readonly number[]) => lossOf({ dirichletPrior: 1 }, { std, expert }, seed);
      const wishart = (s: number) => (r / 2) * (Math.exp(2 * s) - 2 * s - 1);
      const still = at([0, 0, 0]);
      // v = exp(2s) · c with the seed's c: what moving one s changes says its c.
      const chi = [0, 1, 2].map((i) => {
        const moved = at([0, 0, 0].map((_, j) => (i === j ? 0.5 : 0)));
        return ((moved - still - wishart(0.5)) / (n / 2) + 1) / (Math.E - 1);
      });
      // At exp(2s) = 1 and alpha = 1 nothing but the normals' divergence is left.
      const normals = chi.reduce((sum, c) => sum + (n / 2) * (c - Math.log(c) - 1), 0);
      expect(Math.abs(still - normals)).toBeLessThan(1e-4);
      const std = [0.3, -0.2, 0.7];
      const all = std.reduce((sum, s, i) => {
        const v = Math.exp(2 * s) * (chi[i] as number);
        return sum + wishart(s) + (n / 2) * (v - Math.log(v) - 1);
      }, 0);
      expect(Math.abs(at(std) - all)).toBeLessThan(1e-4);
      // And they are the variances of the forward pass's rows: of 16,384 columns, within five deviations.
      const K = 16_384;
      const adapter = transparent('reference', K, 1, { std: [0, 0, 0], expert });
      const x = Tensor.zeros([1, K], { device: 'reference' });
      const w = Tensor.zeros([r, K], { device: 'reference' });
      // dy of one row: the gradient of x is that row of the drawn loraA.
      const rows = [0, 1, 2].map((i) => {
        const { saved } = adapter.forward(x, w, { seed });
        const dy = Float32Array.from([0, 1, 2], (j) => (i === j ? 1 : 0));
        const { dx } = adapter.backward(Tensor.from(dy, [1, r], { device: 'reference' }), saved);
        const mean = adapter.parameters.loraA?.readSync() as Float32Array;
        return (dx as Tensor)
          .readSync()
          .reduce((sum, v, k) => sum + (v - (mean[i * K + k] as number)) ** 2 / K, 0);
      }) as [number, number, number];
      const bound = 5 * Math.sqrt(4 / K);
      for (const i of [1, 2] as const) {
        const ratio = rows[i] / rows[0] / ((chi[i] as number) / (chi[0] as number));
        expect(Math.abs(ratio - 1)).toBeLessThan(bound);
      }
    });
  });

  it('adds the weights’ squares where asked', () => {
    scope(() => {
      const priors = { std: [0.1, 0.2], expert: [0.3, -0.2, 0.8] };
      const entropy = lossOf({ useEntropy: true }, priors) - lossOf({}, priors);
      expect(entropy).toBeGreaterThan(1 / 3);
      expect(entropy).toBeLessThan(1);
      expect(lossOf({ klLossWeight: 0, useEntropy: true }, priors)).toBeCloseTo(entropy, 5);
    });
  });

  it('draws weights of their distribution', () => {
    const priors = { std: [0], expert: [0.3, 1.4, -0.9, 0.1] };
    const draws = 1500;
    const squares = Array.from({ length: draws }, (_, seed) =>
      scope(() => lossOf({ useEntropy: true, klLossWeight: 0 }, priors, seed)),
    );
    const { normal } = generator(9);
    const other = Array.from({ length: 20 * draws }, () =>
      weightsOf(priors.expert, normal).reduce((sum, g) => sum + g * g, 0),
    );
    const mean = (values: readonly number[]) => values.reduce((a, b) => a + b, 0) / values.length;
    const deviation = Math.sqrt(mean(other.map((v) => v * v)) - mean(other) ** 2);
    const bound = (5 * deviation) / Math.sqrt(draws);
    expect(Math.abs(mean(squares) - mean(other))).toBeLessThan(bound);
    expect(bound).toBeLessThan(0.05 * mean(other));
    const spread = Math.sqrt(mean(squares.map((v) => v * v)) - mean(squares) ** 2);
    expect(Math.abs(spread / deviation - 1)).toBeLessThan(0.1);
  });

  it('has the gradients that differences give', () => {
    scope(() => {
      const adapter = make(
        { dirichletPrior: 0.4, useEntropy: true, klLossWeight: 0.3 },
        { std: [0.1, -0.5, 0.4], expert: [0.3, -0.2, 0.8] },
      );
      const run = (at: Record<string, Tensor>) => {
        for (const name of ['stdPrior', 'expertPrior']) {
          adapter.parameters[name]?.write((at[name] as Tensor).readSync());
        }
        return montecloraLoss(adapter, { seed: 8 });
      };
      const prior = (name: string) =>
        Tensor.from(adapter.parameters[name]?.readSync() as Float32Array, [3], {
          device: 'reference',
        });
      const reports = checkGradients({
        inputs: { stdPrior: prior('stdPrior'), expertPrior: prior('expertPrior') },
        forward: (at) => run(at).loss,
        backward: (dy, at) => {
          const [scale] = dy.readSync();
          const { gradients } = run(at);
          return Object.fromEntries(
            Object.entries(gradients).map(([name, gradient]) => [
              name,
              Tensor.from(
                gradient.readSync().map((v) => v * (scale as number)),
                [3],
                { device: 'reference' },
              ),
            ]),
          );
        },
      });
      expect(reports.map(({ name }) => name)).toEqual(['stdPrior', 'expertPrior']);
      expect(reports.filter(({ passed }) => !passed)).toEqual([]);
    });
  });

  it('refuses other adapters, and no seed', () => {
    scope(() => {
      const lora = adapters.lora.create({ inFeatures: 4, outFeatures: 4, device: 'reference' });
      expect(() => montecloraLoss(lora as unknown as Adapter, { seed: 1 })).toThrow(/monteclora/);
      const mine = make({}, { std: [0], expert: [0] });
      expect(() => montecloraLoss(mine, {} as never)).toThrow(/seed/);
      expect(() => make({ samples: 1.5 }, { std: [0], expert: [0] })).toThrow(/samples/);
    });
  });
});
