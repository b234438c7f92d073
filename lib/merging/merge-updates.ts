/** The merge of adapters, given as updates of layers: which layers, which rule, which weights. */

import type { Device } from '../core/device.js';
import { fail, wrongType } from '../core/errors.js';
import { uniform } from '../core/random.js';
import { settingsOver } from '../core/settings.js';
import { checkFinite, showShape } from '../core/validate.js';
import type { AnyMerge, LoraUpdate, MergeCall, NextRandom } from './definition/definition.js';
import { mergeDense } from './parts/dense.js';
import { mergeEntries } from './parts/entries.js';
import { sameRank } from './parts/same.js';

const kOp = 'combineAdapters';

/** Updates of the layers of one adapter, by module. */
export type Updates = ReadonlyMap<string, LoraUpdate>;

/** The generator for the entries of a tensor of an adapter. */
export type RandomOf = (adapter: number, module: string, tensor: string) => NextRandom;

/** What a merge works with. */
export interface MergePlan {
  readonly merge: AnyMerge;
  readonly adapters: readonly Updates[];
  readonly weights: readonly number[];
  readonly settings: Readonly<Record<string, unknown>>;
  /** Where products of factors are formed. */
  readonly device: Device;
  readonly randomOf: RandomOf;
}

/**
 * The settings of a merge, from those that are given and its defaults.
 * @throws ERR_TYPE · ERR_VALUE
 */
export function settingsOf(
  merge: AnyMerge,
  given: Readonly<Record<string, unknown>>,
): Readonly<Record<string, unknown>> {
  return settingsOver(kOp, merge.merge, merge, given, ['by']);
}

/**
 * One weight for each adapter: those that are given, or 1 each. Shares add up to 1.
 * @throws ERR_TYPE · ERR_VALUE
 */
export function weightsOf(merge: AnyMerge, count: number, given: unknown): readonly number[] {
  if (given === undefined) return share(merge, new Array(count).fill(1));
  if (merge.weights === 'none') {
    const expected = `left out (${merge.merge} takes none)`;
    fail('ERR_VALUE', kOp, 'weights', expected, 'some');
  }
  if (!Array.isArray(given)) throw wrongType(kOp, 'weights', 'an array of numbers', given);
  if (given.length !== count) {
    const expected = `one number for each of the ${count} adapters`;
    fail('ERR_VALUE', kOp, 'weights', expected, `${given.length} numbers`);
  }
  return share(
    merge,
    given.map((weight, i) => checkFinite(kOp, `weights[${i}]`, weight)),
  );
}

function share(merge: AnyMerge, weights: readonly number[]): readonly number[] {
  if (merge.weights !== 'shares') return weights;
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  const negative = weights.findIndex((weight) => weight < 0);
  if (negative >= 0) {
    const expected = `not negative (${merge.merge} is an average)`;
    fail('ERR_VALUE', kOp, `weights[${negative}]`, expected, String(weights[negative]));
  }
  if (!(total > 0 && Number.isFinite(total))) {
    fail('ERR_VALUE', kOp, 'weights', 'such that their sum is above 0 and finite', String(total));
  }
  return weights.map((weight) => weight / total);
}

/** Numbers that depend on the seed and on the place of the tensor. */
export function seededRandom(seed: unknown): RandomOf {
  return (adapter, module, tensor) =>
    uniform(typeof seed === 'number' ? seed : 0, adapter, module, tensor);
}

/** All modules of the adapters, in the order in which they come. @throws ERR_VALUE */
function modulesOf({ merge, adapters }: MergePlan): string[] {
  const modules = [...new Set(adapters.flatMap((updates) => [...updates.keys()]))];
  if (merge.weights !== 'shares' && merge.weights !== 'none') return modules;
  for (const [i, updates] of adapters.entries()) {
    const missing = modules.find((module) => !updates.has(module));
    if (missing === undefined) continue;
    const expected = `of the same modules (${merge.merge} averages over all)`;
    fail('ERR_VALUE', kOp, 'adapters', expected, `${missing} not in adapters[${i}]`);
  }
  return modules;
}

/** @throws ERR_SHAPE */
function checkSizes(module: string, updates: readonly LoraUpdate[]): void {
  const shapes = updates.map(({ outFeatures, inFeatures }) => showShape([outFeatures, inFeatures]));
  const other = shapes.findIndex((shape) => shape !== shapes[0]);
  if (other < 0) return;
  const expected = `of one shape in all adapters, ${shapes[0]}`;
  fail('ERR_SHAPE', kOp, `the update of ${module}`, expected, shapes[other] as string);
}

/** All factors of an adapter after `prepare`. */
function prepared(merge: AnyMerge, updates: Updates, settings: object): Updates {
  if (merge.prepare === undefined) return updates;
  const before = [...updates.values()].flatMap(({ loraA, loraB }) => [loraA, loraB]);
  const after: unknown = merge.prepare(before, settings);
  if (!Array.isArray(after)) {
    throw wrongType(kOp, `what prepare of ${merge.merge} returns`, 'an array of tensors', after);
  }
  const wrong = before.findIndex((tensor, i) => after[i]?.length !== tensor.length);
  if (wrong >= 0) {
    const what = `tensor ${wrong} that prepare of ${merge.merge} returns`;
    const expected = `of ${before[wrong]?.length} values`;
    fail('ERR_VALUE', kOp, what, expected, String(after[wrong]?.length));
  }
  return new Map(
    [...updates].map(([module, update], i) => [
      module,
      { ...update, loraA: after[2 * i], loraB: after[2 * i + 1] },
    ]),
  );
}

/** A and B apart, with the root of each weight. */
function mergeFactors(merge: AnyMerge, call: MergeCall<object>, randoms: Randoms): LoraUpdate {
  const r = sameRank(call);
  const [{ inFeatures, outFeatures }] = call.updates as readonly [LoraUpdate];
  const products = call.weights.map((w, i) => w * (call.updates[i]?.scaling ?? 1));
  const roots = products.map((product) => Math.sqrt(Math.abs(product)));
  const signed = roots.map((root, i) => ((products[i] as number) < 0 ? -root : root));
  const of = (name: 'loraA' | 'loraB', weights: readonly number[]) =>
    mergeEntries(
      merge,
      call.updates.map((update) => update[name]),
      weights,
      call.settings,
      randoms(name),
    );
  const [loraA, loraB] = [of('loraA', signed), of('loraB', roots)];
  return { loraA, loraB, r, inFeatures, outFeatures, scaling: 1 };
}

/** Generators of the layer's adapters, for a tensor. */
type Randoms = (tensor: string) => readonly NextRandom[];

/** The result of a layer, as a rule of one's own may give it. @throws ERR_TYPE · ERR_SHAPE · ERR_NON_FINITE */
function checkMerged(merge: AnyMerge, module: string, merged: unknown): LoraUpdate {
  const what = `what ${merge.merge} makes of ${module}`;
  if (typeof merged !== 'object' || merged === null) {
    throw wrongType(kOp, what, 'an object of loraA, loraB, r and more', merged);
  }
  const { loraA, loraB, r, inFeatures, outFeatures, scaling } = merged as LoraUpdate;
  for (const [name, values, rows] of [
    ['loraA', loraA, inFeatures],
    ['loraB', loraB, outFeatures],
  ] as const) {
    if (!(values instanceof Float32Array)) {
      throw wrongType(kOp, `${name} of ${what}`, 'a Float32Array', values);
    }
    if (values.length !== r * rows) {
      const expected = `of ${r} · ${rows} values`;
      fail('ERR_SHAPE', kOp, `${name} of ${what}`, expected, String(values.length));
    }
    const at = values.findIndex((value) => !Number.isFinite(value));
    if (at >= 0)
      fail('ERR_NON_FINITE', kOp, `${name} of ${what}`, 'finite', `${values[at]} at ${at}`);
  }
  checkFinite(kOp, `the scaling of ${what}`, scaling);
  return merged as LoraUpdate;
}

/**
 * Merges adapters layer by layer. A layer that some adapters lack is merged from the others, except by averages.
 * @param onLayer is told how many layers are done
 * @throws ERR_VALUE · ERR_SHAPE · ERR_TYPE · ERR_NON_FINITE
 */
export async function mergeUpdates(
  plan: MergePlan,
  onLayer?: (done: number, total: number) => void,
): Promise<Map<string, LoraUpdate>> {
  const { merge, settings, device } = plan;
  const modules = modulesOf(plan);
  for (const module of modules) {
    checkSizes(
      module,
      plan.adapters.flatMap((updates) => updates.get(module) ?? []),
    );
  }
  const adapters = plan.adapters.map((updates) => prepared(merge, updates, settings));
  const result = new Map<string, LoraUpdate>();
  for (const module of modules) {
    const indexes = [...adapters.keys()].filter((i) => adapters[i]?.has(module));
    const call: MergeCall<object> = {
      module,
      settings,
      updates: indexes.map((i) => adapters[i]?.get(module) as LoraUpdate),
      weights: indexes.map((i) => plan.weights[i] as number),
    };
    const randoms: Randoms = (tensor) => indexes.map((i) => plan.randomOf(i, module, tensor));
    const merged: unknown =
      merge.layer !== undefined
        ? merge.layer(call)
        : merge.over === 'update'
          ? await mergeDense(merge, call, randoms('update'), device)
          : mergeFactors(merge, call, randoms);
    result.set(module, checkMerged(merge, module, merged));
    onLayer?.(result.size, modules.length);
  }
  return result;
}
