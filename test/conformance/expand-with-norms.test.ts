// loraExpandWithNorms is loraExpand and factoredNorm, bit for bit; both have oracles of their own.
import { describe, it } from 'vitest';
import {
  type ComputePrecision,
  type Device,
  type DType,
  factoredNorm,
  loraExpand,
  loraExpandWithNorms,
  quantize,
  scope,
  setThreads,
  weightNorms,
} from '../../lib/index.js';
import { exact } from '../oracle.js';
import { DEVICES, DTYPES, mixes, operand, seeded, WEIGHTS, weightOperand } from './operands.js';

// No rows, few, some and many; loraA with a chunk of its own.
const SHAPES: readonly (readonly [M: number, N: number, K: number, r: number])[] = [
  [0, 5, 64, 3],
  [1, 7, 45, 3],
  [5, 33, 128, 16],
  [20, 70, 96, 37],
  [70, 40, 256, 8],
  [9, 40, 64, 130],
  [6, 10, 32, 0],
];

describe.each(DEVICES)('loraExpandWithNorms on %s', (device) => {
  it.each(WEIGHTS)('has the bits of both over $name', async (spec) => {
    for (const [turn, [M, N, K, r]] of SHAPES.entries()) {
      await scope(async () => {
        const any = DTYPES[turn % 3] as DType;
        const dtype = mixes(spec, any) ? any : 'f32';
        const fill = (i: number) => ({ seed: seeded(turn, i), device });
        const { w } = weightOperand(spec, N, K, dtype, fill(1));
        const x = operand(M, K, { ...fill(2), dtype }).tensor;
        const h = operand(M, r, fill(3)).tensor;
        const bias = operand(1, N, fill(4)).tensor.reshape([N]);
        const loraA = operand(r, K, fill(5)).tensor;
        const loraB = operand(N, r, { ...fill(6), dtype: turn % 2 === 0 ? 'f32' : dtype }).tensor;
        const scaling = -1.25;
        const expected = await loraExpand(x, w, h, loraB, { scaling, bias }).read();
        const expectedNorms = await factoredNorm({ w, loraA, loraB, scaling, dtype }).read();
        for (const kept of [{}, { weightNorms: weightNorms(w) }]) {
          const options = { scaling, bias, ...kept };
          const { y, norms } = loraExpandWithNorms(x, w, h, { loraA, loraB }, options);
          exact(`y [${M}, ${N}, ${K}] r ${r}`, await y.read(), expected);
          exact(`norms [${M}, ${N}, ${K}] r ${r}`, await norms.read(), expectedNorms);
        }
      });
    }
  });
});

/** Weights whose products of codes are asked for, and which have zero-points. */
const OTHERS: readonly [string, Device[], ComputePrecision][] = [
  ['nf4', ['cpu', 'reference'], 'int8'],
  ['int4', [...DEVICES], 'exact'],
];

it.each(OTHERS)(
  'the norms over %s are exact, whatever the layer is',
  async (format, on, compute) => {
    for (const device of on) {
      await scope(async () => {
        const [M, N, K, r] = [12, 24, 128, 4];
        const fill = (seed: number) => ({ seed, device });
        const w = quantize(operand(N, K, fill(1)).tensor, { format: format as 'nf4' });
        const x = operand(M, K, fill(2)).tensor;
        const h = operand(M, r, fill(3)).tensor;
        const factors = {
          loraA: operand(r, K, fill(4)).tensor,
          loraB: operand(N, r, fill(5)).tensor,
        };
        const { y, norms } = loraExpandWithNorms(x, w, h, factors, { compute });
        exact('y', await y.read(), await loraExpand(x, w, h, factors.loraB, { compute }).read());
        exact('norms', await norms.read(), await factoredNorm({ w, ...factors }).read());
      });
    }
  },
);

it('the threads change nothing', async () => {
  await scope(async () => {
    const device: Device = 'cpu';
    const w = quantize(operand(300, 640, { seed: 1, device }).tensor, { format: 'nf4' });
    const x = operand(130, 640, { seed: 2, device, dtype: 'bf16' }).tensor;
    const h = operand(130, 16, { seed: 3, device }).tensor;
    const loraA = operand(16, 640, { seed: 4, device }).tensor;
    const loraB = operand(300, 16, { seed: 5, device }).tensor;
    const run = async () => {
      const { y, norms } = loraExpandWithNorms(x, w, h, { loraA, loraB });
      return [await y.read(), await norms.read()] as const;
    };
    setThreads(1);
    const [expected, expectedNorms] = await run();
    for (const threads of [2, 3, 8]) {
      setThreads(threads);
      const [y, norms] = await run();
      exact(`y, ${threads} threads`, y, expected);
      exact(`norms, ${threads} threads`, norms, expectedNorms);
    }
  });
});
