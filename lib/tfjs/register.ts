/**
 * Makes TensorFlow.js use this library's kernels: replaces `BatchMatMul` and `_FusedMatMul` of a
 * backend in its registry. The registry is global, so this affects every program in the process, even
 * one with its own copy of TensorFlow.js. Gradients need no change: TensorFlow.js expresses them by
 * further matrix products.
 */

import type { KernelConfig, NamedAttrMap, TensorInfo } from '@tensorflow/tfjs';
import { fail } from '../core/errors.js';
import { type Device, defaultDevice } from '../index.js';
import { tensorInfoFrom, valuesOf } from './backend-memory.js';
import { type BatchMatMulPlan, planBatchMatMul, runBatchMatMul } from './batch-matmul.js';
import { tensorflow } from './tensorflow.js';

const kOp = 'tfjs.register';

/**
 * The break-even point with a backend, in multiplications of its own kernel: the cost of a kernel call
 * here, and the cost of copying an element. Both operands are copied in and the result out, so the wasm
 * backend keeps products of few rows, however large the matrix is. docs/tensorflow-js.md has the
 * measurements behind these numbers.
 */
const kBreakEven = {
  wasm: { call: 300_000, element: 8 },
  cpu: { call: 8_000, element: 0.5 },
} as const;
type ReplacedBackend = keyof typeof kBreakEven;

/** Is x [M, K] times w [K, N] faster here than in the backend's own kernel? */
export function pays(backend: ReplacedBackend, M: number, N: number, K: number): boolean {
  const { call, element } = kBreakEven[backend];
  return M * N * K > call + element * (M * K + K * N + M * N);
}

/** Options of {@link register}. */
export interface RegisterOptions {
  /** The backend whose kernels are replaced: 'cpu' or 'wasm'. Default: the current backend. */
  readonly backend?: string;
  /** The device to compute on. Default: the default device. */
  readonly device?: Device;
  /**
   * The backend's own kernel runs for fewer than this many multiplications M · N · K per matrix.
   * Default: it runs if it is faster, judged by its rate and the cost of a call and of the copies
   * here.
   */
  readonly minProducts?: number;
}

/** The replaced kernels of each backend. */
const replaced = new Map<string, KernelConfig[]>();

/**
 * Makes TensorFlow.js run float32 matrix products (`tf.matMul`, `tf.fused.matMul`, dense layers, and
 * the gradients of all of them) in this library's kernels. Other dtypes, and activations that need
 * further operands, still use the backend's own kernels.
 *
 * Registering again replaces the options. It also applies to existing tensors.
 *
 * @throws LowrankError `ERR_UNSUPPORTED` for a backend without these kernels
 * @example
 * await tf.setBackend('wasm');
 * register();
 * tf.matMul(a, b); // runs here
 * unregister();
 */
export function register(options: RegisterOptions = {}): void {
  const tf = tensorflow();
  const backendName = options.backend ?? tf.getBackend();
  if (backendName !== 'cpu' && backendName !== 'wasm') {
    fail('ERR_UNSUPPORTED', kOp, 'backend', 'cpu or wasm', `"${backendName}"`);
  }
  unregister(backendName);
  const device = options.device ?? defaultDevice();
  const { minProducts } = options;
  const takes = (M: number, N: number, K: number) =>
    minProducts === undefined ? pays(backendName, M, N, K) : M * N * K >= minProducts;
  const originals: KernelConfig[] = [];
  for (const kernelName of ['BatchMatMul', '_FusedMatMul']) {
    const original = tf.getKernel(kernelName, backendName);
    if (original === undefined) {
      for (const done of originals) restore(done);
      const text = 'a backend that was imported';
      fail('ERR_UNSUPPORTED', kOp, 'backend', text, `"${backendName}" without ${kernelName}`);
    }
    originals.push(original);
    tf.unregisterKernel(kernelName, backendName);
    tf.registerKernel({
      ...original,
      kernelFunc: (params) => {
        const done = product(params.inputs as unknown as Inputs, params.attrs ?? {}, device, takes);
        return done ?? original.kernelFunc(params);
      },
    });
  }
  replaced.set(backendName, originals);
}

/**
 * Restores a backend's own kernels; does nothing if none were replaced.
 *
 * @param backend default: every backend that {@link register} changed
 */
export function unregister(backend?: string): void {
  for (const backendName of backend === undefined ? [...replaced.keys()] : [backend]) {
    for (const original of replaced.get(backendName) ?? []) restore(original);
    replaced.delete(backendName);
  }
}

function restore(original: KernelConfig): void {
  const tf = tensorflow();
  tf.unregisterKernel(original.kernelName, original.backendName);
  tf.registerKernel(original);
}

interface Inputs {
  readonly a: TensorInfo;
  readonly b: TensorInfo;
  readonly bias?: TensorInfo;
  readonly preluActivationWeights?: TensorInfo;
}

/** Activations without further operands, as the backends define them. */
const kActivations: Readonly<Record<string, (value: number, leakyreluAlpha: number) => number>> = {
  linear: (value) => value,
  relu: (value) => Math.max(value, 0),
  relu6: (value) => Math.min(Math.max(value, 0), 6),
  elu: (value) => (value >= 0 ? value : Math.expm1(value)),
  sigmoid: (value) => 1 / (1 + Math.exp(-value)),
  leakyrelu: (value, leakyreluAlpha) => (value < 0 ? leakyreluAlpha * value : value),
};

/** The product, or `undefined` if the backend's own kernel should run. */
function product(
  { a, b, bias, preluActivationWeights }: Inputs,
  attrs: NamedAttrMap,
  device: Device,
  takes: (M: number, N: number, K: number) => boolean,
): TensorInfo | undefined {
  if (a.dtype !== 'float32' || b.dtype !== 'float32') return undefined;
  const plan = planBatchMatMul(
    a.shape,
    b.shape,
    attrs.transposeA === true,
    attrs.transposeB === true,
  );
  if (plan === undefined) return undefined;
  // An empty sum is zero; the wasm backend leaves such a result uninitialised.
  if (plan.K > 0 && !takes(plan.M, plan.N, plan.K)) return undefined;
  const name = typeof attrs.activation === 'string' ? attrs.activation : 'linear';
  const activation = kActivations[name];
  if (activation === undefined || preluActivationWeights != null) return undefined;
  const biasFits = bias == null || (bias.shape.length === 1 && bias.shape[0] === plan.N);
  if (!biasFits || (bias != null && bias.dtype !== 'float32')) return undefined;
  return tensorInfoFrom(plan.outShape, (target) => {
    runBatchMatMul(plan, a, b, target, device);
    if (bias == null && name === 'linear') return;
    const leakyreluAlpha = typeof attrs.leakyreluAlpha === 'number' ? attrs.leakyreluAlpha : 0.2;
    finish(plan, target, bias == null ? undefined : valuesOf(bias), (value) =>
      activation(value, leakyreluAlpha),
    );
  });
}

function finish(
  { N }: BatchMatMulPlan,
  target: Float32Array,
  bias: Float32Array | undefined,
  activation: (value: number) => number,
): void {
  for (let row = 0; row < target.length; row += N) {
    for (let ni = 0; ni < N; ni++) {
      const sum = (target[row + ni] as number) + (bias === undefined ? 0 : (bias[ni] as number));
      target[row + ni] = activation(Math.fround(sum));
    }
  }
}
