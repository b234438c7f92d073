// multiplyAdd, mapTensor, sumProduct against float64: every dtype, shape of operand and function.
import { describe, expect, it } from 'vitest';
import {
  type DType,
  MAP_KINDS,
  mapTensor,
  multiplyAdd,
  scope,
  setThreads,
  sumProduct,
  Tensor,
} from '../../lib/index.js';
import { source } from '../oracle/inputs.js';
import {
  bound,
  exact,
  largest,
  MAP64,
  type Matrix,
  multiplyAdd64,
  roundTo,
  sameValues,
  sumProduct64,
  ulp,
} from '../oracle.js';
import { DEVICES, DTYPES, type Operand, operand, seeded, tensorOf } from './operands.js';

const PAIRS = DEVICES.flatMap((device) => DTYPES.map((dtype) => ({ device, dtype })));
// M, N in and out of whole vectors; rows of one element, and many of them.
const SHAPES: readonly (readonly [M: number, N: number])[] = [
  [0, 5],
  [5, 0],
  [1, 1],
  [1, 172],
  [3, 1],
  [3, 8],
  [17, 64],
  [64, 3],
  [65, 128],
  [300, 16],
  [2, 4099],
];
const FORMS = ['none', 'full', 'row', 'column', 'one'] as const;
type Form = (typeof FORMS)[number];

const sizeOf = (form: Form, M: number, N: number): readonly [number, number] =>
  form === 'full' ? [M, N] : form === 'row' ? [1, N] : form === 'column' ? [M, 1] : [1, 1];
const other = (dtype: DType, step: number): DType =>
  DTYPES[(DTYPES.indexOf(dtype) + step) % DTYPES.length] as DType;

describe.each(PAIRS)('$device, $dtype', ({ device, dtype }) => {
  it('multiplyAdd', async () => {
    let turn = 0;
    for (const [M, N] of SHAPES) {
      for (const b of FORMS) {
        for (const c of FORMS) {
          await scope(async () => {
            turn += 1;
            const make = (form: Form, i: number): Operand | undefined => {
              if (form === 'none') return undefined;
              const [rows, cols] = sizeOf(form, M, N);
              const shape = form === 'one' ? [1] : form === 'row' && i === 2 ? [N] : [rows, cols];
              const type = other(dtype, turn + i);
              return operand(rows, cols, { seed: seeded(turn, i), dtype: type, device, shape });
            };
            const a = operand(M, N, { seed: seeded(turn, 1), dtype, device });
            const [left, right] = [make(b, 2), make(c, 3)];
            const type = other(dtype, turn % 2);
            const y = multiplyAdd({
              a: a.tensor,
              ...(left === undefined ? {} : { b: left.tensor }),
              ...(right === undefined ? {} : { c: right.tensor }),
              alpha: 1.25,
              beta: -0.75,
              ...(turn % 2 === 0 ? {} : { dtype: type }),
            });
            expect([y.shape, y.dtype]).toEqual([[M, N], type]);
            const expected = multiplyAdd64(a.matrix, left?.matrix, right?.matrix, 1.25, -0.75);
            const name = `y [${M}, ${N}] b ${b} c ${c}`;
            bound(name, await y.read(), expected, { dtype: type });
          });
        }
      }
    }
  });

  it('multiplyAdd and sumProduct fold leading dimensions', async () => {
    await scope(async () => {
      const fill = (i: number, shape: number[]) => ({ seed: i, dtype, device, shape });
      const a = operand(6, 8, fill(1, [2, 3, 8]));
      const b = operand(6, 1, fill(2, [2, 3, 1]));
      const folded = operand(6, 1, fill(2, [6, 1]));
      const y = multiplyAdd({ a: a.tensor, b: b.tensor });
      expect(y.shape).toEqual([2, 3, 8]);
      const expected = multiplyAdd64(a.matrix, b.matrix, undefined, 1, 1);
      bound('y', await y.read(), expected, { dtype });
      exact('folded', await multiplyAdd({ a: a.tensor, b: folded.tensor }).read(), await y.read());
      const sums = sumProduct(a.tensor, b.tensor, { axis: 1 });
      expect(sums.shape).toEqual([6]);
      bound('sums', await sums.read(), sumProduct64(a.matrix, b.matrix, 1));
    });
  });

  it('sumProduct', async () => {
    let turn = 0;
    for (const [M, N] of [...SHAPES, [4099, 2] as const, [1000, 70] as const]) {
      for (const form of FORMS) {
        for (const axis of [0, 1] as const) {
          await scope(async () => {
            turn += 1;
            const a = operand(M, N, { seed: seeded(turn, 1), dtype, device });
            const [rows, cols] = sizeOf(form, M, N);
            const type = other(dtype, turn);
            const b =
              form === 'none'
                ? undefined
                : operand(rows, cols, { seed: seeded(turn, 2), dtype: type, device });
            const out = sumProduct(a.tensor, b?.tensor, { axis });
            expect([out.shape, out.dtype]).toEqual([[axis === 0 ? N : M], 'f32']);
            const empty = M * N === 0 ? { mostlyZeros: 'sums of nothing' } : {};
            const name = `axis ${axis} of [${M}, ${N}] b ${form}`;
            bound(name, await out.read(), sumProduct64(a.matrix, b?.matrix, axis), empty);
          });
        }
      }
    }
  });

  it('sums of 65,536 values that are nearly all of one sign stay within the bound', async () => {
    await scope(async () => {
      const n = 65_536;
      const from = source(1);
      const data = Array.from({ length: n }, () => roundTo(dtype, 1 + from.uniform()));
      for (const axis of [0, 1] as const) {
        const a: Matrix = {
          rows: axis === 0 ? n : 1,
          cols: axis === 0 ? 1 : n,
          data: Float64Array.from(data),
        };
        const tensor = tensorOf(a, { dtype, device });
        const out = await sumProduct(tensor, tensor, { axis }).read();
        bound(`axis ${axis}`, out, sumProduct64(a, a, axis));
      }
    });
  });

  it.each(MAP_KINDS)('mapTensor %s within 0.501 ulp of f32', async (kind) => {
    const f = MAP64[kind] as (x: number) => number;
    const from = source(7);
    const values: number[] = [0, -0, 1, -1, 0.5, 2, Number.NaN, Infinity, -Infinity];
    // All sizes that the dtype has, denormals too, and where exp and its kin are not yet flat.
    const top = Math.log2(largest(dtype));
    for (let i = 0; i < 3000; i++) {
      const sign = from.uniform() < 0.5 ? -1 : 1;
      values.push(sign * 2 ** ((2 * from.uniform() - 1) * top));
      values.push(sign * 110 * from.uniform());
      values.push(sign * from.uniform());
      values.push(1 + sign * 2 ** (-23 * from.uniform()));
      values.push(sign * ulp(dtype, 0) * from.integer(1, 100));
    }
    const x = values.map((value) => roundTo(dtype, value));
    await scope(async () => {
      for (const type of dtype === 'f32' ? DTYPES : [dtype]) {
        const a: Matrix = { rows: 1, cols: x.length, data: Float64Array.from(x) };
        const y = mapTensor(tensorOf(a, { dtype, device, shape: [x.length] }), kind, {
          dtype: type,
        });
        expect([y.shape, y.dtype]).toEqual([[x.length], type]);
        const got = await y.read();
        for (const [i, value] of x.entries()) {
          const expected = f(value);
          const actual = got[i] as number;
          if (expected === 0 || !Number.isFinite(expected)) {
            exact(`${kind}(${value})`, [actual], [expected]);
            continue;
          }
          // In f32 first, then to the dtype: half a unit of each.
          const single = 0.501 * ulp('f32', expected);
          const limit =
            type === 'f32' ? single : single + ulp(type, Math.abs(expected) + single) / 2;
          if (Math.abs(expected) + limit > largest(type)) {
            const infinite = Math.abs(actual) === Infinity;
            expect(infinite || Math.abs(actual - expected) <= limit).toBe(true);
            continue;
          }
          const error = Math.abs(actual - expected);
          if (!(error <= limit)) {
            throw new Error(`${kind}(${value}): got ${actual}, expected ${expected}, in ${type}`);
          }
        }
      }
    });
  });

  it('NaN and infinities stay in their own element, row or column', async () => {
    await scope(async () => {
      const [M, N] = [9, 21];
      for (const value of [Number.NaN, Infinity]) {
        const clean = operand(M, N, { seed: 1, dtype, device });
        const poked = clean.matrix.data.map((old, i) => (i === 4 * N + 7 ? value : old));
        const a = tensorOf({ rows: M, cols: N, data: poked }, { dtype, device });
        const odd = (values: Float32Array): number[] =>
          [...values.keys()].filter((i) => !Number.isFinite(values[i]));
        const b = operand(1, N, { seed: 2, device }).tensor;
        expect(odd(await multiplyAdd({ a, b }).read())).toEqual([4 * N + 7]);
        expect(odd(await multiplyAdd({ a: clean.tensor, c: a }).read())).toEqual([4 * N + 7]);
        expect(odd(await mapTensor(a, 'square').read())).toEqual([4 * N + 7]);
        expect(odd(await sumProduct(a, b, { axis: 0 }).read())).toEqual([7]);
        expect(odd(await sumProduct(a, b, { axis: 1 }).read())).toEqual([4]);
      }
    });
  });

  it('the same bits on any number of threads, and of a row in any batch', async () => {
    await scope(async () => {
      const [M, N] = [513, 331];
      const a = operand(M, N, { seed: 1, dtype, device });
      const b = operand(1, N, { seed: 2, device }).tensor;
      const c = operand(M, 1, { seed: 3, device }).tensor;
      const run = async (): Promise<Float32Array[]> => [
        await multiplyAdd({ a: a.tensor, b, c, alpha: 0.3 }).read(),
        await mapTensor(a.tensor, 'tanh').read(),
        await sumProduct(a.tensor, b, { axis: 0 }).read(),
        await sumProduct(a.tensor, b, { axis: 1 }).read(),
      ];
      const expected = await run();
      for (const threads of [1, 2, 3, 8]) {
        setThreads(threads);
        for (const [i, values] of (await run()).entries()) {
          exact(`result ${i} on ${threads} threads`, values, expected[i] as Float32Array);
        }
      }
      for (const [first, count] of [
        [0, 1],
        [77, 2],
        [500, 13],
      ] as const) {
        const data = a.matrix.data.slice(first * N, (first + count) * N);
        const part = tensorOf({ rows: count, cols: N, data }, { dtype, device });
        const sums = await sumProduct(part, b, { axis: 1 }).read();
        exact('row sums', sums, (expected[3] as Float32Array).slice(first, first + count));
      }
    });
  });
});

describe.each(DTYPES)('%s', (dtype) => {
  it('mapTensor has the same bits on every device but reference', async () => {
    const from = source(11);
    const x = Array.from({ length: 4000 }, () => roundTo(dtype, 40 * (from.uniform() - 0.5)));
    const devices = DEVICES.filter((device) => device !== 'reference');
    for (const kind of MAP_KINDS) {
      const results = await Promise.all(
        devices.map((device) =>
          scope(async () => mapTensor(Tensor.from(x, [4000], { dtype, device }), kind).read()),
        ),
      );
      for (const values of results) sameValues(kind, values, results[0] as Float32Array);
    }
  });
});
