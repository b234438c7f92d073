/**
 * Batched matrix products of TensorFlow.js tensors in this library's kernels.
 *
 *   c[i] = op(a[i]) · op(b[i]),  op(t) = t or tᵀ
 *
 * The library has two products with a matrix [N, K] on the right: matmul, x · wᵀ, and
 * matmulInputGrad, dy · w. They serve b transposed and b untransposed. A transposed a is transposed
 * while it is copied in.
 */

import type { TensorInfo, Tensor as TfTensor } from '@tensorflow/tfjs';
import { fail } from '../core/errors.js';
import { type Device, defaultDevice, matmul, matmulInputGrad, Tensor } from '../index.js';
import { tensorFrom, valuesOf } from './backend-memory.js';
import { requireTfFloat } from './operands.js';
import { isRecording } from './saved-states.js';
import { tensorflow } from './tensorflow.js';

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

/** Writes the product into `target`, [batch, M, N]. All products are queued before the first wait. */
export function runBatchMatMul(
  plan: BatchMatMulPlan,
  a: TensorInfo,
  b: TensorInfo,
  target: Float32Array,
  device: Device,
): void {
  const { M, N, K, transposeA, transposeB, aIndex, bIndex } = plan;
  if (target.length === 0 || K === 0) {
    target.fill(0);
    return;
  }
  const aValues = valuesOf(a);
  const bValues = valuesOf(b);
  // One matrix on the right and a run of matrices on the left form one taller matrix.
  const stacked = !transposeA && bIndex.every((i) => i === bIndex[0]) && isRun(aIndex);
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
  const op = tensorflow().customGrad((...args: unknown[]) => {
    const save = args[2] as (tensors: TfTensor[]) => void;
    save([a, b]);
    return {
      value: run(plan.outShape, a, b, transposeA, transposeB),
      gradFunc: (dy: TfTensor, saved: TfTensor[]) => {
        if (isRecording()) {
          fail(
            'ERR_UNSUPPORTED',
            kOp,
            'the gradient',
            'of first order',
            'a gradient of a gradient',
          );
        }
        const [aSaved, bSaved] = saved as [TfTensor, TfTensor];
        const da = transposeA
          ? run(a.shape, bSaved, dy, transposeB, true)
          : run(a.shape, dy, bSaved, false, !transposeB);
        const db = transposeB
          ? run(b.shape, dy, aSaved, true, transposeA)
          : run(b.shape, aSaved, dy, !transposeA, false);
        return [da, db];
      },
    };
  });
  return op(a, b);
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
