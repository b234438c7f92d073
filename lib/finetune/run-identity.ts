/** What identifies a run: everything that affects its numbers, under names that a user knows. */

import { createHash } from 'node:crypto';
import { readSmallFile } from '../checkpoint/files/file-access.js';
import type { DecoderConfig } from '../model/config/decoder-config.js';
import { adamw } from '../optim/elementwise/adamw.js';
import { needsData } from '../starts/starter.js';
import type { AdapterConfig } from '../train/adapter-set.js';
import type { TrainOptions } from '../train/model-trainer.js';
import type { FinetuneOptions } from './finetune-files.js';
import type { RunIdentity } from './run-state.js';
import { kInitBatches } from './start.js';

const kOp = 'finetune';

/** The inputs of a run as it read them: SHA-256 of bytes, and the settings of the model. */
export interface RunInputs {
  readonly config: DecoderConfig;
  /** Hash of every tensor that the model uses. */
  readonly weights: string;
  /** Hashes of tokenizer.json, and of tokenizer_config.json if there is one. */
  readonly tokenizer: Readonly<Record<string, string>>;
  /** The data, by the names of options. */
  readonly data: RunIdentity;
}

/** The file of a method, a start or an optimiser that is not part of the library. Its imports are not checked. */
function ownFile(option: string, file: string | undefined): RunIdentity {
  if (file === undefined) return {};
  const bytes = readSmallFile(kOp, file, kMaxMethodBytes);
  return { [shaOf(`${option} file`)]: createHash('sha256').update(bytes).digest('hex') };
}

/** A start, with its settings under names that the method's do not have. */
function startFields({ adapter, initFile, initBatches }: FinetuneOptions): RunIdentity {
  if (adapter.start === undefined) return {};
  const { start, settings } = adapter.start;
  const all = Object.entries({ ...start.defaults, ...settings } as Record<string, Leaf>);
  return {
    init: start.start,
    ...Object.fromEntries(all.map(([name, value]) => [`init ${name}`, value])),
    ...(needsData(start) ? { 'init-batches': initBatches ?? kInitBatches } : {}),
    ...ownFile('--init', initFile),
  };
}

const kMaxMethodBytes = 64 << 20;
const shaOf = (name: string) => `${name} (SHA-256)`;

/** What `config.json` calls the fields whose names are not its own in other letters. */
const kConfigNames: Readonly<Record<string, string>> = {
  'norm.eps': 'rms_norm_eps',
  'layers.attention.heads': 'num_attention_heads',
  'layers.attention.kvHeads': 'num_key_value_heads',
  'layers.attention.headDim': 'head_dim',
  'layers.attention.window': 'sliding_window',
  'layers.attention.softcap': 'attn_logit_softcapping',
  'layers.attention.rotary.theta': 'rope_theta',
  'layers.mlp.intermediateSize': 'intermediate_size',
  'layers.mlp.gate': 'hidden_act',
  finalSoftcap: 'final_logit_softcapping',
  eosTokenIds: 'eos_token_id',
};

type Leaf = RunIdentity[string];

/** The fields of an object by their paths; a field that differs between layers is a list. */
function leaves(object: object, path = ''): Map<string, Leaf> {
  const found = new Map<string, Leaf>();
  for (const [key, value] of Object.entries(object)) {
    const name = path === '' ? key : `${path}.${key}`;
    if (value === undefined) continue;
    if (Array.isArray(value) && typeof value[0] === 'object') {
      const items = value.map((item) => leaves(item, name));
      for (const each of new Set(items.flatMap((item) => [...item.keys()]))) {
        const all = items.map((item) => item.get(each) ?? 'none');
        const same = all.every((one) => String(one) === String(all[0]));
        found.set(each, same ? (all[0] as Leaf) : all.map(String));
      }
    } else if (typeof value === 'object' && !Array.isArray(value)) {
      for (const [inner, leaf] of leaves(value, name)) found.set(inner, leaf);
    } else found.set(name, value);
  }
  return found;
}

/** What a model computes, under the names of its `config.json` where it has them. */
function configFields(config: DecoderConfig): RunIdentity {
  const snake = (name: string) => name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
  const named = [...leaves(config)].map(([name, value]) => {
    const own = name.replace('layers.attention.rotary.scaling', 'rope_scaling');
    return [`config.json ${kConfigNames[name] ?? snake(own)}`, value] as const;
  });
  const depth = config.layers?.length ?? 0;
  return { ...Object.fromEntries(named), 'config.json num_hidden_layers': depth };
}

/** Uses the names of the files and of the command's options, so that an error names what to change. */
export function identityOf(options: FinetuneOptions, inputs: RunInputs): RunIdentity {
  const { format, adapter, train, seqLen, separator, privacy } = options;
  const hashes = { 'model weights': inputs.weights, ...inputs.tokenizer };
  return {
    ...configFields(inputs.config),
    ...Object.fromEntries(Object.entries(hashes).map(([name, hash]) => [shaOf(name), hash])),
    ...inputs.data,
    separator,
    ...ownFile('--adapter', options.adapterFile),
    ...startFields(options),
    ...ownFile('--optimizer', options.optimizerFile),
    format: format.format,
    blocksize: format.blocksize ?? 0,
    'double-quant': format.doubleQuant ?? false,
    adapter: adapter.method.method,
    ...namedSettings(adapter),
    targets: String(adapter.targets),
    'seq-len': seqLen,
    batch: train.batch,
    accumulate: train.accumulate,
    steps: train.steps,
    lr: train.lr,
    warmup: train.warmup,
    'weight-decay': train.weightDecay,
    ...optimizerFields(train),
    ...ruleFields(options),
    clip: train.clip,
    ...privacy,
    seed: train.seed,
    dtype: train.dtype,
    ...(train.dpoBeta === undefined ? {} : { 'dpo-beta': train.dpoBeta }),
  };
}

/** Settings of the method under the names of the command's options. */
function namedSettings({ method, settings }: AdapterConfig): RunIdentity {
  const names: Readonly<Record<string, string>> = { r: 'rank', loraAlpha: 'lora-alpha' };
  const all = { ...method.definition.defaults, ...settings };
  const known = Object.entries(all as Record<string, RunIdentity[string] | undefined>);
  return Object.fromEntries(
    known.flatMap(([name, value]) => (value === undefined ? [] : [[names[name] ?? name, value]])),
  );
}

/** The optimiser with its settings. */
function optimizerFields({ optimizer = adamw, optimizerSettings }: TrainOptions): RunIdentity {
  const settings = optimizerSettings ?? {};
  const all = { ...(optimizer.defaults as object), ...settings } as RunIdentity;
  return {
    optimizer: optimizer.optimizer,
    ...Object.fromEntries(
      Object.entries(all).map(([name, value]) => [`optimizer ${name}`, value] as const),
    ),
  };
}

/** The rules in their order, with their settings. */
function ruleFields({ train: { rules = [] }, ruleFiles = {} }: FinetuneOptions): RunIdentity {
  if (rules.length === 0) return {};
  return {
    rules: rules.map(({ rule }) => rule.rule),
    ...Object.fromEntries(
      rules.flatMap(({ rule, settings }) =>
        Object.entries({ ...rule.defaults, ...settings } as RunIdentity).map(
          ([name, value]) => [`${rule.rule} ${name}`, value] as const,
        ),
      ),
    ),
    ...Object.assign(
      {},
      ...Object.entries(ruleFiles).map(([name, file]) => ownFile(`--rule ${name}`, file)),
    ),
  };
}
