// LayerNorm and RMSNorm: values in float64, gradients by differences, what is refused, what is kept.
import { describe, expect, it } from 'vitest';
import {
  checkGradients,
  type Device,
  devices,
  layerNorm,
  memoryUsage,
  NormAdapter,
  type NormKind,
  scope,
  synchronize,
  Tape,
  Tensor,
} from '../../lib/index.js';

const [M, K] = [6, 40] as const;
const available = devices()
  .filter(({ available }) => available)
  .map(({ device }) => device);
const KINDS = ['layer', 'rms'] as const;

const drawn = (shape: number[], seed: number, device: Device, mean = 0) =>
  Tensor.randn(shape, { seed, device, mean });

const adapterOf = (kind: NormKind, device: Device, eps?: number) =>
  new NormAdapter({
    weight: drawn([K], 1, device, 1),
    bias: drawn([K], 2, device),
    kind,
    ...(eps === undefined ? {} : { eps }),
  });

/** In float64, the variance in two passes. */
function oracle(kind: NormKind, x: Float32Array, g: Float32Array, b: Float32Array, eps: number) {
  return Array.from({ length: x.length }, (_, at) => {
    const row = [...x.subarray(at - (at % K), at - (at % K) + K)];
    const mean = kind === 'layer' ? row.reduce((sum, v) => sum + v, 0) / K : 0;
    const variance = row.reduce((sum, v) => sum + (v - mean) ** 2, 0) / K;
    const normal = ((x[at] as number) - mean) / Math.sqrt(variance + eps);
    return normal * (g[at % K] as number) + (b[at % K] as number);
  });
}

describe.each(KINDS)('a %s norm', (kind) => {
  describe.each(available)('on %s', (device) => {
    // A mean of 100 standard deviations: sums of squares without it would lose four digits.
    it.each([
      [0, 1e-5],
      [100, 1e-5],
      [0, 0.3],
    ])('has the values of its formula about %d, eps %d', async (mean, eps) => {
      await scope(async () => {
        const adapter = adapterOf(kind, device, eps);
        const x = drawn([2, M / 2, K], 3, device, mean);
        const { y } = adapter.forward(x, { training: false });
        expect(y.shape).toEqual(x.shape);
        const [given, g, b] = [x, adapter.weight, adapter.bias as Tensor].map((t) => t.readSync());
        const expected = oracle(
          kind,
          given as Float32Array,
          g as Float32Array,
          b as Float32Array,
          eps,
        );
        // x's own last digit is 100 · 2^-24 of a deviation.
        const bound = mean === 0 ? 2e-6 : 3e-5;
        (await y.read()).forEach((v, i) => {
          expect(Math.abs(v - (expected[i] as number))).toBeLessThan(bound);
        });
      });
    });

    it('has the gradients of the reference device', async () => {
      await scope(async () => {
        const run = async (on: Device) => {
          const adapter = adapterOf(kind, on);
          const { saved } = adapter.forward(drawn([M, K], 3, on));
          const { dx, dWeight, dBias } = adapter.backward(drawn([M, K], 4, on), saved);
          return Promise.all([dx, dWeight, dBias].map((t) => (t as Tensor).read()));
        };
        const [mine, expected] = [await run(device), await run('reference')];
        mine.forEach((gradient, i) => {
          gradient.forEach((v, j) => {
            expect(Math.abs(v - (expected[i]?.[j] as number))).toBeLessThan(1e-5);
          });
        });
      });
    });
  });

  it('has the gradients that differences give', () => {
    scope(() => {
      const device = 'reference';
      const run = (at: Record<string, Tensor>) => {
        const { dWeight: weight, dBias: bias } = at as Record<'dWeight' | 'dBias', Tensor>;
        const adapter = new NormAdapter({ weight, bias, kind, eps: 0.1 });
        return { adapter, ...adapter.forward(at.dx as Tensor) };
      };
      const reports = checkGradients({
        inputs: {
          dx: drawn([M, K], 3, device, 0.5),
          dWeight: drawn([K], 4, device),
          dBias: drawn([K], 5, device),
        },
        forward: (at) => run(at).y,
        backward: (dy, at) => {
          const { adapter, saved } = run(at);
          return adapter.backward(dy, saved) as Record<string, Tensor>;
        },
      });
      expect(reports.map(({ name }) => name)).toEqual(['dx', 'dWeight', 'dBias']);
      expect(reports.filter(({ passed }) => !passed)).toEqual([]);
    });
  });

  it('keeps bf16, and its weights f32', async () => {
    await scope(async () => {
      const adapter = adapterOf(kind, 'cpu');
      const x = drawn([M, K], 3, 'cpu').to({ dtype: 'bf16' });
      const { y, saved } = adapter.forward(x);
      expect(y.dtype).toBe('bf16');
      const wide = await adapter.forward(x.to({ dtype: 'f32' })).y.read();
      (await y.read()).forEach((v, i) => {
        expect(Math.abs(v - (wide[i] as number))).toBeLessThan(2 ** -8 * Math.abs(v) + 1e-6);
      });
      const { dx, dWeight } = adapter.backward(
        drawn([M, K], 4, 'cpu').to({ dtype: 'bf16' }),
        saved,
      );
      expect([dx?.dtype, dWeight?.dtype]).toEqual(['bf16', 'f32']);
    });
  });
});

describe('a norm adapter', () => {
  it('computes what is needed, and leaks nothing', async () => {
    // What tests before have freed lives until the queue has run.
    await synchronize('cpu');
    const before = memoryUsage('cpu').liveTensors;
    await scope(async () => {
      const adapter = adapterOf('layer', 'cpu');
      const x = drawn([M, K], 3, 'cpu');
      const dy = drawn([M, K], 4, 'cpu');
      const { saved } = adapter.forward(x);
      x.dispose();
      const all = adapter.backward(dy, saved, { keep: true });
      const one = adapter.backward(dy, saved, { needs: ['dBias'] });
      expect(Object.keys(one)).toEqual(['dBias']);
      expect(await one.dBias?.read()).toEqual(await all.dBias?.read());
      expect(() => adapter.backward(dy, saved)).toThrow(/disposed/);
      // A row of equal values has no direction: zeros, not NaN.
      const flat = Tensor.from(new Float32Array(K).fill(3), [1, K], { device: 'cpu' });
      const y = await adapter.forward(flat, { training: false }).y.read();
      expect(y).toEqual(await (adapter.bias as Tensor).read());
    });
    await synchronize('cpu');
    expect(memoryUsage('cpu').liveTensors).toBe(before);
  });

  it('is a step of its own on a tape', async () => {
    await scope(async () => {
      const tape = new Tape();
      const x = tape.variable(drawn([M, K], 3, 'cpu'));
      const y = layerNorm(tape, x);
      const [dx] = tape.gradients('test', y, drawn([M, K], 4, 'cpu'), [x]);
      // Moving a row by a constant, or along itself, changes nothing.
      const [d, v] = [await (dx as Tensor).read(), await y.tensor.read()];
      for (let m = 0; m < M; m++) {
        const row = (a: Float32Array) => [...a.subarray(m * K, (m + 1) * K)];
        const dot = row(d).reduce((sum, g, k) => sum + g * (row(v)[k] as number), 0);
        expect(Math.abs(row(d).reduce((sum, g) => sum + g, 0))).toBeLessThan(1e-5);
        expect(Math.abs(dot)).toBeLessThan(1e-3);
      }
    });
  });

  it('refuses in words', () => {
    scope(() => {
      const weight = drawn([K], 1, 'cpu');
      const make = (parts: object) => () => new NormAdapter({ weight, ...parts });
      expect(make({ bias: drawn([K - 1], 1, 'cpu') })).toThrow(/bias.*\[40\].*\[39\]/);
      expect(make({ kind: 'batch' })).toThrow(/kind.*layer or rms, got "batch"/);
      expect(make({ eps: 0 })).toThrow(/eps.*above 0.*0/);
      expect(make({ weight: 3 })).toThrow(/weight/);
      const adapter = new NormAdapter({ weight });
      expect(() => adapter.forward(drawn([2, 39], 1, 'cpu'))).toThrow(/K = 40.*\[2, 39\]/);
      const { saved } = adapter.forward(drawn([2, K], 1, 'cpu'));
      const dy = drawn([2, K], 1, 'cpu');
      expect(() => adapter.backward(dy, saved, { needs: ['dBias'] })).toThrow(/dx, dWeight.*dBias/);
      expect(() => adapter.backward(dy, {} as never)).toThrow(/saved/);
      expect(() => adapter.backward(drawn([3, K], 1, 'cpu'), saved)).toThrow(/dy/);
      const folder = { config: { peft_type: 'LORA' }, tensors: new Map() };
      expect(() => NormAdapter.fromPeft(folder, 'ln')).toThrow(/LN_TUNING.*LORA/);
      const empty = { config: { peft_type: 'LN_TUNING' }, tensors: new Map() };
      expect(() => NormAdapter.fromPeft(empty, 'ln')).toThrow(/ln_tuning_layers\.weight/);
    });
  });
});
