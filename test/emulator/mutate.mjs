/**
 * The mutation proof: takes each barrier, wait, commit, fence and bounds guard out of the kernels in
 * turn and runs the kernel cases under the emulator's checks. Every mutant must be caught, by a
 * finding or by other bits, or stand in `mutants-equivalent.json` with the reason why nothing can
 * tell it from the original.
 *
 *   node test/emulator/mutate.mjs [--only REGEX of files] [--sample N] [--json FILE]
 *
 * Needs a build with target emulator_check (npm run build:emulator).
 */
import { execFileSync, spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { cpus, tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { build } from 'esbuild';
import { writeMutants } from './mutants.mjs';

const { values: args } = parseArgs({
  options: {
    only: { type: 'string', default: '' },
    sample: { type: 'string' },
    json: { type: 'string' },
    build: { type: 'string' },
  },
});
const root = join(import.meta.dirname, '..', '..');
const buildFolder = args.build ?? join(root, 'build');
const binding = join(buildFolder, 'Release', 'lowrank.node');
const folder = mkdtempSync(join(tmpdir(), 'lowrank-mutants-'));
const jobs = Math.max(1, cpus().length);

/** Which cases reach a file, and on which compute capability. */
const GROUPS = [
  { files: /cast/, filter: '^cast' },
  { files: /quantize/, filter: '^quantize' },
  { files: /random/, filter: '^random' },
  { files: /gemm_f32/, filter: 'f32' },
  { files: /wgmma|panel_fill/, filter: '^large.*\\[520,', sm: '90' },
  { files: /small_m/, filter: '^large.*\\[\\d\\d?,' },
  { files: /lora_(contract|grad|shrink|gate|parts)/, filter: '^lora' },
  { files: /./, filter: '^(matmul|lora) (bf16|f16)' },
];
/** In this order until one catches the mutant. */
const SCHEDULES = [
  { order: 'forward', copies: 'late' },
  { order: 'reverse', copies: 'late' },
  { order: 'reverse', copies: 'early' },
  ...[1, 2, 3, 4].map((seed) => ({ order: 'random', copies: seed % 2 ? 'late' : 'early', seed })),
];
const EQUIVALENT = JSON.parse(
  readFileSync(join(import.meta.dirname, 'mutants-equivalent.json'), 'utf8'),
);

function run(command, commandArgs, options = {}) {
  return new Promise((resolve) => {
    const child = spawn(command, commandArgs, { stdio: ['ignore', 'pipe', 'pipe'], ...options });
    let out = '';
    let err = '';
    child.stdout.setEncoding('utf8').on('data', (text) => {
      out += text;
    });
    child.stderr.setEncoding('utf8').on('data', (text) => {
      if (err.length < 20_000) err += text;
    });
    child.on('close', (status, signal) => resolve({ status: signal ?? status, out, err }));
  });
}

async function inParallel(items, body) {
  const queue = [...items];
  const worker = async () => {
    for (let item = queue.shift(); item !== undefined; item = queue.shift()) await body(item);
  };
  await Promise.all(Array.from({ length: jobs }, worker));
}

/** The check library with every mutant in it, made by the build's own commands. */
async function buildLibrary() {
  const commands = execFileSync('ninja', ['-C', buildFolder, '-t', 'commands', 'emulator_check'], {
    encoding: 'utf8',
    maxBuffer: 1 << 26,
  }).split('\n');
  const compiled = new Map();
  const compiles = commands.flatMap((command) => {
    const match = / -c (\S*\/cuda\/\w+\.cu)/.exec(command);
    const object = / -o (\S+\.o)/.exec(command)?.[1];
    if (!match || !object?.includes('emulator_check.dir')) return [];
    const own = join(folder, `${compiled.size}.o`);
    compiled.set(object, own);
    const source = match[1].replace(/^.*\/cuda\//, `${folder}/cuda/`);
    return [
      command
        .replace(match[1], source)
        .replace(/ -c /, ` -include ${folder}/mutant.h -Wno-error -w -c `)
        .replace(/ -I/, ` -I${folder} -I`)
        .replace(/ -MF \S+| -MT \S+| -MD/g, '')
        .replace(object, own),
    ];
  });
  const link = commands.find(
    (command) => command.includes('lowrank-emulator-check.so') && / -shared /.test(command),
  );
  if (compiles.length === 0 || link === undefined) {
    throw new Error(`no commands of target emulator_check in ${buildFolder}`);
  }
  const mutantObject = join(folder, 'mutant.o');
  const failed = [];
  await inParallel(
    [
      ...compiles,
      `g++ -std=c++17 -O2 -fPIC -I${folder} -c ${folder}/mutant.cpp -o ${mutantObject}`,
    ],
    async (command) => {
      const { status, err } = await run('sh', ['-c', command], { cwd: buildFolder });
      if (status !== 0) failed.push(err);
    },
  );
  if (failed.length > 0) throw new Error(failed.join('\n'));
  let linked = link.replace(/Release\/lowrank-emulator-check\.so/g, join(folder, 'mutants.so'));
  for (const [object, own] of compiled) linked = linked.replaceAll(object, own);
  linked = linked.replace(/ -o /, ` ${mutantObject} -o `);
  const { status, err } = await run('sh', ['-c', linked], { cwd: buildFolder });
  if (status !== 0) throw new Error(err);
}

const program = join(folder, 'run-cases.mjs');
function runCases({ filter, sm = '80' }, schedule, extra, expect) {
  return run(
    process.execPath,
    [program, '--filter', filter, ...(expect ? ['--expect', expect] : [])],
    {
      env: {
        ...process.env,
        LOWRANK_BINDING: binding,
        LOWRANK_EMULATOR: join(folder, 'mutants.so'),
        LOWRANK_EMULATOR_SM: sm,
        LOWRANK_EMULATOR_CHECK: '1',
        LOWRANK_EMULATOR_ORDER: schedule.order,
        LOWRANK_EMULATOR_COPIES: schedule.copies,
        LOWRANK_EMULATOR_SEED: String(schedule.seed ?? 1),
        ...extra,
      },
      timeout: 300_000,
    },
  );
}

const groupOf = ({ file }) => GROUPS.find(({ files }) => files.test(file));
const reasonOf = ({ file, what }) =>
  EQUIVALENT.find((entry) => entry.file === file && entry.what === what)?.reason;

let failures = 0;
try {
  let mutants = writeMutants(root, folder);
  if (args.only) mutants = mutants.filter(({ file }) => new RegExp(args.only).test(file));
  if (args.sample) {
    const every = Math.max(1, Math.floor(mutants.length / Number(args.sample)));
    mutants = mutants.filter((_, i) => i % every === 0);
  }
  console.log(`${mutants.length} mutants; building the kernels with all of them`);
  await build({
    entryPoints: [join(import.meta.dirname, 'programs', 'run-cases.ts')],
    bundle: true,
    platform: 'node',
    format: 'esm',
    logLevel: 'warning',
    outfile: program,
  });
  await buildLibrary();

  // The original's bits, and which mutants each group's cases come past.
  const groups = [...new Set(mutants.map(groupOf))];
  const reached = new Map();
  await inParallel(groups, async (group) => {
    const path = join(folder, `reached-${GROUPS.indexOf(group)}`);
    const { status, out, err } = await runCases(group, SCHEDULES[0], {
      LOWRANK_MUTANTS_REACHED: path,
    });
    if (status !== 0 || err.trim() !== '' || /^error/m.test(out)) {
      throw new Error(
        `the original fails on ${group.filter}: ${err.slice(0, 2000)}${out.slice(0, 500)}`,
      );
    }
    writeFileSync(join(folder, `expect-${GROUPS.indexOf(group)}`), out);
    reached.set(group, new Set(readFileSync(path, 'utf8').split('\n').filter(Boolean).map(Number)));
  });

  const results = [];
  await inParallel(mutants, async (mutant) => {
    const group = groupOf(mutant);
    let outcome = reached.get(group).has(mutant.id) ? undefined : 'not reached';
    for (const schedule of outcome ? [] : SCHEDULES) {
      const expect = join(folder, `expect-${GROUPS.indexOf(group)}`);
      const { status, out, err } = await runCases(
        group,
        schedule,
        { LOWRANK_MUTANT: String(mutant.id) },
        expect,
      );
      if (status === 0) continue;
      const finding = /lowrank emulator: ([^:\n]*)/.exec(err)?.[1];
      const last = out.trim().split('\n').at(-1) ?? '';
      outcome = `caught (${schedule.order}, ${schedule.copies}): ${finding ?? (typeof status === 'string' ? `ended by ${status}` : /^error/.test(last) ? last.slice(0, 80) : 'other bits')}`;
      break;
    }
    const reason = reasonOf(mutant);
    outcome ??= reason ? `equivalent: ${reason}` : 'SURVIVED';
    if (outcome === 'not reached' && reason) outcome = `equivalent: ${reason}`;
    const good = /^(caught|equivalent)/.test(outcome);
    if (!good) failures += 1;
    results.push({ ...mutant, outcome });
    console.log(
      `${results.length}/${mutants.length} ${good ? 'ok  ' : 'FAIL'} ${mutant.file}:${mutant.line} ${mutant.what}: ${outcome}`,
    );
  });
  results.sort((a, b) => a.id - b.id);
  const caught = results.filter(({ outcome }) => outcome.startsWith('caught')).length;
  const equivalent = results.filter(({ outcome }) => outcome.startsWith('equivalent')).length;
  console.log(
    `${results.length} mutants: ${caught} caught, ${equivalent} equivalent and explained, ${failures} missed`,
  );
  if (args.json) writeFileSync(args.json, `${JSON.stringify(results, null, 1)}\n`);
} finally {
  rmSync(folder, { recursive: true, force: true });
}
process.exit(failures === 0 ? 0 : 1);
