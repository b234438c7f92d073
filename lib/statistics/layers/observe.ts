/** Statistics of a model's layers over data. */

import type { Adapter } from '../../adapters/definition/adapter.js';
import { fail, wrongType } from '../../core/errors.js';
import { scope } from '../../core/scope.js';
import { Tensor } from '../../core/tensor.js';
import { readNames, readOptions } from '../../core/validate.js';
import type { Decoder } from '../../model/decoder.js';
import { tokensOf } from '../../model/decoder-tokens.js';
import { type LinearWeights, linearsOf } from '../../model/decoder-weights.js';
import type { BaseWeight } from '../../ops/base-weight.js';
import { multiplyAdd } from '../../ops/elementwise.js';
import { type OnBatch, observePasses } from '../../starts/calibration/calibrate.js';
import { InputSums } from '../../starts/calibration/inputs.js';
import type { LayerObserver } from '../../starts/calibration/observing-tape.js';
import type { CalibrationData } from '../../starts/definition/calibration-data.js';
import { exampleWeights } from '../../text/sequences.js';
import { perExampleGradients } from '../per-example/gradients.js';
import { InputMoments } from './moments.js';
import { type LayerUpdate, outputSquares, updateSensitivity } from './update.js';

/**
 * What can be observed: `gram` and `moments` of the inputs, `outputs` of adapters, `sensitivity` of their updates, and the
 * `fisher` information of their factors.
 */
export type ObservedStatistic = 'gram' | 'moments' | 'outputs' | 'sensitivity' | 'fisher';

const kStatistics = ['gram', 'moments', 'outputs', 'sensitivity', 'fisher'] as const;

/** How {@link observe} works. */
export interface ObserveOptions {
  readonly wanted: readonly ObservedStatistic[];
  /** By module, as {@link Decoder.forward} takes them; default none, and then only inputs can be observed. */
  readonly adapters?: ReadonlyMap<string, Adapter>;
  /** Modules; default those with an adapter, or all linear layers of the blocks where there are no adapters. */
  readonly layers?: readonly string[];
  readonly onBatch?: OnBatch;
}

/** What was observed of a layer. */
export interface LayerStatistics {
  /** Σ xᵀx and Σ x of the layer's inputs, in 8 · K² bytes. */
  readonly gram?: InputSums;
  /** Means and norms of input features, in 16 · K bytes. */
  readonly moments?: InputMoments;
  /**
   * The mean over rows of ‖ΔW x‖² of the low-rank update (Zhou and others, LoRA-drop: Efficient LoRA Parameter Pruning based
   * on Output Evaluation, 2024, arXiv:2402.07721).
   */
  readonly outputs?: number;
  /** {@link updateSensitivity}, the mean over batches. */
  readonly sensitivity?: number;
  /**
   * The diagonal of the empirical Fisher information by trained tensor: the mean over rows of tokens of the squared gradient of
   * their mean loss. The caller's.
   */
  readonly fisher?: Readonly<Record<string, Tensor>>;
}

/** What is gathered of a layer. */
interface Gathered {
  readonly linear: LinearWeights;
  gram: InputSums | undefined;
  moments: InputMoments | undefined;
  rows: number;
  squares: number;
  sensitivity: number;
}

/**
 * Runs data through a model and gathers statistics of its linear layers. Layers that read the same tensor share their `gram` and
 * `moments`. With adapters the passes include them.
 * @throws ERR_TYPE · ERR_VALUE for unknown layers and statistics · ERR_UNSUPPORTED for statistics of updates in layers
 *   whose method adds no low-rank update; as {@link perExampleGradients}
 * @example
 * const found = await observe(decoder, { batches, T, dtype: 'f32' }, { wanted: ['outputs'], adapters });
 * const ranked = [...found].sort(([, a], [, b]) => (b.outputs ?? 0) - (a.outputs ?? 0));
 */
export async function observe(
  decoder: Decoder,
  data: CalibrationData,
  options: ObserveOptions,
): Promise<ReadonlyMap<string, LayerStatistics>> {
  const op = 'observe';
  const given = readOptions(op, options, {
    wanted: true,
    adapters: true,
    layers: true,
    onBatch: true,
  });
  const wanted = readNames(op, 'wanted', given.wanted, kStatistics);
  if (wanted.length === 0)
    fail('ERR_VALUE', op, 'wanted', `some of ${kStatistics.join(', ')}`, 'none');
  const { adapters = new Map<string, Adapter>(), onBatch } = given;
  if (!(adapters instanceof Map)) throw wrongType(op, 'adapters', 'a Map of adapters', adapters);
  const layers = chosenLayers(op, decoder, adapters, given.layers);
  const has = (name: ObservedStatistic) => wanted.includes(name);
  const ofAdapters = wanted.find((name) => name !== 'gram' && name !== 'moments');
  const bare = layers.find(({ place }) => !adapters.has(place.module));
  if (ofAdapters !== undefined && bare !== undefined) {
    const expected = `with an adapter in each layer, for ${ofAdapters}`;
    fail('ERR_VALUE', op, 'adapters', expected, `none in ${bare.place.module}`);
  }
  const found = layers.map(
    (linear): Gathered => ({
      ...{ linear, gram: undefined, moments: undefined },
      ...{ rows: 0, squares: 0, sensitivity: 0 },
    }),
  );
  const updates =
    has('outputs') || has('sensitivity') ? updatesOf(op, layers, adapters) : new Map();
  try {
    if (wanted.some((name) => name !== 'fisher')) {
      let seen = new Map<Tensor, Gathered>();
      const observers = new Map<BaseWeight, LayerObserver>(
        found.map((own) => [
          own.linear.w,
          observerOf(own, has, updates.get(own.linear), () => seen),
        ]),
      );
      await observePasses(decoder, data, {
        ...{ observers, back: has('sensitivity'), adapters, onBatch },
        begin: () => {
          seen = new Map();
        },
      });
    }
  } finally {
    freeUpdates(updates, adapters);
  }
  const fisher = has('fisher') ? await fisherOf(decoder, data, adapters, onBatch) : undefined;
  return new Map(
    found.map((own) => {
      const { linear, gram, moments, rows, squares, sensitivity } = own;
      const { module } = linear.place;
      const information = fisher?.get(module);
      return [
        module,
        {
          ...(gram === undefined ? {} : { gram }),
          ...(moments === undefined ? {} : { moments }),
          ...(has('outputs') ? { outputs: squares / Math.max(rows, 1) } : {}),
          ...(has('sensitivity')
            ? { sensitivity: sensitivity / Math.max(data.batches.length, 1) }
            : {}),
          ...(information === undefined ? {} : { fisher: information }),
        },
      ] as const;
    }),
  );
}

function chosenLayers(
  op: string,
  { weights }: Decoder,
  adapters: ReadonlyMap<string, Adapter>,
  layers: readonly string[] | undefined,
): readonly LinearWeights[] {
  const all = weights.layers.flatMap(linearsOf);
  const names = all.map(({ place }) => place.module);
  const standard = adapters.size > 0 ? names.filter((name) => adapters.has(name)) : names;
  const chosen = layers === undefined ? standard : readNames(op, 'layers', layers, names);
  return all.filter(({ place }) => chosen.includes(place.module));
}

function observerOf(
  own: Gathered,
  has: (name: ObservedStatistic) => boolean,
  update: LayerUpdate | undefined,
  seen: () => Map<Tensor, Gathered>,
): LayerObserver {
  const { K } = own.linear.place;
  const input = (x: Tensor): void => {
    own.rows += x.size / K;
    if (update !== undefined && has('outputs')) own.squares += outputSquares(x, update);
    if (!has('gram') && !has('moments')) return;
    const first = seen().get(x);
    if (first !== undefined) {
      own.gram = first.gram;
      own.moments = first.moments;
      return;
    }
    seen().set(x, own);
    if (has('gram')) {
      own.gram ??= new InputSums(K);
      own.gram.add(x);
    }
    if (has('moments')) {
      own.moments ??= new InputMoments(K);
      own.moments.add(x);
    }
  };
  if (update === undefined || !has('sensitivity')) return { input };
  const gradient = (dy: Tensor, x: Tensor): void => {
    own.sensitivity += updateSensitivity(dy, x, update);
  };
  return { input, gradient };
}

/** The low-rank updates of adapters. @throws ERR_UNSUPPORTED for a method that does not add one */
function updatesOf(
  op: string,
  layers: readonly LinearWeights[],
  adapters: ReadonlyMap<string, Adapter>,
): ReadonlyMap<LinearWeights, LayerUpdate> {
  return new Map(
    layers.map((linear) => {
      const { N, K, module } = linear.place;
      const { definition, config, parameters, buffers, method } = adapters.get(module) as Adapter;
      const made = definition.update?.({ ...parameters, ...buffers }, config, { N, K, config });
      if (made === undefined || (made.beta ?? 1) !== 1) {
        const expected =
          'of a method that adds scaling · loraB · loraA, for outputs and sensitivity';
        fail('ERR_UNSUPPORTED', op, `the adapter of ${module}`, expected, method);
      }
      return [linear, made];
    }),
  );
}

/** Frees what is not the adapters' own. */
function freeUpdates(
  updates: ReadonlyMap<LinearWeights, LayerUpdate>,
  adapters: ReadonlyMap<string, Adapter>,
): void {
  const own = new Set(
    [...adapters.values()].flatMap(({ parameters, buffers }) => [
      ...Object.values(parameters),
      ...Object.values(buffers),
    ]),
  );
  for (const { loraA, loraB, core } of updates.values()) {
    for (const each of [loraA, loraB, core]) {
      if (each !== undefined && !own.has(each)) each.dispose();
    }
  }
}

/** The mean over examples of squared gradients, by module and name. */
async function fisherOf(
  decoder: Decoder,
  { batches, T, dtype }: CalibrationData,
  adapters: ReadonlyMap<string, Adapter>,
  onBatch: OnBatch = () => {},
): Promise<ReadonlyMap<string, Readonly<Record<string, Tensor>>>> {
  const sums = new Map<Tensor, Tensor>();
  let examples = 0;
  const { device } = decoder.weights;
  for (const [i, batch] of batches.entries()) {
    await onBatch(i, batches.length);
    const { targets } = batch;
    const B = targets.length / T;
    examples += B;
    const own = scope(() => {
      const call = { adapters, dtype };
      const found = perExampleGradients((tape) => {
        const { features } = decoder.forward(tape, tokensOf(batch, T, device), call);
        const held = Tensor.from(exampleWeights(targets, T), [targets.length], { device });
        const { loss } = decoder.loss(tape, features, targets, { ...call, weights: held });
        return { loss, examples: B };
      });
      return found.squares();
    });
    for (const [factor, squares] of own) {
      const before = sums.get(factor);
      sums.set(factor, before === undefined ? squares : multiplyAdd({ a: before, c: squares }));
      if (before !== undefined) for (const each of [before, squares]) each.dispose();
    }
  }
  return new Map(
    [...adapters].map(([module, { parameters }]) => [
      module,
      Object.fromEntries(
        Object.entries(parameters).flatMap(([name, tensor]) => {
          const sum = sums.get(tensor);
          if (sum === undefined) return [];
          const mean = multiplyAdd({ a: sum, alpha: 1 / examples });
          sum.dispose();
          return [[name, mean]];
        }),
      ),
    ]),
  );
}
