// Bad input to weightNorms, factoredNorm and loraExpandWithNorms.
import { describe, it } from 'vitest';
import {
  factoredNorm,
  loraExpandWithNorms,
  quantize,
  scope,
  Tensor,
  weightNorms,
} from '../../lib/index.js';
import { DEVICES } from '../conformance/operands.js';
import { bad, callWith, checkCases, hostile, impostors } from './harness.js';
import {
  factorCases,
  operandCases,
  optionCases,
  wrongMatrix,
  wrongVector,
} from './operand-cases.js';

describe.each(DEVICES)('bad input on %s', (device) => {
  it('weightNorms and factoredNorm', async () => {
    await scope(async () => {
      const random = (shape: number[], seed: number): Tensor =>
        Tensor.randn(shape, { seed, device });
      const dense = random([6, 64], 1);
      const w = quantize(dense, { format: 'nf4' });
      const gone = quantize(dense, { format: 'nf4' });
      gone.dispose();
      const parts = { w, loraA: random([3, 64], 2), loraB: random([6, 3], 3) };
      const norms = weightNorms(w);
      const run = (wrong: object): unknown => callWith(factoredNorm, { ...parts, ...wrong });
      const cases = [
        bad(1, 'norms: no arguments', 'ERR_TYPE', () => callWith(weightNorms)),
        ...impostors(dense).flatMap(([kind, what, value]) => [
          bad(kind, `norms of ${what}`, 'ERR_TYPE', () => callWith(weightNorms, value)),
          bad(kind, `w: ${what}`, 'ERR_TYPE', () => run({ w: value })),
        ]),
        bad(31, 'norms of a disposed weight', 'ERR_DISPOSED', () => weightNorms(gone)),
        bad(23, 'norms of a vector', 'ERR_SHAPE', () => weightNorms(random([64], 1))),
        bad(1, 'no arguments', 'ERR_TYPE', () => callWith(factoredNorm)),
        bad(2, 'null', 'ERR_TYPE', () => callWith(factoredNorm, null)),
        bad(3, 'a number', 'ERR_TYPE', () => callWith(factoredNorm, 3)),
        bad(33, 'a getter that throws', 'HOSTILE', () => callWith(factoredNorm, hostile('w'))),
        bad(31, 'w: disposed', 'ERR_DISPOSED', () => run({ w: gone })),
        bad(22, 'w: [64, 6]', 'ERR_SHAPE', () => run({ w: random([64, 6], 1) })),
        ...operandCases(
          device,
          [
            { name: 'loraA', shape: [3, 64], wrong: wrongMatrix([3, 64]) },
            { name: 'loraB', shape: [6, 3], wrong: [...wrongMatrix([6, 3]), [12, [7, 3]]] },
            {
              name: 'weightNorms',
              shape: [6],
              optional: true,
              dtypes: ['bf16', 'f16'],
              wrong: wrongVector(6),
            },
          ],
          run,
        ),
        ...factorCases('scaling', run),
        bad(24, 'dtype: f64', 'ERR_DTYPE', () => run({ dtype: 'f64' })),
        bad(3, 'dtype: 3', 'ERR_TYPE', () => run({ dtype: 3 })),
      ];
      await checkCases('factoredNorm', device, {
        watched: [dense, parts.loraA, parts.loraB, norms],
        cases,
        valid: () =>
          scope(async () => [
            await factoredNorm(parts).read(),
            await factoredNorm({ ...parts, weightNorms: norms, scaling: 2 }).read(),
            await weightNorms(dense).read(),
          ]),
      });
    });
  });

  it('loraExpandWithNorms', async () => {
    await scope(async () => {
      const random = (shape: number[], seed: number): Tensor =>
        Tensor.randn(shape, { seed, device });
      const dense = random([6, 64], 1);
      const w = quantize(dense, { format: 'nf4' });
      const [x, h, bias] = [random([2, 64], 2), random([2, 3], 3), random([6], 4)];
      const [loraA, loraB] = [random([3, 64], 5), random([6, 3], 6)];
      const kept = weightNorms(w);
      const run = (wrong: Record<string, unknown>): unknown => {
        const given = { x, w, h, loraA, loraB, bias, weightNorms: kept, ...wrong };
        const factors = { loraA: given.loraA, loraB: given.loraB };
        const options = { bias: given.bias, weightNorms: given.weightNorms };
        return callWith(loraExpandWithNorms, given.x, given.w, given.h, factors, options);
      };
      const option = (options: unknown): unknown =>
        callWith(loraExpandWithNorms, x, w, h, { loraA, loraB }, options);
      const factors = (value?: unknown): unknown => callWith(loraExpandWithNorms, x, w, h, value);
      const cases = [
        bad(1, 'no arguments', 'ERR_TYPE', () => callWith(loraExpandWithNorms)),
        bad(1, 'no factors', 'ERR_TYPE', () => factors()),
        bad(2, 'factors: null', 'ERR_TYPE', () => factors(null)),
        bad(3, 'factors: a number', 'ERR_TYPE', () => factors(3)),
        bad(33, 'factors: a getter that throws', 'HOSTILE', () => factors(hostile('loraA'))),
        ...operandCases(
          device,
          [
            { name: 'x', shape: [2, 64], leads: true, wrong: wrongMatrix([2, 64]) },
            { name: 'w', shape: [6, 64], wrong: [[11, [6, 63]]] },
            { name: 'h', shape: [2, 3], dtypes: ['bf16', 'f16'], wrong: wrongMatrix([2, 3]) },
            { name: 'loraA', shape: [3, 64], wrong: [...wrongMatrix([3, 64]), [12, [4, 64]]] },
            { name: 'loraB', shape: [6, 3], wrong: wrongMatrix([6, 3]) },
            { name: 'bias', shape: [6], optional: true, wrong: wrongVector(6) },
            {
              name: 'weightNorms',
              shape: [6],
              optional: true,
              dtypes: ['bf16', 'f16'],
              wrong: wrongVector(6),
            },
          ],
          run,
        ),
        bad(22, 'scaling: of an infinite square', 'ERR_VALUE', () => option({ scaling: 1e30 })),
        bad(3, 'compute: a number', 'ERR_TYPE', () => option({ compute: 8 })),
        ...factorCases('scaling', option),
        ...optionCases(option, 'weightNorms'),
      ];
      await checkCases('loraExpandWithNorms', device, {
        watched: [x, dense, h, loraA, loraB, bias, kept],
        cases,
        valid: () =>
          scope(async () => {
            const { y, norms } = loraExpandWithNorms(x, w, h, { loraA, loraB }, { bias });
            return [await y.read(), await norms.read()];
          }),
      });
    });
  });
});
