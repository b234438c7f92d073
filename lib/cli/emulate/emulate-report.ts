/**
 * What `lowrank emulate` prints.
 */

import path from 'node:path';
import { grouped, mebibytes, table, visible } from '../../report/terminal.js';
import type { OutputFacts } from './emulate-op.js';
import {
  type Finding,
  type LaunchRecord,
  type LineCost,
  ratioOf,
  sumCounts,
  sumLines,
  totalsByKind,
  unitOf,
} from './emulate-trace.js';

/** One run: a schedule and its outcome. */
export interface EmulatedRun {
  /** `forward`, `random 3`, ... */
  readonly schedule: string;
  readonly launches: readonly LaunchRecord[];
  readonly outputs: readonly OutputFacts[];
  readonly error: string | undefined;
}

/** Everything that a report shows. */
export interface EmulateResult {
  /** What ran, in words. */
  readonly title: string;
  readonly device: string;
  readonly checked: boolean;
  readonly counted: boolean;
  readonly runs: readonly EmulatedRun[];
  /** Do all runs that ended have the same output bits, and the same counters? Undefined for fewer than two. */
  readonly sameBits: boolean | undefined;
  readonly sameCounters: boolean | undefined;
}

/** A finding, and the runs that had it. */
export interface CollectedFinding extends Finding {
  readonly kernel: string;
  readonly schedules: readonly string[];
}

/** The findings of all runs, without repetition. */
export function collectFindings(runs: readonly EmulatedRun[]): CollectedFinding[] {
  const found = new Map<string, CollectedFinding & { schedules: string[] }>();
  for (const { schedule, launches } of runs) {
    for (const { kernel, findings } of launches) {
      for (const finding of findings) {
        const key = [kernel, finding.kind, finding.file, finding.line].join('\u0000');
        const known = found.get(key);
        if (known === undefined) found.set(key, { ...finding, kernel, schedules: [schedule] });
        else if (!known.schedules.includes(schedule)) known.schedules.push(schedule);
      }
    }
  }
  return [...found.values()];
}

/** The runs that ended normally: a failed run says nothing about the kernel's results. */
export function endedRuns(runs: readonly EmulatedRun[]): readonly EmulatedRun[] {
  return runs.filter(({ error }) => error === undefined);
}

/** Do the outputs depend on the schedule, and where do they differ? Empty for fewer than two runs. */
export function bitsText({ runs, sameBits }: EmulateResult): string {
  const [first, ...others] = endedRuns(runs);
  if (first === undefined || sameBits === undefined) return '';
  if (sameBits) {
    const count = others.length + 1;
    return count === runs.length
      ? `The same bits in all ${count} runs.`
      : `The same bits in the ${count} runs that ended.`;
  }
  const differing = first.outputs.flatMap(({ name, hash }, at) => {
    const where = others.filter(({ outputs }) => outputs[at]?.hash !== hash);
    const schedules = where.map(({ schedule }) => schedule).join(', ');
    return where.length === 0 ? [] : [`${name} in ${schedules}`];
  });
  return `DIFFERENT BITS than in ${first.schedule}: ${differing.join('; ')}.`;
}

/** `cuda/elementwise/cast_sm80.cu:12`, relative to the working folder if that is shorter. */
export function placeOf({ file, line }: { file: string; line: number }): string {
  if (file === '') return '(unknown)';
  const relative = path.relative(process.cwd(), file);
  return `${relative.startsWith('..') ? file : relative}:${line}`;
}

/** `4 x 2 x 1` */
export function dims(values: readonly number[]): string {
  return values.join(' x ');
}

/** `4.0 KiB` */
export function bytesText(bytes: number): string {
  return bytes < 2 ** 20 ? `${(bytes / 1024).toFixed(1)} KiB` : mebibytes(bytes);
}

export function errorText({ maxError, limit }: OutputFacts): string {
  if (maxError === undefined) return '-';
  return `${maxError.toExponential(2)}${limit !== undefined && maxError > limit ? ' WRONG' : ''}`;
}

export function ratioText(line: { cost: number; ideal: number }): string {
  return line.ideal > 0 ? ratioOf(line).toFixed(2) : '-';
}

/** The text report. `top` is the number of source lines; 0 for all. */
export function reportText(result: EmulateResult, top: number): string {
  const [first] = result.runs;
  const launches = first?.launches ?? [];
  const parts = [`${result.title}\n${result.device}\n`];
  if (launches.length > 0) parts.push(launchTable(launches));
  else if (first?.error === undefined) parts.push('No launches: there is nothing to compute.\n');
  parts.push(findingsText(result));
  const outputs = first?.outputs ?? [];
  if (outputs.length > 0) parts.push(outputTable(outputs, result));
  if (result.counted && launches.length > 0) parts.push(counterTables(launches, top));
  if (result.sameCounters === false) {
    parts.push('The counters differ between schedules: the kernel does not do the same work.\n');
  }
  return parts.join('\n');
}

function launchTable(launches: readonly LaunchRecord[]): string {
  const rows = launches.map((launch) => [
    launch.kernel,
    dims(launch.grid),
    grouped(launch.block[0] * launch.block[1] * launch.block[2]),
    launch.cluster > 1 ? String(launch.cluster) : '-',
    grouped(launch.shared_bytes + launch.static_shared_bytes),
    launch.status,
  ]);
  const head = ['launch', 'grid', 'threads', 'cluster', 'shared bytes', 'status'];
  return table([head, ...rows], [2, 3, 4]);
}

function findingsText(result: EmulateResult): string {
  const findings = collectFindings(result.runs);
  const schedules = result.runs.map(({ schedule }) => schedule).join(', ');
  const failed = result.runs.filter(({ error }) => error !== undefined);
  if (findings.length === 0 && failed.length === 0) {
    return result.checked
      ? `Findings: none (${schedules})\n`
      : `Not checked: this library sees no plain loads and stores (${schedules})\n`;
  }
  const lines = findings.map(
    ({ kind, text, schedules: where }) => `  ${kind}: ${text}\n    in ${where.join(', ')}`,
  );
  if (findings.length === 0) {
    lines.push(...failed.map(({ schedule, error }) => `  ${error}\n    in ${schedule}`));
  }
  return visible(`Findings: ${lines.length}\n${lines.join('\n')}\n`);
}

function outputTable(outputs: readonly OutputFacts[], result: EmulateResult): string {
  const rows = outputs.map((output) => [
    `${output.name} [${output.shape.join(', ')}]`,
    errorText(output),
    output.maxValue.toExponential(2),
    output.hash,
  ]);
  const head = ['output', 'largest error', 'largest value', 'hash'];
  const bits = bitsText(result);
  return table([head, ...rows], [1, 2]) + (bits === '' ? '' : visible(`${bits}\n`));
}

function counterTables(launches: readonly LaunchRecord[], top: number): string {
  const lines = sumLines(launches);
  const shown = top > 0 ? lines.slice(0, top) : lines;
  const rows = shown.map((line: LineCost) => [
    placeOf(line),
    `${line.kind} ${line.bytes_per_lane} B`,
    grouped(line.requests),
    grouped(line.cost),
    grouped(line.ideal),
    ratioText(line),
    unitOf(line.kind),
  ]);
  const head = ['source line', 'access', 'requests', 'cost', 'ideal', 'ratio', 'in'];
  const more = lines.length - shown.length;
  const totals = totalsByKind(lines).map((total) => [
    total.name,
    grouped(total.requests),
    grouped(total.cost),
    grouped(total.ideal),
    ratioText(total),
    bytesText(total.bytes),
  ]);
  const counts = [...sumCounts(launches)].map(([name, value]) => [name, grouped(value)]);
  return [
    lines.length === 0 ? 'No accesses were counted.\n' : table([head, ...rows], [2, 3, 4, 5]),
    more > 0 ? `${more} more lines: --top 0 shows all of them.\n` : '',
    totals.length === 0
      ? ''
      : `\n${table([['in total', 'requests', 'cost', 'ideal', 'ratio', 'moved'], ...totals], [1, 2, 3, 4, 5])}`,
    counts.length === 0 ? '' : `\n${table([['counter', 'value'], ...counts])}`,
  ].join('');
}
