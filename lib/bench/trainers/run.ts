/** A run of trainers, its saved form, and its table. */

import { version } from '../../environment/version.js';
import { mebibytes, type Progress, table, visible } from '../../report/terminal.js';
import { describeMachine, type Machine, sourceCommit } from '../machine.js';
import { duration } from '../report/table.js';
import type { Trainer, TrainerSide, TrainerTimes } from './trainer.js';

export const kTrainerFormat = 'lowrank bench trainers 1';

/** A case that was measured, or why it was not. */
export interface TrainerRow {
  readonly trainer: string;
  readonly version: string;
  readonly case: string;
  readonly lines: number;
  readonly without?: TrainerSide;
  readonly with?: TrainerSide;
  /** How many times faster a step is, by medians. */
  readonly speedup?: number;
  /** The largest difference of the losses of a step, relative to that without this library. */
  readonly loss_difference?: number;
  readonly failed?: string;
}

/** What `--trainer --json` prints. */
export interface TrainerResult {
  readonly format: typeof kTrainerFormat;
  readonly version: string;
  readonly commit?: string;
  readonly date: string;
  readonly seconds: number;
  readonly command: string;
  readonly machine: Machine;
  readonly repeats: number;
  readonly rows: readonly TrainerRow[];
  /** Trainers that are not installed, and how to get them. */
  readonly missing: readonly { readonly trainer: string; readonly install: string }[];
}

export interface TrainerRunPlan {
  readonly repeats: number;
  readonly seconds: number;
  readonly tiny: boolean;
}

/** Measures all cases of the trainers that are installed. A case that fails does not end the run. */
export async function runTrainers(
  trainers: readonly Trainer[],
  { repeats, seconds, tiny }: TrainerRunPlan,
  command: string,
  progress: Progress,
): Promise<TrainerResult> {
  const started = performance.now();
  const date = new Date().toISOString();
  const rows: TrainerRow[] = [];
  const missing: { trainer: string; install: string }[] = [];
  for (const trainer of trainers) {
    const found = await trainer.find();
    if ('missing' in found) {
      missing.push({ trainer: trainer.name, install: found.missing });
      continue;
    }
    progress.phase(trainer.name);
    for (const one of trainer.cases(tiny)) {
      const row = {
        trainer: trainer.name,
        version: found.version,
        case: one.name,
        lines: one.lines,
      };
      const onStep = (done: number, total: number) => progress.update(done, total, one.name);
      onStep(0, repeats);
      try {
        const times = await one.run({ repeats, seconds, onStep });
        rows.push({ ...row, ...judged(times) });
      } catch (error) {
        rows.push({ ...row, failed: (error as Error).message });
      }
    }
  }
  progress.close();
  const commit = sourceCommit();
  return {
    format: kTrainerFormat,
    version: version(),
    ...(commit === undefined ? {} : { commit }),
    date,
    seconds: Math.round((performance.now() - started) / 100) / 10,
    command,
    machine: describeMachine(['cpu']),
    repeats,
    rows,
    missing,
  };
}

function judged(times: TrainerTimes) {
  return {
    without: times.without,
    with: times.with,
    speedup: times.without.median_ms / times.with.median_ms,
    loss_difference: lossDifference(times.without.losses, times.with.losses),
  };
}

/** The largest relative difference of two lists of losses; NaN if one has a step that the other has not. */
export function lossDifference(without: readonly number[], other: readonly number[]): number {
  if (without.length === 0 || without.length !== other.length) return Number.NaN;
  const differences = without.map(
    (loss, at) => Math.abs((other[at] as number) - loss) / Math.abs(loss),
  );
  return differences.some(Number.isNaN) ? Number.NaN : Math.max(...differences);
}

/** The table. */
export function trainersText({ machine, rows, missing, version: own }: TrainerResult): string {
  const lines = [`lowrank ${own} on ${machine.cpu}, ${machine.cores} cores, Node ${machine.node}`];
  const measured = rows.filter((row) => row.failed === undefined);
  if (measured.length > 0) {
    const heading = ['trainer', 'lines', 'losses differ', 'without', 'with', 'faster', 'base'];
    const cells = measured.map((row) => {
      const bytes = [row.without?.base_bytes, row.with?.base_bytes];
      return [
        `${row.trainer} ${row.version}: ${row.case}`,
        String(row.lines),
        (row.loss_difference ?? Number.NaN).toExponential(1),
        duration(row.without?.median_ms ?? Number.NaN),
        duration(row.with?.median_ms ?? Number.NaN),
        `${(row.speedup ?? Number.NaN).toFixed(2)} x`,
        bytes.some((count) => !count)
          ? '-'
          : bytes.map((count) => mebibytes(count ?? 0)).join(' -> '),
      ];
    });
    lines.push('', table([heading, ...cells], [1, 2, 3, 4, 5, 6]).trimEnd());
  }
  for (const { trainer, case: name, failed } of rows) {
    if (failed !== undefined) lines.push(`${trainer}: ${name} failed: ${failed}`);
  }
  for (const { trainer, install } of missing) {
    lines.push(`${trainer}: not installed; get it by ${install}`);
  }
  return `${lines.map(visible).join('\n')}\n`;
}
