// What DoRA keeps between forward passes: the norms of the frozen weight, one tensor a weight.
import { describe, expect, it } from 'vitest';
import { dora } from '../../lib/adapters/methods/low-rank/dora.js';
import {
  type BaseWeight,
  devices,
  memoryUsage,
  mergeLora,
  putRows,
  quantize,
  scope,
  Tensor,
  weightGrad,
} from '../../lib/index.js';

const [N, K] = [24, 64];
const available = devices()
  .filter(({ available }) => available)
  .map(({ device }) => device);

describe.each(available)('norms of the weight, on %s', (device) => {
  const weightOf = (seed: number): BaseWeight =>
    scope(() => quantize(Tensor.randn([N, K], { seed, device }), { format: 'nf4' }));
  const live = () => memoryUsage(device).liveTensors;

  it('are computed by the first forward pass and kept until the weight or the adapter goes', () => {
    const first = weightOf(1);
    const second = weightOf(2);
    const x = Tensor.randn([3, K], { seed: 3, device });
    const adapter = dora.create({ inFeatures: K, outFeatures: N, seed: 4, r: 4, weight: first });
    // Beside what the weight itself is made of.
    const growth = (w: BaseWeight, training: boolean): number => {
      x.readSync(); // what was queued lets go of its operands
      const before = live();
      const { y, saved } = adapter.forward(x, w, { training });
      y.readSync();
      y.dispose();
      saved.dispose();
      x.readSync();
      return live() - before;
    };
    expect([growth(first, true), growth(first, true), growth(first, false)]).toEqual([1, 0, 0]);
    expect([growth(second, false), growth(first, true), growth(second, true)]).toEqual([1, 0, 0]);
    second.dispose();
    const third = weightOf(5);
    // One for this weight, and that of the weight that went.
    expect(growth(third, true)).toBe(0);
    const before = live();
    adapter.dispose();
    // Its three parameters, and the norms of two weights.
    expect(before - live()).toBe(5);
    for (const value of [first, third, x]) value.dispose();
  });

  it('are each weight’s own', () => {
    scope(() => {
      const [one, other] = [weightOf(1), weightOf(2)];
      const x = Tensor.randn([3, K], { seed: 3, device });
      const make = () => dora.create({ inFeatures: K, outFeatures: N, seed: 4, r: 4, weight: one });
      const [used, fresh] = [make(), make()];
      used.forward(x, one);
      const expected = fresh.forward(x, other).y.readSync();
      expect(used.forward(x, other).y.readSync()).toEqual(expected);
      expect(used.forward(x, one).y.readSync()).not.toEqual(expected);
    });
  });

  it.each([
    ['merged in place', (w: Tensor, a: Tensor, b: Tensor) => mergeLora(w, { loraA: a, loraB: b })],
    ['written to', (w: Tensor) => w.write(new Float32Array(N * K).fill(2))],
    [
      'written to by a view',
      (w: Tensor) => w.reshape([K, N]).write(new Float32Array(N * K).fill(2)),
    ],
    ['given another row', (w: Tensor, a: Tensor) => putRows(w, a, 1)],
    [
      'added to',
      (w: Tensor, a: Tensor, b: Tensor) => weightGrad(b.reshape([2, N]), a, { accumulateInto: w }),
    ],
  ])('are those of a dense weight after it was %s', (_, change) => {
    scope(() => {
      const w = Tensor.randn([N, K], { seed: 1, device });
      const [a, b] = [
        Tensor.randn([2, K], { seed: 6, device }),
        Tensor.randn([N, 2], { seed: 7, device }),
      ];
      const x = Tensor.randn([3, K], { seed: 3, device });
      const adapter = dora.create({ inFeatures: K, outFeatures: N, seed: 4, r: 4, weight: w });
      const before = adapter.forward(x, w).y.readSync();
      change(w, a, b);
      const { y } = adapter.forward(x, w);
      expect(y.readSync()).not.toEqual(before);
      expect(y.readSync()).toEqual(adapter.forward(x, w.to({})).y.readSync());
    });
  });

  it('are those of a weight whose zero-points were written to', () => {
    scope(() => {
      const w = quantize(Tensor.randn([N, K], { seed: 1, device }), {
        format: 'int4',
        blocksize: 32,
        zeroPoints: true,
      });
      const x = Tensor.randn([3, K], { seed: 3, device });
      const adapter = dora.create({ inFeatures: K, outFeatures: N, seed: 4, r: 4, weight: w });
      adapter.forward(x, w);
      w.zeroPoints?.write(new Float32Array((N * K) / 32).fill(3));
      const y = adapter.forward(x, w).y.readSync();
      expect(y).toEqual(adapter.forward(x, w.to({ device })).y.readSync());
    });
  });
});
