// Bad input to GroupedLora: its table of adapters, forward and backward.
import { describe, expect, it } from 'vitest';
import {
  type Device,
  GroupedLora,
  LoraAdapter,
  memoryUsage,
  quantize,
  scope,
  synchronize,
  Tensor,
} from '../../lib/index.js';
import { DEVICES } from '../conformance/operands.js';
import {
  type BadCase,
  type BadClass,
  bad,
  callWith,
  checkCases,
  computeCases,
  hostile,
  impostors,
} from './harness.js';

const [M, N, K] = [4, 6, 8];

/** A group of two adapters, M 4, N 6, K 8, ranks 3 and 2. */
function fixture(device: Device) {
  const random = (shape: number[], seed: number): Tensor => Tensor.randn(shape, { seed, device });
  const zeros = (shape: number[], dtype: 'f32' | 'bf16' | 'f16' = 'f32'): Tensor =>
    Tensor.zeros(shape, { dtype, device });
  const make = (r: number, seed: number, more: object = {}): LoraAdapter =>
    new LoraAdapter({
      loraA: random([r, K], seed),
      loraB: random([N, r], seed + 1),
      loraAlpha: 4,
      ...more,
    });
  const [one, two] = [make(3, 10), make(2, 20, { loraBias: random([N], 30) })];
  const group = new GroupedLora({ inFeatures: K, outFeatures: N, device });
  group.add('one', one);
  group.add('two', two);
  const rows = ['two', 'one', null, 'one'] as const;
  return {
    zeros,
    make,
    group,
    one,
    two,
    rows,
    x: random([M, K], 1),
    dense: random([N, K], 2),
    dy: random([M, N], 3),
    bias: random([N], 4),
  };
}

const elsewhere = (device: Device): Device => (device === 'cpu' ? 'reference' : 'cpu');

describe.each(DEVICES)('bad input on %s', (device) => {
  it('the table of adapters', async () => {
    await scope(async () => {
      const f = fixture(device);
      const { group, one, two, make, zeros } = f;
      const one8 = (kind: BadClass, what: string, code: string, run: () => unknown): BadCase =>
        bad(kind, what, code, run);
      const options = { inFeatures: K, outFeatures: N, device };
      const create = (wrong: object): unknown => new GroupedLora({ ...options, ...wrong });
      await checkCases('GroupedLora', device, {
        watched: [one.loraA, one.loraB, two.loraA, two.loraB],
        valid: () => {
          expect(group.names).toEqual(['one', 'two']);
          const { dense, rows } = f;
          return scope(async () => [
            await group.forward(f.x, dense, rows, { training: false }).y.read(),
          ]);
        },
        cases: [
          one8(1, 'no options', 'ERR_TYPE', () => callWith((o: never) => new GroupedLora(o))),
          one8(2, 'options null', 'ERR_TYPE', () => new GroupedLora(null as never)),
          one8(33, 'a getter that throws', 'HOSTILE', () => create(hostile('inFeatures'))),
          one8(3, 'inFeatures a string', 'ERR_TYPE', () => create({ inFeatures: '8' })),
          one8(14, 'inFeatures 0', 'ERR_VALUE', () => create({ inFeatures: 0 })),
          one8(15, 'outFeatures negative', 'ERR_VALUE', () => create({ outFeatures: -1 })),
          one8(16, 'outFeatures 1.5', 'ERR_VALUE', () => create({ outFeatures: 1.5 })),
          one8(17, 'outFeatures NaN', 'ERR_VALUE', () => create({ outFeatures: Number.NaN })),
          one8(18, 'inFeatures 2^32', 'ERR_VALUE', () => create({ inFeatures: 2 ** 32 })),
          one8(35, 'a device that is none', 'ERR_DEVICE', () => create({ device: 'gpu' })),
          one8(3, 'add: a name that is a number', 'ERR_TYPE', () => group.add(3 as never, one)),
          one8(2, 'add: null for a name', 'ERR_TYPE', () => group.add(null as never, one)),
          one8(35, 'add: a name that is taken', 'ERR_VALUE', () => group.add('one', two)),
          ...impostors(one).map(([kind, what, value]) =>
            one8(kind, `add: adapter ${what}`, 'ERR_TYPE', () =>
              // A proxy and a forgery of an adapter pass as one until their tensors are looked at.
              what === 'a proxy' ? group.add('x', {} as never) : group.add('x', value as never),
            ),
          ),
          one8(22, 'add: loraA of another K', 'ERR_SHAPE', () =>
            group.add('x', make(2, 40, { loraA: zeros([2, K + 1]) })),
          ),
          one8(22, 'add: loraB of another N', 'ERR_SHAPE', () =>
            group.add('x', make(2, 40, { loraB: zeros([N - 1, 2]) })),
          ),
          one8(31, 'add: a disposed adapter', 'ERR_DISPOSED', () => {
            const gone = make(2, 40);
            gone.dispose();
            group.add('x', gone);
          }),
          one8(32, 'add: an adapter of another device', 'ERR_DEVICE', () => {
            const place = { device: elsewhere(device) };
            const loraA = Tensor.zeros([2, K], place);
            const loraB = Tensor.zeros([N, 2], place);
            group.add('x', new LoraAdapter({ loraA, loraB, loraAlpha: 1 }));
          }),
          one8(35, 'update: a name that is not there', 'ERR_VALUE', () => group.update('x', one)),
          one8(3, 'update: not an adapter', 'ERR_TYPE', () => group.update('one', {} as never)),
          one8(35, 'remove: a name that is not there', 'ERR_VALUE', () => group.remove('x')),
          one8(3, 'remove: a symbol', 'ERR_TYPE', () => group.remove(Symbol('x') as never)),
          one8(31, 'after dispose', 'ERR_DISPOSED', () => {
            const gone = new GroupedLora(options);
            gone.dispose();
            gone.add('one', one);
          }),
          one8(31, 'forward after dispose', 'ERR_DISPOSED', () => {
            const gone = new GroupedLora(options);
            gone.dispose();
            gone.forward(f.x, f.dense, [null, null, null, null]);
          }),
        ],
      });
    });
  });

  it('forward', async () => {
    await scope(async () => {
      const f = fixture(device);
      const { group, one, make, zeros, x, dense, rows } = f;
      const run = (wrong: Record<string, unknown>, options?: unknown): unknown => {
        const given = { x, w: dense, rows, ...wrong };
        return callWith(group.forward.bind(group), given.x, given.w, given.rows, options);
      };
      const pairs = [
        ['two', 'one'],
        ['one', null],
        [null, null],
        ['one', 'two'],
      ];
      const w4 = quantize(dense, { format: 'nf4', blocksize: 64 });
      const name = (kind: BadClass, what: string, code: string, value: unknown): BadCase =>
        bad(kind, `rows: ${what}`, code, () => run({ rows: value }));
      const option = (kind: BadClass, what: string, code: string, options: unknown): BadCase =>
        bad(kind, what, code, () => run({}, options));
      const dropping = make(2, 50, { dropout: 0.5 });
      await checkCases('GroupedLora.forward', device, {
        watched: [x, dense, one.loraA],
        valid: () =>
          scope(async () => [await group.forward(x, w4, rows, { bias: f.bias }).y.read()]),
        cases: [
          bad(1, 'no arguments', 'ERR_TYPE', () => callWith(group.forward.bind(group))),
          ...impostors(x).flatMap(([kind, what, value]) => [
            bad(kind, `x: ${what}`, 'ERR_TYPE', () => run({ x: value })),
            bad(kind, `w: ${what}`, 'ERR_TYPE', () => run({ w: value })),
          ]),
          bad(22, 'x of another K', 'ERR_SHAPE', () => run({ x: zeros([M, K + 1]) })),
          bad(22, 'w of another K', 'ERR_SHAPE', () => run({ w: zeros([N, K + 1]) })),
          bad(22, 'w of another N', 'ERR_SHAPE', () => run({ w: zeros([N + 1, K]) })),
          bad(23, 'x a scalar', 'ERR_SHAPE', () => run({ x: zeros([]), rows: [null] })),
          bad(24, 'x f16, adapters bf16', 'ERR_DTYPE', () => {
            const loraA = zeros([2, K], 'bf16');
            const loraB = zeros([N, 2], 'bf16');
            const mixed = new GroupedLora({ inFeatures: K, outFeatures: N, device });
            mixed.add('a', new LoraAdapter({ loraA, loraB, loraAlpha: 1 }));
            mixed.forward(zeros([M, K], 'f16'), dense, ['a', 'a', null, 'a']);
          }),
          bad(31, 'a disposed x', 'ERR_DISPOSED', () => {
            const gone = zeros([M, K]);
            gone.dispose();
            run({ x: gone });
          }),
          bad(31, 'an adapter that was disposed', 'ERR_DISPOSED', () => {
            const gone = make(2, 60);
            const own = new GroupedLora({ inFeatures: K, outFeatures: N, device });
            own.add('gone', gone);
            gone.dispose();
            own.forward(x, dense, ['gone', null, null, null]);
          }),
          bad(32, 'x of another device', 'ERR_DEVICE', () =>
            run({ x: Tensor.zeros([M, K], { device: elsewhere(device) }) }),
          ),
          name(2, 'null', 'ERR_TYPE', null),
          name(2, 'undefined', 'ERR_TYPE', undefined),
          name(3, 'a string', 'ERR_TYPE', 'one'),
          name(5, 'an array-like', 'ERR_TYPE', { length: M, 0: 'one' }),
          name(4, 'an Int32Array', 'ERR_TYPE', new Int32Array(M)),
          name(11, 'too few', 'ERR_SHAPE', ['one', null, 'one']),
          name(12, 'too many', 'ERR_SHAPE', [...rows, null]),
          name(13, 'none', 'ERR_SHAPE', []),
          name(3, 'a number among them', 'ERR_TYPE', ['one', 1, null, null]),
          name(2, 'undefined among them', 'ERR_TYPE', ['one', undefined, null, null]),
          name(35, 'an unknown name', 'ERR_VALUE', ['one', 'three', null, null]),
          name(35, 'a name of Object', 'ERR_VALUE', ['one', 'toString', null, null]),
          name(13, 'an empty list', 'ERR_SHAPE', [[], [], [], []]),
          name(3, 'a name among lists', 'ERR_TYPE', [['one'], 'two', [null], [null]]),
          name(2, 'null among lists', 'ERR_TYPE', [['one'], null, [null], [null]]),
          name(3, 'a list among names', 'ERR_TYPE', ['one', ['two'], null, null]),
          name(11, 'a shorter list', 'ERR_SHAPE', [...pairs.slice(0, 3), ['one']]),
          name(12, 'a longer list', 'ERR_SHAPE', [...pairs.slice(0, 3), ['one', 'two', null]]),
          name(11, 'too few lists', 'ERR_SHAPE', pairs.slice(0, 3)),
          name(3, 'a number in a list', 'ERR_TYPE', [...pairs.slice(0, 3), ['one', 1]]),
          name(35, 'an unknown name in a list', 'ERR_VALUE', [['one', 'x'], ...pairs.slice(1)]),
          name(35, 'an adapter twice in a row', 'ERR_VALUE', [['one', 'one'], ...pairs.slice(1)]),
          ...[[M], [2, M], [M, 1], [M, 3], [M + 1, 2], [1, M, 2]].map((shape) =>
            bad(22, `rowScale of lists: [${shape}]`, 'ERR_SHAPE', () =>
              run({ rows: pairs }, { rowScale: zeros(shape) }),
            ),
          ),
          option(3, 'options: a number', 'ERR_TYPE', 3),
          option(2, 'options: null', 'ERR_TYPE', null),
          option(33, 'options: a getter that throws', 'HOSTILE', hostile('bias')),
          option(11, 'bias: too short', 'ERR_SHAPE', { bias: zeros([N - 1]) }),
          option(3, 'bias: a number', 'ERR_TYPE', { bias: 3 }),
          option(3, 'training: 1', 'ERR_TYPE', { training: 1 }),
          option(30, 'seed: negative', 'ERR_VALUE', { seed: -1 }),
          option(11, 'rowScale: too short', 'ERR_SHAPE', { rowScale: zeros([M - 1]) }),
          option(12, 'rowScale: too long', 'ERR_SHAPE', { rowScale: zeros([M + 1]) }),
          option(3, 'rowScale: an array', 'ERR_TYPE', { rowScale: [1, 1, 1, 1] }),
          bad(32, 'rowScale of another device', 'ERR_DEVICE', () =>
            run({}, { rowScale: Tensor.zeros([M], { device: elsewhere(device) }) }),
          ),
          option(22, 'dropoutMask: another shape', 'ERR_SHAPE', { dropoutMask: zeros([M, K - 1]) }),
          bad(30, 'dropout without a seed', 'ERR_VALUE', () => {
            const own = new GroupedLora({ inFeatures: K, outFeatures: N, device });
            own.add('drops', dropping);
            own.forward(x, dense, [null, 'drops', null, null]);
          }),
          ...computeCases(device, dense, (options, w = w4) => run({ w }, options)),
        ],
      });
    });
  });

  it('backward', async () => {
    await scope(async () => {
      const f = fixture(device);
      const { group, one, zeros, x, dense, rows, dy } = f;
      const rowScale = zeros([M]);
      const { saved } = group.forward(x, dense, rows, { bias: f.bias, rowScale });
      const plain = group.forward(x, dense, rows).saved;
      const off = group.forward(x, dense, rows, { rowScale, training: false }).saved;
      const run = (wrong: Record<string, unknown>, options?: unknown): unknown => {
        const given = { dy, saved, ...wrong };
        return callWith(group.backward.bind(group), given.dy, given.saved, options);
      };
      const option = (kind: BadClass, what: string, code: string, options: unknown): BadCase =>
        bad(kind, what, code, () => run({}, options));
      const into = (kind: BadClass, what: string, code: string, value: unknown): BadCase =>
        option(kind, `accumulateInto: ${what}`, code, { keep: true, accumulateInto: value });
      const parts = (value: unknown): object => ({ adapters: new Map([['one', value]]) });
      await checkCases('GroupedLora.backward', device, {
        watched: [x, dense, dy, one.loraA, saved.h as Tensor, rowScale],
        valid: async () => {
          const got = group.backward(dy, saved, { keep: true });
          const all = [...got.adapters.values()].flatMap((each) => Object.values(each));
          const shared = [got.dx as Tensor, got.dBias as Tensor, got.dRowScale as Tensor];
          const values = [...shared, ...all].map((tensor) => tensor.readSync());
          for (const tensor of [...shared, ...all]) tensor.dispose();
          return values;
        },
        cases: [
          bad(1, 'no arguments', 'ERR_TYPE', () => callWith(group.backward.bind(group))),
          ...impostors(dy).map(([kind, what, value]) =>
            bad(kind, `dy: ${what}`, 'ERR_TYPE', () => run({ dy: value })),
          ),
          ...impostors(saved).map(([kind, what, value]) =>
            bad(kind, `saved: ${what}`, 'ERR_TYPE', () => run({ saved: value })),
          ),
          bad(22, 'dy of another shape', 'ERR_SHAPE', () => run({ dy: zeros([M, N + 1]) })),
          bad(24, 'dy of another dtype', 'ERR_DTYPE', () => run({ dy: zeros([M, N], 'bf16') })),
          bad(31, 'a disposed saved state', 'ERR_DISPOSED', () => {
            const gone = group.forward(x, dense, rows).saved;
            gone.dispose();
            run({ saved: gone });
          }),
          option(3, 'needs: a string', 'ERR_TYPE', { needs: 'dx', keep: true }),
          option(3, 'needs: a name unknown', 'ERR_VALUE', { needs: ['dLoraA'], keep: true }),
          bad(35, 'adapters after training: false', 'ERR_VALUE', () => {
            const off = group.forward(x, dense, rows, { training: false }).saved;
            run({ saved: off }, { needs: ['adapters'] });
          }),
          into(3, 'a number', 'ERR_TYPE', 3),
          into(35, 'a name unknown', 'ERR_VALUE', { dW: zeros([N, K]) }),
          into(3, 'adapters an object', 'ERR_TYPE', { adapters: {} }),
          into(3, 'an adapter that is a tensor array', 'ERR_TYPE', parts([zeros([3, K])])),
          into(35, 'a gradient unknown', 'ERR_VALUE', parts({ dW: zeros([3, K]) })),
          into(22, 'dLoraA of another shape', 'ERR_SHAPE', parts({ dLoraA: zeros([2, K]) })),
          into(3, 'dLoraB a number', 'ERR_TYPE', parts({ dLoraB: 3 })),
          into(22, 'dx of another shape', 'ERR_SHAPE', { dx: zeros([M, K + 1]) }),
          bad(35, 'dRowScale without rowScale', 'ERR_VALUE', () =>
            run({ saved: plain }, { needs: ['dRowScale'], keep: true }),
          ),
          bad(35, 'dRowScale after training: false', 'ERR_VALUE', () =>
            run({ saved: off }, { needs: ['dRowScale'], keep: true }),
          ),
          into(22, 'dRowScale of another shape', 'ERR_SHAPE', { dRowScale: zeros([M + 1]) }),
          into(3, 'dRowScale an array', 'ERR_TYPE', { dRowScale: [1, 1, 1, 1] }),
          into(27, 'dRowScale is rowScale', 'ERR_ALIAS', { dRowScale: rowScale }),
          bad(32, 'dRowScale of another device', 'ERR_DEVICE', () =>
            run(
              {},
              {
                keep: true,
                accumulateInto: { dRowScale: Tensor.zeros([M], { device: elsewhere(device) }) },
              },
            ),
          ),
          into(24, 'dx of another dtype', 'ERR_DTYPE', { dx: zeros([M, K], 'bf16') }),
          into(27, 'dx is dLoraA of an adapter', 'ERR_ALIAS', parts({ dLoraA: one.loraA })),
        ],
      });
    });
  });

  it('adapters come and go, and nothing leaks', async () => {
    await scope(async () => {
      const f = fixture(device);
      const { group, one, two, make, x, dense, dy } = f;
      const usage = async (): Promise<unknown> => {
        await synchronize(device);
        const { liveBytes, liveTensors } = memoryUsage(device);
        return [liveBytes, liveTensors];
      };
      const before = await usage();
      for (let turn = 0; turn < 3; turn++) {
        const guest = make(1 + turn, 70);
        group.add('guest', guest);
        expect(group.names).toEqual(['one', 'two', 'guest']);
        const { y, saved } = group.forward(x, dense, ['guest', 'two', null, 'guest']);
        // Gone from the group, and yet what was saved knows it.
        group.update('two', one);
        group.remove('guest');
        const got = group.backward(dy, saved);
        expect(got.adapters.get('guest')?.dLoraA?.shape).toEqual([1 + turn, K]);
        expect(got.adapters.get('two')?.dLoraB?.shape).toEqual([N, 2]);
        group.update('two', two);
        expect(() => group.forward(x, dense, ['guest', null, null, null])).toThrow(/rows\[0\]/);
        const all = [...got.adapters.values()].flatMap((each) => Object.values(each));
        for (const tensor of [y, got.dx, got.dBias, ...all]) tensor?.dispose();
        expect(guest.disposed).toBe(false);
        guest.dispose();
        expect(await usage()).toEqual(before);
      }
      group.dispose();
      group.dispose();
      expect([group.disposed, group.names.length, one.disposed]).toEqual([true, 0, false]);
      expect(await usage()).toEqual(before);
    });
  });
});
