/** Passes over data that see the inputs and the first gradients of a model's layers. */

import type { DType } from '../../core/dtype.js';
import { full } from '../../core/full.js';
import { scope } from '../../core/scope.js';
import { Tensor } from '../../core/tensor.js';
import type { Decoder } from '../../model/decoder.js';
import type { LinearWeights } from '../../model/linear-weights.js';
import type { BaseWeight } from '../../ops/base-weight.js';
import { multiplyAdd } from '../../ops/elementwise.js';
import { Indices } from '../../ops/model/indices.js';
import { weightGrad } from '../../ops/weight-grad.js';
import { InputSums } from './inputs.js';
import { type LayerObserver, ObservingTape } from './observing-tape.js';

/** Data of a calibration. */
export interface CalibrationData {
  /** Rows of T tokens, the token that follows each (negative for none), and where documents begin in packed rows. */
  readonly batches: readonly {
    readonly ids: Int32Array;
    readonly targets: Int32Array;
    readonly documents?: Int32Array;
  }[];
  readonly T: number;
  /** Of the activations. */
  readonly dtype: DType;
}

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
  for (const [i, { ids, targets, documents }] of data.batches.entries()) {
    await onBatch(i, total);
    seen = new Map();
    scope(() => {
      const back = wanted === 'gradient';
      const tape = new ObservingTape(observers, back);
      const { T, dtype } = data;
      const begins = documents && { documents: Indices.from(documents, { limit: T, device }) };
      const { features, embedded } = decoder.forward(
        tape,
        { ids, B: ids.length / T, T, ...begins },
        { dtype, inputGradient: back },
      );
      if (!back) return;
      const counted = targets.reduce((n, target) => n + (target >= 0 ? 1 : 0), 0);
      const scale = 1 / Math.max(counted, 1);
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
