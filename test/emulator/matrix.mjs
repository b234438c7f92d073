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
 * the first only. --smoke begins with PTX mode where there is one and takes one schedule a device and a sample of
 * the cases (smoke-sample.mjs). Without nvcc there is no
 * PTX mode, and the run says so. --runs takes some of the list alone, 1 is the first: it takes hours as a whole,
 * and can be had in pieces.
 */
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { cpus, tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { parseArgs } from 'node:util';
import { CaseRunner, DEVICES, inParallel, scheduleName, schedules } from './case-runs.mjs';
import { SmokeSample, sizeOf } from './smoke-sample.mjs';

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
// The sample of a smoke run begins where launches overlap, which is more for the checks to see.
if (args.smoke) devices.sort((a, b) => Number(b.sm) - Number(a.sm));
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

const sample = new SmokeSample(devices, { byKernels: true });
const checkedSample = new SmokeSample(devices, { byKernels: false });
/** {device -> [name]} of those cases of a smoke run that the checks see. */
const checked = new Map();

/** Cases of a smoke run on a device. */
function smokeCases(lines, device) {
  const smallFirst = lines.toSorted((a, b) => sizeOf(a) - sizeOf(b));
  const taken = smallFirst.filter((line) => sample.takes(line, device));
  const names = (some) => some.map(([, name]) => name);
  checked.set(device, names(taken.filter((line) => checkedSample.takes(line, device))));
  return names(taken);
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
    const chosen = args.smoke && check ? checked.get(device) : own;
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
