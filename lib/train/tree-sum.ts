/**
 * A sum as a left-full binary tree: the left part of n has the largest power of two below n. Its bits depend on n and the
 * order only, and an aligned part of the tree can be summed elsewhere.
 * @example
 * const sum = new TreeSum<number>((a, b) => a + b);
 * for (const value of [0.1, 0.2, 0.3]) sum.add(value);
 * sum.total(); // (0.1 + 0.2) + 0.3
 */
export class TreeSum<T> {
  readonly #parts: { readonly count: number; readonly value: T }[] = [];
  readonly #add: (a: T, b: T) => T;

  /** @param add may free its operands */
  constructor(add: (a: T, b: T) => T) {
    this.#add = add;
  }

  /** Adds the next part. Parts of equal size are joined at once, so that no more than log₂ n wait. */
  add(value: T): void {
    this.#parts.push({ count: 1, value });
    for (;;) {
      const [a, b] = this.#parts.slice(-2);
      if (a === undefined || b === undefined || a.count !== b.count) return;
      this.#join();
    }
  }

  /** The sum of at least one part. */
  total(): T {
    while (this.#parts.length > 1) this.#join();
    const [whole] = this.#parts;
    if (whole === undefined) throw new Error('TreeSum: nothing was added');
    return whole.value;
  }

  #join(): void {
    const [a, b] = this.#parts.splice(-2) as [
      { count: number; value: T },
      { count: number; value: T },
    ];
    this.#parts.push({ count: a.count + b.count, value: this.#add(a.value, b.value) });
  }
}
