// What the backward pass computes, keeps and frees: freeze flags, needs, accumulation, memory.
import { describe, expect, it } from 'vitest';
import {
  type Device,
  LoraAdapter,
  type LoraGradient,
  loraBackward,
  loraForward,
  memoryUsage,
  quantize,
  scope,
  synchronize,
  Tensor,
} from '../../lib/index.js';
import { abs, add, bound, exact, loraBackward64 } from '../oracle.js';
import { type LoraVariant, loraCase } from './lora-case.js';
import { DEVICES, DTYPES, operand, QUANTISED } from './operands.js';

const ALL: readonly LoraGradient[] = ['dx', 'dLoraA', 'dLoraB', 'dBias', 'dLoraBias'];
const SHAPE = { M: 21, N: 34, K: 50, r: 4 };
const NF4 = QUANTISED[0] as (typeof QUANTISED)[number];

const subsets = Array.from({ length: 32 }, (_, bits) => ALL.filter((_, i) => (bits >> i) & 1));

async function live(device: Device): Promise<number> {
  await synchronize(device);
  return memoryUsage(device).liveBytes;
}

const CASES = DEVICES.flatMap((device) => DTYPES.map((dtype) => ({ device, dtype })));

describe.each(CASES)('$device, $dtype', ({ device, dtype }) => {
  const make = (variant: LoraVariant) =>
    loraCase(
      SHAPE,
      { bias: true, loraBias: true, dropout: 0.2, ...variant },
      NF4,
      dtype,
      device,
      3,
    );

  it('every subset of gradients has the bits of the whole', async () => {
    await scope(async () => {
      const c = make({});
      const { saved } = loraForward(c.x, c.w, c.adapter, c.options);
      const whole = loraBackward(c.dy, saved, { keep: true });
      expect(Object.keys(whole).sort()).toEqual([...ALL].sort());
      for (const needs of subsets) {
        expect(saved.disposed).toBe(false);
        const part = loraBackward(c.dy, saved, { needs, keep: true });
        expect(Object.keys(part).sort()).toEqual([...needs].sort());
        for (const name of needs) {
          const right = await (whole[name] as Tensor).read();
          exact(`${name} of ${needs}`, await (part[name] as Tensor).read(), right);
        }
      }
      loraBackward(c.dy, saved, { needs: [] });
      expect(saved.disposed).toBe(true);
    });
  });

  it('a frozen factor has no gradient', async () => {
    await scope(async () => {
      const frozenA = make({ trainA: false });
      const a = loraForward(frozenA.x, frozenA.w, frozenA.adapter, frozenA.options);
      expect(a.saved.x).toBeUndefined();
      const gradients = loraBackward(frozenA.dy, a.saved);
      expect(Object.keys(gradients).sort()).toEqual(['dBias', 'dLoraB', 'dLoraBias', 'dx']);
      const frozenB = make({ trainB: false });
      const b = loraForward(frozenB.x, frozenB.w, frozenB.adapter, frozenB.options);
      expect(b.saved.h).toBeUndefined();
      expect(loraBackward(frozenB.dy, b.saved, { keep: true }).dLoraB).toBeUndefined();
      // What is left has the same bits as with both trained.
      const both = make({});
      const { saved } = loraForward(both.x, both.w, both.adapter, both.options);
      const whole = loraBackward(both.dy, saved);
      for (const name of ['dx', 'dLoraB', 'dBias'] as const) {
        const right = await (whole[name] as Tensor).read();
        exact(name, await (gradients[name] as Tensor).read(), right);
      }
    });
  });

  it('a frozen factor saves nothing, to the byte', async () => {
    const { M, K, r } = SHAPE;
    const xBytes = M * K * (dtype === 'f32' ? 4 : 2);
    for (const [trainA, trainB] of [
      [true, true],
      [false, true],
      [true, false],
      [false, false],
    ] as const) {
      await scope(async () => {
        const c = make({ trainA, trainB });
        const before = await live(device);
        const { y, saved } = loraForward(c.x, c.w, c.adapter, c.options);
        y.dispose();
        const kept = (await live(device)) - before;
        expect(kept).toBe(trainB ? M * r * 4 : 0);
        // The saved state holds x where it needs it, though the caller lets it go.
        c.x.dispose();
        expect((await live(device)) - before).toBe(kept - (trainA ? 0 : xBytes));
        saved.dispose();
        expect((await live(device)) - before).toBe(-xBytes);
      });
    }
  });

  it('no mask, no dense weight and no workspace stay behind', async () => {
    const before = await live(device);
    const tensors = memoryUsage(device).liveTensors;
    await scope(async () => {
      const c = make({});
      const inside = await live(device);
      const { y, saved } = loraForward(c.x, c.w, c.adapter, c.options);
      const gradients = loraBackward(c.dy, saved);
      let expected = y.byteLength;
      for (const gradient of Object.values(gradients)) expected += gradient.byteLength;
      expect((await live(device)) - inside).toBe(expected);
    });
    expect(await live(device)).toBe(before);
    expect(memoryUsage(device).liveTensors).toBe(tensors);
  });

  it('accumulateInto adds to what is there and returns the same tensors', async () => {
    await scope(async () => {
      const c = make({});
      const { M, N, K, r } = SHAPE;
      const sizes = {
        dx: [M, K],
        dLoraA: [r, K],
        dLoraB: [N, r],
        dBias: [1, N],
        dLoraBias: [1, N],
      };
      const start = Object.fromEntries(
        ALL.map((name, i) => {
          const [rows, cols] = sizes[name] as [number, number];
          const shape = rows === 1 ? [cols] : [rows, cols];
          const type = name === 'dx' || name === 'dBias' ? dtype : 'f32';
          return [name, operand(rows, cols, { seed: 60 + i, dtype: type, device, shape, std: 3 })];
        }),
      );
      const { saved } = loraForward(c.x, c.w, c.adapter, c.options);
      const targets = Object.fromEntries(ALL.map((name) => [name, start[name]?.tensor as Tensor]));
      const gradients = loraBackward(c.dy, saved, { accumulateInto: targets });
      const expected = loraBackward64(c.inputs, c.dy64);
      for (const name of ALL) {
        expect(gradients[name]).toBe(targets[name]);
        const { value, p } = expected[name];
        const first = start[name]?.matrix ?? value;
        bound(
          name,
          await (gradients[name] as Tensor).read(),
          { value: add(value, first), p: add(p, abs(first)) },
          { dtype: targets[name]?.dtype ?? 'f32' },
        );
      }
    });
  });

  it('accumulating over two micro-batches is the sum of both', async () => {
    await scope(async () => {
      const c = make({});
      const dLoraA = Tensor.zeros([SHAPE.r, SHAPE.K], { device });
      const once = loraForward(c.x, c.w, c.adapter, c.options).saved;
      const single = loraBackward(c.dy, once, { needs: ['dLoraA'] }).dLoraA as Tensor;
      for (let step = 0; step < 2; step++) {
        const { saved } = loraForward(c.x, c.w, c.adapter, c.options);
        loraBackward(c.dy, saved, { needs: ['dLoraA'], accumulateInto: { dLoraA } });
      }
      const twice = (await single.read()).map((value) => 2 * value);
      const sums = await dLoraA.read();
      sums.forEach((value, i) => {
        expect(Math.abs(value - (twice[i] as number))).toBeLessThanOrEqual(1e-6 * 8);
      });
      expect(sums.some((value) => Math.abs(value) > 0.1)).toBe(true);
    });
  });
});

describe.each(DEVICES)('outside of training on %s', (device) => {
  it('nothing is saved, and the input gradient can still be had', async () => {
    await scope(async () => {
      const w = quantize(Tensor.randn([6, 8], { seed: 1, device }), { format: 'nf4' });
      const adapter = LoraAdapter.init({
        inFeatures: 8,
        outFeatures: 6,
        r: 2,
        loraAlpha: 4,
        seed: 1,
        device,
        dropout: 0.5,
      });
      const x = Tensor.randn([3, 8], { seed: 2, device });
      const { y, saved } = loraForward(x, w, adapter, { training: false });
      expect([saved.x, saved.h]).toEqual([undefined, undefined]);
      const dy = Tensor.randn(y.shape, { seed: 3, device });
      const gradients = loraBackward(dy, saved);
      expect(Object.keys(gradients)).toEqual(['dx']);
      expect(() =>
        loraBackward(dy, loraForward(x, w, adapter, { training: false }).saved, {
          needs: ['dLoraA'],
        }),
      ).toThrow(/dLoraA/);
    });
  });
});
