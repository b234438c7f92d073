/** The ceilings of this machine, compiled and measured in the same run as the results that they limit. */

import { spawn } from 'node:child_process';
import { endWithUs } from './children.js';
import { compileProgram } from './foreign.js';
import { bytesOf, flopsOf, type Job } from './job.js';
import type { ComputeType } from './peer.js';

/** The ceilings for a number of threads. */
export interface Ceilings {
  /** GFLOP/s (GOP/s for int8), if the processor has the instruction. */
  readonly f32: number;
  readonly bf16?: number;
  readonly int8?: number;
  /** GB/s from memory; `copy` counts both reads and writes. */
  readonly read: number;
  readonly copy: number;
}

/** By number of threads. */
export type Roofline = Readonly<Record<string, Ceilings>>;

const kTimeout_ms = 120_000;

/** @returns the reason as text if no compiler is found */
export async function measureRoofline(
  threads: readonly number[],
  lastCacheBytes: number,
): Promise<Roofline | string> {
  const compiled = compileProgram('roofline.cpp');
  if ('missing' in compiled) return compiled.missing;
  const bytes = Math.max(256 * 2 ** 20, 4 * lastCacheBytes);
  const text = await output(compiled.program, [threads.join(','), String(bytes)]);
  try {
    return JSON.parse(text) as Roofline;
  } catch {
    return 'it could not be measured';
  }
}

function output(program: string, args: readonly string[]): Promise<string> {
  return new Promise((resolve) => {
    const child = spawn(program, [...args], {
      stdio: ['ignore', 'pipe', 'ignore'],
      timeout: kTimeout_ms,
    });
    endWithUs(child);
    let text = '';
    child.stdout.setEncoding('utf8').on('data', (chunk: string) => {
      text += chunk;
    });
    child.on('error', () => resolve(''));
    child.on('close', () => resolve(text));
  });
}

/** The best possible rate of a job on this machine. */
export interface Roof {
  /** GFLOP/s. */
  readonly gflops: number;
  readonly bound: 'compute' | 'memory';
}

/**
 * The lower of the multiply-add peak and what the memory can feed. Memory counts only for cold
 * weights: weights in the cache are not read from memory.
 */
export function roofOf(
  job: Job,
  ceilings: Ceilings,
  weightBytes: number,
  computes: ComputeType,
): Roof {
  const peak = ceilings[computes] ?? ceilings.f32;
  const fed = job.coldBytes > 0 ? intensity(job, weightBytes) * ceilings.read : Infinity;
  return fed < peak ? { gflops: fed, bound: 'memory' } : { gflops: peak, bound: 'compute' };
}

/** Floating-point operations per byte of memory. */
export function intensity(job: Job, weightBytes: number): number {
  return flopsOf(job) / bytesOf(job, weightBytes);
}
