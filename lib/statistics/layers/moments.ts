import { checkTensor, lastDim } from '../../core/check-tensor.js';
import { fail, markClass } from '../../core/errors.js';
import { scope } from '../../core/scope.js';
import type { Tensor } from '../../core/tensor.js';
import { checkInteger, showShape } from '../../core/validate.js';
import { sumProduct } from '../../ops/elementwise.js';
import type { InputSums } from '../../starts/calibration/inputs.js';

/**
 * Means and norms of the features of a layer's inputs: the diagonal of what {@link InputSums} has, in 16 · K bytes. Sums of a
 * batch run natively in double, sums over batches are float64.
 * @example
 * const moments = new InputMoments(4096);
 * for (const x of batches) moments.add(x);
 * const importance = moments.norms; // of input features, as Wanda has it
 */
export class InputMoments {
  /** [K]: Σ x */
  readonly sum: Float64Array;
  /** [K]: Σ x² */
  readonly squares: Float64Array;
  rows = 0;

  /**
   * @param K input features
   * @throws ERR_TYPE · ERR_VALUE
   */
  constructor(readonly K: number) {
    checkInteger('InputMoments', 'K', K, 1, 2 ** 31);
    this.sum = new Float64Array(K);
    this.squares = new Float64Array(K);
  }

  /** The moments of sums that exist. */
  static of({ K, gram, sum, rows }: InputSums): InputMoments {
    const made = new InputMoments(K);
    made.sum.set(sum);
    for (let i = 0; i < K; i++) made.squares[i] = gram[i * K + i] as number;
    made.rows = rows;
    return made;
  }

  /**
   * Adds a batch.
   * @param x [..., K]
   * @throws ERR_TYPE · ERR_SHAPE · ERR_NON_FINITE · ERR_DISPOSED · ERR_OOM
   */
  add(x: Tensor): void {
    const op = 'InputMoments.add';
    checkTensor(op, 'x', x);
    const { K } = this;
    if (x.shape.length === 0 || lastDim(x) !== K) {
      fail('ERR_SHAPE', op, 'x', `of shape [..., ${K}]`, showShape(x.shape));
    }
    const [sums, squares] = scope(() => {
      const both = [undefined, x].map((b) => sumProduct(x, b, { axis: 0 }));
      return both.map((each) => each.readSync());
    }) as [Float32Array, Float32Array];
    const bad = squares.find((value) => !Number.isFinite(value));
    if (bad !== undefined) fail('ERR_NON_FINITE', op, 'Σ x²', 'finite', String(bad));
    for (let i = 0; i < K; i++) {
      this.sum[i] = (this.sum[i] as number) + (sums[i] as number);
      this.squares[i] = (this.squares[i] as number) + (squares[i] as number);
    }
    this.rows += x.size / K;
  }

  /** [K]: the mean of each feature. */
  get mean(): Float64Array {
    return this.sum.map((value) => value / this.rows);
  }

  /** [K]: the Euclidean norm of each feature over all rows. */
  get norms(): Float64Array {
    return this.squares.map(Math.sqrt);
  }
}
markClass(InputMoments, 'InputMoments');
