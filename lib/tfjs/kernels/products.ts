/** `BatchMatMul` and `_FusedMatMul` of a backend in this library's kernels. */

import type { TensorInfo } from '@tensorflow/tfjs';
import type { Device } from '../../index.js';
import { tensorInfoFrom, valuesOf } from '../ops/backend-memory.js';
import { type BatchMatMulPlan, planBatchMatMul, runBatchMatMul } from '../ops/batch-matmul.js';
import type { Kernel } from './kernel.js';

/** Activations without further operands, as the backends define them. */
const kActivations: Readonly<Record<string, (value: number, leakyreluAlpha: number) => number>> = {
  linear: (value) => value,
  relu: (value) => Math.max(value, 0),
  relu6: (value) => Math.min(Math.max(value, 0), 6),
  elu: (value) => (value >= 0 ? value : Math.expm1(value)),
  sigmoid: (value) => 1 / (1 + Math.exp(-value)),
  leakyrelu: (value, leakyreluAlpha) => (value < 0 ? leakyreluAlpha * value : value),
};

/** The names of the kernels. */
export const productNames = ['BatchMatMul', '_FusedMatMul'] as const;

/** @param takes is M × K times K × N faster here than in the backend's own kernel? */
export function productKernel(
  device: Device,
  takes: (M: number, N: number, K: number) => boolean,
): Kernel {
  return ({ a, b, bias, preluActivationWeights }, attrs) => {
    if (a?.dtype !== 'float32' || b?.dtype !== 'float32') return undefined;
    if (!worthwhile(a, b, attrs.transposeA === true, attrs.transposeB === true, takes)) {
      return undefined;
    }
    const plan = planBatchMatMul(
      a.shape,
      b.shape,
      attrs.transposeA === true,
      attrs.transposeB === true,
    );
    if (plan === undefined) return undefined;
    const name = typeof attrs.activation === 'string' ? attrs.activation : 'linear';
    const activation = kActivations[name];
    if (activation === undefined || preluActivationWeights != null) return undefined;
    const biasFits = bias == null || (bias.shape.length === 1 && bias.shape[0] === plan.N);
    if (!biasFits || (bias != null && bias.dtype !== 'float32')) return undefined;
    return tensorInfoFrom(plan.outShape, (target) => {
      runBatchMatMul(plan, a, b, target, device);
      if (bias == null && name === 'linear') return;
      const leakyreluAlpha = typeof attrs.leakyreluAlpha === 'number' ? attrs.leakyreluAlpha : 0.2;
      finish(plan, target, bias == null ? undefined : valuesOf(bias), name, (value) =>
        activation(value, leakyreluAlpha),
      );
    });
  };
}

/** Before anything is allocated: most products that the backend keeps are small, and their time is that of the call. */
function worthwhile(
  { shape: a }: TensorInfo,
  { shape: b }: TensorInfo,
  transposeA: boolean,
  transposeB: boolean,
  takes: (M: number, N: number, K: number) => boolean,
): boolean {
  const rows = a[a.length - (transposeA ? 1 : 2)] ?? 0;
  const inner = a[a.length - (transposeA ? 2 : 1)] ?? 0;
  const columns = b[b.length - (transposeB ? 2 : 1)] ?? 0;
  // An empty sum is zero; the wasm backend leaves such a result uninitialised.
  if (inner === 0) return true;
  // One matrix on the right of many forms one product with all their rows.
  const stacked = b.length === 2 || b.slice(0, -2).every((dim) => dim === 1);
  const matrices = a.slice(0, -2).reduce((size, dim) => size * dim, 1);
  return takes(stacked && !transposeA ? rows * matrices : rows, columns, inner);
}

function finish(
  { N }: BatchMatMulPlan,
  target: Float32Array,
  bias: Float32Array | undefined,
  name: string,
  activation: (value: number) => number,
): void {
  if (name === 'linear' || name === 'relu') {
    const least = name === 'relu' ? 0 : Number.NEGATIVE_INFINITY;
    for (let row = 0; row < target.length; row += N) {
      for (let ni = 0; ni < N; ni++) {
        const sum = (target[row + ni] as number) + (bias === undefined ? 0 : (bias[ni] as number));
        target[row + ni] = Math.max(sum, least);
      }
    }
    return;
  }
  for (let row = 0; row < target.length; row += N) {
    for (let ni = 0; ni < N; ni++) {
      const sum = (target[row + ni] as number) + (bias === undefined ? 0 : (bias[ni] as number));
      target[row + ni] = activation(Math.fround(sum));
    }
  }
}
