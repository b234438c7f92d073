// LoTA-QAF: ternary factors trained by t-sign-sgd lower the loss, stay ternary, and merge into the codes with nothing lost.
import { describe, expect, it } from 'vitest';
import { recordAdapter } from '../../lib/adapters/definition/record.js';
import {
  adapters,
  dequantize,
  type ModelTape,
  matmul,
  multiplyAdd,
  optimizers,
  QuantizedWeight,
  quantize,
  quantizePlanar,
  scope,
  Tensor,
  Trainer,
} from '../../lib/index.js';

const [N, K, M] = [32, 64, 128];
const device = 'cpu' as const;

const raw = (w: Tensor) => ({ dtype: 'F32', shape: w.shape, data: w.readSync() }) as const;

const BASES = {
  int4: (w: Tensor) => quantize(w, { format: 'int4', blocksize: 32, zeroPoints: true }),
  'planes of 3 bits': (w: Tensor) =>
    QuantizedWeight.fromPlanes(
      quantizePlanar(raw(w), { format: 'int3', groupSize: 32, symmetric: false }),
      {
        device,
      },
    ),
  'symmetric planes': (w: Tensor) =>
    QuantizedWeight.fromPlanes(quantizePlanar(raw(w), { format: 'int4', groupSize: 16 }), {
      device,
    }),
} as const;

describe.each(Object.entries(BASES))('lota-qaf over %s', (_, store) => {
  it('trains, stays ternary, and freezes without loss', async () => {
    await scope(async () => {
      const w = Tensor.randn([N, K], { seed: 1, std: 0.1, device });
      const x = Tensor.randn([M, K], { seed: 2, device });
      const base = store(w);
      // The wanted layer is another one, of low rank from here.
      const wanted = multiplyAdd({
        a: w,
        c: matmul(
          Tensor.randn([N, 2], { seed: 4, device }),
          Tensor.randn([K, 2], { seed: 5, device }),
        ),
        beta: 0.03,
      });
      const target = matmul(x, wanted);
      const place = { inFeatures: K, outFeatures: N, seed: 3, device, weight: base };
      const adapter = adapters.lotaQaf.create({ ...place, r: 8, threshold: 0.2, offset: 'paper' });
      const errorOf = (y: Tensor) =>
        Math.hypot(...multiplyAdd({ a: y, c: target, beta: -1 }).readSync());
      const before = errorOf(matmul(x, base));
      const steps = 150;
      using trainer = new Trainer(
        Object.entries(adapter.parameters).map(([name, tensor]) => ({
          name,
          role: name === 'loraA' ? ('down' as const) : ('up' as const),
          tensor,
          layer: 'layer',
        })),
        { optimizer: optimizers.tSignSgd, settings: { steps } },
      );
      for (let step = 0; step < steps; step++) {
        const done = trainer.step((tape: ModelTape) => {
          const { y } = recordAdapter(tape, adapter, { x: tape.constant(x), w: base });
          const error = tape.add(y, tape.constant(target), 1, -1);
          const squares = tape.multiply(error, error, 1 / M);
          return tape.reshape(tape.sum(tape.reshape(squares, [1, M * N]), 1), [1]);
        });
        await done.read();
      }
      for (const tensor of Object.values(adapter.parameters)) {
        expect(new Set([...tensor.readSync()].map((v) => v + 0))).toEqual(new Set([-1, 0, 1]));
      }
      const { y } = adapter.forward(x, base, { training: false });
      expect(errorOf(y)).toBeLessThan(0.95 * before);
      const frozen = adapter.freeze(base);
      expect(frozen.format).toBe(base.format);
      const merged = adapter.merge(dequantize(base, { dtype: 'f32' })).weight as Tensor;
      const values = dequantize(frozen, { dtype: 'f32' }).readSync();
      merged.readSync().forEach((value, i) => {
        expect(Math.abs(value - (values[i] as number))).toBeLessThan(2e-6);
      });
      expect(Math.abs(errorOf(matmul(x, frozen)) - errorOf(y))).toBeLessThan(1e-3);
    });
  });
});

describe('t-sign-sgd', () => {
  it('moves the share of entries with the largest gradients by one, within −1 and 1', () => {
    const g = Float32Array.from({ length: 40 }, (_, i) => ((i * 17) % 40) - 19.5);
    const p = Float32Array.from({ length: 40 }, (_, i) => (i % 3) - 1);
    const before = p.slice();
    const update = optimizers.tSignSgd.update as (u: object) => void;
    const settings = { ...optimizers.tSignSgd.defaults, share: 0.25, steps: 10 };
    const parameter = { name: 'a' };
    update({ parameter, p, g, step: 1, settings });
    // A quarter of 40, by size.
    const chosen = [...g.keys()]
      .sort((i, j) => Math.abs(g[j] as number) - Math.abs(g[i] as number))
      .slice(0, 10);
    p.forEach((value, i) => {
      const moved = Math.min(1, Math.max(-1, (before[i] as number) - Math.sign(g[i] as number)));
      expect(value, String(i)).toBe(chosen.includes(i) ? moved : before[i]);
    });
    // At 80 % of the run the share is the last one: no entry is beyond the quantile of 0.9999 but the largest.
    const late = before.slice();
    update({ parameter, p: late, g, step: 9, settings: { ...settings, tailShare: 0.01 } });
    expect([...late].filter((value, i) => value !== before[i]).length).toBeLessThanOrEqual(2);
    const still = before.slice();
    update({ parameter, p: still, g, step: 1, settings: { ...settings, least: 20 } });
    expect(still).toEqual(before);
  });

  it('refuses tensors that are not ternary, and shares out of range', () => {
    scope(() => {
      const tensor = Tensor.randn([4, 4], { seed: 1, device });
      const make = (settings: object) =>
        new Trainer([{ name: 'a', role: 'other', tensor }], {
          optimizer: optimizers.tSignSgd,
          settings: settings as Record<string, unknown>,
        });
      const square = (tape: ModelTape) => {
        const value = tape.variable(tensor);
        return tape.reshape(tape.sum(tape.reshape(tape.multiply(value, value), [1, 16]), 1), [1]);
      };
      const before = tensor.readSync().slice();
      using trainer = make({});
      expect(() => trainer.step(square)).toThrow(
        /a must be of −1, 0 and 1, as lota-qaf has them, got/,
      );
      expect(tensor.readSync()).toEqual(before);
      expect(() => make({ share: 0 })).toThrow(/share must be in \(0, 1\], got 0/);
      expect(() => make({ steps: 1.5 })).toThrow(/steps must be an integer/);
    });
  });
});

describe('lota-qaf', () => {
  it('freezes integers only', () => {
    scope(() => {
      const w = Tensor.randn([N, K], { seed: 1, std: 0.1, device });
      const place = { inFeatures: K, outFeatures: N, seed: 3, device };
      const nf4 = quantize(w, { format: 'nf4' });
      const adapter = adapters.lotaQaf.create({ ...place, weight: nf4 });
      expect(() => adapter.freeze(nf4)).toThrow(/must be int4 without doubleQuant, got nf4/);
      expect(() => adapter.freeze(w)).toThrow(/must be of integers, got a dense/);
      expect(() => adapters.lotaQaf.create({ ...place, weight: w, threshold: 2 })).toThrow(
        /threshold must be in \(0, 1\], got 2/,
      );
      expect(() => adapters.lotaQaf.create({ ...place, weight: w, offset: 'some' })).toThrow(
        /offset must be program, paper or none/,
      );
    });
  });
});
