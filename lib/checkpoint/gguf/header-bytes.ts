/** The bytes of a GGUF header while it is written: a buffer that grows. */

import { fail } from '../../core/errors.js';
import { printable } from '../../core/printable.js';
import { checkText } from '../safetensors-write.js';
import { type GgufNumberType, numberArray } from './values.js';

export class HeaderBytes {
  #bytes = new Uint8Array(4096);
  #length = 0;

  get length(): number {
    return this.#length;
  }

  u8(value: number): void {
    this.bytes(Uint8Array.of(value));
  }

  u32(value: number): void {
    const at = this.#grow(4);
    new DataView(this.#bytes.buffer).setUint32(at, value, true);
  }

  u64(value: number): void {
    const at = this.#grow(8);
    new DataView(this.#bytes.buffer).setBigUint64(at, BigInt(value), true);
  }

  /** A number that its type holds; integers as bigint. */
  number(type: GgufNumberType, value: number | bigint): void {
    const one = new (numberArray(type))(new ArrayBuffer(numberArray(type).BYTES_PER_ELEMENT));
    const wide = one instanceof BigInt64Array || one instanceof BigUint64Array;
    (one as { [index: number]: number | bigint })[0] = wide ? value : Number(value);
    this.bytes(new Uint8Array(one.buffer));
  }

  /** A text with its length. */
  text(text: string | Uint8Array): void {
    const bytes = typeof text === 'string' ? new TextEncoder().encode(text) : text;
    this.u64(bytes.length);
    this.bytes(bytes);
  }

  /** A key or the name of a tensor. @throws ERR_VALUE */
  name(op: string, operand: string, name: unknown, most_bytes: number): void {
    checkText(op, operand, name);
    const length = Buffer.byteLength(name, 'utf8');
    if (length < 1 || length > most_bytes) {
      fail('ERR_VALUE', op, operand, `1 to ${most_bytes} bytes long`, `${length} bytes`);
    }
    if (name.includes('\0')) fail('ERR_VALUE', op, operand, 'without NUL', printable(name));
    this.text(name);
  }

  bytes(bytes: Uint8Array): void {
    const at = this.#grow(bytes.length);
    this.#bytes.set(bytes, at);
  }

  /** All bytes, with zeros up to a length. */
  padded(length: number): Uint8Array<ArrayBuffer> {
    const padded = new Uint8Array(length);
    padded.set(this.#bytes.subarray(0, this.#length));
    return padded;
  }

  #grow(count: number): number {
    const at = this.#length;
    this.#length += count;
    if (this.#length > this.#bytes.length) {
      const grown = new Uint8Array(Math.max(this.#length, 2 * this.#bytes.length));
      grown.set(this.#bytes);
      this.#bytes = grown;
    }
    return at;
  }
}
