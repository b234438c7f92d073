/** `@genai-fi/nanogpt` with LoRA of its own, without and with this library's kernels, by `examples/nanogpt/train.mjs`. */

import { existsSync } from 'node:fs';
import path from 'node:path';
import { packageFolder } from '../../environment/package-folder.js';
import { resolvePackage } from '../find-package.js';
import { median } from '../statistics.js';
import { runProgram } from './program.js';
import type { Trainer, TrainerCase, TrainerPlan, TrainerSide } from './trainer.js';

const kPackage = '@genai-fi/nanogpt';

/** The import and `register()`; on wasm also `registerMissing()`. */
const kLines = { wasm: 3, cpu: 2 } as const;

/** The program leaves its first steps out of its times. */
const kWarmup = 2;

const program = () => path.join(packageFolder(), 'examples', 'nanogpt', 'train.mjs');

/** What the program prints. */
interface Printed {
  readonly losses: readonly number[];
  readonly medianMs: number;
  readonly minMs: number;
}

export const nanogptTrainer: Trainer = {
  name: 'nanogpt',
  find: () => {
    const found = resolvePackage(kPackage);
    if (found === undefined) return { missing: `npm install ${kPackage}` };
    if (!existsSync(program())) return { missing: 'a clone of the repository of lowrank' };
    return { version: found.version };
  },
  cases: (tiny) => [caseOf('wasm', tiny), caseOf('cpu', tiny)],
};

function caseOf(backend: 'wasm' | 'cpu', tiny: boolean): TrainerCase {
  const size = tiny
    ? { width: 32, layers: 1, batch: 1, block: 16, rank: 2 }
    : { width: 128, layers: 2, batch: 8, block: 64, rank: 8 };
  const { width, layers, batch, block, rank } = size;
  return {
    name: `${layers} layers of ${width}, ${batch} x ${block} tokens, LoRA r=${rank}, ${backend}`,
    lines: kLines[backend],
    run: (plan) => run(backend, size, plan),
  };
}

/** Each side in processes of its own, which take turns: one pair, and another one in the other order if time is left. */
async function run(backend: string, size: object, { repeats, seconds, onStep }: TrainerPlan) {
  const settings = { backend, ...size, steps: kWarmup + Math.ceil(repeats / 2) };
  const options = Object.entries(settings).flatMap(([name, value]) => [`--${name}`, String(value)]);
  const sides = { without: [] as Printed[], with: [] as Printed[] };
  const started = performance.now();
  for (const order of [['without', 'with'] as const, ['with', 'without'] as const]) {
    for (const side of order) {
      const mode = side === 'with' ? 'all' : 'none';
      const args = [program(), '--lowrank', mode, ...options];
      sides[side].push((await runProgram({ command: process.execPath, args })) as Printed);
      onStep(sides.without.length + sides.with.length, 4);
    }
    if (performance.now() - started > 500 * seconds) break;
  }
  const summary = (runs: readonly Printed[]): TrainerSide => ({
    min_ms: Math.min(...runs.map(({ minMs }) => minMs)),
    median_ms: median(runs.map(({ medianMs }) => medianMs)),
    losses: runs[0]?.losses ?? [],
  });
  return { without: summary(sides.without), with: summary(sides.with) };
}
