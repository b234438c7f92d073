/** Kernels of a program that it registered for one backend only. */

import type { KernelConfig } from '@tensorflow/tfjs';
import { fail } from '../../core/errors.js';
import { tensorflow } from '../ops/tensorflow.js';

const kOp = 'tfjs.registerMissing';

/**
 * Registers the kernels that a program has added to one backend for another one that lacks them. Kernels of TensorFlow.js
 * itself are left out: they work on the memory of their backend. A kernel of the program must be made of ops; one that
 * uses its backend directly throws `ERR_UNSUPPORTED` when it runs on the other one.
 *
 * @returns the names of the kernels that are new on `to`
 * @throws LowrankError `ERR_UNSUPPORTED` if a backend has no kernels (it was not imported)
 * @example
 * registerMissing('cpu', 'wasm');
 */
export function registerMissing(from = 'cpu', to = 'wasm'): string[] {
  const tf = tensorflow();
  const kernels = { from: tf.getKernelsForBackend(from), to: tf.getKernelsForBackend(to) };
  for (const [operand, name] of [
    ['from', from],
    ['to', to],
  ] as const) {
    if (kernels[operand].length > 0) continue;
    fail('ERR_UNSUPPORTED', kOp, operand, 'a backend that was imported', JSON.stringify(name));
  }
  const own = new Set(Object.values(tf).filter((value) => typeof value === 'string'));
  const there = new Set(kernels.to.map(({ kernelName }) => kernelName));
  const missing = kernels.from.filter(
    ({ kernelName }) => !own.has(kernelName as never) && !there.has(kernelName),
  );
  for (const kernel of missing) {
    tf.registerKernel({ ...kernel, backendName: to, kernelFunc: withoutBackend(kernel, from) });
  }
  return missing.map(({ kernelName }) => kernelName);
}

function withoutBackend(
  { kernelName, kernelFunc }: KernelConfig,
  from: string,
): KernelConfig['kernelFunc'] {
  const backend = new Proxy(
    {},
    {
      get: (_, name) =>
        fail(
          'ERR_UNSUPPORTED',
          kOp,
          `kernel ${kernelName}`,
          'made of ops',
          `one that uses ${String(name)} of the ${from} backend`,
        ),
    },
  );
  return (params) => kernelFunc({ ...params, backend });
}
