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
import { LowrankError } from '../../core/errors.js';

/** The namespace object of `@tensorflow/tfjs`. */
export type Tensorflow = typeof tfjs;

const kPackage = '@tensorflow/tfjs';

let instance: Tensorflow | undefined;
const watchers: ((tf: Tensorflow) => void)[] = [];

function use(tf: Tensorflow): Tensorflow {
  instance = tf;
  for (const watcher of watchers) watcher(tf);
  return tf;
}

/**
 * @internal Calls `watcher` with every TensorFlow.js that comes into use. One that the program has already loaded, or
 * loads beside this module, comes into use at once: a saved model may need its classes before this library is called.
 */
export function onTensorflow(watcher: (tf: Tensorflow) => void): void {
  watchers.push(watcher);
  if (instance === undefined && !useLoaded()) queueMicrotask(useLoaded);
}

/** Takes the installed TensorFlow.js into use if something has loaded it. */
function useLoaded(): boolean {
  if (instance !== undefined) return true;
  const require = createRequire(import.meta.url);
  try {
    const loaded = require.cache[require.resolve(kPackage)];
    if (loaded?.loaded !== true) return false;
    use(loaded.exports as Tensorflow);
    return true;
  } catch {
    return false;
  }
}

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
  use(tf);
}

/**
 * The TensorFlow.js in use.
 * @throws LowrankError `ERR_UNSUPPORTED` if none is installed
 */
export function tensorflow(): Tensorflow {
  if (instance === undefined) {
    let found: Tensorflow;
    try {
      // The CommonJS build: the same instance that `import` returns in Node, and it loads
      // synchronously.
      found = createRequire(import.meta.url)(kPackage) as Tensorflow;
    } catch (error) {
      const text =
        'lowrank/tfjs: the peer dependency @tensorflow/tfjs must be installed, got no such package. ' +
        'Run: npm install @tensorflow/tfjs @tensorflow/tfjs-backend-wasm';
      throw new LowrankError('ERR_UNSUPPORTED', text, { op: 'lowrank/tfjs', cause: error });
    }
    return use(found);
  }
  return instance;
}
