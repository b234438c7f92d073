/** The adapter of a layer as its start makes it, and the base that it leaves. */

import type { Adapter } from '../adapters/definition/adapter.js';
import type { AnyMethod } from '../adapters/definition/method.js';
import { type AlphaConfig, scalingOf } from '../adapters/parts/scaling.js';
import { checkShape, checkTensor } from '../core/check-tensor.js';
import { fail, wrongType } from '../core/errors.js';
import { scope } from '../core/scope.js';
import type { Tensor } from '../core/tensor.js';
import type { BaseWeight } from '../ops/base-weight.js';
import type { AnyStart, StartCall, StartFactors, StartLayer } from './definition/definition.js';

/** What a start is to do with every layer. */
export interface StartPlan {
  readonly start: AnyStart;
  /** Of the start, complete. */
  readonly settings: Readonly<Record<string, unknown>>;
  readonly method: AnyMethod;
  /** Of the method, as they are given. */
  readonly config: Readonly<Record<string, unknown>>;
}

/** A started layer. */
export interface StartedLayer {
  readonly adapter: Adapter;
  /** The new base, where the start replaced it. */
  readonly base?: BaseWeight;
}

/** Rank and scaling of a layer whose rank may differ from the settings'; its scaling does not. */
export function rankedConfig(
  plan: StartPlan,
  rank: number | undefined,
): {
  readonly config: Readonly<Record<string, unknown>>;
  readonly r: number;
  readonly scaling: number;
} {
  const { method, config } = plan;
  const all = { ...method.definition.defaults, ...config } as unknown as AlphaConfig;
  const scaling = all.loraAlpha === undefined ? 1 : scalingOf(all);
  const r = all.r ?? 1;
  if (rank === undefined || rank === r) return { config, r, scaling };
  const loraAlpha = scaling * (all.rslora ? Math.sqrt(rank) : rank);
  return { config: { ...config, r: rank, loraAlpha }, r: rank, scaling };
}

/** The call of a start for a layer. */
export function callOf(
  plan: StartPlan,
  seed: number,
  rank?: number,
): StartCall<Readonly<Record<string, unknown>>> {
  const { config, r, scaling } = rankedConfig(plan, rank);
  const all = { ...plan.method.definition.defaults, ...config };
  return { r, scaling, seed, settings: plan.settings, config: all };
}

/**
 * Computes the start of one layer.
 * @param together what a start of the whole model made of it
 * @throws ERR_TYPE, ERR_VALUE, ERR_SHAPE if `factors` returns what does not fit · ERR_NON_FINITE · what it throws
 */
export function buildLayer(
  plan: StartPlan,
  layer: StartLayer,
  seed: number,
  rank?: number,
  together?: StartFactors,
): StartedLayer {
  const { start, method } = plan;
  const { config } = rankedConfig(plan, rank);
  const op = `start ${start.start}`;
  return scope(() => {
    const made: unknown = together ?? start.factors?.(layer, callOf(plan, seed, rank));
    if (typeof made !== 'object' || made === null) {
      throw wrongType(op, 'what factors returns', 'an object of tensors by name', made);
    }
    const { base, indexes, ...tensors } = made as StartFactors;
    const { N, K, module, device, w } = layer;
    const place = { inFeatures: K, outFeatures: N, module, device, ...config };
    const { trained, frozen = [] } = method.definition;
    const known = [...trained, ...frozen];
    const other = Object.keys(tensors).find((name) => !known.includes(name));
    if (other !== undefined) {
      const expected = `tensors of ${method.method} (${known.join(', ')}), base or indexes`;
      fail('ERR_VALUE', op, 'what factors returns', expected, `"${other}"`);
    }
    const given = tensors as Readonly<Record<string, Tensor>>;
    for (const [name, tensor] of Object.entries(given)) {
      checkTensor(op, name, tensor);
      const bad = tensor.readSync().find((value) => !Number.isFinite(value));
      if (bad !== undefined) fail('ERR_NON_FINITE', op, `${name} of ${module}`, 'finite', `${bad}`);
    }
    const missing = Object.keys(method.maker(place).shapes).filter((name) => !(name in given));
    const rest = missing.length === 0 ? undefined : method.create({ ...place, weight: w, seed });
    // Handles of their own: the adapter that they come from is freed with the scope.
    const own = Object.entries({ ...rest?.buffers, ...rest?.parameters }).map(
      ([name, tensor]) => [name, tensor.reshape(tensor.shape)] as const,
    );
    const adapter = method.from(
      { ...Object.fromEntries(own), ...given },
      place,
      (indexes as Readonly<Record<string, Int32Array>> | undefined) ?? rest?.indexes,
    );
    return { adapter, ...baseOf(op, plan, layer, adapter, base) };
  });
}

function baseOf(
  op: string,
  { start }: StartPlan,
  layer: StartLayer,
  adapter: Adapter,
  base: StartFactors['base'],
): { readonly base?: BaseWeight } {
  const replaces = start.replacesBase === true || start.replacesBase === 'format';
  if (replaces !== (base !== undefined)) {
    const expected = replaces ? 'given, because of replacesBase' : 'left out without replacesBase';
    fail('ERR_VALUE', op, 'base', expected, base === undefined ? 'none' : 'one');
  }
  if (base === undefined) return {};
  if (base !== 'residual') {
    checkShape(op, 'base', base as Tensor, [layer.N, layer.K]);
    // A dense base of the caller is copied, so that freeing it frees the copy alone.
    return { base: base === layer.w ? layer.w.to({}) : base };
  }
  const { weight } = adapter.unmerge(layer.w);
  return { base: layer.quantise(weight as Tensor) };
}
