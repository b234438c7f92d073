/** A PEFT LoRA adapter as the GGUF file that llama.cpp loads beside a model. */

import { fail, LowrankError, shown, wrongType } from '../../../core/errors.js';
import { printable } from '../../../core/printable.js';
import { checkObject } from '../../arguments.js';
import type { PeftAdapter, PeftModule } from '../../peft/peft.js';
import { bytesOf, checkRawTensor, type RawTensor, rawToFloat32 } from '../../raw-tensor.js';
import { GGUF_TYPES } from '../block-types.js';
import type { GgufTensor } from '../gguf.js';
import { hfToGguf } from '../names.js';
import { floatBytes } from '../quantize/floats.js';
import { quantizeToGguf } from '../quantize/quantize.js';
import type { GgufValue } from '../values.js';
import {
  adapterKeys,
  checkHeads,
  type GgufAdapterBase,
  kEmbeddingTensor,
  rowsOf,
  transposed,
} from './base.js';

const kOp = 'adapterToGguf';
const kTypes = ['F32', 'F16', 'BF16', 'Q8_0'] as const;

/** A type that llama.cpp reads factors in. */
export type GgufAdapterType = (typeof kTypes)[number];

/** Options of {@link adapterToGguf}. */
export interface AdapterToGgufOptions {
  /**
   * Default: as stored, and F32 for F64. Rows that blocks of Q8_0 do not divide, such as those of lora_b with a rank below 32, are
   * written as F16.
   */
  readonly type?: GgufAdapterType;
  /** `general.name`. */
  readonly name?: string;
}

/** What {@link writeGguf} takes, of an adapter. */
export interface GgufAdapterContent {
  readonly metadata: Map<string, GgufValue>;
  readonly tensors: Map<string, GgufTensor>;
}

const kMerge = 'Merge the adapter into its model, and convert the model';

/**
 * A PEFT LoRA adapter as the content of a GGUF file, with the layout of llama.cpp's `convert_lora_to_gguf.py`: each module of the
 * base has the tensors `<name>.lora_a` [r, K] and `<name>.lora_b` [N, r].
 *
 * - llama.cpp multiplies by `adapter.lora.alpha / r`. With rsLoRA, `lora_alpha · sqrt(r)` is written. Modules of different ranks
 *   are possible where one alpha fits all.
 * - Rows of lora_b of q and k of `llama` are permuted as those of the base.
 * - The factor lora_a of the embedding is transposed, [V, r].
 *
 * @param adapter as `readPeftAdapter(folder, { embeddings: true })` gives it
 * @param base the architecture, and for `llama` the heads
 * @throws `ERR_TYPE` · LowrankError `ERR_UNSUPPORTED` for what a GGUF adapter cannot say: DoRA, biases, modules saved in full,
 *   several alphas, a module that the architecture does not have · `ERR_VALUE`, `ERR_SHAPE` if the heads are missing or do not
 *   divide the rows · `ERR_DTYPE`
 * @example
 * const adapter = readPeftAdapter('./adapter', { embeddings: true });
 * const base = { architecture: 'llama', heads: 32, kvHeads: 8 };
 * writeGguf('adapter.gguf', adapterToGguf(adapter, base, { type: 'F16' }));
 */
export function adapterToGguf(
  adapter: PeftAdapter,
  base: GgufAdapterBase,
  options: AdapterToGgufOptions = {},
): GgufAdapterContent {
  checkArguments(adapter, base, options);
  refuseOthers(adapter);
  const alpha = alphaOf(adapter.modules);
  const tensors = new Map<string, GgufTensor>();
  for (const module of adapter.modules) addModule(tensors, module, base, options.type);
  const metadata = new Map<string, GgufValue>([
    [adapterKeys.architecture, { type: 'string', value: base.architecture }],
    [adapterKeys.type, { type: 'string', value: 'adapter' }],
    [adapterKeys.method, { type: 'string', value: 'lora' }],
  ]);
  if (options.name !== undefined) {
    metadata.set(adapterKeys.name, { type: 'string', value: options.name });
  }
  metadata.set(adapterKeys.alpha, { type: 'f32', value: alpha });
  metadata.set(adapterKeys.version, { type: 'u32', value: 2 });
  return { metadata, tensors };
}

function unsupported(text: string): never {
  throw new LowrankError('ERR_UNSUPPORTED', `${kOp}: ${text}`, { op: kOp });
}

function refuseOthers({ config, biases, savedParameters }: PeftAdapter): void {
  const refuse = (got: string): never =>
    unsupported(
      `the adapter must be plain LoRA, which is all that GGUF has, got ${got}. ${kMerge}`,
    );
  if (config.useDora) refuse('DoRA');
  if (config.loraBias) refuse('lora_bias');
  if (biases.size > 0) refuse(`trained biases (bias: ${config.bias})`);
  // PEFT saves the frozen weight of an embedding beside its adapter.
  const saved = [...savedParameters.keys()].find((name) => !name.endsWith('.base_layer.weight'));
  if (saved !== undefined) refuse(`parameter ${printable(saved)} saved in full`);
}

/** The one alpha of the file, from the scalings of all modules. */
function alphaOf(modules: readonly PeftModule[]): number {
  const alphas = modules.map(({ module, r, loraAlpha, rslora }) => ({
    module,
    alpha: Math.fround(loraAlpha * (rslora ? Math.sqrt(r) : 1)),
  }));
  const [first] = alphas;
  if (first === undefined) return fail('ERR_VALUE', kOp, 'modules', 'at least one', 'none');
  const other = alphas.find(({ alpha }) => alpha !== first.alpha);
  if (other !== undefined) {
    const [a, b] = [first, other].map(({ module, alpha }) => `${alpha} for ${printable(module)}`);
    const expected = 'scaling · rank must be the same for all modules, because GGUF has one alpha';
    unsupported(`${expected}, got ${a} and ${b}. ${kMerge}`);
  }
  if (first.alpha === 0 || !Number.isFinite(first.alpha)) {
    fail('ERR_VALUE', kOp, 'alpha', 'a number other than 0 that f32 holds', `${first.alpha}`);
  }
  return first.alpha;
}

function addModule(
  tensors: Map<string, GgufTensor>,
  { module, loraA, loraB, embedding, r }: PeftModule,
  base: GgufAdapterBase,
  type: GgufAdapterType | undefined,
): void {
  const name = printable(module);
  const place = hfToGguf(base.architecture, `${module}.weight`) ?? { name: '' };
  if (place.name === '' || place.name.endsWith('_norm.weight')) {
    const expected = `a module must be a linear layer or the embedding of ${base.architecture}`;
    unsupported(`${expected}, such as "model.layers.0.self_attn.q_proj", got ${name}`);
  }
  if (place.name === 'output.weight' && base.tied === true) {
    unsupported(`a module must be in the GGUF file of the base, got ${name}, a tied embedding`);
  }
  if ((place.name === kEmbeddingTensor) !== (embedding === true)) {
    const got = embedding === true ? 'those of an embedding' : 'those of a linear layer';
    unsupported(`factors must be of the kind of layer that ${name} is, got ${got}`);
  }
  const { dtype, data } = loraA;
  const V = loraA.shape[1] as number;
  const a =
    embedding === true ? { dtype, shape: [V, r], data: transposed(bytesOf(data), r, V) } : loraA;
  tensors.set(`${place.name}.lora_a`, typed(a, type));
  const b = typed(loraB, type);
  const rows = loraB.shape[0] as number;
  const permutation = { permuted: place.permuted, base, to: 'gguf' as const };
  tensors.set(`${place.name}.lora_b`, { ...b, data: rowsOf(kOp, name, b.data, rows, permutation) });
}

/** A factor in a type of GGUF. */
function typed(tensor: RawTensor, type: GgufAdapterType | undefined): GgufTensor {
  const { dtype, data } = tensor;
  const shape = [...tensor.shape];
  const stored = dtype === 'F64' ? 'F32' : (dtype as GgufAdapterType);
  const divides = (shape.at(-1) as number) % GGUF_TYPES.Q8_0.elements === 0;
  const target = type === 'Q8_0' && !divides ? 'F16' : (type ?? stored);
  if (target === dtype) return { type: target, shape, data: bytesOf(data).slice() };
  const values = rawToFloat32(tensor);
  if (target === 'Q8_0') return quantizeToGguf(values, shape, target);
  return { type: target, shape, data: floatBytes(kOp, 'factors', target, values) };
}

function checkArguments(adapter: unknown, base: unknown, options: unknown): void {
  checkObject(kOp, 'adapter', adapter, 'an adapter that readPeftAdapter read');
  const { config, modules, biases, savedParameters } = adapter as PeftAdapter;
  checkObject(kOp, 'adapter.config', config);
  for (const [name, map] of Object.entries({ biases, savedParameters })) {
    if (!((map as unknown) instanceof Map)) throw wrongType(kOp, `adapter.${name}`, 'a Map', map);
  }
  if (!Array.isArray(modules)) throw wrongType(kOp, 'adapter.modules', 'an array', modules);
  for (const [i, each] of modules.entries()) checkModule(`adapter.modules[${i}]`, each);
  checkHeads(kOp, base);
  const { architecture, tied } = base as GgufAdapterBase;
  if (typeof (architecture as unknown) !== 'string') {
    throw wrongType(kOp, 'base.architecture', 'a string', architecture);
  }
  if (tied !== undefined && typeof (tied as unknown) !== 'boolean') {
    throw wrongType(kOp, 'base.tied', 'a boolean', tied);
  }
  checkObject(kOp, 'options', options);
  const { type, name } = options as AdapterToGgufOptions;
  if (type !== undefined && !kTypes.includes(type)) {
    fail('ERR_DTYPE', kOp, 'type', `one of ${kTypes.join(', ')}`, shown(type));
  }
  if (name !== undefined && typeof (name as unknown) !== 'string') {
    throw wrongType(kOp, 'name', 'a string', name);
  }
}

function checkModule(operand: string, module: unknown): void {
  checkObject(kOp, operand, module);
  const { module: name, r, loraAlpha, loraA, loraB } = module as PeftModule;
  if (typeof (name as unknown) !== 'string') {
    throw wrongType(kOp, `${operand}.module`, 'a string', name);
  }
  for (const [field, value] of Object.entries({ r, loraAlpha })) {
    if (typeof (value as unknown) !== 'number') {
      throw wrongType(kOp, `${operand}.${field}`, 'a number', value);
    }
  }
  for (const [field, tensor] of Object.entries({ loraA, loraB })) {
    checkRawTensor(kOp, `${operand}.${field}`, tensor);
    const { dtype, shape } = tensor;
    if (!['F32', 'F16', 'BF16', 'F64'].includes(dtype)) {
      fail('ERR_DTYPE', kOp, `${operand}.${field}`, 'F32, F16, BF16 or F64', dtype);
    }
    const rank = field === 'loraA' ? shape[0] : shape[1];
    if (shape.length === 2 && rank === r && !shape.includes(0)) continue;
    const expected = field === 'loraA' ? `[${r}, K]` : `[N, ${r}]`;
    fail('ERR_SHAPE', kOp, `${operand}.${field}`, expected, `[${shape.join(', ')}]`);
  }
}
