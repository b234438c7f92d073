/**
 * Makes TensorFlow.js use this library's kernels: replaces kernels of a backend in its registry. The registry is global,
 * so this affects every program in the process, even one with its own copy of TensorFlow.js. Gradients need no change:
 * TensorFlow.js expresses them by further kernels.
 */

import type { KernelConfig, NamedAttrMap, Tensor, TensorInfo } from '@tensorflow/tfjs';
import { fail, wrongType } from '../../core/errors.js';
import { type Device, defaultDevice, getThreads } from '../../index.js';
import { tensorflow } from '../ops/tensorflow.js';
import { elementwiseKernels } from './elementwise.js';
import type { Kernel, KernelInputs } from './kernel.js';
import { movementKernels } from './movement.js';
import { productKernel, productNames } from './products.js';
import { calibrate, kLeastProducts, pays } from './thresholds.js';

const kOp = 'tfjs.register';

/** Kernels beside the products. */
const otherKernels: Readonly<Record<string, Kernel>> = {
  ...elementwiseKernels,
  ...movementKernels,
};

/**
 * Those that are faster here. The cpu backend's are loops over single elements; on wasm they are compiled code, but for
 * two that copy element by element.
 */
const fasterHere: Readonly<Record<string, readonly string[]>> = {
  cpu: Object.keys(otherKernels),
  wasm: ['GatherV2', 'Pack'],
};

/** Options of {@link register}. */
export interface RegisterOptions {
  /** The backend whose kernels are replaced: 'cpu' or 'wasm', or another with `force`. Default: the current backend. */
  readonly backend?: string;
  /** The device to compute on. Default: the default device. */
  readonly device?: Device;
  /**
   * `products`: BatchMatMul and _FusedMatMul. `all`: also GatherV2 and Pack, and on the cpu backend Multiply, Add, Sub,
   * RealDiv, Pow, Neg, Square, Sum, Softmax, Transpose, Tanh and Slice. Or their names. Default: `products`.
   */
  readonly kernels?: 'products' | 'all' | readonly string[];
  /**
   * The backend's own kernel runs for fewer than this many multiplications M · N · K per matrix. Default: 1,700 on cpu,
   * 30,000 on wasm, where the times of both meet.
   */
  readonly minProducts?: number;
  /** Measure that number here, in under half a second; once for each backend. Default: false. */
  readonly calibrate?: boolean;
  /**
   * Replace the products of another backend too. Each then copies both operands out of that backend's memory and its
   * result back, which can take longer than the product. Default: false.
   */
  readonly force?: boolean;
}

/** What {@link register} replaced. */
export interface Registered {
  readonly backend: string;
  /** Names of the replaced kernels. */
  readonly kernels: readonly string[];
  /** The least number of multiplications of a product that runs here. */
  readonly minProducts: number;
}

/** The replaced kernels of each backend. */
const replaced = new Map<string, KernelConfig[]>();

/**
 * Makes TensorFlow.js run float32 matrix products (`tf.matMul`, `tf.fused.matMul`, dense layers, and the gradients of all
 * of them) in this library's kernels, and with `kernels: 'all'` other kernels of the cpu backend too. Other dtypes, and
 * activations that need further operands, still use the backend's own kernels.
 *
 * Registering again replaces the options. It also applies to existing tensors.
 *
 * @throws TypeError `ERR_TYPE` · LowrankError `ERR_UNSUPPORTED` for a backend without these kernels or one that needs
 *   `force`, `ERR_VALUE` for a kernel that cannot be replaced; nothing is then replaced
 * @example
 * await tf.setBackend('wasm');
 * register();
 * tf.matMul(a, b); // runs here
 * unregister();
 */
export function register(options: RegisterOptions = {}): Registered {
  const tf = tensorflow();
  if (options === null || typeof options !== 'object') {
    throw wrongType(kOp, 'options', 'an object', options);
  }
  const backendName = options.backend ?? tf.getBackend();
  const borrowed = backendName === 'cpu' || backendName === 'wasm';
  if (!borrowed && options.force !== true) {
    const expected =
      'cpu or wasm (with { force: true } another one, whose products then copy both operands out of its memory and the result back)';
    fail('ERR_UNSUPPORTED', kOp, 'backend', expected, `"${backendName}"`);
  }
  const names = namesOf(options.kernels ?? 'products', backendName);
  const device = options.device ?? defaultDevice();
  const given = options.minProducts;
  if (given !== undefined && !(typeof given === 'number' && given >= 0)) {
    fail('ERR_VALUE', kOp, 'minProducts', 'a number of at least 0', String(given));
  }
  const before = replaced.get(backendName) ?? [];
  const originals = names.map((name) => {
    const own = before.find(({ kernelName }) => kernelName === name);
    const original = own ?? tf.getKernel(name, backendName);
    if (original !== undefined) return original;
    const expected = 'a backend that was imported';
    return fail('ERR_UNSUPPORTED', kOp, 'backend', expected, `"${backendName}" without ${name}`);
  });
  unregister(backendName);
  let minProducts = given ?? (borrowed ? kLeastProducts[backendName] : kLeastProducts.other);
  const measured = given !== undefined || options.calibrate === true;
  const product = productKernel(device, (M, N, K) =>
    measured || !borrowed ? M * N * K >= minProducts : pays(backendName, M, N, K),
  );
  for (const original of originals) {
    const isProduct = productNames.some((name) => name === original.kernelName);
    const kernel = isProduct ? product : (otherKernels[original.kernelName] as Kernel);
    tf.unregisterKernel(original.kernelName, backendName);
    tf.registerKernel({
      ...original,
      kernelFunc: (params) => {
        const inputs = params.inputs as unknown as KernelInputs;
        return kernel(inputs, params.attrs ?? {}) ?? original.kernelFunc(params);
      },
    });
  }
  replaced.set(backendName, originals);
  if (options.calibrate === true && tf.getBackend() === backendName) {
    const theirs = originals.find(({ kernelName }) => kernelName === 'BatchMatMul');
    minProducts = 0;
    if (theirs !== undefined) minProducts = calibrateFor(theirs, backendName, device);
  }
  return Object.freeze({ backend: backendName, kernels: Object.freeze(names), minProducts });
}

function calibrateFor(theirs: KernelConfig, backendName: string, device: Device): number {
  const { engine, matMul } = tensorflow();
  const attrs = { transposeA: false, transposeB: false } as unknown as NamedAttrMap;
  const stock = (a: Tensor, b: Tensor) => {
    const inputs = { a, b };
    const info = theirs.kernelFunc({ inputs, backend: engine().backend, attrs });
    return engine().makeTensorFromTensorInfo(info as TensorInfo);
  };
  return calibrate(`${backendName} ${device} ${getThreads()}`, stock, matMul as typeof stock);
}

function namesOf(kernels: unknown, backendName: string): string[] {
  if (kernels === 'products') return [...productNames];
  const others = fasterHere[backendName] ?? [];
  if (kernels === 'all' || Array.isArray(kernels)) {
    const known: string[] = [...productNames, ...others];
    const names = kernels === 'all' ? known : (kernels as unknown[]);
    for (const name of names) {
      if (known.includes(name as string)) continue;
      fail(
        'ERR_VALUE',
        kOp,
        'kernels',
        `'products', 'all' or names of ${known.join(', ')}`,
        JSON.stringify(name),
      );
    }
    return [...new Set(names as string[])];
  }
  throw wrongType(kOp, 'kernels', "'products', 'all' or an array of names", kernels);
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
