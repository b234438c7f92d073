/**
 * The options of a fine-tune, and the checks of what it writes.
 */

import fs from 'node:fs';
import path from 'node:path';
import { adaptersToPeft } from '../adapters/peft/peft.js';
import { fileError } from '../checkpoint/files/file-access.js';
import { requireUnlocked } from '../checkpoint/files/lock.js';
import type { Device } from '../core/device.js';
import { LowrankError } from '../core/errors.js';
import { printable } from '../core/printable.js';
import type { DataOptions } from '../data/data-source.js';
import type { BaseFormat } from '../model/base-format.js';
import type { AdapterConfig, AdapterSet } from '../train/adapter-set.js';
import type { TrainOptions } from '../train/model-trainer.js';
import type { PrivacyGoal } from './privacy-goal.js';

const kOp = 'finetune';

/** All options of a fine-tune. */
export interface FinetuneOptions extends DataOptions {
  /** Hugging Face folder, or GGUF file. */
  readonly model: string;
  /** Folder with tokenizer.json, or GGUF file, instead of the model's. */
  readonly tokenizer?: string;
  /** A file with a chat template, instead of the model's. */
  readonly chatTemplate?: string;
  /** Adapter folder to write. */
  readonly out: string;
  readonly format: BaseFormat;
  readonly adapter: AdapterConfig;
  /** The file of the method, if it is not part of the library. */
  readonly adapterFile?: string;
  /** The file of the start, if it is not part of the library. */
  readonly initFile?: string;
  /** Passes that a start from inputs or gradients sees. */
  readonly initBatches?: number;
  /** The file of the optimiser in `train`, if it is not part of the library. */
  readonly optimizerFile?: string;
  /** The files of rules in `train` that are not part of the library, by their names. */
  readonly ruleFiles?: Readonly<Record<string, string>>;
  readonly train: TrainOptions;
  /** Differentially private training, with `train.clip` as the bound of each sequence's gradient; default none. */
  readonly privacy?: PrivacyGoal;
  /** Steps between evaluations on the held-out text; 0 evaluates only before and after. */
  readonly evalEvery: number;
  /** Steps between checkpoints; 0 saves only when interrupted. */
  readonly saveEvery: number;
  /** Continue the unfinished run next to `out`. */
  readonly resume: boolean;
  /** Measure the same step without the fused kernels. */
  readonly compare: boolean;
  /** Starts of samples; if empty, two from the held-out documents are used. */
  readonly prompts: readonly string[];
  /** Length of a sample in tokens; 0 for no samples. */
  readonly sampleTokens: number;
  readonly device?: Device;
}

/** The path of an unfinished run's state: next to the adapter folder, never inside. */
export function checkpointPath(out: string): string {
  return `${path.resolve(out)}.checkpoint`;
}

/** Detects before training what would otherwise fail after it. */
export function requireUsableOut(out: string): void {
  const target = path.resolve(out);
  const refuse = (expected: string, got: string): never => {
    const text = `${kOp}: --out ${printable(out)} must be ${expected}, got ${got}`;
    throw new LowrankError('ERR_PATH', text, { op: kOp });
  };
  try {
    fs.mkdirSync(path.dirname(target), { recursive: true });
    fs.accessSync(path.dirname(target), fs.constants.W_OK);
    requireUnlocked(kOp, target);
    const stat = fs.statSync(target, { throwIfNoEntry: false });
    if (stat === undefined) return;
    if (!stat.isDirectory()) refuse('a folder', 'a file. Choose another name');
    const entries = fs.readdirSync(target);
    if (entries.length > 0 && !entries.includes('adapter_config.json')) {
      const got = `a folder with ${entries.length} other entries. Choose another name`;
      refuse('a new or empty folder, or one with an adapter', got);
    }
  } catch (error) {
    throw fileError(kOp, out, error);
  }
}

/** @throws LowrankError `ERR_VALUE` */
export function requireLength(seqLen: number, maxPositionEmbeddings: number): void {
  if (seqLen <= maxPositionEmbeddings) return;
  const text =
    `${kOp}: --seq-len must be at most the model's ${maxPositionEmbeddings} positions, ` +
    `got ${seqLen}`;
  throw new LowrankError('ERR_VALUE', text, { op: kOp });
}

/**
 * Checks before training that the adapters can be written to a folder after it.
 * @returns what PEFT will compute differently, in words
 * @throws LowrankError as {@link adaptersToPeft}
 */
export async function requireWritable(adapters: AdapterSet): Promise<readonly string[]> {
  if (adapters.config.method.method === 'lora') return [];
  const { warnings = [] } = await adaptersToPeft(adapters.byModule);
  const { method, definition } = adapters.config.method;
  if (definition.peft?.embeddings !== true) return warnings;
  return [
    ...warnings,
    `PEFT has ${method} for embeddings only, and computes something else for linear layers`,
  ];
}

/** The first words of two documents from the last tenth, which is held out. */
export function heldOutBeginnings(documents: readonly string[]): string[] {
  const first = Math.floor(documents.length * 0.95);
  const chosen = [documents[first], documents[documents.length - 1]];
  const words = chosen.map((text) => text?.match(/^\S+(?:[^\S\n]+\S+){0,2}/)?.[0] ?? '');
  return [...new Set(words)].filter((text) => text !== '' && text.length <= 80);
}
