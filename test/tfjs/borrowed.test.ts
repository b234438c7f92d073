/** Ops on arrays of the caller: the results of the ops on tensors, and refusals that leave the output as it was. */

import { describe, expect, it } from 'vitest';
import {
  LoraAdapter,
  loraBackward,
  loraForward,
  matmul,
  matmulInputGrad,
  memoryUsage,
  quantize,
  Tensor,
  weightGrad,
} from '../../lib/index.js';
import {
  type BorrowedProduct,
  loraBackwardBorrowed,
  loraForwardBorrowed,
  multiplyBorrowed,
} from '../../lib/ops/borrowed.js';
import { randomValues } from '../finetune/setup.js';

const [M, N, K, r] = [9, 21, 34, 3];
const a = randomValues(M * K, 1);
const rows = randomValues(N * K, 2);
const bits = (values: Float32Array) => [...new Uint32Array(values.slice().buffer)];

describe.each(['cpu', 'reference'] as const)('on %s', (device) => {
  const tensor = (values: Float32Array, shape: number[]) => Tensor.from(values, shape, { device });

  it('products have the bits of those of tensors', () => {
    const out = new Float32Array(M * N);
    const bias = randomValues(N, 3);
    const x = tensor(a, [M, K]);
    multiplyBorrowed(device, { form: 'abT', M, N, K, bias }, a, rows, out);
    const w = tensor(rows, [N, K]);
    expect(bits(out)).toEqual(bits(matmul(x, w, { bias: tensor(bias, [N]) }).readSync()));
    multiplyBorrowed(device, { form: 'ab', M, N, K }, a, rows, out);
    expect(bits(out)).toEqual(bits(matmulInputGrad(x, tensor(rows, [K, N])).readSync()));
    const turned = randomValues(K * M, 4);
    multiplyBorrowed(device, { form: 'aTb', M, N, K }, turned, rows, out);
    const { dw } = { dw: weightGrad(tensor(turned, [K, M]), tensor(rows, [K, N])) };
    expect(bits(out)).toEqual(bits((dw as Tensor).readSync()));
    const w4 = quantize(w, { format: 'nf4' });
    multiplyBorrowed(device, { form: 'abT', M, N, K }, a, w4, out);
    expect(bits(out)).toEqual(bits(matmul(x, w4).readSync()));
  });

  it('pairs choose the matrices, in memory of any place', () => {
    const heap = new ArrayBuffer(64 * 1024);
    const left = new Float32Array(heap, 4, 3 * 4 * 5);
    const right = new Float32Array(heap, 4 + 4 * left.length, 2 * 5 * 6);
    const out = new Float32Array(heap, 32 * 1024 + 4, 4 * 4 * 6);
    left.set(randomValues(left.length, 5));
    right.set(randomValues(right.length, 6));
    const pairs = Int32Array.of(2, 0, 0, 1, 1, 1, 2, 1);
    multiplyBorrowed(device, { form: 'ab', M: 4, N: 6, K: 5, pairs }, left, right, out);
    for (let i = 0; i < 4; i++) {
      const [p, q] = [pairs[2 * i] as number, pairs[2 * i + 1] as number];
      for (let m = 0; m < 4; m++) {
        for (let n = 0; n < 6; n++) {
          let sum = 0;
          for (let k = 0; k < 5; k++) {
            sum += (left[p * 20 + m * 5 + k] as number) * (right[q * 30 + k * 6 + n] as number);
          }
          expect(out[i * 24 + m * 6 + n]).toBeCloseTo(sum, 5);
        }
      }
    }
  });

  it('a LoRA layer and its gradients have the bits of those of tensors', () => {
    const [loraA, loraB, bias] = [
      randomValues(r * K, 7),
      randomValues(N * r, 8),
      randomValues(N, 9),
    ];
    const dy = randomValues(M * N, 10);
    const w = quantize(tensor(rows, [N, K]), { format: 'nf4' });
    const adapter = new LoraAdapter({
      loraA: tensor(loraA, [r, K]),
      loraB: tensor(loraB, [N, r]),
      loraAlpha: 6,
      dropout: 0.3,
    });
    const pass = { device, M, r, scaling: 2, dropout: 0.3, seed: 11 };
    const [h, y] = [new Float32Array(M * r), new Float32Array(M * N)];
    loraForwardBorrowed(w, pass, { x: a, bias, loraA, loraB }, h, y);
    const options = { bias: tensor(bias, [N]), seed: 11 };
    const expected = loraForward(tensor(a, [M, K]), w, adapter, options);
    expect(bits(y)).toEqual(bits(expected.y.readSync()));
    const found = {
      dx: new Float32Array(M * K),
      dLoraA: new Float32Array(r * K),
      dLoraB: new Float32Array(N * r),
      dBias: new Float32Array(N),
    };
    loraBackwardBorrowed(w, pass, { dy, x: a, loraA, loraB, h }, found);
    const gradients = loraBackward(tensor(dy, [M, N]), expected.saved, {
      needs: ['dx', 'dLoraA', 'dLoraB', 'dBias'],
    });
    for (const name of ['dx', 'dLoraA', 'dLoraB', 'dBias'] as const) {
      expect(bits(found[name]), name).toEqual(bits(gradients[name]?.readSync() as Float32Array));
    }
  });
});

describe('refuses', () => {
  const product: BorrowedProduct = { form: 'abT', M, N, K };
  const detached = (length: number) => {
    const array = new Float32Array(length);
    structuredClone(array.buffer, { transfer: [array.buffer] });
    return array;
  };
  const whole = new Float32Array(M * K + M * N);
  const bad = <T>(value: unknown) => value as T;
  const pairs = (...values: number[]) => ({ ...product, pairs: Int32Array.from(values) });
  it.each([
    [
      'a detached operand',
      () => multiplyBorrowed('cpu', product, detached(M * K), rows, out()),
      'ERR_DISPOSED',
    ],
    [
      'a detached weight',
      () => multiplyBorrowed('cpu', product, a, detached(N * K), out()),
      'ERR_DISPOSED',
    ],
    [
      'a detached output',
      () => multiplyBorrowed('cpu', product, a, rows, detached(M * N)),
      'ERR_DISPOSED',
    ],
    [
      'a short operand',
      () => multiplyBorrowed('cpu', product, a.subarray(1), rows, out()),
      'ERR_SHAPE',
    ],
    [
      'a long output',
      () => multiplyBorrowed('cpu', product, a, rows, new Float32Array(M * N + 1)),
      'ERR_SHAPE',
    ],
    [
      'an output over an operand',
      () =>
        multiplyBorrowed(
          'cpu',
          product,
          whole.subarray(0, M * K),
          rows,
          whole.subarray(M * K - 1, M * K - 1 + M * N),
        ),
      'ERR_ALIAS',
    ],
    [
      'doubles',
      () => multiplyBorrowed('cpu', product, bad(new Float64Array(M * K)), rows, out()),
      'ERR_TYPE',
    ],
    [
      'an array of numbers',
      () => multiplyBorrowed('cpu', product, bad([1, 2]), rows, out()),
      'ERR_TYPE',
    ],
    [
      'half a row',
      () => multiplyBorrowed('cpu', { ...product, M: 1.5 }, a, rows, out()),
      'ERR_SHAPE',
    ],
    [
      'a bias of another form',
      () =>
        multiplyBorrowed('cpu', { form: 'ab', M, N, K, bias: new Float32Array(N) }, a, rows, out()),
      'ERR_UNSUPPORTED',
    ],
    [
      'a pair beyond the end',
      () => multiplyBorrowed('cpu', pairs(0, 1), a, rows, out()),
      'ERR_VALUE',
    ],
    ['a pair below zero', () => multiplyBorrowed('cpu', pairs(-1, 0), a, rows, out()), 'ERR_VALUE'],
    ['half a pair', () => multiplyBorrowed('cpu', pairs(0, 0, 0), a, rows, out()), 'ERR_SHAPE'],
    [
      'a device of nobody',
      () => multiplyBorrowed(bad('tpu'), product, a, rows, out()),
      'ERR_DEVICE',
    ],
  ] as [string, () => void, string][])('%s', (_, call, code) => {
    const before = memoryUsage();
    expect(call).toThrow(expect.objectContaining({ code }));
    expect(memoryUsage()).toEqual(before);
    expect(written.every((value) => value === 7)).toBe(true);
    multiplyBorrowed('cpu', product, a, rows, new Float32Array(M * N));
  });
  const written = new Float32Array(M * N).fill(7);
  function out(): Float32Array {
    return written;
  }

  it('a weight whose values were not finite, by the error of the op that made it', () => {
    const w = quantize(Tensor.from(new Float32Array(N * K).fill(Number.NaN), [N, K]), {
      format: 'nf4',
    });
    expect(() => multiplyBorrowed('cpu', product, a, w, new Float32Array(M * N))).toThrow(
      expect.objectContaining({ code: 'ERR_NON_FINITE' }),
    );
  });
});
