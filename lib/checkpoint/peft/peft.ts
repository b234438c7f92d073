/**
 * PEFT adapter folders: `adapter_config.json` with `adapter_model.safetensors`.
 *
 * Tensor names in the file, after the prefix `base_model.model.`:
 *
 *   <module>.lora_A.weight [r, K] · <module>.lora_B.weight [N, r] · <module>.lora_B.bias [N]
 *   <module>.lora_embedding_A [r, V] · <module>.lora_embedding_B [D, r] (an embedding of V rows of D features)
 *   <module>.lora_magnitude_vector [N] (DoRA) · <module>.base_layer.bias or <module>.bias (bias: all,
 *   lora_only) · <parameter> of a module saved in full
 */

import fs from 'node:fs';
import path from 'node:path';
import { LowrankError, wrongType } from '../../core/errors.js';
import { printable } from '../../core/printable.js';
import { checkPath } from '../arguments.js';
import { pickleRefused } from '../pickle-refusal.js';
import { kFloatDTypes, type RawTensor } from '../raw-tensor.js';
import { readSafetensors } from '../safetensors.js';
import type { HeaderLimits } from '../safetensors-header.js';
import { checkLimits } from '../safetensors-header.js';
import {
  kConfigFile,
  kKeyPrefix,
  kWeightsFile,
  type PeftLoraConfig,
  readPeftConfig,
} from './peft-config.js';
import { PeftTargets } from './peft-targets.js';

export type { PeftBias, PeftLoraConfig } from './peft-config.js';
export { type PeftAdapterParts, writePeftAdapter } from './peft-write.js';

/** The adapter of one linear module. */
export interface PeftModule {
  /** Name in the base model, e.g. `model.layers.0.self_attn.q_proj`. */
  readonly module: string;
  readonly r: number;
  readonly loraAlpha: number;
  /** lora_alpha / r, or lora_alpha / sqrt(r) with rsLoRA. */
  readonly scaling: number;
  readonly rslora: boolean;
  readonly loraA: RawTensor; // [r, K]
  readonly loraB: RawTensor; // [N, r]
  readonly magnitude?: RawTensor; // [N]
  readonly loraBias?: RawTensor; // [N]
  /** The module is an embedding of V rows of D features: loraA is [r, V], loraB [D, r]. */
  readonly embedding?: true;
}

/** An adapter folder in memory. */
export interface PeftAdapter {
  readonly config: PeftLoraConfig;
  /** Sorted by name. */
  readonly modules: readonly PeftModule[];
  /** Trained biases of the base model (bias: `all`, `lora_only`), by module name. */
  readonly biases: ReadonlyMap<string, RawTensor>;
  /** Parameters of modules saved in full (`modules_to_save`, embeddings), by parameter name. */
  readonly savedParameters: ReadonlyMap<string, RawTensor>;
  /** Sentences about everything that was ignored. */
  readonly warnings: readonly string[];
}

/** Options of {@link readPeftAdapter}. */
export interface ReadPeftOptions extends HeaderLimits {
  /** The shape [N, K] of a module's base weight, or `undefined` if the base has no such module. */
  readonly baseShape?: (module: string) => readonly number[] | undefined;
  /** Reads adapters of embeddings too. By default they are refused. */
  readonly embeddings?: boolean;
}

const kOp = 'readPeftAdapter';
const kMaxSegments = 64;

/**
 * Reads a LoRA adapter folder as PEFT writes it.
 *
 * Rank, alpha and scaling of a module follow PEFT: `rank_pattern` and `alpha_pattern` are regular
 * expressions that must match the end of the module's name from a dot on. The first match applies.
 *
 * @param folder the adapter folder
 * @param options the base model's shapes, to check the adapter against
 * @returns config, modules, biases, fully saved parameters
 * @throws `ERR_TYPE` · LowrankError `ERR_FILE` if malformed or inconsistent · `ERR_FILE_NOT_FOUND`
 * · `ERR_UNSUPPORTED` for another adapter type or feature · `ERR_SHAPE` if it does not fit the base
 * · `ERR_PICKLE_REFUSED` if there is only `adapter_model.bin` · `ERR_FILE_CHANGED` · `ERR_PATH`
 * @example
 * for (const { module, scaling } of readPeftAdapter('./adapter').modules) console.log(module, scaling);
 */
export function readPeftAdapter(folder: string, options: ReadPeftOptions = {}): PeftAdapter {
  checkPath(kOp, 'folder', folder);
  checkLimits(kOp, options);
  const { baseShape, embeddings } = options as ReadPeftOptions;
  if (baseShape !== undefined && typeof baseShape !== 'function') {
    throw wrongType(kOp, 'baseShape', 'a function', baseShape);
  }
  if (embeddings !== undefined && typeof embeddings !== 'boolean') {
    throw wrongType(kOp, 'embeddings', 'a boolean', embeddings);
  }
  requireFiles(folder);
  const warnings: string[] = [];
  const config = readPeftConfig(kOp, path.join(folder, kConfigFile), warnings);
  const { tensors } = readSafetensors(path.join(folder, kWeightsFile), options);
  const targets = new PeftTargets(kOp, config);
  const roles = embeddings === true ? [...kRoles, ...kEmbeddingRoles] : kRoles;
  const sorted = sortTensors(folder, tensors, config, targets, roles, warnings);
  const modules: PeftModule[] = [];
  for (const [module, parts] of [...sorted.modules].sort(([a], [b]) => (a < b ? -1 : 1))) {
    if (!targets.adapts(module)) {
      // PEFT builds the layers from the config and drops tensors that fit none of them.
      warnings.push(`tensors of ${printable(module)} were ignored: the config does not target it`);
      continue;
    }
    const expected = targets.scalingOf(module);
    modules.push(checkedModule(folder, module, parts, expected, config, options));
  }
  if (modules.length === 0) {
    malformed(folder, 'must hold the LoRA tensors of at least one targeted module, got none');
  }
  const { biases, savedParameters } = sorted;
  return { config, modules, biases, savedParameters, warnings };
}

function requireFiles(folder: string): void {
  const missing = (text: string): never => {
    throw new LowrankError('ERR_FILE_NOT_FOUND', `${kOp}: ${printable(folder)} ${text}`, {
      op: kOp,
    });
  };
  if (!fs.existsSync(folder)) missing('must be an adapter folder, got nothing there');
  if (!fs.existsSync(path.join(folder, kConfigFile))) {
    missing(
      `must hold ${kConfigFile}, got none. Give the folder that PEFT's save_pretrained wrote.`,
    );
  }
  if (!fs.existsSync(path.join(folder, kWeightsFile))) {
    const pickle = path.join(folder, 'adapter_model.bin');
    if (fs.existsSync(pickle)) throw pickleRefused(kOp, pickle, 'the only weights in the folder');
    missing(`must hold ${kWeightsFile}, got none`);
  }
}

/** The tensors of one module, by their role. */
interface ModuleParts {
  loraA?: RawTensor;
  loraB?: RawTensor;
  magnitude?: RawTensor;
  loraBias?: RawTensor;
  embedding?: boolean;
}

type Roles = readonly (readonly [RegExp, 'loraA' | 'loraB' | 'magnitude' | 'loraBias'])[];

/** Ending of a tensor name, and its role; `.default` is the adapter name that some tools leave in. */
const kRoles: Roles = [
  [/\.lora_A(?:\.default)?\.weight$/, 'loraA'],
  [/\.lora_B(?:\.default)?\.weight$/, 'loraB'],
  [/\.lora_B(?:\.default)?\.bias$/, 'loraBias'],
  [/\.lora_magnitude_vector(?:\.default)?(?:\.weight)?$/, 'magnitude'],
];

const kEmbeddingRoles: Roles = [
  [/\.lora_embedding_A(?:\.default)?$/, 'loraA'],
  [/\.lora_embedding_B(?:\.default)?$/, 'loraB'],
];

interface SortedTensors {
  readonly modules: Map<string, ModuleParts>;
  readonly biases: Map<string, RawTensor>;
  readonly savedParameters: Map<string, RawTensor>;
}

/** Splits names into module and role, and rejects two names with the same meaning. */
function sortTensors(
  folder: string,
  tensors: ReadonlyMap<string, RawTensor>,
  config: PeftLoraConfig,
  targets: PeftTargets,
  roles: Roles,
  warnings: string[],
): SortedTensors {
  const modules = new Map<string, ModuleParts>();
  const biases = new Map<string, RawTensor>();
  const savedParameters = new Map<string, RawTensor>();
  const put = (map: Map<string, RawTensor>, name: string, tensor: RawTensor) => {
    if (map.has(name)) malformed(folder, `${printable(name)} must occur once, got two spellings`);
    map.set(name, tensor);
  };
  for (const [key, tensor] of tensors) {
    if (!key.startsWith(kKeyPrefix)) {
      malformed(folder, `tensor names must begin with "${kKeyPrefix}", got ${printable(key)}`);
    }
    const name = key.slice(kKeyPrefix.length);
    if (name.split('.').length > kMaxSegments) {
      malformed(folder, `tensor ${printable(key)} must have at most ${kMaxSegments} name segments`);
    }
    const saved = targets.savesInFull(name);
    const role = roles.find(([ending]) => ending.test(name));
    if (role !== undefined) {
      const module = name.replace(role[0], '');
      const parts = modules.get(module) ?? {};
      modules.set(module, parts);
      if (parts[role[1]] !== undefined) {
        malformed(folder, `${role[1]} of ${printable(module)} must occur once, got two spellings`);
      }
      parts[role[1]] = tensor;
      if (role[1] !== 'loraA' && role[1] !== 'loraB') continue;
      const embedding = kEmbeddingRoles.includes(role);
      if (embedding !== (parts.embedding ?? embedding)) {
        malformed(folder, `${printable(module)} must be a linear layer or an embedding, got both`);
      }
      parts.embedding = embedding;
    } else if (/\.lora_embedding_[AB]/.test(name)) {
      const text = `${kOp}: ${printable(folder)}: ${printable(name)} adapts an embedding`;
      const supported = `${text}, supported are adapters of linear layers`;
      throw new LowrankError('ERR_UNSUPPORTED', supported, { op: kOp });
    } else if (/\.lora_/.test(name)) {
      malformed(folder, `tensor ${printable(key)} must be a known LoRA part`);
    } else if (name.endsWith('.bias') && config.bias !== 'none' && !saved) {
      put(biases, name.replace(/(\.base_layer)?\.bias$/, ''), tensor);
    } else if (saved || /(embed|lm_head|wte|shared)/.test(name)) {
      // PEFT adds embeddings itself if the vocabulary was resized.
      put(savedParameters, name.replace('.modules_to_save.default.', '.'), tensor);
    } else {
      warnings.push(`tensor ${printable(key)} was ignored: it does not belong to a LoRA adapter`);
    }
  }
  return { modules, biases, savedParameters };
}

/** Requires that a module's tensors fit each other, the config and the base. */
function checkedModule(
  folder: string,
  module: string,
  parts: ModuleParts,
  expected: { readonly r: number; readonly loraAlpha: number; readonly scaling: number },
  config: PeftLoraConfig,
  options: ReadPeftOptions,
): PeftModule {
  const refuse = (what: string) => malformed(folder, `${printable(module)}: ${what}`);
  const { loraA, loraB, magnitude, loraBias, embedding } = parts;
  if (loraA === undefined) return refuse('lora_A must be present, got only other parts');
  if (loraB === undefined) return refuse('lora_B must be present, got only other parts');
  if (config.useDora !== (magnitude !== undefined)) {
    const got = magnitude === undefined ? 'none' : 'one';
    refuse(`lora_magnitude_vector must be present exactly if use_dora is true, got ${got}`);
  }
  if (config.loraBias !== (loraBias !== undefined)) {
    const got = loraBias === undefined ? 'none' : 'one';
    refuse(`lora_B.bias must be present exactly if lora_bias is true, got ${got}`);
  }
  if (loraA.shape.length !== 2 || loraB.shape.length !== 2) {
    const text = `${kOp}: ${printable(folder)}: ${printable(module)} must be a linear layer`;
    const got = `lora_A [${loraA.shape.join(', ')}], lora_B [${loraB.shape.join(', ')}]`;
    throw new LowrankError('ERR_UNSUPPORTED', `${text}, got ${got}`, { op: kOp });
  }
  const [r = 0, K = 0] = loraA.shape;
  const [N = 0, rOfB = 0] = loraB.shape;
  if (r !== expected.r || rOfB !== expected.r) {
    refuse(`rank must be ${expected.r} as the config says, got lora_A ${r}, lora_B ${rOfB}`);
  }
  for (const tensor of [loraA, loraB, magnitude, loraBias]) {
    if (tensor === undefined) continue;
    if (!kFloatDTypes.includes(tensor.dtype)) refuse(`dtype must be floating, got ${tensor.dtype}`);
    if (tensor.dtype !== loraA.dtype) {
      refuse(`dtypes must be equal, got ${loraA.dtype} and ${tensor.dtype}`);
    }
  }
  for (const [name, tensor] of [
    ['lora_magnitude_vector', magnitude],
    ['lora_B.bias', loraBias],
  ] as const) {
    if (tensor !== undefined && (tensor.shape.length !== 1 || tensor.shape[0] !== N)) {
      refuse(`${name} must be [${N}], got [${tensor.shape.join(', ')}]`);
    }
  }
  if (options.baseShape !== undefined) {
    const base = options.baseShape(module);
    const wanted = embedding === true ? [K, N] : [N, K];
    if (base === undefined || base.length !== 2 || base.some((dim, i) => dim !== wanted[i])) {
      const has = base === undefined ? 'no such module' : `[${base.join(', ')}]`;
      const shape = wanted.join(', ');
      const text = `${kOp}: ${printable(module)} must be a base weight of [${shape}], got ${has}`;
      throw new LowrankError('ERR_SHAPE', text, { op: kOp });
    }
  }
  return {
    module,
    ...expected,
    rslora: config.useRslora,
    loraA,
    loraB,
    ...(magnitude === undefined ? {} : { magnitude }),
    ...(loraBias === undefined ? {} : { loraBias }),
    ...(embedding === true ? { embedding } : {}),
  };
}

function malformed(folder: string, what: string): never {
  throw new LowrankError('ERR_FILE', `${kOp}: ${printable(folder)}: ${what}`, { op: kOp });
}
