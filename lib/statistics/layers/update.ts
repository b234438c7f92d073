/** What an adapter's low-rank update does in a layer: the size of its outputs, and how the loss depends on it. */

import { weightGradTiles } from '../../autograd/dense-update.js';
import { checkShape, checkTensor, lastDim } from '../../core/check-tensor.js';
import { scope } from '../../core/scope.js';
import type { Tensor } from '../../core/tensor.js';
import { checkFinite, checkSameDevice } from '../../core/validate.js';
import { denseRows } from '../../ops/dense-rows.js';
import { mapTensor, multiplyAdd, sumProduct } from '../../ops/elementwise.js';
import type { MergeParts } from '../../ops/lora/merge.js';
import { matmul, matmulInputGrad } from '../../ops/matmul.js';
import { weightGrad } from '../../ops/weight-grad.js';

/** Σ a ⊙ b, or Σ a. */
function total(a: Tensor, b?: Tensor): number {
  const rows = sumProduct(a, b, { axis: 1 });
  return sumProduct(rows.reshape([1, rows.size]), undefined, { axis: 1 }).readSync()[0] as number;
}

/** The low-rank update of a layer: ΔW = scaling · loraB · core · loraA. */
export type LayerUpdate = Pick<MergeParts, 'loraA' | 'loraB' | 'core' | 'scaling'>;

/** loraB · core [N, r], or loraB. */
function withCore(loraB: Tensor, core: Tensor | undefined): Tensor {
  if (core === undefined) return loraB;
  return core.shape.length === 1
    ? multiplyAdd({ a: loraB, b: core, dtype: 'f32' })
    : matmulInputGrad(loraB, core);
}

/**
 * Σ over rows of ‖ΔW x‖². The outputs of the layer are not made: with h = x · loraAᵀ it is Σ (h · loraBᵀ · loraB) ⊙ h.
 * @param x [..., K]
 * @throws ERR_TYPE · ERR_SHAPE · ERR_DEVICE · ERR_DISPOSED · ERR_OOM
 * @example
 * const energy = outputSquares(x, { loraA, loraB, scaling: 2 }) / rows;
 */
export function outputSquares(x: Tensor, update: LayerUpdate): number {
  checkUpdate('outputSquares', update, { x });
  const { loraA, loraB, core, scaling = 1 } = update;
  return scope(() => {
    const up = withCore(loraB, core);
    const h = matmul(x.to({ dtype: 'f32' }), loraA);
    return scaling * scaling * total(matmul(h, weightGrad(up, up)), h);
  });
}

function checkUpdate(
  op: string,
  { loraA, loraB, core, scaling = 1 }: LayerUpdate,
  { x, dy }: { readonly x: Tensor; readonly dy?: Tensor },
): void {
  checkTensor(op, 'x', x);
  for (const [name, tensor] of Object.entries({ dy, loraA, loraB, core })) {
    if (tensor === undefined && (name === 'core' || name === 'dy')) continue;
    checkSameDevice(op, name, checkTensor(op, name, tensor), x);
  }
  checkFinite(op, 'scaling', scaling);
  const [r = 0] = loraA.shape;
  checkShape(op, 'loraA', loraA, [r, lastDim(x)]);
  const [N = 0, p = 0] = loraB.shape;
  if (dy !== undefined) checkShape(op, 'loraB', loraB, [lastDim(dy), p]);
  if (core === undefined || core.shape.length === 1) checkShape(op, 'loraB', loraB, [N, r]);
  if (core !== undefined) checkShape(op, 'core', core, core.shape.length === 1 ? [r] : [p, r]);
}

/**
 * The sensitivity of a loss to a layer's update ΔW = scaling · loraB · loraA as a whole (Zhang et al., IncreLoRA: Incremental
 * Parameter Allocation Method for Parameter-Efficient Fine-tuning, 2023, arXiv:2308.12043, as the authors' program computes
 * it): Σ |ΔW ⊙ dyᵀ · x| / √(N · K). Both matrices are made in tiles of rows.
 * @param dy the gradient of the layer's output, [..., N]
 * @param x [..., K]
 * @throws ERR_TYPE · ERR_SHAPE · ERR_DEVICE · ERR_DISPOSED · ERR_OOM
 * @example
 * const score = updateSensitivity(dy, x, { loraA, loraB, scaling: 2 });
 */
export function updateSensitivity(dy: Tensor, x: Tensor, update: LayerUpdate): number {
  checkUpdate('updateSensitivity', update, { x, dy });
  const { loraA, loraB, core, scaling = 1 } = update;
  const [N, K] = [lastDim(dy), lastDim(x)];
  return scope(() => {
    const up = withCore(loraB, core);
    const consume = (gradient: Tensor, begin: number, end: number): number => {
      const rows = matmulInputGrad(denseRows(up, begin, end), loraA);
      return total(mapTensor(multiplyAdd({ a: rows, b: gradient, alpha: scaling }), 'abs'));
    };
    const sum = weightGradTiles(dy, x, { consume }).reduce((a, b) => a + b, 0);
    return sum / Math.sqrt(N * K);
  });
}
