/** The report of a run: one HTML file without scripts that loads nothing. */

import { escapeHtml } from '../../report/html.js';
import { kPlotStyle, type Plot, plotSvg } from '../../report/plot.js';
import { mebibytes } from '../../report/terminal.js';
import type { BenchResult, CaseResult, Row } from '../result.js';
import {
  overheadPlots,
  rooflinePlot,
  speedupPlots,
  subjectStyles,
  threadPlots,
} from './figures.js';
import { cleanliness, duration, intervalNote, rate, ratioText, rowName } from './table.js';

const kStyle = `
:root { color-scheme: light dark; --page-ink: #1c2430; --page-soft: #5d6878; --page-line: #dfe4ea;
  --page-back: #ffffff; --panel: #f5f7fa; --bar: #b9cdf0; --own: #2f62b5; --warn: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --page-ink: #e6e9ee; --page-soft: #9aa5b5;
  --page-line: #303845; --page-back: #15191f; --panel: #1c222b; --bar: #3b4f73; --own: #86aef0;
  --warn: #ff8a80; } }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, -apple-system, 'Segoe UI', sans-serif; color: var(--page-ink);
  background: var(--page-back); max-width: 84rem; margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.4rem; margin-bottom: .2rem; } h2 { font-size: 1.1rem; margin-top: 2.4rem; }
h3 { font-size: .95rem; margin: 1.6rem 0 .3rem; }
.soft { color: var(--page-soft); } .warn { color: var(--warn); }
p { max-width: 60rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(34rem, 100%), 1fr));
  gap: 1.6rem; margin-top: 1.6rem; }
figure { margin: 0; max-width: 44rem; } figure svg { display: block; width: 100%; height: auto; }
figcaption { color: var(--page-soft); font-size: .87rem; max-width: 38rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; }
th, td { padding: .25rem .9rem .25rem 0; border-bottom: 1px solid var(--page-line); text-align: left;
  white-space: nowrap; }
th { font-weight: 600; color: var(--page-soft); }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
td.bar { width: 8rem; min-width: 8rem; padding-right: .9rem; } td.bar div { height: .7rem; background: var(--bar); }
tr.own td { font-weight: 600; } tr.own td.bar div { background: var(--own); }
td.note { color: var(--page-soft); white-space: normal; min-width: 20rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1.2rem; margin: .6rem 0; }
dt { color: var(--page-soft); } dd { margin: 0; overflow-wrap: anywhere; }
code { font: 13px ui-monospace, monospace; }
`;

/** The report as one HTML document. */
export function benchHtml(result: BenchResult): string {
  const date = result.date.slice(0, 16).replace('T', ' ');
  const { clean, samples } = cleanliness(result);
  const noisy = clean < 0.8 * samples || (result.busy_cores ?? 0) > 0.2;
  return `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>lowrank bench</title>
<style>${kStyle}${kPlotStyle}</style>
<h1>lowrank ${escapeHtml(result.version)} on ${escapeHtml(result.machine.cpu)}, ${result.machine.cores} cores</h1>
<div class="soft">${escapeHtml(date)} UTC, ${samples} samples, ${clean} of them clean${
    result.commit === undefined ? '' : `, commit ${escapeHtml(result.commit)}`
  }</div>
${
  noisy
    ? `<p class="warn">This machine was not quiet (${(result.busy_cores ?? 0).toFixed(1)} cores were busy before the run; ${
        samples - clean
      } samples had to wait for a core): look at ratios, and measure again.</p>`
    : ''
}
<div class="plots">
${figuresHtml(
  speedupPlots(result),
  'How many times longer the others take: above the line they are slower. Medians of ratios of samples taken in turns, with their 95 % interval.',
)}
${figuresHtml(
  overheadPlots(result),
  'Time of the fused op over that of the base product alone. Dashed: what its operations would add at the same rate.',
)}
${figuresHtml(threadPlots(result), 'Rate of the operations that the maths needs.')}
${figuresHtml(
  [rooflinePlot(result)].filter((plot) => plot !== undefined),
  'Every job with all threads, under ceilings measured in this run. A weight used by more than 64 tokens stays in the cache if it fits: its points may lie above the slope of the memory.',
)}
</div>
<h2>Numbers</h2>
${noteHtml(result)}${result.cases.map((one) => caseHtml(one, result)).join('\n')}
<h2>Machine</h2>
${factsHtml(result)}
${rooflineHtml(result)}
<h2>How it was measured</h2>
<p>Each subject in ${result.trials} process${result.trials === 1 ? '' : 'es'} of its own, sampled in turns, ${
    result.repeats
  } clean samples of at least 10 ms (fewer where a subject is slow). ${
    result.calls === 'queued'
      ? 'Calls of this library are queued one behind the other, and the sample ends when the last is done.'
      : 'Each call is waited for.'
  } A sample is clean if no computing thread waited for a core longer than 2 % of the sample plus the time spent handing out its own calls. Interval: between two samples, by the binomial distribution. Up to 64 tokens, calls go round copies of the weight that exceed the last cache twice. Results are compared with sums in float64. docs/benchmarks.md has the rest.</p>
</html>
`;
}

function noteHtml(result: BenchResult): string {
  const note = intervalNote(result);
  return note === undefined ? '' : `<p class="warn">${escapeHtml(note)}.</p>\n`;
}

function figuresHtml(plots: readonly Plot[], about: string): string {
  return plots
    .map(
      (plot) =>
        `<figure>\n${plotSvg(plot)}\n<figcaption>${escapeHtml(about)}</figcaption>\n</figure>`,
    )
    .join('\n');
}

const number = (text: string) => `<td class="number">${escapeHtml(text)}</td>`;

function caseHtml({ name, rows, skipped }: CaseResult, result: BenchResult): string {
  const fastest = Math.min(...rows.map(({ median_ms }) => median_ms));
  const own = [...subjectStyles(result).keys()][0];
  const lines = rows.map((row) => rowHtml(row, fastest, row.subject === own));
  const notes = skipped.map(({ subject, reason }) => `${subject}: ${reason}`).join('; ');
  return `<h3>${escapeHtml(name)}</h3>
<div class="scroll"><table>
<tr><th>subject<th class="number">median<th class="number">p10 to p90<th class="number">rate<th class="number">of the roof<th class="number">time / ours<th class="number">clean<th>speed<th></tr>
${lines.join('\n')}
</table></div>${notes === '' ? '' : `\n<div class="soft">${escapeHtml(notes)}</div>`}`;
}

function rowHtml(row: Row, fastest: number, own: boolean): string {
  const share = row.share === undefined ? '' : `${(100 * row.share).toFixed(0)} % ${row.bound}`;
  const copies = row.copies > 1 ? `${row.copies} copies of ${mebibytes(row.weight_bytes)}` : '';
  const note = [row.note, copies].filter((text) => text !== undefined && text !== '').join('; ');
  return (
    `<tr${own ? ' class="own"' : ''}><td>${escapeHtml(rowName(row))}</td>` +
    number(duration(row.median_ms)) +
    number(`${duration(row.p10_ms)} to ${duration(row.p90_ms)}`) +
    number(rate(row.gflops)) +
    number(share) +
    number(ratioText(row)) +
    number(`${row.clean}/${row.samples}`) +
    `<td class="bar"><div style="width:${((100 * fastest) / row.median_ms).toFixed(1)}%"></div></td>` +
    `<td class="note">${escapeHtml(note)}</td></tr>`
  );
}

function factsHtml({
  machine,
  command,
  seconds,
  runner,
  busy_cores: busy,
  peers,
  left_out: leftOut,
}: BenchResult): string {
  const missing = peers.flatMap(({ name, missing: how }) =>
    how === undefined ? [] : [`${name} (${how})`],
  );
  const facts: [string, string][] = [
    ['processor', `${machine.cpu}, ${machine.cores} cores${machine.virtual ? ', virtual' : ''}`],
    ['kernels', machine.isa],
    ['caches', machine.caches.join(', ')],
    ['memory', mebibytes(machine.memory)],
    ['system', `${machine.kernel}, Node ${machine.node}`],
    ['clock governor', machine.governor ?? 'not known'],
    ['cores busy before', busy === undefined ? 'not known' : busy.toFixed(2)],
    ['command', command],
    ['took', `${seconds.toFixed(0)} s; samples run by ${runner}`],
  ];
  if (missing.length > 0) facts.push(['not installed', missing.join(', ')]);
  if (leftOut !== undefined) {
    facts.push(['left out', `after ${leftOut.limit_s} s: ${leftOut.jobs.join('; ')}`]);
  }
  const rows = facts.map(([name, value]) => `<dt>${name}</dt><dd>${escapeHtml(value)}</dd>`);
  return `<dl>\n${rows.join('\n')}\n</dl>`;
}

function rooflineHtml({ roofline }: BenchResult): string {
  if (typeof roofline === 'string')
    return `<p class="soft">No roofline: ${escapeHtml(roofline)}.</p>`;
  const cell = (value: number | undefined, digits: number) => number(value?.toFixed(digits) ?? '');
  const rows = Object.entries(roofline).map(
    ([threads, { f32, bf16, int8, read, copy }]) =>
      `<tr>${number(threads)}${cell(f32, 0)}${cell(bf16, 0)}${cell(int8, 0)}${cell(read, 1)}${cell(copy, 1)}</tr>`,
  );
  const heads = ['threads', 'f32 GFLOP/s', 'bf16 GFLOP/s', 'int8 GOP/s', 'read GB/s', 'copy GB/s'];
  return `<div class="scroll"><table>
<tr>${heads.map((head) => `<th class="number">${head}`).join('')}</tr>
${rows.join('\n')}
</table></div>`;
}
