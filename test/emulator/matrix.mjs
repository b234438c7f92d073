/**
 * Every kernel case on device `cuda-emulated`, again and again: in source mode, under the checks with
 * three schedules and twenty random ones, and in PTX mode. Every run must give the bits of the first,
 * and report nothing.
 *
 *   node test/emulator/matrix.mjs [--smoke] [--filter REGEX] [--modes source,check,ptx] [--sm 80,90]
 *
 * --smoke takes three schedules and two seeds.
 */
import { spawn } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { parseArgs } from 'node:util';
import { build } from 'esbuild';

const { values: args } = parseArgs({
  options: {
    smoke: { type: 'boolean', default: false },
    filter: { type: 'string', default: '' },
    modes: { type: 'string', default: 'source,check,ptx' },
    sm: { type: 'string', default: '80,90' },
    binding: { type: 'string', default: process.env.LOWRANK_BINDING ?? '' },
  },
});
const root = join(import.meta.dirname, '..', '..');
const binding = args.binding || join(root, 'build', 'Release', 'lowrank.node');
const modes = args.modes.split(',');
const LIBRARY = {
  source: 'lowrank-emulator.so',
  check: 'lowrank-emulator-check.so',
  ptx: 'lowrank-emulator-ptx.so',
};
for (const mode of modes) {
  const path = join(dirname(binding), LIBRARY[mode]);
  if (!existsSync(path)) {
    console.error(`${path} is missing: npm run build:emulator`);
    process.exit(2);
  }
}

const folder = mkdtempSync(join(tmpdir(), 'lowrank-matrix-'));
const program = join(folder, 'run-cases.mjs');
await build({
  entryPoints: [join(import.meta.dirname, 'programs', 'run-cases.ts')],
  bundle: true,
  platform: 'node',
  format: 'esm',
  logLevel: 'warning',
  outfile: program,
});

const seeds = args.smoke ? [1, 2] : Array.from({ length: 20 }, (_, i) => i + 1);
const schedules = [
  { order: 'forward', copies: 'late' },
  { order: 'reverse', copies: 'late' },
  { order: 'reverse', copies: 'early' },
  ...seeds.map((seed) => ({ order: 'random', seed, copies: seed % 2 === 0 ? 'early' : 'late' })),
];
/** @type {Array<{ mode: string, sm: string, order: string, copies: string, seed?: number, check: boolean }>} */
const runs = args.sm.split(',').flatMap((sm) =>
  modes.flatMap((mode) => {
    const base = { mode, sm, order: 'forward', copies: 'late', check: mode === 'check' };
    if (mode === 'source') return [base];
    if (mode === 'check') return schedules.map((schedule) => ({ ...base, ...schedule }));
    return [
      base,
      ...schedules.slice(0, 5).map((schedule) => ({ ...base, ...schedule, check: true })),
    ];
  }),
);

const nameOf = ({ mode, sm, order, seed, copies, check }) =>
  `sm_${sm} ${mode}${check ? ' checked' : ''}, ${order}${seed ? ` ${seed}` : ''}, ${copies} copies`;

function runOne(run) {
  const child = spawn(process.execPath, [program, '--filter', args.filter], {
    env: {
      ...process.env,
      LOWRANK_BINDING: binding,
      LOWRANK_EMULATOR: run.mode,
      LOWRANK_EMULATOR_SM: run.sm,
      LOWRANK_EMULATOR_ORDER: run.order,
      LOWRANK_EMULATOR_SEED: String(run.seed ?? 1),
      LOWRANK_EMULATOR_COPIES: run.copies,
      LOWRANK_EMULATOR_CHECK: run.check ? '1' : '0',
    },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let out = '';
  let err = '';
  child.stdout.setEncoding('utf8').on('data', (text) => {
    out += text;
  });
  child.stderr.setEncoding('utf8').on('data', (text) => {
    err += text;
  });
  return new Promise((resolve) => {
    child.on('close', (status, signal) => {
      const hashes = new Map(
        out
          .split('\n')
          .filter(Boolean)
          .map((line) => line.split('\t').reverse()),
      );
      resolve({ hashes, err, status: signal ?? status });
    });
  });
}

/** sm -> the hashes of its first run */
const expected = new Map();
let failures = 0;
let done = 0;
async function judge(run) {
  const { hashes, err, status } = await runOne(run);
  const problems = [];
  if (status !== 0) problems.push(`ended with ${status}: ${err.slice(-2000)}`);
  else if (err.trim() !== '') problems.push(`reported:\n${err.slice(0, 4000)}`);
  const first = expected.get(run.sm);
  if (first === undefined) expected.set(run.sm, hashes);
  for (const [name, hash] of hashes) {
    if (hash.startsWith('error')) problems.push(`${name}: ${hash}`);
    else if (first !== undefined && first.get(name) !== hash) {
      problems.push(`${name}: ${hash} in place of ${first.get(name)}`);
    }
  }
  if (first !== undefined && first.size !== hashes.size) {
    problems.push(`${hashes.size} cases in place of ${first.size}`);
  }
  done += 1;
  failures += problems.length === 0 ? 0 : 1;
  console.log(
    `${done}/${runs.length} ${problems.length === 0 ? 'ok  ' : 'FAIL'} ${nameOf(run)}: ${hashes.size} cases`,
  );
  for (const problem of problems.slice(0, 20)) console.log(`    ${problem}`);
  if (problems.length > 20) console.log(`    and ${problems.length - 20} more`);
}

try {
  // The first run of each capability is what the others are compared with.
  const [firsts, others] = [[], []];
  for (const run of runs) {
    (firsts.some(({ sm }) => sm === run.sm) ? others : firsts).push(run);
  }
  for (const queue of [firsts, others]) {
    const worker = async () => {
      for (let run = queue.shift(); run !== undefined; run = queue.shift()) await judge(run);
    };
    await Promise.all([worker(), worker()]);
  }
} finally {
  rmSync(folder, { recursive: true, force: true });
}
console.log(
  failures === 0 ? `all ${runs.length} runs agree` : `${failures} of ${runs.length} runs failed`,
);
process.exit(failures === 0 ? 0 : 1);
