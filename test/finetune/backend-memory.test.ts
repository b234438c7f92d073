/** The end of the wasm backend's heap: an error, and never the memory at its start. */

import { afterEach, beforeAll, expect, it } from 'vitest';
import { tensorFrom, tensorInfoFrom, valuesOf } from '../../lib/tfjs/ops/backend-memory.js';
import { tensorflow, useTensorflow } from '../../lib/tfjs/ops/tensorflow.js';
import { useBackend } from './setup.js';

const real = tensorflow();
beforeAll(() => useBackend('wasm'));
afterEach(() => useTensorflow(real));

const oom = (bytes: number) =>
  expect.objectContaining({
    code: 'ERR_OOM',
    message: expect.stringMatching(
      new RegExp(
        `^tfjs: the wasm backend's heap must be with ${bytes} bytes to spare .*got one of \\d+$`,
      ),
    ),
  });

it('is noticed by the real backend, for this library and for stock kernels', () => {
  const tf = real;
  const kept = tf.tensor1d([1, 2, 3]);
  expect([...valuesOf(kept)]).toEqual([1, 2, 3]);
  // Nothing is written to them: memory that is only asked for costs nothing.
  const gigabyte = 2 ** 28;
  const taken: { dispose(): void }[] = [];
  const take = () => {
    for (let i = 0; i < 8; i++) taken.push(tensorFrom([gigabyte], () => undefined));
  };
  const { numTensors } = tf.memory();
  expect(take).toThrow(oom(4 * gigabyte));
  expect(tf.memory().numTensors).toBe(numTensors + taken.length);
  expect(() => tf.zeros([gigabyte])).toThrow(oom(4 * gigabyte));
  // Beyond 32 bits the allocator would take the rest of the size for all of it.
  expect(() => tensorFrom([2 ** 30 + 4], () => undefined)).toThrow(oom(4 * (2 ** 30 + 4)));
  expect([...valuesOf(kept)]).toEqual([1, 2, 3]);
  for (const tensor of taken) tensor.dispose();
  const doubled = tensorFrom([3], (out) => out.set(valuesOf(kept).map((v) => 2 * v)));
  expect([...doubled.dataSync()]).toEqual([2, 4, 6]);
});

it('is noticed where a backend has given the address 0 to a tensor', () => {
  const heap = new Uint8Array(4096);
  const places = new Map<object, { memoryOffset: number }>();
  const disposed: object[] = [];
  const make = (memoryOffset: number) => {
    const dataId = {};
    places.set(dataId, { memoryOffset });
    return dataId;
  };
  const backend = {
    wasm: { HEAPU8: heap },
    dataIdMap: places,
    makeOutput: (shape: number[]) => ({ dataId: make(0), shape, dtype: 'float32' }),
    disposeData: (dataId: object) => disposed.push(dataId),
  };
  useTensorflow({
    getBackend: () => 'wasm',
    version_core: '4.22.0',
    tensor1d: (values: number[]) => {
      new Float32Array(heap.buffer, 64, 3).set(values);
      return { dataId: make(64), shape: [3], dispose: () => undefined };
    },
    engine: () => ({
      backend,
      readSync: (dataId: object) =>
        new Float32Array(heap.buffer, places.get(dataId)?.memoryOffset, 3),
    }),
  } as never);
  const before = heap.slice();
  before.set(new Uint8Array(Float32Array.of(1.5, 7, 3e-30).buffer), 64);
  expect(() => tensorInfoFrom([8], (out) => out.fill(9))).toThrow(oom(32));
  expect(disposed.length).toBe(1);
  expect(heap).toEqual(before);
  const stock = { dataId: make(0), shape: [2], dtype: 'float32' } as const;
  expect(() => valuesOf(stock as never)).toThrow(oom(8));
  const beyond = { dataId: make(4092), shape: [2], dtype: 'float32' } as const;
  expect(() => valuesOf(beyond as never)).toThrow(oom(8));
});
