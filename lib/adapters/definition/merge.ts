import { scope } from '../../core/scope.js';
import { Tensor } from '../../core/tensor.js';
import type { BaseWeight } from '../../ops/base-weight.js';
import { multiplyAdd } from '../../ops/elementwise.js';
import { LossSums, type MergeLoss } from '../../ops/lora/merge.js';
import { dequantize, quantizeLike } from '../../ops/quantize.js';
import { weightGrad } from '../../ops/weight-grad.js';
import { QuantizedWeight } from '../../quant/quantized-weight.js';

/** A layer after merging its adapter: `y = x · weightᵀ + bias`. */
export interface MergedLayer {
  /** [N, K], dense or quantised like the base. */
  readonly weight: BaseWeight;
  /** [N], if the base or the adapter has one. */
  readonly bias?: Tensor;
  /** The loss of storing the sum, if the method adds a product of factors. */
  readonly lost?: MergeLoss;
}

/**
 * A weight with an update added to its zero-points, or subtracted from them. Codes and scales stay unchanged, so only the
 * rounding of the sum to f32 is lost.
 * @param added [N, K / blocksize] f32
 */
export function mergeZeroPoints(
  w: QuantizedWeight,
  added: Tensor,
  sign: 1 | -1,
): { readonly weight: QuantizedWeight; readonly lost: MergeLoss } {
  return scope(() => {
    const before = w.zeroPoints as Tensor;
    const sum = multiplyAdd({ a: added, c: before, alpha: sign });
    const [from, update, to] = [before.readSync(), added.readSync(), sum.readSync()];
    const sums = new LossSums();
    sums.add(
      from,
      Float64Array.from(from, (z, i) => z + sign * (update[i] as number)),
      to,
    );
    return { weight: w.withZeroPoints(sum), lost: sums.loss };
  });
}

/** Rows of the identity that pass through the layer at a time. */
const PROBE_ROWS = 256;

/**
 * Weight and bias of an affine layer from its values: the value at zero, and from row k of the
 * identity column k of the weight. Each tile of probes is transposed by a product with the identity,
 * which is exact (every sum has one term).
 * @param layer the layer over the dense weight [N, K], f32
 */
export function mergeByProbe(
  w: BaseWeight,
  bias: Tensor | undefined,
  K: number,
  layer: (x: Tensor, dense: Tensor) => Tensor,
): MergedLayer {
  const { device } = w;
  const [N = 0] = w.shape;
  return scope(() => {
    // Decoded as the products decode it: to the dtype that the weight was quantised from.
    const decoded = w instanceof QuantizedWeight ? dequantize(w, { dtype: w.sourceDType }) : w;
    const dense = decoded.to({ dtype: 'f32' });
    const atZero = layer(Tensor.zeros([1, K], { device }), dense).reshape([N]);
    const merged = Tensor.zeros([N, K], { device });
    for (let begin = 0; begin < K; begin += PROBE_ROWS) {
      scope(() => {
        const rows = Math.min(PROBE_ROWS, K - begin);
        const probes = new Float32Array(rows * K);
        for (let i = 0; i < rows; i++) probes[i * K + begin + i] = 1;
        const x = Tensor.from(probes, [rows, K], { device });
        const y = multiplyAdd({ a: layer(x, dense), c: atZero, beta: -1 });
        weightGrad(y, x, { accumulateInto: merged });
      });
    }
    const affine = bias !== undefined || atZero.readSync().some((value: number) => value !== 0);
    const extra = affine
      ? { bias: bias === undefined ? atZero : atZero.to({ dtype: bias.dtype }) }
      : {};
    if (!(w instanceof QuantizedWeight)) return { weight: merged.to({ dtype: w.dtype }), ...extra };
    return { weight: quantizeLike(merged, w), ...extra };
  });
}
