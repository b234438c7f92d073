/** `lowrank bench --compare`: the differences between two runs beyond their noise. */

import { table, visible } from '../../report/terminal.js';
import type { BenchResult, CaseResult, Row } from '../result.js';
import { kFewestClean } from '../statistics.js';
import { cleanliness, duration, rowName } from './table.js';

/** One subject on one job, in both runs. */
export interface Change {
  readonly name: string;
  readonly subject: string;
  readonly before_ms: number;
  readonly after_ms: number;
  /** Time after divided by time before, minus 1. */
  readonly change: number;
  /** The range that the noise of both runs allows. */
  readonly change_interval: readonly [number, number];
  readonly verdict: 'faster' | 'slower' | 'within noise';
}

export interface Comparison {
  readonly changes: readonly Change[];
  /** Jobs and subjects that only one run has. */
  readonly only_before: readonly string[];
  readonly only_after: readonly string[];
  /** Rows of both runs of which one has fewer than three clean samples, so that they cannot be compared. */
  readonly not_measured: number;
  /** Why the runs may not be comparable. */
  readonly warnings: readonly string[];
}

/**
 * The range of the median of a row: its interval, and the medians of its processes, because memory
 * layouts differ between processes by more than the samples of one process do.
 */
export function noiseOf({ interval_ms, trial_medians_ms }: Row): readonly [number, number] {
  const all = [...interval_ms, ...trial_medians_ms];
  return [Math.min(...all), Math.max(...all)];
}

function changeOf(name: string, before: Row, after: Row): Change {
  const [a, b] = [noiseOf(before), noiseOf(after)];
  const verdict = b[1] < a[0] ? 'faster' : b[0] > a[1] ? 'slower' : 'within noise';
  return {
    name,
    subject: rowName(after),
    before_ms: before.median_ms,
    after_ms: after.median_ms,
    change: after.median_ms / before.median_ms - 1,
    change_interval: [b[0] / a[1] - 1, b[1] / a[0] - 1],
    verdict,
  };
}

/** Rows by job and subject. A peer's version may change, but not its name. */
function rowsOf(cases: readonly CaseResult[]): Map<string, { name: string; row: Row }> {
  return new Map(
    cases.flatMap(({ name, rows }) =>
      rows.map((row) => [`${name}; ${row.subject}`, { name, row }] as const),
    ),
  );
}

export function compareResults(before: BenchResult, after: BenchResult): Comparison {
  const [a, b] = [rowsOf(before.cases), rowsOf(after.cases)];
  const pairs = [...b].flatMap(([key, { name, row }]) => {
    const other = a.get(key);
    return other === undefined ? [] : [{ name, before: other.row, after: row }];
  });
  const judged = pairs.filter(
    ({ before, after }) => Math.min(before.clean, after.clean) >= kFewestClean,
  );
  const changes = judged.map(({ name, before, after }) => changeOf(name, before, after));
  const missing = (one: typeof a, other: typeof a) =>
    [...one.keys()].filter((key) => !other.has(key));
  return {
    changes,
    only_before: missing(a, b),
    only_after: missing(b, a),
    not_measured: pairs.length - judged.length,
    warnings: warningsOf(before, after),
  };
}

/** From this drift on, the ceilings of two runs do not belong to one machine in one state. */
const kDrift = 0.03;

function warningsOf(before: BenchResult, after: BenchResult): string[] {
  const warnings: string[] = [];
  for (const key of ['cpu', 'cores', 'isa', 'kernel', 'node', 'governor'] as const) {
    const [a, b] = [before.machine[key], after.machine[key]];
    if (a !== b) warnings.push(`${key} differs: ${a ?? 'not known'}, then ${b ?? 'not known'}`);
  }
  const [waited, then] = [before.calls ?? 'awaited', after.calls ?? 'awaited'];
  if (waited !== then) warnings.push(`calls were ${waited}, then ${then} (--latency)`);
  if (typeof before.roofline !== 'string' && typeof after.roofline !== 'string') {
    for (const [threads, a] of Object.entries(before.roofline)) {
      const b = after.roofline[threads];
      if (b === undefined) continue;
      for (const kind of ['f32', 'read'] as const) {
        const drift = b[kind] / a[kind] - 1;
        if (Math.abs(drift) > kDrift) {
          const what = kind === 'f32' ? 'f32 peak' : 'memory bandwidth';
          warnings.push(
            `${what} of ${threads} threads differs by ${percent(drift)}: the machine, not the code`,
          );
        }
      }
    }
  }
  for (const [which, run] of [
    ['first', before],
    ['second', after],
  ] as const) {
    const { clean, samples } = cleanliness(run);
    if (clean < 0.8 * samples)
      warnings.push(`the ${which} run was not quiet: ${clean} of ${samples} samples clean`);
  }
  return warnings;
}

function percent(value: number): string {
  return `${value < 0 ? '-' : '+'}${(100 * Math.abs(value)).toFixed(1)} %`;
}

/** The comparison as text, sorted by the size of the change. */
export function comparisonText(comparison: Comparison): string {
  const { changes, warnings, only_before, only_after, not_measured } = comparison;
  const changed = changes
    .filter(({ verdict }) => verdict !== 'within noise')
    .sort((a, b) => Math.abs(Math.log1p(b.change)) - Math.abs(Math.log1p(a.change)));
  const cells = changed.map((row) => [
    row.verdict,
    percent(row.change),
    `[${row.change_interval.map(percent).join(', ')}]`,
    duration(row.before_ms),
    duration(row.after_ms),
    `${row.name}; ${row.subject}`,
  ]);
  const lines = warnings.map((text) => `warning: ${text}\n`);
  if (cells.length > 0) {
    lines.push(
      table([['', 'time', 'at least, at most', 'before', 'after', ''], ...cells], [1, 3, 4]),
    );
  }
  const rest = changes.length - changed.length;
  if (not_measured > 0) {
    lines.push(`${not_measured} not compared: fewer than ${kFewestClean} samples were clean\n`);
  }
  lines.push(
    changes.length + not_measured === 0
      ? 'the runs have no job in common\n'
      : `${changed.length} of ${changes.length} changed beyond noise, ${rest} did not\n`,
  );
  for (const [which, keys] of [
    ['first', only_before],
    ['second', only_after],
  ] as const) {
    if (keys.length > 0) lines.push(`only in the ${which} run: ${keys.length}, e.g. ${keys[0]}\n`);
  }
  return visible(lines.join(''));
}
