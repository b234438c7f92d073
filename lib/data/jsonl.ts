/** JSON lines: one object a line. */

import { jsonBounds, requireBounded } from '../checkpoint/files/json-bounds.js';
import type { JsonObject } from '../checkpoint/files/json-file.js';
import { LowrankError } from '../core/errors.js';
import { printable, printableValue } from '../core/printable.js';
import { type Place, placeText, refuseExample } from './place.js';

/** An example as a file has it: values by the names of fields. */
export interface DataRecord {
  readonly place: Place;
  readonly fields: JsonObject;
}

/**
 * The objects of a file, in order. Blank lines are skipped, as is a BOM.
 * @throws LowrankError `ERR_FILE` with the line
 */
export function parseJsonLines(op: string, file: string, bytes: Uint8Array): DataRecord[] {
  const found: DataRecord[] = [];
  const hasBom = bytes[0] === 0xef && bytes[1] === 0xbb && bytes[2] === 0xbf;
  for (let [begin, line] = [hasBom ? 3 : 0, 1]; begin < bytes.length; line++) {
    const newline = bytes.indexOf(0x0a, begin);
    const end = newline < 0 ? bytes.length : newline;
    const fields = parseLine(op, { file, line }, bytes.subarray(begin, end));
    if (fields !== undefined) found.push({ place: { file, line }, fields });
    begin = end + 1;
  }
  return found;
}

function parseLine(op: string, place: Place, bytes: Uint8Array): JsonObject | undefined {
  const refuse = (got: string): never =>
    refuseExample(op, place, '', 'a JSON object in UTF-8', got);
  let text: string;
  try {
    text = new TextDecoder('utf-8', { fatal: true }).decode(bytes).trim();
  } catch {
    return refuse('other bytes');
  }
  if (text === '') return undefined;
  requireBounded(bytes, jsonBounds.example, (what) => {
    throw new LowrankError('ERR_FILE', `${op}: ${placeText(place)} ${what}`, { op });
  });
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    return refuse(printable(text));
  }
  if (value === null || typeof value !== 'object' || Array.isArray(value)) {
    return refuse(printableValue(value));
  }
  return value as JsonObject;
}
