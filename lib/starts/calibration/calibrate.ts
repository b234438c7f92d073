/** Passes over data that see the inputs and the first gradients of a model's layers. */

import type { Adapter } from '../../adapters/definition/adapter.js';
import { full } from '../../core/full.js';
import { scope } from '../../core/scope.js';
import { Tensor } from '../../core/tensor.js';
import type { Decoder } from '../../model/decoder.js';
import { tokensOf } from '../../model/decoder-tokens.js';
import type { LinearWeights } from '../../model/linear-weights.js';
import type { BaseWeight } from '../../ops/base-weight.js';
import { multiplyAdd } from '../../ops/elementwise.js';
import { weightGrad } from '../../ops/weight-grad.js';
import { learnedOf } from '../../text/sequences.js';
import type { CalibrationData } from '../definition/calibration-data.js';
import { InputSums } from './inputs.js';
import { type LayerObserver, ObservingTape } from './observing-tape.js';

/** What a calibration found of a layer. */
export interface Observed {
  readonly inputs?: InputSums;
  /** [N, K] f32: the mean over the batches. The caller's. */
  readonly dw?: Tensor;
}

/** Called before each batch; may throw to stop. */
export type OnBatch = (done: number, total: number) => void | Promise<void>;

/** How {@link observePasses} works. */
export interface ObservedPasses {
  readonly observers: ReadonlyMap<BaseWeight, LayerObserver>;
  /** Is there a backward pass, of the mean loss of a batch? */
  readonly back: boolean;
  /** By module; default none: the base model. */
  readonly adapters?: ReadonlyMap<string, Adapter>;
  readonly onBatch?: OnBatch | undefined;
  /** Called before the pass of a batch. */
  readonly begin?: () => void;
}

/** Runs data through a model whose linear layers are observed. */
export async function observePasses(
  decoder: Decoder,
  { batches, T, dtype }: CalibrationData,
  { observers, back, adapters = new Map(), onBatch = () => {}, begin }: ObservedPasses,
): Promise<void> {
  const { device } = decoder.weights;
  for (const [i, batch] of batches.entries()) {
    await onBatch(i, batches.length);
    begin?.();
    scope(() => {
      const tape = new ObservingTape(observers, back);
      const call = { dtype, adapters };
      const { targets } = batch;
      const tokens = tokensOf(batch, T, device);
      const { features, embedded } = decoder.forward(tape, tokens, {
        ...call,
        inputGradient: back,
      });
      if (!back) return;
      const { loss } = decoder.loss(tape, features, targets, {
        ...call,
        scale: 1 / Math.max(learnedOf(targets), 1),
      });
      const one = full(loss.shape, 1, { device });
      tape.gradients('calibrate', loss, one, [embedded], { release: true });
    });
  }
}

/**
 * Runs data through a base model without adapters.
 * @param layers those to observe
 * @param wanted sums of their inputs, or their gradients
 */
export async function calibrate(
  decoder: Decoder,
  layers: readonly LinearWeights[],
  wanted: 'inputs' | 'gradient',
  data: CalibrationData,
  onBatch: OnBatch = () => {},
): Promise<readonly Observed[]> {
  const { device } = decoder.weights;
  const found = layers.map(({ place: { N, K } }) =>
    wanted === 'inputs'
      ? { inputs: undefined as InputSums | undefined, dw: undefined }
      : { inputs: undefined, dw: Tensor.zeros([N, K], { device }) },
  );
  // Layers that read the same tensor share their sums.
  let seen = new Map<Tensor, InputSums>();
  const observers = new Map<BaseWeight, LayerObserver>(
    layers.map(({ w, place: { K } }, i) => {
      const own = found[i] as (typeof found)[number];
      if (wanted === 'inputs') {
        const input = (x: Tensor) => {
          const shared = seen.get(x);
          if (shared !== undefined) own.inputs = shared;
          else {
            own.inputs ??= new InputSums(K);
            own.inputs.add(x);
            seen.set(x, own.inputs);
          }
        };
        return [w, { input }];
      }
      const gradient = (dy: Tensor, x: Tensor) => {
        weightGrad(dy, x, { accumulateInto: own.dw as Tensor });
      };
      return [w, { gradient }];
    }),
  );
  const begin = () => {
    seen = new Map();
  };
  await observePasses(decoder, data, { observers, back: wanted === 'gradient', onBatch, begin });
  const total = data.batches.length;
  return found.map(({ inputs, dw }) => {
    if (dw === undefined) return inputs === undefined ? {} : { inputs };
    const mean = multiplyAdd({ a: dw, alpha: 1 / Math.max(total, 1) });
    dw.dispose();
    return { dw: mean };
  });
}
