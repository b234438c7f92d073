/** TensorFlow.js on our kernels: every matrix product of a program, with its gradients. */

import type { KernelConfig, Scalar, Tensor as TfTensor } from '@tensorflow/tfjs';
import { afterEach, beforeAll, describe, expect, it } from 'vitest';
import { memoryUsage } from '../../lib/index.js';
import { register, unregister } from '../../lib/tfjs/index.js';
import { tensorflow } from '../../lib/tfjs/ops/tensorflow.js';
import { backends, randomValues, useBackend } from './setup.js';

function random(shape: number[], seed: number): TfTensor {
  const size = shape.reduce((product, dim) => product * dim, 1);
  return tensorflow().tensor(randomValues(size, seed), shape);
}

function worstError(actual: TfTensor, expected: TfTensor): number {
  expect(actual.shape).toEqual(expected.shape);
  const [a, e] = [actual.dataSync(), expected.dataSync()];
  const scale = Math.max(1e-9, ...Array.from(e, Math.abs));
  return Math.max(0, ...Array.from(a, (value, i) => Math.abs(value - (e[i] as number)))) / scale;
}

describe.each(backends)('on the %s backend', (backend) => {
  beforeAll(() => useBackend(backend));
  afterEach(() => unregister());

  /** Runs a body with the backend's kernels and with ours, and counts calls of the original. */
  function both(body: () => TfTensor[]): { theirs: TfTensor[]; ours: TfTensor[] } {
    const theirs = body();
    register({ minProducts: 0 });
    const ours = body();
    unregister();
    return { theirs, ours };
  }

  it.each([
    ['plain', [4, 5], [5, 6], false, false],
    ['b transposed', [4, 5], [6, 5], false, true],
    ['a transposed', [5, 4], [5, 6], true, false],
    ['both transposed', [5, 4], [6, 5], true, true],
    ['batch', [3, 4, 5], [3, 5, 6], false, false],
    ['one b for all', [3, 4, 5], [1, 5, 6], false, false],
    ['one a for all, transposed', [1, 5, 4], [3, 5, 6], true, false],
    ['larger than a tile', [70, 33], [33, 129], false, false],
  ])('products and gradients are the same: %s', (_, aShape, bShape, ta, tb) => {
    const tf = tensorflow();
    const [a, b] = [random(aShape, 1), random(bShape, 2)];
    const { theirs, ours } = both(() => {
      const same = aShape.length === bShape.length && aShape[0] === bShape[0];
      const value = tf.matMul(a, b, ta, tb);
      if (!same && aShape.length > 2) return [value];
      const f = (p: TfTensor, q: TfTensor) => tf.sum(tf.square(tf.matMul(p, q, ta, tb))) as Scalar;
      return [value, ...tf.grads(f)([a, b])];
    });
    ours.forEach((tensor, i) => {
      expect(worstError(tensor, theirs[i] as TfTensor)).toBeLessThan(5e-6);
    });
  });

  it('broadcasts batch dimensions of both operands', () => {
    // TensorFlow.js' own kernels leave half of such a result out, so each matrix is its own product.
    const tf = tensorflow();
    const [a, b] = [random([2, 1, 4, 5], 1), random([1, 3, 5, 6], 2)];
    register({ minProducts: 0 });
    const ours = tf.matMul(a, b);
    unregister();
    expect(ours.shape).toEqual([2, 3, 4, 6]);
    for (const [i, j] of [
      [0, 0],
      [1, 0],
      [0, 2],
      [1, 2],
    ] as const) {
      const left = tf.reshape(tf.slice(a, [i, 0, 0, 0], [1, 1, 4, 5]), [4, 5]);
      const right = tf.reshape(tf.slice(b, [0, j, 0, 0], [1, 1, 5, 6]), [5, 6]);
      const part = tf.reshape(tf.slice(ours, [i, j, 0, 0], [1, 1, 4, 6]), [4, 6]);
      expect(worstError(part, tf.matMul(left, right))).toBeLessThan(5e-6);
    }
  });

  it.each(['linear', 'relu', 'relu6', 'elu', 'sigmoid', 'leakyrelu', 'prelu'] as const)(
    'fused matMul with bias and %s',
    (activation) => {
      const tf = tensorflow();
      const [a, b, bias] = [random([9, 17], 1), random([17, 8], 2), random([8], 3)];
      const run = () =>
        tf.fused.matMul({
          a,
          b,
          bias,
          activation,
          leakyreluAlpha: 0.1,
          ...(activation === 'prelu' ? { preluActivationWeights: tf.fill([1, 8], 0.3) } : {}),
        });
      register({ minProducts: 0 });
      const ours = run();
      unregister();
      const plain = tf.add(tf.matMul(a, b), bias);
      const expected = {
        linear: () => plain,
        relu: () => tf.relu(plain),
        relu6: () => tf.relu6(plain),
        elu: () => tf.elu(plain),
        sigmoid: () => tf.sigmoid(plain),
        leakyrelu: () => tf.leakyRelu(plain, 0.1),
        prelu: () => tf.prelu(plain, tf.fill([1, 8], 0.3)),
      }[activation]();
      expect(worstError(ours, expected)).toBeLessThan(5e-6);
    },
  );

  /** How many products the backend's own kernel runs in `body`, with `options` registered. */
  function keptBy(options: Parameters<typeof register>[0], body: () => void): number {
    const tf = tensorflow();
    const original = tf.getKernel('BatchMatMul', backend) as KernelConfig;
    let calls = 0;
    tf.unregisterKernel('BatchMatMul', backend);
    tf.registerKernel({
      ...original,
      kernelFunc: (params) => {
        calls++;
        return original.kernelFunc(params);
      },
    });
    try {
      register(options);
      tf.tidy(body);
      return calls;
    } finally {
      unregister();
      tf.unregisterKernel('BatchMatMul', backend);
      tf.registerKernel(original);
    }
  }

  it('really runs here, gives zeros for sums over nothing, and gives the kernels back', () => {
    const tf = tensorflow();
    const original = tf.getKernel('BatchMatMul', backend);
    const registered = register({ minProducts: 0 });
    expect(registered).toEqual({
      backend,
      kernels: ['BatchMatMul', '_FusedMatMul'],
      minProducts: 0,
    });
    expect(tf.getKernel('BatchMatMul', backend)).not.toBe(original);
    const before = memoryUsage();
    const theirs = tf.memory().numTensors;
    const product = tf.matMul(random([32, 32], 1), random([32, 32], 2));
    expect(memoryUsage()).toEqual(before);
    expect(tf.memory().numTensors).toBe(theirs + 3);
    expect(product.shape).toEqual([32, 32]);
    expect(tf.matMul(tf.zeros([2, 0]), tf.zeros([0, 3])).dataSync()).toEqual(new Float32Array(6));
    register();
    unregister();
    expect(tf.getKernel('BatchMatMul', backend)).toBe(original);
    expect(keptBy({ minProducts: 0 }, () => tf.matMul(random([4, 4], 1), random([4, 4], 2)))).toBe(
      0,
    );
  });

  it('rejects other backends and kernels, and changes nothing then', () => {
    const tf = tensorflow();
    const original = tf.getKernel('BatchMatMul', backend);
    const bad = <T>(value: unknown) => value as T;
    expect(() => register({ backend: 'webgl' })).toThrow(
      /backend must be cpu or wasm .* copy both operands .*got "webgl"/,
    );
    expect(() => register({ backend: 'own', force: true })).toThrow(/without BatchMatMul/);
    expect(() => register({ kernels: ['Softmax', 'Conv2D'] })).toThrow(
      expect.objectContaining({ code: 'ERR_VALUE' }),
    );
    expect(() => register({ kernels: bad(3) })).toThrow(
      expect.objectContaining({ code: 'ERR_TYPE' }),
    );
    expect(() => register({ minProducts: -1 })).toThrow(
      expect.objectContaining({ code: 'ERR_VALUE' }),
    );
    expect(() =>
      register({ kernels: ['Pack', ...(backend === 'wasm' ? ['Add'] : ['Fill'])] }),
    ).toThrow(expect.objectContaining({ code: 'ERR_VALUE' }));
    expect(tf.getKernel('BatchMatMul', backend)).toBe(original);
  });

  it('leaves to the backend what it does in less time', () => {
    const wasm = backend === 'wasm';
    const sizes = [
      { shape: [8, 8, 8], here: false },
      { shape: [16, 16, 16], here: !wasm },
      { shape: [32, 32, 32], here: true },
      { shape: [128, 128, 128], here: true },
      { shape: [1, 1024, 1024], here: !wasm },
      { shape: [1, 512, 512], here: true },
      { shape: [1024, 1024, 1], here: !wasm },
      { shape: [32, 1024, 1024], here: true },
      { shape: [512, 512, 8], here: true },
    ];
    for (const { shape, here } of sizes) {
      const [M, K, N] = shape as [number, number, number];
      const [a, b] = [random([M, K], 1), random([K, N], 2)];
      const kept = keptBy({}, () => tensorflow().matMul(a, b));
      expect([shape, kept === 0]).toEqual([shape, here]);
    }
    // A threshold of one's own takes all from there on.
    const [a, b] = [random([16, 16], 1), random([16, 16], 2)];
    expect(keptBy({ minProducts: 16 ** 3 }, () => tensorflow().matMul(a, b))).toBe(0);
    expect(keptBy({ minProducts: 16 ** 3 + 1 }, () => tensorflow().matMul(a, b))).toBe(1);
  });

  it('measures the threshold, once', () => {
    const first = register({ calibrate: true });
    expect(first.minProducts).toBeGreaterThan(100);
    expect(first.minProducts).toBeLessThanOrEqual(2 * 160 ** 3);
    expect(register({ calibrate: true })).toEqual(first);
  });

  it('trains a dense layer of TensorFlow.js to the same weights', async () => {
    const tf = tensorflow();
    const train = async () => {
      const initializer = tf.initializers.glorotUniform({ seed: 5 });
      const model = tf.sequential({
        layers: [
          tf.layers.dense({
            units: 16,
            inputShape: [12],
            activation: 'relu',
            kernelInitializer: initializer,
          }),
          tf.layers.dense({ units: 3, kernelInitializer: initializer }),
        ],
      });
      model.compile({ optimizer: tf.train.sgd(0.05), loss: 'meanSquaredError' });
      await model.fit(random([20, 12], 1), random([20, 3], 2), { epochs: 3, shuffle: false });
      return model.getWeights();
    };
    const theirs = await train();
    register({ minProducts: 0 });
    const ours = await train();
    ours.forEach((weight, i) => {
      expect(worstError(weight, theirs[i] as TfTensor)).toBeLessThan(1e-5);
    });
  });
});
