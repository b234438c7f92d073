/**
 * The HTML report of `lowrank emulate`: one file that loads nothing. Counters are shown next to their
 * source lines, and a short script sorts the table of lines.
 */

import fs from 'node:fs';
import { escapeHtml } from '../../report/html.js';
import { grouped } from '../../report/terminal.js';
import {
  bitsText,
  bytesText,
  collectFindings,
  dims,
  type EmulateResult,
  errorText,
  placeOf,
  ratioText,
} from './emulate-report.js';
import {
  type LaunchRecord,
  type LineCost,
  ratioOf,
  sumCounts,
  sumLines,
  totalsByKind,
  unitOf,
} from './emulate-trace.js';

const kStyle = `
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5d6878; --line: #d9dee6; --back: #ffffff;
  --panel: #f5f7fa; --good: #2c7a4b; --bad: #b3261e; --heat: 220 80 40; --cost: #9db4d8; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --soft: #9aa5b5; --line: #353d49;
  --back: #15191f; --panel: #1c222b; --good: #6fcf97; --bad: #ff8a80; --heat: 255 120 70;
  --cost: #40597f; } }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back);
  max-width: 82rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.35rem; margin-bottom: .2rem; } h2 { font-size: 1.05rem; margin-top: 2.2rem; }
.soft { color: var(--soft); } .good { color: var(--good); } .bad { color: var(--bad); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; }
th { font-weight: 600; color: var(--soft); white-space: nowrap; }
th.sortable { cursor: pointer; } th[aria-sort] { color: var(--ink); }
th[aria-sort=descending]::after { content: ' \\2193'; }
th[aria-sort=ascending]::after { content: ' \\2191'; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.mono, pre, code { font: 13px/1.5 ui-monospace, monospace; }
a { color: inherit; text-decoration-color: var(--soft); }
.finding { border-left: 3px solid var(--bad); background: var(--panel); padding: .5rem .8rem;
  margin: .5rem 0; white-space: pre-wrap; overflow-wrap: anywhere; }
table.source { font: 12.5px/1.45 ui-monospace, monospace; }
table.source th { padding: 0 .6rem; } table.source td { border: 0; padding: 0 .6rem; }
table.source td.access { white-space: nowrap; }
table.source td.code { white-space: pre; width: 100%; }
.ratio { border-radius: 2px; padding: 0 .25em; }
table.source tr.counted td.code { border-left: 3px solid rgb(var(--heat)); }
table.source tr:target { outline: 2px solid rgb(var(--heat)); }
table.source tr.gap td { color: var(--soft); padding: .3rem .6rem; text-align: center; }
table.source tr.plain { color: var(--soft); }
details > summary { cursor: pointer; font-weight: 600; margin-top: 1.6rem; }
.bar { display: inline-block; height: .65em; background: var(--cost); border-radius: 2px; }
`;

/** Sorts a table by the clicked column; numbers are in data-value. */
const kScript = `
for (const table of document.querySelectorAll('table.sortable')) {
  const body = table.tBodies[0];
  table.tHead.querySelectorAll('th').forEach((head, column) => {
    head.classList.add('sortable');
    head.tabIndex = 0;
    const sort = () => {
      const down = head.getAttribute('aria-sort') !== 'descending';
      table.tHead.querySelectorAll('th').forEach((other) => other.removeAttribute('aria-sort'));
      head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
      const value = (row) => {
        const cell = row.cells[column];
        return 'value' in cell.dataset ? Number(cell.dataset.value) : cell.textContent;
      };
      [...body.rows]
        .sort((a, b) => {
          const [x, y] = [value(a), value(b)];
          const order = typeof x === 'number' ? x - y : x.localeCompare(y);
          return down ? -order : order;
        })
        .forEach((row) => body.append(row));
    };
    head.addEventListener('click', sort);
    head.addEventListener('keydown', ({ key }) => key === 'Enter' && sort());
  });
}
`;

const text = (content: string) => `<td>${escapeHtml(content)}</td>`;
const number = (shown: string, value: number) =>
  `<td class="number" data-value="${value}">${escapeHtml(shown)}</td>`;

/** Colour for the ratio to the ideal: none at 1, full from 2 on. */
function heatStyle(line: { cost: number; ideal: number }): string {
  const heat = Math.min(1, Math.max(0, ratioOf(line) - 1));
  return heat > 0.02 ? `background: rgb(var(--heat) / ${(0.45 * heat).toFixed(2)})` : '';
}

function ratioCell(line: { cost: number; ideal: number }): string {
  const value = `data-value="${ratioOf(line)}" style="${heatStyle(line)}"`;
  return `<td class="number" ${value}>${ratioText(line)}</td>`;
}

/** The whole report as one HTML document. */
export function emulateHtml(result: EmulateResult): string {
  const launches = result.runs[0]?.launches ?? [];
  const lines = sumLines(launches);
  return `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>${escapeHtml(result.title)}</title>
<style>${kStyle}</style>
<h1>${escapeHtml(result.title)}</h1>
<div class="soft">${escapeHtml(result.device)}; schedules: ${escapeHtml(
    result.runs.map(({ schedule }) => schedule).join(', '),
  )}</div>
${findingsHtml(result)}
<h2>Launches</h2>
${launchesHtml(launches)}
${outputsHtml(result)}
${result.counted ? countersHtml(lines, launches) : ''}
${result.counted ? sourcesHtml(lines) : ''}
<script>${kScript}</script>
</html>
`;
}

function findingsHtml(result: EmulateResult): string {
  const findings = collectFindings(result.runs);
  const errors = result.runs.flatMap(({ error }) => (error === undefined ? [] : [error]));
  if (findings.length === 0 && errors.length === 0) {
    return result.checked
      ? '<h2>Findings</h2>\n<p class="good">None.</p>'
      : '<h2>Findings</h2>\n<p class="soft">Not checked: this library sees no plain accesses.</p>';
  }
  const boxes = findings.map(
    ({ kind, text: what, kernel, schedules }) =>
      `<div class="finding"><b>${escapeHtml(kind)}</b> in ${escapeHtml(kernel)}\n` +
      `${escapeHtml(what)}\n<span class="soft">${escapeHtml(schedules.join(', '))}</span></div>`,
  );
  const failures = errors
    .slice(0, findings.length === 0 ? 1 : 0)
    .map((error) => `<div class="finding">${escapeHtml(error)}</div>`);
  return `<h2 class="bad">Findings</h2>\n${[...boxes, ...failures].join('\n')}`;
}

function launchesHtml(launches: readonly LaunchRecord[]): string {
  const rows = launches.map(
    (launch) =>
      `<tr><td class="mono">${escapeHtml(launch.kernel)}</td>${text(dims(launch.grid))}` +
      number(dims(launch.block), launch.block[0] * launch.block[1] * launch.block[2]) +
      number(String(launch.cluster), launch.cluster) +
      number(
        grouped(launch.shared_bytes + launch.static_shared_bytes),
        launch.shared_bytes + launch.static_shared_bytes,
      ) +
      `${text(launch.status)}</tr>`,
  );
  return `<div class="scroll"><table>
<thead><tr><th>kernel</th><th>grid</th><th class="number">threads</th><th class="number">cluster</th>
<th class="number">shared bytes</th><th>status</th></tr></thead>
<tbody>
${rows.join('\n')}
</tbody></table></div>`;
}

function outputsHtml(result: EmulateResult): string {
  const outputs = result.runs[0]?.outputs ?? [];
  if (outputs.length === 0) return '';
  const rows = outputs.map(
    (output) =>
      `<tr>${text(`${output.name} [${output.shape.join(', ')}]`)}` +
      number(errorText(output), output.maxError ?? 0) +
      number(output.maxValue.toExponential(2), output.maxValue) +
      `<td class="mono">${escapeHtml(output.hash)}</td></tr>`,
  );
  const bits = bitsText(result);
  const same =
    bits === '' ? '' : `<p class="${result.sameBits ? 'good' : 'bad'}">${escapeHtml(bits)}</p>`;
  return `<h2>Outputs</h2>
<p class="soft">Errors are against the reference device, or against what was given as expected.</p>
<div class="scroll"><table>
<thead><tr><th>output</th><th class="number">largest error</th><th class="number">largest value</th>
<th>hash</th></tr></thead>
<tbody>
${rows.join('\n')}
</tbody></table></div>
${same}`;
}

function anchorOf({ file, line }: { file: string; line: number }): string {
  return `L-${file.replaceAll(/[^A-Za-z0-9]/g, '-')}-${line}`;
}

function countersHtml(lines: readonly LineCost[], launches: readonly LaunchRecord[]): string {
  const largest = Math.max(1, ...lines.map(({ cost }) => cost));
  const rows = lines.map(
    (line) =>
      `<tr><td class="mono"><a href="#${anchorOf(line)}">${escapeHtml(placeOf(line))}</a></td>` +
      `${text(`${line.kind} ${line.bytes_per_lane} B`)}` +
      number(grouped(line.requests), line.requests) +
      number(grouped(line.cost), line.cost) +
      number(grouped(line.ideal), line.ideal) +
      `${ratioCell(line)}${text(unitOf(line.kind))}` +
      number(bytesText(line.bytes), line.bytes) +
      `<td><span class="bar" style="width: ${((6 * line.cost) / largest).toFixed(2)}rem"></span></td></tr>`,
  );
  const totals = totalsByKind(lines).map(
    (total) =>
      `<tr>${text(total.name)}${number(grouped(total.requests), total.requests)}` +
      number(grouped(total.cost), total.cost) +
      number(grouped(total.ideal), total.ideal) +
      ratioCell(total) +
      `${number(bytesText(total.bytes), total.bytes)}</tr>`,
  );
  const counts = [...sumCounts(launches)].map(
    ([name, value]) => `<tr>${text(name)}${number(grouped(value), value)}</tr>`,
  );
  const heads = (names: readonly string[], numeric: readonly number[]) =>
    names
      .map((name, i) => `<th${numeric.includes(i) ? ' class="number"' : ''}>${name}</th>`)
      .join('');
  return `<h2>Totals</h2>
<div class="scroll"><table class="sortable">
<thead><tr>${heads(['access', 'requests', 'cost', 'ideal', 'ratio', 'moved'], [1, 2, 3, 4, 5])}</tr></thead>
<tbody>
${totals.join('\n')}
</tbody></table></div>
<h2>Counted operations</h2>
<div class="scroll"><table class="sortable">
<thead><tr>${heads(['counter', 'value'], [1])}</tr></thead>
<tbody>
${counts.join('\n')}
</tbody></table></div>
<h2>Accesses by source line</h2>
<p class="soft">A request is one instruction of a warp. Its cost is in wavefronts of shared memory, or in
32-byte sectors of global memory; the ideal is the fewest that move the same bytes.</p>
<div class="scroll"><table class="sortable">
<thead><tr>${heads(
    ['line', 'access', 'requests', 'cost', 'ideal', 'ratio', 'in', 'moved', 'share'],
    [2, 3, 4, 5, 7],
  )}</tr></thead>
<tbody>
${rows.join('\n')}
</tbody></table></div>`;
}

/** Number of source lines shown around a line with counters. */
const kContext = 4;

function sourcesHtml(lines: readonly LineCost[]): string {
  const files = [...new Set(lines.map(({ file }) => file))].filter((file) => file !== '').sort();
  const views = files.map((file) => {
    const costs = lines.filter((line) => line.file === file);
    const shown = placeOf({ file, line: 0 }).replace(/:0$/, '');
    let source: string[];
    try {
      source = fs.readFileSync(file, 'utf8').split('\n');
    } catch {
      return `<details open><summary class="mono">${escapeHtml(shown)}</summary>
<p class="soft">The file is not at hand.</p></details>`;
    }
    return `<details open><summary class="mono">${escapeHtml(shown)}</summary>
<div class="scroll"><table class="source">
<thead><tr><th>access</th><th class="number">requests</th><th class="number">cost</th><th class="number">ideal</th>
<th class="number">ratio</th><th class="number">line</th><th>source</th></tr></thead>
<tbody>
${sourceRows(file, source, costs).join('\n')}
</tbody></table></div></details>`;
  });
  return `<h2>Source</h2>\n${views.join('\n')}`;
}

function sourceRows(file: string, source: readonly string[], costs: readonly LineCost[]): string[] {
  const largest = Math.max(1, ...costs.map(({ cost }) => cost));
  const rows: string[] = [];
  let last = 0;
  const near = (line: number) => costs.some((cost) => Math.abs(cost.line - line) <= kContext);
  source.forEach((code, i) => {
    const line = i + 1;
    if (!near(line)) return;
    if (line > last + 1) {
      rows.push(`<tr class="gap"><td colspan="7">lines ${last + 1} to ${line - 1}</td></tr>`);
    }
    last = line;
    const own = costs.filter((cost) => cost.line === line);
    rows.push(sourceRow(file, line, code, own, largest));
  });
  if (last < source.length) {
    rows.push(`<tr class="gap"><td colspan="7">lines ${last + 1} to ${source.length}</td></tr>`);
  }
  return rows;
}

function sourceRow(
  file: string,
  line: number,
  code: string,
  costs: readonly LineCost[],
  largest: number,
): string {
  const shownCode = `<td class="number soft">${line}</td><td class="code">${escapeHtml(code)}</td>`;
  if (costs.length === 0) {
    return `<tr class="plain">${'<td></td>'.repeat(5)}${shownCode}</tr>`;
  }
  // Wavefronts and sectors are never added up: a line shows its costs in both, one above the other.
  const cell = (shown: (cost: LineCost) => string) =>
    `<td class="number">${costs.map(shown).map(escapeHtml).join('<br>')}</td>`;
  const share = Math.max(...costs.map(({ cost }) => cost)) / largest;
  const ratios = costs.map(
    (cost) => `<span class="ratio" style="${heatStyle(cost)}">${ratioText(cost)}</span>`,
  );
  const accesses = costs.map((cost) => escapeHtml(`${cost.kind} ${cost.bytes_per_lane} B`));
  return (
    `<tr class="counted" id="${anchorOf({ file, line })}"` +
    ` style="background: color-mix(in srgb, var(--cost) ${(45 * share).toFixed(0)}%, transparent)">` +
    `<td class="access">${accesses.join('<br>')}</td>` +
    cell(({ requests }) => grouped(requests)) +
    cell(({ cost }) => grouped(cost)) +
    cell(({ ideal }) => grouped(ideal)) +
    `<td class="number">${ratios.join('<br>')}</td>` +
    `${shownCode}</tr>`
  );
}
