/**
 * Reads the header of a GGUF file from front to back. Its length is known only at its end, so it is read in windows, and
 * nothing is allocated for a count before the file is known to have bytes for it.
 */

import { isUtf8 } from 'node:buffer';
import { printable } from '../../core/printable.js';
import type { Malformed } from '../safetensors-header.js';

/** Bytes at positions: an open file, or memory. */
export interface ByteSource {
  readonly size_bytes: number;
  read(position_bytes: number, length_bytes: number): Uint8Array;
}

const kWindowBytes = 256 << 10;
/** A text of a byte takes some 200 bytes of memory as an array; vocabularies have some hundred thousand tokens. */
const kMaxByteTexts = 500_000;

/** A position in a header. */
export class HeaderCursor {
  /** What is being read, for messages: `metadata "general.name"`. Built only if something is wrong. */
  place: (() => string) | undefined;
  #window = new Uint8Array(0);
  #start_bytes = 0;
  #at_bytes = 0;
  #byteTexts = 0;

  /** @param cap_bytes the longest header that is read */
  constructor(
    private readonly source: ByteSource,
    private readonly cap_bytes: number,
    private readonly malformed: Malformed,
  ) {}

  get at_bytes(): number {
    return this.#at_bytes;
  }

  /** @throws ERR_FILE with the place that is being read */
  refuse(what: string): never {
    const place = this.place?.();
    return this.malformed(place === undefined ? what : `${place}: ${what}`);
  }

  /** Requires that `count` things of at least `each_bytes` bytes fit what is left of the file. */
  requireRoom(count: number, each_bytes: number, what: string): void {
    const left = this.source.size_bytes - this.#at_bytes;
    if (count > left / each_bytes) {
      this.refuse(`${what} must fit the ${left} bytes that are left of the file, got ${count}`);
    }
    if (count > (this.cap_bytes - this.#at_bytes) / each_bytes) {
      const got = `${count} ${what} at byte ${this.#at_bytes}`;
      this.refuse(
        `header must be at most ${this.cap_bytes} bytes long (see maxHeaderBytes), got ${got}`,
      );
    }
  }

  /** The next bytes, valid until the next call. */
  take(length_bytes: number, what = 'bytes'): Uint8Array {
    this.requireRoom(length_bytes, 1, what);
    let from = this.#at_bytes - this.#start_bytes;
    if (from + length_bytes > this.#window.length) {
      const left = this.source.size_bytes - this.#at_bytes;
      const wanted = Math.min(left, Math.max(length_bytes, kWindowBytes));
      this.#window = this.source.read(this.#at_bytes, wanted) as Uint8Array<ArrayBuffer>;
      this.#start_bytes = this.#at_bytes;
      from = 0;
    }
    this.#at_bytes += length_bytes;
    return this.#window.subarray(from, from + length_bytes);
  }

  /** A view of the next bytes. */
  view(length_bytes: number): DataView {
    const bytes = this.take(length_bytes);
    return new DataView(bytes.buffer, bytes.byteOffset, length_bytes);
  }

  u32(): number {
    return this.view(4).getUint32(0, true);
  }

  /** A count, length or offset. @throws ERR_FILE from 2^53 on */
  u64(what: string): number {
    const view = this.view(8);
    const value = view.getUint32(4, true) * 2 ** 32 + view.getUint32(0, true);
    if (value > Number.MAX_SAFE_INTEGER) {
      this.refuse(`${what} must be below 2^53, got ${view.getBigUint64(0, true)}`);
    }
    return value;
  }

  /** The bytes of a text, valid until the next call. */
  textBytes(): Uint8Array {
    return this.take(this.u64('length of a text'), 'bytes of a text');
  }

  /** A text, or a copy of its bytes where they are not UTF-8. */
  text(): string | Uint8Array {
    const bytes = this.textBytes();
    const text = decode(bytes);
    if (text !== undefined) return text;
    if (++this.#byteTexts > kMaxByteTexts) {
      this.refuse(`texts that are not UTF-8 must be at most ${kMaxByteTexts}, got more`);
    }
    return bytes.slice();
  }

  /** The name of something: valid UTF-8 of 1 to `most_bytes` bytes, without NUL. */
  name(what: string, most_bytes: number): string {
    const length = this.u64(`length of ${what}`);
    if (length < 1 || length > most_bytes) {
      this.refuse(`${what} must have 1 to ${most_bytes} bytes, got ${length}`);
    }
    const bytes = this.take(length, `bytes of ${what}`);
    const name = decode(bytes);
    if (name === undefined) return this.refuse(`${what} must be valid UTF-8`);
    if (bytes.includes(0)) this.refuse(`${what} must not hold NUL, got ${printable(name)}`);
    return name;
  }
}

function decode(bytes: Uint8Array): string | undefined {
  if (!isUtf8(bytes)) return undefined;
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString('utf8');
}
