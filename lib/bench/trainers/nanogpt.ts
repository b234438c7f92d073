/** `@genai-fi/nanogpt`: the program `examples/nanogpt/bench.mjs`, which trains it on both sides. */

import { existsSync } from 'node:fs';
import path from 'node:path';
import { packageFolder } from '../../environment/package-folder.js';
import { resolvePackage } from '../find-package.js';
import { runProgram } from './program.js';
import type { Trainer, TrainerCase, TrainerTimes } from './trainer.js';

const kPackage = '@genai-fi/nanogpt';

/** The import, `register()`, `registerMissing()`, and the imports that Node needs. */
const kLines: Readonly<Record<string, number>> = { wasm: 3, cpu: 2 };

const program = () => path.join(packageFolder(), 'examples', 'nanogpt', 'bench.mjs');

export const nanogptTrainer: Trainer = {
  name: 'nanogpt',
  find: () => {
    const found = resolvePackage(kPackage);
    if (found === undefined) return { missing: `npm install ${kPackage}` };
    if (!existsSync(program()))
      return { missing: 'a clone of lowrank, which has examples/nanogpt' };
    return { version: found.version };
  },
  cases: (tiny) => ['wasm', 'cpu'].map((backend) => caseOf(backend, tiny)),
};

function caseOf(backend: string, tiny: boolean): TrainerCase {
  const size = tiny
    ? { width: 16, layers: 1, batch: 1, tokens: 8 }
    : { width: 128, layers: 2, batch: 8, tokens: 64 };
  const { width, layers, batch, tokens } = size;
  return {
    name: `${layers} layers of ${width}, ${batch} x ${tokens} tokens, LoRA r=8, ${backend}`,
    lines: kLines[backend] ?? 0,
    async run({ repeats, seconds, onStep }) {
      const job = { ...size, backend, repeats, seconds };
      const args = [program(), JSON.stringify(job)];
      const times = (await runProgram({ command: process.execPath, args })) as TrainerTimes;
      onStep(repeats, repeats);
      return times;
    },
  };
}
