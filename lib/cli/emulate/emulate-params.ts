/**
 * Reads the parameter struct of a user's own kernel for `lowrank emulate` from JSON. All errors in it,
 * including those of the files that it names, are reported before the kernel is compiled.
 */

import fs from 'node:fs';
import path from 'node:path';
import { fileError, readSmallFile } from '../../checkpoint/files/file-access.js';
import { LowrankError } from '../../core/errors.js';
import { printable } from '../../core/printable.js';
import { suggestion } from '../../core/suggestion.js';
import { requireOutputFile } from '../command/output-file.js';

export const kTypes = {
  i8: { bytes: 1, array: Int8Array },
  u8: { bytes: 1, array: Uint8Array },
  i16: { bytes: 2, array: Int16Array },
  u16: { bytes: 2, array: Uint16Array },
  i32: { bytes: 4, array: Int32Array },
  u32: { bytes: 4, array: Uint32Array },
  f32: { bytes: 4, array: Float32Array },
  f64: { bytes: 8, array: Float64Array },
  i64: { bytes: 8, array: BigInt64Array },
  u64: { bytes: 8, array: BigUint64Array },
  bf16: { bytes: 2, array: Uint16Array },
  f16: { bytes: 2, array: Uint16Array },
} as const;
/** Types of a buffer's elements. A member by value can have all but the 16-bit floats. */
export type BufferType = keyof typeof kTypes;
export type ScalarType = Exclude<BufferType, 'bf16' | 'f16'>;
const kBufferTypes = Object.keys(kTypes) as BufferType[];
const kScalarTypes = kBufferTypes.filter(
  (type): type is ScalarType => !/16$/.test(type) || /^[iu]/.test(type),
);

/** One member of the parameter struct, in struct order. */
export type Param = ScalarParam | BufferParam;
interface ScalarParam {
  readonly name: string;
  readonly scalar: ScalarType;
  /** A bigint if the file has text: for 64 bits. */
  readonly value: number | bigint;
}
/** A pointer to device memory. */
export interface BufferParam {
  readonly name: string;
  readonly buffer: BufferType;
  readonly elems: number;
  /** `none` leaves it uninitialised. */
  readonly fill: (typeof kFills)[number] | { readonly file: string };
  readonly seed: number;
  /** A file with the expected bytes afterwards. */
  readonly expect: string | undefined;
  /** The largest accepted difference from them. */
  readonly tolerance: number;
  /** The file to write the bytes to afterwards. */
  readonly save: string | undefined;
}

const kFills = ['zero', 'none', 'normal', 'index'] as const;
const kBufferFields = ['name', 'buffer', 'elems', 'fill', 'seed', 'expect', 'tolerance', 'save'];
/** Node does not read or write files of 2 GiB at once. */
const kMostBytes = 2 ** 31 - 1;

/** A thousand named members take a hundred kilobytes. */
const kMostParamBytes = 4 << 20;

export function wrongParams(file: string, text: string): LowrankError {
  return new LowrankError('ERR_FILE', `emulate: ${printable(file)}: ${text}`);
}

/**
 * Reads the parameters: a JSON array with one object per member, either
 * `{ "name": "n", "i32": 4096 }` or
 * `{ "name": "x", "buffer": "f32", "elems": 4096, "fill": "normal" }`.
 */
export function parseParams(file: string | undefined): Param[] {
  if (file === undefined) return [];
  const text = new TextDecoder().decode(readSmallFile('emulate', file, kMostParamBytes));
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (error) {
    throw wrongParams(file, (error as Error).message);
  }
  if (!Array.isArray(json)) throw wrongParams(file, 'must be an array with one object a member');
  return json.map((item: unknown, i) => new Member(file, item, i).read());
}

/** One object of the file. */
class Member {
  private readonly fields: Readonly<Record<string, unknown>>;
  private readonly name: string;

  constructor(
    private readonly file: string,
    item: unknown,
    private readonly index: number,
  ) {
    this.fields = (typeof item === 'object' && item !== null ? item : {}) as typeof this.fields;
    const { name } = this.fields;
    this.name = typeof name === 'string' ? name : `member ${index}`;
  }

  read(): Param {
    return this.fields.buffer === undefined ? this.scalar() : this.buffer();
  }

  private scalar(): ScalarParam {
    const { name } = this;
    const scalar = kScalarTypes.find((type) => type in this.fields);
    const given = scalar === undefined ? undefined : this.fields[scalar];
    const long = scalar === 'i64' || scalar === 'u64';
    const text = long && typeof given === 'string' && /^-?\d{1,20}$/.test(given);
    const value = text ? BigInt(given) : given;
    if (scalar === undefined || (typeof value !== 'number' && typeof value !== 'bigint')) {
      const types = kScalarTypes.join(', ');
      const form = long ? `${name} must have an integer, or one as text, under ${scalar}` : '';
      throw this.wrong(form || `${name} must have a "buffer", or a number under one of ${types}`);
    }
    this.refuseOthers(['name', scalar]);
    if (!scalar.startsWith('f')) {
      const [least, most] = rangeOf(scalar);
      const whole = typeof value === 'bigint' || Number.isInteger(value);
      if (!(whole && value >= least && value <= most)) {
        const expected = `an integer from ${least} to ${most} (${scalar})`;
        const how = long
          ? `. Write one above 2^53 as text ("${most}"): JSON's numbers are rounded`
          : '';
        throw this.wrong(`${name} must be ${expected}, got ${value}${how}`);
      }
    }
    return { name, scalar, value };
  }

  private buffer(): BufferParam {
    const { name, fields, index } = this;
    const { buffer, elems } = fields;
    if (typeof buffer !== 'string' || !Object.hasOwn(kTypes, buffer)) {
      throw this.wrong(`the buffer of ${name} must be one of ${kBufferTypes.join(', ')}`);
    }
    this.refuseOthers(kBufferFields);
    const type = kTypes[buffer as BufferType];
    const most = Math.min(2 ** 30, Math.floor(kMostBytes / type.bytes));
    if (typeof elems !== 'number' || !Number.isInteger(elems) || elems < 1 || elems > most) {
      throw this.wrong(`"elems" of ${name} must be an integer from 1 to ${most}`);
    }
    const bytes = elems * type.bytes;
    const tolerance = fields.tolerance ?? 0;
    if (typeof tolerance !== 'number' || tolerance < 0)
      throw this.wrongField('tolerance', 'a number of at least 0');
    const seed = fields.seed ?? index + 1;
    if (!Number.isSafeInteger(seed) || (seed as number) < 0)
      throw this.wrongField('seed', 'an integer of at least 0');
    const expect = this.path('expect');
    if (expect !== undefined) this.requireBytes(expect, bytes);
    const save = this.path('save');
    requireOutputFile('emulate', save);
    return {
      name,
      buffer: buffer as BufferType,
      elems,
      fill: this.fill(bytes),
      seed: seed as number,
      expect,
      tolerance,
      save,
    };
  }

  private fill(bytes: number): BufferParam['fill'] {
    const kinds = kFills.join(', ');
    const fill = this.fields.fill ?? 'zero';
    const known = kFills.find((kind) => kind === fill);
    if (known !== undefined) return known;
    const file = this.path('fill', `${kinds} or the name of a file`) as string;
    if (!fs.existsSync(file)) {
      throw this.wrong(
        `"fill" of ${this.name} must be ${kinds} or a file, and there is no file ${printable(file)}`,
      );
    }
    this.requireBytes(file, bytes);
    return { file };
  }

  /** A path relative to the parameter file. */
  private path(field: string, expected = 'the name of a file'): string | undefined {
    const value = this.fields[field];
    if (value === undefined) return undefined;
    if (typeof value !== 'string') throw this.wrongField(field, expected);
    return path.resolve(path.dirname(this.file), value);
  }

  private requireBytes(file: string, bytes: number): void {
    let size: number;
    try {
      const found = fs.statSync(file);
      if (!found.isFile()) throw Object.assign(new Error('a folder'), { code: 'EISDIR' });
      size = found.size;
    } catch (error) {
      throw fileError('emulate', file, error);
    }
    if (size !== bytes) throw wrongParams(file, `${this.name} has ${bytes} bytes, not ${size}`);
  }

  /** Rejects unknown names, which are usually mistyped: their check would be skipped silently. */
  private refuseOthers(known: readonly string[]): void {
    const other = Object.keys(this.fields).find((field) => !known.includes(field));
    if (other === undefined) return;
    const hint = suggestion(other, known);
    throw this.wrong(`${this.name} takes ${known.join(', ')}, got ${printable(other)}${hint}`);
  }

  private wrongField(field: string, expected: string): LowrankError {
    const value = this.fields[field];
    const got = typeof value === 'string' ? printable(value) : JSON.stringify(value).slice(0, 60);
    return this.wrong(`"${field}" of ${this.name} must be ${expected}, got ${got}`);
  }

  private wrong(text: string): LowrankError {
    return wrongParams(this.file, text);
  }
}

/** The smallest and the largest value of an integer type. */
function rangeOf(type: ScalarType): readonly [bigint, bigint] {
  const bits = BigInt(type.slice(1));
  const half = 2n ** (bits - 1n);
  return type.startsWith('u') ? [0n, 2n * half - 1n] : [-half, half - 1n];
}
