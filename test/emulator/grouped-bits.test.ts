/**
 * Few rows of each of many adapters, which Hopper takes in one launch, have the bits of the two launches that other
 * cards take.
 */
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { expect, it } from 'vitest';
import { outputFolder } from './build-folder.js';
import { CaseRunner, DEVICES } from './case-runs.mjs';

const library = path.join(outputFolder(), 'lowrank-emulator.so');
const launches = (trace: string, kernel: string) => trace.split(`"${kernel}"`).length - 1;

it.runIf(existsSync(library))(
  'few rows of many adapters have the same bits in one launch and in two',
  async () => {
    const folder = mkdtempSync(path.join(tmpdir(), 'lowrank-grouped-'));
    try {
      const runner = new CaseRunner(folder, path.join(outputFolder(), 'lowrank.node'));
      await runner.prepare();
      const results: string[][][] = [];
      const traces: string[] = [];
      for (const [i, device] of DEVICES.entries()) {
        const trace = path.join(folder, `trace-${i}`);
        const { status, lines, err } = await runner.run({
          library: 'source',
          device,
          schedule: { order: 'forward', copies: 'late' },
          check: false,
          filter: '^grouped few rows ',
          env: { LOWRANK_EMULATOR_TRACE: trace },
        });
        expect({ status, err }).toEqual({ status: 0, err: '' });
        results.push(lines.slice(0, -1));
        traces.push(readFileSync(trace, 'utf8'));
      }
      expect(results[0]).toHaveLength(6);
      for (const other of results.slice(1)) expect(other).toEqual(results[0]);
      // Six batches a case, one of them with two adapters a row, one with too many ranks for a cluster.
      const counts = traces.map((trace) =>
        ['grouped_forward_kernel', 'grouped_shrink_kernel', 'grouped_expand_kernel'].map((kernel) =>
          launches(trace, kernel),
        ),
      );
      expect(counts).toEqual([
        [0, 36, 42],
        [0, 36, 42],
        [36, 6, 6],
        [36, 6, 6],
      ]);
    } finally {
      rmSync(folder, { recursive: true });
    }
  },
  600_000,
);
