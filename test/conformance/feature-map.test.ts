// mapFeatures against float64, and the maps that FeatureMap's makers give, on every device.
import { describe, expect, it } from 'vitest';
import {
  checkGradients,
  type Device,
  type DType,
  FeatureMap,
  mapFeatures,
  memoryUsage,
  scope,
  setThreads,
  synchronize,
  Tensor,
} from '../../lib/index.js';
import { source } from '../oracle/inputs.js';
import { bound, exact, type Matrix, mapFeatures64, matrix, roundTo } from '../oracle.js';
import { DEVICES, DTYPES, operand, seeded, tensorOf } from './operands.js';

const PAIRS = DEVICES.flatMap((device) => DTYPES.map((dtype) => ({ device, dtype })));
const other = (dtype: DType, step: number): DType =>
  DTYPES[(DTYPES.indexOf(dtype) + step) % DTYPES.length] as DType;

/** Lists of 0 to `most` inputs each; every input may be in several. */
function randomLists(K: number, J: number, most: number, seed: number): number[][] {
  const from = source(seed);
  return Array.from({ length: J }, () => {
    const list = new Set<number>();
    const count = from.integer(0, Math.min(most, K));
    for (let i = 0; i < count; i++) list.add(from.integer(0, K - 1));
    return [...list];
  });
}

/** The transposed lists. */
function transposedLists(lists: readonly number[][], K: number): number[][] {
  const back: number[][] = Array.from({ length: K }, () => []);
  for (const [j, list] of lists.entries()) for (const t of list) (back[t] as number[]).push(j);
  return back;
}

/** [M, K, J, entries of a list]: whole runs and ragged, more rows than a block, long lists. */
const SHAPES = [
  [0, 5, 7, 3],
  [3, 0, 4, 0],
  [3, 4, 0, 2],
  [1, 1, 1, 1],
  [5, 17, 1, 9],
  [1, 300, 260, 1],
  [7, 33, 40, 4],
  [65, 64, 5, 40],
  [300, 16, 16, 1],
  [2, 4099, 3, 4000],
  [2, 130, 2500, 3],
] as const;

describe.each(PAIRS)('$device, $dtype', ({ device, dtype }) => {
  it('mapFeatures and its adjoint', async () => {
    for (const [turn, [M, K, J, most]] of SHAPES.entries()) {
      await scope(async () => {
        const lists = randomLists(K, J, most, seeded(turn, 7));
        const map = new FeatureMap({ inFeatures: K, outFeatures: J, lists, device });
        const x = operand(M, K, { seed: seeded(turn, 1), dtype, device });
        const withC = turn % 2 === 0;
        const cType = other(dtype, turn);
        const c = operand(M, J, { seed: seeded(turn, 2), dtype: cType, device });
        const type = other(dtype, turn % 3);
        const y = mapFeatures(x.tensor, map, {
          ...(withC ? { c: c.tensor } : {}),
          alpha: 1.25,
          beta: -0.75,
          ...(turn % 3 === 0 ? {} : { dtype: type }),
        });
        expect([y.shape, y.dtype]).toEqual([[M, J], type]);
        const expected = mapFeatures64(x.matrix, lists, withC ? c.matrix : undefined, 1.25, -0.75);
        const some = { mostlyZeros: 'lists may be empty' };
        bound(`y [${M}, ${K} -> ${J}]`, await y.read(), expected, { dtype: type, ...some });

        const dy = operand(M, J, { seed: seeded(turn, 3), dtype, device });
        const dx = mapFeatures(dy.tensor, map.adjoint);
        const back = mapFeatures64(dy.matrix, transposedLists(lists, K));
        bound(`dx [${M}, ${J} -> ${K}]`, await dx.read(), back, { dtype, ...some });
      });
    }
  });

  it('sums of 65,536 values that are nearly all of one sign stay within the bound', async () => {
    await scope(async () => {
      const from = source(1);
      const data = Array.from({ length: 65_536 }, () => roundTo(dtype, 1 + from.uniform()));
      const x: Matrix = { rows: 1, cols: data.length, data: Float64Array.from(data) };
      const map = FeatureMap.groupSum(data.length, 1, { device });
      const y = await mapFeatures(tensorOf(x, { dtype, device }), map, { dtype: 'f32' }).read();
      bound('sum', y, mapFeatures64(x, [data.map((_, t) => t)]));
    });
  });

  it('leading dimensions fold; copies keep NaN, infinities and signed zeros', async () => {
    await scope(async () => {
      const values = [-0, 0, Number.NaN, Infinity, -Infinity, 1.5];
      const x = Tensor.from(values, [1, 2, 3], { dtype, device });
      const map = FeatureMap.gather(Int32Array.of(2, -1, 0, 0), 3, { device });
      const y = mapFeatures(x, map);
      expect(y.shape).toEqual([1, 2, 4]);
      const sums = new FeatureMap({
        inFeatures: 3,
        outFeatures: 3,
        lists: [[0], [], [2, 1]],
        device,
      });
      const right = [Number.NaN, 0, -0, -0, 1.5, 0, Infinity, Infinity];
      exact('gather', await y.read(), right);
      exact('lists', await mapFeatures(x, sums).read(), [
        -0,
        0,
        Number.NaN,
        Infinity,
        0,
        -Infinity,
      ]);
    });
  });

  it('the same bits on any number of threads, and of a row in any batch', async () => {
    await scope(async () => {
      const [M, K, J] = [513, 331, 200];
      const lists = randomLists(K, J, 100, 5);
      const map = new FeatureMap({ inFeatures: K, outFeatures: J, lists, device });
      const order = FeatureMap.repeat(K, 3, 'outer', { device });
      const x = operand(M, K, { seed: 1, dtype, device });
      const c = operand(M, J, { seed: 2, device }).tensor;
      const run = async (of: Tensor, summand?: Tensor): Promise<Float32Array[]> => [
        await mapFeatures(of, map, { alpha: 0.3, ...(summand ? { c: summand } : {}) }).read(),
        await mapFeatures(of, order).read(),
      ];
      const expected = await run(x.tensor, c);
      for (const threads of [1, 2, 3, 8]) {
        setThreads(threads);
        for (const [i, values] of (await run(x.tensor, c)).entries()) {
          exact(`result ${i} on ${threads} threads`, values, expected[i] as Float32Array);
        }
      }
      const whole = await run(x.tensor);
      const part = tensorOf(matrix(2, K, x.matrix.data.slice(77 * K, 79 * K)), { dtype, device });
      const rows = await run(part);
      exact('lists', rows[0] as Float32Array, (whole[0] as Float32Array).slice(77 * J, 79 * J));
    });
  });
});

describe.each(DEVICES)('FeatureMap on %s', (device) => {
  const values = (n: number): number[] => Array.from({ length: n }, (_, i) => i + 1);
  const mapped = async (map: FeatureMap): Promise<number[]> => {
    using x = Tensor.from(values(map.inFeatures), [map.inFeatures], { device });
    using y = mapFeatures(x, map);
    return Array.from(await y.read());
  };

  it('the makers', async () => {
    await scope(async () => {
      const at = { device };
      expect(await mapped(FeatureMap.gather(Int32Array.of(2, -1, 0), 3, at))).toEqual([3, 0, 1]);
      expect(await mapped(FeatureMap.slice(5, 1, 4, at))).toEqual([2, 3, 4]);
      expect(await mapped(FeatureMap.slice(5, 5, 5, at))).toEqual([]);
      expect(await mapped(FeatureMap.permute(Int32Array.of(2, 0, 1), at))).toEqual([3, 1, 2]);
      expect(await mapped(FeatureMap.repeat(2, 3, 'inner', at))).toEqual([1, 1, 1, 2, 2, 2]);
      expect(await mapped(FeatureMap.repeat(2, 3, 'outer', at))).toEqual([1, 2, 1, 2, 1, 2]);
      expect(await mapped(FeatureMap.groupSum(6, 2, at))).toEqual([6, 15]);
      expect(await mapped(FeatureMap.groupSum(3, 3, at))).toEqual([1, 2, 3]);
      expect(await mapped(FeatureMap.transpose(2, 3, at))).toEqual([1, 4, 2, 5, 3, 6]);
      const slice = FeatureMap.slice(5, 1, 4, at).adjoint;
      expect(await mapped(slice)).toEqual([0, 1, 2, 3, 0]);
      expect(await mapped(FeatureMap.repeat(2, 3, 'inner', at).adjoint)).toEqual([6, 15]);
      expect(await mapped(FeatureMap.repeat(2, 3, 'outer', at).adjoint)).toEqual([9, 12]);
      expect(await mapped(FeatureMap.transpose(2, 3, at).adjoint)).toEqual([1, 3, 5, 2, 4, 6]);
      // Sums whose lists are single give way to copies.
      const single = new FeatureMap({ inFeatures: 3, outFeatures: 2, lists: [[2], []], device });
      expect([single.entries, single.byteLength]).toEqual([2, 8]);
      expect(await mapped(single)).toEqual([3, 0]);
      expect(await mapped(single.adjoint)).toEqual([0, 0, 1]);
    });
  });

  it('owns its memory and its adjoint', async () => {
    await synchronize(device);
    const before = memoryUsage(device);
    const list = Int32Array.of(1, 0);
    const map = new FeatureMap({ inFeatures: 2, outFeatures: 2, index: list, device });
    list[0] = 0;
    const { adjoint } = map;
    expect(map.adjoint).toBe(adjoint);
    expect(adjoint.adjoint).toBe(map);
    expect([map.inFeatures, map.outFeatures, map.device, map.entries]).toEqual([2, 2, device, 2]);
    expect(await mapped(map)).toEqual([2, 1]);
    // A scope frees neither the adjoint of a map from outside, nor the map.
    const again = new FeatureMap({ inFeatures: 2, outFeatures: 1, lists: [[0, 1]], device });
    scope(() => again.adjoint);
    expect([again.disposed, again.adjoint.disposed]).toEqual([false, false]);
    again.dispose();
    adjoint.dispose();
    expect([map.disposed, adjoint.disposed]).toEqual([false, true]);
    const second = map.adjoint;
    expect(second).not.toBe(adjoint);
    map.dispose();
    map.dispose();
    expect([map.disposed, second.disposed]).toEqual([true, true]);
    expect(() => map.adjoint).toThrow(expect.objectContaining({ code: 'ERR_DISPOSED' }));
    const inner = scope(() => FeatureMap.slice(4, 0, 2, { device }));
    expect(inner.disposed).toBe(false);
    inner.dispose();
    let lost: FeatureMap | undefined;
    scope(() => {
      lost = FeatureMap.slice(4, 0, 2, { device });
    });
    expect(lost?.disposed).toBe(true);
    await synchronize(device);
    const { liveBytes, liveTensors } = memoryUsage(device);
    expect([liveBytes, liveTensors]).toEqual([before.liveBytes, before.liveTensors]);
  });

  it('disposing right after queueing is legal', async () => {
    await scope(async () => {
      const x = Tensor.from(values(4000), [1, 4000], { device });
      for (let i = 0; i < 10; i++) {
        const map = FeatureMap.slice(4000, i, i + 2000, { device });
        const y = mapFeatures(x, map);
        map.dispose();
        FeatureMap.gather(new Int32Array(2000).fill(-1), 4000, { device });
        expect((await y.read())[0]).toBe(i + 1);
      }
    });
  });
});

it('the adjoint is the gradient', () => {
  scope(() => {
    const device: Device = 'reference';
    const lists = randomLists(12, 9, 5, 3);
    const map = new FeatureMap({ inFeatures: 12, outFeatures: 9, lists, device });
    const report = checkGradients({
      inputs: { x: Tensor.randn([3, 12], { seed: 1, device }) },
      forward: ({ x }) => mapFeatures(x as Tensor, map, { alpha: 1.5 }),
      backward: (dy) => ({ x: mapFeatures(dy, map.adjoint, { alpha: 1.5 }) }),
    });
    expect(report.every(({ passed }) => passed)).toBe(true);
  });
});
