/** What the tests of this folder share: backends, temporary folders, tiny trainers. */

import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { afterAll } from 'vitest';
import type { BaseFormat } from '../../lib/model/base-format.js';
import { type HfModel, openHfModel } from '../../lib/model/hf-model.js';
import { tensorflow } from '../../lib/tfjs/tensorflow.js';
import { type AdapterConfig, AdapterSet, methodNamed } from '../../lib/train/adapter-set.js';
import { type BaseModel, linearNames, loadBaseModel } from '../../lib/train/base-model.js';
import { SequenceSet } from '../../lib/train/text-data.js';
import { Trainer, type TrainOptions } from '../../lib/train/trainer.js';
import { noise, type TinyCheckpointOptions, writeTinyCheckpoint } from './tiny-checkpoint.js';

export const backends = ['cpu', 'wasm'] as const;

export async function useBackend(name: (typeof backends)[number]): Promise<void> {
  const tf = tensorflow();
  tf.enableProdMode();
  if (name === 'wasm') await import('@tensorflow/tfjs-backend-wasm');
  if (!(await tf.setBackend(name))) throw new Error(`no ${name} backend`);
}

const folders: string[] = [];
// Not on exit: the process that runs a test file is ended by a signal.
afterAll(() => {
  for (const folder of folders) fs.rmSync(folder, { recursive: true, force: true });
});

/** A folder that is removed after the tests of the file. */
export function temporaryFolder(): string {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'lowrank-test-'));
  folders.push(folder);
  return folder;
}

/** `count` values in (-1, 1), the same for the same seed. */
export function randomValues(count: number, seed: number): Float32Array {
  const next = noise(seed);
  return Float32Array.from({ length: count }, () => next());
}

export interface TinyTrainer {
  readonly model: HfModel;
  readonly base: BaseModel;
  readonly trainer: Trainer;
}

/** A trainer over a random checkpoint and random tokens. */
export async function tinyTrainer(
  checkpoint: TinyCheckpointOptions,
  format: BaseFormat,
  options: Partial<TrainOptions> & {
    /** Method by name, targets, and settings of the method. */
    readonly adapter?: {
      readonly method?: string;
      readonly targets?: AdapterConfig['targets'];
    } & Readonly<Record<string, unknown>>;
    readonly T?: number;
  } = {},
): Promise<TinyTrainer> {
  const folder = temporaryFolder();
  writeTinyCheckpoint(folder, checkpoint);
  const model = openHfModel(folder);
  const base = await loadBaseModel(model, format);
  const { targets = linearNames, method = 'lora', ...settings } = options.adapter ?? {};
  const adapter: AdapterConfig = {
    method: methodNamed('test', method),
    settings: { ...(method === 'lora' ? { r: 3, loraAlpha: 6 } : {}), ...settings },
    targets,
  };
  const T = options.T ?? 7;
  const { vocabSize } = model.config;
  const tokens = (count: number, seed: number) =>
    Int32Array.from(randomValues(count * T + 1, seed), (v) =>
      Math.floor(((v + 1) / 2) * vocabSize),
    );
  const data = {
    train: new SequenceSet(tokens(9, 5), T),
    heldOut: new SequenceSet(tokens(3, 6), T),
    tokens: 12 * T,
  };
  const train: TrainOptions = {
    steps: 10,
    batch: 2,
    accumulate: 1,
    lr: 1e-2,
    warmup: 2,
    weightDecay: 0.01,
    clip: 1e9,
    seed: 3,
    ...options,
  };
  return {
    model,
    base,
    trainer: new Trainer(base, new AdapterSet(base, adapter, train.seed), data, train),
  };
}
