/** The recorded decoder models of this folder: a manifest, model folders and safetensors files. */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { type GoldenTensor, numbersOf, readTensors } from '../case-file.js';

export const modelsFolder: string = import.meta.dirname;

/** One tolerance rule, as the manifest has it. */
export interface ModelRule {
  readonly tensor: string;
  /** Default: the float64 run's tensor of the same name. */
  readonly reference?: string;
  readonly rule: 'absolute' | 'rms' | 'values';
  /** The rule is for a run in bf16; absent: for one in f32. */
  readonly dtype?: 'bf16';
  readonly atol?: number;
  /** Index into the manifest's `why`. */
  readonly why: number;
}

/** The settings of the six optimiser steps. */
export interface TrainSettings {
  readonly lr: number;
  readonly betas: readonly [number, number];
  readonly eps: number;
  readonly weight_decay: number;
  readonly steps: number;
}

interface ModelRow {
  readonly id: string;
  readonly params: {
    readonly new_tokens: number;
    readonly train: TrainSettings;
    readonly lora: { readonly scaling: number; readonly targets: readonly string[] };
  };
  readonly files: readonly { readonly path: string; readonly sha256: string }[];
  readonly rules: readonly ModelRule[];
}

const MANIFEST = JSON.parse(readFileSync(join(modelsFolder, 'manifest.json'), 'utf8')) as {
  readonly why: readonly string[];
  readonly cases: readonly ModelRow[];
};

export const modelIds: readonly string[] = MANIFEST.cases.map(({ id }) => id);
export const modelFiles = MANIFEST.cases.flatMap(({ files }) => files);

/** Which release of transformers wrote config.json. */
export type ConfigGeneration = 'v5' | 'v4';
export const configGenerations: readonly ConfigGeneration[] = ['v5', 'v4'];

/** Tokens of a batch, row-major. */
export interface ModelBatch {
  readonly B: number;
  readonly T: number;
  /** [B, T] */
  readonly ids: Int32Array;
  /** [B, T]: the id, or -100; position t predicts labels[t + 1]. */
  readonly labels: Int32Array;
  /** [B, T], from 0 in each document. */
  readonly positions: Int32Array;
  /** [B, T]: which document of the row a token belongs to. */
  readonly segments: Int32Array;
}

/** A case: inputs, results and rules. */
export class ModelCase {
  readonly id: string;
  readonly params: ModelRow['params'];
  readonly rules: readonly ModelRule[];
  /** The model folder, with the config.json of transformers 5. */
  readonly base: string;
  /** The adapter folder, as PEFT writes it. */
  readonly adapter: string;
  readonly tensors: ReadonlyMap<string, GoldenTensor>;

  constructor(id: string) {
    const row = MANIFEST.cases.find((each) => each.id === id);
    if (row === undefined) throw new Error(`no recorded model ${id}`);
    this.id = id;
    this.params = row.params;
    this.rules = row.rules;
    this.base = join(modelsFolder, id, 'base');
    this.adapter = join(modelsFolder, id, 'adapter');
    this.tensors = readTensors(`models/${id}.safetensors`);
  }

  why({ why }: ModelRule): string {
    return MANIFEST.why[why] as string;
  }

  tensor(name: string): GoldenTensor {
    const found = this.tensors.get(name);
    if (found === undefined) throw new Error(`${this.id}: no tensor ${name}`);
    return found;
  }

  numbers(name: string): Float64Array {
    return numbersOf(this.tensor(name));
  }

  integers(name: string): Int32Array {
    return Int32Array.from(this.numbers(name));
  }

  /** Every tensor of the base model, of all shards. */
  get weights(): ReadonlyMap<string, GoldenTensor> {
    const files = readdirSync(this.base).filter((name) => name.endsWith('.safetensors'));
    return new Map(files.flatMap((name) => [...readTensors(`models/${this.id}/base/${name}`)]));
  }

  /** The parsed config.json of one generation. */
  config(generation: ConfigGeneration): Record<string, unknown> {
    const file = generation === 'v5' ? 'base/config.json' : 'config-v4/config.json';
    return JSON.parse(readFileSync(join(modelsFolder, this.id, file), 'utf8'));
  }

  /** The batch of full rows. */
  get batch(): ModelBatch {
    const [B, T] = this.tensor('in.ids').shape as [number, number];
    return {
      B,
      T,
      ids: this.integers('in.ids'),
      labels: this.integers('in.labels'),
      positions: Int32Array.from({ length: B * T }, (_, i) => i % T),
      segments: new Int32Array(B * T),
    };
  }

  /** The row of several documents. */
  get packed(): ModelBatch {
    const [B, T] = this.tensor('in.packed.ids').shape as [number, number];
    return {
      B,
      T,
      ids: this.integers('in.packed.ids'),
      labels: this.integers('in.packed.labels'),
      positions: this.integers('in.packed.position_ids'),
      segments: this.integers('in.packed.segments'),
    };
  }
}
