// weightNorms and factoredNorm against float64, with products that the weight meets and cancels.
import { describe, expect, it } from 'vitest';
import {
  type Device,
  type DType,
  factoredNorm,
  mapTensor,
  scope,
  setThreads,
  Tensor,
  weightNorms,
} from '../../lib/index.js';
import {
  at,
  bound,
  exact,
  hadamard,
  type Matrix,
  map,
  matrix,
  times,
  timesTransposed,
} from '../oracle.js';
import { DEVICES, operand, seeded, tensorOf, WEIGHTS, weightOperand } from './operands.js';

const PAIRS = DEVICES.flatMap((device) => WEIGHTS.map((spec) => ({ device, spec })));
const SHAPES: readonly (readonly [N: number, K: number, r: number])[] = [
  [1, 1, 1],
  [7, 45, 3],
  [33, 128, 8],
  [5, 1100, 16],
  [70, 64, 5],
  [40, 96, 37],
  [6, 32, 0],
  // Decoded in tiles of rows on a GPU.
  [300, 1000, 2],
];

const rowSums = (m: Matrix): Matrix => {
  const out = matrix(1, m.rows);
  for (let n = 0; n < m.rows; n++) {
    for (let k = 0; k < m.cols; k++) out.data[n] = (out.data[n] as number) + at(m, n, k);
  }
  return out;
};
const square = (m: Matrix): Matrix => map(m, (v) => v * v);

/** Squares of the norms, and the sizes of the terms that factoredNorm adds. */
function norms64(w: Matrix, a: Matrix, b: Matrix, scaling: number) {
  const delta = times(b, a);
  const sum = map(delta, (d, i) => scaling * d + (w.data[i] as number));
  const abs = (m: Matrix) => map(m, Math.abs);
  const cross = rowSums(hadamard(abs(b), timesTransposed(abs(w), abs(a))));
  const inner = rowSums(hadamard(abs(b), times(abs(b), timesTransposed(abs(a), abs(a)))));
  const own = rowSums(square(w));
  const p = map(
    own,
    (v, n) =>
      v +
      2 * Math.abs(scaling) * (cross.data[n] as number) +
      scaling ** 2 * (inner.data[n] as number),
  );
  return { value: rowSums(square(sum)), p };
}

describe.each(PAIRS)('$device, $spec.name', ({ device, spec }) => {
  it('weightNorms', async () => {
    for (const [turn, [N, K]] of [...SHAPES, [3, 0] as const, [0, 3] as const].entries()) {
      await scope(async () => {
        if (K * N === 0 && spec.dense === undefined && K === 0) return;
        const { w, matrix: values } = weightOperand(spec, N, K, 'f32', {
          seed: seeded(turn, 1),
          device,
        });
        const norms = weightNorms(w);
        expect([norms.shape, norms.dtype]).toEqual([[N], 'f32']);
        const value = rowSums(square(values));
        const none = K === 0 ? { mostlyZeros: 'sums of nothing' } : {};
        bound(`norms [${N}, ${K}]`, await norms.read(), { value, p: value }, { c: 1, ...none });
      });
    }
  });

  it('factoredNorm', async () => {
    for (const [turn, [N, K, r]] of SHAPES.entries()) {
      await scope(async () => {
        const fill = (i: number) => ({ seed: seeded(turn, i), device });
        const { w, matrix: values } = weightOperand(spec, N, K, 'f32', fill(1));
        const dtype: DType = turn === 2 ? 'bf16' : 'f32';
        const a = operand(r, K, { ...fill(2), dtype });
        // B · A as large as W.
        const b = operand(N, r, { ...fill(3), std: 0.5 / Math.sqrt(r), dtype });
        for (const scaling of [1, -0.7]) {
          const parts = { w, loraA: a.tensor, loraB: b.tensor, scaling };
          const norms = factoredNorm(parts);
          expect([norms.shape, norms.dtype]).toEqual([[N], 'f32']);
          const squares = await mapTensor(norms, 'square').read();
          const expected = norms64(values, a.matrix, b.matrix, scaling);
          bound(`norms² [${N}, ${K}]`, squares, expected, { c: 32 });
          exact(
            'kept',
            await factoredNorm({ ...parts, weightNorms: weightNorms(w) }).read(),
            await norms.read(),
          );
        }
      });
    }
  });
});

describe.each(DEVICES)('cancellation on %s', (device) => {
  const errors = async (share: number): Promise<number> => {
    const [N, K, r] = [24, 512, 8];
    const a = operand(r, K, { seed: 1, device });
    const b = operand(N, r, { seed: 2, device });
    const noise = operand(N, K, { seed: 3, device });
    // W = share · noise − B · A / 2, so that only the noise is left.
    const delta = times(b.matrix, a.matrix);
    const size = Math.sqrt(r) * share * 0.5;
    const values = map(delta, (d, i) =>
      Math.fround(size * (noise.matrix.data[i] as number) - 0.5 * d),
    );
    const w = tensorOf(values, { device });
    const norms = await factoredNorm({ w, loraA: a.tensor, loraB: b.tensor, scaling: 0.5 }).read();
    const { value, p } = norms64(values, a.matrix, b.matrix, 0.5);
    bound(
      `squares, ${share} left`,
      norms.map((v) => v * v),
      { value, p },
      { c: 32 },
    );
    return Math.max(...norms.map((v, n) => Math.abs(v / Math.sqrt(value.data[n] as number) - 1)));
  };

  // Tensor cores truncate, so their errors add up in one direction: 2.6e-4 and 2.4e-2 where rounding gives
  // less than 1e-4 and 1e-2. The bound on the sums, above, is the same.
  const most = device.startsWith('cuda') ? 4 : 1;

  it('a row of which a share is left keeps the digits that the share squared leaves', async () => {
    await scope(async () => {
      expect(await errors(1)).toBeLessThan(1e-5);
      expect(await errors(0.1)).toBeLessThan(most * 1e-4);
      expect(await errors(0.01)).toBeLessThan(most * 1e-2);
    });
  });

  it('a row of which nothing is left has a norm near 0, never NaN', async () => {
    await scope(async () => {
      const a = operand(2, 64, { seed: 1, device });
      // Of so many rows some come out below 0.
      const b = operand(200, 2, { seed: 2, device });
      const values = map(times(b.matrix, a.matrix), (d) => Math.fround(-d));
      const w = tensorOf(values, { device });
      const norms = await factoredNorm({ w, loraA: a.tensor, loraB: b.tensor }).read();
      const size = Math.sqrt(Math.max(...rowSums(square(values)).data));
      for (const v of norms) expect(v >= 0 && v < 2e-3 * size).toBe(true);
      const none = { w: Tensor.zeros([3, 8], { device }), loraA: Tensor.zeros([2, 8], { device }) };
      const zeros = factoredNorm({ ...none, loraB: Tensor.zeros([3, 2], { device }) });
      exact('zeros', await zeros.read(), [0, 0, 0]);
    });
  });

  it('a NaN in a row of W or B is in its own norm', async () => {
    await scope(async () => {
      const [N, K, r] = [4, 32, 2];
      const poke = (rows: number, cols: number, seed: number, place: number): Tensor => {
        const values = operand(rows, cols, { seed, device }).matrix;
        const data = values.data.map((v, i) => (i === place ? Number.NaN : v));
        return tensorOf({ ...values, data }, { device });
      };
      const loraA = operand(r, K, { seed: 1, device }).tensor;
      const odd = async (of: Tensor) =>
        [...(await of.read()).entries()].filter(([, v]) => Number.isNaN(v)).map(([n]) => n);
      const b = operand(N, r, { seed: 2, device }).tensor;
      const w = operand(N, K, { seed: 3, device }).tensor;
      expect(await odd(factoredNorm({ w: poke(N, K, 3, 2 * K + 5), loraA, loraB: b }))).toEqual([
        2,
      ]);
      expect(await odd(factoredNorm({ w, loraA, loraB: poke(N, r, 2, r + 1) }))).toEqual([1]);
      expect(await odd(weightNorms(poke(N, K, 3, 0)))).toEqual([0]);
    });
  });
});

it.each(DEVICES)('a product in bf16 costs its rounding and no more, on %s', async (device) => {
  await scope(async () => {
    const [N, K, r] = [33, 256, 8];
    const { w, matrix: values } = weightOperand(WEIGHTS[0] as (typeof WEIGHTS)[0], N, K, 'f32', {
      seed: 5,
      device,
    });
    const a = operand(r, K, { seed: 6, device });
    const b = operand(N, r, { seed: 7, device, std: 0.5 / Math.sqrt(r) });
    const parts = { w, loraA: a.tensor, loraB: b.tensor, scaling: 1.5 };
    const { value, p } = norms64(values, a.matrix, b.matrix, 1.5);
    const low = await factoredNorm({ ...parts, dtype: 'bf16' }).read();
    const high = await factoredNorm(parts).read();
    // Squares: both operands of the product are rounded, by 2^-9 of themselves, and nothing else.
    low.forEach((norm, n) => {
      const error = Math.abs(norm * norm - (value.data[n] as number));
      expect(error).toBeLessThanOrEqual((2 ** -8 + 32 * 2 ** -24) * (p.data[n] as number));
    });
    expect(low).not.toEqual(high);
  });
});

it('norms have the same bits on any number of threads and tiles', async () => {
  const device: Device = 'cpu';
  await scope(async () => {
    for (const spec of WEIGHTS) {
      const { w } = weightOperand(spec, 130, 700, 'f32', { seed: 1, device });
      const expected = await weightNorms(w).read();
      for (const threads of [1, 2, 3, 8]) {
        setThreads(threads);
        exact(`${threads} threads`, await weightNorms(w).read(), expected);
      }
    }
  });
});
