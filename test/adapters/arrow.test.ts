// Arrow's experts: prototypes against an iteration in float64 that has converged, general knowledge
// taken off, what is refused.
import { describe, expect, it } from 'vitest';
import {
  adapters,
  arrowExperts,
  arrowPrototypes,
  type Device,
  devices,
  LoraAdapter,
  loraForward,
  scope,
  Tensor,
} from '../../lib/index.js';

const [N, K] = [20, 24] as const;
const available = devices()
  .filter(({ available }) => available)
  .map(({ device }) => device);

const drawn = (shape: readonly number[], seed: number, device: Device, dtype: 'f32' | 'bf16') =>
  Tensor.randn(shape, { seed, device, dtype });

const expertOf = (r: number, seed: number, device: Device, dtype: 'f32' | 'bf16' = 'f32') =>
  new LoraAdapter({
    loraA: drawn([r, K], seed, device, dtype),
    loraB: drawn([N, r], seed + 100, device, dtype),
    loraAlpha: 2 * r + seed,
  });

/** The first right singular vector of b·a [N, K], by so many steps that none is missing. */
function singular(a: Float32Array, b: Float32Array, r: number): number[] {
  const w = Array.from({ length: N }, (_n, n) =>
    Array.from({ length: K }, (_k, k) => {
      let sum = 0;
      for (let i = 0; i < r; i++) sum += (b[n * r + i] as number) * (a[i * K + k] as number);
      return sum;
    }),
  );
  let v = Array.from({ length: K }, (_, k) => Math.cos(k));
  for (let step = 0; step < 5000; step++) {
    const y = w.map((row) => row.reduce((sum, x, k) => sum + x * (v[k] as number), 0));
    const z = v.map((_, k) => y.reduce((sum, x, n) => sum + x * (w[n]?.[k] as number), 0));
    const length = Math.hypot(...z);
    v = z.map((x) => x / length);
  }
  const largest = v.reduce((best, x) => (Math.abs(x) > Math.abs(best) ? x : best), 0);
  return v.map((x) => x * Math.sign(largest));
}

const rowOf = (values: Float32Array, e: number) => [...values.subarray(e * K, (e + 1) * K)];
const far = (a: readonly number[], b: readonly number[]): number =>
  Math.max(...a.map((v, i) => Math.abs(v - (b[i] as number))));

describe.each(available)('Arrow’s experts on %s', (device) => {
  it.each(['f32', 'bf16'] as const)('have the first singular vectors, %s', (dtype) => {
    scope(() => {
      const experts = [3, 1, 4].map((r, e) => expertOf(r, e + 1, device, dtype));
      const { tensors, settings } = arrowExperts(experts);
      const found = tensors.prototypes.readSync();
      experts.forEach(({ loraA, loraB, r }, e) => {
        const expected = singular(loraA.readSync(), loraB.readSync(), r);
        expect(far(rowOf(found, e), expected)).toBeLessThan(1e-6);
      });
      expect(settings.ranks).toEqual([3, 1, 4]);
      expect(settings.scalings).toEqual([7 / 3, 4, 11 / 4]);
      expect([tensors.loraA.dtype, tensors.loraB.dtype]).toEqual([dtype, dtype]);
    });
  });

  it('finds them of factors that are rank deficient, or far apart in size', () => {
    scope(() => {
      const { loraA, loraB } = expertOf(3, 1, device);
      const a = loraA.readSync();
      a.copyWithin(2 * K, K, 2 * K);
      const b = loraB.readSync().map((v, i) => v * 10 ** (-4 * (i % 3)));
      const [A, B] = [Tensor.from(a, [3, K], { device }), Tensor.from(b, [N, 3], { device })];
      const found = arrowPrototypes(A, B, [3]).readSync();
      expect(far([...found], singular(a, b, 3))).toBeLessThan(1e-6);
    });
  });

  it('takes the direction of loraA where loraB is zero', () => {
    scope(() => {
      const { loraA } = expertOf(1, 1, device);
      const found = arrowPrototypes(loraA, Tensor.zeros([N, 1], { device }), [1]).readSync();
      const a = loraA.readSync();
      const expected = singular(a, new Float32Array(N).fill(1), 1);
      expect(far([...found], expected)).toBeLessThan(1e-6);
      const nothing = arrowPrototypes(
        Tensor.zeros([2, K], { device }),
        Tensor.zeros([N, 2], { device }),
        [2],
      );
      expect([...nothing.readSync()]).toEqual(Array.from({ length: K }, () => 0));
    });
  });

  it('takes the mean of the general adapters off', () => {
    scope(() => {
      const experts = [1, 2].map((seed) => expertOf(3, seed, device));
      const general = [3, 4, 5].map((seed) => expertOf(3, seed, device));
      const { tensors } = arrowExperts(experts, { general });
      const mine = tensors.loraA.readSync();
      const all = general.map(({ loraA }) => loraA.readSync());
      experts.forEach(({ loraA }, e) => {
        loraA.readSync().forEach((v, i) => {
          const mean = all.reduce((sum, each) => sum + (each[i] as number), 0) / 3;
          expect(mine[e * 3 * K + i]).toBe(Math.fround(v - mean));
        });
      });
    });
  });

  it('routes every token to one expert as that expert alone', () => {
    scope(() => {
      const experts = [3, 1, 4].map((r, e) => expertOf(r, e + 1, device));
      const { tensors, settings } = arrowExperts(experts);
      const adapter = adapters.arrow.from(tensors, { ...settings, topK: 1 });
      const w = drawn([N, K], 50, device, 'f32');
      const prototypes = tensors.prototypes.readSync();
      experts.forEach((expert, e) => {
        // Along the prototype, and against it.
        const x = Tensor.from(
          [...rowOf(prototypes, e), ...rowOf(prototypes, e).map((v) => -v)],
          [2, K],
          {
            device,
          },
        );
        const y = adapter.forward(x, w, { training: false }).y.readSync();
        const alone = loraForward(x, w, expert, { training: false }).y.readSync();
        expect(far([...y], [...alone])).toBeLessThan(1e-4);
      });
    });
  });
});

describe('what Arrow refuses', () => {
  it('says in words', () => {
    scope(() => {
      const device = 'cpu';
      const expert = expertOf(3, 1, device);
      const other = expertOf(2, 2, device);
      const biased = new LoraAdapter({
        loraA: drawn([3, K], 1, device, 'f32'),
        loraB: drawn([N, 3], 2, device, 'f32'),
        loraAlpha: 6,
        loraBias: Tensor.zeros([N], { device }),
      });
      const narrow = new LoraAdapter({
        loraA: drawn([3, K - 1], 1, device, 'f32'),
        loraB: drawn([N, 3], 2, device, 'f32'),
        loraAlpha: 6,
      });
      expect(() => arrowExperts([])).toThrow(/at least one/);
      expect(() => arrowExperts({} as never)).toThrow(/an array of LoraAdapter/);
      expect(() => arrowExperts([expert, 3 as never])).toThrow(/experts\[1\].*LoraAdapter/);
      expect(() => arrowExperts([expert, biased])).toThrow(/experts\[1\].*without loraBias/);
      expect(() => arrowExperts([expert, narrow])).toThrow(/experts\[1\]\.loraA.*24/);
      expect(() => arrowExperts([expert], { general: [other] })).toThrow(/\[2, 24\]/);
      const two = { general: [expertOf(3, 2, device)] };
      expect(() => arrowExperts([expert, other], two)).toThrow(/experts\[1\]\.loraA.*\[3, 24\]/);
      const { loraA, loraB } = expert;
      expect(() => arrowPrototypes(loraA, loraB, [2])).toThrow(/\[2, 24\]/);
      expect(() => arrowPrototypes(loraA, loraB, [3], { seed: -1 })).toThrow(/seed/);
      loraA.write(loraA.readSync().fill(Number.NaN));
      expect(() => arrowPrototypes(loraA, loraB, [3])).toThrow(/finite/);
      const { arrow } = adapters;
      const place = { inFeatures: K, outFeatures: N };
      expect(() => arrow.create({ ...place, topK: 5 })).toThrow(/topK.*from 0 to 4/);
      expect(() => arrow.create({ ...place, temperature: 0 })).toThrow(/temperature.*above 0/);
      expect(() => arrow.create({ ...place, scalings: [1] })).toThrow(/scalings.*of 4 values/);
    });
  });
});
