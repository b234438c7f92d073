/** DeviceSeed and full: the bits of numbers, on every device, and what they reject. */
import { describe, expect, it } from 'vitest';
import {
  DeviceSeed,
  full,
  loraShrink,
  loraShrinkBackward,
  scope,
  Tape,
  Tensor,
} from '../../lib/index.js';
import { codeOf } from '../checkpoint/raw-file.js';
import { DEVICES } from '../conformance/operands.js';

const bits = (tensor: Tensor) => [...new Uint32Array(tensor.readSync().buffer)];

describe.each(DEVICES)('on %s', (device) => {
  it.each([0, 77, 2 ** 32 + 5, 2 ** 53 - 1])('draws the bits of the number: %d', (number) => {
    scope(() => {
      const seed = DeviceSeed.from(3, { device });
      seed.write(number);
      expect(bits(seed.randn([9]))).toEqual(bits(Tensor.randn([9], { seed: number, device })));
      const range = { low: -2, high: 5, dtype: 'bf16' } as const;
      expect(bits(seed.uniform([2, 3], range))).toEqual(
        bits(Tensor.uniform([2, 3], { seed: number, device, ...range })),
      );
      const less = number > 8 ? 8 : 0;
      const other = DeviceSeed.from(number - less, { device }).plus(less);
      expect(bits(other.randn([9]))).toEqual(bits(seed.randn([9])));
    });
  });

  it.each(['f32', 'bf16', 'f16'] as const)('keeps what dropout by number keeps: %s', (dtype) => {
    scope(() => {
      const [M, K, r] = [5, 48, 3];
      const x = Tensor.randn([M, K], { seed: 1, device, dtype });
      const a = Tensor.randn([r, K], { seed: 2, device });
      const [dh, dy, w] = [
        Tensor.randn([M, r], { seed: 3, device }),
        Tensor.randn([M, 8], { seed: 4, device, dtype }),
        Tensor.randn([8, K], { seed: 5, device }),
      ];
      const dropout = 0.3;
      const drawn = { dropout, seed: 6 };
      const mask = DeviceSeed.from(6, { device }).keepMask([M, K], dropout, { dtype });
      expect(new Set(mask.readSync())).toEqual(new Set([0, 1]));
      const masked = { dropout, dropoutMask: mask };
      expect(bits(loraShrink(x, a, masked))).toEqual(bits(loraShrink(x, a, drawn)));
      const back = (how: typeof drawn | typeof masked) =>
        Object.values(loraShrinkBackward(dy, w, dh, a, { ...how, x })).map((each) =>
          bits(each as Tensor),
        );
      expect(back(masked)).toEqual(back(drawn));
    });
  });

  it('gives a tape the steps of the number', () => {
    scope(() => {
      const x = Tensor.randn([4, 12], { seed: 1, device });
      const a = Tensor.randn([2, 12], { seed: 2, device });
      const dy = Tensor.randn([4, 2], { seed: 3, device });
      const found = [9, DeviceSeed.from(9, { device })].map((seed) => {
        const tape = new Tape({ dropout: { seed } });
        const value = tape.variable(x);
        const dropped = tape.dropout(value, 0.25);
        const h = tape.shrink(dropped, tape.variable(a), { dropout: 0.5 });
        const noise = tape.noise([4, 2], device)?.tensor as Tensor;
        const [dx] = tape.gradients('test', h, dy, [value]);
        return [h.tensor, noise, dx as Tensor].map(bits);
      });
      expect(found[1]).toEqual(found[0]);
    });
  });

  it('fills', () => {
    scope(() => {
      expect([...full([2, 3], -0.1, { device }).readSync()]).toEqual(
        Array.from({ length: 6 }, () => Math.fround(-0.1)),
      );
      expect([...full([5], 3, { device, dtype: 'bf16' }).readSync()]).toEqual([3, 3, 3, 3, 3]);
      expect(full([0, 4], 1, { device }).size).toBe(0);
      expect([...Tensor.zeros([5, 3], { device }).readSync()]).toEqual(new Array(15).fill(0));
    });
  });

  it('rejects wrong calls', () => {
    scope(() => {
      const seed = DeviceSeed.from(1, { device });
      expect(codeOf(() => DeviceSeed.from(-1, { device }))).toBe('ERR_VALUE');
      expect(codeOf(() => DeviceSeed.from('1' as never, { device }))).toBe('ERR_TYPE');
      expect(codeOf(() => seed.write(0.5))).toBe('ERR_VALUE');
      expect(codeOf(() => seed.plus(-1))).toBe('ERR_VALUE');
      expect(codeOf(() => seed.keepMask([2], 1))).toBe('ERR_VALUE');
      expect(codeOf(() => seed.keepMask('2' as never, 0.5))).toBe('ERR_TYPE');
      expect(codeOf(() => seed.uniform([2], { low: 2, high: 1 }))).toBe('ERR_VALUE');
      expect(codeOf(() => seed.randn([2], { dtype: 'f64' as never }))).toBe('ERR_DTYPE');
      expect(codeOf(() => full([2], Number.NaN, { device }))).toBe('ERR_VALUE');
      expect(codeOf(() => full([-1], 1, { device }))).toBe('ERR_SHAPE');
      expect([...seed.randn([3]).readSync()]).toEqual([
        ...Tensor.randn([3], { seed: 1, device }).readSync(),
      ]);
      seed.dispose();
      expect(codeOf(() => seed.randn([3]))).toBe('ERR_DISPOSED');
      expect(codeOf(() => seed.write(1))).toBe('ERR_DISPOSED');
    });
  });
});
