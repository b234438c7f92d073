/**
 * `lowrank emulate`: runs an op, or a user's own kernel, on the CUDA emulator and shows its
 * launches, the findings of the checks, and its counters by source line.
 */

import { spawn } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { anyOf, LowrankError } from '../../core/errors.js';
import { formatNames } from '../../core/formats.js';
import { makeTemporaryFolder, requireTemporaryFolder } from '../../environment/temporary-folder.js';
import type { DType, QuantFormat } from '../../index.js';
import { Progress } from '../../report/terminal.js';
import { Arguments, UsageError } from '../command/arguments.js';
import { exitCodeFor, exitCodes } from '../command/exit-codes.js';
import { Interrupts } from '../command/interrupt.js';
import { requireOutputFile, writeOutputFile } from '../command/output-file.js';
import { emulateHtml } from './emulate-html.js';
import { prepareKernelRun } from './emulate-kernel.js';
import {
  emulatorLibrary,
  type LibraryKind,
  libraryKinds,
  ownKernelLibrary,
} from './emulate-library.js';
import {
  type EmulatedOp,
  emulatedOps,
  type OpOutcome,
  type OpSpec,
  type OutputFacts,
  runOp,
} from './emulate-op.js';
import { parseParams } from './emulate-params.js';
import {
  collectFindings,
  type EmulatedRun,
  type EmulateResult,
  endedRuns,
  reportText,
} from './emulate-report.js';
import { countersKey, readTrace, sumCounts, sumLines } from './emulate-trace.js';

const kHelp = `Runs CUDA kernels without a GPU: checks them and counts what their accesses cost.

Usage: lowrank emulate OP [options]
       lowrank emulate --kernel FILE.cu --name KERNEL --params FILE.json [options]

OP is ${emulatedOps.join(', ')}.

  --m, --n, --k N     tokens, output and input features                   [64, 128, 256]
  --r N               rank of the adapter                                 [16]
  --format F          ${`${anyOf([...formatNames, 'none'])} (dense)`.padEnd(51)} [nf4]
  --blocksize N       elements that share a scale, 32, 64, ... 4096       [of the format]
  --double-quant      the scales quantised as well
  --dtype T           of the activations: bf16, f16 or f32                [bf16]
  --adapter-dtype T   of lora_a and lora_b                                [that of --dtype]
  --dropout P         of the adapter, 0 to below 1                        [0]
  --bias              with a bias
  --library L         check, ptx (nvcc's PTX) or source                   [check]

A kernel of your own (cuda/gpu.cuh says how it is written):
  --kernel FILE       compiled with every access reported to the emulator
  --name KERNEL       its name in LOWRANK_KERNEL
  --params FILE       its parameter struct in JSON; docs/command-line.md has the format
  --grid X[,Y[,Z]]    blocks                                              [1]
  --threads N         of a block                                          [128]
  --shared BYTES      dynamic shared memory of a block                    [0]
  --cluster N         blocks of a cluster                                 [1]

How it runs and what is shown:
  --schedule LIST     forward, reverse, random or all                     [forward]
  --seeds N           random schedules, seeds 1 to N                      [1]
  --early-copies      asynchronous copies land at once, not at the wait
  --sm N              compute capability: 80, 86, 89, 90 or 120           [80]
  --top N             source lines in the table, 0 for all                [20]
  --html FILE         a page with the counters beside the source
  --json              one JSON object on stdout

The exit code is 7 where something was found, or a result is not what was expected.
`;

const kOptions = {
  m: { type: 'string' },
  n: { type: 'string' },
  k: { type: 'string' },
  r: { type: 'string' },
  format: { type: 'string' },
  blocksize: { type: 'string' },
  'double-quant': { type: 'boolean' },
  dtype: { type: 'string' },
  'adapter-dtype': { type: 'string' },
  dropout: { type: 'string' },
  bias: { type: 'boolean' },
  kernel: { type: 'string' },
  name: { type: 'string' },
  params: { type: 'string' },
  grid: { type: 'string' },
  threads: { type: 'string' },
  shared: { type: 'string' },
  cluster: { type: 'string' },
  schedule: { type: 'string' },
  seeds: { type: 'string' },
  'early-copies': { type: 'boolean' },
  sm: { type: 'string' },
  library: { type: 'string' },
  top: { type: 'string' },
  html: { type: 'string' },
  json: { type: 'boolean' },
} as const;

const kCapabilities = ['80', '86', '89', '90', '120'] as const;
const kDTypes = ['bf16', 'f16', 'f32'] as const;
const kSchedules = ['forward', 'reverse', 'random'] as const;
/** Environment variable for the process that runs one op: its OpSpec, and the file for the outcome. */
const kSpecVariable = 'LOWRANK_EMULATE_SPEC';
const kOutcomeVariable = 'LOWRANK_EMULATE_OUTCOME';

/** The environment settings of one run. */
interface Schedule {
  readonly name: string;
  readonly env: Readonly<Record<string, string>>;
}

/** Runs the subcommand. */
export async function emulateCommand(args: readonly string[]): Promise<number> {
  if (process.env[kSpecVariable] !== undefined) return runChild();
  const parsed = Arguments.parse('emulate', args, kOptions, { min: 0, max: 1, names: 'one OP' });
  if (parsed.flag('help')) {
    process.stdout.write(kHelp);
    return exitCodes.ok;
  }
  refuseOptionsOfOther(parsed);
  const top = parsed.integer('top', 20, 0, 100_000);
  const schedules = parseSchedules(parsed);
  const html = parsed.text('html');
  requireOutputFile('emulate', html);
  requireTemporaryFolder('emulate');
  const progress = new Progress(parsed.flag('json'));
  const subject =
    parsed.text('kernel') === undefined
      ? await opSubject(parsed, progress)
      : await kernelSubject(parsed, progress);
  const runs = await runSchedules(subject, schedules, progress);
  if (typeof runs === 'number') return runs;
  const result = resultOf(subject, parsed, runs);
  process.stdout.write(parsed.flag('json') ? jsonOf(result) : reportText(result, top));
  if (html !== undefined) {
    writeOutputFile('emulate', html, emulateHtml(result));
    progress.line(`wrote ${html}`);
  }
  return isClean(result) ? exitCodes.ok : exitCodes.compute;
}

/** Options of an OP, and of a user's own kernel. Those that do not apply are rejected. */
const kOpOptions = [
  ...['m', 'n', 'k', 'r', 'format', 'blocksize', 'double-quant', 'dtype', 'adapter-dtype'],
  ...['dropout', 'bias', 'library'],
];
const kKernelOptions = ['name', 'params', 'grid', 'threads', 'shared', 'cluster'];

function refuseOptionsOfOther(parsed: Arguments): void {
  const own = parsed.text('kernel') !== undefined;
  if (own && parsed.positionals.length > 0) {
    throw parsed.wrong(`takes an OP or --kernel, got both`);
  }
  const stray = parsed.firstGiven(own ? kOpOptions : kKernelOptions);
  if (stray === undefined) return;
  throw parsed.wrong(`--${stray} goes with ${own ? 'an OP, got --kernel' : '--kernel, got none'}`);
}

/** What runs under each schedule. */
interface Subject {
  readonly title: string;
  readonly kind: LibraryKind;
  /** @param folder an empty folder for files of this run */
  run(schedule: Schedule, folder: string, signal: AbortSignal): Promise<EmulatedRun>;
}

/** All runs, or the exit code if a signal ended them. */
async function runSchedules(
  subject: Subject,
  schedules: readonly Schedule[],
  progress: Progress,
): Promise<EmulatedRun[] | number> {
  const folder = makeTemporaryFolder('emulate', 'lowrank-emulate-');
  const interrupts = new Interrupts();
  const runs: EmulatedRun[] = [];
  try {
    progress.phase('emulating');
    for (const [at, schedule] of schedules.entries()) {
      progress.update(at, schedules.length, schedule.name);
      const own = path.join(folder, String(at));
      fs.mkdirSync(own);
      runs.push(await subject.run(schedule, own, interrupts.signal));
      if (interrupts.signal.aborted) return interrupts.exitCode;
    }
    progress.update(schedules.length, schedules.length);
    return runs;
  } finally {
    progress.close();
    interrupts.dispose();
    fs.rmSync(folder, { recursive: true, force: true });
  }
}

function isClean(result: EmulateResult): boolean {
  return (
    collectFindings(result.runs).length === 0 &&
    result.runs.every(({ error }) => error === undefined) &&
    result.runs.every(({ outputs }) => outputs.every(isRight)) &&
    result.sameBits !== false
  );
}

function isRight({ maxError, limit }: OutputFacts): boolean {
  return maxError === undefined || limit === undefined || maxError <= limit;
}

function parseSchedules(parsed: Arguments): Schedule[] {
  const text = parsed.text('schedule') ?? 'forward';
  const names = text === 'all' ? [...kSchedules] : text.split(',').map((name) => name.trim());
  if (!names.every((name) => (kSchedules as readonly string[]).includes(name))) {
    throw parsed.refuse('schedule', `all, or a list of ${kSchedules.join(', ')}`, text);
  }
  const seeds = parsed.integer('seeds', 1, 1, 10_000);
  if (seeds > 1 && !names.includes('random')) names.push('random');
  const sm = readCapability(parsed);
  const shared = {
    LOWRANK_EMULATOR_SM: sm,
    LOWRANK_EMULATOR_COPIES: parsed.flag('early-copies') ? 'early' : 'late',
    LOWRANK_EMULATOR_COUNTERS: '1',
    LOWRANK_EMULATOR_CHECK: '1',
    LOWRANK_EMULATOR_PRINT: '0',
  };
  return names.flatMap((order) =>
    Array.from({ length: order === 'random' ? seeds : 1 }, (_, i) => ({
      name: order === 'random' ? `random ${i + 1}` : order,
      env: { ...shared, LOWRANK_EMULATOR_ORDER: order, LOWRANK_EMULATOR_SEED: String(i + 1) },
    })),
  );
}

/** One of the cards that the emulator knows and whose kernels are in the package. */
function readCapability(parsed: Arguments): (typeof kCapabilities)[number] {
  return parsed.choice('sm', '80', kCapabilities);
}

function parseOp(parsed: Arguments): OpSpec {
  const [op] = parsed.positionals;
  if (op === undefined || !(emulatedOps as readonly string[]).includes(op)) {
    const got = op === undefined ? 'none' : `"${op}"`;
    throw new UsageError(
      `emulate: OP must be one of ${emulatedOps.join(', ')}, got ${got}. See: lowrank emulate --help`,
    );
  }
  const size = (name: string, fallback: number, least = 0) =>
    parsed.integer(name, fallback, least, 1 << 20);
  const dtype = parsed.choice<DType>('dtype', 'bf16', kDTypes);
  const format = parsed.choice<QuantFormat | 'none'>('format', 'nf4', [...formatNames, 'none']);
  if (format === 'none' && (op === 'quantize' || op === 'dequantize')) {
    throw parsed.refuse('format', anyOf(formatNames), format);
  }
  return {
    op: op as EmulatedOp,
    M: size('m', 64),
    N: size('n', 128),
    K: size('k', 256),
    r: size('r', 16, 1),
    dtype,
    format,
    blocksize: parsed.powerOfTwo('blocksize', 32, 4096),
    doubleQuant: parsed.flag('double-quant'),
    adapterDType: parsed.choice<DType>('adapter-dtype', dtype, kDTypes),
    dropout: parsed.number('dropout', 0, '0 to below 1', (p) => p >= 0 && p < 1),
    bias: parsed.flag('bias'),
    seed: 1,
  };
}

function titleOf(spec: OpSpec): string {
  const { op, M, N, K, r, dtype, format } = spec;
  const nested = spec.doubleQuant ? ' double-quantised' : '';
  const weight = format === 'none' ? `dense ${dtype}` : `${format}${nested}`;
  switch (op) {
    case 'quantize':
      return `quantize: [${N}, ${K}] f32 to ${weight}`;
    case 'dequantize':
      return `dequantize: [${N}, ${K}] ${weight} to ${dtype}`;
    case 'cast':
    case 'random':
      return `${op}: [${M}, ${K}] ${dtype}`;
    default: {
      const rank = op.startsWith('lora') ? `, r = ${r}` : '';
      const drop = rank !== '' && spec.dropout > 0 ? `, dropout ${spec.dropout}` : '';
      return `${op}: M = ${M}, N = ${N}, K = ${K}${rank}, ${dtype}, weight ${weight}${drop}`;
    }
  }
}

async function opSubject(parsed: Arguments, progress: Progress): Promise<Subject> {
  const spec = parseOp(parsed);
  const kind = parsed.choice('library', 'check', libraryKinds);
  const library = await emulatorLibrary(kind, progress);
  return {
    title: titleOf(spec),
    kind,
    async run({ name, env }, folder, signal) {
      const trace = path.join(folder, 'trace');
      const outcomePath = path.join(folder, 'outcome');
      const command = [process.execPath, process.argv[1] as string, 'emulate'];
      const variables = {
        ...env,
        LOWRANK_EMULATOR: library,
        LOWRANK_EMULATOR_TRACE: trace,
        [kSpecVariable]: JSON.stringify(spec),
        [kOutcomeVariable]: outcomePath,
      };
      const stderr = await runProcess(command, variables, signal);
      const { outputs, traceFrom, error, refused } = readOutcome(outcomePath, stderr);
      if (refused !== undefined) throw new LowrankError(refused, `emulate: ${error}`);
      return { schedule: name, launches: readTrace(trace, traceFrom), outputs, error };
    },
  };
}

/** The outcome that the run left, or its last output if it died. */
function readOutcome(file: string, stderr: string): OpOutcome {
  if (fs.existsSync(file)) return JSON.parse(fs.readFileSync(file, 'utf8')) as OpOutcome;
  return { outputs: [], traceFrom: 0, error: stderr.trim() || 'the run ended without output' };
}

/** Operands that the op rejects are not a finding; other failures before the op are. */
function refusal(error: unknown): OpOutcome {
  if (!(error instanceof LowrankError)) throw error;
  if (exitCodeFor(error.code) === exitCodes.compute) throw error;
  return { outputs: [], traceFrom: 0, error: error.message, refused: error.code };
}

/** The process that runs one op. */
async function runChild(): Promise<number> {
  const spec = JSON.parse(process.env[kSpecVariable] as string) as OpSpec;
  const outcome = await runOp(spec, process.env.LOWRANK_EMULATOR_TRACE as string).catch(refusal);
  fs.writeFileSync(process.env[kOutcomeVariable] as string, JSON.stringify(outcome));
  return exitCodes.ok;
}

/** Maximum blocks of a launch along x, y and z. */
const kMostBlocks = [2 ** 31 - 1, 65_535, 65_535] as const;

function readGrid(parsed: Arguments): [number, number, number] {
  const text = parsed.text('grid') ?? '1';
  const values = text.split(',').map((item) => (/^\s*\d{1,10}\s*$/.test(item) ? Number(item) : 0));
  const fits = values.every((n, i) => n >= 1 && n <= (kMostBlocks[i] ?? 0));
  if (!fits) {
    const most = `${kMostBlocks[0]},${kMostBlocks[1]},${kMostBlocks[2]}`;
    throw parsed.refuse('grid', `X, X,Y or X,Y,Z, of 1 to ${most} blocks`, text);
  }
  const [x = 1, y = 1, z = 1] = values;
  return [x, y, z];
}

async function kernelSubject(parsed: Arguments, progress: Progress): Promise<Subject> {
  const source = parsed.text('kernel') as string;
  const name = parsed.text('name');
  if (name === undefined) throw new UsageError('emulate: --kernel needs --name, its kernel');
  const shape = {
    grid: readGrid(parsed),
    threads: parsed.integer('threads', 128, 1, 1024),
    shared: parsed.integer('shared', 0, 0, 1 << 20),
    cluster: parsed.integer('cluster', 1, 1, 16),
  };
  const params = parseParams(parsed.text('params'));
  const { library, runner } = await ownKernelLibrary(source, progress);
  return {
    title: `${name} of ${source}`,
    kind: 'check',
    async run({ name: schedule, env }, folder, signal) {
      const trace = path.join(folder, 'trace');
      const own = path.join(folder, 'kernel.so');
      fs.writeFileSync(own, library);
      const run = await prepareKernelRun(folder, own, name, shape, params);
      const variables = { ...env, LOWRANK_EMULATOR_TRACE: trace, ...reportVariable() };
      const stderr = await runProcess([path.resolve(runner), run.spec], variables, signal, folder);
      if (stderr.startsWith('there is no kernel ')) {
        throw parsed.refuse('name', `a kernel of ${source}${kernelsIn(source)}`, name);
      }
      const launches = readTrace(trace);
      const error = stderr.trim() || undefined;
      return { schedule, launches, outputs: error === undefined ? run.outputs() : [], error };
    },
  };
}

/** The runner works in its own folder, where a relative name would mean another file. */
function reportVariable(): Record<string, string> {
  const file = process.env.LOWRANK_EMULATOR_REPORT;
  return file ? { LOWRANK_EMULATOR_REPORT: path.resolve(file) } : {};
}

/** ` (one, another)`: the names of the kernels in a file, as far as its text shows. */
function kernelsIn(source: string): string {
  const text = fs.readFileSync(source, 'utf8');
  const names = [...text.matchAll(/\bLOWRANK_(?:EARLY_)?KERNEL\(\s*(\w+)/g)].map(
    (match) => match[1],
  );
  return names.length === 0 ? '' : ` (${names.slice(0, 20).join(', ')})`;
}

function resultOf(
  { title, kind }: Subject,
  parsed: Arguments,
  runs: readonly EmulatedRun[],
): EmulateResult {
  const ended = endedRuns(runs);
  const several = ended.length > 1;
  const equal = (key: (run: EmulatedRun) => string) => new Set(ended.map(key)).size === 1;
  const sm = Number(readCapability(parsed));
  return {
    title,
    device: `emulated device of capability ${(sm / 10).toFixed(1)}, ${kind} library`,
    checked: kind !== 'source',
    counted: kind !== 'source',
    runs,
    sameBits: several ? equal(({ outputs }) => JSON.stringify(outputs)) : undefined,
    sameCounters: several ? equal(({ launches }) => countersKey(launches)) : undefined,
  };
}

function jsonOf(result: EmulateResult): string {
  const launches = result.runs[0]?.launches ?? [];
  return `${JSON.stringify(
    {
      title: result.title,
      device: result.device,
      findings: collectFindings(result.runs),
      launches: launches.map(({ lines: _lines, counts: _counts, findings: _, ...rest }) => rest),
      outputs: result.runs[0]?.outputs ?? [],
      runs: result.runs.map(({ schedule, error, outputs }) => ({ schedule, error, outputs })),
      sameBits: result.sameBits,
      sameCounters: result.sameCounters,
      lines: sumLines(launches),
      counts: Object.fromEntries(sumCounts(launches)),
    },
    null,
    2,
  )}\n`;
}

/** Runs a program until it ends or a signal comes, and returns its stderr. */
function runProcess(
  [command, ...args]: readonly string[],
  env: Readonly<Record<string, string>>,
  signal: AbortSignal,
  cwd?: string,
): Promise<string> {
  return new Promise((resolve, reject) => {
    const child = spawn(command as string, args, {
      cwd,
      env: { ...process.env, ...env },
      stdio: ['ignore', 'ignore', 'pipe'],
    });
    const end = () => child.kill('SIGKILL');
    signal.addEventListener('abort', end);
    if (signal.aborted) end();
    let text = '';
    child.stderr.on('data', (chunk: Buffer) => {
      text += chunk.toString();
    });
    child.on('error', reject);
    child.on('close', (code, ended) => {
      signal.removeEventListener('abort', end);
      // A finished run has an outcome; otherwise the signal is reported.
      resolve(ended === null ? text : `${text}\nended by ${ended}${code ?? ''}`);
    });
  });
}
