// An update that is made tile by tile: its values, its gradients, the memory that it takes, and the
// gradient of a dense weight in tiles.
import { describe, expect, it } from 'vitest';
import {
  baseProduct,
  checkGradients,
  type Device,
  denseRows,
  denseUpdate,
  matmul,
  matmulInputGrad,
  memoryUsage,
  multiplyAdd,
  quantize,
  rowStep,
  scope,
  synchronize,
  Tape,
  Tensor,
  type Value,
  weightGrad,
  weightGradTiles,
} from '../../lib/index.js';
import { DEVICES, DTYPES } from '../conformance/operands.js';

const [M, N, K, R] = [5, 22, 12, 3];

const draw = (shape: number[], seed: number, device: Device): Tensor =>
  Tensor.randn(shape, { seed, device });

/** (a1 · b1) ⊙ (a2 · b2) + c, with a row vector c. */
function hadamard(tape: Tape, at: Readonly<Record<string, Value>>, x: Value, tileRows?: number) {
  const { a1, a2, b1, b2, c } = at as Record<'a1' | 'a2' | 'b1' | 'b2' | 'c', Value>;
  return denseUpdate(tape, x, {
    N,
    rows: { a1, a2 },
    inputs: { b1, b2, c },
    ...(tileRows === undefined ? {} : { tileRows }),
    tile: (t, p) => t.add(t.multiply(t.product(p.a1, p.b1), t.product(p.a2, p.b2)), p.c),
  });
}

const operandsOf = (device: Device) => ({
  x: draw([M, K], 1, device),
  a1: draw([N, R], 2, device),
  a2: draw([N, R], 3, device),
  b1: draw([R, K], 4, device),
  b2: draw([R, K], 5, device),
  c: draw([K], 6, device),
});

function runOf(device: Device, tileRows?: number): Record<string, Tensor> {
  return scope(() => {
    const operands = operandsOf(device);
    const tape = new Tape();
    const at = Object.fromEntries(
      Object.entries(operands).map(([name, tensor]) => [name, tape.variable(tensor)]),
    );
    const y = hadamard(tape, at, at.x as Value, tileRows);
    const wanted = Object.values(at);
    const gradients = tape.gradients('test', y, draw([M, N], 9, device), wanted);
    const named = Object.keys(operands).map((name, i) => [name, gradients[i]]);
    return { y: y.tensor.reshape(y.shape), ...Object.fromEntries(named) };
  });
}

describe.each(DEVICES)('denseUpdate on %s', (device) => {
  it('has the values of the whole product, in tiles of any size', async () => {
    await scope(async () => {
      const { x, a1, a2, b1, b2, c } = operandsOf(device);
      const whole = multiplyAdd({ a: matmulInputGrad(a1, b1), b: matmulInputGrad(a2, b2), c });
      const expected = await matmul(x, whole).read();
      for (const rows of [1, 4, 5, N, 100]) {
        const y = await (runOf(device, rows).y as Tensor).read();
        y.forEach((v, i) => {
          expect(v).toBeCloseTo(expected[i] as number, 4);
        });
      }
    });
  });

  it('has gradients that do not depend on the tiles, and the same bits again', async () => {
    await scope(async () => {
      const read = async (rows: number) =>
        Promise.all(Object.values(runOf(device, rows)).map((tensor) => tensor.read()));
      const [whole, tiled, again] = [await read(N), await read(4), await read(4)];
      expect(again).toEqual(tiled);
      tiled.forEach((values, i) => {
        values.forEach((v, j) => {
          expect(v).toBeCloseTo(whole[i]?.[j] as number, 3);
        });
      });
    });
  });

  it('holds one tile at a time, going forward and backward', async () => {
    await scope(async () => {
      const [rows, large] = [8, 512];
      const size = { N: large, K: 256 };
      const whole = size.N * size.K * 4;
      const [x, a, b] = [
        draw([2, 256], 1, device),
        draw([512, 2], 2, device),
        draw([2, 256], 3, device),
      ];
      const dy = draw([2, 512], 4, device);
      await synchronize(device);
      const before = memoryUsage(device).liveBytes;
      let most = 0;
      let calls = 0;
      const tape = new Tape();
      const [xv, av, bv] = [tape.variable(x), tape.variable(a), tape.variable(b)];
      const y = denseUpdate(tape, xv, {
        N: size.N,
        tileRows: rows,
        rows: { a: av },
        inputs: { b: bv },
        tile: (t, p) => {
          const update = t.product(p.a, p.b);
          // Reading waits for what is queued, and for what it frees.
          update.tensor.readSync();
          most = Math.max(most, memoryUsage(device).liveBytes - before);
          calls += 1;
          return update;
        },
      });
      tape.gradients('test', y, dy, [xv, av, bv]);
      expect(calls).toBe((2 * size.N) / rows);
      expect(most).toBeLessThan(whole / 4);
    });
  });

  it.each(DTYPES)('multiplies with the frozen base, on the way and back, in %s', async (dtype) => {
    await scope(async () => {
      const w = draw([N, K], 1, device).to({ dtype });
      const a = draw([R, N], 2, device);
      const tape = new Tape();
      const av = tape.variable(a);
      const y = baseProduct(tape, av, w);
      const dy = draw([R, K], 3, device);
      const [da] = tape.gradients('test', y, dy, [av]);
      expect(await y.tensor.read()).toEqual(await matmulInputGrad(a, w).read());
      expect(await (da as Tensor).read()).toEqual(await matmul(dy, w).read());
    });
  });
});

describe('denseUpdate', () => {
  it('has the gradients that differences give', () => {
    scope(() => {
      const forward = (inputs: Record<string, Tensor>) => {
        const tape = new Tape();
        const at = Object.fromEntries(
          Object.entries(inputs).map(([name, tensor]) => [name, tape.variable(tensor)]),
        );
        return { tape, at, y: hadamard(tape, at, at.x as Value, 4) };
      };
      const reports = checkGradients({
        inputs: operandsOf('reference'),
        forward: (inputs) => forward(inputs).y.tensor,
        backward: (dy, inputs) => {
          const { tape, at, y } = forward(inputs);
          const gradients = tape.gradients('test', y, dy, Object.values(at));
          return Object.fromEntries(
            Object.keys(at).map((name, i) => [name, gradients[i] as Tensor]),
          );
        },
      });
      expect(reports.map(({ name }) => name)).toEqual(['x', 'a1', 'a2', 'b1', 'b2', 'c']);
      expect(reports.filter(({ passed }) => !passed)).toEqual([]);
    });
  });

  it('takes rows of a quantised base where its scales begin', () => {
    scope(() => {
      const w = quantize(draw([40, 48], 1, 'cpu'), { format: 'nf4', blocksize: 64 });
      const tape = new Tape({ recording: false });
      const begins: number[] = [];
      denseUpdate(tape, tape.constant(draw([2, 48], 2, 'cpu')), {
        N: 40,
        tileRows: 3 * rowStep(w),
        tile: (t, _, begin, end) => {
          begins.push(begin);
          return t.own(denseRows(w, begin, end));
        },
      });
      expect(begins).toEqual([0, 12, 24, 36]);
    });
  });

  it('refuses a tile of another shape, rows that are not N, and sizes that are none', () => {
    scope(() => {
      const tape = new Tape();
      const x = tape.variable(draw([2, K], 1, 'cpu'));
      const tile = (t: Tape) => t.own(draw([3, K], 2, 'cpu'));
      expect(() => denseUpdate(tape, x, { N: 8, tile })).toThrow(/the tile must be of shape/);
      const rows = { a: tape.variable(draw([9, 2], 2, 'cpu')) };
      expect(() => denseUpdate(tape, x, { N: 8, rows, tile })).toThrow(/rows\.a/);
      for (const bad of [0, -1, 1.5, Number.NaN]) {
        expect(() => denseUpdate(tape, x, { N: bad, tile })).toThrow(/\bN\b/);
        expect(() => denseUpdate(tape, x, { N: 8, tileRows: bad, tile })).toThrow(/tileRows/);
        expect(() => denseUpdate(tape, x, { N: 8, step: bad, tile })).toThrow(/step/);
      }
    });
  });
});

describe.each(DEVICES)('weightGradTiles on %s', (device) => {
  it('gives every row of the gradient once, and frees what is not returned', async () => {
    await scope(async () => {
      const dy = draw([2, 3, N], 1, device);
      const x = draw([2, 3, K], 2, device);
      const whole = await weightGrad(dy, x).read();
      const p = draw([2, K], 3, device);
      await synchronize(device);
      const before = memoryUsage(device).liveTensors;
      const seen: number[][] = [];
      const parts = weightGradTiles(dy, x, {
        tileRows: 5,
        consume: (tile, begin, end) => {
          seen.push([begin, end]);
          return { tile, projected: matmul(tile, p) };
        },
      });
      expect(seen).toEqual([
        [0, 5],
        [5, 10],
        [10, 15],
        [15, 20],
        [20, 22],
      ]);
      await synchronize(device);
      expect(memoryUsage(device).liveTensors - before).toBe(2 * seen.length);
      const rows = await Promise.all(parts.map(({ tile }) => tile.read()));
      const joined = Float32Array.from(rows.flatMap((part) => [...part]));
      joined.forEach((v, i) => {
        expect(v).toBeCloseTo(whole[i] as number, 4);
      });
      const low = await Promise.all(parts.map(({ projected }) => projected.read()));
      const expected = await matmul(weightGrad(dy, x), p).read();
      low
        .flatMap((part) => [...part])
        .forEach((v, i) => {
          expect(v).toBeCloseTo(expected[i] as number, 3);
        });
    });
  });
});
