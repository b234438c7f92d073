// LoraLinear: the ops it is made of, bit for bit, and what it holds.
import { describe, expect, it } from 'vitest';
import {
  type Device,
  LoraAdapter,
  LoraLinear,
  loraBackward,
  loraForward,
  matmul,
  matmulInputGrad,
  memoryUsage,
  quantize,
  scope,
  synchronize,
  Tensor,
} from '../../lib/index.js';
import { DEVICES } from '../conformance/operands.js';
import { exact } from '../oracle.js';

const size = { inFeatures: 20, outFeatures: 7 };

const codeOf = (call: () => unknown): unknown => {
  try {
    call();
  } catch (error) {
    return (error as { code: unknown }).code;
  }
  return 'nothing thrown';
};

describe.each(DEVICES)('LoraLinear on %s', (device) => {
  const parts = () => {
    const adapterOf = (seed: number): LoraAdapter =>
      new LoraAdapter({
        loraA: Tensor.randn([3, 20], { seed, device }),
        loraB: Tensor.randn([7, 3], { seed: seed + 50, device }),
        loraAlpha: 6,
        dropout: 0.25,
      });
    return {
      weight: quantize(Tensor.randn([7, 20], { seed: 1, device }), { format: 'nf4' }),
      bias: Tensor.randn([7], { seed: 2, device }),
      adapters: { first: adapterOf(3), second: adapterOf(4) },
    };
  };

  it('is loraForward and loraBackward of the active adapter', async () => {
    await scope(async () => {
      const { weight, bias, adapters } = parts();
      const layer = new LoraLinear({ weight, bias, adapters });
      const x = Tensor.randn([5, 20], { seed: 9, device });
      const dy = Tensor.randn([5, 7], { seed: 10, device });
      for (const name of ['first', 'second'] as const) {
        layer.active = name;
        const { y, saved } = loraForward(x, weight, adapters[name], { bias, seed: 8 });
        exact('y', await layer.forward(x, { seed: 8 }).read(), await y.read());
        const right = loraBackward(dy, saved);
        const gradients = layer.backward(dy);
        expect(Object.keys(gradients).sort()).toEqual(Object.keys(right).sort());
        for (const key of ['dx', 'dLoraA', 'dLoraB', 'dBias'] as const) {
          exact(key, await (gradients[key] as Tensor).read(), await (right[key] as Tensor).read());
        }
      }
      layer.active = undefined;
      exact('base', await layer.forward(x).read(), await matmul(x, weight, { bias }).read());
      const { dx } = layer.backward(dy);
      exact('dx', await (dx as Tensor).read(), await matmulInputGrad(dy, weight).read());
    });
  });

  it('has without an adapter the gradients of x and of the bias, and takes the same options', async () => {
    await scope(async () => {
      const { weight, bias, adapters } = parts();
      const layer = new LoraLinear({ weight, bias, adapters });
      const x = Tensor.randn([5, 20], { seed: 9, device });
      const dy = Tensor.randn([5, 7], { seed: 10, device });
      layer.active = undefined;
      layer.forward(x);
      const { saved } = loraForward(x, weight, adapters.first, { bias, seed: 8 });
      const right = loraBackward(dy, saved, { needs: ['dBias'] }).dBias as Tensor;
      const first = layer.backward(dy, { keep: true });
      expect(Object.keys(first).sort()).toEqual(['dBias', 'dx']);
      exact('dBias', await (first.dBias as Tensor).read(), await right.read());
      expect(Object.keys(layer.backward(dy, { needs: ['dBias'], keep: true }))).toEqual(['dBias']);
      const dx = Tensor.from(new Float32Array(100).fill(100), [5, 20], { device });
      const dBias = Tensor.from(new Float32Array(7).fill(100), [7], { device });
      const added = layer.backward(dy, { accumulateInto: { dx, dBias } });
      expect([added.dx === dx, added.dBias === dBias]).toEqual([true, true]);
      for (const [sum, one] of [
        [dx, first.dx as Tensor],
        [dBias, right],
      ] as const) {
        const values = one.readSync();
        sum.readSync().forEach((value, i) => {
          expect(value).toBeCloseTo(100 + (values[i] as number), 4);
        });
      }
      const fresh = new LoraLinear({ weight, bias, adapters: {} });
      exact('dx', await (fresh.backward(dy).dx as Tensor).read(), (first.dx as Tensor).readSync());
      expect(codeOf(() => fresh.backward(Tensor.zeros([5, 6], { device })))).toBe('ERR_SHAPE');
      layer.forward(x);
      const before = dx.readSync();
      expect(codeOf(() => layer.backward(dy, { needs: ['dLoraA'] }))).toBe('ERR_VALUE');
      const wrong = { dx, dBias: Tensor.zeros([6], { device }) };
      expect(codeOf(() => layer.backward(dy, { accumulateInto: wrong }))).toBe('ERR_SHAPE');
      expect(codeOf(() => layer.backward(Tensor.zeros([4, 7], { device })))).toBe('ERR_SHAPE');
      exact('dx', dx.readSync(), before);
      expect(codeOf(() => layer.forward(x, { training: 1 as never }))).toBe('ERR_TYPE');
    });
  });

  it('has the gradients of the forward pass, whatever is active since', async () => {
    await scope(async () => {
      const { weight, adapters } = parts();
      const layer = new LoraLinear({ weight, adapters });
      const x = Tensor.randn([5, 20], { seed: 9, device });
      const dy = Tensor.randn([5, 7], { seed: 10, device });
      layer.forward(x, { seed: 8 });
      layer.active = undefined;
      const { saved } = loraForward(x, weight, adapters.first, { seed: 8 });
      const right = loraBackward(dy, saved);
      const found = layer.backward(dy);
      expect(Object.keys(found).sort()).toEqual(Object.keys(right).sort());
      exact('dx', await (found.dx as Tensor).read(), await (right.dx as Tensor).read());
      layer.forward(x);
      layer.active = 'first';
      const { dx } = layer.backward(dy);
      exact('dx', await (dx as Tensor).read(), await matmulInputGrad(dy, weight).read());
    });
  });

  it('refuses a missing adapter and a backward pass without its forward pass', () => {
    scope(() => {
      const layer = new LoraLinear(parts());
      const dy = Tensor.zeros([5, 7], { device });
      expect(codeOf(() => layer.backward(dy))).toBe('ERR_VALUE');
      layer.forward(Tensor.zeros([5, 20], { device }), { seed: 1 });
      layer.backward(dy);
      expect(codeOf(() => layer.backward(dy))).toBe('ERR_VALUE');
      layer.active = 'third';
      const x = Tensor.zeros([5, 20], { device });
      expect(codeOf(() => layer.forward(x))).toBe('ERR_VALUE');
    });
  });

  it('is not made with a name that no adapter has, nor of adapters of another layer', () => {
    scope(() => {
      const given = parts();
      const made = (wrong: object) => () => new LoraLinear({ ...given, ...wrong });
      expect(made({ active: 'third' })).toThrow(
        'LoraLinear: active must be one of the adapters ("first", "second"), got "third"',
      );
      const other = (loraA: number[], loraB: number[], at: Device = device) => {
        const spare = new LoraAdapter({
          loraA: Tensor.zeros(loraA, { device: at }),
          loraB: Tensor.zeros(loraB, { device: at }),
          loraAlpha: 1,
        });
        return made({ adapters: { ...given.adapters, spare } });
      };
      expect(other([2, 19], [7, 2])).toThrow(
        'LoraLinear: adapters.spare.loraA must be of shape [r, K = 20], got [2, 19]',
      );
      expect(other([2, 20], [8, 2])).toThrow(
        'LoraLinear: adapters.spare.loraB must be of shape [N = 7, r = 2], got [8, 2]',
      );
      const elsewhere = device === 'cpu' ? 'reference' : 'cpu';
      expect(other([2, 20], [7, 2], elsewhere)).toThrow(
        `LoraLinear: adapters.spare.loraA must be on device ${device}, got ${elsewhere}`,
      );
      const spare = LoraAdapter.init({ ...size, r: 2, loraAlpha: 1, seed: 1, device });
      spare.dispose();
      expect(codeOf(made({ adapters: { spare } }))).toBe('ERR_DISPOSED');
      // Whether dtypes go together is known with x.
      const half = LoraAdapter.init({ ...size, r: 2, loraAlpha: 1, seed: 1, device, dtype: 'f16' });
      const weight = Tensor.zeros([7, 20], { device, dtype: 'bf16' });
      const layer = new LoraLinear({ weight, adapters: { half } });
      expect(layer.forward(Tensor.zeros([1, 20], { device })).shape).toEqual([1, 7]);
    });
  });

  it('frees everything it holds', async () => {
    await synchronize(device);
    const { liveBytes, liveTensors } = memoryUsage(device);
    const dense = Tensor.randn([7, 20], { seed: 1, device });
    const adapter = LoraAdapter.init({
      inFeatures: 20,
      outFeatures: 7,
      r: 2,
      loraAlpha: 4,
      seed: 3,
      device,
    });
    const layer = new LoraLinear({
      weight: quantize(dense, { format: 'nf4' }),
      bias: Tensor.zeros([7], { device }),
      adapters: { adapter },
    });
    const x = Tensor.zeros([5, 20], { device });
    layer.forward(x).dispose();
    layer.forward(x).dispose();
    layer.dispose();
    layer.dispose();
    x.dispose();
    dense.dispose();
    await synchronize(device);
    const after = memoryUsage(device);
    expect([after.liveBytes, after.liveTensors]).toEqual([liveBytes, liveTensors]);
  });
});
