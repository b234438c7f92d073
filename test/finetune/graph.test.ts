/** `finetune` on the emulated GPU: its steps are replays of a graph, and their losses those of the CPU. */

import fs from 'node:fs';
import path from 'node:path';
import { expect, it } from 'vitest';
import { finetune } from '../../lib/finetune/finetune.js';
import { launchCount } from '../../lib/index.js';
import { methodNamed } from '../../lib/train/adapter-set.js';
import { temporaryFolder } from './setup.js';
import { writeTinyCheckpoint } from './tiny-checkpoint.js';

const folder = temporaryFolder();
const inFolder = (name: string) => path.join(folder, name);

it('replays its steps, with the losses of the CPU', async () => {
  writeTinyCheckpoint(inFolder('model'), {
    hiddenSize: 16,
    intermediateSize: 24,
    headDim: 4,
    numHiddenLayers: 1,
  });
  const lines = Array.from({ length: 12 }, (_, i) => `Line ${i} of ${i * i}.`);
  fs.writeFileSync(inFolder('text'), lines.join('\n\n'));
  const run = async (device: 'cpu' | 'cuda-emulated') => {
    const warnings: string[] = [];
    const launches: number[] = [];
    const { history } = await finetune(
      {
        model: inFolder('model'),
        data: [inFolder('text')],
        out: inFolder(device),
        separator: '\n\n',
        seqLen: 8,
        format: { format: 'nf4' },
        adapter: {
          method: methodNamed('test', 'lora'),
          settings: { r: 2, dropout: 0.2 },
          targets: 'all-linear',
        },
        train: {
          ...{ steps: 5, batch: 1, accumulate: 1, lr: 0.01, warmup: 2, weightDecay: 0.1, clip: 1 },
          ...{ seed: 1, dtype: 'f32', recompute: false },
        },
        evalEvery: 0,
        saveEvery: 0,
        resume: false,
        compare: false,
        prompts: [],
        sampleTokens: 0,
        device,
      },
      {
        warning: (text) => warnings.push(text),
        step: () => launches.push(launchCount(device)),
      },
    );
    const perStep = launches.slice(1).map((count, i) => count - (launches[i] as number));
    return { warnings, perStep, train: history.train };
  };
  const [cpu, cuda] = [await run('cpu'), await run('cuda-emulated')];
  expect(cuda.warnings).toEqual(cpu.warnings);
  // The second as usual, the third with the capture, then replays.
  expect(cuda.perStep.slice(2)).toEqual([1, 1]);
  expect(cuda.perStep[0]).toBeGreaterThan(20);
  for (const [i, loss] of cuda.train.entries()) {
    expect(Math.abs(loss - (cpu.train[i] as number))).toBeLessThan(2e-5 * loss);
  }
});
