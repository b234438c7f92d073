/** The trainer `@genai-fi/nanogpt`, as examples/nanogpt runs it, in processes of its own that take turns. */

import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { median } from '../statistics.js';
import { lossDifference, type TrainerRow } from './trainer.js';

/** The size of the model and of the runs. */
export interface NanogptOptions {
  /** `examples/nanogpt/train.mjs`. */
  readonly script: string;
  /** Default 128. */
  readonly width?: number;
  /** Steps of a process. Default 6. */
  readonly steps?: number;
  /** Processes of each side. Default 2. */
  readonly rounds?: number;
}

interface Run {
  readonly losses: readonly number[];
  readonly minMs: number;
}

/**
 * The row of the trainer `nanogpt` on a backend: two layers, 8 × 64 tokens, LoRA of rank 8, alone and with everything that
 * this library replaces. A process reports its fastest step; the row has the medians of these.
 * @throws Error if the trainer does not run, such as where `@genai-fi/nanogpt` is not installed
 */
export async function nanogpt(
  backend: 'cpu' | 'wasm',
  { script, width = 128, steps = 6, rounds = 2 }: NanogptOptions,
): Promise<TrainerRow> {
  const run = async (lowrank: string): Promise<Run> => {
    const args = ['--backend', backend, '--lowrank', lowrank];
    const sizes = ['--width', String(width), '--steps', String(steps)];
    const { stdout } = await promisify(execFile)(process.execPath, [script, ...args, ...sizes]);
    return JSON.parse(stdout.trim().split('\n').at(-1) as string) as Run;
  };
  const sides: { without: Run[]; withUs: Run[] } = { without: [], withUs: [] };
  for (let round = 0; round < rounds; round++) {
    sides.without.push(await run('none'));
    sides.withUs.push(await run('lora'));
  }
  const [without_ms, with_ms] = [sides.without, sides.withUs].map((runs) =>
    median(runs.map(({ minMs }) => minMs)),
  ) as [number, number];
  return {
    trainer: 'nanogpt',
    variant: 'LoRA, register() and loraLinear',
    backend,
    lines: backend === 'cpu' ? 4 : 5,
    lossDifference: lossDifference(sides.without[0]?.losses ?? [], sides.withUs[0]?.losses ?? []),
    without_ms,
    with_ms,
    ratio: without_ms / with_ms,
    clean: 0,
    samples: rounds,
  };
}
