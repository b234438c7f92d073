import type { Value } from '../../../autograd/gradient-tape.js';
import type { Tape } from '../../../autograd/tape.js';
import type { Device } from '../../../core/device.js';
import { Tensor } from '../../../core/tensor.js';
import { denseRows } from '../../../ops/dense-rows.js';
import { mapTensor, multiplyAdd, sumProduct } from '../../../ops/elementwise.js';
import { matmul, matmulInputGrad } from '../../../ops/matmul.js';

/** Constants of {@link orthonormalColumns} for the columns 0 to r. */
export interface ColumnMasks {
  /** Row k of the identity, [1, r]. */
  readonly unit: readonly Tensor[];
  /** The entry (k, k) of an [r, r]. */
  readonly corner: readonly Tensor[];
  /** 1 after index k, [r, 1] and [1, r]. */
  readonly below: readonly Tensor[];
  readonly right: readonly Tensor[];
}

export function columnMasks(r: number, device: Device): ColumnMasks {
  const make = (shape: number[], is: (k: number, i: number) => boolean): Tensor[] =>
    Array.from({ length: r }, (_, k) => {
      const size = shape.reduce((product, dim) => product * dim, 1);
      const values = Float32Array.from({ length: size }, (_v, i) => (is(k, i) ? 1 : 0));
      return Tensor.from(values, shape, { device });
    });
  return {
    unit: make([1, r], (k, i) => i === k),
    corner: make([r, r], (k, i) => i === k * (r + 1)),
    below: make([r, 1], (k, i) => i > k),
    right: make([1, r], (k, i) => i > k),
  };
}

/**
 * The signs by which the columns of Householder's decomposition differ from those of Gram-Schmidt, from
 * the first r rows of the latter: the elimination of (Q - signs), in which each sign keeps its pivot away
 * from zero (Ballard et al., Reconstructing Householder Vectors from Tall-Skinny QR, 2014).
 */
function householderSigns(top: Tensor, { unit, corner, below, right }: ColumnMasks): Tensor {
  const { device } = top;
  const total = (a: Tensor, b: Tensor): Tensor => {
    const rows = sumProduct(a, b, { axis: 1 });
    return sumProduct(rows.reshape([1, rows.size]), undefined, { axis: 1 });
  };
  let a = top;
  let signs = Tensor.zeros([1, unit.length], { device });
  unit.forEach((e, k) => {
    const at = corner[k] as Tensor;
    const sign = multiplyAdd({ a: mapTensor(total(a, at), 'sign'), alpha: -1 });
    signs = multiplyAdd({ a: e, b: sign, c: signs });
    a = multiplyAdd({ a: at, b: sign, alpha: -1, c: a });
    const column = multiplyAdd({ a: matmul(a, e), b: below[k] as Tensor });
    const row = multiplyAdd({ a: matmulInputGrad(e, a), b: right[k] as Tensor });
    const scaled = multiplyAdd({ a: column, b: mapTensor(total(a, at), 'reciprocal') });
    a = multiplyAdd({ a, c: matmulInputGrad(scaled, row), beta: -1 });
  });
  return signs.reshape([unit.length]);
}

/**
 * An orthonormal basis of the columns of p [N, r], r ≤ N, one after another, with the signs of LAPACK's
 * decomposition (`torch.linalg.qr`). By Gram-Schmidt, twice for each column.
 * @returns [N, r]
 */
export function orthonormalColumns(t: Tape, p: Value, masks: ColumnMasks): Value {
  const r = masks.unit.length;
  const { device } = p.tensor;
  let q: Value | undefined;
  for (const unit of masks.unit) {
    const e = t.constant(unit);
    let v = t.matmul(p, e);
    for (let pass = 0; pass < 2 && q !== undefined; pass++) {
      v = t.add(v, t.product(q, t.transposeProduct(q, v)), 1, -1);
    }
    const length = t.map(t.sum(t.map(v, 'square'), 0), 'rsqrt');
    const column = t.product(t.multiply(v, length), e);
    q = q === undefined ? column : t.add(q, column);
  }
  const whole = q ?? t.own(Tensor.zeros([p.shape[0] ?? 0, r], { device }));
  const signs = householderSigns(denseRows(whole.tensor, 0, r), masks);
  return t.multiply(whole, t.own(signs));
}
