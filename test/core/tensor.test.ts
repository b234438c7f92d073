// The life of a tensor: made, read, written, converted, wrapped, freed.
import { setImmediate } from 'node:timers/promises';
import { describe, expect, it } from 'vitest';
import {
  defaultDevice,
  devices,
  LowrankError,
  matmul,
  memoryUsage,
  quantize,
  scope,
  synchronize,
  Tensor,
} from '../../lib/index.js';
import { DEVICES, DTYPES } from '../conformance/operands.js';
import { encodeAll, exact, roundTo } from '../oracle.js';

const codeOf = (call: () => unknown): string => {
  try {
    call();
  } catch (error) {
    return (error as { code: string }).code;
  }
  return 'nothing thrown';
};

describe.each(DEVICES)('Tensor on %s', (device) => {
  it('holds what it was given, and says what it is', async () => {
    using t = Tensor.from([1, -2.5, 3, 0, 5, 6], [2, 3], { device });
    expect([t.shape, t.dtype, t.device, t.size, t.byteLength, t.disposed]).toEqual([
      [2, 3],
      'f32',
      device,
      6,
      24,
      false,
    ]);
    expect(Object.isFrozen(t.shape)).toBe(true);
    exact('read', await t.read(), [1, -2.5, 3, 0, 5, 6]);
    exact('readSync', t.readSync(), [1, -2.5, 3, 0, 5, 6]);
    const into = new Float32Array(6);
    t.readInto(into);
    exact('readInto', into, [1, -2.5, 3, 0, 5, 6]);
  });

  it.each(DTYPES)('takes every kind of data into %s', async (dtype) => {
    await scope(async () => {
      const values = [0.1, -1 / 3, 1e6, 1e-7, -0];
      const right = values.map((value) => roundTo(dtype, value));
      for (const data of [values, Float64Array.from(values)]) {
        exact('data', await Tensor.from(data, [5], { dtype, device }).read(), right);
      }
      const f32 = Float32Array.from(values);
      const twice = Array.from(f32, (value) => roundTo(dtype, value));
      exact('f32 data', await Tensor.from(f32, [5], { dtype, device }).read(), twice);
      // A view into a larger buffer is its own elements only.
      const view = Float32Array.from([9, ...values, 9]).subarray(1, 6);
      exact('view', await Tensor.from(view, [5], { dtype, device }).read(), twice);
      if (dtype !== 'f32') {
        const bits = encodeAll(dtype, values);
        const t = Tensor.from(bits, [5], { dtype, device });
        exact('bits', await t.readBits(), bits);
        exact('values', await t.read(), right);
      }
    });
  });

  it('copies in and out: neither side sees later changes of the other', async () => {
    const data = new Float32Array([1, 2]);
    using t = Tensor.from(data, [2], { device });
    data[0] = 9;
    const first = await t.read();
    exact('read', first, [1, 2]);
    first[1] = 7;
    exact('again', await t.read(), [1, 2]);
  });

  it('scalars and tensors without elements', async () => {
    await scope(async () => {
      const scalar = Tensor.from([4], [], { device });
      expect([scalar.shape, scalar.size]).toEqual([[], 1]);
      exact('scalar', await scalar.read(), [4]);
      for (const shape of [[0], [0, 5], [3, 0, 2]]) {
        const empty = Tensor.zeros(shape, { device });
        expect([empty.size, (await empty.read()).length]).toEqual([0, 0]);
      }
    });
  });

  it('zeros are zeros, though the memory was used before', async () => {
    for (let i = 0; i < 5; i++) {
      await scope(async () => {
        await Tensor.from(new Float32Array(1000).fill(7), [1000], { device }).read();
      });
      using t = Tensor.zeros([1000], { device });
      exact('zeros', await t.read(), new Float32Array(1000));
    }
  });

  it('write replaces the values, in order with the ops around it', async () => {
    await scope(async () => {
      const x = Tensor.from([1, 2], [1, 2], { device });
      const w = Tensor.from([1, 0, 0, 1], [2, 2], { device });
      const before = matmul(x, w);
      x.write([5, 6]);
      const after = matmul(x, w);
      x.write(Float32Array.of(7, 8));
      exact('before', await before.read(), [1, 2]);
      exact('after', await after.read(), [5, 6]);
      exact('x', await x.read(), [7, 8]);
      const half = Tensor.zeros([2], { dtype: 'bf16', device });
      half.write(encodeAll('bf16', [0.5, -3]));
      exact('bits', await half.read(), [0.5, -3]);
      half.write([1 / 3, 1]);
      exact('numbers', await half.read(), [roundTo('bf16', 1 / 3), 1]);
    });
  });

  it('to converts dtype and device, and always copies', async () => {
    await scope(async () => {
      const t = Tensor.from([1 / 3, 70000, -1e-6], [3], { device });
      const values = Array.from(await t.read());
      for (const dtype of DTYPES) {
        const cast = t.to({ dtype });
        expect([cast.dtype, cast.shape]).toEqual([dtype, [3]]);
        exact(
          dtype,
          await cast.read(),
          values.map((value) => roundTo(dtype, value)),
        );
        for (const other of DEVICES) {
          const moved = t.to({ device: other, dtype });
          expect(moved.device).toBe(other);
          exact(`${dtype} ${other}`, await moved.read(), await cast.read());
          exact('and back', await moved.to({ device }).read(), await cast.read());
        }
      }
      const copy = t.to({});
      t.write([1, 2, 3]);
      exact('copy', await copy.read(), values);
    });
  });

  it('reshape is another tensor over the same memory', async () => {
    const before = memoryUsage(device);
    const values = [1, 2, 3, 4, 5, 6];
    const t = Tensor.from(values, [2, 3], { device });
    const r = t.reshape([3, 1, 2]);
    const flat = r.reshape([6]);
    expect([r.shape, r.dtype, r.device, r.size]).toEqual([[3, 1, 2], 'f32', device, 6]);
    expect(Object.isFrozen(r.shape)).toBe(true);
    expect(memoryUsage(device).liveTensors).toBe(before.liveTensors + 1);
    exact('values', await r.read(), values);
    r.write([6, 5, 4, 3, 2, 1]);
    exact('seen by the first', await t.read(), [6, 5, 4, 3, 2, 1]);
    using w = Tensor.from([1, 0, 0, 1], [2, 2], { device });
    using y = matmul(r, w);
    exact('queued with its shape', await y.read(), [6, 5, 4, 3, 2, 1]);
    expect(y.shape).toEqual([3, 1, 2]);
    t.dispose();
    expect([t.disposed, r.disposed]).toEqual([true, false]);
    exact('lives on', await r.read(), [6, 5, 4, 3, 2, 1]);
    r.dispose();
    exact('and in the last', await flat.read(), [6, 5, 4, 3, 2, 1]);
    flat.dispose();
    y.dispose();
    w.dispose();
    await synchronize(device);
    expect(memoryUsage(device)).toMatchObject({
      liveBytes: before.liveBytes,
      liveTensors: before.liveTensors,
    });
    await scope(async () => {
      expect(Tensor.from([7], [], { device }).reshape([1, 1]).shape).toEqual([1, 1]);
      const empty = Tensor.zeros([0, 4], { dtype: 'f16', device }).reshape([2, 0]);
      expect([empty.shape, empty.dtype, (await empty.read()).length]).toEqual([[2, 0], 'f16', 0]);
    });
  });

  it('reshape shares the failure of what made the memory', async () => {
    await scope(async () => {
      const bad = quantize(Tensor.from(new Float32Array(64).fill(NaN), [1, 64], { device }), {
        format: 'nf4',
      });
      const r = matmul(Tensor.zeros([2, 64], { device }), bad).reshape([2]);
      await expect(r.read()).rejects.toMatchObject({ code: 'ERR_NON_FINITE' });
    });
  });

  it('wraps shared memory without a copy', async () => {
    const shared = new Float32Array(new SharedArrayBuffer(32), 8, 4);
    shared.set([1, 2, 3, 4]);
    const before = memoryUsage(device).liveBytes;
    const t = Tensor.wrap(shared, [2, 2], { device });
    expect(memoryUsage(device).liveBytes).toBe(before);
    exact('wrapped', await t.read(), [1, 2, 3, 4]);
    shared[3] = 9;
    exact('seen', await t.read(), [1, 2, 3, 9]);
    t.write([5, 6, 7, 8]);
    await synchronize(device);
    exact('written through', shared, [5, 6, 7, 8]);
    t.dispose();
    expect(t.disposed).toBe(true);
    const bits = new Uint16Array(new SharedArrayBuffer(4));
    bits.set(encodeAll('f16', [1.5, -2]));
    using h = Tensor.wrap(bits, [2], { dtype: 'f16', device });
    exact('f16', await h.read(), [1.5, -2]);
    expect(codeOf(() => Tensor.wrap(new Float32Array(4), [4], { device }))).toBe('ERR_TYPE');
    expect(codeOf(() => Tensor.wrap(shared, [3], { device }))).toBe('ERR_SHAPE');
    expect(codeOf(() => Tensor.wrap(bits, [2], { device }))).toBe('ERR_DTYPE');
    expect(codeOf(() => Tensor.wrap(0n, [2], { device }))).toBe('ERR_VALUE');
  });

  it('disposing twice is nothing, using afterwards is ERR_DISPOSED everywhere', async () => {
    const t = Tensor.from([1, 2, 3, 4], [2, 2], { device });
    const other = Tensor.from([1, 2, 3, 4], [2, 2], { device });
    t.dispose();
    t.dispose();
    t[Symbol.dispose]();
    expect(t.disposed).toBe(true);
    expect([t.shape, t.dtype]).toEqual([[2, 2], 'f32']);
    await expect(t.read()).rejects.toMatchObject({ code: 'ERR_DISPOSED' });
    await expect(t.readBits()).rejects.toMatchObject({ code: 'ERR_DISPOSED' });
    for (const call of [
      () => t.readSync(),
      () => t.readInto(new Float32Array(4)),
      () => t.write([1, 2, 3, 4]),
      () => t.to({ dtype: 'bf16' }),
      () => t.reshape([4]),
      () => matmul(t, other),
      () => matmul(other, t),
      () => matmul(other, other, { bias: t }),
      () => quantize(t, { format: 'nf4' }),
    ]) {
      expect(codeOf(call)).toBe('ERR_DISPOSED');
    }
    other.dispose();
  });

  it('`using` frees at the end of the block', () => {
    let outside: Tensor;
    {
      using inner = Tensor.zeros([3], { device });
      outside = inner;
      expect(inner.disposed).toBe(false);
    }
    expect(outside.disposed).toBe(true);
  });

  it('disposing right after queueing an op is legal', async () => {
    const n = 300;
    for (let i = 0; i < 20; i++) {
      const x = Tensor.from(new Float32Array(n * n).fill(1), [n, n], { device });
      const w = Tensor.from(new Float32Array(n).fill(0.5), [1, n], { device });
      const y = matmul(x, w);
      x.dispose();
      w.dispose();
      // New tensors may take the memory, which the op must still be holding.
      const thief = Tensor.from(new Float32Array(n * n).fill(99), [n, n], { device });
      const reading = y.read();
      y.dispose();
      exact('y', await reading, new Float32Array(n).fill(n / 2));
      thief.dispose();
    }
  });

  it('synchronize resolves after everything queued before it', async () => {
    await scope(async () => {
      const order: string[] = [];
      const x = Tensor.randn([200, 300], { seed: 1, device });
      const w = Tensor.randn([200, 300], { seed: 2, device });
      const reads = [0, 1, 2].map(async (i) => {
        await matmul(x, w).read();
        order.push(`read ${i}`);
      });
      const all = synchronize(device).then(() => order.push('synchronize'));
      await Promise.all([...reads, all]);
      await setImmediate();
      expect(order).toEqual(['read 0', 'read 1', 'read 2', 'synchronize']);
    });
  });
});

describe('devices', () => {
  it('are listed with what they are, and why not', () => {
    for (const row of devices()) {
      expect(typeof row.name).toBe('string');
      expect(row.available || (row.reason ?? '').length > 0).toBe(true);
      expect(Array.isArray(row.features)).toBe(true);
      if (row.available) expect(row.memory).toBeGreaterThan(0);
    }
    expect(devices().map(({ device }) => device)).toEqual(
      expect.arrayContaining(['cpu', 'reference']),
    );
    expect(devices().some(({ device }) => device === defaultDevice())).toBe(true);
  });

  it('do not mix in one op', () => {
    scope(() => {
      const here = Tensor.zeros([2, 2], { device: 'cpu' });
      const there = Tensor.zeros([2, 2], { device: 'reference' });
      expect(codeOf(() => matmul(here, there))).toBe('ERR_DEVICE');
      expect(codeOf(() => Tensor.zeros([1], { device: 'gpu' as 'cpu' }))).toBe('ERR_DEVICE');
    });
  });

  it('errors are LowrankErrors that name the op', () => {
    try {
      Tensor.zeros([-1]);
      expect.unreachable();
    } catch (error) {
      expect(error).toBeInstanceOf(LowrankError);
      expect(error).toMatchObject({ code: 'ERR_SHAPE', op: 'Tensor.zeros' });
      expect((error as Error).message).toMatch(/^Tensor\.zeros: shape\[0\] must be .*, got -1$/);
    }
  });
});
