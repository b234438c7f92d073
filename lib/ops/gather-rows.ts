import { native } from '../core/binding.js';
import { Tensor } from '../core/tensor.js';
import { type BaseWeight, checkWeight } from './base-weight.js';
import { denseRows, putRows, rowStep } from './dense-rows.js';
import { zeroTermOf } from './zero-points.js';

const kOp = 'gatherRows';

/** Row `row` of `from` becomes row `at` of the result. */
export interface PlacedRow {
  readonly from: BaseWeight;
  readonly row: number;
  readonly at: number;
}

interface Run extends PlacedRow {
  readonly count: number;
}

/** Elements that are copied at a time: 1 MB of f32. */
const RUN_ELEMENTS = 2 ** 18;

/** Joins neighbours that stay neighbours into one run. */
function runsOf(places: readonly PlacedRow[], most: number): Run[] {
  const runs: Run[] = [];
  for (let i = 0; i < places.length; ) {
    const { from, row, at } = places[i] as PlacedRow;
    let count = 1;
    for (; count < most; count++) {
      const next = places[i + count];
      if (next?.from !== from || next.row !== row + count || next.at !== at + count) break;
    }
    runs.push({ from, row, at, count });
    i += count;
  }
  return runs;
}

/**
 * Copies rows of weights into rows of a tensor. A run of neighbours is one copy, a row that occurs several times is decoded
 * once, and each tile is freed after it was copied.
 * @param y [T, K] the tensor to write to, in its dtype
 * @param places rows of weights [N, K], dense or quantised
 * @internal
 */
export function gatherRows(y: Tensor, places: readonly PlacedRow[]): void {
  const most = Math.max(Math.floor(RUN_ELEMENTS / Math.max(y.shape[1] ?? 1, 1)), 1);
  const bySource = new Map<BaseWeight, Run[]>();
  for (const run of runsOf(places, most)) {
    const known = bySource.get(run.from);
    if (known === undefined) bySource.set(run.from, [run]);
    else known.push(run);
  }
  for (const [from, runs] of bySource) copyRuns(y, from, runs);
}

function copyRuns(y: Tensor, from: BaseWeight, runs: Run[]): void {
  runs.sort((a, b) => a.row - b.row || b.count - a.count);
  const step = rowStep(from);
  if (step === 1 && zeroTermOf(from) === undefined) copyRows(y, from, runs);
  else copyBlocks(y, from, runs, step);
}

/**
 * For weights whose rows can each be decoded alone. Two calls per run and nothing else, because
 * there may be thousands of runs.
 */
function copyRows(y: Tensor, from: BaseWeight, runs: readonly Run[]): void {
  const { handle } = checkWeight(kOp, from);
  const to = Tensor.handleOf(y, kOp, 'y');
  native(kOp, (raw) => {
    for (let i = 0; i < runs.length; ) {
      const { row, count } = runs[i] as Run;
      const rows = raw.takeRows(handle, y.dtype, row, count);
      try {
        for (let run = runs[i]; run?.row === row && run.count === count; run = runs[++i]) {
          raw.putRows(to, rows, run.at);
        }
      } finally {
        raw.dispose(rows);
      }
    }
  });
}

/** For weights whose rows must be decoded together with their neighbours, from one block of scales to the next. */
function copyBlocks(y: Tensor, from: BaseWeight, runs: readonly Run[], step: number): void {
  const { dtype } = y;
  const [N = 0] = from.shape;
  for (let i = 0; i < runs.length; ) {
    const { row, count } = runs[i] as Run;
    const first = row - (row % step);
    const end = Math.min(Math.ceil((row + count) / step) * step, N);
    using block = denseRows(from, first, end, { dtype });
    const inside: Run[] = [];
    for (let run = runs[i]; run !== undefined && run.row + run.count <= end; run = runs[++i]) {
      if (run.row === first && run.count === end - first) putRows(y, block, run.at);
      else inside.push({ ...run, from: block, row: run.row - first });
    }
    copyRows(y, block, inside);
  }
}
