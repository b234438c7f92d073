/**
 * `npm run gpu:bench`: the table of goals, timed on this machine's GPU beside cuBLAS and PyTorch
 * (docs/gpu-testing.md).
 *
 *   node bench/gpu/run.mjs [--filter REGEX] [--out FOLDER] [--no-build] [--no-torch] [--emulated]
 *
 * --emulated runs every part once, at tiny sizes, over the emulator and the CPU, to prove the
 * programs; its numbers say nothing and are written only where --out is given.
 * Status: 0, 1 where something failed, 2 where nothing could be run.
 */
import { spawn, spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import {
  beside,
  buildPrograms,
  commit,
  jsonLines,
  requireDevice,
  root,
  slug,
  writeText,
} from '../../test/gpu/machine.mjs';
import { caseText, cublasText, isProduct, kRows, tiny } from './cases.mjs';
import { reportOf } from './report.mjs';

const kProgramTimeout_ms = 240_000;
const kTorchTimeout_ms = 150_000;
const kCopyBytes = 1 << 29; // and as many written
const kCeilingSize = 8192;

const { values: args } = parseArgs({
  options: {
    filter: { type: 'string', default: '' },
    out: { type: 'string' },
    'no-build': { type: 'boolean', default: false },
    'no-torch': { type: 'boolean', default: false },
    emulated: { type: 'boolean', default: false },
  },
});
const { emulated } = args;
if (!args['no-build']) buildPrograms(emulated ? 'gpu_self_proof' : 'gpu_programs');
const device = requireDevice(emulated ? 'cuda-emulated' : 'cuda');

const wanted = new RegExp(args.filter);
const rows = kRows
  .map((one) => (emulated ? tiny(one) : one))
  .filter((one) => wanted.test(`${one.id} ${caseText(one)}`));

const size = emulated ? 128 : kCeilingSize;
const ceilings = {
  copy: `copy,${emulated ? 1 << 16 : kCopyBytes}`,
  copyKernel: `copyKernel,${emulated ? 1 << 16 : kCopyBytes}`,
  cublas: cublasText({ M: size, N: size, K: size }),
  ownDense: caseText({ op: 'matmul', M: size, N: size, K: size, r: 0, dropout: 0, format: '' }),
};

/** Clocks and power while `work` runs, where nvidia-smi is there. */
async function withClocks(work) {
  const fields = ['clocks.sm', 'clocks.mem', 'power.draw', 'temperature.gpu'];
  const query = [`--query-gpu=${fields.join(',')}`, '--format=csv,noheader,nounits'];
  const samples = [];
  const smi = spawn('nvidia-smi', [...query, '-i', '0', '-lms', '500'], {
    stdio: ['ignore', 'pipe', 'ignore'],
  });
  smi.on('error', () => {});
  smi.stdout.setEncoding('utf8').on('data', (text) => {
    for (const line of text.split('\n')) {
      const values = line.split(',').map(Number);
      if (values.length === fields.length && Number.isFinite(values[0])) samples.push(values);
    }
  });
  const result = await work();
  smi.kill();
  if (samples.length === 0) return [result, undefined];
  const range = (i) => {
    const sorted = samples.map((values) => values[i]).sort((a, b) => a - b);
    return { least: sorted[0], median: sorted[sorted.length >> 1], most: sorted.at(-1) };
  };
  return [result, Object.fromEntries(fields.map((field, i) => [field, range(i)]))];
}

/** Each of our cases with its peer right behind it, so that both meet the same clocks. */
function timeOurs() {
  const texts = [
    ...Object.values(ceilings),
    ...rows.flatMap((one) => [caseText(one), ...(isProduct(one) ? [cublasText(one)] : [])]),
  ];
  const how = emulated ? ['--device', beside('lowrank-emulator.so'), '--quick'] : [];
  return jsonLines(beside('gpu_bench'), [...how, ...new Set(texts)], {
    timeout: kProgramTimeout_ms,
    onRow: (row) => {
      if (row.error !== undefined) console.log(`failed: ${row.case}: ${row.error}`);
    },
  });
}

async function timeTorch() {
  const pythons = [process.env.PYTHON, 'python3', '/usr/bin/python3'];
  const has = (python) =>
    spawnSync(python, ['-c', 'import torch'], { stdio: 'ignore' }).status === 0;
  const python = pythons.find((name) => name !== undefined && has(name));
  if (python === undefined) return { rows: [], err: 'no python3 with torch (PYTHON can name one)' };
  const cases = [
    { case: 'ceiling', op: 'matmul', M: size, N: size, K: size, r: 0, dropout: 0, ceiling: true },
    ...rows.map((one) => ({ ...one, case: caseText(one) })),
  ];
  const script = join(import.meta.dirname, 'torch_peer.py');
  return jsonLines(python, [script, ...(emulated ? ['--cpu'] : [])], {
    input: JSON.stringify(cases),
    timeout: kTorchTimeout_ms,
  });
}

const [ours, clocks] = await withClocks(timeOurs);
if (ours.status === 2 || ours.rows.length === 0) {
  console.error(ours.err || 'gpu_bench told nothing');
  process.exit(2);
}
const torch = args['no-torch'] ? { rows: [], err: 'not asked for' } : await timeTorch();

const machine = ours.rows.find((row) => row.card !== undefined);
const report = reportOf({
  card: emulated ? machine.card : device.name || machine.card,
  emulated,
  machine,
  cublas: ours.rows.find((row) => row.cublas !== undefined),
  torch: torch.rows.find((row) => row.torch !== undefined) ?? { missing: torch.err },
  clocks,
  commit: commit(),
  date: new Date().toISOString(),
  rows,
  ceilings,
  ceilingFlops: 2 * size ** 3,
  timings: ours.rows.filter((row) => row.case !== undefined),
  peers: torch.rows.filter((row) => row.case !== undefined),
});
console.log(report.markdown);
const folder = args.out ?? (emulated ? undefined : join(root, 'bench', 'results'));
if (folder !== undefined) {
  const name = join(folder, `gpu-${slug(report.json.card)}`);
  writeText(`${name}.json`, `${JSON.stringify(report.json, null, 2)}\n`);
  writeText(`${name}.md`, report.markdown);
}
// A row without a time is a failure of ours, a peer without one is not.
const missing = report.json.rows.filter((row) => row.median_us === undefined);
for (const row of missing) console.error(`no time: ${row.operation}: ${row.error ?? ours.err}`);
process.exit(missing.length === 0 ? 0 : 1);
