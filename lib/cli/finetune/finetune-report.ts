/**
 * The HTML report of a fine-tune: one file without scripts that loads nothing.
 */

import type { FinetuneResult } from '../../finetune/finetune.js';
import type { LossHistory } from '../../finetune/run-state.js';
import { escapeHtml } from '../../report/html.js';

/** One row of the final table. */
export interface Fact {
  readonly name: string;
  readonly value: string;
  readonly note?: string;
}

const kStyle = `
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5d6878; --line: #d9dee6; --back: #ffffff;
  --train: #9db4d8; --smooth: #2f62b5; --held: #c4552d; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --soft: #9aa5b5; --line: #353d49;
  --back: #15191f; --train: #40597f; --smooth: #7fa8e8; --held: #e88a62; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back);
  max-width: 46rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.05rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; }
td { padding: .3rem .6rem .3rem 0; border-bottom: 1px solid var(--line); }
td:nth-child(2) { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td:nth-child(3) { color: var(--soft); }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: .3rem 0 1rem; padding: .6rem .8rem;
  border-left: 3px solid var(--line); font: 14px/1.45 ui-monospace, monospace; }
.run td:nth-child(2) { text-align: left; white-space: normal; overflow-wrap: anywhere; }
.prompt { font-weight: 600; } .label { color: var(--soft); font-size: .9rem; }
svg { width: 100%; height: auto; } svg text { fill: var(--soft); font: 12px system-ui, sans-serif; }
`;

/**
 * The report as one HTML document.
 *
 * @param facts the rows of the final table
 * @param settings what the run can be repeated from
 */
export function reportHtml(
  facts: readonly Fact[],
  result: FinetuneResult,
  settings: readonly Fact[],
): string {
  const rowsOf = (list: readonly Fact[]): string =>
    list
      .map(({ name, value, note }) =>
        [name, value, note ?? ''].map((cell) => `<td>${escapeHtml(cell)}</td>`).join(''),
      )
      .map((cells) => `<tr>${cells}</tr>`)
      .join('\n');
  const samples = result.samples
    .map(
      ({ prompt, before, after }) =>
        `<p class="prompt">${escapeHtml(prompt)}</p>\n` +
        `<div class="label">before</div><pre>${escapeHtml(before)}</pre>\n` +
        `<div class="label">after</div><pre>${escapeHtml(after)}</pre>`,
    )
    .join('\n');
  return `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>lowrank fine-tune</title>
<style>${kStyle}</style>
<h1>Fine-tune: held-out loss ${result.lossBefore.toFixed(3)} to ${result.lossAfter.toFixed(3)}</h1>
${lossCurve(result.history, result.lossUnit)}
<h2>Numbers</h2>
<table>
${rowsOf(facts)}
</table>
${samples === '' ? '' : `<h2>Samples</h2>\n${samples}`}
<h2>The run</h2>
<table class="run">
${rowsOf(settings)}
</table>
</html>
`;
}

const kWidth = 720;
const kHeight = 300;
const kMargin = { left: 48, right: 16, top: 28, bottom: 36 };

interface Point {
  readonly step: number;
  readonly loss: number;
}

/** Training loss (thin: each step, thick: smoothed) and held-out loss over the steps. */
function lossCurve({ train, heldOut }: LossHistory, unit: string): string {
  const steps = train.map((loss, i) => ({ step: i + 1, loss }));
  const all = [...steps, ...heldOut].map(({ loss }) => loss);
  if (all.length === 0) return '';
  const lastStep = Math.max(1, train.length, ...heldOut.map(({ step }) => step));
  const ticks = niceTicks(Math.min(...all), Math.max(...all), 5);
  const low = ticks[0] as number;
  const high = ticks[ticks.length - 1] as number;
  const x = (step: number) =>
    kMargin.left + (step / lastStep) * (kWidth - kMargin.left - kMargin.right);
  const y = (loss: number) =>
    kHeight -
    kMargin.bottom -
    ((loss - low) / (high - low)) * (kHeight - kMargin.top - kMargin.bottom);
  const path = (points: readonly Point[], color: string, width: number) =>
    `<polyline fill="none" stroke="var(--${color})" stroke-width="${width}" stroke-linejoin="round" ` +
    `points="${thin(points)
      .map(({ step, loss }) => `${x(step).toFixed(1)},${y(loss).toFixed(1)}`)
      .join(' ')}"/>`;
  const grid = ticks.map(
    (tick) =>
      `<line x1="${kMargin.left}" x2="${kWidth - kMargin.right}" y1="${y(tick).toFixed(1)}" ` +
      `y2="${y(tick).toFixed(1)}" stroke="var(--line)"/>` +
      `<text x="${kMargin.left - 8}" y="${(y(tick) + 4).toFixed(1)}" text-anchor="end">${label(tick)}</text>`,
  );
  const stepTicks = niceTicks(0, lastStep, 6)
    .filter((tick) => tick >= 0 && tick <= lastStep && Number.isInteger(tick))
    .map(
      (tick) =>
        `<text x="${x(tick).toFixed(1)}" y="${kHeight - kMargin.bottom + 18}" text-anchor="middle">${tick}</text>`,
    );
  const dots = heldOut.map(
    ({ step, loss }) =>
      `<circle cx="${x(step).toFixed(1)}" cy="${y(loss).toFixed(1)}" r="3.5" fill="var(--held)"/>`,
  );
  return `<svg viewBox="0 0 ${kWidth} ${kHeight}" role="img" aria-label="Loss over steps">
${grid.join('\n')}
${stepTicks.join('\n')}
${path(steps, 'train', 1)}
${path(smoothed(steps), 'smooth', 2)}
${path(heldOut, 'held', 2)}
${dots.join('\n')}
<rect x="${kMargin.left + 4}" y="6" width="14" height="3" fill="var(--smooth)"/>
<text x="${kMargin.left + 24}" y="12">training (smoothed)</text>
<rect x="${kMargin.left + 164}" y="6" width="14" height="3" fill="var(--held)"/>
<text x="${kMargin.left + 184}" y="12">held out</text>
<text x="${kWidth - kMargin.right}" y="12" text-anchor="end">${unit}, over steps</text>
</svg>`;
}

/** At most a few thousand points: more than the pixels would only make the file large. */
function thin(points: readonly Point[]): readonly Point[] {
  const every = Math.ceil(points.length / 2000);
  return every <= 1 ? points : points.filter((_, i) => i % every === 0 || i === points.length - 1);
}

/** Exponential moving average, corrected for its start. */
function smoothed(points: readonly Point[]): Point[] {
  const keep = 0.9;
  let sum = 0;
  let weight = 0;
  return points.map(({ step, loss }) => {
    sum = keep * sum + (1 - keep) * loss;
    weight = keep * weight + (1 - keep);
    return { step, loss: sum / weight };
  });
}

/** Round numbers that enclose [min, max]. */
function niceTicks(min: number, max: number, count: number): number[] {
  const span = max > min ? max - min : Math.max(1e-3, Math.abs(max) * 0.1);
  const rough = span / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough) ?? rough;
  const first = Math.floor(min / step);
  const last = Math.max(first + 1, Math.ceil(max / step));
  return Array.from({ length: last - first + 1 }, (_, i) => (first + i) * step);
}

function label(value: number): string {
  return String(Number(value.toPrecision(6)));
}
