/** A run that was never made, with numbers of a usual order, for reports and comparisons. */

import { bytesOf, flopsOf, type Job, jobName, weightBytesOf } from '../../lib/bench/job.js';
import type { ComputeType } from '../../lib/bench/peer.js';
import {
  type BenchResult,
  type CaseResult,
  kResultFormat,
  type Row,
} from '../../lib/bench/result.js';
import { inOrder } from '../../lib/bench/run.js';
import { defaultGroups } from '../../lib/bench/sweep.js';

interface SampleRow {
  readonly subject: string;
  readonly version: string;
  readonly computes: ComputeType;
  /** GFLOP/s with so many tokens and threads. */
  readonly rate: (M: number, threads: number) => number;
}

const soft = (most: number, half: number) => (M: number, threads: number) =>
  (most * threads * M) / (M + half) / 2;
const kSubjects: readonly SampleRow[] = [
  { subject: 'lowrank', version: '0.1.0', computes: 'f32', rate: soft(216, 5) },
  { subject: 'unfused', version: '0.1.0', computes: 'f32', rate: soft(205, 20) },
  { subject: 'base', version: '0.1.0', computes: 'f32', rate: soft(222, 5) },
  { subject: 'torch', version: '2.6.0+debian', computes: 'f32', rate: soft(170, 60) },
  { subject: 'onednn', version: '3.7.0', computes: 'f32', rate: soft(182, 40) },
  { subject: 'tfjs', version: '4.22.0 wasm', computes: 'f32', rate: () => 4.1 },
];

function sampleRow(one: SampleRow, job: Job, first: number, slower: number): Row {
  const weightBytes =
    one.version === '0.1.0' ? weightBytesOf(job) : weightBytesOf({ ...job, format: 'none' });
  // The base product has no adapter to compute, at a rate of its own.
  const flops = one.subject === 'base' ? flopsOf({ ...job, r: 0 }) : flopsOf(job);
  const median_ms = (slower * flops) / one.rate(job.M, job.threads) / 1e6;
  const ratio = first > 0 ? median_ms / first : 1;
  const roof = 117 * job.threads;
  const gflops = flops / median_ms / 1e6;
  return {
    op: job.op,
    shape: `${job.M}x${job.K}x${job.N}`,
    subject: one.subject,
    version: one.version,
    computes: one.computes,
    median_ms,
    p10_ms: 0.98 * median_ms,
    p90_ms: 1.04 * median_ms,
    interval_ms: [0.99 * median_ms, 1.01 * median_ms],
    confidence: 0.957,
    clean: 29,
    samples: 31,
    outliers: 1,
    trial_medians_ms: [0.995 * median_ms, 1.005 * median_ms],
    samples_ms: [],
    gflops,
    gbytes_s: bytesOf(job, weightBytes) / median_ms / 1e6,
    intensity: flopsOf(job) / bytesOf(job, weightBytes),
    weight_bytes: weightBytes,
    copies: job.coldBytes > 0 ? 29 : 1,
    roof_gflops: roof,
    bound: 'compute',
    share: gflops / roof,
    ratio,
    ratio_interval: [0.99 * ratio, 1.01 * ratio],
    pairs: 28,
  };
}

/** @param slower factor of a row's time */
export function sampleResult(slower: (row: Row) => number = () => 1): BenchResult {
  const cases = defaultGroups('cpu', 2, 32 * 2 ** 20).flatMap(({ jobs, only }) =>
    jobs.map((job): CaseResult => {
      const chosen = kSubjects.filter(({ subject }) => only?.includes(subject) ?? true);
      let first = 0;
      const rows = chosen.map((one) => {
        const row = sampleRow(one, job, first, 1);
        const changed = sampleRow(one, job, first, slower(row));
        if (first === 0) first = changed.median_ms;
        return changed;
      });
      return { name: jobName(job), job, rows, skipped: [] };
    }),
  );
  return {
    format: kResultFormat,
    version: '0.1.0',
    commit: '0123456789ab',
    date: '2030-01-02T03:04:05.000Z',
    seconds: 93.4,
    command: 'lowrank bench',
    machine: {
      cpu: 'Some <Processor> & Co',
      cores: 2,
      isa: 'avx512-bf16',
      caches: ['L1d 32K', 'L2 1024K', 'L3 32768K'],
      lastCache: 32 * 2 ** 20,
      memory: 16 * 2 ** 30,
      virtual: true,
      kernel: 'Linux 6.1 x64',
      node: 'v20.20.2',
    },
    busy_cores: 0.02,
    runner: 'benchmark 2.1.4',
    repeats: 30,
    trials: 2,
    roofline: {
      '1': { f32: 117, bf16: 230, int8: 461, read: 31, copy: 29 },
      '2': { f32: 234, bf16: 463, int8: 937, read: 35, copy: 36 },
    },
    peers: kSubjects.map(({ subject, version }) => ({ name: subject, version })),
    cases: inOrder(cases),
  };
}
