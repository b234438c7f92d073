import { printable } from './printable.js';

/**
 * Every way in which a call can fail. The codes are stable: code may switch on them, messages may change.
 */
export type ErrorCode =
  | 'ERR_TYPE' // a JavaScript value of the wrong type (thrown as a TypeError)
  | 'ERR_SHAPE' // dimensions that do not fit each other, or are out of range
  | 'ERR_DTYPE' // an element type that the op does not take
  | 'ERR_DEVICE' // an unknown or absent device, or operands on different devices
  | 'ERR_FORMAT' // an unknown quantisation format, blocksize or quantisation state
  | 'ERR_VALUE' // a number out of its range (scaling, dropout, seed, ...)
  | 'ERR_NON_FINITE' // NaN or infinity where a quantiser needs finite values
  | 'ERR_DISPOSED' // a tensor, weight or saved state that was already freed
  | 'ERR_ALIAS' // an output that overlaps an input
  | 'ERR_UNSUPPORTED' // known, but not here: the message says what is supported
  | 'ERR_OOM' // the device has not enough memory
  | 'ERR_MEMORY_BUDGET' // more memory than the budget allows
  | 'ERR_COMPUTE' // a kernel failed
  | 'ERR_CANCELLED' // the environment that asked for it is going away
  | 'ERR_NO_BINDING' // the native addon was not found: the message lists every attempt
  | 'ERR_FILE' // a file whose content is malformed
  | 'ERR_FILE_NOT_FOUND' // a file or folder that is not there
  | 'ERR_FILE_CHANGED' // a file that changed while it was read
  | 'ERR_PATH' // a path that is refused: outside its folder, a device, a loop, ...
  | 'ERR_PICKLE_REFUSED' // a Python pickle: reading one can run code
  | 'ERR_DISK_FULL' // no space left, or a file size limit
  | 'ERR_CHECKPOINT' // a checkpoint of another run
  | 'ERR_COLLECTIVE'; // a process that trains with this one was lost, or differs

/**
 * The error type of the library. `code` is stable; `op` names the call that failed.
 * @example
 * try {
 *   matmul(x, w);
 * } catch (error) {
 *   if (error instanceof LowrankError && error.code === 'ERR_SHAPE') console.log(error.message);
 * }
 */
export class LowrankError extends Error {
  override readonly name: string = 'LowrankError';
  readonly code: ErrorCode;
  readonly op?: string;

  constructor(code: ErrorCode, message: string, options?: { op?: string; cause?: unknown }) {
    super(message, options?.cause === undefined ? undefined : { cause: options.cause });
    this.code = code;
    if (options?.op !== undefined) this.op = options.op;
  }
}

/**
 * A TypeError with the stable code `ERR_TYPE`.
 * @example
 * try {
 *   matmul(3 as never, w);
 * } catch (error) {
 *   if (error instanceof TypeError) console.log((error as LowrankTypeError).code); // ERR_TYPE
 * }
 */
export class LowrankTypeError extends TypeError {
  override readonly name: string = 'LowrankTypeError';
  readonly code = 'ERR_TYPE' as const;
  readonly op: string;

  constructor(op: string, message: string) {
    super(message);
    this.op = op;
  }
}

/** The one sentence of every error: `<op>: <operand> must be <expected>, got <actual>`. */
export function refusal(op: string, operand: string, expected: string, actual: string): string {
  return `${op}: ${operand} must be ${expected}, got ${actual}`;
}

/**
 * Throws a {@link LowrankError} in this form.
 * @throws LowrankError with `code`, always.
 */
export function fail(
  code: ErrorCode,
  op: string,
  operand: string,
  expected: string,
  actual: string,
): never {
  throw new LowrankError(code, refusal(op, operand, expected, actual), { op });
}

/**
 * Builds the TypeError for a value of the wrong JavaScript type. `actual` is the value itself; the
 * message only shows its type.
 */
export function wrongType(
  op: string,
  operand: string,
  expected: string,
  actual: unknown,
): LowrankTypeError {
  return new LowrankTypeError(op, refusal(op, operand, expected, describeType(actual)));
}

/**
 * Builds the TypeError for a constructor that a caller must not use.
 * @param makers the functions that make such objects, in words
 */
export function notConstructed(name: string, makers: string): LowrankTypeError {
  return new LowrankTypeError(
    name,
    refusal(name, 'an instance', `made by ${makers}`, `new ${name}`),
  );
}

/** Every copy of the library in a process stores the name of a class under this symbol. */
const kClassName = Symbol.for('lowrank.className');

/** The classes of this copy that were passed to {@link markClass}. */
const ownPrototypes: object[] = [];

/** @internal Lets errors of another copy of the library name the objects of this one. */
export function markClass({ prototype }: { readonly prototype: object }, name: string): void {
  Object.defineProperty(prototype, kClassName, { value: name });
  ownPrototypes.push(prototype);
}

/** Names an object of another copy of the library, in words; `undefined` for anything else. */
function describeForeign(value: object): string | undefined {
  let name: unknown;
  try {
    const isOf = Object.prototype.isPrototypeOf;
    if (ownPrototypes.some((prototype) => isOf.call(prototype, value))) return undefined;
    name = Reflect.get(value, kClassName);
  } catch {
    return undefined;
  }
  if (typeof name !== 'string') return undefined;
  const how = 'load lowrank either by import or by require, and from one install';
  return `a ${name} of another copy of lowrank (${how})`;
}

/** The choices, in words: `nf4, fp4 or int8`. */
export function anyOf(names: readonly string[]): string {
  const [last = '', ...before] = [...names].reverse();
  return before.length === 0 ? last : `${before.reverse().join(', ')} or ${last}`;
}

/** A value in the `got` part of a message: a string in quotes, another primitive as it is, otherwise its type. */
export function shown(value: unknown): string {
  if (typeof value === 'string') return printable(value);
  return value === null || (typeof value !== 'object' && typeof value !== 'function')
    ? String(value)
    : describeType(value);
}

/** A short name of a value's type, safe for hostile values: exceptions that they throw are ignored. */
function describeType(value: unknown): string {
  if (value === null) return 'null';
  if (Array.isArray(value)) return 'an array';
  if (Number.isNaN(value)) return 'NaN';
  const type = typeof value;
  if (type !== 'object') return type === 'undefined' ? 'undefined' : `a ${type}`;
  const foreign = describeForeign(value as object);
  if (foreign !== undefined) return foreign;
  const tag = Object.prototype.toString.call(value).slice(8, -1);
  return tag === 'Object' ? 'an object' : `a ${tag}`;
}
