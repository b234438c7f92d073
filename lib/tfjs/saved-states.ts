/**
 * The states that forward passes keep for their backward passes, on our side of the fence.
 *
 * TensorFlow.js says when a gradient is taken, but not when one never will be: a branch that the loss
 * does not depend on, an exception in the middle of a forward pass. Its gradient functions are
 * synchronous though, from the first op to the last gradient, so two moments are certain to come
 * after: the start of the next tape, and the next microtask. Whatever is still here then is freed.
 */

import { tensorflow } from './tensorflow.js';

interface Disposable {
  dispose(): void;
}

let pending = new Set<Disposable>();
let pendingTape: unknown;
let sweepQueued = false;

/** Whether TensorFlow.js is recording for a gradient, so that a backward pass may follow. */
export function isRecording(): boolean {
  return tensorflow().engine().isTapeOn();
}

/** Keeps `state` until {@link releaseState}, or until its tape is gone. */
export function keepState(state: Disposable): void {
  const tape = tensorflow().engine().state.activeTape;
  if (tape !== pendingTape) {
    disposeAll();
    pendingTape = tape;
  }
  pending.add(state);
  if (sweepQueued) return;
  sweepQueued = true;
  queueMicrotask(() => {
    sweepQueued = false;
    disposeAll();
  });
}

/** Forgets a state whose backward pass has freed it. */
export function releaseState(state: Disposable): void {
  pending.delete(state);
}

function disposeAll(): void {
  const states = pending;
  pending = new Set();
  pendingTape = undefined;
  for (const state of states) state.dispose();
}
