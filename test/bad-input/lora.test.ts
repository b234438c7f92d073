// Bad input to LoraAdapter, LoraAdapter.init, loraForward and loraBackward.
import { describe, expect, it } from 'vitest';
import {
  type Device,
  LoraAdapter,
  type LoraBackwardOptions,
  type LoraForwardOptions,
  type LoraParts,
  LoraSaved,
  loraBackward,
  loraForward,
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
  covered,
  hostile,
  impostors,
} from './harness.js';

/** One layer, M 2, N 4, K 8, r 3, with everything that an op may take. */
function layer(device: Device) {
  const other = DEVICES.find((candidate) => candidate !== device) as Device;
  const zeros = (shape: number[], dtype: 'f32' | 'bf16' | 'f16' = 'f32', on = device): Tensor =>
    Tensor.zeros(shape, { dtype, device: on });
  const gone = (shape: number[]): Tensor => {
    const t = zeros(shape);
    t.dispose();
    return t;
  };
  const random = (shape: number[], seed: number): Tensor => Tensor.randn(shape, { seed, device });
  const x = random([2, 8], 1);
  const w = random([4, 8], 2);
  const loraA = random([3, 8], 3);
  const loraB = random([4, 3], 4);
  const bias = random([4], 5);
  const loraBias = random([4], 6);
  const dy = random([2, 4], 7);
  const parts: LoraParts = { loraA, loraB, loraAlpha: 6, loraBias };
  const watched = [x, w, loraA, loraB, bias, loraBias, dy];
  return { other, zeros, gone, x, w, loraA, loraB, bias, loraBias, dy, parts, watched };
}

const INFINITY = Number.POSITIVE_INFINITY;
const enough = (cases: readonly BadCase[]): void =>
  expect(covered(cases).size).toBeGreaterThanOrEqual(20);

/** Tensors of wrong sizes in place of one of [rows, cols]. */
function wrongSizes(
  name: string,
  [rows, cols]: readonly [number, number],
  zeros: (shape: number[]) => Tensor,
  call: (value: Tensor) => unknown,
): BadCase[] {
  const list: [BadClass, number[]][] = [
    [11, [rows, cols - 1]],
    [12, [rows, cols + 1]],
    [13, [rows, 0]],
    [14, [0, cols + 2]],
    [22, [rows, 5 * cols]],
    [23, [rows * cols]],
    [23, [1, rows, cols, 1]],
  ];
  return list.map(([kind, shape]) =>
    bad(kind, `${name}: [${shape}]`, 'ERR_SHAPE', () => call(zeros(shape))),
  );
}

describe.each(DEVICES)('bad input on %s', (device) => {
  it('LoraAdapter', async () => {
    await scope(async () => {
      const { other, zeros, gone, loraA, loraB, parts, watched } = layer(device);
      const make = (change: object): LoraAdapter => new LoraAdapter({ ...parts, ...change });
      const value = (kind: BadClass, name: string, given: unknown, code: string): BadCase =>
        bad(kind, `${name}: ${String(given)}`, code, () => make({ [name]: given }));
      const cases = [
        bad(1, 'no arguments', 'ERR_TYPE', () => Reflect.construct(LoraAdapter, [])),
        bad(2, 'null', 'ERR_TYPE', () => Reflect.construct(LoraAdapter, [null])),
        bad(3, 'a number', 'ERR_TYPE', () => Reflect.construct(LoraAdapter, [3])),
        bad(3, 'an array', 'ERR_TYPE', () => Reflect.construct(LoraAdapter, [[loraA, loraB]])),
        ...(['loraA', 'loraB', 'loraBias'] as const).flatMap((name) =>
          impostors(loraA)
            .filter(([, , v]) => v !== undefined || name !== 'loraBias')
            .map(([kind, what, v]) =>
              bad(kind, `${name}: ${what}`, 'ERR_TYPE', () => make({ [name]: v })),
            ),
        ),
        ...wrongSizes('loraB', [4, 3], zeros, (t) =>
          make({ loraB: t, loraBias: undefined }),
        ).filter(({ kind }) => kind !== 14),
        bad(14, 'loraA: r = 0', 'ERR_SHAPE', () =>
          make({ loraA: zeros([0, 8]), loraB: zeros([4, 0]) }),
        ),
        bad(23, 'loraA: a vector', 'ERR_SHAPE', () => make({ loraA: zeros([8]) })),
        bad(23, 'loraA: a scalar', 'ERR_SHAPE', () => make({ loraA: zeros([]) })),
        bad(11, 'loraBias: one short', 'ERR_SHAPE', () => make({ loraBias: zeros([3]) })),
        bad(12, 'loraBias: one long', 'ERR_SHAPE', () => make({ loraBias: zeros([5]) })),
        bad(23, 'loraBias: [2, 2]', 'ERR_SHAPE', () => make({ loraBias: zeros([2, 2]) })),
        value(2, 'loraAlpha', undefined, 'ERR_TYPE'),
        value(2, 'loraAlpha', null, 'ERR_TYPE'),
        value(3, 'loraAlpha', '16', 'ERR_TYPE'),
        value(17, 'loraAlpha', Number.NaN, 'ERR_VALUE'),
        value(29, 'loraAlpha', INFINITY, 'ERR_VALUE'),
        value(3, 'dropout', '0.1', 'ERR_TYPE'),
        value(15, 'dropout', -0.1, 'ERR_VALUE'),
        value(30, 'dropout', 1, 'ERR_VALUE'),
        value(30, 'dropout', 1.5, 'ERR_VALUE'),
        value(29, 'dropout', Number.NaN, 'ERR_VALUE'),
        value(3, 'rslora', 1, 'ERR_TYPE'),
        value(3, 'trainA', 'false', 'ERR_TYPE'),
        value(3, 'trainB', 0, 'ERR_TYPE'),
        bad(31, 'loraA: disposed', 'ERR_DISPOSED', () => make({ loraA: gone([3, 8]) })),
        bad(31, 'loraB: disposed', 'ERR_DISPOSED', () => make({ loraB: gone([4, 3]) })),
        bad(31, 'loraBias: disposed', 'ERR_DISPOSED', () => make({ loraBias: gone([4]) })),
        bad(32, 'loraB: elsewhere', 'ERR_DEVICE', () =>
          make({ loraB: zeros([4, 3], 'f32', other) }),
        ),
        bad(32, 'loraBias: elsewhere', 'ERR_DEVICE', () =>
          make({ loraBias: zeros([4], 'f32', other) }),
        ),
        bad(33, 'a getter that throws', 'HOSTILE', () =>
          Reflect.construct(LoraAdapter, [hostile('loraAlpha')]),
        ),
        ...initCases(device),
      ];
      await checkCases('LoraAdapter', device, {
        watched,
        cases,
        valid: async () => [[new LoraAdapter(parts).scaling]],
      });
      enough(cases);
    });
  });

  it('LoraAdapter.init that is refused late leaves nothing behind', async () => {
    const options = { inFeatures: 8, outFeatures: 4, r: 2, loraAlpha: 4, seed: 1, device };
    const { liveBytes } = memoryUsage(device);
    for (const change of [{ rslora: 'yes' }, { trainA: 1 }, { r: 2 ** 20, outFeatures: 2 ** 31 }]) {
      expect(() => callWith(LoraAdapter.init, { ...options, ...change })).toThrow();
      await synchronize(device);
      expect(memoryUsage(device).liveBytes).toBe(liveBytes);
    }
  });

  it('loraForward', async () => {
    await scope(async () => {
      const { other, zeros, gone, x, w, loraA, bias, parts, watched } = layer(device);
      const adapter = new LoraAdapter({ ...parts, dropout: 0.5 });
      const w4 = quantize(w, { format: 'nf4' });
      const run = (
        operands: { x?: unknown; w?: unknown; adapter?: unknown },
        options: unknown = { seed: 1, bias },
      ): unknown => {
        const given = { x, w: w4, adapter, ...operands };
        return callWith(loraForward, given.x, given.w, given.adapter, options);
      };
      const option = (kind: BadClass, what: string, code: string, options: unknown): BadCase =>
        bad(kind, what, code, () => run({}, options));
      /** An adapter of the class, whose fields were changed behind its back. */
      const forged = (fields: object): LoraAdapter =>
        Object.assign(Object.create(LoraAdapter.prototype) as LoraAdapter, adapter, fields);
      const cases = [
        bad(1, 'no arguments', 'ERR_TYPE', () => callWith(loraForward)),
        bad(1, 'x alone', 'ERR_TYPE', () => callWith(loraForward, x)),
        bad(1, 'no adapter', 'ERR_TYPE', () => callWith(loraForward, x, w4)),
        ...impostors(x).flatMap(([kind, what, v]) => [
          bad(kind, `x: ${what}`, 'ERR_TYPE', () => run({ x: v })),
          bad(kind, `w: ${what}`, 'ERR_TYPE', () => run({ w: v })),
          bad(kind, `adapter: ${what}`, 'ERR_TYPE', () => run({ adapter: v })),
        ]),
        ...impostors(bias)
          .filter(([, , v]) => v !== undefined)
          .flatMap(([kind, what, v]) => [
            option(kind, `bias: ${what}`, 'ERR_TYPE', { seed: 1, bias: v }),
            option(kind, `dropoutMask: ${what}`, 'ERR_TYPE', { dropoutMask: v }),
          ]),
        bad(3, 'adapter: its parts', 'ERR_TYPE', () => run({ adapter: { ...parts } })),
        bad(5, 'adapter: a forgery without fields', 'ERR_TYPE', () =>
          run({ adapter: Object.create(LoraAdapter.prototype) }),
        ),
        ...wrongSizes(
          'x',
          [2, 8],
          (s) => zeros(s),
          (t) => run({ x: t }),
        ).filter(({ what }) => !what.includes('1,2,8,1')),
        bad(23, 'x: a scalar', 'ERR_SHAPE', () => run({ x: zeros([]) })),
        bad(23, 'w: a vector', 'ERR_SHAPE', () => run({ w: zeros([8]) })),
        bad(22, 'w: [4, 7]', 'ERR_SHAPE', () => run({ w: zeros([4, 7]) })),
        bad(22, 'loraA of another K', 'ERR_SHAPE', () =>
          run({ adapter: new LoraAdapter({ ...parts, loraA: zeros([3, 9]) }) }),
        ),
        bad(22, 'loraB of another N', 'ERR_SHAPE', () =>
          run({ adapter: new LoraAdapter({ loraA, loraB: zeros([5, 3]), loraAlpha: 1 }) }),
        ),
        option(11, 'bias: one short', 'ERR_SHAPE', { seed: 1, bias: zeros([3]) }),
        option(12, 'bias: one long', 'ERR_SHAPE', { seed: 1, bias: zeros([5]) }),
        option(13, 'bias: empty', 'ERR_SHAPE', { seed: 1, bias: zeros([0]) }),
        option(11, 'dropoutMask: one short', 'ERR_SHAPE', { dropoutMask: zeros([2, 7]) }),
        option(23, 'dropoutMask: flat', 'ERR_SHAPE', { dropoutMask: zeros([16]) }),
        bad(24, 'bf16 x, f16 factors', 'ERR_DTYPE', () =>
          run({
            x: zeros([2, 8], 'bf16'),
            adapter: new LoraAdapter({
              loraA: zeros([3, 8], 'f16'),
              loraB: zeros([4, 3], 'f16'),
              loraAlpha: 1,
            }),
          }),
        ),
        bad(24, 'f16 x, bf16 w', 'ERR_DTYPE', () =>
          run({ x: zeros([2, 8], 'f16'), w: zeros([4, 8], 'bf16') }),
        ),
        bad(29, 'scaling: NaN', 'ERR_VALUE', () =>
          run({ adapter: forged({ scaling: Number.NaN }) }),
        ),
        bad(29, 'scaling: too large for f32', 'ERR_VALUE', () =>
          run({ adapter: forged({ scaling: 1e300 }) }),
        ),
        bad(30, 'dropout: 1', 'ERR_VALUE', () => run({ adapter: forged({ dropout: 1 }) })),
        bad(30, 'dropout: NaN', 'ERR_VALUE', () => run({ adapter: forged({ dropout: 0 / 0 }) })),
        bad(29, 'w: quantised from NaN', 'ERR_NON_FINITE', async () => {
          const nan = quantize(Tensor.from(new Float32Array(32).fill(0 / 0), [4, 8], { device }), {
            format: 'fp4',
          });
          await (run({ w: nan }) as ReturnType<typeof loraForward>).y.read();
        }),
        option(30, 'no seed', 'ERR_VALUE', {}),
        option(30, 'seed: negative', 'ERR_VALUE', { seed: -1 }),
        option(16, 'seed: a fraction', 'ERR_VALUE', { seed: 1.5 }),
        option(17, 'seed: NaN', 'ERR_VALUE', { seed: Number.NaN }),
        option(20, 'seed: 2^53', 'ERR_VALUE', { seed: 2 ** 53 }),
        option(3, 'seed: a string', 'ERR_TYPE', { seed: '1' }),
        option(3, 'training: 1', 'ERR_TYPE', { seed: 1, training: 1 }),
        option(3, 'options: a number', 'ERR_TYPE', 3),
        option(2, 'options: null', 'ERR_TYPE', null),
        option(33, 'options: a getter that throws', 'HOSTILE', hostile('seed')),
        ...computeCases(device, w, (options, other = w4) =>
          run({ w: other }, { seed: 1, ...options }),
        ),
        bad(31, 'x: disposed', 'ERR_DISPOSED', () => run({ x: gone([2, 8]) })),
        bad(31, 'w: disposed', 'ERR_DISPOSED', () => run({ w: gone([4, 8]) })),
        bad(31, 'loraA: disposed', 'ERR_DISPOSED', () =>
          run({ adapter: forged({ loraA: gone([3, 8]) }) }),
        ),
        bad(31, 'loraB: disposed', 'ERR_DISPOSED', () =>
          run({ adapter: forged({ loraB: gone([4, 3]) }) }),
        ),
        option(31, 'bias: disposed', 'ERR_DISPOSED', { seed: 1, bias: gone([4]) }),
        option(31, 'dropoutMask: disposed', 'ERR_DISPOSED', { dropoutMask: gone([2, 8]) }),
        bad(32, 'x: elsewhere', 'ERR_DEVICE', () => run({ x: zeros([2, 8], 'f32', other) })),
        bad(32, 'adapter: elsewhere', 'ERR_DEVICE', () =>
          run({
            adapter: new LoraAdapter({
              loraA: zeros([3, 8], 'f32', other),
              loraB: zeros([4, 3], 'f32', other),
              loraAlpha: 1,
            }),
          }),
        ),
        option(32, 'bias: elsewhere', 'ERR_DEVICE', { seed: 1, bias: zeros([4], 'f32', other) }),
        ...(
          [
            [34, 'ERR_OOM', 2 ** 18, 2 ** 18],
            [18, 'ERR_OOM', 2 ** 39, 2],
            [19, 'ERR_OOM', 2 ** 19, 2 ** 18],
            [20, 'ERR_OOM', 2 ** 50, 8],
            [21, 'ERR_SHAPE', 2 ** 52, 2 ** 12],
            // 2^64 + 1: in 64 bits, one element.
            [21, 'ERR_SHAPE', 67280421310721, 274177],
          ] as const
        ).map(([kind, code, M, N]) =>
          // x [M, 0] and w [N, 0] hold nothing; y would hold M · N.
          bad(kind, `y [${M}, ${N}]`, code, () => {
            const parts = { loraA: zeros([1, 0]), loraB: zeros([N, 1]), loraAlpha: 1 };
            return loraForward(zeros([M, 0]), zeros([N, 0]), new LoraAdapter(parts));
          }),
        ),
      ];
      await checkCases('loraForward', device, {
        watched,
        cases,
        valid: () =>
          scope(async () => {
            const { y, saved } = run({}) as ReturnType<typeof loraForward>;
            return [await y.read(), await (saved.h as Tensor).read()];
          }),
      });
      enough(cases);
    });
  });

  it('loraBackward', async () => {
    await scope(async () => {
      const { other, zeros, gone, x, w, loraA, loraB, bias, dy, parts, watched } = layer(device);
      const adapter = new LoraAdapter({ ...parts, dropout: 0.5 });
      const w4 = quantize(w, { format: 'nf4' });
      const { saved } = loraForward(x, w4, adapter, { seed: 1, bias });
      const target = Tensor.randn([3, 8], { seed: 20, device });
      const backward = (d: unknown, s: unknown, options: unknown = {}): unknown =>
        callWith(loraBackward, d, s, options);
      const option = (kind: BadClass, what: string, code: string, options: unknown): BadCase =>
        bad(kind, what, code, () => backward(dy, saved, options));
      const into = (kind: BadClass, what: string, code: string, accumulateInto: unknown): BadCase =>
        option(kind, `accumulateInto: ${what}`, code, { keep: true, accumulateInto });
      /** The saved state of a forward pass with other options, for a refused backward pass. */
      const savedOf = (options: LoraForwardOptions, change: Partial<LoraParts> = {}): LoraSaved =>
        loraForward(x, w4, new LoraAdapter({ ...parts, ...change }), options).saved;
      const finished = savedOf({});
      finished.dispose();
      const cases = [
        bad(1, 'no arguments', 'ERR_TYPE', () => callWith(loraBackward)),
        bad(1, 'dy alone', 'ERR_TYPE', () => callWith(loraBackward, dy)),
        ...impostors(dy).flatMap(([kind, what, v]) => [
          bad(kind, `dy: ${what}`, 'ERR_TYPE', () => backward(v, saved)),
          bad(kind, `saved: ${what}`, 'ERR_TYPE', () => backward(dy, v)),
        ]),
        bad(5, 'saved: a proxy', 'ERR_TYPE', () => backward(dy, new Proxy(saved, {}))),
        bad(5, 'saved: a forgery', 'ERR_TYPE', () =>
          backward(dy, Object.create(LoraSaved.prototype)),
        ),
        ...wrongSizes(
          'dy',
          [2, 4],
          (s) => zeros(s),
          (t) => backward(t, saved),
        ),
        bad(24, 'dy: bf16 for f32', 'ERR_DTYPE', () => backward(zeros([2, 4], 'bf16'), saved)),
        bad(24, 'dy: f16 for f32', 'ERR_DTYPE', () =>
          backward(zeros([2, 4], 'f16'), saved, { needs: ['dx'], keep: true }),
        ),
        option(3, 'needs: a string', 'ERR_TYPE', { needs: 'dx' }),
        option(2, 'needs: null', 'ERR_TYPE', { needs: null }),
        option(3, 'needs: a name unknown', 'ERR_VALUE', { needs: ['dW'] }),
        option(3, 'needs: a number', 'ERR_TYPE', { needs: [0] }),
        option(3, 'options: a number', 'ERR_TYPE', 3),
        option(33, 'options: a getter that throws', 'HOSTILE', hostile('needs')),
        ...impostors(target)
          .filter(([, , v]) => v !== undefined)
          .map(([kind, what, v]) => into(kind, what, 'ERR_TYPE', { dLoraA: v })),
        into(3, 'a number', 'ERR_TYPE', 3),
        into(2, 'null', 'ERR_TYPE', null),
        into(3, 'a name unknown', 'ERR_VALUE', { dW: target }),
        into(11, 'dLoraA one short', 'ERR_SHAPE', { dLoraA: zeros([3, 7]) }),
        into(12, 'dLoraB one long', 'ERR_SHAPE', { dLoraB: zeros([4, 4]) }),
        into(13, 'dBias empty', 'ERR_SHAPE', { dBias: zeros([0]) }),
        into(11, 'dBias one short', 'ERR_SHAPE', { dBias: zeros([3]) }),
        into(14, 'dx of no rows', 'ERR_SHAPE', { dx: zeros([0, 8]) }),
        into(22, 'dLoraA transposed', 'ERR_SHAPE', { dLoraA: zeros([8, 3]) }),
        into(23, 'dLoraA flat', 'ERR_SHAPE', { dLoraA: zeros([24]) }),
        into(24, 'dx of another dtype', 'ERR_DTYPE', { dx: zeros([2, 8], 'bf16') }),
        into(31, 'disposed', 'ERR_DISPOSED', { dLoraA: gone([3, 8]) }),
        into(32, 'elsewhere', 'ERR_DEVICE', { dLoraA: zeros([3, 8], 'f32', other) }),
        into(27, 'dLoraA is loraA', 'ERR_ALIAS', { dLoraA: loraA }),
        into(27, 'dLoraB is loraB', 'ERR_ALIAS', { dLoraB: loraB }),
        into(27, 'dx is x', 'ERR_ALIAS', { dx: x }),
        bad(27, 'dBias is dy', 'ERR_ALIAS', () => {
          const one = loraForward(zeros([1, 8]), w4, adapter, { seed: 1 }).saved;
          const d = Tensor.from([1, 2, 3, 4], [1, 4], { device });
          return backward(d, one, { needs: ['dBias'], accumulateInto: { dBias: d } });
        }),
        bad(27, 'two gradients into one tensor', 'ERR_ALIAS', () => {
          const both = zeros([4]);
          const options: LoraBackwardOptions = {
            keep: true,
            accumulateInto: { dBias: both, dLoraBias: both },
          };
          return backward(dy, saved, options);
        }),
        bad(28, 'dLoraA over half of loraA', 'ERR_ALIAS', () => {
          const memory = new Float32Array(new SharedArrayBuffer(4 * 40));
          const wrap = (from: number): Tensor =>
            Tensor.wrap(memory.subarray(from, from + 24), [3, 8], { device });
          const held = savedOf({}, { loraA: wrap(0) });
          return backward(dy, held, { accumulateInto: { dLoraA: wrap(12) } });
        }),
        bad(28, 'dx over a part of dy', 'ERR_ALIAS', () => {
          const memory = new Float32Array(new SharedArrayBuffer(4 * 20));
          const part = Tensor.wrap(memory.subarray(0, 8), [2, 4], { device });
          const dx = Tensor.wrap(memory.subarray(4, 20), [2, 8], { device });
          return backward(part, savedOf({}), { accumulateInto: { dx } });
        }),
        bad(31, 'dy: disposed', 'ERR_DISPOSED', () => backward(gone([2, 4]), saved)),
        bad(31, 'saved: used up', 'ERR_DISPOSED', () => backward(dy, finished)),
        bad(31, 'w disposed since the forward pass', 'ERR_DISPOSED', () => {
          const mortal = quantize(w, { format: 'nf4' });
          const held = loraForward(x, mortal, adapter, { seed: 1 }).saved;
          mortal.dispose();
          return backward(dy, held);
        }),
        bad(31, 'dropoutMask disposed since', 'ERR_DISPOSED', () => {
          const mask = zeros([2, 8]);
          const held = loraForward(x, w4, adapter, { dropoutMask: mask }).saved;
          mask.dispose();
          return backward(dy, held);
        }),
        bad(31, 'the adapter disposed since', 'ERR_DISPOSED', () => {
          const mortal = new LoraAdapter({
            loraA: zeros([3, 8]),
            loraB: zeros([4, 3]),
            loraAlpha: 1,
          });
          const held = loraForward(x, w4, mortal).saved;
          mortal.dispose();
          return backward(dy, held);
        }),
        bad(32, 'dy: elsewhere', 'ERR_DEVICE', () => backward(zeros([2, 4], 'f32', other), saved)),
        bad(30, 'dLoraA of a frozen loraA', 'ERR_VALUE', () =>
          backward(dy, savedOf({}, { trainA: false }), { needs: ['dLoraA'] }),
        ),
        bad(30, 'dLoraB of a frozen loraB', 'ERR_VALUE', () =>
          backward(dy, savedOf({}, { trainB: false }), { needs: ['dLoraB'] }),
        ),
        bad(30, 'gradients after training: false', 'ERR_VALUE', () =>
          backward(dy, savedOf({ training: false }), { needs: ['dLoraA', 'dx'] }),
        ),
        bad(29, 'w: quantised from NaN', 'ERR_NON_FINITE', async () => {
          const nan = quantize(Tensor.from(new Float32Array(32).fill(0 / 0), [4, 8], { device }), {
            format: 'nf4',
          });
          const held = loraForward(x, nan, adapter, { seed: 1 }).saved;
          const { dx } = loraBackward(dy, held, { needs: ['dx'] });
          await (dx as Tensor).read();
        }),
      ];
      await checkCases('loraBackward', device, {
        watched: [...watched, target],
        cases,
        valid: () =>
          scope(async () => {
            const gradients = loraBackward(dy, saved, { keep: true });
            return Promise.all(Object.values(gradients).map((gradient) => gradient.read()));
          }),
      });
      enough(cases);
      expect(saved.disposed).toBe(false);
    });
  });
});

function initCases(device: Device): BadCase[] {
  const good = { inFeatures: 8, outFeatures: 4, r: 2, loraAlpha: 4, seed: 1, device };
  const value = (kind: BadClass, name: string, given: unknown, code: string): BadCase =>
    bad(kind, `init, ${name}: ${String(given)}`, code, () =>
      callWith(LoraAdapter.init, { ...good, [name]: given }),
    );
  return [
    bad(1, 'init, no arguments', 'ERR_TYPE', () => callWith(LoraAdapter.init)),
    bad(2, 'init, null', 'ERR_TYPE', () => callWith(LoraAdapter.init, null)),
    bad(33, 'init, a getter that throws', 'HOSTILE', () =>
      callWith(LoraAdapter.init, hostile('r')),
    ),
    ...(['inFeatures', 'outFeatures', 'r'] as const).flatMap((name) => [
      value(2, name, undefined, 'ERR_TYPE'),
      value(3, name, '8', 'ERR_TYPE'),
      value(14, name, 0, 'ERR_VALUE'),
      value(15, name, -8, 'ERR_VALUE'),
      value(16, name, 1.5, 'ERR_VALUE'),
      value(17, name, Number.NaN, 'ERR_VALUE'),
      value(17, name, INFINITY, 'ERR_VALUE'),
      value(18, name, 2 ** 40, 'ERR_VALUE'),
    ]),
    bad(19, 'init, loraA of 2^50 elements', 'ERR_SHAPE', () =>
      callWith(LoraAdapter.init, { ...good, inFeatures: 2 ** 31, r: 2 ** 19 }),
    ),
    value(29, 'loraAlpha', Number.NaN, 'ERR_VALUE'),
    value(30, 'dropout', 1, 'ERR_VALUE'),
    value(30, 'seed', -1, 'ERR_VALUE'),
    value(2, 'seed', undefined, 'ERR_TYPE'),
    value(24, 'dtype', 'f64', 'ERR_DTYPE'),
    value(32, 'device', 'gpu', 'ERR_DEVICE'),
    value(30, 'init', 'magic', 'ERR_VALUE'),
    value(3, 'rslora', 'yes', 'ERR_TYPE'),
    value(3, 'trainA', 1, 'ERR_TYPE'),
  ];
}
