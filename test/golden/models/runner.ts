/**
 * What runs a recorded model: the float64 oracle, or the library on one of its devices. The harness (check-model.ts) asks a
 * runner for results and holds them to the rules of the case.
 */
import { cpSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { ConfigGeneration, ModelBatch, ModelCase, TrainSettings } from './cases.js';

type Awaitable<T> = T | Promise<T>;
export type Values = ArrayLike<number>;

/** A model that is loaded, with its adapter. */
export interface RunningModel {
  /** [B, T, V] */
  logits(batch: ModelBatch, adapted: boolean): Awaitable<Values>;
  losses(batch: ModelBatch): Awaitable<{ readonly loss: number; readonly tokenLosses: Values }>;
  /** Of the loss: by the embedding's output [B, T, D], and by every A and B, under their names in the adapter file. */
  gradients(batch: ModelBatch): Awaitable<{
    readonly embedding: Values;
    readonly adapters: ReadonlyMap<string, Values>;
  }>;
  /**
   * Greedy tokens; no token ends them.
   * @param prompts [B, P]
   * @returns ids [B, P + steps] and logits [steps, B, V]
   */
  generate(
    prompts: Int32Array,
    B: number,
    steps: number,
  ): Awaitable<{ readonly ids: Values; readonly logits: Values }>;
  /** AdamW over all adapters on one batch: the loss before each step, and after the last. */
  train(batch: ModelBatch, settings: TrainSettings): Awaitable<readonly number[]>;
  /**
   * Runs with another scale of the embedding and, by the gains of the norms after each block, of the whole residual stream. The
   * next norm takes the scale out again: the gradients of adapters are the same, and every rounding of the stream is another.
   * @param embeddingScale a number of the dtype of the run
   */
  scaledStream?<T>(embeddingScale: number, run: () => Awaitable<T>): Promise<T>;
  dispose(): void;
}

export interface ModelRunner {
  readonly name: string;
  /** Which rules hold: those of a dtype, or the float64 results themselves. */
  readonly precision: 'f64' | 'f32' | 'bf16';
  /** @param folder the model folder, with the config.json of one generation */
  open(golden: ModelCase, folder: string): Awaitable<RunningModel>;
}

/** Runs with the model folder of a case, as one generation of transformers writes it. */
export async function withFolder<T>(
  golden: ModelCase,
  generation: ConfigGeneration,
  use: (folder: string) => Promise<T>,
): Promise<T> {
  if (generation === 'v5') return use(golden.base);
  const folder = mkdtempSync(join(tmpdir(), 'lowrank-model-'));
  try {
    cpSync(golden.base, folder, { recursive: true });
    writeFileSync(join(folder, 'config.json'), JSON.stringify(golden.config(generation)));
    return await use(folder);
  } finally {
    rmSync(folder, { recursive: true });
  }
}
