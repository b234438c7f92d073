/** LOWRANK_CUDA_BATCH_INVARIANT: a row has the same bits alone and in any batch. */
import { execFile } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { build } from 'tsup';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { bindingPath } from '../../lib/core/binding.js';
import { devices } from '../../lib/index.js';

const emulated = devices().some((row) => row.device === 'cuda-emulated' && row.available);
const folder = mkdtempSync(join(tmpdir(), 'lowrank-batch-'));

/** So few that the large batch fills them and a single row does not: cuts would differ. */
const FEW = '4';

/** Differing rows by output and by count of rows computed alone. */
type Report = Record<string, Record<string, number>>;

async function report(env: Record<string, string>): Promise<Report> {
  const { stdout } = await promisify(execFile)(process.execPath, [join(folder, 'batch-rows.mjs')], {
    env: { ...process.env, LOWRANK_BINDING: bindingPath(), ...env },
  });
  return JSON.parse(stdout) as Report;
}

describe.skipIf(!emulated)('rows of a batch on cuda-emulated', () => {
  beforeAll(async () => {
    await build({
      entry: { 'batch-rows': join(import.meta.dirname, 'programs', 'batch-rows.ts') },
      outDir: folder,
      format: ['esm'],
      outExtension: () => ({ js: '.mjs' }),
      target: 'node20',
      splitting: false,
      silent: true,
      config: false,
      dts: false,
    });
  });
  afterAll(() => rmSync(folder, { recursive: true, force: true }));

  it.each([
    ['80', "the card's"],
    ['90', "the card's"],
    ['80', FEW],
  ])(
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
    300_000,
  );

  it('may have others where it is not, because kernels and cuts follow the batch', async () => {
    const rows = await report({
      LOWRANK_CUDA_BATCH_INVARIANT: '0',
      LOWRANK_EMULATOR_MULTIPROCESSORS: FEW,
    });
    const differs = (output: string): boolean =>
      Object.values(rows[output] ?? {}).some((count) => count > 0);
    expect({
      y: differs('product y'),
      h: differs('adapter h'),
      dx: differs('adapter dx'),
      dxAlone: differs('adapter dxAlone'),
    }).toEqual({ y: true, h: true, dx: true, dxAlone: true });
  }, 300_000);
});
