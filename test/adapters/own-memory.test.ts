// What a forward or a backward pass hands out is the caller's alone: written to, it changes nothing else.
import { describe, expect, it } from 'vitest';
import { adapters, defineAdapter, multiplyAdd, scope, Tape, Tensor } from '../../lib/index.js';

const [M, K] = [3, 4];
const full = (value: number, shape: readonly number[]): Tensor =>
  Tensor.from(
    Array.from({ length: shape.reduce((product, dim) => product * dim, 1) }, () => value),
    shape,
    { device: 'cpu' },
  );
const isFull = (tensor: Tensor, value: number): boolean =>
  tensor.readSync().every((each) => each === value);

describe('a gradient on the tape', () => {
  it('shares memory neither with dy nor with another gradient', () => {
    scope(() => {
      const tape = new Tape();
      const [a, b] = [tape.variable(full(1, [M, K])), tape.variable(full(2, [M, K]))];
      const dy = full(5, [M, K]);
      const found = tape.gradients('sum', tape.add(a, b), dy, [a, b, a]) as Tensor[];
      const [da, db, again] = found as [Tensor, Tensor, Tensor];
      da.write(new Float32Array(M * K));
      expect([isFull(dy, 5), isFull(db, 5), isFull(again, 5), isFull(da, 0)]).toEqual([
        true,
        true,
        true,
        true,
      ]);
    });
  });

  it('is no view of dy, whatever the shape', () => {
    scope(() => {
      const tape = new Tape();
      const a = tape.variable(full(1, [M, K]));
      const dy = full(5, [M * K]);
      const [da] = tape.gradients('view', tape.reshape(a, [M * K]), dy, [a]) as [Tensor];
      da.write(new Float32Array(M * K));
      expect(isFull(dy, 5)).toBe(true);
    });
  });

  it('is neither what a step kept nor an operand, which a step may give as it is', () => {
    scope(() => {
      const tape = new Tape();
      const [a, b] = [tape.variable(full(1, [K])), tape.variable(full(2, [K]))];
      const kept = full(3, [K]);
      const y = tape.record(multiplyAdd({ a: a.tensor }), [a, b], [kept], (_, pass) => {
        pass.give(a, b.tensor);
        pass.give(b, kept);
      });
      const [da, db] = tape.gradients('own', y, full(1, [K]), [a, b]) as [Tensor, Tensor];
      da.write(new Float32Array(K));
      expect(isFull(b.tensor, 2)).toBe(true);
      tape.dispose();
      expect(isFull(db, 3)).toBe(true);
    });
  });
});

describe('the gradients of a layer of one row', () => {
  const place = { inFeatures: K, outFeatures: K, device: 'cpu' } as const;
  const weight = full(0.5, [K, K]);
  it.each([
    ['beft', () => adapters.beft.create(place)],
    ['dora', () => adapters.dora.create({ ...place, r: 2, weight })],
  ])('of %s do not change dy, when an optimiser writes to them', (_, create) => {
    scope(() => {
      const adapter = create();
      const { saved } = adapter.forward(full(1, [1, K]), weight, { bias: full(1, [K]) });
      const dy = full(5, [1, K]);
      const { dx, dBias, parameters } = adapter.backward(dy, saved);
      for (const gradient of [dx, dBias, ...Object.values(parameters)]) {
        gradient?.write(new Float32Array(gradient.size));
      }
      expect(isFull(dy, 5)).toBe(true);
    });
  });
});

describe('y of a formula that returns x as it came', () => {
  const identity = defineAdapter({
    method: 'identity',
    reference: 'none',
    defaults: {},
    trained: ['a'],
    shapes: () => ({ a: [1] }),
    init: (make) => ({ a: make.zeros('a') }),
    forward: (_, { x }) => x,
  });
  const w = full(1, [K, K]);

  it.each([true, false])('is not x (training: %s)', (training) => {
    scope(() => {
      const adapter = identity.create({ inFeatures: K, outFeatures: K, device: 'cpu' });
      const x = full(1, [M, K]);
      const { y, saved } = adapter.forward(x, w, { training });
      y.write(new Float32Array(M * K));
      expect([isFull(y, 0), isFull(x, 1)]).toEqual([true, true]);
      y.dispose();
      if (!training) return;
      const { dx } = adapter.backward(full(5, [M, K]), saved);
      expect(isFull(dx as Tensor, 5)).toBe(true);
    });
  });
});
