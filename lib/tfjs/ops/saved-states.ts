/**
 * The states that forward passes keep for their backward passes, on the library's side.
 *
 * TensorFlow.js reports when a gradient is computed, but not when one never will be: for a branch
 * that the loss does not depend on, or after an exception during a forward pass. But its gradient
 * functions are synchronous, from the first op to the last gradient, so two moments are certain to
 * come afterwards: the start of the next tape, and the next microtask. Everything still here then is
 * freed.
 */

import { tensorflow } from './tensorflow.js';

interface Disposable {
  dispose(): void;
}

let pending = new Set<Disposable>();
let pendingTape: unknown;
let sweepQueued = false;

/** Is TensorFlow.js recording for a gradient, so that a backward pass may follow? */
export function isRecording(): boolean {
  return tensorflow().engine().isTapeOn();
}

/** Keeps `state` until {@link releaseState}, or until its tape has ended. */
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

/** Removes a state that its backward pass has freed. */
export function releaseState(state: Disposable): void {
  pending.delete(state);
}

function disposeAll(): void {
  const states = pending;
  pending = new Set();
  pendingTape = undefined;
  for (const state of states) state.dispose();
}
