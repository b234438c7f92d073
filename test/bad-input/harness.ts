/**
 * Bad input, by class: each case must throw the stable code, leave every tensor it could reach as it
 * was, leave nothing allocated, and leave the next valid call right.
 */
import {
  type BaseWeight,
  type Device,
  memoryUsage,
  quantize,
  scope,
  synchronize,
  type Tensor,
} from '../../lib/index.js';
import { INT8_DEVICES } from '../../lib/ops/compute.js';

/** The classes of bad input; a case names the one that it is an example of. */
export const CLASSES = {
  1: 'too few arguments',
  2: 'null or undefined',
  3: 'a value of the wrong type',
  4: 'a typed array of the wrong type',
  5: 'a DataView, proxy, forgery or array-like',
  6: 'a detached buffer',
  7: 'a buffer transferred during the call',
  8: 'a resizable buffer',
  9: 'a buffer resized during the call',
  10: 'shared memory',
  11: 'one too short',
  12: 'one too long',
  13: 'length 0',
  14: 'a dimension of 0',
  15: 'a negative dimension or size',
  16: 'a fractional dimension or size',
  17: 'a dimension or size that is NaN or infinite',
  18: 'a dimension above 2^31',
  19: 'a product above 2^32',
  20: 'a product above 2^53',
  21: 'a product that wraps 2^64',
  22: 'inner dimensions that do not meet',
  23: 'a wrong number of dimensions',
  24: 'dtypes that do not go together',
  25: 'a blocksize that is not one',
  26: 'an offset or address out of place',
  27: 'an output that is an input',
  28: 'an output that overlaps an input',
  29: 'a number that is not finite',
  30: 'a probability or seed out of range',
  31: 'something disposed',
  32: 'an operand of another device',
  33: 'a hostile getter',
  34: 'more memory than there is',
  35: 'a choice that there is not',
} as const;
export type BadClass = keyof typeof CLASSES;

export interface BadCase {
  readonly kind: BadClass;
  readonly what: string;
  readonly code: string;
  readonly run: () => unknown;
}

/** `code` is what `run` must throw or reject with. */
export const bad = (kind: BadClass, what: string, code: string, run: () => unknown): BadCase => ({
  kind,
  what,
  code,
  run,
});

/** Calls a function with arguments that its types refuse. */
export const callWith = (f: unknown, ...args: unknown[]): unknown =>
  Reflect.apply(f as () => unknown, undefined, args);

export class HostileError extends Error {
  readonly code = 'HOSTILE';
}

/** An object whose field throws when it is read. */
export function hostile(field: string): object {
  return Object.defineProperty({}, field, {
    enumerable: true,
    get() {
      throw new HostileError(field);
    },
  });
}

function detached(): Float32Array {
  const array = new Float32Array(4);
  structuredClone(array.buffer, { transfer: [array.buffer] });
  return array;
}

/** Node 20 has resizable buffers; the types of ES2022 do not. */
export function resizable(bytes: number, maxByteLength: number): ArrayBuffer {
  const Buffer20 = ArrayBuffer as unknown as new (b: number, o: object) => ArrayBuffer;
  return new Buffer20(bytes, { maxByteLength });
}
export const resize = (buffer: ArrayBuffer, bytes: number): void =>
  (buffer as ArrayBuffer & { resize(n: number): void }).resize(bytes);

/** Everything that is not a live object of the class at hand; `model` is a real one. */
export function impostors(model: object): readonly (readonly [BadClass, string, unknown])[] {
  return [
    [2, 'null', null],
    [2, 'undefined', undefined],
    [3, 'a number', 3],
    [3, 'a string', 'x'],
    [3, 'a symbol', Symbol('x')],
    [3, 'a bigint', 3n],
    [3, 'a function', () => 3],
    [3, 'an object', {}],
    [3, 'an array', [1, 2]],
    [3, 'a promise', Promise.resolve(model)],
    [4, 'a Float32Array', new Float32Array(4)],
    [4, 'a BigInt64Array', new BigInt64Array(4)],
    [5, 'a DataView', new DataView(new ArrayBuffer(16))],
    [5, 'a proxy', new Proxy(model, {})],
    [5, 'a forgery', Object.create(Object.getPrototypeOf(model) as object)],
    [5, 'a look-alike', { ...model, shape: [2, 2], dtype: 'f32', device: 'cpu' }],
    [5, 'an array-like', { length: 2, 0: 1, 1: 2 }],
    [6, 'a detached array', detached()],
    [8, 'an array over a resizable buffer', new Float32Array(resizable(16, 64))],
    [10, 'an array over shared memory', new Float32Array(new SharedArrayBuffer(16))],
  ];
}

export interface Fixture {
  /** Tensors whose values no refused call may change. */
  readonly watched: readonly Tensor[];
  /** A right call; its results as numbers. */
  readonly valid: () => Promise<readonly ArrayLike<number>[]>;
  readonly cases: readonly BadCase[];
}

async function usage(device: Device): Promise<[number, number]> {
  await synchronize(device);
  const { liveBytes, liveTensors } = memoryUsage(device);
  return [liveBytes, liveTensors];
}

const snapshot = (tensors: readonly Tensor[]): string =>
  tensors
    .filter((tensor) => !tensor.disposed)
    .map((tensor) => Buffer.from(tensor.readSync().buffer).toString('base64'))
    .join('|');

async function thrownBy(run: () => unknown): Promise<unknown> {
  try {
    await scope(async () => {
      await run();
    });
  } catch (error) {
    return error;
  }
  return undefined;
}

/** Runs every case of a fixture; reports all that went wrong at once. */
export async function checkCases(op: string, device: Device, fixture: Fixture): Promise<void> {
  const { watched, valid, cases } = fixture;
  const right = await valid();
  const held = await usage(device);
  const before = snapshot(watched);
  const wrong: string[] = [];
  for (const { kind, what, code, run } of cases) {
    const name = `${op}, class ${kind} (${CLASSES[kind]}), ${what}`;
    const error = (await thrownBy(run)) as (Error & { code?: unknown }) | undefined;
    if (error === undefined) {
      wrong.push(`${name}: nothing thrown, expected ${code}`);
    } else if (error.code !== code) {
      wrong.push(`${name}: ${String(error.code)} (${error.message}), expected ${code}`);
    } else if ((code === 'ERR_TYPE') !== error instanceof TypeError) {
      wrong.push(`${name}: ${error.constructor.name} with code ${code}`);
    }
    const now = await usage(device);
    if (now[0] !== held[0] || now[1] !== held[1]) {
      wrong.push(`${name}: ${now} bytes and tensors live, ${held} before`);
    }
    if (snapshot(watched) !== before) wrong.push(`${name}: an operand or output changed`);
    const next = await valid();
    const same =
      next.length === right.length &&
      next.every((values, i) =>
        Buffer.from(Float64Array.from(values).buffer).equals(
          Buffer.from(Float64Array.from(right[i] as ArrayLike<number>).buffer),
        ),
      );
    if (!same) wrong.push(`${name}: the next valid call is wrong`);
  }
  if (wrong.length > 0) throw new Error(`${wrong.length} cases:\n${wrong.join('\n')}`);
}

/** The classes that the cases cover. */
export const covered = (cases: readonly BadCase[]): Set<BadClass> =>
  new Set(cases.map(({ kind }) => kind));

/** The option `compute` as it cannot be; `dense` is the base weight before it was quantised. */
export function computeCases(
  device: Device,
  dense: Tensor,
  call: (options: { compute: unknown }, w?: BaseWeight) => unknown,
): BadCase[] {
  const given = (kind: BadClass, what: string, code: string, compute: unknown, w?: BaseWeight) =>
    bad(kind, `compute: ${what}`, code, () => call({ compute }, w));
  const int8 = { format: 'int8', doubleQuant: false } as const;
  return [
    given(2, 'null', 'ERR_TYPE', null),
    given(3, 'a boolean', 'ERR_TYPE', true),
    given(3, 'a String object', 'ERR_TYPE', Object('int8')),
    given(35, 'unknown', 'ERR_VALUE', 'int4'),
    given(35, 'toString', 'ERR_VALUE', 'toString'),
    given(35, 'INT8', 'ERR_VALUE', 'INT8'),
    given(35, 'empty', 'ERR_VALUE', ''),
    given(35, 'int8 of a dense weight', 'ERR_UNSUPPORTED', 'int8', dense),
    bad(35, 'compute: int8 of an 8-bit weight', 'ERR_UNSUPPORTED', () =>
      call({ compute: 'int8' }, quantize(dense, int8)),
    ),
    ...(INT8_DEVICES.includes(device)
      ? []
      : [given(35, `int8 on ${device}`, 'ERR_UNSUPPORTED', 'int8')]),
  ];
}
