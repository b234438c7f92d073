/**
 * Every kernel case on device `cuda-emulated`, again and again: in source mode, under the checks with
 * three schedules and twenty random ones, and in PTX mode. Every run must give the bits of the first
 * on its device, whose values must be those of the device `reference`, and report nothing; and between
 * them the cases must launch every kernel.
 *
 *   node test/emulator/matrix.mjs [--smoke] [--filter REGEX] [--modes source,check,ptx]
 *     [--devices REGEX] [--runs FIRST-LAST] [--jobs N]
 *
 * The devices are those of case-runs.mjs; a case that launches the same on two of them is repeated on
 * the first only. --smoke begins with PTX mode where there is one and takes one schedule a device, and one case of
 * each kind of shape and those that launch a kernel which none before does. Without nvcc there is no
 * PTX mode, and the run says so. --runs takes some of the list alone, 1 is the first: it takes hours as a whole,
 * and can be had in pieces.
 */
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { cpus, tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { parseArgs } from 'node:util';
import { CaseRunner, DEVICES, inParallel, scheduleName, schedules } from './case-runs.mjs';

const { values: args } = parseArgs({
  options: {
    smoke: { type: 'boolean', default: false },
    filter: { type: 'string', default: '' },
    modes: { type: 'string', default: 'source,check,ptx' },
    devices: { type: 'string', default: '' },
    runs: { type: 'string', default: '1-' },
    jobs: { type: 'string', default: String(Math.max(1, cpus().length)) },
    binding: { type: 'string', default: process.env.LOWRANK_BINDING ?? '' },
  },
});
const root = join(import.meta.dirname, '..', '..');
const binding = args.binding || join(root, 'build', 'Release', 'lowrank.node');
const jobs = Number(args.jobs);
const devices = DEVICES.filter(({ name }) => new RegExp(args.devices).test(name));
const LIBRARY = {
  source: 'lowrank-emulator.so',
  check: 'lowrank-emulator-check.so',
  ptx: 'lowrank-emulator-ptx.so',
};

/** Does the build of the addon have nvcc? Then a missing PTX library is one that was not built. */
function hasNvcc() {
  const cache = join(dirname(binding), '..', 'CMakeCache.txt');
  if (!existsSync(cache)) return false;
  return /^LOWRANK_NVCC:FILEPATH=(?!.*NOTFOUND)./m.test(readFileSync(cache, 'utf8'));
}
const missingLibrary = (mode) => !existsSync(join(dirname(binding), LIBRARY[mode]));
let modes = args.modes.split(',');
if (modes.includes('ptx') && missingLibrary('ptx') && !hasNvcc()) {
  console.log('PTX mode is left out: without nvcc there is no PTX to translate');
  modes = modes.filter((mode) => mode !== 'ptx');
}
if (modes.some(missingLibrary)) {
  console.error(`${LIBRARY[modes.find(missingLibrary)]} is missing: npm run build:emulator`);
  process.exit(2);
}

/** Where a smoke run begins: the tests of the kernels run those of source mode. */
const first = args.smoke && modes.includes('ptx') ? 'ptx' : 'source';
/** Conformance tests compare the others with sums in double. */
const COMPARED_IN_SMOKE = '^(?!grouped|int8|large)';

const folder = mkdtempSync(join(tmpdir(), 'lowrank-matrix-'));
const runner = new CaseRunner(folder, binding);

/** Of what takes long one of each kind of shape. */
function oneOfEachKind() {
  const seen = new Set();
  return (name) => {
    const kind = name.startsWith('large')
      ? name.replace(/\[.*/, '')
      : name.replace(/\[\d+, \d+, \d+\]/, '').replace(/ (nf4|fp4|int8)\b/, ' quantised');
    return (!seen.has(kind) || /\[(1|5|3), /.test(name)) && Boolean(seen.add(kind));
  };
}

/** Sweeps over many adapters, which take longest: in a smoke run each is of one device, in turns. */
const sweeps = [];
function isOfDevice(name, device) {
  if (!sweeps.includes(name)) sweeps.push(name);
  return sweeps.indexOf(name) % devices.length === devices.indexOf(device);
}

/**
 * Cases of a smoke run: those that are checked, and those that launch a kernel which none before does.
 */
function smokeCases(lines, device) {
  const kernels = new Set();
  const taken = oneOfEachKind();
  return lines
    .filter(([outcome, name, , , , launched = '']) => {
      const fresh = launched.split(' ').filter((kernel) => !kernels.has(kernel));
      const own = name.startsWith('grouped') ? isOfDevice(name, device) : taken(name);
      if (own || fresh.length > 0 || outcome.startsWith('error')) {
        for (const kernel of fresh) kernels.add(kernel);
        return true;
      }
      return false;
    })
    .map(([, name]) => name);
}

/** Those under the checks: of each kind one, and the device's sweeps. */
function smoke(names, device) {
  const taken = oneOfEachKind();
  return names.filter((name) =>
    name.startsWith('grouped') ? isOfDevice(name, device) : taken(name),
  );
}

/** {mode, device, schedule, check} of every run after the first in source mode. */
function plan() {
  const all = schedules(20);
  return devices.flatMap((device, i) => {
    // A schedule a device: between them forward, reverse and random, late and early.
    const few = [all[(i + 1) % 5]];
    const checked = args.smoke ? few : all;
    const translated = all.slice(0, 5);
    const run = (mode, check) => (schedule) => ({ mode, device, schedule, check });
    return [
      ...(modes.includes('check') ? checked.map(run('check', true)) : []),
      ...(modes.includes('ptx') && !args.smoke
        ? [run('ptx', false)(all[0]), ...translated.map(run('ptx', true))]
        : []),
    ];
  });
}

let failures = 0;
try {
  await runner.prepare();
  const start = performance.now();
  const { names, outcomes, kernels, counts } = await runner.survey(
    devices,
    args.filter,
    jobs,
    args.smoke ? { choose: smokeCases, oracle: COMPARED_IN_SMOKE, library: first } : {},
  );
  const surveyed = Math.round((performance.now() - start) / 1000);
  const memory = ([, name]) => name === '(memory)';
  for (const device of devices) {
    console.log(
      `${device.name} ${first}: ${counts.get(device)} cases, of which ${names.get(device).length} launch what no device before does`,
    );
  }

  console.log(`surveyed in ${surveyed} s`);

  const known = Object.keys(JSON.parse(readFileSync(join(root, 'cuda', 'resources.json'))).kernels);
  const missing = known.filter((name) => !kernels.has(name));
  if (args.filter === '' && args.devices === '') {
    console.log(`${known.length - missing.length} of ${known.length} kernels are launched`);
    if (missing.length > 0) {
      failures += 1;
      console.log(`FAIL no case launches\n    ${missing.join('\n    ')}`);
    }
  }

  const all = plan().filter(({ device }) => names.get(device).length > 0);
  const [from, to] = args.runs.split('-').map(Number);
  const runs = all.slice(from - 1, to || all.length);
  let done = 0;
  await inParallel(runs, jobs, async ({ mode, device, schedule, check }) => {
    const began = performance.now();
    const own = names.get(device);
    const chosen = args.smoke && check ? smoke(own, device) : own;
    const { status, lines, err } = await runner.run({
      library: mode,
      device,
      schedule,
      check,
      names: chosen,
    });
    const problems = [];
    if (status !== 0) problems.push(`ended with ${status}: ${err.slice(-2000)}`);
    else if (err.trim() !== '') problems.push(`reported:\n${err.slice(0, 4000)}`);
    const expected = outcomes.get(device);
    for (const [outcome, name] of lines) {
      if (outcome !== expected.get(name)) {
        problems.push(`${name}: ${outcome} in place of ${expected.get(name)}`);
      }
    }
    const count = lines.filter((line) => !memory(line)).length;
    if (count !== chosen.length) problems.push(`${count} cases in place of ${chosen.length}`);
    done += 1;
    failures += problems.length === 0 ? 0 : 1;
    const what = `${device.name} ${mode}${check ? ' checked' : ''}, ${scheduleName(schedule)}`;
    const seconds = Math.round((performance.now() - began) / 1000);
    console.log(
      `${from - 1 + done}/${all.length} ${problems.length === 0 ? 'ok  ' : 'FAIL'} ${what}: ${count} cases in ${seconds} s`,
    );
    for (const problem of problems.slice(0, 20)) console.log(`    ${problem}`);
    if (problems.length > 20) console.log(`    and ${problems.length - 20} more`);
  });
  const minutes = ((performance.now() - start) / 60_000).toFixed(1);
  console.log(
    failures === 0
      ? `all ${runs.length + devices.length} runs agree (${minutes} min)`
      : `${failures} failures in ${runs.length + devices.length} runs (${minutes} min)`,
  );
} finally {
  rmSync(folder, { recursive: true, force: true });
}
process.exit(failures === 0 ? 0 : 1);
