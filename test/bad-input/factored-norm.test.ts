// Bad input to weightNorms and factoredNorm.
import { describe, it } from 'vitest';
import { factoredNorm, quantize, scope, Tensor, weightNorms } from '../../lib/index.js';
import { DEVICES } from '../conformance/operands.js';
import { bad, callWith, checkCases, hostile, impostors } from './harness.js';
import { factorCases, operandCases, wrongMatrix, wrongVector } from './operand-cases.js';

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
});
