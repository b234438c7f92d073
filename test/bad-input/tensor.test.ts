// Bad input to Tensor.from, zeros, randn, uniform, wrap, write, to and the reads.
import { describe, expect, it } from 'vitest';
import { scope, Tensor } from '../../lib/index.js';
import { DEVICES } from '../conformance/operands.js';
import {
  type BadCase,
  bad,
  callWith,
  checkCases,
  covered,
  type Fixture,
  hostile,
  impostors,
  resizable,
  resize,
} from './harness.js';
import { badShapes } from './shapes.js';

type Device = (typeof DEVICES)[number];

/** dtype and device options that name nothing. */
function badOptions(make: (options: unknown) => unknown): BadCase[] {
  return [
    bad(3, 'options: a number', 'ERR_TYPE', () => make(3)),
    bad(3, 'options: an array', 'ERR_TYPE', () => make([])),
    bad(2, 'options: null', 'ERR_TYPE', () => make(null)),
    bad(3, 'dtype: a number', 'ERR_TYPE', () => make({ dtype: 32 })),
    bad(24, 'dtype: f64', 'ERR_DTYPE', () => make({ dtype: 'f64' })),
    bad(24, 'dtype: F32', 'ERR_DTYPE', () => make({ dtype: 'F32' })),
    bad(24, 'dtype: __proto__', 'ERR_DTYPE', () => make({ dtype: '__proto__' })),
    bad(3, 'device: a number', 'ERR_TYPE', () => make({ device: 0 })),
    bad(32, 'device: unknown', 'ERR_DEVICE', () => make({ device: 'gpu' })),
    bad(32, 'device: empty', 'ERR_DEVICE', () => make({ device: '' })),
    bad(33, 'options: a getter that throws', 'HOSTILE', () => make(hostile('dtype'))),
    bad(33, 'options: another', 'HOSTILE', () => make(hostile('device'))),
  ];
}

/** Data that does not fill [2, 2]. */
function badData(give: (data: unknown) => unknown, model: Tensor): BadCase[] {
  const cases: BadCase[] = [
    bad(11, 'data: 3 values', 'ERR_SHAPE', () => give(new Float32Array(3))),
    bad(12, 'data: 5 values', 'ERR_SHAPE', () => give(new Float64Array(5))),
    bad(13, 'data: none', 'ERR_SHAPE', () => give(new Float32Array())),
    bad(13, 'data: an empty array', 'ERR_SHAPE', () => give([])),
    bad(2, 'data: null inside', 'ERR_TYPE', () => give([1, 2, null, 4])),
    bad(12, 'data: a proxy that claims 2^52 values', 'ERR_SHAPE', () =>
      give(new Proxy([], { get: (_, key) => (key === 'length' ? 2 ** 52 : 1) })),
    ),
    bad(2, 'data: a hole', 'ERR_TYPE', () => give(Object.assign([1, 2, 3], { length: 4 }))),
    bad(3, 'data: a string inside', 'ERR_TYPE', () => give([1, 2, '3', 4])),
    bad(3, 'data: nested arrays', 'ERR_TYPE', () => give([[1], [2], [3], [4]])),
    bad(4, 'data: an Int32Array', 'ERR_TYPE', () => give(new Int32Array(4))),
    bad(4, 'data: a Uint8Array', 'ERR_TYPE', () => give(new Uint8Array(4))),
    bad(24, 'data: 16-bit values for f32', 'ERR_DTYPE', () => give(new Uint16Array(4))),
    bad(6, 'data: detached', 'ERR_SHAPE', () => {
      const data = new Float32Array(4);
      structuredClone(data.buffer, { transfer: [data.buffer] });
      return give(data);
    }),
    bad(8, 'data: out of a shrunk buffer', 'ERR_SHAPE', () => {
      const buffer = resizable(16, 64);
      const data = new Float32Array(buffer);
      resize(buffer, 8);
      return give(data);
    }),
    bad(26, 'data: a view left out of bounds', 'ERR_SHAPE', () => {
      const buffer = resizable(64, 64);
      const data = new Float32Array(buffer, 32, 4);
      resize(buffer, 16);
      return give(data);
    }),
    bad(5, 'data: a proxy of a typed array', 'ERR_TYPE', () =>
      give(new Proxy(new Float32Array(4), {})),
    ),
  ];
  for (const [kind, what, value] of impostors(model)) {
    if (Array.isArray(value) || value instanceof Float32Array) continue;
    cases.push(bad(kind, `data: ${what}`, 'ERR_TYPE', () => give(value)));
  }
  return cases;
}

/** Data that changes while the call reads its other arguments. */
function changingData(give: (data: unknown, shape: unknown) => unknown): BadCase[] {
  const shapeThat = (act: () => void): number[] => {
    const shape = [2, 2];
    Object.defineProperty(shape, 1, {
      get() {
        act();
        return 2;
      },
    });
    return shape;
  };
  return [
    bad(7, 'data: transferred by a getter', 'ERR_SHAPE', () => {
      const data = new Float32Array(4);
      const take = () => void structuredClone(data.buffer, { transfer: [data.buffer] });
      return give(data, shapeThat(take));
    }),
    bad(9, 'data: shrunk by a getter', 'ERR_SHAPE', () => {
      const buffer = resizable(16, 64);
      return give(
        new Float32Array(buffer),
        shapeThat(() => resize(buffer, 4)),
      );
    }),
  ];
}

const OPS: Record<string, (device: Device, model: Tensor) => BadCase[]> = {
  'Tensor.from': (device, model) => [
    bad(1, 'no arguments', 'ERR_TYPE', () => callWith(Tensor.from)),
    bad(1, 'no shape', 'ERR_TYPE', () => callWith(Tensor.from, [1])),
    bad(14, 'a dimension of 0', 'ERR_SHAPE', () => Tensor.from([1, 2], [2, 0], { device })),
    bad(24, 'bits for f32', 'ERR_DTYPE', () => Tensor.from(new Uint16Array(1), [1], { device })),
    ...badShapes((shape) => Tensor.from([1, 2], shape as number[], { device }), model),
    ...badData((data) => Tensor.from(data as number[], [2, 2], { device }), model),
    ...changingData((data, shape) => Tensor.from(data as number[], shape as number[], { device })),
    ...badOptions((options) => Tensor.from([1, 2], [2], options as { device: Device })),
  ],
  'Tensor.zeros': (device, model) => [
    bad(1, 'no arguments', 'ERR_TYPE', () => callWith(Tensor.zeros)),
    bad(34, '2^33 elements', 'ERR_OOM', () => Tensor.zeros([2 ** 33], { device })),
    ...badShapes((shape) => Tensor.zeros(shape as number[], { device }), model),
    ...badOptions((options) => Tensor.zeros([2], options as { device: Device })),
  ],
  'Tensor.randn': (device, model) => {
    const draw = (options: object) =>
      Tensor.randn([2], { seed: 1, device, ...options } as { seed: number });
    return [
      bad(1, 'no arguments', 'ERR_TYPE', () => callWith(Tensor.randn)),
      bad(1, 'no seed', 'ERR_TYPE', () => callWith(Tensor.randn, [2])),
      bad(3, 'seed: a string', 'ERR_TYPE', () => draw({ seed: '1' })),
      bad(3, 'seed: a bigint', 'ERR_TYPE', () => draw({ seed: 1n })),
      bad(30, 'seed: negative', 'ERR_VALUE', () => draw({ seed: -1 })),
      bad(30, 'seed: a fraction', 'ERR_VALUE', () => draw({ seed: 0.5 })),
      bad(30, 'seed: 2^53', 'ERR_VALUE', () => draw({ seed: 2 ** 53 })),
      bad(30, 'seed: NaN', 'ERR_VALUE', () => draw({ seed: Number.NaN })),
      bad(29, 'std: NaN', 'ERR_VALUE', () => draw({ std: Number.NaN })),
      bad(29, 'std: infinite', 'ERR_VALUE', () => draw({ std: Number.POSITIVE_INFINITY })),
      bad(29, 'mean: infinite', 'ERR_VALUE', () => draw({ mean: Number.NEGATIVE_INFINITY })),
      bad(15, 'std: negative', 'ERR_VALUE', () => draw({ std: -1 })),
      bad(3, 'std: a string', 'ERR_TYPE', () => draw({ std: '1' })),
      bad(34, '2^33 elements', 'ERR_OOM', () => Tensor.randn([2 ** 33], { seed: 1, device })),
      ...badShapes((shape) => Tensor.randn(shape as number[], { seed: 1, device }), model),
      ...badOptions((options) => {
        if (options === null || typeof options !== 'object' || Array.isArray(options)) {
          return callWith(Tensor.randn, [2], options);
        }
        const given = Object.defineProperties({}, Object.getOwnPropertyDescriptors(options));
        return callWith(Tensor.randn, [2], Object.assign(given, { seed: 1 }));
      }),
    ];
  },
  'Tensor.uniform': (device, model) => {
    const draw = (options: object) =>
      Tensor.uniform([2], { seed: 1, device, ...options } as { seed: number });
    return [
      bad(1, 'no seed', 'ERR_TYPE', () => callWith(Tensor.uniform, [2])),
      bad(29, 'low: NaN', 'ERR_VALUE', () => draw({ low: Number.NaN })),
      bad(29, 'a span above every double', 'ERR_VALUE', () =>
        draw({ low: -1.7e308, high: 1.7e308 }),
      ),
      bad(15, 'high under low', 'ERR_VALUE', () => draw({ low: 2, high: 1 })),
      bad(30, 'seed: negative', 'ERR_VALUE', () => draw({ seed: -1 })),
      bad(34, '2^33 elements', 'ERR_OOM', () => Tensor.uniform([2 ** 33], { seed: 1, device })),
      ...badShapes((shape) => Tensor.uniform(shape as number[], { seed: 1, device }), model),
    ];
  },
  'Tensor.wrap': (device, model) => {
    const shared = new Float32Array(new SharedArrayBuffer(16));
    return [
      bad(1, 'no arguments', 'ERR_TYPE', () => callWith(Tensor.wrap)),
      bad(11, 'one short', 'ERR_SHAPE', () => Tensor.wrap(shared.subarray(1), [4], { device })),
      bad(12, 'one long', 'ERR_SHAPE', () => Tensor.wrap(shared, [3], { device })),
      bad(13, 'none', 'ERR_SHAPE', () => Tensor.wrap(shared.subarray(4), [4], { device })),
      bad(14, 'a dimension of 0', 'ERR_SHAPE', () => Tensor.wrap(shared, [4, 0], { device })),
      bad(24, 'f32 memory as bf16', 'ERR_DTYPE', () =>
        Tensor.wrap(shared, [4], { device, dtype: 'bf16' }),
      ),
      bad(26, 'pointer: null', 'ERR_VALUE', () => Tensor.wrap(0n, [1], { device })),
      bad(26, 'pointer: unaligned', 'ERR_VALUE', () => Tensor.wrap(4097n, [1], { device })),
      bad(26, 'pointer: negative', 'ERR_VALUE', () => Tensor.wrap(-4096n, [1], { device })),
      bad(26, 'pointer: over 64 bits', 'ERR_VALUE', () => Tensor.wrap(2n ** 65n, [1], { device })),
      bad(4, 'a Float64Array', 'ERR_TYPE', () =>
        callWith(Tensor.wrap, new Float64Array(new SharedArrayBuffer(16)), [2], { device }),
      ),
      bad(5, 'memory that can be detached', 'ERR_TYPE', () =>
        Tensor.wrap(new Float32Array(4), [4], { device }),
      ),
      bad(8, 'memory that can shrink', 'ERR_TYPE', () =>
        Tensor.wrap(new Float32Array(resizable(16, 64)), [4], { device }),
      ),
      bad(6, 'detached memory', 'ERR_TYPE', () => {
        const data = new Float32Array(4);
        structuredClone(data.buffer, { transfer: [data.buffer] });
        return Tensor.wrap(data, [4], { device });
      }),
      ...impostors(model)
        .filter(([, , value]) => typeof value !== 'bigint' && !(value instanceof Float32Array))
        .map(([kind, what, value]) =>
          bad(kind, what, 'ERR_TYPE', () => callWith(Tensor.wrap, value, [4], { device })),
        ),
      ...badShapes((shape) => Tensor.wrap(shared, shape as number[], { device }), model),
      ...badOptions((options) => callWith(Tensor.wrap, shared, [4], options)),
    ];
  },
  reshape: (device, model) => {
    const source = Tensor.from([1, 2, 3, 4, 5, 6], [2, 3], { device });
    const empty = Tensor.zeros([0, 3], { device });
    const gone = Tensor.zeros([2, 3], { device });
    gone.dispose();
    return [
      bad(1, 'no arguments', 'ERR_TYPE', () => callWith(source.reshape.bind(source))),
      bad(11, 'one short', 'ERR_SHAPE', () => source.reshape([5])),
      bad(12, 'one long', 'ERR_SHAPE', () => source.reshape([7])),
      bad(13, 'none', 'ERR_SHAPE', () => source.reshape([0])),
      bad(14, 'a dimension of 0', 'ERR_SHAPE', () => source.reshape([6, 0])),
      bad(22, 'rows twice', 'ERR_SHAPE', () => source.reshape([4, 3])),
      bad(23, 'a scalar', 'ERR_SHAPE', () => source.reshape([])),
      bad(12, 'one out of nothing', 'ERR_SHAPE', () => empty.reshape([1])),
      bad(31, 'a disposed tensor', 'ERR_DISPOSED', () => gone.reshape([3, 2])),
      bad(31, 'disposed by a getter of the shape', 'ERR_DISPOSED', () => {
        const victim = Tensor.zeros([2], { device });
        const shape = [1, 2];
        Object.defineProperty(shape, 1, {
          get() {
            victim.dispose();
            return 2;
          },
        });
        return victim.reshape(shape);
      }),
      bad(24, 'the dtype in place of a shape', 'ERR_TYPE', () =>
        callWith(source.reshape.bind(source), 'f32'),
      ),
      ...badShapes((shape) => source.reshape(shape as number[]), model),
    ];
  },
  write: (device, model) => {
    const target = Tensor.from([1, 2, 3, 4], [2, 2], { device });
    const gone = Tensor.zeros([2, 2], { device });
    gone.dispose();
    return [
      bad(1, 'no arguments', 'ERR_TYPE', () => callWith(target.write.bind(target))),
      bad(31, 'a disposed tensor', 'ERR_DISPOSED', () => gone.write([1, 2, 3, 4])),
      bad(24, 'a Float16Array-like', 'ERR_TYPE', () =>
        callWith(target.write.bind(target), { [Symbol.toStringTag]: 'Float16Array', length: 4 }),
      ),
      bad(10, 'shared memory of the wrong length', 'ERR_SHAPE', () =>
        target.write(new Float32Array(new SharedArrayBuffer(12))),
      ),
      bad(33, 'data: a getter that throws', 'HOSTILE', () => {
        const data = [1, 2, 3, 4];
        Object.defineProperty(data, 2, Object.getOwnPropertyDescriptor(hostile('2'), '2') ?? {});
        return target.write(data);
      }),
      ...badData((data) => target.write(data as number[]), model),
      bad(9, 'data: shrunk by its own getter', 'ERR_TYPE', () => {
        const data = [1, 2, 3, 4];
        Object.defineProperty(data, 0, {
          get() {
            data.length = 2;
            return 1;
          },
        });
        return target.write(data);
      }),
      bad(31, 'disposed by a getter of the data', 'ERR_DISPOSED', () => {
        const victim = Tensor.zeros([2], { device });
        const data = [1, 2];
        Object.defineProperty(data, 1, {
          get() {
            victim.dispose();
            return 1;
          },
        });
        return victim.write(data);
      }),
      bad(19, 'data: a sparse array of 2^32 - 1', 'ERR_SHAPE', () =>
        target.write(new Array(2 ** 32 - 1)),
      ),
      bad(17, 'NaN for the length of the data', 'ERR_TYPE', () =>
        callWith(target.write.bind(target), { length: Number.NaN }),
      ),
      bad(15, 'a negative length', 'ERR_TYPE', () =>
        callWith(target.write.bind(target), { length: -4 }),
      ),
      bad(16, 'a fractional length', 'ERR_TYPE', () =>
        callWith(target.write.bind(target), { length: 3.5 }),
      ),
      bad(18, 'a length of 2^32', 'ERR_TYPE', () =>
        callWith(target.write.bind(target), { length: 2 ** 32 }),
      ),
    ];
  },
};

describe.each(DEVICES)('bad input on %s', (device) => {
  it.each(Object.keys(OPS))('%s', async (op) => {
    await scope(async () => {
      const model = Tensor.from([1, 2, 3, 4], [2, 2], { device });
      const cases = OPS[op]?.(device, model) ?? [];
      const fixture: Fixture = {
        watched: [model],
        cases,
        valid: async () => [await Tensor.from([5, 6], [2], { device }).read()],
      };
      await checkCases(op, device, {
        ...fixture,
        valid: () => scope(fixture.valid),
      });
      expect(covered(cases).size).toBeGreaterThanOrEqual(20);
    });
  });

  it('reads, to and readBits', async () => {
    await scope(async () => {
      const model = Tensor.from([1, 2, 3, 4], [2, 2], { device });
      const half = Tensor.zeros([2], { dtype: 'bf16', device });
      const gone = Tensor.zeros([2, 2], { device });
      gone.dispose();
      await checkCases('reads', device, {
        watched: [model],
        valid: async () => [await model.read()],
        cases: [
          bad(31, 'read', 'ERR_DISPOSED', () => gone.read()),
          bad(31, 'readSync', 'ERR_DISPOSED', () => gone.readSync()),
          bad(31, 'to', 'ERR_DISPOSED', () => gone.to({ dtype: 'bf16' })),
          bad(24, 'readBits of f32', 'ERR_DTYPE', () => model.readBits()),
          bad(11, 'readInto', 'ERR_SHAPE', () => model.readInto(new Float32Array(3))),
          bad(12, 'readInto', 'ERR_SHAPE', () => half.readInto(new Float32Array(3))),
          bad(4, 'readInto', 'ERR_TYPE', () =>
            callWith(model.readInto.bind(model), new Float64Array(4)),
          ),
          bad(6, 'readInto', 'ERR_SHAPE', () => {
            const target = new Float32Array(4);
            structuredClone(target.buffer, { transfer: [target.buffer] });
            model.readInto(target);
          }),
          ...badOptions((options) => callWith(model.to.bind(model), options)),
        ],
      });
    });
  });
});
