/**
 * Selects the TensorFlow.js: the one that was passed in, otherwise the installed
 * `@tensorflow/tfjs`.
 *
 * It is a peer dependency that is resolved at the first call, so `lowrank` works without it. The
 * union package is required, not `@tensorflow/tfjs-core`: the core's table of gradients does not
 * resolve as an ES module in Node.
 */

import { createRequire } from 'node:module';
import type * as tfjs from '@tensorflow/tfjs';
import { LowrankError } from '../core/errors.js';

/** The namespace object of `@tensorflow/tfjs`. */
export type Tensorflow = typeof tfjs;

let instance: Tensorflow | undefined;

/**
 * Makes this module use the given TensorFlow.js, for programs whose copy `require` cannot find
 * (bundles, several versions at once).
 *
 * @param tf the namespace object of `@tensorflow/tfjs`
 * @example
 * import * as tf from '@tensorflow/tfjs';
 * import { useTensorflow } from 'lowrank/tfjs';
 * useTensorflow(tf);
 */
export function useTensorflow(tf: Tensorflow): void {
  instance = tf;
}

/**
 * The TensorFlow.js in use.
 * @throws LowrankError `ERR_UNSUPPORTED` if none is installed
 */
export function tensorflow(): Tensorflow {
  if (instance === undefined) {
    try {
      // The CommonJS build: the same instance that `import` returns in Node, and it loads
      // synchronously.
      instance = createRequire(import.meta.url)('@tensorflow/tfjs') as Tensorflow;
    } catch (error) {
      const text =
        'lowrank/tfjs: the peer dependency @tensorflow/tfjs must be installed, got no such package. ' +
        'Run: npm install @tensorflow/tfjs @tensorflow/tfjs-backend-wasm';
      throw new LowrankError('ERR_UNSUPPORTED', text, { op: 'lowrank/tfjs', cause: error });
    }
  }
  return instance;
}
