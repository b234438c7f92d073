/**
 * Selects the TensorFlow.js backend for training.
 */

import { tensorflow } from '../../tfjs/ops/tensorflow.js';

/**
 * Makes the wasm backend the current one if it is available. The cpu backend computes the same, ten
 * times slower.
 * @returns the name of the backend
 */
export async function readyTensorflow(): Promise<'wasm' | 'cpu'> {
  const tf = tensorflow();
  const undo = rememberListeners();
  try {
    await import('@tensorflow/tfjs-backend-wasm');
    if (await tf.setBackend('wasm')) return 'wasm';
  } catch {
    // Not installed, or this Node has no WebAssembly.
  } finally {
    undo();
  }
  await tf.setBackend('cpu');
  return 'cpu';
}

/**
 * The wasm module installs handlers for uncaught errors that print a line of its own source first.
 * This removes them again.
 */
function rememberListeners(): () => void {
  const events = ['uncaughtException', 'unhandledRejection'] as const;
  const before = events.map((event) => new Set<unknown>(process.listeners(event as 'exit')));
  return () => {
    for (const [i, event] of events.entries()) {
      for (const listener of process.listeners(event as 'exit')) {
        if (before[i]?.has(listener) === false) process.off(event, listener);
      }
    }
  };
}
