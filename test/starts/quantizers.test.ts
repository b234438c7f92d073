// Starts that quantise in a way of their own, on one layer, against brute force in float64.
import { describe, expect, it } from 'vitest';
import {
  dequantize,
  QuantizedWeight,
  quantize,
  scope,
  startLayer,
  Tensor,
} from '../../lib/index.js';
import { normalFloatLevels } from '../../lib/quant/fitted/normal-float.js';
import { methodNamed } from '../../lib/train/adapter-set.js';
import { minus, norm, valuesOf } from './setup.js';

const [N, K, r] = [48, 64, 4];
const device = 'cpu' as const;

/** A weight whose rows are not centred. */
const shiftedWeight = (): Tensor =>
  Tensor.from(
    Float32Array.from(
      Tensor.randn([N, K], { seed: 6, device }).readSync(),
      (v, at) => 0.1 * (v + 1.5 * Math.sin(Math.floor(at / K))),
    ),
    [N, K],
    { device },
  );

const nearest = (levels: ArrayLike<number>, v: number): number => {
  let best = 0;
  for (let c = 1; c < levels.length; c++) {
    const [old, now] = [levels[best] as number, levels[c] as number];
    if (Math.abs(now - v) < Math.abs(old - v)) best = c;
  }
  return best;
};

const entropyOf = (codes: readonly number[]): number => {
  const counts = new Map<number, number>();
  for (const code of codes) counts.set(code, (counts.get(code) ?? 0) + 1);
  return [...counts.values()].reduce(
    (sum, n) => sum - (n / codes.length) * Math.log2(n / codes.length),
    0,
  );
};

describe('icq', () => {
  it('has the levels of NF4, and of NF2', () => {
    scope(() => {
      const values = Tensor.from(
        Float32Array.from({ length: 64 }, (_, i) => (i - 31.5) / 31.5),
        [1, 64],
        { device },
      );
      const nf4 = new Set(
        dequantize(quantize(values, { format: 'nf4', blocksize: 64 }), { dtype: 'f32' }).readSync(),
      );
      const levels = normalFloatLevels(4);
      for (const level of nf4) {
        expect(Math.abs((levels[nearest(levels, level)] as number) - level)).toBeLessThan(2e-6);
      }
      expect(nf4.size).toBe(16);
      // Quantiles 0.0322917, 0.5, 0.73385415 and 0.9677083 over the last.
      const two = normalFloatLevels(2);
      expect([...two].map((v) => Number(v.toFixed(4)))).toEqual([-1, 0, 0.3379, 1]);
    });
  });

  it.each([
    { bits: 4, blocksize: 32, doubleQuant: false },
    { bits: 2, blocksize: 64, doubleQuant: false },
    { bits: 3, blocksize: 24, doubleQuant: true },
  ])('$bits bits: the shift of each block has the most entropy of all that are tried', (how) => {
    scope(() => {
      const w = shiftedWeight();
      const { weight } = startLayer(w, {
        start: 'icq',
        method: methodNamed('test', 'ir-qlora'),
        r,
        loraAlpha: 4,
        ...how,
        tries: 20,
      });
      const planes = QuantizedWeight.planesOf(weight as QuantizedWeight, 'test');
      const values = w.readSync();
      const levels = normalFloatLevels(how.bits);
      const width = 0.1 / 1.8481308; // range over the quantile of 0.9677083
      let [shifted, plain] = [0, 0];
      for (let begin = 0, block = 0; begin < values.length; begin += how.blocksize, block++) {
        const own = [...values.slice(begin, begin + how.blocksize)];
        const codes = [...planes.codes.slice(begin, begin + how.blocksize)];
        const sorted = [...own].sort((a, b) => a - b);
        const median = sorted[(own.length - 1) >> 1] as number;
        const reach = Math.max(...own.map((v) => Math.abs(v - median)));
        const codesAt = (shift: number) => {
          const absmax = Math.max(...own.map((v) => Math.abs(v - shift)));
          return own.map((v) => nearest(levels, (v - shift) / absmax));
        };
        const most = Math.max(
          ...Array.from({ length: 41 }, (_, i) =>
            entropyOf(codesAt(median + ((i - 20) / 20) * width * reach)),
          ),
        );
        // A stored shift of 8 bits is near the best one.
        expect(entropyOf(codes), `block ${block}`).toBeGreaterThan(
          most - (how.doubleQuant ? 0.3 : 1e-9),
        );
        shifted += entropyOf(codes);
        plain += entropyOf(codesAt(0));
      }
      expect(shifted).toBeGreaterThan(1.02 * plain);
      const back = valuesOf(weight);
      expect(norm(minus(valuesOf(w), back))).toBeLessThan(0.5 * norm(valuesOf(w)));
    });
  });

  it('leaves a smaller error than NF4 of the same blocks, where blocks are not centred', () => {
    scope(() => {
      const w = shiftedWeight();
      const made = startLayer(w, { start: 'icq', r, blocksize: 64 });
      const plain = quantize(w, { format: 'nf4', blocksize: 64 });
      const error = (weight: Parameters<typeof valuesOf>[0]) =>
        norm(minus(valuesOf(w), valuesOf(weight)));
      expect(error(made.weight)).toBeLessThan(0.8 * error(plain));
    });
  });
});
