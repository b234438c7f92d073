// rmsNormForward, rmsNormBackward and their step on the tape against float64: every dtype, with and without a residual,
// rows in and out of whole vectors and longer than what a kernel holds of them; the same bits on any number of threads.
import { describe, expect, it } from 'vitest';
import {
  checkGradients,
  type DType,
  ModelTape,
  rmsNormBackward,
  rmsNormForward,
  scope,
  setThreads,
  Tensor,
  type Value,
} from '../../lib/index.js';
import {
  bound,
  exact,
  matrix,
  rmsNorm64,
  rmsNormGainGrad64,
  rmsNormInputGrad64,
  roundTo,
} from '../oracle.js';
import { DEVICES, DTYPES, operand, seeded } from './operands.js';

const GROUPS = DEVICES.flatMap((device) => DTYPES.map((dtype) => ({ device, dtype })));
const SHAPES: readonly (readonly [M: number, D: number])[] = [
  [0, 8],
  [1, 1],
  [1, 172],
  [3, 8],
  [17, 64],
  [5, 1024],
  [2, 1025],
  [3, 2100],
  [300, 48],
  [2, 9001],
];
const next = (dtype: DType, step: number): DType =>
  DTYPES[(DTYPES.indexOf(dtype) + step) % DTYPES.length] as DType;

describe.each(GROUPS)('$device, $dtype', ({ device, dtype }) => {
  it.each(SHAPES)('[%i, %i]', async (M, D) => {
    for (const plusOne of [false, true]) {
      for (const withResidual of [false, true]) {
        await scope(async () => {
          const seed = M * 8 + D + (plusOne ? 1 : 0) + (withResidual ? 2 : 0);
          const x = operand(M, D, { seed: seeded(seed, 1), dtype, device, std: 3 });
          const other = next(dtype, 1);
          const residual = operand(M, D, { seed: seeded(seed, 2), dtype: other, device });
          const g = operand(1, D, {
            seed: seeded(seed, 3),
            dtype: next(dtype, 2),
            device,
            shape: [D],
          });
          const dy = operand(M, D, { seed: seeded(seed, 4), dtype, device });
          const dSum = operand(M, D, { seed: seeded(seed, 5), dtype: other, device });
          const spec = { eps: 0.01, plusOne };
          const made = rmsNormForward(x.tensor, g.tensor, {
            ...spec,
            ...(withResidual ? { residual: residual.tensor } : {}),
          });
          const s = withResidual
            ? matrix(
                M,
                D,
                x.matrix.data.map((value, i) =>
                  roundTo(dtype, Math.fround(value + (residual.matrix.data[i] as number))),
                ),
              )
            : x.matrix;
          if (withResidual) {
            if (made.sum === undefined) throw new Error('no sum');
            if (device !== 'reference') exact('sum', await made.sum.read(), s.data);
          }
          const sum = made.sum ?? x.tensor;
          expect([made.y.shape, made.y.dtype]).toEqual([[M, D], dtype]);
          const kept = matrix(M, D, Float64Array.from(await sum.read()));
          if (M > 0) bound('y', await made.y.read(), rmsNorm64(kept, g.matrix, spec), { dtype });
          const { dx, dg } = rmsNormBackward(dy.tensor, sum, g.tensor, {
            invRms: made.invRms as Tensor,
            plusOne,
            ...(withResidual ? { dSum: dSum.tensor } : {}),
          });
          const extra = withResidual ? dSum.matrix : undefined;
          expect([dx?.shape, dx?.dtype]).toEqual([[M, D], dtype]);
          expect([dg?.shape, dg?.dtype]).toEqual([[D], 'f32']);
          if (M === 0) return;
          const dx64 = rmsNormInputGrad64(dy.matrix, kept, g.matrix, spec, extra);
          bound('dx', await (dx as Tensor).read(), dx64, { dtype });
          const dg64 = rmsNormGainGrad64(dy.matrix, kept, spec);
          bound('dg', await (dg as Tensor).read(), dg64, { dtype: 'f32' });
        });
      }
    }
  });

  it('gives the same bits on any number of threads, and for a row alone', async () => {
    await scope(async () => {
      const [M, D] = [70, 700];
      const x = operand(M, D, { seed: 1, dtype, device });
      const g = operand(1, D, { seed: 2, device, shape: [D] });
      const dy = operand(M, D, { seed: 3, dtype, device });
      const run = async () => {
        const { y, invRms } = rmsNormForward(x.tensor, g.tensor);
        const back = rmsNormBackward(dy.tensor, x.tensor, g.tensor, { invRms: invRms as Tensor });
        return Promise.all([y.read(), (back.dx as Tensor).read(), (back.dg as Tensor).read()]);
      };
      setThreads(1);
      const one = await run();
      for (const threads of [2, 3, 8]) {
        setThreads(threads);
        const many = await run();
        for (const [i, values] of many.entries()) exact(`${threads} threads`, values, one[i] ?? []);
      }
      setThreads(2);
      const row = Tensor.from(x.matrix.data.slice(5 * D, 6 * D), [1, D], { dtype, device });
      const { y } = rmsNormForward(row, g.tensor);
      exact('a row alone', await y.read(), (one[0] as Float32Array).slice(5 * D, 6 * D));
    });
  });
});

it('the step on the tape has the gradients of finite differences, with what later steps give the sum', () => {
  scope(() => {
    const device = 'reference';
    const make = (seed: number, shape: number[]) => Tensor.randn(shape, { seed, device });
    const run = ({ x, residual, g }: Record<string, Tensor>) => {
      const t = new ModelTape();
      const inputs = [x, residual, g].map((tensor) => t.variable(tensor as Tensor));
      const [xv, rv, gv] = inputs as [Value, Value, Value];
      const { y, sum } = t.rmsNorm(xv, gv, { residual: rv, eps: 0.01 });
      // The sum is used twice more, as the residual stream is.
      const out = t.add(t.add(y, sum, 1, 0.5), sum, 1, -2);
      return { t, out, inputs };
    };
    const reports = checkGradients({
      inputs: { x: make(1, [3, 8]), residual: make(2, [3, 8]), g: make(3, [8]) },
      forward: (inputs) => run(inputs).out.tensor,
      backward: (dy, given) => {
        const { t, out, inputs } = run(given);
        const [x, residual, g] = t.gradients('step', out, dy, inputs) as [Tensor, Tensor, Tensor];
        return { x, residual, g };
      },
    });
    expect(reports.map(({ passed }) => passed)).toEqual([true, true, true]);
  });
});
