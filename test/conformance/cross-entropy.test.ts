// linearCrossEntropy and embedding against float64: every dtype and format of the head, one and several blocks of the
// vocabulary and chunks of tokens, caps, weights and tokens without a target; the same bits on any number of threads and
// for a token alone.
import { describe, expect, it } from 'vitest';
import {
  checkGradients,
  type DType,
  embedding,
  Indices,
  linearCrossEntropy,
  ModelTape,
  scope,
  setThreads,
  Tensor,
  type Value,
} from '../../lib/index.js';
import { bound, crossEntropy64, exact, type Matrix, promised, roundTo, U32 } from '../oracle.js';
import {
  DEVICES,
  DTYPES,
  operand,
  PRODUCTS,
  seeded,
  tensorOf,
  WEIGHTS,
  weightOperand,
} from './operands.js';

const GROUPS = DEVICES.flatMap((device) => DTYPES.map((dtype) => ({ device, dtype })));

/** Half an ulp of 1: how far the softmax is rounded before its product with the head. */
const ROUNDING: Record<DType, number> = { f32: 2 ** -24, bf16: 2 ** -9, f16: 2 ** -12 };

interface Case {
  readonly M: number;
  readonly V: number;
  readonly K: number;
  readonly softcap?: number;
  readonly weighted?: boolean;
  /** Features and rows of one sign, and large logits. */
  readonly std?: number;
  readonly positive?: boolean;
}
const CASES: readonly Case[] = [
  { M: 1, V: 1, K: 1 },
  { M: 3, V: 5, K: 16, weighted: true },
  { M: 17, V: 100, K: 64, softcap: 4 },
  { M: 2, V: 2048, K: 48 },
  { M: 5, V: 2049, K: 64, weighted: true, softcap: 30 },
  { M: 3, V: 5000, K: 64, std: 4 },
  { M: 4, V: 4200, K: 64, positive: true },
  { M: 530, V: 96, K: 32, weighted: true },
  // More than a chunk and a block on CUDA too; the largest logits of some tokens are in the second block.
  { M: 2050, V: 5, K: 8 },
  { M: 5, V: 12000, K: 17, softcap: 10 },
];

function targetsOf(M: number, V: number): number[] {
  // Every fifth token has none; the first and the last row of the head are among the targets.
  return Array.from({ length: M }, (_, m) =>
    M > 1 && m % 5 === 3 ? -100 : m === 0 ? V - 1 : m === 1 ? 0 : (m * 7919) % V,
  );
}

describe.each(GROUPS)('linearCrossEntropy on $device, $dtype', ({ device, dtype }) => {
  const heads = PRODUCTS.filter((one) => one.device === device && one.dtype === dtype).map(
    ({ spec }) => spec,
  );

  it.each(CASES)(
    '$M tokens, $V x $K',
    async ({ M, V, K, softcap = 0, weighted, std = 1, positive }) => {
      for (const [turn, spec] of heads.entries()) {
        // Large ones with two of the heads: a dense and a packed one.
        if (Math.max(M, V) > 1000 && turn !== M % heads.length && turn !== (M + 4) % heads.length)
          continue;
        await scope(async () => {
          const seed = seeded(M + V, turn);
          const drawn = operand(M, K, { seed, dtype, device, std });
          if (positive)
            drawn.matrix.data.forEach((value, i, all) => {
              all[i] = Math.abs(value);
            });
          const x: Matrix = drawn.matrix;
          const head = weightOperand(spec, V, K, dtype, { seed: seed + 1, device });
          const targets = targetsOf(M, V);
          const weights = weighted
            ? operand(1, M, { seed: seed + 2, device, shape: [M] })
            : undefined;
          const { losses, dx } = linearCrossEntropy(
            tensorOf(x, { dtype, device }),
            head.w,
            Indices.from(targets, { limit: V, holes: true, device }),
            { scale: 0.5, softcap, ...(weights === undefined ? {} : { weights: weights.tensor }) },
          );
          expect([losses.shape, losses.dtype]).toEqual([[M], 'f32']);
          expect([dx?.shape, dx?.dtype]).toEqual([[M, K], dtype]);
          const expected = crossEntropy64(x, head.matrix, {
            targets,
            scale: 0.5,
            softcap,
            ...(weights === undefined ? {} : { weights: weights.matrix.data }),
          });
          const trust = { mostlyZeros: 'one row of the vocabulary has the loss 0' };
          const ofLogits = promised(device, { terms: K, dtype, of: 'product' });
          bound(`losses, ${spec.name}`, await losses.read(), expected.losses, {
            c: ofLogits,
            ...(V === 1 ? trust : {}),
          });
          if (V === 1) return;
          // An error of a logit is a relative one of its probability.
          const widest = head.matrix.data.reduce(
            (most, value) => Math.max(most, Math.abs(value)),
            0,
          );
          const underflow = dtype === 'f16' ? V * 2 ** -25 * widest * 4 : 0;
          const slack = (i: number): number => {
            const logits = ofLogits * U32 * (expected.logitError[Math.floor(i / K)] as number);
            return (
              (2 * ROUNDING[dtype] + 4 * logits) * (expected.dx.p.data[i] as number) + underflow
            );
          };
          const c = promised(device, { terms: V, dtype, of: 'product' });
          bound(`dx, ${spec.name}`, await (dx as Tensor).read(), expected.dx, { c, dtype, slack });
        });
      }
    },
  );

  it('has the same bits on any number of threads, for a token alone, and without the gradient', async () => {
    await scope(async () => {
      const [M, V, K] = [37, 2500, 64];
      const x = operand(M, K, { seed: 1, dtype, device });
      const spec = WEIGHTS.find(({ name }) => name === 'nf4') ?? { name: 'nf4', format: 'nf4' };
      const head = weightOperand(spec, V, K, dtype, { seed: 2, device });
      const targets = targetsOf(M, V);
      const run = async (rows: Tensor, list: number[], gradient = true) => {
        const ids = Indices.from(list, { limit: V, holes: true, device });
        const { losses, dx } = linearCrossEntropy(rows, head.w, ids, { gradient });
        return [await losses.read(), ...(dx === undefined ? [] : [await dx.read()])];
      };
      setThreads(1);
      const [losses, dx] = (await run(x.tensor, targets)) as [Float32Array, Float32Array];
      for (const threads of [2, 3, 8]) {
        setThreads(threads);
        const many = await run(x.tensor, targets);
        exact(`losses, ${threads} threads`, many[0] ?? [], losses);
        exact(`dx, ${threads} threads`, many[1] ?? [], dx);
      }
      setThreads(2);
      exact('losses alone', (await run(x.tensor, targets, false))[0] ?? [], losses);
      const row = Tensor.from(x.matrix.data.slice(5 * K, 6 * K), [1, K], { dtype, device });
      const one = await run(row, [targets[5] as number]);
      exact('the loss of a token', one[0] ?? [], losses.slice(5, 6));
      exact('dx of a token', one[1] ?? [], dx.slice(5 * K, 6 * K));
    });
  });
});

describe.each(GROUPS)('embedding on $device, $dtype', ({ device, dtype }) => {
  it.each(WEIGHTS)('$name', async (spec) => {
    await scope(async () => {
      for (const [V, D] of [
        [7, 5],
        [40, 64],
        [3, 1100],
      ] as const) {
        const table = weightOperand(spec, V, D, 'f32', { seed: V, device });
        const ids = [V - 1, 0, -1, 2, 2, 1];
        const y = embedding(Indices.from(ids, { limit: V, holes: true, device }), table.w, {
          scale: 1.5,
          dtype,
        });
        expect([y.shape, y.dtype]).toEqual([[6, D], dtype]);
        const expected = ids.flatMap((id) =>
          Array.from({ length: D }, (_, n) =>
            id < 0
              ? 0
              : roundTo(dtype, Math.fround(1.5 * (table.matrix.data[id * D + n] as number))),
          ),
        );
        exact(`[${V}, ${D}]`, await y.read(), expected);
      }
    });
  });
});

it('the loss on the tape has the gradients of finite differences', () => {
  scope(() => {
    const device = 'reference';
    const head = Tensor.randn([40, 8], { seed: 1, device });
    const targets = Indices.from([3, -1, 39, 0], { limit: 40, holes: true, device });
    const run = ({ x }: Record<string, Tensor>) => {
      const t = new ModelTape();
      const input = t.variable(x as Tensor);
      const { loss } = t.linearCrossEntropy(input, head, targets, { scale: 0.25, softcap: 3 });
      return { t, loss, input };
    };
    const reports = checkGradients({
      inputs: { x: Tensor.randn([4, 8], { seed: 2, device }) },
      forward: (inputs) => run(inputs).loss.tensor,
      backward: (dy, given) => {
        const { t, loss, input } = run(given);
        const [x] = t.gradients('step', loss, dy, [input] satisfies Value[]);
        return { x: x as Tensor };
      },
    });
    expect(reports.map(({ passed }) => passed)).toEqual([true]);
  });
});
