/**
 * JSON configuration files, and typed access to their fields.
 */

import { LowrankError } from '../../core/errors.js';
import { printable, printableValue } from '../../core/printable.js';
import { type OpenOptions, readSmallFile } from './file-access.js';
import { type JsonBounds, requireBoundedFile } from './json-bounds.js';

/** An object from JSON.parse. Only own keys are read. */
export type JsonObject = { readonly [key: string]: unknown };

/**
 * Reads a JSON file whose top level is an object.
 *
 * @param bounds larger files are rejected unread, and files with more content unparsed
 * @throws LowrankError `ERR_FILE` if it is not JSON (a BOM and NaN are not), not an object, or beyond
 * the limits · `ERR_FILE_NOT_FOUND` · `ERR_FILE_CHANGED` · `ERR_PATH`
 */
export function readJsonObject(
  op: string,
  path: string,
  bounds: JsonBounds,
  options: OpenOptions = {},
): JsonObject {
  const bytes = readSmallFile(op, path, bounds.maxBytes, options);
  return parseJsonObject(op, printable(path), bytes, bounds);
}

/** Parses UTF-8 JSON whose top level is an object; `what` names it in messages. */
export function parseJsonObject(
  op: string,
  what: string,
  bytes: Uint8Array,
  bounds: JsonBounds,
  code: LowrankError['code'] = 'ERR_FILE',
): JsonObject {
  requireBoundedFile(op, what, bytes, bounds, code);
  let value: unknown;
  try {
    value = JSON.parse(new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes));
  } catch (error) {
    const text = `${op}: ${what} must be UTF-8 JSON without a BOM, got something else`;
    throw new LowrankError(code, text, { op, cause: error });
  }
  if (value === null || typeof value !== 'object' || Array.isArray(value)) {
    const text = `${op}: ${what} must be a JSON object, got ${printableValue(value)}`;
    throw new LowrankError(code, text, { op });
  }
  return value as JsonObject;
}

/** Reads the fields of one JSON object. Every error names the file and the field. */
export class Fields {
  constructor(
    private readonly op: string,
    private readonly what: string,
    private readonly object: JsonObject,
    private readonly code: LowrankError['code'] = 'ERR_FILE',
  ) {}

  /** The raw value; `undefined` if the key is missing; null stays null. */
  raw(key: string): unknown {
    return Object.hasOwn(this.object, key) ? this.object[key] : undefined;
  }

  /** Is the key missing or null? */
  absent(key: string): boolean {
    const value = this.raw(key);
    return value === undefined || value === null;
  }

  /** An integer in [min, max]. If the key is missing or null, `fallback`, if there is one. */
  integer(key: string, min: number, max: number, fallback?: number): number {
    if (this.absent(key) && fallback !== undefined) return fallback;
    const value = this.raw(key);
    if (typeof value !== 'number' || !Number.isInteger(value) || value < min || value > max) {
      return this.refuse(key, `an integer from ${min} to ${max}`);
    }
    return value;
  }

  /** A finite number for which `holds` is true. */
  number(
    key: string,
    expected: string,
    holds: (value: number) => boolean,
    fallback?: number,
  ): number {
    if (this.absent(key) && fallback !== undefined) return fallback;
    const value = this.raw(key);
    if (typeof value !== 'number' || !Number.isFinite(value) || !holds(value)) {
      return this.refuse(key, expected);
    }
    return value;
  }

  boolean(key: string, fallback: boolean): boolean {
    if (this.absent(key)) return fallback;
    const value = this.raw(key);
    if (typeof value !== 'boolean') return this.refuse(key, 'true or false');
    return value;
  }

  string(key: string): string {
    const value = this.raw(key);
    if (typeof value !== 'string') return this.refuse(key, 'a string');
    return value;
  }

  optionalString(key: string): string | undefined {
    return this.absent(key) ? undefined : this.string(key);
  }

  /** A list of strings of at most 4,096 characters each. */
  strings(key: string, maxLength: number): string[] {
    const value = this.raw(key);
    if (!Array.isArray(value) || value.length > maxLength) {
      return this.refuse(key, `a list of at most ${maxLength} strings`);
    }
    for (const item of value) {
      if (typeof item !== 'string' || item.length > 4096) {
        this.refuse(key, 'a list of strings of at most 4096 characters');
      }
    }
    return value as string[];
  }

  /** The fields of a nested object, or `undefined` if it is missing or null. */
  optionalObject(key: string): JsonObject | undefined {
    if (this.absent(key)) return undefined;
    const value = this.raw(key);
    if (typeof value !== 'object' || Array.isArray(value)) return this.refuse(key, 'an object');
    return value as JsonObject;
  }

  nested(key: string, object: JsonObject): Fields {
    return new Fields(this.op, `${this.what}: ${key}`, object, this.code);
  }

  /** @throws LowrankError always; the message has the field's value */
  refuse(key: string, expected: string, code: LowrankError['code'] = this.code): never {
    const got = printableValue(this.raw(key));
    const shown = /^\w{1,64}$/.test(key) ? key : printable(key);
    const text = `${this.op}: ${this.what}: ${shown} must be ${expected}, got ${got}`;
    throw new LowrankError(code, text, { op: this.op });
  }
}
