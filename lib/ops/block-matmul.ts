import { native } from '../core/binding.js';
import { checkMixes, checkShape, checkTensor, lastDim } from '../core/check-tensor.js';
import { fail } from '../core/errors.js';
import { Tensor } from '../core/tensor.js';
import { checkSameDevice, showShape } from '../core/validate.js';
import { withLast } from './base-weight.js';

/** Checks activations [..., G, `dim`] and a weight [G, N, K]. */
function checkBlocks(
  op: string,
  operand: string,
  value: Tensor,
  w: Tensor,
  dim: 'N' | 'K',
): { N: number; K: number } {
  checkTensor(op, operand, value);
  checkTensor(op, 'w', w);
  if (w.shape.length !== 3) fail('ERR_SHAPE', op, 'w', 'of shape [G, N, K]', showShape(w.shape));
  const [G, N, K] = w.shape as [number, number, number];
  const last = dim === 'N' ? N : K;
  if (value.shape.length < 2 || value.shape.at(-2) !== G || lastDim(value) !== last) {
    const expected = `of shape [..., G = ${G}, ${dim} = ${last}]`;
    fail('ERR_SHAPE', op, operand, expected, showShape(value.shape));
  }
  checkSameDevice(op, 'w', w, value);
  checkMixes(op, 'w', w, value);
  return { N, K };
}

/**
 * A block-diagonal product: `y[m, g, :] = x[m, g, :] · w[g]ᵀ` for each of G blocks. It rounds as
 * {@link matmul} does: products in the dtype of `x`, sums in f32, one rounding. Together with
 * {@link Tensor.reshape} and {@link mapFeatures} it builds butterfly, Monarch, block-orthogonal and
 * multi-head adapters.
 * @param x [..., G, K] f32, bf16 or f16
 * @param w [G, N, K], the dtype of `x` or f32, any dtype if `x` is f32
 * @returns y [..., G, N], dtype of `x`
 * @throws ERR_TYPE, ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_DISPOSED, ERR_OOM
 * @example
 * const y = blockMatmul(x.reshape([M, G, K / G]), blocks).reshape([M, N]);
 */
export function blockMatmul(x: Tensor, w: Tensor): Tensor {
  const op = 'blockMatmul';
  const { N } = checkBlocks(op, 'x', x, w, 'K');
  const xHandle = Tensor.handleOf(x, op, 'x');
  const wHandle = Tensor.handleOf(w, op, 'w');
  return Tensor.adopt(
    native(op, (raw) => raw.blockMatmul(xHandle, wHandle)),
    withLast(x, N),
    x.dtype,
    x.device,
  );
}

/**
 * The gradient of {@link blockMatmul} with respect to its input: `dx[m, g, :] = dy[m, g, :] · w[g]`.
 * @param dy [..., G, N]
 * @param w [G, N, K], the dtype of `dy` or f32
 * @returns dx [..., G, K], dtype of `dy`
 * @throws ERR_TYPE, ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_DISPOSED, ERR_OOM
 * @example
 * const dx = blockMatmulInputGrad(dy, w); // of blockMatmul(x, w)
 */
export function blockMatmulInputGrad(dy: Tensor, w: Tensor): Tensor {
  const op = 'blockMatmulInputGrad';
  const { K } = checkBlocks(op, 'dy', dy, w, 'N');
  const dyHandle = Tensor.handleOf(dy, op, 'dy');
  const wHandle = Tensor.handleOf(w, op, 'w');
  return Tensor.adopt(
    native(op, (raw) => raw.blockMatmulInputGrad(dyHandle, wHandle)),
    withLast(dy, K),
    dy.dtype,
    dy.device,
  );
}

/**
 * The gradient of {@link blockMatmul} with respect to its weight: `dw[g] = Σₘ dy[m, g, :]ᵀ · x[m, g, :]`.
 * Sums in f32, in an order that depends on M only.
 * @param dy [..., G, N] any dtype
 * @param x [..., G, K] any dtype, with the same leading dimensions as dy
 * @returns dw [G, N, K], f32
 * @throws ERR_TYPE, ERR_SHAPE, ERR_DEVICE, ERR_DISPOSED, ERR_OOM
 * @example
 * const dW = blockWeightGrad(dy, x); // of blockMatmul(x, w)
 */
export function blockWeightGrad(dy: Tensor, x: Tensor): Tensor {
  const op = 'blockWeightGrad';
  checkTensor(op, 'dy', dy);
  if (dy.shape.length < 2) {
    fail('ERR_SHAPE', op, 'dy', 'of shape [..., G, N]', showShape(dy.shape));
  }
  checkTensor(op, 'x', x);
  checkShape(op, 'x', x, withLast(dy, lastDim(x)));
  checkSameDevice(op, 'x', x, dy);
  const dyHandle = Tensor.handleOf(dy, op, 'dy');
  const xHandle = Tensor.handleOf(x, op, 'x');
  return Tensor.adopt(
    native(op, (raw) => raw.blockWeightGrad(dyHandle, xHandle)),
    [dy.shape.at(-2) as number, lastDim(dy), lastDim(x)],
    'f32',
    dy.device,
  );
}
