/**
 * Reads and sums what the emulated driver records for each launch (LOWRANK_EMULATOR_TRACE: one JSON
 * object per line).
 */

import fs from 'node:fs';
import { LowrankError } from '../../core/errors.js';
import { packageFolder } from '../../environment/package-folder.js';
import { sourceFile } from './source-file.js';

/** A finding of check mode. */
export interface Finding {
  readonly kind: string;
  readonly text: string;
  readonly file: string;
  readonly line: number;
}

/** The cost of the warps' requests of one kind at one source line. */
export interface LineCost {
  readonly kernel: string;
  readonly file: string;
  readonly line: number;
  readonly kind: string;
  readonly bytes_per_lane: number;
  readonly requests: number;
  /** Shared-memory wavefronts, or 32-byte sectors of global memory. */
  readonly cost: number;
  /** The minimum for these bytes. */
  readonly ideal: number;
  readonly bytes: number;
}

/** One launch. */
export interface LaunchRecord {
  readonly kernel: string;
  readonly grid: readonly [number, number, number];
  readonly block: readonly [number, number, number];
  readonly cluster: number;
  readonly shared_bytes: number;
  readonly static_shared_bytes: number;
  readonly param_bytes: number;
  readonly status: string;
  readonly findings: readonly Finding[];
  readonly lines: readonly LineCost[];
  readonly counts: Readonly<Record<string, number>>;
}

/** Launches written after the first `from` bytes. */
export function readTrace(file: string, from = 0): LaunchRecord[] {
  if (!fs.existsSync(file)) return [];
  const root = packageFolder();
  const names = new Map<string, string>([['', '']]);
  const resolved = <T extends { readonly file: string }>(place: T): T => {
    const name = names.get(place.file) ?? sourceFile(root, place.file);
    names.set(place.file, name);
    return { ...place, file: name };
  };
  const text = fs.readFileSync(file).subarray(from).toString('utf8');
  return text
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => {
      let record: LaunchRecord;
      try {
        record = JSON.parse(line) as LaunchRecord;
      } catch {
        throw new LowrankError('ERR_FILE', `emulate: the trace ${file} breaks off`);
      }
      return {
        ...record,
        findings: record.findings.map(resolved),
        lines: record.lines.map(resolved),
      };
    });
}

/** The unit of a line's cost. */
export function unitOf(kind: string): 'wavefronts' | 'sectors' {
  return /global/.test(kind) ? 'sectors' : 'wavefronts';
}

/** The ratio to the ideal; 1 if there is no ideal. */
export function ratioOf({ cost, ideal }: { cost: number; ideal: number }): number {
  return ideal > 0 ? cost / ideal : 1;
}

/** Adds up the same line over several launches of a kernel, the most expensive first. */
export function sumLines(launches: readonly LaunchRecord[]): LineCost[] {
  const sums = new Map<string, LineCost>();
  for (const line of launches.flatMap((launch) => launch.lines)) {
    const key = [line.kernel, line.file, line.line, line.kind, line.bytes_per_lane].join('\u0000');
    const sum = sums.get(key);
    sums.set(key, {
      ...line,
      requests: line.requests + (sum?.requests ?? 0),
      cost: line.cost + (sum?.cost ?? 0),
      ideal: line.ideal + (sum?.ideal ?? 0),
      bytes: line.bytes + (sum?.bytes ?? 0),
    });
  }
  return [...sums.values()].sort(
    (a, b) =>
      b.cost - a.cost ||
      a.file.localeCompare(b.file) ||
      a.line - b.line ||
      a.kind.localeCompare(b.kind),
  );
}

/** The total cost of all lines of a unit. */
export interface Total {
  readonly name: string;
  readonly requests: number;
  readonly cost: number;
  readonly ideal: number;
  readonly bytes: number;
}

/** Totals by kind of request. */
export function totalsByKind(lines: readonly LineCost[]): Total[] {
  const sums = new Map<string, Total>();
  for (const { kind, requests, cost, ideal, bytes } of lines) {
    const sum = sums.get(kind) ?? { name: kind, requests: 0, cost: 0, ideal: 0, bytes: 0 };
    sums.set(kind, {
      name: kind,
      requests: sum.requests + requests,
      cost: sum.cost + cost,
      ideal: sum.ideal + ideal,
      bytes: sum.bytes + bytes,
    });
  }
  return [...sums.values()].sort((a, b) => a.name.localeCompare(b.name));
}

/** Adds up dynamic counts (mma, barriers, ...) over several launches. */
export function sumCounts(launches: readonly LaunchRecord[]): Map<string, number> {
  const sums = new Map<string, number>();
  for (const { counts } of launches) {
    for (const [name, value] of Object.entries(counts)) {
      sums.set(name, (sums.get(name) ?? 0) + value);
    }
  }
  return new Map([...sums].sort(([a], [b]) => a.localeCompare(b)));
}

/** Everything that must not depend on the schedule, as one comparable text. */
export function countersKey(launches: readonly LaunchRecord[]): string {
  return JSON.stringify([sumLines(launches), [...sumCounts(launches)]]);
}
