/** A run as text: one block per job, one line per subject, with bars of speed. */

import { table, visible } from '../../report/terminal.js';
import { type BenchResult, type CaseResult, measuredRatio, type Row } from '../result.js';
import { kFewestClean } from '../statistics.js';

const kBar = 16;

/** `12.3 ms`, with three digits. */
export function duration(ms: number): string {
  if (!Number.isFinite(ms)) return '-';
  if (ms >= 1000) return `${(ms / 1000).toPrecision(3)} s`;
  return ms >= 1 ? `${ms.toPrecision(3)} ms` : `${(1000 * ms).toPrecision(3)} us`;
}

/** `12.3 GFLOP/s`, with three digits. */
export function rate(gflops: number): string {
  if (gflops >= 999.5) return `${(gflops / 1000).toPrecision(3)} TFLOP/s`;
  return `${gflops.toPrecision(3)} GFLOP/s`;
}

/** A bar in eighths of a character; the fastest is full. */
export function bar(share: number, width = kBar): string {
  const eighths = Math.max(1, Math.round(8 * width * Math.min(1, Math.max(0, share))));
  const part = ['', '\u258f', '\u258e', '\u258d', '\u258c', '\u258b', '\u258a', '\u2589'];
  return '\u2588'.repeat(Math.floor(eighths / 8)) + (part[eighths % 8] as string);
}

/** `1.23 [1.20, 1.26]`, or a note that it was not measured. */
export function ratioText(row: Row): string {
  const measured = measuredRatio(row);
  if (measured === undefined) return 'not measured';
  const text = (value: number) => (value < 0.095 ? value.toPrecision(2) : value.toFixed(2));
  return `${text(measured.ratio)} [${text(measured.low)}, ${text(measured.high)}]`;
}

/** Subjects of this library, whose version is in the heading. */
const kOwn: readonly string[] = ['lowrank', 'lowrank-int8', 'unfused', 'base'];

/** The subject of a row, with its version. */
export function rowName({ subject, version }: Row): string {
  if (kOwn.includes(subject)) return subject;
  return `${subject} ${version}`;
}

function caseText(result: CaseResult): string {
  const { rows, skipped } = result;
  const fastest = Math.min(...rows.map(({ median_ms }) => median_ms));
  const copies = rows[0]?.copies ?? 1;
  const weights = copies > 1 ? `cold weights (${copies} copies)` : 'one weight';
  const cells = rows.map((row) => [
    `  ${rowName(row)}`,
    duration(row.median_ms),
    `${duration(row.p10_ms)} to ${duration(row.p90_ms)}`,
    rate(row.gflops),
    row.share === undefined ? '' : `${(100 * row.share).toFixed(0)} % ${row.bound}`,
    ratioText(row),
    `${row.clean}/${row.samples}`,
    bar(fastest / row.median_ms),
  ]);
  const head = [
    '  subject',
    'median',
    'p10 to p90',
    'rate',
    'of the roof',
    'time / ours',
    'clean',
    'speed',
  ];
  const notes = [...new Set(skipped.map(({ subject, reason }) => `  ${subject}: ${reason}`))];
  const body = rows.length === 0 ? '' : table([head, ...cells], [1, 2, 3, 4, 6]);
  return `${result.name}; ${weights}\n${body}${notes.map((line) => `${line}\n`).join('')}`;
}

/** What was measured, and where. */
export function headline(result: BenchResult): string[] {
  const { machine, roofline, busy_cores: busy } = result;
  const lines = [
    `${machine.cpu}, ${machine.cores} cores${machine.virtual ? ' (virtual)' : ''}, ${machine.isa}; ` +
      `${machine.caches.join(', ')}; ${machine.node}; lowrank ${result.version}` +
      `${result.commit === undefined ? '' : ` at ${result.commit}`}`,
  ];
  if (typeof roofline === 'string') lines.push(`no roofline: ${roofline}`);
  else {
    for (const [threads, { f32, bf16, int8, read, copy }] of Object.entries(roofline)) {
      const rates = [
        `f32 ${f32.toFixed(0)} GFLOP/s`,
        ...(bf16 === undefined ? [] : [`bf16 ${bf16.toFixed(0)} GFLOP/s`]),
        ...(int8 === undefined ? [] : [`int8 ${int8.toFixed(0)} GOP/s`]),
        `read ${read.toFixed(1)} GB/s`,
        `copy ${copy.toFixed(1)} GB/s`,
      ];
      lines.push(`roofline, ${threads} thread${threads === '1' ? '' : 's'}: ${rates.join(', ')}`);
    }
  }
  const { clean, samples } = cleanliness(result);
  const quiet = busy === undefined ? '' : `; ${busy.toFixed(1)} cores were busy before the run`;
  lines.push(`${clean} of ${samples} samples clean${quiet}`);
  if (clean < 0.8 * samples || (busy ?? 0) > 0.2) {
    lines.push('this machine was not quiet: look at the ratios, and measure again');
  }
  const missing = result.peers.flatMap(({ name, missing: how }) =>
    how === undefined ? [] : [`${name} is not here: ${how}`],
  );
  const { left_out: rest } = result;
  if (rest !== undefined) {
    lines.push(
      `${rest.jobs.length} jobs left out after ${rest.limit_s} s: raise --limit to run them`,
    );
  }
  return [...lines, ...missing];
}

export function cleanliness({ cases }: BenchResult): { clean: number; samples: number } {
  const rows = cases.flatMap((row) => row.rows);
  return {
    clean: rows.reduce((sum, row) => sum + row.clean, 0),
    samples: rows.reduce((sum, row) => sum + row.samples, 0),
  };
}

const kLegend = `median: of clean samples; time / ours: median and its 95 % interval, from samples taken in turns
of the roof: of the lower of multiply-add peak and memory bandwidth, measured in this run
not measured: fewer than ${kFewestClean} pairs of samples were clean; times are then of all samples
`;

/** The fewest samples whose minimum and maximum contain the median with 95 % confidence. */
const kEnoughPairs = 6;

/** Explains the intervals of few samples, which contain the median with less than 95 % confidence. */
export function intervalNote({ cases }: BenchResult): string | undefined {
  const measured = cases.flatMap(({ rows }) =>
    rows.filter((row) => measuredRatio(row) !== undefined),
  );
  const fewest = Math.min(...measured.map(({ pairs }) => pairs), kEnoughPairs);
  if (fewest === kEnoughPairs) return undefined;
  const held = (100 * (1 - 2 ** (1 - fewest))).toFixed(0);
  return `with fewer than ${kEnoughPairs} samples the interval runs from the smallest to the largest: with ${fewest} it contains the median at ${held} % confidence`;
}

/** How each of the other subjects was run: its note, once if all jobs have the same. */
function settingsOf({ cases }: BenchResult): string[] {
  const rows = cases.flatMap((one) => one.rows).filter(({ note }) => note !== undefined);
  const notes = new Map(rows.map((row) => [`${rowName(row)}: ${row.note}`, true]));
  return notes.size === 0 ? [] : [['how others were run:', ...notes.keys()].join('\n  ')];
}

/** The whole run. */
export function resultText(result: BenchResult): string {
  const note = intervalNote(result);
  const parts = [
    headline(result).join('\n'),
    ...result.cases.map((row) => caseText(row).trimEnd()),
    `${kLegend}${note ?? ''}`.trimEnd(),
    ...settingsOf(result),
  ];
  return `${visible(parts.join('\n\n'))}\n`;
}
