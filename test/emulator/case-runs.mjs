/**
 * The kernel cases run in processes of their own, for the matrix and the mutation proof: on which
 * emulated devices, under which schedules, and which cases are worth repeating on the next device.
 */
import { spawn } from 'node:child_process';
import { existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { build } from 'esbuild';

/**
 * Each compute capability that has kernels of its own, with a card's number of multiprocessors and
 * with few. A plan splits small shapes over many multiprocessors; on few it takes for them the tiles
 * and the whole reductions of large ones.
 */
export const DEVICES = [
  { name: 'sm_80', sm: '80', multiprocessors: '' },
  { name: 'sm_80 of 2 multiprocessors', sm: '80', multiprocessors: '2' },
  { name: 'sm_90', sm: '90', multiprocessors: '' },
  { name: 'sm_90 of 4 multiprocessors', sm: '90', multiprocessors: '4' },
];

/** Cards whose plans take kernels of the others alone: no case of the whole matrix needs them. */
export const LATER_DEVICES = [
  { name: 'sm_100', sm: '100', multiprocessors: '' },
  { name: 'sm_120', sm: '120', multiprocessors: '' },
];

/** Three orders of warps and lanes, then random ones; copies land at the last moment or at once. */
export function schedules(seeds) {
  const random = Array.from({ length: seeds }, (_, i) => i + 1);
  return [
    { order: 'forward', copies: 'late' },
    { order: 'reverse', copies: 'late' },
    { order: 'reverse', copies: 'early' },
    ...random.map((seed) => ({ order: 'random', seed, copies: seed % 2 === 0 ? 'early' : 'late' })),
  ];
}

export const scheduleName = ({ order, copies, seed }) =>
  `${order}${seed ? ` ${seed}` : ''}, ${copies} copies`;

export async function inParallel(items, jobs, body) {
  const queue = [...items];
  const worker = async () => {
    for (let item = queue.shift(); item !== undefined; item = queue.shift()) await body(item);
  };
  await Promise.all(Array.from({ length: jobs }, worker));
}

/** {device -> [name]} of the lines that launch what none of a device before does, or that are `taken`. */
function newLaunches(devices, linesOf, taken) {
  const seen = new Set();
  const names = devices.map((device) =>
    linesOf
      .get(device)
      // The last line, of the memory that is left, has no launches.
      .filter(([outcome, name, , launches]) => {
        if (launches === undefined) return false;
        const key = `${name} ${launches}`;
        return taken(outcome) || (!seen.has(key) && seen.add(key));
      })
      .map(([, name]) => name),
  );
  return new Map(devices.map((device, i) => [device, names[i]]));
}

/** The fast library, in the order that a GPU would most likely have. */
const PLAIN = { library: 'source', schedule: { order: 'forward', copies: 'late' } };

export class CaseRunner {
  #program;
  #files = 0;

  constructor(folder, binding) {
    this.folder = folder;
    this.binding = binding;
    this.#program = join(folder, 'run-cases.mjs');
  }

  async prepare() {
    await build({
      entryPoints: [join(import.meta.dirname, 'programs', 'run-cases.ts')],
      bundle: true,
      platform: 'node',
      format: 'esm',
      target: 'node20',
      logLevel: 'warning',
      outfile: this.#program,
    });
  }

  /** What the outcome depends on besides the libraries. */
  programText() {
    return readFileSync(this.#program);
  }

  /**
   * Runs cases: {status, lines, err}, a line being [outcome, name, ...]. `library` is a mode or a
   * path; `names` are all that are run, in their order; `limits` are the milliseconds that each may
   * take before the process is ended with SIGTERM.
   */
  async run({ library, device, schedule, check, names, filter = '', more = [], env, limits }) {
    const list = join(this.folder, `names-${this.#files++}`);
    if (names !== undefined) writeFileSync(list, `${names.join('\n')}\n`);
    const which = names === undefined ? ['--filter', filter] : ['--names', list];
    const child = spawn(process.execPath, [this.#program, ...which, ...more], {
      env: {
        ...process.env,
        LOWRANK_BINDING: this.binding,
        LOWRANK_EMULATOR: library,
        LOWRANK_EMULATOR_CHECK: check ? '1' : '0',
        LOWRANK_EMULATOR_SM: device.sm,
        ...(device.multiprocessors && { LOWRANK_EMULATOR_MULTIPROCESSORS: device.multiprocessors }),
        LOWRANK_EMULATOR_ORDER: schedule.order,
        LOWRANK_EMULATOR_COPIES: schedule.copies,
        LOWRANK_EMULATOR_SEED: String(schedule.seed ?? 1),
        ...env,
      },
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    let out = '';
    let err = '';
    let done = 0;
    let timer;
    /** For the case that runs now; what follows the last may take as long. */
    const restart = () => {
      clearTimeout(timer);
      const limit = limits?.[done] ?? limits?.at(-1);
      if (limit !== undefined) timer = setTimeout(() => child.kill(), limit);
    };
    restart();
    child.stdout.setEncoding('utf8').on('data', (text) => {
      out += text;
      done += text.split('\n').length - 1;
      restart();
    });
    child.stderr.setEncoding('utf8').on('data', (text) => {
      if (err.length < 100_000) err += text;
    });
    return new Promise((resolve) => {
      child.on('close', (status, signal) => {
        clearTimeout(timer);
        rmSync(list, { force: true });
        const lines = out.split('\n').filter(Boolean);
        resolve({
          status: signal ?? status,
          lines: lines.map((line) => line.split('\t')),
          err,
        });
      });
    });
  }

  /**
   * The cases of each device, {device -> [name]}: those that launch something there which they do not on
   * a device before it; their outcomes, whose values must be right where `oracle` matches the name; the
   * kernels that are launched; and how many cases each device has.
   * In a smoke run `choose(lines, device)` gives the names that are taken of lines
   * [outcome, name, ms, launches, places, kernels] of a device.
   */
  async survey(devices, filter, jobs, { choose, oracle = '', library = PLAIN.library } = {}) {
    const launched = new Map();
    await inParallel(devices, jobs, async (device) => {
      // What an op launches follows from shapes: kernels need not run to know it.
      const env = { LOWRANK_EMULATOR_TRACE: this.#trace(device), LOWRANK_EMULATOR_RUN: '0' };
      const { status, lines, err } = await this.run({
        ...PLAIN,
        device,
        filter,
        more: ['--measure', ...(choose === undefined ? [] : ['--smoke'])],
        env,
      });
      if (status !== 0) throw new Error(`${device.name}: ended with ${status} ${err}`);
      rmSync(this.#trace(device), { force: true });
      launched.set(device, lines);
    });
    // A case that stopped for want of results may launch more: it runs in any case.
    const candidates = newLaunches(devices, launched, (outcome) => outcome.startsWith('error'));
    for (const device of choose === undefined ? [] : devices) {
      const own = new Set(candidates.get(device));
      candidates.set(
        device,
        choose(
          launched.get(device).filter(([, name]) => own.has(name)),
          device,
        ),
      );
    }
    const outcomes = new Map();
    const kernels = new Set();
    const ran = new Map();
    await inParallel(devices, jobs, async (device) => {
      const trace = this.#trace(device);
      const { status, lines, err } = await this.run({
        ...PLAIN,
        device,
        names: candidates.get(device),
        library,
        more: ['--measure', '--oracle', oracle],
        env: { LOWRANK_EMULATOR_TRACE: trace },
      });
      const errors = lines.filter(([outcome]) => outcome.startsWith('error'));
      if (status !== 0 || err.trim() !== '' || errors.length > 0) {
        throw new Error(`${device.name}: ended with ${status} ${err}${errors.join('\n')}`);
      }
      ran.set(device, lines);
      outcomes.set(device, new Map(lines.map(([outcome, name]) => [name, outcome])));
      if (!existsSync(trace)) return; // none of the cases is for this device
      for (const line of readFileSync(trace, 'utf8').split('\n').filter(Boolean)) {
        kernels.add(JSON.parse(line).kernel);
      }
      rmSync(trace);
    });
    // Launches in PTX mode overlap none before them: by those alone Hopper would have fewer cases.
    const names = library === PLAIN.library ? newLaunches(devices, ran, () => false) : candidates;
    const counts = new Map(devices.map((device) => [device, launched.get(device).length - 1]));
    return { names, outcomes, kernels, counts };
  }

  #trace(device) {
    return join(this.folder, `trace-${device.name.replaceAll(' ', '-')}`);
  }
}
