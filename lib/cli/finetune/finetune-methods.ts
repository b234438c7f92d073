/** Compares several adapter methods on the same run: table and report. */

import { printable } from '../../core/printable.js';
import type { FinetuneResult } from '../../finetune/finetune.js';
import { escapeHtml } from '../../report/html.js';
import { kPlotStyle, type Plot, plotSvg } from '../../report/plot.js';
import { grouped, table } from '../../report/terminal.js';

/** One method's run. */
export interface MethodRun {
  readonly method: string;
  /** What it is made of beside an adapter of its name: `lora, start pissa`. */
  readonly parts: string;
  readonly settings: Readonly<Record<string, unknown>>;
  readonly lr: number;
  readonly result: FinetuneResult;
}

const stepTime = ({ result }: MethodRun): number => (1000 * result.trainSeconds) / result.steps;

/** Best first. */
const ranked = (runs: readonly MethodRun[]): MethodRun[] =>
  [...runs].sort((a, b) => a.result.lossAfter - b.result.lossAfter);

function rowsOf(runs: readonly MethodRun[]): string[][] {
  return ranked(runs).map((run) => [
    run.method,
    run.result.lossAfter.toFixed(4),
    grouped(run.result.adapterParameters),
    `${stepTime(run).toFixed(0)} ms`,
    String(run.lr),
  ]);
}

const kColumns = ['method', 'held-out loss', 'trained parameters', 'step', 'learning rate'];

/** The summary for the terminal. */
export function methodsSummary(runs: readonly MethodRun[], report: string | undefined): string {
  const before = runs[0]?.result.lossBefore.toFixed(4) ?? '';
  const text = `\nheld-out loss of the base model ${before}, ${runs[0]?.result.lossUnit}\n\n`;
  const place = report === undefined ? '' : `\nreport   ${printable(report)}\n`;
  return `${text}${table([kColumns, ...rowsOf(runs)])}${place}`;
}

function plots(runs: readonly MethodRun[]): Plot[] {
  const loss = { label: `held-out loss, ${runs[0]?.result.lossUnit}`, log: false } as const;
  const scattered = (x: (run: MethodRun) => number) =>
    runs.map((run, style) => ({
      name: run.method,
      style,
      scattered: true,
      points: [{ x: x(run), y: run.result.lossAfter, title: run.method }],
    }));
  const level = { y: runs[0]?.result.lossBefore ?? 0, label: 'base model' };
  return [
    {
      title: 'Loss against trained parameters',
      subtitle: 'after the last step',
      x: { label: 'trained parameters', log: true },
      y: loss,
      series: scattered(({ result }) => result.adapterParameters),
      level,
    },
    {
      title: 'Loss against training time',
      subtitle: 'after the last step; time of the steps alone',
      x: { label: 'seconds', log: false, include: [0] },
      y: loss,
      series: scattered(({ result }) => result.trainSeconds),
      level,
    },
    {
      title: 'Loss over steps',
      subtitle: 'held-out text',
      x: { label: 'steps', log: false },
      y: loss,
      series: runs.map((run, style) => ({
        name: run.method,
        style,
        points: run.result.history.heldOut.map(({ step, loss: y }) => ({ x: step, y })),
      })),
    },
  ];
}

const kStyle = `
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5d6878; --line: #d9dee6; --back: #ffffff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --soft: #9aa5b5; --line: #353d49;
  --back: #15191f; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back);
  max-width: 52rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; }
table { border-collapse: collapse; width: 100%; margin-bottom: 2rem; }
td, th { padding: .3rem .6rem .3rem 0; border-bottom: 1px solid var(--line); text-align: right;
  font-variant-numeric: tabular-nums; } td:first-child, th:first-child { text-align: left; }
svg { width: 100%; height: auto; margin: 1rem 0; }
${kPlotStyle}`;

/** One HTML document without scripts that loads nothing. */
export function methodsReport(runs: readonly MethodRun[]): string {
  const row = (cells: readonly string[], tag: 'td' | 'th') =>
    `<tr>${cells.map((cell) => `<${tag}>${escapeHtml(cell)}</${tag}>`).join('')}</tr>`;
  const settings = runs
    .map(({ method, parts, settings: given }) => {
      const list = Object.entries(given).map(([name, value]) => `${name} ${String(value)}`);
      return `<li>${escapeHtml(`${method}${parts === '' ? '' : ` (${parts})`}: ${list.join(', ') || 'no settings'}`)}</li>`;
    })
    .join('\n');
  return `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>lowrank: methods compared</title>
<style>${kStyle}</style>
<h1>${runs.length} methods on one run</h1>
<table>
${row(kColumns, 'th')}
${rowsOf(runs)
  .map((cells) => row(cells, 'td'))
  .join('\n')}
</table>
${plots(runs).map(plotSvg).join('\n')}
<h2>Settings</h2>
<ul>
${settings}
</ul>
</html>
`;
}
