/**
 * The paper's time of each goal, in us on an H100 SXM, for docs/gpu-design.md.
 *
 *   node bench/gpu/budget.mjs [--update]
 *
 * Shapes and goals are those of cases.mjs, the terms and formulas those of budget-model.mjs. What the plans launch,
 * and how many instructions the main loops have, is in budget-data.json. --update asks this build for both
 * (build/cuda_plan_table, build/kernels) and writes that file and the tables in the page.
 */
import { execFileSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { pathToFileURL } from 'node:url';
import { mainLoops } from '../../test/checks/cubin.mjs';
import {
  adapters,
  few,
  kTerms,
  kWgmmaTiles,
  many,
  manyInt8,
  norms,
  streaming,
} from './budget-model.mjs';
import { bytesOf, flopsOf, kRows } from './cases.mjs';
import { kStepRows, stepTable } from './step-budget.mjs';

const root = path.join(import.meta.dirname, '..', '..');
const dataFile = path.join(import.meta.dirname, 'budget-data.json');
export const pageFile = path.join(root, 'docs', 'gpu-design.md');

const isLora = ({ op }) => op === 'loraForward' || op === 'loraBackward';

/** Beyond r = 16, up to QLoRA's r = 64: no goal was set for these. */
const moreRanks = ['loraForward', 'loraBackward'].flatMap((op) =>
  [32, 64].map((r) => ({
    ...kRows.find((row) => row.op === op && row.M === 8192 && row.dropout === 0),
    id: op === 'loraForward' ? 'G8r' : 'G10r',
    r,
    floor: undefined,
    goal: undefined,
  })),
);

/** A row for each dtype of the factors where there are any. */
export const kBudgets = [...kRows.filter(({ goal }) => goal !== undefined), ...moreRanks].flatMap(
  (row) => (isLora(row) ? ['bf16', 'f32'] : ['']).map((factors) => ({ ...row, factors })),
);

/** As cuda_plan_table takes it; undefined of what has no plan to ask for. */
export function planCase({ op, M, N, K, r, dropout, format, doubleQuant, factors }) {
  if (op === 'groupedAdapters') return undefined;
  const sizes = [op, M, N, K, r, dropout, format, doubleQuant ? 1 : 0];
  return [...sizes, factors === '' ? 'bf16' : factors].join(',');
}

export const readData = () => JSON.parse(readFileSync(dataFile, 'utf8'));

/** What the paper says of a row. */
export function budgetOf(row, data) {
  const { op, M } = row;
  const launches = data.launches[planCase(row)] ?? [];
  const product = launches.find(({ kernel }) => kernel.startsWith('matmul_'));
  const operands = { ...row, bytes: bytesOf(row), launches, launch: product };
  operands.loop = data.loops[product?.kernel];
  switch (op) {
    case 'quantize':
    case 'dequantize':
      return streaming(operands.bytes);
    case 'groupedAdapters':
      return adapters(operands.bytes);
    case 'factoredNorm':
      return norms(operands);
    case 'matmulInt8':
      return manyInt8(operands);
    default:
      return M <= 1024 ? few(operands) : many(operands);
  }
}

const floorOf = (row) => row.floor ?? Math.max(bytesOf(row) / 3.0e6, flopsOf(row) / 798e6);
const number = (value) => (value < 30 ? value.toFixed(1) : value.toFixed(0));

function operation({ op, M, N, K, r, dropout, format, factors }) {
  const base = op.startsWith('matmulInt8') || format === 'int8' ? 'int8 ' : '';
  const tokens = /quant/.test(op) ? '' : `, M = ${M}`;
  const rank = r > 0 ? `, r = ${r}` : '';
  const dtype = factors === '' || factors === undefined ? '' : ` ${factors}`;
  return `${op} ${base}${N} × ${K}${tokens}${rank}${dtype}${dropout > 0 ? ', dropout' : ''}`;
}

function verdict(us, goal) {
  if (goal === undefined) return '';
  if (us > goal) return 'missed';
  return us > 0.97 * goal ? 'met, without margin' : 'met';
}

export function termsTable() {
  const rows = Object.values(kTerms).map(({ text, source }, i) => {
    return `| ${Object.keys(kTerms)[i]} | ${text} | ${source} |`;
  });
  return ['| term | value | from |', '| --- | --- | --- |', ...rows].join('\n');
}

export function goalsTable(data = readData()) {
  const rows = kBudgets.map((row) => {
    const { us, limit } = budgetOf(row, data);
    const launches = data.launches[planCase(row)]?.length ?? 1;
    const goal = row.goal === undefined ? '' : number(row.goal);
    const cells = [row.id, operation(row), number(floorOf(row)), goal, number(us)];
    return `| ${[...cells, verdict(us, row.goal), limit, launches].join(' | ')} |`;
  });
  const head = '| goal | operation | floor | goal | paper | | limit | launches |';
  return [head, '| --- | --- | --- | --- | --- | --- | --- | --- |', ...rows].join('\n');
}

/** `page` with its tables between their marks. */
export function withTables(page, data = readData()) {
  const put = (text, name, table) => {
    const marks = [`<!-- ${name} -->\n`, `\n<!-- end of ${name} -->`];
    const [begin, end] = [text.indexOf(marks[0]), text.indexOf(marks[1])];
    if (begin < 0 || end < begin) throw new Error(`no marks of ${name} in the page`);
    return text.slice(0, begin + marks[0].length) + table + text.slice(end);
  };
  const terms = put(page, 'terms of the paper', termsTable());
  const goals = put(terms, 'goals on paper', goalsTable(data));
  return put(
    goals,
    'step on paper',
    stepTable((row) => budgetOf(row, data).us),
  );
}

/** The launches of every case, as `program` prints them. */
export function plannedLaunches(program) {
  const rows = [...kBudgets, ...kStepRows];
  const cases = [...new Set(rows.map(planCase).filter((one) => one !== undefined))];
  const lines = execFileSync(program, cases, { encoding: 'utf8' }).trim().split('\n');
  return Object.fromEntries(lines.map(JSON.parse).map((line) => [line.case, line.launches]));
}

/** The main loops of the kernels launched, of a build's cubins for sm_90; none without nvcc. */
export function countedLoops(folder, launches) {
  const wanted = new Set(
    Object.values(launches).flatMap((list) => list.map(({ kernel }) => kernel)),
  );
  // All of those among which the plans choose by their clocks.
  for (const kernel of Object.keys(kWgmmaTiles)) wanted.add(`${kernel}_4bit_bf16_kernel`);
  const loops = {};
  const modules = existsSync(folder) ? readdirSync(folder).sort() : [];
  for (const module of modules.filter((name) => name.startsWith('matmul_'))) {
    const files = readdirSync(path.join(folder, module));
    for (const file of files.filter((name) => /_90a?\.cubin$/.test(name))) {
      for (const [kernel, loop] of mainLoops(readFileSync(path.join(folder, module, file)))) {
        if (wanted.has(kernel)) loops[kernel] = loop;
      }
    }
  }
  return loops;
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  if (process.argv.includes('--update')) {
    const launches = plannedLaunches(path.join(root, 'build', 'cuda_plan_table'));
    const counted = countedLoops(path.join(root, 'build', 'kernels'), launches);
    const loops = Object.keys(counted).length > 0 ? counted : readData().loops;
    const line = (object) =>
      Object.entries(object).map(
        ([key, value]) => `  ${JSON.stringify(key)}: ${JSON.stringify(value)}`,
      );
    const text = (object) => `{\n${line(object).join(',\n')}\n }`;
    writeFileSync(dataFile, `{\n "launches": ${text(launches)},\n "loops": ${text(loops)}\n}\n`);
    writeFileSync(pageFile, withTables(readFileSync(pageFile, 'utf8')));
  }
  console.log(`${termsTable()}\n\n${goalsTable()}`);
}
