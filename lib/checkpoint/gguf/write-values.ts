/** Writes the metadata of a GGUF file, and checks what a caller gave. */

import { fail, shown, wrongType } from '../../core/errors.js';
import { printable } from '../../core/printable.js';
import { checkObject } from '../arguments.js';
import { checkText } from '../safetensors-write.js';
import type { HeaderBytes } from './header-bytes.js';
import {
  type GgufArray,
  type GgufElementType,
  type GgufNumberType,
  type GgufValue,
  isAlignment,
  isNumberType,
  kAlignmentKey,
  kAlignments,
  kMaxArrayDepth,
  kMaxKeyBytes,
  kValueIds,
  numberArray,
  valueTypes,
} from './values.js';

/** Integer types: their bounds. */
const kBounds: Readonly<Partial<Record<GgufNumberType, readonly [bigint, bigint]>>> = {
  u8: [0n, 0xffn],
  i8: [-0x80n, 0x7fn],
  u16: [0n, 0xffffn],
  i16: [-0x8000n, 0x7fffn],
  u32: [0n, 0xffff_ffffn],
  i32: [-0x8000_0000n, 0x7fff_ffffn],
  u64: [0n, (1n << 64n) - 1n],
  i64: [-(1n << 63n), (1n << 63n) - 1n],
};

/** Appends keys and values in the given order. @throws ERR_TYPE, ERR_VALUE */
export function writeMetadata(
  op: string,
  out: HeaderBytes,
  entries: readonly (readonly [string, GgufValue])[],
): void {
  for (const [key, value] of entries) {
    out.name(op, 'a metadata key', key, kMaxKeyBytes);
    const what = `metadata ${printable(key)}`;
    checkObject(op, what, value, 'a value with its type');
    if (key === kAlignmentKey && !(value.type === 'u32' && isAlignment(value.value))) {
      fail('ERR_VALUE', op, what, kAlignments, shown(value.value));
    }
    const writer = new ValueWriter(op, what, out);
    writer.type(value.type);
    if (value.type === 'array') writer.array(value, 1);
    else writer.scalar(value.type, value.value);
  }
}

class ValueWriter {
  constructor(
    private readonly op: string,
    private readonly what: string,
    private readonly out: HeaderBytes,
  ) {}

  array(array: GgufArray, depth: number): void {
    if (depth > kMaxArrayDepth) {
      const most = `arrays in arrays at most ${kMaxArrayDepth} deep`;
      fail('ERR_VALUE', this.op, this.what, most, 'a deeper one');
    }
    this.type(array.of);
    const { of, value } = array;
    if (isNumberType(of)) {
      const NumberArray = numberArray(of);
      if (!(value instanceof NumberArray)) throw this.#wrong(`a ${NumberArray.name}`, value);
      const { buffer, byteOffset, byteLength } = value as Uint8Array;
      this.out.u64((value as Uint8Array).length);
      this.out.bytes(new Uint8Array(buffer, byteOffset, byteLength));
      return;
    }
    if (!Array.isArray(value)) throw this.#wrong(`an array of ${of} values`, value);
    this.out.u64(value.length);
    for (const item of value as readonly unknown[]) {
      if (of !== 'array') this.#plain(of, item);
      else {
        checkObject(this.op, this.what, item, 'arrays of arrays');
        this.array(item as GgufArray, depth + 1);
      }
    }
  }

  scalar(type: GgufElementType, value: unknown): void {
    if (isNumberType(type)) this.#number(type, value);
    else this.#plain(type, value);
  }

  type(type: GgufElementType): void {
    if (typeof type !== 'string' || !Object.hasOwn(kValueIds, type)) {
      fail(
        'ERR_VALUE',
        this.op,
        `${this.what}: type`,
        `one of ${valueTypes.join(', ')}`,
        shown(type),
      );
    }
    this.out.u32(kValueIds[type]);
  }

  #plain(type: GgufElementType, value: unknown): void {
    if (type === 'bool') {
      if (typeof value !== 'boolean') throw this.#wrong('true or false', value);
      this.out.u8(value === true ? 1 : 0);
      return;
    }
    if (value instanceof Uint8Array) {
      this.out.text(value);
      return;
    }
    if (typeof value !== 'string') throw this.#wrong('a string or its bytes', value);
    checkText(this.op, this.what, value);
    this.out.text(value as string);
  }

  #number(type: GgufNumberType, value: unknown): void {
    const bounds = kBounds[type];
    if (bounds === undefined) {
      if (typeof value !== 'number') throw this.#wrong('a number', value);
      if (type === 'f32' && Number.isFinite(value) && !Number.isFinite(Math.fround(value))) {
        fail('ERR_VALUE', this.op, this.what, 'a number that f32 holds', String(value));
      }
      this.out.number(type, value);
      return;
    }
    if (typeof value !== 'number' && typeof value !== 'bigint') {
      throw this.#wrong('an integer', value);
    }
    const exact = typeof value === 'bigint' || Number.isSafeInteger(value);
    const [least, most] = bounds;
    if (!exact || BigInt(value) < least || BigInt(value) > most) {
      const range = `an integer from ${least} to ${most} of type ${type}`;
      fail('ERR_VALUE', this.op, this.what, range, String(value));
    }
    this.out.number(type, BigInt(value));
  }

  #wrong(expected: string, value: unknown) {
    return wrongType(this.op, this.what, expected, value);
  }
}
