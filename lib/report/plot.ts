/** Plots as handwritten SVG: they are self-contained, load nothing, and follow the reader's light or dark mode. */

import { escapeHtml } from './html.js';

export interface PlotPoint {
  readonly x: number;
  readonly y: number;
  /** Lower end of the interval of y. */
  readonly low?: number;
  readonly high?: number;
  /** Shown when the pointer is over it. */
  readonly title?: string;
}

export interface Series {
  readonly name: string;
  /** Index of colour and mark. A subject has the same one in every plot. */
  readonly style: number;
  readonly points: readonly PlotPoint[];
  /** A reference line without marks. */
  readonly dashed?: boolean;
  /** Marks only. */
  readonly scattered?: boolean;
}

export interface Axis {
  readonly label: string;
  readonly log: boolean;
  /** The measured values, instead of round numbers. */
  readonly values?: readonly number[];
  readonly format?: (value: number) => string;
  /** Values that the axis must include. */
  readonly include?: readonly number[];
}

export interface Plot {
  readonly title: string;
  /** What was measured. */
  readonly subtitle: string;
  readonly x: Axis;
  readonly y: Axis;
  readonly series: readonly Series[];
  /** A horizontal reference line. */
  readonly level?: { readonly y: number; readonly label: string };
}

const kWidth = 640;
const kHeight = 376;
const kMargin = { left: 62, right: 148, top: 54, bottom: 48 };
const kGap = 14;

const kLight = [
  '#2f62b5',
  '#c4552d',
  '#2f8a57',
  '#8b4fb3',
  '#a87b00',
  '#16808f',
  '#c23a7e',
  '#7a5c3e',
];
const kDark = [
  '#86aef0',
  '#f0946c',
  '#74cf9b',
  '#c39ae3',
  '#e0b84a',
  '#5cc3d2',
  '#f08abb',
  '#c9a987',
];
const kVariables = (colors: readonly string[]) =>
  colors.map((color, i) => `--c${i}: ${color};`).join(' ');

/** For a standalone SVG, or a page with several. */
export const kPlotStyle = `
.plot { --ink: #1c2430; --soft: #5d6878; --line: #dfe4ea; --back: #ffffff; ${kVariables(kLight)} }
@media (prefers-color-scheme: dark) { .plot { --ink: #e6e9ee; --soft: #9aa5b5; --line: #303845;
  --back: #15191f; ${kVariables(kDark)} } }
.plot text { font: 12px system-ui, -apple-system, 'Segoe UI', sans-serif; fill: var(--soft); }
.plot .title { font-size: 14px; font-weight: 600; fill: var(--ink); }
.plot .name { fill: var(--ink); }
`;

const styleOf = (style: number) => `var(--c${style % kLight.length})`;

/** Maps the values of one axis to pixels. */
interface Scale {
  readonly at: (value: number) => number;
  readonly ticks: readonly number[];
}

function scaleOf(
  axis: Axis,
  values: readonly number[],
  [from, to]: readonly [number, number],
): Scale {
  const all = [...values, ...(axis.include ?? [])].filter(
    (value) => Number.isFinite(value) && (!axis.log || value > 0),
  );
  const [min, max] = all.length > 0 ? [Math.min(...all), Math.max(...all)] : [1, 10];
  const ticks = axis.values ?? (axis.log ? logTicks(min, max) : linearTicks(min, max, 5));
  const inner = axis.log ? Math.log : (value: number) => value;
  const ends = axis.values === undefined ? ticks : [min, max];
  let [low, high] = [inner(Math.min(min, ...ends)), inner(Math.max(max, ...ends))];
  if (axis.values !== undefined || high === low) {
    // Padding before the first and after the last value.
    const pad = high > low ? 0.05 * (high - low) : 0.5;
    [low, high] = [low - pad, high + pad];
  }
  return {
    at: (value) => from + ((inner(value) - low) / (high - low)) * (to - from),
    ticks: ticks.filter((tick) => inner(tick) >= low - 1e-9 && inner(tick) <= high + 1e-9),
  };
}

/** 1, 2 and 5 times powers of ten around [min, max]; only whole powers if there would be many. */
export function logTicks(min: number, max: number): number[] {
  const decades = Math.log10(max / min);
  const steps = decades > 3 ? [1] : decades > 1.5 ? [1, 3] : [1, 2, 5];
  const all: number[] = [];
  for (let power = Math.floor(Math.log10(min)) - 1; power <= Math.log10(max) + 1; power++) {
    for (const step of steps) all.push(Number((step * 10 ** power).toPrecision(3)));
  }
  const first = all.filter((tick) => tick <= min * 1.0001).pop() ?? min;
  const last = all.find((tick) => tick >= max * 0.9999) ?? max;
  return all.filter((tick) => tick >= first && tick <= last);
}

/** Round numbers that enclose [min, max]. */
export function linearTicks(min: number, max: number, count: number): number[] {
  const span = max > min ? max - min : Math.max(1e-3, Math.abs(max) * 0.1);
  const power = 10 ** Math.floor(Math.log10(span / count));
  const step =
    [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= span / count) ?? power;
  const first = Math.floor(min / step + 1e-9);
  const last = Math.max(first + 1, Math.ceil(max / step - 1e-9));
  return Array.from({ length: last - first + 1 }, (_, i) =>
    Number(((first + i) * step).toPrecision(10)),
  );
}

const plain = (value: number) => String(Number(value.toPrecision(4)));
const px = (value: number) => value.toFixed(1);

/** The content of a plot: a group of kWidth by kHeight. */
function plotBody({ title, subtitle, x, y, series, level }: Plot): string {
  const points = series.flatMap((one) => one.points);
  const right = kWidth - kMargin.right;
  const bottom = kHeight - kMargin.bottom;
  const xs = scaleOf(
    x,
    points.map((point) => point.x),
    [kMargin.left, right],
  );
  const yValues = points.flatMap(({ y: value, low, high }) => [value, low ?? value, high ?? value]);
  const ys = scaleOf(y, level === undefined ? yValues : [...yValues, level.y], [
    bottom,
    kMargin.top,
  ]);
  const parts = [
    `<text class="title" x="${kMargin.left}" y="16">${escapeHtml(title)}</text>`,
    `<text x="${kMargin.left}" y="34">${escapeHtml(subtitle)}</text>`,
    ...ys.ticks.map(
      (tick) =>
        `<line x1="${kMargin.left}" x2="${right}" y1="${px(ys.at(tick))}" y2="${px(ys.at(tick))}" stroke="var(--line)"/>` +
        `<text x="${kMargin.left - 8}" y="${px(ys.at(tick) + 4)}" text-anchor="end">${(y.format ?? plain)(tick)}</text>`,
    ),
    ...apart(xs.ticks, xs.at, 34).map(
      (tick) =>
        `<line x1="${px(xs.at(tick))}" x2="${px(xs.at(tick))}" y1="${bottom}" y2="${bottom + 4}" stroke="var(--soft)"/>` +
        `<text x="${px(xs.at(tick))}" y="${bottom + 18}" text-anchor="middle">${(x.format ?? plain)(tick)}</text>`,
    ),
    `<line x1="${kMargin.left}" x2="${right}" y1="${bottom}" y2="${bottom}" stroke="var(--soft)"/>`,
    `<text x="${(kMargin.left + right) / 2}" y="${kHeight - 10}" text-anchor="middle">${escapeHtml(x.label)}</text>`,
    `<text transform="translate(14 ${(kMargin.top + bottom) / 2}) rotate(-90)" text-anchor="middle">${escapeHtml(y.label)}</text>`,
  ];
  const labels: Label[] = [];
  if (level !== undefined) {
    const at = ys.at(level.y);
    parts.push(
      `<line x1="${kMargin.left}" x2="${right}" y1="${px(at)}" y2="${px(at)}" stroke="${styleOf(0)}" stroke-width="2"/>`,
    );
    labels.push({ y: at, name: level.label, style: 0, mark: false });
  }
  for (const one of series) parts.push(drawSeries(one, xs, ys, labels));
  return `${parts.join('\n')}\n${drawLabels(labels, right, bottom)}`;
}

interface Label {
  readonly y: number;
  readonly name: string;
  readonly style: number;
  readonly mark: boolean;
}

function drawSeries(one: Series, xs: Scale, ys: Scale, labels: Label[]): string {
  const sorted = [...one.points].sort((a, b) => a.x - b.x).filter(({ y }) => Number.isFinite(y));
  const last = sorted[sorted.length - 1];
  if (last === undefined) return '';
  const color = styleOf(one.style);
  const parts: string[] = [];
  if (one.scattered !== true) {
    const path = sorted.map(({ x, y }) => `${px(xs.at(x))},${px(ys.at(y))}`).join(' ');
    const dash = one.dashed === true ? ' stroke-dasharray="5 4"' : '';
    const width = one.dashed === true ? 1.5 : 2;
    parts.push(
      `<polyline fill="none" stroke="${color}" stroke-width="${width}"${dash} stroke-linejoin="round" points="${path}"/>`,
    );
  }
  if (one.dashed !== true) {
    for (const { x, y, low, high, title } of sorted) {
      const [cx, cy] = [xs.at(x), ys.at(y)];
      if (low !== undefined && high !== undefined && high > low) {
        parts.push(
          `<line x1="${px(cx)}" x2="${px(cx)}" y1="${px(ys.at(low))}" y2="${px(ys.at(high))}" stroke="${color}" stroke-width="1.5" opacity=".6"/>`,
        );
      }
      parts.push(mark(one.style, cx, cy, title));
    }
  }
  labels.push({ y: ys.at(last.y), name: one.name, style: one.style, mark: one.dashed !== true });
  return parts.join('\n');
}

/** A mark. Its shape tells subjects apart where colours do not. */
function mark(style: number, cx: number, cy: number, title?: string): string {
  const fill = `fill="${styleOf(style)}" stroke="var(--back)" stroke-width="1"`;
  const inside = title === undefined ? '' : `<title>${escapeHtml(title)}</title>`;
  const polygon = (corners: readonly (readonly [number, number])[]) =>
    `<polygon points="${corners.map(([dx, dy]) => `${px(cx + dx)},${px(cy + dy)}`).join(' ')}" ${fill}>${inside}</polygon>`;
  switch (style % 4) {
    case 0:
      return `<circle cx="${px(cx)}" cy="${px(cy)}" r="4.5" ${fill}>${inside}</circle>`;
    case 1:
      return polygon([
        [-4, -4],
        [4, -4],
        [4, 4],
        [-4, 4],
      ]);
    case 2:
      return polygon([
        [0, -5.5],
        [5, 4],
        [-5, 4],
      ]);
    default:
      return polygon([
        [0, -5.5],
        [5.5, 0],
        [0, 5.5],
        [-5.5, 0],
      ]);
  }
}

/** Names next to the ends of their lines, moved apart if they would overlap. */
function drawLabels(labels: readonly Label[], right: number, bottom: number): string {
  const sorted = [...labels].sort((a, b) => a.y - b.y);
  const places: number[] = [];
  for (const { y } of sorted) places.push(Math.max(y, (places[places.length - 1] ?? -1e9) + kGap));
  let limit = bottom + 4;
  for (let i = places.length - 1; i >= 0; i--) {
    places[i] = Math.min(places[i] as number, limit);
    limit = (places[i] as number) - kGap;
  }
  return sorted
    .map(({ name, style, y, mark: marked }, i) => {
      const at = places[i] as number;
      const leader = `<line x1="${right + 3}" y1="${px(y)}" x2="${right + 12}" y2="${px(at)}" stroke="${styleOf(style)}" opacity=".7"/>`;
      const sign = marked ? mark(style, right + 19, at) : '';
      return `${leader}${sign}<text class="name" x="${right + (marked ? 28 : 16)}" y="${px(at + 4)}">${escapeHtml(name)}</text>`;
    })
    .join('\n');
}

/** Values whose labels do not touch. */
function apart(values: readonly number[], at: (value: number) => number, gap: number): number[] {
  const kept: number[] = [];
  for (const value of [...values].sort((a, b) => a - b)) {
    const before = kept[kept.length - 1];
    if (before === undefined || at(value) - at(before) >= gap) kept.push(value);
  }
  return kept;
}

/** A plot inside a page that has {@link kPlotStyle}. */
export function plotSvg(plot: Plot): string {
  return (
    `<svg class="plot" viewBox="0 0 ${kWidth} ${kHeight}" role="img" aria-label="${escapeHtml(plot.title)}">\n` +
    `${plotBody(plot)}\n</svg>`
  );
}

/** Plots side by side in a file of their own, with a caption below. */
export function figureSvg(plots: readonly Plot[], caption: string): string {
  const width = kWidth * plots.length;
  const height = kHeight + 26;
  const bodies = plots.map(
    (plot, i) => `<g transform="translate(${i * kWidth} 0)">\n${plotBody(plot)}\n</g>`,
  );
  return `<svg xmlns="http://www.w3.org/2000/svg" class="plot" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}">
<style>${kPlotStyle}</style>
<rect width="${width}" height="${height}" fill="var(--back)"/>
${bodies.join('\n')}
<text x="${kMargin.left}" y="${height - 8}">${escapeHtml(caption)}</text>
</svg>
`;
}
