// Bad input to FeatureMap and its makers, mapFeatures, and the products of blocks.
import { describe, expect, it } from 'vitest';
import {
  blockMatmul,
  blockMatmulInputGrad,
  blockWeightGrad,
  FeatureMap,
  mapFeatures,
  scope,
  Tensor,
} from '../../lib/index.js';
import { DEVICES } from '../conformance/operands.js';
import {
  type BadCase,
  bad,
  callWith,
  checkCases,
  covered,
  hostile,
  impostors,
  resizable,
  resize,
} from './harness.js';
import { factorCases, operandCases } from './operand-cases.js';

/** A number of features that is not one. */
const countCases = (name: string, call: (value: unknown) => unknown): BadCase[] => [
  bad(2, `${name}: null`, 'ERR_TYPE', () => call(null)),
  bad(3, `${name}: a string`, 'ERR_TYPE', () => call('4')),
  bad(3, `${name}: a bigint`, 'ERR_TYPE', () => call(4n)),
  bad(15, `${name}: negative`, 'ERR_VALUE', () => call(-1)),
  bad(16, `${name}: a fraction`, 'ERR_VALUE', () => call(1.5)),
  bad(17, `${name}: NaN`, 'ERR_VALUE', () => call(Number.NaN)),
  bad(18, `${name}: 2^31`, 'ERR_VALUE', () => call(2 ** 31)),
];

/** An index of 4 entries into 4 features that is not one. */
function indexCases(call: (index: unknown) => unknown): BadCase[] {
  return [
    ...impostors(Int32Array.of(0, 1, 2, 3)).map(([kind, what, value]) =>
      bad(kind, `index: ${what}`, 'ERR_TYPE', () => call(value)),
    ),
    bad(12, 'index: an input too far', 'ERR_VALUE', () => call(Int32Array.of(0, 4, 2, 3))),
    bad(15, 'index: -2', 'ERR_VALUE', () => call(Int32Array.of(0, 1, -2, 3))),
    bad(18, 'index: 2^31 - 1', 'ERR_VALUE', () => call(Int32Array.of(2 ** 31 - 1, 1, 2, 3))),
  ];
}

describe.each(DEVICES)('bad input on %s', (device) => {
  const other = DEVICES.find((candidate) => candidate !== device) as (typeof DEVICES)[number];

  it('FeatureMap', async () => {
    await scope(async () => {
      const model = Tensor.zeros([2], { device });
      const index = Int32Array.of(3, -1, 0, 0);
      const good = { inFeatures: 4, outFeatures: 4, device };
      const make = (spec: unknown): unknown => Reflect.construct(FeatureMap, [spec]);
      const lists = (value: unknown): unknown => make({ ...good, lists: value });
      const four = (list: unknown): unknown => lists([[0], list, [], [1]]);
      const shrunk = (): Int32Array => {
        const buffer = resizable(16, 16);
        const values = new Int32Array(buffer);
        resize(buffer, 8);
        return values;
      };
      const maker = (call: (...args: never[]) => unknown) =>
        call as (...args: unknown[]) => unknown;
      const cases = [
        bad(1, 'no arguments', 'ERR_TYPE', () => Reflect.construct(FeatureMap, [])),
        bad(2, 'null', 'ERR_TYPE', () => make(null)),
        bad(3, 'a number', 'ERR_TYPE', () => make(3)),
        bad(3, 'an array', 'ERR_TYPE', () => make([4, 4])),
        bad(1, 'no sizes', 'ERR_TYPE', () => make({ index })),
        bad(30, 'neither lists nor index', 'ERR_VALUE', () => make(good)),
        bad(30, 'lists and index', 'ERR_VALUE', () =>
          make({ ...good, index, lists: [[], [], [], []] }),
        ),
        bad(33, 'a getter that throws', 'HOSTILE', () => make(hostile('inFeatures'))),
        ...countCases('inFeatures', (inFeatures) => make({ ...good, index, inFeatures })),
        ...countCases('outFeatures', (outFeatures) => make({ ...good, index, outFeatures })),
        ...indexCases((value) =>
          make(value === undefined ? { ...good, index: null } : { ...good, index: value }),
        ),
        bad(11, 'index: one short', 'ERR_SHAPE', () => make({ ...good, index: Int32Array.of(1) })),
        bad(12, 'index: one long', 'ERR_SHAPE', () => make({ ...good, index: new Int32Array(5) })),
        bad(8, 'index: shrunk', 'ERR_SHAPE', () => make({ ...good, index: shrunk() })),
        bad(12, 'index: of no features', 'ERR_VALUE', () =>
          make({ ...good, inFeatures: 0, index: Int32Array.of(-1, -1, -1, 0) }),
        ),
        bad(2, 'lists: null', 'ERR_TYPE', () => lists(null)),
        bad(3, 'lists: a number', 'ERR_TYPE', () => lists(4)),
        bad(5, 'lists: an array-like', 'ERR_TYPE', () => lists({ length: 4 })),
        bad(11, 'lists: one short', 'ERR_SHAPE', () => lists([[0], [1], [2]])),
        bad(12, 'lists: one long', 'ERR_SHAPE', () => lists([[0], [1], [2], [3], [0]])),
        bad(2, 'a list: null', 'ERR_TYPE', () => four(null)),
        bad(2, 'a list: a hole', 'ERR_TYPE', () => lists(Object.assign([[0]], { length: 4 }))),
        bad(3, 'a list: a number', 'ERR_TYPE', () => four(1)),
        bad(4, 'a list: a Float32Array', 'ERR_TYPE', () => four(Float32Array.of(1))),
        bad(3, 'an entry: a string', 'ERR_TYPE', () => four(['1'])),
        bad(15, 'an entry: -1', 'ERR_VALUE', () => four([-1])),
        bad(16, 'an entry: a fraction', 'ERR_VALUE', () => four([0.5])),
        bad(17, 'an entry: NaN', 'ERR_VALUE', () => four([Number.NaN])),
        bad(12, 'an entry: 4', 'ERR_VALUE', () => four([0, 4])),
        bad(12, 'an entry twice', 'ERR_VALUE', () => four([2, 0, 2])),
        bad(12, 'a list of more than all', 'ERR_SHAPE', () => four([0, 1, 2, 3, 0])),
        bad(12, 'a list that claims 2^52', 'ERR_SHAPE', () =>
          four(new Proxy([], { get: (_, key) => (key === 'length' ? 2 ** 52 : 1) })),
        ),
        bad(3, 'device: a number', 'ERR_TYPE', () => make({ ...good, index, device: 1 })),
        bad(32, 'device: unknown', 'ERR_DEVICE', () => make({ ...good, index, device: 'gpu' })),
        bad(1, 'gather: no arguments', 'ERR_TYPE', () => maker(FeatureMap.gather)()),
        ...indexCases((value) => maker(FeatureMap.gather)(value, 4, { device })),
        ...countCases('gather, inFeatures', (K) => maker(FeatureMap.gather)(index, K, { device })),
        bad(2, 'gather, options: null', 'ERR_TYPE', () => maker(FeatureMap.gather)(index, 4, null)),
        bad(1, 'permute: no arguments', 'ERR_TYPE', () => maker(FeatureMap.permute)()),
        ...indexCases((value) => maker(FeatureMap.permute)(value, { device })),
        bad(12, 'permute: one twice', 'ERR_VALUE', () =>
          FeatureMap.permute(Int32Array.of(0, 1, 1, 3), { device }),
        ),
        bad(15, 'permute: -1', 'ERR_VALUE', () =>
          FeatureMap.permute(Int32Array.of(0, -1), { device }),
        ),
        ...countCases('slice, inFeatures', (K) => maker(FeatureMap.slice)(K, 0, 1, { device })),
        ...countCases('slice, end', (end) => maker(FeatureMap.slice)(4, 0, end, { device })),
        ...countCases('slice, start', (start) => maker(FeatureMap.slice)(4, start, 4, { device })),
        bad(12, 'slice: past the end', 'ERR_VALUE', () => FeatureMap.slice(4, 0, 5, { device })),
        bad(15, 'slice: backwards', 'ERR_VALUE', () => FeatureMap.slice(4, 3, 2, { device })),
        ...countCases('repeat, inFeatures', (K) =>
          maker(FeatureMap.repeat)(K, 1, 'inner', { device }),
        ),
        ...countCases('repeat, times', (times) =>
          maker(FeatureMap.repeat)(4, times, 'inner', { device }),
        ),
        bad(14, 'repeat: no times', 'ERR_VALUE', () =>
          FeatureMap.repeat(4, 0, 'inner', { device }),
        ),
        bad(19, 'repeat: 2^32 features', 'ERR_VALUE', () =>
          FeatureMap.repeat(2 ** 16, 2 ** 16, 'inner', { device }),
        ),
        bad(3, 'repeat: a number', 'ERR_TYPE', () => maker(FeatureMap.repeat)(4, 2, 1, { device })),
        bad(35, 'repeat: unknown', 'ERR_VALUE', () =>
          maker(FeatureMap.repeat)(4, 2, 'middle', { device }),
        ),
        ...countCases('groupSum, inFeatures', (K) => maker(FeatureMap.groupSum)(K, 1, { device })),
        ...countCases('groupSum, groups', (J) => maker(FeatureMap.groupSum)(4, J, { device })),
        bad(14, 'groupSum: of nothing', 'ERR_VALUE', () => FeatureMap.groupSum(0, 1, { device })),
        bad(16, 'groupSum: uneven', 'ERR_VALUE', () => FeatureMap.groupSum(4, 3, { device })),
        ...countCases('transpose, rows', (rows) =>
          maker(FeatureMap.transpose)(rows, 2, { device }),
        ),
        ...countCases('transpose, cols', (cols) =>
          maker(FeatureMap.transpose)(2, cols, { device }),
        ),
        bad(19, 'transpose: 2^32 elements', 'ERR_VALUE', () =>
          FeatureMap.transpose(2 ** 16, 2 ** 16, { device }),
        ),
      ];
      await checkCases('FeatureMap', device, {
        watched: [model],
        cases,
        valid: () =>
          scope(async () => {
            const map = new FeatureMap({ ...good, index });
            return [await mapFeatures(Tensor.from([1, 2, 3, 4], [4], { device }), map).read()];
          }),
      });
      expect(covered(cases).size).toBeGreaterThanOrEqual(18);
    });
  });

  it('mapFeatures', async () => {
    await scope(async () => {
      const x = Tensor.randn([2, 4], { seed: 1, device });
      const c = Tensor.randn([2, 3], { seed: 2, device });
      const map = new FeatureMap({
        inFeatures: 4,
        outFeatures: 3,
        lists: [[0, 1], [3], []],
        device,
      });
      const gone = FeatureMap.slice(4, 0, 3, { device });
      gone.dispose();
      const elsewhere = FeatureMap.slice(4, 0, 3, { device: other });
      const call = (...args: unknown[]): unknown => callWith(mapFeatures, ...args);
      const run = (wrong: object): unknown => {
        const { x: given, ...options }: Record<string, unknown> = { x, ...wrong };
        return call(given, map, { c, ...options });
      };
      const cases = [
        bad(1, 'no arguments', 'ERR_TYPE', () => call()),
        bad(1, 'no map', 'ERR_TYPE', () => call(x)),
        ...operandCases(
          device,
          [
            {
              name: 'x',
              shape: [2, 4],
              leads: true,
              wrong: [
                [11, [2, 3]],
                [12, [2, 5]],
                [13, [2, 0]],
                [14, [0, 5]],
                [23, []],
              ],
            },
            {
              name: 'c',
              shape: [2, 3],
              optional: true,
              wrong: [
                [11, [2, 2]],
                [12, [3, 3]],
                [13, [0]],
                [14, [0, 3]],
                [22, [3, 2]],
                [23, [6]],
                [23, [1, 2, 3]],
              ],
            },
          ],
          run,
        ),
        ...impostors(map).map(([kind, what, value]) =>
          bad(kind, `map: ${what}`, 'ERR_TYPE', () => call(x, value)),
        ),
        bad(3, 'map: a tensor', 'ERR_TYPE', () => call(x, x)),
        bad(31, 'map: disposed', 'ERR_DISPOSED', () => call(x, gone)),
        bad(32, `map: on ${other}`, 'ERR_DEVICE', () => call(x, elsewhere)),
        ...factorCases('alpha', run),
        ...factorCases('beta', run),
        bad(24, 'dtype: f64', 'ERR_DTYPE', () => run({ dtype: 'f64' })),
        bad(3, 'dtype: 3', 'ERR_TYPE', () => run({ dtype: 3 })),
        bad(2, 'options: null', 'ERR_TYPE', () => call(x, map, null)),
        bad(33, 'options: a getter that throws', 'HOSTILE', () => call(x, map, hostile('alpha'))),
        bad(31, 'map: disposed by a getter of the options', 'ERR_DISPOSED', () => {
          const victim = FeatureMap.slice(4, 0, 3, { device });
          const options = Object.defineProperty({}, 'alpha', {
            enumerable: true,
            get() {
              victim.dispose();
              return 1;
            },
          });
          return call(x, victim, options);
        }),
      ];
      await checkCases('mapFeatures', device, {
        watched: [x, c],
        cases,
        valid: () => scope(async () => [await mapFeatures(x, map, { c }).read()]),
      });
    });
  });

  it('blockMatmul, blockMatmulInputGrad, blockWeightGrad', async () => {
    await scope(async () => {
      const x = Tensor.randn([2, 3, 4], { seed: 1, device });
      const dy = Tensor.randn([2, 3, 5], { seed: 2, device });
      const w = Tensor.randn([3, 5, 4], { seed: 3, device });
      const activations = (name: string, last: number) => ({
        name,
        shape: [2, 3, last],
        leads: true,
        wrong: [
          [11, [2, 3, last - 1]],
          [12, [2, 3, last + 1]],
          [13, [2, 3, 0]],
          [14, [2, 0, last + 2]],
          [22, [2, 2, last]],
          [22, [2, 4, last]],
          [23, [6 * last]],
          [23, []],
        ] as const,
      });
      const weight = {
        name: 'w',
        shape: [3, 5, 4],
        wrong: [
          [11, [2, 5, 4]],
          [12, [4, 5, 4]],
          [13, [0, 5, 4]],
          [22, [3, 6, 3]],
          [22, [3, 4, 5]],
          [23, [15, 4]],
          [23, [1, 3, 5, 4]],
          [23, []],
        ] as const,
      };
      const halves = (name: string) => [
        bad(24, `${name}: f16 beside bf16`, 'ERR_DTYPE', () =>
          callWith(
            name === 'x' ? blockMatmul : blockMatmulInputGrad,
            (name === 'x' ? x : dy).to({ dtype: 'f16' }),
            w.to({ dtype: 'bf16' }),
          ),
        ),
      ];
      const cases = [
        bad(1, 'no arguments', 'ERR_TYPE', () => callWith(blockMatmul)),
        bad(1, 'no w', 'ERR_TYPE', () => callWith(blockMatmul, x)),
        ...operandCases(device, [activations('x', 4), weight], (wrong) =>
          callWith(blockMatmul, ...Object.values({ x, w, ...wrong })),
        ),
        ...halves('x'),
        bad(1, 'input gradient: no arguments', 'ERR_TYPE', () => callWith(blockMatmulInputGrad)),
        bad(1, 'input gradient: no w', 'ERR_TYPE', () => callWith(blockMatmulInputGrad, dy)),
        ...operandCases(device, [activations('dy', 5), weight], (wrong) =>
          callWith(blockMatmulInputGrad, ...Object.values({ dy, w, ...wrong })),
        ),
        ...halves('dy'),
        bad(1, 'weight gradient: no arguments', 'ERR_TYPE', () => callWith(blockWeightGrad)),
        bad(1, 'weight gradient: no x', 'ERR_TYPE', () => callWith(blockWeightGrad, dy)),
        ...operandCases(
          device,
          [
            {
              ...activations('dy', 5),
              wrong: [
                [11, [2, 2, 5]],
                [12, [3, 3, 5]],
                [23, [30]],
                [23, []],
              ],
            },
            {
              name: 'x',
              shape: [2, 3, 4],
              wrong: [
                [11, [2, 2, 4]],
                [12, [3, 3, 4]],
                [22, [3, 2, 4]],
                [23, [6, 4]],
                [23, []],
              ],
            },
          ],
          (wrong) => callWith(blockWeightGrad, ...Object.values({ dy, x, ...wrong })),
        ),
        bad(21, 'a result of 2^64 elements', 'ERR_SHAPE', () =>
          blockMatmul(
            Tensor.zeros([2 ** 32, 1, 0], { device }),
            Tensor.zeros([1, 2 ** 32, 0], { device }),
          ),
        ),
        bad(34, 'a result of 2^40 elements', 'ERR_OOM', () =>
          blockMatmul(
            Tensor.zeros([2 ** 20, 1, 0], { device }),
            Tensor.zeros([1, 2 ** 20, 0], { device }),
          ),
        ),
        bad(34, 'a gradient of 2^40 elements', 'ERR_OOM', () =>
          blockWeightGrad(
            Tensor.zeros([0, 1, 2 ** 20], { device }),
            Tensor.zeros([0, 1, 2 ** 20], { device }),
          ),
        ),
      ];
      await checkCases('blocks', device, {
        watched: [x, dy, w],
        cases,
        valid: () =>
          scope(async () => [
            await blockMatmul(x, w).read(),
            await blockMatmulInputGrad(dy, w).read(),
            await blockWeightGrad(dy, x).read(),
          ]),
      });
    });
  });
});
