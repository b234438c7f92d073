import { native } from '../../core/binding.js';
import { checkTensor, checkVector, lastDim } from '../../core/check-tensor.js';
import { fail, shown, wrongType } from '../../core/errors.js';
import { Tensor } from '../../core/tensor.js';
import { checkFinite, checkSameDevice, orDefault, readOptions } from '../../core/validate.js';
import { type BaseWeight, checkActivations, checkWeight } from '../base-weight.js';
import { Indices } from './indices.js';

/** How {@link linearCrossEntropy} works. */
export interface LinearCrossEntropyOptions {
  /** [M] f32: what each token's loss weighs in the gradient; default 1. */
  weights?: Tensor;
  /** Times every weight, for instance 1 / the number of targets for a mean; default 1. */
  scale?: number;
  /** Caps the logits: `cap · tanh(z / cap)`. Default none. */
  softcap?: number;
  /** Compute dx too; default true. `false` for evaluation, which is half of the work. */
  gradient?: boolean;
}

/**
 * The loss of a language model and the gradient of its features, without the logits ever being
 * stored: blocks of the vocabulary go by, as keys do in attention, and each product over the head is
 * made once. With logits `z = x · headᵀ`:
 *
 * `losses[m] = log Σᵥ exp z[m, v] - z[m, targets[m]]`, and
 * `dx = scale · weights ⊙ (softmax(z) - onehot(targets)) · head`.
 *
 * A token whose target is negative has the loss 0 and the gradient 0. The softmax is rounded to the
 * dtype of x, as a gradient is before a product with a weight. Each token's result depends on neither
 * the batch nor the number of threads; on a CUDA device with a head of 1 MiB and more that takes
 * `LOWRANK_CUDA_BATCH_INVARIANT=1`, as with any product.
 * @param x features [..., K], f32, bf16 or f16; M rows
 * @param head [V, K], frozen, dense or quantised; the embedding table where they are tied
 * @param targets M indices below V; negative ones where `holes` allows them
 * @returns losses [M] f32; dx in the shape and dtype of x, unless `gradient` is false
 * @throws ERR_TYPE, ERR_SHAPE, ERR_VALUE, ERR_DTYPE, ERR_DEVICE, ERR_DISPOSED, ERR_OOM
 * @example
 * const targets = Indices.from(next, { limit: V, holes: true }); // -100: not counted
 * const { losses, dx } = linearCrossEntropy(features, head, targets, { scale: 1 / counted });
 */
export function linearCrossEntropy(
  x: Tensor,
  head: BaseWeight,
  targets: Indices,
  options?: LinearCrossEntropyOptions,
): { losses: Tensor; dx?: Tensor } {
  const op = 'linearCrossEntropy';
  checkTensor(op, 'x', x);
  const { weight, handle, K } = checkWeight(op, head, 'head');
  checkActivations(op, 'x', x, weight, 'K', K);
  const targetsHandle = Indices.handleOf(targets, op, 'targets');
  checkSameDevice(op, 'targets', targets, x);
  const rows = lastDim(x) === 0 ? 0 : x.size / lastDim(x);
  if (targets.length !== rows) {
    fail('ERR_SHAPE', op, 'targets', `${rows} indices, one a row of x`, String(targets.length));
  }
  const given = readOptions(op, options, {
    weights: true,
    scale: true,
    softcap: true,
    gradient: true,
  });
  const scale = checkFinite(op, 'scale', orDefault(given.scale, 1));
  const softcap = checkFinite(op, 'softcap', orDefault(given.softcap, 0));
  if (softcap < 0) fail('ERR_VALUE', op, 'softcap', '0 or above', shown(softcap));
  const gradient: unknown = orDefault(given.gradient, true);
  if (typeof gradient !== 'boolean') throw wrongType(op, 'gradient', 'a boolean', gradient);
  const { weights } = given;
  if (weights !== undefined) {
    checkTensor(op, 'weights', weights);
    checkVector(op, 'weights', weights, rows);
    checkSameDevice(op, 'weights', weights, x);
    if (weights.dtype !== 'f32') fail('ERR_DTYPE', op, 'weights', 'f32', weights.dtype);
  }
  const xHandle = Tensor.handleOf(x, op, 'x');
  const weightsHandle = weights === undefined ? null : Tensor.handleOf(weights, op, 'weights');
  const [losses, dx] = native(op, (raw) =>
    raw.linearCrossEntropy(xHandle, handle, targetsHandle, weightsHandle, scale, softcap, gradient),
  );
  return {
    losses: Tensor.adopt(losses, [rows], 'f32', x.device),
    ...(dx === null ? {} : { dx: Tensor.adopt(dx, x.shape, x.dtype, x.device) }),
  };
}
