/**
 * The header of a safetensors file, scanned iteratively.
 *
 *   file   = N (u64, little-endian) · header (N bytes of JSON) · data
 *   header = { "name": { "dtype": D, "shape": [d, ...], "data_offsets": [begin, end] }, ...,
 *              "__metadata__": { "key": "text", ... } }
 *
 * `JSON.parse` is not used for the structure: it cannot see a name that occurs twice, nor `1.0`
 * written for `1`. The grammar has a fixed depth of three, so the scanner is one loop without
 * recursion, and nothing in a file can exhaust the stack.
 */

import { fail, LowrankError, wrongType } from '../core/errors.js';
import { printable } from '../core/printable.js';
import { checkObject } from './arguments.js';
import { type JsonBounds, requireBounded } from './files/json-bounds.js';
import { isRawDType, type RawDType, rawByteLength } from './raw-tensor.js';

/** Limits for a header. A larger one must be requested. */
export interface HeaderLimits {
  /** Longest header in bytes; default 25 MB (the format itself allows 100 MB). */
  readonly maxHeaderBytes?: number;
}

/** Checks options with a header limit. @throws ERR_TYPE, ERR_VALUE */
export function checkLimits(op: string, options: unknown): asserts options is HeaderLimits {
  checkObject(op, 'options', options);
  const { maxHeaderBytes: cap } = options as { readonly maxHeaderBytes?: unknown };
  if (cap === undefined) return;
  if (typeof cap !== 'number') throw wrongType(op, 'maxHeaderBytes', 'a number', cap);
  if (!(cap >= 0 && (Number.isInteger(cap) || cap === Number.POSITIVE_INFINITY))) {
    fail('ERR_VALUE', op, 'maxHeaderBytes', 'a number of bytes', String(cap));
  }
}

/** The position of a tensor; offsets are bytes from the start of the data section. */
export interface HeaderEntry {
  readonly name: string;
  readonly dtype: RawDType;
  readonly shape: readonly number[];
  readonly begin_bytes: number;
  readonly end_bytes: number;
}

/** A checked header: entries sorted by offset, which cover the data section without gap or overlap. */
export interface SafetensorsHeader {
  readonly entries: readonly HeaderEntry[];
  readonly metadata: ReadonlyMap<string, string>;
  /** Where the data section starts in the file. */
  readonly data_start_bytes: number;
}

const kDefaultMaxHeaderBytes = 25_000_000;
const kFormatMaxHeaderBytes = 100_000_000;
/** The adapters of all experts of the largest published models have about 140,000 tensors. */
const kMaxTensors = 200_000;
const kMaxRank = 16;
const kMaxNameLength = 4096;
/** Counted before the scan: each tensor has its own key and three more, and few have more than four dimensions. */
const kBounds: JsonBounds = {
  maxBytes: kFormatMaxHeaderBytes,
  maxDepth: 3,
  maxKeys: 4 * kMaxTensors + 10_000,
  maxValues: 16 * kMaxTensors,
};

/** Throws the error for a malformed file. */
export type Malformed = (what: string) => never;

export function malformedFile(op: string, path: string): Malformed {
  return (what) => {
    throw new LowrankError('ERR_FILE', `${op}: ${printable(path)}: ${what}`, { op });
  };
}

/**
 * Length of the header, from the first 8 bytes, checked against the file and the limit.
 *
 * @param prefix the first 8 bytes (fewer if the file is shorter)
 * @param fileBytes size of the whole file
 */
export function headerByteLength(
  prefix: Uint8Array,
  fileBytes: number,
  limits: HeaderLimits,
  malformed: Malformed,
): number {
  if (prefix.length < 8) malformed(`must hold at least 8 bytes, got ${prefix.length}`);
  const view = new DataView(prefix.buffer, prefix.byteOffset, 8);
  const length = view.getBigUint64(0, true);
  const cap = Math.min(limits.maxHeaderBytes ?? kDefaultMaxHeaderBytes, kFormatMaxHeaderBytes);
  if (length < 2n) malformed(`header must be at least 2 bytes long, got ${length}`);
  if (length > BigInt(fileBytes) - 8n) {
    malformed(`header of ${length} bytes must fit the file of ${fileBytes} bytes`);
  }
  if (length > BigInt(cap)) {
    malformed(`header must be at most ${cap} bytes long, got ${length} (see maxHeaderBytes)`);
  }
  return Number(length);
}

/**
 * Parses and checks a header.
 *
 * @param bytes exactly the header, without the 8 length bytes
 * @param fileBytes size of the whole file; the tensors must cover the data section up to its last
 * byte
 * @throws LowrankError through `malformed`
 */
export function parseHeader(
  bytes: Uint8Array,
  fileBytes: number,
  malformed: Malformed,
): SafetensorsHeader {
  requireBounded(bytes, kBounds, (what) => malformed(`header ${what}`));
  let text: string;
  try {
    text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    return malformed('header must be valid UTF-8');
  }
  if (text.charCodeAt(0) !== 0x7b) malformed('header must begin with "{"');
  const { entries, metadata } = new HeaderScanner(text, malformed).scan();
  const data_start_bytes = 8 + bytes.length;
  checkLayout(entries, fileBytes - data_start_bytes, malformed);
  return { entries, metadata, data_start_bytes };
}

/** Sorts by offset and requires that the tensors cover the data section exactly. */
function checkLayout(entries: HeaderEntry[], data_bytes: number, malformed: Malformed): void {
  entries.sort((a, b) => a.begin_bytes - b.begin_bytes || a.end_bytes - b.end_bytes);
  let reached_bytes = 0;
  for (const { name, dtype, shape, begin_bytes, end_bytes } of entries) {
    const size_bytes = rawByteLength(dtype, shape);
    const what = `tensor ${printable(name)} (${dtype}[${shape.join(', ')}])`;
    if (size_bytes === undefined) {
      malformed(`${what} must have fewer than 2^53 / 64 elements and whole bytes`);
    }
    if (end_bytes < begin_bytes) {
      malformed(`${what} must have ordered data_offsets, got [${begin_bytes}, ${end_bytes}]`);
    }
    if (end_bytes > data_bytes) {
      malformed(`${what} must end within ${data_bytes} data bytes, got ${end_bytes}`);
    }
    if (end_bytes - begin_bytes !== size_bytes) {
      malformed(`${what} must span ${size_bytes} bytes, got ${end_bytes - begin_bytes}`);
    }
    if (begin_bytes !== reached_bytes) {
      const kind = begin_bytes < reached_bytes ? 'an overlap' : 'a hole';
      malformed(`${what} must begin at data byte ${reached_bytes}, got ${kind} at ${begin_bytes}`);
    }
    reached_bytes = end_bytes;
  }
  if (reached_bytes !== data_bytes) {
    malformed(`tensors must cover all ${data_bytes} data bytes, got ${reached_bytes}`);
  }
}

const kQuote = 0x22;
const kBackslash = 0x5c;
const kComma = 0x2c;
const kClose = 0x7d;

/** One pass over the header text. Every method leaves `at` after what it has read. */
class HeaderScanner {
  private at = 0;

  constructor(
    private readonly text: string,
    private readonly malformed: Malformed,
  ) {}

  scan(): { entries: HeaderEntry[]; metadata: Map<string, string> } {
    const entries: HeaderEntry[] = [];
    const names = new Set<string>();
    let metadata = new Map<string, string>();
    this.object(() => {
      const name = this.string(kMaxNameLength, 'a tensor name');
      if (names.has(name)) this.malformed(`name ${printable(name)} must occur once, got it twice`);
      names.add(name);
      this.expect(0x3a, '":"');
      if (name === '__metadata__') {
        metadata = this.metadata();
        return;
      }
      if (entries.length >= kMaxTensors) this.malformed(`must hold at most ${kMaxTensors} tensors`);
      entries.push(this.tensor(name));
    });
    this.skipSpace();
    if (this.at !== this.text.length) this.unexpected('only spaces after the header object');
    return { entries, metadata };
  }

  private metadata(): Map<string, string> {
    const metadata = new Map<string, string>();
    this.object(() => {
      const key = this.string(Number.POSITIVE_INFINITY, 'a metadata key');
      if (metadata.has(key)) this.malformed(`metadata key ${printable(key)} must occur once`);
      this.expect(0x3a, '":"');
      metadata.set(key, this.string(Number.POSITIVE_INFINITY, 'a metadata text'));
    });
    return metadata;
  }

  private tensor(name: string): HeaderEntry {
    let dtype: RawDType | undefined;
    let shape: number[] | undefined;
    let offsets: number[] | undefined;
    this.object(() => {
      const key = this.string(kMaxNameLength, 'dtype, shape or data_offsets');
      this.expect(0x3a, '":"');
      if (key === 'dtype' && dtype === undefined) {
        const word = this.string(16, 'a dtype');
        if (!isRawDType(word)) {
          const what = `tensor ${printable(name)} must have a known dtype`;
          return this.malformed(`${what}, got ${printable(word)}`);
        }
        dtype = word;
      } else if (key === 'shape' && shape === undefined) {
        shape = this.integers(kMaxRank);
      } else if (key === 'data_offsets' && offsets === undefined) {
        offsets = this.integers(2);
      } else {
        const fields = 'dtype, shape and data_offsets, each once';
        this.malformed(`tensor ${printable(name)} must have ${fields}, got ${printable(key)}`);
      }
    });
    const [begin_bytes, end_bytes] = offsets ?? [];
    if (dtype === undefined || shape === undefined || offsets === undefined) {
      return this.malformed(`tensor ${printable(name)} must have dtype, shape and data_offsets`);
    }
    if (begin_bytes === undefined || end_bytes === undefined) {
      return this.malformed(`tensor ${printable(name)} must have two data_offsets`);
    }
    return { name, dtype, shape, begin_bytes, end_bytes };
  }

  /** `{ member, member, ... }`; `member` reads one key and its value. */
  private object(member: () => void): void {
    this.expect(0x7b, '"{"');
    this.skipSpace();
    if (this.text.charCodeAt(this.at) === kClose) {
      this.at++;
      return;
    }
    for (;;) {
      member();
      this.skipSpace();
      const c = this.text.charCodeAt(this.at);
      if (c !== kComma && c !== kClose) this.unexpected('"," or "}"');
      this.at++;
      if (c === kClose) return;
    }
  }

  /** `[ n, n, ... ]` with at most `maxLength` non-negative integers below 2^53. */
  private integers(maxLength: number): number[] {
    const values: number[] = [];
    this.expect(0x5b, '"["');
    this.skipSpace();
    if (this.text.charCodeAt(this.at) === 0x5d) {
      this.at++;
      return values;
    }
    for (;;) {
      if (values.length >= maxLength) this.unexpected(`at most ${maxLength} integers`);
      values.push(this.integer());
      this.skipSpace();
      const c = this.text.charCodeAt(this.at);
      if (c !== kComma && c !== 0x5d) this.unexpected('"," or "]"');
      this.at++;
      if (c === 0x5d) return values;
    }
  }

  /** `0` or digits without a leading zero; rejects `-1`, `1.0`, `1e3` and 2^53. */
  private integer(): number {
    this.skipSpace();
    const start = this.at;
    let value = 0;
    for (;;) {
      const digit = this.text.charCodeAt(this.at) - 0x30;
      if (!(digit >= 0 && digit <= 9)) break;
      value = value * 10 + digit;
      // Checked per digit, so that a number with a million digits costs sixteen steps.
      if (value > Number.MAX_SAFE_INTEGER) this.unexpected('an integer below 2^53', start);
      this.at++;
    }
    const leadingZero = this.text.charCodeAt(start) === 0x30 && this.at > start + 1;
    const next = this.text.charCodeAt(this.at);
    const longer = next === 0x2e || next === 0x65 || next === 0x45;
    if (this.at === start || leadingZero || longer) {
      this.unexpected('a non-negative integer', start);
    }
    return value;
  }

  private string(maxLength: number, what: string): string {
    this.skipSpace();
    if (this.text.charCodeAt(this.at) !== kQuote) this.unexpected(`${what} in quotes`);
    const start = this.at + 1;
    let escaped = false;
    let end = start;
    for (; ; end++) {
      const c = this.text.charCodeAt(end);
      if (c === kQuote) break;
      if (c === kBackslash) {
        escaped = true;
        end++;
      } else if (!(c >= 0x20)) {
        this.unexpected('a string without control characters', end);
      }
    }
    this.at = end + 1;
    const value = escaped ? this.unescape(start, end) : this.text.slice(start, end);
    if (value.length > maxLength) {
      this.malformed(`${what} must be at most ${maxLength} characters, got ${value.length}`);
    }
    return value;
  }

  private unescape(start: number, end: number): string {
    let value: unknown;
    try {
      value = JSON.parse(this.text.slice(start - 1, end + 1));
    } catch {
      return this.unexpected('a string with JSON escapes', start);
    }
    if (typeof value !== 'string') return this.unexpected('a string', start);
    // An unpaired surrogate cannot be written back as UTF-8, so two names could become one.
    if (/[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/.test(value)) {
      this.unexpected('a string without unpaired surrogates', start);
    }
    return value;
  }

  private expect(code: number, what: string): void {
    this.skipSpace();
    if (this.text.charCodeAt(this.at) !== code) this.unexpected(what);
    this.at++;
  }

  private skipSpace(): void {
    for (;;) {
      const c = this.text.charCodeAt(this.at);
      if (c !== 0x20 && c !== 0x0a && c !== 0x0d && c !== 0x09) return;
      this.at++;
    }
  }

  private unexpected(expected: string, at = this.at): never {
    const found = this.text.slice(at, at + 12);
    const got = found === '' ? 'the end of the header' : printable(found);
    return this.malformed(`header must have ${expected} at character ${at}, got ${got}`);
  }
}
