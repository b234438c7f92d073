import { fail } from '../core/errors.js';

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

/**
 * The sum of vectors in f32, in the order of a {@link TreeSum}.
 * @param parts at least one, of equal lengths; they are not changed
 * @throws ERR_VALUE, ERR_SHAPE
 * @example
 * treeSum([Float32Array.of(1, 2), Float32Array.of(3, 4)]); // 4, 6
 */
export function treeSum(parts: readonly Float32Array[]): Float32Array {
  const op = 'treeSum';
  const [first] = parts;
  if (first === undefined) fail('ERR_VALUE', op, 'parts', 'at least one', 'none');
  const sum = new TreeSum<{ readonly values: Float32Array; readonly own: boolean }>((a, b) => {
    const to = a.own ? a.values : new Float32Array(a.values.length);
    for (let i = 0; i < to.length; i++) to[i] = (a.values[i] as number) + (b.values[i] as number);
    return { values: to, own: true };
  });
  for (const [i, values] of parts.entries()) {
    if (values.length !== first.length) {
      fail('ERR_SHAPE', op, `parts[${i}]`, `[${first.length}]`, `[${values.length}]`);
    }
    sum.add({ values, own: false });
  }
  const { values, own } = sum.total();
  return own ? values : values.slice();
}
