/** The differentiable LoRA layer against the same thing composed of stock TensorFlow.js ops. */

import type { Scalar, Tensor as TfTensor } from '@tensorflow/tfjs';
import { beforeAll, describe, expect, it } from 'vitest';
import { dequantize, memoryUsage, QuantizedWeight, quantize, Tensor } from '../../lib/index.js';
import {
  fromTfjs,
  frozenLinear,
  type LoraLinearOptions,
  loraLinear,
  matMul,
  toTfjs,
} from '../../lib/tfjs/index.js';
import { tensorflow } from '../../lib/tfjs/ops/tensorflow.js';
import { backends, randomValues, useBackend } from './setup.js';

const [M, K, N, r] = [10, 37, 21, 5];

function tfTensor(shape: number[], seed: number): TfTensor {
  const size = shape.reduce((product, dim) => product * dim, 1);
  return tensorflow().tensor(randomValues(size, seed), shape);
}

function operands() {
  return {
    x: tfTensor([2, M / 2, K], 1),
    loraA: tfTensor([r, K], 2),
    loraB: tfTensor([N, r], 3),
    dense: Tensor.from(randomValues(N * K, 4), [N, K]),
    bias: tfTensor([N], 6),
  };
}

/** Both counters, for leak checks. */
function counters() {
  return { ours: memoryUsage().liveTensors, theirs: tensorflow().memory().numTensors };
}

function expectClose(actual: TfTensor, expected: TfTensor, what: string, limit = 3e-6): void {
  expect(actual.shape, what).toEqual(expected.shape);
  const [a, e] = [actual.dataSync(), expected.dataSync()];
  const scale = Math.max(1e-9, ...Array.from(e, Math.abs));
  const worst = Math.max(...Array.from(a, (value, i) => Math.abs(value - (e[i] as number))));
  expect(worst / scale, what).toBeLessThan(limit);
}

describe.each(backends)('on the %s backend', (backend) => {
  beforeAll(() => useBackend(backend));

  it.each(['nf4', 'fp4', 'int8', 'dense', 'bf16', 'tfjs'] as const)(
    'value and gradients equal the composition of stock ops: w as %s',
    (kind) => {
      const tf = tensorflow();
      const { x, loraA, loraB, dense, bias } = operands();
      const w =
        kind === 'dense'
          ? dense
          : kind === 'bf16'
            ? dense.to({ dtype: 'bf16' })
            : kind === 'tfjs'
              ? toTfjs(dense)
              : quantize(dense, { format: kind, blocksize: 64 });
      const plain =
        w instanceof QuantizedWeight
          ? dequantize(w)
          : w instanceof Tensor
            ? w.to({ dtype: 'f32' })
            : dense;
      const wTf = toTfjs(plain).reshape([N, K]);
      const target = tfTensor([2, M / 2, N], 9);
      const loss = (y: TfTensor) => tf.sum(tf.mul(y, tf.mul(y, target))) as Scalar;
      const fused = (...[a, b, c, d]: TfTensor[]) =>
        loss(
          loraLinear(a as TfTensor, w, b as TfTensor, c as TfTensor, {
            loraAlpha: 7,
            bias: d as TfTensor,
          }),
        );
      const stock = (...[a, b, c, d]: TfTensor[]) => {
        const flat = tf.reshape(a as TfTensor, [M, K]);
        const h = tf.matMul(flat, b as TfTensor, false, true);
        const low = tf.mul(tf.matMul(h, c as TfTensor, false, true), 7 / r);
        const y = tf.add(tf.add(tf.matMul(flat, wTf, false, true), low), d as TfTensor);
        return loss(tf.reshape(y, [2, M / 2, N]));
      };
      const inputs = [x, loraA, loraB, bias];
      const actual = tf.valueAndGrads(fused)(inputs);
      const expected = tf.valueAndGrads(stock)(inputs);
      expectClose(actual.value, expected.value, 'value', 1e-5);
      actual.grads.forEach((gradient, i) => {
        expectClose(gradient, expected.grads[i] as TfTensor, `gradient ${i}`);
      });
    },
  );

  it('scaling, rslora and loraAlpha mean what PEFT means', () => {
    const tf = tensorflow();
    const { x, loraA, loraB } = operands();
    const w = Tensor.zeros([N, K]);
    const low = (options: LoraLinearOptions) => loraLinear(x, w, loraA, loraB, options);
    const unit = low({ scaling: 1 });
    expectClose(low({}), unit, 'the default is 1');
    expectClose(low({ loraAlpha: 10 }), tf.mul(unit, 10 / r), 'loraAlpha / r');
    expectClose(low({ loraAlpha: 10, rslora: true }), tf.mul(unit, 10 / Math.sqrt(r)), 'rslora');
    expectClose(low({ scaling: -0.25 }), tf.mul(unit, -0.25), 'scaling itself');
  });

  it('dropout: one mask for forward and backward, none outside training', () => {
    const tf = tensorflow();
    const w = Tensor.zeros([N, K]);
    // With lora_a = 1 in one row and lora_b = 1, y is the sum of what was kept, and dx its gate.
    const ones = tf.ones([1, K]);
    const up = tf.ones([N, 1]);
    const x = tf.ones([M, K]);
    const options = { dropout: 0.4, seed: 11 };
    const { value, grad } = tf.valueAndGrad((a: TfTensor) =>
      tf.sum(loraLinear(a, w, ones, up, options)),
    )(x) as { value: TfTensor; grad: TfTensor };
    const gates = grad.dataSync<'float32'>();
    const levels = [...new Set(Array.from(gates, (gate) => (gate / N).toFixed(4)))].sort();
    expect(levels).toEqual(['0.0000', (1 / 0.6).toFixed(4)]);
    const kept = gates.reduce((sum, gate) => sum + gate, 0);
    expect(Math.abs(kept - (value.dataSync()[0] as number)) / kept).toBeLessThan(1e-5);
    const share = gates.filter((gate) => gate > 0).length / gates.length;
    expect(share).toBeGreaterThan(0.5);
    expect(share).toBeLessThan(0.7);
    expectClose(loraLinear(x, w, ones, up, options), tf.fill([M, N], K), 'evaluation');
  });

  it('a frozen operand takes no part', () => {
    const tf = tensorflow();
    const { x, loraA, loraB, dense } = operands();
    const layer = (freeze: LoraLinearOptions['freeze']) => (a: TfTensor, b: TfTensor) =>
      tf.sum(loraLinear(x, dense, a, b, { freeze: ['x', ...(freeze ?? [])] })) as Scalar;
    const both = tf.grads(layer([]))([loraA, loraB]);
    const onlyB = tf.grad((b: TfTensor) => layer(['loraA'])(loraA, b))(loraB);
    expectClose(onlyB, both[1] as TfTensor, 'gradient of loraB alone');
    expect(() => tf.grads(layer(['loraA']))([loraA, loraB])).toThrow();
  });

  // A quantised weight is read in place; beside one of 16 bits, the operands are copied.
  it.each(['nf4', 'bf16'] as const)(
    'keeps nothing: after gradients, evaluation, unused branches and exceptions, w as %s',
    async (kind) => {
      const tf = tensorflow();
      const { x, loraA, loraB, dense } = operands();
      const w = kind === 'nf4' ? quantize(dense, { format: kind }) : dense.to({ dtype: kind });
      const before = counters();
      const layer = (a: TfTensor) => loraLinear(a, w, loraA, loraB);
      const quietly = (body: () => unknown) =>
        tf.tidy(() => {
          body();
        });
      quietly(() => tf.grad((a: TfTensor) => tf.sum(layer(a)))(x));
      expect(counters(), 'after a gradient').toEqual(before);
      quietly(() => layer(x));
      expect(counters(), 'after an evaluation').toEqual(before);
      quietly(() =>
        tf.grad((a: TfTensor) => {
          layer(a);
          return tf.sum(a);
        })(x),
      );
      const kept = counters().ours - before.ours;
      if (kind === 'nf4') expect(kept, 'an unused branch').toBe(0);
      else expect(kept, 'an unused branch is still there').toBeGreaterThan(0);
      // An unused branch is freed when the next tape starts, or with the next microtask.
      quietly(() => tf.grad((a: TfTensor) => tf.sum(layer(a)))(x));
      expect(counters(), 'after an unused branch and another gradient').toEqual(before);
      expect(() =>
        quietly(() =>
          tf.grad((a: TfTensor): TfTensor => {
            layer(a);
            throw new Error('on purpose');
          })(x),
        ),
      ).toThrow('on purpose');
      await Promise.resolve();
      expect(counters(), 'after an exception').toEqual(before);
    },
  );

  it('frozenLinear and matMul have the gradients of tf.matMul', () => {
    const tf = tensorflow();
    const { x, dense } = operands();
    const wTf = toTfjs(dense);
    const flat = tf.reshape(x, [M, K]);
    const cube = (y: TfTensor) => tf.sum(tf.mul(y, tf.square(y)));
    const actual = tf.grad((a: TfTensor) => cube(frozenLinear(a, dense)))(flat);
    const expected = tf.grad((a: TfTensor) => cube(tf.matMul(a, wTf, false, true)))(flat);
    expectClose(actual, expected, 'frozenLinear');
    for (const [ta, tb] of [
      [false, false],
      [false, true],
      [true, false],
      [true, true],
    ] as const) {
      const a = tfTensor(ta ? [3, K, M] : [3, M, K], 21);
      const b = tfTensor(tb ? [3, N, K] : [3, K, N], 22);
      const run = (product: typeof matMul) =>
        tf.valueAndGrads((p: TfTensor, q: TfTensor) => cube(product(p, q, ta, tb)) as Scalar)([
          a,
          b,
        ]);
      const [ours, theirs] = [run(matMul), run(tf.matMul as typeof matMul)];
      expectClose(ours.value, theirs.value, `value ${ta} ${tb}`, 1e-5);
      expectClose(ours.grads[0] as TfTensor, theirs.grads[0] as TfTensor, `da ${ta} ${tb}`, 1e-5);
      expectClose(ours.grads[1] as TfTensor, theirs.grads[1] as TfTensor, `db ${ta} ${tb}`, 1e-5);
    }
  });

  it('refuses what it cannot do, by code, and works afterwards', async () => {
    const tf = tensorflow();
    const { x, loraA, loraB, dense } = operands();
    const before = counters();
    const code = (body: () => unknown) => {
      try {
        body();
      } catch (error) {
        return (error as { code?: string }).code;
      }
      return 'no error';
    };
    const bad = <T>(value: unknown) => value as T;
    const layer = (options?: LoraLinearOptions) => loraLinear(x, dense, loraA, loraB, options);
    expect(code(() => loraLinear(bad(null), dense, loraA, loraB))).toBe('ERR_TYPE');
    expect(code(() => loraLinear(x, bad({}), loraA, loraB))).toBe('ERR_TYPE');
    expect(code(() => loraLinear(x, dense, loraB, loraA))).toBe('ERR_SHAPE');
    expect(code(() => loraLinear(x, dense, loraA, loraA))).toBe('ERR_SHAPE');
    expect(code(() => loraLinear(loraB, dense, loraA, loraB))).toBe('ERR_SHAPE');
    expect(code(() => layer({ bias: loraA }))).toBe('ERR_SHAPE');
    expect(code(() => layer({ dropout: 1, seed: 1 }))).toBe('ERR_VALUE');
    expect(code(() => layer({ dropout: 0.5, training: true }))).toBe('ERR_VALUE');
    expect(code(() => layer({ scaling: 1, loraAlpha: 1 }))).toBe('ERR_VALUE');
    expect(code(() => layer({ scaling: Number.NaN }))).toBe('ERR_VALUE');
    expect(code(() => loraLinear(tf.cast(x, 'int32'), dense, loraA, loraB))).toBe('ERR_DTYPE');
    const gone = tf.clone(loraA);
    gone.dispose();
    expect(code(() => loraLinear(x, dense, gone, loraB))).toBe('ERR_DISPOSED');
    const freed = Tensor.zeros([N, K]);
    freed.dispose();
    expect(code(() => loraLinear(x, freed, loraA, loraB))).toBe('ERR_DISPOSED');
    const second = () =>
      tf.grad((a: TfTensor) =>
        tf.sum(tf.square(tf.grad((b: TfTensor) => tf.sum(loraLinear(b, dense, loraA, loraB)))(a))),
      )(x);
    expect(code(second)).toBe('ERR_UNSUPPORTED');
    await Promise.resolve();
    expect(counters().ours, 'nothing of ours is left').toBe(before.ours);
    expectClose(layer(), layer(), 'the next call');
  });

  it('converts both ways without changing a bit', () => {
    const values = randomValues(24, 8);
    values[3] = Number.NaN;
    values[4] = Number.NEGATIVE_INFINITY;
    values[5] = 1e-40;
    const there = fromTfjs(tensorflow().tensor(values, [2, 3, 4]));
    expect(there.shape).toEqual([2, 3, 4]);
    expect(new Uint32Array(toTfjs(there).dataSync().slice().buffer)).toEqual(
      new Uint32Array(values.slice().buffer),
    );
  });
});
