// L4Q: trained steps, offsets and factors end far below plain rounding, and the frozen layer has the values of the trained one.
import { describe, expect, it } from 'vitest';
import {
  adamwStep,
  adapters,
  dequantize,
  matmul,
  multiplyAdd,
  QuantizedWeight,
  quantizePlanar,
  scope,
  Tensor,
} from '../../lib/index.js';

const [N, K, M] = [32, 64, 256];
const device = 'cpu' as const;

const lengthOf = (tensor: Tensor): number => Math.hypot(...tensor.readSync());

describe('l4q', () => {
  it('trains far below the error of rounding, and freezes what it trained', () => {
    scope(() => {
      const w = Tensor.randn([N, K], { seed: 1, std: 0.1, device });
      const x = Tensor.randn([M, K], { seed: 2, device });
      const target = matmul(x, w);
      const place = { inFeatures: K, outFeatures: N, seed: 3, device, weight: w };
      const adapter = adapters.l4q.create({ ...place, r: 4, loraAlpha: 8, bits: 2 });
      const parameters = Object.values(adapter.parameters);
      const zeros = () => parameters.map(({ shape }) => Tensor.zeros(shape, { device }));
      const [m, v] = [zeros(), zeros()];
      for (let step = 1; step <= 150; step++) {
        scope(() => {
          const { y, saved } = adapter.forward(x, w);
          const dy = multiplyAdd({ a: y, c: target, beta: -1 });
          const { parameters: found } = adapter.backward(dy, saved);
          const gradients = Object.keys(adapter.parameters).map((name) => found[name] as Tensor);
          adamwStep(parameters, gradients, m, v, { lr: 1e-3, step });
        });
      }
      const errorOf = (y: Tensor) => lengthOf(multiplyAdd({ a: y, c: target, beta: -1 }));
      const trained = errorOf(adapter.forward(x, w, { training: false }).y);
      const raw = { dtype: 'F32', shape: [N, K], data: w.readSync() } as const;
      const rounded = QuantizedWeight.fromPlanes(
        quantizePlanar(raw, { format: 'int2', groupSize: 32, symmetric: false }),
        { device },
      );
      expect(trained).toBeLessThan(0.85 * errorOf(matmul(x, rounded)));
      const frozen = adapter.freeze(w);
      expect(frozen.byteLength).toBeLessThan(0.3 * w.byteLength);
      const values = dequantize(frozen, { dtype: 'f32' }).readSync();
      const merged = (adapter.merge(w).weight as Tensor).readSync();
      values.forEach((value, i) => {
        expect(Math.abs(value - (merged[i] as number))).toBeLessThan(1e-6);
      });
      expect(Math.abs(errorOf(matmul(x, frozen)) - trained)).toBeLessThan(1e-3 * trained);
    });
  });

  it('freeze is refused by other methods, and with a step of 0', () => {
    scope(() => {
      const w = Tensor.randn([N, K], { seed: 1, std: 0.1, device });
      const place = { inFeatures: K, outFeatures: N, seed: 3, device, weight: w };
      const lora = adapters.lora.create({ ...place, r: 4 });
      expect(() => lora.freeze(w)).toThrow(/must be one that trains its quantiser, got lora/);
      const l4q = adapters.l4q.create({ ...place, r: 4 });
      expect(() => l4q.freeze(Tensor.zeros([N, 32], { device }))).toThrow(/w must be of shape/);
      l4q.parameters.step?.write(new Float32Array(N * 2));
      expect(() => l4q.freeze(w)).toThrow(/scale must be positive and finite, got 0 at 0/);
      expect(() => adapters.l4q.create({ ...place, groupSize: 48 })).toThrow(
        /groupSize must be a divisor of K \(64\), got 48/,
      );
      expect(() => adapters.l4q.create({ ...place, bits: 0 })).toThrow(/bits must be an integer/);
      const unknown = { inFeatures: K, outFeatures: N, device };
      expect(() => adapters.l4q.create(unknown)).toThrow(/weight must be given/);
    });
  });
});
