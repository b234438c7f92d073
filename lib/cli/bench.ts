/**
 * `lowrank bench`: microbenchmarks with their spread, beside the roofline and other libraries.
 */

import { type Device, defaultDevice, devices, getThreads, type QuantFormat } from '../index.js';
import { Arguments } from './arguments.js';
import { measureRoofline, measureTorch, type TorchTimes } from './bench-peers.js';
import {
  type BenchOp,
  type BenchShape,
  benchOps,
  flopsOf,
  ownSubjects,
  type Subject,
  tfjsSubject,
} from './bench-subjects.js';
import { exitCodes } from './exit-codes.js';
import { Progress, table } from './terminal.js';

const kHelp = `Microbenchmarks of the kernels, beside the roofline of this machine and other libraries.

Usage: lowrank bench [options]

  --op LIST        ${benchOps.join(', ')}, or all                [lora]
  --shape MxKxN    tokens x input x output features; may be repeated      [1024x192x512]
  --rank N         rank of the adapters                                   [16]
  --format F       nf4, fp4, int8 or none (dense f32)                     [nf4]
  --repeats N      samples of each                                        [30]
  --peers LIST     unfused, tfjs, torch, all or none                      [all]
  --device D       where to compute                                       [LOWRANK_DEVICE, or cpu]
  --json           one JSON object on stdout

Times are medians with the 10th and 90th percentile. The roofline is the rate of f32 multiply-adds of
all kernel threads without memory traffic, measured in the same run (needs a C++ compiler). The
unfused peer dequantises the weight at every call; tfjs and torch have it dense in f32.
`;

const kOptions = {
  op: { type: 'string' },
  shape: { type: 'string', multiple: true },
  rank: { type: 'string' },
  format: { type: 'string' },
  repeats: { type: 'string' },
  peers: { type: 'string' },
  device: { type: 'string' },
  json: { type: 'boolean' },
} as const;

const kPeers = ['unfused', 'tfjs', 'torch'] as const;
type Peer = (typeof kPeers)[number];

/** One line of the result. */
interface Row {
  readonly op: BenchOp;
  readonly shape: string;
  readonly subject: string;
  readonly median_ms: number;
  readonly p10_ms: number;
  readonly p90_ms: number;
  readonly gflops: number;
  /** Of the roofline, 0 to 1. */
  readonly share?: number;
  /** Time of this subject over that of the fused kernels. */
  readonly ratio: number;
}

/** Runs the subcommand. */
export async function benchCommand(args: readonly string[]): Promise<number> {
  const parsed = Arguments.parse('bench', args, kOptions, { min: 0, max: 0, names: '' });
  if (parsed.flag('help')) {
    process.stdout.write(kHelp);
    return exitCodes.ok;
  }
  const ops = parseList(parsed, 'op', benchOps, ['lora']);
  const peers = parseList(parsed, 'peers', kPeers, kPeers);
  const r = parsed.integer('rank', 16, 1, 4096);
  const format = parsed.choice('format', 'nf4', ['nf4', 'fp4', 'int8', 'none'] as const);
  const repeats = parsed.integer('repeats', 30, 1, 100_000);
  const device = (parsed.text('device') as Device | undefined) ?? defaultDevice();
  const given = parsed.texts('shape');
  const shapes = (given.length > 0 ? given : ['1024x192x512']).map((text) => {
    const [M, K, N] = (/^(\d{1,6})x(\d{1,6})x(\d{1,6})$/.exec(text) ?? []).slice(1).map(Number);
    if (!M || !K || !N) throw parsed.refuse('shape', 'MxKxN, e.g. 1024x4096x4096', text);
    return { M, K, N, r };
  });

  const progress = new Progress(parsed.flag('json'));
  progress.phase('roofline');
  const threads = getThreads();
  const roofline = device === 'cpu' ? measureRoofline(threads) : 'only for the cpu device';
  const rows: Row[] = [];
  const versions = new Set<string>();
  for (const shape of shapes) {
    const name = `${shape.M}x${shape.K}x${shape.N}`;
    progress.phase(name);
    const torch = peers.includes('torch') ? measureTorch(shape, threads, repeats) : undefined;
    if (torch !== undefined) versions.add(`torch ${torch.version}`);
    for (const [at, op] of ops.entries()) {
      progress.update(at, ops.length, op);
      rows.push(
        ...(await measureOp(op, shape, { format, device, peers, repeats, torch, roofline })),
      );
    }
    progress.update(ops.length, ops.length);
  }
  progress.close();
  const cpu = devices().find((row) => row.device === device);
  const context = {
    device,
    isa: cpu?.isa ?? '',
    threads,
    format,
    rank: r,
    repeats,
    rooflineGflops: roofline,
    versions: [...versions],
  };
  process.stdout.write(
    parsed.flag('json')
      ? `${JSON.stringify({ ...context, rows }, null, 2)}\n`
      : `${describe(context)}\n${tableOf(rows)}`,
  );
  return exitCodes.ok;
}

async function measureOp(
  op: BenchOp,
  shape: BenchShape,
  context: {
    readonly format: QuantFormat | 'none';
    readonly device: Device;
    readonly peers: readonly Peer[];
    readonly repeats: number;
    readonly torch: TorchTimes | undefined;
    readonly roofline: number | string;
  },
): Promise<Row[]> {
  const { format, device, peers, repeats, torch, roofline } = context;
  const own = ownSubjects(op, shape, format, device);
  const subjects = peers.includes('unfused') ? [...own] : own.slice(0, 1);
  const tfjs = peers.includes('tfjs') ? await tfjsSubject(op, shape) : undefined;
  if (tfjs !== undefined) subjects.push(tfjs);
  const found: [string, readonly number[]][] = [];
  try {
    for (const subject of subjects) found.push([subject.name, await sample(subject, repeats)]);
  } finally {
    for (const subject of new Set([...own, ...subjects])) subject.dispose();
  }
  if (torch !== undefined) found.push(['torch eager', torch.times[op]]);
  const first = percentile(found[0]?.[1] ?? [], 0.5);
  return found.map(([subject, times]) => {
    const median_ms = percentile(times, 0.5);
    const gflops = flopsOf(op, shape) / median_ms / 1e6;
    return {
      op,
      shape: `${shape.M}x${shape.K}x${shape.N}`,
      subject,
      median_ms,
      p10_ms: percentile(times, 0.1),
      p90_ms: percentile(times, 0.9),
      gflops,
      ...(typeof roofline === 'number' ? { share: gflops / roofline } : {}),
      ratio: median_ms / first,
    };
  });
}

/** What is used of the `benchmark` package. */
interface BenchmarkRun {
  readonly stats: { readonly sample: readonly number[] };
  run(options: { async: boolean }): void;
}
type BenchmarkClass = new (
  name: string,
  body: () => void,
  options: { minSamples: number; maxTime: number; initCount: number },
) => BenchmarkRun;

/**
 * Times in milliseconds. The `benchmark` package runs the samples where it is installed; it gives up
 * percentiles but keeps its samples, and those are what is used.
 */
async function sample(subject: Subject, repeats: number): Promise<readonly number[]> {
  subject.run();
  subject.run();
  let Benchmark: BenchmarkClass | undefined;
  try {
    const name = 'benchmark';
    Benchmark = ((await import(name)) as { default: BenchmarkClass }).default;
  } catch {
    Benchmark = undefined;
  }
  if (Benchmark !== undefined && repeats >= 5) {
    const run = new Benchmark(subject.name, () => subject.run(), {
      minSamples: repeats,
      maxTime: 0,
      initCount: 1,
    });
    run.run({ async: false });
    if (run.stats.sample.length > 0) return run.stats.sample.map((seconds) => 1000 * seconds);
  }
  return Array.from({ length: repeats }, () => {
    const started = performance.now();
    subject.run();
    return performance.now() - started;
  });
}

function percentile(values: readonly number[], share: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] ?? Number.NaN;
}

function describe(context: {
  readonly device: string;
  readonly isa: string;
  readonly threads: number;
  readonly format: string;
  readonly rank: number;
  readonly repeats: number;
  readonly rooflineGflops: number | string;
  readonly versions: readonly string[];
}): string {
  const { rooflineGflops: peak } = context;
  const roofline =
    typeof peak === 'number' ? `roofline ${peak.toFixed(0)} GFLOP/s` : `no roofline: ${peak}`;
  return (
    `${context.device} (${context.isa}), ${context.threads} threads, ${context.format}, ` +
    `rank ${context.rank}, ${context.repeats} samples; ${roofline}` +
    `${context.versions.length > 0 ? `; ${context.versions.join(', ')}` : ''}\n`
  );
}

function tableOf(rows: readonly Row[]): string {
  const cells = rows.map((row) => [
    `${row.op} ${row.shape} ${row.subject}`,
    `${row.median_ms.toFixed(3)} ms`,
    `${row.p10_ms.toFixed(3)} to ${row.p90_ms.toFixed(3)}`,
    `${row.gflops.toFixed(1)} GFLOP/s`,
    row.share === undefined ? '' : `${(100 * row.share).toFixed(0)} %`,
    `${row.ratio.toFixed(2)} x`,
  ]);
  return table([['', 'median', 'p10 to p90', 'rate', 'peak', 'time'], ...cells], [1, 2, 3, 4, 5]);
}

function parseList<T extends string>(
  parsed: Arguments,
  name: string,
  choices: readonly T[],
  fallback: readonly T[],
): readonly T[] {
  const text = parsed.text(name);
  if (text === undefined) return fallback;
  if (text === 'all') return choices;
  if (text === 'none') return [];
  const names = text.split(',').map((item) => item.trim());
  const chosen = choices.filter((choice) => names.includes(choice));
  if (chosen.length !== new Set(names).size) {
    throw parsed.refuse(name, `all, none or a list of ${choices.join(', ')}`, text);
  }
  return chosen;
}
