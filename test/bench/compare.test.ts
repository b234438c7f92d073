/** Comparisons of runs that differ by known factors. */

import { describe, expect, it } from 'vitest';
import { compareResults, comparisonText, noiseOf } from '../../lib/bench/report/compare.js';
import type { Row } from '../../lib/bench/result.js';
import { sampleResult } from './sample-result.js';

const before = sampleResult();
const changed = (slower: (row: Row) => number) => compareResults(before, sampleResult(slower));

describe('a comparison', () => {
  it('finds nothing in the same run, nor in noise', () => {
    const same = changed(() => 1);
    expect(same.changes.length).toBe(before.cases.flatMap(({ rows }) => rows).length);
    expect(same.changes.every(({ verdict }) => verdict === 'within noise')).toBe(true);
    expect(same.warnings).toEqual([]);
    // The intervals are 1 % to each side: they part at 1.01 / 0.99.
    expect(changed(() => 1.02).changes.every(({ verdict }) => verdict === 'within noise')).toBe(
      true,
    );
    expect(changed(() => 0.985).changes.every(({ verdict }) => verdict === 'within noise')).toBe(
      true,
    );
    expect(changed(() => 1.021).changes.every(({ verdict }) => verdict === 'slower')).toBe(true);
    expect(changed(() => 0.98).changes.every(({ verdict }) => verdict === 'faster')).toBe(true);
    expect(comparisonText(same)).toMatch(/^0 of \d+ changed beyond noise/);
  });

  it('names what changed, the largest first, with what is possible', () => {
    const result = changed(({ subject, op }) =>
      subject !== 'lowrank' ? 1 : op === 'loraBackward' ? 0.5 : op === 'loraForward' ? 1.1 : 1,
    );
    const real = result.changes.filter(({ verdict }) => verdict !== 'within noise');
    expect(real.map(({ verdict }) => verdict).sort()).toEqual([
      ...['faster', 'faster', 'faster', 'slower', 'slower', 'slower'],
    ]);
    const faster = real.find(({ verdict }) => verdict === 'faster');
    expect(faster?.change).toBeCloseTo(-0.5, 9);
    expect(faster?.change_interval[0]).toBeCloseTo((0.5 * 0.99) / 1.01 - 1, 9);
    expect(faster?.change_interval[1]).toBeCloseTo((0.5 * 1.01) / 0.99 - 1, 9);
    const lines = comparisonText(result).split('\n');
    expect(lines[1]).toMatch(
      /^faster {2}-50\.0 % {2}\[-51\.0 %, -49\.0 %\] .*loraBackward.*lowrank$/,
    );
    expect(lines[4]).toMatch(/^slower {2}\+10\.0 %/);
    expect(lines[7]).toBe(
      `6 of ${result.changes.length} changed beyond noise, ${result.changes.length - 6} did not`,
    );
  });

  it('takes differences between processes for noise', () => {
    const row = before.cases[0]?.rows[0] as Row;
    const [low, high] = [0.9 * row.median_ms, 1.3 * row.median_ms];
    expect(noiseOf({ ...row, trial_medians_ms: [low, high] })).toEqual([low, high]);
    const restless = {
      ...before,
      cases: before.cases.map((one) => ({
        ...one,
        rows: one.rows.map((each) => ({
          ...each,
          trial_medians_ms: [each.median_ms, 1.3 * each.median_ms],
        })),
      })),
    };
    const { changes } = compareResults(
      restless,
      sampleResult(() => 1.2),
    );
    expect(changes.every(({ verdict }) => verdict === 'within noise')).toBe(true);
  });

  it('warns where the machine changed, and names what is in one run only', () => {
    const after = {
      ...before,
      calls: 'queued' as const,
      machine: { ...before.machine, node: 'v22.0.0' },
      roofline: { '2': { f32: 200, read: 35.1, copy: 36 } },
      cases: before.cases.slice(1).map((one) => ({
        ...one,
        rows: one.rows.map((row) => ({ ...row, clean: 3 })),
      })),
    };
    const result = compareResults(before, after);
    expect(result.warnings).toEqual([
      'node differs: v20.20.2, then v22.0.0',
      'calls were awaited, then queued (--latency)',
      'f32 peak of 2 threads differs by -14.5 %: the machine, not the code',
      expect.stringMatching(/^the second run was not quiet: 117 of 1209/),
    ]);
    expect(result.only_before).toHaveLength(before.cases[0]?.rows.length as number);
    expect(result.only_after).toEqual([]);
    expect(comparisonText(compareResults(before, { ...after, cases: [] }))).toContain(
      'the runs have no job in common',
    );
  });
});
