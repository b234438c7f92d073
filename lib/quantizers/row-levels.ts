import type { PlanarWeight } from '../checkpoint/planar/planar-weight.js';
import { fail } from '../core/errors.js';
import { absmaxOf, eachBlock, nearestLevel } from './blocks.js';
import { type BitChoice, chooseBits } from './choose-bits.js';
import { type FittedLevels, lloydMax, WeightedSamples } from './lloyd-max.js';

/** How {@link quantizeRowLevels} works. */
export interface RowLevelOptions {
  /** Mean bits of a code over the rows, from the least of `options` on. */
  readonly budget: number;
  /** Elements of a block of a row that share a scale; a divisor of K. */
  readonly blocksize: number;
  /** Bits that a row may have. */
  readonly options: readonly number[];
}

/** A weight on levels of its rows. */
export interface RowLevels {
  /** Bits of each row. */
  readonly bits: readonly number[];
  /** Ascending levels of each row, times the absmax of a block. */
  readonly levels: readonly Float64Array[];
  /** As the kernels take it: codes of one table of 256 levels, to which those of the rows are rounded. */
  readonly planes: PlanarWeight;
}

/** Levels that the kernels can look up. */
const kTable = 256;

/** One table for the levels of all rows: themselves, where they are few, otherwise fitted to them by their weights. */
function tableOf(levels: readonly Float64Array[], weights: readonly number[]): Float32Array {
  const all = levels.flatMap((row) => [...row]);
  const distinct = [...new Set(all.map(Math.fround))].sort((a, b) => a - b);
  const table = new Float32Array(kTable);
  if (distinct.length <= kTable) {
    table.set(distinct);
    table.fill(distinct.at(-1) as number, distinct.length);
    return table;
  }
  const shares = levels.flatMap((row, n) => [...row].map(() => weights[n] as number));
  table.set(lloydMax(new WeightedSamples(all, shares), kTable).levels);
  return table;
}

/**
 * Codes whose thresholds and levels are fitted to each row, with the bits that each row is worth (Zhou et al., LowRA, 2025,
 * arXiv:2502.08141): the values of a row over the absmax of their blocks get levels by Lloyd and Max, weighted by the squares of
 * these scales, for each number of bits; then {@link chooseBits} gives bits to the rows whose error falls most.
 * @param values [N, K], row by row, all finite
 * @throws ERR_VALUE for a budget below the least option · ERR_SHAPE
 */
export function quantizeRowLevels(
  op: string,
  values: Float32Array,
  rows: number,
  columns: number,
  { budget, blocksize, options }: RowLevelOptions,
): RowLevels {
  if (columns % blocksize !== 0) {
    fail(
      'ERR_SHAPE',
      op,
      'blocksize',
      `a divisor of the ${columns} features of a row`,
      `${blocksize}`,
    );
  }
  const scales = new Float32Array(values.length / blocksize);
  const scaled = new Float32Array(values.length);
  eachBlock(values.length, blocksize, (range, block) => {
    const most = absmaxOf(values, range) || 1;
    scales[block] = most;
    for (let i = range.begin; i < range.end; i++) scaled[i] = (values[i] as number) / most;
  });
  const perRow = columns / blocksize;
  const weightOf = (i: number) => (scales[Math.floor(i / blocksize)] as number) ** 2;
  const fitted = Array.from({ length: rows }, (_, n): readonly FittedLevels[] => {
    const own = scaled.subarray(n * columns, (n + 1) * columns);
    const weights = Float64Array.from(own, (_, k) => weightOf(n * columns + k));
    const samples = new WeightedSamples(own, weights);
    return options.map((bits) => lloydMax(samples, 2 ** bits));
  });
  const choices = fitted.map(
    (row): BitChoice => ({
      costs: row.map(({ error }) => error),
      sizes: options.map((bits) => bits * columns),
    }),
  );
  const chosen = chooseBits(op, choices, budget * rows * columns);
  const levels = chosen.map((option, n) => fitted[n]?.[option]?.levels as Float64Array);
  const energies = levels.map((_, n) =>
    scales.subarray(n * perRow, (n + 1) * perRow).reduce((sum, s) => sum + s * s, 0),
  );
  const table = tableOf(levels, energies);
  const codes = new Uint8Array(values.length);
  levels.forEach((row, n) => {
    const places = Uint8Array.from(row, (level) => nearestLevel(table, level));
    for (let i = n * columns; i < (n + 1) * columns; i++) {
      codes[i] = places[nearestLevel(row, scaled[i] as number)] as number;
    }
  });
  return {
    bits: chosen.map((option) => options[option] as number),
    levels,
    planes: {
      rows,
      columns,
      bits: 8,
      codes,
      levels: table,
      grid: { kind: 'tiles', rows: 1, columns: blocksize },
      scale: { values: { dtype: 'f32', data: scales } },
    },
  };
}
