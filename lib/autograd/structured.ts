import { lastDim } from '../core/check-tensor.js';
import type { DType } from '../core/dtype.js';
import { fail, wrongType } from '../core/errors.js';
import { Tensor } from '../core/tensor.js';
import { readOptions } from '../core/validate.js';
import { blockMatmul, blockMatmulInputGrad, blockWeightGrad } from '../ops/block-matmul.js';
import { multiplyAdd } from '../ops/elementwise.js';
import { FeatureMap, mapFeatures } from '../ops/feature-map.js';
import { matmul } from '../ops/matmul.js';
import { weightGrad } from '../ops/weight-grad.js';
import { checkStep, GradientTape, type Value } from './gradient-tape.js';

/** The identity [n, n] in f32. */
export function identity(n: number, device: Tensor['device']): Tensor {
  const values = new Float32Array(n * n);
  for (let i = 0; i < n; i++) values[i * n + i] = 1;
  return Tensor.from(values, [n, n], { device });
}

/** The transpose of a [R, C]: a product with the smaller identity. Every sum in it has one term. */
function transposed(a: Tensor): Tensor {
  const cols = lastDim(a);
  const rows = a.size / cols;
  return cols <= rows
    ? matmul(identity(cols, a.device), a)
    : weightGrad(a, identity(rows, a.device), { dtype: a.dtype });
}

/** Options of {@link Tape.features}. */
export interface FeatureStepOptions {
  /** Factor of the sums; default 1. */
  alpha?: number;
  /** A summand with the shape of the result. */
  plus?: Value;
  /** Factor of the summand; default 1. */
  beta?: number;
  /** Dtype of the result; default that of `a`. */
  dtype?: DType;
}

/**
 * Steps for adapters that consist of blocks, reflections and rotations. Blocks have two layouts: side
 * by side in every row, [..., G, n], as in activations; and as G matrices [G, n, k].
 */
export class StructuredTape extends GradientTape {
  /** Maps that this pass made. */
  readonly maps: FeatureMap[] = [];

  /** A map that the method did not prepare. It is freed with the tape. */
  #ownMap(map: FeatureMap): FeatureMap {
    this.maps.push(map);
    return map;
  }

  override dispose(): void {
    super.dispose();
    for (const map of this.maps) map.dispose();
  }

  /** `aᵀ` of a matrix [R, C] of which one dimension is small. */
  transpose(a: Value): Value {
    checkStep('Tape.transpose', this, { a });
    return this.record(transposed(a.tensor), [a], [], (dy, pass) => pass.give(a, transposed(dy)));
  }

  // Maps of the last dimension.

  /**
   * `alpha · map(a) + beta · plus`: a [..., K] to [..., J].
   * @param map the method makes it once, in its `prepare`; it must live as long as the tape
   */
  features(a: Value, map: FeatureMap, options: FeatureStepOptions = {}): Value {
    const {
      alpha = 1,
      plus,
      beta = 1,
      dtype,
    } = readOptions('Tape.features', options, { alpha: true, plus: true, beta: true, dtype: true });
    checkStep('Tape.features', this, { a, ...(plus === undefined ? {} : { plus }) });
    const y = mapFeatures(a.tensor, map, {
      alpha,
      ...(plus === undefined ? {} : { c: plus.tensor, beta }),
      ...(dtype === undefined ? {} : { dtype }),
    });
    return this.record(y, plus === undefined ? [a] : [a, plus], [], (dy, pass) => {
      if (pass.wants(a)) {
        pass.give(a, mapFeatures(dy, map.adjoint, { alpha, dtype: a.tensor.dtype }));
      }
      if (plus !== undefined && pass.wants(plus)) {
        pass.give(plus, beta === 1 ? dy : multiplyAdd({ a: dy, alpha: beta }));
      }
    });
  }

  /** Features from `start` up to `end`. If they are the same in every call, prepare a map instead. */
  slice(a: Value, start: number, end: number): Value {
    checkStep('Tape.slice', this, { a });
    const { device } = a.tensor;
    return this.features(
      a,
      this.#ownMap(FeatureMap.slice(lastDim(a.tensor), start, end, { device })),
    );
  }

  /** The features of all values side by side; see {@link Tape.slice}. */
  concat(values: readonly [Value, ...Value[]]): Value {
    const op = 'Tape.concat';
    if (!Array.isArray(values)) throw wrongType(op, 'values', 'an array of values', values);
    if (values.length === 0) fail('ERR_SHAPE', op, 'values', 'of length 1 or more', '0');
    checkStep(op, this, Object.fromEntries(values.map((value, i) => [`values[${i}]`, value])));
    const [{ tensor }] = values;
    const widths = values.map((value) => lastDim(value.tensor));
    const width = widths.reduce((sum, each) => sum + each, 0);
    let at = 0;
    return values.reduce<Value | undefined>((left, value, i) => {
      const index = new Int32Array(width).fill(-1);
      const own = widths[i] as number;
      for (let j = 0; j < own; j++) index[at + j] = j;
      at += own;
      const map = this.#ownMap(FeatureMap.gather(index, own, { device: tensor.device }));
      return this.features(value, map, left === undefined ? {} : { plus: left });
    }, undefined) as Value;
  }

  /** Repeats every feature `times` times, as {@link FeatureMap.repeat} does; see {@link Tape.slice}. */
  repeat(a: Value, times: number, kind: 'inner' | 'outer'): Value {
    checkStep('Tape.repeat', this, { a });
    const { device } = a.tensor;
    return this.features(
      a,
      this.#ownMap(FeatureMap.repeat(lastDim(a.tensor), times, kind, { device })),
    );
  }

  /** Sums of `groups` runs of neighbouring features; see {@link Tape.slice}. */
  groupSum(a: Value, groups: number): Value {
    checkStep('Tape.groupSum', this, { a });
    const { device } = a.tensor;
    return this.features(
      a,
      this.#ownMap(FeatureMap.groupSum(lastDim(a.tensor), groups, { device })),
    );
  }

  // Products block by block.

  /** `x · wᵀ` of every block: x [..., G, K], w [G, N, K] to [..., G, N]. */
  blockMatmul(x: Value, w: Value): Value {
    checkStep('Tape.blockMatmul', this, { x, w });
    const y = blockMatmul(x.tensor, w.tensor);
    return this.record(y, [x, w], [x.tensor, w.tensor], (dy, pass) => {
      if (pass.wants(x)) pass.give(x, blockMatmulInputGrad(dy, w.tensor));
      if (pass.wants(w)) pass.give(w, blockWeightGrad(dy, x.tensor));
    });
  }

  /** `x · w` of every block: x [..., G, N], w [G, N, K] to [..., G, K]. */
  blockProduct(x: Value, w: Value): Value {
    checkStep('Tape.blockProduct', this, { x, w });
    const y = blockMatmulInputGrad(x.tensor, w.tensor);
    return this.record(y, [x, w], [x.tensor, w.tensor], (dy, pass) => {
      if (pass.wants(x)) pass.give(x, blockMatmul(dy, w.tensor));
      if (pass.wants(w)) pass.give(w, blockWeightGrad(x.tensor, dy));
    });
  }

  /** `aᵀ · b` of every block: a [..., G, N], b [..., G, K] to [G, N, K], f32. */
  blockTransposeProduct(a: Value, b: Value): Value {
    checkStep('Tape.blockTransposeProduct', this, { a, b });
    const y = blockWeightGrad(a.tensor, b.tensor);
    return this.record(y, [a, b], [a.tensor, b.tensor], (dy, pass) => {
      if (pass.wants(a)) pass.give(a, blockMatmul(b.tensor, dy));
      if (pass.wants(b)) pass.give(b, blockMatmulInputGrad(a.tensor, dy));
    });
  }

  /**
   * The inverse of every block, by Newton's iteration `X ← 2X - X·(A·X)` from `start`. Each step
   * doubles the number of correct digits and corrects earlier rounding, so the last digits are those
   * of f32. The number of steps is fixed: nothing is read back during a pass. With `start = Aᵀ / c`,
   * where c is at least the square of the largest singular value, n steps reach f32 precision if
   * `c ≤ 2^(n - 4)` times the square of the smallest.
   * @param transposed the transposes Aᵀ, row by row: [n, G, n]
   * @param start [n, G, n]
   * @returns [n, G, n]
   */
  blockInverse(transposed: Value, start: Tensor, steps: number): Value {
    checkStep('Tape.blockInverse', this, { transposed });
    const at = transposed.tensor;
    let x = start;
    for (let i = 0; i < steps; i++) {
      const product = blockWeightGrad(at, x);
      x = multiplyAdd({ a: x, c: blockMatmulInputGrad(x, product), alpha: 2, beta: -1 });
    }
    const inverse = x;
    return this.record(inverse, [transposed], [inverse], (dy, pass) => {
      // dA = -Xᵀ·dX·Xᵀ; the caller needs its transpose.
      const left = blockWeightGrad(inverse, dy);
      pass.give(transposed, multiplyAdd({ a: blockMatmul(inverse, left), alpha: -1 }));
    });
  }

  /** Returns `value`. Its gradient goes to `of` unchanged: for a projection that gradients skip. */
  straightThrough(of: Value, value: Tensor): Value {
    checkStep('Tape.straightThrough', this, { of });
    return this.record(value, [of], [], (dy, pass) => pass.give(of, dy));
  }
}
