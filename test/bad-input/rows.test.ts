// Bad input to denseRows, putRows, rowStep and TorchRandom.
import { describe, expect, it } from 'vitest';
import {
  type Device,
  denseRows,
  putRows,
  quantize,
  rowStep,
  scope,
  Tensor,
  TorchRandom,
} from '../../lib/index.js';
import { DEVICES } from '../conformance/operands.js';
import { bad, callWith, checkCases, hostile, impostors } from './harness.js';

describe.each(DEVICES)('bad input on %s', (device: Device) => {
  it('denseRows', async () => {
    await scope(async () => {
      const dense = Tensor.randn([8, 48], { seed: 1, device });
      const w = quantize(dense, { format: 'nf4', blocksize: 64 });
      const gone = Tensor.zeros([8, 48], { device });
      gone.dispose();
      const vector = Tensor.zeros([8], { device });
      const rows = (...args: unknown[]) => callWith(denseRows, w, ...args);
      await checkCases('denseRows', device, {
        watched: [dense],
        valid: () => scope(async () => [await denseRows(w, 4, 7).read()]),
        cases: [
          bad(1, 'no arguments', 'ERR_TYPE', () => callWith(denseRows)),
          bad(1, 'no rows', 'ERR_TYPE', () => rows()),
          bad(1, 'no end', 'ERR_TYPE', () => rows(0)),
          ...impostors(w).map(([kind, what, value]) =>
            bad(kind, `w: ${what}`, 'ERR_TYPE', () => callWith(denseRows, value, 0, 1)),
          ),
          ...impostors(w).map(([kind, what, value]) =>
            bad(kind, `rowStep of ${what}`, 'ERR_TYPE', () => callWith(rowStep, value)),
          ),
          bad(23, 'w: a vector', 'ERR_SHAPE', () => denseRows(vector, 0, 1)),
          bad(31, 'w: disposed', 'ERR_DISPOSED', () => denseRows(gone, 0, 1)),
          bad(3, 'begin: a string', 'ERR_TYPE', () => rows('0', 4)),
          bad(15, 'begin: negative', 'ERR_VALUE', () => rows(-4, 4)),
          bad(16, 'begin: a fraction', 'ERR_VALUE', () => rows(0.5, 4)),
          bad(17, 'end: NaN', 'ERR_VALUE', () => rows(0, Number.NaN)),
          bad(12, 'end: behind the last row', 'ERR_VALUE', () => rows(0, 9)),
          bad(22, 'end: before begin', 'ERR_VALUE', () => rows(8, 4)),
          bad(26, 'begin: inside a block of scales', 'ERR_VALUE', () => rows(1, 4)),
          bad(24, 'dtype: f64', 'ERR_DTYPE', () => rows(0, 4, { dtype: 'f64' })),
          bad(3, 'options: a string', 'ERR_TYPE', () => rows(0, 4, 'f32')),
          bad(33, 'a getter that throws', 'HOSTILE', () => rows(0, 4, hostile('dtype'))),
        ],
      });
    });
  });
});

describe.each(DEVICES)('bad input on %s', (device: Device) => {
  it('putRows', async () => {
    await scope(async () => {
      const y = Tensor.zeros([8, 4], { device });
      const source = Tensor.randn([3, 4], { seed: 1, device });
      const gone = Tensor.zeros([3, 4], { device });
      gone.dispose();
      const [wide, long] = [Tensor.zeros([3, 5], { device }), Tensor.zeros([9, 4], { device })];
      const flat = Tensor.zeros([4], { device });
      const own = y.reshape([8, 4]);
      const put = (...args: unknown[]) => callWith(putRows, y, ...args);
      await checkCases('putRows', device, {
        watched: [source],
        valid: async () => {
          putRows(y, source, 5);
          return [await y.read()];
        },
        cases: [
          bad(1, 'no arguments', 'ERR_TYPE', () => callWith(putRows)),
          bad(1, 'no begin', 'ERR_TYPE', () => put(source)),
          ...impostors(y).map(([kind, what, value]) =>
            bad(kind, `y: ${what}`, 'ERR_TYPE', () => callWith(putRows, value, source, 0)),
          ),
          ...impostors(y).map(([kind, what, value]) =>
            bad(kind, `source: ${what}`, 'ERR_TYPE', () => put(value, 0)),
          ),
          bad(31, 'source: disposed', 'ERR_DISPOSED', () => put(gone, 0)),
          bad(31, 'y: disposed', 'ERR_DISPOSED', () => callWith(putRows, gone, source, 0)),
          bad(22, 'source: wider', 'ERR_SHAPE', () => put(wide, 0)),
          bad(23, 'source: a vector', 'ERR_SHAPE', () => put(flat, 0)),
          bad(12, 'source: more rows than there are', 'ERR_SHAPE', () => put(long, 0)),
          bad(28, 'source: the same memory', 'ERR_ALIAS', () => put(own, 0)),
          bad(12, 'begin: too late', 'ERR_VALUE', () => put(source, 6)),
          bad(15, 'begin: negative', 'ERR_VALUE', () => put(source, -1)),
          bad(16, 'begin: a fraction', 'ERR_VALUE', () => put(source, 0.5)),
          bad(3, 'begin: a string', 'ERR_TYPE', () => put(source, '0')),
        ],
      });
    });
  });
});

describe('bad input', () => {
  it('TorchRandom', () => {
    const random = new TorchRandom(1);
    const make = (seed: unknown) => () => Reflect.construct(TorchRandom, [seed]);
    expect(make('1')).toThrow(/seed must be a number/);
    expect(make(-1)).toThrow(/seed/);
    expect(make(0.5)).toThrow(/seed/);
    expect(() => random.uniform([2], Number.NaN)).toThrow(/finite/);
    expect(() => random.bernoulli([2], Number.NaN)).toThrow(/finite/);
    expect(() => random.integers([2], 3, 3)).toThrow(/high/);
    expect(() => random.permutation(-1)).toThrow(/\bn\b/);
  });
});
