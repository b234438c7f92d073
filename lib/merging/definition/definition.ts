/** Ways to merge adapters as definitions: how the entries, or the factors, of several adapters become those of one. */

import { fail, wrongType } from '../../core/errors.js';
import type { RefusedSetting } from '../../core/refused-setting.js';
import { ownFields } from '../../core/validate.js';

/** The update of a layer's weight by a LoRA adapter: `scaling · loraB · loraA`, [N, K]. */
export interface LoraUpdate {
  /** [r, K] row by row. */
  readonly loraA: Float32Array;
  /** [N, r] row by row. */
  readonly loraB: Float32Array;
  readonly r: number;
  /** K */
  readonly inFeatures: number;
  /** N */
  readonly outFeatures: number;
  readonly scaling: number;
}

/** Numbers in [0, 1). */
export type NextRandom = () => number;

/** One layer of a merge. */
export interface MergeCall<S extends object> {
  /** Of the adapters that adapt this layer, in their order. All have the same N and K. */
  readonly updates: readonly LoraUpdate[];
  /** One for each update. */
  readonly weights: readonly number[];
  readonly settings: S;
  /** Name of the layer in the model. */
  readonly module: string;
}

/**
 * A way to merge LoRA adapters. It has either `entry` (a rule for the entries of tensors) or `layer` (a rule for whole
 * layers).
 */
export interface MergeDefinition<S extends object> {
  /** Its name in options and on the command line. */
  readonly merge: string;
  /** Authors, title, year, arXiv number. */
  readonly reference: string;
  readonly defaults: Readonly<S>;
  /**
   * What weights are. `factors`, the default: any finite numbers. `shares`: they are not negative and are divided by
   * their sum, and all adapters adapt the same layers; such a definition is an average. `none`: it takes no weights.
   */
  readonly weights?: 'factors' | 'shares' | 'none';
  /** What merges a single adapter instead, with the defaults of that. */
  readonly alone?: AnyMerge;
  /** Refuses values of settings, in words. Settings have the types of the defaults already. */
  check?(settings: S): RefusedSetting | undefined;
  /**
   * Changes all tensors of one adapter together, before its layers are merged.
   * @param tensors loraA and loraB of each layer in turn; not to be written
   * @returns tensors of the same lengths
   */
  prepare?(tensors: readonly Float32Array[], settings: S): readonly Float32Array[];
  /**
   * What `entry` merges. `factors`, the default: the entries of loraA and those of loraB, which must have equal ranks. An
   * adapter's weight w counts as √|w · scaling| in both, with the sign of w · scaling in loraA. `update`: the entries of
   * scaling · loraB · loraA, with the weight w · scaling; the `rank` leading triplets of the result are kept (0 for the largest
   * rank of the adapters), and their factors clamped at the quantile `clamp` (0 for no bound). Both are settings.
   */
  readonly over?: 'factors' | 'update';
  /**
   * Looks at one adapter's whole tensor, and returns what becomes of its entries: a function that is called for every
   * entry in their order.
   */
  sift?(values: Float32Array, settings: S, random: NextRandom): (value: number) => number;
  /** Merges one entry of all adapters. `values` is used again for the next entry. */
  entry?(values: Float64Array, weights: readonly number[], settings: S): number;
  /** Merges one layer. */
  layer?(call: MergeCall<S>): LoraUpdate;
}

/** Any way to merge, whatever its settings. */
// biome-ignore lint/suspicious/noExplicitAny: settings are checked against the defaults where they enter
export type AnyMerge = MergeDefinition<any>;

/** It is also used on the command line. */
const kName = /^[A-Za-z0-9][A-Za-z0-9_-]*$/;

const kFunctions = ['check', 'prepare', 'sift', 'entry', 'layer'] as const;

/** Names of options that are no settings. */
const kTaken = ['by'];

/**
 * Checks and freezes a way to merge of one's own. See docs/merging.md.
 * @throws ERR_TYPE · ERR_VALUE
 * @example
 * const largest = defineMerge({
 *   merge: 'largest', reference: 'none', defaults: {},
 *   entry: (values) => values.reduce((a, b) => (Math.abs(b) > Math.abs(a) ? b : a)),
 * });
 */
export function defineMerge<S extends object>(definition: MergeDefinition<S>): MergeDefinition<S> {
  const op = 'defineMerge';
  const own = ownFields<object>(op, definition) as Record<string, unknown>;
  for (const name of ['merge', 'reference']) {
    if (typeof own[name] !== 'string') throw wrongType(op, name, 'a string', own[name]);
    if (own[name] === '') fail('ERR_VALUE', op, name, 'a text', 'an empty one');
  }
  if (!kName.test(own.merge as string)) {
    const expected = 'letters, digits, - and _, a letter or digit first';
    fail('ERR_VALUE', op, 'merge', expected, JSON.stringify(own.merge));
  }
  if (typeof own.defaults !== 'object' || own.defaults === null) {
    throw wrongType(op, 'defaults', 'an object of settings', own.defaults);
  }
  const taken = kTaken.find((name) => Object.hasOwn(own.defaults as object, name));
  if (taken !== undefined) {
    fail('ERR_VALUE', op, 'defaults', `without settings named ${kTaken.join(', ')}`, `"${taken}"`);
  }
  for (const name of kFunctions) {
    const value = own[name];
    if (value !== undefined && typeof value !== 'function') {
      throw wrongType(op, name, 'a function', value);
    }
  }
  checkChoice(op, 'weights', own.weights, ['factors', 'shares', 'none']);
  checkChoice(op, 'over', own.over, ['factors', 'update']);
  if (own.alone !== undefined && !isMerge(own.alone)) {
    throw wrongType(op, 'alone', 'what defineMerge returns', own.alone);
  }
  const given = ['entry', 'layer'].filter((name) => own[name] !== undefined);
  if (given.length !== 1) {
    const expected = 'with one of entry and layer';
    fail('ERR_VALUE', op, 'definition', expected, given.join(' and ') || 'neither');
  }
  const idle = ['sift', 'over'].find((name) => own[name] !== undefined);
  if (own.layer !== undefined && idle !== undefined) {
    fail('ERR_VALUE', op, idle, 'left out beside layer', 'one');
  }
  return Object.freeze({ ...definition, defaults: Object.freeze({ ...definition.defaults }) });
}

function checkChoice(op: string, name: string, value: unknown, choices: readonly string[]): void {
  if (value === undefined || choices.includes(value as string)) return;
  fail('ERR_VALUE', op, name, `one of ${choices.join(', ')}`, String(value));
}

/** Is this a result of `defineMerge`, from this copy of the library or another? */
export function isMerge(value: unknown): value is AnyMerge {
  const merge = value as Partial<AnyMerge> | null | undefined;
  return (
    typeof merge === 'object' &&
    merge !== null &&
    Object.isFrozen(merge) &&
    typeof merge.merge === 'string' &&
    typeof merge.defaults === 'object' &&
    (typeof merge.entry === 'function' || typeof merge.layer === 'function')
  );
}
