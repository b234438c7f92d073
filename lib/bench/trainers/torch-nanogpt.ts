/** PyTorch: a nanoGPT-shaped model without and with `lowrank_torch.patch()`, by `bench/torch_step.py`. */

import { existsSync } from 'node:fs';
import { getThreads } from '../../index.js';
import { benchFile } from '../foreign.js';
import { findPython, torchFound, torchSettings } from '../peers/torch.js';
import { runProgram } from './program.js';
import type { Trainer, TrainerCase, TrainerPlan, TrainerTimes } from './trainer.js';

const kScript = 'torch_step.py';

/** `lowrank_torch.patch(model)`; the import is a second one. */
const kLines = 2;

interface ScriptSide {
  readonly min_ms: number;
  readonly median_ms: number;
  readonly losses: readonly number[];
}

/** What the script prints. */
interface ScriptResult {
  readonly plain: ScriptSide;
  readonly patched: ScriptSide;
  readonly base_bytes: { readonly plain: number; readonly patched: number };
}

export const torchNanogptTrainer: Trainer = {
  name: 'torch-nanogpt',
  find: () => {
    if (!existsSync(benchFile(kScript))) {
      return { missing: `a version of lowrank with bench/${kScript}` };
    }
    return torchFound();
  },
  cases: (tiny) => [
    caseOf('f32', null, tiny),
    caseOf('f32', 'nf4', tiny),
    ...(tiny ? [] : [caseOf('bf16', null, tiny), caseOf('bf16', 'nf4', tiny)]),
  ],
};

function caseOf(dtype: string, format: string | null, tiny: boolean): TrainerCase {
  const size = tiny
    ? { width: 32, layers: 1, heads: 2, vocabulary: 32, tokens: 16, batch: 1, r: 2 }
    : { width: 512, layers: 4, heads: 8, vocabulary: 512, tokens: 256, batch: 4, r: 8 };
  const { width, layers, tokens, batch, r } = size;
  const model = `nanoGPT, ${layers} layers of ${width}, ${batch} x ${tokens} tokens`;
  return {
    name: `${model}, LoRA r=${r}, ${dtype}, ${format ?? 'dense'} base`,
    lines: kLines,
    run: (plan) => run({ ...size, dtype, format, keep: format === null }, plan),
  };
}

async function run(job: object, { repeats, seconds, onStep }: TrainerPlan): Promise<TrainerTimes> {
  const { command } = findPython('torch', 'numpy') as { command: string };
  const threads = getThreads();
  const { env } = torchSettings(threads)[0] as { env: Readonly<Record<string, string>> };
  const asked = { ...job, threads, steps: repeats, seconds };
  const args = [benchFile(kScript), JSON.stringify(asked)];
  const {
    plain,
    patched,
    base_bytes: bytes,
  } = (await runProgram({
    command,
    args,
    env,
  })) as ScriptResult;
  onStep(repeats, repeats);
  return {
    without: { ...plain, base_bytes: bytes.plain },
    with: { ...patched, base_bytes: bytes.patched },
  };
}
