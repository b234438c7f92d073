/** Passes that see the inputs of adapted layers, or the gradients of their weights. */

import type { Value } from '../autograd/gradient-tape.js';
import { ModelTape } from '../autograd/model/model-tape.js';
import { full } from '../core/full.js';
import { scope } from '../core/scope.js';
import { Tensor } from '../core/tensor.js';
import type { Decoder, DecoderCall } from '../model/decoder.js';
import { tokensOf } from '../model/decoder-tokens.js';
import { weightGrad } from '../ops/weight-grad.js';
import { watchGradient } from '../starts/calibration/observing-tape.js';
import type { Batch } from '../text/sequences.js';
import type { AdapterSet } from './adapter-set.js';

/** A batch that is observed, and how the model runs on it. */
export interface ObservedBatch {
  readonly batch: Batch;
  readonly T: number;
  readonly call: DecoderCall;
  /** Of the loss. */
  readonly scale: number;
}

/** Mean loss of batches with the adapters as they are, without dropout. */
export function lossOf(decoder: Decoder, batches: readonly ObservedBatch[]): number {
  return batches.reduce((sum, { batch, T, call, scale }) => {
    const loss = scope(() => {
      const tape = new ModelTape({ recording: false });
      const tokens = tokensOf(batch, T, decoder.weights.device);
      const { features } = decoder.forward(tape, tokens, call);
      return decoder
        .loss(tape, features, batch.targets, { ...call, scale })
        .loss.tensor.readSync()[0];
    });
    return sum + (loss as number);
  }, 0);
}

/**
 * The inputs of adapted layers, without dropout.
 * @param input called with the rows of each layer, [rows, K]
 */
export function observeInputs(
  decoder: Decoder,
  batches: readonly ObservedBatch[],
  input: (module: string, x: Float32Array) => void,
): void {
  for (const { batch, T, call } of batches) {
    scope(() => {
      const tape = new ModelTape({ recording: false });
      const observe = (module: string, x: Value, y: Value) => {
        input(module, x.tensor.to({ dtype: 'f32' }).readSync());
        return y;
      };
      decoder.forward(tape, tokensOf(batch, T, decoder.weights.device), { ...call, observe });
    });
  }
}

/**
 * The gradients of the loss by the weights of adapted layers, [N, K]: those of base and update together.
 * @param seed of dropout
 */
export function weightGradients(
  decoder: Decoder,
  { layers }: AdapterSet,
  batches: readonly ObservedBatch[],
  seed: number,
): ReadonlyMap<string, Float32Array> {
  const { device } = decoder.weights;
  return scope(() => {
    const sums = new Map(
      layers.map(({ place: { module, N, K } }) => [module, Tensor.zeros([N, K], { device })]),
    );
    for (const { batch, T, call, scale } of batches) {
      scope(() => {
        const tape = new ModelTape({ dropout: { seed } });
        const observe = (module: string, x: Value, y: Value) =>
          watchGradient(tape, x, y, (dy, input) => {
            weightGrad(dy, input, { accumulateInto: sums.get(module) as Tensor });
          });
        const own = { ...call, observe, inputGradient: true, recompute: false };
        const { features, embedded } = decoder.forward(tape, tokensOf(batch, T, device), own);
        const { loss } = decoder.loss(tape, features, batch.targets, { ...call, scale });
        const one = full(loss.shape, 1, { device });
        tape.gradients('finetune', loss, one, [embedded], { release: true });
      });
    }
    return new Map([...sums].map(([module, sum]) => [module, sum.readSync()]));
  });
}

/** `Σ (a − b)²` over all elements, [1]. */
export function squaredDistance(tape: ModelTape, a: Value, b: Tensor): Value {
  const rows = b.size / (b.shape.at(-1) ?? 1);
  const flat = tape.reshape(tape.cast(a, 'f32'), [rows, b.size / rows]);
  const other = tape.own(b.to({ dtype: 'f32' }).reshape([rows, b.size / rows]));
  const difference = tape.add(flat, other, 1, -1);
  const sums = tape.sum(tape.multiply(difference, difference), 1);
  return tape.reshape(tape.sum(tape.reshape(sums, [rows, 1]), 0), [1]);
}
