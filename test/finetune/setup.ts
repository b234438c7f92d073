/** What the tests of this folder share: temporary folders, tiny trainers, their values and gradients. */

import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { afterAll } from 'vitest';
import { type Device, scope, type Tensor } from '../../lib/index.js';
import type { BaseFormat } from '../../lib/model/base-format.js';
import { Decoder } from '../../lib/model/decoder.js';
import { DecoderWeights, linearsOf } from '../../lib/model/decoder-weights.js';
import { type HfModel, openHfModel } from '../../lib/model/hf-model.js';
import { LinearSource } from '../../lib/model/linear-source.js';
import type { TrainingData } from '../../lib/text/sequences.js';
import { SequenceSet } from '../../lib/text/text-data.js';
import { tensorflow } from '../../lib/tfjs/ops/tensorflow.js';
import { type AdapterConfig, AdapterSet, methodNamed } from '../../lib/train/adapter-set.js';
import { ModelTrainer, type TrainOptions } from '../../lib/train/model-trainer.js';
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
  readonly decoder: Decoder;
  readonly trainer: ModelTrainer;
  dispose(): void;
}

/** All trained values, one parameter after another. */
export function valuesOf({ trainer }: ModelTrainer): Float32Array {
  return joined(trainer.parameters.map(({ tensor }) => tensor.readSync()));
}

/** Replaces all trained values. */
export function setValues({ trainer }: ModelTrainer, values: Float32Array): void {
  let at = 0;
  for (const { tensor } of trainer.parameters) {
    tensor.write(values.slice(at, at + tensor.size));
    at += tensor.size;
  }
}

/** The loss of the next step, and its gradient in the order of {@link valuesOf}. */
export function gradientOf(trainer: ModelTrainer): { loss: number; gradient: Float32Array } {
  return scope(() => {
    trainer.adapters.refresh();
    const { loss, gradients } = trainer.trainer.rehearse(trainer.passes());
    const parts = trainer.trainer.parameters.map(
      ({ tensor }, i) => gradients[i]?.readSync() ?? new Float32Array(tensor.size),
    );
    return { loss: loss.readSync()[0] as number, gradient: joined(parts) };
  });
}

/** Where each parameter begins in {@link valuesOf}, by name. */
export function offsetsOf({ trainer }: ModelTrainer): ReadonlyMap<string, number> {
  let at = 0;
  return new Map(
    trainer.parameters.map(({ name, tensor }) => {
      const begin = at;
      at += tensor.size;
      return [name, begin] as const;
    }),
  );
}

/** The frozen weight of each adapted layer, by module. */
export function weightsOf(decoder: Decoder) {
  return new Map(
    decoder.weights.layers.flatMap(linearsOf).map(({ place, w }) => [place.module, w] as const),
  );
}

function joined(parts: readonly Float32Array[]): Float32Array {
  const all = new Float32Array(parts.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

/** The optimiser's tensor of this name for each parameter, one after another. */
export function stateOf({ trainer }: ModelTrainer, name: string): Float32Array {
  const states = [...trainer.state.values()];
  return joined(states.map((state) => (state[name] as Tensor).readSync()));
}

/** A trainer over a random checkpoint and random tokens. */
export function tinyTrainer(
  checkpoint: TinyCheckpointOptions,
  format: BaseFormat,
  options: Partial<TrainOptions> & {
    /** Method by name, targets, and settings of the method. */
    readonly adapter?: {
      readonly method?: string;
      readonly targets?: AdapterConfig['targets'];
    } & Readonly<Record<string, unknown>>;
    readonly T?: number;
    /** Instead of random tokens. */
    readonly data?: TrainingData;
    readonly device?: Device;
  } = {},
): TinyTrainer {
  const folder = temporaryFolder();
  writeTinyCheckpoint(folder, checkpoint);
  const model = openHfModel(folder);
  const { device = 'cpu' } = options;
  const decoder = new Decoder(model.decoder, DecoderWeights.load(model, { format, device }));
  const { targets = 'all-linear', method = 'lora', ...settings } = options.adapter ?? {};
  const adapter: AdapterConfig = {
    method: methodNamed('test', method),
    settings: { ...(method === 'lora' ? { r: 3, loraAlpha: 6 } : {}), ...settings },
    targets,
  };
  const T = options.T ?? 7;
  const { vocabSize } = model.decoder;
  const tokens = (count: number, seed: number) =>
    Int32Array.from(randomValues(count * T + 1, seed), (v) =>
      Math.floor(((v + 1) / 2) * vocabSize),
    );
  const data = options.data ?? {
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
    dtype: 'f32',
    recompute: false,
    ...options,
  };
  const adapters = new AdapterSet(decoder, adapter, train.seed);
  const source = new LinearSource(model, format, device);
  const trainer = new ModelTrainer(decoder, adapters, data, train, source);
  const dispose = () => {
    trainer.dispose();
    adapters.dispose();
    decoder.dispose();
  };
  return { model, decoder, trainer, dispose };
}
