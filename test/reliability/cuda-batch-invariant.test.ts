/** LOWRANK_CUDA_BATCH_INVARIANT: a row has the same bits alone and in any batch. */
import { describe, expect, it } from 'vitest';
import { devices } from '../../lib/index.js';
import { FULL_SWEEP } from '../conformance/operands.js';
import { reportOf, runProgram, TIME_SCALE, usePrograms } from './program.js';

usePrograms();

const row = devices().find(({ device }) => device === 'cuda-emulated');
if (row?.available !== true) console.warn(`no batch is compared: ${row?.reason}`);

const LONG = 300_000 * TIME_SCALE;

/** So few that the large batch fills them and a single row does not: cuts would differ. */
const FEW = '4';

/** Differing rows by output and by count of rows computed alone. */
type Report = Record<string, Record<string, number>>;

async function report(env: Record<string, string>): Promise<Report> {
  return reportOf<Report>(await runProgram('batch-rows', [], { env, timeout: LONG }));
}

describe.skipIf(row?.available !== true)('rows of a batch on cuda-emulated', () => {
  // Without LOWRANK_SWEEP=full one of each compute capability.
  const cards = [
    ['90', "the card's"],
    ['80', FEW],
    ...(FULL_SWEEP ? [['80', "the card's"] as const] : []),
  ] as const;
  it.each(cards)(
    'on sm_%s with %s multiprocessors keep their bits where that is asked for',
    async (sm, multiprocessors) => {
      const rows = await report({
        LOWRANK_CUDA_BATCH_INVARIANT: '1',
        LOWRANK_EMULATOR_SM: sm,
        ...(multiprocessors === FEW ? { LOWRANK_EMULATOR_MULTIPROCESSORS: FEW } : {}),
      });
      for (const [output, counts] of Object.entries(rows)) {
        expect({ output, differing: Object.values(counts) }).toEqual({
          output,
          differing: [0, 0, 0],
        });
      }
    },
    LONG,
  );

  it(
    'may have others where it is not, because kernels and cuts follow the batch',
    async () => {
      const rows = await report({
        LOWRANK_CUDA_BATCH_INVARIANT: '0',
        LOWRANK_EMULATOR_MULTIPROCESSORS: FEW,
      });
      const differs = (output: string): boolean =>
        Object.values(rows[output] ?? {}).some((count) => count > 0);
      expect({
        y: differs('product y'),
        grouped: differs('grouped y'),
        h: differs('adapter h'),
        dx: differs('adapter dx'),
        dxAlone: differs('adapter dxAlone'),
      }).toEqual({ y: true, grouped: true, h: true, dx: true, dxAlone: true });
    },
    LONG,
  );
});
