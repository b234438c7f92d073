/** What an adapter's low-rank update does in a layer: the size of its outputs, and how the loss depends on it. */

import { weightGradTiles } from '../autograd/dense-update.js';
import { checkShape, checkTensor, lastDim } from '../core/check-tensor.js';
import { scope } from '../core/scope.js';
import type { Tensor } from '../core/tensor.js';
import { checkFinite, checkSameDevice } from '../core/validate.js';
import { denseRows } from '../ops/dense-rows.js';
import { mapTensor, multiplyAdd, sumProduct } from '../ops/elementwise.js';
import { matmul, matmulInputGrad } from '../ops/matmul.js';
import { weightGrad } from '../ops/weight-grad.js';

/** Σ over rows of ‖scaling · h · loraBᵀ‖², from the r × r matrix loraBᵀ · loraB: the outputs are not made. */
export function outputSquares(h: Tensor, loraB: Tensor, scaling: number): number {
  return scope(() => {
    const gram = weightGrad(loraB, loraB);
    const turned = matmul(h, gram);
    return scaling * scaling * total(h, turned);
  });
}

/** Σ a ⊙ b, or Σ a. */
function total(a: Tensor, b?: Tensor): number {
  const rows = sumProduct(a, b, { axis: 1 });
  return sumProduct(rows.reshape([1, rows.size]), undefined, { axis: 1 }).readSync()[0] as number;
}

/** A layer's low-rank update and one batch of its inputs and output gradients. */
export interface UpdateParts {
  /** The gradient of the layer's output, [..., N]. */
  readonly dy: Tensor;
  /** [..., K] */
  readonly x: Tensor;
  /** [r, K] */
  readonly loraA: Tensor;
  /** [N, r] */
  readonly loraB: Tensor;
  readonly scaling: number;
}

/**
 * The sensitivity of a loss to a layer's update ΔW = scaling · loraB · loraA as a whole (Zhang et al., IncreLoRA: Incremental
 * Parameter Allocation Method for Parameter-Efficient Fine-tuning, 2023, arXiv:2308.12043, as the authors' program computes
 * it): Σ |ΔW ⊙ dyᵀ · x| / √(N · K). Both matrices are made in tiles of rows.
 * @throws ERR_TYPE · ERR_SHAPE · ERR_DEVICE · ERR_DISPOSED · ERR_OOM
 * @example
 * const score = updateSensitivity({ dy, x, loraA, loraB, scaling: 2 });
 */
export function updateSensitivity({ dy, x, loraA, loraB, scaling }: UpdateParts): number {
  const op = 'updateSensitivity';
  for (const [name, tensor] of Object.entries({ dy, x, loraA, loraB })) {
    checkTensor(op, name, tensor);
    checkSameDevice(op, name, tensor, dy);
  }
  checkFinite(op, 'scaling', scaling);
  const [N, K] = [lastDim(dy), lastDim(x)];
  const [r = 0] = loraA.shape;
  checkShape(op, 'loraA', loraA, [r, K]);
  checkShape(op, 'loraB', loraB, [N, r]);
  const consume = (gradient: Tensor, begin: number, end: number): number => {
    const update = matmulInputGrad(denseRows(loraB, begin, end), loraA);
    const sizes = mapTensor(multiplyAdd({ a: update, b: gradient, alpha: scaling }), 'abs');
    return total(sizes);
  };
  const sum = weightGradTiles(dy, x, { consume }).reduce((a, b) => a + b, 0);
  return sum / Math.sqrt(N * K);
}
