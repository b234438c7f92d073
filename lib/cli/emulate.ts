/**
 * `lowrank emulate`: an op, or a kernel of one's own, on the CUDA emulator; its launches, what the
 * checks find, and its counters by source line.
 */

import { spawn } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import type { DType, QuantFormat } from '../index.js';
import { Arguments, UsageError } from './arguments.js';
import { emulateHtml } from './emulate-html.js';
import { parseParams, prepareKernelRun } from './emulate-kernel.js';
import { emulatorLibrary, libraryKinds, ownKernelLibrary } from './emulate-library.js';
import {
  type EmulatedOp,
  emulatedOps,
  type OpOutcome,
  type OpSpec,
  type OutputFacts,
  runOp,
} from './emulate-op.js';
import {
  collectFindings,
  type EmulatedRun,
  type EmulateResult,
  reportText,
} from './emulate-report.js';
import { countersKey, readTrace, sumCounts, sumLines } from './emulate-trace.js';
import { exitCodes } from './exit-codes.js';
import { Progress } from './terminal.js';

const kHelp = `Runs CUDA kernels without a GPU: checks them and counts what their accesses cost.

Usage: lowrank emulate OP [options]
       lowrank emulate --kernel FILE.cu --name KERNEL --params FILE.json [options]

OP is ${emulatedOps.join(', ')}.

  --m, --n, --k N     tokens, output and input features                   [64, 128, 256]
  --r N               rank of the adapter                                 [16]
  --format F          nf4, fp4, int8 or none (dense)                      [nf4]
  --blocksize N       elements that share a scale, 32, 64, ... 4096       [of the format]
  --double-quant      the scales quantised as well
  --dtype T           of the activations: bf16, f16 or f32                [bf16]
  --adapter-dtype T   of lora_a and lora_b                                [that of --dtype]
  --dropout P         of the adapter, 0 to below 1                        [0]
  --bias              with a bias

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
  --library L         check, ptx (nvcc's PTX) or source                   [check]
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
/** In the environment of the process that runs one op: its OpSpec, and where the outcome goes. */
const kSpecVariable = 'LOWRANK_EMULATE_SPEC';
const kOutcomeVariable = 'LOWRANK_EMULATE_OUTCOME';

/** What one run is told by its environment. */
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
  const top = parsed.integer('top', 20, 0, 100_000);
  const schedules = parseSchedules(parsed);
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'lowrank-emulate-'));
  try {
    const progress = new Progress(parsed.flag('json'));
    const result =
      parsed.text('kernel') === undefined
        ? await emulateOp(parsed, schedules, folder, progress)
        : await emulateKernel(parsed, schedules, folder, progress);
    progress.close();
    const html = parsed.text('html');
    if (html !== undefined) fs.writeFileSync(html, emulateHtml(result));
    process.stdout.write(parsed.flag('json') ? jsonOf(result) : reportText(result, top));
    if (html !== undefined) progress.line(`wrote ${html}`);
    return isClean(result) ? exitCodes.ok : exitCodes.compute;
  } finally {
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

/** Of the cards that the emulator knows, whose kernels are in the package. */
function readCapability(parsed: Arguments): (typeof kCapabilities)[number] {
  return parsed.choice('sm', '80', kCapabilities);
}

function parseOp(parsed: Arguments): OpSpec {
  const [op] = parsed.positionals;
  if (op === undefined || !(emulatedOps as readonly string[]).includes(op)) {
    const got = op === undefined ? 'none' : `'${op}'`;
    throw new UsageError(
      `emulate: OP must be one of ${emulatedOps.join(', ')}, got ${got}. See: lowrank emulate --help`,
    );
  }
  const size = (name: string, fallback: number) => parsed.integer(name, fallback, 0, 1 << 20);
  const dtype = parsed.choice<DType>('dtype', 'bf16', kDTypes);
  const format = parsed.choice<QuantFormat | 'none'>('format', 'nf4', [
    'nf4',
    'fp4',
    'int8',
    'none',
  ]);
  if (format === 'none' && (op === 'quantize' || op === 'dequantize')) {
    throw parsed.refuse('format', 'nf4, fp4 or int8', format);
  }
  return {
    op: op as EmulatedOp,
    M: size('m', 64),
    N: size('n', 128),
    K: size('k', 256),
    r: size('r', 16),
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
      const drop = spec.dropout > 0 ? `, dropout ${spec.dropout}` : '';
      return `${op}: M = ${M}, N = ${N}, K = ${K}${rank}, ${dtype}, weight ${weight}${drop}`;
    }
  }
}

async function emulateOp(
  parsed: Arguments,
  schedules: readonly Schedule[],
  folder: string,
  progress: Progress,
): Promise<EmulateResult> {
  const spec = parseOp(parsed);
  const kind = parsed.choice('library', 'check', libraryKinds);
  const library = emulatorLibrary(kind, progress);
  const runs: EmulatedRun[] = [];
  progress.phase('emulating');
  for (const [at, { name, env }] of schedules.entries()) {
    progress.update(at, schedules.length, name);
    const trace = path.join(folder, `trace-${at}`);
    const outcomePath = path.join(folder, `outcome-${at}`);
    const stderr = await runProcess(process.execPath, [process.argv[1] as string, 'emulate'], {
      ...env,
      LOWRANK_EMULATOR: library,
      LOWRANK_EMULATOR_TRACE: trace,
      [kSpecVariable]: JSON.stringify(spec),
      [kOutcomeVariable]: outcomePath,
    });
    const outcome = readOutcome(outcomePath, stderr);
    runs.push({
      schedule: name,
      launches: readTrace(trace, outcome.traceFrom),
      outputs: outcome.outputs,
      error: outcome.error,
    });
  }
  progress.update(schedules.length, schedules.length);
  return resultOf(titleOf(spec), kind, parsed, runs);
}

/** The outcome that the run left, or what it said as it died. */
function readOutcome(file: string, stderr: string): OpOutcome {
  if (fs.existsSync(file)) return JSON.parse(fs.readFileSync(file, 'utf8')) as OpOutcome;
  return { outputs: [], traceFrom: 0, error: stderr.trim() || 'the run ended without a word' };
}

/** The process that runs one op. */
async function runChild(): Promise<number> {
  const spec = JSON.parse(process.env[kSpecVariable] as string) as OpSpec;
  const outcome = await runOp(spec, process.env.LOWRANK_EMULATOR_TRACE as string);
  fs.writeFileSync(process.env[kOutcomeVariable] as string, JSON.stringify(outcome));
  return exitCodes.ok;
}

async function emulateKernel(
  parsed: Arguments,
  schedules: readonly Schedule[],
  folder: string,
  progress: Progress,
): Promise<EmulateResult> {
  const source = parsed.text('kernel') as string;
  const name = parsed.text('name');
  if (name === undefined) throw new UsageError('emulate: --kernel needs --name, its kernel');
  const grid = (parsed.text('grid') ?? '1').split(',').map(Number);
  if (grid.length > 3 || !grid.every((n) => Number.isInteger(n) && n >= 1 && n < 2 ** 31)) {
    throw parsed.refuse('grid', 'X, X,Y or X,Y,Z', parsed.text('grid') as string);
  }
  const shape = {
    grid: [grid[0] ?? 1, grid[1] ?? 1, grid[2] ?? 1] as const,
    threads: parsed.integer('threads', 128, 1, 1024),
    shared: parsed.integer('shared', 0, 0, 1 << 20),
    cluster: parsed.integer('cluster', 1, 1, 16),
  };
  const params = parseParams(parsed.text('params'));
  const { library, runner } = ownKernelLibrary(source, progress);
  const runs: EmulatedRun[] = [];
  progress.phase('emulating');
  for (const [at, { name: schedule, env }] of schedules.entries()) {
    progress.update(at, schedules.length, schedule);
    const trace = path.join(folder, `trace-${at}`);
    const run = await prepareKernelRun(
      path.join(folder, `run-${at}`),
      library,
      name,
      shape,
      params,
    );
    const stderr = await runProcess(runner, [run.spec], { ...env, LOWRANK_EMULATOR_TRACE: trace });
    const launches = readTrace(trace);
    const failed = stderr.trim() !== '';
    runs.push({
      schedule,
      launches,
      outputs: failed ? [] : run.outputs(),
      error: failed ? stderr.trim() : undefined,
    });
  }
  progress.update(schedules.length, schedules.length);
  return resultOf(`${name} of ${source}`, 'check', parsed, runs);
}

function resultOf(
  title: string,
  kind: string,
  parsed: Arguments,
  runs: readonly EmulatedRun[],
): EmulateResult {
  const several = runs.length > 1;
  const equal = (key: (run: EmulatedRun) => string) => new Set(runs.map(key)).size === 1;
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

/** Runs a program to its end; gives back what it said on stderr. */
function runProcess(
  command: string,
  args: readonly string[],
  env: Readonly<Record<string, string>>,
): Promise<string> {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, {
      env: { ...process.env, ...env },
      stdio: ['ignore', 'ignore', 'pipe'],
    });
    let text = '';
    child.stderr.on('data', (chunk: Buffer) => {
      text += chunk.toString();
    });
    child.on('error', reject);
    child.on('close', (code, signal) => {
      // What a run left says what happened; a signal is said in its place.
      resolve(signal === null ? text : `${text}\nended by ${signal}${code ?? ''}`);
    });
  });
}
