/** The plots of a run: one for each property that its jobs vary. */

import type { Plot, PlotPoint, Series } from '../../report/plot.js';
import { flopsOf, type Job } from '../job.js';
import { type BenchResult, type CaseResult, measuredRatio, type Row } from '../result.js';
import { duration, rate, rowName } from './table.js';

/** Colours of subjects, in order of appearance, the same in every plot of a run. */
export function subjectStyles(result: BenchResult): ReadonlyMap<string, number> {
  const names = [
    ...result.peers.map(({ name }) => name),
    ...result.cases.flatMap(({ rows }) => rows.map(({ subject }) => subject)),
  ];
  const seen = result.cases.flatMap(({ rows }) => rows.map(({ subject }) => subject));
  return new Map(
    [...new Set(names)].filter((name) => seen.includes(name)).map((name, i) => [name, i]),
  );
}

type Varied = 'M' | 'r' | 'threads';

/** Cases that differ in this property only, if there are two or more of them. */
function groupsBy(cases: readonly CaseResult[], varied: Varied): CaseResult[][] {
  const groups = new Map<string, CaseResult[]>();
  for (const one of cases) {
    const { coldBytes: _, ...job } = one.job;
    const key = JSON.stringify({ ...job, [varied]: 0 });
    groups.set(key, [...(groups.get(key) ?? []), one]);
  }
  return [...groups.values()]
    .filter((group) => new Set(group.map(({ job }) => job[varied])).size >= 2)
    .map((group) => group.sort((a, b) => a.job[varied] - b.job[varied]));
}

/** The common part of a group, in words. */
function commonText(job: Job, varied: Varied): string {
  const { op, layer, M, K, N, r, format, dtype, threads } = job;
  const parts = [
    op,
    ...(layer === undefined ? [] : [layer]),
    `${K} to ${N}`,
    ...(varied === 'M' ? [] : [`M=${M}`]),
    ...(varied === 'r' || op === 'matmul' ? [] : [`r=${r}`]),
    `${format} ${dtype}`,
    ...(varied === 'threads' ? [] : [`${threads} thread${threads === 1 ? '' : 's'}`]),
  ];
  return parts.join(', ');
}

const valuesOf = (group: readonly CaseResult[], varied: Varied) => [
  ...new Set(group.map(({ job }) => job[varied])),
];

/** One line per subject, through the point that `point` makes from each row; rows without a point are left out. */
function lines(
  group: readonly CaseResult[],
  styles: ReadonlyMap<string, number>,
  wanted: (row: Row) => boolean,
  point: (row: Row, job: Job) => PlotPoint | undefined,
): Series[] {
  const series = new Map<string, { name: string; points: PlotPoint[] }>();
  for (const { rows, job } of group) {
    for (const row of rows.filter(wanted)) {
      const made = point(row, job);
      if (made === undefined) continue;
      const one = series.get(row.subject) ?? { name: shortName(row), points: [] };
      one.points.push(made);
      series.set(row.subject, one);
    }
  }
  return [...series].map(([subject, one]) => ({ ...one, style: styles.get(subject) ?? 0 }));
}

/** Number of letters that fit next to a plot. */
const kNameLength = 18;

/** With the version if there is room; tables always have it. */
function shortName(row: Row): string {
  const full = rowName(row).replace(/\+\S*/, '');
  const shorter = `${row.subject} ${row.version.split(' ')[0]}`;
  return (
    [full, shorter].find((name) => name.length <= kNameLength) ?? row.subject.slice(0, kNameLength)
  );
}

/** How much longer the others take, against M. */
export function speedupPlots(result: BenchResult): Plot[] {
  const styles = subjectStyles(result);
  return groupsBy(result.cases, 'M').flatMap((group) => {
    const first = group[0]?.rows[0]?.subject;
    const series = lines(
      group,
      styles,
      ({ subject }) => subject !== first && subject !== 'base',
      (row, job) => {
        const measured = measuredRatio(row);
        if (measured === undefined) return undefined;
        const { ratio, low, high } = measured;
        const title = `${rowName(row)}, M=${job.M}: ${ratio.toFixed(2)} times the time, ${duration(row.median_ms)}`;
        return { x: job.M, y: ratio, low, high, title };
      },
    );
    if (series.length === 0) return [];
    return [
      {
        title: 'Speed-up against M',
        subtitle: commonText((group[0] as CaseResult).job, 'M'),
        x: { label: 'M: tokens', log: true, values: valuesOf(group, 'M') },
        y: {
          label: `time over that of ${first}`,
          log: true,
          format: (value: number) => `${value}×`,
        },
        series,
        level: { y: 1, label: first ?? '' },
      },
    ];
  });
}

/** The time that the adapter adds to the base product, against r. */
export function overheadPlots(result: BenchResult): Plot[] {
  const byOp = new Map<string, CaseResult[]>();
  for (const group of groupsBy(result.cases, 'r')) {
    if (!group.some(({ rows }) => rows.some(({ subject }) => subject === 'base'))) continue;
    const { op: _, ...rest } = (group[0] as CaseResult).job;
    const key = JSON.stringify({ ...rest, r: 0 });
    byOp.set(key, [...(byOp.get(key) ?? []), ...group]);
  }
  return [...byOp.values()].map((cases) => {
    const ops = [...new Set(cases.map(({ job }) => job.op))];
    const series = ops.flatMap((op, i): Series[] => {
      const own = cases.filter(({ job }) => job.op === op);
      const measured = own.flatMap(({ rows, job }) => {
        const base = rows.find(({ subject }) => subject === 'base');
        const measured = base === undefined ? undefined : measuredRatio(base);
        if (measured === undefined) return [];
        const percent = (value: number) => 100 * (1 / value - 1);
        const { ratio, low, high } = measured;
        return [{ x: job.r, y: percent(ratio), low: percent(high), high: percent(low) }];
      });
      const maths = own.map(({ job }) => ({
        x: job.r,
        y: 100 * (flopsOf(job) / flopsOf({ ...job, r: 0 }) - 1),
      }));
      return [
        { name: op, style: i, points: measured },
        { name: 'its operations', style: i, points: maths, dashed: true },
      ];
    });
    const { op: _, ...job } = (cases[0] as CaseResult).job;
    return {
      title: 'Cost of the adapter against r',
      subtitle: commonText({ ...job, op: 'matmul' }, 'r').replace(/^matmul, /, ''),
      x: { label: 'r: rank', log: true, values: valuesOf(cases, 'r') },
      y: {
        label: 'time added by the adapter, %',
        log: false,
        include: [0],
        format: (value: number) => `${value} %`,
      },
      series,
    };
  });
}

/** Rate against threads, and the proportional rate. */
export function threadPlots(result: BenchResult): Plot[] {
  const styles = subjectStyles(result);
  return groupsBy(result.cases, 'threads').map((group) => {
    const counts = valuesOf(group, 'threads');
    const series = lines(
      group,
      styles,
      ({ subject }) => subject !== 'base',
      (row, job) => ({
        x: job.threads,
        y: row.gflops,
        title: `${rowName(row)}, ${job.threads} threads: ${rate(row.gflops)}`,
      }),
    ).filter(({ points }) => points.length >= 2);
    const first = group[0]?.rows[0];
    const ideal =
      first === undefined
        ? []
        : counts.map((count) => ({ x: count, y: (first.gflops * count) / (counts[0] as number) }));
    return {
      title: 'Scaling by threads',
      subtitle: commonText((group[0] as CaseResult).job, 'threads'),
      x: { label: 'threads', log: false, values: counts },
      y: { label: 'GFLOP/s', log: false, include: [0] },
      series: [...series, { name: 'proportional', style: 0, points: ideal, dashed: true }],
    };
  });
}

/** Every row with the most threads, under the ceilings. */
export function rooflinePlot(result: BenchResult): Plot | undefined {
  if (typeof result.roofline === 'string') return undefined;
  const threads = Math.max(...Object.keys(result.roofline).map(Number));
  const ceilings = result.roofline[String(threads)];
  if (ceilings === undefined) return undefined;
  const styles = subjectStyles(result);
  const cases = result.cases.filter(({ job }) => job.threads === threads && job.device === 'cpu');
  const points = lines(
    cases,
    styles,
    ({ subject }) => subject !== 'base',
    (row, job) => ({
      x: row.intensity,
      y: row.gflops,
      title: `${rowName(row)}, ${job.op} M=${job.M} r=${job.r} ${job.dtype}: ${rate(row.gflops)}, ${row.intensity.toPrecision(3)} flop/byte`,
    }),
  ).map((one): Series => ({ ...one, scattered: true }));
  const xs = points.flatMap((one) => one.points.map(({ x }) => x));
  if (xs.length === 0) return undefined;
  const used = new Set(cases.flatMap(({ rows }) => rows.map(({ computes }) => computes)));
  const roofs = (['f32', 'bf16', 'int8'] as const).flatMap((type, i): Series[] => {
    const peak = ceilings[type];
    if (peak === undefined || !(type === 'f32' || used.has(type))) return [];
    const [left, knee] = [0.7 * Math.min(...xs), peak / ceilings.read];
    const right = Math.max(1.6 * Math.max(...xs), 2 * knee);
    const corners = left < knee ? [left, knee, right] : [left, right];
    return [
      {
        name: `${type} peak`,
        style: i === 0 ? 7 : 5 + i,
        dashed: true,
        points: corners.map((x) => ({ x, y: Math.min(peak, x * ceilings.read) })),
      },
    ];
  });
  return {
    title: 'Roofline',
    subtitle: `${threads} thread${threads === 1 ? '' : 's'}, ${ceilings.read.toFixed(1)} GB/s read from memory`,
    x: { label: 'operations a byte of memory, flop/byte', log: true },
    y: { label: 'GFLOP/s', log: true },
    series: [...roofs, ...points],
  };
}
