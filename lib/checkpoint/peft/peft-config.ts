/**
 * `adapter_config.json` of a PEFT LoRA adapter, checked and typed.
 */

import { LowrankError } from '../../core/errors.js';
import { printable } from '../../core/printable.js';
import { jsonBounds } from '../files/json-bounds.js';
import { Fields, type JsonObject, readJsonObject } from '../files/json-file.js';

/** Files of an adapter folder, and the prefix of every tensor name. */
export const kConfigFile = 'adapter_config.json';
export const kWeightsFile = 'adapter_model.safetensors';
export const kKeyPrefix = 'base_model.model.';

/** Which biases of the base model were trained and saved with the adapter. */
export type PeftBias = 'none' | 'all' | 'lora_only';

/** The fields of a PEFT `LoraConfig` that decide what an adapter computes. */
export interface PeftLoraConfig {
  readonly peftType: 'LORA';
  /** Default rank; `rankPattern` overrides it per module. */
  readonly r: number;
  readonly loraAlpha: number;
  readonly loraDropout: number;
  /** scaling = lora_alpha / sqrt(r) instead of lora_alpha / r. */
  readonly useRslora: boolean;
  readonly useDora: boolean;
  /** Regular expression to rank; the first one that matches the end of a module's name applies. */
  readonly rankPattern: ReadonlyMap<string, number>;
  readonly alphaPattern: ReadonlyMap<string, number>;
  /** Module names or ends of names, one regular expression, or `all-linear`. */
  readonly targetModules: readonly string[] | string | undefined;
  readonly excludeModules: readonly string[] | string | undefined;
  readonly layersToTransform: readonly number[] | undefined;
  readonly layersPattern: readonly string[] | undefined;
  /** Modules that were fully trained and are saved with the adapter. */
  readonly modulesToSave: readonly string[];
  readonly bias: PeftBias;
  /** The base weight is stored as [K, N]. */
  readonly fanInFanOut: boolean;
  /** lora_b has its own bias. */
  readonly loraBias: boolean;
  /** How PEFT would start a new adapter of this config: true, false or the name of a start. The tensors do not depend on it. */
  readonly initLoraWeights: string | boolean;
  /** As in the file; never opened or downloaded. */
  readonly baseModelNameOrPath: string | undefined;
  readonly revision: string | undefined;
  readonly taskType: string | undefined;
}

const kMaxRank = 2 ** 20;
const kMaxListed = 10_000;
const kMaxLayerIndex = 100_000;

/** Fields that name code to import. They are ignored with a warning. */
const kCodeFields = ['auto_mapping', 'megatron_config', 'tokenizer_kwargs', 'runtime_config'];

/** Features that change what an adapter computes and are not implemented. */
const kUnsupportedFeatures = [
  'alora_invocation_tokens',
  'arrow_config',
  'kasa_config',
  'layer_replication',
  'monteclora_config',
  'target_parameters',
  'trainable_token_indices',
  'use_bdlora',
  'use_qalora',
  'velora_config',
];

/** Initialisations that also change the base weight, which is not part of the adapter folder. */
const kResidualInits = ['pissa', 'olora', 'corda', 'loftq', 'lora_ga'];

/**
 * Reads and checks an `adapter_config.json`.
 *
 * @param path path of the file
 * @param warnings receives a sentence for everything that is ignored
 * @throws LowrankError `ERR_UNSUPPORTED` for another `peft_type`, or a feature that is not
 * implemented · `ERR_FILE` if malformed · `ERR_FILE_NOT_FOUND`
 */
export function readPeftConfig(op: string, path: string, warnings: string[]): PeftLoraConfig {
  const object = readJsonObject(op, path, jsonBounds.config);
  return parsePeftConfig(op, printable(path), object, warnings);
}

/** Checks a parsed `adapter_config.json`; see {@link readPeftConfig}. */
export function parsePeftConfig(
  op: string,
  what: string,
  object: JsonObject,
  warnings: string[],
): PeftLoraConfig {
  const fields = new Fields(op, what, object);
  requireLora(op, what, fields);
  reportIgnored(fields, warnings);
  return {
    peftType: 'LORA',
    r: fields.integer('r', 1, kMaxRank),
    loraAlpha: alpha(fields, 'lora_alpha'),
    loraDropout: fields.number('lora_dropout', 'in [0, 1)', (p) => p >= 0 && p < 1, 0),
    useRslora: fields.boolean('use_rslora', false),
    useDora: fields.boolean('use_dora', false),
    rankPattern: patternMap(fields, 'rank_pattern', (nested, key) =>
      nested.integer(key, 1, kMaxRank),
    ),
    alphaPattern: patternMap(fields, 'alpha_pattern', alpha),
    targetModules: modules(fields, 'target_modules', true),
    excludeModules: modules(fields, 'exclude_modules', false),
    layersToTransform: layerIndexes(fields),
    layersPattern: stringOrStrings(fields, 'layers_pattern'),
    modulesToSave: modulesToSave(fields),
    bias: bias(fields),
    fanInFanOut: fields.boolean('fan_in_fan_out', false),
    loraBias: fields.boolean('lora_bias', false),
    initLoraWeights: initOf(fields),
    baseModelNameOrPath: baseModel(fields),
    revision: fields.optionalString('revision'),
    taskType: fields.optionalString('task_type'),
  };
}

function requireLora(op: string, what: string, fields: Fields): void {
  if (fields.absent('peft_type')) fields.refuse('peft_type', '"LORA"');
  if (fields.string('peft_type') !== 'LORA') {
    fields.refuse('peft_type', '"LORA", the supported type', 'ERR_UNSUPPORTED');
  }
  for (const key of kUnsupportedFeatures) {
    const value = fields.raw(key);
    const unused =
      fields.absent(key) || value === false || (Array.isArray(value) && value.length === 0);
    if (unused) continue;
    const text = `${op}: ${what}: ${key} must be unset, got a feature that is not supported`;
    throw new LowrankError('ERR_UNSUPPORTED', text, { op });
  }
}

function reportIgnored(fields: Fields, warnings: string[]): void {
  for (const key of kCodeFields) {
    if (!fields.absent(key)) warnings.push(`${key} names code to import and was ignored`);
  }
  const core = fields.raw('megatron_core');
  if (core !== undefined && core !== null && core !== 'megatron.core') {
    warnings.push('megatron_core names code to import and was ignored');
  }
  const init = fields.raw('init_lora_weights');
  if (typeof init === 'string' && kResidualInits.some((name) => init.startsWith(name))) {
    warnings.push(
      `init_lora_weights is ${printable(init)}: the adapter fits the base weight that this ` +
        'initialisation left behind, not the original one, unless it was converted when saved',
    );
  }
}

function initOf(fields: Fields): string | boolean {
  const key = 'init_lora_weights';
  if (fields.absent(key)) return true;
  const value = fields.raw(key);
  if (typeof value === 'boolean') return value;
  return fields.string(key);
}

function alpha(fields: Fields, key: string): number {
  return fields.number(key, 'a finite number other than 0', (value) => value !== 0);
}

/** Keys in the order in which they are tried: that of the file, but bare integers first (because of JSON.parse). */
function patternMap(
  fields: Fields,
  key: string,
  read: (nested: Fields, key: string) => number,
): Map<string, number> {
  const object = fields.optionalObject(key) ?? {};
  const patterns = Object.keys(object);
  if (patterns.length > kMaxListed) fields.refuse(key, `at most ${kMaxListed} patterns`);
  const nested = fields.nested(key, object);
  return new Map(patterns.map((pattern) => [pattern, read(nested, pattern)]));
}

function modules(fields: Fields, key: string, required: boolean): string[] | string | undefined {
  if (fields.absent(key)) return undefined;
  const value = fields.raw(key);
  if (typeof value === 'string') {
    if (value.length === 0) fields.refuse(key, 'a list of names or one pattern');
    return value;
  }
  const names = fields.strings(key, kMaxListed);
  if (required && names.length === 0) fields.refuse(key, 'at least one module name');
  return names;
}

function stringOrStrings(fields: Fields, key: string): string[] | undefined {
  if (fields.absent(key)) return undefined;
  const value = fields.raw(key);
  if (typeof value === 'string') return value === '' ? undefined : [value];
  const list = fields.strings(key, kMaxListed);
  return list.length === 0 ? undefined : list;
}

function layerIndexes(fields: Fields): number[] | undefined {
  const key = 'layers_to_transform';
  if (fields.absent(key)) return undefined;
  const value = fields.raw(key);
  const list: unknown[] = Array.isArray(value) ? value : [value];
  for (const index of list) {
    const isIndex = typeof index === 'number' && Number.isInteger(index);
    if (!isIndex || index < 0 || index > kMaxLayerIndex) {
      return fields.refuse(key, 'a layer index or a list of them');
    }
  }
  return list.length === 0 ? undefined : (list as number[]);
}

function modulesToSave(fields: Fields): string[] {
  const key = 'modules_to_save';
  const names = fields.absent(key) ? [] : fields.strings(key, kMaxListed);
  for (const name of names) {
    if (!/^[\w-]+(\.[\w-]+)*$/.test(name)) {
      fields.refuse(key, `module names (letters, digits, "_", "-", "."), got ${printable(name)}`);
    }
  }
  return names;
}

function bias(fields: Fields): PeftBias {
  const value = fields.optionalString('bias') ?? 'none';
  if (value !== 'none' && value !== 'all' && value !== 'lora_only') {
    return fields.refuse('bias', '"none", "all" or "lora_only"');
  }
  return value;
}

/** Only a label here, but control characters would still reach a terminal or a later path. */
function baseModel(fields: Fields): string | undefined {
  const key = 'base_model_name_or_path';
  const name = fields.optionalString(key);
  if (name === undefined) return undefined;
  // biome-ignore lint/suspicious/noControlCharactersInRegex: refusing them is the point
  if (name.length > 4096 || /[\u0000-\u001f\u007f]/.test(name)) {
    return fields.refuse(key, 'a name without control characters');
  }
  if (/(^|[\\/])\.\.([\\/]|$)/.test(name)) {
    return fields.refuse(key, 'a name or path without ".." segments');
  }
  return name;
}
