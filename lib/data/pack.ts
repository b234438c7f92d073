/** Documents packed into sequences, so that little of a batch is empty. */

import type { Batch, BatchPair, Sequences } from '../text/sequences.js';
import { type DataDocument, type DataUnit, learnedOf, lengthOf } from './documents.js';

/**
 * Rows of T tokens with whole documents in them. The rest of a row repeats its begin, as a document of its own without targets.
 * @example
 * const set = new PackedSet(units, 512, true);
 * const { ids, targets, documents } = set.batch([0, 1]);
 */
export class PackedSet implements Sequences {
  readonly whole = false;
  readonly learned: number;
  readonly #rows: readonly (readonly number[])[];

  /** @param pack false gives each unit a row of its own */
  constructor(
    readonly units: readonly DataUnit[],
    readonly T: number,
    pack: boolean,
  ) {
    this.#rows = pack ? packed(units.map(lengthOf), T) : units.map((_, i) => [i]);
    const all = units.flatMap(({ documents }) => documents);
    this.learned = all.reduce((sum, document) => sum + learnedOf(document), 0);
  }

  get count(): number {
    return this.#rows.length;
  }

  /** The indices of the units in a row. */
  unitsOf(row: number): readonly number[] {
    return this.#rows[row] as readonly number[];
  }

  batch(indices: ArrayLike<number>): Batch {
    const { T } = this;
    const size = indices.length * T;
    const ids = new Int32Array(size);
    const targets = new Int32Array(size).fill(-1);
    const documents = new Int32Array(size);
    const pairs: BatchPair[] = [];
    for (let row = 0; row < indices.length; row++) {
      let at = row * T;
      const put = (document: DataDocument): readonly [number, number] => {
        const begin = at;
        const count = document.ids.length - 1;
        ids.set(document.ids.subarray(0, count), begin);
        documents.fill(begin - row * T, begin, begin + count);
        for (const [from, to] of document.learned) {
          targets.set(document.ids.subarray(from, to), begin + from - 1);
        }
        at += count;
        return [begin, at];
      };
      for (const index of this.unitsOf(indices[row] as number)) {
        const { documents: own } = this.units[index] as DataUnit;
        const [chosen, rejected] = own.map(put);
        if (chosen !== undefined && rejected !== undefined) pairs.push({ index, chosen, rejected });
      }
      // Statistics of inputs, which some starts take, see no token that the data has not.
      const end = (row + 1) * T;
      for (let i = at; i < end; i++) ids[i] = ids[row * T + ((i - at) % (at - row * T))] as number;
      documents.fill(at - row * T, at, end);
    }
    return { ids, targets, documents, ...(pairs.length === 0 ? {} : { pairs }) };
  }
}

/**
 * Rows of at most T by best fit of descending lengths (Johnson, Near-optimal bin packing algorithms, MIT, 1973): each unit goes where
 * it leaves the least room. Rows and the units in them stay in the order of the data as far as that allows.
 * @param lengths 1 to T each
 * @returns the indices of each row
 */
export function packed(lengths: readonly number[], T: number): number[][] {
  const order = lengths.map((_, i) => i);
  order.sort((a, b) => (lengths[b] as number) - (lengths[a] as number) || a - b);
  const rooms = new Rooms(T);
  const rows: number[][] = [];
  for (const index of order) {
    const length = lengths[index] as number;
    const found = rooms.take(length);
    const row = found?.row ?? rows.length;
    if (found === undefined) rows.push([]);
    (rows[row] as number[]).push(index);
    rooms.put(row, (found?.room ?? T) - length);
  }
  for (const row of rows) row.sort((a, b) => a - b);
  return rows.sort((a, b) => (a[0] as number) - (b[0] as number));
}

/** Rows by the room that they have left: a tree of counts finds the smallest that is enough. */
class Rooms {
  readonly #size: number;
  readonly #counts: Int32Array;
  readonly #rows: number[][];

  constructor(T: number) {
    this.#size = 2 ** Math.ceil(Math.log2(T + 1));
    this.#counts = new Int32Array(2 * this.#size);
    this.#rows = Array.from({ length: T + 1 }, () => []);
  }

  put(row: number, room: number): void {
    (this.#rows[room] as number[]).push(row);
    this.#count(room, 1);
  }

  take(least: number): { readonly row: number; readonly room: number } | undefined {
    const room = this.#first(least);
    if (room === undefined) return undefined;
    this.#count(room, -1);
    return { row: (this.#rows[room] as number[]).pop() as number, room };
  }

  #count(room: number, by: number): void {
    for (let node = this.#size + room; node >= 1; node >>= 1) {
      this.#counts[node] = (this.#counts[node] as number) + by;
    }
  }

  #first(least: number): number | undefined {
    let node = this.#size + least;
    while ((this.#counts[node] as number) === 0) {
      // The next subtree to the right; none is behind the last.
      while (node % 2 === 1) node >>= 1;
      if (node === 0) return undefined;
      node++;
    }
    while (node < this.#size)
      node = (this.#counts[2 * node] as number) > 0 ? 2 * node : 2 * node + 1;
    return node - this.#size;
  }
}
