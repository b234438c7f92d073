/**
 * Are the faults of planted-faults.mjs found, each by what is named there? All of them are built into one
 * copy of the kernels, and switched on one at a time, under three schedules.
 *
 *   node test/emulator/planted.mjs [--filter REGEX of names] [--jobs N]
 *
 * Needs a CMake build (npm run build:emulator).
 */
import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { cpus, tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { CaseRunner, inParallel, scheduleName, schedules } from './case-runs.mjs';
import { MAX_MUTANTS, writeMutants } from './mutants.mjs';
import { FAULTS } from './planted-faults.mjs';

const { values: args } = parseArgs({
  options: {
    filter: { type: 'string', default: '' },
    jobs: { type: 'string', default: String(Math.max(1, cpus().length)) },
  },
});
const root = join(import.meta.dirname, '..', '..');
const buildFolder = join(root, 'build');
const sources = join(buildFolder, 'mutants');
const library = join(buildFolder, 'Release', 'lowrank-emulator-mutants.so');
const folder = mkdtempSync(join(tmpdir(), 'lowrank-planted-'));
const runner = new CaseRunner(folder, join(buildFolder, 'Release', 'lowrank.node'));

/** The kinds of findings, and `values` where the results are wrong, that a fault shows under a schedule. */
async function told(fault, id, schedule) {
  const run = (check) =>
    runner.run({
      library,
      device: fault.device,
      schedule,
      check,
      filter: fault.cases,
      more: ['--oracle'],
      env: { LOWRANK_MUTANT: String(id) },
      limits: [120_000],
    });
  const { lines, err } = await run(true);
  const kinds = new Set([...err.matchAll(/lowrank emulator: ([\w-]+)/g)].map(([, kind]) => kind));
  if (lines.length < 2) throw new Error(`no case ${fault.cases}: ${err}`);
  const errors = lines.filter(([outcome]) => outcome.startsWith('error'));
  if (errors.some(([outcome]) => /^error: wrong by /.test(outcome))) kinds.add('values');
  else if (errors.length > 0 && kinds.size === 0) kinds.add(errors.join());
  return kinds;
}

let failures = 0;
try {
  const faults = FAULTS.filter(({ name }) => new RegExp(args.filter).test(name));
  const files = new Set(faults.map(({ kernel }) => kernel));
  mkdirSync(sources, { recursive: true });
  writeMutants(root, sources, {
    only: /^$/,
    kernels: { test: (file) => files.has(file) },
    planted: faults,
  });
  await runner.prepare();
  const options = { encoding: 'utf8', maxBuffer: 1 << 28, stdio: ['ignore', 'pipe', 'pipe'] };
  const whole = '-DLOWRANK_MUTANTS_WHOLE=ON';
  execFileSync('cmake', [`-DLOWRANK_MUTANTS=${sources}`, whole, buildFolder], options);
  const target = ['--target', 'emulator_mutants', '-j', args.jobs];
  execFileSync('cmake', ['--build', buildFolder, ...target], options);

  await inParallel([...faults.entries()], Number(args.jobs), async ([id, fault]) => {
    const clean = await told(fault, MAX_MUTANTS - 1, schedules(0)[0]);
    let found;
    const seen = new Set();
    for (const schedule of schedules(2)) {
      const kinds = await told(fault, id, schedule);
      for (const kind of kinds) seen.add(kind);
      if (!fault.tells.some((kind) => kinds.has(kind))) continue;
      found = schedule;
      break;
    }
    const good = found !== undefined && clean.size === 0;
    failures += good ? 0 : 1;
    const how = clean.size > 0 ? `without it ${[...clean]}` : [...seen].join(', ') || 'nothing';
    const when = found === undefined ? '' : ` (${scheduleName(found)})`;
    console.log(`${good ? 'ok  ' : 'FAIL'} ${fault.file}: ${fault.name}: ${how}${when}`);
  });
  console.log(`${faults.length - failures} of ${faults.length} planted faults are found`);
} finally {
  rmSync(folder, { recursive: true, force: true });
}
process.exit(failures === 0 ? 0 : 1);
