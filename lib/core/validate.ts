/**
 * Checks shapes, dtypes and numbers, and says what was expected and what came. The descriptors' own
 * `Check()` in native/core is the last line of defence.
 */

import { fail, LowrankError, wrongType } from './errors.js';
import { printable } from './printable.js';
import { suggestion } from './suggestion.js';

/** `[3, 4]` */
export function showShape(shape: readonly number[]): string {
  return `[${shape.join(', ')}]`;
}

/** @throws ERR_DEVICE */
export function checkSameDevice(
  op: string,
  operand: string,
  value: { device: string },
  reference: { device: string },
): void {
  if (value.device !== reference.device) {
    fail('ERR_DEVICE', op, operand, `on device ${reference.device}`, value.device);
  }
}

/** Dimensions of a new tensor. @throws ERR_TYPE, ERR_SHAPE */
export function checkDims(op: string, shape: unknown): readonly number[] {
  if (!Array.isArray(shape)) throw wrongType(op, 'shape', 'an array of numbers', shape);
  const rank: number = shape.length;
  if (!(rank <= MAX_RANK)) {
    fail('ERR_SHAPE', op, 'shape', `of at most ${MAX_RANK} dimensions`, String(rank));
  }
  const dims: number[] = [];
  let elements = 1n;
  for (let i = 0; i < rank; i++) {
    const dim: unknown = shape[i];
    if (typeof dim !== 'number') throw wrongType(op, `shape[${i}]`, 'a number', dim);
    if (!Number.isSafeInteger(dim) || dim < 0) {
      fail('ERR_SHAPE', op, `shape[${i}]`, 'a non-negative integer', String(dim));
    }
    dims.push(dim);
    elements *= BigInt(dim);
  }
  if (elements > MAX_ELEMENTS) {
    fail('ERR_SHAPE', op, 'shape', `of at most ${MAX_ELEMENTS} elements`, showShape(dims));
  }
  return Object.freeze(dims);
}

/** A larger rank is a mistake; a proxy of an array may claim any length. */
const MAX_RANK = 32;

/** Node 20 cannot make a larger Float32Array of the values. */
const MAX_ELEMENTS = 2n ** 33n;

/** A finite number. @throws ERR_TYPE, ERR_VALUE */
export function checkFinite(op: string, operand: string, value: unknown): number {
  if (typeof value !== 'number') throw wrongType(op, operand, 'a number', value);
  if (!Number.isFinite(value)) fail('ERR_VALUE', op, operand, 'finite', String(value));
  return value;
}

/** An integer in [min, max]. @throws ERR_TYPE, ERR_VALUE */
export function checkInteger(
  op: string,
  operand: string,
  value: unknown,
  min: number,
  max: number,
): number {
  if (typeof value !== 'number') throw wrongType(op, operand, 'a number', value);
  if (!Number.isInteger(value) || value < min || value > max) {
    fail('ERR_VALUE', op, operand, `an integer from ${min} to ${max}`, String(value));
  }
  return value;
}

/** Maximum length of a list: a longer one is a mistake, and an array-like object may claim any length. */
const MAX_LIST = 2 ** 31 - 1;

/**
 * A copy of an array of numbers, typed or not. It is read element by element, so that an object that claims to be long
 * fails at its first hole.
 * @param check validates an element and returns it
 * @throws ERR_TYPE, ERR_VALUE
 */
export function readNumbers(
  op: string,
  operand: string,
  list: unknown,
  check: (operand: string, value: unknown) => number,
): number[] {
  const given = (typeof list === 'object' && list !== null ? list : {}) as ArrayLike<unknown>;
  const { length } = given;
  if (typeof length !== 'number') throw wrongType(op, operand, 'an array of numbers', list);
  if (!(length <= MAX_LIST)) {
    fail('ERR_VALUE', op, operand, `of at most ${MAX_LIST} numbers`, String(length));
  }
  const numbers: number[] = [];
  for (let i = 0; i < length; i++) numbers.push(check(`${operand}[${i}]`, given[i]));
  return numbers;
}

/**
 * The distinct names in a list. Each must be known.
 * @throws ERR_TYPE, ERR_VALUE
 */
export function readNames<Name extends string>(
  op: string,
  operand: string,
  list: unknown,
  known: readonly Name[],
): Name[] {
  if (!Array.isArray(list)) throw wrongType(op, operand, 'an array of names', list);
  const length: number = list.length;
  if (!(length <= MAX_LIST)) {
    fail('ERR_VALUE', op, operand, `of at most ${MAX_LIST} names`, String(length));
  }
  const names: Name[] = [];
  for (let i = 0; i < length; i++) {
    const name: unknown = list[i];
    if (typeof name !== 'string') throw wrongType(op, `${operand}[${i}]`, 'a string', name);
    if (!known.includes(name as Name)) {
      const hint = suggestion(name, known);
      fail('ERR_VALUE', op, operand, `a list of ${known.join(', ')}`, `${printable(name)}${hint}`);
    }
    if (!names.includes(name as Name)) names.push(name as Name);
  }
  return names;
}

/** Allocates host memory for that many values. @throws ERR_OOM */
export function newArray<T>(op: string, type: new (length: number) => T, length: number): T {
  try {
    return new type(length);
  } catch (cause) {
    const text = `${op}: the host must have memory for an array of ${length} values, got ${String(cause)}`;
    throw new LowrankError('ERR_OOM', text, { op, cause });
  }
}

/** A drop probability in [0, 1). @throws ERR_TYPE, ERR_VALUE */
export function checkDropout(op: string, value: unknown): number {
  if (typeof value !== 'number') throw wrongType(op, 'dropout', 'a number', value);
  if (!(value >= 0 && value < 1)) fail('ERR_VALUE', op, 'dropout', 'in [0, 1)', String(value));
  return value;
}

/** A seed as the two 32-bit words that the addon takes. @throws ERR_TYPE, ERR_VALUE */
export function seedWords(op: string, seed: unknown): [low: number, high: number] {
  if (typeof seed !== 'number') throw wrongType(op, 'seed', 'a number', seed);
  if (!Number.isSafeInteger(seed) || seed < 0) {
    fail('ERR_VALUE', op, 'seed', 'an integer from 0 to 2^53 - 1', String(seed));
  }
  return [seed % 2 ** 32, Math.floor(seed / 2 ** 32)];
}

/** The names of the fields of `T`, one line each: a field added to the type must be added here. */
type KnownKeys<T> = Readonly<Record<T extends T ? keyof T & string : never, true>>;

/**
 * A copy of the own fields of an options object, so that a hostile getter runs once and nothing is
 * read from a prototype, such as what somebody added to `Object.prototype`.
 * @throws ERR_TYPE
 */
export function ownFields<T extends object>(op: string, options: T | undefined): Partial<T> {
  const own: Partial<T> = Object.create(null);
  if (options === undefined) return own;
  if (options === null || typeof options !== 'object' || Array.isArray(options)) {
    throw wrongType(op, 'options', 'an object', options);
  }
  return Object.assign(own, options);
}

/**
 * Like {@link ownFields}, but rejects fields that the call does not know.
 * @throws ERR_TYPE; ERR_VALUE for an unknown field
 */
export function readOptions<T extends object>(
  op: string,
  options: T | undefined,
  known: KnownKeys<T>,
): Partial<T> {
  const own = ownFields(op, options);
  for (const name of Object.keys(own)) {
    if (!Object.hasOwn(known, name)) refuseField(op, name, Object.keys(known));
  }
  return own;
}

/** @throws ERR_VALUE always; suggests a similar name */
export function refuseField(
  op: string,
  name: string,
  known: readonly string[],
  expected = `an object of ${known.join(', ')}`,
): never {
  fail('ERR_VALUE', op, 'options', expected, `${printable(name)}${suggestion(name, known)}`);
}

/** `value`, or `standard` if it is undefined. null counts as a value, of the wrong type. */
export const orDefault = <T>(value: T | undefined, standard: T): T =>
  value === undefined ? standard : value;
