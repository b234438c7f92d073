/**
 * JSON configuration files, and typed access to their fields.
 */

import { LowrankError } from '../../core/errors.js';
import { printable, printableValue } from '../../core/printable.js';
import { type OpenOptions, readSmallFile } from './file-access.js';
import { type JsonBounds, requireBoundedFile } from './json-bounds.js';

/** An object out of JSON.parse: own keys only are looked at. */
export type JsonObject = { readonly [key: string]: unknown };

/**
 * Reads a JSON file whose top is an object.
 *
 * @param bounds larger files are refused unread, and ones that hold more unparsed
 * @throws LowrankError `ERR_FILE` not JSON (a BOM and NaN are not), not an object, beyond the bounds ·
 *   `ERR_FILE_NOT_FOUND` · `ERR_FILE_CHANGED` · `ERR_PATH`
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

/** Parses UTF-8 JSON whose top is an object; `what` names it in messages. */
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

/** Reads fields of one JSON object; every refusal names the file and the field. */
export class Fields {
  constructor(
    private readonly op: string,
    private readonly what: string,
    private readonly object: JsonObject,
    private readonly code: LowrankError['code'] = 'ERR_FILE',
  ) {}

  /** The raw value; `undefined` where the key is missing, `null` stays null. */
  raw(key: string): unknown {
    return Object.hasOwn(this.object, key) ? this.object[key] : undefined;
  }

  /** Whether the key is missing or null. */
  absent(key: string): boolean {
    const value = this.raw(key);
    return value === undefined || value === null;
  }

  /** An integer in [min, max]; missing and null give `fallback` if there is one. */
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

  /** A list of strings, none longer than 4,096 characters. */
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

  /** The fields of a nested object, or `undefined` where it is missing or null. */
  optionalObject(key: string): JsonObject | undefined {
    if (this.absent(key)) return undefined;
    const value = this.raw(key);
    if (typeof value !== 'object' || Array.isArray(value)) return this.refuse(key, 'an object');
    return value as JsonObject;
  }

  nested(key: string, object: JsonObject): Fields {
    return new Fields(this.op, `${this.what}: ${key}`, object, this.code);
  }

  /** @throws LowrankError always, with the field's value in the message */
  refuse(key: string, expected: string, code: LowrankError['code'] = this.code): never {
    const got = printableValue(this.raw(key));
    const shown = /^\w{1,64}$/.test(key) ? key : printable(key);
    const text = `${this.op}: ${this.what}: ${shown} must be ${expected}, got ${got}`;
    throw new LowrankError(code, text, { op: this.op });
  }
}
