import { checkTensor, lastDim } from '../../core/check-tensor.js';
import { fail, markClass } from '../../core/errors.js';
import { scope } from '../../core/scope.js';
import type { Tensor } from '../../core/tensor.js';
import { checkInteger, showShape } from '../../core/validate.js';
import { weightGrad } from '../../ops/weight-grad.js';
import type { LayerInputs } from '../definition/definition.js';

/**
 * Sums over the inputs of a layer, batch by batch: the product of each batch with itself runs natively, sums over batches are
 * float64.
 * @example
 * const inputs = new InputSums(4096);
 * for (const x of batches) inputs.add(x);
 * const { adapter, weight } = startLayer(w, { start: 'qera', r: 16, inputs });
 */
export class InputSums implements LayerInputs {
  readonly gram: Float64Array;
  readonly sum: Float64Array;
  rows = 0;
  batches = 0;
  peak = Number.NEGATIVE_INFINITY;

  /**
   * @param K input features, up to 32,768: the sums take 8 · K² bytes
   * @throws ERR_TYPE · ERR_VALUE
   */
  constructor(readonly K: number) {
    checkInteger('InputSums', 'K', K, 1, 2 ** 15);
    this.gram = new Float64Array(K * K);
    this.sum = new Float64Array(K);
  }

  /**
   * Adds a batch.
   * @param x [..., K]
   * @throws ERR_TYPE · ERR_SHAPE · ERR_NON_FINITE · ERR_DISPOSED · ERR_OOM
   */
  add(x: Tensor): void {
    const op = 'InputSums.add';
    checkTensor(op, 'x', x);
    const { K } = this;
    if (lastDim(x) !== K || x.shape.length === 0) {
      fail('ERR_SHAPE', op, 'x', `of shape [..., ${K}]`, showShape(x.shape));
    }
    const values = x.readSync();
    const bad = values.findIndex((value) => !Number.isFinite(value));
    if (bad >= 0) fail('ERR_NON_FINITE', op, 'x', 'finite', `${values[bad]} at ${bad}`);
    const gram = scope(() => weightGrad(x, x).readSync());
    for (let i = 0; i < gram.length; i++) {
      this.gram[i] = (this.gram[i] as number) + (gram[i] as number);
    }
    for (let i = 0; i < values.length; i++) {
      const value = values[i] as number;
      this.sum[i % K] = (this.sum[i % K] as number) + value;
      if (value > this.peak) this.peak = value;
    }
    this.rows += values.length / K;
    this.batches += 1;
  }
}
markClass(InputSums, 'InputSums');
