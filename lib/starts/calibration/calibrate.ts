/** Passes over data that see the inputs and the first gradients of a model's layers. */

import { full } from '../../core/full.js';
import { scope } from '../../core/scope.js';
import { Tensor } from '../../core/tensor.js';
import type { Decoder } from '../../model/decoder.js';
import type { LinearWeights } from '../../model/linear-weights.js';
import type { BaseWeight } from '../../ops/base-weight.js';
import { multiplyAdd } from '../../ops/elementwise.js';
import { weightGrad } from '../../ops/weight-grad.js';
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
  const total = data.batches.length;
  for (const [i, { ids, targets }] of data.batches.entries()) {
    await onBatch(i, total);
    seen = new Map();
    scope(() => {
      const back = wanted === 'gradient';
      const tape = new ObservingTape(observers, back);
      const { T, dtype } = data;
      const { features, embedded } = decoder.forward(
        tape,
        { ids, B: ids.length / T, T },
        { dtype, inputGradient: back },
      );
      if (!back) return;
      const scale = 1 / targets.length;
      const { loss } = decoder.loss(tape, features, targets, { dtype, scale });
      const one = full(loss.shape, 1, { device });
      tape.gradients('calibrate', loss, one, [embedded], { release: true });
    });
  }
  return found.map(({ inputs, dw }) => {
    if (dw === undefined) return inputs === undefined ? {} : { inputs };
    const mean = multiplyAdd({ a: dw, alpha: 1 / Math.max(total, 1) });
    dw.dispose();
    return { dw: mean };
  });
}
