import { full } from '../../core/full.js';
import { outsideScopes, scope } from '../../core/scope.js';
import { Tensor } from '../../core/tensor.js';
import type { Decoder } from '../../model/decoder.js';
import { tokensOf } from '../../model/decoder-tokens.js';
import { linearsOf } from '../../model/decoder-weights.js';
import type { BaseWeight } from '../../ops/base-weight.js';
import { multiplyAdd } from '../../ops/elementwise.js';
import { weightGrad } from '../../ops/weight-grad.js';
import { learnedOf } from '../../text/sequences.js';
import type { CalibrationData } from '../definition/calibration-data.js';
import type { OnBatch } from './calibrate.js';
import { type LayerObserver, ObservingTape } from './observing-tape.js';

/**
 * The diagonal of the empirical Fisher information: for each weight of the layers [N, K] the mean over sequences of the square of
 * the gradient of a sequence's mean loss.
 * @param modules names of linear layers
 * @returns by module, f32; the caller's
 */
export async function fisherOf(
  decoder: Decoder,
  modules: readonly string[],
  { batches, T, dtype }: CalibrationData,
  onBatch: OnBatch = () => {},
): Promise<ReadonlyMap<string, Tensor>> {
  const { device, layers } = decoder.weights;
  const linears = layers.flatMap(linearsOf).filter(({ place }) => modules.includes(place.module));
  const sums = new Map(
    linears.map(({ place: { module, N, K } }) => [module, Tensor.zeros([N, K], { device })]),
  );
  let count = 0;
  try {
    for (const [i, { ids, targets, documents }] of batches.entries()) {
      await onBatch(i, batches.length);
      for (let at = 0; at < ids.length; at += T, count++) {
        const found = gradientsOf(decoder, linears, {
          ...{ ids: ids.slice(at, at + T), targets: targets.slice(at, at + T) },
          ...(documents && { documents: documents.slice(at, at + T) }),
          dtype,
        });
        for (const [module, dw] of found) {
          const before = sums.get(module) as Tensor;
          sums.set(module, multiplyAdd({ a: dw, b: dw, c: before }));
          dw.dispose();
          before.dispose();
        }
      }
    }
    return new Map(
      [...sums].map(([module, sum]) => [module, multiplyAdd({ a: sum, alpha: 1 / count })]),
    );
  } finally {
    for (const sum of sums.values()) sum.dispose();
  }
}

/** The gradients of the loss of one sequence by the weights of layers. */
function gradientsOf(
  decoder: Decoder,
  linears: readonly { readonly place: { readonly module: string }; readonly w: BaseWeight }[],
  given: {
    readonly ids: Int32Array;
    readonly targets: Int32Array;
    readonly documents?: Int32Array;
    readonly dtype: CalibrationData['dtype'];
  },
): ReadonlyMap<string, Tensor> {
  const { targets, dtype } = given;
  return scope(() => {
    const found = new Map<string, Tensor>();
    const observers = new Map<BaseWeight, LayerObserver>(
      linears.map(({ place: { module }, w }) => [
        w,
        {
          gradient: (dy: Tensor, x: Tensor) =>
            void found.set(
              module,
              outsideScopes(() => weightGrad(dy, x)),
            ),
        },
      ]),
    );
    const tape = new ObservingTape(observers, true);
    const tokens = tokensOf(given, targets.length, decoder.weights.device);
    const { features, embedded } = decoder.forward(tape, tokens, { dtype, inputGradient: true });
    const scale = 1 / Math.max(learnedOf(targets), 1);
    const { loss } = decoder.loss(tape, features, targets, { dtype, scale });
    const one = full(loss.shape, 1, { device: decoder.weights.device });
    tape.gradients('fisher', loss, one, [embedded], { release: true });
    return found;
  });
}
