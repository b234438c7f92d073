// First step of the gradient check: the float64 backward pass against central differences of the
// float64 forward pass. The second step, kernels against the float64 backward, is in conformance/.
import { describe, expect, it } from 'vitest';
import { dropoutMask64, gateOf } from './dropout.js';
import { normalMatrix } from './inputs.js';
import { at, type Bounded, type Matrix, map, times, timesTransposed, transpose } from './linear.js';
import { type LoraInputs, loraBackward64, loraForward64, loraShrink64 } from './lora.js';

const CASES = [
  { M: 3, K: 5, N: 4, r: 2, p: 0, bias: true, scaling: 2 },
  { M: 1, K: 7, N: 3, r: 1, p: 0, bias: false, scaling: -0.5 },
  { M: 4, K: 6, N: 5, r: 8, p: 0.3, bias: true, scaling: 16 / Math.sqrt(8) },
];

function inputsOf(test: (typeof CASES)[number]): { inputs: LoraInputs; dy: Matrix } {
  const { M, K, N, r, p, bias, scaling } = test;
  return {
    dy: normalMatrix(M, N, 7),
    inputs: {
      x: normalMatrix(M, K, 1),
      w: normalMatrix(N, K, 2),
      bias: bias ? normalMatrix(1, N, 3) : undefined,
      loraA: normalMatrix(r, K, 4),
      loraB: normalMatrix(N, r, 5),
      loraBias: bias ? normalMatrix(1, N, 6) : undefined,
      scaling,
      gate: p > 0 ? gateOf(dropoutMask64(11, p, M, K), p) : undefined,
    },
  };
}

const loss = (inputs: LoraInputs, dy: Matrix): number =>
  loraForward64(inputs).value.data.reduce((sum, y, i) => sum + y * (dy.data[i] as number), 0);

const PARTS = [
  ['x', 'dx'],
  ['loraA', 'dLoraA'],
  ['loraB', 'dLoraB'],
  ['bias', 'dBias'],
  ['loraBias', 'dLoraBias'],
] as const;

describe.each(CASES)('float64 backward, M $M K $K N $N r $r p $p', (test) => {
  const { inputs, dy } = inputsOf(test);
  const gradients = loraBackward64(inputs, dy);

  it.each(PARTS)('%s against central differences', (part, gradient) => {
    const operand = inputs[part];
    if (operand === undefined) {
      expect(test.bias).toBe(false);
      return;
    }
    const expected = gradients[gradient].value;
    for (let i = 0; i < operand.data.length; i++) {
      const step = 1e-5 * Math.max(1, Math.abs(operand.data[i] as number));
      const moved = (by: number): number => {
        const shifted = map(operand, (value, j) => (i === j ? value + by : value));
        return loss({ ...inputs, [part]: shifted }, dy);
      };
      const difference = (moved(step) - moved(-step)) / (2 * step);
      const scale = Math.max(1, Math.abs(expected.data[i] as number));
      expect(Math.abs(difference - (expected.data[i] as number)) / scale).toBeLessThanOrEqual(1e-6);
    }
  });

  it('a planted wrong gate would be seen', () => {
    const ungated = loraBackward64({ ...inputs, gate: undefined }, dy).dx.value;
    const same = ungated.data.every(
      (v, i) => Math.abs(v - (gradients.dx.value.data[i] ?? 0)) < 1e-6,
    );
    expect(same).toBe(test.p === 0);
  });

  it('P bounds the value it belongs to', () => {
    const all: Bounded[] = [
      loraForward64(inputs),
      loraShrink64(inputs),
      ...Object.values(gradients),
    ];
    for (const { value, p } of all) {
      for (let i = 0; i < value.data.length; i++) {
        expect(Math.abs(value.data[i] as number)).toBeLessThanOrEqual(
          (p.data[i] as number) + 1e-12,
        );
      }
    }
  });
});

describe('matrix products', () => {
  it('agree with each other and with a sum written out', () => {
    const a = normalMatrix(3, 4, 1);
    const b = normalMatrix(4, 2, 2);
    const product = times(a, b);
    expect(timesTransposed(a, transpose(b)).data).toEqual(product.data);
    let sum = 0;
    for (let k = 0; k < 4; k++) sum += at(a, 2, k) * at(b, k, 1);
    expect(at(product, 2, 1)).toBe(sum);
  });
});
