// blockMatmul and its gradients against float64, on every device, mix of dtypes and size of block.
import { describe, expect, it } from 'vitest';
import {
  blockMatmul,
  blockMatmulInputGrad,
  blockWeightGrad,
  checkGradients,
  type Device,
  type DType,
  matmul,
  matmulInputGrad,
  scope,
  setThreads,
  Tensor,
  weightGrad,
} from '../../lib/index.js';
import {
  blockMatmul64,
  blockMatmulInputGrad64,
  blockWeightGrad64,
  bound,
  exact,
} from '../oracle.js';
import { DEVICES, DTYPES, operand, seeded } from './operands.js';

// Blocks of one to many, of two features and of more than a tile; rows under, at and over a tile.
const SHAPES: readonly (readonly [M: number, G: number, N: number, K: number])[] = [
  [0, 2, 3, 4],
  [3, 2, 0, 4],
  [3, 2, 4, 0],
  [5, 0, 3, 4],
  [1, 1, 1, 1],
  [1, 5, 2, 2],
  [3, 70, 2, 3],
  [17, 12, 4, 4],
  [33, 3, 8, 9],
  [130, 2, 7, 33],
  [14, 3, 33, 32],
  [65, 2, 40, 70],
  [5, 1, 300, 290],
  [2, 2, 3, 1030],
  [1100, 2, 3, 5],
];

const CASES = DEVICES.flatMap((device) =>
  DTYPES.flatMap((dtype) =>
    DTYPES.filter((w) => w === dtype || w === 'f32' || dtype === 'f32').map((wType) => ({
      device,
      dtype,
      wType,
    })),
  ),
);

interface Blocks {
  readonly x: ReturnType<typeof operand>;
  readonly dy: ReturnType<typeof operand>;
  readonly w: ReturnType<typeof operand>;
}

function blocks(
  [M, G, N, K]: readonly [number, number, number, number],
  base: number,
  dtype: DType,
  wType: DType,
  device: Device,
): Blocks {
  const at = (i: number, type: DType, shape: number[]) => ({
    seed: seeded(base, i),
    dtype: type,
    device,
    shape,
  });
  return {
    x: operand(M * G, K, at(1, dtype, [M, G, K])),
    dy: operand(M * G, N, at(2, dtype, [M, G, N])),
    w: operand(G * N, K, at(3, wType, [G, N, K])),
  };
}

describe.each(CASES)('$device, $dtype x, $wType w', ({ device, dtype, wType }) => {
  it('blockMatmul, blockMatmulInputGrad, blockWeightGrad', async () => {
    for (const [turn, shape] of SHAPES.entries()) {
      await scope(async () => {
        const [M, G, N, K] = shape;
        const { x, dy, w } = blocks(shape, turn, dtype, wType, device);
        const y = blockMatmul(x.tensor, w.tensor);
        const dx = blockMatmulInputGrad(dy.tensor, w.tensor);
        const dw = blockWeightGrad(dy.tensor, x.tensor);
        expect([y.shape, dx.shape, dw.shape]).toEqual([
          [M, G, N],
          [M, G, K],
          [G, N, K],
        ]);
        expect([y.dtype, dx.dtype, dw.dtype]).toEqual([dtype, dtype, 'f32']);
        const none = M * N * K === 0 ? { mostlyZeros: 'sums of nothing' } : {};
        const name = `[${shape}]`;
        const values = [await y.read(), await dx.read(), await dw.read()] as const;
        if (G === 0) {
          expect(values.map(({ length }) => length)).toEqual([0, 0, 0]);
          return;
        }
        bound(`y ${name}`, values[0], blockMatmul64(x.matrix, w.matrix, G), { dtype, ...none });
        bound(`dx ${name}`, values[1], blockMatmulInputGrad64(dy.matrix, w.matrix, G), {
          dtype,
          ...none,
        });
        bound(`dw ${name}`, values[2], blockWeightGrad64(dy.matrix, x.matrix, G), none);
      });
    }
  });

  it('one block is the dense product', async () => {
    await scope(async () => {
      const [M, N, K] = [37, 45, 600];
      const { x, dy, w } = blocks([M, 1, N, K], 3, dtype, wType, device);
      const flat = {
        x: x.tensor.reshape([M, K]),
        dy: dy.tensor.reshape([M, N]),
        w: w.tensor.reshape([N, K]),
      };
      const pairs = [
        [blockMatmul(x.tensor, w.tensor), matmul(flat.x, flat.w)],
        [blockMatmulInputGrad(dy.tensor, w.tensor), matmulInputGrad(flat.dy, flat.w)],
        [blockWeightGrad(dy.tensor, x.tensor), weightGrad(flat.dy, flat.x)],
      ] as const;
      for (const [i, [block, dense]] of pairs.entries()) {
        const [a, b] = [await block.read(), await dense.read()];
        // Tensor cores and these kernels add in different orders.
        if (device === 'cpu' || device === 'reference') exact(`${i}`, a, b);
        else expect(a.length).toBe(b.length);
      }
    });
  });

  it('the same bits on any number of threads, of a row in any batch and of a block alone', async () => {
    await scope(async () => {
      const [M, G, N, K] = [300, 7, 12, 20];
      const { x, dy, w } = blocks([M, G, N, K], 5, dtype, wType, device);
      const run = async (): Promise<Float32Array[]> => [
        await blockMatmul(x.tensor, w.tensor).read(),
        await blockMatmulInputGrad(dy.tensor, w.tensor).read(),
        await blockWeightGrad(dy.tensor, x.tensor).read(),
      ];
      const expected = await run();
      for (const threads of [1, 2, 3, 8]) {
        setThreads(threads);
        for (const [i, values] of (await run()).entries()) {
          exact(`result ${i} on ${threads} threads`, values, expected[i] as Float32Array);
        }
      }
      const y = expected[0] as Float32Array;
      const data = x.matrix.data;
      const row = Tensor.from(Float32Array.from(data.slice(77 * G * K, 78 * G * K)), [1, G, K], {
        device,
      }).to({ dtype });
      const part = await blockMatmul(row, w.tensor).read();
      exact('a row', part, y.slice(77 * G * N, 78 * G * N));
      const g = 4;
      const column = Float32Array.from({ length: M * K }, (_, i) => {
        const at = Math.floor(i / K) * G + g;
        return data[at * K + (i % K)] as number;
      });
      const block = Float32Array.from(w.matrix.data.slice(g * N * K, (g + 1) * N * K));
      const alone = await blockMatmul(
        Tensor.from(column, [M, 1, K], { device }).to({ dtype }),
        Tensor.from(block, [1, N, K], { device }).to({ dtype: wType }),
      ).read();
      const there = Float32Array.from({ length: M * N }, (_, i) => {
        return y[(Math.floor(i / N) * G + g) * N + (i % N)] as number;
      });
      exact('a block', alone, there);
    });
  });

  it('NaN and infinities stay in their own row and block', async () => {
    await scope(async () => {
      const [M, G, N, K] = [9, 3, 5, 6];
      const { x, dy, w } = blocks([M, G, N, K], 6, dtype, wType, device);
      const [m, g] = [4, 1];
      for (const value of [Number.NaN, Infinity]) {
        const poke = (of: Float64Array, index: number) =>
          Float32Array.from(of.map((old, i) => (i === index ? value : old)));
        const at = { dtype, device };
        const x2 = Tensor.from(poke(x.matrix.data, (m * G + g) * K + 2), [M, G, K], at);
        const dy2 = Tensor.from(poke(dy.matrix.data, (m * G + g) * N + 3), [M, G, N], at);
        const odd = async (of: Tensor): Promise<number[]> =>
          [...(await of.read()).entries()].filter(([, v]) => !Number.isFinite(v)).map(([i]) => i);
        const run = (first: number, count: number) =>
          Array.from({ length: count }, (_, i) => first + i);
        expect(await odd(blockMatmul(x2, w.tensor))).toEqual(run((m * G + g) * N, N));
        expect(await odd(blockMatmulInputGrad(dy2, w.tensor))).toEqual(run((m * G + g) * K, K));
        const column = Array.from({ length: N }, (_, n) => (g * N + n) * K + 2);
        expect(await odd(blockWeightGrad(dy.tensor, x2))).toEqual(column);
        expect(await odd(blockWeightGrad(dy2, x.tensor))).toEqual(run((g * N + 3) * K, K));
      }
    });
  });
});

it('more leading dimensions fold', () => {
  scope(() => {
    const x = Tensor.zeros([2, 3, 4, 5]);
    const w = Tensor.zeros([4, 6, 5]);
    const y = blockMatmul(x, w);
    expect(y.shape).toEqual([2, 3, 4, 6]);
    expect(blockMatmulInputGrad(y, w).shape).toEqual([2, 3, 4, 5]);
    expect(blockWeightGrad(y, x).shape).toEqual([4, 6, 5]);
    expect(blockMatmul(Tensor.zeros([4, 5]), w).shape).toEqual([4, 6]);
  });
});

it('the gradients are those of the product', () => {
  scope(() => {
    const device: Device = 'reference';
    const x = Tensor.randn([3, 2, 4], { seed: 1, device });
    const w = Tensor.randn([2, 5, 4], { seed: 2, device });
    const report = checkGradients({
      inputs: { x, w },
      forward: (given) => blockMatmul(given.x as Tensor, given.w as Tensor),
      backward: (dy) => ({ x: blockMatmulInputGrad(dy, w), w: blockWeightGrad(dy, x) }),
    });
    expect(report.every(({ passed }) => passed)).toBe(true);
  });
});
