/**
 * Products with a weight that has zero-points. The kernels read only codes and scales. With z [N, G] the zero-points
 * and S the sums of blocks, `w = ŵ + z · S`, so z adds a low-rank term of G = K / blocksize columns:
 *
 *   x · wᵀ = x · ŵᵀ + (x · Sᵀ) · zᵀ    in the accumulators of the product, as an adapter's term is
 *   dy · w = dy · ŵ + (dy · z) · S     each element of (dy · z) added to a block of dx
 */
import { type NativeHandle, native } from '../core/binding.js';
import { lastDim } from '../core/check-tensor.js';
import type { DType } from '../core/dtype.js';
import { outsideScopes, scope } from '../core/scope.js';
import { Tensor } from '../core/tensor.js';
import { QuantizedWeight } from '../quant/quantized-weight.js';
import { type BaseWeight, withLast } from './base-weight.js';
import { multiplyAdd } from './elementwise.js';
import { FeatureMap, mapFeatures } from './feature-map.js';

/** What zero-points add to the products of a weight. */
export interface ZeroTerm {
  readonly weight: QuantizedWeight;
  /** z [N, G], f32 */
  readonly zeros: Tensor;
  /** S, from K features to G; its adjoint spreads G values over their blocks. */
  readonly sums: FeatureMap;
}

/** Undefined for a weight without zero-points. */
export function zeroTermOf(weight: BaseWeight): ZeroTerm | undefined {
  if (!QuantizedWeight.is(weight) || weight.zeroPoints === undefined) return undefined;
  const [, K = 0] = weight.shape;
  const { zeroPoints: zeros, device, blocksize } = weight;
  const sums = companion(weight, 'sums', () => FeatureMap.groupSum(K, K / blocksize, { device }));
  return { weight, zeros, sums };
}

function companion(weight: QuantizedWeight, key: string, make: () => FeatureMap) {
  return QuantizedWeight.companion(weight, key, () => outsideScopes(make));
}

/** [a | b] in f32, with a times alpha. */
function beside(weight: QuantizedWeight, a: Tensor, b: Tensor, alpha = 1): Tensor {
  const [r, G] = [lastDim(a), lastDim(b)];
  const place = (side: string, width: number, first: number) =>
    companion(weight, `${side} of ${r}`, () => {
      const index = new Int32Array(r + G).map((_, j) =>
        j >= first && j < first + width ? j - first : -1,
      );
      return FeatureMap.gather(index, width, { device: weight.device });
    });
  using left = mapFeatures(a, place('left', r, 0), { alpha, dtype: 'f32' });
  return mapFeatures(b, place('right', G, r), { c: left, dtype: 'f32' });
}

/** The checked operands of a product with zero-points. */
export interface ZeroProduct {
  readonly x: Tensor;
  readonly handle: NativeHandle;
  readonly bias: NativeHandle | null;
  readonly compute: string;
  readonly N: number;
  /** h [..., r] f32 and loraB [N, r]; their product is added too. */
  readonly adapter?: { readonly h: Tensor; readonly loraB: Tensor; readonly scaling: number };
}

/** `x · wᵀ + bias + scaling · h · loraBᵀ`, rounded once. */
export function productWithZeros(op: string, term: ZeroTerm, given: ZeroProduct): Tensor {
  const { x, handle, bias, compute, N, adapter } = given;
  const { weight, zeros, sums } = term;
  return scope(() => {
    const own = mapFeatures(x, sums, { dtype: 'f32' });
    const h = adapter === undefined ? own : beside(weight, adapter.h, own, adapter.scaling);
    const loraB = adapter === undefined ? zeros : beside(weight, adapter.loraB, zeros);
    const [xHandle, hHandle, bHandle] = [
      Tensor.handleOf(x, op, 'x'),
      Tensor.handleOf(h, op, 'h'),
      Tensor.handleOf(loraB, op, 'loraB'),
    ];
    return Tensor.adopt(
      native(op, (raw) => raw.loraExpand(xHandle, handle, bias, hHandle, bHandle, 1, compute)),
      withLast(x, N),
      x.dtype,
      x.device,
    );
  });
}

/** y with `(x · Sᵀ) · zᵀ` added in f32 and rounded once more, as a new tensor; y is freed. */
export function addZeroProduct(op: string, term: ZeroTerm, x: Tensor, y: Tensor): Tensor {
  return scope(() => {
    const sums = mapFeatures(x, term.sums, { dtype: 'f32' });
    const [sHandle, zHandle] = [
      Tensor.handleOf(sums, op, 'x'),
      Tensor.handleOf(term.zeros, op, 'w'),
    ];
    const own = Tensor.adopt(
      native(op, (raw) => raw.matmul(sHandle, zHandle, null, 'exact')),
      y.shape,
      'f32',
      y.device,
    );
    const sum = multiplyAdd({ a: own, c: y, dtype: y.dtype });
    y.dispose();
    return sum;
  });
}

/**
 * dx with `(dy · z) · S` added in f32 and rounded once more: in place if dx is the caller's own tensor, else as a
 * new tensor; dx is then freed.
 */
export function addZeroGrad(
  op: string,
  term: ZeroTerm,
  dy: Tensor,
  dx: Tensor,
  keep: boolean,
): Tensor {
  const { zeros, sums } = term;
  return scope(() => {
    const [dyHandle, zHandle] = [Tensor.handleOf(dy, op, 'dy'), Tensor.handleOf(zeros, op, 'w')];
    const [dhHandle] = native(op, (raw) =>
      raw.loraExpandBackward(dyHandle, null, zHandle, 1, ['f32', null, null]),
    );
    const dh = Tensor.adopt(
      dhHandle as NativeHandle,
      withLast(dy, lastDim(zeros)),
      'f32',
      dy.device,
    );
    const sum = mapFeatures(dh, sums.adjoint, { c: dx, dtype: dx.dtype });
    if (!keep) {
      dx.dispose();
      return sum;
    }
    const [to, from] = [
      Tensor.handleOf(dx, op, 'accumulateInto.dx'),
      Tensor.handleOf(sum, op, 'dx'),
    ];
    native(op, (raw) => raw.putRows(to, from, 0));
    return dx;
  });
}

/**
 * Adds the zero-points of the weight's rows from `first` on to some rows [T, K] in f32, or subtracts them (sign −1):
 * from decoded codes to the weight's values, and back.
 */
export function shiftRows(
  rows: Tensor,
  term: ZeroTerm,
  options: { dtype: DType; first?: number; sign?: 1 | -1 },
): Tensor {
  const { dtype, first = 0, sign = 1 } = options;
  const op = 'denseRows';
  const handle = Tensor.handleOf(term.zeros, op, 'w');
  const [T = 0] = rows.shape;
  using zeros = Tensor.adopt(
    native(op, (raw) => raw.takeRows(handle, 'f32', first, T)),
    [T, lastDim(term.zeros)],
    'f32',
    rows.device,
  );
  return mapFeatures(zeros, term.sums.adjoint, { c: rows, alpha: sign, dtype });
}
