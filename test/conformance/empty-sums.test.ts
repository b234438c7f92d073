// Dimensions of zero: a sum over nothing is zero (or the bias), and a result of no elements is empty.
import { describe, expect, it } from 'vitest';
import {
  LoraAdapter,
  loraBackward,
  loraForward,
  matmul,
  matmulInputGrad,
  quantize,
  Tensor,
} from '../../lib/index.js';
import { DEVICES } from './operands.js';

describe.each(DEVICES)('%s', (device) => {
  const ones = (...shape: number[]) =>
    Tensor.from(new Float32Array(shape.reduce((a, b) => a * b, 1)).fill(1), shape, { device });

  it('K = 0: y is the bias', () => {
    const bias = Tensor.from([1, 2, 3], [3], { device });
    for (const w of [ones(3, 0), quantize(ones(3, 0), { format: 'nf4' })]) {
      expect([...matmul(ones(2, 0), w, { bias }).readSync()]).toEqual([1, 2, 3, 1, 2, 3]);
      expect([...matmul(ones(2, 0), w).readSync()]).toEqual([0, 0, 0, 0, 0, 0]);
    }
  });

  it('N = 0: dx is zero, and y is empty', () => {
    for (const w of [ones(0, 4), quantize(ones(0, 4), { format: 'nf4' })]) {
      expect([...matmulInputGrad(ones(2, 0), w).readSync()]).toEqual(new Array(8).fill(0));
      expect(matmul(ones(2, 4), w).shape).toEqual([2, 0]);
    }
  });

  it('M = 0: gradients of the factors are zero', () => {
    const adapter = new LoraAdapter({ loraA: ones(2, 4), loraB: ones(3, 2), loraAlpha: 2 });
    const { y, saved } = loraForward(ones(0, 4), ones(3, 4), adapter);
    expect(y.shape).toEqual([0, 3]);
    const { dx, dLoraA, dLoraB } = loraBackward(ones(0, 3), saved);
    expect(dx?.shape).toEqual([0, 4]);
    expect([...(dLoraA as Tensor).readSync()]).toEqual(new Array(8).fill(0));
    expect([...(dLoraB as Tensor).readSync()]).toEqual(new Array(6).fill(0));
  });
});
