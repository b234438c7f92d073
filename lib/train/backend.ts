/**
 * Which backend of TensorFlow.js a training runs on.
 */

import { tensorflow } from '../tfjs/tensorflow.js';

/**
 * Makes the wasm backend the current one where it can be had; the cpu backend computes the same, ten
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
    // Not installed, or no WebAssembly here.
  } finally {
    undo();
  }
  await tf.setBackend('cpu');
  return 'cpu';
}

/**
 * The wasm module installs handlers for errors that nobody caught, which print a line of its own
 * source in front of them. They are taken away again.
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
