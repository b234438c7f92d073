/** Starts of adapters as definitions: initial factors, and the base that they leave, from what is known of a layer. */

import type { Adapter } from '../../adapters/definition/adapter.js';
import type { Device } from '../../core/device.js';
import { fail, wrongType } from '../../core/errors.js';
import type { Tensor } from '../../core/tensor.js';
import { ownFields } from '../../core/validate.js';
import type { Decoder } from '../../model/decoder.js';
import type { BaseWeight } from '../../ops/base-weight.js';
import type { CalibrationData } from './calibration-data.js';

/** What a start has to know of a layer beside its weight. */
export type StartSource = 'weight' | 'inputs' | 'gradient' | 'quantised' | 'model';

/** Sums over the rows x of a layer's inputs, in float64. */
export interface LayerInputs {
  /** [K, K] Σ xᵀx, row by row. */
  readonly gram: Float64Array;
  /** [K] Σ x */
  readonly sum: Float64Array;
  /** Number of rows. */
  readonly rows: number;
  /** Number of batches that the rows came in. */
  readonly batches: number;
  /** The largest entry. */
  readonly peak: number;
}

/** What is known of a layer. */
export interface StartLayer {
  /** Name in the model. */
  readonly module: string;
  /** Output features. */
  readonly N: number;
  /** Input features. */
  readonly K: number;
  readonly device: Device;
  /** [N, K] f32, before it is quantised. */
  readonly w: Tensor;
  /** With `from: 'inputs'`. */
  readonly inputs?: LayerInputs;
  /** [N, K] f32, with `from: 'gradient'`: the mean over the batches of the gradient of the loss by w. */
  readonly dw?: Tensor;
  /** A weight [N, K] as the run stores this layer: quantised in its format, or in the dtype of the file. May be called often. */
  quantise(w: Tensor): BaseWeight;
}

/** A model whose layers are started together. */
export interface StartModel {
  /** Those that are started, in the order of the forward pass. */
  readonly layers: readonly StartLayer[];
  /** Its linear layers as the files have them, dense. */
  readonly dense: Decoder;
  /** As the run stores it. */
  readonly stored: Decoder;
  /** New adapters of the layers by module, as without a start; those that are not returned as factors are freed. */
  readonly adapters: ReadonlyMap<string, Adapter>;
  readonly data: CalibrationData;
  /** To be awaited before each pass; may throw to stop. */
  onBatch(done: number, total: number): void | Promise<void>;
}

/** How a layer is to be started. */
export interface StartCall<S extends object> {
  /** Rank of the adapter. */
  readonly r: number;
  /** Of the adapter: its update is `scaling · loraB · loraA`. 1 for a method without one. */
  readonly scaling: number;
  /** Of this layer. */
  readonly seed: number;
  /** Settings of the start. */
  readonly settings: S;
  /** Settings of the adapter's method. */
  readonly config: Readonly<Record<string, unknown>>;
}

/**
 * Tensors of the adapter by their names in its method; those that are left out are the method's own. `base` is the new base:
 * `residual` for w less the adapter's update, quantised, or a weight. `indexes` are the method's integer tables.
 */
export interface StartFactors {
  readonly base?: 'residual' | BaseWeight;
  readonly indexes?: Readonly<Record<string, Int32Array>>;
  readonly [tensor: string]:
    | Tensor
    | BaseWeight
    | 'residual'
    | Readonly<Record<string, Int32Array>>
    | undefined;
}

/** What a check of settings refuses: the setting, what it must be, and what it is. */
export type RefusedStart = readonly [setting: string, expected: string, actual: string];

/** A start of adapters. */
export interface StartDefinition<S extends object> {
  /** Its name in options and on the command line. */
  readonly start: string;
  /** Authors, title, year, arXiv number. */
  readonly reference: string;
  /**
   * What `factors` reads. `weight`: w alone. `quantised`: w, and {@link StartLayer.quantise} in a format. `inputs` and
   * `gradient`: sums over batches of data, which run through the base model as the run stores it. `model`: the whole model,
   * by `together` in place of `factors`.
   */
  readonly from: StartSource;
  /** Settings with their values. */
  readonly defaults: Readonly<S>;
  /** Does it compare w with its quantised form? A dense base is then refused. Default: with `from: 'quantised'`. */
  readonly quantises?: boolean;
  /** Methods of adapters that it starts; default `lora`. */
  readonly adapters?: readonly string[];
  /**
   * Does it replace the base? Then `factors` must return one, and layers that the files hold quantised are refused. `true`: part
   * of the weight moves into the adapter. `format`: the new base is w, in a format of the start's own, and the adapter belongs
   * to any base of the model. Default false.
   */
  readonly replacesBase?: boolean | 'format';
  /** Is the base in a format of the start's own, in place of the run's? Default false. */
  readonly ownFormat?: boolean;
  /** Tensors of the method that are not trained after this start; default none. */
  readonly frozen?: readonly string[];
  /** PEFT's `init_lora_weights` for adapters that it loads as they are; default true. */
  readonly peft?: string;
  /** Refuses values of settings, in words. Settings have the types of the defaults already. */
  check?(settings: S): RefusedStart | undefined;
  /** For ranks that differ between layers: what `ranks` needs of a layer. */
  measure?(layer: StartLayer, call: StartCall<S>): readonly number[];
  /**
   * The rank of each layer, from what `measure` returned, in the order of the layers. The scaling of a layer stays; its
   * loraAlpha follows its rank.
   * @param sizes N and K of each layer
   */
  ranks?(
    measured: readonly (readonly number[])[],
    r: number,
    settings: S,
    sizes: readonly { readonly N: number; readonly K: number }[],
  ): readonly number[];
  /** The initial tensors of one layer. */
  factors?(layer: StartLayer, call: StartCall<S>): StartFactors;
  /** With `from: 'model'`: the initial tensors of every layer, by module. What it makes beside them it frees. */
  together?(model: StartModel, call: StartCall<S>): Promise<ReadonlyMap<string, StartFactors>>;
}

/** Any start, whatever its settings. */
// biome-ignore lint/suspicious/noExplicitAny: settings are checked against the defaults where they enter
export type AnyStart = StartDefinition<any>;

/** It is also used on the command line. */
const kName = /^[A-Za-z0-9][A-Za-z0-9_-]*$/;

const kSources: readonly StartSource[] = ['weight', 'inputs', 'gradient', 'quantised', 'model'];

/** Names of options that are no settings. */
export const kTakenOptions = ['start', 'method', 'format', 'seed', 'inputs', 'dw', 'module'];

/**
 * Checks and freezes a start of one's own. See docs/training/starts.md.
 * @throws ERR_TYPE · ERR_VALUE
 * @example
 * const rows = defineStart({
 *   start: 'rows', reference: 'none', from: 'weight', defaults: {},
 *   factors: ({ w }, { r }) => ({ loraA: denseRows(w, 0, r) }),
 * });
 */
export function defineStart<S extends object>(definition: StartDefinition<S>): StartDefinition<S> {
  const op = 'defineStart';
  const own = ownFields<object>(op, definition) as Record<string, unknown>;
  for (const name of ['start', 'reference']) {
    if (typeof own[name] !== 'string') throw wrongType(op, name, 'a string', own[name]);
    if (own[name] === '') fail('ERR_VALUE', op, name, 'a text', 'an empty one');
  }
  if (!kName.test(own.start as string)) {
    const expected = 'letters, digits, - and _, a letter or digit first';
    fail('ERR_VALUE', op, 'start', expected, JSON.stringify(own.start));
  }
  if (!kSources.includes(own.from as StartSource)) {
    fail('ERR_VALUE', op, 'from', `one of ${kSources.join(', ')}`, JSON.stringify(own.from));
  }
  if (typeof own.defaults !== 'object' || own.defaults === null) {
    throw wrongType(op, 'defaults', 'an object of settings', own.defaults);
  }
  const taken = kTakenOptions.find((name) => Object.hasOwn(own.defaults as object, name));
  if (taken !== undefined) {
    const expected = `without settings named ${kTakenOptions.join(', ')}`;
    fail('ERR_VALUE', op, 'defaults', expected, `"${taken}"`);
  }
  const [wanted, other] = own.from === 'model' ? ['together', 'factors'] : ['factors', 'together'];
  if (typeof own[wanted] !== 'function') throw wrongType(op, wanted, 'a function', own[wanted]);
  if (own[other] !== undefined) {
    fail('ERR_VALUE', op, other, `left out with from: '${own.from}'`, 'given');
  }
  for (const name of ['check', 'measure', 'ranks']) {
    const value = own[name];
    if (value === undefined || typeof value === 'function') continue;
    throw wrongType(op, name, 'a function', value);
  }
  if ((own.measure === undefined) !== (own.ranks === undefined)) {
    fail('ERR_VALUE', op, 'measure and ranks', 'given together', 'one of them');
  }
  for (const name of ['replacesBase', 'quantises', 'ownFormat']) {
    const value = own[name];
    if (value === undefined || typeof value === 'boolean') continue;
    if (name === 'replacesBase' && value === 'format') continue;
    throw wrongType(op, name, name === 'replacesBase' ? 'a boolean or format' : 'a boolean', value);
  }
  for (const name of ['adapters', 'frozen']) {
    const value = own[name];
    if (value === undefined) continue;
    if (Array.isArray(value) && value.every((each) => typeof each === 'string')) continue;
    throw wrongType(op, name, 'an array of strings', value);
  }
  if (own.peft !== undefined && typeof own.peft !== 'string') {
    throw wrongType(op, 'peft', 'a string', own.peft);
  }
  return Object.freeze({
    ...definition,
    quantises: definition.quantises ?? definition.from === 'quantised',
    defaults: Object.freeze({ ...definition.defaults }),
  });
}

/** Is this a result of `defineStart`, from this copy of the library or another? */
export function isStart(value: unknown): value is AnyStart {
  const start = value as Partial<AnyStart> | null | undefined;
  return (
    typeof start === 'object' &&
    start !== null &&
    Object.isFrozen(start) &&
    typeof start.start === 'string' &&
    typeof start.defaults === 'object' &&
    typeof (start.factors ?? start.together) === 'function'
  );
}
