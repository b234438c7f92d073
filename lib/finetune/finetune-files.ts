/**
 * The options of a fine-tune, and the files that it writes.
 */

import fs from 'node:fs';
import path from 'node:path';
import type { Adapter } from '../adapters/definition/adapter.js';
import { type AlphaConfig, exactly } from '../adapters/parts/scaling.js';
import { type ExpertsParameter, expertsToPeft } from '../adapters/peft/experts-to-peft.js';
import { writeAdapterFolder } from '../adapters/peft/folder.js';
import { adaptersToPeft } from '../adapters/peft/peft.js';
import type { PeftFolder } from '../adapters/peft/peft-tensors.js';
import { fileError } from '../checkpoint/files/file-access.js';
import { requireUnlocked } from '../checkpoint/files/lock.js';
import { writePeftAdapter } from '../checkpoint/peft/peft.js';
import { LowrankError } from '../core/errors.js';
import { printable } from '../core/printable.js';
import type { Device } from '../index.js';
import type { BaseFormat } from '../model/base-format.js';
import { readsOutputs } from '../model/expert-adapters.js';
import type { RuleEngine } from '../rules/run/rule-engine.js';
import type { AdapterConfig, AdapterSet } from '../train/adapter-set.js';
import type { TrainOptions } from '../train/model-trainer.js';
import { type WrittenAdapters, withKeptRanks } from './kept-ranks.js';
import { type LoraModule, loraModule } from './lora-modules.js';

const kOp = 'finetune';

/** All options of a fine-tune. */
export interface FinetuneOptions {
  /** Hugging Face folder, or GGUF file. */
  readonly model: string;
  /** Folder with tokenizer.json, or GGUF file, instead of the model's. */
  readonly tokenizer?: string;
  /** Text file, or folder of .txt files. */
  readonly data: string;
  /** Adapter folder to write. */
  readonly out: string;
  /** Text between two documents of a file; empty for none. */
  readonly separator: string;
  readonly seqLen: number;
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

/**
 * Writes the adapter folder atomically, in PEFT's layout.
 * @param rules of the run: what they merged into the base is in the folder, and the ranks that they removed are not
 * @throws LowrankError `ERR_DISK_FULL`, `ERR_PATH`
 */
export async function writeAdapter(
  options: FinetuneOptions,
  adapters: AdapterSet,
  rules?: RuleEngine,
): Promise<void> {
  const kept = withKeptRanks(adapters, rules?.kept ?? new Map());
  try {
    await writeKept(options, adapters, kept, rules);
  } finally {
    for (const adapter of kept.made) adapter.dispose();
  }
}

async function writeKept(
  options: FinetuneOptions,
  adapters: AdapterSet,
  { layers, byModule }: WrittenAdapters,
  rules: RuleEngine | undefined,
): Promise<void> {
  const { config, targets } = adapters;
  if (config.method.method !== 'lora') {
    const { method, definition } = config.method;
    await writeAdapterFolder(options.out, byModule, {
      base_model_name_or_path: options.model,
      ...(definition.peft?.wholeTargets ? {} : { target_modules: [...targets].sort() }),
      ...(method === 'adalora' ? { total_step: options.train.steps } : {}),
      task_type: 'CAUSAL_LM',
    });
    return;
  }
  if (adapters.experts.size > 0) {
    await writeAdapterFolder(options.out, await expertsFolder(adapters), {
      base_model_name_or_path: options.model,
      task_type: 'CAUSAL_LM',
    });
    return;
  }
  const settings = { ...config.method.definition.defaults, ...config.settings };
  const { rslora, dropout, loraBias } = settings as unknown as AlphaConfig & {
    readonly loraBias: boolean;
  };
  const modules = layers.map((layer) =>
    loraModule(adapters, layer, loraBias, rules?.merges.factors.get(layer.place.module)),
  );
  const [first] = modules as [LoraModule, ...LoraModule[]];
  const others = modules.filter(({ r }) => r !== first.r);
  writePeftAdapter(options.out, {
    config: {
      r: first.r,
      loraAlpha: first.loraAlpha,
      rankPattern: new Map(others.map(({ module, r }) => [exactly(module), r])),
      alphaPattern: new Map(others.map(({ module, loraAlpha }) => [exactly(module), loraAlpha])),
      useRslora: rslora,
      loraDropout: dropout,
      loraBias,
      targetModules: targets,
      taskType: 'CAUSAL_LM',
      baseModelNameOrPath: options.model,
      initLoraWeights: config.start?.start.peft ?? true,
    },
    modules,
  });
}

/** LoRA of experts, and of linear layers, as PEFT has both in one folder. */
async function expertsFolder({ experts, byModule }: AdapterSet): Promise<PeftFolder> {
  const modules = new Map<string, ExpertsParameter[]>();
  const made: Adapter[] = [];
  try {
    // PEFT wraps the last parameter of a module first.
    for (const lora of [...experts.values()].reverse()) {
      const { module, parameter } = lora.place;
      const parts = lora.split();
      made.push(...parts);
      const list = modules.get(module) ?? [];
      list.push({ parameter, experts: parts, transposed: readsOutputs(lora.place) });
      modules.set(module, list);
    }
    return await expertsToPeft(new Map([...modules].reverse()), byModule);
  } finally {
    for (const adapter of made) adapter.dispose();
  }
}

/** The first words of two documents from the last tenth, which is held out. */
export function heldOutBeginnings(documents: readonly string[]): string[] {
  const first = Math.floor(documents.length * 0.95);
  const chosen = [documents[first], documents[documents.length - 1]];
  const words = chosen.map((text) => text?.match(/^\S+(?:[^\S\n]+\S+){0,2}/)?.[0] ?? '');
  return [...new Set(words)].filter((text) => text !== '' && text.length <= 80);
}
