import { native } from '../core/binding.js';
import { checkTensor, checkVector } from '../core/check-tensor.js';
import { Tensor } from '../core/tensor.js';
import { checkSameDevice, readOptions } from '../core/validate.js';
import { type BaseWeight, checkActivations, checkWeight, withLast } from './base-weight.js';
import { type ComputePrecision, checkCompute } from './compute.js';
import { addZeroGrad, productWithZeros, zeroTermOf } from './zero-points.js';

/**
 * Product with a base weight: `y = x · wᵀ + bias`. The kernel decodes a quantised weight tile by
 * tile to the dtype of `x` and never stores it dense.
 * @param x [..., K] f32, bf16 or f16
 * @param w [N, K] dense (f32 mixes with every dtype of `x`, the two 16-bit types do not mix) or quantised
 * @param options.bias [N], any dtype
 * @param options.compute `int8` rounds both operands to int8 codes; see {@link ComputePrecision} for
 * the definition and the error bound. Default `exact`
 * @returns y [..., N], dtype of `x`, accumulated in f32 and rounded once
 * @throws ERR_TYPE, ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_VALUE, ERR_UNSUPPORTED, ERR_DISPOSED,
 *   ERR_OOM
 * @example
 * const y = matmul(x, quantize(w, { format: 'nf4' }), { bias });
 */
export function matmul(
  x: Tensor,
  w: BaseWeight,
  options?: { bias?: Tensor; compute?: ComputePrecision },
): Tensor {
  const op = 'matmul';
  checkTensor(op, 'x', x);
  const { weight, handle, N, K } = checkWeight(op, w);
  checkActivations(op, 'x', x, weight, 'K', K);
  const given = readOptions(op, options, { bias: true, compute: true });
  const biasHandle = biasOf(op, given.bias, x, N);
  const compute = checkCompute(op, given.compute, x, weight);
  const zeros = zeroTermOf(weight);
  if (zeros !== undefined) {
    return productWithZeros(op, zeros, { x, handle, bias: biasHandle, compute, N });
  }
  const xHandle = Tensor.handleOf(x, op, 'x');
  return Tensor.adopt(
    native(op, (raw) => raw.matmul(xHandle, handle, biasHandle, compute)),
    withLast(x, N),
    x.dtype,
    x.device,
  );
}

/** The handle of an optional bias [N]. */
export function biasOf(op: string, bias: Tensor | undefined, x: Tensor, N: number, name = 'bias') {
  if (bias === undefined) return null;
  checkTensor(op, name, bias);
  checkVector(op, name, bias, N);
  checkSameDevice(op, name, bias, x);
  return Tensor.handleOf(bias, op, name);
}

/**
 * Gradient of {@link matmul} with respect to its input: `dx = dy · w`. It reads the packed weight
 * in place and makes no transposed or dense copy.
 * @param dy [..., N]
 * @param w [N, K] dense or quantised
 * @returns dx [..., K], dtype of `dy`
 * @throws ERR_TYPE, ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_DISPOSED, ERR_OOM
 * @example
 * const dx = matmulInputGrad(dy, w4); // of matmul(x, w4)
 */
export function matmulInputGrad(dy: Tensor, w: BaseWeight): Tensor {
  const op = 'matmulInputGrad';
  checkTensor(op, 'dy', dy);
  const { weight, handle, N, K } = checkWeight(op, w);
  checkActivations(op, 'dy', dy, weight, 'N', N);
  const dyHandle = Tensor.handleOf(dy, op, 'dy');
  const dx = Tensor.adopt(
    native(op, (raw) => raw.matmulInputGrad(dyHandle, handle)),
    withLast(dy, K),
    dy.dtype,
    dy.device,
  );
  const zeros = zeroTermOf(weight);
  return zeros === undefined ? dx : addZeroGrad(op, zeros, dy, dx, false);
}
