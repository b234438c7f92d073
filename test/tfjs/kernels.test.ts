/** The kernels that replace those of the cpu backend, against its own: the same bits, shapes and dtypes. */

import type { Tensor as TfTensor } from '@tensorflow/tfjs';
import { afterEach, beforeAll, describe, expect, it } from 'vitest';
import { register, registerMissing, unregister } from '../../lib/tfjs/index.js';
import { tensorflow } from '../../lib/tfjs/ops/tensorflow.js';
import { useBackend } from '../finetune/setup.js';
import { bitsOf, counters, randomTensor } from './setup.js';

beforeAll(async () => {
  await useBackend('wasm');
  await useBackend('cpu');
});
afterEach(() => unregister());

/** Values that an operation may treat apart from others. */
function withSpecials(shape: number[], seed: number): TfTensor {
  const tensor = randomTensor(shape, seed);
  const values = tensor.dataSync().slice();
  [Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY, -0, 0, 1e-42, 3e38].forEach(
    (value, i) => {
      if (i * 3 < values.length) values[i * 3] = value;
    },
  );
  return tensorflow().tensor(values, shape);
}

function expectSame(body: () => TfTensor): void {
  const theirs = body();
  register({ kernels: 'all', minProducts: Number.POSITIVE_INFINITY });
  const before = counters();
  const ours = body();
  expect(counters().ours).toBe(before.ours);
  unregister();
  expect(ours.shape).toEqual(theirs.shape);
  expect(ours.dtype).toBe(theirs.dtype);
  expect(valueBits(ours)).toEqual(valueBits(theirs));
}

/** The bits, of NaN always the same: its sign is the processor's. */
function valueBits(tensor: TfTensor): Uint32Array {
  const values = Float32Array.from(tensor.dataSync(), (value) =>
    Number.isNaN(value) ? Number.NaN : value,
  );
  return new Uint32Array(values.buffer);
}

it('on wasm: gather and stack', async () => {
  const tf = tensorflow();
  await useBackend('wasm');
  const x = randomTensor([5, 3, 40], 1);
  const indices = tf.tensor2d([4, 0, 0, 2], [2, 2], 'int32');
  expectSame(() => tf.gather(x, indices));
  expectSame(() => tf.gather(x, tf.tensor1d([2, 1, 1], 'int32'), 1));
  for (const axis of [0, 1, 2, 3]) expectSame(() => tf.stack([x, tf.neg(x)], axis));
  expect(register({ kernels: 'all' }).kernels).toEqual([
    'BatchMatMul',
    '_FusedMatMul',
    'GatherV2',
    'Pack',
  ]);
  await useBackend('cpu');
});

describe('kernels: all', () => {
  const pairs: [number[], number[]][] = [
    [[], []],
    [[7], []],
    [[], [7]],
    [
      [4, 5],
      [4, 5],
    ],
    [[4, 5], [5]],
    [[5], [4, 5]],
    [
      [4, 1],
      [4, 5],
    ],
    [
      [4, 5],
      [4, 1],
    ],
    [
      [4, 1],
      [1, 5],
    ],
    [
      [2, 3, 4],
      [3, 1],
    ],
    [
      [2, 1, 4],
      [5, 1],
    ],
    [
      [2, 1, 3, 1],
      [4, 1, 5],
    ],
    [
      [3, 2, 4],
      [1, 2, 1],
    ],
    [[0, 3], [3]],
    [[1, 1], [1]],
  ];
  it.each(pairs)('add, sub, mul, div and pow of %j and %j', (a, b) => {
    const tf = tensorflow();
    const [left, right] = [withSpecials(a, 1), withSpecials(b, 2)];
    for (const op of [tf.add, tf.sub, tf.mul, tf.div, tf.pow]) expectSame(() => op(left, right));
  });

  it.each([
    [[3, 4], 0],
    [[3, 4], 1],
    [
      [3, 4],
      [0, 1],
    ],
    [[2, 3, 4], 1],
    [
      [2, 3, 4],
      [0, 2],
    ],
    [
      [2, 3, 4],
      [2, 0],
    ],
    [
      [2, 3, 4],
      [1, 0],
    ],
    [
      [2, 3, 4],
      [0, 1],
    ],
    [
      [2, 3, 4, 5],
      [1, 3],
    ],
    [[1, 4], 0],
    [[0, 4], 0],
    [[5], 0],
    [[3, 4], -1],
  ] as [number[], number | number[]][])('sums of %j over %j', (shape, axis) => {
    const tf = tensorflow();
    for (const keepDims of [false, true]) {
      expectSame(() => tf.sum(randomTensor(shape, 1), axis, keepDims));
    }
    expectSame(() => tf.sum(withSpecials(shape, 1), axis));
  });

  it.each([
    [
      [3, 4],
      [1, 0],
    ],
    [
      [2, 3, 4],
      [0, 2, 1],
    ],
    [
      [2, 3, 4],
      [1, 0, 2],
    ],
    [
      [2, 3, 40],
      [1, 0, 2],
    ],
    [
      [2, 3, 4],
      [2, 1, 0],
    ],
    [
      [2, 3, 4, 5],
      [0, 2, 1, 3],
    ],
    [
      [2, 3, 4, 5],
      [3, 1, 0, 2],
    ],
    [
      [4, 0],
      [1, 0],
    ],
    [[6], [0]],
  ])('transposes %j by %j', (shape, perm) => {
    expectSame(() => tensorflow().transpose(withSpecials(shape, 1), perm));
  });

  it.each([
    [[6], [2], [3]],
    [
      [4, 5],
      [1, 0],
      [2, 5],
    ],
    [
      [4, 5],
      [1, 2],
      [2, 3],
    ],
    [
      [4, 5],
      [1, 2],
      [-1, -1],
    ],
    [
      [2, 3, 40],
      [0, 1, 5],
      [2, 1, 30],
    ],
    [
      [2, 3, 4, 5],
      [1, 0, 2, 0],
      [1, 3, 2, 5],
    ],
    [
      [2, 3, 4, 5],
      [0, 1, 0, 1],
      [2, 2, 4, 3],
    ],
    [
      [4, 5],
      [1, 2],
      [0, 3],
    ],
  ])('slices %j from %j, %j', (shape, begin, size) => {
    expectSame(() => tensorflow().slice(withSpecials(shape, 1), begin, size));
  });

  it('softmax, tanh, neg and square', () => {
    const tf = tensorflow();
    for (const shape of [[7], [3, 5], [2, 3, 33]]) {
      expectSame(() => tf.softmax(randomTensor(shape, 1)));
      expectSame(() => tf.softmax(tf.mul(randomTensor(shape, 1), 200)));
      expectSame(() => tf.softmax(withSpecials(shape, 1)));
      for (const op of [tf.tanh, tf.neg, tf.square]) expectSame(() => op(withSpecials(shape, 1)));
    }
    expectSame(() => tf.softmax(tf.fill([2, 4], Number.NEGATIVE_INFINITY)));
  });

  it('sums in the order of the axes, where that matters', () => {
    const tf = tensorflow();
    const values = [1e38, 1e38, 1, 2, 0, 0, -1e38, -1e38, 0, 3, 0, 0];
    const x = tf.tensor(values, [2, 3, 2]);
    for (const axis of [
      [0, 1],
      [1, 0],
      [0, 2],
      [2, 0],
      [1, 2],
      [2, 1],
      [0, 1, 2],
      [2, 0, 1],
    ]) {
      expectSame(() => tf.sum(x, axis));
    }
  });

  it('gather and stack', () => {
    const tf = tensorflow();
    const x = withSpecials([5, 3, 4], 1);
    const indices = tf.tensor2d([4, 0, 0, 2], [2, 2], 'int32');
    expectSame(() => tf.gather(x, indices));
    expectSame(() => tf.gather(x, tf.tensor1d([2, 1, 1], 'int32'), 1));
    expectSame(() => tf.gather(x, tf.tensor1d([3], 'int32'), -1));
    expectSame(() => tf.gather(x, tf.tensor2d([[0], [1], [2], [0], [1]], [5, 1], 'int32'), 1, 1));
    register({ kernels: 'all' });
    expect(() => tf.gather(x, tf.tensor1d([5], 'int32'))).toThrow(/index value 5/);
    unregister();
    const parts = [1, 2, 3].map((seed) => withSpecials([2, 3], seed));
    for (const axis of [0, 1, 2, -1]) expectSame(() => tf.stack(parts, axis));
    expectSame(() => tf.stack([withSpecials([], 1), withSpecials([], 2)]));
  });

  it('leaves other dtypes to the backend', () => {
    const tf = tensorflow();
    const [a, b] = [tf.tensor1d([1, 2, 3], 'int32'), tf.tensor1d([3, 5, 7], 'int32')];
    for (const op of [tf.add, tf.sub, tf.mul, tf.div]) {
      expectSame(() => op(a, b));
      expectSame(() => op(a, randomTensor([3], 1)));
    }
    expectSame(() => tf.sum(a));
    expectSame(() => tf.sum(tf.tensor1d([true, false, true], 'bool')));
    expectSame(() => tf.transpose(tf.reshape(a, [1, 3])));
    expectSame(() => tf.stack([a, b]));
    expectSame(() => tf.gather(a, tf.tensor1d([2, 0], 'int32')));
  });

  it('gradients are the same too, and single kernels can be chosen', () => {
    const tf = tensorflow();
    const loss = (x: TfTensor) =>
      tf.sum(tf.square(tf.softmax(tf.tanh(tf.add(tf.mul(x, [1, 2, 3]), [[1], [2]])))));
    const x = randomTensor([2, 3], 1);
    expectSame(() => tf.grad(loss)(x));
    const original = tf.getKernel('Add', 'cpu');
    expect(register({ kernels: ['Sum'] }).kernels).toEqual(['Sum']);
    expect(tf.getKernel('Add', 'cpu')).toBe(original);
  });
});

describe('registerMissing', () => {
  it('takes kernels of the program, which are made of ops, to another backend', async () => {
    const tf = tensorflow();
    const name = 'TestTwice';
    const reaching = 'TestReaching';
    tf.registerKernel({
      kernelName: name,
      backendName: 'cpu',
      kernelFunc: ({ inputs }) => tf.mul(inputs.x as TfTensor, 2),
    });
    tf.registerKernel({
      kernelName: reaching,
      backendName: 'cpu',
      kernelFunc: ({ backend }) => (backend as { data: { get(id: object): never } }).data.get({}),
    });
    expect(registerMissing('cpu', 'wasm')).toEqual([name, reaching]);
    expect(registerMissing('cpu', 'wasm')).toEqual([]);
    await useBackend('wasm');
    const x = randomTensor([4], 1);
    const y = tf.engine().runKernel(name, { x }) as TfTensor;
    expect(bitsOf(y)).toEqual(bitsOf(tf.mul(x, 2)));
    expect(() => tf.engine().runKernel(reaching, { x })).toThrow(/one that uses data of the cpu/);
    await useBackend('cpu');
    expect(() => registerMissing('cpu', 'own')).toThrow(
      expect.objectContaining({ code: 'ERR_UNSUPPORTED' }),
    );
  });
});
