// A mixture of experts whose tokens cost only the experts that they keep, against the dense one.
import { describe, expect, it } from 'vitest';
import { type Adapter, quantize, scope, Tensor } from '../../lib/index.js';
import { DEVICES } from '../conformance/operands.js';
import { settingsOf } from './settings.js';

const { create } = settingsOf('loramoe');

const [N, K, experts] = [40, 96, 5];
const wave = (size: number, phase: number): Float32Array =>
  Float32Array.from({ length: size }, (_, i) => Math.sin(1.3 * i + phase) * Math.cos(0.2 * i * i));

/** Values and gradients of one layer by name. */
async function outputs(adapter: Adapter, x: Tensor, w: Parameters<Adapter['forward']>[1]) {
  const { device } = x;
  const bias = Tensor.from(wave(N, 4), [N], { device });
  const { y, saved } = adapter.forward(x, w, { bias, seed: 11 });
  const dy = Tensor.from(wave(y.size, 5), y.shape, { dtype: y.dtype, device });
  const { dx, dBias, parameters } = adapter.backward(dy, saved);
  const all = { y, dx: dx as Tensor, dBias: dBias as Tensor, ...parameters };
  const read = Object.entries(all).map(async ([name, t]) => [name, await t.read()] as const);
  return new Map(await Promise.all(read));
}

/** Roundings of another order of sums; in 16 bits one of the output's. */
const TOLERANCE = { f32: 2e-6, bf16: 1 / 128 } as const;

describe.each(DEVICES)('%s', (device) => {
  it.each([
    ['f32', 1],
    ['f32', 2],
    ['f32', 5],
    ['bf16', 2],
  ] as const)('%s, top %d, dropout by a seed: as the dense one', async (dtype, topK) => {
    await scope(async () => {
      const w = quantize(Tensor.from(wave(N * K, 1), [N, K], { device }), { format: 'nf4' });
      const x = Tensor.from(wave(9 * 4 * K, 2), [9, 4, K], { dtype, device });
      const place = { inFeatures: K, outFeatures: N, device, seed: 3, r: 3, loraAlpha: 6 };
      const [dense, sparse] = [false, true].map((flag) => {
        const settings = { ...place, experts, topK, sparse: flag, dropout: 0.3 };
        const adapter = create(settings);
        const { loraA, loraB, router } = adapter.parameters as Record<string, Tensor>;
        loraB?.write(wave(N * experts * 3, 3));
        loraA?.write(wave(K * experts * 3, 6));
        // The last expert is nobody's, where there is a choice.
        router?.write(
          wave(experts * K, 7).map((v, i) => (i < (experts - 1) * K ? v : topK < experts ? 0 : v)),
        );
        return adapter;
      }) as [Adapter, Adapter];
      const want = await outputs(dense, x, w);
      const got = await outputs(sparse, x, w);
      expect([...got.keys()].sort()).toEqual([...want.keys()].sort());
      for (const [name, values] of want) {
        const mine = got.get(name) as Float32Array;
        const size = values.reduce((most, v) => Math.max(most, Math.abs(v)), 1e-30);
        const limit = TOLERANCE[dtype] * size;
        const worst = values.reduce(
          (most, v, i) => Math.max(most, Math.abs(v - (mine[i] as number))),
          0,
        );
        expect(worst, name).toBeLessThanOrEqual(limit);
        // One gate alone is 1, whatever the router.
        if (topK > 1 || name !== 'router') expect(size, name).toBeGreaterThan(1e-3);
      }
    });
  });

  it('an expert that no token keeps has gradients of zero', async () => {
    await scope(async () => {
      const w = Tensor.from(wave(N * K, 1), [N, K], { device });
      const x = Tensor.from(
        wave(6 * K, 2).map((v) => v + 2),
        [6, K],
        { device },
      );
      const settings = { experts: 3, topK: 1, sparse: true, r: 2, loraAlpha: 2, seed: 3 };
      const adapter = create({
        inFeatures: K,
        outFeatures: N,
        device,
        ...settings,
      });
      const { router, loraB } = adapter.parameters as Record<string, Tensor>;
      // Expert 1 for all.
      router?.write(
        Float32Array.from({ length: 3 * K }, (_, i) => (Math.floor(i / K) === 1 ? 1 : 0)),
      );
      loraB?.write(wave(N * 6, 3));
      const got = await outputs(adapter, x, w);
      const dLoraA = got.get('loraA') as Float32Array;
      const own = [...dLoraA.keys()].filter((i) => Math.floor(i / K / 2) === 1);
      expect(own.every((i) => dLoraA[i] !== 0)).toBe(true);
      expect(dLoraA.every((v, i) => own.includes(i) || v === 0)).toBe(true);
      const dLoraB = got.get('loraB') as Float32Array;
      expect(dLoraB.every((v, i) => (v !== 0) === (Math.floor((i % 6) / 2) === 1))).toBe(true);
    });
  });
});

describe('bad settings', () => {
  it('sparse wants a number of experts', () => {
    const settings = { inFeatures: K, outFeatures: N, experts: 3, topK: 0, sparse: true };
    expect(() => create(settings)).toThrow(/sparse must be false where topK is 0/);
  });
});
