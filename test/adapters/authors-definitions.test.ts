// Sizes, scales and starts as the authors' programs have them, by numbers written down here.
import { describe, expect, it } from 'vitest';
import {
  type Adapter,
  adapterFromPeft,
  adapters,
  adaptersToPeft,
  quantize,
  scope,
  Tensor,
} from '../../lib/index.js';

const device = 'cpu';

/** What one-hot inputs give over a base of zeros: the update, [N, K]. */
function updateOf(adapter: Adapter, N: number, K: number): number[][] {
  return scope(() => {
    const eye = Float32Array.from({ length: K * K }, (_, i) => (i % (K + 1) === 0 ? 1 : 0));
    const x = Tensor.from(eye, [K, K], { device });
    const w = Tensor.zeros([N, K], { device });
    const y = adapter.forward(x, w, { training: false }).y.readSync();
    return Array.from({ length: N }, (_, n) =>
      Array.from({ length: K }, (_k, k) => y[k * N + n] as number),
    );
  });
}

const deviation = (values: Float32Array): number =>
  Math.sqrt(values.reduce((sum, v) => sum + v * v, 0) / values.length);

describe('LoTR', () => {
  it('divides its scale by the rank', () => {
    const adapter = adapters.lotr.from(
      {
        v: Tensor.from([1, 0, 0, 1], [2, 2], { device }),
        core: Tensor.from([1, 0, 0, 1], [2, 2], { device }),
        u: Tensor.from([3, 0, 0, 5], [2, 2], { device }),
      },
      { inFeatures: 2, outFeatures: 2, r: 2, scale: 4 },
    );
    // 4 / 2 · u
    expect(updateOf(adapter, 2, 2)).toEqual([
      [6, 0],
      [0, 10],
    ]);
  });

  it('draws its outer factors from a normal distribution, around a core of zeros', () => {
    const { parameters } = adapters.lotr.create({
      inFeatures: 512,
      outFeatures: 256,
      r: 8,
      seed: 1,
      device,
    });
    const { v, core, u } = parameters as Record<'v' | 'core' | 'u', Tensor>;
    expect(core.readSync().every((value) => value === 0)).toBe(true);
    for (const factor of [v, u]) {
      expect(Math.abs(deviation(factor.readSync()) - 1)).toBeLessThan(0.05);
      expect(Math.max(...factor.readSync().map(Math.abs))).toBeGreaterThan(2);
    }
  });
});

describe('KAdaptation', () => {
  it('has 32 terms of 32 x 32, with left factors of rank one, times 160', () => {
    const adapter = adapters.kadaptation.create({ inFeatures: 768, outFeatures: 768, device });
    expect(adapter.config).toEqual({ n: 32, terms: 32, leftRank: 1, scale: 160 });
    const shapes = Object.entries(adapter.parameters).map(([name, { shape }]) => [name, shape]);
    expect(Object.fromEntries(shapes)).toEqual({
      leftA: [32, 32, 1],
      leftB: [32, 1, 32],
      u: [24, 32],
      v: [32, 24],
    });
    const { leftA, u, v } = adapter.parameters as Record<'leftA' | 'u' | 'v', Tensor>;
    const largest = (tensor: Tensor) => Math.max(...tensor.readSync().map(Math.abs));
    expect(largest(leftA)).toBeLessThanOrEqual(0.01);
    expect(largest(leftA)).toBeGreaterThan(0.009);
    expect(largest(u)).toBe(0);
    expect(largest(v)).toBeLessThanOrEqual(Math.sqrt(12 / 25));
    expect(largest(v)).toBeGreaterThan(0.9 * Math.sqrt(12 / 25));
  });
});

describe('MoRA', () => {
  it.each([
    [11008, 4096, 8, 'sharing', 348],
    [11008, 4096, 8, 'rotation', 348],
    [4096, 4096, 8, 'rotation', 256],
    [32, 24, 3, 'sharing', 13],
    [32, 24, 3, 'rotation', 12],
  ])('of %i x %i, rank %i, %s, has the side %i', (K, N, r, kind, side) => {
    const [make] = adapters.mora.makers([{ inFeatures: K, outFeatures: N, r, kind, device }]);
    expect(make?.shapes.matrix).toEqual([side, side]);
  });

  it('fills the last block up from the beginning of x', () => {
    // side 3 of K = 4: x0 x1 x2 | x3 x0 x1
    const matrix = Tensor.from([1, 2, 3, 4, 5, 6, 7, 8, 9], [3, 3], { device });
    const place = { inFeatures: 4, outFeatures: 5, r: 1, kind: 'sharing' };
    expect(updateOf(adapters.mora.from({ matrix }, place), 5, 4)).toEqual([
      [3, 5, 3, 1],
      [9, 11, 6, 4],
      [15, 17, 9, 7],
      [3, 5, 3, 1],
      [9, 11, 6, 4],
    ]);
  });
});

describe('QA-LoRA', () => {
  const place = { inFeatures: 4, outFeatures: 1, r: 1, loraAlpha: 6, groupSize: 2 };
  const made = (pool: string, inFeatures = 4) =>
    adapters.qalora.from(
      {
        loraA: Tensor.from(new Float32Array(inFeatures / 2).fill(1), [1, inFeatures / 2], {
          device,
        }),
        loraB: Tensor.from([1], [1, 1], { device }),
      },
      { ...place, inFeatures, pool },
    );

  it.each([
    ['mean', 3],
    ['size', 6],
    ['groups', 6],
  ])('with pool %s adds %d a feature', (pool, value) => {
    expect(updateOf(made(pool), 1, 4)).toEqual([[value, value, value, value]]);
  });

  it.each(['mean', 'size', 'groups'])(
    'writes pool %s so that PEFT computes the same, layer by layer',
    async (pool) => {
      const layers = new Map<string, Adapter>([
        ['small', made(pool) as Adapter],
        ['large', made(pool, 12) as Adapter],
      ]);
      const folder = await adaptersToPeft(layers);
      for (const [module, adapter] of layers) {
        const { inFeatures: K, outFeatures: N } = adapter;
        const back = adapterFromPeft(folder, module, { inFeatures: K, outFeatures: N, device });
        // PEFT has no other pool.
        expect((back.config as { pool: string }).pool).toBe('groups');
        expect(updateOf(back, N, K)).toEqual(updateOf(adapter, N, K));
      }
    },
  );
});

/** Orthonormal: cosines of different frequencies. */
const wave = (n: number, i: number, f: number): number =>
  Math.sqrt(2 / n) * Math.cos((Math.PI / n) * (i + 0.5) * (f + 1));

describe.each(['dense', 'nf4'] as const)('from the singular triplets of a %s weight', (base) => {
  const [N, K, r] = [64, 96, 5];
  const sizes = [9, 7, 5, 4, 3, 1, 0.5, 0.2];
  const dense = Float32Array.from({ length: N * K }, (_, at) =>
    sizes.reduce((sum, s, f) => sum + s * wave(N, Math.floor(at / K), f) * wave(K, at % K, f), 0),
  );
  const weightOf = () => {
    const w = Tensor.from(dense, [N, K], { device });
    return base === 'dense' ? w : quantize(w, { format: 'nf4' });
  };
  // What quantising adds turns the vectors.
  const tolerance = base === 'dense' ? 1e-5 : 0.05;

  it.each([
    ['lora-xs', adapters.loraXs, (s: number) => [s, 1]],
    ['tinylora', adapters.tinylora, (s: number) => [1, s]],
  ] as const)('%s takes its factors', (_, method, share) => {
    scope(() => {
      const weight = weightOf();
      const { buffers } = method.create({ inFeatures: K, outFeatures: N, r, weight, device });
      const [a, b] = ['loraA', 'loraB'].map((name) => buffers[name]?.readSync() as Float32Array);
      for (let i = 0; i < r; i++) {
        const [sizeA = 0, sizeB = 0] = share(sizes[i] as number);
        const sign = Math.sign((b?.[i] as number) * wave(N, 0, i));
        for (let k = 0; k < K; k++) {
          const expected = sign * sizeA * wave(K, k, i);
          expect(Math.abs((a?.[i * K + k] as number) - expected)).toBeLessThan(tolerance * sizeA);
        }
        for (let n = 0; n < N; n++) {
          const expected = sign * sizeB * wave(N, n, i);
          expect(Math.abs((b?.[n * r + i] as number) - expected)).toBeLessThan(tolerance * sizeB);
        }
      }
    });
  });

  it('lora-xs starts near the base model', () => {
    scope(() => {
      const weight = weightOf();
      const adapter = adapters.loraXs.create({ inFeatures: K, outFeatures: N, r, weight, device });
      const core = (adapter.parameters.core as Tensor).readSync();
      expect(deviation(core)).toBeGreaterThan(5e-6);
      expect(deviation(core)).toBeLessThan(2e-5);
    });
  });
});
