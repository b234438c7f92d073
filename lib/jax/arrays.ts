/** The references to arrays of jax-js that one call holds: everything it has not handed on is freed at its end. */

import type { JaxArray } from './jax.js';

export class Arrays {
  readonly #held = new Map<JaxArray, number>();

  /** Takes over a reference. */
  own(array: JaxArray): JaxArray {
    this.#held.set(array, (this.#held.get(array) ?? 0) + 1);
    return array;
  }

  /** Hands a reference on: whoever gets the array frees it. */
  give(array: JaxArray): JaxArray {
    const left = (this.#held.get(array) ?? 0) - 1;
    if (left > 0) this.#held.set(array, left);
    else this.#held.delete(array);
    return array;
  }

  /** Frees a reference now. */
  free(array: JaxArray): void {
    this.give(array).dispose();
  }

  /**
   * Calls a function that consumes `lists`, of which this object holds no reference, and owns what it returns. jax-js
   * does not say what a call that throws has consumed, so the counts decide what is left to free.
   */
  consume(lists: readonly JaxArray[][], call: () => JaxArray[]): JaxArray[] {
    const left = new Map<JaxArray, number>();
    for (const array of lists.flat()) left.set(array, (left.get(array) ?? array.refCount) - 1);
    try {
      return call().map((array) => this.own(array));
    } catch (error) {
      for (const [array, count] of left) while (array.refCount > count) array.dispose();
      throw error;
    }
  }

  /** Frees every reference that is still held. */
  dispose(): void {
    for (const [array, count] of this.#held) {
      for (let i = 0; i < count; i++) array.dispose();
    }
    this.#held.clear();
  }
}
