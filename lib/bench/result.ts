/** A run as it is saved: what `--json` prints, and what reports and comparisons read. */

import { readSmallFile } from '../checkpoint/files/file-access.js';
import { LowrankError } from '../core/errors.js';
import type { Job } from './job.js';
import type { Machine } from './machine.js';
import type { ComputeType } from './peer.js';
import { kResultShape, mismatch } from './result-shape.js';
import type { Roofline } from './roofline.js';
import { kFewestClean } from './statistics.js';

export const kResultFormat = 'lowrank bench 2';

/** One subject on one job. */
export interface Row {
  readonly op: string;
  /** `MxKxN` */
  readonly shape: string;
  /** Name in `--peers`. */
  readonly subject: string;
  readonly version: string;
  readonly note?: string;
  readonly computes: ComputeType;
  readonly median_ms: number;
  readonly p10_ms: number;
  readonly p90_ms: number;
  /** Holds the median with this confidence; see statistics.ts. */
  readonly interval_ms: readonly [number, number];
  readonly confidence: number;
  /** Clean samples. With fewer than three, times are of all samples, and there is no ratio. */
  readonly clean: number;
  readonly samples: number;
  readonly outliers: number;
  /** Of each process that has samples that count. */
  readonly trial_medians_ms: readonly number[];
  /** Every sample of each process; those that are not clean are negative. */
  readonly samples_ms: readonly (readonly number[])[];
  readonly gflops: number;
  /** Bytes that must move, over the time. */
  readonly gbytes_s: number;
  /** Floating point operations a byte. */
  readonly intensity: number;
  readonly weight_bytes: number;
  /** Copies of the weight that calls go round. */
  readonly copies: number;
  readonly roof_gflops?: number;
  readonly bound?: 'compute' | 'memory';
  /** Of the roof, 0 to 1. */
  readonly share?: number;
  /**
   * Time over that of the first subject, from clean samples taken in turns; with its interval. Absent
   * where fewer than three pairs were clean: then it was not measured.
   */
  readonly ratio?: number;
  readonly ratio_interval?: readonly [number, number];
  /** Pairs of clean samples. */
  readonly pairs: number;
  /** Of the result against float64, as norms. */
  readonly error?: number;
}

/**
 * Time over that of the first subject with its interval, where enough samples were clean; a file of an
 * earlier version has a ratio of whatever samples there were.
 */
export function measuredRatio({
  ratio,
  ratio_interval: interval,
  clean,
}: Row): { readonly ratio: number; readonly low: number; readonly high: number } | undefined {
  if (ratio === undefined || interval === undefined || clean < kFewestClean) return undefined;
  return { ratio, low: interval[0], high: interval[1] };
}

/** One job, everybody who did it, and who did not. */
export interface CaseResult {
  readonly name: string;
  readonly job: Job;
  readonly rows: readonly Row[];
  readonly skipped: readonly { readonly subject: string; readonly reason: string }[];
}

export interface BenchResult {
  readonly format: typeof kResultFormat;
  readonly version: string;
  readonly commit?: string;
  readonly date: string;
  readonly seconds: number;
  readonly command: string;
  readonly machine: Machine;
  /** Cores that others kept busy before the run, where that is known. */
  readonly busy_cores?: number;
  readonly runner: string;
  /** Whether each call was waited for, or a sample's calls at its end; not there: each. */
  readonly calls?: 'awaited' | 'queued';
  readonly repeats: number;
  readonly trials: number;
  readonly roofline: Roofline | string;
  readonly peers: readonly {
    readonly name: string;
    readonly version?: string;
    readonly missing?: string;
  }[];
  /** Jobs that had not begun when the time was over. */
  readonly left_out?: { readonly limit_s: number; readonly jobs: readonly string[] };
  readonly cases: readonly CaseResult[];
}

/** A run of hours, with all its samples, is a few megabytes. */
const kMostResultBytes = 64 << 20;

/** @throws ERR_FILE, ERR_FILE_NOT_FOUND, ERR_PATH */
export function readResult(file: string): BenchResult {
  const text = new TextDecoder().decode(readSmallFile('bench', file, kMostResultBytes));
  let value: Partial<BenchResult> | null = null;
  try {
    value = JSON.parse(text) as Partial<BenchResult> | null;
  } catch {
    // refused below
  }
  const expected = `bench: ${file} must be what lowrank bench --save or --json writes`;
  if (value?.format !== kResultFormat) {
    const got = String(value?.format ?? 'no such JSON').slice(0, 60);
    const text = `${expected} (${kResultFormat}), got ${got}`;
    throw new LowrankError('ERR_FILE', text, { op: 'bench' });
  }
  const wrong = mismatch(value, kResultShape);
  if (wrong !== undefined) {
    throw new LowrankError('ERR_FILE', `${expected}: ${wrong}`, { op: 'bench' });
  }
  return value as BenchResult;
}
