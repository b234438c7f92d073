// matmul and matmulInputGrad within c · u · P of the float64 product, on every device, weight
// format, dtype and shape of the edge list (of formats and dtypes a sample but on the CPU, see PRODUCTS).
import { describe, expect, it } from 'vitest';
import { matmul, matmulInputGrad, scope, Tensor } from '../../lib/index.js';
import { bound, exact, matmul64, matmulInputGrad64 } from '../oracle.js';
import { DEVICES, DTYPES, operand, PRODUCTS, seeded, weightOperand } from './operands.js';

// M in {0, 1, 3, 17, 64, 65}; N and K one under and over 14, 32 and 64; K = 172; odd K; one block;
// more than one cache block in each direction.
const SHAPES: readonly (readonly [M: number, N: number, K: number])[] = [
  [0, 5, 7],
  [1, 1, 1],
  [1, 1, 64],
  [3, 2, 32],
  [1, 31, 172],
  [1, 65, 63],
  [3, 33, 63],
  [3, 64, 65],
  [17, 63, 33],
  [17, 13, 172],
  [64, 15, 31],
  [64, 64, 64],
  [65, 32, 13],
  [65, 14, 15],
  [2, 3, 4099],
  [5, 1031, 70],
  [150, 40, 130],
];

describe.each(PRODUCTS)('$device, $dtype x, $spec.name', ({ device, dtype, spec }) => {
  it('matmul', async () => {
    for (const [index, [M, N, K]] of SHAPES.entries()) {
      const name = `y [${M}, ${N}, ${K}]`;
      await scope(async () => {
        const fill = (i: number) => ({ seed: seeded(index, i), dtype, device });
        const x = operand(M, K, fill(1));
        const { w, matrix } = weightOperand(spec, N, K, dtype, fill(2));
        const bias = index % 2 === 0 ? undefined : operand(1, N, { ...fill(3), shape: [N] });
        const y = await matmul(x.tensor, w, bias ? { bias: bias.tensor } : {}).read();
        bound(name, y, matmul64(x.matrix, matrix, bias?.matrix), { dtype });
      });
    }
  });

  it('matmulInputGrad', async () => {
    for (const [index, [M, N, K]] of SHAPES.entries()) {
      const name = `dx [${M}, ${N}, ${K}]`;
      await scope(async () => {
        const fill = (i: number) => ({ seed: seeded(index, i), dtype, device });
        const dy = operand(M, N, fill(1));
        const { w, matrix } = weightOperand(spec, N, K, dtype, fill(2));
        const dx = await matmulInputGrad(dy.tensor, w).read();
        bound(name, dx, matmulInputGrad64(dy.matrix, matrix), { dtype });
      });
    }
  });

  it('leading dimensions pass through', async () => {
    await scope(async () => {
      const fill = (i: number) => ({ seed: i, dtype, device });
      const { w } = weightOperand(spec, 9, 21, dtype, fill(2));
      const flat = operand(6, 21, fill(1));
      const deep = operand(6, 21, { ...fill(1), shape: [2, 3, 21] });
      const y = matmul(deep.tensor, w);
      const dx = matmulInputGrad(y, w);
      const shapes = [
        y.shape,
        dx.shape,
        matmul(operand(1, 21, { ...fill(1), shape: [21] }).tensor, w).shape,
      ];
      if (JSON.stringify(shapes) !== '[[2,3,9],[2,3,21],[9]]') throw new Error(String(shapes));
      exact('y', await y.read(), await matmul(flat.tensor, w).read());
    });
  });
});

// Pairs of an odd number of rows: what stands in for the one that is not there adds nothing, not 0 · Infinity.
it.each(DEVICES)('dx over a last row of infinity on %s', async (device) => {
  await scope(async () => {
    const [N, K] = [3, 128];
    for (const dtype of DTYPES) {
      const values = Float32Array.from({ length: N * K }, (_, i) =>
        i === 2 * K + 5 ? Infinity : 1,
      );
      const w = Tensor.from(values, [N, K], { dtype, device });
      for (const M of [1, 4, 20]) {
        const dy = Tensor.from(new Float32Array(M * N).fill(1), [M, N], { dtype, device });
        const dx = await matmulInputGrad(dy, w).read();
        const expected = Float32Array.from(dx, (_, i) => (i % K === 5 ? Infinity : N));
        expect([dtype, M, ...dx]).toEqual([dtype, M, ...expected]);
      }
    }
  });
});
