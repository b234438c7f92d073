import { native } from '../../core/binding.js';
import { checkShape, checkTensor, lastDim } from '../../core/check-tensor.js';
import { fail, shown, wrongType } from '../../core/errors.js';
import { Tensor } from '../../core/tensor.js';
import { checkFinite, checkSameDevice, orDefault, readOptions } from '../../core/validate.js';

/** How {@link rmsNormForward} works. */
export interface RmsNormOptions {
  /** Added to the mean square; default 1e-6. */
  eps?: number;
  /** Added to x before, in the same pass: shape of x, any dtype. */
  residual?: Tensor;
  /** The gain is `1 + g`, as in Gemma; default false. */
  plusOne?: boolean;
  /** Keep the inverse root mean squares for the backward pass; default true. */
  keep?: boolean;
}

/** What {@link rmsNormForward} returns. */
export interface RmsNormResult {
  /** Shape and dtype of x. */
  y: Tensor;
  /** `x + residual`, shape and dtype of x; only where a residual was given. */
  sum?: Tensor;
  /** [M] f32, one a row; absent with `keep: false`. */
  invRms?: Tensor;
}

/** A gain of D values: [D], or [1, D]. */
function checkGain(op: string, g: unknown, x: Tensor): Tensor {
  const gain = checkTensor(op, 'g', g);
  const D = lastDim(x);
  if (gain.size !== D || lastDim(gain) !== D) {
    fail('ERR_SHAPE', op, 'g', `[${D}]`, `[${gain.shape.join(', ')}]`);
  }
  checkSameDevice(op, 'g', gain, x);
  return gain;
}

function checkFlag(op: string, name: string, value: unknown): void {
  if (typeof value !== 'boolean') throw wrongType(op, name, 'a boolean', value);
}

/**
 * Normalises each row by its root mean square (Zhang and Sennrich, Root Mean Square Layer
 * Normalization, 2019, arXiv:1910.07467). With `s = x + residual`, rounded to the dtype of x, or
 * `s = x`: `y = s · (mean s² + eps)^-½ · gain`, where the gain is `g` or `1 + g`. The mean is summed in
 * double. A row has the same bits alone and in any batch, on `cpu` with every instruction set.
 * @param x [..., D], any dtype
 * @param g [D], any dtype
 * @throws ERR_TYPE, ERR_SHAPE, ERR_VALUE, ERR_DEVICE, ERR_DISPOSED, ERR_OOM
 * @example
 * const { y, sum } = rmsNormForward(x, g, { residual: attentionOutput, eps: 1e-5 });
 */
export function rmsNormForward(x: Tensor, g: Tensor, options?: RmsNormOptions): RmsNormResult {
  const op = 'rmsNormForward';
  checkTensor(op, 'x', x);
  const gain = checkGain(op, g, x);
  const given = readOptions(op, options, { eps: true, residual: true, plusOne: true, keep: true });
  const eps = checkFinite(op, 'eps', orDefault(given.eps, 1e-6));
  const { residual, plusOne = false, keep = true } = given;
  checkFlag(op, 'plusOne', plusOne);
  checkFlag(op, 'keep', keep);
  if (residual !== undefined) {
    checkTensor(op, 'residual', residual);
    checkShape(op, 'residual', residual, x.shape);
    checkSameDevice(op, 'residual', residual, x);
  }
  const handles = {
    x: Tensor.handleOf(x, op, 'x'),
    residual: residual === undefined ? null : Tensor.handleOf(residual, op, 'residual'),
    g: Tensor.handleOf(gain, op, 'g'),
  };
  const [y, sum, invRms] = native(op, (raw) =>
    raw.rmsNormForward(handles.x, handles.residual, handles.g, eps, plusOne, keep),
  );
  const { shape, dtype, device } = x;
  const rows = x.size === 0 ? shape.slice(0, -1).reduce((a, b) => a * b, 1) : x.size / lastDim(x);
  return {
    y: Tensor.adopt(y, shape, dtype, device),
    ...(sum === null ? {} : { sum: Tensor.adopt(sum, shape, dtype, device) }),
    ...(invRms === null ? {} : { invRms: Tensor.adopt(invRms, [rows], 'f32', device) }),
  };
}

/** How {@link rmsNormBackward} works. */
export interface RmsNormBackwardOptions {
  /** [M] f32, of {@link rmsNormForward}. */
  invRms: Tensor;
  /** The gradient of `sum`, which is added: shape of x, any dtype. */
  dSum?: Tensor;
  plusOne?: boolean;
  /** Default both. */
  needs?: readonly ('dx' | 'dg')[];
}

/**
 * Gradients of {@link rmsNormForward}. With `u = gain ⊙ dy` and `c = Σ s ⊙ u` of a row:
 * `dx = invRms · u - s · invRms³ · c / D + dSum`, which is also the gradient of the residual, and
 * `dg = Σₘ dy ⊙ s · invRms`.
 * @param dy shape of x, any dtype
 * @param x what was normalised: x, or `sum` where there was a residual
 * @param g [D]
 * @returns dx in the shape and dtype of x; dg [D] f32; each only where it is needed
 * @throws ERR_TYPE, ERR_SHAPE, ERR_VALUE, ERR_DEVICE, ERR_DISPOSED, ERR_OOM
 * @example
 * const { dx } = rmsNormBackward(dy, sum, g, { invRms, needs: ['dx'] });
 */
export function rmsNormBackward(
  dy: Tensor,
  x: Tensor,
  g: Tensor,
  options: RmsNormBackwardOptions,
): { dx?: Tensor; dg?: Tensor } {
  const op = 'rmsNormBackward';
  checkTensor(op, 'x', x);
  checkTensor(op, 'dy', dy);
  checkShape(op, 'dy', dy, x.shape);
  checkSameDevice(op, 'dy', dy, x);
  const gain = checkGain(op, g, x);
  const given = readOptions(op, options, { invRms: true, dSum: true, plusOne: true, needs: true });
  const { invRms, dSum, plusOne = false, needs = ['dx', 'dg'] } = given;
  checkFlag(op, 'plusOne', plusOne);
  const inverse = checkTensor(op, 'invRms', invRms);
  checkSameDevice(op, 'invRms', inverse, x);
  if (dSum !== undefined) {
    checkTensor(op, 'dSum', dSum);
    checkShape(op, 'dSum', dSum, x.shape);
    checkSameDevice(op, 'dSum', dSum, x);
  }
  if (!Array.isArray(needs)) throw wrongType(op, 'needs', 'an array of dx and dg', needs);
  for (const [i, name] of needs.entries()) {
    if (name !== 'dx' && name !== 'dg') {
      fail('ERR_VALUE', op, `needs[${i}]`, 'dx or dg', shown(name));
    }
  }
  const handles = {
    dy: Tensor.handleOf(dy, op, 'dy'),
    x: Tensor.handleOf(x, op, 'x'),
    g: Tensor.handleOf(gain, op, 'g'),
    invRms: Tensor.handleOf(inverse, op, 'invRms'),
    dSum: dSum === undefined ? null : Tensor.handleOf(dSum, op, 'dSum'),
  };
  const [dx, dg] = native(op, (raw) =>
    raw.rmsNormBackward(
      handles.dy,
      handles.x,
      handles.g,
      handles.invRms,
      handles.dSum,
      plusOne,
      needs.includes('dx'),
      needs.includes('dg'),
    ),
  );
  return {
    ...(dx === null ? {} : { dx: Tensor.adopt(dx, x.shape, x.dtype, x.device) }),
    ...(dg === null ? {} : { dg: Tensor.adopt(dg, [lastDim(x)], 'f32', x.device) }),
  };
}
