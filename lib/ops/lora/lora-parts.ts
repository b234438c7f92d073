import { native } from '../../core/binding.js';
import { checkMixes, checkShape, checkTensor, lastDim } from '../../core/check-tensor.js';
import { fail } from '../../core/errors.js';
import { Tensor } from '../../core/tensor.js';
import {
  checkDropout,
  checkFinite,
  checkSameDevice,
  orDefault,
  readOptions,
  showShape,
} from '../../core/validate.js';
import {
  type BaseWeight,
  checkActivations,
  checkFactor,
  checkWeight,
  withLast,
} from '../base-weight.js';
import { type ComputePrecision, checkCompute } from '../compute.js';
import { checkTraining, resolveDropout } from '../dropout.js';
import { WantedGradients } from '../gradients.js';
import { biasOf } from '../matmul.js';
import { addZeroGrad, productWithZeros, zeroTermOf } from '../zero-points.js';

/** Dropout of the adapter's input, the same in {@link loraShrink} and {@link loraShrinkBackward}. */
export interface LoraDropoutOptions {
  /** Drop probability in [0, 1); default 0. */
  dropout?: number;
  /** Seed of the mask; required with dropout unless a mask is given. */
  seed?: number;
  /** [..., K], 1 = kept: replaces the generator. Kept elements are scaled by `1 / (1 - dropout)`. */
  dropoutMask?: Tensor;
  /** Default true. `false` turns dropout off. */
  training?: boolean;
}

/** Options of {@link loraShrink}. */
export interface LoraShrinkOptions extends LoraDropoutOptions {
  /** Default 1. */
  scaling?: number;
}

/** Options of {@link loraExpand}. */
export interface LoraExpandOptions {
  /** Factor of the adapter's term; default 1. */
  scaling?: number;
  /** [N] */
  bias?: Tensor;
  /** Precision of the product with the base weight, as in {@link loraForward}; default `exact`. */
  compute?: ComputePrecision;
}

/** The gradients that {@link loraExpandBackward} can compute. */
export type LoraExpandGradient = 'dh' | 'dLoraB' | 'dBias';
export type LoraExpandGradients = { [name in LoraExpandGradient]?: Tensor };

/** Options of {@link loraExpandBackward}. */
export interface LoraExpandBackwardOptions {
  /** The scaling of the forward pass; default 1. */
  scaling?: number;
  /** The wanted gradients; default all three. Gradients that are not named are not computed. */
  needs?: readonly LoraExpandGradient[];
  /**
   * Adds to these tensors instead of making new ones, and returns them. A tensor whose gradient is not
   * computed (not among the `needs`, or of a frozen factor) stays unchanged.
   */
  accumulateInto?: LoraExpandGradients;
}

/** The gradients that {@link loraShrinkBackward} can compute. */
export type LoraShrinkGradient = 'dx' | 'dLoraA';
export type LoraShrinkGradients = { [name in LoraShrinkGradient]?: Tensor };

/** Options of {@link loraShrinkBackward}. */
export interface LoraShrinkBackwardOptions extends LoraDropoutOptions {
  /** `x` of the forward pass; required for `dLoraA`. */
  x?: Tensor;
  /** The scaling of the forward pass; default 1. */
  scaling?: number;
  /** The wanted gradients; default `dx`, and `dLoraA` if `x` is given. */
  needs?: readonly LoraShrinkGradient[];
  /**
   * Adds to these tensors instead of making new ones, and returns them. A tensor whose gradient is not
   * computed (not among the `needs`, or of a frozen factor) stays unchanged.
   */
  accumulateInto?: LoraShrinkGradients;
}

/** Checks an `h` or `dh` against an activation: [..., r] in f32. */
function checkRankWide(op: string, operand: string, value: unknown, beside: Tensor, r: number) {
  const tensor = checkTensor(op, operand, value);
  checkShape(op, operand, tensor, withLast(beside, r));
  if (tensor.dtype !== 'f32') fail('ERR_DTYPE', op, operand, 'f32', tensor.dtype);
  checkSameDevice(op, operand, tensor, beside);
  return tensor;
}

function checkVectors(op: string, operand: string, tensor: Tensor): void {
  if (tensor.shape.length === 0) {
    fail('ERR_SHAPE', op, operand, 'of at least one dimension', showShape(tensor.shape));
  }
}

/**
 * The first half of a LoRA layer: `h = scaling · (gate ⊙ x) · loraAᵀ`, in f32 whatever the dtype of
 * `x`. With {@link loraExpand} it equals {@link loraForward}, bit for bit, and allows other ops in
 * between. (On a CUDA device of compute capability 9.0, products so large that they compute h
 * themselves may differ in the last bits of h.)
 * @param x [..., K] f32, bf16 or f16
 * @param loraA [r, K], the dtype of `x` or f32, any dtype if `x` is f32
 * @returns h [..., r] f32
 * @throws ERR_TYPE, ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_VALUE, ERR_DISPOSED, ERR_OOM
 * @example
 * const h = loraShrink(x, loraA, { dropout: 0.05, seed: step });
 * const y = loraExpand(x, w4, multiplyAdd({ a: h, b: gate }), loraB, { scaling: 2 });
 */
export function loraShrink(x: Tensor, loraA: Tensor, options?: LoraShrinkOptions): Tensor {
  const op = 'loraShrink';
  checkTensor(op, 'x', x);
  checkVectors(op, 'x', x);
  const K = lastDim(x);
  checkFactor(op, 'loraA', loraA, `[r, K = ${K}]`, 1, K, x);
  checkMixes(op, 'loraA', loraA, x);
  const given = readOptions(op, options, {
    scaling: true,
    dropout: true,
    seed: true,
    dropoutMask: true,
    training: true,
  });
  const scaling = checkFinite(op, 'scaling', orDefault(given.scaling, 1));
  const p = checkDropout(op, orDefault(given.dropout, 0));
  const training = checkTraining(op, given.training);
  const { dropout, words, mask } = resolveDropout(op, p, 'the call', x.shape, x, given, training);
  const xHandle = Tensor.handleOf(x, op, 'x');
  const aHandle = Tensor.handleOf(loraA, op, 'loraA');
  const maskHandle = mask === undefined ? null : Tensor.handleOf(mask, op, 'dropoutMask');
  return Tensor.adopt(
    native(op, (raw) =>
      raw.loraShrink(xHandle, aHandle, scaling, dropout, words[0], words[1], maskHandle),
    ),
    withLast(x, loraA.shape[0] ?? 0),
    'f32',
    x.device,
  );
}

/** @internal The checked operands of a second half, in the addon's form. */
export function checkExpand(
  op: string,
  x: Tensor,
  w: BaseWeight,
  h: Tensor,
  loraB: Tensor,
  options: LoraExpandOptions | undefined,
) {
  checkTensor(op, 'x', x);
  const { weight, handle, N, K } = checkWeight(op, w);
  checkActivations(op, 'x', x, weight, 'K', K);
  checkFactor(op, 'loraB', loraB, `[N = ${N}, r]`, 0, N, x);
  checkMixes(op, 'loraB', loraB, x);
  checkRankWide(op, 'h', h, x, loraB.shape[1] ?? 0);
  const given = readOptions(op, options, { scaling: true, bias: true, compute: true });
  const scaling = checkFinite(op, 'scaling', orDefault(given.scaling, 1));
  const bias = biasOf(op, given.bias, x, N);
  const compute = checkCompute(op, given.compute, x, weight);
  return { weight, handle, N, K, scaling, bias, compute };
}

/**
 * The second half of a LoRA layer: `y = x · wᵀ + bias + scaling · h · loraBᵀ`, in one pass, with
 * the adapter's term in the accumulators of the base product, as in {@link loraForward}.
 * @param x [..., K] f32, bf16 or f16
 * @param w [N, K] dense or quantised, frozen
 * @param h [..., r] f32: the result of {@link loraShrink}, or what you computed from it
 * @param loraB [N, r], the dtype of `x` or f32, any dtype if `x` is f32
 * @returns y [..., N], dtype of `x`
 * @throws ERR_TYPE, ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_VALUE, ERR_UNSUPPORTED, ERR_DISPOSED,
 *   ERR_OOM
 * @example
 * const y = loraExpand(x, w4, h, loraB, { scaling: 16 / r, bias });
 */
export function loraExpand(
  x: Tensor,
  w: BaseWeight,
  h: Tensor,
  loraB: Tensor,
  options?: LoraExpandOptions,
): Tensor {
  const op = 'loraExpand';
  const given = checkExpand(op, x, w, h, loraB, options);
  const { weight, handle, N, scaling, bias, compute } = given;
  const zeros = zeroTermOf(weight);
  if (zeros !== undefined) {
    const adapter = { h, loraB, scaling };
    return productWithZeros(op, zeros, { x, handle, bias, compute, N, adapter });
  }
  const xHandle = Tensor.handleOf(x, op, 'x');
  const hHandle = Tensor.handleOf(h, op, 'h');
  const bHandle = Tensor.handleOf(loraB, op, 'loraB');
  return Tensor.adopt(
    native(op, (raw) => raw.loraExpand(xHandle, handle, bias, hHandle, bHandle, scaling, compute)),
    withLast(x, N),
    x.dtype,
    x.device,
  );
}

/**
 * Gradients of {@link loraExpand} with respect to the adapter's operands, from one pass over `dy`:
 *
 * `dh = scaling · dy · loraB` [..., r] f32, `dLoraB = scaling · dyᵀ · h` [N, r], `dBias = Σₘ dy` [N]
 *
 * The gradient with respect to `x` through the base weight is part of {@link loraShrinkBackward}.
 * @param dy [..., N], the dtype of `y`
 * @param h [..., r] f32 of the forward pass; required for `dLoraB` only
 * @param loraB [N, r]
 * @returns the needed gradients: `dh` in f32, `dLoraB` in the dtype of `loraB`, `dBias` in that of
 * `dy`
 * @throws ERR_TYPE, ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_VALUE, ERR_ALIAS, ERR_DISPOSED, ERR_OOM
 * @example
 * const { dh, dLoraB } = loraExpandBackward(dy, h, loraB, { scaling, needs: ['dh', 'dLoraB'] });
 */
export function loraExpandBackward(
  dy: Tensor,
  h: Tensor | undefined,
  loraB: Tensor,
  options?: LoraExpandBackwardOptions,
): LoraExpandGradients {
  const op = 'loraExpandBackward';
  checkTensor(op, 'dy', dy);
  checkVectors(op, 'dy', dy);
  const N = lastDim(dy);
  checkFactor(op, 'loraB', loraB, `[N = ${N}, r]`, 0, N, dy);
  checkMixes(op, 'loraB', loraB, dy);
  const r = loraB.shape[1] ?? 0;
  const given = readOptions(op, options, { scaling: true, needs: true, accumulateInto: true });
  const scaling = checkFinite(op, 'scaling', orDefault(given.scaling, 1));
  const wanted = new WantedGradients<LoraExpandGradient>(
    op,
    {
      dh: { shape: withLast(dy, r), dtype: 'f32' },
      dLoraB: { shape: loraB.shape, dtype: loraB.dtype, anyDType: true },
      dBias: { shape: [N], dtype: dy.dtype, anyDType: true },
    },
    ['dh', 'dLoraB', 'dBias'],
    given,
    dy,
  );
  const readsH = wanted.has('dLoraB') || h !== undefined;
  const hHandle = readsH ? Tensor.handleOf(checkRankWide(op, 'h', h, dy, r), op, 'h') : null;
  const dyHandle = Tensor.handleOf(dy, op, 'dy');
  const bHandle = Tensor.handleOf(loraB, op, 'loraB');
  const wantedRaw = wanted.raw(op);
  return wanted.adopt(
    native(op, (raw) => raw.loraExpandBackward(dyHandle, hHandle, bHandle, scaling, wantedRaw)),
  );
}

/**
 * Gradients of {@link loraShrink}, including the path through the base weight, in one pass:
 *
 * `dx = dy · w + gate ⊙ (scaling · dh · loraA)` [..., K], `dLoraA = scaling · dhᵀ · (gate ⊙ x)` [r, K]
 *
 * After {@link loraExpandBackward} it equals {@link loraBackward}, bit for bit. (On a CUDA device
 * of compute capability 9.0, products so large that they compute dh themselves may differ in the
 * last bits of dh.) Give the dropout options that {@link loraShrink} had; the mask is generated
 * again.
 * @param dy [..., N], the gradient of y
 * @param w [N, K] dense or quantised, frozen
 * @param dh [..., r] f32, the gradient of h
 * @param loraA [r, K]
 * @returns the needed gradients: `dx` in the dtype of `dy`, `dLoraA` in that of `loraA`
 * @throws ERR_TYPE, ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_VALUE, ERR_ALIAS, ERR_DISPOSED, ERR_OOM
 * @example
 * const { dx, dLoraA } = loraShrinkBackward(dy, w4, dh, loraA, { x, dropout: 0.05, seed: step });
 */
export function loraShrinkBackward(
  dy: Tensor,
  w: BaseWeight,
  dh: Tensor,
  loraA: Tensor,
  options?: LoraShrinkBackwardOptions,
): LoraShrinkGradients {
  const op = 'loraShrinkBackward';
  checkTensor(op, 'dy', dy);
  const { weight, handle, N, K } = checkWeight(op, w);
  checkActivations(op, 'dy', dy, weight, 'N', N);
  checkFactor(op, 'loraA', loraA, `[r, K = ${K}]`, 1, K, dy);
  checkMixes(op, 'loraA', loraA, dy);
  checkRankWide(op, 'dh', dh, dy, loraA.shape[0] ?? 0);
  const given = readOptions(op, options, {
    x: true,
    scaling: true,
    needs: true,
    accumulateInto: true,
    dropout: true,
    seed: true,
    dropoutMask: true,
    training: true,
  });
  const { x } = given;
  const scaling = checkFinite(op, 'scaling', orDefault(given.scaling, 1));
  const xShape = withLast(dy, K);
  if (x !== undefined) {
    checkTensor(op, 'x', x);
    checkShape(op, 'x', x, xShape);
    checkSameDevice(op, 'x', x, dy);
    if (x.dtype !== dy.dtype) fail('ERR_DTYPE', op, 'x', `${dy.dtype}, as dy`, x.dtype);
  }
  const p = checkDropout(op, orDefault(given.dropout, 0));
  const training = checkTraining(op, given.training);
  const { dropout, words, mask } = resolveDropout(op, p, 'the call', xShape, dy, given, training);
  const wanted = new WantedGradients<LoraShrinkGradient>(
    op,
    {
      dx: { shape: xShape, dtype: dy.dtype },
      dLoraA: { shape: loraA.shape, dtype: loraA.dtype, anyDType: true },
    },
    x === undefined ? ['dx'] : ['dx', 'dLoraA'],
    given,
    dy,
  );
  if (wanted.has('dLoraA') && x === undefined) {
    fail('ERR_VALUE', op, 'needs', 'without dLoraA (no x was given)', 'dLoraA');
  }
  const dyHandle = wanted.has('dx') ? Tensor.handleOf(dy, op, 'dy') : null;
  const wHandle = wanted.has('dx') ? handle : null;
  const dhHandle = Tensor.handleOf(dh, op, 'dh');
  const aHandle = Tensor.handleOf(loraA, op, 'loraA');
  const xHandle = x === undefined ? null : Tensor.handleOf(x, op, 'x');
  const maskHandle = mask === undefined ? null : Tensor.handleOf(mask, op, 'dropoutMask');
  const wantedRaw = wanted.raw(op);
  const gradients = wanted.adopt(
    native(op, (raw) =>
      raw.loraShrinkBackward(
        dyHandle,
        wHandle,
        dhHandle,
        aHandle,
        xHandle,
        scaling,
        dropout,
        words[0],
        words[1],
        maskHandle,
        wantedRaw,
      ),
    ),
  );
  const zeros = zeroTermOf(weight);
  if (zeros !== undefined && gradients.dx !== undefined) {
    const keep = given.accumulateInto?.dx !== undefined;
    gradients.dx = addZeroGrad(op, zeros, dy, gradients.dx, keep);
  }
  return gradients;
}
