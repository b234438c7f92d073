/** The jobs of a run: a product of lists, or the default selection. */

import type { Device, DType } from '../index.js';
import { type BenchOp, coldBytesFor, type Job, type WeightFormat, weightBytesOf } from './job.js';

/** A size, without M if lists of M apply. */
export interface SweepShape {
  readonly layer?: string;
  readonly M?: number;
  readonly K: number;
  readonly N: number;
}

/** Lists whose product gives the jobs. */
export interface Sweep {
  readonly ops: readonly BenchOp[];
  readonly shapes: readonly SweepShape[];
  /** For shapes without their own M. */
  readonly M: readonly number[];
  readonly r: readonly number[];
  readonly formats: readonly WeightFormat[];
  readonly dtypes: readonly DType[];
  readonly threads: readonly number[];
  readonly devices: readonly Device[];
}

/** A group of jobs and its subjects: by default all that were requested. */
export interface Group {
  readonly jobs: readonly Job[];
  readonly only?: readonly string[];
}

/** Every combination, each once. */
export function expand(sweep: Sweep, lastCacheBytes: number): Job[] {
  const jobs = new Map<string, Job>();
  const { ops, shapes, formats, dtypes, threads, devices } = sweep;
  for (const device of devices) {
    for (const op of ops) {
      for (const shape of shapes) {
        for (const dtype of dtypes) {
          for (const format of formats) {
            for (const r of op === 'matmul' ? sweep.r.slice(0, 1) : sweep.r) {
              for (const count of device === 'cpu' ? threads : threads.slice(0, 1)) {
                for (const M of shape.M === undefined ? sweep.M : [shape.M]) {
                  const job = { op, ...shape, M, r, format, dtype, threads: count, device };
                  const weightBytes = weightBytesOf({ ...job, coldBytes: 0 });
                  const coldBytes = coldBytesFor(M, weightBytes, lastCacheBytes);
                  jobs.set(JSON.stringify(job), { ...job, coldBytes });
                }
              }
            }
          }
        }
      }
    }
  }
  return [...jobs.values()];
}

/**
 * What `lowrank bench` measures without options: a layer of Llama-3.2-1B against M, the cost of the
 * adapter against r, and threads. It takes under two minutes on two cores.
 */
export function defaultGroups(device: Device, cores: number, lastCacheBytes: number): Group[] {
  const layer = { layer: 'Llama-3.2-1B q', K: 2048, N: 2048 };
  const one: Sweep = {
    ops: ['lora'],
    shapes: [layer],
    M: [256],
    r: [16],
    formats: ['nf4'],
    dtypes: ['f32'],
    threads: [cores],
    devices: [device],
  };
  const jobs = (changes: Partial<Sweep>) => expand({ ...one, ...changes }, lastCacheBytes);
  const fewer = threadSteps(cores).slice(0, -1);
  // The essential jobs come first, because time may run out.
  return [
    { jobs: jobs({ M: [1, 256] }) },
    {
      jobs: jobs({ ops: ['loraForward', 'loraBackward'], r: [8, 128] }),
      only: ['lowrank', 'base'],
    },
    ...(device === 'cpu' && fewer.length > 0
      ? [{ jobs: jobs({ threads: fewer }), only: ['lowrank', 'unfused', 'torch'] }]
      : []),
    { jobs: jobs({ M: [16] }) },
    {
      jobs: jobs({ ops: ['loraForward', 'loraBackward'], r: [32] }),
      only: ['lowrank', 'base'],
    },
    { jobs: jobs({ M: [4, 64] }) },
  ];
}

/** 1, 2, 4, ... and the number of cores. */
export function threadSteps(cores: number): number[] {
  const steps: number[] = [];
  for (let count = 1; count < cores; count *= 2) steps.push(count);
  return [...steps, cores];
}
