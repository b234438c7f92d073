/** The saved form of a run: what `--json` prints, and what reports and comparisons read. */

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
  /** An interval that contains the median with this confidence; see statistics.ts. */
  readonly interval_ms: readonly [number, number];
  readonly confidence: number;
  /** Number of clean samples. With fewer than three, times are those of all samples, and there is no ratio. */
  readonly clean: number;
  readonly samples: number;
  readonly outliers: number;
  /** Medians of each process that has samples that count. */
  readonly trial_medians_ms: readonly number[];
  /** Every sample of each process; those that are not clean are negative. */
  readonly samples_ms: readonly (readonly number[])[];
  readonly gflops: number;
  /** Bytes that must move, divided by the time. */
  readonly gbytes_s: number;
  /** Floating-point operations per byte. */
  readonly intensity: number;
  readonly weight_bytes: number;
  /** Copies of the weight that calls rotate over. */
  readonly copies: number;
  readonly roof_gflops?: number;
  readonly bound?: 'compute' | 'memory';
  /** Fraction of the roof, 0 to 1. */
  readonly share?: number;
  /**
   * Time relative to that of the first subject, from clean samples taken in turns, with its interval.
   * Absent if fewer than three pairs were clean: then it was not measured.
   */
  readonly ratio?: number;
  readonly ratio_interval?: readonly [number, number];
  /** Number of pairs of clean samples. */
  readonly pairs: number;
  /** Error of the result relative to float64, by norms. */
  readonly error?: number;
}

/**
 * Time relative to that of the first subject with its interval, if enough samples were clean. A file
 * of an earlier version has a ratio of whatever samples there were.
 */
export function measuredRatio({
  ratio,
  ratio_interval: interval,
  clean,
}: Row): { readonly ratio: number; readonly low: number; readonly high: number } | undefined {
  if (ratio === undefined || interval === undefined || clean < kFewestClean) return undefined;
  return { ratio, low: interval[0], high: interval[1] };
}

/** One job, the subjects that ran it, and those that did not. */
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
  /** Number of cores that others kept busy before the run, if known. */
  readonly busy_cores?: number;
  readonly runner: string;
  /** Was each call awaited, or only a sample's calls at its end? Missing: each. */
  readonly calls?: 'awaited' | 'queued';
  readonly repeats: number;
  readonly trials: number;
  readonly roofline: Roofline | string;
  readonly peers: readonly {
    readonly name: string;
    readonly version?: string;
    readonly missing?: string;
  }[];
  /** Jobs that had not started when the time was up. */
  readonly left_out?: { readonly limit_s: number; readonly jobs: readonly string[] };
  readonly cases: readonly CaseResult[];
}

/** A run of hours has a few megabytes, with all its samples. */
const kMostResultBytes = 64 << 20;

/** @throws ERR_FILE, ERR_FILE_NOT_FOUND, ERR_PATH */
export function readResult(file: string): BenchResult {
  const text = new TextDecoder().decode(readSmallFile('bench', file, kMostResultBytes));
  let value: Partial<BenchResult> | null = null;
  try {
    value = JSON.parse(text) as Partial<BenchResult> | null;
  } catch {
    // rejected below
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
