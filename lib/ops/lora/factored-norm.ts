import { native } from '../../core/binding.js';
import { checkTensor, checkVector } from '../../core/check-tensor.js';
import { checkDType, type DType } from '../../core/dtype.js';
import { fail, wrongType } from '../../core/errors.js';
import { scope } from '../../core/scope.js';
import { Tensor } from '../../core/tensor.js';
import {
  checkFinite,
  checkSameDevice,
  orDefault,
  ownFields,
  readOptions,
  showShape,
} from '../../core/validate.js';
import { type BaseWeight, checkFactor, checkWeight, withLast } from '../base-weight.js';
import { denseRows, putRows, rowTiles } from '../dense-rows.js';
import { mapTensor, multiplyAdd, sumProduct } from '../elementwise.js';
import { matmul } from '../matmul.js';
import { zeroTermOf } from '../zero-points.js';
import { checkExpand, type LoraExpandOptions, loraExpand, loraShrink } from './lora-parts.js';

/**
 * Squared norms of the rows of a weight, `norms[n] = Σₖ w[n, k]²`, from one pass over it. A quantised
 * weight is decoded in f32 on the way. Sums in double. Keep the result for a frozen weight: see
 * {@link factoredNorm}.
 * @param w [N, K] dense or quantised
 * @returns [N], f32
 * @throws ERR_TYPE, ERR_SHAPE, ERR_DISPOSED, ERR_OOM
 * @example
 * const norms = weightNorms(w4); // once
 */
export function weightNorms(w: BaseWeight): Tensor {
  const op = 'weightNorms';
  const { weight, handle, N } = checkWeight(op, w);
  if (zeroTermOf(weight) !== undefined) return normsOfRows(weight, N);
  return Tensor.adopt(
    native(op, (raw) => raw.weightNorms(handle)),
    [N],
    'f32',
    weight.device,
  );
}

/** For a weight with zero-points: a few rows at a time. */
function normsOfRows(weight: BaseWeight, N: number): Tensor {
  return scope(() => {
    const norms = Tensor.zeros([N, 1], { device: weight.device });
    for (const [first, end] of rowTiles(weight)) {
      scope(() => {
        const rows = denseRows(weight, first, end);
        putRows(norms, sumProduct(rows, rows, { axis: 1 }).reshape([end - first, 1]), first);
      });
    }
    return norms.reshape([N]);
  });
}

/** The operands of {@link factoredNorm}. */
export interface FactoredNormParts {
  /** [N, K] dense or quantised */
  w: BaseWeight;
  /** [r, K], any dtype */
  loraA: Tensor;
  /** [N, r], any dtype */
  loraB: Tensor;
  /** Default 1. */
  scaling?: number;
  /** [N] f32, {@link weightNorms} of `w` if you kept them; otherwise they are computed. */
  weightNorms?: Tensor;
  /**
   * Dtype of the operands of the product of `w` with loraA, which is most of the work: f32, or the
   * dtype of 16-bit activations. Both operands are then rounded to it, and the product takes half the
   * time. Default f32.
   */
  dtype?: DType;
}

/** Checks a scaling: its square, which the norms use, must be finite too. */
function checkNormScaling(op: string, value: number | undefined): number {
  const scaling = checkFinite(op, 'scaling', orDefault(value, 1));
  if (!Number.isFinite(Math.fround(scaling * scaling))) {
    fail('ERR_VALUE', op, 'scaling', 'such that its square is finite in f32', String(scaling));
  }
  return scaling;
}

/** Checks {@link weightNorms} that the caller kept, if any. */
function checkKept(op: string, kept: Tensor | undefined, weight: BaseWeight, N: number) {
  if (kept === undefined) return undefined;
  checkTensor(op, 'weightNorms', kept);
  checkVector(op, 'weightNorms', kept, N);
  if (kept.dtype !== 'f32') fail('ERR_DTYPE', op, 'weightNorms', 'f32', kept.dtype);
  checkSameDevice(op, 'weightNorms', kept, weight);
  return kept;
}

/**
 * Norms of the rows of an adapted weight, `‖W + scaling · loraB · loraA‖` for each of N rows, without
 * the product of the factors. With G = A · Aᵀ [r, r],
 *
 * `norm² = ‖W‖² + 2 · scaling · Σⱼ B ⊙ T`, `Tᵀ = A · Wᵀ + scaling / 2 · G · Bᵀ` [r, N]
 *
 * where A · Wᵀ is a product of r rows and the only part whose cost depends on N · K. These are the norms
 * of PEFT's DoRA (S. Liu et al., DoRA, 2024; section 4.3 treats them as constants).
 *
 * Computed in f32 with sums in double. A square that cancellation makes negative counts as 0. norm²
 * is within `32 · 2^-24 · (‖W‖² + Σ|2 · scaling · B ⊙ (W · Aᵀ)| + scaling² · Σ|B ⊙ (B · G)|)`, with
 * sums over magnitudes. If the adapter nearly cancels a row, to a fraction ε of its norm, the
 * relative error is thus up to 2^-19 / ε².
 * @param parts the weight, the factors, and the weight's norms if you kept them
 * @returns [N], f32
 * @throws ERR_TYPE, ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_VALUE, ERR_DISPOSED, ERR_OOM
 * @example
 * const norms = factoredNorm({ w: w4, loraA, loraB, scaling, weightNorms: kept });
 * const scale = multiplyAdd({ a: mapTensor(norms, 'reciprocal'), b: magnitude });
 */
export function factoredNorm(parts: FactoredNormParts): Tensor {
  const op = 'factoredNorm';
  if (parts === undefined) throw wrongType(op, 'parts', 'an object', parts);
  const given = readOptions(op, parts, {
    w: true,
    loraA: true,
    loraB: true,
    scaling: true,
    weightNorms: true,
    dtype: true,
  });
  const { weight, handle, N, K } = checkWeight(op, given.w);
  const loraA = checkFactor(op, 'loraA', given.loraA, `[r, K = ${K}]`, 1, K, weight);
  const r = loraA.shape[0] ?? 0;
  const loraB = checkFactor(op, 'loraB', given.loraB, `[N = ${N}, r = ${r}]`, 0, N, weight);
  if (loraB.shape[1] !== r) {
    fail('ERR_SHAPE', op, 'loraB', `of shape [${N}, r = ${r}]`, showShape(loraB.shape));
  }
  const scaling = checkNormScaling(op, given.scaling);
  const kept = checkKept(op, given.weightNorms, weight, N);
  const dtype = checkDType(op, 'dtype', orDefault(given.dtype, 'f32'));
  return scope(() => {
    const squares = kept ?? weightNorms(weight);
    if (zeroTermOf(weight) !== undefined) {
      const product = loraA.dtype === dtype ? loraA : loraA.to({ dtype });
      return factoredByParts(product, weight, loraA, loraB, squares.reshape([N]), scaling);
    }
    return Tensor.adopt(
      native(op, (raw) =>
        raw.factoredNorm(
          Tensor.handleOf(loraA, op, 'loraA'),
          handle,
          Tensor.handleOf(loraB, op, 'loraB'),
          Tensor.handleOf(squares, op, 'weightNorms'),
          dtype,
          scaling,
        ),
      ),
      [N],
      'f32',
      weight.device,
    );
  });
}

/** Options of {@link loraExpandWithNorms}. */
export interface ExpandWithNormsOptions extends LoraExpandOptions {
  /** [N] f32, {@link weightNorms} of `w` if you kept them; otherwise they are computed. */
  weightNorms?: Tensor;
}

/**
 * {@link loraExpand} and the {@link factoredNorm} of the same weight and factors, with the product for
 * the norms in the dtype of `x`, and with the bits of both. The rows of loraA pass over `w` together
 * with those of `x`, so that on the CPU `w` is decoded once. The forward pass of DoRA.
 * @param x [..., K] f32, bf16 or f16
 * @param w [N, K] dense or quantised, frozen
 * @param h [..., r] f32: the result of {@link loraShrink}, or what you computed from it
 * @param factors loraA [r, K], any dtype; loraB [N, r], the dtype of `x` or f32, any dtype if `x`
 * is f32
 * @returns y [..., N], dtype of `x`; norms [N], f32
 * @throws ERR_TYPE, ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_VALUE, ERR_UNSUPPORTED, ERR_DISPOSED,
 *   ERR_OOM
 * @example
 * const h = loraShrink(x, loraA);
 * const { y, norms } = loraExpandWithNorms(x, w4, h, { loraA, loraB }, { scaling, weightNorms: kept });
 */
export function loraExpandWithNorms(
  x: Tensor,
  w: BaseWeight,
  h: Tensor,
  factors: { loraA: Tensor; loraB: Tensor },
  options?: ExpandWithNormsOptions,
): { y: Tensor; norms: Tensor } {
  const op = 'loraExpandWithNorms';
  if (factors === undefined) throw wrongType(op, 'factors', 'an object', factors);
  // A LoraAdapter has these factors too.
  const { loraA, loraB } = ownFields(op, factors) as typeof factors;
  const { weightNorms: norms, ...expand } = readOptions(op, options, {
    weightNorms: true,
    scaling: true,
    bias: true,
    compute: true,
  });
  const given = checkExpand(op, x, w, h, loraB, expand);
  const { weight, handle, N, K, bias, compute } = given;
  const r = loraB.shape[1] ?? 0;
  checkFactor(op, 'loraA', loraA, `[r, K = ${K}]`, 1, K, weight);
  if (loraA.shape[0] !== r) {
    fail('ERR_SHAPE', op, 'loraA', `of shape [r = ${r}, K = ${K}]`, showShape(loraA.shape));
  }
  const scaling = checkNormScaling(op, given.scaling);
  const kept = checkKept(op, norms, weight, N);
  return scope(() => {
    const squares = kept ?? weightNorms(weight);
    if (zeroTermOf(weight) !== undefined) {
      const parts = { w, loraA, loraB, scaling, weightNorms: squares, dtype: x.dtype };
      return { y: loraExpand(x, w, h, loraB, expand), norms: factoredNorm(parts) };
    }
    const handles = [
      Tensor.handleOf(x, op, 'x'),
      handle,
      bias,
      Tensor.handleOf(h, op, 'h'),
      Tensor.handleOf(loraB, op, 'loraB'),
      scaling,
      compute,
      Tensor.handleOf(loraA, op, 'loraA'),
      Tensor.handleOf(squares, op, 'weightNorms'),
    ] as const;
    const [y, norms] = native(op, (raw) => raw.loraExpandWithNorms(...handles));
    return {
      y: Tensor.adopt(y, withLast(x, N), x.dtype, x.device),
      norms: Tensor.adopt(norms, [N], 'f32', weight.device),
    };
  });
}

/** For a weight with zero-points: T by loraExpand, which adds their term, and the rest op by op. */
function factoredByParts(
  product: Tensor,
  weight: BaseWeight,
  loraA: Tensor,
  loraB: Tensor,
  squares: Tensor,
  scaling: number,
): Tensor {
  const a = loraA.dtype === 'f32' ? loraA : loraA.to({ dtype: 'f32' });
  const b = loraB.dtype === 'f32' ? loraB : loraB.to({ dtype: 'f32' });
  const half = loraExpand(product, weight, loraShrink(a, a), b, { scaling: scaling / 2 });
  // loraBᵀ by a product with the identity, which copies each element once.
  const r = a.shape[0] as number;
  const ones = Float32Array.from({ length: r * r }, (_, i) => (i % (r + 1) === 0 ? 1 : 0));
  const turned = matmul(Tensor.from(ones, [r, r], { device: weight.device }), b);
  const added = sumProduct(half, turned, { axis: 0 });
  const sum = multiplyAdd({ a: added, c: squares, alpha: 2 * scaling });
  return mapTensor(mapTensor(sum, 'relu'), 'sqrt');
}
