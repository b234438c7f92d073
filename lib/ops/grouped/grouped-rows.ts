/** Assigns adapters of a group to the rows of a batch. */

import { checkTensor } from '../../core/check-tensor.js';
import { fail, wrongType } from '../../core/errors.js';
import type { Tensor } from '../../core/tensor.js';
import { checkSameDevice, showShape } from '../../core/validate.js';
import type { LoraAdapter } from '../lora/lora-adapter.js';

/** The assignment of a row: an adapter's name, none, or a list of them, of the same length for every row. */
export type GroupedRow = string | null | readonly (string | null)[];

/** The adapters of a batch. */
export interface Assigned {
  /** Names of the adapters that have rows. */
  readonly names: string[];
  /** For each slot of each row, the index of its adapter among the names, or -1. */
  readonly adapterOf: Int32Array;
  readonly slots: number;
}

/** Number of slots in a row; undefined if rows are names. */
function slotsOf(op: string, rows: readonly unknown[]): number | undefined {
  const first: unknown = rows[0];
  if (!Array.isArray(first)) return undefined;
  if (first.length === 0)
    fail('ERR_SHAPE', op, 'rows[0]', 'a list of at least 1 name', 'an empty one');
  return first.length;
}

/** The adapters of the rows. Names are in order of appearance, or in the group's order if rows have several. */
export function assignRows(
  op: string,
  rows: unknown,
  x: Tensor,
  adapters: ReadonlyMap<string, LoraAdapter>,
): Assigned {
  if (!Array.isArray(rows)) throw wrongType(op, 'rows', 'an array of adapter names', rows);
  const M = x.shape.slice(0, -1).reduce((product, dim) => product * dim, 1);
  const samples = x.shape.length < 2 ? 1 : (x.shape[0] ?? 1);
  const given = rows.length;
  if (given !== M && given !== samples) {
    const expected = M === samples ? `${M} names` : `${M} names (one for each row) or ${samples}`;
    fail('ERR_SHAPE', op, 'rows', `${expected} for x ${showShape(x.shape)}`, `${given}`);
  }
  const places = new Map<string, number>();
  const placeOf = (name: unknown, operand: () => string): number => {
    if (name === null) return -1;
    if (typeof name !== 'string') throw wrongType(op, operand(), 'a string or null', name);
    const known = places.get(name);
    if (known !== undefined) return known;
    if (!adapters.has(name)) {
      const names = [...adapters.keys()].map((key) => `"${key}"`).join(', ');
      fail('ERR_VALUE', op, operand(), `null or of ${names || '(no adapters)'}`, `"${name}"`);
    }
    places.set(name, places.size);
    return places.size - 1;
  };
  const each = given === 0 ? 0 : M / given;
  const slots = slotsOf(op, rows);
  if (slots === undefined) {
    const adapterOf = new Int32Array(M);
    for (let i = 0; i < given; i++) {
      const place = placeOf(rows[i], () => `rows[${i}]`);
      adapterOf.fill(place, i * each, (i + 1) * each);
    }
    return { names: [...places.keys()], adapterOf, slots: 1 };
  }
  if (M * slots >= 2 ** 31) fail('ERR_VALUE', op, 'rows', 'fewer than 2^31 slots', `${M * slots}`);
  const adapterOf = new Int32Array(M * slots);
  for (let i = 0; i < given; i++) {
    const list: unknown = rows[i];
    if (!Array.isArray(list)) {
      throw wrongType(op, `rows[${i}]`, `a list of ${slots} names, like rows[0]`, list);
    }
    if (list.length !== slots) {
      fail('ERR_SHAPE', op, `rows[${i}]`, `${slots} names, like rows[0]`, `${list.length}`);
    }
    const own = list.map((name, s) => placeOf(name, () => `rows[${i}][${s}]`));
    own.forEach((place, s) => {
      if (place < 0 || own.indexOf(place) === s) return;
      fail(
        'ERR_VALUE',
        op,
        `rows[${i}][${s}]`,
        'an adapter that the row does not have yet',
        `"${list[s]}" again`,
      );
    });
    for (let m = i * each; m < (i + 1) * each; m++) adapterOf.set(own, m * slots);
  }
  // Terms of a row are added in the table's order, which must not depend on other rows of the
  // batch.
  const names = [...adapters.keys()].filter((name) => places.has(name));
  const ordered = new Int32Array(names.length);
  names.forEach((name, place) => {
    ordered[places.get(name) as number] = place;
  });
  for (let i = 0; i < adapterOf.length; i++) {
    const place = adapterOf[i] as number;
    if (place >= 0) adapterOf[i] = ordered[place] as number;
  }
  return { names, adapterOf, slots };
}

/** Checks for one gate per slot. @throws ERR_TYPE, ERR_SHAPE, ERR_DEVICE */
export function checkGates(
  op: string,
  rowScale: Tensor,
  x: Tensor,
  { adapterOf, slots }: Assigned,
): void {
  checkTensor(op, 'rowScale', rowScale);
  checkSameDevice(op, 'rowScale', rowScale, x);
  const { shape } = rowScale;
  // Without rows, the number of slots is unknown.
  if (adapterOf.length === 0 && rowScale.size === 0) return;
  const M = adapterOf.length / slots;
  const flat = shape.length === 2 && shape[0] === 1 ? shape.slice(1) : shape;
  if (slots === 1 && flat.length === 1 && flat[0] === M) return;
  const leading = x.shape.slice(0, -1);
  const folded = shape.length === 2 && shape[0] === M;
  const like = shape.length === x.shape.length && leading.every((dim, i) => dim === shape[i]);
  if (shape.at(-1) === slots && (folded || like)) return;
  const expected = slots === 1 ? [M] : [M, slots];
  fail('ERR_SHAPE', op, 'rowScale', `of shape ${showShape(expected)}`, showShape(shape));
}
