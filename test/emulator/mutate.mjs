/**
 * The mutation proof: takes each barrier, wait, commit, fence and bounds guard out of the kernels in
 * turn and runs the kernel cases that come past it under the emulator's checks. Every mutant must be
 * caught, by a finding or by other bits, or stand in `mutants-equivalent.json` with the reason why
 * nothing can tell it from the original. An entry there that a case does tell apart is a failure too.
 *
 *   node test/emulator/mutate.mjs [--only REGEX of files with mutants] [--kernels REGEX of .cu files]
 *     [--filter REGEX of cases] [--devices REGEX] [--ids 1,2-5] [--sample N] [--jobs N]
 *     [--quick] [--markdown FILE] [--json FILE]
 *
 * --quick stops after a few cheap cases a mutant, --sample takes N mutants, evenly spread.
 * Needs a CMake build (npm run build:emulator).
 */
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { cpus, tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { CaseRunner, DEVICES, inParallel, scheduleName, schedules } from './case-runs.mjs';
import { MAX_MUTANTS, writeMutants } from './mutants.mjs';
import { markdownOf } from './mutants-markdown.mjs';

const { values: args } = parseArgs({
  options: {
    only: { type: 'string', default: '' },
    kernels: { type: 'string', default: '' },
    filter: { type: 'string', default: '' },
    devices: { type: 'string', default: '' },
    ids: { type: 'string' },
    sample: { type: 'string' },
    jobs: { type: 'string', default: String(Math.max(1, cpus().length)) },
    markdown: { type: 'string' },
    json: { type: 'string' },
    quick: { type: 'boolean', default: false },
  },
});
const root = join(import.meta.dirname, '..', '..');
const buildFolder = join(root, 'build');
const output = join(buildFolder, 'Release');
const sources = join(buildFolder, 'mutants');
const folder = mkdtempSync(join(tmpdir(), 'lowrank-mutants-'));
const runner = new CaseRunner(folder, join(output, 'lowrank.node'));
const jobs = Number(args.jobs);
const devices = DEVICES.filter(({ name }) => new RegExp(args.devices).test(name));

/** In this order until one catches the mutant. */
const SCHEDULES = schedules(4);
/**
 * Of the cases that reach a mutant these many, of different shapes, are tried under each schedule
 * first, and then those many more.
 */
const QUICK_CASES = 6;
const MORE_CASES = 60;
/** A case that takes more than so many times the original's milliseconds, and these, does not end. */
const LONGEST_TIMES = 20;
const LONGEST_MS = 30_000;
const EQUIVALENT = JSON.parse(
  readFileSync(join(import.meta.dirname, 'mutants-equivalent.json'), 'utf8'),
);

/** The check library with every mutant in it. */
function buildLibrary() {
  const options = { encoding: 'utf8', maxBuffer: 1 << 28, stdio: ['ignore', 'pipe', 'pipe'] };
  const whole = '-DLOWRANK_MUTANTS_WHOLE=OFF';
  execFileSync('cmake', [`-DLOWRANK_MUTANTS=${sources}`, whole, buildFolder], options);
  const target = ['--target', 'emulator_mutants', '-j', String(jobs)];
  execFileSync('cmake', ['--build', buildFolder, ...target], options);
}

/** What run-cases prints on the original, of an earlier run where nothing has changed since. */
async function runOriginal(device, names) {
  const hash = createHash('sha256').update(JSON.stringify([device, names]));
  for (const name of ['lowrank.node', 'lowrank-emulator-mutants.so']) {
    hash.update(readFileSync(join(output, name)));
  }
  const key = hash.update(runner.programText()).digest('hex');
  const kept = join(sources, `original-${DEVICES.indexOf(device)}.json`);
  if (existsSync(kept)) {
    const earlier = JSON.parse(readFileSync(kept, 'utf8'));
    if (earlier.key === key) return earlier.lines;
  }
  const marks = join(folder, `reached-${DEVICES.indexOf(device)}`);
  writeFileSync(marks, Buffer.alloc(MAX_MUTANTS));
  const { status, lines, err } = await runner.run({
    library: join(output, 'lowrank-emulator-mutants.so'),
    device,
    schedule: SCHEDULES[0],
    check: true,
    names,
    more: ['--measure'],
    env: { LOWRANK_MUTANTS_REACHED: marks },
  });
  const errors = lines.filter(([outcome]) => outcome.startsWith('error'));
  if (status !== 0 || err.trim() !== '' || errors.length > 0) {
    throw new Error(`the original fails on ${device.name}: ${status} ${err}${errors.join('\n')}`);
  }
  writeFileSync(kept, JSON.stringify({ key, lines }));
  return lines;
}

/**
 * The original's bits on a device, which are `outcomes`, and for each case its time and the mutants that
 * it reaches.
 */
async function measure(device, names, outcomes) {
  const lines = await runOriginal(device, names);
  // The edits must not change what they are not asked to: their original has the bits of the kernels.
  const changed = lines.find(
    ([outcome, name]) => outcomes.has(name) && outcomes.get(name) !== outcome,
  );
  if (changed !== undefined) {
    throw new Error(
      `without a mutant ${changed[1]} on ${device.name} has other bits than the kernels: an edit of mutants.mjs changes what it leaves in`,
    );
  }
  const expect = join(folder, `expect-${DEVICES.indexOf(device)}`);
  writeFileSync(expect, lines.map(([outcome, name]) => `${outcome}\t${name}\n`).join(''));
  return lines
    .filter((fields) => fields.length >= 5) // not the line of what is left in memory
    .map(([, name, ms, , reached]) => ({
      device,
      expect,
      name,
      ms: Number(ms),
      reached: new Set(reached.split(' ').filter(Boolean).map(Number)),
    }));
}

/** Cheap ones first, a shape once. */
function quickOf(cases) {
  const shapes = new Set();
  const quick = cases.filter(({ device, name }) => {
    const shape = `${device.name} ${/\[.*\].*/.exec(name)?.[0] ?? name}`;
    return !shapes.has(shape) && shapes.add(shape);
  });
  return quick.slice(0, QUICK_CASES);
}

/** How the mutant shows in these cases, or undefined. */
async function tell(id, cases, schedule) {
  for (const device of new Set(cases.map((one) => one.device))) {
    const own = cases.filter((one) => one.device === device);
    const { status, lines, err } = await runner.run({
      library: join(output, 'lowrank-emulator-mutants.so'),
      device,
      schedule,
      check: true,
      names: own.map(({ name }) => name),
      more: ['--expect', own[0].expect],
      env: { LOWRANK_MUTANT: String(id) },
      limits: own.map(({ ms }) => LONGEST_MS + LONGEST_TIMES * ms),
    });
    if (status === 0) continue;
    const last = lines.at(-1)?.[0] ?? '';
    const finding = /lowrank emulator: ([\w-]+)/.exec(err)?.[1];
    const how =
      finding ??
      (status === 'SIGTERM'
        ? 'does not end'
        : typeof status === 'string'
          ? `ended by ${status}`
          : last.startsWith('error')
            ? last.slice(0, 80)
            : 'other bits');
    const at = typeof status === 'string' ? lines.length : lines.length - 1;
    const name = own[Math.min(at, own.length - 1)].name;
    return `${how} (${name} on ${device.name}; ${scheduleName(schedule)})`;
  }
  return undefined;
}

/**
 * Tries the mutant on what comes past it, until something tells it apart: a few cheap cases under
 * each schedule, then more, then those that take long. What is explained is tried on the first.
 */
async function judge({ id }, cases, explained) {
  if (cases.length === 0) return 'not reached';
  const quick = quickOf(cases);
  const rest = cases.filter((one) => !quick.includes(one));
  const [more, last] = [rest.slice(0, MORE_CASES), rest.slice(MORE_CASES)];
  const rounds = explained
    ? [[quick, SCHEDULES.slice(0, 3)]]
    : [
        [quick, SCHEDULES],
        [more, SCHEDULES],
        [last, SCHEDULES.slice(0, 3)],
      ];
  for (const [group, under] of args.quick ? rounds.slice(0, 1) : rounds) {
    for (const schedule of group.length === 0 ? [] : under) {
      const found = await tell(id, group, schedule);
      if (found) return `caught: ${found}`;
    }
  }
  return 'survived';
}

const entryOf = ({ file, what, nth }) =>
  EQUIVALENT.find(
    (entry) => entry.file === file && entry.what === what && (entry.nth ?? nth) === nth,
  );

function chosen(mutants) {
  if (args.ids) {
    const ids = args.ids.split(',').flatMap((range) => {
      const [from, to = from] = range.split('-').map(Number);
      return Array.from({ length: to - from + 1 }, (_, i) => from + i);
    });
    return mutants.filter(({ id }) => ids.includes(id));
  }
  if (!args.sample) return mutants;
  const every = Math.max(1, Math.floor(mutants.length / Number(args.sample)));
  return mutants.filter((_, i) => i % every === 0);
}

let failures = 0;
try {
  mkdirSync(sources, { recursive: true });
  const all = writeMutants(root, sources, {
    only: new RegExp(args.only),
    kernels: new RegExp(args.kernels),
  });
  const mutants = chosen(all);
  console.log(`${mutants.length} of ${all.length} mutants; building the kernels with all of them`);
  await runner.prepare();
  buildLibrary();

  console.log('running the original');
  const { names, outcomes } = await runner.survey(devices, args.filter, jobs);
  const cases = [];
  await inParallel(devices, jobs, async (device) => {
    cases.push(...(await measure(device, names.get(device), outcomes.get(device))));
  });
  // By the numbers in their names and not by time: the page is to be the same again. A case of many
  // adapters is a dozen batches, forward and backward.
  const cost = ({ name }) =>
    name.startsWith('grouped')
      ? 1e6
      : (name.match(/\d+(?=[,\]])/g) ?? [900]).reduce((a, b) => a * b, 1);
  cases.sort(
    (a, b) =>
      cost(a) - cost(b) ||
      a.name.localeCompare(b.name) ||
      DEVICES.indexOf(a.device) - DEVICES.indexOf(b.device),
  );
  const seconds = cases.reduce((sum, { ms }) => sum + ms, 0) / 1000;
  console.log(`${cases.length} cases on ${devices.length} devices, ${seconds.toFixed(0)} s`);

  // Does the proof see a survivor? One that changes nothing has to be reported as such.
  const nothing = await judge({ id: MAX_MUTANTS - 1 }, quickOf(cases), true);
  if (nothing !== 'survived') throw new Error(`a mutant that changes nothing is ${nothing}`);
  console.log('a mutant that changes nothing survives, as it must');

  const results = [];
  await inParallel(mutants, jobs, async (mutant) => {
    const entry = entryOf(mutant);
    const reaching = cases.filter(({ reached }) => reached.has(mutant.id));
    let outcome = await judge(mutant, reaching, entry !== undefined);
    let good = outcome.startsWith('caught');
    if (entry !== undefined) {
      outcome = good ? `NOT EQUIVALENT, ${outcome}` : `equivalent: ${entry.reason}`;
      good = !good;
    } else if (!good) {
      outcome = outcome.toUpperCase();
    }
    if (!good) failures += 1;
    results.push({ ...mutant, outcome });
    console.log(
      `${results.length}/${mutants.length} ${good ? 'ok  ' : 'FAIL'} ${mutant.id} ${mutant.file}:${mutant.line} ${mutant.kind} ${mutant.what}: ${outcome}`,
    );
  });
  results.sort((a, b) => a.id - b.id);
  if (mutants.length === all.length && args.only === '' && args.kernels === '') {
    const known = new Set(results.map(entryOf));
    for (const entry of EQUIVALENT.filter((one) => !known.has(one))) {
      failures += 1;
      console.log(`FAIL there is no mutant ${entry.file} ${entry.what} any more`);
    }
  }
  const caught = results.filter(({ outcome }) => outcome.startsWith('caught')).length;
  const equivalent = results.filter(({ outcome }) => outcome.startsWith('equivalent')).length;
  const total = `${results.length} mutants: ${caught} caught, ${equivalent} equivalent and explained, ${results.length - caught - equivalent} missed`;
  console.log(total);
  if (args.json) writeFileSync(args.json, `${JSON.stringify(results, null, 1)}\n`);
  if (args.markdown) writeFileSync(args.markdown, markdownOf(results, total));
} finally {
  if (existsSync(folder)) rmSync(folder, { recursive: true, force: true });
}
process.exit(failures === 0 ? 0 : 1);
