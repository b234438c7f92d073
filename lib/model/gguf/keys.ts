/** Typed access to the metadata of a GGUF model. Every error names the file, the key and what is expected of it. */

import type { GgufFile } from '../../checkpoint/gguf/gguf.js';
import { LowrankError } from '../../core/errors.js';
import { printable, printableValue } from '../../core/printable.js';

/** The keys of one architecture, without its name in front of them. */
export class GgufKeys {
  constructor(
    private readonly op: string,
    private readonly file: GgufFile,
    private readonly architecture: string,
  ) {}

  /** A value, whatever its type; undefined without the key. */
  raw(key: string): unknown {
    return this.file.metadata.get(this.#full(key))?.value;
  }

  has(key: string): boolean {
    return this.file.metadata.has(this.#full(key));
  }

  /** An integer in [min, max]; undefined without the key. */
  optionalInteger(key: string, min: number, max: number): number | undefined {
    const value = this.raw(key);
    return value === undefined ? undefined : this.#inRange(key, value, min, max);
  }

  integer(key: string, min: number, max: number): number {
    return this.optionalInteger(key, min, max) ?? this.#missing(key);
  }

  /** An integer, or one for each layer of which all are the same. */
  uniform(key: string, layers: number, min: number, max: number): number | undefined {
    const value = this.raw(key);
    if (!isList(value)) return this.optionalInteger(key, min, max);
    const all = Array.from(value, (each) => this.#inRange(key, each, min, max));
    const [first] = all;
    if (first === undefined || all.length !== layers) {
      return this.refuse(key, `one for each of the ${layers} layers`, `${all.length} of them`);
    }
    const other = all.find((each) => each !== first);
    if (other === undefined) return first;
    const got = `${first} and ${other}`;
    return this.refuse(key, 'the same for all layers', got, 'ERR_UNSUPPORTED');
  }

  /** A finite number, as the shortest decimal of the same f32; undefined without the key. */
  optionalNumber(
    key: string,
    expected: string,
    holds: (value: number) => boolean,
  ): number | undefined {
    const value = this.raw(key);
    if (value === undefined) return undefined;
    if (typeof value !== 'number' || !Number.isFinite(value) || !holds(value)) {
      return this.refuse(key, expected, printableValue(value));
    }
    return shortest(value);
  }

  number(key: string, expected: string, holds: (value: number) => boolean): number {
    return this.optionalNumber(key, expected, holds) ?? this.#missing(key);
  }

  optionalString(key: string): string | undefined {
    const value = this.raw(key);
    if (value === undefined || typeof value === 'string') return value;
    return this.refuse(key, 'a text in UTF-8', printableValue(value));
  }

  optionalBoolean(key: string): boolean | undefined {
    const value = this.raw(key);
    if (value === undefined || typeof value === 'boolean') return value;
    return this.refuse(key, 'true or false', printableValue(value));
  }

  /** @throws LowrankError always */
  refuse(
    key: string,
    expected: string,
    got: string,
    code: LowrankError['code'] = 'ERR_FILE',
  ): never {
    const what = `${printable(this.file.path)}: metadata ${this.#full(key)}`;
    throw new LowrankError(code, `${this.op}: ${what} must be ${expected}, got ${got}`, {
      op: this.op,
    });
  }

  #inRange(key: string, value: unknown, min: number, max: number): number {
    const number = typeof value === 'bigint' ? Number(value) : value;
    if (typeof number === 'number' && Number.isInteger(number) && number >= min && number <= max) {
      return number;
    }
    const shown = typeof value === 'bigint' ? String(value) : printableValue(value);
    return this.refuse(key, `an integer from ${min} to ${max}`, shown);
  }

  #missing(key: string): never {
    const way = 'none. Convert the model again with a current llama.cpp';
    return this.refuse(key, 'in the file', way);
  }

  #full(key: string): string {
    return key.includes('.') && /^(general|tokenizer|split)\./.test(key)
      ? key
      : `${this.architecture}.${key}`;
  }
}

const isList = (value: unknown): value is ArrayLike<unknown> =>
  Array.isArray(value) || (ArrayBuffer.isView(value) && !(value instanceof DataView));

/** The decimal with the fewest digits that rounds to the same f32: 1e-5 for the f32 next to it. */
export function shortest(value: number): number {
  const wanted = Math.fround(value);
  if (wanted !== value) return value;
  for (let digits = 1; digits <= 9; digits++) {
    const short = Number(value.toPrecision(digits));
    if (Math.fround(short) === wanted) return short;
  }
  return value;
}
