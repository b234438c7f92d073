// Bad input to matmul and matmulInputGrad.
import { describe, expect, it } from 'vitest';
import {
  type Device,
  matmul,
  matmulInputGrad,
  type QuantizedWeight,
  quantize,
  scope,
  Tensor,
} from '../../lib/index.js';
import { DEVICES } from '../conformance/operands.js';
import {
  type BadCase,
  bad,
  callWith,
  checkCases,
  computeCases,
  covered,
  hostile,
  impostors,
} from './harness.js';
import { hugeProducts } from './shapes.js';

/** x [2, 8] (dy [2, 4] for the gradient) against w [4, 8]; `inner` is the dimension that meets. */
function productCases(
  device: Device,
  call: (x: unknown, w: unknown) => unknown,
  good: { x: Tensor; w: QuantizedWeight; inner: number },
  operand: string,
): BadCase[] {
  const { x, w, inner } = good;
  const zeros = (shape: number[], dtype: 'f32' | 'bf16' | 'f16' = 'f32'): Tensor =>
    Tensor.zeros(shape, { dtype, device });
  const other = DEVICES.find((candidate) => candidate !== device) as Device;
  const dense = (shape: number[]): number[] => (inner === 8 ? shape : [...shape].reverse());
  const gone = zeros([2, inner]);
  gone.dispose();
  const goneWeight = quantize(zeros([4, 8]), { format: 'nf4' });
  goneWeight.dispose();
  const shapes = (kind: 11 | 12 | 13 | 14 | 22, what: string, size: number): BadCase[] => [
    bad(kind, `${operand}: ${what}`, 'ERR_SHAPE', () => call(zeros([2, size]), w)),
    bad(kind, `dense w: ${what}`, 'ERR_SHAPE', () => call(x, zeros(dense([4, size])))),
  ];
  return [
    bad(1, 'no arguments', 'ERR_TYPE', () => callWith(call)),
    bad(1, 'one argument', 'ERR_TYPE', () => call(x, undefined)),
    ...impostors(x).flatMap(([kind, what, value]) => [
      bad(kind, `${operand}: ${what}`, 'ERR_TYPE', () => call(value, w)),
      bad(kind, `w: ${what}`, 'ERR_TYPE', () => call(x, value)),
    ]),
    bad(5, 'w: a proxy of a weight', 'ERR_TYPE', () => call(x, new Proxy(w, {}))),
    bad(3, `${operand}: a weight`, 'ERR_TYPE', () => call(w, w)),
    ...shapes(11, 'one short', inner - 1),
    ...shapes(12, 'one long', inner + 1),
    ...shapes(13, 'no length', 0),
    ...shapes(22, 'another length', 3 * inner),
    bad(14, `${operand}: [0, 3]`, 'ERR_SHAPE', () => call(zeros([0, 3]), w)),
    bad(23, `${operand}: a scalar`, 'ERR_SHAPE', () => call(zeros([]), w)),
    bad(23, 'w: a vector', 'ERR_SHAPE', () => call(x, zeros([8]))),
    bad(23, 'w: three dimensions', 'ERR_SHAPE', () => call(x, zeros([1, 4, 8]))),
    bad(23, 'w: a quantised vector', 'ERR_SHAPE', () =>
      call(x, quantize(zeros([32]), { format: 'nf4' })),
    ),
    bad(24, 'bf16 against f16', 'ERR_DTYPE', () =>
      call(zeros([2, inner], 'bf16'), zeros([4, 8], 'f16')),
    ),
    bad(24, 'f16 against bf16', 'ERR_DTYPE', () =>
      call(zeros([2, inner], 'f16'), zeros([4, 8], 'bf16')),
    ),
    bad(29, 'w: quantised from NaN', 'ERR_NON_FINITE', async () => {
      const nan = Tensor.from([Number.NaN, ...new Array(31).fill(1)], [4, 8], { device });
      const y = call(x, quantize(nan, { format: 'nf4' })) as Tensor;
      await y.read();
    }),
    bad(29, 'w: quantised from infinity', 'ERR_NON_FINITE', () => {
      const values = [...new Array(31).fill(1), Number.NEGATIVE_INFINITY];
      const infinite = Tensor.from(values, [4, 8], { device });
      const y = call(x, quantize(infinite, { format: 'int8', doubleQuant: true })) as Tensor;
      y.readSync();
    }),
    bad(31, `${operand}: disposed`, 'ERR_DISPOSED', () => call(gone, w)),
    bad(31, 'w: disposed', 'ERR_DISPOSED', () => call(x, goneWeight)),
    bad(32, `${operand}: on ${other}`, 'ERR_DEVICE', () =>
      call(Tensor.zeros([2, inner], { device: other }), w),
    ),
    bad(32, `w: on ${other}`, 'ERR_DEVICE', () => call(x, w.to({ device: other }))),
  ];
}

describe.each(DEVICES)('bad input on %s', (device) => {
  it('matmul', async () => {
    await scope(async () => {
      const x = Tensor.randn([2, 8], { seed: 1, device });
      const dense = Tensor.randn([4, 8], { seed: 2, device });
      const w = quantize(dense, { format: 'nf4' });
      const bias = Tensor.randn([4], { seed: 3, device });
      const call = (a: unknown, b: unknown): unknown => callWith(matmul, a, b);
      const biased = (value: unknown) => () => matmul(x, w, { bias: value as Tensor });
      const sized = (size: number) => () =>
        matmul(x, w, { bias: Tensor.zeros([size], { device }) });
      const cases = [
        ...productCases(device, call, { x, w, inner: 8 }, 'x'),
        ...hugeProducts(device, matmul),
        ...impostors(bias)
          .filter(([, , value]) => value !== undefined)
          .map(([kind, what, value]) => bad(kind, `bias: ${what}`, 'ERR_TYPE', biased(value))),
        bad(11, 'bias: one short', 'ERR_SHAPE', sized(3)),
        bad(12, 'bias: one long', 'ERR_SHAPE', sized(5)),
        bad(13, 'bias: empty', 'ERR_SHAPE', sized(0)),
        bad(23, 'bias: [2, 2]', 'ERR_SHAPE', () =>
          matmul(x, w, { bias: Tensor.zeros([2, 2], { device }) }),
        ),
        bad(23, 'bias: [4, 1]', 'ERR_SHAPE', () =>
          matmul(x, w, { bias: Tensor.zeros([4, 1], { device }) }),
        ),
        bad(3, 'options: a number', 'ERR_TYPE', () => callWith(matmul, x, w, 3)),
        bad(2, 'options: null', 'ERR_TYPE', () => callWith(matmul, x, w, null)),
        bad(33, 'options: a getter that throws', 'HOSTILE', () =>
          callWith(matmul, x, w, hostile('bias')),
        ),
        ...computeCases(device, dense, (options, other = w) => callWith(matmul, x, other, options)),
      ];
      await checkCases('matmul', device, {
        watched: [x, dense, bias],
        cases,
        valid: () => scope(async () => [await matmul(x, w, { bias }).read()]),
      });
      expect(covered(cases).size).toBeGreaterThanOrEqual(20);
    });
  });

  it('matmulInputGrad', async () => {
    await scope(async () => {
      const dy = Tensor.randn([2, 4], { seed: 1, device });
      const dense = Tensor.randn([4, 8], { seed: 2, device });
      const w = quantize(dense, { format: 'fp4' });
      const call = (a: unknown, b: unknown): unknown => callWith(matmulInputGrad, a, b);
      const cases = [
        ...productCases(device, call, { x: dy, w, inner: 4 }, 'dy'),
        ...hugeProducts(device, (x, w0) => {
          // [M, 0] against [0, K]: the result would hold M · K.
          const empty = Tensor.zeros([0, w0.shape[0] as number], { device });
          return matmulInputGrad(x, empty);
        }),
      ];
      await checkCases('matmulInputGrad', device, {
        watched: [dy, dense],
        cases,
        valid: () => scope(async () => [await matmulInputGrad(dy, w).read()]),
      });
      expect(covered(cases).size).toBeGreaterThanOrEqual(20);
    });
  });
});
