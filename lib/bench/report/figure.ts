/** One figure for a README: speed-up and roofline of a run, as a standalone SVG. */

import { figureSvg } from '../../report/plot.js';
import type { BenchResult } from '../result.js';
import { rooflinePlot, speedupPlots, threadPlots } from './figures.js';
import { cleanliness } from './table.js';

/** @returns `undefined` if the run varies nothing that could be drawn */
export function benchFigure(result: BenchResult): string | undefined {
  const plots = [speedupPlots(result)[0], rooflinePlot(result) ?? threadPlots(result)[0]].filter(
    (plot) => plot !== undefined,
  );
  if (plots.length === 0) return undefined;
  const { machine, commit, date, version } = result;
  const where = `${machine.cpu}, ${machine.cores} cores, ${machine.isa}; ${machine.node}`;
  const what = `lowrank ${version}${commit === undefined ? '' : ` at ${commit}`}, ${date.slice(0, 10)}`;
  const { clean, samples } = cleanliness(result);
  return figureSvg(plots, `${where}; ${what}; ${clean} of ${samples} samples clean`);
}
