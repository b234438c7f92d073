/**
 * Batched matrix products of TensorFlow.js tensors in this library's kernels.
 *
 *   c[i] = op(a[i]) · op(b[i]),  op(t) = t or tᵀ
 *
 * A host device computes on the memory of TensorFlow.js. Only if both sides are transposed, a is turned first. For
 * other devices the operands are copied: matmul, x · wᵀ, and matmulInputGrad, dy · w, serve b transposed and b
 * untransposed, and a transposed a is turned while it is copied in.
 */

import type { TensorInfo, Tensor as TfTensor } from '@tensorflow/tfjs';
import { fail } from '../../core/errors.js';
import { type Device, defaultDevice, matmul, matmulInputGrad, Tensor } from '../../index.js';
import { isHostDevice, multiplyBorrowed } from '../../ops/borrowed.js';
import { tensorFrom, tensorInfoFrom, valuesOf } from './backend-memory.js';
import { gradientOp } from './gradient-op.js';
import { requireTfFloat } from './operands.js';

const kOp = 'tfjs.matMul';

/** Shape of a batched product; see {@link planBatchMatMul}. */
export interface BatchMatMulPlan {
  readonly outShape: readonly number[];
  /** Rows of c, columns of c, and the summed dimension. */
  readonly M: number;
  readonly N: number;
  readonly K: number;
  readonly transposeA: boolean;
  readonly transposeB: boolean;
  /** For every matrix of the result, the matrices of a and of b. */
  readonly aIndex: readonly number[];
  readonly bIndex: readonly number[];
}

/**
 * Plans a batched product, with batch dimensions broadcast as in NumPy.
 * @returns `undefined` if the shapes do not fit
 */
export function planBatchMatMul(
  aShape: readonly number[],
  bShape: readonly number[],
  transposeA: boolean,
  transposeB: boolean,
): BatchMatMulPlan | undefined {
  if (aShape.length < 2 || bShape.length < 2) return undefined;
  const [aRows, aCols] = aShape.slice(-2) as [number, number];
  const [bRows, bCols] = bShape.slice(-2) as [number, number];
  const [M, K] = transposeA ? [aCols, aRows] : [aRows, aCols];
  const [N, innerB] = transposeB ? [bRows, bCols] : [bCols, bRows];
  if (K !== innerB) return undefined;
  const batch = broadcast(aShape.slice(0, -2), bShape.slice(0, -2));
  if (batch === undefined) return undefined;
  const { shape, aIndex, bIndex } = batch;
  return { outShape: [...shape, M, N], M, N, K, transposeA, transposeB, aIndex, bIndex };
}

/** Writes the product into `target`, [batch, M, N]. */
export function runBatchMatMul(
  plan: BatchMatMulPlan,
  a: TensorInfo,
  b: TensorInfo,
  target: Float32Array,
  device: Device,
): void {
  if (target.length === 0 || plan.K === 0) {
    target.fill(0);
    return;
  }
  const aValues = valuesOf(a);
  const bValues = valuesOf(b);
  if (isHostDevice(device)) runBorrowed(plan, aValues, bValues, target, device);
  else runCopied(plan, aValues, bValues, target, device);
}

/** One matrix on the right and a run of matrices on the left form one taller matrix. */
function isStacked({ transposeA, aIndex, bIndex }: BatchMatMulPlan): boolean {
  return !transposeA && bIndex.every((i) => i === bIndex[0]) && isRun(aIndex);
}

function runBorrowed(
  plan: BatchMatMulPlan,
  a: Float32Array,
  b: Float32Array,
  target: Float32Array,
  device: Device,
): void {
  const { M, N, K, transposeA, transposeB, aIndex, bIndex } = plan;
  const count = aIndex.length;
  let left = a;
  if (transposeA && transposeB) {
    left = new Float32Array(a.length);
    for (let at = 0; at < a.length; at += M * K) {
      transpose(a.subarray(at, at + M * K), K, M, left.subarray(at, at + M * K));
    }
  }
  const form = transposeB ? 'abT' : transposeA ? 'aTb' : 'ab';
  if (count === 1 || isStacked(plan)) {
    const start = (bIndex[0] as number) * N * K;
    const right = b.length === N * K ? b : b.subarray(start, start + N * K);
    multiplyBorrowed(device, { form, M: M * count, N, K }, left, right, target);
    return;
  }
  const pairs = new Int32Array(2 * count);
  for (let i = 0; i < count; i++) {
    pairs[2 * i] = aIndex[i] as number;
    pairs[2 * i + 1] = bIndex[i] as number;
  }
  multiplyBorrowed(device, { form, M, N, K, pairs }, left, b, target);
}

/** All products are queued before the first wait. */
function runCopied(
  plan: BatchMatMulPlan,
  aValues: Float32Array,
  bValues: Float32Array,
  target: Float32Array,
  device: Device,
): void {
  const { M, N, K, transposeA, transposeB, aIndex, bIndex } = plan;
  const stacked = isStacked(plan);
  const count = stacked ? 1 : aIndex.length;
  const rows = stacked ? M * aIndex.length : M;
  const results: Tensor[] = [];
  const turned = transposeA ? new Float32Array(M * K) : undefined;
  try {
    for (let i = 0; i < count; i++) {
      const aStart = (aIndex[i] as number) * M * K;
      let left = aValues.subarray(aStart, aStart + rows * K);
      if (turned !== undefined) {
        transpose(left, K, M, turned);
        left = turned;
      }
      const bStart = (bIndex[i] as number) * N * K;
      const x = Tensor.from(left, [rows, K], { device });
      const right = bValues.subarray(bStart, bStart + N * K);
      const w = Tensor.from(right, transposeB ? [N, K] : [K, N], { device });
      results.push(transposeB ? matmul(x, w) : matmulInputGrad(x, w));
      x.dispose();
      w.dispose();
    }
    results.forEach((result, i) => {
      result.readInto(target.subarray(i * rows * N, (i + 1) * rows * N));
    });
  } finally {
    for (const result of results) result.dispose();
  }
}

/**
 * `tf.matMul` in this library's kernels, differentiable in a and b.
 *
 * @param a [..., M, K] float32, or [..., K, M] with transposeA
 * @param b [..., K, N] float32, or [..., N, K] with transposeB; batch dimensions equal those of a
 * @returns [..., M, N] float32, on the current backend
 * @throws LowrankError `ERR_SHAPE`, `ERR_DTYPE`, `ERR_DISPOSED`, `ERR_UNSUPPORTED` (second-order
 *   gradients) · TypeError `ERR_TYPE`
 * @example
 * const scores = matMul(q, k, false, true);
 */
export function matMul(
  a: TfTensor,
  b: TfTensor,
  transposeA = false,
  transposeB = false,
  options: { readonly device?: Device } = {},
): TfTensor {
  requireTfFloat(kOp, 'a', a);
  requireTfFloat(kOp, 'b', b);
  const device = options.device ?? defaultDevice();
  const aBatch = a.shape.slice(0, -2).join();
  const plan =
    aBatch === b.shape.slice(0, -2).join()
      ? planBatchMatMul(a.shape, b.shape, transposeA, transposeB)
      : undefined;
  if (plan === undefined) {
    const expected = `a shape that fits a [${a.shape.join(', ')}]`;
    fail('ERR_SHAPE', kOp, 'b', expected, `[${b.shape.join(', ')}]`);
  }
  const run = (
    shape: readonly number[],
    left: TfTensor,
    right: TfTensor,
    tl: boolean,
    tr: boolean,
  ) => {
    const step = planBatchMatMul(left.shape, right.shape, tl, tr) as BatchMatMulPlan;
    return tensorFrom(shape, (target) => runBatchMatMul(step, left, right, target, device));
  };
  const forward = () =>
    tensorInfoFrom(plan.outShape, (target) => runBatchMatMul(plan, a, b, target, device));
  return gradientOp(kOp, { a, b }, forward, (dy, saved) => {
    const [left, right] = saved as [TfTensor, TfTensor];
    return {
      a: () =>
        transposeA
          ? run(a.shape, right, dy, transposeB, true)
          : run(a.shape, dy, right, false, !transposeB),
      b: () =>
        transposeB
          ? run(b.shape, dy, left, true, transposeA)
          : run(b.shape, left, dy, !transposeA, false),
    };
  });
}

/** Are the indices 0, 1, 2, …? */
function isRun(indices: readonly number[]): boolean {
  return indices.every((value, i) => value === i);
}

/** Transposes [rows, cols] to [cols, rows], in square tiles, so that both sides stay in the cache. */
function transpose(source: Float32Array, rows: number, cols: number, target: Float32Array): void {
  const tile = 32;
  for (let r0 = 0; r0 < rows; r0 += tile) {
    const r1 = Math.min(r0 + tile, rows);
    for (let c0 = 0; c0 < cols; c0 += tile) {
      const c1 = Math.min(c0 + tile, cols);
      for (let r = r0; r < r1; r++) {
        for (let c = c0; c < c1; c++) target[c * rows + r] = source[r * cols + c] as number;
      }
    }
  }
}

function broadcast(
  a: readonly number[],
  b: readonly number[],
): { shape: number[]; aIndex: number[]; bIndex: number[] } | undefined {
  const rank = Math.max(a.length, b.length);
  const dims = (shape: readonly number[]) => [
    ...new Array<number>(rank - shape.length).fill(1),
    ...shape,
  ];
  const aDims = dims(a);
  const bDims = dims(b);
  const shape: number[] = [];
  let aIndex = [0];
  let bIndex = [0];
  for (let axis = 0; axis < rank; axis++) {
    const [aDim, bDim] = [aDims[axis] as number, bDims[axis] as number];
    if (aDim !== bDim && aDim !== 1 && bDim !== 1) return undefined;
    const dim = aDim === 1 ? bDim : aDim;
    shape.push(dim);
    const extend = (index: number[], own: number) =>
      index.flatMap((base) =>
        Array.from({ length: dim }, (_, i) => base * own + (own === 1 ? 0 : i)),
      );
    aIndex = extend(aIndex, aDim);
    bIndex = extend(bIndex, bDim);
  }
  return { shape, aIndex, bIndex };
}
