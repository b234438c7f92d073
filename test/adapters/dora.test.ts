// What DoRA keeps between forward passes: the norms of the frozen weight, one tensor a weight.
import { describe, expect, it } from 'vitest';
import { dora } from '../../lib/adapters/dora.js';
import { type BaseWeight, devices, memoryUsage, quantize, scope, Tensor } from '../../lib/index.js';

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
});
