/**
 * Writes a PEFT adapter folder that PEFT's `PeftModel.from_pretrained` loads.
 */

import { fail, LowrankError, wrongType } from '../../core/errors.js';
import { printable } from '../../core/printable.js';
import { checkMap, checkName, checkObject, checkPath } from '../arguments.js';
import { replaceFolder } from '../files/atomic-write.js';
import { jsonBounds } from '../files/json-bounds.js';
import { parseJsonObject } from '../files/json-file.js';
import { PythonFloat, type PythonJson, pythonJson } from '../python-json.js';
import { checkRawTensor, kFloatDTypes, type RawTensor } from '../raw-tensor.js';
import { encodeSafetensors } from '../safetensors.js';
import {
  kConfigFile,
  kKeyPrefix,
  kWeightsFile,
  type PeftLoraConfig,
  parsePeftConfig,
} from './peft-config.js';
import { PeftTargets } from './peft-targets.js';

/** An adapter to write; the parts of a `PeftAdapter` that the files hold. */
export interface PeftAdapterParts {
  /** At least `r`, `loraAlpha` and `targetModules`; the others have PEFT's defaults. */
  readonly config: Partial<PeftLoraConfig> &
    Pick<PeftLoraConfig, 'r' | 'loraAlpha' | 'targetModules'>;
  readonly modules: readonly {
    readonly module: string;
    readonly loraA: RawTensor; // [r, K]
    readonly loraB: RawTensor; // [N, r]
    readonly magnitude?: RawTensor; // [N]
    readonly loraBias?: RawTensor; // [N]
    /** The module is an embedding of V rows of D features: loraA is [r, V], loraB [D, r]. */
    readonly embedding?: boolean;
  }[];
  readonly biases?: ReadonlyMap<string, RawTensor>;
  readonly savedParameters?: ReadonlyMap<string, RawTensor>;
  /** Further files for the folder, such as a README.md or the state of a trainer. */
  readonly extraFiles?: ReadonlyMap<string, Uint8Array>;
}

const kOp = 'writePeftAdapter';
/** The PEFT release whose config fields are written. */
const kLayoutVersion = '0.20.0';

/**
 * Writes an adapter folder atomically: it appears complete under its name, or the previous folder
 * stays.
 *
 * An existing folder is replaced if it is empty or an adapter folder. Other files in it are kept.
 *
 * @param folder the target; parent folders are created
 * @param adapter config and tensors; each module's rank must be the one that the config gives it
 * @throws `ERR_TYPE` · LowrankError `ERR_SHAPE` if tensors do not fit each other or the config · `ERR_DTYPE` ·
 * `ERR_VALUE` · `ERR_PATH` if the folder exists and is not an adapter folder · `ERR_DISK_FULL`
 * @example
 * writePeftAdapter('./adapter', {
 *   config: { r: 8, loraAlpha: 16, targetModules: ['q_proj'], taskType: 'CAUSAL_LM' },
 *   modules: [{ module: 'model.layers.0.self_attn.q_proj', loraA, loraB }],
 * });
 */
export function writePeftAdapter(folder: string, adapter: PeftAdapterParts): void {
  checkParts(folder, adapter);
  const bytes = new TextEncoder().encode(configJson(adapter.config));
  const config = checkedConfig(bytes);
  const tensors = adapterTensors(adapter, config);
  const files = new Map<string, Uint8Array>(adapter.extraFiles);
  for (const name of files.keys()) {
    if (name.includes('/') || name.includes('\\') || name === '.' || name === '..') {
      fail('ERR_VALUE', kOp, 'a name in extraFiles', 'a plain file name', printable(name));
    }
  }
  files.set(kWeightsFile, encodeSafetensors(tensors, { format: 'pt' }));
  files.set(kConfigFile, bytes);
  replaceFolder(kOp, folder, files, { marker: kConfigFile });
}

/**
 * Checks the JavaScript types of everything that is split up below. The rest is checked where it is
 * used. @throws ERR_TYPE
 */
function checkParts(folder: unknown, adapter: PeftAdapterParts): void {
  checkPath(kOp, 'folder', folder);
  checkObject(kOp, 'adapter', adapter, 'an object of config and modules');
  const { config, modules, biases, savedParameters, extraFiles } = adapter;
  checkObject(kOp, 'config', config, 'an object of r, loraAlpha, targetModules and more');
  for (const name of ['r', 'loraAlpha', 'loraDropout'] as const) {
    const value = config[name];
    if (typeof value === 'number' || (name === 'loraDropout' && value === undefined)) continue;
    throw wrongType(kOp, `config.${name}`, 'a number', value);
  }
  const { targetModules, excludeModules, layersPattern, layersToTransform, modulesToSave } = config;
  const lists = { layersPattern, layersToTransform, modulesToSave };
  const names = { targetModules, excludeModules };
  for (const [name, value] of Object.entries({ ...lists, ...names })) {
    if (value === undefined || Array.isArray(value)) continue;
    if (name in names && typeof value === 'string') continue;
    throw wrongType(
      kOp,
      `config.${name}`,
      name in names ? 'names or a pattern' : 'an array',
      value,
    );
  }
  for (const [name, list] of Object.entries({ ...lists, ...names })) {
    if (!Array.isArray(list)) continue;
    const index = name === 'layersToTransform';
    for (const [i, each] of list.entries()) {
      if (typeof each === (index ? 'number' : 'string')) continue;
      throw wrongType(kOp, `config.${name}[${i}]`, index ? 'a number' : 'a string', each);
    }
  }
  const { bias, baseModelNameOrPath, revision, taskType } = config;
  for (const [name, text] of Object.entries({ bias, baseModelNameOrPath, revision, taskType })) {
    if (text === undefined || text === null || typeof text === 'string') continue;
    throw wrongType(kOp, `config.${name}`, 'a string', text);
  }
  const { useRslora, useDora, fanInFanOut, loraBias } = config;
  for (const [name, flag] of Object.entries({ useRslora, useDora, fanInFanOut, loraBias })) {
    if (flag === undefined || flag === null || typeof flag === 'boolean') continue;
    throw wrongType(kOp, `config.${name}`, 'a boolean', flag);
  }
  const init: unknown = config.initLoraWeights;
  if (init !== undefined && typeof init !== 'boolean' && typeof init !== 'string') {
    throw wrongType(kOp, 'config.initLoraWeights', 'a boolean or a string', init);
  }
  const { alphaPattern, rankPattern } = config;
  const maps = { 'config.alphaPattern': alphaPattern, 'config.rankPattern': rankPattern };
  for (const [name, value] of Object.entries({ ...maps, biases, savedParameters, extraFiles })) {
    if (value === undefined) continue;
    checkMap(kOp, name, value);
    for (const key of value.keys()) checkName(kOp, `a name in ${name}`, key);
  }
  for (const [name, bytes] of extraFiles ?? []) {
    if (!(bytes instanceof Uint8Array)) {
      throw wrongType(kOp, `extraFiles of ${printable(name)}`, 'a Uint8Array', bytes);
    }
  }
  if (!Array.isArray(modules)) {
    throw wrongType(kOp, 'modules', 'an array of { module, loraA, loraB }', modules);
  }
  for (const [i, each] of modules.entries()) {
    checkObject(kOp, `modules[${i}]`, each, 'an object of module, loraA and loraB');
    const { module, loraA, loraB, magnitude, loraBias, embedding } =
      each as PeftAdapterParts['modules'][number];
    checkName(kOp, `modules[${i}].module`, module);
    if (embedding !== undefined && typeof embedding !== 'boolean') {
      throw wrongType(kOp, `modules[${i}].embedding`, 'a boolean', embedding);
    }
    checkRawTensor(kOp, `loraA of ${printable(module)}`, loraA);
    checkRawTensor(kOp, `loraB of ${printable(module)}`, loraB);
    for (const [name, tensor] of Object.entries({ magnitude, loraBias })) {
      if (tensor !== undefined) checkRawTensor(kOp, `${name} of ${printable(module)}`, tensor);
    }
  }
}

/** Runs the reader's own checks, so that everything written can be read back. */
function checkedConfig(bytes: Uint8Array): PeftLoraConfig {
  try {
    return parsePeftConfig(
      kOp,
      'config',
      parseJsonObject(kOp, 'config', bytes, jsonBounds.config),
      [],
    );
  } catch (error) {
    if (!(error instanceof LowrankError) || error.code !== 'ERR_FILE') throw error;
    throw new LowrankError('ERR_VALUE', error.message, { op: kOp, cause: error });
  }
}

function adapterTensors(adapter: PeftAdapterParts, config: PeftLoraConfig): Map<string, RawTensor> {
  const targets = new PeftTargets(kOp, config);
  const tensors = new Map<string, RawTensor>();
  const put = (name: string, tensor: RawTensor) => {
    const key = kKeyPrefix + name;
    checkRawTensor(kOp, printable(key), tensor);
    if (tensors.has(key)) fail('ERR_VALUE', kOp, 'modules', 'distinct', `${printable(key)} twice`);
    tensors.set(key, tensor);
  };
  if (adapter.modules.length === 0) fail('ERR_VALUE', kOp, 'modules', 'at least one', 'none');
  for (const { module, loraA, loraB, magnitude, loraBias, embedding } of adapter.modules) {
    const name = printable(module);
    if (!targets.adapts(module)) {
      fail('ERR_VALUE', kOp, 'module', 'one that config.targetModules covers', name);
    }
    for (const [part, tensor] of Object.entries({ loraA, loraB, magnitude, loraBias })) {
      requireFloats(`${part} of ${name}`, tensor, loraA);
    }
    const { r } = targets.scalingOf(module);
    const [N = -1] = loraB.shape;
    const fits = loraA.shape.length === 2 && loraB.shape.length === 2;
    if (!fits || loraA.shape[0] !== r || loraB.shape[1] !== r) {
      const got = `[${loraA.shape.join(', ')}] and [${loraB.shape.join(', ')}]`;
      fail('ERR_SHAPE', kOp, `loraA and loraB of ${name}`, `[${r}, K] and [N, ${r}]`, got);
    }
    put(`${module}.${embedding === true ? 'lora_embedding_A' : 'lora_A.weight'}`, loraA);
    put(`${module}.${embedding === true ? 'lora_embedding_B' : 'lora_B.weight'}`, loraB);
    requireVector(config.useDora, `magnitude of ${name}`, 'useDora', magnitude, N);
    requireVector(config.loraBias, `loraBias of ${name}`, 'loraBias', loraBias, N);
    if (magnitude !== undefined) put(`${module}.lora_magnitude_vector`, magnitude);
    if (loraBias !== undefined) put(`${module}.lora_B.bias`, loraBias);
  }
  for (const [module, tensor] of adapter.biases ?? []) {
    if (config.bias === 'none') fail('ERR_VALUE', kOp, 'biases', 'empty with bias "none"', 'some');
    // PEFT wraps a targeted layer, so the layer's own bias moves one level down.
    put(targets.adapts(module) ? `${module}.base_layer.bias` : `${module}.bias`, tensor);
  }
  for (const [name, tensor] of adapter.savedParameters ?? []) put(name, tensor);
  return tensors;
}

/** The reader's rule: factors are floating point, and those of a module have one dtype. */
function requireFloats(operand: string, tensor: RawTensor | undefined, loraA: RawTensor): void {
  if (tensor === undefined) return;
  if (!kFloatDTypes.includes(tensor.dtype)) {
    fail('ERR_DTYPE', kOp, operand, `of ${kFloatDTypes.join(', ')}`, tensor.dtype);
  }
  if (tensor.dtype === loraA.dtype) return;
  fail('ERR_DTYPE', kOp, operand, `${loraA.dtype}, as loraA`, tensor.dtype);
}

function requireVector(
  wanted: boolean,
  operand: string,
  flag: string,
  tensor: RawTensor | undefined,
  N: number,
): void {
  if (wanted !== (tensor !== undefined)) {
    const got = tensor === undefined ? 'none' : 'one';
    fail('ERR_VALUE', kOp, operand, `present exactly if config.${flag} is true`, got);
  }
  if (tensor !== undefined && (tensor.shape.length !== 1 || tensor.shape[0] !== N)) {
    fail('ERR_SHAPE', kOp, operand, `[${N}]`, `[${tensor.shape.join(', ')}]`);
  }
}

/** The config as PEFT writes it: every field, sorted by name, indented by two spaces. */
function configJson(config: PeftAdapterParts['config']): string {
  const numbers = (map: ReadonlyMap<string, number> | undefined): PythonJson => new Map(map ?? []);
  const names = (value: readonly string[] | string | undefined): PythonJson =>
    value === undefined || typeof value === 'string' ? (value ?? null) : [...value].sort();
  const savedModules = config.modulesToSave ?? [];
  const layersPattern = config.layersPattern ?? [];
  const fields: Record<string, PythonJson> = {
    alora_invocation_tokens: null,
    alpha_pattern: numbers(config.alphaPattern),
    arrow_config: null,
    auto_mapping: null,
    base_model_name_or_path: config.baseModelNameOrPath ?? null,
    bias: config.bias ?? 'none',
    corda_config: null,
    ensure_weight_tying: false,
    eva_config: null,
    exclude_modules: names(config.excludeModules),
    fan_in_fan_out: config.fanInFanOut ?? false,
    inference_mode: true,
    init_lora_weights: config.initLoraWeights ?? true,
    kasa_config: null,
    layer_replication: null,
    layers_pattern:
      layersPattern.length === 1 ? (layersPattern[0] as string) : orNull(layersPattern),
    layers_to_transform: orNull(config.layersToTransform ?? []),
    loftq_config: new Map(),
    lora_alpha: config.loraAlpha,
    lora_bias: config.loraBias ?? false,
    lora_dropout: new PythonFloat(config.loraDropout ?? 0),
    lora_ga_config: null,
    megatron_config: null,
    megatron_core: 'megatron.core',
    modules_to_save: orNull(savedModules),
    monteclora_config: null,
    peft_type: 'LORA',
    peft_version: kLayoutVersion,
    qalora_group_size: 16,
    r: config.r,
    rank_pattern: numbers(config.rankPattern),
    revision: config.revision ?? null,
    target_modules: names(config.targetModules),
    target_parameters: null,
    task_type: config.taskType ?? null,
    trainable_token_indices: null,
    use_bdlora: null,
    use_dora: config.useDora ?? false,
    use_qalora: false,
    use_rslora: config.useRslora ?? false,
    velora_config: null,
  };
  return pythonJson(new Map(Object.entries(fields)), 2);
}

function orNull(list: readonly (string | number)[]): PythonJson {
  return list.length === 0 ? null : list;
}
