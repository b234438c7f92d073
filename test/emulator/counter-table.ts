/**
 * Traces of the emulated driver as a table of counters: for each kernel its dynamic counts, and what
 * the accesses of each source line cost. Lines go by their text, so that a table stands when lines
 * move.
 */
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { sourceFile } from '../../lib/cli/emulate/source-file.js';

/** The most that an access may cost of the ideal wavefronts or sectors without a written reason. */
export const LIMIT = 1.1;

export interface Cost {
  readonly requests: number;
  readonly cost: number;
  readonly ideal: number;
}
export interface KernelCounters {
  readonly counts: Record<string, number>;
  readonly accesses: Record<string, Cost>;
}
export type CounterTable = Map<string, KernelCounters>;

/** Why accesses of a file whose line contains `code` may cost more; `kernels` is a pattern. */
export interface Reason {
  readonly file: string;
  readonly code: string;
  readonly kernels?: string;
  readonly why: string;
}

interface TracedLaunch {
  readonly kernel: string;
  readonly counts: Record<string, number>;
  readonly lines: ReadonlyArray<
    Cost & { file: string; line: number; kind: string; bytes_per_lane: number }
  >;
}

/** Text of source lines; each file is read once. */
function sourceLines(root: string) {
  const files = new Map<string, string[]>();
  const names = new Map<string, string>();
  return (file: string, line: number) => {
    const full = names.get(file) ?? sourceFile(root, file);
    names.set(file, full);
    const lines = files.get(full) ?? readFileSync(full, 'utf8').split('\n');
    files.set(full, lines);
    const text = lines[line - 1] ?? '';
    return { file: path.relative(root, full), text: text.trim().replace(/\s+/g, ' ') };
  };
}

/** Kernel -> counters, of the launches in several traces. */
export function tableOf(traces: readonly string[], root: string): CounterTable {
  const textOf = sourceLines(root);
  const table: CounterTable = new Map();
  for (const line of traces.flatMap((trace) => trace.split('\n')).filter(Boolean)) {
    const launch = JSON.parse(line) as TracedLaunch;
    const { counts, accesses } = table.get(launch.kernel) ?? { counts: {}, accesses: {} };
    table.set(launch.kernel, { counts, accesses });
    for (const [name, value] of Object.entries(launch.counts)) {
      counts[name] = (counts[name] ?? 0) + value;
    }
    for (const { file, line: at, kind, bytes_per_lane, requests, cost, ideal } of launch.lines) {
      const { file: name, text } = textOf(file, at);
      const key = `${name}: ${kind} ${bytes_per_lane} B: ${text}`;
      const sum = accesses[key] ?? { requests: 0, cost: 0, ideal: 0 };
      accesses[key] = {
        requests: sum.requests + requests,
        cost: sum.cost + cost,
        ideal: sum.ideal + ideal,
      };
    }
  }
  return table;
}

function sorted<T>(entries: Readonly<Record<string, T>>): Array<[string, T]> {
  return Object.entries(entries).sort(([a], [b]) => (a < b ? -1 : 1));
}

/** The table as JSON, a line an access; a kernel that counts as another does names it. */
export function toJson(table: CounterTable): string {
  const seen = new Map<string, string>();
  const kernels = sorted(Object.fromEntries(table)).map(([name, { counts, accesses }]) => {
    const rows = sorted(accesses).map(
      ([key, { requests, cost, ideal }]) =>
        `   ${JSON.stringify(key)}: [${requests}, ${cost}, ${ideal}]`,
    );
    const totals = sorted(counts).map(([key, value]) => `${JSON.stringify(key)}: ${value}`);
    const text = ` {\n  "counts": { ${totals.join(', ')} },\n  "accesses": {\n${rows.join(',\n')}\n  }\n }`;
    const body = seen.get(text) ?? text;
    if (!seen.has(text)) seen.set(text, ` ${JSON.stringify(name)}`);
    return ` ${JSON.stringify(name)}:${body}`;
  });
  return `{\n${kernels.join(',\n')}\n}\n`;
}

/** The table that toJson() wrote. */
export function fromJson(text: string): CounterTable {
  type Row = [requests: number, cost: number, ideal: number];
  type Entry = { counts: Record<string, number>; accesses: Record<string, Row> };
  const json = JSON.parse(text) as Record<string, Entry | string>;
  const table: CounterTable = new Map();
  for (const [name, value] of Object.entries(json)) {
    const { counts, accesses } = (typeof value === 'string' ? json[value] : value) as Entry;
    const costs: Record<string, Cost> = {};
    for (const [key, [requests, cost, ideal]] of Object.entries(accesses)) {
      costs[key] = { requests, cost, ideal };
    }
    table.set(name, { counts, accesses: costs });
  }
  return table;
}

/** What differs from the committed table. */
export function differences(table: CounterTable, golden: CounterTable): string[] {
  const problems: string[] = [];
  for (const name of [...new Set([...table.keys(), ...golden.keys()])].sort()) {
    const [is, was] = [table.get(name), golden.get(name)];
    if (is === undefined || was === undefined) {
      problems.push(`${name}: ${is === undefined ? 'no case reaches it' : 'not in the table'}`);
      continue;
    }
    for (const part of ['counts', 'accesses'] as const) {
      for (const key of new Set([...Object.keys(is[part]), ...Object.keys(was[part])])) {
        const [now, before] = [is[part][key], was[part][key]].map((value) => JSON.stringify(value));
        if (now !== before) problems.push(`${name}: ${key}: ${now}, not ${before}`);
      }
    }
  }
  return problems;
}

/** Accesses above LIMIT that no reason is given for, and reasons that nothing needs any more. */
export function unexplained(table: CounterTable, reasons: readonly Reason[]): string[] {
  const problems: string[] = [];
  const used = new Set<Reason>();
  for (const [name, { accesses }] of table) {
    for (const [key, { cost, ideal }] of Object.entries(accesses)) {
      if (cost <= LIMIT * ideal) continue;
      const reason = reasons.find(
        ({ file, code, kernels }) =>
          key.startsWith(`${file}: `) &&
          key.includes(code) &&
          (kernels === undefined || new RegExp(kernels).test(name)),
      );
      if (reason !== undefined) used.add(reason);
      else problems.push(`${name}: ${key}: ${cost} where ${ideal} would do, and no reason why`);
    }
  }
  for (const reason of reasons) {
    if (!used.has(reason)) problems.push(`a reason that nothing needs: ${JSON.stringify(reason)}`);
  }
  return problems;
}
