/** Reads the metadata of a GGUF file. */

import { printable } from '../../core/printable.js';
import type { HeaderCursor } from './header-cursor.js';
import {
  type GgufArray,
  type GgufElementType,
  type GgufNumberType,
  type GgufValue,
  kMaxArrayDepth,
  kMaxKeyBytes,
  numberArray,
  numberBytes,
  valueTypeOf,
} from './values.js';

/** Real files have 20 to 60. */
const kMaxKeys = 65_536;
/** Arrays in arrays, in the whole file: an empty one has 12 bytes in the file and some hundred in memory. */
const kMaxNestedArrays = 100_000;
/** A key of a byte, its length and type, and a value of a byte. */
const kLeastKeyBytes = 8 + 1 + 4 + 1;

/** Reads `count` keys with their values. @throws ERR_FILE */
export function readMetadata(cursor: HeaderCursor, count: number): Map<string, GgufValue> {
  if (count > kMaxKeys) cursor.refuse(`number of keys must be at most ${kMaxKeys}, got ${count}`);
  cursor.requireRoom(count, kLeastKeyBytes, 'keys');
  const metadata = new Map<string, GgufValue>();
  const reader = new ValueReader(cursor);
  for (let index = 0; index < count; index++) {
    cursor.place = () => `metadata key ${index}`;
    const key = cursor.name('a key', kMaxKeyBytes);
    cursor.place = () => `metadata ${printable(key)}`;
    if (metadata.has(key)) cursor.refuse('a key must occur once, got it twice');
    metadata.set(key, reader.value());
  }
  cursor.place = undefined;
  return metadata;
}

class ValueReader {
  #nested = 0;

  constructor(private readonly cursor: HeaderCursor) {}

  value(): GgufValue {
    const type = this.#type();
    if (type === 'array') return this.#array(1);
    if (type === 'bool') return { type, value: this.#booleans(1)[0] as boolean };
    if (type === 'string') return { type, value: this.cursor.text() };
    if (type === 'u64' || type === 'i64') {
      const [value] = this.#numbers(type, 1) as BigUint64Array | BigInt64Array;
      const number = Number(value);
      return { type, value: Number.isSafeInteger(number) ? number : (value as bigint) };
    }
    return { type, value: this.#numbers(type, 1)[0] as number };
  }

  #type(): GgufElementType {
    const id = this.cursor.u32();
    const type = valueTypeOf(id);
    return type ?? this.cursor.refuse(`type of a value must be from 0 to 12, got ${id}`);
  }

  #array(depth: number): GgufArray {
    if (depth > kMaxArrayDepth) {
      this.cursor.refuse(`arrays must nest at most ${kMaxArrayDepth} deep`);
    }
    const of = this.#type();
    const count = this.cursor.u64('length of an array');
    if (of === 'array') return { type: 'array', of, value: this.#arrays(count, depth + 1) };
    if (of === 'bool') return { type: 'array', of, value: this.#booleans(count) };
    if (of === 'string') {
      this.cursor.requireRoom(count, 8, 'texts');
      return { type: 'array', of, value: Array.from({ length: count }, () => this.cursor.text()) };
    }
    // The table gives each type its own array.
    return { type: 'array', of, value: this.#numbers(of, count) } as GgufArray;
  }

  #arrays(count: number, depth: number): GgufArray[] {
    this.cursor.requireRoom(count, 12, 'arrays');
    this.#nested += count;
    if (this.#nested > kMaxNestedArrays) {
      this.cursor.refuse(`arrays in arrays must be at most ${kMaxNestedArrays}, got more`);
    }
    return Array.from({ length: count }, () => this.#array(depth));
  }

  #numbers(type: GgufNumberType, count: number) {
    const size_bytes = numberBytes(type);
    this.cursor.requireRoom(count, size_bytes, `numbers of type ${type}`);
    const bytes = new Uint8Array(count * size_bytes);
    bytes.set(this.cursor.take(bytes.length));
    const NumberArray = numberArray(type);
    return new NumberArray(bytes.buffer);
  }

  #booleans(count: number): boolean[] {
    this.cursor.requireRoom(count, 1, 'booleans');
    return Array.from(this.cursor.take(count), (byte) => {
      if (byte > 1) this.cursor.refuse(`a boolean must be 0 or 1, got ${byte}`);
      return byte === 1;
    });
  }
}
