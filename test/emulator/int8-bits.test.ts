/**
 * Products of int8 codes by wgmma have the bits of those by mma.sync: the same cases on cards that take one and the
 * other, and which card takes which.
 */
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { expect, it } from 'vitest';
import { outputFolder } from './build-folder.js';
import { CaseRunner, DEVICES } from './case-runs.mjs';

const library = path.join(outputFolder(), 'lowrank-emulator.so');
/** From 128 rows on; without a shrink, which cuts its sums by the size of the card. */
const FILTER = /^int8 (matmul|expand) \w+ \[(128|129|256|260|270|1100|2048|2100),/.source;
/** A whole card has too few tiles of 256 x 256 to fill it. */
const CARDS = ['sm_80', 'sm_90', 'sm_90 of 4 multiprocessors'];

it.runIf(existsSync(library))(
  'products of int8 codes have the same bits by mma.sync and by wgmma',
  async () => {
    const folder = mkdtempSync(path.join(tmpdir(), 'lowrank-int8-'));
    try {
      const runner = new CaseRunner(folder, path.join(outputFolder(), 'lowrank.node'));
      await runner.prepare();
      const results: string[][][] = [];
      const launches: number[] = [];
      for (const [i, card] of CARDS.entries()) {
        const trace = path.join(folder, `trace-${i}`);
        const { status, lines, err } = await runner.run({
          library: 'source',
          device: DEVICES.find(({ name }) => name === card),
          schedule: { order: 'forward', copies: 'late' },
          check: false,
          filter: FILTER,
          env: { LOWRANK_EMULATOR_TRACE: trace },
        });
        expect({ status, err }).toEqual({ status: 0, err: '' });
        results.push(lines.slice(0, -1));
        launches.push(readFileSync(trace, 'utf8').split('matmul_int8_wgmma_kernel').length - 1);
      }
      const cases = results[0]?.length ?? 0;
      expect(cases).toBe(24);
      expect(results[1]).toEqual(results[0]);
      expect(results[2]).toEqual(results[0]);
      // With and without a bias; 128 rows are not enough, and an adapter's term is one launch.
      const products = 2 * cases;
      expect(launches).toEqual([0, 0, products - 2 * 3 - 3]);
    } finally {
      rmSync(folder, { recursive: true });
    }
  },
  600_000,
);
